//! Latency at a rate that leaves the machine half idle: what the sandbox adds when nobody waits for anybody.
//!
//! oha sends 2,000 requests a second and counts an answer's time from when its request was due.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::board::median;
use crate::contestants::{Contestant, Work};
use crate::load::{Request, Target};
use crate::peers;
use crate::servers::Running;

/// Requests a second.
const RATE: u32 = 2_000;
/// Connections: enough that none is late because another request is on its way.
const CONNECTIONS: u32 = 16;
/// Who is measured, and what it is compared with.
const ALL: &[(&str, &str)] = &[
    ("bare-get", "bare-get"),
    ("nginx", "bare-get"),
    ("plain", "bare-get"),
    ("wasmtime", "bare-get"),
    ("wasmtime-reused", "bare-get"),
    ("workerd", "bare-get"),
    ("extism", "bare-get"),
    ("extism-pooled", "bare-get"),
    ("hello", "bare-get"),
    ("bare-post", "bare-post"),
    ("reads", "bare-post"),
];

/// Latencies of a contestant, one of each a round, in milliseconds.
struct Row {
    name: &'static str,
    title: &'static str,
    beside: &'static str,
    p50_ms: Vec<f64>,
    p99_ms: Vec<f64>,
}

/// What was found.
#[derive(Default)]
pub struct Steady {
    rows: Vec<Row>,
    missing: Vec<String>,
}

impl Steady {
    /// Put down why there is nothing.
    pub fn missing(why: String) -> Self {
        Self { rows: Vec::new(), missing: vec![why] }
    }

    /// Milliseconds that a contestant's median answer, or its 99th of 100, comes after the yardstick's.
    pub fn added_ms(&self, name: &str) -> Option<(f64, f64)> {
        let own = self.rows.iter().find(|row| row.name == name)?;
        let other = self.rows.iter().find(|row| row.name == own.beside)?;
        let added = |own: &[f64], other: &[f64]| median(own.iter().zip(other).map(|(own, other)| own - other));
        Some((added(&own.p50_ms, &other.p50_ms)?, added(&own.p99_ms, &other.p99_ms)?))
    }

    /// The table.
    pub fn markdown(&self) -> String {
        let mut text = format!(
            "### Low load: {RATE} requests a second\n\n\
             | contestant | p50 ms | p99 ms | p50 over bare axum | p99 over bare axum |\n|---|--:|--:|--:|--:|\n"
        );
        for row in &self.rows {
            let figure = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
            let added = if row.name == row.beside { None } else { self.added_ms(row.name) };
            text += &format!(
                "| {} | {} | {} | {} | {} |\n",
                row.title,
                figure(median(row.p50_ms.clone())),
                figure(median(row.p99_ms.clone())),
                figure(added.map(|(p50, _)| p50)),
                figure(added.map(|(_, p99)| p99)),
            );
        }
        for missing in &self.missing {
            text += &format!("\nNot measured: {missing}\n");
        }
        text
    }
}

/// Measure those of these contestants that are of interest, in turn.
pub fn run(contestants: &[(&Contestant, &Running)], rounds: usize, duration: Duration) -> Steady {
    let program = match peers::program("peer-oha") {
        Ok(program) => program,
        Err(why) => return Steady::missing(format!("oha: {why}")),
    };
    let load = |contestant: &Contestant, server: &Running, duration| {
        let Work::Http { request, .. } = &contestant.work else { return Err("it answers no requests".into()) };
        at_rate(&program, server.url(), &server.targets(&request.path, false)[0], request, RATE, duration)
    };
    let mut found = Steady::default();
    for (name, beside) in ALL {
        let Some((contestant, server)) = contestants.iter().find(|(one, _)| one.name == *name) else { continue };
        found.rows.push(Row { name, title: contestant.title, beside, p50_ms: Vec::new(), p99_ms: Vec::new() });
        // The first load warms up.
        if let Err(why) = load(contestant, server, Duration::from_secs(1)) {
            found.missing.push(format!("{}: {why}", contestant.title));
            found.rows.pop();
        }
    }
    for round in 0..rounds {
        for turn in 0..found.rows.len() {
            let index = (turn + round) % found.rows.len();
            let row = &mut found.rows[index];
            let Some((contestant, server)) = contestants.iter().find(|(one, _)| one.name == row.name) else { continue };
            match load(contestant, server, duration) {
                Ok((p50_ms, p99_ms)) => {
                    crate::say(&format!(
                        "low load, round {}: p50 {p50_ms:.3} ms, p99 {p99_ms:.3} ms  {}",
                        round + 1,
                        row.name
                    ));
                    row.p50_ms.push(p50_ms);
                    row.p99_ms.push(p99_ms);
                }
                Err(why) => found.missing.push(format!("{} in one round: {why}", row.title)),
            }
        }
    }
    found
}

/// Send a request at a rate; the latencies of half and of 99 of 100 of the answers, in milliseconds.
pub fn at_rate(
    program: &Path,
    url: &str,
    target: &Target,
    request: &Request,
    rate: u32,
    duration: Duration,
) -> Result<(f64, f64), String> {
    let mut oha = Command::new(program);
    oha.args(["--no-tui", "--output-format", "json", "--latency-correction", "-w"])
        .args(["-q", &rate.to_string(), "-c", &CONNECTIONS.to_string()])
        .args(["-z", &format!("{}s", duration.as_secs())])
        .args(["-m", request.method.as_str(), "-H", &format!("authorization: Bearer {}", target.key)]);
    if !request.body.is_empty() {
        oha.args(["-T", request.content_type, "-d", &request.body]);
    }
    let output = oha.arg(format!("{url}{}", target.path)).output().map_err(|error| error.to_string())?;
    let said: Value = serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("oha said {}", String::from_utf8_lossy(&output.stderr)))?;
    let statuses = said["statusCodeDistribution"].as_object().ok_or("oha names no statuses")?;
    if statuses.len() != 1 || !statuses.contains_key(&request.status.to_string()) {
        return Err(format!("answers had the statuses {}", said["statusCodeDistribution"]));
    }
    let percentile = |name: &str| said["latencyPercentiles"][name].as_f64().map(|seconds| seconds * 1e3);
    percentile("p50").zip(percentile("p99")).ok_or_else(|| "oha names no percentiles".into())
}
