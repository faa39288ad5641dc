//! One effect per idempotency key, over the API and over a plugin.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::kit::engine::Engine;
use crate::kit::oracle::Watch;
use crate::kit::postgres::{self, Database};
use crate::kit::server::{Server, Setup, Tenant, acme_on, expect};

on_both_engines! {
    a_repeated_request_gets_the_first_answer_and_has_one_effect,
    the_same_key_at_the_same_time_has_one_effect,
    keys_of_different_callers_and_tenants_do_not_meet,
    making_a_tenant_or_a_key_again_gives_the_same_answer,
    a_failure_is_not_stored_and_the_next_try_runs,
    strangers_do_not_share_answers,
}

async fn a_repeated_request_gets_the_first_answer_and_has_one_effect(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let acme = server.tenant("acme").await;
    acme.deploy("notes").await;
    let post = |key: &str| {
        acme.call(Method::POST, "notes", "/notes").header("idempotency-key", key).json(&json!({ "text": "once" }))
    };
    let first = post("k-1").send().await.expect("an answer");
    assert_eq!(first.status(), StatusCode::CREATED);
    assert!(first.headers().get("idempotent-replayed").is_none());
    let first: Value = first.json().await.expect("JSON");
    // Quoted and unquoted are the same key.
    for key in ["k-1", "\"k-1\""] {
        let again = post(key).send().await.expect("an answer");
        assert_eq!(again.status(), StatusCode::CREATED);
        assert_eq!(again.headers()["idempotent-replayed"], "true");
        assert_eq!(again.json::<Value>().await.expect("JSON"), first);
    }
    let notes = expect(acme.api(Method::GET, "/kv/notes"), StatusCode::OK).await;
    assert_eq!(notes["data"].as_array().map(Vec::len), Some(1));
    let other =
        acme.call(Method::POST, "notes", "/notes").header("idempotency-key", "k-1").json(&json!({ "text": "other" }));
    assert_eq!(expect(other, StatusCode::UNPROCESSABLE_ENTITY).await["code"], "idempotency_key_reused");
    watch.end(&server).await;
}

async fn the_same_key_at_the_same_time_has_one_effect(engine: Engine) {
    let server = Arc::new(engine.server().await);
    let watch = Watch::begin(&server).await;
    let acme = server.tenant("acme").await;
    acme.deploy("notes").await;
    for round in 0..20 {
        let calls = (0..if round == 0 { 100 } else { 10 }).map(|_| {
            let request =
                acme.call(Method::POST, "notes", "/notes").header("idempotency-key", format!("round-{round}"));
            request.json(&json!({ "text": "race" })).send()
        });
        for answer in join_all(calls).await {
            let status = answer.expect("an answer").status();
            assert!(matches!(status, StatusCode::CREATED | StatusCode::CONFLICT), "{status}");
        }
    }
    let notes = expect(acme.api(Method::GET, "/kv/notes?limit=1000"), StatusCode::OK).await;
    assert_eq!(notes["data"].as_array().map(Vec::len), Some(20));
    watch.end(&server).await;
}

async fn keys_of_different_callers_and_tenants_do_not_meet(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let (acme, globex) = (server.tenant("acme").await, server.tenant("globex").await);
    let other_key = acme.mint(&["tenant:write"]).await;
    let write = |tenant: &str, key: &str, value: &'static str| {
        let path = format!("/v1/tenants/{tenant}/kv/c/k");
        server.anonymous(Method::PUT, &path).bearer_auth(key).header("idempotency-key", "same").body(value).send()
    };
    assert_eq!(write("acme", &acme.key, "1").await.expect("an answer").status(), StatusCode::CREATED);
    assert_eq!(write("acme", &other_key, "2").await.expect("an answer").status(), StatusCode::NO_CONTENT);
    assert_eq!(write("globex", &globex.key, "3").await.expect("an answer").status(), StatusCode::CREATED);
    assert_eq!(acme.kv("c", "k").await.as_deref(), Some(&b"2"[..]));
    assert_eq!(globex.kv("c", "k").await.as_deref(), Some(&b"3"[..]));
    watch.end(&server).await;
}

