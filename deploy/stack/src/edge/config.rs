//! Fills in nginx's configuration and the page at `/`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::access_log::{AccessLog, traced};
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
    /// Address, on loopback, of the listener that takes the list of instances; see [`super::peers`].
    pub(super) control: String,
    pub(super) limits: Limits,
    pub(super) origins: Origins,
    pub(super) access_log: AccessLog,
    /// Share of the requests without a trace that get one, in percent.
    pub(super) traced_percent: u8,
    /// Shell words that print the token of staff; `None` if everyone may send their commands.
    pub(super) staff_token: Option<String>,
}

/// TLS with services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServicesTls {
    /// File of the authorities that sign their certificates.
    pub(super) authority: PathBuf,
    /// Name in their certificates.
    pub(super) name: String,
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
            ("control", self.control.clone()),
            ("files", files.to_string()),
            ("connections", (files / 2).min(2 * CONNECTIONS).to_string()),
            ("partitions", self.partitions.to_string()),
            ("access_log", self.access_log.directives()),
            ("traced", traced(self.traced_percent)),
            ("staff", self.staff_token.as_ref().map_or_else(String::new, |token| staff_header(token))),
        ];
        values.extend(self.wires());
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

/// Returns the argument of curl with which staff, whose token the shell words print, send a command.
pub(crate) fn staff_header(token: &str) -> String {
    format!(" -H \"Authorization: Bearer {token}\"")
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

    fn plain() -> Config {
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
            control: String::from("127.0.0.1:2"),
            limits: Limits::default(),
            origins: Origins::default(),
            access_log: AccessLog { file: PathBuf::from("access.log"), lines: 0 },
            traced_percent: 1,
            staff_token: None,
        }
    }

    #[test]
    fn the_template_fits_its_values() {
        let template = fs::read_to_string(crate::edge::source().join("nginx.conf.template")).unwrap();
        let text = fill(&template, &plain().values()).unwrap();
        for part in ["listen 127.0.0.1:2;", "proxy_pass http://queries;"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn with_certificates_no_wire_is_plain() {
        let config = Config {
            certificate: Some((PathBuf::from("/own.pem"), PathBuf::from("/own.key"))),
            services: Some(ServicesTls { authority: PathBuf::from("/ca.pem"), name: String::from("services") }),
            url: String::from("https://127.0.0.1:1"),
            staff_token: Some(String::from("$(cat /staff-token)")),
            ..plain()
        };
        let template = fs::read_to_string(crate::edge::source().join("nginx.conf.template")).unwrap();
        let text = fill(&template, &config.values()).unwrap();
        for part in ["listen 127.0.0.1:1 ssl http2 ", "ssl_certificate_key /own.key;", "proxy_ssl_verify on;"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("proxy_pass http:") && text.contains("proxy_ssl_name services;"), "{text}");
        let command = |config: &Config| {
            let page = fs::read_to_string(crate::edge::source().join("index.html.template")).unwrap();
            let page = fill(&page, &config.values()).unwrap();
            page.lines().find(|line| line.contains("/register")).unwrap().to_owned()
        };
        let (secure, simple) = (command(&config), command(&plain()));
        let begins = "<pre>curl -i --cacert /ca.pem https://127.0.0.1:1/v1/products/cd-1/register ";
        assert!(secure.starts_with(begins) && secure.contains(" -H \"Authorization: Bearer $(cat /staff-token)\" -d "));
        assert!(!simple.contains("Authorization"), "{simple}");
    }

    #[test]
    fn an_unknown_placeholder_is_an_error() {
        let values = [("port", String::from("1"))];
        assert_eq!(fill("listen {{port}};", &values).unwrap(), "listen 1;");
        assert!(fill("listen {{prot}};", &values).is_err());
    }
}
