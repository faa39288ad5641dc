//! `chalet invocations`: what a tenant's plugins did.

use clap::Args;

use super::Result;
use super::client::{Client, Connection, ForTenant};
use super::logs::print_log;
use super::terminal::{Ink, facts, field, ink, say, say_json, table, time};

/// List a tenant's invocations, the latest first, or show one with its log.
#[derive(Debug, Args)]
pub(super) struct Invocations {
    /// The invocation to show: an id as the header `chalet-invocation` has it.
    id: Option<String>,
    #[command(flatten)]
    of: ForTenant,
    /// Invocations at most.
    #[arg(long, default_value_t = 20)]
    limit: usize,
}

impl Invocations {
    pub(super) async fn run(self, connection: &Connection) -> Result<()> {
        let client = Client::new(connection)?;
        let Some(id) = &self.id else {
            let list = client.list(&self.of.path(&["invocations"]), self.limit).await?;
            if connection.json {
                say_json(&list.to_json());
                return Ok(());
            }
            let row = |one: &serde_json::Value| {
                [
                    time(&one["started_at"]),
                    format!("{} {}", field(one, "plugin"), field(one, "version")),
                    field(one, "trigger"),
                    field(one, "outcome"),
                    field(one, "code"),
                    format!("{} ms", one["duration_ms"]),
                    field(one, "id"),
                ]
            };
            let rows: Vec<_> = list.data.iter().map(row).collect();
            table(["STARTED", "PLUGIN", "TRIGGER", "OUTCOME", "CODE", "TOOK", "ID"], &rows, "no invocations yet");
            return Ok(());
        };
        let one = client.get(&self.of.path(&["invocations", id])).await?;
        if connection.json {
            say_json(&one);
            return Ok(());
        }
        facts(&[
            ("invocation", field(&one, "id")),
            ("plugin", format!("{} {}", field(&one, "plugin"), field(&one, "version"))),
            ("trigger", field(&one, "trigger")),
            ("outcome", format!("{} {}", field(&one, "outcome"), field(&one, "code"))),
            ("error", field(&one, "error")),
            ("started", time(&one["started_at"])),
            ("took", format!("{} ms", one["duration_ms"])),
            ("fuel", field(&one, "fuel")),
            ("host calls", field(&one, "host_calls")),
            ("reruns", field(&one, "reruns")),
        ]);
        if one["log"].as_array().is_some_and(|log| !log.is_empty()) {
            say(ink(Ink::Bold, "log"));
            print_log(&one);
        }
        Ok(())
    }
}
