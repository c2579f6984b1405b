//! New passwords for the accounts of a secured stack.
//!
//! The servers learn a password before the services do. Meanwhile open connections stay, and new ones to Redis may have
//! either password. A new connection to Postgres waits until the file has the new one. Kafka's clients keep the password
//! with which they were made, so the instances that have some are replaced right after.

use anyhow::Result;

use crate::accounts::{self, Account};
use crate::layout::Layout;
use crate::process::run;
use crate::provision;
use crate::size::{Size, Wanted};
use crate::{kafka, postgres, redis};

/// Changes all passwords at the servers and in the files. Can be repeated after a failure.
pub(super) fn change(layout: &Layout) -> Result<()> {
    let tools = provision::ensure(&layout.log("apt"))?;
    let size = Size::decide(layout, &Wanted::one_of_each())?;
    for account in Account::ALL {
        let (name, password) = (account.name(), accounts::next_password(layout, account)?);
        if account.uses_redis() {
            redis::administer(layout, &tools, size.redis_cluster, &format!("ACL SETUSER {name} >{password}"))?;
        }
        if account.uses_kafka() {
            run(&kafka::change_password(layout, &tools, size.brokers, name, &password)?)?;
        }
        run(&postgres::change_password(layout, &tools, account, &password)?)?;
        accounts::use_next_password(layout, account)?;
    }
    redis::write_users(layout, &[&size])?;
    println!("Changed the passwords of {}.", Account::ALL.map(Account::name).join(", "));
    Ok(())
}

/// Makes Redis refuse earlier passwords, as the other servers do already.
pub(super) fn refuse_earlier(layout: &Layout) -> Result<()> {
    let tools = provision::ensure(&layout.log("apt"))?;
    let size = Size::decide(layout, &Wanted::one_of_each())?;
    for account in Account::ALL.into_iter().filter(|account| account.uses_redis()) {
        let (name, password) = (account.name(), accounts::password(layout, account.name())?);
        redis::administer(layout, &tools, size.redis_cluster, &format!("ACL SETUSER {name} resetpass >{password}"))?;
    }
    Ok(())
}
