//! An invocation is a transaction, seen over HTTP through a real component.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::kit::postgres;
use crate::kit::server::{Server, Setup, Tenant, expect};

async fn run(tenant: &Tenant<'_>, ops: Value) -> Value {
    expect(tenant.call(Method::POST, "guest-kv", "/run").json(&json!({ "ops": ops })), StatusCode::OK).await
}

#[tokio::test]
async fn what_a_failed_invocation_staged_never_happened() {
    for setup in Setup::engines().await {
        let server = Server::start_with(setup);
        let acme = server.tenant("acme").await;
        acme.deploy("guest-kv").await;
        let put = json!({ "op": "put", "key": "a", "value": 1 });
        for (end, status) in [
            (json!({ "op": "trap" }), StatusCode::BAD_GATEWAY),
            (json!({ "op": "fail" }), StatusCode::UNPROCESSABLE_ENTITY),
            (json!({ "op": "retry", "after_ms": 1500 }), StatusCode::SERVICE_UNAVAILABLE),
            (json!({ "op": "status", "status": 503 }), StatusCode::SERVICE_UNAVAILABLE),
        ] {
            let ops = json!({ "ops": [put, { "op": "increment", "key": "n", "delta": 1 }, end] });
            expect(acme.call(Method::POST, "guest-kv", "/run").json(&ops), status).await;
            assert_eq!(acme.kv("c", "a").await, None, "{end}");
            assert_eq!(acme.kv("c", "n").await, None, "{end}");
        }
        let answer =
            acme.call(Method::POST, "guest-kv", "/run").json(&json!({ "ops": [{ "op": "retry", "after_ms": 1500 }] }));
        assert_eq!(answer.send().await.expect("an answer").headers()["retry-after"], "2");
        run(&acme, json!([put, { "op": "status", "status": 404 }]).as_array().map(|ops| json!([ops[0]])).expect("ops"))
            .await;
        assert_eq!(acme.kv("c", "a").await.as_deref(), Some(&b"1"[..]));
    }
}

/// 64 clients add to 8 keys by reading and writing; the sums are what they were told, and nothing is lost.
async fn increments(servers: &[&Server], key: &str, total: u64) {
    const CLIENTS: u64 = 64;
    const KEYS: u64 = 8;
    let left = Arc::new(AtomicU64::new(0));
    let clients = (0..CLIENTS).map(|client| {
        let server = servers[client as usize % servers.len()];
        let (left, url, key, http) =
            (left.clone(), format!("{}/t/acme/guest-kv/run", server.url), key.to_owned(), server.http.clone());
        tokio::spawn(async move {
            loop {
                let n = left.fetch_add(1, Ordering::Relaxed);
                if n >= total {
                    return;
                }
                let ops = json!({ "ops": [{ "op": "add", "key": format!("k{}", n % KEYS), "delta": 1 }] });
                // What is not acknowledged has no effect, so that it is simply sent again; a conflict that the
                // host could not resolve would be a broken promise.
                loop {
                    let answer = http.post(&url).bearer_auth(&key).json(&ops).send().await.expect("an answer");
                    let status = answer.status();
                    if status == StatusCode::OK {
                        break;
                    }
                    let body = answer.text().await.unwrap_or_default();
                    let busy = status == StatusCode::GATEWAY_TIMEOUT
                        || (status == StatusCode::SERVICE_UNAVAILABLE && !body.contains("outcome_unknown"));
                    assert!(busy, "{status} {body}");
                }
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("no client failed");
    }
}

async fn sum(tenant: &Tenant<'_>) -> u64 {
    let answer = run(tenant, json!([{ "op": "sum", "prefix": "k" }])).await;
    answer["results"][0]["sum"].as_u64().unwrap_or_else(|| panic!("no sum in {answer}"))
}

#[tokio::test]
async fn ten_thousand_concurrent_increments_lose_none() {
    const TOTAL: u64 = 10_000;
    for setup in Setup::engines().await {
        let server = Server::start_with(setup.clone());
        server.unlimited().await;
        let acme = server.tenant("acme").await;
        acme.deploy("guest-kv").await;
        increments(&[&server], &acme.key, TOTAL).await;
        assert_eq!(sum(&acme).await, TOTAL);
        let reruns = server.metric("chalet_invocation_reruns_total").await;
        assert!(reruns > 0.0, "64 clients on 8 keys never met: the test proves nothing");
        println!("{TOTAL} increments on {setup:?}: {reruns} re-runs");
    }
}

#[tokio::test]
async fn two_hosts_on_one_database_lose_no_increment() {
    const TOTAL: u64 = 10_000;
    let database = postgres::database().await;
    let (one, two) = (Server::start_with(Setup::on(&database)), Server::start_with(Setup::on(&database)));
    one.unlimited().await;
    let acme = one.tenant("acme").await;
    acme.deploy("guest-kv").await;
    // The second node has read neither the plan nor the tenant before.
    increments(&[&one, &two], &acme.key, TOTAL).await;
    assert_eq!(sum(&acme).await, TOTAL);
    let reruns =
        one.metric("chalet_invocation_reruns_total").await + two.metric("chalet_invocation_reruns_total").await;
    assert!(reruns > 0.0);
    println!("{TOTAL} increments on two hosts: {reruns} re-runs");
}

#[tokio::test]
async fn concurrent_writes_of_one_tenant_share_transactions() {
    for setup in Setup::engines().await {
        let server = Server::start_with(setup);
        server.unlimited().await;
        let acme = server.tenant("acme").await;
        acme.deploy("guest-kv").await;
        run(&acme, json!([])).await;
        let calls = (0..64).map(|n| {
            let ops = json!({ "ops": [{ "op": "put", "key": format!("k{n}"), "value": n }] });
            acme.call(Method::POST, "guest-kv", "/run").json(&ops).send()
        });
        let before = server.metric("chalet_commit_batches_total").await;
        for answer in futures_util::future::join_all(calls).await {
            assert_eq!(answer.expect("an answer").status(), StatusCode::OK);
        }
        let batches = server.metric("chalet_commit_batches_total").await - before;
        assert!(batches < 16.0, "64 one-write calls made {batches} transactions");
    }
}

#[tokio::test]
async fn a_call_that_neither_reads_nor_writes_issues_no_statement() {
    let server = Server::start();
    let acme = server.tenant("acme").await;
    acme.deploy("guest-hello").await;
    let call = || acme.call(Method::GET, "guest-hello", "/").send();
    assert_eq!(call().await.expect("an answer").status(), StatusCode::OK);
    let statements =
        async || server.metric("chalet_reads_total").await + server.metric("chalet_commit_batches_total").await;
    // What the calls before left behind is written within the flush interval.
    server
        .eventually("the tally is written", async || {
            let before = statements().await;
            tokio::time::sleep(std::time::Duration::from_millis(250)).await;
            statements().await == before
        })
        .await;
    let before = statements().await;
    assert_eq!(call().await.expect("an answer").status(), StatusCode::OK);
    assert_eq!(statements().await, before, "before the answer nothing is read or written");
}
