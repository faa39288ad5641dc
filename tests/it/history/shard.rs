//! Histories on the transactions themselves, where time is the test's: conflicts that nobody resolves, rows
//! that expire, and the sweeper.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chalet::effects::{Breaks, Effects, Row, Shard, Space, Verdict};
use chalet::kernel::clock::Clock;
use chalet::kernel::error::{Kind, Result};
use chalet::kernel::tenant::TenantScope;
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::{CLIENTS, CONTROL, END, Saw, Step, TRANSACTIONS, Transaction, explore, histories, instant, script};
use crate::kit::store::Bench;

const KV: Space = Space::named("kv/things");
/// Runs of a transaction whose facts did not hold.
const RUNS: usize = 3;

async fn step(effects: &mut Effects, step: &mut Step) -> Result<Saw> {
    let row = |(key, row): (Bytes, Row)| (key, row.value, row.version);
    Ok(match step {
        Step::Get(key) => {
            let found = effects.get(&KV.key(*key)).await?;
            Saw::Rows(found.map(|found| row(((*key).into(), found))).into_iter().collect(), false)
        }
        Step::List(prefix, limit) => {
            let (rows, more) = effects.list(&KV.prefix(*prefix), *limit).await?;
            Saw::Rows(rows.into_iter().map(row).collect(), more)
        }
        Step::Pages(prefix, limit) => {
            let (mut all, mut range) = (Vec::new(), KV.prefix(*prefix));
            loop {
                let (rows, more) = effects.list(&range, *limit).await?;
                all.extend(rows.into_iter().map(row));
                match all.last() {
                    Some((last, ..)) if more => range = KV.prefix(*prefix).behind(last),
                    _ => break Saw::Rows(all, false),
                }
            }
        }
        Step::Put(key, value, ttl_ms) => {
            *ttl_ms = ttl_ms.map(|ttl_ms| ttl_ms + effects.now_ms());
            effects.put(KV.key(*key), value.clone(), *ttl_ms)?;
            Saw::Nothing
        }
        Step::Delete(key) => {
            effects.delete(KV.key(*key))?;
            Saw::Nothing
        }
        Step::Add(key, delta) => {
            effects.add(KV.key(*key), *delta)?;
            Saw::Nothing
        }
        Step::Sweep(key, ago_ms) => {
            *ago_ms = effects.now_ms() - *ago_ms;
            effects.sweep(KV.key(*key), *ago_ms)?;
            Saw::Nothing
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
            Ok(saw) => done.steps.push((next, saw)),
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

/// One history on a tenant of its own. No number of a commit is missing in it.
async fn history(
    nodes: Arc<Vec<Shard>>,
    clock: Clock,
    scope: TenantScope,
    seed: u64,
) -> std::result::Result<Vec<Transaction>, String> {
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
                    let again = done.seq.is_none() && script.iter().any(Step::writes);
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
    for node in nodes.iter() {
        all.push(run(node, &scope, &END, &mut StdRng::seed_from_u64(0)).await);
    }
    let numbers: BTreeSet<u64> = all.iter().filter_map(|transaction| transaction.seq).collect();
    let last = numbers.last().copied().unwrap_or(0);
    if numbers.len() as u64 == last { Ok(all) } else { Err(format!("a number up to {last} is missing: {numbers:?}")) }
}

async fn explored(bench: &Bench, nodes: Vec<Shard>, most: usize) -> super::Outcome {
    let nodes = Arc::new(nodes);
    explore(most, async |_, seed| history(nodes.clone(), bench.clock.clone(), bench.tenant().await, seed).await).await
}

/// No history of these nodes has an anomaly.
async fn holds(name: &str, bench: Bench, nodes: Vec<Shard>, most: usize) {
    let since = Instant::now();
    let outcome = explored(&bench, nodes.clone(), most).await;
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
    let outcome = explored(&bench, shards, CONTROL).await;
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
        // On a busy machine the workers may hardly meet; then they come once more.
        let mut wrong = 0;
        for _ in 0..20 {
            wrong = wrong_sums(&bench, Breaks { opacity: true, ..Breaks::default() }).await;
            if wrong > 0 {
                break;
            }
        }
        assert!(wrong > 0, "without the rule, impossible states are seen");
    }
}
