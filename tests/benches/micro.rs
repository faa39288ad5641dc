//! One decision of a rate limit and one evaluation of a flag, in this process, beside other people's.

use std::hint::black_box;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use chalet::effects::Shard;
use chalet::kernel::clock::Clock;
use chalet::kernel::tenant::{Plan, TenantScope};
use chalet::services::flags::{Context, Flags, Snapshot};
use chalet::services::limits::{Authority as _, Bucket, Limits, Memory, Quota, Take};
use futures_util::FutureExt as _;
use serde_json::json;

use crate::board::median;
use crate::child::{self, free_port};
use crate::kit::store::Bench;
use crate::peers;
use crate::servers::FLAGS;

/// How long each is done in a round.
const TURN: Duration = Duration::from_millis(150);
/// Callers that are told apart.
const CALLERS: usize = 1_000;

/// What is measured: its name, what the table says, and what it is compared with.
const ALL: &[(&str, &str, &str)] = &[
    ("take", "**Chalet**, one limit's decision", "redis"),
    ("admit", "**Chalet**, a request's admission: all its limits", "redis"),
    ("governor", "governor, one limit without keys", "take"),
    ("governor-keyed", "governor, a limit with keys", "take"),
    ("limitador", "limitador, in memory", "take"),
    ("redis", "a Redis round trip: `INCR`", "redis"),
    ("flag", "**Chalet**, a flag without rules", "unleash"),
    ("flag-rule", "**Chalet**, a flag with a condition and a rollout", "unleash-rule"),
    ("unleash", "Unleash's engine, a flag without rules", "unleash"),
    ("unleash-rule", "Unleash's engine, the same condition and rollout", "unleash-rule"),
];

/// Nanoseconds by name, a round each.
#[derive(Default)]
pub struct Micro {
    rounds: Vec<(String, Vec<f64>)>,
    missing: Vec<String>,
}

impl Micro {
    fn add(&mut self, name: &str, nanoseconds: f64) {
        match self.rounds.iter_mut().find(|(own, _)| own == name) {
            Some((_, rounds)) => rounds.push(nanoseconds),
            None => self.rounds.push((name.to_owned(), vec![nanoseconds])),
        }
    }

    /// The median of the rounds.
    pub fn median(&self, name: &str) -> Option<f64> {
        median(self.rounds.iter().find(|(own, _)| own == name)?.1.clone())
    }

    /// How many times as long the second takes.
    pub fn times(&self, name: &str, beside: &str) -> Option<f64> {
        Some(self.median(beside)? / self.median(name)?)
    }

    /// The table.
    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "### One decision or evaluation, in process\n\n| what | nanoseconds | times faster | than |\n|---|--:|--:|---|\n",
        );
        for (name, title, beside) in ALL {
            let Some(nanoseconds) = self.median(name) else { continue };
            let times = self.times(name, beside).map_or("-".into(), |times| format!("{times:.2}"));
            let (times, beside) = if name == beside { ("-", "-") } else { (&times[..], *beside) };
            text += &format!("| {title} | {nanoseconds:.0} | {times} | {beside} |\n");
        }
        for missing in &self.missing {
            text += &format!("\nNot measured: {missing}\n");
        }
        text
    }
}

/// Measure all of them in turn.
pub async fn run(rounds: usize) -> Micro {
    let mut found = Micro::default();
    let others = peers::program("peer-micro")
        .map_err(|why| found.missing.push(format!("governor, limitador and Unleash: {why}")));
    let redis = redis().map_err(|why| found.missing.push(format!("Redis: {why}")));
    let own = Own::new().await;
    for _ in 0..rounds {
        own.measure(&mut found);
        if let Ok(redis) = &redis {
            found.add("redis", round_trip(redis));
        }
        let Ok(program) = &others else { continue };
        let output = Command::new(program).arg(TURN.as_millis().to_string()).output().expect("it was built");
        let said: std::collections::BTreeMap<String, f64> = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        for (name, nanoseconds) in said {
            found.add(&name, nanoseconds);
        }
    }
    found
}

