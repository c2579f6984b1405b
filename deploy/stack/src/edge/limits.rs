//! Rate and connection limits of the edge, per client address.

use clap::Args;

/// Limits per address and class of request. A rate admits a burst of twice its number.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Limits {
    /// Limit one address at the edge, e.g. `commands=100`: requests per second, or how many at the same time for
    /// `connections` and `waits`; excess requests are answered 429
    /// [classes: commands, batches, rows, lists, histories, connections, waits]
    #[arg(long = "limit", value_name = "CLASS=NUMBER", value_parser = limit)]
    limits: Vec<(Class, u32)>,
    /// Network that the edge does not limit, in CIDR notation; may be given several times [default: loopback]
    #[arg(long, value_name = "NETWORK", value_parser = network, default_values = LOOPBACK)]
    unlimited: Vec<String>,
}

const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];

impl Default for Limits {
    fn default() -> Self {
        Self { limits: Vec::new(), unlimited: LOOPBACK.map(String::from).to_vec() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Class {
    /// Name on the command line.
    name: &'static str,
    /// Placeholder of the limit in the template.
    in_template: &'static str,
    /// Placeholder of the burst in the template; `None` if the class limits concurrency instead of a rate.
    burst: Option<&'static str>,
    default: u32,
}

/// Classes and their defaults. One visitor of a shop needs far less, and a whole building behind one address stays
/// below them.
const CLASSES: [Class; 7] = [
    class("commands", "limit_commands", Some("burst_commands"), 50),
    class("batches", "limit_batches", Some("burst_batches"), 4),
    class("rows", "limit_rows", Some("burst_rows"), 200),
    class("lists", "limit_lists", Some("burst_lists"), 20),
    class("histories", "limit_histories", Some("burst_histories"), 5),
    class("connections", "limit_connections", None, 64),
    class("waits", "limit_waits", None, 16),
];

const fn class(name: &'static str, in_template: &'static str, burst: Option<&'static str>, default: u32) -> Class {
    Class { name, in_template, burst, default }
}

impl Limits {
    /// Parses lists separated by commas: of limits such as `commands=100`, and of networks, by default loopback.
    pub(super) fn parse(limits: &str, unlimited: Option<&str>) -> Result<Self, String> {
        let default = Self::default();
        Ok(Self {
            limits: items(limits).map(limit).collect::<Result<_, _>>()?,
            unlimited: match unlimited {
                Some(networks) => items(networks).map(network).collect::<Result<_, _>>()?,
                None => default.unlimited,
            },
        })
    }

    /// Returns the template's placeholders and their values.
    pub(super) fn values(&self) -> Vec<(&'static str, String)> {
        let mut values: Vec<_> = CLASSES.iter().flat_map(|class| self.values_of(class)).collect();
        let unlimited: Vec<_> = self.unlimited.iter().map(|network| format!("        {network} 1;")).collect();
        values.push(("unlimited", unlimited.join("\n")));
        values
    }

    /// Returns the values of one class. If its option is given several times, the last one wins.
    fn values_of(&self, class: &Class) -> Vec<(&'static str, String)> {
        let told = self.limits.iter().rev().find(|(told, _)| told == class).map(|(_, limit)| *limit);
        let limit = told.unwrap_or(class.default);
        let burst = class.burst.map(|name| (name, limit.saturating_mul(2).to_string()));
        [(class.in_template, limit.to_string())].into_iter().chain(burst).collect()
    }
}

/// Returns the items of a list that commas separate.
pub(super) fn items(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn limit(text: &str) -> Result<(Class, u32), String> {
    let (name, number) = text.split_once('=').ok_or("write it as commands=100")?;
    let names = || CLASSES.map(|class| class.name).join(", ");
    let class = CLASSES.into_iter().find(|class| class.name == name);
    let class = class.ok_or_else(|| format!("unknown class {name:?}; the classes are {}", names()))?;
    let number = number.parse().ok().filter(|number| (1..=1_000_000).contains(number));
    Ok((class, number.ok_or("the limit must be a whole number from 1 to 1000000")?))
}

/// Parses a network strictly, because the text is inserted into nginx's configuration.
fn network(text: &str) -> Result<String, String> {
    let form = "write it as 10.0.0.0/8 or fd00::/8";
    let (address, bits) = text.split_once('/').ok_or(form)?;
    let address: std::net::IpAddr = address.parse().map_err(|_| form)?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits: u8 = bits.parse().ok().filter(|bits| *bits <= most).ok_or(form)?;
    Ok(format!("{address}/{bits}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_not_limited_unless_others_are_named() {
        let value = |limits: &Limits, name| limits.values().into_iter().find(|(key, _)| *key == name).unwrap().1;
        let limits = Limits::default();
        assert_eq!(value(&limits, "unlimited"), "        127.0.0.0/8 1;\n        ::1/128 1;");
        let unlimited = vec![network("10.0.0.0/8").unwrap()];
        let limits = Limits { limits: vec![limit("rows=3").unwrap(), limit("rows=7").unwrap()], unlimited };
        assert_eq!(value(&limits, "unlimited"), "        10.0.0.0/8 1;");
        assert_eq!((value(&limits, "limit_rows"), value(&limits, "burst_rows")), ("7".into(), "14".into()));
        assert_eq!(value(&limits, "limit_lists"), "20");
    }

    #[test]
    fn only_limits_and_networks_are_taken() {
        for text in ["rows", "rows=", "rows=0", "rows=-1", "pages=3", "rows=1 burst=9"] {
            assert!(limit(text).is_err(), "{text}");
        }
        for text in ["10.0.0.1", "10.0.0.0/33", "::1/129", "10.0.0.0/8 1; }", "shop.example/8", "all"] {
            assert!(network(text).is_err(), "{text}");
        }
    }
}
