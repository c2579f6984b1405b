//! Bodies of the product's commands.

use serde::Deserialize;

/// Body of `/v1/products/{id}/reserve`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reserve {
    pub order: String,
    pub quantity: u32,
}

/// Body of `/v1/products/{id}/register`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    pub name: String,
    pub price_cents: u64,
    pub stock: u32,
}

/// Body of `/v1/sales/{id}/claim`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim<'a> {
    pub customer: &'a str,
    pub quantity: u32,
    pub order: &'a str,
}
