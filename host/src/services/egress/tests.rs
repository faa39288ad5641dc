use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::kernel::tenant::Plan;

fn scope() -> TenantScope {
    TenantScope::mint(TenantId::new(), "acme".into(), Arc::new(Plan::default()))
}

fn resolving(config: Config, answers: &[(&str, &[&str])]) -> Egress {
    let answers: HashMap<String, Vec<IpAddr>> = answers
        .iter()
        .map(|(name, ips)| ((*name).to_owned(), ips.iter().map(|ip| ip.parse().expect("an address")).collect()))
        .collect();
    let resolve: Resolve = Arc::new(move |host, port| {
        let answer = answers.get(host.trim_end_matches('.')).cloned();
        Box::pin(async move {
            let answer = answer.ok_or(std::io::ErrorKind::NotFound)?;
            Ok(answer.into_iter().map(|ip| SocketAddr::new(ip, port)).collect())
        })
    });
    Egress::with_resolver(&config, resolve).expect("a valid config")
}

fn get(url: &str) -> Request {
    Request {
        method: "GET".into(),
        url: url.into(),
        headers: vec![],
        body: Bytes::new(),
        timeout: Duration::from_secs(5),
    }
}

async fn code(egress: &Egress, allowed: &[&str], request: Request) -> &'static str {
    let allowed: Vec<String> = allowed.iter().map(|text| (*text).to_owned()).collect();
    egress.send(&scope(), &allowed, request).await.map_or_else(|error| error.code(), |_| "ok")
}

/// A listener that counts whoever reaches it, on every loopback address.
async fn canary() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("0.0.0.0:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let hits = Arc::new(AtomicUsize::new(0));
    let counted = hits.clone();
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    (port, hits)
}

/// Ways to write an address of this machine or its network, most of which some parser has let through.
const LITERALS: &str = include_str!("testdata/inward.txt");

