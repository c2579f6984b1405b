//! Names of aggregates on the wire, and their assignment to partitions.

use std::borrow::Borrow;
use std::sync::Arc;

pub use domain::AggregateType;
use xxhash_rust::xxh3::xxh3_64;

/// Maximum length of a client-assigned ID, in characters.
pub const MAX_ID_CHARS: usize = 128;
/// Regular expression for the IDs that [`check_id`] accepts. It avoids look-ahead, which not every engine supports.
pub const ID_PATTERN: &str = r"^(\.*[A-Za-z0-9_~-][A-Za-z0-9._~-]*|\.{3,})$";

/// Name of an aggregate in records, tables and Kafka keys: `type/id`, e.g. `product/cd-1`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AggregateId(Arc<str>);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AggregateIdError {
    #[error("an id has 1 to {MAX_ID_CHARS} characters of A-Z a-z 0-9 . _ ~ -")]
    Id,
    #[error("an id is not . or .., which no URL can name")]
    Dots,
    #[error("an aggregate is named type/id")]
    Form,
}

impl AggregateId {
    /// Creates a name from an ID given by a client, which must pass [`check_id`].
    pub fn new(aggregate: AggregateType, id: &str) -> Result<Self, AggregateIdError> {
        check_id(id)?;
        Self::of_log(aggregate, id)
    }

    /// Creates a name from an ID found in the log, which may contain IDs that are no longer accepted.
    pub fn of_log(aggregate: AggregateType, id: &str) -> Result<Self, AggregateIdError> {
        check_characters(id)?;
        Ok(Self([type_name(aggregate), "/", id].concat().into()))
    }

    /// Parses a name from the log, under the same rules as [`Self::of_log`].
    pub fn parse(name: &str) -> Result<Self, AggregateIdError> {
        let (aggregate, id) = name.split_once('/').ok_or(AggregateIdError::Form)?;
        check_characters(id)?;
        type_named(aggregate).ok_or(AggregateIdError::Form)?;
        Ok(Self(name.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn aggregate(&self) -> AggregateType {
        // No type name is a prefix of another.
        let is_of = |aggregate: &AggregateType| self.0.starts_with(type_name(*aggregate));
        TYPES.into_iter().find(is_of).expect("checked when it was made")
    }

    /// Returns the part of the name that the client assigned.
    pub fn id(&self) -> &str {
        &self.0[type_name(self.aggregate()).len() + 1..]
    }

    /// Returns the partition of this aggregate in a log of `partitions` partitions. The mapping never changes, because
    /// the order of an aggregate's records depends on it.
    pub fn partition(&self, partitions: u32) -> u32 {
        partition_named(self.as_str(), partitions)
    }
}

/// Returns the partition of the aggregate with this id.
pub fn partition(aggregate: AggregateType, id: &str, partitions: u32) -> u32 {
    partition_named(&[type_name(aggregate), "/", id].concat(), partitions)
}

fn partition_named(name: &str, partitions: u32) -> u32 {
    u32::try_from(xxh3_64(name.as_bytes()) % u64::from(partitions)).expect("a remainder of a u32 fits one")
}

/// Allows looking up maps by a borrowed name.
impl Borrow<str> for AggregateId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Returns the type's name in records and event types, e.g. `product`.
pub fn type_name(aggregate: AggregateType) -> &'static str {
    match aggregate {
        AggregateType::Product => "product",
        AggregateType::Order => "order",
        AggregateType::Sale => "sale",
    }
}

/// Returns the type's name in routes, e.g. `products`.
pub fn route_name(aggregate: AggregateType) -> &'static str {
    match aggregate {
        AggregateType::Product => "products",
        AggregateType::Order => "orders",
        AggregateType::Sale => "sales",
    }
}

pub const TYPES: [AggregateType; 3] = [AggregateType::Product, AggregateType::Order, AggregateType::Sale];

pub fn type_named(name: &str) -> Option<AggregateType> {
    TYPES.into_iter().find(|aggregate| type_name(*aggregate) == name)
}

pub fn type_routed(route: &str) -> Option<AggregateType> {
    TYPES.into_iter().find(|aggregate| route_name(*aggregate) == route)
}

/// Checks a client-assigned ID. `.` and `..` are refused because they are path segments with a meaning of their own,
/// escaped or not.
pub fn check_id(id: &str) -> Result<(), AggregateIdError> {
    check_characters(id)?;
    if matches!(id, "." | "..") { Err(AggregateIdError::Dots) } else { Ok(()) }
}

/// Accepts only characters that need no escaping in a URL, a Redis key or a log line.
fn check_characters(id: &str) -> Result<(), AggregateIdError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'~' | b'-');
    if id.is_empty() || id.len() > MAX_ID_CHARS || !id.bytes().all(plain) {
        return Err(AggregateIdError::Id);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aggregate_keeps_its_partition_for_ever() {
        let partition = |name| AggregateId::parse(name).unwrap().partition(12);
        // Values of xxh3_64; a change would send an aggregate's next event to another partition.
        assert_eq!([partition("product/cd-1"), partition("order/o-1"), partition("product/p~.9_-")], [0, 8, 9]);
    }

    #[test]
    fn ids_with_other_characters_are_refused() {
        for id in ["", "a b", "ä", "a/b", "a\0", &"x".repeat(129)] {
            assert_eq!(AggregateId::new(AggregateType::Product, id), Err(AggregateIdError::Id), "{id:?}");
        }
        assert_eq!(AggregateId::parse("basket/1"), Err(AggregateIdError::Form));
        assert_eq!(AggregateId::parse("product"), Err(AggregateIdError::Form));
        assert_eq!(AggregateId::new(AggregateType::Order, &"x".repeat(128)).unwrap().id().len(), 128);
    }

    #[test]
    fn an_id_that_no_url_can_name_is_read_from_the_log_but_not_accepted_from_clients() {
        for id in [".", ".."] {
            assert_eq!(AggregateId::new(AggregateType::Product, id), Err(AggregateIdError::Dots), "{id}");
            assert_eq!(AggregateId::parse(&format!("product/{id}")).unwrap().id(), id);
            assert_eq!(AggregateId::of_log(AggregateType::Product, id).unwrap().id(), id);
        }
        for id in ["...", ".a", "..a", "a.", "a..", "~", "-"] {
            assert_eq!(check_id(id), Ok(()), "{id}");
        }
    }
}
