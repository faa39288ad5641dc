//! `kill -9` at random moments under load: what was acknowledged is there once, what was not is there once,
//! whole, or not at all; and repeating every open request with its key leaves exactly one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::kit::postgres::Cluster;
use crate::kit::server::{Server, Setup, expect};
use crate::kit::soak;

/// Rounds on SQLite and PostgreSQL, and how many of the latter kill the database too.
const SQLITE_ROUNDS: usize = 200;
const POSTGRES_ROUNDS: usize = 50;
const DATABASE_KILLS: usize = 20;
/// How many times as many under `make soak`, which are a thousand on SQLite.
const SOAKED: usize = 5;
/// Clients that send one request after another.
const CLIENTS: usize = 16;
/// How long an open request is repeated until it must be done. A dead server's claims on keys must not
/// outlive it, so this is shorter than their lease.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the client knows of its requests, outside of the server: by key, whether it was acknowledged.
type Ledger = Arc<Mutex<HashMap<String, bool>>>;

/// One request: two rows, a counter and a custom meter, all of which must agree.
fn ops(key: &str) -> Value {
    json!({ "ops": [
        { "op": "put", "key": format!("a-{key}"), "value": key },
        { "op": "put", "key": format!("b-{key}"), "value": key },
        { "op": "increment", "key": "counter", "delta": 1 },
        { "op": "record", "meter": "requests", "value": "1" },
    ] })
}

async fn send(http: &reqwest::Client, url: &str, token: &str, key: &str) -> Option<Response> {
    let request = http.post(format!("{url}/t/acme/guest-kv/run")).bearer_auth(token).header("idempotency-key", key);
    request.json(&ops(key)).send().await.ok()
}

/// Load from all clients until the server is killed; how many requests were open at that moment.
async fn round(
    server: &mut Server,
    token: &str,
    ledger: &Ledger,
    round: usize,
    kill_database: Option<&Cluster>,
) -> usize {
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (http, url, token, ledger) =
                (server.http.clone(), server.url.clone(), token.to_owned(), ledger.clone());
            tokio::spawn(async move {
                for n in 0.. {
                    let key = format!("{round}-{client}-{n}");
                    ledger.lock().expect("no panic").insert(key.clone(), false);
                    match send(&http, &url, &token, &key).await.map(|answer| answer.status()) {
                        Some(StatusCode::OK) => {
                            ledger.lock().expect("no panic").insert(key, true);
                        }
                        Some(_) => {}
                        None => return,
                    }
                }
            })
        })
        .collect();
    // After some answers, however slow the machine is, and at any moment of what comes next.
    let (answers, until) = (rand::random_range(0..40), Instant::now() + Duration::from_secs(2));
    while ledger.lock().expect("no panic").values().filter(|done| **done).count() < answers && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(rand::random_range(1..50))).await;
    if let Some(cluster) = kill_database {
        cluster.kill();
    }
    server.kill();
    for client in clients {
        client.await.expect("no client failed");
    }
    if let Some(cluster) = kill_database {
        cluster.boot();
    }
    let open = ledger.lock().expect("no panic").values().filter(|acknowledged| !**acknowledged).count();
    server.crash_and_restart();
    open
}

/// What was committed before a round, and is metered: requests of the ledgers, and those that cleared up after them.
#[derive(Default)]
struct Before {
    requests: usize,
    clearings: usize,
}

/// The value of a meter. Before anything is recorded there is none.
async fn metered(server: &Server, token: &str, meter: &str) -> usize {
    let path = format!("/v1/tenants/acme/usage?meter={meter}");
    let usage = expect(server.anonymous(Method::GET, &path).bearer_auth(token), StatusCode::OK).await;
    usage["data"][0]["value"].as_str().map_or(0, |value| value.parse().expect("a number"))
}

