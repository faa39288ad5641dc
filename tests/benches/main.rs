//! The scoreboard: what a request costs, as a ratio to a bare axum server in the same run.
//!
//! The contestants are loaded in turn, for several rounds, so that the machine's moods meet them all; a figure is the
//! median of its rounds. Nothing is turned off for it: credentials, limits, metering, records and syncs are those of
//! an operator. One answer that is no success takes the contestant out; if it is ours, the run fails. README.md says
//! how to read the tables.

#![expect(unreachable_pub, reason = "the kit is public to its users, and they are all there is here")]
#![expect(clippy::print_stdout, reason = "the table goes to stdout")]

#[path = "../kit/mod.rs"]
#[expect(dead_code, reason = "most of the kit serves the tests alone")]
mod kit;

mod bare;
mod board;
mod chart;
mod child;
mod cold;
mod contestants;
mod goals;
mod growth;
mod load;
mod machine;
mod micro;
mod neighbours;
mod peers;
mod raw;
mod servers;
mod steady;

use std::io::Write as _;
use std::time::Duration;

use crate::board::{Board, Figures};
use crate::cold::Cold;
use crate::contestants::{Contestant, Work};
use crate::goals::Goal;
use crate::kit::guests::root;
use crate::kit::process::{cpu, resident_mib};
use crate::load::{Load, Request, Spread};
use crate::micro::Micro;
use crate::neighbours::Neighbours;
use crate::raw::{Commits, Committed};
use crate::servers::{Kind, Running};
use crate::steady::Steady;

/// How long a warm-up lasts: caches fill, the allocator grows, files take their size.
const WARM_UP: Duration = Duration::from_secs(1);

fn main() {
    if std::env::args().any(|argument| argument == bare::ARGUMENT) {
        return bare::serve();
    }
    // The client asks for it also where it never speaks TLS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let duration = Duration::from_secs(setting("CHALET_BENCH_SECONDS", 3));
    let rounds = setting("CHALET_BENCH_ROUNDS", 3) as usize;
    let only = std::env::var("CHALET_BENCH_ONLY").ok().filter(|only| !only.is_empty());
    let heading = machine::heading(duration, rounds);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    if std::env::var("CHALET_BENCH").is_ok_and(|part| part == "growth") {
        let (tenants, keys) = (setting("CHALET_BENCH_TENANTS", 1_000), setting("CHALET_BENCH_KEYS", 1_000_000));
        let (found, curves) = runtime.block_on(growth::run(tenants as usize, keys, rounds, duration));
        keep("growth.svg", &curves);
        return keep("growth.md", &format!("# Growth\n\n{heading}\n\n![{}](growth.svg)\n\n{found}", growth::CURVES));
    }

    let found = runtime.block_on(run(only.as_deref(), duration, rounds));
    let mut goals = goals::of(&found);
    if only.is_some() {
        goals.retain(Goal::known);
    }
    let text = format!("{heading}\n\n## Goals\n\n{}\n## Measured\n\n{}", goals::markdown(&goals), found.markdown());
    if only.is_none() {
        keep("chart.svg", &chart::svg(&found.throughput));
        keep("last.md", &format!("# The last run\n\n{text}"));
    } else {
        println!("{text}");
    }
    if found.failed {
        std::process::exit(1);
    }
}

/// Write a file beside this one, and say so; a text is shown too.
fn keep(name: &str, text: &str) {
    if name.ends_with(".md") {
        println!("{text}");
    }
    std::fs::write(root().join("tests/benches").join(name), text).expect("the folder can be written");
    say(&format!("written to tests/benches/{name}"));
}

/// A number of the environment, at least 1.
fn setting(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().ok().filter(|n| *n > 0).unwrap_or_else(|| panic!("{name} must be a whole number above 0, not {text}"))
}

/// What a run found.
struct Found {
    throughput: Board,
    steady: Option<Steady>,
    micro: Option<Micro>,
    cold: Option<Cold>,
    neighbours: Option<Neighbours>,
    /// Whether one of our own contestants has no figures.
    failed: bool,
}

impl Found {
    fn markdown(&self) -> String {
        let parts = [
            Some(self.throughput.markdown()),
            self.steady.as_ref().map(Steady::markdown),
            self.micro.as_ref().map(Micro::markdown),
            self.cold.as_ref().map(Cold::markdown),
            self.neighbours.as_ref().map(Neighbours::markdown),
        ];
        parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
    }
}

/// Measure everything, or what has one of these texts in its name.
async fn run(only: Option<&str>, duration: Duration, rounds: usize) -> Found {
    let wanted = |part: &str| contestants::named(only, part);
    let contestants = contestants::chosen(only);
    let parts = ["steady", "micro", "cold", "neighbours"].iter().any(|part| wanted(part));
    assert!(parts || !contestants.is_empty(), "CHALET_BENCH_ONLY names nothing that there is");
    let mut run = Run::start(&contestants).await;
    run.load_in_turn(duration, rounds).await;
    let steady = wanted("steady").then(|| steady::run(&run.answering(), rounds, duration));
    let Run { board, failed, .. } = run;
    let micro = if wanted("micro") { Some(micro::run(rounds).await) } else { None };
    let cold = if wanted("cold") { Some(cold::run().await) } else { None };
    let neighbours = if wanted("neighbours") { Some(neighbours::run(rounds, duration).await) } else { None };
    Found { throughput: board, steady, micro, cold, neighbours, failed }
}

