//! Names that clients give to things. Their characters are checked at the border, in `schemas`.

use alloc::boxed::Box;

use sha2::{Digest as _, Sha256};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProductId(pub Box<str>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderId(pub Box<str>);

/// Half of the SHA-256 of an order's name, for maps of orders that only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 16]);

impl OrderId {
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
