//! The scoreboard: what a request costs, as a ratio to a bare axum server in the same run.
//!
//! The contestants are loaded in turn, for several rounds, so that the machine's moods meet them all; a figure is the
//! median of its rounds. Nothing is turned off for it: credentials, limits, metering, records and syncs are those of
//! an operator. One answer that is no success fails the run. README.md says how to read the table.

#![expect(unreachable_pub, reason = "the kit is public to its users, and they are all there is here")]
#![expect(clippy::print_stdout, reason = "the table goes to stdout")]

#[path = "../kit/mod.rs"]
#[expect(dead_code, reason = "most of the kit serves the tests alone")]
mod kit;

mod bare;
mod load;
mod machine;
mod servers;
mod table;

use std::io::Write as _;
use std::time::Duration;

use crate::kit::process::{self, cpu};
use crate::load::{Load, Request};
use crate::servers::{Kind, Running};
use crate::table::{Figures, Row};

/// Connections at a time: fewer than a tenant's invocations that may run at once, and as many as fill a batch.
const CONNECTIONS: [u32; 2] = [32, 128];

/// A price that a plugin computes; it writes nothing.
const PRICE: Request = Request {
    path: "/t/acme/pricing/price",
    body: r#"{"sku":"chair","quantity":10,"list_cents":1999}"#,
    status: 200,
    fresh_keys: false,
};

/// A note that a plugin keeps.
const NOTE: Request = Request {
    path: "/t/acme/notes/notes",
    body: r#"{"text":"The blue chairs are back on Thursday; call Ms Ito before they go."}"#,
    status: 201,
    fresh_keys: false,
};

/// The same, and each request has its effects once.
const NOTE_ONCE: Request = Request { fresh_keys: true, ..NOTE };

/// Who is compared: the first is what the others are measured against.
const CONTESTANTS: &[Contestant] = &[
    Contestant { name: "bare axum", server: Kind::Axum, request: PRICE },
    Contestant { name: "`pricing`, SQLite", server: Kind::Sqlite, request: PRICE },
    Contestant { name: "`pricing`, PostgreSQL", server: Kind::Postgres, request: PRICE },
    Contestant { name: "`notes` POST, SQLite", server: Kind::Sqlite, request: NOTE },
    Contestant { name: "`notes` POST, PostgreSQL", server: Kind::Postgres, request: NOTE },
    Contestant { name: "`notes` POST with a new `Idempotency-Key`, SQLite", server: Kind::Sqlite, request: NOTE_ONCE },
    Contestant {
        name: "`notes` POST with a new `Idempotency-Key`, PostgreSQL",
        server: Kind::Postgres,
        request: NOTE_ONCE,
    },
];

/// What is measured: a request to a server.
struct Contestant {
    name: &'static str,
    server: Kind,
    request: Request,
}

fn main() {
    if std::env::args().any(|argument| argument == bare::ARGUMENT) {
        return bare::serve();
    }
    let seconds = setting("CHALET_BENCH_SECONDS", 5);
    let rounds = setting("CHALET_BENCH_ROUNDS", 3);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(Duration::from_secs(seconds), rounds as usize));
}

/// A number of the environment, at least 1.
fn setting(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().ok().filter(|n| *n > 0).unwrap_or_else(|| panic!("{name} must be a whole number above 0, not {text}"))
}

async fn run(duration: Duration, rounds: usize) {
    let heading = machine::heading(duration, rounds);
    let mut servers = Vec::new();
    for kind in [Kind::Axum, Kind::Sqlite, Kind::Postgres] {
        say(&format!("starting {kind:?}"));
        servers.push((kind, Running::start(kind).await));
    }
    let server =
        |kind| servers.iter().find(|(own, _)| *own == kind).map(|(_, server)| server).expect("all were started");
    for contestant in CONTESTANTS {
        load::try_once(server(contestant.server), &contestant.request).await;
    }

    let mut rows: Vec<Row> = CONNECTIONS
        .iter()
        .flat_map(|connections| CONTESTANTS.iter().map(|one| Row::new(one.name, *connections)))
        .collect();
    // Round 0 warms up: caches fill, the allocator grows, files take their size.
    for round in 0..=rounds {
        for (at, connections) in CONNECTIONS.into_iter().enumerate() {
            for turn in 0..CONTESTANTS.len() {
                // Each round begins with another one, so that nobody always follows the same.
                let index = (turn + round) % CONTESTANTS.len();
                let contestant = &CONTESTANTS[index];
                let duration = if round == 0 { duration.min(Duration::from_secs(2)) } else { duration };
                let figures = measure(contestant, server(contestant.server), connections, duration).await;
                let name = contestant.name;
                let speed = figures.per_second;
                say(&format!("round {round} of {rounds}: {connections:3} connections {speed:7.0}/s  {name}"));
                if round > 0 {
                    rows[at * CONTESTANTS.len() + index].rounds.push(figures);
                }
            }
        }
    }
    println!("{heading}\n\n{}", table::markdown(&rows));
}

async fn measure(contestant: &Contestant, server: &Running, connections: u32, duration: Duration) -> Figures {
    let (cpu_before, database_before) = (cpu(server.pid()), server.database().map(cpu));
    let commits_before = server.commits().await;
    let Load { requests, seconds, p50_ms, p99_ms } = load::run(server, &contestant.request, connections, duration)
        .unwrap_or_else(|failed| panic!("{} at {connections} connections: {failed}", contestant.name));
    let commits = server.commits().await.since(commits_before);
    let a_request = |before: Duration, after: Duration| (after - before).as_secs_f64() * 1e6 / requests as f64;
    Figures {
        per_second: requests as f64 / seconds,
        p50_ms,
        p99_ms,
        cpu_us: a_request(cpu_before, cpu(server.pid())),
        database_us: database_before.map(|before| a_request(before, server.database().map_or(before, cpu))),
        // The usage of what commits nothing is written a few times a second; that is no batch of this work.
        commits_a_batch: (contestant.request.status == 201).then(|| commits.commits / commits.batches),
        resident_mib: process::resident_mib(server.pid()),
    }
}

/// A line of progress.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
