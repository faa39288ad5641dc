//! `chalet rollback`: back to the release before this one.

use clap::Args;
use serde_json::json;

use super::Result;
use super::client::{Client, Connection, ForTenant};
use super::plugins::shares;
use super::terminal::{say, say_json};

/// Go back to the release before this one.
#[derive(Debug, Args)]
pub(super) struct Rollback {
    /// The plugin.
    plugin: String,
    #[command(flatten)]
    of: ForTenant,
}

impl Rollback {
    pub(super) async fn run(self, connection: &Connection) -> Result<()> {
        let client = Client::new(connection)?;
        let plugin = client.post(&self.of.path(&["plugins", &self.plugin, "rollback"]), &json!({})).await?;
        if connection.json {
            say_json(&plugin);
        } else {
            say(format!("{} runs {}", self.plugin, shares(&plugin)));
        }
        Ok(())
    }
}
