//! Counts what goes on under each label of a repository.
//!
//! Every `issues` event adds one to the counter `labels/{label}`: `labeled` and `unlabeled` for the label they are about,
//! any other action for each label that the issue carries. Counters are added to without being read, so that a burst of
//! events does not conflict. Events of other kinds are taken and ignored.

use chalet_sdk::webhook::Delivery;
use chalet_sdk::{Plugin, Result, kv, log};
use serde::Deserialize;

/// An `issues` event, as far as it is of interest here.
#[derive(Deserialize)]
struct IssueEvent {
    action: String,
    issue: Issue,
    /// What `labeled` and `unlabeled` are about.
    label: Option<Label>,
}

#[derive(Deserialize)]
struct Issue {
    number: u64,
    #[serde(default)]
    labels: Vec<Label>,
}

#[derive(Deserialize)]
struct Label {
    name: String,
}

/// The plugin.
pub struct GithubTriage;

impl Plugin for GithubTriage {
    fn webhook(delivery: Delivery) -> Result<()> {
        if delivery.event_type().or_else(|| delivery.header("x-github-event")) != Some("issues") {
            return Ok(());
        }
        let event: IssueEvent = delivery.json()?;
        let labels = match event.label {
            Some(label) => vec![label],
            None => event.issue.labels,
        };
        for label in &labels {
            kv::increment("labels", &label.name, 1)?;
        }
        log::info!("issue {} {}: {} label(s) counted", event.issue.number, event.action, labels.len());
        Ok(())
    }
}

chalet_sdk::export!(GithubTriage: webhook);
