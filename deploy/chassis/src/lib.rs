//! Foundation of every service: environment, logs and metrics, readiness, shutdown, exit codes, clock, TLS, admin server,
//! HTTP server, and the settings of the clients of Kafka, Postgres and Redis.
//!
//! Invariant: nothing here depends on an aggregate, an event, a topic or a table. This crate imports no other crate of
//! the workspace.
//!
//! Invariant: the environment is read in one place, [`env::Env`], once at the start. A variable that is set but cannot
//! be parsed stops the process; it never falls back to a default. No error and no log shows a variable's value; only
//! `--print-config` does, and secrets as `***`.
//!
//! Invariant: no state of this crate is global except the log subscriber, of which a process has one. Metrics,
//! readiness and shutdown belong to an instance, so that several services can run in one test process.
//!
//! Invariant: nothing here connects at startup. Clients connect on first use, so that a server that is not up yet makes
//! a service wait, not fail.
//!
//! Invariant: every wait has a time limit, and every client option that matters is set here, with the reason beside it.

pub mod build;
pub mod env;
pub mod telemetry;
pub mod readiness;
pub mod shutdown;
pub mod exit;
pub mod program;
pub mod clock;
pub mod panic;
pub mod tls;
pub mod listeners;
pub mod admin;
pub mod healthcheck;
pub mod http;
pub mod border;
pub mod prefer;
pub mod document;
pub mod kafka;
pub mod postgres;
pub mod instance;
pub mod redis;
pub mod reference;