/// Whether each request's effects are there as the ledger says, and metered: by the guest and by the host.
async fn check(server: &Server, token: &str, ledger: &Ledger, all: bool, before: &Before) -> usize {
    let entries = keys(server, token).await;
    let ledger = ledger.lock().expect("no panic").clone();
    let mut done = 0;
    for (key, acknowledged) in &ledger {
        let (a, b) = (entries.contains(&format!("a-{key}")), entries.contains(&format!("b-{key}")));
        assert_eq!(a, b, "the effects of {key} are there in part");
        assert!(a || !(*acknowledged || all), "the acknowledged effects of {key} are lost");
        done += usize::from(a);
    }
    assert_eq!(entries.iter().filter(|entry| entry.starts_with("a-")).count(), done, "effects of no request");
    let counter = server.anonymous(Method::GET, "/v1/tenants/acme/kv/c/counter").bearer_auth(token).send().await;
    let counter = counter.expect("an answer").text().await.expect("text");
    assert_eq!(counter.parse().unwrap_or(0), done, "the counter and the rows disagree");
    let recorded = metered(server, token, "requests").await;
    assert_eq!(recorded, before.requests + done, "the meter and the rows disagree");
    // What failed has no effects and is counted later, in both meters at once.
    let ran = loop {
        let failures = metered(server, token, "failures").await;
        let all = metered(server, token, "invocations").await;
        if metered(server, token, "failures").await == failures {
            break all - failures;
        }
    };
    assert_eq!(ran, before.requests + before.clearings + done, "the host's meter and the rows disagree");
    done
}

/// A request that was answered has its stored answer, also behind the crash.
async fn answered_before(server: &Server, token: &str, ledger: &Ledger) {
    let acknowledged = ledger.lock().expect("no panic").iter().find(|(_, done)| **done).map(|(key, _)| key.clone());
    let Some(key) = acknowledged else { return };
    let answer = send(&server.http, &server.url, token, &key).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(answer.headers().contains_key("idempotent-replayed"), "{key} was acknowledged, and runs again");
}

async fn keys(server: &Server, token: &str) -> std::collections::HashSet<String> {
    let mut keys = std::collections::HashSet::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/v1/tenants/acme/kv/c?limit=1000{cursor}");
        let page = expect(server.anonymous(Method::GET, &path).bearer_auth(token), StatusCode::OK).await;
        let data = page["data"].as_array().cloned().unwrap_or_default();
        keys.extend(data.iter().filter_map(|entry| entry["key"].as_str().map(str::to_owned)));
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return keys,
        }
    }
}

async fn rounds(setup: Setup, wanted: usize, cluster: Option<&Cluster>) {
    let mut server = Server::start_with(setup.with("RUST_LOG", "off"));
    server.unlimited().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-kv").await;
    let token = acme.key.clone();
    let wanted = soak::either(wanted, SOAKED * wanted);
    let (mut counted, mut tried, mut requests, mut open) = (0, 0, 0, 0);
    let mut before = Before::default();
    while counted < wanted {
        let ledger = Ledger::default();
        let database = cluster.filter(|_| counted < DATABASE_KILLS);
        let in_flight = round(&mut server, &token, &ledger, tried, database).await;
        tried += 1;
        assert!(tried < wanted * 3, "most rounds had no request in flight");
        counted += usize::from(in_flight > 0);
        open += in_flight;
        requests += ledger.lock().expect("no panic").len();
        let unanswered: Vec<String> = {
            let ledger = ledger.lock().expect("no panic");
            ledger.iter().filter(|(_, acknowledged)| !**acknowledged).map(|(key, _)| key.clone()).collect()
        };
        check(&server, &token, &ledger, false, &before).await;
        answered_before(&server, &token, &ledger).await;
        for key in &unanswered {
            // A busy machine may refuse or time out, which changes nothing; in the end it is done.
            let until = Instant::now() + PATIENCE;
            loop {
                let status = send(&server.http, &server.url, &token, key).await.map(|answer| answer.status());
                if status == Some(StatusCode::OK) {
                    break;
                }
                assert!(Instant::now() < until, "repeating {key} answers {status:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        before.requests += check(&server, &token, &ledger, true, &before).await;
        before.clearings += clear(&server, &token).await;
    }
    println!("{counted} kills with {requests} requests, {open} of them open: nothing lost, nothing doubled");
}

/// Remove what the round wrote, so that the next one checks a small collection; in how many requests.
async fn clear(server: &Server, token: &str) -> usize {
    let keys: Vec<_> = keys(server, token).await.into_iter().collect();
    for some in keys.chunks(500) {
        let ops: Vec<Value> = some.iter().map(|key| json!({ "op": "delete", "key": key })).collect();
        let request = server.anonymous(Method::POST, "/t/acme/guest-kv/run").bearer_auth(token);
        expect(request.json(&json!({ "ops": ops })), StatusCode::OK).await;
    }
    keys.len().div_ceil(500)
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_on_sqlite_lose_and_double_nothing() {
    rounds(Setup::sqlite(), SQLITE_ROUNDS, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_on_postgresql_lose_and_double_nothing() {
    let cluster = Cluster::start();
    let database = cluster.database().await;
    rounds(Setup::on(&database), POSTGRES_ROUNDS, Some(&cluster)).await;
}
