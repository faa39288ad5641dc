//! Sends requests as a test gives them.
//!
//! `POST /send {"calls":[{"method","url","headers":{…},"body","timeout_ms"}],"touch":key,"fail":false}` sends them in
//! their order and answers `{"answers":[…]}`, each `{"status","headers","body"}` or `{"error":{…}}`. With `touch` it reads
//! and writes the number `c/{key}` as well, so that invocations conflict; with `fail` it is rejected at the end.

use std::collections::BTreeMap;
use std::time::Duration;

use chalet_sdk::http::{Call, Request, Response};
use chalet_sdk::{Plugin, Result, kv, reject};
use guest_report::outcome;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Send {
    calls: Vec<Sent>,
    touch: Option<String>,
    #[serde(default)]
    fail: bool,
}

#[derive(Deserialize)]
struct Sent {
    #[serde(default = "get")]
    method: String,
    url: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: String,
    timeout_ms: Option<u64>,
}

fn get() -> String {
    "GET".to_owned()
}

/// The guest.
pub struct Http;

impl Plugin for Http {
    fn http(request: Request) -> Result<Response> {
        let Send { calls, touch, fail } = request.json()?;
        if let Some(key) = touch {
            let times: u64 = kv::get("c", &key)?.unwrap_or_default();
            kv::put("c", &key, &(times + 1))?;
        }
        let answers: Vec<_> = calls.into_iter().map(|sent| outcome(send(sent))).collect();
        if fail {
            return Err(reject("as the test wants"));
        }
        Response::json(&json!({ "answers": answers }))
    }
}

fn send(sent: Sent) -> Result<Value> {
    let mut call = Call::new(sent.method, sent.url).body(sent.body);
    for (name, value) in &sent.headers {
        call = call.header(name, value);
    }
    if let Some(timeout_ms) = sent.timeout_ms {
        call = call.timeout(Duration::from_millis(timeout_ms));
    }
    let answer = call.send()?;
    let headers: BTreeMap<_, _> =
        answer.headers().iter().map(|(name, value)| (name, String::from_utf8_lossy(value))).collect();
    Ok(json!({ "status": answer.status(), "headers": headers, "body": answer.to_text() }))
}

chalet_sdk::export!(Http: http);
