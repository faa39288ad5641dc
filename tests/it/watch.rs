//! The watch that other tests keep over a server, shown what it has to notice.

use std::sync::Arc;

use reqwest::{Method, StatusCode};
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
