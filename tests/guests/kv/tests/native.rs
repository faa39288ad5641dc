//! The suite and the operations on the in-memory host.

use chalet_sdk::http::Request;
use chalet_sdk::testing::Host;
use chalet_sdk::{Error, Result};
use guest_kv::{Kv, committed, suite};
use serde_json::{Value, json};
use std::time::Duration;

fn host() -> Host {
    Host::from_manifest(include_str!("../plugin.toml"))
}

fn run(host: &Host, ops: Value) -> Result<(u16, Value)> {
    let answer = host.http::<Kv>(Request::post("/run", &json!({ "ops": ops }))?)?;
    Ok((answer.status(), answer.read_json::<Value>()?["results"].take()))
}

#[test]
fn the_suite_passes() {
    let host = host();
    for _ in 0..2 {
        host.run(suite).unwrap();
        host.run(committed).unwrap();
        host.run(committed).unwrap();
    }
}

#[test]
fn a_failure_or_a_status_of_500_leaves_nothing() {
    let host = host();
    let put = json!({ "op": "put", "key": "k", "value": 1 });
    assert!(run(&host, json!([put, { "op": "fail" }])).is_err());
    assert!(run(&host, json!([put, { "op": "retry", "after_ms": 5 }])).unwrap_err().retryable());
    assert_eq!(run(&host, json!([put, { "op": "status", "status": 500 }])).unwrap().0, 500);
    assert!(host.keys("c").is_empty());
    assert_eq!(run(&host, json!([put, { "op": "status", "status": 499 }])).unwrap().0, 499);
    assert_eq!(host.keys("c"), ["k"]);
}

#[test]
fn a_trap_leaves_nothing_and_the_host_goes_on() {
    let host = host();
    let trapped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        run(&host, json!([{ "op": "put", "key": "k", "value": 1 }, { "op": "trap" }]))
    }));
    assert!(trapped.is_err());
    assert!(host.keys("c").is_empty());
    assert_eq!(run(&host, json!([{ "op": "add", "key": "k", "delta": 2 }])).unwrap().1[0]["value"], 2);
}

#[test]
fn operations_answer_what_they_saw() {
    let host = host();
    let (_, results) = run(
        &host,
        json!([
            { "op": "put", "collection": "accounts", "key": "a", "value": 10 },
            { "op": "put", "collection": "accounts", "key": "b", "value": 0 },
            { "op": "transfer", "collection": "accounts", "from": "a", "to": "b", "amount": 3 },
            { "op": "assert_sum", "collection": "accounts", "keys": ["a", "b"], "sum": 10 },
            { "op": "get", "collection": "elsewhere", "key": "a" },
            { "op": "put", "collection": "accounts", "key": "a", "value": 1, "if_version": 9 },
            { "op": "increment", "collection": "accounts", "key": "a", "delta": 1 }
        ]),
    )
    .unwrap();
    assert_eq!(results[2], json!({ "from": 7, "to": 3 }));
    assert_eq!(results[3]["sum"], 10);
    assert_eq!(results[4]["error"]["kind"], "denied");
    assert_eq!(results[5]["error"]["kind"], "conflict");
    assert_eq!(results[6]["error"]["kind"], "invalid");
}

#[test]
fn a_commit_that_a_counter_refuses_leaves_nothing() {
    let host = host();
    host.put_bytes("c", "text", "\"x\"");
    host.put_bytes("c", "other", "1");
    let refused = run(
        &host,
        json!([{ "op": "increment", "key": "text", "delta": 1 }, { "op": "put", "key": "other", "value": 2 }]),
    );
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    assert_eq!(host.get_bytes("c", "other").unwrap(), b"1");
    run(&host, json!([{ "op": "increment", "key": "n", "delta": i64::MAX }])).unwrap();
    assert!(run(&host, json!([{ "op": "increment", "key": "n", "delta": 1 }])).is_err());
}

#[test]
fn an_entry_is_gone_after_its_time_and_may_be_written_again_as_absent() {
    let host = host();
    run(&host, json!([{ "op": "put", "key": "k", "value": 1, "ttl_ms": 1000 }])).unwrap();
    host.advance(Duration::from_millis(999));
    assert_eq!(run(&host, json!([{ "op": "get", "key": "k" }])).unwrap().1[0]["value"], 1);
    host.advance(Duration::from_millis(1));
    assert_eq!(run(&host, json!([{ "op": "get", "key": "k" }])).unwrap().1[0]["value"], Value::Null);
    assert_eq!(run(&host, json!([{ "op": "list" }])).unwrap().1[0]["entries"], json!([]));
    let (_, results) = run(&host, json!([{ "op": "put", "key": "k", "value": 2, "if_version": 0 }])).unwrap();
    assert_eq!(results[0], json!({}));
}
