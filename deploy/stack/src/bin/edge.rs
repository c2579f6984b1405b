//! Entry point of the edge's image: runs nginx with the configuration that the environment describes. `edge healthcheck`
//! asks a running one.

use std::process::ExitCode;

use stack::{cli, edge::container};

fn main() -> ExitCode {
    cli::exit_code(container::main(std::env::args().skip(1)))
}
