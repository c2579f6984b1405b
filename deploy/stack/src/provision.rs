//! Finds the programs that the stack needs, or installs them from the system's packages.
//!
//! Invariant: every installation is announced, and a package's own servers are not started.

mod apt;
pub mod find;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Programs of this machine, of sufficient versions.
#[derive(Debug, Clone)]
pub struct Tools {
    pub java: PathBuf,
    pub mvn: PathBuf,
    /// The folder of `postgres`, `initdb` and `pg_isready`, all of one version.
    pub postgres: PathBuf,
    pub redis_server: PathBuf,
    pub nginx: PathBuf,
    /// The folder of the modules that run Lua at the edge.
    pub nginx_modules: PathBuf,
    pub openssl: PathBuf,
}

/// A required program, module or header.
#[derive(Debug)]
pub struct Need {
    pub name: &'static str,
    pub find: fn() -> Option<PathBuf>,
    /// Debian and Ubuntu packages that provide it; the first one that the system offers is installed.
    pub packages: &'static [&'static str],
}

const JAVA: Need = Need {
    name: "Java 17 or newer",
    find: find::java,
    packages: &["openjdk-17-jre-headless", "openjdk-21-jre-headless", "default-jre-headless"],
};
const MAVEN: Need = Need { name: "Maven (mvn)", find: || find::program("mvn"), packages: &["maven"] };
const POSTGRES: Need = Need { name: "PostgreSQL 15 or newer", find: find::postgres, packages: &["postgresql"] };
const REDIS: Need = Need { name: "Redis 7 or newer", find: find::redis, packages: &["redis-server"] };
const NGINX: Need = Need { name: "nginx", find: || find::program("nginx"), packages: &["nginx"] };
const NGINX_LUA: Need =
    Need { name: "nginx's Lua module", find: find::nginx_modules, packages: &["libnginx-mod-http-lua"] };
const PROMETHEUS: Need = Need { name: "Prometheus", find: || find::program("prometheus"), packages: &["prometheus"] };
const ALERTMANAGER: Need =
    Need { name: "Alertmanager", find: find::alertmanager, packages: &["prometheus-alertmanager"] };
const OPENSSL: Need = Need { name: "OpenSSL", find: || find::program("openssl"), packages: &["openssl"] };

/// Tools for the services' build: librdkafka is written in C and C++ and built by make.
const TOOLCHAIN: [Need; 7] = [
    Need { name: "a C compiler (cc)", find: || find::program("cc"), packages: &["gcc"] },
    Need { name: "a C++ compiler (c++)", find: || find::program("c++"), packages: &["g++"] },
    Need { name: "make", find: || find::program("make"), packages: &["make"] },
    Need { name: "pkg-config", find: || find::program("pkg-config"), packages: &["pkg-config", "pkgconf"] },
    Need { name: "the C library's headers", find: || find::header("stdio.h"), packages: &["libc6-dev"] },
    Need { name: "zlib's headers", find: || find::header("zlib.h"), packages: &["zlib1g-dev"] },
    Need { name: "OpenSSL's headers", find: || find::header("openssl/ssl.h"), packages: &["libssl-dev"] },
];

/// Programs that watch a stack.
#[derive(Debug, Clone)]
pub(crate) struct Observers {
    pub(crate) prometheus: PathBuf,
    pub(crate) alertmanager: PathBuf,
}

/// Returns all programs of the stack, after installing the missing ones. The package manager's output goes to `log`.
pub fn ensure(log: &Path) -> Result<Tools> {
    install(&missing(), log)?;
    found()
}

/// Installs the missing ones of all programs that the commands and the checks of a change need. `log` is as in
/// [`ensure`].
pub(crate) fn ensure_all(log: &Path) -> Result<()> {
    let observers = [&PROMETHEUS, &ALERTMANAGER].into_iter().filter(is_missing);
    install(&missing().into_iter().chain(observers).collect::<Vec<_>>(), log)?;
    found().map(drop)
}

/// Returns the programs that watch a stack, after installing the missing ones. `log` is as in [`ensure`].
pub(crate) fn ensure_observers(log: &Path) -> Result<Observers> {
    let missing: Vec<_> = [&PROMETHEUS, &ALERTMANAGER].into_iter().filter(is_missing).collect();
    install(&missing, log)?;
    Ok(Observers { prometheus: ensure_one(&PROMETHEUS, log)?, alertmanager: ensure_one(&ALERTMANAGER, log)? })
}

/// Returns a program that only some commands need, after installing it if necessary. `log` is as in [`ensure`].
pub fn ensure_one(need: &'static Need, log: &Path) -> Result<PathBuf> {
    if is_missing(&need) {
        apt::install(&[need], log)?;
    }
    (need.find)().with_context(|| format!("{} is still missing after its package was installed", need.name))
}

fn install(missing: &[&'static Need], log: &Path) -> Result<()> {
    if missing.is_empty() { Ok(()) } else { apt::install(missing, log) }
}

fn is_missing(need: &&Need) -> bool {
    (need.find)().is_none()
}

fn missing() -> Vec<&'static Need> {
    const SERVERS: [&Need; 7] = [&JAVA, &MAVEN, &POSTGRES, &REDIS, &NGINX, &NGINX_LUA, &OPENSSL];
    TOOLCHAIN.iter().chain(SERVERS).filter(is_missing).collect()
}

/// Returns all programs of the stack; fails if one is missing.
pub(crate) fn found() -> Result<Tools> {
    let names: Vec<_> = missing().iter().map(|need| need.name).collect();
    let tools = || {
        Some(Tools {
            java: (JAVA.find)()?,
            mvn: (MAVEN.find)()?,
            postgres: (POSTGRES.find)()?,
            redis_server: (REDIS.find)()?,
            nginx: (NGINX.find)()?,
            nginx_modules: (NGINX_LUA.find)()?,
            openssl: (OPENSSL.find)()?,
        })
    };
    match tools() {
        Some(tools) if names.is_empty() => Ok(tools),
        Some(_) | None => bail!(
            "still missing or too old after installing the system's packages: {}; install them manually",
            names.join(", ")
        ),
    }
}
