//! Nothing is acknowledged before it was synced: seen from outside, in the order of the server's system calls.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};

use crate::kit::server::{Server, Setup, expect};

/// Writes that are watched, one after another.
const WRITES: usize = 30;

/// strace on a running server, writing the calls that matter to a file.
fn trace(pid: u32, log: &Path) -> Child {
    let mut strace = Command::new("strace");
    strace.args([
        "-f",
        "-qq",
        "-s",
        "64",
        "-e",
        "trace=fdatasync,fsync,read,recvfrom,write,writev,sendto,sendmsg",
        "-p",
    ]);
    strace.arg(pid.to_string()).arg("-o").arg(log).stdout(Stdio::null()).stderr(Stdio::null());
    let child = strace.spawn().expect("strace runs; tests/prepare.sh installs it");
    let started = Instant::now();
    let traced = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    };
    while !traced() {
        assert!(started.elapsed() < Duration::from_secs(10), "strace did not attach");
        std::thread::yield_now();
    }
    child
}

/// For each write, whether a sync ended between its request and its answer.
async fn watched(setup: Setup) -> Vec<bool> {
    let server = Server::start_with(setup);
    let acme = server.tenant("acme").await;
    expect(acme.api(Method::PUT, "/kv/c/first").body("x"), StatusCode::CREATED).await;
    let log = server.data.path().join("strace.log");
    let mut strace = trace(server.pid(), &log);
    for n in 0..WRITES {
        expect(acme.api(Method::PUT, &format!("/kv/c/k{n}")).body("x"), StatusCode::CREATED).await;
    }
    server.kill();
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
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_precedes_its_sync() {
    let seen = watched(Setup::sqlite()).await;
    assert_eq!(seen, vec![true; WRITES], "an answer came before its sync");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_syncs_the_watcher_notices() {
    let seen = watched(Setup::sqlite().with("CHALET_BREAK_SYNC", "1")).await;
    assert_eq!(seen.len(), WRITES);
    assert!(seen.iter().any(|synced| !synced), "the control must fail");
}
