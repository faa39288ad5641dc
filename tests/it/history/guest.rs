//! Histories through guests: a transaction is one call of `guest-kv` on a running server, which runs it again
//! until it commits, and answers what its last run read.
//!
//! Each call that writes also writes a row of a log, so that its number is the version of that row, and what
//! was acknowledged or refused can be compared with what is there. The clock is the server's: what expires
//! here does so in an hour, and nothing is swept; [`super::shard`] moves the time.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Instant;

use bytes::Bytes;
use chalet::effects::Value;
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use reqwest::{Method, StatusCode};
use serde_json::{Value as Json, json};

use super::{CLIENTS, CONTROL, END, LANES, Outcome, Saw, Step, TRANSACTIONS, Transaction};
use super::{explore, histories, instant, script};
use crate::kit::server::{Server, Setup};

/// The collection of the log.
const LOG: &str = "history";
/// Far behind the end of every history; the model's time is 0.
const HOUR_MS: i64 = 3_600_000;
/// Turns of a loop between two steps, at most: about as long as a step takes, so that calls overlap.
const SPIN: u64 = 100_000;

/// Servers on one database, and a tenant for each lane.
struct Nodes {
    servers: Vec<Server>,
    tenants: Vec<(String, String)>,
    /// What callers were told instead of an answer.
    refusals: Mutex<Vec<String>>,
}

impl Nodes {
    /// Servers that break these promises, on a database that one that keeps them has prepared.
    async fn start(setup: Setup, count: usize, lanes: usize, breaks: &str) -> Self {
        let healthy = Server::start_with(setup.clone());
        healthy.unlimited().await;
        let mut tenants = Vec::new();
        for lane in 0..lanes {
            let tenant = healthy.tenant(&format!("lane{lane}")).await;
            tenant.deploy("guest-kv").await;
            tenants.push((tenant.name, tenant.key));
        }
        healthy.stop();
        let setup = setup.with("CHALET_BREAK", breaks);
        let first = Server::start_on(setup.clone(), healthy.data.clone());
        let others = (1..count).map(|_| Server::start_with(setup.clone()));
        Self { servers: std::iter::once(first).chain(others).collect(), tenants, refusals: Mutex::default() }
    }

    /// The results of these operations, unless the call was refused.
    async fn call(&self, node: usize, lane: usize, ops: &[Json]) -> Result<Vec<Json>, String> {
        let (name, key) = &self.tenants[lane];
        let request = self.servers[node].anonymous(Method::POST, &format!("/t/{name}/guest-kv/run")).bearer_auth(key);
        let answer = request.json(&json!({ "ops": ops })).send().await.expect("an answer");
        let (status, body) = (answer.status(), answer.text().await.expect("text"));
        if status != StatusCode::OK {
            return Err(format!("{status} {body}"));
        }
        let mut body: Json = serde_json::from_str(&body).expect("JSON");
        Ok(body["results"].as_array_mut().map(std::mem::take).expect("results"))
    }

    /// One transaction on the rows whose keys begin with `place`; none if it was refused. A `name` is logged.
    async fn run(
        &self,
        (node, lane): (usize, usize),
        place: &str,
        script: &[Step],
        name: Option<&str>,
        random: &mut StdRng,
    ) -> Result<Transaction, String> {
        let (mut ops, mut steps) = (Vec::new(), Vec::new());
        for step in script {
            if random.random_range(0..2) == 0 {
                ops.push(json!({ "op": "spin", "rounds": random.random_range(0..SPIN) }));
                steps.push(None);
            }
            ops.push(op(step, place));
            steps.push(Some(as_it_stands(step)));
        }
        if let Some(name) = name {
            ops.push(json!({ "op": "put", "collection": LOG, "key": format!("{place}{name}"), "value": 0 }));
            steps.push(None);
        }
        let begun = instant();
        let results = self.call(node, lane, &ops).await;
        let ended = instant();
        let results = results?;
        let steps = steps.into_iter().zip(&results).filter_map(|(step, result)| {
            let step = step?;
            let saw = saw(&step, result, place);
            Some((step, saw))
        });
        Ok(Transaction { begun, ended, now_ms: 0, steps: steps.collect(), seq: None })
    }

