//! The suite on the in-memory host, and what a failed invocation keeps.

use std::time::Duration;

use chalet_sdk::http::Request;
use chalet_sdk::testing::Host;
use guest_limits::{Limits, suite};
use serde_json::{Value, json};

fn host() -> Host {
    let host = Host::from_manifest(include_str!("../plugin.toml"));
    host.set_limit("suite", 5, Duration::from_secs(3_600));
    host.set_limit("burst", 2, Duration::from_secs(1));
    host
}

#[test]
fn the_suite_passes() {
    let host = host();
    host.run(suite).unwrap();
    host.run(suite).unwrap();
}

#[test]
fn units_stay_taken_when_the_invocation_fails_and_come_back_with_time() {
    let host = host();
    let check = |fail| {
        let request = json!({ "limit": "burst", "key": "k", "cost": 2, "fail": fail });
        let answer = host.http::<Limits>(Request::post("/check", &request).unwrap())?;
        answer.read_json::<Value>().map(|mut answer| answer["decisions"][0].take())
    };
    assert!(check(true).is_err());
    let refused = check(false).unwrap();
    assert_eq!(refused["allowed"], false);
    host.advance(Duration::from_millis(refused["retry_after_ms"].as_u64().unwrap() - 1));
    assert_eq!(check(false).unwrap()["allowed"], false);
    host.advance(Duration::from_millis(1));
    assert_eq!(check(false).unwrap()["allowed"], true);
}
