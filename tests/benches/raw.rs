//! The roofs of durable work: the same rows, or a row each, written by programs that do nothing else.

use std::collections::HashMap;
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;

use crate::board::Figures;
use crate::contestants::Script;
use crate::kit::process::cpu;
use crate::peers;
use crate::servers::Running;

/// What pgbench needs to connect and to commit.
const SHORTEST: Duration = Duration::from_secs(3);

/// What contestants committed when they were loaded last, by name.
pub type Committed = HashMap<&'static str, Commits>;

/// Commits of one load.
#[derive(Clone, Copy)]
pub struct Commits {
    /// The last commit before it.
    pub after: u64,
    /// Its last commit.
    pub through: u64,
    /// Commits that shared a transaction.
    pub batch: f64,
}

#[derive(Deserialize)]
struct Said {
    requests: f64,
    seconds: f64,
}

/// Write the rows of these commits once more.
pub fn rows(server: &Running, commits: Commits, duration: Duration) -> Result<Figures, String> {
    let chalet = server.ours().ok_or("rows are those of a Chalet server")?;
    let mut command = Command::new(peers::program("peer-raw")?);
    match chalet.urls() {
        None => command.args(["sqlite", &chalet.file()]),
        Some((from, to)) => command.args(["postgres", from, to]),
    };
    let batch = commits.batch.round().max(1.0);
    let numbers = [commits.after, commits.through, batch as u64, duration.as_secs()];
    command.args(numbers.map(|number| number.to_string()));
    let before = server.database().map(cpu);
    let output = command.output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout);
    let Ok(Said { requests, seconds }) = serde_json::from_str(&said) else {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("peer-raw failed: {}", said.lines().find(|line| !line.is_empty()).unwrap_or_default()));
    };
    Ok(figures(server, requests, seconds, Some(batch), before))
}

/// Let pgbench commit.
pub fn pgbench(server: &Running, script: Script, connections: u32, duration: Duration) -> Result<Figures, String> {
    let chalet = server.ours().ok_or("pgbench needs the cluster of a Chalet server")?;
    let (_, url) = chalet.urls().ok_or("pgbench needs PostgreSQL")?;
    prepare(url)?;
    // It counts the time that its connections take, too.
    let duration = duration.max(SHORTEST);
    let (connections, seconds) = (connections.to_string(), duration.as_secs().to_string());
    let mut command = Command::new("pgbench");
    command.args([
        "--no-vacuum",
        "--protocol",
        "prepared",
        "--jobs",
        "1",
        "--client",
        &connections,
        "--time",
        &seconds,
    ]);
    let file = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
    match script {
        Script::SimpleUpdate => command.arg("--skip-some-updates"),
        Script::OneRow => {
            let row =
                "insert into pgbench_history (tid, bid, aid, delta, mtime) values (1, 1, 1, 1, current_timestamp);";
            std::fs::write(file.path(), row).map_err(|error| error.to_string())?;
            command.arg("--file").arg(file.path())
        }
    };
    let before = server.database().map(cpu);
    let said = run(command.arg(url))?;
    let per_second = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse::<f64>().ok());
    let per_second = per_second.ok_or("pgbench committed nothing")?;
    let seconds = duration.as_secs_f64();
    Ok(figures(server, per_second * seconds, seconds, None, before))
}

/// pgbench's own tables, if they are not there yet.
fn prepare(url: &str) -> Result<(), String> {
    let there = run(Command::new("psql").args(["-Atc", "select to_regclass('pgbench_accounts')", url]))?;
    if there.trim().is_empty() {
        run(Command::new("pgbench").args(["--initialize", "--quiet", "--scale", "10", url]))?;
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().display().to_string();
    let output = command
        .output()
        .map_err(|error| format!("{name} does not start ({error}); install the package `postgresql`"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{name} failed: {}", said.lines().last().unwrap_or_default()))
}

fn figures(server: &Running, requests: f64, seconds: f64, batch: Option<f64>, before: Option<Duration>) -> Figures {
    let database = before.zip(server.database().map(cpu));
    Figures {
        per_second: requests / seconds,
        p50_ms: None,
        p99_ms: None,
        cpu_us: None,
        database_us: database.map(|(before, after)| (after - before).as_secs_f64() * 1e6 / requests),
        commits_a_batch: batch,
        resident_mib: None,
    }
}
