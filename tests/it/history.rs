//! Random concurrent histories, and whether some serial order explains what everybody saw (rules T1, T2).
//!
//! Clients run transactions of a few reads and writes on a few keys: absent keys, prefix lists and pages,
//! deletes and new rows under old keys, rows that expire, counters, the sweeper. Commits are numbered, so
//! that the order to check is given: each transaction that committed must have seen the state right before
//! its number. Every other one, read-only or ended by a conflict, must have seen one state, at a place that
//! real time allows: not before a commit that was answered before it began, nor before what an earlier
//! reader saw, nor behind a commit that began after it ended. Each promise is broken once, to see that the
//! checker notices.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::kit::store::Bench;
use bytes::Bytes;
use chalet::effects::{Breaks, Effects, Row, Shard, Space, Value, Verdict};
use chalet::kernel::clock::Clock;
use chalet::kernel::error::{Kind, Result};
use chalet::kernel::tenant::TenantScope;
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

const KV: Space = Space::named("kv/things");
/// Rows of bytes, and counters. Few, so that transactions meet.
const KEYS: [&str; 4] = ["a0", "a1", "b0", "b1"];
const COUNTERS: [&str; 2] = ["a2", "c0"];
const PREFIXES: [&str; 4] = ["", "a", "b", "c"];
/// Clients of a history, and transactions of each.
const CLIENTS: usize = 4;
const TRANSACTIONS: usize = 4;
/// Runs of a transaction whose facts did not hold.
const RUNS: usize = 3;
/// Histories that run at the same time, each on a tenant of its own.
const AT_ONCE: usize = 4;
/// Histories after which a broken promise must have shown itself.
const CONTROL: usize = 1_000;

/// Histories of each test, unless `CHALET_HISTORIES` says otherwise: three tests make a thousand.
fn histories(share: usize) -> usize {
    let whole = std::env::var("CHALET_HISTORIES").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000);
    whole * share / 100
}

