//! Ids chosen by clients. Their characters are validated at the border, in `schemas`.

use alloc::boxed::Box;
use alloc::format;

use sha2::{Digest as _, Sha256};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProductId(pub Box<str>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderId(pub Box<str>);

/// Half of the SHA-256 of an order's id, as the key of maps of orders that only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 16]);

/// Separates the sale from the order in the ids of orders made by claims; not allowed in ids that clients choose.
pub const CLAIM_MARK: char = '~';

impl OrderId {
    /// Returns the id of a claim's order, prefixed with the sale's id, so that no client can have placed an order with
    /// it. `order` contains no [`CLAIM_MARK`], so that the two parts can be separated again.
    pub fn of_claim(sale: &str, order: &str) -> Self {
        Self(format!("{sale}{CLAIM_MARK}{order}").into())
    }

    /// Returns a short substitute for the id. Clients choose the ids of their orders, and two with the same fingerprint
    /// would share the units of one, so finding such a pair must be infeasible.
    pub fn fingerprint(&self) -> Fingerprint {
        let hash = Sha256::digest(self.0.as_bytes());
        Fingerprint(core::array::from_fn(|index| hash[index]))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CustomerId(pub Box<str>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PaymentId(pub Box<str>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SaleId(pub Box<str>);
