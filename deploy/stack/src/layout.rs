//! The files and ports of a stack.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Port of the edge unless `--base-port` moves the whole stack.
const EDGE_PORT: u16 = 8080;
const BASE_PORT: u16 = 18000;
/// Base port of `cargo stack test`, clear of a running stack's ports and below Linux's ephemeral ports.
pub(crate) const TEST_BASE_PORT: u16 = 19000;
/// Number of ports that belong to a stack.
const COUNT: u16 = 300;
/// Maximum number of instances of a service, and so the distance between the port ranges of two services.
pub(crate) const MAX_INSTANCES: u16 = 32;

/// Name of the secret that commands of staff want, in a secured stack.
pub(crate) const STAFF_TOKEN: &str = "staff-token";

/// The root of the workspace that this program was built from.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the package is two folders below the root")
}

/// The state directory of one stack.
#[derive(Debug, Clone)]
pub struct Layout {
    pub state: PathBuf,
    pub ports: Ports,
}

impl Layout {
    /// Returns the layout of a state directory, by default `.stack` at the workspace's root. `base_port` moves all
    /// ports, including the edge's.
    pub fn new(state: Option<&Path>, base_port: Option<u16>) -> Result<Self> {
        let state = match state {
            Some(path) => {
                std::path::absolute(path).with_context(|| format!("{} is not a valid path", path.display()))?
            }
            None => default_state(),
        };
        Ok(Self { state, ports: Ports::new(base_port) })
    }

    /// Returns the layout of `cargo stack test`, below this state directory.
    pub(crate) fn for_tests(&self, base_port: Option<u16>) -> Self {
        Self { state: self.state.join("test"), ports: Ports::new(Some(base_port.unwrap_or(TEST_BASE_PORT))) }
    }

    /// Returns the base port of the stacks that tests start, whose ports follow those of the tests' servers.
    pub(crate) fn base_port_of_stacks(&self) -> u16 {
        self.ports.base() + COUNT
    }

    /// Returns the folder with the state directories of stacks that tests start.
    pub(crate) fn stacks_of_tests(&self) -> PathBuf {
        self.state.join("stacks")
    }

