//! Plugins that no language makes: endless, deep, trapping and lying ones, in WebAssembly text, over HTTP and as
//! webhooks. Each ends in an error of its own, is billed for exactly what it burned, and harms nobody.

use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::kit::engine::Engine;
use crate::kit::oracle::Watch;
use crate::kit::process::{forget_peak, own_mib, peak_mib, resident_mib};
use crate::kit::server::{Server, Setup, Tenant, expect};
use crate::kit::soak;
use crate::kit::wat::{self, OK};
use crate::kit::wire::Wire;

on_both_engines! {
    endless_work_is_billed_exactly_wherever_it_is,
    work_ends_with_its_time_however_much_one_instruction_moves,
    a_trap_is_named_in_the_record_and_the_next_invocation_is_clean,
    memory_and_tables_end_at_the_plans_limit,
    a_lie_about_what_is_handed_over_is_a_trap,
    a_limit_is_met_to_the_unit,
    a_slot_holds_nothing_of_the_guest_that_had_it_before,
    usage_that_is_no_usage_is_refused,
    what_an_invocation_stages_is_bounded,
}

/// Fuel of a run: enough for the longest of the cases that end by themselves, and burned in a moment.
const FUEL: u64 = 60_000_000;

/// A tenant whose runs end by fuel, not by time, with these limits of its own.
async fn tenant<'s>(server: &'s Server, name: &str, limits: Value) -> Tenant<'s> {
    let mut plan =
        json!({ "timeout_ms": 60_000, "fuel": FUEL, "requests_per_second": 100_000, "request_burst": 100_000 });
    for (limit, value) in limits.as_object().expect("limits") {
        plan[limit] = value.clone();
    }
    expect(server.admin(Method::PUT, &format!("/v1/plans/{name}")).json(&plan), StatusCode::OK).await;
    let tenant = server.tenant(name).await;
    let change = server.admin(Method::PATCH, &format!("/v1/tenants/{name}")).json(&json!({ "plan": name }));
    expect(change, StatusCode::OK).await;
    tenant
}

/// What became of an invocation.
#[derive(Debug)]
struct Ended {
    status: u16,
    code: String,
    detail: String,
    record: Value,
}

async fn ended(tenant: &Tenant<'_>, request: reqwest::RequestBuilder) -> Ended {
    let answer = request.send().await.expect("an answer");
    let status = answer.status().as_u16();
    let id = answer.headers()["chalet-invocation"].to_str().expect("an id").to_owned();
    let problem: Value = serde_json::from_slice(&answer.bytes().await.expect("a body")).unwrap_or_default();
    let record = expect(tenant.api(Method::GET, &format!("/invocations/{id}")), StatusCode::OK).await;
    let text = |name: &str| problem[name].as_str().unwrap_or_default().to_owned();
    let (code, detail) = (text("code"), text("detail"));
    if status >= 300 {
        assert_eq!((record["outcome"].as_str(), record["code"].as_str()), (Some("failed"), Some(code.as_str())));
        assert_eq!(record["error"], detail);
    }
    Ended { status, code, detail, record }
}

/// Call a plugin's case.
async fn call(tenant: &Tenant<'_>, plugin: &str, case: usize) -> Ended {
    ended(tenant, tenant.call(Method::GET, plugin, &format!("/{case:02}"))).await
}

/// The same as a webhook. Its source belongs to one plugin of the tenant.
async fn deliver(tenant: &Tenant<'_>, case: usize) -> Ended {
    let (body, id) = ("{}", format!("-{case:02}-{}", rand::random::<u64>()));
    let mut mac = Hmac::<Sha256>::new_from_slice(b"0123456789abcdef0123456789abcdef").expect("any key");
    mac.update(body.as_bytes());
    let signature = format!("sha256={}", hex::encode(mac.finalize().into_bytes()));
    let request = tenant.hook("events").header("x-hub-signature-256", signature).header("x-github-delivery", id);
    ended(tenant, request.header("x-github-event", "push").body(body)).await
}

const SPIN: &str = "(loop $l (br $l)) unreachable";

/// Fills and copies of 58 MiB each: few instructions that each move much.
fn bulk() -> [String; 2] {
    [
        "(memory.fill (i32.const 65536) (i32.const 1) (i32.const 60000000))",
        "(memory.copy (i32.const 65536) (i32.const 131072) (i32.const 60000000))",
    ]
    .map(|operation| format!("(drop (memory.grow (i32.const 1000))) (loop $l {operation} (br $l)) unreachable"))
}

