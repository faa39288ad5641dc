//! Background work of a node: idempotent, without input, run by a timer, safe on every node at once.

use std::future::Future;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::kernel::error::Result;

/// One kind of background work.
pub struct Task {
    /// What it is called in the log.
    pub name: &'static str,
    /// The time between two runs.
    pub every: Duration,
    run: Box<dyn Fn() -> BoxFuture<'static, Result<()>> + Send + Sync>,
}

impl Task {
    /// Work that `run` does once, whenever it is called.
    pub fn new<F: Future<Output = Result<()>> + Send + 'static>(
        name: &'static str,
        every: Duration,
        run: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self {
        Self { name, every, run: Box::new(move || run().boxed()) }
    }
}

/// Tasks that run until they are stopped.
pub struct Tasks {
    running: JoinSet<()>,
    stop: CancellationToken,
}

impl Tasks {
    /// Start these tasks on the current runtime.
    pub fn start(tasks: Vec<Task>) -> Self {
        let (mut running, stop) = (JoinSet::new(), CancellationToken::new());
        for task in tasks {
            let stop = stop.clone();
            running.spawn(async move {
                loop {
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(task.every) => {}
                    }
                    if let Err(error) = (task.run)().await {
                        tracing::warn!(task = task.name, ?error, "a task failed; it runs again at its time");
                    }
                }
            });
        }
        Self { running, stop }
    }

    /// Let the runs that have begun end, and begin no more.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.running.join_next().await.is_some() {}
    }
}