    /// One history, on keys of its own.
    async fn history(&self, lane: usize, seed: u64) -> Result<Vec<Transaction>, String> {
        let place = &format!("{seed}/");
        let clients = (0..CLIENTS).map(async |client| {
            let mut random = StdRng::seed_from_u64(seed * CLIENTS as u64 + client as u64);
            let mut all = Vec::new();
            for n in 0..TRANSACTIONS {
                let name = format!("{client}.{n}");
                let mut script = script(&mut random, &name);
                script.retain(|step| !matches!(step, Step::Sweep(..)));
                let node = (client + usize::from(random.random_range(0..8) == 0)) % self.servers.len();
                let log = script.iter().any(Step::writes).then_some(&name[..]);
                let done = self.run((node, lane), place, &script, log, &mut random).await;
                all.push((log.map(str::to_owned), done));
            }
            all
        });
        let calls = join_all(clients).await;
        let log = self.log(lane, place).await;
        let mut all = Vec::new();
        for (name, done) in calls.into_iter().flatten() {
            let seq = name.as_ref().and_then(|name| log.get(name)).copied();
            match done {
                Ok(done) if seq.is_some() == name.is_some() => all.push(Transaction { seq, ..done }),
                Ok(_) => return Err(format!("{name:?} was acknowledged and is lost")),
                Err(refusal) if seq.is_some() => return Err(format!("{name:?} is there, and was answered {refusal}")),
                Err(refusal) => self.refusals.lock().expect("no panic").push(refusal),
            }
        }
        for node in 0..self.servers.len() {
            all.push(self.run((node, lane), place, &END, None, &mut StdRng::seed_from_u64(0)).await?);
        }
        Ok(all)
    }

    /// The numbers of a history's commits.
    async fn log(&self, lane: usize, place: &str) -> HashMap<String, u64> {
        let list = json!({ "op": "list", "collection": LOG, "prefix": place });
        let results = self.call(0, lane, &[list]).await.expect("the log can be read");
        rows(&results[0]["entries"], place)
            .into_iter()
            .map(|(name, _, seq)| (String::from_utf8_lossy(&name).into_owned(), seq))
            .collect()
    }

    async fn explored(&self, most: usize) -> Outcome {
        explore(most, async |lane, seed| self.history(lane, seed).await).await
    }

    async fn metric(&self, name: &str) -> f64 {
        let mut sum = 0.0;
        for server in &self.servers {
            sum += server.metric(name).await;
        }
        sum
    }
}

/// A step as `guest-kv` takes it.
fn op(step: &Step, place: &str) -> Json {
    let under = |key: &str| format!("{place}{key}");
    match step {
        Step::Get(key) => json!({ "op": "get", "key": under(key) }),
        Step::List(prefix, limit) => json!({ "op": "list", "prefix": under(prefix), "limit": limit }),
        Step::Pages(prefix, limit) => json!({ "op": "pages", "prefix": under(prefix), "limit": limit }),
        Step::Put(key, value, ttl_ms) => {
            json!({ "op": "put", "key": under(key), "value": value, "ttl_ms": ttl_ms.map(|_| HOUR_MS) })
        }
        Step::Delete(key) => json!({ "op": "delete", "key": under(key) }),
        Step::Add(key, delta) => json!({ "op": "increment", "key": under(key), "delta": delta }),
        Step::Sweep(..) => unreachable!("the server sweeps by itself"),
    }
}

/// A step as the model takes it.
fn as_it_stands(step: &Step) -> Step {
    match step {
        Step::Put(key, value, Some(_)) => Step::Put(key, value.clone(), Some(HOUR_MS)),
        other => other.clone(),
    }
}

/// What the guest says that a step saw.
fn saw(step: &Step, result: &Json, place: &str) -> Saw {
    assert!(result.get("error").is_none(), "{step:?} answered {result}");
    match step {
        Step::Get(key) => {
            let version = result["version"].as_u64();
            let row = version.map(|version| (Bytes::from(*key), value(&result["value"]), version));
            Saw::Rows(row.into_iter().collect(), false)
        }
        Step::List(..) => Saw::Rows(rows(&result["entries"], place), !result["cursor"].is_null()),
        Step::Pages(..) => Saw::Rows(rows(&result["entries"], place), false),
        Step::Delete(_) => Saw::Deleted(result["deleted"] == true),
        Step::Put(..) | Step::Add(..) | Step::Sweep(..) => Saw::Nothing,
    }
}

fn rows(entries: &Json, place: &str) -> Vec<(Bytes, Value, u64)> {
    let row = |entry: &Json| {
        let key = entry["key"].as_str().and_then(|key| key.strip_prefix(place)).expect("a key of this history");
        (key.to_owned().into(), value(&entry["value"]), entry["version"].as_u64().expect("a version"))
    };
    entries.as_array().expect("entries").iter().map(row).collect()
}

/// A counter shows as a number, and the scripts write nothing but text.
fn value(shown: &Json) -> Value {
    match shown {
        Json::String(text) => Value::Bytes(text.clone().into()),
        number => Value::Counter(number.as_i64().expect("a counter")),
    }
}

