//! A plugin's log: kept with the record, of failures too, and streamed.

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::kit::engine::Engine;
use crate::kit::server::expect;

on_both_engines! {
    the_log_of_a_failed_invocation_is_kept_and_cannot_forge_lines,
    a_panics_message_is_in_the_log,
    an_invocation_that_ends_after_a_later_one_is_in_the_stream_too,
    every_record_of_a_burst_is_found_though_only_some_are_written,
}

async fn the_log_of_a_failed_invocation_is_kept_and_cannot_forge_lines(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-log").await;
    let lines =
        json!({ "lines": [{ "level": "warn", "message": "one\n{\"level\":\"error\"}\u{1b}[31m" }], "then": "fail" });
    let failed = acme.call(Method::POST, "guest-log", "/log").json(&lines).send().await.expect("an answer");
    assert_eq!(failed.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let id = failed.headers()["chalet-invocation"].to_str().expect("an id").to_owned();
    let record = expect(acme.api(Method::GET, &format!("/invocations/{id}")), StatusCode::OK).await;
    assert_eq!(record["log"][0]["level"], "warn");
    let message = record["log"][0]["message"].as_str().expect("text");
    assert!(message.starts_with("one") && !message.contains('\n') && !message.contains('\u{1b}'), "{message:?}");
    let stream = acme.api(Method::GET, "/logs?follow=false").send().await.expect("an answer");
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let text = stream.text().await.expect("text");
    assert!(text.contains(&id) && text.lines().filter(|line| line.starts_with("data:")).count() == 1, "{text}");
}

async fn a_panics_message_is_in_the_log(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-log").await;
    let panic = acme.call(Method::POST, "guest-log", "/log").json(&json!({ "lines": [], "then": "panic" }));
    let problem = expect(panic, StatusCode::BAD_GATEWAY).await;
    assert_eq!(problem["code"], "plugin_failed");
    let id = problem["invocation"].as_str().expect("an id");
    let record = expect(acme.api(Method::GET, &format!("/invocations/{id}")), StatusCode::OK).await;
    assert!(record["log"].to_string().contains("panic"), "{record}");
}

async fn an_invocation_that_ends_after_a_later_one_is_in_the_stream_too(engine: Engine) {
    let server = engine.server().await;
    let plan = json!({ "timeout_ms": 30_000, "fuel": 50_000_000_000_u64 });
    expect(server.admin(Method::PUT, "/v1/plans/patient").json(&plan), StatusCode::OK).await;
    let acme = server.tenant("acme").await;
    expect(server.admin(Method::PATCH, "/v1/tenants/acme").json(&json!({ "plan": "patient" })), StatusCode::OK).await;
    acme.deploy("guest-kv").await;
    let mut stream = acme.api(Method::GET, "/logs").send().await.expect("an answer");
    let mut text = String::new();
    let mut streamed = async |id: &str| {
        let until = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
        while !text.contains(id) {
            let chunk = tokio::time::timeout_at(until, stream.chunk()).await.expect("it is streamed in time");
            text += &String::from_utf8_lossy(&chunk.expect("the stream goes on").expect("more"));
        }
    };
    let run = |ops: serde_json::Value| acme.call(Method::POST, "guest-kv", "/run").json(&json!({ "ops": ops })).send();
    let id = |answer: &reqwest::Response| answer.headers()["chalet-invocation"].to_str().expect("an id").to_owned();
    let slow = tokio::spawn(run(json!([{ "op": "spin", "rounds": 500_000_000_u64 }])));
    // Begins after the slow one, and ends before it.
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    streamed(&id(&run(json!([])).await.expect("an answer"))).await;
    let slow = slow.await.expect("no panic").expect("an answer");
    assert_eq!(slow.status(), StatusCode::OK);
    streamed(&id(&slow)).await;
}

async fn every_record_of_a_burst_is_found_though_only_some_are_written(engine: Engine) {
    let server = engine.server().await;
    let (acme, globex) = (server.tenant("acme").await, server.tenant("globex").await);
    acme.deploy("guest-hello").await;
    let burst = (0..50).map(|_| acme.call(Method::GET, "guest-hello", "/").send());
    for answer in futures_util::future::join_all(burst).await {
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        let id = answer.headers()["chalet-invocation"].to_str().expect("an id").to_owned();
        let record = expect(acme.api(Method::GET, &format!("/invocations/{id}")), StatusCode::OK).await;
        assert_eq!((&record["id"], &record["outcome"]), (&json!(id), &json!("ok")));
        expect(globex.api(Method::GET, &format!("/invocations/{id}")), StatusCode::NOT_FOUND).await;
    }
    let written = expect(acme.api(Method::GET, "/invocations?limit=100"), StatusCode::OK).await;
    let written = written["data"].as_array().expect("a list").len();
    assert!((1..50).contains(&written), "{written} records were written");
}
