//! The watch that other tests keep over a server, shown what it has to notice.

use reqwest::{Method, StatusCode};

use crate::kit::oracle::Watch;
use crate::kit::raw;
use crate::kit::server::{Server, expect};

/// What ending the watch says, which has to be a complaint.
async fn complaint(watch: Watch, server: Server) -> String {
    let ended = tokio::spawn(async move { watch.end(&server).await }).await;
    let panic = ended.expect_err("it noticed nothing").into_panic();
    *panic.downcast::<String>().expect("a text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn descriptors_that_do_not_come_back_are_noticed() {
    let server = Server::start();
    let watch = Watch::begin(&server).await;
    let mut held = Vec::new();
    for _ in 0..400 {
        held.push(raw::connect(&server.url).await);
    }
    let said = complaint(watch, server).await;
    assert!(said.contains("descriptors"), "{said}");
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
