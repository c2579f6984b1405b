//! Fills in nginx's configuration and the page at `/`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::access_log::AccessLog;
use super::limits::Limits;
use super::origins::Origins;

/// Maximum number of client connections; each may need a second one to a service.
const CONNECTIONS: u64 = 4096;
const FILE: &str = "nginx.conf";

/// Everything that the templates depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Config {
    /// Address of the listener.
    pub(super) listen: String,
    /// Address, on loopback, of the listener for the edge itself and for probes.
    pub(super) itself: String,
    /// The edge's certificate and its key, both files; `None` for plain text with clients.
    pub(super) certificate: Option<(PathBuf, PathBuf)>,
    /// TLS with services; `None` for plain text.
    pub(super) services: Option<ServicesTls>,
    /// URL at which clients reach the edge.
    pub(super) url: String,
    /// Folder for the filled in files and for nginx's temporary ones.
    pub(super) folder: PathBuf,
    /// Folder of the templates and of the Lua modules.
    pub(super) source: PathBuf,
    /// Folder of nginx's own modules.
    pub(super) modules: PathBuf,
    /// Number of the log's partitions.
    pub(super) partitions: u16,
    pub(super) instances: Instances,
    pub(super) limits: Limits,
    pub(super) origins: Origins,
    pub(super) access_log: AccessLog,
}

/// TLS with services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServicesTls {
    /// File of the authorities that sign their certificates.
    pub(super) authority: PathBuf,
    /// Name in their certificates.
    pub(super) name: String,
}

/// The instances behind the edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Instances {
    /// Addresses of the public listeners of both tiers, which nginx resolves when it starts.
    Fixed { commands: Vec<String>, queries: Vec<String> },
    /// A supervisor tells them to a listener at this address; see [`super::peers`].
    Told { at: String },
}

