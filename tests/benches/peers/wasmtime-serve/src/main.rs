//! `wasmtime serve`, as its own program starts it.

use clap::Parser as _;

fn main() {
    if let Err(error) = wasmtime_cli::commands::ServeCommand::parse().execute() {
        eprintln!("{error:#}");
        std::process::exit(1);
    }
}
