//! The verdict on each server, and the watch that tests keep over some, shown what they have to notice.

use std::sync::Arc;

use reqwest::{Method, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use crate::kit::oracle::Watch;
use crate::kit::raw;
use crate::kit::server::{Server, Setup, expect};

/// What ending the watch says, which has to be a complaint.
async fn complaint(watch: Watch, server: Server) -> String {
    let ended = tokio::spawn(async move { watch.end(&server).await }).await;
    let panic = ended.expect_err("it noticed nothing").into_panic();
    *panic.downcast::<String>().expect("a text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_do_not_end_are_noticed() {
    let server = Server::start();
    let watch = Watch::begin(&server).await;
    let mut held = Vec::new();
    for _ in 0..400 {
        held.push(raw::connect(&server.url).await);
    }
    let said = complaint(watch, server).await;
    assert!(said.contains("more descriptors, tasks:"), "{said}");
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_does_not_come_back_is_noticed() {
    let data = tempfile::TempDir::new().expect("a temporary folder");
    std::fs::write(data.path().join("chalet.toml"), "[connections]\nbody_timeout_ms = 3600000\n").expect("written");
    let server = Server::start_on(Setup::sqlite(), Arc::new(data));
    let watch = Watch::begin(&server).await;
    let acme = server.tenant("acme").await;
    let mut held = Vec::new();
    for n in 0..24 {
        let mut stream = raw::connect(&server.url).await;
        let head = format!(
            "PUT /v1/tenants/acme/plugins/p-{n} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
            acme.key,
            8 << 20
        );
        stream.write_all(head.as_bytes()).await.expect("sent");
        stream.write_all(&vec![b'x'; 7 << 20]).await.expect("sent");
        held.push(stream);
    }
    let said = complaint(watch, server).await;
    assert!(said.contains("more memory:"), "{said}");
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neighbour_that_is_not_answered_is_noticed() {
    let server = Server::start();
    let watch = Watch::begin(&server).await;
    expect(server.admin(Method::DELETE, "/v1/tenants/canary"), StatusCode::NO_CONTENT).await;
    server.eventually("the neighbour is told", async || server.answered(401).await > 0.0).await;
    let said = complaint(watch, server).await;
    assert!(said.contains("the canary was answered all the time"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_panicked_failed_or_ended_is_found_guilty() {
    let server = Server::start_with(Setup::sqlite().with("CHALET_BREAK", "panic"));
    let acme = server.tenant("acme").await;
    acme.deploy("guest-log").await;
    acme.deploy("guest-kv").await;
    assert_eq!(server.verdict(), Ok(()));
    let said = json!({ "lines": [{ "level": "error", "message": "panic", "times": 1 }] });
    expect(acme.call(Method::POST, "guest-log", "/log").json(&said), StatusCode::BAD_GATEWAY).await;
    assert!(server.verdict().is_err_and(|fault| fault.contains("panicked")));
    server.expect_panics(1);
    assert_eq!(server.verdict(), Ok(()));
    let fails = json!({ "ops": [{ "op": "status", "status": 500 }] });
    expect(acme.call(Method::POST, "guest-kv", "/run").json(&fails), StatusCode::INTERNAL_SERVER_ERROR).await;
    assert!(server.verdict().is_err_and(|fault| fault.contains("answered with 500")));
    server.allow_errors();
    assert_eq!(server.verdict(), Ok(()));
    let pid = Pid::from_raw(server.pid().cast_signed()).expect("a process");
    kill_process(pid, Signal::KILL).expect("it is ours");
    server.eventually("it has ended", async || server.verdict().is_err_and(|fault| fault.contains("by itself"))).await;
    server.kill();
}
