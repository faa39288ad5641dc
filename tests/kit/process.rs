//! What a process and its children have used, as Linux counts it.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// Clock ticks a second in /proc: `USER_HZ`, which Linux keeps at 100 on x86 and ARM.
const TICKS: u64 = 100;

/// A line of `/proc/PID/stat`, as far as it is needed (proc_pid_stat(5)).
struct Stat {
    parent: u32,
    own_ticks: u64,
    /// Of children that have ended.
    ended_ticks: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before it may hold spaces and parentheses.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            parent: u32::try_from(number(4)?).ok()?,
            own_ticks: number(14)? + number(15)?,
            ended_ticks: number(16)? + number(17)?,
        })
    }
}

/// Whether a process runs: it exists, and has not ended.
pub fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, fields)| !fields.trim_start().starts_with(['Z', 'X']))
}

/// A process's children that run.
pub fn running_children(pid: u32) -> Vec<u32> {
    children(pid).map(|(child, _)| child).filter(|&child| runs(child)).collect()
}

/// The processes whose parent this is.
fn children(pid: u32) -> impl Iterator<Item = (u32, Stat)> {
    fs::read_dir("/proc")
        .expect("/proc is mounted")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|child| Some((child, Stat::read(child)?)))
        .filter(move |(_, stat)| stat.parent == pid)
}

/// A process and its children.
pub fn family(pid: u32) -> Vec<u32> {
    std::iter::once(pid).chain(children(pid).map(|(child, _)| child)).collect()
}

/// CPU time of a process with its children, those that have ended among them.
pub fn cpu(pid: u32) -> Duration {
    let own = Stat::read(pid).unwrap_or_else(|| panic!("process {pid} has ended"));
    let children: u64 = children(pid).map(|(_, stat)| stat.own_ticks + stat.ended_ticks).sum();
    Duration::from_millis((own.own_ticks + own.ended_ticks + children) * 1_000 / TICKS)
}

/// Resident memory of a process.
pub fn resident_mib(pid: u32) -> f64 {
    memory_mib(pid, "VmRSS:")
}

/// Memory that a process has to itself: what it wrote. Code and files that it maps come and go with the page cache.
pub fn own_mib(pid: u32) -> f64 {
    memory_mib(pid, "RssAnon:")
}

/// The most resident memory of a process since [`forget_peak`].
pub fn peak_mib(pid: u32) -> f64 {
    memory_mib(pid, "VmHWM:")
}

/// Begin to look for a new peak (proc_pid_clear_refs(5)).
pub fn forget_peak(pid: u32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("the process is this user's");
}

fn memory_mib(pid: u32, field: &str) -> f64 {
    status(pid, field) / 1024.0
}

/// A number of `/proc/PID/status` (proc_pid_status(5)).
fn status(pid: u32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let number = status.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok());
    number.unwrap_or(f64::NAN)
}

/// Threads of a process.
pub fn threads(pid: u32) -> f64 {
    status(pid, "Threads:")
}

/// Files, sockets and pipes that a process has open, but for the code of the programs that a node keeps loaded.
pub fn descriptors(pid: u32) -> usize {
    let code = |path: &Path| path.extension().is_some_and(|extension| extension == "code");
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |open| {
        open.filter_map(|one| fs::read_link(one.ok()?.path()).ok()).filter(|path| !code(path)).count()
    })
}
