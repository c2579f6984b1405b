//! Kafka of a secured stack: clients come by TLS with a password, controllers by TLS with the nodes' certificate, and
//! nobody may do anything that the rules in `acls.rs` do not list.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::accounts::{self, Account};
use crate::certificates::{Certificates, authority};
use crate::layout::{Layout, write_private};

/// Name of the nodes' certificate and account. The rules do not apply to it.
pub(super) const NODE: &str = "kafka";
const MECHANISM: &str = "SCRAM-SHA-512";

/// Returns the properties that differ from those of a plain stack.
pub(super) fn properties(layout: &Layout, certificates: &Certificates) -> Result<String> {
    let identity = identity(layout, certificates)?;
    let account = login(layout)?;
    let super_users = format!("User:{NODE};User:{}", Account::Owner.name());
    let (identity, authority) = (identity.display().to_string(), certificates.authority().display().to_string());
    let mut text = String::new();
    for (key, value) in [
        ("listener.security.protocol.map", "CLIENT:SASL_SSL,CONTROLLER:SSL"),
        ("ssl.keystore.type", "PEM"),
        ("ssl.keystore.location", &identity),
        ("ssl.truststore.type", "PEM"),
        ("ssl.truststore.location", &authority),
        ("ssl.enabled.protocols", "TLSv1.3,TLSv1.2"),
        ("listener.name.controller.ssl.client.auth", "required"),
        // The common name of the certificate is the account.
        ("ssl.principal.mapping.rules", "RULE:^CN=([^,]+).*$/$1/"),
        ("sasl.enabled.mechanisms", MECHANISM),
        ("sasl.mechanism.inter.broker.protocol", MECHANISM),
        ("listener.name.client.scram-sha-512.sasl.jaas.config", &account),
        ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
        ("allow.everyone.if.no.acl.found", "false"),
        ("super.users", &super_users),
    ] {
        writeln!(text, "{key}={value}").expect("writing to a String cannot fail");
    }
    Ok(text)
}

/// Returns the login of the nodes.
fn login(layout: &Layout) -> Result<String> {
    let password = accounts::password(layout, NODE)?;
    let module = "org.apache.kafka.common.security.scram.ScramLoginModule";
    Ok(format!("{module} required username=\"{NODE}\" password=\"{password}\";"))
}

/// Writes the certificate and the key into one file, as Kafka takes them, and returns its path.
fn identity(layout: &Layout, certificates: &Certificates) -> Result<PathBuf> {
    let pair = certificates.of(NODE)?;
    let read = |path: &PathBuf| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let path = layout.config().join("kafka.pem");
    write_private(&path, &format!("{}{}", read(&pair.key)?, read(&pair.certificate)?))?;
    Ok(path)
}

/// Writes the arguments that create the accounts while a data folder is formatted, and returns the file's path: other
/// accounts of this machine can read the arguments of a process.
pub(super) fn accounts(layout: &Layout, node: &str, format: &[&str]) -> Result<PathBuf> {
    let mut text = format.join("\n");
    let of_clients = [Account::Owner, Account::CommandApi, Account::Projector].map(Account::name);
    for name in of_clients.into_iter().chain([NODE]) {
        let password = accounts::password(layout, name)?;
        write!(text, "\n--add-scram\n{MECHANISM}=[name={name},password={password}]")
            .expect("writing to a String cannot fail");
    }
    let path = layout.config().join(format!("{node}.format"));
    write_private(&path, &text)?;
    Ok(path)
}

/// Writes the settings with which Kafka's tools come as the nodes' account, which may do everything, and returns the
/// file's path.
pub(super) fn of_tools(layout: &Layout) -> Result<PathBuf> {
    let path = layout.config().join("kafka-tool.properties");
    let authority = authority(&layout.certificates());
    let properties = [
        ("security.protocol", "SASL_SSL".to_owned()),
        ("sasl.mechanism", MECHANISM.to_owned()),
        ("sasl.jaas.config", login(layout)?),
        ("ssl.truststore.type", "PEM".to_owned()),
        ("ssl.truststore.location", authority.display().to_string()),
    ];
    let properties = properties.map(|(key, value)| format!("{key}={value}\n"));
    write_private(&path, &properties.concat())?;
    Ok(path)
}

/// Writes the arguments of the tool that changes an account's password, and returns the file's path.
pub(super) fn change_of_password(layout: &Layout, brokers: &str, account: &str, password: &str) -> Result<PathBuf> {
    let path = layout.config().join("kafka-tool.arguments");
    let change = format!("{MECHANISM}=[password={password}]");
    let own = of_tools(layout)?.display().to_string();
    let arguments = [
        "org.apache.kafka.tools.ConfigCommand",
        "--bootstrap-server",
        brokers,
        "--command-config",
        &own,
        "--alter",
        "--entity-type",
        "users",
        "--entity-name",
        account,
        "--add-config",
        &change,
    ];
    write_private(&path, &arguments.join("\n"))?;
    Ok(path)
}
