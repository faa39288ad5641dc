//! On what and of what the figures are: without it no two tables can be compared.

use std::fs::{self, File};
use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::kit::guests::root;

/// Syncs that are timed.
const SYNCS: usize = 200;

/// What stands above the table.
pub fn heading(duration: Duration, rounds: usize) -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    format!(
        "Commit {}; {cores} cores, {:.0} GiB, shared with wrk; load average {load} before; a synced write of 4 KiB \
         takes {:.2} ms; {rounds} rounds of {} s.",
        commit(),
        memory_gib(),
        sync().as_secs_f64() * 1e3,
        duration.as_secs(),
    )
}

/// The commit that is checked out, and whether the files differ from it.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").current_dir(root()).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=10", "HEAD"]) else { return "unknown".into() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| !changes.is_empty());
    if changed { format!("{commit} with changes") } else { commit }
}

fn memory_gib() -> f64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
    kib.map_or(f64::NAN, |kib: f64| kib / f64::from(1 << 20))
}

/// The median time of a synced write where the databases are: the least that a commit alone can take.
fn sync() -> Duration {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut file = File::create(folder.path().join("synced")).expect("the folder can be written");
    let mut took: Vec<Duration> = (0..SYNCS)
        .map(|_| {
            let started = Instant::now();
            file.write_all(&[0; 4096]).and_then(|()| file.sync_data()).expect("the disk takes 4 KiB");
            started.elapsed()
        })
        .collect();
    took.sort_unstable();
    took[SYNCS / 2]
}
