//! Published contracts: a JSON Schema of every event, the catalogues in Markdown, the HTTP API as OpenAPI, and the log
//! as AsyncAPI. All are generated from the types that read and write, and checked in, so that a contract change is
//! visible in the diff. A test compares both; `UPDATE_CONTRACTS=1 cargo test -p schemas contracts` regenerates the
//! files. The generators are compiled for tests only: the services serve the files.
//!
//! Invariant: a published event keeps its schema. `json/published.json` holds the schema of each event, without its
//! descriptive texts, and the version of the system that introduced it. Regenerating adds missing entries. If a schema
//! breaks a published one (`breaking::breaking_changes`), nothing is written and the test keeps failing, so that
//! regenerating cannot hide a break: the entry has to be deleted by hand, and the deletion is visible in the diff. The
//! list is part of the tree, not derived from its history, so it is the same in a shallow clone, on a long branch and
//! without git.

pub mod json_schema;
#[cfg(test)]
pub mod breaking;
#[cfg(test)]
pub mod catalogue;
#[cfg(test)]
pub mod openapi;
#[cfg(test)]
pub mod asyncapi;
pub mod routes;

/// OpenAPI document as checked in.
pub const OPENAPI: &str = include_str!("../json/openapi.json");
/// AsyncAPI document as checked in.
pub const ASYNCAPI: &str = include_str!("../json/asyncapi.json");

/// Returns the path under which every query-api serves the schema of an event: `/schemas/order.placed.v1.json`.
pub fn schema_path(event: &str) -> String {
    format!("/schemas/{event}.json")
}

#[cfg(test)]
mod tests;