async fn endless_work_is_billed_exactly_wherever_it_is(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let tenant = tenant(&server, "endless", json!({})).await;
    tenant.secret("EVENTS", "0123456789abcdef0123456789abcdef").await;
    let [fill, copy] = bulk();
    let small = "(loop $l (memory.fill (i32.const 8192) (i32.const 1) (i32.const 64)) (br $l)) unreachable";
    let body = wat::cases([SPIN, &fill, &copy, small, OK]);
    // The last case ends in what it does after its answer.
    let post = "(if (i32.eq (global.get $case) (i32.const 4)) (then (loop $l (br $l))))";
    tenant.deploy_bytes("spin", wat::plugin("spin", &body).with("post", post).with_webhooks().component()).await;
    for case in 0..5 {
        for run in 0..2 {
            let ended = call(&tenant, "spin", case).await;
            let saw = (ended.status, ended.code.as_str(), ended.record["fuel"].as_u64());
            assert_eq!(saw, (504, "fuel_exhausted", Some(FUEL)), "case {case}, run {run}: {ended:?}");
        }
        let ended = deliver(&tenant, case).await;
        let saw = (ended.status, ended.code.as_str(), ended.record["fuel"].as_u64());
        assert_eq!(saw, (504, "fuel_exhausted", Some(FUEL)), "case {case} as a webhook: {ended:?}");
    }
    // Before anything of its own is called, and in what the host calls to hand something over.
    let hooked = "(global.set $hooked (i32.const 1))";
    for (name, plugin) in [
        ("start", wat::plugin("start", OK).with("start", "(loop $l (br $l))")),
        ("realloc", wat::plugin("realloc", OK).with("start", hooked).with("hook", "(loop $l (br $l))")),
    ] {
        tenant.deploy_bytes(name, plugin.component()).await;
        for _ in 0..2 {
            let ended = call(&tenant, name, 0).await;
            let saw = (ended.status, ended.code.as_str(), ended.record["fuel"].as_u64());
            assert_eq!(saw, (504, "fuel_exhausted", Some(FUEL)), "{name}: {ended:?}");
        }
    }
    watch.end(&server).await;
}

async fn work_ends_with_its_time_however_much_one_instruction_moves(engine: Engine) {
    /// Of the fastest of some tries, since the machine has others to serve.
    const TRIES: usize = 5;
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let tenant = tenant(&server, "hurried", json!({ "timeout_ms": 300, "fuel": 1_000_000_000_000_u64 })).await;
    let [fill, copy] = bulk();
    let body = wat::cases([SPIN, &fill, &copy, OK]);
    tenant.deploy_bytes("hurried", wat::plugin("hurried", &body).component()).await;
    assert_eq!(call(&tenant, "hurried", 3).await.status, 200);
    for (case, over_ms) in [(0, 50), (1, 150), (2, 150)] {
        let mut fastest = u64::MAX;
        for _ in 0..TRIES {
            let ended = call(&tenant, "hurried", case).await;
            assert_eq!((ended.status, ended.code.as_str()), (504, "deadline_exceeded"), "case {case}: {ended:?}");
            fastest = fastest.min(ended.record["duration_ms"].as_u64().expect("milliseconds"));
        }
        println!("case {case} ended after {fastest} ms");
        assert!((300..=300 + over_ms).contains(&fastest), "case {case} ended after {fastest} ms");
    }
    watch.end(&server).await;
}

/// Each trap with what its record says.
const TRAPS: &[(&str, &str, &str)] = &[
    ("unreachable", "plugin_failed", "unreachable"),
    ("(i32.div_u (i32.const 1) (i32.const 0))", "plugin_failed", "divide by zero"),
    ("(i32.div_s (i32.const 0x80000000) (i32.const -1))", "plugin_failed", "overflow"),
    ("(i32.trunc_f64_s (f64.div (f64.const 0) (f64.const 0)))", "plugin_failed", "invalid conversion"),
    ("(i32.load (i32.const -1))", "plugin_failed", "out of bounds memory access"),
    (
        "(memory.fill (i32.const 131000) (i32.const 0) (i32.const 200)) unreachable",
        "plugin_failed",
        "out of bounds memory",
    ),
    ("(call_indirect $t (type $none) (i32.const 0)) unreachable", "plugin_failed", "uninitialized element"),
    ("(call_indirect $t (type $none) (i32.const 1)) unreachable", "plugin_failed", "type mismatch"),
    ("(call_indirect $t (type $none) (i32.const 9)) unreachable", "plugin_failed", "undefined element"),
    ("(call $deep (i32.const 0))", "stack_exhausted", "stack"),
];

async fn a_trap_is_named_in_the_record_and_the_next_invocation_is_clean(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let tenant = tenant(&server, "trapping", json!({})).await;
    // The last case answers with what the global is, which every one before it has changed.
    let fields = "(type $none (func)) (table $t 2 funcref) (elem (table $t) (i32.const 1) func $deep)
        (global $calls (mut i32) (i32.const 0))
        (func $deep (param i32) (result i32) (i32.add (call $deep (i32.add (local.get 0) (i32.const 1))) (i32.const 1)))";
    let clean = "(call $ok (i32.add (i32.const 199) (global.get $calls)) (i32.const 0) (i32.const 0))";
    let cases = wat::cases(TRAPS.iter().map(|(text, ..)| *text).chain([clean]));
    let body = format!("(global.set $calls (i32.add (global.get $calls) (i32.const 1))) {cases}");
    tenant.deploy_bytes("trap", wat::plugin("trap", &body).with("fields", fields).component()).await;
    // Host calls from where the host asks for memory: back into the host while it is handing something over.
    let back =
        wat::plugin("back", OK).with("start", "(global.set $hooked (i32.const 1))").with("hook", "(drop (call $now))");
    tenant.deploy_bytes("back", back.component()).await;
    for (case, (text, code, said)) in TRAPS.iter().enumerate() {
        let ended = call(&tenant, "trap", case).await;
        assert_eq!((ended.status, ended.code.as_str()), (502, *code), "{text}: {ended:?}");
        assert!(ended.detail.contains(said), "{text} is recorded as {:?}", ended.detail);
        assert_eq!(call(&tenant, "trap", TRAPS.len()).await.status, 200, "after {text}");
    }
    let deep = TRAPS.len() - 1;
    for _ in 0..soak::count(1_000) / 2 {
        for (plugin, case) in [("trap", deep), ("back", 0)] {
            let request = tenant.call(Method::GET, plugin, &format!("/{case:02}"));
            assert_eq!(request.send().await.expect("an answer").status(), StatusCode::BAD_GATEWAY, "{plugin}");
        }
    }
    assert_eq!(call(&tenant, "trap", TRAPS.len()).await.status, 200);
    watch.end(&server).await;
}

