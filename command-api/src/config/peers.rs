//! Addresses to which this instance may send its service token.

use std::str::FromStr;

use thiserror::Error;

/// Scheme of the URLs that are reached by TLS.
const SECURE: &str = "https";

/// Allowed addresses of peers. A claim names its owner's address, and anyone with write access to the log can write a
/// claim, so this instance connects only to addresses listed here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerUrls(Vec<Pattern>);

/// A URL like `http://host:8181`: scheme, host and port and nothing else, so that all parsers agree on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerUrl {
    text: String,
    scheme: String,
    host: String,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    scheme: String,
    host: Hosts,
    /// `None` for any port.
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    One(String),
    /// Hosts whose name ends with this suffix, which begins with a dot.
    Below(String),
}

#[derive(Debug, PartialEq, Eq, Error)]
pub enum PeerUrlError {
    #[error("{0:?} is not a URL such as http://host:8181, without a path")]
    Url(String),
    #[error("{0:?} is not a URL such as http://host:8181, http://host:* or http://*.domain:8181, without a path")]
    Pattern(String),
}

impl PeerUrl {
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn is_secure(&self) -> bool {
        self.scheme == SECURE
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for PeerUrl {
    type Err = PeerUrlError;

    fn from_str(text: &str) -> Result<Self, PeerUrlError> {
        let parse = || {
            let (scheme, host, port) = split(text).filter(|(_, host, _)| is_host(host))?;
            let (text, scheme, host) = (text.to_owned(), scheme.to_owned(), host.to_ascii_lowercase());
            Some(Self { text, scheme, host, port: number(port)? })
        };
        parse().ok_or_else(|| PeerUrlError::Url(text.to_owned()))
    }
}

impl FromStr for PeerUrls {
    type Err = PeerUrlError;

    /// Parses a comma-separated list.
    fn from_str(text: &str) -> Result<Self, PeerUrlError> {
        let named = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        named
            .map(|part| pattern(part).ok_or_else(|| PeerUrlError::Pattern(part.to_owned())))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl PeerUrls {
    /// Returns a list that allows every port of the URL's host.
    pub(crate) fn of_host(url: &PeerUrl) -> Self {
        Self(vec![Pattern { scheme: url.scheme.clone(), host: Hosts::One(url.host.clone()), port: None }])
    }

    /// Returns whether any of the allowed addresses is reached by TLS.
    pub(crate) fn use_tls(&self) -> bool {
        self.0.iter().any(|pattern| pattern.scheme == SECURE)
    }

    pub(crate) fn allow(&self, url: &str) -> bool {
        url.parse().is_ok_and(|url| self.0.iter().any(|pattern| pattern.fits(&url)))
    }
}

impl Pattern {
    fn fits(&self, url: &PeerUrl) -> bool {
        let host = match &self.host {
            Hosts::One(host) => url.host == *host,
            Hosts::Below(domain) => url.host.strip_suffix(domain.as_str()).is_some_and(|name| !name.is_empty()),
        };
        host && self.scheme == url.scheme && self.port.is_none_or(|port| port == url.port)
    }
}

fn pattern(text: &str) -> Option<Pattern> {
    let (scheme, host, port) = split(text)?;
    let host = host.to_ascii_lowercase();
    let host = match host.strip_prefix('*') {
        Some(domain) => {
            Hosts::Below(Some(domain.to_owned()).filter(|domain| domain.len() > 1 && domain.starts_with('.'))?)
        }
        None => Hosts::One(host),
    };
    let (Hosts::One(name) | Hosts::Below(name)) = &host;
    is_host(name).then_some(())?;
    let port = if port == "*" { None } else { Some(number(port)?) };
    Some(Pattern { scheme: scheme.to_owned(), host, port })
}

/// Splits a URL into scheme, host and port.
fn split(url: &str) -> Option<(&str, &str, &str)> {
    let (scheme, authority) = url.split_once("://")?;
    let usual_port = match scheme {
        "http" => "80",
        SECURE => "443",
        _ => return None,
    };
    let (host, port) = match authority.rsplit_once(':') {
        // The colons of an IPv6 address are inside brackets.
        Some((host, port)) if !port.ends_with(']') => (host, port),
        Some(_) | None => (authority, usual_port),
    };
    Some((scheme, host, port))
}

fn number(port: &str) -> Option<u16> {
    // `parse` also accepts a leading sign.
    port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok()).flatten()
}

fn is_host(host: &str) -> bool {
    let in_address = |byte: u8| byte.is_ascii_hexdigit() || b":.".contains(&byte);
    match host.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
        Some(address) => address.is_some_and(|address| !address.is_empty() && address.bytes().all(in_address)),
        None => !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_allowed_by_its_address_or_its_domain() {
        let urls: PeerUrls = "http://a:8181, http://[::1]:1, http://b:*, https://*.commands.internal".parse().unwrap();
        for url in [
            "http://a:8181",
            "http://A:8181",
            "http://[::1]:1",
            "http://b",
            "http://b:9",
            "https://x.y.commands.internal:443",
        ] {
            assert!(urls.allow(url), "{url}");
        }
        let others = [
            "http://a",
            "http://a:8182",
            "https://a:8181",
            "http://a:8181/",
            "http://a:8181/x",
            "http://a:+8181",
            "http://a:8181@evil",
            "http://a:8181@evil:8181",
            "http://evil#a:8181",
            "http://evil\\a:8181",
            "http://a.evil:8181",
            "http://evil?http://a:8181",
            "http://b:1@evil",
            "http://b:99999",
            "http://b:",
            "http://[::2]:1",
            "http://::1:1",
            "https://commands.internal",
            "https://.commands.internal",
            "https://evilcommands.internal",
            "https://commands.internal.evil",
            "http://x.commands.internal",
            "https://x.commands.internal:8181",
            "ws://a:8181",
            "a:8181",
            "",
            "http://",
            "https://*.commands.internal",
            "http://b:*",
        ];
        for url in others {
            assert!(!urls.allow(url), "{url}");
        }
    }

    #[test]
    fn a_pattern_that_would_match_too_much_is_refused() {
        for text in [
            "*",
            "http://*",
            "http://*:8181",
            "http://*.",
            "http://*a:1",
            "http://a.*:1",
            "http://a:1/*",
            "a:1",
            "http://a@b:1",
            "ws://a:1",
        ] {
            assert_eq!(text.parse::<PeerUrls>(), Err(PeerUrlError::Pattern(text.to_owned())));
        }
    }

    #[test]
    fn by_default_peers_are_on_this_host() {
        let urls = PeerUrls::of_host(&"http://127.0.0.1:8181".parse().unwrap());
        assert!(urls.allow("http://127.0.0.1:8182"));
        assert!(!urls.allow("http://127.0.0.2:8181") && !urls.allow("http://localhost:8181"));
    }
}