#[derive(Clone, Debug)]
enum Step {
    Get(&'static str),
    List(&'static str, usize),
    Put(&'static str, String, Option<i64>),
    Delete(&'static str),
    Add(&'static str, i64),
    Sweep(&'static str, i64),
}

/// What a read gave: (key, value, version).
type Seen = Vec<(Bytes, Value, u64)>;

#[derive(Debug)]
struct Transaction {
    begun: u64,
    ended: u64,
    now_ms: i64,
    steps: Vec<(Step, Option<(Seen, bool)>)>,
    seq: Option<u64>,
}

/// A row of the model.
#[derive(Clone, Debug, PartialEq)]
struct Stored {
    value: Value,
    version: u64,
    expires_at_ms: Option<i64>,
}

type State = BTreeMap<Bytes, Stored>;

/// The order of events of all clients, as a clock on the wall would show it.
fn instant() -> u64 {
    static EVENTS: AtomicU64 = AtomicU64::new(0);
    EVENTS.fetch_add(1, Ordering::SeqCst)
}

fn script(random: &mut StdRng, name: &str) -> Vec<Step> {
    let key = |random: &mut StdRng| KEYS[random.random_range(0..KEYS.len())];
    let any = |random: &mut StdRng| {
        let n = random.random_range(0..KEYS.len() + COUNTERS.len());
        *KEYS.iter().chain(&COUNTERS).nth(n).expect("in range")
    };
    let reads_only = random.random_range(0..10) < 3;
    (0..random.random_range(2..=5))
        .map(|n| match random.random_range(0..if reads_only { 5 } else { 11 }) {
            0..=2 => Step::Get(any(random)),
            3..=4 => Step::List(PREFIXES[random.random_range(0..PREFIXES.len())], random.random_range(1..=6)),
            5..=7 => {
                let ttl_ms = (random.random_range(0..4) == 0).then(|| random.random_range(1..40));
                Step::Put(key(random), format!("{name}.{n}"), ttl_ms)
            }
            8 => Step::Delete(any(random)),
            9 => Step::Add(COUNTERS[random.random_range(0..COUNTERS.len())], random.random_range(1..10)),
            _ => Step::Sweep(any(random), random.random_range(0..20)),
        })
        .collect()
}

async fn step(effects: &mut Effects, step: &mut Step) -> Result<Option<(Seen, bool)>> {
    let row = |key: Bytes, row: Row| (key, row.value, row.version);
    Ok(match step {
        Step::Get(key) => {
            let found = effects.get(&KV.key(*key)).await?;
            Some((found.map(|found| row((*key).into(), found)).into_iter().collect(), false))
        }
        Step::List(prefix, limit) => {
            let (rows, more) = effects.list(&KV.prefix(*prefix), *limit).await?;
            Some((rows.into_iter().map(|(key, found)| row(key, found)).collect(), more))
        }
        Step::Put(key, value, ttl_ms) => {
            *ttl_ms = ttl_ms.map(|ttl_ms| ttl_ms + effects.now_ms());
            effects.put(KV.key(*key), value.clone(), *ttl_ms)?;
            None
        }
        Step::Delete(key) => {
            effects.delete(KV.key(*key))?;
            None
        }
        Step::Add(key, delta) => {
            effects.add(KV.key(*key), *delta)?;
            None
        }
        Step::Sweep(key, ago_ms) => {
            *ago_ms = effects.now_ms() - *ago_ms;
            effects.sweep(KV.key(*key), *ago_ms)?;
            None
        }
    })
}

async fn run(shard: &Shard, scope: &TenantScope, script: &[Step], random: &mut StdRng) -> Transaction {
    let begun = instant();
    let mut effects = shard.begin(scope);
    let mut done = Transaction { begun, ended: 0, now_ms: effects.now_ms(), steps: Vec::new(), seq: None };
    for next in script {
        for _ in 0..random.random_range(0..3) {
            tokio::task::yield_now().await;
        }
        let mut next = next.clone();
        match step(&mut effects, &mut next).await {
            Ok(seen) => done.steps.push((next, seen)),
            Err(error) => {
                assert!(error.kind() == Kind::Conflict && effects.stale().is_some(), "{error:?}");
                done.ended = instant();
                return done;
            }
        }
    }
    if !effects.is_empty() {
        match shard.commit(effects.into_set(None, None)).await.expect("the committer takes it") {
            Verdict::Committed { tag } => done.seq = Some(tag.seq),
            Verdict::Conflict { .. } => {}
            Verdict::Refused(error) => panic!("{error:?}"),
        }
    }
    done.ended = instant();
    done
}

/// One history on a tenant of its own, with what is stored at its end as its last transaction.
async fn history(nodes: Arc<Vec<Shard>>, clock: Clock, scope: TenantScope, seed: u64) -> Vec<Transaction> {
    let clients = (0..CLIENTS).map(|client| {
        let (nodes, clock, scope) = (nodes.clone(), clock.clone(), scope.clone());
        tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(seed * CLIENTS as u64 + client as u64);
            let mut all = Vec::new();
            for n in 0..TRANSACTIONS {
                let script = script(&mut random, &format!("{client}.{n}"));
                let node = &nodes[(client + usize::from(random.random_range(0..8) == 0)) % nodes.len()];
                for _ in 0..RUNS {
                    let done = run(node, &scope, &script, &mut random).await;
                    let again =
                        done.seq.is_none() && script.iter().any(|step| !matches!(step, Step::Get(_) | Step::List(..)));
                    all.push(done);
                    if !again {
                        break;
                    }
                }
                if random.random_range(0..3) == 0 {
                    clock.advance(Duration::from_millis(random.random_range(1..30)));
                }
            }
            all
        })
    });
    let mut all = Vec::new();
    for client in join_all(clients).await {
        all.extend(client.expect("a client ends"));
    }
    let end = [Step::List("", 100), Step::Get("a0"), Step::Get("c0")];
    for node in nodes.iter() {
        all.push(run(node, &scope, &end, &mut StdRng::seed_from_u64(0)).await);
    }
    all
}

/// What a transaction with these steps sees on a state, compared with what it saw.
fn explains(state: &State, transaction: &Transaction) -> std::result::Result<(), String> {
    let live = |stored: &Stored| stored.expires_at_ms.is_none_or(|expires| expires > transaction.now_ms);
    let mut view: BTreeMap<Bytes, (Value, u64)> = state
        .iter()
        .filter(|(_, row)| live(row))
        .map(|(key, row)| (key.clone(), (row.value.clone(), row.version)))
        .collect();
    for (step, seen) in &transaction.steps {
        let expected = match step {
            Step::Get(key) => {
                let row = view.get(key.as_bytes()).map(|(value, version)| ((*key).into(), value.clone(), *version));
                Some((row.into_iter().collect::<Seen>(), false))
            }
            Step::List(prefix, limit) => {
                let inside = view.iter().filter(|(key, _)| key.starts_with(prefix.as_bytes()));
                let rows: Seen = inside.map(|(key, (value, version))| (key.clone(), value.clone(), *version)).collect();
                let more = rows.len() > *limit;
                Some((rows.into_iter().take(*limit).collect(), more))
            }
            Step::Put(key, value, expires_at_ms) => {
                if expires_at_ms.is_none_or(|expires| expires > transaction.now_ms) {
                    view.insert((*key).into(), (Value::Bytes(value.clone().into()), 0));
                } else {
                    view.remove(key.as_bytes());
                }
                None
            }
            Step::Delete(key) => {
                view.remove(key.as_bytes());
                None
            }
            Step::Add(key, delta) => {
                let base = view.get(key.as_bytes()).map_or(0, |(value, _)| count(value));
                view.insert((*key).into(), (Value::Counter(base + delta), 0));
                None
            }
            Step::Sweep(..) => None,
        };
        if *seen != expected {
            return Err(format!("{step:?} saw {seen:?}, where {expected:?} stood"));
        }
    }
    Ok(())
}

fn count(value: &Value) -> i64 {
    match value {
        Value::Counter(count) => *count,
        Value::Bytes(_) => panic!("a counter holds bytes"),
    }
}

/// The state after a commit.
fn applied(mut state: State, transaction: &Transaction, seq: u64) -> State {
    for (step, _) in &transaction.steps {
        match step {
            Step::Get(_) | Step::List(..) => {}
            Step::Put(key, value, expires_at_ms) => {
                let row =
                    Stored { value: Value::Bytes(value.clone().into()), version: seq, expires_at_ms: *expires_at_ms };
                state.insert((*key).into(), row);
            }
            Step::Delete(key) => {
                state.remove(key.as_bytes());
            }
            Step::Add(key, delta) => {
                let base = state.get(key.as_bytes()).map_or(0, |row| count(&row.value));
                state.insert(
                    (*key).into(),
                    Stored { value: Value::Counter(base + delta), version: seq, expires_at_ms: None },
                );
            }
            Step::Sweep(key, before_ms) => {
                if state
                    .get(key.as_bytes())
                    .is_some_and(|row| row.expires_at_ms.is_some_and(|expires| expires <= *before_ms))
                {
                    state.remove(key.as_bytes());
                }
            }
        }
    }
    state
}

/// Whether a serial order that respects real time explains a history; what contradicts it otherwise.
fn check(history: &[Transaction]) -> std::result::Result<(), String> {
    let mut commits: Vec<&Transaction> = history.iter().filter(|transaction| transaction.seq.is_some()).collect();
    commits.sort_by_key(|transaction| transaction.seq);
    let mut states = vec![State::new()];
    let mut latest_begin = 0;
    for (n, transaction) in commits.iter().enumerate() {
        let seq = n as u64 + 1;
        if transaction.seq != Some(seq) {
            return Err(format!("commit {seq} is missing or was given twice: {:?}", transaction.seq));
        }
        explains(&states[n], transaction).map_err(|why| format!("commit {seq}: {why}"))?;
        if transaction.ended < latest_begin {
            return Err(format!("commit {seq} ended before one with a lower number began"));
        }
        latest_begin = latest_begin.max(transaction.begun);
        states.push(applied(states[n].clone(), transaction, seq));
    }
    let mut others: Vec<&Transaction> = history.iter().filter(|transaction| transaction.seq.is_none()).collect();
    others.sort_by_key(|transaction| transaction.begun);
    // The earliest place that each reader can have; a later reader may not be placed before it.
    let mut placed: Vec<(u64, usize)> = Vec::new();
    for reader in others {
        let after = commits.iter().rposition(|commit| commit.ended < reader.begun).map_or(0, |n| n + 1);
        let after =
            placed.iter().filter(|(ended, _)| *ended < reader.begun).map(|(_, place)| *place).fold(after, usize::max);
        let before = commits.iter().position(|commit| commit.begun > reader.ended).unwrap_or(commits.len());
        let mut why = format!("no state is left between commits {after} and {before}");
        let place = (after..=before).find(|place| match explains(&states[*place], reader) {
            Ok(()) => true,
            Err(error) => {
                why = error;
                false
            }
        });
        let Some(place) = place else {
            return Err(format!("a reader between commits {after} and {before}: {why}"));
        };
        placed.push((reader.ended, place));
    }
    Ok(())
}

/// What became of many histories.
struct Outcome {
    histories: usize,
    transactions: usize,
    commits: usize,
    anomaly: Option<String>,
}

async fn explore(bench: &Bench, nodes: Vec<Shard>, most: usize) -> Outcome {
    let nodes = Arc::new(nodes);
    let mut outcome = Outcome { histories: 0, transactions: 0, commits: 0, anomaly: None };
    let first_seed: u64 = rand::random_range(0..1 << 40);
    while outcome.histories < most && outcome.anomaly.is_none() {
        let batch = (0..AT_ONCE).map(|n| {
            let seed = first_seed + (outcome.histories + n) as u64;
            let nodes = nodes.clone();
            async move {
                let scope = bench.tenant().await;
                history(nodes, bench.clock.clone(), scope, seed).await
            }
        });
        for history in join_all(batch).await {
            outcome.histories += 1;
            outcome.transactions += history.len();
            outcome.commits += history.iter().filter(|transaction| transaction.seq.is_some()).count();
            if let Err(why) = check(&history) {
                outcome.anomaly.get_or_insert(why);
            }
        }
    }
    outcome
}

/// No history of these nodes has an anomaly.
async fn holds(name: &str, bench: Bench, nodes: Vec<Shard>, most: usize) {
    let since = Instant::now();
    let outcome = explore(&bench, nodes.clone(), most).await;
    let sum = |field: fn(&Shard) -> u64| nodes.iter().map(field).sum::<u64>();
    println!(
        "{name}: {} histories in {:.1} s, {} transactions, {} commits in {} batches, {} conflicts, {} reads and {} cached",
        outcome.histories,
        since.elapsed().as_secs_f64(),
        outcome.transactions,
        outcome.commits,
        sum(|node| node.counts().batches.load(Ordering::Relaxed)),
        sum(|node| node.counts().conflicts.load(Ordering::Relaxed)),
        sum(|node| node.counts().reads.load(Ordering::Relaxed)),
        sum(|node| node.counts().cached_reads.load(Ordering::Relaxed)),
    );
    assert_eq!(outcome.anomaly, None, "after {} histories", outcome.histories);
    let met = sum(|node| node.counts().conflicts.load(Ordering::Relaxed));
    assert!(met as usize > outcome.histories / 10, "clients met: {met} conflicts");
}

/// With this promise broken, some history has an anomaly.
async fn notices(bench: Bench, nodes: usize, breaks: Breaks) {
    let mut shards = vec![bench.broken(breaks)];
    for _ in 1..nodes {
        shards.push(bench.other_node(breaks).await);
    }
    let outcome = explore(&bench, shards, CONTROL).await;
    println!("{breaks:?}: noticed after {} histories: {:?}", outcome.histories, outcome.anomaly);
    assert!(outcome.anomaly.is_some(), "{breaks:?} went unnoticed in {CONTROL} histories");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_on_sqlite_are_strictly_serializable() {
    let bench = Bench::sqlite().await;
    let nodes = vec![bench.shard()];
    holds("SQLite", bench, nodes, histories(40)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_on_postgres_are_strictly_serializable() {
    let bench = Bench::postgres().await;
    let nodes = vec![bench.shard()];
    holds("PostgreSQL, one node", bench, nodes, histories(30)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_of_two_nodes_on_one_database_are_strictly_serializable() {
    let bench = Bench::postgres().await;
    let nodes = vec![bench.shard(), bench.other_node(Breaks::default()).await];
    holds("PostgreSQL, two nodes", bench, nodes, histories(30)).await;
}

macro_rules! controls {
    ($($name:ident: $field:ident on $nodes:literal;)*) => {
        mod without {
            $(mod $name {
                use super::super::{Bench, Breaks, notices};

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn sqlite_has_anomalies() {
                    notices(Bench::sqlite().await, 1, Breaks { $field: true, ..Breaks::default() }).await;
                }

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn postgres_has_anomalies() {
                    notices(Bench::postgres().await, $nodes, Breaks { $field: true, ..Breaks::default() }).await;
                }
            })*
        }
    };
}

controls! {
    validation_of_reads: reads on 2;
    validation_of_ranges: ranges on 2;
    // On one node more sets wait for the same batch.
    batches_that_see_themselves: overlay on 1;
    snapshots: opacity on 2;
    the_cache_s_rules: cache on 2;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_head_s_lock_two_nodes_have_anomalies() {
    notices(Bench::postgres().await, 2, Breaks { lock: true, ..Breaks::default() }).await;
}

/// A transaction never sees an impossible state, even one that will be dropped: money moves between accounts
/// while everybody who looks at all of them adds it up. Gives the sums that were wrong.
async fn wrong_sums(bench: &Bench, breaks: Breaks) -> usize {
    const ACCOUNTS: usize = 5;
    const TOTAL: i64 = 1_000;
    const MOVES: usize = 200;
    let scope = bench.tenant().await;
    let mut nodes = vec![bench.broken(breaks)];
    if bench.shared() {
        nodes.push(bench.other_node(breaks).await);
    }
    let account = |n: usize| KV.key(format!("account{n}"));
    let mut effects = nodes[0].begin(&scope);
    for n in 0..ACCOUNTS {
        effects.put(account(n), (TOTAL / ACCOUNTS as i64).to_string(), None).expect("staged");
    }
    nodes[0].commit(effects.into_set(None, None)).await.expect("committed");
    let balance = |row: Option<Row>| -> i64 {
        let row = row.expect("an account is there");
        String::from_utf8_lossy(&row.value.to_bytes()).parse().expect("a number")
    };
    let workers = (0..6).map(|worker| {
        let node = nodes[worker % nodes.len()].clone();
        let scope = scope.clone();
        tokio::spawn(async move {
            let mut random: StdRng = StdRng::seed_from_u64(worker as u64);
            let mut wrong = 0;
            for _ in 0..MOVES {
                let mut effects = node.begin(&scope);
                let mut sum = 0;
                let first = random.random_range(0..ACCOUNTS);
                for n in 0..ACCOUNTS {
                    match effects.get(&account((first + n) % ACCOUNTS)).await {
                        Ok(row) => sum += balance(row),
                        Err(error) => {
                            assert!(error.kind() == Kind::Conflict && effects.stale().is_some(), "{error:?}");
                            break;
                        }
                    }
                    tokio::task::yield_now().await;
                }
                if effects.stale().is_some() {
                    continue;
                }
                wrong += usize::from(sum != TOTAL);
                // Every other worker only looks.
                if worker % 2 == 0 {
                    let (from, to) = (account(first), account((first + 1) % ACCOUNTS));
                    let rows = effects.get_many(&[from.clone(), to.clone()]).await.expect("read before");
                    let mut rows = rows.into_iter().map(balance);
                    let (a, b) = (rows.next().expect("one"), rows.next().expect("two"));
                    effects.put(from, (a - 7).to_string(), None).expect("staged");
                    effects.put(to, (b + 7).to_string(), None).expect("staged");
                    node.commit(effects.into_set(None, None)).await.expect("answered");
                }
            }
            wrong
        })
    });
    join_all(workers).await.into_iter().map(|wrong| wrong.expect("a worker ends")).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_ever_sees_an_impossible_state() {
    for bench in [Bench::sqlite().await, Bench::postgres().await] {
        assert_eq!(wrong_sums(&bench, Breaks::default()).await, 0);
        let wrong = wrong_sums(&bench, Breaks { opacity: true, ..Breaks::default() }).await;
        assert!(wrong > 0, "without the rule, impossible states are seen");
    }
}
