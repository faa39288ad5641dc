//! Granted, unset and withheld secrets and settings, on the in-memory host.

use chalet_sdk::http::Request;
use chalet_sdk::testing::Host;
use guest_secrets::Secrets;
use serde_json::{Value, json};

#[test]
fn only_what_is_granted_and_set_is_read() {
    let host = Host::from_manifest(include_str!("../plugin.toml"));
    host.set_secret("GRANTED", "s3cret");
    host.set_secret("WITHHELD", "s3cret");
    host.set_config("currency", "EUR");
    let get = |path| host.http::<Secrets>(Request::get(path)).unwrap().read_json::<Value>().unwrap();
    assert_eq!(get("/secrets/GRANTED"), json!({ "value": "s3cret" }));
    assert_eq!(get("/secrets/UNSET")["error"]["kind"], "not-found");
    assert_eq!(get("/secrets/WITHHELD")["error"]["kind"], "denied");
    assert_eq!(get("/config/currency"), json!({ "value": "EUR" }));
    assert_eq!(get("/config/unset"), json!({ "value": null }));
    assert_eq!(get("/config/other")["error"]["kind"], "denied");
}
