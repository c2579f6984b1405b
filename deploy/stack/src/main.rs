//! Runs `cargo stack`.

use clap::Parser;

fn main() -> std::process::ExitCode {
    stack::cli::run(stack::cli::Cli::parse())
}