async fn making_a_tenant_or_a_key_again_gives_the_same_answer(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let make = || {
        server.admin(Method::POST, "/v1/tenants").header("idempotency-key", "t").json(&json!({ "id": "acme" })).send()
    };
    let first = make().await.expect("an answer");
    assert_eq!(first.status(), StatusCode::CREATED);
    let first: Value = first.json().await.expect("JSON");
    let again = make().await.expect("an answer");
    assert_eq!(
        (again.status(), again.headers()["idempotent-replayed"].to_str().ok()),
        (StatusCode::CREATED, Some("true"))
    );
    assert_eq!(again.json::<Value>().await.expect("JSON"), first);
    let key = || {
        let request = server.admin(Method::POST, "/v1/tenants/acme/keys").header("idempotency-key", "k");
        expect(request.json(&json!({ "name": "ci", "scopes": ["tenant:read"] })), StatusCode::CREATED)
    };
    assert_eq!(key().await, key().await);
    let keys = expect(server.admin(Method::GET, "/v1/tenants/acme/keys"), StatusCode::OK).await;
    assert_eq!(keys["data"].as_array().map(Vec::len), Some(1));
    watch.end(&server).await;
}

async fn a_failure_is_not_stored_and_the_next_try_runs(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-kv").await;
    let run = |ops: Value| {
        acme.call(Method::POST, "guest-kv", "/run").header("idempotency-key", "k").json(&json!({ "ops": ops }))
    };
    let failing = json!([{ "op": "put", "key": "a", "value": 1 }, { "op": "status", "status": 500 }]);
    server.allow_errors();
    expect(run(failing.clone()), StatusCode::INTERNAL_SERVER_ERROR).await;
    assert_eq!(acme.kv("c", "a").await, None, "nothing of a failed invocation is there");
    // The same key with another request is free: the failure left no answer behind.
    expect(run(json!([{ "op": "put", "key": "a", "value": 2 }])), StatusCode::OK).await;
    assert_eq!(acme.kv("c", "a").await.as_deref(), Some(&b"2"[..]));
    watch.end(&server).await;
}

async fn strangers_do_not_share_answers(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-context").await;
    let invocation = async |header: &str, value: &str| {
        let request = server.anonymous(Method::POST, "/t/acme/guest-context/context/x").header(header, value);
        expect(request.header("idempotency-key", "k"), StatusCode::OK).await["invocation"].to_string()
    };
    let strangers =
        [("cookie", "session=1"), ("cookie", "session=2"), ("authorization", "Bearer 1"), ("accept", "*/*")];
    let mut answered = std::collections::HashSet::new();
    for (header, value) in strangers {
        let first = invocation(header, value).await;
        assert_eq!(invocation(header, value).await, first, "a stranger gets its own answer again");
        answered.insert(first);
    }
    assert_eq!(answered.len(), strangers.len(), "a stranger got another's answer");
    watch.end(&server).await;
}

/// A call that counts itself in `n`, and takes a while.
fn counted(acme: &Tenant<'_>, key: &str, rounds: u64) -> RequestBuilder {
    let ops = json!({ "ops": [{ "op": "increment", "key": "n", "delta": 1 }, { "op": "spin", "rounds": rounds }] });
    acme.call(Method::POST, "guest-kv", "/run").header("idempotency-key", key).json(&ops)
}

async fn count(acme: &Tenant<'_>) -> usize {
    let n = acme.kv("c", "n").await.expect("something was counted");
    String::from_utf8_lossy(&n).parse().expect("a number")
}

/// Turns of a loop that keep a guest busy for some tenths of a second.
const BUSY: u64 = 100_000_000;

