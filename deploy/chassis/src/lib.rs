//! What every service stands on: its environment, logs and metrics, readiness, shutdown, the admin server, the HTTP
//! server, and the settings of the clients of Kafka, Postgres and Redis.
//!
//! Invariant: nothing here knows an aggregate, an event, a topic or a table. This crate imports nothing of ours.
//!
//! Invariant: the environment is read in one place, [`env::Env`], once at the start. A variable that is set but cannot
//! be parsed stops the process; it never falls back to a default. No error and no log shows a variable's value.
//!
//! Invariant: no state of this crate is global except the log subscriber, which a process has once. Metrics, readiness
//! and shutdown belong to an instance, so that several services can run in one test process.
//!
//! Invariant: nothing here connects at start. Clients connect when first used, so that a server that is not there yet
//! makes a service wait, not fail.
//!
//! Invariant: every wait has a limit, and every client option that matters is set here, beside its reason.

pub mod env;
pub mod telemetry;
pub mod readiness;
pub mod shutdown;
pub mod admin;
pub mod http;
pub mod border;
pub mod prefer;
pub mod document;
pub mod kafka;
pub mod postgres;
pub mod redis;
