//! TLS and accounts of Kafka's clients.

use std::str::FromStr;

use rdkafka::ClientConfig;

use crate::env::{Env, EnvError, LiveSecret};
use crate::tls;

/// Protection of the connections to the brokers. librdkafka reads the files when a client is created.
#[derive(Debug, Clone)]
pub(super) enum Security {
    Plaintext,
    /// The broker must be named by a certificate of a trusted authority.
    Tls {
        /// PEM file of the trusted authorities; `None` for those of the system.
        ca_file: Option<String>,
        client: Option<ClientCertificate>,
        account: Option<Account>,
    },
}

/// PEM files of a client's certificate and of its private key.
#[derive(Debug, Clone)]
pub(super) struct ClientCertificate {
    certificate: String,
    key: String,
}

#[derive(Debug, Clone)]
pub(super) struct Account {
    name: String,
    /// Some clients are made long after the start, when the password may be another one.
    password: LiveSecret,
    mechanism: Mechanism,
}

impl Security {
    pub(super) fn from_env(env: &Env) -> Result<Self, EnvError> {
        // `KAFKA_SECURITY`, default `plaintext`: `ssl` for TLS, `sasl_ssl` for TLS and an account with a password. The
        // brokers must be named by their certificates.
        let protocol = env.or("KAFKA_SECURITY", Protocol::Plaintext)?;
        // `KAFKA_CA_FILE`, default `TLS_CA_FILE`, or else the system's: PEM file of the authorities that sign the
        // brokers' certificates.
        let own_ca = env.optional::<String>("KAFKA_CA_FILE")?;
        let of_all = tls::ca_file(env)?.map(|path| path.to_string_lossy().into_owned());
        let ca_file = own_ca.clone().or(of_all);
        // `KAFKA_CERT_FILE`: PEM file of this client's certificate, for brokers that ask for one.
        let certificate = env.optional::<String>("KAFKA_CERT_FILE")?;
        // `KAFKA_KEY_FILE`: PEM file of the private key of `KAFKA_CERT_FILE`.
        let key = env.optional::<String>("KAFKA_KEY_FILE")?;
        // `KAFKA_USERNAME`: name of the account, with `KAFKA_SECURITY=sasl_ssl`.
        let name = env.optional::<String>("KAFKA_USERNAME")?;
        // `KAFKA_PASSWORD`: password of the account. A new client takes the current content of its file, and keeps it: restart
        // the services one by one after a change.
        let password = env.optional_secret_of_new_clients("KAFKA_PASSWORD")?;
        // `KAFKA_SASL_MECHANISM`, default `SCRAM-SHA-512`: or `SCRAM-SHA-256`, or `PLAIN`.
        let mechanism = env.optional::<Mechanism>("KAFKA_SASL_MECHANISM")?;

        let has_account = [
            ("KAFKA_USERNAME", name.is_some()),
            ("KAFKA_PASSWORD", password.is_some()),
            ("KAFKA_SASL_MECHANISM", mechanism.is_some()),
        ];
        let has_tls = [
            ("KAFKA_CA_FILE", own_ca.is_some()),
            ("KAFKA_CERT_FILE", certificate.is_some()),
            ("KAFKA_KEY_FILE", key.is_some()),
        ];
        if protocol == Protocol::Plaintext {
            refuse(&has_account, "KAFKA_SECURITY is plaintext: set it to sasl_ssl, or unset this")?;
            refuse(&has_tls, "KAFKA_SECURITY is plaintext: set it to ssl or sasl_ssl, or unset this")?;
            return Ok(Self::Plaintext);
        }
        let client = if certificate.is_some() || key.is_some() {
            let certificate = env.needed("KAFKA_CERT_FILE", certificate, "the certificate of KAFKA_KEY_FILE")?;
            let key = env.needed("KAFKA_KEY_FILE", key, "the private key of KAFKA_CERT_FILE")?;
            certificate.zip(key).map(|(certificate, key)| ClientCertificate { certificate, key })
        } else {
            None
        };
        let account = if protocol == Protocol::SaslSsl {
            let name = env.needed("KAFKA_USERNAME", name, "an account's name, for sasl_ssl")?;
            let expected = "its password, or the path of its file in KAFKA_PASSWORD_FILE, for sasl_ssl";
            let password = env.needed("KAFKA_PASSWORD", password, expected)?;
            let mechanism = mechanism.unwrap_or(Mechanism::ScramSha512);
            name.zip(password).map(|(name, password)| Account { name, password, mechanism })
        } else {
            refuse(&has_account, "KAFKA_SECURITY is ssl, without accounts: set it to sasl_ssl, or unset this")?;
            None
        };
        Ok(Self::Tls { ca_file, client, account })
    }

