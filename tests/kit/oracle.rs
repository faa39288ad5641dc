//! What must be true after anything hostile: the server is the same process and never panicked, a tenant that had
//! nothing to do with it was answered all the time, no request was answered with 500, and memory and descriptors
//! came back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use tokio::task::JoinHandle;

use crate::kit::process::{descriptors, own_mib};
use crate::kit::server::{IDLE_CONNECTIONS, Server};

/// How much more memory of its own than before a server may hold afterwards: what an allocator keeps of a burst.
const MEMORY_MIB: f64 = 64.0;
/// How long it may take to come back to that.
const PATIENCE: Duration = Duration::from_secs(10);
/// Descriptors more than before: connections that the tests' client keeps open, and the database's.
const DESCRIPTORS: usize = IDLE_CONNECTIONS + 32;
/// Time between two calls of the bystander.
const PAUSE: Duration = Duration::from_millis(10);

/// A watch over a server, from before something hostile is done to it until after.
pub struct Watch {
    pid: u32,
    own_mib: f64,
    descriptors: usize,
    stop: Arc<AtomicBool>,
    canary: JoinHandle<Vec<Duration>>,
    panics: f64,
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
        let pid = server.pid();
        Self { pid, own_mib: own_mib(pid), descriptors: descriptors(pid), stop, canary, panics: 0.0 }
    }

    /// The test makes the host panic so many times.
    #[must_use]
    pub fn expect_panics(mut self, panics: u32) -> Self {
        self.panics = panics.into();
        self
    }

    /// End, and judge. How long the canary's calls took, in order of length.
    pub async fn end(self, server: &Server) -> Vec<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        let mut took = self.canary.await.expect("the canary was answered all the time");
        took.sort_unstable();
        assert!(!took.is_empty(), "the canary never called");
        assert_eq!(server.pid(), self.pid, "the server is another process");
        assert_eq!(server.metric("chalet_host_panics_total").await, self.panics, "the host panicked");
        assert_eq!(server.answered(500).await, 0.0, "requests were answered with 500");
        let until = Instant::now() + PATIENCE;
        loop {
            let (memory, open) = (own_mib(self.pid), descriptors(self.pid));
            if memory <= self.own_mib + MEMORY_MIB && open <= self.descriptors + DESCRIPTORS {
                return took;
            }
            assert!(
                Instant::now() < until,
                "the server keeps {memory:.0} MiB and {open} descriptors; it had {:.0} and {}",
                self.own_mib,
                self.descriptors
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
