//! Modules that nobody wrote, by the thousand: none may crash, hang or bloat the host, whatever else becomes of it.
//!
//! The bulk goes through the gate, the compiler and the engine in processes of many modules each, because a server and
//! its workers would take an hour; a sample goes through a real server. `make test` takes 20,000 and `make soak` a million.
//! A failure names its seed; `CHALET_SEED=N` takes that module alone.

mod batch;
mod seed;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use self::batch::Batch;
use crate::kit::carrier::{self, Running};
use crate::kit::engine::Engine;
use crate::kit::oracle::Watch;
use crate::kit::server::{Tenant, expect};
use crate::kit::soak;

on_both_engines! {
    a_sample_of_generated_modules_harms_no_server,
    a_component_that_compiles_and_fits_into_no_instance_is_refused,
}

/// Modules of a test run and of a soak.
const MODULES: u64 = 20_000;
const SOAKED: u64 = 1_000_000;
/// Modules of one process. Soaking starts another one after them, so that what each leaves is seen.
const BATCH: u64 = 10_000;
/// Modules that go through a server, per database.
const SAMPLE: u64 = 120;
/// How long one module may take in a process that shares the machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of a dead process that a failure repeats.
const LAST_LINES: usize = 12;

/// How often each outcome was seen.
type Tally = BTreeMap<String, u64>;

#[test]
#[ignore = "the body of the processes that other tests start"]
fn be_a_batch() {
    let text = std::env::var("CHALET_BATCH").expect("the seeds");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(batch::run(&text));
}

#[test]
fn generated_modules_are_refused_or_run_within_their_limits() {
    let alone = std::env::var("CHALET_SEED").ok().map(|seed| seed.parse::<u64>().expect("CHALET_SEED is a number"));
    let seeds = match alone {
        Some(seed) => seed..seed + 1,
        None => 0..soak::either(MODULES, SOAKED),
    };
    let processes = if alone.is_some() { 1 } else { std::thread::available_parallelism().map_or(2, usize::from) };
    let started = Instant::now();
    let mut all = Tally::new();
    for first in seeds.clone().step_by(usize::try_from(BATCH).expect("few") * processes) {
        let end = seeds.end.min(first + BATCH * processes as u64);
        let running: Vec<_> = (0..processes as u64)
            .map(|n| Batch { first: first + n, step: processes, end, fault: String::new() })
            .map(|batch| std::thread::spawn(move || wait_for(&batch, PATIENCE)))
            .collect();
        for one in running {
            let tally = one.join().expect("no panic").unwrap_or_else(|failure| panic!("{failure}"));
            for (outcome, count) in tally {
                *all.entry(outcome).or_default() += count;
            }
        }
        println!("{} modules in {:.0} s", end - seeds.start, started.elapsed().as_secs_f64());
    }
    for (outcome, count) in &all {
        println!("{count:>9} {outcome}");
    }
    if alone.is_none() {
        // What is refused at the gate tests the gate alone.
        let count = |outcome: &str| all.get(outcome).copied().unwrap_or_default();
        let modules = seeds.end - seeds.start;
        assert!(count("compiler: ok") > modules / 2, "too few modules get as far as a run");
        assert!(count("run: ok") > modules / 4 && count("run: fuel_exhausted") > modules / 100, "too few run");
    }
}

#[test]
fn a_process_that_panics_aborts_hangs_or_leaks_is_a_failure_that_names_its_seed() {
    for (fault, told) in [
        ("panic", "seed 706 ended its process"),
        ("abort", "seed 706 ended its process (signal: 6"),
        ("hang", "seed 706 took more than"),
        ("leak", "the batch keeps"),
    ] {
        let batch = Batch { first: 100, step: 2, end: 800, fault: fault.into() };
        let patience = if fault == "hang" { Duration::from_secs(5) } else { PATIENCE };
        let failure = wait_for(&batch, patience).expect_err("the control went unseen");
        assert!(failure.contains(told), "{fault}: {failure}");
    }
}

