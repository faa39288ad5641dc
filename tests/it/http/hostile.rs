//! Outgoing HTTP under hostile guests, hostile upstreams and hostile surroundings, through a real server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chalet::cli::build;
use chalet::services::plugins::manifest::Manifest;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::kit::guests::component;
use crate::kit::oracle::Watch;
use crate::kit::server::{Server, Setup, Tenant, expect};

/// Addresses that are not the public internet, in the ways in which URLs have them; a port follows.
const INWARD: &str = include_str!("../../../host/src/services/egress/testdata/inward.txt");

/// A listener that counts who reaches it, at every address of this machine.
pub async fn canary() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("[::]:0").await.expect("a port of both families");
    let port = listener.local_addr().expect("bound").port();
    let hits = Arc::new(AtomicUsize::new(0));
    let counted = hits.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut request = [0; 4_096];
                let length = stream.read(&mut request).await.unwrap_or_default();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(&[head.as_bytes(), &request[..length]].concat()).await;
            });
        }
    });
    (port, hits)
}

/// A server whose operator allows `http` as well, so that an address is refused for itself.
pub fn server(setup: Setup) -> Server {
    let data = TempDir::new().expect("a temporary folder");
    std::fs::write(data.path().join("chalet.toml"), "[egress]\nhttp = true\n").expect("written");
    Server::start_on(setup, Arc::new(data))
}

/// A server whose operator allows these of its own machine, too.
fn allowing(local: &str) -> Server {
    server(Setup::sqlite().with("CHALET_EGRESS_LOCAL", local))
}

/// A tenant with the guest that sends what it is told, granted these hosts.
pub async fn tenant<'s>(server: &'s Server, name: &str, grants: impl IntoIterator<Item = String>) -> Tenant<'s> {
    let tenant = server.tenant(name).await;
    let component = component("guest-http");
    let mut manifest = Manifest::from_component(&component).expect("a manifest");
    manifest.grants.egress = grants.into_iter().collect();
    tenant.deploy_bytes("guest-http", build::embed_instead(&component, &manifest).expect("embedded")).await;
    tenant
}

/// What became of these calls, in one invocation.
pub async fn send(tenant: &Tenant<'_>, calls: Vec<Value>) -> Vec<Value> {
    let count = calls.len();
    let answer =
        expect(tenant.call(Method::POST, "guest-http", "/send").json(&json!({ "calls": calls })), StatusCode::OK).await;
    let answers = answer["answers"].as_array().expect("answers").clone();
    assert_eq!(answers.len(), count);
    answers
}

pub fn kind(answer: &Value) -> &str {
    answer["error"]["kind"].as_str().unwrap_or("answered")
}

