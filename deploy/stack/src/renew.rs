//! `cargo stack renew`: replaces the certificates of HTTP in a running stack.

use anyhow::{Context as _, Result, bail};

use crate::certificates::Certificates;
use crate::control::{self, Request};
use crate::layout::Layout;
use crate::provision::find;
use crate::{edge, plan, up};

/// Replaces the certificates. The services read theirs within seconds, and the edge when it is told to.
pub(crate) fn run(layout: &Layout) -> Result<()> {
    if !control::is_locked(layout)? || up::address(layout)?.authority.is_none() {
        bail!("no secured stack is running; start one with `cargo stack up --secure`");
    }
    let openssl = find::program("openssl").context("openssl is not installed")?;
    let certificates = Certificates::at(layout.certificates(), openssl)?;
    for name in plan::certified() {
        certificates.renew(name)?;
    }
    let hangup = rustix::process::Signal::HUP.as_raw();
    control::tell(layout, &Request::Kill { name: edge::NAME.to_owned(), signal: hangup })?;
    println!("Renewed the certificates of {}.", plan::certified().collect::<Vec<_>>().join(", "));
    Ok(())
}
