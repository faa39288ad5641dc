//! `chalet check`: what a component is, before anybody deploys it. It is looked at as an upload is, but not compiled.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::client::Connection;
use super::terminal::{bytes, facts, read, say_json};
use super::{Failure, Result};
use crate::capabilities;
use crate::engine::Class;
use crate::engine::inspect::{self, SDK_RANGE};
use crate::services::plugins::manifest::{Auth, Manifest};

/// Say what a component handles, imports and needs.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// A component, as `chalet build` makes it.
    file: PathBuf,
}

impl Check {
    pub(super) fn run(self, connection: &Connection) -> Result<()> {
        if self.file.is_dir() {
            return Err(Failure::Usage(format!(
                "{} is a folder; check the file that `chalet build {0}` makes",
                self.file.display()
            )));
        }
        let component = read(&self.file)?;
        let interfaces: Vec<_> = capabilities::ALL.iter().map(|capability| capability.interface).collect();
        // Only plans with large components take what is larger than usual; that it is, the size says.
        let inspection = inspect::inspect(&component, Class::Large, &interfaces)?;
        let manifest = Manifest::from_component(&component).map_err(|error| Failure::Failed(error.to_string()))?;
        let mut missing = Vec::new();
        for (declared, trigger) in [(manifest.http.is_some(), "http"), (!manifest.webhooks.is_empty(), "webhook")] {
            if declared && !inspection.triggers.contains(&trigger) {
                missing.push(trigger);
            }
        }
        if connection.json {
            say_json(&json!({
                "plugin": manifest.name,
                "version": manifest.version,
                "digest": inspection.digest.to_string(),
                "size": component.len(),
                "sdk": inspection.sdk,
                "handles": inspection.triggers,
                "imports": inspection.imports,
                "manifest": manifest,
            }));
        } else {
            print(&component, &inspection, &manifest);
        }
        if let Some(trigger) = missing.first() {
            return Err(Failure::Failed(format!(
                "the manifest declares {trigger}, and the component does not export {trigger}-trigger; add it to chalet_sdk::export!"
            )));
        }
        manifest.grants.cover(&inspection.imports).map_err(|error| Failure::Failed(error.to_string()))
    }
}

fn print(component: &[u8], inspection: &inspect::Inspection, manifest: &Manifest) {
    let sdk = match &inspection.sdk {
        Some(sdk) => format!("{sdk} (this host runs {SDK_RANGE})"),
        None => "none".into(),
    };
    facts(&[
        ("plugin", format!("{} {}", manifest.name, manifest.version)),
        ("size", bytes(component.len() as u64)),
        ("digest", inspection.digest.to_string()),
        ("sdk", sdk),
        ("handles", inspection.triggers.join(", ")),
    ]);
    let http = manifest.http.iter().flat_map(|http| {
        let who = if matches!(http.auth, Auth::None) { "anybody" } else { "a key" };
        http.routes.iter().map(move |route| ("route", format!("{route} ({who})")))
    });
    let webhooks = manifest.webhooks.iter().map(|webhook| {
        let scheme = serde_json::to_value(webhook.verify).unwrap_or_default();
        let scheme = scheme.as_str().unwrap_or_default().to_owned();
        ("webhook", format!("{}, signed as {scheme} with the secret {}", webhook.source, webhook.secret))
    });
    let grants = manifest.grants.lists().into_iter().filter(|(_, list)| !list.is_empty());
    let grants = grants.map(|(name, list)| ("needs", format!("{name}: {}", list.join(", "))));
    let imports = inspection.imports.iter().map(|import| ("imports", import.clone()));
    let limits = [
        manifest.limits.memory_mb.map(|memory| format!("{memory} MiB of memory")),
        manifest.limits.timeout_ms.map(|time| format!("{time} ms")),
        manifest.limits.fuel.map(|fuel| format!("{fuel} fuel")),
    ];
    let limits = limits.into_iter().flatten().map(|limit| ("limit", limit));
    facts(&http.chain(webhooks).chain(grants).chain(limits).chain(imports).collect::<Vec<_>>());
}
