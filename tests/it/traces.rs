//! Traces for the operator: whole, truthful, bounded, without secrets, and of no weight for whoever is served.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use reqwest::{Method, StatusCode};
use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;

use crate::http::{granted, upstream};
use crate::kit::collector::{Collector, Span};
use crate::kit::engine::Engine;
use crate::kit::server::{Server, Setup, Tenant, binary, expect};

on_both_engines! {
    a_request_is_a_tree_of_spans,
    an_invocation_that_runs_again_shows_each_run,
}

/// What a caller names; the specification's own example.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

fn traced(setup: Setup, collector: &Collector, ratio: &str) -> Setup {
    setup.with("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url).with("OTEL_TRACES_SAMPLER_ARG", ratio)
}

async fn ask(tenant: &Tenant<'_>, ops: serde_json::Value) -> reqwest::Response {
    tenant.call(Method::POST, "guest-kv", "/run").json(&json!({ "ops": ops })).send().await.expect("an answer")
}

/// The one span of this name below another.
fn below<'s>(trace: &'s [Span], parent: &Span, name: &str) -> &'s Span {
    let found: Vec<_> = trace.iter().filter(|span| span.parent == parent.id && span.name == name).collect();
    let [one] = found[..] else { panic!("{} spans {name} below {parent:?} in {trace:#?}", found.len()) };
    assert!(parent.time.contains(one.time.start()) && parent.time.contains(one.time.end()), "{one:?} in {parent:?}");
    one
}

/// All that is said of a span, but for what each run makes anew.
fn said<'s>(span: &'s Span, but: &[&str]) -> BTreeMap<&'s str, &'s str> {
    for name in but {
        span.said(name);
    }
    let said = span.attributes.iter().map(|(name, value)| (&name[..], &value[..]));
    said.filter(|(name, _)| !but.contains(name)).collect()
}

async fn a_request_is_a_tree_of_spans(engine: Engine) {
    let collector = Collector::start().await;
    let setup = traced(engine.setup().await, &collector, "1").with("OTEL_SERVICE_NAME", "plugins");
    let server = Server::start_with(setup.with("OTEL_EXPORTER_OTLP_HEADERS", "api-key=for%20the%20collector"));
    let acme = server.tenant("acme").await;
    acme.deploy("guest-kv").await;

    let answer = ask(&acme, json!([{ "op": "put", "key": "k", "value": 1 }])).await;
    let (request, trace) = collector.trace_of(&answer).await;
    assert_eq!((&request.name[..], &request.parent[..]), ("POST /t/{tenant}/{plugin}/run", ""));
    assert_eq!(
        (request.kind, request.failed, &request.resource["service.name"][..]),
        (SpanKind::Server, false, "plugins")
    );
    let expected = [
        ("http.request.method", "POST"),
        ("http.route", "/t/{tenant}/{plugin}/run"),
        ("http.response.status_code", "200"),
        ("chalet.plane", "plugin"),
        ("chalet.tenant", "acme"),
        ("chalet.plugin", "guest-kv"),
    ];
    assert_eq!(said(&request, &["chalet.request.id"]), BTreeMap::from(expected));
    let invocation = below(&trace, &request, "invocation");
    let expected = [
        ("chalet.tenant", "acme"),
        ("chalet.plugin", "guest-kv"),
        ("chalet.version", "1.0.0"),
        ("chalet.trigger", "http"),
        ("chalet.invocation.id", answer.headers()["chalet-invocation"].to_str().expect("an id")),
        ("chalet.outcome", "ok"),
        ("chalet.code", "200"),
        ("chalet.reruns", "0"),
        ("chalet.replayed", "false"),
    ];
    assert_eq!(said(invocation, &["chalet.fuel"]), BTreeMap::from(expected));
    let run = below(&trace, invocation, "run");
    assert_eq!(run.said("chalet.fuel"), invocation.said("chalet.fuel"));
    assert_eq!(said(run, &["chalet.fuel"]), BTreeMap::from([("chalet.host_calls", "1")]));
    let commit = below(&trace, invocation, "commit");
    // The entry and the record.
    assert_eq!(said(commit, &["chalet.commit.waited_us", "chalet.commit.batch"])["chalet.commit.rows"], "2");
    assert!(run.time.end() <= commit.time.start(), "a guest is gone before its effects are committed");
    assert_eq!(trace.len(), 4, "{trace:#?}");

    let failing = ask(&acme, json!([{ "op": "trap" }])).await;
    let (request, trace) = collector.trace_of(&failing).await;
    let invocation = below(&trace, &request, "invocation");
    let run = below(&trace, invocation, "run");
    assert_eq!([&request, invocation, run].map(|span| span.failed), [true; 3]);
    assert_eq!(
        [&request, invocation, run].map(|span| span.said("error.type")),
        ["502", "plugin_failed", "plugin_failed"]
    );
    assert_eq!(invocation.said("chalet.outcome"), "failed");
    let refused = ask(&acme, json!([{ "op": "fail" }])).await;
    let (request, trace) = collector.trace_of(&refused).await;
    assert_eq!((request.said("http.response.status_code"), request.failed), ("422", false), "the caller's mistake");
    assert!(trace.iter().all(|span| !span.failed), "{trace:#?}");

    let upload = |span: &Span| span.name == "PUT /v1/tenants/{tenant}/plugins/{plugin}";
    let upload = collector.span("the upload", upload).await;
    assert_eq!((upload.said("chalet.tenant"), upload.said("chalet.plane")), ("acme", "control"));
    let trace: Vec<_> = collector.spans().into_iter().filter(|span| span.trace == upload.trace).collect();
    below(&trace, &upload, "compile");
    below(&trace, &upload, "commit");
    assert!(collector.headers().iter().all(|headers| headers["api-key"] == "for the collector"));
    assert!(server.metric("chalet_spans_exported_total").await >= 10.0);
    assert_eq!(server.metric("chalet_spans_dropped_total").await, 0.0);
}

