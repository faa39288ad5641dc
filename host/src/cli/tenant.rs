//! `chalet tenant`: the operator's customers.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::json;

use super::Result;
use super::client::{Client, Connection, path};
use super::terminal::{bytes, confirm, facts, field, note, say, say_json, table, time};

/// Make, list, change and delete tenants.
#[derive(Debug, Args)]
pub(super) struct Tenant {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a tenant.
    Create {
        /// Its name: 1 to 63 of a-z 0-9 -.
        name: String,
        /// Its plan.
        #[arg(long, default_value = "free")]
        plan: String,
    },
    /// List the tenants.
    List {
        /// Tenants at most.
        #[arg(long, default_value_t = 1_000)]
        limit: usize,
    },
    /// Show a tenant.
    Show {
        /// Its name.
        name: String,
    },
    /// Put a tenant on another plan.
    Plan {
        /// Its name.
        name: String,
        /// The plan.
        plan: String,
    },
    /// Delete a tenant with all that it stored.
    Delete {
        /// Its name.
        name: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

impl Tenant {
    pub(super) async fn run(self, connection: &Connection) -> Result<()> {
        let client = Client::new(connection)?;
        match self.command {
            Command::Create { name, plan } => {
                let made = client.post("/v1/tenants", &json!({ "id": name, "plan": plan })).await?;
                if connection.json {
                    say_json(&made);
                } else {
                    say(format!("made the tenant {name} on the plan {plan}"));
                    note(format!("next: chalet key create admin --tenant {name} --scope tenant:admin"));
                }
            }
            Command::List { limit } => {
                let tenants = client.list("/v1/tenants", limit).await?;
                if connection.json {
                    say_json(&tenants.to_json());
                    return Ok(());
                }
                let row = |tenant| [field(tenant, "id"), field(tenant, "plan"), time(&tenant["created_at"])];
                let rows: Vec<_> = tenants.data.iter().map(row).collect();
                table(["TENANT", "PLAN", "MADE"], &rows, "no tenants yet; make one: chalet tenant create NAME");
                tenants.note_more();
            }
            Command::Show { name } => {
                let tenant = client.get(&path(&["v1", "tenants", &name])).await?;
                if connection.json {
                    say_json(&tenant);
                    return Ok(());
                }
                facts(&[
                    ("tenant", field(&tenant, "id")),
                    ("plan", field(&tenant, "plan")),
                    ("made", time(&tenant["created_at"])),
                    ("stored", tenant["storage_bytes"].as_u64().map(bytes).unwrap_or_default()),
                ]);
            }
            Command::Plan { name, plan } => {
                let request = client.request(Method::PATCH, &path(&["v1", "tenants", &name]));
                let changed = client.json(request.json(&json!({ "plan": plan }))).await?;
                if connection.json {
                    say_json(&changed);
                } else {
                    say(format!("{name} is on the plan {plan}"));
                }
            }
            Command::Delete { name, yes } => {
                confirm(&format!("Delete the tenant {name} with its plugins, keys and all that it stored?"), yes)?;
                client.delete(&path(&["v1", "tenants", &name])).await?;
                note(format!("deleted the tenant {name}"));
            }
        }
        Ok(())
    }
}