/// Wait until somebody has claimed a key, and be the database's superuser then.
async fn claimed(database: &Database) -> PgConnection {
    let mut admin = PgConnection::connect(&database.admin_url).await.expect("the cluster answers");
    let until = Instant::now() + Duration::from_secs(10);
    while sqlx::query("select from claims").fetch_all(&mut admin).await.expect("read").is_empty() {
        assert!(Instant::now() < until, "nobody claims the key");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    admin
}

#[tokio::test]
async fn the_same_key_on_two_nodes_has_one_effect() {
    const KEYS: usize = 100;
    let setup = Setup::postgres().await;
    let (one, two) = (Server::start_with(setup.clone()), Server::start_with(setup));
    let acme = acme_on(&[&one, &two]).await;
    for key in 0..KEYS {
        let calls = (0..6).map(|n| counted(&acme[n % 2], &format!("k-{key}"), 1_000).send());
        let answers = join_all(calls).await.into_iter().map(|answer| answer.expect("an answer"));
        let mut invocations = Vec::new();
        for answer in answers {
            match answer.status() {
                StatusCode::OK => invocations.push(answer.headers()["chalet-invocation"].clone()),
                status => assert_eq!(status, StatusCode::CONFLICT),
            }
        }
        invocations.dedup();
        assert_eq!(invocations.len(), 1, "all who are answered get the same answer");
    }
    assert_eq!(count(&acme[0]).await, KEYS);
}

#[tokio::test]
async fn a_key_whose_node_was_killed_is_free_at_once() {
    let database = postgres::database().await;
    let (one, two) = (Server::start_with(Setup::on(&database)), Server::start_with(Setup::on(&database)));
    let acme = acme_on(&[&one, &two]).await;
    let (lost, repeated) = tokio::join!(counted(&acme[0], "k", BUSY).send(), async {
        claimed(&database).await;
        let waits = expect(counted(&acme[1], "k", BUSY), StatusCode::CONFLICT).await;
        assert_eq!(waits["code"], "idempotency_key_in_use");
        one.kill();
        let killed = Instant::now();
        loop {
            let answer = counted(&acme[1], "k", BUSY).send().await.expect("an answer");
            match answer.status() {
                StatusCode::CONFLICT => assert!(killed.elapsed() < Duration::from_secs(5), "a claim outlives its node"),
                status => break status,
            }
        }
    });
    assert!(lost.is_err(), "the node was killed before it answered: {lost:?}");
    assert_eq!((repeated, count(&acme[1]).await), (StatusCode::OK, 1));
}

/// A node stops while it works on a key, longer than its claim lasts, so that another one does the work; then
/// it goes on. How often the work is done, and whether the first node gives the other one's answer.
async fn overtaken(breaks: &str) -> (usize, bool) {
    let database = postgres::database().await;
    let setup = Setup::on(&database).with("CHALET_BREAK", breaks);
    let (one, two) = (Server::start_with(setup.clone()), Server::start_with(setup));
    let acme = acme_on(&[&one, &two]).await;
    let (late, ()) = tokio::join!(counted(&acme[0], "k", BUSY).send(), async {
        let mut admin = claimed(&database).await;
        one.freeze();
        admin.execute("update claims set lease_until_ms = 0").await.expect("the lease is over");
        let done = counted(&acme[1], "k", BUSY).send().await.expect("an answer");
        assert_eq!(done.status(), StatusCode::OK);
        assert!(done.headers().get("idempotent-replayed").is_none());
        one.thaw();
    });
    let late = late.expect("an answer");
    assert_eq!(late.status(), StatusCode::OK);
    (count(&acme[0]).await, late.headers().get("idempotent-replayed").is_some())
}

#[tokio::test]
async fn a_node_that_was_overtaken_gives_the_other_ones_answer() {
    assert_eq!(overtaken("").await, (1, true));
    // A busy machine may stop it before it has even looked for an answer; then it is not overtaken.
    for _ in 0..5 {
        if overtaken("reads").await == (2, false) {
            return;
        }
    }
    panic!("without validation the work is done twice");
}