#[tokio::test]
async fn no_way_to_write_a_private_address_reaches_anything() {
    let (port, hits) = canary().await;
    let egress = resolving(Config { http: true, ..Config::default() }, &[]);
    let mut variants = 0;
    for literal in LITERALS.lines() {
        for url in [
            format!("http://{literal}:{port}/"),
            format!("https://{literal}:{port}/"),
            format!("HTTP://{literal}:{port}?q#f"),
            format!("http:{literal}:{port}/"),
            format!("http:///{literal}:{port}/"),
        ] {
            variants += 1;
            // A stranger to the manifest, and then, to see the address refused for itself, a host that it grants.
            assert_eq!(code(&egress, &["api.example.com"], get(&url)).await, "egress_denied", "{url}");
            let granted = Target::parse(&url).expect("well formed").authority;
            assert_eq!(code(&egress, &[&granted], get(&url)).await, "egress_denied", "{url} with its own grant");
        }
    }
    assert!(variants >= 300, "{variants}");
    assert_eq!(hits.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn texts_that_two_parsers_read_differently_are_refused() {
    let (port, hits) = canary().await;
    let egress = resolving(Config { http: true, ..Config::default() }, &[("api.example.com", &["127.0.0.1"])]);
    let host = format!("127.0.0.1:{port}");
    for url in [
        format!("http:\\\\{host}\\"),
        format!("ht\ttp://{host}/"),
        format!("http\n://{host}/"),
        format!("http://{host}\r\nHost: x/"),
        format!(" http://{host}/"),
        format!("http://{host}/ "),
        format!("http://api.example.com\\@{host}/"),
        format!("http://api.example.com\t@{host}/"),
        format!("http://user:password@{host}/"),
        format!("http://api.example.com@{host}/"),
        format!("http://api.example.com:80@{host}/"),
        "http://evil.test#@api.example.com/".into(),
        "http://evil.test?@api.example.com/".into(),
        "http://api.example.com%00.evil.test/".into(),
        "http://api.example.com%2f.evil.test/".into(),
        "http://[fe80::1%25eth0]/".into(),
        "http://[::1".into(),
        "http://".into(),
        "//api.example.com/".into(),
        "/path".into(),
        "api.example.com".into(),
        String::new(),
        format!("http://api.example.com/{}", "a".repeat(URL_BYTES)),
        format!("http://{}.example.com/", "a".repeat(64)),
        format!("http://{}com/", "a.".repeat(130)),
        "http://api.example.com:0/".into(),
        "http://api.example.com:99999/".into(),
    ] {
        let code = code(&egress, &["api.example.com"], get(&url)).await;
        assert!(["url_invalid", "egress_denied"].contains(&code), "{url:?}: {code}");
    }
    for url in [
        "gopher://127.0.0.1/",
        "file:///etc/passwd",
        "ftp://api.example.com/",
        "ws://api.example.com/",
        "data:,x",
        "javascript:1",
    ] {
        assert_eq!(code(&egress, &["api.example.com"], get(url)).await, "egress_denied", "{url}");
    }
    assert_eq!(hits.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_grant_is_one_host_and_nothing_that_looks_like_it() {
    // Whatever passes the grants is refused for its address, so that the two refusals tell them apart.
    let egress = resolving(Config { http: true, ..Config::default() }, &[]);
    let passes = async |grant: &str, url: &str| code(&egress, &[grant], get(url)).await == "upstream_error";
    for (grant, url, expected) in [
        ("api.example.net", "https://api.example.net/", true),
        ("api.example.net", "https://API.EXAMPLE.NET/", true),
        ("api.example.net", "https://api.example.net./", true),
        ("API.Example.NET.", "https://api.example.net/", true),
        ("api.example.net", "http://api.example.net/", true),
        ("api.example.net", "https://api.example.net:443/", true),
        ("api.example.net", "https://api.example.net:80/", false),
        ("api.example.net", "https://api.example.net:8443/", false),
        ("api.example.net", "https://api.example.net:22/", false),
        ("api.example.net:8443", "https://api.example.net:8443/", true),
        ("api.example.net:8443", "https://api.example.net/", false),
        ("api.example.net:443", "http://api.example.net/", false),
        // Granted, and another protocol's all the same.
        ("api.example.net:22", "https://api.example.net:22/", false),
        ("api.example.net:25", "http://api.example.net:25/", false),
        ("api.example.net:5432", "https://api.example.net:5432/", false),
        ("api.example.net:6379", "http://api.example.net:6379/", false),
        ("api.example.net:6667", "http://api.example.net:6667/", false),
        ("api.example.net:8080", "http://api.example.net:8080/", true),
        ("api.example.net", "https://api.example.net.evil.net/", false),
        ("api.example.net", "https://evilapi.example.net/", false),
        ("api.example.net", "https://x.api.example.net/", false),
        ("api.example.net", "https://example.net/", false),
        ("example.net", "https://api.example.net/", false),
        ("api.example.net", "https://аpi.example.net/", false),
        ("bücher.net", "https://xn--bcher-kva.net/", true),
        ("api.example.net", "https://93.184.215.14/", false),
        ("*.example.net", "https://api.example.net/", false),
        ("https://api.example.net", "https://api.example.net/", false),
        ("", "https://api.example.net/", false),
    ] {
        assert_eq!(passes(grant, url).await, expected, "{grant} {url}");
    }
    for bad in [
        "",
        "*",
        "*.com",
        "https://a.com",
        "a.com/path",
        "user@a.com",
        "a.com:",
        "a.com:0",
        "a.com:99999",
        "a b",
        "a.com?q",
        "a.com#f",
    ] {
        assert_eq!(Egress::check_grant(bad).expect_err(bad).code(), "egress_grant", "{bad}");
    }
    for good in ["a.com", "a.com:8443", "93.184.215.14", "[2606:4700::1]", "[2606:4700::1]:8443"] {
        assert!(Egress::check_grant(good).is_ok(), "{good}");
    }
}

#[tokio::test]
async fn a_name_is_refused_for_any_address_that_is_not_public() {
    let (port, hits) = canary().await;
    let many: Vec<String> = (0..65).map(|n| format!("8.8.4.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let egress = resolving(
        Config { http: true, deny: vec!["9.9.9.0/24".into()], ..Config::default() },
        &[
            ("private.example.net", &["127.0.0.1"]),
            ("mixed.example.net", &["8.8.8.8", "127.0.0.1"]),
            ("mapped.example.net", &["::ffff:127.0.0.1"]),
            ("six.example.net", &["2606:4700::1", "fd00:ec2::254"]),
            ("ours.example.net", &["9.9.9.9"]),
            ("many.example.net", &many),
            ("metadata.google.internal", &["169.254.169.254"]),
            ("localhost", &["127.0.0.1"]),
            ("x.localhost", &["127.0.0.1"]),
            ("intranet", &["8.8.8.8"]),
        ],
    );
    for host in [
        "private.example.net",
        "mixed.example.net",
        "mapped.example.net",
        "six.example.net",
        "ours.example.net",
        "many.example.net",
        "metadata.google.internal",
        "localhost",
        "x.localhost",
        "intranet",
    ] {
        let grant = format!("{host}:{port}");
        assert_eq!(code(&egress, &[&grant], get(&format!("http://{grant}/"))).await, "egress_denied", "{host}");
    }
    assert_eq!(code(&egress, &["none.example.net"], get("http://none.example.net/")).await, "upstream_error");
    assert_eq!(hits.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn http_needs_the_operators_word() {
    let egress = resolving(Config::default(), &[]);
    assert_eq!(code(&egress, &["api.example.net"], get("http://api.example.net/")).await, "egress_denied");
    assert_eq!(code(&egress, &["api.example.net"], get("https://api.example.net/")).await, "upstream_error");
}

/// A server that answers each connection with these bytes, and tells what it was sent.
async fn server(answer: impl Into<Vec<u8>>, pause: Duration) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let (seen, sent) = tokio::sync::mpsc::unbounded_channel();
    let answer = answer.into();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (answer, seen) = (answer.clone(), seen.clone());
            tokio::spawn(async move {
                let mut request = vec![0; 65_536];
                let n = stream.read(&mut request).await.unwrap_or(0);
                let _ = seen.send(String::from_utf8_lossy(&request[..n]).into_owned());
                for chunk in answer.chunks(if pause.is_zero() { answer.len().max(1) } else { 1 }) {
                    if stream.write_all(chunk).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(pause).await;
                }
            });
        }
    });
    (port, sent)
}

fn local(port: u16) -> (Egress, String) {
    let host = format!("127.0.0.1:{port}");
    (
        resolving(
            Config { local: vec![host.clone(), format!("localhost:{port}")], ..Config::default() },
            &[("localhost", &["127.0.0.1"])],
        ),
        host,
    )
}

#[tokio::test]
async fn a_request_arrives_as_the_guest_wrote_it_and_the_answer_comes_back() {
    let (port, mut sent) =
        server("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nConnection: close\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 2\r\n\r\nok", Duration::ZERO).await;
    let (egress, host) = local(port);
    let request = Request {
        method: "POST".into(),
        url: format!("http://{host}/a%20b/../c?d=e#f"),
        headers: vec![("x-b".into(), Bytes::from_static(b"\xff")), ("idempotency-key".into(), "k".into())],
        body: "hello".into(),
        timeout: Duration::from_secs(5),
    };
    let response = egress.send(&scope(), std::slice::from_ref(&host), request).await.expect("answered");
    assert_eq!((response.status, &response.body[..]), (302, b"ok".as_slice()));
    let names: Vec<&str> = response.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["location", "x-a", "x-a", "content-length"]);
    let request = sent.recv().await.expect("a request");
    assert!(request.starts_with("POST /c?d=e HTTP/1.1\r\n"), "{request}");
    for line in
        [format!("host: {host}"), "content-length: 5".into(), "idempotency-key: k".into(), "user-agent: chalet".into()]
    {
        assert!(request.contains(&format!("{line}\r\n")), "{request}");
    }
    assert!(request.ends_with("\r\n\r\nhello"), "{request}");
    assert!(sent.try_recv().is_err(), "the redirect was followed");
}

#[tokio::test]
async fn a_local_address_is_only_what_the_operator_listed() {
    let (port, _sent) = server("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Duration::ZERO).await;
    let (egress, host) = local(port);
    assert_eq!(code(&egress, &[&host], get(&format!("http://{host}/"))).await, "ok");
    assert_eq!(code(&egress, &[&format!("localhost:{port}")], get(&format!("http://localhost:{port}/"))).await, "ok");
    assert_eq!(code(&egress, &[], get(&format!("http://{host}/"))).await, "egress_denied");
    let other = format!("127.0.0.2:{port}");
    assert_eq!(code(&egress, &[&other], get(&format!("https://{other}/"))).await, "egress_denied");
    // A listed name that suddenly means another machine.
    let listed = Config { local: vec![format!("dev.example.net:{port}")], ..Config::default() };
    let egress = resolving(listed, &[("dev.example.net", &["10.0.0.1"])]);
    let grant = format!("dev.example.net:{port}");
    assert_eq!(code(&egress, &[&grant], get(&format!("http://{grant}/"))).await, "egress_denied");
    assert!(Egress::new(&Config { local: vec!["localhost".into()], ..Config::default() }).is_err());
    assert!(Egress::new(&Config { deny: vec!["localhost".into()], ..Config::default() }).is_err());
}

#[tokio::test]
async fn what_a_guest_may_not_write_never_reaches_the_wire() {
    let (port, hits) = canary().await;
    let (egress, host) = local(port);
    for (name, value) in [
        ("host", "evil.test"),
        ("Host", "evil.test"),
        ("content-length", "0"),
        ("transfer-encoding", "chunked"),
        ("connection", "x-a"),
        ("keep-alive", "1"),
        ("te", "trailers"),
        ("trailer", "x"),
        ("upgrade", "h2c"),
        ("proxy-authorization", "x"),
        ("proxy-x", "x"),
        ("expect", "100-continue"),
        ("via", "x"),
        ("forwarded", "for=x"),
        ("x\r\nhost", "evil"),
        ("x y", "1"),
        ("", "1"),
        (":authority", "evil"),
        ("x", "1\r\nhost: evil"),
        ("x", "1\nhost: evil"),
        ("x", "\0"),
        ("x", "a\rb"),
    ] {
        let request = Request {
            headers: vec![(name.into(), Bytes::copy_from_slice(value.as_bytes()))],
            ..get(&format!("http://{host}/"))
        };
        assert_eq!(code(&egress, &[&host], request).await, "request_invalid", "{name:?}: {value:?}");
    }
    for method in ["CONNECT", "TRACE", "get", "GET / HTTP/1.1\r\n", "", "PRI"] {
        let request = Request { method: method.into(), ..get(&format!("http://{host}/")) };
        assert_eq!(code(&egress, &[&host], request).await, "request_invalid", "{method:?}");
    }
    let large = Request { body: vec![0; REQUEST_BYTES + 1].into(), ..get(&format!("http://{host}/")) };
    assert_eq!(code(&egress, &[&host], large).await, "request_invalid");
    let many = Request { headers: vec![("x".into(), "1".into()); HEADERS + 1], ..get(&format!("http://{host}/")) };
    assert_eq!(code(&egress, &[&host], many).await, "request_invalid");
    assert_eq!(hits.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn an_answer_without_end_is_cut() {
    let body = |length: usize, declared: &str| {
        let mut answer = format!("HTTP/1.1 200 OK\r\n{declared}\r\n").into_bytes();
        answer.resize(answer.len() + length, b'a');
        answer
    };
    let chunked = |length: usize| {
        let mut answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n").into_bytes();
        answer.resize(answer.len() + length, b'a');
        answer.extend_from_slice(b"\r\n0\r\n\r\n");
        answer
    };
    for (answer, expected) in [
        (body(RESPONSE_BYTES, "Connection: close\r\n"), "ok"),
        (body(RESPONSE_BYTES + 1, "Connection: close\r\n"), "response_too_large"),
        (chunked(RESPONSE_BYTES), "ok"),
        (chunked(RESPONSE_BYTES + 1), "response_too_large"),
        (format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(HEADER_BYTES)).into_bytes(), "response_too_large"),
        (format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: 1\r\n".repeat(HEADERS + 1)).into_bytes(), "response_too_large"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort".to_vec(), "upstream_error"),
        (b"SSH-2.0-OpenSSH\r\n".to_vec(), "upstream_error"),
        (b"".to_vec(), "upstream_error"),
    ] {
        let (port, _sent) = server(answer.clone(), Duration::ZERO).await;
        let (egress, host) = local(port);
        let start = String::from_utf8_lossy(&answer[..answer.len().min(60)]).into_owned();
        assert_eq!(code(&egress, &[&host], get(&format!("http://{host}/"))).await, expected, "{start}");
    }
}

#[tokio::test]
async fn a_host_that_drips_runs_into_the_guests_time() {
    let (port, _sent) =
        server(format!("HTTP/1.1 200 OK\r\n\r\n{}", "a".repeat(10_000)), Duration::from_millis(20)).await;
    let (egress, host) = local(port);
    let request = Request { timeout: Duration::from_millis(200), ..get(&format!("http://{host}/")) };
    assert_eq!(code(&egress, &[&host], request).await, "upstream_timeout");
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound").port();
    let (egress, host) = local(closed);
    assert_eq!(code(&egress, &[&host], get(&format!("http://{host}/"))).await, "upstream_error");
}

#[tokio::test]
async fn names_that_never_resolve_hold_up_their_own_tenant_only() {
    let resolve: Resolve = Arc::new(|host, _| {
        Box::pin(async move {
            if host.starts_with("slow") {
                std::future::pending().await
            } else {
                Err(std::io::ErrorKind::NotFound.into())
            }
        })
    });
    let egress = Egress::with_resolver(&Config::default(), resolve).expect("valid");
    let (noisy, quiet) = (scope(), scope());
    let allowed = ["slow.example.net".to_owned(), "fast.example.net".to_owned()];
    let request = |host: &str| Request { timeout: Duration::from_millis(50), ..get(&format!("https://{host}/")) };
    for _ in 0..TENANT_LOOKUPS {
        let error = egress.send(&noisy, &allowed, request("slow.example.net")).await.expect_err("slow");
        assert_eq!(error.code(), "upstream_timeout");
    }
    let error = egress.send(&noisy, &allowed, request("fast.example.net")).await.expect_err("budget");
    assert!(error.message().contains("looked up already"), "{error}");
    let error = egress.send(&quiet, &allowed, request("fast.example.net")).await.expect_err("no such name");
    assert!(error.message().contains("no address"), "{error}");
}

async fn tls_server() -> u16 {
    use rustls::pki_types::PrivateKeyDer;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/services/egress/testdata");
    let chain = CertificateDer::pem_file_iter(folder.join("leaf.pem"))
        .expect("a file")
        .collect::<Result<Vec<_>, _>>()
        .expect("PEM");
    let key = PrivateKeyDer::from_pem_file(folder.join("leaf-key.pem")).expect("PEM");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a certificate");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let serve = async move |acceptor: tokio_rustls::TlsAcceptor, stream: TcpStream| -> std::io::Result<()> {
        let mut stream = acceptor.accept(stream).await?;
        let mut request = [0; 4_096];
        let _ = stream.read(&mut request).await?;
        let name = stream.get_ref().1.server_name().unwrap_or_default().to_owned();
        stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()).as_bytes()).await?;
        stream.shutdown().await
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = serve(acceptor.clone(), stream).await;
        }
    });
    port
}

