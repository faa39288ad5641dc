//! What of it can be done natively: a marker goes in and comes back.

use chalet_sdk::http::Request;
use chalet_sdk::testing::Host;
use guest_markers::Markers;
use serde_json::json;

#[test]
fn a_marker_that_was_put_comes_back() {
    let host = Host::from_manifest(include_str!("../plugin.toml"));
    let given = json!({ "marker": "m1", "key": "k", "steps": ["put", "get", "list", "log", "context"] });
    let answer = host.http::<Markers>(Request::post("/use", &given).unwrap()).unwrap();
    assert_eq!(answer.read_json::<serde_json::Value>().unwrap()["seen"][2], "m1");
}
