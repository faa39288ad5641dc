//! Random concurrent histories, and whether some serial order explains what everybody saw (rules T1, T2).
//!
//! Clients run transactions of a few reads and writes on a few keys: absent keys, prefix lists and pages,
//! deletes and new rows under old keys, rows that expire, counters, the sweeper. Commits are numbered, so
//! that the order to check is given: each transaction that committed must have seen the state right before
//! its number. Every other one, read-only or ended by a conflict, must have seen one state, at a place that
//! real time allows: not before a commit that was answered before it began, nor before what an earlier
//! reader saw, nor behind a commit that began after it ended.
//!
//! Here stand the scripts, the model and the judge. Histories are made in two ways: [`shard`] runs them on
//! the transactions themselves, [`guest`] through a component on running servers. Each promise is broken
//! once in both, to see that the checker notices.

mod guest;
mod shard;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use chalet::effects::Value;
use futures_util::future::join_all;
use rand::RngExt as _;
use rand::rngs::StdRng;

/// Rows of bytes, and counters. Few, so that transactions meet.
const KEYS: [&str; 4] = ["a0", "a1", "b0", "b1"];
const COUNTERS: [&str; 2] = ["a2", "c0"];
const PREFIXES: [&str; 4] = ["", "a", "b", "c"];
/// Clients of a history, and transactions of each.
const CLIENTS: usize = 4;
const TRANSACTIONS: usize = 4;
/// Histories that run at the same time, each in a lane of its own.
const LANES: usize = 4;
/// Histories after which a broken promise must have shown itself.
const CONTROL: usize = 1_000;

/// Histories of each test, unless `CHALET_HISTORIES` says otherwise: the three tests of a way make a thousand.
fn histories(share: usize) -> usize {
    let whole = std::env::var("CHALET_HISTORIES").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000);
    whole * share / 100
}

