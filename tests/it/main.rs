//! Integration tests of the whole system on real Kafka, Postgres and Redis. `cargo stack test` starts the servers and
//! runs the tests.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod fixture;

mod startup;
mod settings;
mod commands;
mod staff;
mod bad_input;
mod border;
mod orders;
mod reactions;
mod reactor_outages;
mod cases;
mod deaths;
mod deadlines;
mod large_sale;
mod versions;
mod batches;
mod ownership;
mod quarantine;
mod keeping;
mod long_tails;
mod segments;
mod strays;
mod partitions;
mod views;
mod cache;
mod ahead;
mod far_ahead;
mod bases;
mod clocks;
mod cluster;
mod sentinel;
mod forgetful;
mod projectors;
mod fence;
mod lists;
mod audit;
mod archive;
mod rebuild;
mod roles;
mod groups;
mod growing;
mod parked;
mod outages;
mod query_tier;
mod replica;
mod adding;
mod stack;
mod book;
mod images;
mod elastic;
mod upgrades;
mod observe;
mod wires;
mod generators;
mod edge;
mod listeners;
mod secured;
mod rotation;
mod schemathesis;
mod supply_chain;
mod kubernetes;
mod faults;
