//! What others build against: a JSON Schema of every event, the events' catalogue, the HTTP interface as OpenAPI, the
//! log as AsyncAPI. All is made from the types that read and write, and checked in, so that a change of a contract
//! shows in a review as such. A test compares both; `UPDATE_CONTRACTS=1 cargo test -p schemas contracts` writes anew.
//!
//! Invariant: an event that was published keeps its schema. `json/published.json` has each event's schema, without its
//! words, and the version of the system that had it first. Writing anew adds what is missing there; where a schema of
//! the code breaks a published one ([`breaking::breaking_changes`]) it writes nothing at all, and the test fails as
//! before. So no regenerating hides a break: a line of that file has to be taken out by hand, and a review that sees
//! one leave knows. The list is in the tree, not in the history of it, so that it is the same in a shallow clone, on a
//! branch of many commits, and where there is no git.

pub mod json_schema;
pub mod breaking;
pub mod catalogue;
pub mod openapi;
pub mod asyncapi;
pub mod routes;

/// As it is checked in.
pub const OPENAPI: &str = include_str!("../json/openapi.json");
/// As it is checked in.
pub const ASYNCAPI: &str = include_str!("../json/asyncapi.json");

/// Where the schema of an event is served, of any query-api: `/schemas/order.placed.v1.json`.
pub fn schema_path(event: &str) -> String {
    format!("/schemas/{event}.json")
}

#[cfg(test)]
mod tests;