impl Config {
    /// Writes the files and returns the path of nginx's configuration.
    pub(super) fn write(&self) -> Result<PathBuf> {
        let values = self.values();
        for (template, file) in [("nginx.conf.template", FILE), ("index.html.template", "index.html")] {
            let path = self.source.join(template);
            let template = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let file = self.folder.join(file);
            // Complete at any time: nginx may be told to read it again while it is written.
            let new = file.with_extension("new");
            fs::write(&new, fill(&template, &values)?)
                .and_then(|()| fs::rename(&new, &file))
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(self.folder.join(FILE))
    }

    /// Returns nginx's arguments.
    pub(super) fn arguments(&self, file: &Path) -> [String; 6] {
        ["-p", &self.folder.to_string_lossy(), "-e", "stderr", "-c", &file.to_string_lossy()].map(str::to_owned)
    }

    fn values(&self) -> Vec<(&'static str, String)> {
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(4 * CONNECTIONS);
        let files = files.min(4 * CONNECTIONS);
        let mut values = vec![
            ("modules", self.modules.display().to_string()),
            ("source", self.source.display().to_string()),
            ("url", self.url.clone()),
            ("folder", self.folder.display().to_string()),
            ("itself", self.itself.clone()),
            ("files", files.to_string()),
            ("connections", (files / 2).min(2 * CONNECTIONS).to_string()),
            ("partitions", self.partitions.to_string()),
            ("access_log", self.access_log.directives()),
        ];
        values.extend(self.wires());
        values.extend(self.instances.values());
        values.extend(self.limits.values());
        values.extend(self.origins.values());
        values
    }

    /// Returns the values of the wires to clients and to services.
    fn wires(&self) -> [(&'static str, String); 5] {
        let (listen, own) = match &self.certificate {
            Some((certificate, key)) => {
                let (certificate, key) = (certificate.display(), key.display());
                let own = format!("ssl_certificate {certificate};\n        ssl_certificate_key {key};");
                (format!("{} ssl http2", self.listen), own)
            }
            None => (self.listen.clone(), "# Without a certificate, this is plain text.".to_owned()),
        };
        let (scheme, trust, curl) = match &self.services {
            Some(ServicesTls { authority, name }) => {
                let authority = authority.display();
                let trust = format!("proxy_ssl_trusted_certificate {authority};\n    proxy_ssl_name {name};");
                ("https", format!("proxy_ssl_verify on;\n    {trust}"), format!("curl -i --cacert {authority}"))
            }
            None => ("http", "# Without an authority, this is plain text.".to_owned(), "curl -i".to_owned()),
        };
        [("listen", listen), ("certificate", own), ("scheme", scheme.to_owned()), ("authority", trust), ("curl", curl)]
    }
}

impl Instances {
    fn values(&self) -> [(&'static str, String); 5] {
        match self {
            Self::Fixed { commands, queries } => {
                // An instance that fails three requests within a second gets none for a second, then is tried again.
                let server = |address: &String| format!("        server {address} max_fails=3 fail_timeout=1s;");
                let [commands_servers, queries] =
                    [commands, queries].map(|tier| tier.iter().map(server).collect::<Vec<_>>());
                let addresses: Vec<_> = commands.iter().map(|address| format!("\"{address}\"")).collect();
                [
                    ("commands", chosen_by_nginx("commands", &commands_servers)),
                    ("owners", owners(&commands_servers)),
                    ("addresses", addresses.join(", ")),
                    ("queries", chosen_by_nginx("queries", &queries)),
                    ("control", String::new()),
                ]
            }
            Self::Told { at } => [
                ("commands", chosen_by_lua("commands")),
                ("owners", String::new()),
                ("addresses", String::new()),
                ("queries", chosen_by_lua("queries")),
                ("control", control(at)),
            ],
        }
    }
}

fn chosen_by_nginx(tier: &str, servers: &[String]) -> String {
    format!("        zone {tier} 256k;\n        least_conn;\n{}", servers.join("\n"))
}

/// Returns the directives of an upstream whose instances come and go while nginx runs.
fn chosen_by_lua(tier: &str) -> String {
    // nginx requires a server, which is never used.
    format!("        server 0.0.0.1;\n        balancer_by_lua_block {{ require(\"peers\").choose(\"{tier}\") }}")
}

/// Returns the server that takes the list of instances.
fn control(at: &str) -> String {
    let answer = r#"content_by_lua_block { require("peers").answer() }"#;
    format!("    server {{\n        listen {at};\n        location = /edge/peers {{ {answer} }}\n    }}\n")
}

/// Returns an upstream block for each server, with that server as the primary and all others as backups.
fn owners(servers: &[String]) -> String {
    let group = |(index, own): (usize, &String)| {
        let others = servers.iter().filter(|server| *server != own);
        let others: String = others.map(|other| other.replace(';', " backup;") + "\n").collect();
        let number = index + 1;
        format!(
            "    upstream commands_{number} {{\n{own}\n{others}        keepalive 256;\n        keepalive_requests 1000000;\n    }}"
        )
    };
    servers.iter().enumerate().map(group).collect::<Vec<_>>().join("\n\n")
}

fn fill(template: &str, values: &[(&'static str, String)]) -> Result<String> {
    let text = values.iter().fold(template.replace("`{{…}}`", "A name in double braces"), |text, (name, value)| {
        text.replace(&format!("{{{{{name}}}}}"), value)
    });
    if let Some(left) = text.split("{{").nth(1) {
        bail!("the edge's template has an unknown placeholder: {{{{{}", left.lines().next().unwrap_or_default());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(instances: Instances) -> Config {
        Config {
            listen: String::from("127.0.0.1:1"),
            itself: String::from("127.0.0.1:3"),
            certificate: None,
            services: None,
            url: String::new(),
            folder: PathBuf::new(),
            source: PathBuf::new(),
            modules: PathBuf::new(),
            partitions: 12,
            instances,
            limits: Limits::default(),
            origins: Origins::default(),
            access_log: AccessLog { file: PathBuf::from("access.log"), lines: 0 },
        }
    }

    #[test]
    fn the_template_fits_fixed_instances_and_such_as_come_and_go() {
        let template = fs::read_to_string(crate::edge::source().join("nginx.conf.template")).unwrap();
        let commands = vec![String::from("commands:81"), String::from("others:81")];
        let fixed = plain(Instances::Fixed { commands, queries: vec![String::from("queries:82")] });
        let fixed = fill(&template, &fixed.values()).unwrap();
        for part in ["least_conn;\n        server queries:82 ", "upstream commands_2 {\n        server others:81 "] {
            assert!(fixed.contains(part), "{fixed}");
        }
        let told = fill(&template, &plain(Instances::Told { at: String::from("127.0.0.1:2") }).values()).unwrap();
        for part in ["listen 127.0.0.1:2;", "choose(\"commands\")", "choose(\"queries\")"] {
            assert!(told.contains(part) && !fixed.contains(part), "{told}");
        }
    }

    #[test]
    fn with_certificates_no_wire_is_plain() {
        let config = Config {
            certificate: Some((PathBuf::from("/own.pem"), PathBuf::from("/own.key"))),
            services: Some(ServicesTls { authority: PathBuf::from("/ca.pem"), name: String::from("services") }),
            ..plain(Instances::Told { at: String::from("127.0.0.1:2") })
        };
        let template = fs::read_to_string(crate::edge::source().join("nginx.conf.template")).unwrap();
        let text = fill(&template, &config.values()).unwrap();
        for part in ["listen 127.0.0.1:1 ssl http2 ", "ssl_certificate_key /own.key;", "proxy_ssl_verify on;"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("proxy_pass http:") && text.contains("proxy_ssl_name services;"), "{text}");
    }

    #[test]
    fn an_unknown_placeholder_is_an_error() {
        let values = [("port", String::from("1"))];
        assert_eq!(fill("listen {{port}};", &values).unwrap(), "listen 1;");
        assert!(fill("listen {{prot}};", &values).is_err());
    }
}