#[derive(Clone, Debug)]
enum Step {
    Get(&'static str),
    List(&'static str, usize),
    /// All under a prefix, read in pages of this size.
    Pages(&'static str, usize),
    Put(&'static str, String, Option<i64>),
    Delete(&'static str),
    Add(&'static str, i64),
    Sweep(&'static str, i64),
}

impl Step {
    fn writes(&self) -> bool {
        !matches!(self, Self::Get(_) | Self::List(..) | Self::Pages(..))
    }
}

/// What a step showed.
#[derive(Debug, PartialEq)]
enum Saw {
    /// (key, value, version) of rows, and whether the page ended before the range.
    Rows(Vec<(Bytes, Value, u64)>, bool),
    /// Whether there was something to delete.
    Deleted(bool),
    Nothing,
}

#[derive(Debug)]
struct Transaction {
    begun: u64,
    ended: u64,
    now_ms: i64,
    steps: Vec<(Step, Saw)>,
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
    let prefix = |random: &mut StdRng| PREFIXES[random.random_range(0..PREFIXES.len())];
    let reads_only = random.random_range(0..10) < 3;
    (0..random.random_range(2..=5))
        .map(|n| match random.random_range(0..if reads_only { 6 } else { 12 }) {
            0..=2 => Step::Get(any(random)),
            3..=4 => Step::List(prefix(random), random.random_range(1..=6)),
            5 => Step::Pages(prefix(random), random.random_range(1..=3)),
            6..=8 => {
                let ttl_ms = (random.random_range(0..4) == 0).then(|| random.random_range(1..40));
                Step::Put(key(random), format!("{name}.{n}"), ttl_ms)
            }
            9 => Step::Delete(any(random)),
            10 => Step::Add(COUNTERS[random.random_range(0..COUNTERS.len())], random.random_range(1..10)),
            _ => Step::Sweep(any(random), random.random_range(0..20)),
        })
        .collect()
}

/// What is stored at the end of a history, read in its last transactions.
const END: [Step; 3] = [Step::List("", 100), Step::Get("a0"), Step::Get("c0")];

/// What a transaction with these steps sees on a state, compared with what it saw.
fn explains(state: &State, transaction: &Transaction) -> Result<(), String> {
    let live = |stored: &Stored| stored.expires_at_ms.is_none_or(|expires| expires > transaction.now_ms);
    let mut view: BTreeMap<Bytes, (Value, u64)> = state
        .iter()
        .filter(|(_, row)| live(row))
        .map(|(key, row)| (key.clone(), (row.value.clone(), row.version)))
        .collect();
    for (step, saw) in &transaction.steps {
        let under = |prefix: &str| {
            let inside = view.iter().filter(|(key, _)| key.starts_with(prefix.as_bytes()));
            inside.map(|(key, (value, version))| (key.clone(), value.clone(), *version)).collect::<Vec<_>>()
        };
        let expected = match step {
            Step::Get(key) => {
                let row = view.get(key.as_bytes()).map(|(value, version)| ((*key).into(), value.clone(), *version));
                Saw::Rows(row.into_iter().collect(), false)
            }
            Step::List(prefix, limit) => {
                let mut rows = under(prefix);
                let more = rows.len() > *limit;
                rows.truncate(*limit);
                Saw::Rows(rows, more)
            }
            Step::Pages(prefix, _) => Saw::Rows(under(prefix), false),
            Step::Put(key, value, expires_at_ms) => {
                if expires_at_ms.is_none_or(|expires| expires > transaction.now_ms) {
                    view.insert((*key).into(), (Value::Bytes(value.clone().into()), 0));
                } else {
                    view.remove(key.as_bytes());
                }
                Saw::Nothing
            }
            Step::Delete(key) => Saw::Deleted(view.remove(key.as_bytes()).is_some()),
            Step::Add(key, delta) => {
                let base = view.get(key.as_bytes()).map_or(0, |(value, _)| count(value));
                view.insert((*key).into(), (Value::Counter(base + delta), 0));
                Saw::Nothing
            }
            Step::Sweep(..) => Saw::Nothing,
        };
        // A transaction may delete without looking.
        if *saw != expected && *saw != Saw::Nothing {
            return Err(format!("{step:?} saw {saw:?}, where {expected:?} stood"));
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
            Step::Get(_) | Step::List(..) | Step::Pages(..) => {}
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
fn check(history: &[Transaction]) -> Result<(), String> {
    let mut commits: Vec<(u64, &Transaction)> =
        history.iter().filter_map(|transaction| Some((transaction.seq?, transaction))).collect();
    commits.sort_by_key(|(seq, _)| *seq);
    let mut states = vec![State::new()];
    let (mut latest_begin, mut last) = (0, 0);
    for (n, (seq, transaction)) in commits.iter().enumerate() {
        if *seq == last {
            return Err(format!("the number {seq} was given twice"));
        }
        last = *seq;
        explains(&states[n], transaction).map_err(|why| format!("commit {seq}: {why}"))?;
        if transaction.ended < latest_begin {
            return Err(format!("commit {seq} ended before one with a lower number began"));
        }
        latest_begin = latest_begin.max(transaction.begun);
        states.push(applied(states[n].clone(), transaction, *seq));
    }
    let mut others: Vec<&Transaction> = history.iter().filter(|transaction| transaction.seq.is_none()).collect();
    others.sort_by_key(|transaction| transaction.begun);
    // The earliest place that each reader can have; a later reader may not be placed before it.
    let mut placed: Vec<(u64, usize)> = Vec::new();
    for reader in others {
        let after = commits.iter().rposition(|(_, commit)| commit.ended < reader.begun).map_or(0, |n| n + 1);
        let after =
            placed.iter().filter(|(ended, _)| *ended < reader.begun).map(|(_, place)| *place).fold(after, usize::max);
        let before = commits.iter().position(|(_, commit)| commit.begun > reader.ended).unwrap_or(commits.len());
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
#[derive(Debug, Default)]
struct Outcome {
    histories: usize,
    transactions: usize,
    commits: usize,
    anomaly: Option<String>,
}

/// Make histories by lane and seed, at most so many, until one has an anomaly. Whoever makes them may find
/// one too.
async fn explore(most: usize, make: impl AsyncFn(usize, u64) -> Result<Vec<Transaction>, String>) -> Outcome {
    let mut outcome = Outcome::default();
    let first_seed: u64 = rand::random_range(0..1 << 40);
    while outcome.histories < most && outcome.anomaly.is_none() {
        let lanes = (0..LANES).map(|lane| make(lane, first_seed + (outcome.histories + lane) as u64));
        for made in join_all(lanes).await {
            outcome.histories += 1;
            let judged = made.and_then(|history| {
                outcome.transactions += history.len();
                outcome.commits += history.iter().filter(|transaction| transaction.seq.is_some()).count();
                check(&history)
            });
            if let Err(why) = judged {
                outcome.anomaly.get_or_insert(why);
            }
        }
    }
    outcome
}
