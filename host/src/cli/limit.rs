//! `chalet limit`: a tenant's rate limits.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::client::{Client, Connection, ForTenant};
use super::terminal::{note, read, say, say_json};
use super::{Failure, Result};

/// Read, write and check a tenant's rate limits.
#[derive(Debug, Args)]
pub(super) struct Limit {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the tenant's limits document.
    Get {
        #[command(flatten)]
        of: ForTenant,
    },
    /// Replace the tenant's limits document.
    Set {
        /// A file with the document; `-` is stdin.
        file: PathBuf,
        #[command(flatten)]
        of: ForTenant,
    },
    /// Count by a limit; exit code 1 if it refuses.
    Check {
        /// The limit's name in the document.
        limit: String,
        /// Whom it is counted for: a user, an address.
        subject: String,
        #[command(flatten)]
        of: ForTenant,
        /// Units; 0 only looks.
        #[arg(long, default_value_t = 1)]
        cost: u32,
    },
}

impl Limit {
    pub(super) async fn run(self, connection: &Connection) -> Result<()> {
        let client = Client::new(connection)?;
        match self.command {
            Command::Get { of } => say_json(&client.get(&of.path(&["limits"])).await?),
            Command::Set { file, of } => {
                let answer = client.put(&of.path(&["limits"]), read(&file)?).await?;
                if connection.json {
                    say_json(&answer);
                } else {
                    note(format!("the limits of {} are set", of.tenant));
                }
            }
            Command::Check { limit, subject, of, cost } => {
                let body = json!({ "limit": limit, "key": subject, "cost": cost });
                let decision = client.post(&of.path(&["limits", "check"]), &body).await?;
                let allowed = decision["allowed"].as_bool().unwrap_or(false);
                if connection.json {
                    say_json(&decision);
                } else if allowed {
                    say(format!("allowed, {} of {} left", decision["remaining"], decision["limit"]));
                } else {
                    let seconds = decision["retry_after_ms"].as_u64().unwrap_or(0) as f64 / 1e3;
                    say(format!("refused, try again in {seconds:.1} s"));
                }
                if !allowed {
                    return Err(Failure::Said);
                }
            }
        }
        Ok(())
    }
}
