//! Names that clients give to things. Their characters are checked at the border, in `schemas`.

use alloc::boxed::Box;
use alloc::format;

use sha2::{Digest as _, Sha256};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProductId(pub Box<str>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderId(pub Box<str>);

/// Half of the SHA-256 of an order's name, for maps of orders that only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 16]);

/// Stands before the last part of the names of claims' orders, and in no name that a client gives to an order.
pub const CLAIM_MARK: char = '~';

impl OrderId {
    /// Names a claim's order under the sale's own name: nobody else can have placed another one there. `order` has no
    /// [`CLAIM_MARK`], so that the two can be told apart again.
    pub fn of_claim(sale: &str, order: &str) -> Self {
        Self(format!("{sale}{CLAIM_MARK}{order}").into())
    }

    /// Stands for the name. Clients choose the names of their orders: two that share a fingerprint would get the units of
    /// one, so nobody may be able to find such a pair.
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
