//! What must be true after anything hostile: the server is the same process and did nothing that it must not
//! ([`Server::verdict`]), a tenant that had nothing to do with it was answered all the time, and memory, descriptors, tasks and
//! threads came back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use tokio::task::JoinHandle;

use crate::kit::process::{descriptors, own_mib, threads};
use crate::kit::server::{IDLE_CONNECTIONS, Server};

/// How much more memory of its own than before a server may hold afterwards: what an allocator keeps of a burst.
const MEMORY_MIB: f64 = 64.0;
/// How long it may take to come back to that: a thread that has nothing to do ends after ten seconds.
const PATIENCE: Duration = Duration::from_secs(15);
/// Descriptors more than before: connections that the tests' client keeps open, and the database's.
const DESCRIPTORS: usize = IDLE_CONNECTIONS + 32;
/// Tasks more than before: two of each such connection, and those that come and go.
const TASKS: f64 = 2.0 * IDLE_CONNECTIONS as f64 + 32.0;
/// Threads more than before: those that wait for the next thing to do.
const THREADS: f64 = 16.0;
/// Time between two calls of the bystander.
const PAUSE: Duration = Duration::from_millis(10);

/// What a server holds.
#[derive(Debug)]
struct Held {
    own_mib: f64,
    descriptors: usize,
    tasks: f64,
    threads: f64,
}

impl Held {
    async fn by(server: &Server) -> Self {
        let tasks = server.metric("chalet_tasks").await;
        let pid = server.pid();
        Self { own_mib: own_mib(pid), descriptors: descriptors(pid), tasks, threads: threads(pid) }
    }

    /// What it holds more of than before and what a server may keep.
    fn more_than(&self, before: &Self) -> Vec<&'static str> {
        let checks = [
            ("memory", self.own_mib > before.own_mib + MEMORY_MIB),
            ("descriptors", self.descriptors > before.descriptors + DESCRIPTORS),
            ("tasks", self.tasks > before.tasks + TASKS),
            ("threads", self.threads > before.threads + THREADS),
        ];
        checks.into_iter().filter_map(|(what, more)| more.then_some(what)).collect()
    }
}

/// A watch over a server, from before something hostile is done to it until after.
pub struct Watch {
    pid: u32,
    before: Held,
    stop: Arc<AtomicBool>,
    canary: JoinHandle<Vec<Duration>>,
}

impl Watch {
    /// Begin: a tenant `canary` is made, and calls its plugin over and over again.
    pub async fn begin(server: &Server) -> Self {
        let canary = server.tenant("canary").await;
        canary.deploy("guest-hello").await;
        let call = canary.call(Method::GET, "guest-hello", "/");
        let warm = call.try_clone().expect("no body").send().await.expect("an answer");
        assert_eq!(warm.status(), StatusCode::OK);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let canary = tokio::spawn(async move {
            let mut took = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let started = Instant::now();
                let answer = call.try_clone().expect("no body").send().await.expect("the canary gets an answer");
                assert_eq!(answer.status(), StatusCode::OK, "the canary was not answered");
                took.push(started.elapsed());
                tokio::time::sleep(PAUSE).await;
            }
            took
        });
        Self { pid: server.pid(), before: Held::by(server).await, stop, canary }
    }

    /// End, and judge. How long the canary's calls took, in order of length.
    pub async fn end(self, server: &Server) -> Vec<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        let mut took = self.canary.await.expect("the canary was answered all the time");
        took.sort_unstable();
        assert!(!took.is_empty(), "the canary never called");
        assert_eq!(server.pid(), self.pid, "the server is another process");
        server.verdict().unwrap_or_else(|fault| panic!("{fault}"));
        let until = Instant::now() + PATIENCE;
        loop {
            let held = Held::by(server).await;
            let more = held.more_than(&self.before);
            if more.is_empty() {
                return took;
            }
            assert!(
                Instant::now() < until,
                "the server keeps more {}: {held:?}; it had {:?}",
                more.join(", "),
                self.before
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
