//! The folds: what each view makes of an event. Pure.
//!
//! A view fed by one aggregate folds its row from row and event. A view fed by many turns events into deltas, which
//! are added up in Postgres, so that no row need be read. A new view is a module here, an entry in
//! `schemas::views` and its tables in `schemas/sql`.

pub(crate) mod product;
pub(crate) mod order;
pub(crate) mod customer;
pub(crate) mod revenue;
pub(crate) mod journal;