/// A run of contestants: the servers that they need, and what is known of them so far.
struct Run<'c> {
    contestants: &'c [Contestant],
    servers: Vec<(Kind, Result<Running, String>)>,
    committed: Committed,
    board: Board,
    out: Vec<&'static str>,
    failed: bool,
}

impl<'c> Run<'c> {
    /// Start every server that somebody needs, and try each contestant once.
    async fn start(contestants: &'c [Contestant]) -> Self {
        let mut run = Self {
            contestants,
            servers: Vec::new(),
            committed: Committed::new(),
            board: Board::new(contestants),
            out: Vec::new(),
            failed: false,
        };
        for contestant in contestants {
            let kind = contestant.work.server();
            if !run.servers.iter().any(|(own, _)| *own == kind) {
                say(&format!("starting {kind:?}"));
                run.servers.push((kind, Running::start(kind).await));
            }
            if let Err(why) = run.try_once(contestant).await {
                run.remove(contestant, why);
            }
        }
        run
    }

    fn server(&self, kind: Kind) -> Result<&Running, String> {
        let (_, server) = self.servers.iter().find(|(own, _)| *own == kind).expect("all were started, or tried");
        server.as_ref().map_err(Clone::clone)
    }

    async fn try_once(&self, contestant: &Contestant) -> Result<(), String> {
        let server = self.server(contestant.work.server())?;
        match &contestant.work {
            Work::Http { request, .. } => {
                load::try_once(server.url(), &server.targets(&request.path, false)[0], request).await
            }
            // It is built before anything is measured.
            Work::Rows { .. } => peers::program("peer-raw").map(drop),
            Work::Pgbench(_) => Ok(()),
        }
    }

    /// Take a contestant out.
    fn remove(&mut self, contestant: &Contestant, why: String) {
        say(&format!("{}: {why}", contestant.name));
        self.failed |= contestant.work.ours();
        self.out.push(contestant.name);
        self.board.remove(contestant, why);
    }

    /// The contestants that answer requests, with their servers.
    fn answering(&self) -> Vec<(&'c Contestant, &Running)> {
        let here = self.contestants.iter().filter(|one| !self.out.contains(&one.name));
        here.filter_map(|one| Some((one, self.server(one.work.server()).ok()?))).collect()
    }

    /// Load everyone in turn, for several rounds.
    async fn load_in_turn(&mut self, duration: Duration, rounds: usize) {
        let mut numbers: Vec<u32> = self.contestants.iter().flat_map(|one| one.connections).copied().collect();
        numbers.sort_unstable();
        numbers.dedup();
        for round in 0..=rounds {
            for connections in &numbers {
                let here: Vec<_> =
                    self.contestants.iter().filter(|one| one.connections.contains(connections)).collect();
                for turn in 0..here.len() {
                    // Each round begins with another one, so that nobody always follows the same.
                    let contestant = here[(turn + round) % here.len()];
                    let name = contestant.name;
                    if self.out.contains(&name) {
                        continue;
                    }
                    let duration = if round == 0 { WARM_UP } else { duration };
                    match self.measure(contestant, *connections, duration).await {
                        Err(why) => self.remove(contestant, why),
                        Ok(figures) => {
                            let speed = figures.per_second;
                            say(&format!(
                                "round {round} of {rounds}: {connections:3} connections {speed:8.0}/s  {name}"
                            ));
                            if round > 0 {
                                self.board.add(name, *connections, figures);
                            }
                        }
                    }
                }
            }
        }
    }

    async fn measure(
        &mut self,
        contestant: &Contestant,
        connections: u32,
        duration: Duration,
    ) -> Result<Figures, String> {
        let server = self.server(contestant.work.server())?;
        match &contestant.work {
            Work::Rows { of, .. } => {
                let commits = self.committed.get(of).ok_or_else(|| format!("{of} has committed nothing"))?;
                raw::rows(server, *commits, duration)
            }
            Work::Pgbench(script) => raw::pgbench(server, *script, connections, duration),
            Work::Http { request, many_keys, commits: false, .. } => {
                answers(server, request, *many_keys, connections, duration)
            }
            Work::Http { request, many_keys, commits: true, .. } => {
                let (after, before) = (server.last_commit().await, server.commits().await);
                let figures = answers(server, request, *many_keys, connections, duration)?;
                let done = server.commits().await.since(before);
                let batch = done.commits / done.batches;
                let commits = Commits { after, through: server.last_commit().await, batch };
                self.committed.insert(contestant.name, commits);
                Ok(Figures { commits_a_batch: Some(batch), ..figures })
            }
        }
    }
}

/// Load a server with a request.
fn answers(
    server: &Running,
    request: &Request,
    many_keys: bool,
    connections: u32,
    duration: Duration,
) -> Result<Figures, String> {
    let targets = server.targets(&request.path, many_keys);
    let (cpu_before, database_before) = (cpu(server.pid()), server.database().map(cpu));
    let Load { requests, seconds, p50_ms, p99_ms } =
        load::run(server.url(), &targets, Spread::Even, request, connections, duration)?;
    let a_request = |before: Duration, after: Duration| (after - before).as_secs_f64() * 1e6 / requests as f64;
    Ok(Figures {
        per_second: requests as f64 / seconds,
        p50_ms: Some(p50_ms),
        p99_ms: Some(p99_ms),
        cpu_us: Some(a_request(cpu_before, cpu(server.pid()))),
        database_us: database_before.map(|before| a_request(before, server.database().map_or(before, cpu))),
        commits_a_batch: None,
        resident_mib: Some(resident_mib(server.pid())),
    })
}

/// A line of progress.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
