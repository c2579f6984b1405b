//! Certificates of a secured stack: an authority of its own, and a certificate for each server and account.
//!
//! They are for this machine only. Elsewhere, certificates come from the organisation's own authority.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::layout::{Layout, write_private};
use crate::provision::Tools;

/// Validity in days. A certificate is renewed at the start that finds less than half of it left.
const DAYS: u32 = 365;
const AUTHORITY_DAYS: u32 = 3650;
const AUTHORITY: &str = "authority";
/// Name of a new authority until it takes the place of the current one.
const NEXT: &str = "authority-next";
const LAST_LINE: &str = "-----END CERTIFICATE-----\n";

/// The authority of a state directory, and the certificates that it signed.
#[derive(Debug, Clone)]
pub struct Certificates {
    folder: PathBuf,
    openssl: PathBuf,
}

/// Paths of a certificate and of its private key, both PEM.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certificates {
    /// Opens the authority of a state directory, after creating it on first use. No stack runs: earlier authorities are
    /// dropped, and [`of`](Self::of) replaces what they have signed.
    pub fn open(layout: &Layout, tools: &Tools) -> Result<Self> {
        let certificates = Self::at(layout.certificates(), tools.openssl.clone())?;
        certificates.drop_earlier_authorities()?;
        Ok(certificates)
    }

    /// Opens the authority in a folder.
    pub fn at(folder: PathBuf, openssl: PathBuf) -> Result<Self> {
        let certificates = Self { folder, openssl };
        fs::create_dir_all(&certificates.folder)
            .with_context(|| format!("cannot create {}", certificates.folder.display()))?;
        if !certificates.is_fresh(&certificates.authority(), AUTHORITY_DAYS / 2) {
            certificates.make_authority(AUTHORITY)?;
        }
        Ok(certificates)
    }

    /// Makes a new authority, which signs from now on. The file that clients trust has the earlier ones as well, after it,
    /// whose certificates are still in use.
    pub(crate) fn replace_authority(&self) -> Result<()> {
        self.make_authority(NEXT)?;
        let (now, next) = (self.pair(AUTHORITY), self.pair(NEXT));
        let trusted = read(&next.certificate)? + &read(&now.certificate)?;
        write_private(&next.certificate, &trusted)?;
        rename(&next.key, &now.key)?;
        rename(&next.certificate, &now.certificate)
    }

    fn drop_earlier_authorities(&self) -> Result<()> {
        let (path, next) = (self.authority(), self.pair(NEXT).certificate);
        let trusted = read(&path)?;
        let (newest, earlier) = trusted.split_once(LAST_LINE).context("the authority's file has no certificate")?;
        if earlier.is_empty() {
            return Ok(());
        }
        write_private(&next, &format!("{newest}{LAST_LINE}"))?;
        rename(&next, &path)
    }

    fn make_authority(&self, name: &str) -> Result<()> {
        let extensions = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"];
        self.make(name, "Stampede on this machine", AUTHORITY_DAYS, &extensions, &[])
    }

    /// Returns the path of the authority's certificate, which clients trust.
    pub fn authority(&self) -> PathBuf {
        authority(&self.folder)
    }

    /// Returns the certificate of a server or an account, whose common name is `name`, valid for this machine's
    /// loopback addresses. Creates it on first use and before it expires.
    pub fn of(&self, name: &str) -> Result<Certificate> {
        let pair = self.pair(name);
        if !self.is_fresh(&pair.certificate, DAYS / 2) || !self.is_signed(&pair.certificate) {
            self.renew(name)?;
        }
        Ok(pair)
    }

    /// Replaces the certificate and the key of `name`.
    pub fn renew(&self, name: &str) -> Result<Certificate> {
        let (authority, key) = (self.authority(), self.pair(AUTHORITY).key);
        let extensions = [
            "basicConstraints=critical,CA:FALSE",
            "keyUsage=critical,digitalSignature",
            "extendedKeyUsage=serverAuth,clientAuth",
            "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1",
        ];
        let signed = ["-CA", &authority.to_string_lossy(), "-CAkey", &key.to_string_lossy()].map(str::to_owned);
        self.make(name, name, DAYS, &extensions, &signed)?;
        Ok(self.pair(name))
    }

    /// Returns the path of the openssl program.
    pub(crate) fn program(&self) -> &Path {
        &self.openssl
    }

    fn pair(&self, name: &str) -> Certificate {
        pair(&self.folder, name)
    }

    /// Writes a key and a certificate for it. Each replaces its predecessor as a whole, for services that watch them.
    fn make(&self, name: &str, subject: &str, days: u32, extensions: &[&str], signed: &[String]) -> Result<()> {
        let (pair, new) = (self.pair(name), self.pair(&format!("{name}.new")));
        write_private(&new.key, "")?;
        let mut args = vec!["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let (days, subject) = (days.to_string(), format!("/CN={subject}"));
        let (key, certificate) = (new.key.to_string_lossy(), new.certificate.to_string_lossy());
        args.extend(["-keyout", &*key, "-out", &*certificate, "-days", &*days, "-subj", &*subject]);
        args.extend(extensions.iter().flat_map(|extension| ["-addext", extension]));
        args.extend(signed.iter().map(String::as_str));
        self.openssl(&args)?;
        rename(&new.key, &pair.key)?;
        rename(&new.certificate, &pair.certificate)
    }

    fn is_fresh(&self, certificate: &Path, days: u32) -> bool {
        let seconds = (u64::from(days) * 24 * 60 * 60).to_string();
        self.openssl(&["x509", "-noout", "-checkend", &seconds, "-in", &certificate.to_string_lossy()]).is_ok()
    }

    fn is_signed(&self, certificate: &Path) -> bool {
        let authority = self.authority();
        self.openssl(&["verify", "-CAfile", &authority.to_string_lossy(), &certificate.to_string_lossy()]).is_ok()
    }

    fn openssl(&self, args: &[&str]) -> Result<()> {
        let output = Command::new(&self.openssl).args(args).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("cannot run {}", self.openssl.display()))?;
        if !output.status.success() {
            bail!("openssl {} failed: {}", args[0], String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot replace {}", to.display()))
}

/// Returns the path of the certificate of the authority in a folder.
pub fn authority(folder: &Path) -> PathBuf {
    pair(folder, AUTHORITY).certificate
}

/// Returns the paths of the certificate of `name` in a folder, and of its key.
pub(crate) fn pair(folder: &Path, name: &str) -> Certificate {
    Certificate { certificate: folder.join(format!("{name}.pem")), key: folder.join(format!("{name}.key")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::find;

    /// Opens an authority in a folder of this name, which is removed first.
    fn certificates(name: &str) -> Certificates {
        let folder = std::env::temp_dir().join(format!("stampede-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        Certificates::at(folder, find::program("openssl").unwrap()).unwrap()
    }

    #[test]
    fn a_certificate_is_signed_kept_and_renewed() {
        let certificates = certificates("certificates");
        let first = certificates.of("service").unwrap();
        let text = fs::read_to_string(&first.certificate).unwrap();
        assert!(fs::read_to_string(&first.key).unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
        assert!(certificates.is_signed(&first.certificate));
        certificates.of("service").unwrap();
        assert_eq!(fs::read_to_string(&first.certificate).unwrap(), text, "a valid certificate is kept");
        certificates.renew("service").unwrap();
        assert_ne!(fs::read_to_string(&first.certificate).unwrap(), text);
        assert!(certificates.is_signed(&first.certificate));
        certificates.make_authority(AUTHORITY).unwrap();
        assert!(!certificates.is_signed(&first.certificate), "the authority is another one");
        fs::remove_dir_all(certificates.folder).unwrap();
    }

    #[test]
    fn a_new_authority_signs_and_the_one_before_is_trusted_until_it_is_dropped() {
        let certificates = certificates("authorities");
        let text = |name: &str| fs::read_to_string(certificates.of(name).unwrap().certificate).unwrap();
        let (old, renewed) = (text("server"), text("service"));
        certificates.replace_authority().unwrap();
        assert_eq!(text("server"), old, "the authority that signed it is still trusted");
        certificates.renew("service").unwrap();
        let renewed_again = text("service");
        assert_ne!(renewed_again, renewed);
        certificates.drop_earlier_authorities().unwrap();
        certificates.drop_earlier_authorities().unwrap();
        assert_eq!(text("service"), renewed_again, "the new authority signed it");
        assert_ne!(text("server"), old, "nobody trusts the authority that signed it");
        fs::remove_dir_all(certificates.folder).unwrap();
    }
}
