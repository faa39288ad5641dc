//! What of it can be done natively: the strings, and that a failure leaves nothing.

use chalet_sdk::http::Request;
use chalet_sdk::testing::Host;
use guest_misbehave::Misbehave;

#[test]
fn hostile_strings_are_refused_by_values() {
    let host = Host::from_manifest(include_str!("../plugin.toml"));
    let answer = host.http::<Misbehave>(Request::get("/strings")).unwrap();
    assert!(answer.to_text().parse::<u32>().unwrap() > 80, "{}", answer.to_text());
    assert!(host.keys("misbehave").is_empty());
}

#[test]
fn one_that_fails_leaves_no_trace() {
    let host = Host::from_manifest(include_str!("../plugin.toml"));
    for what in ["huge-value", "huge-reason"] {
        assert!(host.http::<Misbehave>(Request::get(&format!("/{what}"))).is_err());
    }
    assert!(host.keys("misbehave").is_empty());
}
