//! `chalet deploy`: a plugin's way to its users in one command: build, upload, approve if told to, release.

use std::path::PathBuf;

use clap::Args;
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};

use super::build::{self, Options};
use super::client::{Client, Connection, ForTenant};
use super::plugins::shares;
use super::terminal::{Ink, field, ink, note, say, say_json, text};
use super::{Failure, Result};
use crate::services::plugins::manifest::Manifest;

/// Upload a plugin and release it.
#[derive(Debug, Args)]
pub(super) struct Deploy {
    /// A component, or the folder of a plugin's crate, which is built first.
    #[arg(default_value = ".", value_name = "FILE_OR_PATH")]
    from: PathBuf,
    #[command(flatten)]
    of: ForTenant,
    /// Its share of the traffic; the rest stays with the version that has most of it now.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=100))]
    percent: u8,
    /// Approve all that the version asks for.
    #[arg(long)]
    approve: bool,
}

/// What became of a version.
pub(super) enum Outcome {
    /// It has its share of the traffic; the plugin as the API shows it.
    Released { version: Value, plugin: Value },
    /// It waits for its grants to be approved; the version as the API shows it.
    Held { version: Value },
}

impl Deploy {
    pub(super) async fn run(self, connection: &Connection) -> Result<()> {
        let client = Client::new(connection)?;
        let from = self.from.clone();
        let component = tokio::task::spawn_blocking(move || component(from))
            .await
            .map_err(|error| Failure::Failed(error.to_string()))??;
        match deploy(&client, &self.of, component, self.percent, self.approve).await? {
            Outcome::Released { version, plugin } => {
                if connection.json {
                    say_json(&json!({ "version": version, "plugin": plugin }));
                    return Ok(());
                }
                let name = field(&plugin, "name");
                say(format!("{} of {} runs {}", ink(Ink::Bold, &name), self.of.tenant, shares(&plugin)));
                if field(&version, "handles").contains("http") {
                    note(format!("its routes are below {}/t/{}/{name}/", client.url(), self.of.tenant));
                }
                Ok(())
            }
            Outcome::Held { version } => {
                if connection.json {
                    say_json(&json!({ "version": version, "plugin": null }));
                } else {
                    let (name, number) = (field(&version, "plugin"), field(&version, "version"));
                    say(format!("{name} {number} is stored and held: it asks for what nobody has approved yet"));
                    for grant in version["held"].as_array().into_iter().flatten() {
                        say(format!("  {}", text(grant)));
                    }
                    let from = self.from.display();
                    note(format!(
                        "to approve this and release it: chalet deploy {from} --tenant {} --approve",
                        self.of.tenant
                    ));
                }
                Err(Failure::Said)
            }
        }
    }
}

/// The component to deploy: a file's, or the one that a crate is built to.
fn component(from: PathBuf) -> Result<Vec<u8>> {
    let file = if from.is_dir() { build::build(&from, &Options::default())?.component } else { from };
    std::fs::read(&file).map_err(|error| Failure::Failed(format!("{}: {error}", file.display())))
}

/// Upload a component, approve what it asks for if told to, and give it this share of the traffic.
pub(super) async fn deploy(
    client: &Client,
    of: &ForTenant,
    component: Vec<u8>,
    percent: u8,
    approve: bool,
) -> Result<Outcome> {
    let manifest = Manifest::from_component(&component).map_err(|error| Failure::Failed(error.to_string()))?;
    let name = manifest.name.as_str();
    let upload = client.request(Method::PUT, &of.path(&["plugins", name])).header(CONTENT_TYPE, "application/wasm");
    let mut version = client.json(upload.body(component)).await?;
    let number = field(&version, "version");
    if approve {
        version = client.post(&of.path(&["plugins", name, "versions", &number, "approve"]), &json!({})).await?;
    }
    if version["state"] == "held" {
        return Ok(Outcome::Held { version });
    }
    let release = json!({ "version": number, "percent": percent });
    let plugin = client.post(&of.path(&["plugins", name, "release"]), &release).await?;
    Ok(Outcome::Released { version, plugin })
}
