//! Configures the edge: nginx in front of both tiers.

pub mod limits;
pub mod origins;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::layout::{Layout, root};
use crate::part::{Launch, OnDeath, Part, Role, Stop, Tier};
use crate::probe::Probe;
use crate::provision::Tools;
use crate::size::Size;

pub(crate) const NAME: &str = "edge";
/// SIGQUIT lets nginx finish the requests in flight.
const STOP: Stop = Stop { signal: Signal::QUIT, grace: Duration::from_secs(5) };
/// Maximum number of client connections; each may need a second one to a service.
const CONNECTIONS: u64 = 4096;

pub(crate) fn part(layout: &Layout, tools: &Tools, size: &Size, services: &[String]) -> Result<Part> {
    let folder = layout.config().join(NAME);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let values = values(layout, tools, size, &folder);
    let file = folder.join("nginx.conf");
    for (template, file) in [("nginx.conf.template", &file), ("index.html.template", &folder.join("index.html"))] {
        let path = root().join("deploy/edge").join(template);
        let template = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        fs::write(file, fill(&template, &values)?).with_context(|| format!("cannot write {}", file.display()))?;
    }

    let (folder, file) = (folder.to_string_lossy(), file.to_string_lossy());
    let port = layout.ports.edge();
    Ok(Part {
        name: NAME.to_owned(),
        launch: Launch::new(&tools.nginx, ["-p", &*folder, "-e", "stderr", "-c", &*file]),
        role: Role::Server {
            ready: Probe::Http { port, path: "/edge/ready" },
            stop: STOP,
            on_death: OnDeath::Restart,
            tier: Tier::Edge,
        },
        needs: services.to_vec(),
        ports: BTreeMap::from([("http", port)]),
    })
}

fn values(layout: &Layout, tools: &Tools, size: &Size, folder: &Path) -> Vec<(&'static str, String)> {
    // An instance that fails three requests within a second gets no requests for a second, then is tried again.
    let upstream = |port| format!("        server 127.0.0.1:{port} max_fails=3 fail_timeout=1s;");
    let command_ports: Vec<_> = (1..=size.command_apis).map(|n| layout.ports.command_http(n)).collect();
    let commands: Vec<_> = command_ports.iter().map(|port| upstream(*port)).collect();
    let addresses: Vec<_> = command_ports.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
    let queries: Vec<_> = (1..=size.query_apis).map(|n| upstream(layout.ports.query_http(n))).collect();
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(4 * CONNECTIONS);
    let files = files.min(4 * CONNECTIONS);
    let mut values = vec![
        ("modules", tools.nginx_modules.display().to_string()),
        ("source", root().join("deploy/edge").display().to_string()),
        ("url", format!("http://127.0.0.1:{}", layout.ports.edge())),
        ("folder", folder.display().to_string()),
        ("port", layout.ports.edge().to_string()),
        ("files", files.to_string()),
        ("connections", (files / 2).min(2 * CONNECTIONS).to_string()),
        ("commands", commands.join("\n")),
        ("owners", owners(&commands)),
        ("addresses", addresses.join(", ")),
        ("partitions", size.partitions.to_string()),
        ("queries", queries.join("\n")),
    ];
    values.extend(size.limits.values());
    values.extend(size.origins.values());
    values
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
