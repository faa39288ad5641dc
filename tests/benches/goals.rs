//! The figures that Chalet wants to reach, and how far it is.

use std::fmt::Write as _;

use crate::Found;

/// A figure that is wanted.
pub struct Goal {
    work: &'static str,
    wanted: Wanted,
    unit: &'static str,
    reached: Option<f64>,
}

#[derive(Clone, Copy)]
enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    /// This and more is wanted.
    pub fn at_least(work: &'static str, wanted: f64, unit: &'static str, reached: Option<f64>) -> Self {
        Self { work, wanted: Wanted::AtLeast(wanted), unit, reached }
    }

    /// This and less is wanted.
    pub fn at_most(work: &'static str, wanted: f64, unit: &'static str, reached: Option<f64>) -> Self {
        Self { work, wanted: Wanted::AtMost(wanted), unit, reached }
    }

    /// Whether it was measured.
    pub fn known(&self) -> bool {
        self.reached.is_some()
    }

    /// How far it is: 1 and more is there.
    fn part(&self) -> Option<f64> {
        let reached = self.reached?;
        Some(match self.wanted {
            Wanted::AtLeast(wanted) => reached / wanted,
            Wanted::AtMost(wanted) => wanted / reached,
        })
    }
}

/// The goals, and what a run says about them.
pub fn of(found: &Found) -> Vec<Goal> {
    let board = &found.throughput;
    let ratio = |name, beside, connections| board.ratio(name, beside, connections).map(|ratio| ratio.median);
    let speed = |name| board.median(name, 64, |figures| Some(figures.per_second));
    // What nobody can be faster than: the disk with these rows, and the plugin without effects.
    let roofs = [ratio("write", "write-rows", 64), ratio("write", "reads", 64)];
    let added = found.steady.as_ref().and_then(|steady| steady.added_ms("hello"));
    let times = |name, beside| found.micro.as_ref().and_then(|micro| micro.times(name, beside));
    let nanoseconds = |name| found.micro.as_ref().and_then(|micro| micro.median(name));
    let cold = found.cold.as_ref();
    let beside = |what| found.neighbours.as_ref().and_then(|neighbours| neighbours.times(what));
    vec![
        Goal::at_least("hello world, 32 connections", 0.40, "of bare axum", ratio("hello", "bare-get", 32)),
        Goal::at_least("hello world, 128 connections", 0.50, "of bare axum", ratio("hello", "bare-get", 128)),
        Goal::at_least(
            "hello world, a collector set, none traced",
            0.98,
            "of hello world without one",
            ratio("hello-traced-0", "hello", 32),
        ),
        Goal::at_least("hello world", 1.0, "of the tuned plain host", ratio("hello", "plain", 32)),
        Goal::at_least("hello world", 6.0, "of `wasmtime serve`, fresh", ratio("hello", "wasmtime", 32)),
        Goal::at_least("hello world", 1.0, "of `wasmtime serve`, reused", ratio("hello", "wasmtime-reused", 32)),
        Goal::at_least("hello world", 6.0, "of Extism, fresh", ratio("hello", "extism", 32)),
        Goal::at_least("hello world", 2.0, "of workerd", ratio("hello", "workerd", 32)),
        Goal::at_least("JSON and two reads, 32 connections", 0.38, "of bare axum", ratio("reads", "bare-post", 32)),
        Goal::at_most("added at low load, p50", 0.03, "ms", added.map(|(p50, _)| p50)),
        Goal::at_most("added at low load, p99", 0.2, "ms", added.map(|(_, p99)| p99)),
        Goal::at_least(
            "one durable write, SQLite",
            0.6,
            "of its rows alone, or of the plugin without effects",
            roofs.into_iter().flatten().reduce(f64::max),
        ),
        Goal::at_least("one durable write, PostgreSQL", 0.8, "of `pgbench -N`", ratio("write-postgres", "pgbench", 64)),
        Goal::at_most(
            "ten reads and one write, SQLite",
            1.5,
            "times one write",
            speed("write").zip(speed("ten-reads")).map(|(one, ten)| one / ten),
        ),
        Goal::at_most(
            "ten reads and one write, PostgreSQL",
            1.5,
            "times one write",
            speed("write-postgres").zip(speed("ten-reads-postgres")).map(|(one, ten)| one / ten),
        ),
        Goal::at_least("a repeated `Idempotency-Key`", 0.8, "of hello world", ratio("duplicate", "hello", 32)),
        Goal::at_most("upload to the first answer", 150.0, "ms", cold.map(|cold| cold.upload_ms)),
        Goal::at_most("first answer of a known plugin", 0.5, "ms", cold.map(|cold| cold.known_ms)),
        Goal::at_most("a quiet tenant beside a flooding one, p99", 1.5, "times alone", beside("reads")),
        Goal::at_most("the same, durable writes", 2.5, "times alone", beside("writes")),
        Goal::at_most("a rate limit's decision", 1_000.0, "ns", nanoseconds("take")),
        Goal::at_least("a rate limit's decision", 50.0, "times faster than Redis", times("take", "redis")),
        Goal::at_least("a flag without rules", 1.0, "of Unleash's engine", times("flag", "unleash")),
        Goal::at_least("a flag with rules", 1.0, "of Unleash's engine", times("flag-rule", "unleash-rule")),
        Goal::at_least("usage in batches of 100, SQLite", 0.5, "of its rows alone", ratio("usage", "usage-rows", 32)),
        Goal::at_least(
            "usage in batches of 100, PostgreSQL",
            0.5,
            "of its rows alone",
            ratio("usage-postgres", "usage-rows-postgres", 32),
        ),
    ]
}

/// The table; goals of what was not measured are named.
pub fn markdown(goals: &[Goal]) -> String {
    let mut text = String::from("| work | goal | reached | reached/goal |\n|---|---|--:|--:|\n");
    for goal in goals {
        let (word, wanted) = match goal.wanted {
            Wanted::AtLeast(wanted) => ("at least", wanted),
            Wanted::AtMost(wanted) => ("at most", wanted),
        };
        let reached = goal.reached.map_or("not measured".into(), |reached| format!("{}", Short(reached)));
        let part = match goal.part() {
            Some(part) if part >= 1.0 => format!("**{part:.2}**"),
            Some(part) => format!("{part:.2}"),
            None => "-".into(),
        };
        let _ = writeln!(text, "| {} | {word} {} {} | {reached} | {part} |", goal.work, Short(wanted), goal.unit);
    }
    text
}

/// A number with as many digits as are of use.
struct Short(f64);

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = if self.0.abs() < 10.0 { 2 } else { 0 };
        write!(f, "{:.digits$}", self.0)
    }
}
