//! `chalet flag`: a tenant's feature flags, a flagd document.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::client::{Client, Connection, ForTenant, path};
use super::terminal::{facts, field, note, read, say_json};
use super::{Failure, Result};

/// Read, write and evaluate a tenant's feature flags.
#[derive(Debug, Args)]
pub(super) struct Flag {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the tenant's flagd document.
    Get {
        #[command(flatten)]
        of: ForTenant,
    },
    /// Replace the tenant's flagd document.
    Set {
        /// A file with the document; `-` is stdin.
        file: PathBuf,
        #[command(flatten)]
        of: ForTenant,
    },
    /// Evaluate a flag as an OpenFeature client would. The tenant is the key's.
    Eval {
        /// The flag.
        flag: String,
        /// Whom it is evaluated for.
        #[arg(long, value_name = "KEY")]
        targeting_key: Option<String>,
        /// More of the context, as NAME=VALUE; may be given several times.
        #[arg(long = "with", value_name = "NAME=VALUE", value_parser = attribute)]
        attributes: Vec<(String, Value)>,
    },
}

/// Read `name=value`; what is JSON is taken as such, so that numbers compare as numbers.
fn attribute(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

impl Flag {
    pub(super) async fn run(self, connection: &Connection) -> Result<()> {
        let client = Client::new(connection)?;
        match self.command {
            Command::Get { of } => say_json(&client.get(&of.path(&["flags"])).await?),
            Command::Set { file, of } => {
                let document = read(&file)?;
                let Ok(parsed) = serde_json::from_slice::<Value>(&document) else {
                    return Err(Failure::Failed(format!("{} is no JSON", file.display())));
                };
                let answer = client.put(&of.path(&["flags"]), document).await?;
                if connection.json {
                    say_json(&answer);
                } else {
                    let count = parsed["flags"].as_object().map_or(0, Map::len);
                    note(format!("{} has {count} flag(s)", of.tenant));
                }
            }
            Command::Eval { flag, targeting_key, attributes } => {
                let mut context: Map<String, Value> = attributes.into_iter().collect();
                if let Some(key) = targeting_key {
                    context.insert("targetingKey".into(), key.into());
                }
                let body = json!({ "context": context });
                let answer = client.post(&path(&["ofrep", "v1", "evaluate", "flags", &flag]), &body).await?;
                if connection.json {
                    say_json(&answer);
                } else {
                    facts(&[
                        ("value", answer["value"].to_string()),
                        ("variant", field(&answer, "variant")),
                        ("reason", field(&answer, "reason")),
                    ]);
                }
            }
        }
        Ok(())
    }
}
