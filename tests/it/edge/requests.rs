//! Requests that two parsers could read differently, and ones that are too large: refused, and the connection ends.

use reqwest::Method;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use crate::kit::oracle::Watch;
use crate::kit::raw;
use crate::kit::server::{ADMIN, Server};

/// What a request that was smuggled in another's body would be.
const SMUGGLED: &str = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";

/// A request with these lines behind its first two, then this body and a smuggled request.
fn with(lines: &str, body: &str) -> Vec<u8> {
    format!("POST /healthz HTTP/1.1\r\nhost: x\r\n{lines}\r\n{body}{SMUGGLED}").into_bytes()
}

/// The head of a request that may do everything.
const ALLOWED: &str = "PUT /v1/plans/smuggled HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ";

/// A body in this chunk coding, to a route that reads it.
fn chunked(body: &str) -> Vec<u8> {
    format!("{ALLOWED}{ADMIN}\r\ntransfer-encoding: chunked\r\n\r\n{body}{SMUGGLED}").into_bytes()
}

/// Requests that two parsers could read differently, what each is called, and the status that it gets here.
pub(super) fn ambiguous() -> Vec<(&'static str, Vec<u8>, u16)> {
    let mut cases: Vec<(&'static str, Vec<u8>, u16)> = vec![
        // What RFC 9112 (6.1) lets a server read by the coding, if it closes the connection.
        ("length, then coding", with("content-length: 4\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"), 405),
        ("coding, then length", with("transfer-encoding: chunked\r\ncontent-length: 4\r\n", "0\r\n\r\n"), 405),
        ("coding in HTTP/1.0", b"POST /healthz HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(), 400),
        ("no host", b"GET /healthz HTTP/1.1\r\n\r\n".to_vec(), 400),
        ("empty lines that end in LF", format!("\n\n{SMUGGLED}").into_bytes(), 400),
        ("LF behind the first line", b"GET /healthz HTTP/1.1\nhost: x\r\n\r\n".to_vec(), 400),
        ("LF behind a header", b"GET /healthz HTTP/1.1\r\nhost: x\n\r\n".to_vec(), 400),
        ("LF and nothing else", b"GET /healthz HTTP/1.1\nhost: x\n\n".to_vec(), 400),
        ("CR alone", b"GET /healthz HTTP/1.1\rhost: x\r\r".to_vec(), 400),
        ("two blanks", b"GET  /healthz HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), 400),
        ("a blank in the target", b"GET /health z HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), 400),
        ("another protocol", b"GET /healthz HTTQ/1.1\r\nhost: x\r\n\r\n".to_vec(), 400),
        ("no request at all", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), 400),
    ];
    for lines in [
        "host: y\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: identity, chunked\r\n",
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: cow\r\n",
        "transfer-encoding: cow\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: \"chunked\"\r\n",
        "transfer-encoding: \x0bchunked\r\n",
        "transfer-encoding : chunked\r\n",
        "transfer-encoding\t: chunked\r\n",
        " transfer-encoding: chunked\r\n",
        "x: y\r\n transfer-encoding: chunked\r\n",
        "x: y\ntransfer-encoding: chunked\r\n",
        "x: y\rtransfer-encoding: chunked\r\n",
        "x: y\0transfer-encoding: chunked\r\n",
        "transfer-encoding\r\n : chunked\r\n",
        "transfer-encoding:\r\n chunked\r\n",
        "content-length: +4\r\n",
        "content-length: -4\r\n",
        "content-length: 0x4\r\n",
        "content-length: 4, 4\r\n",
        "content-length: 4, 5\r\n",
        "content-length: 4 4\r\n",
        "content-length: 4;\r\n",
        "content-length: four\r\n",
        "content-length:\r\n",
        "content-length: 18446744073709551616\r\n",
        "content-length: 4\r\ncontent-length: 5\r\n",
        "content-length: 4\r\nconnection: content-length\r\n",
        "content-length: 4\r\nconnection: close, Content-Length\r\n",
        "transfer-encoding: chunked\r\nconnection: transfer-encoding\r\n",
        "connection: host\r\n",
        "content length: 4\r\n",
        "content-length\u{a0}: 4\r\n",
        "=: 4\r\n",
        ": 4\r\n",
    ] {
        cases.push((lines, with(lines, "0\r\n\r\n"), 400));
    }
    for body in [
        "-1\r\n{\r\n0\r\n\r\n",
        "+2\r\n{}\r\n0\r\n\r\n",
        "0x2\r\n{}\r\n0\r\n\r\n",
        " 2\r\n{}\r\n0\r\n\r\n",
        "2\n{}\r\n0\r\n\r\n",
        "2\r\n{}\n0\r\n\r\n",
        "2\r\n{}x\r\n0\r\n\r\n",
        "2;a\nb\r\n{}\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        "10000000000000002\r\n{}\r\n0\r\n\r\n",
        "2\r\n{}\r\n0\r\nx: y\nz: a\r\n\r\n",
        "\r\n2\r\n{}\r\n0\r\n\r\n",
    ] {
        cases.push((body, chunked(body), 400));
    }
    // An extension that never ends, and trailers that do not.
    let (extension, trailers) = ("x".repeat(1 << 20), "x: y\r\n".repeat(100_000));
    cases.push(("a long extension", chunked(&format!("2;{extension}\r\n{{}}\r\n0\r\n\r\n")), 400));
    cases.push(("many trailers", chunked(&format!("2\r\n{{}}\r\n0\r\n{trailers}\r\n")), 400));
    cases
}

#[tokio::test]
async fn a_request_that_frames_its_body_in_two_ways_is_its_connections_last() {
    let server = Server::start();
    let watch = Watch::begin(&server).await;
    let cases = ambiguous();
    let count = cases.len();
    for (what, request, status) in cases {
        let answers = raw::exchange(&server.url, &request).await;
        assert_eq!((answers.statuses(), answers.closed), (vec![status], true), "{what:?}: {}", answers.text);
    }
    // The same on a connection that has served one: what it has seen of its first request says nothing of the next.
    for (what, request, status) in ambiguous() {
        let mut stream = raw::connect(&server.url).await;
        stream.write_all(SMUGGLED.as_bytes()).await.expect("the server reads");
        let first = raw::read(&mut stream).await;
        assert_eq!((first.statuses(), first.closed), (vec![200], false), "{}", first.text);
        // A server that refuses early may close before all was sent.
        let _ = stream.write_all(&request).await;
        let answers = raw::read(&mut stream).await;
        assert_eq!(
            (answers.statuses(), answers.closed),
            (vec![status], true),
            "{what:?}, as the second: {}",
            answers.text
        );
    }
    println!("{count} requests were refused, each as a connection's first and as its second");
    watch.end(&server).await;
}

#[tokio::test]
async fn what_only_looks_odd_is_answered_once_each() {
    let server = Server::start();
    let watch = Watch::begin(&server).await;
    for (what, request, statuses) in [
        ("two in a row", SMUGGLED.repeat(2), vec![200, 200]),
        ("empty lines before it (RFC 9112, 2.2)", format!("\r\n\r\n{SMUGGLED}"), vec![200]),
        ("the absolute form", "GET http://evil.test/healthz HTTP/1.1\r\nhost: x\r\n\r\n".into(), vec![200]),
        (
            "the same length twice",
            "GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\ncontent-length: 0\r\n\r\n".into(),
            vec![200],
        ),
        (
            "a body that nobody reads, and what comes after it",
            format!(
                "GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{SMUGGLED}{SMUGGLED}",
                SMUGGLED.len()
            ),
            vec![200],
        ),
        (
            "an extension of a chunk",
            format!(
                "{ALLOWED}{ADMIN}\r\ntransfer-encoding: chunked\r\n\r\n2;a=b\r\n{{}}\r\n0\r\nx: y\r\n\r\n{SMUGGLED}"
            ),
            vec![200, 200],
        ),
        ("all servers", "OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n".into(), vec![404]),
        ("a tunnel", "CONNECT 127.0.0.1:22 HTTP/1.1\r\nhost: x\r\n\r\n".into(), vec![404]),
        ("an echo", "TRACE /healthz HTTP/1.1\r\nhost: x\r\n\r\n".into(), vec![405]),
        ("a method of its own", "BREW /healthz HTTP/1.1\r\nhost: x\r\n\r\n".into(), vec![405]),
        (
            "another protocol on the way",
            "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n".into(),
            vec![200],
        ),
        ("a head alone", "HEAD /healthz HTTP/1.1\r\nhost: x\r\n\r\n".into(), vec![200]),
    ] {
        let answers = raw::exchange(&server.url, request.as_bytes()).await;
        assert_eq!(answers.statuses(), statuses, "{what}: {}", answers.text);
    }
    watch.end(&server).await;
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused_for_what_is_too_large() {
    let server = Server::start();
    let watch = Watch::begin(&server).await;
    let head = "GET /healthz HTTP/1.1\r\nhost: x\r\n";
    for (what, request, status) in [
        ("a header of 1 MB", format!("{head}x: {}\r\n\r\n", "y".repeat(1 << 20)), 431),
        ("a header's name of 1 MB", format!("{head}{}: y\r\n\r\n", "x".repeat(1 << 20)), 431),
        ("10,000 headers", format!("{head}{}\r\n", "x: y\r\n".repeat(10_000)), 431),
        ("101 headers", format!("{head}{}\r\n", "x: y\r\n".repeat(100)), 431),
        ("a target of 64 KiB", format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(64 << 10)), 414),
        ("a target of 60 KiB", format!("GET /?{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(60 << 10)), 414),
        ("a target of 1 MB", format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(1 << 20)), 431),
        ("a method of 1 MB", format!("{} / HTTP/1.1\r\nhost: x\r\n\r\n", "A".repeat(1 << 20)), 431),
    ] {
        let answers = raw::exchange(&server.url, request.as_bytes()).await;
        assert_eq!((answers.statuses(), answers.closed), (vec![status], true), "{what}");
    }
    let most = format!("{head}{}x: {}\r\n\r\n", "a: b\r\n".repeat(98), "y".repeat(60 << 10));
    assert_eq!(raw::exchange(&server.url, most.as_bytes()).await.statuses(), [200], "what fits is answered");
    watch.end(&server).await;
}

#[tokio::test]
async fn no_way_to_write_a_path_leads_into_another_tenant() {
    let server = Server::start();
    let watch = Watch::begin(&server).await;
    let (acme, globex) = (server.tenant("acme").await, server.tenant("globex").await);
    for tenant in [&acme, &globex] {
        tenant.deploy("guest-hello").await;
        let put = tenant.api(Method::PUT, "/kv/c/k").body(format!("marker of {}", tenant.name)).send().await;
        assert!(put.expect("an answer").status().is_success());
    }
    let get = async |path: &str, key: &str| {
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n");
        raw::exchange(&server.url, request.as_bytes()).await
    };
    // The table is of working addresses: the owner's own way, and one that is written another way.
    for own in ["/v1/tenants/acme/kv/c/k", "/v1/tenants/%61cme/kv/%63/%6B"] {
        let answers = get(own, &acme.key).await;
        assert!(answers.text.contains("marker of acme"), "{own}: {}", answers.text);
    }
    let mut tried = 0;
    for step in [
        "..",
        ".",
        "..;",
        "..;x=y",
        "%2e%2e",
        "%2E.",
        ".%2e",
        "%252e%252e",
        "..%00",
        "..%5c",
        "..\\",
        "",
        "%2f",
        "..%2f",
        "%c0%ae%c0%ae",
        "\u{ff0e}\u{ff0e}",
    ] {
        for path in [
            format!("/v1/tenants/globex/{step}/acme/kv/c/k"),
            format!("/v1/tenants/globex/kv/{step}/{step}/acme/kv/c/k"),
            format!("/v1/tenants/globex/kv/{step}/{step}/{step}/acme/kv/c/k"),
            format!("/v1/tenants/{step}/acme/kv/c/k"),
            format!("/{step}/v1/tenants/acme/kv/c/k"),
            format!("/v1/{step}/tenants/acme/kv/c/k"),
            format!("/v1/tenants/acme/kv/c/k/{step}"),
            format!("/v1/tenants/acme/{step}/kv/c/k"),
            format!("/docs/{step}/v1/tenants/acme/kv/c/k"),
            format!("/healthz/{step}/v1/tenants/acme/kv/c/k"),
            format!("/t/globex/guest-hello/{step}/{step}/{step}/v1/tenants/acme/kv/c/k"),
            format!("/t/globex/guest-hello/{step}/{step}/acme/guest-hello/"),
            format!("/t/globex/{step}/acme/guest-hello/"),
        ] {
            for path in [
                path.clone(),
                path.replace("acme", "%61cme"),
                path.replace("/acme", "%2facme"),
                path.replace("acme", "acme%00"),
            ] {
                tried += 1;
                let answers = get(&path, &globex.key).await;
                let statuses = answers.statuses();
                assert!(!answers.text.contains("marker of acme"), "{path}: {}", answers.text);
                assert!(
                    matches!(statuses[..], [400 | 401 | 404 | 405]) || path.starts_with("/docs"),
                    "{path}: {}",
                    answers.text
                );
                // Nor does any of them lead past the credential.
                let stranger = get(&path, "none").await.statuses();
                assert!(
                    matches!(stranger[..], [400 | 401 | 404 | 405 | 429]) || path.starts_with("/docs"),
                    "{path}: {stranger:?}"
                );
            }
        }
    }
    println!("{tried} paths were tried");
    watch.end(&server).await;
}

#[tokio::test]
async fn methods_origins_and_encodings_that_are_asked_for_change_nothing() {
    let server = Server::start();
    let watch = Watch::begin(&server).await;
    let acme = server.tenant("acme").await;
    let put = || acme.api(Method::PUT, "/kv/c/k").body("v");
    assert_eq!(put().send().await.expect("an answer").status(), 201);
    for header in ["x-http-method-override", "x-http-method", "x-method-override"] {
        let asked = acme.api(Method::GET, "/kv/c/k?_method=DELETE").header(header, "DELETE");
        assert_eq!(asked.send().await.expect("an answer").text().await.expect("text"), "v", "{header}");
    }
    for origin in ["null", "https://evil.test", &server.url] {
        for method in [Method::GET, Method::OPTIONS] {
            let asked =
                acme.api(method, "/kv/c/k").header("origin", origin).header("access-control-request-method", "PUT");
            let answer = asked.send().await.expect("an answer");
            let given = answer.headers().keys().find(|name| name.as_str().starts_with("access-control"));
            assert_eq!(given, None, "nobody's page may read this");
        }
    }
    for (path, method) in [("/kv/c/k", Method::TRACE), ("/kv/c/k", Method::POST), ("", Method::PUT)] {
        let answer = acme.api(method, path).header("x-secret", "tell-me").send().await.expect("an answer");
        assert_eq!(answer.status(), 405);
        assert!(answer.headers().contains_key("allow"), "the answer names what is allowed");
        assert!(!answer.text().await.expect("text").contains("tell-me"));
    }
    // A body is never decoded: a few bytes cannot become many.
    for encoding in ["gzip", "br", "zstd", "deflate", "gzip, gzip", "identity, gzip", "x"] {
        let bomb = put().header("content-encoding", encoding).send().await.expect("an answer");
        assert_eq!(bomb.status(), 415, "{encoding}");
    }
    assert_eq!(put().header("content-encoding", "identity").send().await.expect("an answer").status(), 204);
    let part = "--x\r\ncontent-disposition: form-data; name=\"f\"; filename=\"../../etc/passwd\"\r\n\r\nv\r\n";
    for body in [part.repeat(10_000), part.to_owned(), String::new(), "--x--".to_owned()] {
        let sent = server.admin(Method::POST, "/v1/tenants").header("content-type", "multipart/form-data; boundary=x");
        let answer = sent.body(body).send().await.expect("an answer");
        assert!(matches!(answer.status().as_u16(), 400 | 413 | 415), "{}", answer.status());
    }
    assert_eq!(server.admin(Method::GET, "/v1/tenants").send().await.expect("an answer").status(), 200);
    let listed = server.admin(Method::GET, "/v1/tenants").send().await.expect("an answer");
    let listed: serde_json::Value = listed.json().await.expect("JSON");
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(2), "{}", json!(listed));
    watch.end(&server).await;
}
