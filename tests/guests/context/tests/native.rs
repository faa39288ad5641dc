//! The invocation's context on the in-memory host.

use chalet_sdk::http::Request;
use chalet_sdk::testing::Host;
use guest_context::Context;
use serde_json::Value;

fn get(host: &Host, path: &str) -> Value {
    host.http::<Context>(Request::get(path)).and_then(|answer| answer.read_json()).expect("an answer in JSON")
}

#[test]
fn an_invocation_knows_who_and_when_it_is() {
    let host = Host::from_manifest(include_str!("../plugin.toml"));
    host.set_tenant("globex");
    host.set_time(1_700_000_000_123);
    let seen = get(&host, "/context/a/b?x=1");
    assert_eq!(seen["tenant"], "globex");
    assert_eq!(seen["plugin"], "guest-context");
    assert_eq!(seen["version"], "1.0.0");
    assert_eq!(seen["now_ms"], 1_700_000_000_123_u64);
    assert_eq!(seen["now_ms_again"], seen["now_ms"]);
    assert_eq!(seen["request"]["rest"], "a/b");
    assert_eq!(seen["request"]["query"], "x=1");
    assert_ne!(get(&host, "/context/a")["invocation"], seen["invocation"]);
}

#[test]
fn randomness_differs_within_an_invocation_and_between_them() {
    let host = Host::from_manifest(include_str!("../plugin.toml"));
    let (one, two) = (get(&host, "/random/70000"), get(&host, "/random/70000"));
    assert_eq!(one["first"].as_str().unwrap().len(), 140_000);
    assert_ne!(one["first"], one["second"]);
    assert_ne!(one["first"], two["first"]);
}