/// Everything that a guest may try to get inwards with, at a port.
fn urls(port: u16) -> Vec<String> {
    let mut urls = Vec::new();
    for host in INWARD.lines() {
        for url in [
            format!("http://{host}:{port}/"),
            format!("https://{host}:{port}/"),
            format!("HTTP://{host}:{port}?q#f"),
            format!("http:{host}:{port}/"),
            format!("http:///{host}:{port}/"),
            format!("http:\\\\{host}:{port}\\"),
            format!("h\tttp://{host}:{port}/"),
            format!("http://api.example.com@{host}:{port}/"),
            format!("http://{host}:{port}#@api.example.com/"),
            format!("gopher://{host}:{port}/"),
            format!("file://{host}:{port}/"),
        ] {
            urls.push(url);
        }
    }
    urls
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_a_guest_writes_leads_inwards() {
    let (port, hits) = canary().await;
    // The operator's word about local addresses is the only difference between the two.
    let closed = server(Setup::sqlite());
    let open = allowing(&format!("127.0.0.1:{port},localhost:{port},[::1]:{port}"));
    let watch = Watch::begin(&closed).await;
    // Each is granted where a manifest can name it, so that it is refused for what it is.
    let plain = |host: &&str| {
        host.split('.')
            .all(|label| !label.is_empty() && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()))
    };
    let grants: Vec<String> = INWARD.lines().filter(plain).map(|host| format!("{host}:{port}")).collect();
    assert!(grants.len() > 25, "{} of them can be granted", grants.len());
    let (inside, allowed) = (tenant(&closed, "acme", grants.clone()).await, tenant(&open, "acme", grants).await);
    let urls = urls(port);
    for batch in urls.chunks(50) {
        let calls = || batch.iter().map(|url| json!({ "url": url })).collect();
        for (url, answer) in batch.iter().zip(send(&inside, calls()).await) {
            assert!(matches!(kind(&answer), "denied" | "invalid"), "{url}: {answer}");
        }
    }
    assert_eq!(hits.load(Ordering::Relaxed), 0, "nothing reached the canary");
    for batch in urls.chunks(50) {
        send(&allowed, batch.iter().map(|url| json!({ "url": url, "timeout_ms": 200 })).collect()).await;
    }
    let reached = hits.load(Ordering::Relaxed);
    println!("{} URLs were refused; where the operator allows it, {reached} of them reach the canary", urls.len());
    assert!(reached >= 20, "the canary can be reached: {reached}");
    watch.end(&closed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_is_of_one_host_and_nothing_that_looks_like_it() {
    let (port, hits) = canary().await;
    let server = allowing(&format!("localhost:{port},127.0.0.1:{port}"));
    let watch = Watch::begin(&server).await;
    let other_protocols = ["example.com:22", "example.com:25", "example.com:6379"];
    let grants = other_protocols.iter().map(|host| (*host).to_owned()).chain([format!("localhost:{port}")]);
    let acme = tenant(&server, "acme", grants).await;
    for answer in send(&acme, other_protocols.map(|host| json!({ "url": format!("http://{host}/") })).to_vec()).await {
        assert_eq!(kind(&answer), "denied", "{answer}");
    }
    let denied = [
        format!("http://127.0.0.1:{port}/"),
        format!("http://localhost.evil.test:{port}/"),
        format!("http://evil.localhost:{port}/"),
        format!("http://localhos\u{0442}:{port}/"),
        format!("http://evil.test:{port}/#@localhost:{port}"),
        format!("http://localhost:{port}@127.0.0.1:{port}/"),
        "http://localhost/".into(),
        "http://localhost:22/".into(),
        "http://localhost:25/".into(),
        "http://localhost:6379/".into(),
        format!("http://localhost:{port}0/"),
    ];
    for answer in send(&acme, denied.iter().map(|url| json!({ "url": url })).collect()).await {
        assert!(matches!(kind(&answer), "denied" | "invalid"), "{answer}");
    }
    // What would be another request on the wire, or none.
    let url = format!("http://localhost:{port}/");
    let mut calls = Vec::new();
    for method in ["CONNECT", "TRACE", "get", "GET / HTTP/1.1\r\nx: y\r\n\r\nGET", "GET\t", ""] {
        calls.push(json!({ "method": method, "url": url }));
    }
    for (name, value) in [
        ("host", "evil.test"),
        ("Transfer-Encoding", "chunked"),
        ("content-length", "0"),
        ("connection", "x"),
        ("upgrade", "h2c"),
        ("x", "1\r\nhost: evil"),
        ("x", "1\n"),
        ("x\r\ny", "1"),
        (":authority", "evil"),
        ("", "1"),
        ("proxy-authorization", "x"),
    ] {
        calls.push(json!({ "url": url, "headers": { name: value } }));
    }
    for answer in send(&acme, calls).await {
        assert_eq!(kind(&answer), "invalid", "{answer}");
    }
    assert_eq!(hits.load(Ordering::Relaxed), 0);
    for url in [format!("http://LOCALHOST:{port}/"), format!("http://localhost.:{port}/")] {
        let answers = send(&acme, vec![json!({ "url": url })]).await;
        assert_eq!(kind(&answers[0]), "answered", "{url}: {answers:?}");
    }
    assert_eq!(hits.load(Ordering::Relaxed), 2);
    watch.end(&server).await;
}

/// A server that answers each connection with `first`, and then with `more` for as long as anybody listens.
async fn upstream(first: Vec<u8>, more: Vec<u8>, pause: Duration) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (first, more) = (first.clone(), more.clone());
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4_096]).await;
                let mut sent = stream.write_all(&first).await;
                while sent.is_ok() && !more.is_empty() {
                    tokio::time::sleep(pause).await;
                    sent = stream.write_all(&more).await;
                }
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_upstream_costs_its_caller_a_bounded_time_and_nobody_else_anything() {
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\n";
    let now = Duration::ZERO;
    let mut cases = Vec::new();
    let mut case = async |what: &'static str, first: &[u8], more: &[u8], pause: Duration, expected: &'static str| {
        cases.push((what, upstream([OK, first].concat(), more.to_vec(), pause).await, expected));
    };
    case("a body that drips", b"\r\n", b"x", Duration::from_millis(100), "unavailable").await;
    case("a head that drips", b"x: ", b"x", Duration::from_millis(100), "unavailable").await;
    case("headers without end", b"", &b"x: y\r\n".repeat(500), now, "invalid").await;
    case("one header without end", b"x: ", &[b'y'; 4_096], now, "invalid").await;
    case("a body without end", b"\r\n", &[b'y'; 65_536], now, "invalid").await;
    case("1 GB that is announced", b"content-length: 1000000000\r\n\r\n", &[b'y'; 65_536], now, "invalid").await;
    case(
        "chunks without end",
        b"transfer-encoding: chunked\r\n\r\n",
        &[b"8000\r\n".as_slice(), &[b'y'; 32_768], b"\r\n"].concat(),
        now,
        "invalid",
    )
    .await;
    case("chunks of one byte", b"transfer-encoding: chunked\r\n\r\n", b"1\r\ny\r\n", now, "invalid|unavailable").await;
    case(
        "an extension without end",
        b"transfer-encoding: chunked\r\n\r\n1;x=",
        &[b'y'; 4_096],
        now,
        "unavailable|invalid",
    )
    .await;
    case(
        "trailers without end",
        b"transfer-encoding: chunked\r\n\r\n0\r\n",
        &b"x: y\r\n".repeat(500),
        now,
        "unavailable|invalid",
    )
    .await;
    case("two lengths", b"content-length: 1\r\ncontent-length: 2\r\n\r\nxx", b"", now, "unavailable").await;
    case("less than was announced", b"content-length: 5\r\nconnection: close\r\n\r\nx", b"", now, "unavailable").await;
    // Nothing is decoded here: a bomb stays as small as it came.
    case(
        "a gzip bomb",
        b"content-encoding: gzip\r\ncontent-length: 20\r\n\r\n\x1f\x8b\x08\0\0\0\0\0\0\x03\x03\0\0\0\0\0\0\0\0\0",
        b"",
        now,
        "answered",
    )
    .await;
    let again = b"HTTP/1.1 100 Continue\r\n\r\n";
    cases.push(("answers before the answer", upstream(again.to_vec(), again.repeat(100), now).await, "unavailable"));
    cases.push(("no answer", upstream(Vec::new(), Vec::new(), now).await, "unavailable"));
    cases.push(("another protocol", upstream(b"SSH-2.0-x\r\n".to_vec(), Vec::new(), now).await, "unavailable"));
    cases.push((
        "another protocol that is agreed upon",
        upstream(
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n".to_vec(),
            vec![b'x'; 1_024],
            now,
        )
        .await,
        "answered|unavailable|invalid",
    ));
    let (inward, hits) = canary().await;
    let redirect = format!("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{inward}/\r\ncontent-length: 0\r\n\r\n");
    cases.push(("a way inwards", upstream(redirect.into_bytes(), Vec::new(), now).await, "answered"));

    let local = |port: u16| format!("127.0.0.1:{port}");
    let all: Vec<String> = cases.iter().map(|(_, port, _)| local(*port)).collect();
    let server = allowing(&all.join(","));
    let watch = Watch::begin(&server).await;
    let acme = tenant(&server, "acme", all).await;
    for (what, port, expected) in cases {
        let started = Instant::now();
        let answers = send(&acme, vec![json!({ "url": format!("http://{}/", local(port)), "timeout_ms": 700 })]).await;
        println!("{what}: {} after {:?}", kind(&answers[0]), started.elapsed());
        assert!(expected.split('|').any(|one| one == kind(&answers[0])), "{what}: {answers:?}");
        assert!(started.elapsed() < Duration::from_secs(10), "{what} took {:?}", started.elapsed());
    }
    assert_eq!(hits.load(Ordering::Relaxed), 0, "a redirect is an answer");
    watch.end(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invocation_sends_no_more_than_its_share() {
    let (port, hits) = canary().await;
    let local = format!("127.0.0.1:{port}");
    let server = allowing(&local);
    let watch = Watch::begin(&server).await;
    let acme = tenant(&server, "acme", [local.clone()]).await;
    let calls =
        |count: usize| -> Vec<Value> { (0..count).map(|n| json!({ "url": format!("http://{local}/{n}") })).collect() };
    // As many as a plan allows are sent, and each one more is told so.
    for count in [49, 50, 51, 60] {
        let before = hits.load(Ordering::Relaxed);
        let answers = send(&acme, calls(count)).await;
        assert_eq!(hits.load(Ordering::Relaxed) - before, count.min(50));
        let refused = answers.iter().filter(|answer| kind(answer) == "budget-exhausted").count();
        assert_eq!(refused, count.saturating_sub(50), "{answers:?}");
    }
    // Many at a time are each within its own share, and all are answered.
    let many = (0..40).map(async |_| send(&acme, calls(5)).await);
    let answers = futures_util::future::join_all(many).await.concat();
    assert!(answers.iter().all(|answer| kind(answer) == "answered"));
    watch.end(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxies_and_passwords_of_the_environment_are_not_used() {
    let ((port, hits), (proxy, asked)) = (canary().await, canary().await);
    let home = TempDir::new().expect("a temporary folder");
    std::fs::write(home.path().join(".netrc"), "default login operator password secret\n").expect("written");
    let local = format!("127.0.0.1:{port}");
    let proxy = format!("http://127.0.0.1:{proxy}");
    let names = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    let setup = Setup::sqlite().with("CHALET_EGRESS_LOCAL", &local);
    let setup = setup.with("NETRC", &home.path().join(".netrc").display().to_string());
    let setup = setup.with("HOME", &home.path().display().to_string());
    let server = server(names.iter().fold(setup, |setup, name| setup.with(name, &proxy)));
    let watch = Watch::begin(&server).await;
    let acme = tenant(&server, "acme", [local.clone(), "proxied.example.com".into()]).await;
    let calls = ["http://LOCAL/", "http://proxied.example.com/", "https://proxied.example.com/"];
    let calls = calls.iter().map(|url| json!({ "url": url.replace("LOCAL", &local), "timeout_ms": 500 })).collect();
    let answers = send(&acme, calls).await;
    assert_eq!(kind(&answers[0]), "answered");
    let sent = answers[0]["body"].as_str().expect("the request, which the listener gives back");
    assert!(sent.starts_with("GET / HTTP/1.1\r\n") && !sent.to_lowercase().contains("authorization"), "{sent}");
    assert!(kind(&answers[1]) != "answered" && kind(&answers[2]) != "answered", "{answers:?}");
    assert_eq!((hits.load(Ordering::Relaxed), asked.load(Ordering::Relaxed)), (1, 0));
    watch.end(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugins_that_call_each_other_in_a_circle_come_to_an_end() {
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound");
    let local = free.to_string();
    let server = server(Setup::sqlite().with("CHALET_EGRESS_LOCAL", &local).at(free));
    let watch = Watch::begin(&server).await;
    let (acme, globex) =
        (tenant(&server, "acme", [local.clone()]).await, tenant(&server, "globex", [local.clone()]).await);
    // A body for the one that has the call of the other in it, and so on, one further than may be.
    let (mut body, mut tenants) = (json!({ "calls": [] }), [&acme, &globex].into_iter().cycle());
    for _ in 0..10 {
        let next = tenants.next().expect("it never ends");
        let headers = json!({ "authorization": format!("Bearer {}", next.key), "chalet-depth": "0" });
        let call = json!({ "method": "POST", "url": format!("http://{local}/t/{}/guest-http/send", next.name), "headers": headers, "body": body.to_string(), "timeout_ms": 10_000 });
        body = json!({ "calls": [call] });
    }
    let first = acme.call(Method::POST, "guest-http", "/send").json(&body).send().await.expect("an answer");
    let text = first.text().await.expect("text");
    assert!(text.contains("loop_detected") && text.contains("508"), "{text}");
    // The first and the eight that it may lead to; the watch's neighbour has its own.
    let own = async |tenant: &Tenant<'_>| {
        let listed = expect(tenant.api(Method::GET, "/invocations?limit=100"), StatusCode::OK).await;
        listed["data"].as_array().expect("a list").len()
    };
    server.eventually("each has its record", async || own(&acme).await + own(&globex).await == 9).await;
    watch.end(&server).await;
}
