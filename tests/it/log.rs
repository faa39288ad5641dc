//! A plugin's log: kept with the record, of failures too, and streamed.

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::kit::server::{Server, expect};

#[tokio::test]
async fn the_log_of_a_failed_invocation_is_kept_and_cannot_forge_lines() {
    let server = Server::start();
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

#[tokio::test]
async fn a_panics_message_is_in_the_log() {
    let server = Server::start();
    let acme = server.tenant("acme").await;
    acme.deploy("guest-log").await;
    let panic = acme.call(Method::POST, "guest-log", "/log").json(&json!({ "lines": [], "then": "panic" }));
    let problem = expect(panic, StatusCode::BAD_GATEWAY).await;
    assert_eq!(problem["code"], "plugin_failed");
    let id = problem["invocation"].as_str().expect("an id");
    let record = expect(acme.api(Method::GET, &format!("/invocations/{id}")), StatusCode::OK).await;
    assert!(record["log"].to_string().contains("panic"), "{record}");
}
