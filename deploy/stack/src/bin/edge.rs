//! Entry point of the edge's image: runs nginx with the configuration that the environment describes. `edge healthcheck`
//! asks a running one.

use std::process::ExitCode;

use stack::edge::container;

fn main() -> ExitCode {
    container::main(std::env::args().skip(1))
}
