//! Outgoing HTTP: to granted hosts, never inwards, and once over re-runs.

mod hostile;
mod names;
mod network;
mod tls;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;

use chalet::cli::build;
use chalet::services::plugins::manifest::Manifest;
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::kit::engine::Engine;
use crate::kit::guests::component;
use crate::kit::oracle::Watch;
use crate::kit::server::{Server, expect};

on_both_engines! {
    what_is_not_granted_or_points_inwards_is_refused,
    a_request_that_is_repeated_after_a_crash_has_the_same_key,
    a_request_is_sent_once_over_re_runs_and_names_its_cause,
}

/// A server that answers 200 to everything, but for the first request to `/hold`, which it leaves without an answer,
/// and keeps the requests it got.
pub(crate) async fn upstream() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let kept = kept.clone();
            tokio::spawn(async move {
                let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
                while !request.windows(4).any(|window| window == b"\r\n\r\n") {
                    match stream.read(&mut buffer).await {
                        Ok(n) if n > 0 => request.extend_from_slice(&buffer[..n]),
                        _ => return,
                    }
                }
                let request = String::from_utf8_lossy(&request).to_lowercase();
                let first = {
                    let mut kept = kept.lock().expect("no panic");
                    kept.push(request.clone());
                    kept.len() == 1
                };
                if first && request.starts_with("post /hold ") {
                    std::future::pending::<()>().await;
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await;
            });
        }
    });
    (port, seen)
}

async fn what_is_not_granted_or_points_inwards_is_refused(engine: Engine) {
    let (port, seen) = upstream().await;
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-http").await;
    for (url, kinds) in [
        (format!("http://127.0.0.1:{port}/"), "denied|invalid"),
        (format!("http://localhost:{port}/"), "denied|invalid"),
        (format!("https://127.0.0.1:{port}/"), "denied"),
        ("https://169.254.169.254/latest/meta-data".into(), "denied"),
        ("https://metadata.google.internal/".into(), "denied|unavailable"),
        ("https://api.example.com.evil.test/".into(), "denied"),
        ("https://evil.test/#@api.example.com".into(), "denied"),
        ("gopher://127.0.0.1/".into(), "denied|invalid"),
        (format!("https://user:pass@127.0.0.1:{port}/"), "denied|invalid"),
    ] {
        let calls = json!({ "calls": [{ "method": "GET", "url": url }] });
        let answer = expect(acme.call(Method::POST, "guest-http", "/send").json(&calls), StatusCode::OK).await;
        let kind = answer["answers"][0]["error"]["kind"].as_str().unwrap_or("answered").to_owned();
        assert!(kinds.split('|').any(|one| one == kind), "{url}: {answer}");
    }
    assert_eq!(seen.lock().expect("no panic").len(), 0, "nothing reached the canary");
    watch.end(&server).await;
}

/// The guest with a grant for this address: a port that is not the scheme's own has to be granted as such.
pub(crate) fn granted(local: &str) -> Vec<u8> {
    let component = component("guest-http");
    let mut manifest = Manifest::from_component(&component).expect("a manifest");
    manifest.grants.egress.push(local.to_owned());
    build::embed_instead(&component, &manifest).expect("embedded")
}

/// The `Idempotency-Key` of each request.
fn keys(requests: &[String]) -> Vec<String> {
    let key =
        |request: &String| request.lines().find_map(|line| line.strip_prefix("idempotency-key: ")).map(str::to_owned);
    requests.iter().map(|request| key(request).expect("a key")).collect()
}

async fn a_request_that_is_repeated_after_a_crash_has_the_same_key(engine: Engine) {
    let setup = engine.setup().await;
    let (port, seen) = upstream().await;
    let local = format!("127.0.0.1:{port}");
    let mut server = Server::start_with(setup.with("CHALET_EGRESS_LOCAL", &local));
    let acme = server.tenant("acme").await;
    acme.deploy_bytes("guest-http", granted(&local)).await;
    let key = acme.key.clone();
    let body = json!({ "calls": [{ "method": "POST", "url": format!("http://{local}/hold"), "body": "1" }] });
    let pay = |server: &Server| {
        let request = server.anonymous(Method::POST, "/t/acme/guest-http/send").bearer_auth(&key);
        request.header("idempotency-key", "pay-1").json(&body).send()
    };
    let sent = async || seen.lock().expect("no panic").clone();
    let first = tokio::spawn(pay(&server));
    server.eventually("the request is sent", async || sent().await.len() == 1).await;
    server.crash_and_restart();
    assert!(first.await.expect("no panic").is_err(), "the server was killed before its answer");
    for _ in 0..2 {
        assert_eq!(pay(&server).await.expect("an answer").status(), StatusCode::OK);
    }
    let keys = keys(&sent().await);
    assert_eq!(keys.len(), 2, "the second repetition got the stored answer");
    assert_eq!(keys[0], keys[1], "whoever was paid can tell that it is the same payment");
}

async fn a_request_is_sent_once_over_re_runs_and_names_its_cause(engine: Engine) {
    let (port, seen) = upstream().await;
    let local = format!("127.0.0.1:{port}");
    let server = Server::start_with(engine.setup().await.with("CHALET_EGRESS_LOCAL", &local));
    let acme = server.tenant("acme").await;
    acme.deploy_bytes("guest-http", granted(&local)).await;
    let calls = (0..16).map(|n| {
        let body = json!({ "calls": [{ "method": "POST", "url": format!("http://{local}/pay/{n}"), "body": "1" }], "touch": "hot" });
        acme.call(Method::POST, "guest-http", "/send").header("idempotency-key", format!("pay-{n}")).json(&body).send()
    });
    for answer in futures_util::future::join_all(calls).await {
        let answer = answer.expect("an answer");
        let status = answer.status();
        assert_eq!(status, StatusCode::OK, "{}", answer.text().await.unwrap_or_default());
    }
    assert!(
        server.metric("chalet_invocation_reruns_total").await > 0.0,
        "the invocations never met: the test proves nothing"
    );
    let requests = seen.lock().expect("no panic").clone();
    assert_eq!(requests.len(), 16, "each request was sent once");
    let keys: HashSet<_> = keys(&requests).into_iter().collect();
    assert_eq!(keys.len(), 16, "each cause has a key of its own");
}
