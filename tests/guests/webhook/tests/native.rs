//! Deliveries and their ends on the in-memory host.

use chalet_sdk::testing::Host;
use chalet_sdk::webhook::Delivery;
use guest_webhook::Webhook;
use serde_json::Value;

#[test]
fn a_delivery_commits_unless_it_fails() {
    let host = Host::from_manifest(include_str!("../plugin.toml"));
    let deliver = |id: &str, body: &str| {
        host.webhook::<Webhook>(Delivery::new("hmac", id, body).with_header("X-A", "1").with_event_type("e"))
    };
    assert_eq!(deliver("1", "{}").unwrap(), None);
    assert!(deliver("2", r#"{"then":"retry"}"#).unwrap_err().retryable());
    assert!(!deliver("3", r#"{"then":"reject"}"#).unwrap_err().retryable());
    assert_eq!(deliver("4", r#"{"then":503}"#).unwrap().unwrap().status(), 503);
    assert_eq!(deliver("5", r#"{"then":202}"#).unwrap().unwrap().status(), 202);
    assert_eq!(host.keys("deliveries"), ["hmac:1", "hmac:5"]);
    assert_eq!(host.get_bytes("runs", "hmac").unwrap(), b"2");
    assert_eq!(host.meter("deliveries").to_string(), "2");
    let seen: Value = host.get("deliveries", "hmac:1").unwrap();
    assert_eq!((&seen["event_type"], &seen["headers"]["x-a"]), (&"e".into(), &"1".into()));
}
