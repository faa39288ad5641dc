//! Guests that misbehave: each gets its own clear error and a failed record, nothing of it is committed, and
//! the neighbour stays well.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::kit::engine::Engine;
use crate::kit::guests::{costly, written};
use crate::kit::oracle::Watch;
use crate::kit::server::{Tenant, expect};

on_both_engines! {
    each_misbehaviour_is_an_error_of_its_own_and_commits_nothing,
    a_guests_memory_is_new_at_every_call,
    what_is_too_much_is_cut_or_refused_without_harm,
    others_are_answered_while_a_tenant_spins_on_every_core,
    an_upload_that_takes_too_long_to_compile_is_refused_and_harms_nobody,
    a_guest_that_spins_in_its_start_function_is_stopped,
}

/// How long an upload may take: its compilation is stopped after half of it at most.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a path of the guest does, and what must come of it: status and code.
const CASES: &[(&str, u16, &str)] = &[
    ("loop", 504, "fuel_exhausted"),
    ("loop-in-alloc", 504, "fuel_exhausted"),
    ("loop-in-host-calls", 502, "hostcall_budget|fuel_exhausted"),
    ("bulk-memory", 504, "fuel_exhausted"),
    ("alloc", 502, "memory_exhausted|plugin_failed"),
    ("alloc-at-once", 502, "memory_exhausted|plugin_failed"),
    ("recursion", 502, "stack_exhausted|plugin_failed"),
    ("panic", 502, "plugin_failed"),
    ("unreachable", 502, "plugin_failed"),
    ("divide", 502, "plugin_failed"),
    ("huge-body", 502, "invalid_response|plugin_failed"),
    ("huge-header", 502, "invalid_response"),
    ("many-headers", 502, "invalid_response"),
    ("bad-header", 502, "invalid_response"),
    ("bad-status", 502, "invalid_response"),
    ("large-status", 502, "invalid_response"),
    ("raw-pointer", 502, "plugin_failed"),
    ("raw-length", 502, "plugin_failed"),
    ("raw-wrap", 502, "plugin_failed"),
    ("raw-utf8", 502, "plugin_failed"),
    ("raw-enum", 502, "plugin_failed"),
];

async fn well(neighbour: &Tenant<'_>) {
    let answer = neighbour.call(Method::GET, "guest-hello", "/").send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK, "the neighbour is not well");
}

async fn each_misbehaviour_is_an_error_of_its_own_and_commits_nothing(engine: Engine) {
    let server = engine.server().await;
    let hostile = server.tenant("hostile").await;
    // Time enough that on a slow machine, too, the limit that each case is about is the one that ends it.
    let plan = json!({ "timeout_ms": 60_000, "fuel": 500_000_000 });
    expect(server.admin(Method::PUT, "/v1/plans/patient").json(&plan), StatusCode::OK).await;
    expect(server.admin(Method::PATCH, "/v1/tenants/hostile").json(&json!({ "plan": "patient" })), StatusCode::OK)
        .await;
    hostile.deploy("guest-misbehave").await;
    let watch = Watch::begin(&server).await;
    for (what, status, codes) in CASES {
        let answer = hostile.call(Method::GET, "guest-misbehave", &format!("/{what}")).send().await.expect("an answer");
        let invocation = answer.headers()["chalet-invocation"].to_str().expect("an id").to_owned();
        assert_eq!(answer.status().as_u16(), *status, "{what}");
        let problem: serde_json::Value = answer.json().await.expect("a problem");
        let code = problem["code"].as_str().unwrap_or_default();
        assert!(codes.split('|').any(|one| one == code), "{what} answered {problem}");
        assert_eq!(hostile.kv("misbehave", "trace").await, None, "{what} left something behind");
        let record = expect(hostile.api(Method::GET, &format!("/invocations/{invocation}")), StatusCode::OK).await;
        assert_eq!((record["outcome"].as_str(), record["code"].as_str()), (Some("failed"), Some(code)), "{what}");
    }
    watch.end(&server).await;
}

async fn a_guests_memory_is_new_at_every_call(engine: Engine) {
    let server = engine.server().await;
    let tenant = server.tenant("acme").await;
    tenant.deploy("guest-misbehave").await;
    let watch = Watch::begin(&server).await;
    for _ in 0..50 {
        let answer = tenant.call(Method::GET, "guest-misbehave", "/global").send().await.expect("an answer");
        assert_eq!(answer.text().await.expect("text"), "0");
    }
    watch.end(&server).await;
}