async fn memory_and_tables_end_at_the_plans_limit(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let tenant = tenant(&server, "growing", json!({})).await;
    // 64 MiB are 1,024 pages, of which it has 2. Each answers 200 more than what its last growth gave.
    let grow = |by: u32| {
        format!("(call $ok (i32.add (i32.const 201) (memory.grow (i32.const {by}))) (i32.const 0) (i32.const 0))")
    };
    let steps = "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
        (call $ok (i32.add (i32.const 200) (i32.eq (memory.size) (i32.const 1024))) (i32.const 0) (i32.const 0))";
    let refused = "(drop (memory.grow (i32.const 1000))) (local.set 0 (i32.const 1000))
        (loop $l (drop (memory.grow (i32.const 23))) (br_if $l (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))
        (call $ok (i32.add (i32.const 200) (i32.eq (memory.size) (i32.const 1002))) (i32.const 0) (i32.const 0))";
    let table = "(call $ok (i32.add (i32.const 201) (table.grow $t (ref.null func) (i32.const 100000))) (i32.const 0) (i32.const 0))";
    // One table ends at the size that all have, and all together at the invocation's.
    let tables = "(drop (table.grow $t (ref.null func) (i32.const 19999)))
        (call $ok (i32.add (i32.const 201) (table.grow $u (ref.null func) (i32.const 19999))) (i32.const 0) (i32.const 0))";
    // A byte of each 4 KiB but for the first 128, which it has of its own.
    let touched = format!(
        "(drop (memory.grow (i32.const 1022))) (local.set 0 (i32.const 16383))
        (loop $l (i32.store8 (i32.mul (local.get 0) (i32.const 4096)) (i32.const 1))
            (br_if $l (i32.gt_u (local.tee 0 (i32.sub (local.get 0) (i32.const 1))) (i32.const 32)))) {OK}"
    );
    let cases = [grow(1_022), grow(1_023), steps.into(), refused.into(), table.into(), tables.into(), touched];
    let body = format!("(local i32) {}", wat::cases(cases.iter().map(String::as_str)));
    let grows = wat::plugin("grow", &body).with("fields", "(table $t 1 funcref) (table $u 1 funcref)");
    tenant.deploy_bytes("grow", grows.component()).await;
    let denied = async || server.metric("chalet_memory_denied_total").await;
    for (case, status, refusals) in
        [(0, 203, 0.0), (1, 200, 1.0), (2, 201, 1.0), (3, 201, 1.0), (4, 200, 0.0), (5, 200, 1.0)]
    {
        let before = denied().await;
        let ended = call(&tenant, "grow", case).await;
        assert_eq!(ended.status, status, "case {case}: {ended:?}");
        assert_eq!(denied().await - before, refusals, "case {case}");
    }
    let (before, pid) = (resident_mib(server.pid()), server.pid());
    forget_peak(pid);
    assert_eq!(call(&tenant, "grow", 6).await.status, 200);
    let most = peak_mib(pid) - before;
    assert!((60.0..80.0).contains(&most), "64 MiB that are written are {most:.0} MiB of memory");
    // Three modules share one limit: what is far below it in each is above it together. What they begin with is looked at
    // when they are uploaded.
    let modules = |pages: u32, more: u32| {
        let one = |n: u32| {
            format!(
                "(core module $own{n} (memory {pages})
                    (func $start (if (i32.eq (memory.grow (i32.const {more})) (i32.const -1)) (then unreachable)))
                    (start $start))
                (core instance (instantiate $own{n}))"
            )
        };
        (0..3).map(one).collect::<String>()
    };
    for (name, more, status, code) in [("together", 40, 200, ""), ("too-much", 41, 502, "memory_exhausted")] {
        tenant.deploy_bytes(name, wat::plugin(name, OK).with("component", &modules(300, more)).component()).await;
        let ended = call(&tenant, name, 0).await;
        assert_eq!((ended.status, ended.code.as_str()), (status, code), "{name}: {ended:?}");
    }
    let begins = wat::plugin("begins", OK).with("component", &modules(341, 0)).component();
    let refused = tenant.upload("begins", begins).await;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    watch.end(&server).await;
}

