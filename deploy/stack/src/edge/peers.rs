//! The instances to which the edge sends requests. They come and go while nginx runs; see `deploy/edge/peers.lua`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::NAME;
use crate::http;
use crate::layout::Layout;
use crate::services::Service;
use crate::size::Size;

/// Instances by service and number.
pub(crate) type Peers = BTreeSet<(Service, u16)>;

/// Returns the instances with which a stack of this size starts.
pub(crate) fn planned(layout: &Layout, size: &Size) -> String {
    let of = |service: Service, count: u16| (1..=count).map(move |number| (service, number));
    list(layout, &of(Service::CommandApi, size.command_apis).chain(of(Service::QueryApi, size.query_apis)).collect())
}

/// Returns the list as the edge reads it: a line with tier and address for each instance.
pub(crate) fn list(layout: &Layout, peers: &Peers) -> String {
    let line = |(service, number): &(Service, u16)| match service {
        Service::CommandApi => format!("commands 127.0.0.1:{}\n", layout.ports.command_http(*number)),
        Service::QueryApi => format!("queries 127.0.0.1:{}\n", layout.ports.query_http(*number)),
        Service::Projector => String::new(),
    };
    peers.iter().map(line).collect()
}

/// Stores the list, from which nginx starts.
pub(crate) fn store(layout: &Layout, list: &str) -> Result<()> {
    store_in(&layout.config().join(NAME), list)
}

/// Stores the list in the folder of the edge's files.
pub(super) fn store_in(folder: &Path, list: &str) -> Result<()> {
    let path = folder.join("peers");
    fs::write(&path, list).with_context(|| format!("cannot write {}", path.display()))
}

/// Makes a running edge use the list: from its answer on, no request begins on another instance.
pub(crate) fn tell(layout: &Layout, list: &str) -> Result<()> {
    tell_at(layout.ports.edge_control(), list)
}

/// Does the same with the edge whose control listener has this port.
pub(super) fn tell_at(port: u16, list: &str) -> Result<()> {
    let (status, answer) = http::post(port, "/edge/peers", list)?;
    ensure!(status == 200 && answer == list, "the edge did not take its list of instances: {status} {answer}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edge_sees_the_addresses_of_both_tiers_and_no_projector() {
        let layout = Layout::new(Some(Path::new("/nowhere")), Some(20000)).unwrap();
        let peers = [(Service::CommandApi, 2), (Service::QueryApi, 1), (Service::Projector, 1)];
        assert_eq!(list(&layout, &peers.into()), "commands 127.0.0.1:20102\nqueries 127.0.0.1:20197\n");
    }
}
