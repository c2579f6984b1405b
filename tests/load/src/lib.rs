//! Load for a stack: `cargo stack replay`, `sale` and `bench`.
//!
//! It depends on no crate of the services: it commands and queries them over HTTP, as clients do, and starts and asks
//! stacks through the library of `cargo stack`.

pub mod cli;
mod wire;
mod replay;
mod sale;
mod bench;