/// A guest that asks for 64 KiB, and has no room for them.
const NO_ROOM: &str =
    "(global.set $top (i32.const 131000)) (call $random (i32.const 65536) (i32.const 512)) unreachable";

/// 60 MiB of text in one call.
const HUGE: &str = "(drop (memory.grow (i32.const 1000))) (call $write (i32.const 2) (i32.const 65536) (i32.const 62914560)) unreachable";

/// Lies to the host, each a trap: about where something is, how long, and what it is.
const LIES: &[&str] = &[
    // A text, and a list of texts, behind the end of memory, around its end, and where no element can be.
    "(call $write (i32.const 2) (i32.const 0) (i32.const -1)) unreachable",
    "(call $write (i32.const 2) (i32.const -1) (i32.const 1)) unreachable",
    "(call $write (i32.const 2) (i32.const 131071) (i32.const 2)) unreachable",
    "(call $record (i32.const 16) (i32.const 1) (i32.const 18) (i32.const 1) (i32.const 0) (i32.const -1) (i32.const 512)) unreachable",
    "(call $record (i32.const 16) (i32.const 1) (i32.const 18) (i32.const 1) (i32.const 1) (i32.const 1) (i32.const 512)) unreachable",
    "(call $record (i32.const 16) (i32.const 1) (i32.const 18) (i32.const 1) (i32.const 0) (i32.const 0x10000000) (i32.const 512)) unreachable",
    // Where the answer shall go.
    "(call $record (i32.const 16) (i32.const 1) (i32.const 18) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const -8)) unreachable",
    "(call $record (i32.const 16) (i32.const 1) (i32.const 18) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 513)) unreachable",
    // Texts that are none: UTF-8, UTF-16 with half a pair, at an odd place, of an odd number of bytes behind the end.
    "(i32.store8 (i32.const 600) (i32.const 255)) (call $write (i32.const 2) (i32.const 600) (i32.const 1)) unreachable",
    "(i32.store (i32.const 600) (i32.const 0xa0ed)) (call $write (i32.const 2) (i32.const 600) (i32.const 3)) unreachable",
    "(i32.store16 (i32.const 600) (i32.const 0xd800)) (call $write16 (i32.const 2) (i32.const 600) (i32.const 1)) unreachable",
    "(call $write16 (i32.const 2) (i32.const 601) (i32.const 1)) unreachable",
    "(call $write16 (i32.const 2) (i32.const 0) (i32.const 0x80000001)) unreachable",
    // What says of itself that it is UTF-16, and is not, or is longer than memory.
    "(i32.store16 (i32.const 600) (i32.const 0xdc00)) (call $writel1 (i32.const 2) (i32.const 600) (i32.const 0x80000001)) unreachable",
    "(call $writel1 (i32.const 2) (i32.const 600) (i32.const -1)) unreachable",
    "(call $writel1 (i32.const 2) (i32.const 600) (i32.const 0x7fffffff)) unreachable",
    // A case of an enum, and an option, that there is not.
    "(call $write (i32.const 5) (i32.const 0) (i32.const 0)) unreachable",
    "(call $write (i32.const -1) (i32.const 0) (i32.const 0)) unreachable",
    "(call $delete (i32.const 16) (i32.const 1) (i32.const 17) (i32.const 1) (i32.const 2) (i64.const 0) (i32.const 512)) unreachable",
    "(call $put (i32.const 16) (i32.const 1) (i32.const 17) (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 7) (i64.const 0) (i32.const 0) (i64.const 0) (i32.const 512)) unreachable",
    // Answers: where there is none, of no case, with headers where there are none, so many, and so large.
    "(i32.const -4)",
    "(i32.const 1025)",
    "(i32.store8 (i32.const 1024) (i32.const 2)) (i32.const 1024)",
    "(i32.store8 (i32.const 1024) (i32.const 1)) (i32.store8 (i32.const 1032) (i32.const 2)) (i32.const 1024)",
    "(drop (call $ok (i32.const 200) (i32.const 0) (i32.const 0))) (i32.store (i32.const 1040) (i32.const -1)) (i32.const 1024)",
    "(drop (call $ok (i32.const 200) (i32.const 0) (i32.const 0))) (i32.store (i32.const 1036) (i32.const 1)) (i32.store (i32.const 1040) (i32.const 1)) (i32.const 1024)",
    "(call $ok (i32.const 200) (i32.const 0) (i32.const 0x40000000))",
    HUGE,
    // What the host gives, where there is no room for it.
    NO_ROOM,
    "(global.set $top (i32.const -64)) (call $random (i32.const 4096) (i32.const 512)) unreachable",
    "(call $random (i32.const 65537) (i32.const 512)) unreachable",
    // More handles than there may be: any number, and one.
    "(loop $l (drop (call $make (i32.const 1))) (br $l)) unreachable",
    "(local.set 0 (i32.const 2001)) (loop $l (drop (call $make (i32.const 1)))
        (br_if $l (local.tee 0 (i32.sub (local.get 0) (i32.const 1))))) unreachable",
];

