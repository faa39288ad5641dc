//! Log lines on the in-memory host.

use chalet_sdk::http::Request;
use chalet_sdk::log::Level;
use chalet_sdk::testing::Host;
use guest_log::Logs;
use serde_json::json;

#[test]
fn lines_are_kept_when_the_invocation_fails_and_cut_at_64_kib() {
    let host = Host::from_manifest(include_str!("../plugin.toml"));
    let request = json!({ "then": "fail", "lines": [
        { "level": "warn", "message": "careful" },
        { "level": "info", "message": "ä".repeat(1_000), "times": 100 }
    ]});
    assert!(host.http::<Logs>(Request::post("/log", &request).unwrap()).is_err());
    let log = host.log();
    assert_eq!((log[0].level, log[0].message.as_str()), (Level::Warn, "careful"));
    let bytes: usize = log.iter().map(|line| line.message.len()).sum();
    assert!((64 * 1024 - 4..=64 * 1024).contains(&bytes), "{bytes}");
}
