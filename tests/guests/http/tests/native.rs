//! Outgoing calls on the in-memory host.

use chalet_sdk::http::{Request, Response};
use chalet_sdk::testing::Host;
use guest_http::Http;
use serde_json::{Value, json};

#[test]
fn only_hosts_of_the_manifest_are_called_and_a_call_stays_sent() {
    let host = Host::from_manifest(include_str!("../plugin.toml"));
    let send = |fail| {
        let request = json!({ "fail": fail, "calls": [
            { "method": "POST", "url": "https://api.example.com/v1", "headers": { "x-a": "1" }, "body": "hi" },
            { "url": "https://elsewhere.example.com/" },
            { "url": "ftp://api.example.com/" },
            { "url": "https://user@api.example.com/" }
        ]});
        host.http::<Http>(Request::post("/send", &request).unwrap())
    };
    let answers = send(false).unwrap().read_json::<Value>().unwrap()["answers"].take();
    assert_eq!(answers[0]["error"]["kind"], "unavailable");
    host.set_network(|call| Ok(Response::text(format!("{} {}", call.method(), call.url())).with_status(201)));
    let answers = send(false).unwrap().read_json::<Value>().unwrap()["answers"].take();
    assert_eq!(answers[0]["status"], 201);
    assert_eq!(answers[0]["body"], "POST https://api.example.com/v1");
    assert_eq!(answers[1]["error"]["kind"], "denied");
    assert_eq!(answers[2]["error"]["kind"], "invalid");
    assert_eq!(answers[3]["error"]["kind"], "invalid");
    assert!(send(true).is_err());
    assert_eq!(host.calls().len(), 3);
    assert_eq!(host.calls()[0].body_bytes(), b"hi");
}