/// What the server's own parts need.
struct Own {
    limits: Limits,
    memory: Memory,
    shard: Shard,
    scope: TenantScope,
    flags: Snapshot,
    contexts: Vec<Context>,
    _bench: Bench,
}

impl Own {
    async fn new() -> Self {
        let bench = Bench::sqlite().await;
        let shard = bench.shard();
        let (rate, burst) = (u32::MAX, u32::MAX);
        let scope = bench.tenant_on(Plan { requests_per_second: rate, request_burst: burst, ..Plan::default() }).await;
        let flags = Flags::new(Some(FLAGS)).expect("a flagd document");
        let flags = flags.snapshot(&mut shard.begin(&scope)).await.expect("no flags of its own");
        let context = |n: usize| Context::new(json!({ "targetingKey": format!("caller-{n}"), "country": "us" }));
        let contexts = (0..CALLERS).map(|n| context(n).expect("a context")).collect();
        let limits = Limits::local(Clock::system());
        Self { limits, memory: Memory::new(), shard, scope, flags, contexts, _bench: bench }
    }

    fn measure(&self, found: &mut Micro) {
        let names: Vec<String> = (0..CALLERS).map(|n| format!("caller-{n}")).collect();
        let quota = Quota { rate: u32::MAX, period_ms: 1_000, burst: u32::MAX };
        let clock = Clock::system();
        let take = nanoseconds(|n| {
            let take = Take { bucket: Bucket::of(&["named", "acme", &names[n % CALLERS]]), quota, cost: 1 };
            let decided = self.memory.take(&[take], clock.now_ms()).now_or_never();
            decided.is_some_and(|decided| decided.is_ok_and(|decided| decided[0].allowed))
        });
        found.add("take", take);
        // The document is read once; then it is known.
        let admit = |n: usize| self.limits.admit(&self.shard, &self.scope, "plugin", Some(&names[n % CALLERS]));
        let first = futures_util::FutureExt::now_or_never(admit(0));
        if first.is_some() {
            found.add("admit", nanoseconds(|n| admit(n).now_or_never().is_some_and(|a| a.is_ok_and(|a| a.allowed()))));
        }
        // A transaction has one time.
        let now_ms = clock.now_ms();
        let evaluate = |flag, n: usize| self.flags.evaluate(flag, &self.contexts[n % CALLERS], now_ms).is_ok();
        found.add("flag", nanoseconds(|n| evaluate("plain", n)));
        found.add("flag-rule", nanoseconds(|n| evaluate("express", n)));
    }
}

/// What one call takes; each must say yes.
fn nanoseconds(call: impl Fn(usize) -> bool) -> f64 {
    let (started, mut calls) = (Instant::now(), 0);
    while started.elapsed() < TURN {
        for n in calls..calls + 100 {
            assert!(black_box(call(black_box(n))), "no limit is reached and every flag is there");
        }
        calls += 100;
    }
    started.elapsed().as_secs_f64() * 1e9 / calls as f64
}

/// A Redis that keeps nothing.
fn redis() -> Result<child::Server, String> {
    let port = free_port();
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    child::Server::on(port, &mut command, None).map_err(|why| format!("{why}; install the package `redis-server`"))
}

/// One question and its answer, on a connection that is kept.
fn round_trip(redis: &child::Server) -> f64 {
    let address = redis.url.trim_start_matches("http://");
    let mut asks = TcpStream::connect(address).expect("it listens");
    asks.set_nodelay(true).expect("a socket can be set");
    let mut answers = BufReader::new(asks.try_clone().expect("a socket can be copied"));
    let mut line = String::new();
    let (started, mut calls) = (Instant::now(), 0);
    while started.elapsed() < TURN {
        asks.write_all(b"*2\r\n$4\r\nINCR\r\n$6\r\ncaller\r\n").expect("it reads");
        line.clear();
        answers.read_line(&mut line).expect("it answers");
        assert!(line.starts_with(':'), "Redis said {line}");
        calls += 1;
    }
    started.elapsed().as_secs_f64() * 1e9 / f64::from(calls)
}
