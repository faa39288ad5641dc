//! Nothing is acknowledged before it was synced: seen from outside, in the order of the server's system calls.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use rustix::process::{Pid, Signal, kill_process};

use crate::kit::postgres::Cluster;
use crate::kit::process::family;
use crate::kit::server::{Server, Setup, expect};

/// Writes that are watched, one after another.
const WRITES: usize = 30;

/// strace on running processes, writing the calls that matter to a file, in their order.
fn trace(pids: &[u32], log: &Path) -> Child {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-s", "64", "-e", "trace=fdatasync,fsync,read,recvfrom,write,writev,sendto,sendmsg"]);
    for pid in pids {
        strace.arg("-p").arg(pid.to_string());
    }
    strace.arg("-o").arg(log).stdout(Stdio::null()).stderr(Stdio::null());
    let child = strace.spawn().expect("strace runs; tests/prepare.sh installs it");
    let started = Instant::now();
    let traced = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    };
    while !pids.iter().all(traced) {
        assert!(started.elapsed() < Duration::from_secs(60), "strace did not attach");
        std::thread::yield_now();
    }
    child
}

/// For each write, whether a sync ended between its request and its answer. `database` are the processes that sync,
/// where they are not the server itself.
async fn watched(setup: Setup, database: impl Fn() -> Vec<u32>) -> Vec<bool> {
    let server = Server::start_with(setup);
    let acme = server.tenant("acme").await;
    expect(acme.api(Method::PUT, "/kv/c/first").body("x"), StatusCode::CREATED).await;
    let log = server.data.path().join("strace.log");
    let mut strace = trace(&[database(), vec![server.pid()]].concat(), &log);
    for n in 0..WRITES {
        expect(acme.api(Method::PUT, &format!("/kv/c/k{n}")).body("x"), StatusCode::CREATED).await;
    }
    kill_process(Pid::from_child(&strace), Signal::TERM).expect("strace runs");
    let _ = strace.wait();
    let text = std::fs::read_to_string(&log).expect("strace wrote");
    let (mut open, mut synced, mut seen) = (false, false, Vec::new());
    for line in text.lines() {
        if line.contains("\"PUT /v1/tenants/acme/kv") {
            (open, synced) = (true, false);
        } else if line.contains("sync") && line.trim_end().ends_with("= 0") {
            synced = true;
        } else if open && line.contains("\"HTTP/1.1 201") {
            seen.push(synced);
            open = false;
        }
    }
    // A line that strace writes in two parts, since another thread spoke in between, may be missed.
    assert!(seen.len() * 10 >= WRITES * 9, "the watcher saw {} writes of {WRITES}", seen.len());
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_precedes_its_sync() {
    let seen = watched(Setup::sqlite(), Vec::new).await;
    assert!(seen.iter().all(|synced| *synced), "an answer came before its sync: {seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_syncs_the_watcher_notices() {
    let seen = watched(Setup::sqlite().with("CHALET_BREAK_SYNC", "1"), Vec::new).await;
    assert!(seen.iter().any(|synced| !synced), "the control must fail");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_precedes_the_sync_of_postgresql() {
    let cluster = tokio::task::spawn_blocking(Cluster::start_syncing).await.expect("the cluster starts");
    let seen = watched(Setup::on(&cluster.database().await), || family(cluster.pid())).await;
    assert!(seen.iter().all(|synced| *synced), "an answer came before its sync: {seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_syncs_of_postgresql_the_watcher_notices() {
    let cluster = tokio::task::spawn_blocking(Cluster::start).await.expect("the cluster starts");
    let seen = watched(Setup::on(&cluster.database().await), || family(cluster.pid())).await;
    assert!(seen.iter().any(|synced| !synced), "the control must fail");
}
