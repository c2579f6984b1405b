//! Time until the certificates in the files of this process's settings expire.

use std::path::{Path, PathBuf};
use std::time::Duration;

use opentelemetry::KeyValue;
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use super::certificates;
use crate::clock::since_epoch;
use crate::env::Env;
use crate::telemetry::Telemetry;

/// Settings that name a file with a certificate and those of its intermediate authorities: the chain is worth nothing once
/// the first of them has expired.
const CHAINS: [&str; 2] = ["TLS_CERT_FILE", "KAFKA_CERT_FILE"];
/// Settings that name a file with authorities: while one is replaced, the next stands beside it, and the last to expire
/// counts.
const AUTHORITIES: [&str; 4] = ["TLS_CA_FILE", "KAFKA_CA_FILE", "POSTGRES_CA_FILE", "REDIS_CA_FILE"];

/// Files with certificates, by the setting that names them.
#[derive(Debug, Clone, Default)]
pub(crate) struct CertificateFiles(Vec<(&'static str, PathBuf)>);

impl CertificateFiles {
    pub(crate) fn from_env(env: &Env) -> Self {
        let file = |setting| env.file(setting).map(|file| (setting, file));
        Self(CHAINS.into_iter().chain(AUTHORITIES).filter_map(file).collect())
    }

    /// Creates the gauge `stampede_certificate_expires_in_seconds{setting}`, which is negative once it is too late. Each
    /// question reads the files, so that a renewed one counts at once; a file that cannot be read shows nothing.
    pub(crate) fn observe(&self, telemetry: &Telemetry) {
        let files = self.clone();
        telemetry.observed_seconds_gauge(
            "stampede_certificate_expires_in",
            &["setting"],
            "Time until the certificates in the file of a setting expire.",
            move |gauge| {
                for (setting, file) in &files.0 {
                    if let Some(expires_at) = expires_at(setting, file) {
                        let left = expires_at.as_secs_f64() - since_epoch().as_secs_f64();
                        gauge.observe(left, &[KeyValue::new("setting", *setting)]);
                    }
                }
            },
        );
    }
}

/// Returns the time since 1970 at which the file's certificates expire.
fn expires_at(setting: &str, file: &Path) -> Option<Duration> {
    let certificates = certificates(file).ok()?;
    let parsed = certificates.iter().filter_map(|certificate| Certificate::from_der(certificate).ok());
    let ends = parsed.map(|certificate| certificate.tbs_certificate.validity.not_after.to_unix_duration());
    if CHAINS.contains(&setting) { ends.min() } else { ends.max() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::Files;

    #[test]
    fn a_chain_expires_with_its_first_certificate_and_authorities_with_the_last() {
        let (short, long) = (Files::new("short"), Files::new("long"));
        long.renew_for(9);
        let both = [&short.certificate, &long.certificate].map(|file| std::fs::read(file).unwrap()).concat();
        std::fs::write(&short.certificate, both).unwrap();
        let file = short.certificate.to_str().unwrap();
        let env = Env::from([("TLS_CERT_FILE", file), ("TLS_CA_FILE", file), ("REDIS_CA_FILE", "/no/such.pem")]);
        let telemetry = Telemetry::new("test").unwrap();
        CertificateFiles::from_env(&env).observe(&telemetry);
        let shown = || {
            let text = telemetry.render().unwrap();
            let series = text.lines().filter_map(|line| line.strip_prefix("stampede_certificate_expires_in_seconds"));
            let series = series.map(|line| line.split_once(' ').unwrap());
            let days = |value: &str| (value.parse::<f64>().unwrap() / 86_400.0).round();
            series.map(|(labels, value)| (labels.to_owned(), days(value))).collect::<Vec<_>>()
        };
        let [ca, chain] = ["{setting=\"TLS_CA_FILE\"}", "{setting=\"TLS_CERT_FILE\"}"].map(str::to_owned);
        assert_eq!(shown(), [(ca.clone(), 9.0), (chain.clone(), 2.0)]);
        std::fs::copy(&long.certificate, &short.certificate).unwrap();
        assert_eq!(shown(), [(ca, 9.0), (chain, 9.0)], "a renewed file was not read");
        assert!(env.settings().is_empty(), "a setting that the service may not have was recorded");
    }
}
