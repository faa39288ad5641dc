//! `chalet secret`: what a tenant's plugins and webhook sources must know and nobody reads back.

use std::io::IsTerminal as _;

use clap::{Args, Subcommand};
use reqwest::Method;

use super::client::{Client, Connection, ForTenant};
use super::terminal::{field, note, read_stdin, say_json, table};
use super::{Failure, Result};

/// Store, list and delete a tenant's secrets.
#[derive(Debug, Args)]
pub(super) struct Secret {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Store a secret: what stdin has, without a line's end after it, or --value.
    Set {
        /// Its name, such as STRIPE_WEBHOOK_SECRET.
        name: String,
        #[command(flatten)]
        of: ForTenant,
        /// The secret; other users of this machine can see it while the command runs.
        #[arg(long)]
        value: Option<String>,
    },
    /// List the secrets' names.
    List {
        #[command(flatten)]
        of: ForTenant,
        /// Secrets at most.
        #[arg(long, default_value_t = 1_000)]
        limit: usize,
    },
    /// Delete a secret.
    Delete {
        /// Its name.
        name: String,
        #[command(flatten)]
        of: ForTenant,
    },
}

impl Secret {
    pub(super) async fn run(self, connection: &Connection) -> Result<()> {
        let client = Client::new(connection)?;
        match self.command {
            Command::Set { name, of, value } => {
                let value = match value {
                    Some(value) => value.into_bytes(),
                    None => from_stdin(&name)?,
                };
                if value.is_empty() {
                    return Err(Failure::Usage(format!("the value of {name} is empty; pipe it in or give --value")));
                }
                client.send(client.request(Method::PUT, &of.path(&["secrets", &name])).body(value)).await?;
                note(format!("stored {name}"));
            }
            Command::List { of, limit } => {
                let mut secrets = client.get(&of.path(&["secrets"])).await?;
                if let Some(data) = secrets["data"].as_array_mut() {
                    data.truncate(limit);
                }
                if connection.json {
                    say_json(&secrets);
                    return Ok(());
                }
                let rows = secrets["data"].as_array().into_iter().flatten();
                let rows: Vec<_> = rows.map(|secret| [field(secret, "name"), field(secret, "version")]).collect();
                table(["NAME", "VERSION"], &rows, "no secrets yet; store one: chalet secret set NAME --tenant TENANT");
            }
            Command::Delete { name, of } => {
                client.delete(&of.path(&["secrets", &name])).await?;
                note(format!("deleted {name}"));
            }
        }
        Ok(())
    }
}

fn from_stdin(name: &str) -> Result<Vec<u8>> {
    if std::io::stdin().is_terminal() {
        note(format!("type the value of {name}, then Ctrl-D on a line of its own"));
    }
    let mut value = read_stdin()?;
    // What `echo` and an editor put behind a value is not part of it.
    if value.last() == Some(&b'\n') {
        value.pop();
        if value.last() == Some(&b'\r') {
            value.pop();
        }
    }
    Ok(value)
}