#[tokio::test]
async fn a_host_must_prove_its_name() {
    let port = tls_server().await;
    let grants = [format!("localhost:{port}"), format!("127.0.0.1:{port}"), format!("other.example.net:{port}")];
    let ca = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/services/egress/testdata/ca.pem");
    let config = |ca_file| Config { local: grants.to_vec(), ca_file, ..Config::default() };
    let names: &[(&str, &[&str])] = &[("localhost", &["127.0.0.1"]), ("other.example.net", &["127.0.0.1"])];
    let trusting = resolving(config(Some(ca)), names);
    let request = get(&format!("https://localhost:{port}/"));
    let response = trusting.send(&scope(), &grants, request.clone()).await.expect("trusted");
    assert_eq!(&response.body[..], b"localhost");
    for url in [format!("https://other.example.net:{port}/"), format!("https://127.0.0.1:{port}/")] {
        let error = trusting.send(&scope(), &grants, get(&url)).await.expect_err("another name");
        assert!(error.code() == "upstream_error" && error.message().contains("certificate"), "{error:?}");
    }
    let error = resolving(config(None), names).send(&scope(), &grants, request).await.expect_err("an unknown root");
    assert!(error.code() == "upstream_error" && error.message().contains("certificate"), "{error:?}");
    assert!(Egress::new(&config(Some("/nonexistent".into()))).is_err());
}
