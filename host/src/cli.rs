//! The commands: one noun a file.

pub mod build;
pub mod new;
pub mod serve;
pub mod toolchain;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A tenant-aware platform runtime that runs WebAssembly plugins.
#[derive(Debug, Parser)]
#[command(name = "chalet", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server.
    Serve(serve::Serve),
}

/// Run the command that the arguments name: 0 done, 1 failed, 2 usage.
pub fn main() -> ExitCode {
    // The compile worker is no command: it is this binary in another role, before anything else is set up.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == crate::engine::WORKER_ARGUMENT) {
        return crate::engine::worker_main();
    }
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Serve(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