async fn an_invocation_that_runs_again_shows_each_run(engine: Engine) {
    let collector = Collector::start().await;
    let server = Server::start_with(traced(engine.setup().await, &collector, "1"));
    let acme = server.tenant("acme").await;
    acme.deploy("guest-kv").await;
    let adds = (0..16).map(|_| ask(&acme, json!([{ "op": "add", "key": "n", "delta": 1 }])));
    let answers = futures_util::future::join_all(adds).await;
    let mut reruns = 0;
    for answer in answers {
        assert_eq!(answer.status(), StatusCode::OK);
        let (request, trace) = collector.trace_of(&answer).await;
        let invocation = below(&trace, &request, "invocation");
        let parts: Vec<_> = trace.iter().filter(|span| span.parent == invocation.id).collect();
        let again: usize = invocation.said("chalet.reruns").parse().expect("a number");
        assert_eq!(parts.iter().filter(|span| span.name == "run").count(), again + 1, "{trace:#?}");
        let conflicts =
            parts.iter().filter(|span| span.attributes.get("chalet.code").is_some_and(|code| code == "conflict"));
        assert_eq!(conflicts.count(), again, "each run is there for a conflict: {trace:#?}");
        assert!(parts.iter().all(|span| !span.failed), "to run again is no failure: {trace:#?}");
        reruns += again;
    }
    assert!(reruns > 0, "the invocations never met: the test proves nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_callers_trace_goes_on_and_a_malformed_one_does_not() {
    let collector = Collector::start().await;
    let server = Server::start_with(traced(Setup::sqlite(), &collector, "1"));
    let acme = server.tenant("acme").await;
    acme.deploy("guest-hello").await;
    let call = async |traceparent: &str| {
        let request = acme.call(Method::GET, "guest-hello", "/").header("traceparent", traceparent);
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        collector.trace_of(&answer).await.0
    };
    // Whether the caller sampled is not asked.
    for flags in ["01", "00"] {
        let request = call(&format!("00-{TRACE}-{SPAN}-{flags}")).await;
        assert_eq!((&request.trace[..], &request.parent[..]), (TRACE, SPAN));
    }
    for malformed in [format!("00-{TRACE}-{SPAN}"), format!("00-{}-{SPAN}-01", "0".repeat(32)), "x".repeat(10_000)] {
        let request = call(&malformed).await;
        assert_eq!((request.trace == TRACE, &request.parent[..]), (false, ""), "{malformed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sampled_at_ratio_0_and_by_chosen_ids_no_more_than_the_ratio() {
    let collector = Collector::start().await;
    for (ratio, most) in [("0", 0), ("0.000001", 256)] {
        let server = Server::start_with(traced(Setup::sqlite(), &collector, ratio));
        server.unlimited().await;
        let acme = server.tenant("acme").await;
        acme.deploy("guest-hello").await;
        let lucky = format!("00-{}{}-{SPAN}-01", "f".repeat(16), "0".repeat(16));
        let calls = (0..600).map(|_| acme.call(Method::GET, "guest-hello", "/").header("traceparent", &lucky).send());
        // No more at a time than the tenant has places.
        let mut answers = futures_util::stream::iter(calls).buffer_unordered(128);
        while let Some(answer) = answers.next().await {
            assert_eq!(answer.expect("an answer").status(), StatusCode::OK);
        }
        let before = collector.spans().len();
        assert!(server.stop().success());
        let spans = collector.spans();
        let requests = spans.iter().filter(|span| span.kind == SpanKind::Server).count();
        assert_eq!((before <= spans.len(), requests), (true, most), "of 600 at {ratio}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_hangs_or_is_not_there_harms_nothing() {
    let silent = Collector::that(std::future::pending).await;
    let absent = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        format!("http://{}", listener.local_addr().expect("an address"))
    };
    let without = answered_in(Setup::sqlite()).await;
    for (url, why) in [(silent.url, "hangs"), (absent, "is not there")] {
        let with = answered_in(Setup::sqlite().with("OTEL_EXPORTER_OTLP_ENDPOINT", &url)).await;
        assert!(with < without * 3 + Duration::from_secs(1), "{with:?} when the collector {why}, else {without:?}");
    }
}

/// How long requests take while the collector is tried; the server stops in its time, and its log tells of it once.
async fn answered_in(setup: Setup) -> Duration {
    let server = Server::start_with(setup.logged());
    server.unlimited().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-hello").await;
    let started = Instant::now();
    let mut took = Duration::ZERO;
    // The first batch is on its way after a second.
    while started.elapsed() < Duration::from_secs(3) {
        let begun = Instant::now();
        let calls = (0..50).map(|_| acme.call(Method::GET, "guest-hello", "/").send());
        for answer in futures_util::future::join_all(calls).await {
            assert_eq!(answer.expect("an answer").status(), StatusCode::OK);
        }
        took = took.max(begun.elapsed());
    }
    let stopping = Instant::now();
    assert!(server.stop().success());
    assert!(stopping.elapsed() < Duration::from_secs(8), "it stopped after {:?}", stopping.elapsed());
    let log = server.log();
    assert!(log.lines().filter(|line| line.contains("collector")).count() <= 2, "{log}");
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_in_any_byte_that_is_exported() {
    let collector = Collector::start().await;
    let (port, seen) = upstream().await;
    let local = format!("127.0.0.1:{port}");
    let server = Server::start_with(traced(Setup::sqlite(), &collector, "1").with("CHALET_EGRESS_LOCAL", &local));
    let acme = server.tenant("acme").await;
    acme.deploy("guest-kv").await;
    acme.deploy_bytes("guest-http", granted(&local)).await;
    acme.secret("SECRETNAMEMARK", "secretvaluemark").await;
    let ops = json!({ "ops": [
        { "op": "put", "key": "kvkeymark", "value": "kvvaluemark" },
        { "op": "fail", "reason": "reasonmark" },
    ] });
    let request = acme.call(Method::POST, "guest-kv", "/run?q=querymark").json(&ops);
    expect(request.header("x-header", "headermark").header("cookie", "c=cookiemark"), StatusCode::UNPROCESSABLE_ENTITY)
        .await;
    let put = acme.api(Method::PUT, "/kv/c/pathkeymark").json(&json!("restvaluemark"));
    assert!(put.header("idempotency-key", "idempotencymark").send().await.expect("an answer").status().is_success());
    let method = Method::from_bytes(b"METHODMARK").expect("a token");
    acme.call(method, "guest-kv", "/run").send().await.expect("an answer");
    for path in ["/t/acme/guest-kv/nowheremark", "/t/nobodymark/x/", "/v1/nothingmark", "/hooks/acme/sourcemark"] {
        let answer = server.anonymous(Method::POST, path).bearer_auth("chalet_tokenmark").send().await;
        assert!(answer.expect("an answer").status().is_client_error(), "{path}");
    }
    let calls = json!({ "calls": [
        { "method": "POST", "url": format!("http://{local}/outpathmark?q=outquerymark"), "body": "outbodymark",
            "headers": { "authorization": "outheadermark" } },
        { "url": "https://hostmark.test/" },
        { "method": "OUTMETHODMARK", "url": format!("http://{local}/") },
    ] });
    expect(acme.call(Method::POST, "guest-http", "/send").json(&calls), StatusCode::OK).await;
    assert!(seen.lock().expect("no panic")[0].contains("outquerymark"), "it was sent");

    assert!(server.stop().success());
    let outgoing: Vec<_> = collector.spans().into_iter().filter(|span| span.kind == SpanKind::Client).collect();
    let shown = outgoing
        .iter()
        .map(|span| (&span.name[..], span.failed, span.attributes.get("server.address").map(|host| &host[..])));
    let expected = [("POST", false, Some("127.0.0.1")), ("GET", true, None), ("HTTP", true, Some("127.0.0.1"))];
    assert_eq!(shown.collect::<Vec<_>>(), expected);
    let bytes = collector.bytes();
    let text = String::from_utf8_lossy(&bytes).to_lowercase();
    assert!(text.contains("acme") && text.contains("/run"), "what is told is told in plain text");
    let (_, secret_part) = acme.key.rsplit_once('_').expect("a key has parts");
    for secret in ["mark", &acme.key.to_lowercase(), secret_part, crate::kit::server::ADMIN] {
        let found = text.find(secret).map(|at| &text[at.saturating_sub(60)..at]);
        assert_eq!(found, None, "{secret} is exported");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_is_of_the_tenant_who_was_asked() {
    let collector = Collector::start().await;
    let server = Server::start_with(traced(Setup::sqlite(), &collector, "1"));
    server.unlimited().await;
    let tenants = [server.tenant("acme").await, server.tenant("globex").await];
    for tenant in &tenants {
        tenant.deploy("guest-kv").await;
    }
    // Some end within their first slice, others go on in the guests' runtime.
    let calls = (0..60).map(|n| {
        ask(
            &tenants[n % 2],
            json!([{ "op": "spin", "rounds": (n % 5) * 300_000 }, { "op": "put", "key": n.to_string(), "value": n }]),
        )
    });
    let answers = futures_util::future::join_all(calls).await;
    let mut traces = BTreeSet::new();
    for (n, answer) in answers.into_iter().enumerate() {
        let invocation = answer.headers()["chalet-invocation"].to_str().expect("an id").to_owned();
        let (request, trace) = collector.trace_of(&answer).await;
        let own = below(&trace, &request, "invocation");
        assert_eq!(own.said("chalet.invocation.id"), invocation);
        below(&trace, own, "run");
        below(&trace, own, "commit");
        assert_eq!(trace.len(), 4, "{trace:#?}");
        for told in trace.iter().filter_map(|span| span.attributes.get("chalet.tenant")) {
            assert_eq!(*told, tenants[n % 2].name);
        }
        assert!(traces.insert(request.trace), "two requests share a trace");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugins_that_call_each_other_make_one_trace_and_others_are_not_told() {
    let collector = Collector::start().await;
    let (port, seen) = upstream().await;
    let outside = format!("127.0.0.1:{port}");
    let address = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let data = Arc::new(TempDir::new().expect("a folder"));
    let settings = format!("[egress]\nlocal = ['{address}', '{outside}']\ntraced = ['{address}']");
    std::fs::write(data.path().join("chalet.toml"), settings).expect("the folder can be written");
    let server = Server::start_on(traced(Setup::sqlite(), &collector, "1").at(address), data);
    let acme = server.tenant("acme").await;
    acme.deploy("guest-hello").await;
    acme.deploy_bytes("guest-http", granted(&address.to_string())).await;
    acme.deploy_bytes("outside", granted_as("outside", &outside)).await;
    let call = |url: String, more: (&str, &str)| {
        let headers = BTreeMap::from([("authorization", format!("Bearer {}", acme.key)), (more.0, more.1.to_owned())]);
        // So much to read that the guest has used up a slice, and goes on in another task, before it calls.
        json!({ "ignored": "x".repeat(256 << 10), "calls": [{ "url": url, "headers": headers }] })
    };
    let hello = format!("{}/t/acme/guest-hello/", server.url);
    let send = async |plugin: &str, calls: serde_json::Value| {
        let answer = acme.call(Method::POST, plugin, "/send").json(&calls).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        answer
    };

    let answer = send("guest-http", call(hello.clone(), ("x-nothing", ""))).await;
    let (request, trace) = collector.trace_of(&answer).await;
    let run = below(&trace, below(&trace, &request, "invocation"), "run");
    let fuel: u64 = run.said("chalet.fuel").parse().expect("a number");
    assert!(fuel > 400_000, "{fuel} is no more than a slice or two");
    let sent = below(&trace, run, "GET");
    assert_eq!((sent.kind, sent.said("server.port")), (SpanKind::Client, &address.port().to_string()[..]));
    let called = below(&trace, sent, "GET /t/{tenant}/{plugin}/");
    assert_eq!(below(&trace, called, "invocation").said("chalet.plugin"), "guest-hello");

    // What a guest says itself stands.
    let own = format!("00-{TRACE}-{SPAN}-00");
    send("guest-http", call(hello, ("TraceParent", &own))).await;
    let called = collector.span("the call with the guest's own trace", |span| span.trace == TRACE).await;
    let first = collector.span("its first span", |span| span.parent == SPAN).await;
    assert_eq!(first.trace, called.trace);

    send("outside", call(format!("http://{outside}/"), ("x-nothing", ""))).await;
    let seen = seen.lock().expect("no panic").join("\n");
    assert!(seen.contains("x-nothing") && !seen.contains("traceparent"), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_that_cannot_be_meant_is_refused_at_start_and_the_doctor_looks_for_the_collector() {
    let chalet = async |command: &str, name: &str, value: &str| {
        let data = TempDir::new().expect("a folder");
        let mut chalet = Command::new(binary());
        chalet.args([command, "--data"]).arg(data.path()).current_dir(data.path()).kill_on_drop(true);
        let ended = chalet.env("CHALET_LISTEN", "127.0.0.1:0").env(name, value).output();
        let ended = tokio::time::timeout(Duration::from_secs(60), ended).await;
        let ended = ended.unwrap_or_else(|_| panic!("{command} goes on with {name}={value}")).expect("it starts");
        (ended.status.code(), String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned())
    };
    for (name, value, remedy) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318", "such as http://localhost:4318"),
        ("OTEL_TRACES_SAMPLER_ARG", "5", "from 0 to 1"),
    ] {
        let (code, said) = chalet("serve", name, value).await;
        assert!(code == Some(1) && said.contains(remedy) && said.contains(name), "{said}");
    }
    let (_, said) = chalet("doctor", "OTEL_SERVICE_NAME", "x").await;
    assert!(said.contains("off, since no collector is set"), "{said}");
    let taking = Collector::start().await;
    let (_, said) = chalet("doctor", "OTEL_EXPORTER_OTLP_ENDPOINT", &taking.url).await;
    assert!(said.contains(&format!("the collector at {}/v1/traces takes them", taking.url)), "{said}");
    let refusing = Collector::that(|| async { StatusCode::UNAUTHORIZED }).await;
    let (code, said) = chalet("doctor", "OTEL_EXPORTER_OTLP_ENDPOINT", &refusing.url).await;
    assert!(code == Some(1) && said.contains("401") && said.contains("OTEL_EXPORTER_OTLP_HEADERS"), "{said}");
}

/// [`granted`] under another name.
fn granted_as(name: &str, local: &str) -> Vec<u8> {
    let component = granted(local);
    let mut manifest = chalet::services::plugins::manifest::Manifest::from_component(&component).expect("a manifest");
    manifest.name = name.into();
    chalet::cli::build::embed_instead(&component, &manifest).expect("embedded")
}
