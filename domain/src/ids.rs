//! Names that clients give to things. Their characters are checked at the border, in `schemas`.

use alloc::boxed::Box;

use sha2::{Digest as _, Sha256};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProductId(pub Box<str>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderId(pub Box<str>);

impl OrderId {
    /// Half of its SHA-256, for sets of orders that only grow. Clients choose the names of their orders: two that share
    /// a fingerprint would get the units of one, so nobody may be able to find such a pair.
    pub fn fingerprint(&self) -> u128 {
        let hash = Sha256::digest(self.0.as_bytes());
        u128::from_be_bytes(core::array::from_fn(|index| hash[index]))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CustomerId(pub Box<str>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PaymentId(pub Box<str>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SaleId(pub Box<str>);
