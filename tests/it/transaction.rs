//! An invocation is a transaction, seen over HTTP through a real component.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};

use crate::kit::engine::Engine;
use crate::kit::postgres::{self, Database, HeadLock};
use crate::kit::server::{Server, Setup, Tenant, acme_on, expect};

on_both_engines! {
    sixty_four_clients_of_one_key_lose_nothing,
    a_slow_reader_among_fast_writers_finishes,
    what_a_failed_invocation_staged_never_happened,
    ten_thousand_concurrent_increments_lose_none,
    concurrent_writes_of_one_tenant_share_transactions,
    a_call_that_neither_reads_nor_writes_issues_no_statement,
    an_invocation_that_is_said_to_be_too_late_left_nothing,
}

async fn run(tenant: &Tenant<'_>, ops: Value) -> Value {
    expect(tenant.call(Method::POST, "guest-kv", "/run").json(&json!({ "ops": ops })), StatusCode::OK).await
}

async fn what_a_failed_invocation_staged_never_happened(engine: Engine) {
    let server = engine.server().await;
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

/// 64 clients add to some keys by reading and writing; the sums are what they were told, and nothing is lost.
async fn increments(servers: &[&Server], key: &str, total: u64, keys: u64) {
    const CLIENTS: u64 = 64;
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
                let ops = json!({ "ops": [{ "op": "add", "key": format!("k{}", n % keys), "delta": 1 }] });
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

async fn ten_thousand_concurrent_increments_lose_none(engine: Engine) {
    const TOTAL: u64 = 10_000;
    let setup = engine.setup().await;
    let server = Server::start_with(setup.clone());
    server.unlimited().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-kv").await;
    increments(&[&server], &acme.key, TOTAL, 8).await;
    assert_eq!(sum(&acme).await, TOTAL);
    let reruns = server.metric("chalet_invocation_reruns_total").await;
    assert!(reruns > 0.0, "64 clients on 8 keys never met: the test proves nothing");
    println!("{TOTAL} increments on {setup:?}: {reruns} re-runs");
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
    increments(&[&one, &two], &acme.key, TOTAL, 8).await;
    assert_eq!(sum(&acme).await, TOTAL);
    let reruns =
        one.metric("chalet_invocation_reruns_total").await + two.metric("chalet_invocation_reruns_total").await;
    assert!(reruns > 0.0);
    println!("{TOTAL} increments on two hosts: {reruns} re-runs");
}

async fn sixty_four_clients_of_one_key_lose_nothing(engine: Engine) {
    one_key_on(vec![engine.setup().await]).await;
}

#[tokio::test]
async fn sixty_four_clients_of_one_key_on_two_nodes_lose_nothing() {
    let shared = Setup::postgres().await;
    one_key_on(vec![shared.clone(), shared]).await;
}

async fn one_key_on(nodes: Vec<Setup>) {
    const TOTAL: u64 = 500;
    let servers: Vec<Server> = nodes.into_iter().map(Server::start_with).collect();
    let nodes: Vec<&Server> = servers.iter().collect();
    let acme = &acme_on(&nodes).await[0];
    increments(&nodes, &acme.key, TOTAL, 1).await;
    assert_eq!(sum(acme).await, TOTAL);
}

/// A commit that is under way as long as a test wants it to be.
enum Commit {
    Sqlite(SqliteConnection),
    Postgres(HeadLock),
}

impl Commit {
    async fn of(server: &Server, database: Option<&Database>, tenant: &str) -> Self {
        let Some(database) = database else {
            let file = server.data.path().join("chalet.sqlite");
            let mut connection = SqliteConnectOptions::new().filename(file).connect().await.expect("it opens");
            sqlx::raw_sql("begin immediate").execute(&mut connection).await.expect("it begins");
            return Self::Sqlite(connection);
        };
        Self::Postgres(database.lock_head(tenant).await)
    }

    async fn end(self) {
        match self {
            Self::Sqlite(connection) => connection.close().await.expect("it closes"),
            Self::Postgres(lock) => lock.release().await,
        }
    }
}

async fn concurrent_writes_of_one_tenant_share_transactions(engine: Engine) {
    let database = match engine {
        Engine::Sqlite => None,
        Engine::Postgres => Some(postgres::database().await),
    };
    let server = Server::start_with(database.as_ref().map_or_else(Setup::sqlite, Setup::on));
    server.unlimited().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-kv").await;
    run(&acme, json!([])).await;
    let mut least = f64::MAX;
    for _ in 0..5 {
        let before = server.metric("chalet_commit_batches_total").await;
        // How fast calls come is the machine's affair: a commit is under way until they are there. On one that is busy
        // with other tests they may come too late all the same; then they come once more.
        let commit = Commit::of(&server, database.as_ref(), "acme").await;
        let calls = (0..64).map(|n| {
            let ops = json!({ "ops": [{ "op": "put", "key": format!("k{n}"), "value": n }] });
            acme.call(Method::POST, "guest-kv", "/run").json(&ops).send()
        });
        let there = async {
            let until = Instant::now() + Duration::from_secs(1);
            while server.metric("chalet_commits_waiting").await < 56.0 && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            commit.end().await;
        };
        let (answers, ()) = tokio::join!(futures_util::future::join_all(calls), there);
        for answer in answers {
            assert_eq!(answer.expect("an answer").status(), StatusCode::OK);
        }
        least = least.min(server.metric("chalet_commit_batches_total").await - before);
        if least < 16.0 {
            break;
        }
    }
    assert!(least < 16.0, "64 one-write calls made {least} transactions");
}

async fn a_call_that_neither_reads_nor_writes_issues_no_statement(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-hello").await;
    let call = || acme.call(Method::GET, "guest-hello", "/").send();
    let statements =
        async || server.metric("chalet_reads_total").await + server.metric("chalet_commit_batches_total").await;
    // Settings that PostgreSQL was asked for more than a second ago are asked for again, as on a machine that is busy with
    // other things; then it is tried once more.
    let mut least = f64::MAX;
    for _ in 0..5 {
        assert_eq!(call().await.expect("an answer").status(), StatusCode::OK);
        // What that left behind is written within the flush interval.
        server
            .eventually("the tally is written", async || {
                let before = statements().await;
                tokio::time::sleep(std::time::Duration::from_millis(250)).await;
                statements().await == before
            })
            .await;
        let before = statements().await;
        assert_eq!(call().await.expect("an answer").status(), StatusCode::OK);
        least = least.min(statements().await - before);
        if least == 0.0 {
            break;
        }
    }
    assert_eq!(least, 0.0, "before the answer nothing is read or written");
}

/// Two doctors on call, of whom each may leave if the other stays, sign off on two nodes at the same time: both
/// have read that both are there before either commits. How many leave: the answer says whether the other
/// was there.
async fn leave_at_the_same_time(breaks: &str) -> usize {
    let database = postgres::database().await;
    let setup = Setup::on(&database).with("CHALET_BREAK", breaks);
    let (one, two) = (Server::start_with(setup.clone()), Server::start_with(setup));
    let acme = acme_on(&[&one, &two]).await;
    let put = |key: &str| json!({ "op": "put", "key": key, "value": "here" });
    run(&acme[0], json!([put("a"), put("b")])).await;
    let leave = |node: usize, own: &str, other: &str| {
        let ops = json!([{ "op": "get", "key": own }, { "op": "get", "key": other }, { "op": "put", "key": own, "value": "gone" }]);
        let acme = acme[node].clone();
        async move { run(&acme, ops).await["results"][1]["value"] == "here" }
    };
    let mut lock = database.lock_head("acme").await;
    let (a, b, ()) = tokio::join!(leave(0, "a", "b"), leave(1, "b", "a"), async {
        lock.awaited_by(2).await;
        lock.release().await;
    });
    usize::from(a) + usize::from(b)
}

#[tokio::test]
async fn write_skew_between_two_nodes_is_caught_behind_the_lock() {
    assert_eq!(leave_at_the_same_time("").await, 1, "the second one saw that the first one had left");
    assert_eq!(leave_at_the_same_time("reads").await, 2, "without validation both leave");
}

/// Two calls add to one key by reading and writing it, and wait for the same batch: the sum afterwards.
async fn add_in_one_batch(breaks: &str) -> u64 {
    let database = postgres::database().await;
    let server = Server::start_with(Setup::on(&database).with("CHALET_BREAK", breaks));
    let acme = &acme_on(&[&server]).await[0];
    let mut lock = database.lock_head("acme").await;
    let add = || run(acme, json!([{ "op": "add", "key": "k", "delta": 1 }]));
    // While this one waits, the tenant's next commits can only gather. It is refused in the end, since what it
    // adds to is no counter, so that it does not change the state that they have read.
    let ops = json!({ "ops": [{ "op": "increment", "key": "loaded", "delta": 1 }] });
    let first = expect(acme.call(Method::POST, "guest-kv", "/run").json(&ops), StatusCode::UNPROCESSABLE_ENTITY);
    tokio::join!(first, async {
        lock.awaited_by(1).await;
        tokio::join!(add(), add(), async {
            server.eventually("two wait", async || server.metric("chalet_commits_waiting").await == 2.0).await;
            lock.release().await;
        });
    });
    sum(acme).await
}

#[tokio::test]
async fn two_read_modify_writes_in_one_batch_lose_nothing() {
    assert_eq!(add_in_one_batch("").await, 2);
    assert_eq!(add_in_one_batch("overlay").await, 1, "without a look at the batch itself one is lost");
}

async fn a_slow_reader_among_fast_writers_finishes(engine: Engine) {
    slow_reader_on(vec![engine.setup().await]).await;
}

#[tokio::test]
async fn a_slow_reader_among_fast_writers_on_two_nodes_finishes() {
    let shared = Setup::postgres().await;
    slow_reader_on(vec![shared.clone(), shared]).await;
}

async fn slow_reader_on(nodes: Vec<Setup>) {
    const WRITERS: usize = 16;
    const KEYS: usize = 8;
    const READS: usize = 5;
    let servers: Vec<_> = nodes.into_iter().map(Server::start_with).collect();
    let servers: Vec<_> = servers.iter().collect();
    let acme = acme_on(&servers).await;
    let stop = AtomicBool::new(false);
    let written = AtomicU64::new(0);
    let writers = (0..WRITERS).map(async |writer| {
        while !stop.load(Ordering::Relaxed) {
            let key = format!("k{}", written.fetch_add(1, Ordering::Relaxed) as usize % KEYS);
            run(&acme[writer % acme.len()], json!([{ "op": "add", "key": key, "delta": 1 }])).await;
        }
    });
    let reader = async {
        let mut ops: Vec<Value> = Vec::new();
        for n in 0..KEYS {
            ops.push(json!({ "op": "get", "key": format!("k{n}") }));
            ops.push(json!({ "op": "spin", "rounds": 1_000_000 }));
        }
        ops.push(json!({ "op": "put", "key": "seen", "value": "all" }));
        for _ in 0..READS {
            let before = written.load(Ordering::Relaxed);
            run(&acme[0], json!(ops)).await;
            assert!(written.load(Ordering::Relaxed) > before, "nobody wrote meanwhile");
        }
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(futures_util::future::join_all(writers), reader);
    let reruns = servers[0].metric("chalet_invocation_reruns_total").await;
    println!("{READS} slow reads on {} nodes among {written:?} writes, {reruns} re-runs", servers.len());
}

#[tokio::test]
async fn a_node_that_stops_in_its_commit_stalls_nobody_and_answers_what_it_did() {
    let database = postgres::database().await;
    let (one, two) = (Server::start_with(Setup::on(&database)), Server::start_with(Setup::on(&database)));
    let acme = acme_on(&[&one, &two]).await;
    // The time that an invocation has ends while its commit is on its way.
    let plan = json!({ "timeout_ms": 1_000, "requests_per_second": 10_000, "request_burst": 10_000 });
    expect(one.admin(Method::PUT, "/v1/plans/free").json(&plan), StatusCode::OK).await;
    let mut lock = database.lock_head("acme").await;
    let increment = |node: usize| run(&acme[node], json!([{ "op": "increment", "key": "n", "delta": 1 }]));
    tokio::join!(increment(0), async {
        lock.awaited_by(1).await;
        one.freeze();
        lock.release().await;
        let stopped = Instant::now();
        for _ in 0..10 {
            increment(1).await;
        }
        assert!(stopped.elapsed() < Duration::from_secs(1), "the tenant waited {:?}", stopped.elapsed());
        assert_eq!(acme[1].kv("c", "n").await.as_deref(), Some(&b"11"[..]), "what the stopped node sent is there");
        // Longer than its invocation may take.
        tokio::time::sleep(Duration::from_millis(1_200).saturating_sub(stopped.elapsed())).await;
        one.thaw();
    });
    assert_eq!(acme[0].kv("c", "n").await.as_deref(), Some(&b"11"[..]));
}

async fn an_invocation_that_is_said_to_be_too_late_left_nothing(engine: Engine) {
    const CALLS: usize = 300;
    let server = engine.server().await;
    let acme = &acme_on(&[&server]).await[0];
    // As much work as can just be done in the time.
    let plan = json!({ "timeout_ms": 50, "requests_per_second": 10_000, "request_burst": 10_000 });
    expect(server.admin(Method::PUT, "/v1/plans/free").json(&plan), StatusCode::OK).await;
    let call = async |key: &str, rounds: u64| {
        let ops = json!({ "ops": [{ "op": "put", "key": key, "value": 0 }, { "op": "spin", "rounds": rounds }] });
        let answer = acme.call(Method::POST, "guest-kv", "/run").json(&ops).send().await.expect("an answer");
        answer.status()
    };
    let mut rounds = 100_000;
    while call("k", rounds).await == StatusCode::OK {
        rounds *= 2;
    }
    let (mut done, mut late) = (0, 0);
    for n in 0..CALLS {
        let key = format!("k{n}");
        let status = call(&key, rand::random_range(rounds / 8..2 * rounds)).await;
        let there = acme.kv("c", &key).await.is_some();
        match status {
            StatusCode::OK => done += 1,
            StatusCode::GATEWAY_TIMEOUT => late += 1,
            other => panic!("{other}"),
        }
        assert_eq!(there, status == StatusCode::OK, "{key} was answered {status}");
    }
    println!("{done} calls in time, {late} too late");
    assert!(done > 0 && late > 0, "{done} in time, {late} too late");
}