/// No history of these nodes has an anomaly.
async fn holds(name: &str, setup: Setup, nodes: usize, most: usize) {
    let nodes = Nodes::start(setup, nodes, LANES, "").await;
    let since = Instant::now();
    let outcome = nodes.explored(most).await;
    let reruns = nodes.metric("chalet_invocation_reruns_total").await;
    let refusals = nodes.refusals.lock().expect("no panic").clone();
    println!(
        "{name}: {} histories in {:.1} s, {} calls, {} commits in {} batches, {reruns} re-runs, refused: {refusals:?}",
        outcome.histories,
        since.elapsed().as_secs_f64(),
        outcome.transactions,
        outcome.commits,
        nodes.metric("chalet_commit_batches_total").await,
    );
    assert_eq!(outcome.anomaly, None, "after {} histories", outcome.histories);
    assert!(reruns as usize > outcome.histories / 10, "clients met: {reruns} re-runs");
    assert!(refusals.len() < outcome.transactions / 100, "calls were refused: {refusals:?}");
}

/// With this promise broken, some history has an anomaly.
async fn notices(setup: Setup, nodes: usize, breaks: &str) {
    let nodes = Nodes::start(setup, nodes, LANES, breaks).await;
    let outcome = nodes.explored(CONTROL).await;
    println!("{breaks}: noticed after {} histories: {:?}", outcome.histories, outcome.anomaly);
    assert!(outcome.anomaly.is_some(), "{breaks} went unnoticed in {CONTROL} histories");
}

#[tokio::test]
async fn histories_on_sqlite_are_strictly_serializable() {
    holds("guests on SQLite", Setup::sqlite(), 1, histories(70)).await;
}

#[tokio::test]
async fn histories_on_postgres_are_strictly_serializable() {
    holds("guests on PostgreSQL, one process", Setup::postgres().await, 1, histories(10)).await;
}

#[tokio::test]
async fn histories_of_two_processes_on_one_database_are_strictly_serializable() {
    holds("guests on PostgreSQL, two processes", Setup::postgres().await, 2, histories(20)).await;
}

macro_rules! controls {
    ($($name:ident: $breaks:literal on $nodes:literal;)*) => {
        mod without {
            $(mod $name {
                use super::super::{Setup, notices};

                #[tokio::test]
                async fn sqlite_has_anomalies() {
                    notices(Setup::sqlite(), 1, $breaks).await;
                }

                #[tokio::test]
                async fn postgres_has_anomalies() {
                    notices(Setup::postgres().await, $nodes, $breaks).await;
                }
            })*
        }
    };
}

controls! {
    validation_of_reads: "reads" on 2;
    validation_of_ranges: "ranges" on 2;
    // On one node more sets wait for the same batch.
    batches_that_see_themselves: "overlay" on 1;
    snapshots: "opacity" on 2;
    the_cache_s_rules: "cache" on 2;
}

#[tokio::test]
async fn without_the_head_s_lock_two_processes_have_anomalies() {
    notices(Setup::postgres().await, 2, "lock").await;
}

/// Money moves between accounts while guests add all of it up, reading one after another, and trap on another
/// sum: how many did. Every other client only looks.
async fn wrong_sums(setup: Setup, nodes: usize, breaks: &str) -> usize {
    const ACCOUNTS: usize = 5;
    const TOTAL: usize = 1_000;
    const CLIENTS: usize = 8;
    const CALLS: usize = 100;
    let nodes = Nodes::start(setup, nodes, 1, breaks).await;
    let account = |n: usize| format!("account{}", n % ACCOUNTS);
    let deposit = |n| json!({ "op": "put", "collection": "accounts", "key": account(n), "value": TOTAL / ACCOUNTS });
    nodes.call(0, 0, &(0..ACCOUNTS).map(deposit).collect::<Vec<_>>()).await.expect("deposited");
    let clients = (0..CLIENTS).map(async |client| {
        let mut wrong = 0;
        for _ in 0..CALLS {
            let first = rand::random_range(0..ACCOUNTS);
            let keys: Vec<String> = (first..first + ACCOUNTS).map(account).collect();
            let transfer =
                json!({ "op": "transfer", "collection": "accounts", "from": keys[0], "to": keys[1], "amount": 7 });
            let look = json!({ "op": "assert_sum", "collection": "accounts", "keys": keys, "sum": TOTAL });
            let ops = if client % 2 == 0 { vec![transfer, look] } else { vec![look] };
            if let Err(refusal) = nodes.call(client / 2 % nodes.servers.len(), 0, &ops).await {
                assert!(refusal.contains("plugin_failed"), "{refusal}");
                wrong += 1;
            }
        }
        wrong
    });
    join_all(clients).await.into_iter().sum()
}

#[tokio::test]
async fn no_guest_ever_sees_an_impossible_state() {
    let setups = async || [(Setup::sqlite(), 1), (Setup::postgres().await, 1), (Setup::postgres().await, 2)];
    for (setup, nodes) in setups().await {
        assert_eq!(wrong_sums(setup, nodes, "").await, 0);
    }
    for (setup, nodes) in setups().await {
        let wrong = wrong_sums(setup, nodes, "opacity").await;
        assert!(wrong > 0, "without the rule, impossible states are seen");
        println!("{wrong} wrong sums were seen without the rule");
    }
}
