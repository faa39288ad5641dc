//! `chalet audit`: who changed what, and who was denied what.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::client::{Client, Connection, path};
use super::terminal::{field, say, say_json, table, time};
use super::{Failure, Result};

/// List what was changed and denied, and verify that the list is whole.
#[derive(Debug, Args)]
pub(super) struct Audit {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List records, the latest first.
    List {
        #[command(flatten)]
        of: Whose,
        /// Only of this action, such as plugins.release.
        #[arg(long)]
        action: Option<String>,
        /// Only from this time on, RFC 3339: 2026-01-31T00:00:00Z.
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// Records at most.
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Say whether no record was changed, removed, put in or moved.
    Verify {
        #[command(flatten)]
        of: Whose,
    },
}

/// Whose log.
#[derive(Debug, Args)]
struct Whose {
    /// The tenant; without it, the operator's own log.
    #[arg(long, value_name = "TENANT", env = "CHALET_TENANT")]
    tenant: Option<String>,
}

impl Whose {
    fn path(&self, rest: &[&str]) -> String {
        let segments = match &self.tenant {
            Some(tenant) => vec!["v1", "tenants", tenant, "audit"],
            None => vec!["v1", "audit"],
        };
        path(&[&segments[..], rest].concat())
    }
}

impl Audit {
    pub(super) async fn run(self, connection: &Connection) -> Result<()> {
        let client = Client::new(connection)?;
        match self.command {
            Command::List { of, action, since, limit } => {
                let filters = [("action", action.as_deref()), ("since", since.as_deref())];
                let query: Vec<_> = filters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
                let list = client.list_where(&of.path(&[]), &query, limit).await?;
                if connection.json {
                    say_json(&list.to_json());
                    return Ok(());
                }
                let row = |record: &Value| {
                    let actor = &record["actor"];
                    [
                        time(&record["at"]),
                        field(record, "number"),
                        field(record, "action"),
                        field(record, "outcome"),
                        format!("{} {}", field(actor, "of"), field(actor, "key")),
                        field(record, "address"),
                        field(record, "target"),
                    ]
                };
                let rows: Vec<_> = list.data.iter().map(row).collect();
                let headers = ["WHEN", "NUMBER", "ACTION", "OUTCOME", "WHO", "FROM", "TARGET"];
                table(headers, &rows, "nothing was changed or denied yet");
                list.note_more();
                Ok(())
            }
            Command::Verify { of } => {
                let verified = client.get(&of.path(&["verify"])).await?;
                let whole = verified["ok"] == true;
                if connection.json {
                    say_json(&verified);
                    return if whole { Ok(()) } else { Err(Failure::Said) };
                }
                let (first, last) = (field(&verified, "first"), field(&verified, "last"));
                if !whole {
                    let (number, why) = (field(&verified["bad"], "number"), field(&verified["bad"], "why"));
                    return Err(Failure::Failed(format!("the log is not whole: record {number}: {why}")));
                }
                say(format!("whole: records {first} to {last}; the hash of the last is {}", field(&verified, "hash")));
                Ok(())
            }
        }
    }
}