/// Start a batch and follow it to its end.
fn wait_for(batch: &Batch, patience: Duration) -> Result<Tally, String> {
    let mut process = Started::new(batch);
    let (mut seed, mut tally, mut last, mut ended) = (batch.first, Tally::new(), Vec::new(), false);
    loop {
        let line = match process.lines.recv_timeout(patience) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => return Err(format!("seed {seed} took more than {patience:?}")),
            Err(RecvTimeoutError::Disconnected) => break,
        };
        match line.strip_prefix("> ").and_then(|told| told.split_once(' ').or(Some((told, "")))) {
            Some(("begin", number)) => seed = number.parse().expect("a seed"),
            Some(("tally", rest)) => {
                let (count, outcome) = rest.split_once(' ').expect("a count and an outcome");
                tally.insert(outcome.to_owned(), count.parse().expect("a count"));
            }
            Some(("end", _)) => ended = true,
            _ => last.push(line),
        }
    }
    let status = process.child.wait().expect("it was started here");
    if status.success() && ended {
        return Ok(tally);
    }
    let told = last[last.len().saturating_sub(LAST_LINES)..].join("\n");
    Err(format!("seed {seed} ended its process ({status}); CHALET_SEED={seed} takes it alone\n{told}"))
}

/// A batch's process; it is killed when this is dropped.
struct Started {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Started {
    fn new(batch: &Batch) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "generated::be_a_batch", "--ignored", "--nocapture"])
            .env("CHALET_BATCH", batch.text())
            // What a backtrace loads to name its functions would look like a leak.
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("this binary starts");
        let told = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in told.split(b'\n').map_while(Result::ok) {
                if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        Self { child, lines }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn a_sample_of_generated_modules_harms_no_server(engine: Engine) {
    let server = engine.server().await;
    server.unlimited().await;
    let watch = Watch::begin(&server).await;
    // Apart from the modules of the other database's sample.
    let first = if engine == Engine::Sqlite { 0 } else { MODULES };
    let seeds = (first..).step_by(97).take(usize::try_from(SAMPLE).expect("few"));
    let tally = std::sync::Mutex::new(Tally::new());
    server
        .share(3, seeds, async |tenant, seed| {
            for outcome in through(tenant, seed).await {
                *tally.lock().expect("no panic with the lock").entry(outcome).or_default() += 1;
            }
        })
        .await;
    let tally = tally.into_inner().expect("no panic with the lock");
    println!("{tally:#?}");
    assert!(tally.get("200").is_some_and(|answered| *answered > SAMPLE / 4), "too few got an answer: {tally:?}");
    watch.end(&server).await;
}

/// Upload a seed's module, release it and call its functions; the statuses and codes.
async fn through(tenant: &Tenant<'_>, seed: u64) -> Vec<String> {
    let Running { component, functions } = carrier::running(&seed::module(seed));
    let name = "stranger";
    let uploaded = tenant.upload(name, carrier::named(component, name, &format!("1.0.{seed}"))).await;
    let status = uploaded.status();
    let told: Value = uploaded.json().await.expect("JSON");
    if status == StatusCode::UNPROCESSABLE_ENTITY {
        let code = told["code"].as_str().expect("a code");
        assert!(["component_invalid", "component_too_complex", "compile_limit"].contains(&code), "seed {seed}: {told}");
        return vec![format!("upload: {code}")];
    }
    assert_eq!(status, StatusCode::CREATED, "seed {seed}: {told}");
    let release = tenant.api(Method::POST, "/plugins/stranger/release").json(&json!({ "version": told["version"] }));
    expect(release, StatusCode::OK).await;
    let mut outcomes = vec!["upload: ok".to_owned()];
    for function in 0..functions.clamp(1, 3) {
        // The first byte of a path is its slash.
        let answer =
            tenant.call(Method::GET, name, &format!("/{}", "x".repeat(function))).send().await.expect("an answer");
        let status = answer.status().as_u16();
        assert!([200, 502, 504].contains(&status), "seed {seed}, function {function}: {status}");
        outcomes.push(status.to_string());
    }
    outcomes
}

async fn a_component_that_compiles_and_fits_into_no_instance_is_refused(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let tenant = server.tenant("acme").await;
    let tables = "(table 1 funcref)".repeat(3);
    let globals = "(global i64 (i64.const 1))".repeat(100_000);
    for (n, fields) in [tables, globals].into_iter().enumerate() {
        let module = wat::parse_str(format!("(module {fields})")).expect("it assembles");
        let upload = carrier::named(carrier::running(&module).component, "stranger", &format!("1.0.{n}"));
        let answer = tenant.upload("stranger", upload).await;
        assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
        let told: Value = answer.json().await.expect("a problem");
        assert_eq!(told["code"], "component_too_complex", "{told}");
    }
    watch.end(&server).await;
}
