//! `cargo stack renew`: replaces certificates, the authority that signs them, or passwords of a running stack.

mod passwords;

use anyhow::{Context as _, Result, bail};

use crate::certificates::Certificates;
use crate::control::{self, Request};
use crate::deploy;
use crate::layout::Layout;
use crate::provision::find;
use crate::scale::Instances;
use crate::services::Service;
use crate::{edge, plan, up};

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Renew {
    /// Replace the authority as well, and for that all instances of the services, one at a time
    #[arg(long)]
    authority: bool,
    /// Replace the passwords of the services at Kafka, Postgres and Redis, and for that the instances that use Kafka, one
    /// at a time; the certificates stay, unless --authority is given
    #[arg(long)]
    passwords: bool,
}

impl Renew {
    pub(crate) fn run(&self, layout: &Layout) -> Result<()> {
        if !control::is_locked(layout)? || up::address(layout)?.authority.is_none() {
            bail!("no secured stack is running; start one with `cargo stack up --secure`");
        }
        let openssl = find::program("openssl").context("openssl is not installed")?;
        let certificates = Certificates::at(layout.certificates(), openssl)?;
        // The services read the authorities, and Kafka's password, at their start.
        let replaced: &[Service] = match (self.authority, self.passwords) {
            (true, _) => &Service::ALL,
            (false, true) => &[Service::CommandApi, Service::Projector],
            (false, false) => &[],
        };
        let instances = (!replaced.is_empty()).then(|| Instances::of(layout)).transpose()?;
        if self.authority {
            certificates.replace_authority()?;
            reload_edge(layout)?;
            println!("There is a new authority; clients trust the one before as well until the next start.");
        }
        if self.passwords {
            passwords::change(layout)?;
        }
        if let Some(instances) = instances {
            deploy::replace_by_same(layout, instances, replaced)?;
        }
        if self.passwords {
            passwords::refuse_earlier(layout)?;
        }
        if self.authority || !self.passwords {
            for name in plan::certified() {
                certificates.renew(name)?;
            }
            reload_edge(layout)?;
            println!("Renewed the certificates of {}.", plan::certified().collect::<Vec<_>>().join(", "));
        }
        Ok(())
    }
}

/// Makes the edge read its certificate and its authorities, while it serves; the services read certificates within
/// seconds by themselves.
fn reload_edge(layout: &Layout) -> Result<()> {
    let hangup = rustix::process::Signal::HUP.as_raw();
    control::tell(layout, &Request::Kill { name: edge::NAME.to_owned(), signal: hangup }).map(drop)
}