    pub fn create(&self) -> Result<()> {
        for dir in [self.state.clone(), self.data(), self.logs(), self.records(), self.config()] {
            fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        Ok(())
    }

    /// Returns the folder of the servers' data, which outlives `down`.
    pub fn data(&self) -> PathBuf {
        self.state.join("data")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// Returns the folder with a file for each running process.
    pub(crate) fn records(&self) -> PathBuf {
        self.state.join("run")
    }

    /// Returns the folder of generated configuration.
    pub fn config(&self) -> PathBuf {
        self.state.join("config")
    }

    /// Returns the folder of a secured stack's certificates.
    pub fn certificates(&self) -> PathBuf {
        self.state.join("certificates")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.state.join("lock")
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.state.join("control.sock")
    }

    /// Removes everything that a fresh start must not find.
    pub fn clear_data(&self) -> Result<()> {
        for dir in [self.data(), self.config(), self.stacks_of_tests()] {
            remove_dir(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        self.create()
    }

    /// Returns the `Authorization` of staff. A stack that wants no token accepts it as well.
    pub fn staff_bearer(&self) -> Result<String> {
        Ok(format!("Bearer {}", self.secret(STAFF_TOKEN)?))
    }

    /// Returns shell words that print the token of staff.
    pub(crate) fn staff_token_in_shell(&self) -> String {
        format!("$(cat {})", self.state.join(STAFF_TOKEN).display())
    }

    /// Returns a random secret of this state directory, generated on first use and readable only by its owner.
    pub fn secret(&self, name: &str) -> Result<String> {
        let path = self.state.join(name);
        match fs::read_to_string(&path) {
            Ok(secret) if !secret.is_empty() => return Ok(secret),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
            Ok(_) | Err(_) => {}
        }
        let secret = random_hex()?;
        write_private(&path, &secret)?;
        Ok(secret)
    }
}

/// Returns the folder of Kafka's jars, which all state directories of this checkout share.
pub(crate) fn shared_cache() -> PathBuf {
    default_state().join("kafka")
}

/// Returns the folder of other builds, which all state directories of this checkout share.
pub(crate) fn shared_builds() -> PathBuf {
    default_state().join("builds")
}

pub(crate) fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

pub fn write_private(path: &Path, text: &str) -> Result<()> {
    let attempt = || {
        fs::write(path, "")?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        fs::write(path, text)
    };
    attempt().with_context(|| format!("cannot write {}", path.display()))
}

fn default_state() -> PathBuf {
    root().join(".stack")
}

/// Returns 128 random bits from the kernel, as hexadecimal digits.
fn random_hex() -> Result<String> {
    use std::io::Read;
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Ports of a stack, all on 127.0.0.1. Instances are numbered from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    edge: u16,
    base: u16,
}

impl Ports {
    fn new(base: Option<u16>) -> Self {
        Self { edge: base.unwrap_or(EDGE_PORT), base: base.unwrap_or(BASE_PORT) }
    }

    /// Returns the first of the ports but the edge's.
    pub(crate) fn base(self) -> u16 {
        self.base
    }

    pub fn edge(self) -> u16 {
        self.edge
    }

    /// Returns the port on which the edge takes the list of instances.
    pub(crate) fn edge_control(self) -> u16 {
        self.base + 22
    }

    /// Returns the port on which the edge serves itself and probes; see `hot.lua`.
    pub(crate) fn edge_itself(self) -> u16 {
        self.base + 23
    }

    pub(crate) fn prometheus(self) -> u16 {
        self.base + 24
    }

    pub(crate) fn alertmanager(self) -> u16 {
        self.base + 25
    }

    pub fn kafka(self, broker: u16) -> u16 {
        self.base + broker
    }

    pub fn kafka_controller(self, broker: u16) -> u16 {
        self.base + 10 + broker
    }

    pub fn postgres(self) -> u16 {
        self.base + 20
    }

    pub fn redis(self) -> u16 {
        self.base + 21
    }

    /// Returns the port of a node of the Redis cluster.
    pub(crate) fn redis_node(self, node: u16) -> u16 {
        self.base + 40 + node
    }

    pub(crate) fn redis_bus(self, node: u16) -> u16 {
        self.base + 50 + node
    }

    pub fn command_http(self, instance: u16) -> u16 {
        self.base + 100 + instance
    }

    pub fn command_internal(self, instance: u16) -> u16 {
        self.base + 100 + MAX_INSTANCES + instance
    }

    pub fn command_admin(self, instance: u16) -> u16 {
        self.base + 100 + 2 * MAX_INSTANCES + instance
    }

    pub fn query_http(self, instance: u16) -> u16 {
        self.base + 100 + 3 * MAX_INSTANCES + instance
    }

    pub(crate) fn query_admin(self, instance: u16) -> u16 {
        self.base + 100 + 4 * MAX_INSTANCES + instance
    }

    pub fn projector_admin(self, instance: u16) -> u16 {
        self.base + 100 + 5 * MAX_INSTANCES + instance
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::NODES;

    #[test]
    fn no_two_parts_of_a_stack_share_a_port() {
        let ports = Ports::new(Some(20000));
        let mut all = vec![ports.edge(), ports.edge_control(), ports.edge_itself(), ports.postgres(), ports.redis()];
        all.extend([ports.prometheus(), ports.alertmanager()]);
        all.extend((1..=NODES).flat_map(|n| [ports.redis_node(n), ports.redis_bus(n)]));
        all.extend((1..=3).flat_map(|n| [ports.kafka(n), ports.kafka_controller(n)]));
        all.extend((1..=MAX_INSTANCES).flat_map(|n| {
            [ports.command_http(n), ports.command_internal(n), ports.command_admin(n)].into_iter().chain([
                ports.query_http(n),
                ports.query_admin(n),
                ports.projector_admin(n),
            ])
        }));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(all.iter().all(|port| (20000..20300).contains(port)));
    }
}
