//! `/metrics`: what an operator watches, as OpenMetrics text. No label names a tenant.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::gateway::{Door, serve};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answered {
    plane: &'static str,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Rejected {
    rule: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Plane {
    plane: &'static str,
}

/// The metrics that are counted at the door; the others are read from their owners when asked for.
#[derive(Clone)]
pub struct Metrics {
    requests: Family<Answered, Counter>,
    seconds: Family<Plane, Histogram, fn() -> Histogram>,
    /// What became of connections.
    pub connections: Arc<serve::Counts>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics that start at 0.
    pub fn new() -> Self {
        // 0.25 ms to 8 s.
        Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.000_25, 2.0, 16))),
            connections: Arc::default(),
        }
    }

    pub(super) fn answered(&self, plane: &'static str, status: StatusCode, took: Duration) {
        self.requests.get_or_create(&Answered { plane, status: status.as_u16() }).inc();
        self.seconds.get_or_create(&Plane { plane }).observe(took.as_secs_f64());
    }
}

/// The part of the house that a path belongs to.
pub(super) fn plane(path: &str) -> &'static str {
    match path.split('/').nth(1).unwrap_or("") {
        "t" => "plugin",
        "hooks" => "webhook",
        "v1" => "control",
        "ofrep" => "ofrep",
        _ => "other",
    }
}

/// All metrics of this node.
pub(super) async fn render(State(door): State<Door>) -> Response {
    let mut registry = Registry::with_prefix("chalet");
    let metrics = &door.metrics;
    registry.register("requests", "Requests answered", metrics.requests.clone());
    registry.register("request_seconds", "Time from a request to its answer", metrics.seconds.clone());
    let mut counter = |name: &str, help: &str, value: u64| {
        let counter: Counter = Counter::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    };
    let read = |value: &std::sync::atomic::AtomicU64| value.load(Ordering::Relaxed);
    let counts = door.invoker.counts();
    counter("invocations", "Invocations that ended", read(&counts.invocations));
    counter("invocation_failures", "Invocations that failed", read(&counts.failures));
    counter(
        "invocation_reruns",
        "Runs after an invocation's first, because data changed underneath",
        read(&counts.reruns),
    );
    counter("invocation_replays", "Requests that got a stored answer", read(&counts.replays));
    counter("invocations_shed", "Invocations turned away for lack of a place", door.invoker.shed());
    counter(
        "memory_denied",
        "Runs of guests that asked for more memory than they may have",
        door.engine.memory_denied(),
    );
    counter("host_panics", "Panics in this process: faults of the host", crate::kernel::panic::count());
    let counts = door.shard.counts();
    counter("commit_batches", "Database transactions of the committer", read(&counts.batches));
    counter("commits", "Transactions committed", read(&counts.commits));
    counter("commit_conflicts", "Transactions whose reads no longer held", read(&counts.conflicts));
    counter("reads", "Statements that read rows", read(&counts.reads));
    counter("reads_cached", "Reads that the cache answered", read(&counts.cached_reads));
    let rejected = read(&door.credentials.rejected);
    counter("auth_checksum_reject", "Credentials that were never a key, refused without a look-up", rejected);
    let counts = &door.metrics.connections;
    counter("connections_refused", "Connections closed because their address had its share", read(&counts.refused));
    counter("connections_expired", "Connections closed for being idle or slow", read(&counts.expired));
    counter("spans_exported", "Spans of traces that the collector took", door.traces.exported());
    counter(
        "spans_dropped",
        "Spans of traces that were lost, since the collector failed or was too slow",
        door.traces.dropped(),
    );
    counter("compiles", "Compile workers started", door.engine.compiles());
    let rejected: Family<Rejected, Counter> = Family::default();
    for (rule, count) in door.engine.rejected() {
        rejected.get_or_create(&Rejected { rule }).inc_by(count);
    }
    registry.register("compile_rejected", "Uploads refused, by the rule that they broke", rejected);
    let gauge = |value: i64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(value);
        gauge
    };
    registry.register(
        "guests_waiting",
        "Guests that wait for their turn to compute",
        gauge(door.engine.waiting() as i64),
    );
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks() + door.engine.tasks();
    registry.register("tasks", "Tasks that have not ended, of guests and of all others", gauge(tasks as i64));
    registry.register("guests_running", "Guests that run", gauge(door.engine.running() as i64));
    registry.register("slots_free", "Guests that could start without waiting", gauge(door.engine.free_slots() as i64));
    registry.register("programs", "Programs that are mapped", gauge(door.engine.programs() as i64));
    registry.register("commits_waiting", "Transactions that wait for a batch", gauge(door.shard.waiting() as i64));
    registry.register("connections", "Connections that are open", gauge(read(&counts.open) as i64));
    let loss_ms = i64::try_from(crate::invocation::FLUSH.as_millis()).unwrap_or(0);
    registry.register(
        "usage_loss_bound_milliseconds",
        "How much usage of effect-free invocations a crash can lose",
        gauge(loss_ms),
    );
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(error) => crate::kernel::error::Error::internal(error).into_response(),
    }
}
