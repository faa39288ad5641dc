//! `chalet key`: a tenant's API keys.

use clap::{Args, Subcommand};
use serde_json::json;

use super::Result;
use super::client::{Client, Connection, ForTenant};
use super::terminal::{field, note, say, say_json, table, time};

/// Make, list and revoke a tenant's API keys.
#[derive(Debug, Args)]
pub(super) struct Key {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key and print it, this once.
    Create {
        /// What people call it.
        name: String,
        #[command(flatten)]
        of: ForTenant,
        /// What it may do; may be given several times.
        #[arg(long = "scope", required = true, value_delimiter = ',', value_parser = ["tenant:admin", "tenant:write", "tenant:read", "invoke"])]
        scopes: Vec<String>,
    },
    /// List the keys, without their secrets.
    List {
        #[command(flatten)]
        of: ForTenant,
        /// Keys at most.
        #[arg(long, default_value_t = 1_000)]
        limit: usize,
    },
    /// Revoke a key.
    Delete {
        /// Its id, as `key list` shows it.
        id: String,
        #[command(flatten)]
        of: ForTenant,
    },
}

impl Key {
    pub(super) async fn run(self, connection: &Connection) -> Result<()> {
        let client = Client::new(connection)?;
        match self.command {
            Command::Create { name, of, scopes } => {
                let made = client.post(&of.path(&["keys"]), &json!({ "name": name, "scopes": scopes })).await?;
                if connection.json {
                    say_json(&made);
                } else {
                    // The key alone is on stdout: KEY=$(chalet key create …).
                    say(field(&made, "key"));
                    note(format!("key {} with {}; it is not shown again", field(&made, "id"), field(&made, "scopes")));
                }
            }
            Command::List { of, limit } => {
                let keys = client.list(&of.path(&["keys"]), limit).await?;
                if connection.json {
                    say_json(&keys.to_json());
                    return Ok(());
                }
                let row = |key| [field(key, "id"), field(key, "name"), field(key, "scopes"), time(&key["created_at"])];
                let rows: Vec<_> = keys.data.iter().map(row).collect();
                let none = "no keys yet; make one: chalet key create NAME --tenant TENANT --scope tenant:admin";
                table(["ID", "NAME", "SCOPES", "MADE"], &rows, none);
                keys.note_more();
            }
            Command::Delete { id, of } => {
                client.delete(&of.path(&["keys", &id])).await?;
                note(format!("revoked the key {id}"));
            }
        }
        Ok(())
    }
}
