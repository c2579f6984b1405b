//! Fills in nginx's configuration and the page at `/`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

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
    /// Addresses of command-api's public listeners.
    pub(super) commands: Vec<String>,
    /// Addresses of query-api's public listeners.
    pub(super) queries: Vec<String>,
    pub(super) limits: Limits,
    pub(super) origins: Origins,
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
        // An instance that fails three requests within a second gets no requests for a second, then is tried again.
        let upstream = |address: &String| format!("        server {address} max_fails=3 fail_timeout=1s;");
        let commands: Vec<_> = self.commands.iter().map(upstream).collect();
        let addresses: Vec<_> = self.commands.iter().map(|address| format!("\"{address}\"")).collect();
        let queries: Vec<_> = self.queries.iter().map(upstream).collect();
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(4 * CONNECTIONS);
        let files = files.min(4 * CONNECTIONS);
        let mut values = vec![
            ("modules", self.modules.display().to_string()),
            ("source", self.source.display().to_string()),
            ("url", self.url.clone()),
            ("folder", self.folder.display().to_string()),
            ("listen", self.listen.clone()),
            ("files", files.to_string()),
            ("connections", (files / 2).min(2 * CONNECTIONS).to_string()),
            ("commands", commands.join("\n")),
            ("owners", owners(&commands)),
            ("addresses", addresses.join(", ")),
            ("partitions", self.partitions.to_string()),
            ("queries", queries.join("\n")),
        ];
        values.extend(self.limits.values());
        values.extend(self.origins.values());
        values
    }
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

    #[test]
    fn an_unknown_placeholder_is_an_error() {
        let values = [("port", String::from("1"))];
        assert_eq!(fill("listen {{port}};", &values).unwrap(), "listen 1;");
        assert!(fill("listen {{prot}};", &values).is_err());
    }
}
