//! The commands: one noun a file.
//!
//! What a command prints on stdout is its result, which programs may read; progress and errors go to stderr. Every
//! command ends with 0 done, 1 failed or 2 usage.

mod audit;
pub mod build;
mod check;
mod client;
mod demo;
mod deploy;
mod dev;
mod doctor;
mod flag;
mod invocations;
mod key;
mod limit;
mod logs;
mod migrate;
pub mod new;
mod plugins;
mod rollback;
mod secret;
pub mod serve;
mod tenant;
mod terminal;
pub mod toolchain;
mod usage;

use std::fmt;
use std::future::Future;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::cli::client::Connection;
use crate::kernel::error::{Error, Kind};

/// A tenant-aware platform runtime that runs WebAssembly plugins.
#[derive(Debug, Parser)]
#[command(name = "chalet", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    connection: Connection,
}

/// In the order in which people meet them: try it, write a plugin, run it, look at it, operate it.
#[derive(Debug, Subcommand)]
enum Command {
    /// Show the whole platform at work on the example plugins.
    Demo(demo::Demo),
    /// Make a plugin to start from.
    New(new::New),
    /// Compile a plugin to a component.
    Build(build::Build),
    /// Say what a component handles, imports and needs.
    Check(check::Check),
    /// Run a plugin on a local server; rebuild and redeploy it on every save.
    Dev(dev::Dev),
    /// Upload a plugin and release it.
    Deploy(deploy::Deploy),
    /// Go back to the release before this one.
    Rollback(rollback::Rollback),
    /// List a tenant's plugins, or the versions of one.
    Plugins(plugins::Plugins),
    /// Print what plugins log.
    Logs(logs::Logs),
    /// List a tenant's invocations, or show one.
    Invocations(invocations::Invocations),
    /// Make, list, change and delete tenants.
    Tenant(tenant::Tenant),
    /// Make, list and revoke a tenant's API keys.
    Key(key::Key),
    /// Store, list and delete a tenant's secrets.
    Secret(secret::Secret),
    /// Read, write and evaluate a tenant's feature flags.
    Flag(flag::Flag),
    /// Read, write and check a tenant's rate limits.
    Limit(limit::Limit),
    /// Show a tenant's usage by meter.
    Usage(usage::Usage),
    /// List what was changed and denied, and verify that the list is whole.
    Audit(audit::Audit),
    /// Run the server.
    Serve(serve::Serve),
    /// Bring a PostgreSQL database to this version.
    Migrate(migrate::Migrate),
    /// Check this machine, with a remedy for what is wrong.
    Doctor(doctor::Doctor),
}

/// Why a command did not do what it was asked: one text for people, and the exit code.
#[derive(Debug)]
enum Failure {
    /// It was tried and failed: 1.
    Failed(String),
    /// It was asked for wrongly: 2.
    Usage(String),
    /// It failed, and all there is to say has been printed: 1.
    Said,
}

type Result<T, E = Failure> = std::result::Result<T, E>;

fn failed<T>(reason: impl Into<String>) -> Result<T> {
    Err(Failure::Failed(reason.into()))
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        // Who runs a command is the operator: the cause, which strangers are not told, is what helps.
        if error.kind() == Kind::Internal {
            let mut causes = Vec::new();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                causes.push(cause.to_string());
                source = cause.source();
            }
            if !causes.is_empty() {
                return Self::Failed(causes.join(": "));
            }
        }
        Self::Failed(format!("{} ({})", error.message(), error.code()))
    }
}

impl From<build::BuildError> for Failure {
    fn from(error: build::BuildError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<new::NewError> for Failure {
    fn from(error: new::NewError) -> Self {
        match error {
            new::NewError::Name(reason) => Self::Usage(reason),
            error => Self::Failed(error.to_string()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(reason) | Self::Usage(reason) => f.write_str(reason),
            Self::Said => Ok(()),
        }
    }
}

/// Run the command that the arguments name.
pub fn main() -> ExitCode {
    // The compile worker is no command: it is this binary in another role, before anything else is set up.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == crate::engine::WORKER_ARGUMENT) {
        return crate::engine::worker_main();
    }
    let Cli { command, connection } = Cli::parse();
    match run(command, &connection) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Said) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("{} {failure}", terminal::error_mark());
            ExitCode::from(if matches!(failure, Failure::Usage(_)) { 2 } else { 1 })
        }
    }
}

fn run(command: Command, connection: &Connection) -> Result<()> {
    match command {
        Command::Demo(command) => wait(command.run()),
        Command::New(command) => command.run(),
        Command::Build(command) => command.run(connection),
        Command::Check(command) => command.run(connection),
        Command::Dev(command) => wait(command.run()),
        Command::Deploy(command) => wait(command.run(connection)),
        Command::Rollback(command) => wait(command.run(connection)),
        Command::Plugins(command) => wait(command.run(connection)),
        Command::Logs(command) => wait(command.run(connection)),
        Command::Invocations(command) => wait(command.run(connection)),
        Command::Tenant(command) => wait(command.run(connection)),
        Command::Key(command) => wait(command.run(connection)),
        Command::Secret(command) => wait(command.run(connection)),
        Command::Flag(command) => wait(command.run(connection)),
        Command::Limit(command) => wait(command.run(connection)),
        Command::Usage(command) => wait(command.run(connection)),
        Command::Audit(command) => wait(command.run(connection)),
        Command::Serve(command) => Ok(command.run()?),
        Command::Migrate(command) => wait(command.run()),
        Command::Doctor(command) => wait(command.run()),
    }
}

/// Run a command that waits for others.
fn wait(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(work);
    // A read of the terminal or a compiler that nobody waits for any more must not hold the command up.
    runtime.shutdown_background();
    done
}
