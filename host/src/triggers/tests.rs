//! Guests written by hand, each doing one thing that a guest may do or must not do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::capabilities;
use crate::effects::{Breaks, Shard, Verdict};
use crate::engine::Config;
use crate::engine::guest::{Budget, Invocation, Services};
use crate::engine::inspect::{Class, Digest};
use crate::engine::test_worker as worker;
use crate::kernel::clock::Clock;
use crate::kernel::db::{Db, Location};
use crate::kernel::error::Error;
use crate::kernel::secret::Master;
use crate::kernel::tenant::{Plan, TenantId, TenantScope};
use crate::services;
use crate::services::plugins::manifest::{Limits, Manifest};

const TYPES: &str = r#"
    (type $header (tuple string (list u8)))
    (type $response (record (field "status" u16) (field "headers" (list $header)) (field "body" (list u8))))
    (type $failure (variant (case "retry" u64) (case "reject" string)))
    (type $request (record
        (field "method" string) (field "path" string) (field "query" (option string)) (field "headers" (list $header))
        (field "body" (list u8)) (field "route" string) (field "params" (list (tuple string string)))))
"#;

const IMPORTS: &str = r#"
    (import "chalet:platform/types@0.1.0" (instance $types
        (type $info0 (record (field "limit" string) (field "remaining" u64) (field "retry-after-ms" u64)))
        (export "limit-info" (type $info (eq $info0)))
        (type $error0 (variant
            (case "denied" string) (case "not-found" string) (case "conflict" string) (case "invalid" string)
            (case "rate-limited" $info) (case "budget-exhausted" $info) (case "unavailable" string) (case "internal" string)))
        (export "error" (type (eq $error0)))))
    (alias export $types "error" (type $error))
    (import "chalet:platform/context@0.1.0" (instance $context
        (export "now-ms" (func (result u64)))
        (export "random-bytes" (func (param "length" u32) (result (list u8))))))
    (import "chalet:platform/log@0.1.0" (instance $log
        (type $level0 (enum "trace" "debug" "info" "warn" "error"))
        (export "level" (type $level (eq $level0)))
        (export "write" (func (param "level" $level) (param "message" string)))))
    (import "chalet:platform/kv@0.1.0" (instance $kv
        (alias outer 1 $error (type $e0))
        (export "error" (type $e (eq $e0)))
        (export "increment" (func (param "collection" string) (param "key" string) (param "delta" s64) (result (result (error $e)))))
        (export "counter" (func (param "collection" string) (param "key" string) (result (result (option s64) (error $e)))))))
    (import "chalet:platform/limits@0.1.0" (instance $limits
        (alias outer 1 $error (type $e0))
        (export "error" (type $e (eq $e0)))
        (type $decision0 (record (field "allowed" bool) (field "limit" u64) (field "remaining" u64)
            (field "retry-after-ms" u64) (field "reset-after-ms" u64)))
        (export "decision" (type $decision (eq $decision0)))
        (export "check" (func (param "limit" string) (param "key" string) (param "cost" u32)
            (result (result $decision (error $e)))))))
    (core module $libc
        (memory (export "memory") 2)
        (data (i32.const 16) "ordersprivate")
        (global $top (mut i32) (i32.const 4096))
        (func (export "realloc") (param i32 i32 i32 i32) (result i32)
            (local $at i32)
            (local.set $at (i32.and (i32.add (global.get $top) (i32.const 15)) (i32.const -16)))
            (global.set $top (i32.add (local.get $at) (local.get 3)))
            (local.get $at)))
    (core instance $libc (instantiate $libc))
    (core func $now (canon lower (func $context "now-ms")))
    (core func $random (canon lower (func $context "random-bytes") (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))
    (core func $write (canon lower (func $log "write") (memory (core memory $libc "memory"))))
    (core func $increment (canon lower (func $kv "increment") (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))
    (core func $counter (canon lower (func $kv "counter") (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))
    (core func $check (canon lower (func $limits "check") (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))
    (core instance $host
        (export "now" (func $now)) (export "random" (func $random)) (export "write" (func $write))
        (export "increment" (func $increment)) (export "counter" (func $counter))
        (export "check" (func $check)))
"#;

const SHIM: &str = r#"
    (component $shim
        (import "type-response" (type $response1 (eq $response)))
        (import "type-failure" (type $failure1 (eq $failure)))
        (import "type-request" (type $request1 (eq $request)))
        (import "handle" (func $handle (param "request" $request1) (result (result $response1 (error $failure1)))))
        (export $r "response" (type $response1))
        (export $f "failure" (type $failure1))
        (export $q "request" (type $request1))
        (export "handle" (func $handle) (func (param "request" $q) (result (result $r (error $f))))))
"#;

/// An http plugin whose core module has these fields and whose `handle` has this body. At `$ok` it answers
/// 200 with no body.
fn plugin(fields: &str, handle: &str) -> Bytes {
    let shim = SHIM.replacen("(component $shim", &format!("(component $shim {TYPES}"), 1);
    let text = format!(
        r#"(component {TYPES} {IMPORTS}
        (core module $m
            (import "libc" "memory" (memory 2))
            (import "host" "now" (func $now (result i64)))
            (import "host" "random" (func $random (param i32 i32)))
            (import "host" "write" (func $write (param i32 i32 i32)))
            (import "host" "increment" (func $increment (param i32 i32 i32 i32 i64 i32)))
            (import "host" "counter" (func $counter (param i32 i32 i32 i32 i32)))
            (import "host" "check" (func $check (param i32 i32 i32 i32 i32 i32)))
            {fields}
            (func $ok (param $status i32) (param $body i32) (param $length i32) (result i32)
                (i64.store (i32.const 1024) (i64.const 0))
                (i32.store (i32.const 1032) (local.get $status))
                (i64.store (i32.const 1036) (i64.const 0))
                (i32.store (i32.const 1044) (local.get $body))
                (i32.store (i32.const 1048) (local.get $length))
                (i32.const 1024))
            (func (export "handle")
                (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
                {handle}))
        (core instance $i (instantiate $m (with "libc" (instance $libc)) (with "host" (instance $host))))
        (func $handle (param "request" $request) (result (result $response (error $failure)))
            (canon lift (core func $i "handle") (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))
        {shim}
        (instance $trigger (instantiate $shim
            (with "type-response" (type $response)) (with "type-failure" (type $failure)) (with "type-request" (type $request))
            (with "handle" (func $handle))))
        (export "chalet:platform/http-trigger@0.1.0" (instance $trigger)))"#
    );
    wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}")).into()
}

const OK: &str = "(call $ok (i32.const 200) (i32.const 0) (i32.const 0))";

struct Bench {
    engine: Engine,
    shard: Shard,
    scope: TenantScope,
    services: Arc<Services>,
    plan: Plan,
    _folder: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::new(folder.path().join("code")).unwrap();
        config.worker = worker();
        config.slots = 32;
        config.threads = 2;
        let master = Master::generate();
        let limits = Arc::new(services::limits::Limits::local(Clock::system()));
        let engine = Engine::start(&config, capabilities::ALL, &master, limits.clone()).unwrap();
        let db = Db::open(&Location::Sqlite { path: folder.path().join("test.sqlite") }).await.unwrap();
        let id = TenantId::new();
        sqlx::query("insert into heads (tenant_id) values ($1)")
            .bind(id.as_str().to_owned())
            .execute(db.directory())
            .await
            .unwrap();
        let plan = Plan { timeout_ms: 10_000, ..Plan::default() };
        let scope = TenantScope::mint(id, "acme".into(), Arc::new(plan.clone()));
        Self {
            engine,
            shard: Shard::new(db.store(), Clock::system(), Breaks::default()),
            scope,
            services: Arc::new(Services {
                flags: Arc::new(services::flags::Flags::new(None).unwrap()),
                limits,
                secrets: Arc::new(services::secrets::Secrets::new(master.clone())),
                egress: Arc::new(services::egress::Egress::new(&services::egress::Config::default()).unwrap()),
                master,
                breaks: Breaks::default(),
            }),
            plan,
            _folder: folder,
        }
    }

    async fn load(&self, wasm: &Bytes) -> Arc<Program> {
        let inspection = self.engine.accept(&self.scope, wasm.clone()).await.unwrap();
        self.engine.loaded(&inspection.digest).unwrap()
    }

    fn guest(&self) -> Guest {
        let manifest = "name = \"a\"\nversion = \"0.1.0\"\n[grants]\nkv = [\"orders\"]\nlimits = [\"orders\"]";
        let budget = Budget::of(&self.plan, &Limits::default());
        let invocation = Invocation {
            id: crate::kernel::id::new(),
            scope: self.scope.clone(),
            manifest: Arc::new(Manifest::from_toml(manifest).unwrap()),
            cause: "test".into(),
            seed: [7; 32],
            deadline: Instant::now() + budget.timeout,
            abandoned: Box::new(|_| {}),
            depth: 0,
        };
        Guest::new(Arc::new(invocation), budget, self.services.clone(), self.shard.begin(&self.scope))
    }

    async fn run_guest(&self, program: &Arc<Program>, guest: Guest) -> Ended {
        run(&self.engine, program.clone(), guest, Call::Http(Arc::new(request()))).await.unwrap()
    }

    async fn run(&self, fields: &str, handle: &str) -> Ended {
        let program = self.load(&plugin(fields, handle)).await;
        self.run_guest(&program, self.guest()).await
    }
}

fn request() -> http::Request {
    http::Request {
        method: "GET".into(),
        path: "/".into(),
        query: None,
        headers: vec![("a".into(), b"b".to_vec())],
        body: b"hello".to_vec(),
        route: "GET /".into(),
        params: vec![],
    }
}

fn status(ended: &Ended) -> u16 {
    match &ended.outcome {
        Ok(Answer::Http(response)) => response.status,
        other => panic!("{other:?}"),
    }
}

fn code(ended: &Ended) -> &'static str {
    match &ended.outcome {
        Err(Failure::Trap { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_guest_answers_and_its_globals_are_new_at_every_call() {
    let bench = Bench::new().await;
    let fields = "(global $calls (mut i32) (i32.const 0))";
    let handle = "(global.set $calls (i32.add (global.get $calls) (i32.const 1)))
        (i32.store8 (i32.const 8) (i32.add (global.get $calls) (i32.load8_u (i32.const 8))))
        (call $ok (i32.add (i32.const 199) (i32.load8_u (i32.const 8))) (i32.const 8) (i32.const 1))";
    let program = bench.load(&plugin(fields, handle)).await;
    for _ in 0..1_000 {
        let ended = bench.run_guest(&program, bench.guest()).await;
        assert_eq!(status(&ended), 200);
        assert!(ended.spent.fuel > 0 && ended.spent.host_calls == 0 && ended.spent.memory_bytes == 128 << 10);
    }
    assert_eq!(bench.engine.free_slots(), 32);
}

#[tokio::test]
async fn a_program_that_nobody_calls_is_unmapped_and_mapped_again() {
    let bench = Bench::new().await;
    let program = bench.load(&plugin("", OK)).await;
    let digest = *program.digest();
    bench.engine.unmap_idle();
    assert!(bench.engine.loaded(&digest).is_some(), "it was called since");
    bench.engine.unmap_idle();
    assert_eq!(bench.engine.programs(), 1);
    bench.engine.unmap_idle();
    assert_eq!(bench.engine.programs(), 0);
    // Whoever has it goes on with it.
    assert_eq!(status(&bench.run_guest(&program, bench.guest()).await), 200);
    let never = std::future::pending();
    let again = bench.engine.load(&bench.scope, &digest, never).await.unwrap();
    assert_eq!(status(&bench.run_guest(&again, bench.guest()).await), 200);
}

#[tokio::test]
async fn the_same_call_costs_the_same_fuel() {
    let bench = Bench::new().await;
    let handle = format!("(drop (call $now)) (call $write (i32.const 2) (i32.const 16) (i32.const 6)) {OK}");
    let program = bench.load(&plugin("", &handle)).await;
    let first = bench.run_guest(&program, bench.guest()).await;
    let second = bench.run_guest(&program, bench.guest()).await;
    assert_eq!(first.spent.fuel, second.spent.fuel);
    assert_eq!(first.spent.host_calls, 2);
    assert_eq!(first.guest.log.lines()[0].message, "orders");
}

#[tokio::test]
async fn endless_work_ends_by_fuel_or_by_the_deadline_wherever_it_is() {
    let mut bench = Bench::new().await;
    let spin = "(loop $l (br $l)) unreachable";
    let start = "(func $start (loop $l (br $l))) (start $start)";
    let fill = "(loop $l (memory.fill (i32.const 8192) (i32.const 1) (i32.const 100000)) (br $l)) unreachable";
    let calls = "(loop $l (drop (call $now)) (br $l)) unreachable";
    for (fields, handle) in [("", spin), (start, OK), ("", fill)] {
        bench.plan.fuel = 1_000_000;
        let ended = bench.run(fields, handle).await;
        assert!(matches!(ended.outcome, Err(Failure::Fuel)), "{handle}: {:?}", ended.outcome);
        assert_eq!(ended.spent.fuel, 1_000_000);
    }
    bench.plan.fuel = u64::MAX >> 1;
    bench.plan.timeout_ms = 100;
    bench.plan.host_calls = u32::MAX;
    for (fields, handle) in [("", spin), (start, OK), ("", fill), ("", calls)] {
        let program = bench.load(&plugin(fields, handle)).await;
        let begun = Instant::now();
        let ended = bench.run_guest(&program, bench.guest()).await;
        assert!(matches!(ended.outcome, Err(Failure::Deadline)), "{handle}: {:?}", ended.outcome);
        assert!(begun.elapsed() < Duration::from_millis(400), "{handle}: {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn traps_have_their_own_codes_and_the_next_call_is_well() {
    let mut bench = Bench::new().await;
    bench.plan.host_calls = 100;
    let recursion = "(func $f (result i32) (i32.add (call $f) (i32.const 1)))";
    let table = "(table 1 funcref) (type $t (func))";
    let cases: [(&str, &str, &str); 8] = [
        ("", "unreachable", "plugin_failed"),
        ("", "(i32.div_u (i32.const 1) (i32.const 0))", "plugin_failed"),
        ("", "(i32.load (i32.const -1))", "plugin_failed"),
        (table, "(call_indirect (type $t) (i32.const 0)) unreachable", "plugin_failed"),
        (recursion, "(call $f)", "stack_exhausted"),
        ("", "(loop $l (drop (call $now)) (br $l)) unreachable", "hostcall_budget"),
        ("", "(i32.const -4)", "plugin_failed"),
        ("", "(call $random (i32.const 1000000) (i32.const 8)) unreachable", "plugin_failed"),
    ];
    for (fields, handle, expected) in cases {
        let ended = bench.run(fields, handle).await;
        assert_eq!(code(&ended), expected, "{handle}");
        assert_eq!(status(&bench.run("", OK).await), 200);
    }
}

#[tokio::test]
async fn memory_is_bounded_over_all_memories() {
    let mut bench = Bench::new().await;
    bench.plan.memory_bytes = 1 << 20;
    let grow =
        "(loop $l (if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then unreachable)) (br $l)) unreachable";
    let ended = bench.run("", grow).await;
    assert_eq!(code(&ended), "memory_exhausted");
    assert!(ended.spent.memory_bytes <= 1 << 20);
    // Growth that is refused is an answer too.
    let refused = format!("(if (i32.ne (memory.grow (i32.const 1000)) (i32.const -1)) (then unreachable)) {OK}");
    assert_eq!(status(&bench.run("", &refused).await), 200);
    // The first memory is there before the guest runs.
    bench.plan.memory_bytes = 64 << 10;
    assert_eq!(code(&bench.run("", OK).await), "memory_exhausted");
    let table = "(table $t 1 100000000 funcref)";
    let grow = format!(
        "(if (i32.ne (table.grow $t (ref.null func) (i32.const 1000000)) (i32.const -1)) (then unreachable)) {OK}"
    );
    bench.plan.memory_bytes = 1 << 20;
    assert_eq!(status(&bench.run(table, &grow).await), 200);
}

#[tokio::test]
async fn hostile_pointers_and_answers_are_failures_of_their_own() {
    let mut bench = Bench::new().await;
    bench.plan.response_body_bytes = 1_000;
    let trapped = [
        // A string behind the end of memory, and one that is no UTF-8.
        "(call $write (i32.const 2) (i32.const 0) (i32.const -1)) unreachable",
        "(i32.store8 (i32.const 0) (i32.const 255)) (call $write (i32.const 2) (i32.const 0) (i32.const 1)) unreachable",
        // An enum without such a case.
        "(call $write (i32.const 9) (i32.const 0) (i32.const 0)) unreachable",
        // A result and a failure without such a case.
        "(i32.store8 (i32.const 1024) (i32.const 7)) (i32.const 1024)",
        "(i32.store8 (i32.const 1024) (i32.const 1)) (i32.store8 (i32.const 1032) (i32.const 7)) (i32.const 1024)",
        "(call $ok (i32.const 200) (i32.const 0) (i32.const -1))",
    ];
    for handle in trapped {
        assert_eq!(code(&bench.run("", handle).await), "plugin_failed", "{handle}");
    }
    let invalid = [
        "(call $ok (i32.const 99) (i32.const 0) (i32.const 0))".to_owned(),
        "(call $ok (i32.const 200) (i32.const 0) (i32.const 1001))".to_owned(),
        // So large that it is refused before it is copied.
        "(drop (memory.grow (i32.const 100))) (call $ok (i32.const 200) (i32.const 0) (i32.const 6000000))".to_owned(),
    ];
    for handle in invalid {
        let ended = bench.run("", &handle).await;
        assert!(matches!(ended.outcome, Err(Failure::InvalidResponse(_))), "{handle}: {:?}", ended.outcome);
    }
    // The same size as an argument is a trap of the guest's, not a bad answer.
    let flood = "(drop (memory.grow (i32.const 100))) (call $write (i32.const 2) (i32.const 0) (i32.const 6000000)) unreachable";
    assert_eq!(code(&bench.run("", flood).await), "plugin_failed");
}

#[tokio::test]
async fn a_guests_own_failure_is_passed_on() {
    let bench = Bench::new().await;
    let retry =
        "(i32.store8 (i32.const 1024) (i32.const 1)) (i64.store (i32.const 1040) (i64.const 1500)) (i32.const 1024)";
    assert!(matches!(bench.run("", retry).await.outcome, Err(Failure::Retry { after_ms: 1_500 })));
    let reject = "(i32.store8 (i32.const 1024) (i32.const 1)) (i32.store8 (i32.const 1032) (i32.const 1))
        (i32.store (i32.const 1040) (i32.const 16)) (i32.store (i32.const 1044) (i32.const 6)) (i32.const 1024)";
    match bench.run("", reject).await.outcome {
        Err(Failure::Reject(reason)) => assert_eq!(reason, "orders"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_number_that_is_none_has_one_form() {
    let bench = Bench::new().await;
    // 0/0 and inf-inf, whose bits differ between processors, as the answer's body.
    let handle = "(f64.store (i32.const 0) (f64.div (f64.const 0) (f64.const 0)))
        (f64.store (i32.const 8) (f64.sub (f64.const inf) (f64.const inf)))
        (call $ok (i32.const 200) (i32.const 0) (i32.const 16))";
    match bench.run("", handle).await.outcome {
        Ok(Answer::Http(response)) => {
            let canonical = 0x7ff8_0000_0000_0000_u64.to_le_bytes();
            assert_eq!(response.body, [canonical, canonical].concat());
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_not_granted_is_an_error_value_and_what_is_staged_is_read() {
    let bench = Bench::new().await;
    let call = |key: u32, length: u32| {
        format!(
            "(call $increment (i32.const {key}) (i32.const {length}) (i32.const 16) (i32.const 6) (i64.const 5) (i32.const 512))"
        )
    };
    // The result's discriminant is the status' distance from 200, the error's that from 210.
    let denied = format!(
        "{} (call $ok (i32.add (i32.mul (i32.load8_u (i32.const 512)) (i32.const 10)) (i32.add (i32.const 200) (i32.load8_u (i32.const 520))))
            (i32.const 0) (i32.const 0))",
        call(22, 7)
    );
    assert_eq!(status(&bench.run("", &denied).await), 210);
    let counted = format!(
        "{} {} (call $counter (i32.const 16) (i32.const 6) (i32.const 16) (i32.const 6) (i32.const 768))
        (call $ok (i32.add (i32.const 200) (i32.wrap_i64 (i64.load (i32.const 784)))) (i32.const 0) (i32.const 0))",
        call(16, 6),
        call(16, 6)
    );
    let ended = bench.run("", &counted).await;
    assert_eq!((status(&ended), ended.guest.effects.len()), (210, 1));
}

#[tokio::test]
async fn a_guest_whose_snapshot_is_gone_is_dropped_there_and_runs_again() {
    let bench = Bench::new().await;
    let read = |key: u32, length: u32| {
        format!("(call $counter (i32.const 16) (i32.const 6) (i32.const {key}) (i32.const {length}) (i32.const 768))")
    };
    // It reads `orders`, waits until the test has changed both, and reads `private`; then it would trap.
    let handle = format!("{} {} unreachable", read(16, 6), read(22, 7));
    let program = bench.load(&plugin("", &handle)).await;
    let write = async |value: i64| {
        let mut effects = bench.shard.begin(&bench.scope);
        for key in ["orders", "private"] {
            services::kv::increment(&mut effects, "orders", key, value).await.unwrap();
        }
        assert!(matches!(bench.shard.commit(effects.into_set(None, None)).await.unwrap(), Verdict::Committed { .. }));
    };
    write(1).await;
    let mut guest = bench.guest();
    // What the guest would have read before the change.
    services::kv::counter(&mut guest.effects, "orders", "orders").await.unwrap();
    write(1).await;
    let ended = bench.run_guest(&program, guest).await;
    match &ended.outcome {
        Err(Failure::Rerun(key)) => assert_eq!(key.key, "orders"),
        other => panic!("{other:?}"),
    }
    let again = ended.guest.again(1_000_000);
    assert!(again.effects.stale().is_none() && again.host_calls() == 0);
    assert_eq!(code(&bench.run_guest(&program, again).await), "plugin_failed");
}

#[tokio::test]
async fn random_bytes_come_from_the_seed_and_stay_the_same_in_a_re_run() {
    let bench = Bench::new().await;
    let handle = "(call $random (i32.const 40) (i32.const 512))
        (call $ok (i32.const 200) (i32.load (i32.const 512)) (i32.load (i32.const 516)))";
    let program = bench.load(&plugin("", handle)).await;
    let body = |ended: &Ended| match &ended.outcome {
        Ok(Answer::Http(response)) => response.body.clone(),
        other => panic!("{other:?}"),
    };
    let first = bench.run_guest(&program, bench.guest()).await;
    let bytes = body(&first);
    assert_eq!(bytes.len(), 40);
    let again = bench.run_guest(&program, first.guest.again(1_000_000)).await;
    assert_eq!(body(&again), bytes);
}

#[tokio::test]
async fn a_re_run_gets_the_answers_of_the_calls_that_were_made() {
    let bench = Bench::new().await;
    let document = br#"{"limits":[{"name":"orders","rate":1,"per":"day","burst":10}]}"#;
    let mut effects = bench.shard.begin(&bench.scope);
    bench.services.limits.put(&mut effects, document).unwrap();
    bench.shard.commit(effects.into_set(None, None)).await.unwrap();
    // Two equal checks and another; the body is what the second left, and the third.
    let check = |key: u32, into: u32| {
        format!(
            "(call $check (i32.const 16) (i32.const 6) (i32.const {key}) (i32.const 3) (i32.const 1) (i32.const {into}))"
        )
    };
    let handle = format!(
        "{} {} {} (i64.store (i32.const 600) (i64.load (i32.const 280))) (i64.store (i32.const 608) (i64.load (i32.const 344)))
        (call $ok (i32.add (i32.const 200) (i32.load8_u (i32.const 256))) (i32.const 600) (i32.const 16))",
        check(16, 256),
        check(16, 256),
        check(22, 320)
    );
    let program = bench.load(&plugin("", &handle)).await;
    let left = |ended: &Ended| match &ended.outcome {
        Ok(Answer::Http(http::Response { status: 200, body, .. })) => [body[0], body[8]],
        other => panic!("{other:?}"),
    };
    let first = bench.run_guest(&program, bench.guest()).await;
    assert_eq!(left(&first), [8, 9]);
    let again = first.guest.again(1_000_000);
    assert_eq!(again.recorded.orphaned(), 3);
    let again = bench.run_guest(&program, again).await;
    assert_eq!((left(&again), again.guest.recorded.orphaned()), ([8, 9], 0));
    // Another invocation finds what these two runs took, once.
    assert_eq!(left(&bench.run_guest(&program, bench.guest()).await), [6, 8]);
}

#[tokio::test]
async fn bulk_operations_are_charged_before_they_run() {
    let mut bench = Bench::new().await;
    bench.plan.fuel = 100_000;
    let fields = "(table $t 1 funcref) (data $d \"abc\") (elem $e func)";
    // Each would also trap, if it came to that.
    for handle in [
        "(memory.fill (i32.const 0) (i32.const 1) (i32.const 100000000))",
        "(memory.copy (i32.const 0) (i32.const 9) (i32.const 100000000))",
        "(memory.init $d (i32.const 0) (i32.const 0) (i32.const 100000000))",
        "(table.fill $t (i32.const 0) (ref.null func) (i32.const 100000000))",
        "(table.init $t $e (i32.const 0) (i32.const 0) (i32.const 100000000))",
        // Not known to the compiler.
        "(memory.fill (i32.const 0) (i32.const 1) (i32.mul (i32.load (i32.const 16)) (i32.load (i32.const 16))))",
    ] {
        let ended = bench.run(fields, &format!("{handle} unreachable")).await;
        assert!(matches!(ended.outcome, Err(Failure::Fuel)), "{handle}: {:?}", ended.outcome);
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_its_guest() {
    let mut bench = Bench::new().await;
    bench.plan.fuel = u64::MAX >> 1;
    bench.plan.timeout_ms = 60_000;
    let program = bench.load(&plugin("", "(loop $l (br $l)) unreachable")).await;
    for _ in 0..20 {
        let call = bench.run_guest(&program, bench.guest());
        assert!(tokio::time::timeout(Duration::from_millis(5), call).await.is_err());
    }
    let begun = Instant::now();
    while bench.engine.free_slots() < 32 {
        assert!(begun.elapsed() < Duration::from_secs(2), "guests go on without a caller");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_node_that_is_full_says_so_at_the_deadline() {
    let mut bench = Bench::new().await;
    bench.plan.fuel = u64::MAX >> 1;
    bench.plan.timeout_ms = 1_500;
    let spinning = bench.load(&plugin("", "(loop $l (br $l)) unreachable")).await;
    let well = bench.load(&plugin("", OK)).await;
    let mut spinners = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let (engine, program, guest) = (bench.engine.clone(), spinning.clone(), bench.guest());
        spinners
            .spawn(async move { run(&engine, program, guest, Call::Http(Arc::new(request()))).await.unwrap().outcome });
    }
    while bench.engine.free_slots() > 0 {
        tokio::task::yield_now().await;
    }
    bench.plan.timeout_ms = 100;
    assert!(matches!(bench.run_guest(&well, bench.guest()).await.outcome, Err(Failure::Overloaded)));
    while let Some(outcome) = spinners.join_next().await {
        assert!(matches!(outcome.unwrap(), Err(Failure::Deadline)));
    }
    bench.plan.timeout_ms = 1_500;
    assert_eq!(status(&bench.run_guest(&well, bench.guest()).await), 200);
}

#[tokio::test]
async fn a_panic_in_a_host_function_costs_its_invocation_only() {
    let bench = Bench::new().await;
    let program = bench.load(&plugin("", OK)).await;
    let run = bench
        .engine
        .run(program.clone(), bench.guest(), |_, _, _| Box::pin(async { panic!("as the test wants") }))
        .await
        .unwrap();
    let outcome: Result<(), Failure> = run.outcome;
    assert!(matches!(outcome, Err(Failure::Trap { code: "internal", .. })), "{outcome:?}");
    assert_eq!(status(&bench.run_guest(&program, bench.guest()).await), 200);
    assert_eq!(bench.engine.free_slots(), 32);
}

#[tokio::test]
async fn a_trigger_that_is_not_exported_is_the_plugins_failure() {
    let bench = Bench::new().await;
    let program = bench.load(&plugin("", OK)).await;
    let delivery =
        webhook::Delivery { source: "s".into(), id: "1".into(), event_type: None, headers: vec![], body: Vec::new() };
    let ended = run(&bench.engine, program, bench.guest(), Call::Webhook(Arc::new(delivery))).await.unwrap();
    assert_eq!(code(&ended), "plugin_failed");
}

#[tokio::test]
async fn the_same_component_is_compiled_once_and_a_bad_one_fails_once() {
    let bench = Bench::new().await;
    let wasm = plugin("", OK);
    let digest = Digest::of(&wasm);
    let loads = (0..8).map(|_| bench.engine.load(&bench.scope, &digest, async { Ok(wasm.clone()) }));
    let programs = futures_util::future::join_all(loads).await;
    let first = programs[0].as_ref().unwrap();
    assert!(programs.iter().all(|program| Arc::ptr_eq(program.as_ref().unwrap(), first)));

    // It passes the gate and does not validate: a constant of another type than the function's result.
    let mut bad = plugin("", "(i32.const 1234567)").to_vec();
    let at = bad.windows(5).position(|bytes| bytes == [0x41, 0x87, 0xad, 0xcb, 0]).unwrap();
    bad[at] = 0x42;
    let bad = Bytes::from(bad);
    for _ in 0..3 {
        assert_eq!(bench.engine.accept(&bench.scope, bad.clone()).await.unwrap_err().code(), "component_invalid");
    }
    let fetched_again =
        bench.engine.load(&bench.scope, &Digest::of(&bad), async { Err(Error::not_found("not asked")) }).await;
    assert_eq!(fetched_again.err().unwrap().code(), "component_invalid");
    let other = bench.engine.load(&bench.scope, &Digest::of(b"x"), async { Ok(wasm.clone()) }).await;
    assert_eq!(other.err().unwrap().code(), "internal");
}

#[tokio::test]
async fn an_import_of_another_shape_is_refused_at_the_upload() {
    let bench = Bench::new().await;
    let mut wasm = plugin("", OK).to_vec();
    let name = b"now-ms";
    while let Some(at) = wasm.windows(name.len()).position(|bytes| bytes == name) {
        wasm[at..at + name.len()].copy_from_slice(b"no-suc");
    }
    let error = bench.engine.accept(&bench.scope, wasm.into()).await.unwrap_err();
    assert_eq!(error.code(), "component_invalid");
    assert!(error.message().contains("context"), "{}", error.message());
}

#[test]
fn the_gate_says_what_a_component_is() {
    let interfaces: Vec<_> = capabilities::ALL.iter().map(|capability| capability.interface).collect();
    let found = crate::engine::inspect::inspect(&plugin("", OK), Class::Usual, &interfaces).unwrap();
    assert_eq!(found.triggers, ["http"]);
    assert_eq!(found.exports, ["chalet:platform/http-trigger@0.1.0"]);
    assert!(found.imports.contains(&"chalet:platform/kv@0.1.0".to_owned()));
    assert_eq!(found.sdk, None);
}
