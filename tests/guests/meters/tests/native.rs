//! The suite on the in-memory host, and what a commit leaves.

use chalet_sdk::http::Request;
use chalet_sdk::testing::Host;
use guest_meters::{Meters, suite};
use serde_json::json;

fn host() -> Host {
    Host::from_manifest(include_str!("../plugin.toml"))
}

#[test]
fn the_suite_passes() {
    let host = host();
    host.run(suite).unwrap();
    assert_eq!(host.meter("suite").to_string(), "6.75");
    let small: Vec<_> = host.usage().into_iter().filter(|usage| !usage.dimensions.is_empty()).collect();
    assert_eq!(small.len(), 1);
    assert_eq!(small[0].dimensions["model"], "small");
}

#[test]
fn usage_of_a_failed_invocation_does_not_exist() {
    let host = host();
    let request = json!({ "meter": "tokens", "value": "3", "fail": true });
    assert!(host.http::<Meters>(Request::post("/record", &request).unwrap()).is_err());
    assert!(host.usage().is_empty());
}
