//! The subcommand `healthcheck`: an image without a shell has no other program that could ask its service.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::env::Env;
use crate::exit;

const TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum size of an answer that is read.
const MAX_ANSWER: u64 = 1024 * 1024;

/// Fails unless the admin listener at `ADMIN_ADDR` answers 200 to `GET /livez`, or to the path that the argument names,
/// whose answer it prints.
pub fn run(env: &Env, mut args: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let address: SocketAddr = env.required("ADMIN_ADDR")?;
    if !address.ip().is_loopback() && env.optional::<PathBuf>("TLS_CERT_FILE")?.is_some() {
        bail!("the admin listener uses TLS because {address} is not on loopback; probe it by HTTPS");
    }
    let address = reachable(address);
    let named = args.next();
    let path = named.as_deref().unwrap_or("/livez");
    exit::no_arguments(args)?;
    let answer = get(address, path).with_context(|| format!("{address} does not answer"))?;
    if answer.split(' ').nth(1) != Some("200") {
        bail!("GET {path} answered {}", answer.trim());
    }
    if let (Some(_), Some((_, body))) = (&named, answer.split_once("\r\n\r\n")) {
        io::stdout().write_all(body.as_bytes())?;
    }
    Ok(())
}

/// Returns the loopback address in the place of an unspecified one.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        let ipv4 = address.is_ipv4();
        address.set_ip(if ipv4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    address
}

fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::AdminServer;
    use crate::listeners::{ListenerSettings, Listeners};
    use crate::readiness::Readiness;
    use crate::shutdown::Shutdown;
    use crate::telemetry::Telemetry;

    #[tokio::test]
    async fn it_asks_the_admin_listener_at_its_own_address() {
        let telemetry = Telemetry::new("test-service").unwrap();
        let readiness = Readiness::new();
        let kafka = readiness.condition("kafka");
        let plain = ListenerSettings::from_env(&Env::from([("PLAINTEXT", "allowed")])).unwrap();
        let listeners = Listeners::new(&plain, &telemetry).unwrap();
        let any = ([0, 0, 0, 0], 0).into();
        let server = AdminServer::bind(&listeners, any, "test-service", readiness, &telemetry).unwrap();
        let env = Env::from([("ADMIN_ADDR", format!("0.0.0.0:{}", server.local_addr().port()))]);
        let handle = server.serve(Shutdown::new()).unwrap();
        let check = |args: &[&str]| run(&env, args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>().into_iter());
        kafka.waiting("no broker answers");
        check(&[]).unwrap();
        let reason = check(&["/readyz"]).unwrap_err().to_string();
        assert!(reason.contains("503") && reason.contains("no broker answers"), "{reason}");
        kafka.ready();
        check(&["/readyz"]).unwrap();
        assert!(check(&["/livez", "/readyz"]).is_err());
        handle.stop().await;
        assert!(check(&[]).is_err());
    }
}