async fn what_is_too_much_is_cut_or_refused_without_harm(engine: Engine) {
    let server = engine.server().await;
    let tenant = server.tenant("acme").await;
    tenant.deploy("guest-misbehave").await;
    let watch = Watch::begin(&server).await;
    let flood = tenant.call(Method::GET, "guest-misbehave", "/log-flood").send().await.expect("an answer");
    assert_eq!(flood.status(), StatusCode::OK);
    let id = flood.headers()["chalet-invocation"].to_str().expect("an id").to_owned();
    let record = expect(tenant.api(Method::GET, &format!("/invocations/{id}")), StatusCode::OK).await;
    let lines = record["log"].as_array().expect("a log");
    let bytes: usize = lines.iter().filter_map(|line| Some(line["message"].as_str()?.len())).sum();
    assert!(bytes <= (64 << 10) + 200 && bytes > 32 << 10, "{bytes} bytes of log");
    for what in ["writes", "huge-value", "strings", "host-calls"] {
        tenant.call(Method::GET, "guest-misbehave", &format!("/{what}")).send().await.expect("an answer");
    }
    watch.end(&server).await;
}

async fn others_are_answered_while_a_tenant_spins_on_every_core(engine: Engine) {
    let server = engine.server().await;
    // As fast as the neighbour asks, it is not its own rate that ends it.
    let plan = json!({ "requests_per_second": 100_000, "request_burst": 100_000 });
    expect(server.admin(Method::PUT, "/v1/plans/free").json(&plan), StatusCode::OK).await;
    let hostile = server.tenant("hostile").await;
    hostile.deploy("guest-misbehave").await;
    let neighbour = server.tenant("neighbour").await;
    neighbour.deploy("guest-hello").await;
    well(&neighbour).await;
    let watch = Watch::begin(&server).await;
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let spinning: Vec<_> =
        (0..2 * cores).map(|_| tokio::spawn(hostile.call(Method::GET, "guest-misbehave", "/loop").send())).collect();
    let mut answered = 0;
    while spinning.iter().any(|one| !one.is_finished()) {
        well(&neighbour).await;
        let ready = server.anonymous(Method::GET, "/healthz").send().await.expect("an answer");
        assert_eq!(ready.status(), StatusCode::OK);
        answered += 1;
    }
    assert!(answered > 20, "only {answered} calls were answered while {} guests were spinning", 2 * cores);
    for one in spinning {
        assert_eq!(one.await.expect("no panic").expect("an answer").status(), StatusCode::GATEWAY_TIMEOUT);
    }
    watch.end(&server).await;
}

async fn an_upload_that_takes_too_long_to_compile_is_refused_and_harms_nobody(engine: Engine) {
    let server = engine.server().await;
    let hostile = server.tenant("hostile").await;
    let watch = Watch::begin(&server).await;
    let upload = hostile.api(Method::PUT, "/plugins/start").body(costly()).timeout(PATIENCE);
    let refused = upload.send().await.expect("an answer");
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let problem: serde_json::Value = refused.json().await.expect("a problem");
    assert_eq!(problem["code"], "compile_limit", "{problem}");
    assert_eq!(server.metric_where("chalet_compile_rejected_total", "rule=\"compile_limit\"").await, 1.0);
    // Nothing is left of it, and its tenant goes on as well.
    expect(hostile.api(Method::GET, "/plugins/start"), StatusCode::NOT_FOUND).await;
    hostile.deploy("guest-hello").await;
    well(&hostile).await;
    watch.end(&server).await;
}

async fn a_guest_that_spins_in_its_start_function_is_stopped(engine: Engine) {
    let server = engine.server().await;
    let tenant = server.tenant("acme").await;
    tenant.deploy_bytes("start", written(|text| text)).await;
    let watch = Watch::begin(&server).await;
    let problem = expect(tenant.call(Method::GET, "start", "/"), StatusCode::GATEWAY_TIMEOUT).await;
    assert!(matches!(problem["code"].as_str(), Some("deadline_exceeded" | "fuel_exhausted")), "{problem}");
    watch.end(&server).await;
}
