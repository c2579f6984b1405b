//! Bodies of commands, as the product has them.

use serde::Deserialize;

/// Of `/v1/products/{id}/reserve`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reserve {
    pub order: String,
    pub quantity: u32,
}

/// Of `/v1/products/{id}/register`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    pub name: String,
    pub price_cents: u64,
    pub stock: u32,
}

/// Of `/v1/sales/{id}/claim`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim<'a> {
    pub customer: &'a str,
    pub quantity: u32,
    pub order: &'a str,
}