async fn a_lie_about_what_is_handed_over_is_a_trap(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let tenant = tenant(&server, "lying", json!({})).await;
    // And what is no lie: a clock that stands still, another that only falls, 2,000 handles, texts that are well formed, and 60 MiB that the guest
    // itself has.
    let honest = [
        "(local.set 1 (call $now)) (local.set 0 (i32.const 20000))
        (loop $l (if (i64.ne (call $now) (local.get 1)) (then unreachable))
            (br_if $l (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))",
        "(local.set 1 (i64.const 60000)) (local.set 0 (i32.const 20000))
        (loop $l (local.set 2 (call $remaining)) (if (i64.gt_u (local.get 2) (local.get 1)) (then unreachable))
            (local.set 1 (local.get 2)) (br_if $l (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))",
        "(local.set 0 (i32.const 2000)) (loop $l (drop (call $make (i32.const 1)))
            (br_if $l (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))",
        "(i32.store (i32.const 600) (i32.const 0xde00d83d)) (call $write16 (i32.const 2) (i32.const 600) (i32.const 2))
        (call $writel1 (i32.const 2) (i32.const 600) (i32.const 0x80000002))
        (i32.store8 (i32.const 600) (i32.const 255)) (call $writel1 (i32.const 2) (i32.const 600) (i32.const 1))",
    ];
    let honest = honest.map(|text| format!("{text} {OK}"));
    let flood = "(loop $l (call $write (i32.const 2) (i32.const 16) (i32.const 0)) (br $l)) unreachable";
    // 64 KiB at a time: a thousand such calls are the plan's bytes.
    let bytes = "(drop (memory.grow (i32.const 1)))
        (loop $l (call $write (i32.const 2) (i32.const 131072) (i32.const 65536)) (br $l)) unreachable";
    let large = "(drop (memory.grow (i32.const 100))) (call $ok (i32.const 200) (i32.const 0) (i32.const 6000000))";
    let headers = "(drop (memory.grow (i32.const 100))) (drop (call $ok (i32.const 200) (i32.const 0) (i32.const 0)))
        (i32.store (i32.const 1036) (i32.const 131072)) (i32.store (i32.const 1040) (i32.const 10000)) (i32.const 1024)";
    let answers = [
        (flood, "hostcall_budget"),
        (bytes, "hostcall_bytes"),
        (large, "invalid_response"),
        (headers, "invalid_response"),
    ];
    let cases =
        LIES.iter().copied().chain(honest.iter().map(String::as_str)).chain(answers.iter().map(|(text, _)| *text));
    let body = format!("(local i32 i64 i64) {}", wat::cases(cases));
    tenant.deploy_bytes("lie", wat::plugin("lie", &body).component()).await;
    let plan =
        json!({ "timeout_ms": 60_000, "fuel": 10 * FUEL, "requests_per_second": 100_000, "request_burst": 100_000 });
    expect(server.admin(Method::PUT, "/v1/plans/lying").json(&plan), StatusCode::OK).await;
    for (case, text) in LIES.iter().enumerate() {
        let (before, begun) = (resident_mib(server.pid()), Instant::now());
        forget_peak(server.pid());
        let ended = call(&tenant, "lie", case).await;
        assert_eq!((ended.status, ended.code.as_str()), (502, "plugin_failed"), "{text}: {ended:?}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{text} took {:?}", begun.elapsed());
        // The guest writes next to nothing; what the host copied would be here.
        let grown = peak_mib(server.pid()) - before;
        assert!(grown < 32.0, "{text} took {grown:.0} MiB");
    }
    let of = |text: &str| LIES.iter().position(|lie| *lie == text).expect("a lie");
    let mut fastest = u64::MAX;
    for _ in 0..5 {
        fastest =
            fastest.min(call(&tenant, "lie", of(HUGE)).await.record["duration_ms"].as_u64().expect("milliseconds"));
    }
    println!("60 MiB in a call are refused after {fastest} ms");
    assert!(fastest <= 5, "60 MiB in a call are refused after {fastest} ms");
    // Kept, what was made for guests without room for it would be a hundred MiB.
    let before = own_mib(server.pid());
    for _ in 0..1_600 {
        let request = tenant.call(Method::GET, "lie", &format!("/{:02}", of(NO_ROOM)));
        assert_eq!(request.send().await.expect("an answer").status(), StatusCode::BAD_GATEWAY);
    }
    let kept = own_mib(server.pid()) - before;
    assert!(kept < 48.0, "{kept:.0} MiB are kept of what no guest took");
    for case in LIES.len()..LIES.len() + honest.len() {
        assert_eq!(call(&tenant, "lie", case).await.status, 200, "{}", honest[case - LIES.len()]);
    }
    for (n, (text, code)) in answers.into_iter().enumerate() {
        let ended = call(&tenant, "lie", LIES.len() + honest.len() + n).await;
        assert_eq!((ended.status, ended.code.as_str()), (502, code), "{text}: {ended:?}");
    }
    watch.end(&server).await;
}

async fn a_limit_is_met_to_the_unit(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    // A thousand calls of ten bytes each, an answer of a thousand bytes, and what that burns.
    let body = "(local i32) (local.set 0 (i32.const 1000))
        (loop $l (call $write (i32.const 2) (i32.const 2048) (i32.const 10))
            (br_if $l (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))
        (call $ok (i32.const 200) (i32.const 0) (i32.const 1000))";
    let component = wat::plugin("exact", body).with("fields", "(data (i32.const 2048) \"ten  bytes\")").component();
    let run = async |name: &str, limits: Value| {
        let tenant = tenant(&server, name, limits).await;
        tenant.deploy_bytes("exact", component.clone()).await;
        call(&tenant, "exact", 0).await
    };
    let free = run("free-run", json!({})).await;
    assert_eq!((free.status, free.record["host_calls"].as_u64()), (200, Some(1_000)), "{free:?}");
    let fuel = free.record["fuel"].as_u64().expect("fuel");
    let cases = [
        ("host_calls", 1_000, 502, "hostcall_budget"),
        ("host_call_bytes", 10_000, 502, "hostcall_bytes"),
        ("memory_bytes", 128 << 10, 502, "memory_exhausted"),
        ("response_body_bytes", 1_000, 502, "invalid_response"),
        // The last unit is never burned: a run ends when nothing is left.
        ("fuel", fuel + 1, 504, "fuel_exhausted"),
    ];
    for (limit, exact, status, code) in cases {
        for (n, value) in [exact - 1, exact, exact + 1].into_iter().enumerate() {
            let name = format!("{}-{n}", limit.replace('_', "-"));
            let ended = run(&name, json!({ limit: value })).await;
            let expected = if value < exact { (status, code) } else { (200, "") };
            assert_eq!((ended.status, ended.code.as_str()), expected, "{limit} of {value}: {ended:?}");
            let burned = ended.record["fuel"].as_u64().expect("fuel");
            match (limit, ended.status) {
                (_, 200) | ("response_body_bytes", _) => assert_eq!(burned, fuel, "{limit} of {value}"),
                ("fuel", _) => assert_eq!(burned, value, "all of it is billed"),
                _ => assert!(burned < fuel, "{limit} of {value} burned {burned}"),
            }
        }
    }
    // What is logged beyond the limit fails nothing, and is not kept. A line is counted with sixteen bytes beside its own.
    let exact = 1_000 * (16 + 10);
    for (n, value) in [exact - 1, exact, exact + 1].into_iter().enumerate() {
        let ended = run(&format!("log-{n}"), json!({ "log_bytes": value })).await;
        assert_eq!(ended.status, 200, "{ended:?}");
        let log = ended.record["log"].as_array().expect("lines");
        let whole = log.iter().filter(|line| line["message"].as_str().is_some_and(|text| text.len() == 10)).count();
        // In place of the last is a part of it, and a line that says so.
        let expected = if value < exact { (999, 1_001) } else { (1_000, 1_000) };
        assert_eq!((whole, log.len()), expected, "a log of {value} bytes");
    }
    watch.end(&server).await;
}

async fn a_slot_holds_nothing_of_the_guest_that_had_it_before(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let (one, other) = (tenant(&server, "one", json!({})).await, tenant(&server, "other", json!({})).await);
    // The same bytes for both, so that both get the same slots: memory, table and global are filled by one, and looked at
    // by the other. The third case sees what the first has filled, and so would see what is left of it.
    let fields = "(table $t 1000 funcref) (global $g (mut i64) (i64.const 0)) (func $some) (elem declare func $some)";
    let fill = "(global.set $g (i64.const 1)) (drop (memory.grow (i32.const 254)))
        (memory.fill (i32.const 65536) (i32.const 0xa5) (i32.const 16711680))
        (table.fill $t (i32.const 0) (ref.func $some) (i32.const 1000))";
    let look = "(if (i64.ne (global.get $g) (i64.const 0)) (then unreachable))
        (local.set 0 (i32.const 1000)) (loop $l (local.set 0 (i32.sub (local.get 0) (i32.const 1)))
            (if (i32.eqz (ref.is_null (table.get $t (local.get 0)))) (then unreachable)) (br_if $l (local.get 0)))
        (drop (memory.grow (i32.sub (i32.const 256) (memory.size)))) (local.set 0 (i32.const 65536))
        (loop $l (if (i64.ne (i64.load (local.get 0)) (i64.const 0)) (then unreachable))
            (br_if $l (i32.lt_u (local.tee 0 (i32.add (local.get 0) (i32.const 8))) (i32.const 16777216))))";
    let blind = format!("{fill} (global.set $g (i64.const 0)) {look} {OK}");
    let cases = [format!("{fill} {OK}"), format!("{look} {OK}"), blind];
    let body = format!("(local i32) {}", wat::cases(cases.iter().map(String::as_str)));
    let component = wat::plugin("slot", &body).with("fields", fields).component();
    for tenant in [&one, &other] {
        tenant.deploy_bytes("slot", component.clone()).await;
    }
    let status = async |tenant: &Tenant<'_>, case: usize| {
        let answer = tenant.call(Method::GET, "slot", &format!("/{case:02}")).send().await.expect("an answer");
        answer.status().as_u16()
    };
    assert_eq!(status(&one, 2).await, 502, "the look is blind");
    for _ in 0..soak::count(40) {
        let both = (0..8).map(async |n| if n % 2 == 0 { status(&one, 0).await } else { status(&other, 1).await });
        assert_eq!(futures_util::future::join_all(both).await, [200; 8]);
    }
    watch.end(&server).await;
}

async fn usage_that_is_no_usage_is_refused(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-meters").await;
    let record = |value: &str| {
        let given = json!({ "meter": "tokens", "value": value });
        acme.call(Method::POST, "guest-meters", "/record").json(&given)
    };
    expect(record("1.5"), StatusCode::OK).await;
    for value in ["-1", "-0.1", "NaN", "inf", "1e400", "-", "0x10", "99999999999999999999999999999", "1.", ""] {
        let answer = expect(record(value), StatusCode::OK).await;
        assert_eq!(answer["error"]["kind"], "invalid", "{value:?}: {answer}");
    }
    let used =
        async || expect(acme.api(Method::GET, "/usage?meter=tokens"), StatusCode::OK).await["data"][0]["value"].clone();
    assert_eq!(used().await, "1.5", "whatever was refused changed nothing");
    // The largest there is, until no more fits.
    let most = "9999999999999999999999999999";
    let mut taken = 0_u32;
    for _ in 0..12 {
        let answer = record(most).send().await.expect("an answer");
        let status = answer.status();
        assert!(status == StatusCode::OK || status.is_client_error(), "{status}");
        let refused = answer.text().await.expect("text").contains("error");
        taken += u32::from(status == StatusCode::OK && !refused);
    }
    let sum = 1 + u128::from(taken) * most.parse::<u128>().expect("a number");
    assert_eq!(used().await, format!("{sum}.5"), "{taken} of the largest were taken");
    watch.end(&server).await;
}

async fn what_an_invocation_stages_is_bounded(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let tenant = tenant(&server, "staging", json!({ "fuel": 4_000_000_000_u64 })).await;
    tenant.deploy("guest-misbehave").await;
    // A guest that takes a refusal for its own failure, over and over again: nothing of it is there, nor of others' batches
    // missing.
    for what in ["writes", "huge-value", "large-values"] {
        let answer = tenant.call(Method::GET, "guest-misbehave", &format!("/{what}")).send().await.expect("an answer");
        let status = answer.status();
        assert!(status.is_client_error() || status == StatusCode::BAD_GATEWAY, "{what} answered {status}");
        assert_eq!(tenant.kv("misbehave", "trace").await, None, "{what} left something behind");
        let listed = expect(tenant.api(Method::GET, "/kv/misbehave"), StatusCode::OK).await;
        assert_eq!(listed["data"], json!([]), "{what}");
    }
    // One that stages as much as there may be and stops there is committed, and no more than that. Its first row is the
    // trace, which it deletes.
    for (what, rows) in [("all-bytes", 16), ("all-rows", 999)] {
        let request = tenant.call(Method::POST, "guest-misbehave", &format!("/{what}"));
        let answer = request.header("idempotency-key", what).send().await.expect("an answer");
        let (status, text) = (answer.status(), answer.text().await.expect("text"));
        assert_eq!((status, text.as_str()), (StatusCode::OK, &*rows.to_string()), "{what}");
        assert!(tenant.kv("misbehave", &(rows - 1).to_string()).await.is_some(), "{what} was not committed whole");
        assert_eq!(tenant.kv("misbehave", &rows.to_string()).await, None, "{what} committed what was refused");
    }
    watch.end(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_a_host_function_costs_its_invocation_alone() {
    let server = Server::start_with(Setup::sqlite().with("CHALET_BREAK", "panic"));
    let watch = Watch::begin(&server).await;
    server.expect_panics(4);
    let tenant = tenant(&server, "panicking", json!({})).await;
    tenant.secret("EVENTS", "0123456789abcdef0123456789abcdef").await;
    // At once, on the thread of the request, and after some slices, on the guests' own. Something was staged before.
    let put = "(call $put (i32.const 16) (i32.const 1) (i32.const 17) (i32.const 1) (i32.const 16) (i32.const 3)
        (i32.const 0) (i64.const 0) (i32.const 0) (i64.const 0) (i32.const 512))";
    let panic = "(call $write (i32.const 2) (i32.const 19) (i32.const 5)) unreachable";
    let long =
        "(local.set 0 (i32.const 2000000)) (loop $l (br_if $l (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))";
    let (at_once, later) = (format!("{put} {panic}"), format!("{put} {long} {panic}"));
    let body = format!("(local i32) {}", wat::cases([at_once.as_str(), later.as_str(), OK]));
    tenant.deploy_bytes("panic", wat::plugin("panic", &body).with_webhooks().component()).await;
    let free = server.metric("chalet_slots_free").await;
    for case in 0..2 {
        for ended in [call(&tenant, "panic", case).await, deliver(&tenant, case).await] {
            assert_eq!((ended.status, ended.code.as_str()), (502, "internal"), "{ended:?}");
            assert!(!ended.detail.contains("as the test wants"), "strangers learn nothing: {ended:?}");
        }
        assert_eq!(tenant.kv("m", "k").await, None, "nothing of it was committed");
        assert_eq!(call(&tenant, "panic", 2).await.status, 200);
    }
    server.eventually("the slots are back", async || server.metric("chalet_slots_free").await >= free - 1.0).await;
    watch.end(&server).await;
}

/// A plugin `odd` that answers `x` with these headers, which no SDK would let it.
fn answer_with(headers: &[(&str, &str)]) -> Vec<u8> {
    const LIST: usize = 4_096;
    let mut text = String::from("x");
    let mut list = Vec::new();
    for part in headers.iter().flat_map(|(name, value)| [name, value]) {
        list.extend_from_slice(&u32::to_le_bytes((LIST + headers.len() * 16 + text.len()) as u32));
        list.extend_from_slice(&u32::to_le_bytes(part.len() as u32));
        text += part;
    }
    let texts = LIST + list.len();
    let escaped: String = list.iter().chain(text.as_bytes()).map(|byte| format!("\\{byte:02x}")).collect();
    let body = format!(
        "(drop (call $ok (i32.const 200) (i32.const {texts}) (i32.const 1))) (i32.store (i32.const 1036) (i32.const {LIST}))
        (i32.store (i32.const 1040) (i32.const {})) (i32.const 1024)",
        headers.len()
    );
    wat::plugin("odd", &body).with("fields", &format!("(data (i32.const {LIST}) \"{escaped}\")")).component()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answers_headers_are_the_plugins_only_where_they_may_be() {
    let server = Server::start();
    let watch = Watch::begin(&server).await;
    let acme = server.tenant("acme").await;
    let odd = answer_with(&[
        ("content-length", "99"),
        ("Content-Length", "1"),
        ("transfer-encoding", "chunked"),
        ("connection", "close, X-Of-Connection"),
        ("x-of-connection", "forged"),
        ("keep-alive", "forged"),
        ("upgrade", "forged"),
        ("trailer", "forged"),
        ("proxy-authenticate", "forged"),
        ("chalet-invocation", "forged"),
        ("set-cookie", "a=1; Domain=example.com; Path=/; Secure"),
        ("set-cookie", "b=2; Path=/t/acme/odd/x"),
    ]);
    acme.deploy_bytes("odd", odd).await;
    let mut wire = Wire::to(&server);
    let headers = [("authorization", format!("Bearer {}", acme.key))];
    let answer = wire.ask("GET", "/t/acme/odd/00", &headers, b"").await;
    assert_eq!((answer.status, answer.body()), (200, &b"x"[..]));
    let head = String::from_utf8(answer.bytes[..answer.bytes.len() - 1].to_vec()).expect("text");
    let all = |name: &str| head.lines().filter(|line| line.starts_with(&format!("{name}: "))).collect::<Vec<_>>();
    assert_eq!(all("content-length"), ["content-length: 1"], "{head}");
    for gone in
        ["transfer-encoding", "connection", "x-of-connection", "keep-alive", "upgrade", "trailer", "proxy-authenticate"]
    {
        assert_eq!(all(gone), Vec::<&str>::new(), "{head}");
    }
    assert_eq!(all("chalet-invocation").len(), 1, "{head}");
    assert!(!head.contains("forged"), "{head}");
    let cookies = ["set-cookie: a=1; Secure; Path=/t/acme/odd", "set-cookie: b=2; Path=/t/acme/odd/x"];
    assert_eq!(all("set-cookie"), cookies, "{head}");
    watch.end(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_of_the_servers_log_is_one_object_whatever_a_guest_says() {
    let setup = Setup::sqlite().logged().with("RUST_LOG", "debug").with("CHALET_BREAK", "panic");
    let server = Server::start_with(setup);
    let watch = Watch::begin(&server).await;
    server.expect_panics(1);
    let acme = server.tenant("acme").await;
    acme.deploy("guest-log").await;
    let forged = "one\n{\"level\":\"ERROR\",\"message\":\"forged\"}\r\n\u{1b}[31mred\u{202e}\u{2028}\0\"}";
    let said = |message: &str, then: Option<&str>| {
        let lines = json!([{ "level": "error", "message": message, "times": 2_000 }]);
        acme.call(Method::POST, "guest-log", "/log").json(&json!({ "lines": lines, "then": then }))
    };
    expect(said(forged, None), StatusCode::NO_CONTENT).await;
    expect(said(forged, Some("fail")), StatusCode::UNPROCESSABLE_ENTITY).await;
    expect(said(forged, Some("panic")), StatusCode::BAD_GATEWAY).await;
    expect(said("panic", None), StatusCode::BAD_GATEWAY).await;
    acme.upload("x", forged.as_bytes().to_vec()).await;
    let path = "/t/acme/guest-log/%0a%7b%22forged%22:1%7d";
    server.anonymous(Method::GET, path).header("x-api-key", "chalet_forged").send().await.expect("an answer");
    watch.end(&server).await;
    let log = server.log();
    assert!(log.lines().count() > 20 && log.contains("a panic"), "{log}");
    for line in log.lines() {
        let object: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in the line {line:?}"));
        assert!(object["timestamp"].is_string() && object["level"].is_string(), "{line}");
        assert!(!line.contains('\u{1b}') && !line.contains('\u{2028}'), "{line:?}");
    }
}
