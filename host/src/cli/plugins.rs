//! `chalet plugins`: a tenant's plugins and their versions.

use clap::Args;
use serde_json::Value;

use super::Result;
use super::client::{Client, Connection, ForTenant};
use super::terminal::{bytes, field, say_json, table, time};

/// List a tenant's plugins, or the versions of one.
#[derive(Debug, Args)]
pub(super) struct Plugins {
    /// The plugin whose versions to list.
    plugin: Option<String>,
    #[command(flatten)]
    of: ForTenant,
    /// Items at most.
    #[arg(long, default_value_t = 1_000)]
    limit: usize,
}

impl Plugins {
    pub(super) async fn run(self, connection: &Connection) -> Result<()> {
        let client = Client::new(connection)?;
        let path = match &self.plugin {
            None => self.of.path(&["plugins"]),
            Some(plugin) => self.of.path(&["plugins", plugin, "versions"]),
        };
        let list = client.list(&path, self.limit).await?;
        if connection.json {
            say_json(&list.to_json());
            return Ok(());
        }
        let Some(plugin) = &self.plugin else {
            let row = |plugin| {
                [field(plugin, "name"), shares(plugin), field(plugin, "versions"), time(&plugin["created_at"])]
            };
            let rows: Vec<_> = list.data.iter().map(row).collect();
            let none = "no plugins yet; deploy one: chalet deploy PATH --tenant TENANT";
            table(["PLUGIN", "RELEASED", "VERSIONS", "SINCE"], &rows, none);
            list.note_more();
            return Ok(());
        };
        let released = client.get(&self.of.path(&["plugins", plugin])).await?;
        let row = |version: &Value| {
            [
                field(version, "version"),
                share(&released, &field(version, "version")),
                field(version, "state"),
                field(version, "handles"),
                bytes(version["size"].as_u64().unwrap_or(0)),
                field(version, "digest").chars().take(12).collect(),
                time(&version["uploaded_at"]),
            ]
        };
        let rows: Vec<_> = list.data.iter().map(row).collect();
        table(["VERSION", "TRAFFIC", "STATE", "HANDLES", "SIZE", "DIGEST", "UPLOADED"], &rows, "no versions");
        list.note_more();
        Ok(())
    }
}

/// Which versions of a plugin get traffic: `1.0.0`, or `1.1.0 (10%), 1.0.0 (90%)`.
pub(super) fn shares(plugin: &Value) -> String {
    let shares: Vec<_> = plugin["release"].as_array().into_iter().flatten().collect();
    match shares.as_slice() {
        [] => "nothing".into(),
        [one] => field(one, "version"),
        several => {
            let share = |share: &&Value| format!("{} ({}%)", field(share, "version"), share["percent"]);
            several.iter().map(share).collect::<Vec<_>>().join(", ")
        }
    }
}

fn share(plugin: &Value, version: &str) -> String {
    let shares = plugin["release"].as_array();
    let share = shares.into_iter().flatten().find(|share| share["version"] == version);
    share.map(|share| format!("{}%", share["percent"])).unwrap_or_default()
}
