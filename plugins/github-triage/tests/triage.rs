//! The plugin on the payloads that GitHub sends, in the in-memory host.

use chalet_sdk::testing::Host;
use chalet_sdk::webhook::Delivery;
use github_triage::GithubTriage;
use serde_json::{Value, json};

fn host() -> Host {
    Host::from_manifest(include_str!("../plugin.toml"))
}

fn label(name: &str) -> Value {
    json!({
        "id": 208045946, "node_id": "MDU6TGFiZWwyMDgwNDU5NDY=", "name": name, "color": "d73a4a", "default": true,
        "url": format!("https://api.github.com/repos/Codertocat/Hello-World/labels/{name}"), "description": null
    })
}

fn issue(action: &str, labels: &[&str]) -> Value {
    json!({
        "action": action,
        "issue": {
            "url": "https://api.github.com/repos/Codertocat/Hello-World/issues/1",
            "id": 444500041, "number": 1, "title": "Spelling error in the README file", "state": "open",
            "user": { "login": "Codertocat", "id": 21031067, "type": "User" },
            "labels": labels.iter().map(|name| label(name)).collect::<Vec<_>>(),
            "assignee": null, "comments": 0, "created_at": "2019-05-15T15:20:18Z",
            "body": "It looks like you accidently spelled 'commit' with two 't's."
        },
        "repository": { "id": 186853002, "full_name": "Codertocat/Hello-World", "private": false },
        "sender": { "login": "Codertocat", "id": 21031067, "type": "User", "site_admin": false }
    })
}

fn delivery(event: &str, payload: &Value) -> Delivery {
    Delivery::new("github", "72d3162e-cc78-11e3-81ab-4c9367dc0958", payload.to_string())
        .with_header("X-GitHub-Event", event)
        .with_event_type(event)
}

#[test]
fn an_opened_issue_counts_for_each_of_its_labels() {
    let host = host();
    host.webhook::<GithubTriage>(delivery("issues", &issue("opened", &["bug", "good first issue"]))).unwrap();
    host.webhook::<GithubTriage>(delivery("issues", &issue("opened", &["bug"]))).unwrap();
    assert_eq!(host.get_bytes("labels", "bug").unwrap(), b"2");
    assert_eq!(host.get_bytes("labels", "good first issue").unwrap(), b"1");
}

#[test]
fn a_labeled_event_counts_for_the_label_that_was_added() {
    let host = host();
    let mut payload = issue("labeled", &["bug", "help wanted"]);
    payload["label"] = label("help wanted");
    host.webhook::<GithubTriage>(delivery("issues", &payload)).unwrap();
    assert_eq!(host.keys("labels"), ["help wanted"]);
}

#[test]
fn other_events_are_taken_and_ignored() {
    let host = host();
    let ping = json!({ "zen": "Keep it logically awesome.", "hook_id": 109948940 });
    host.webhook::<GithubTriage>(delivery("ping", &ping)).unwrap();
    assert_eq!(host.keys("labels"), [""; 0]);
}

#[test]
fn a_payload_that_is_no_issue_event_is_rejected() {
    let error = host().webhook::<GithubTriage>(delivery("issues", &json!({ "action": 1 }))).unwrap_err();
    assert!(!error.retryable());
}