    pub(super) fn apply(&self, config: &mut ClientConfig) {
        let Self::Tls { ca_file, client, account } = self else { return };
        let protocol = if account.is_some() { "sasl_ssl" } else { "ssl" };
        config
            .set("security.protocol", protocol)
            // The default since librdkafka 2.0; set explicitly because without it any certificate of the authority
            // would do, such as that of another service.
            .set("ssl.endpoint.identification.algorithm", "https");
        if let Some(ca_file) = ca_file {
            config.set("ssl.ca.location", ca_file);
        }
        if let Some(ClientCertificate { certificate, key }) = client {
            config.set("ssl.certificate.location", certificate).set("ssl.key.location", key);
        }
        if let Some(Account { name, password, mechanism }) = account {
            config
                .set("sasl.mechanism", mechanism.to_string())
                .set("sasl.username", name)
                .set("sasl.password", password.current().expose());
        }
    }
}

/// Refuses the first setting that is set.
fn refuse(settings: &[(&str, bool)], reason: &'static str) -> Result<(), EnvError> {
    let unfit = |(name, _): &(&str, bool)| EnvError::Unfit { name: (*name).to_owned(), reason };
    settings.iter().find(|(_, is_set)| *is_set).map(unfit).map_or(Ok(()), Err)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Plaintext,
    Ssl,
    SaslSsl,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mechanism {
    ScramSha512,
    ScramSha256,
    Plain,
}

#[derive(Debug, thiserror::Error)]
#[error("none of {0}")]
struct NoneOf(&'static str);

impl FromStr for Protocol {
    type Err = NoneOf;

    fn from_str(text: &str) -> Result<Self, NoneOf> {
        match text {
            "plaintext" => Ok(Self::Plaintext),
            "ssl" => Ok(Self::Ssl),
            "sasl_ssl" => Ok(Self::SaslSsl),
            _ => Err(NoneOf("plaintext, ssl, sasl_ssl; an account without TLS is not supported")),
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plaintext => "plaintext",
            Self::Ssl => "ssl",
            Self::SaslSsl => "sasl_ssl",
        })
    }
}

impl FromStr for Mechanism {
    type Err = NoneOf;

    fn from_str(text: &str) -> Result<Self, NoneOf> {
        match text {
            "SCRAM-SHA-512" => Ok(Self::ScramSha512),
            "SCRAM-SHA-256" => Ok(Self::ScramSha256),
            "PLAIN" => Ok(Self::Plain),
            _ => Err(NoneOf("SCRAM-SHA-512, SCRAM-SHA-256, PLAIN")),
        }
    }
}

impl std::fmt::Display for Mechanism {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ScramSha512 => "SCRAM-SHA-512",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::Plain => "PLAIN",
        })
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::consumer::BaseConsumer;

    use super::super::KafkaSettings;
    use super::*;

    fn settings<const N: usize>(told: [(&str, &str); N]) -> Result<KafkaSettings, EnvError> {
        KafkaSettings::from_env(&Env::from(told))
    }

    /// Nothing listens on port 1: creating a client does not wait for a broker.
    #[test]
    fn librdkafka_accepts_tls_accounts_and_the_system_s_authorities() {
        let account = [("KAFKA_USERNAME", "shop"), ("KAFKA_PASSWORD", "hunter2"), ("KAFKA_BROKERS", "127.0.0.1:1")];
        for mechanism in ["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"] {
            let told = account.into_iter().chain([("KAFKA_SECURITY", "sasl_ssl"), ("KAFKA_SASL_MECHANISM", mechanism)]);
            let kafka = KafkaSettings::from_env(&told.collect()).unwrap();
            let config = kafka.reader("test");
            assert_eq!(config.get("sasl.mechanism"), Some(mechanism));
            assert_eq!(config.get("ssl.endpoint.identification.algorithm"), Some("https"));
            config.create::<BaseConsumer>().unwrap();
            assert!(!format!("{kafka:?}").contains("hunter2"));
        }
    }

    #[test]
    fn a_new_client_has_the_current_password_of_the_file() {
        let file = std::env::temp_dir().join(format!("stampede-kafka-password-{}", std::process::id()));
        std::fs::write(&file, "first").unwrap();
        let told =
            [("KAFKA_SECURITY", "sasl_ssl"), ("KAFKA_USERNAME", "shop")].map(|(name, value)| (name, value.into()));
        let kafka = KafkaSettings::from_env(&told.into_iter().chain([("KAFKA_PASSWORD_FILE", file.clone())]).collect());
        let (kafka, begun) = (kafka.unwrap(), std::time::Instant::now());
        let password = || kafka.reader("test").get("sasl.password").map(str::to_owned);
        assert_eq!(password().as_deref(), Some("first"));
        std::fs::write(&file, "second").unwrap();
        while password().as_deref() != Some("second") {
            assert!(begun.elapsed().as_secs() < 10, "the password is still {:?}", password());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn the_file_of_authorities_is_kafkas_own_or_that_of_all() {
        let ca = |told: &[(&str, &str)]| {
            let env = told.iter().copied().chain([("KAFKA_SECURITY", "ssl")]).collect();
            KafkaSettings::from_env(&env).unwrap().admin("test").get("ssl.ca.location").map(str::to_owned)
        };
        assert_eq!(ca(&[]), None);
        assert_eq!(ca(&[("TLS_CA_FILE", "/all.pem")]).as_deref(), Some("/all.pem"));
        assert_eq!(ca(&[("TLS_CA_FILE", "/all.pem"), ("KAFKA_CA_FILE", "/own.pem")]).as_deref(), Some("/own.pem"));
        let plain = settings([("TLS_CA_FILE", "/all.pem")]).unwrap().admin("test");
        assert_eq!((plain.get("security.protocol"), plain.get("ssl.ca.location")), (None, None));
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused_with_what_to_do() {
        let refused = |told: &[(&str, &str)], name: &str, hint: &str| {
            let error = KafkaSettings::from_env(&told.iter().copied().collect()).unwrap_err().to_string();
            assert!(error.starts_with(name) && error.contains(hint), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        };
        refused(&[("KAFKA_SECURITY", "sasl_plaintext")], "KAFKA_SECURITY", "without TLS is not supported");
        refused(&[("KAFKA_PASSWORD", "hunter2")], "KAFKA_PASSWORD", "set it to sasl_ssl");
        refused(&[("KAFKA_CA_FILE", "/ca.pem")], "KAFKA_CA_FILE", "set it to ssl or sasl_ssl");
        let ssl = ("KAFKA_SECURITY", "ssl");
        refused(&[ssl, ("KAFKA_PASSWORD", "hunter2")], "KAFKA_PASSWORD", "set it to sasl_ssl");
        refused(&[ssl, ("KAFKA_USERNAME", "shop")], "KAFKA_USERNAME", "set it to sasl_ssl");
        refused(&[ssl, ("KAFKA_CERT_FILE", "/a.pem")], "KAFKA_KEY_FILE", "must be set");
        refused(&[ssl, ("KAFKA_KEY_FILE", "/a.key")], "KAFKA_CERT_FILE", "must be set");
        let sasl = ("KAFKA_SECURITY", "sasl_ssl");
        refused(&[sasl], "KAFKA_USERNAME", "must be set");
        refused(&[sasl, ("KAFKA_USERNAME", "shop")], "KAFKA_PASSWORD", "KAFKA_PASSWORD_FILE");
        refused(&[sasl, ("KAFKA_SASL_MECHANISM", "GSSAPI")], "KAFKA_SASL_MECHANISM", "SCRAM-SHA-512");
    }
}
