//! Runs `cargo stack replay`, `sale` and `bench`, which `cargo stack` passes on.

use clap::Parser;

fn main() -> std::process::ExitCode {
    load::cli::run(load::cli::Cli::parse())
}
