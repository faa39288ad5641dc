//! The way of spans to the collector: a bounded queue, and one task that sends what is in it over OTLP.
//!
//! Whoever ends a span pushes it and goes on. What does not fit is dropped and counted; what the collector did not take
//! after the tries that the protocol asks for is counted too. The log tells of a collector that fails once, then
//! at most once a minute.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::config::{Config, Target};
use crate::kernel::error::{Error, Result};
use crate::kernel::id;

/// Spans that wait. A usual one takes a kilobyte, so that they take 16 MB and last for the two seconds that a collector
/// needs to start again while 8,000 spans a second come.
const WAITING: usize = 16_384;
/// Spans of one message: half a megabyte, which is encoded in half a millisecond.
const BATCH: usize = 512;
/// How long a span waits for others: an operator looks for the trace of a request some seconds later.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the collector may take to answer, tries after a failure among it: what the specification says.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a node that stops goes on sending.
const FLUSH: Duration = Duration::from_secs(3);
/// The least time between two lines of log about the same trouble.
const QUIET: Duration = Duration::from_secs(60);

/// Spans that ended and were not yet sent.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<VecDeque<SpanData>>,
    full: Notify,
    exported: AtomicU64,
    dropped: AtomicU64,
}

impl Queue {
    /// Put a span into it, if it fits.
    pub(super) fn push(&self, span: SpanData) {
        let waiting = {
            let mut waiting = self.waiting();
            if waiting.len() < WAITING {
                waiting.push_back(span);
                waiting.len()
            } else {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                return;
            }
        };
        if waiting == BATCH {
            self.full.notify_one();
        }
    }

    pub(super) fn exported(&self) -> u64 {
        self.exported.load(Ordering::Relaxed)
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn take(&self) -> Vec<SpanData> {
        let mut waiting = self.waiting();
        let count = waiting.len().min(BATCH);
        waiting.drain(..count).collect()
    }

    /// Give up what waits.
    fn clear(&self) {
        let lost = std::mem::take(&mut *self.waiting()).len();
        self.dropped.fetch_add(lost as u64, Ordering::Relaxed);
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<SpanData>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task that sends. It ends with this.
pub(super) struct Exporting {
    stop: CancellationToken,
    task: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl Exporting {
    /// Send what comes into the queue to this target.
    pub(super) fn start(target: &Target, queue: Arc<Queue>) -> Result<Self> {
        let stop = CancellationToken::new();
        let task = tokio::spawn(export(exporter(target)?, queue, stop.clone()));
        Ok(Self { stop, task: Mutex::new(Some(AbortOnDropHandle::new(task))) })
    }

    /// Send what waits, at most for [`FLUSH`], and end.
    pub(super) async fn close(&self, queue: &Queue) {
        self.stop.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(task) = task else { return };
        if tokio::time::timeout(FLUSH, task).await.is_err() {
            queue.clear();
            tracing::warn!(dropped = queue.dropped(), "the collector did not take the last spans in time");
        }
    }
}

async fn export(exporter: SpanExporter, queue: Arc<Queue>, stop: CancellationToken) {
    let mut trouble = Trouble::default();
    loop {
        // Looked at first: what was pushed before the stop is sent.
        let stopping = stop.is_cancelled();
        let batch = queue.take();
        let count = batch.len();
        if count > 0 {
            let sent = exporter.export(batch).await;
            match &sent {
                Ok(()) => queue.exported.fetch_add(count as u64, Ordering::Relaxed),
                Err(_) => queue.dropped.fetch_add(count as u64, Ordering::Relaxed),
            };
            trouble.tell(sent.err(), queue.dropped());
        }
        if count == BATCH {
            continue;
        }
        if stopping {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = queue.full.notified() => {}
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// What the log was told of.
#[derive(Default)]
struct Trouble {
    last: Option<Instant>,
    lasting: bool,
    dropped: u64,
}

impl Trouble {
    /// The last message was taken or not, and so many spans were dropped by now.
    fn tell(&mut self, failed: Option<OTelSdkError>, dropped: u64) {
        let lost = dropped > std::mem::replace(&mut self.dropped, dropped);
        if !lost {
            if std::mem::take(&mut self.lasting) {
                tracing::info!(dropped, "the collector takes spans again");
            }
            return;
        }
        self.lasting = true;
        if self.last.is_some_and(|last| last.elapsed() < QUIET) {
            return;
        }
        self.last = Some(Instant::now());
        match failed {
            Some(error) => {
                tracing::warn!(%error, dropped, "the collector does not take spans; no request waits for it")
            }
            None => tracing::warn!(dropped, "spans come faster than the collector takes them; lower their ratio"),
        }
    }
}

fn exporter(target: &Target) -> Result<SpanExporter> {
    // Somebody else installed one: any serves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut client = reqwest::Client::builder()
        .timeout(ANSWER)
        .user_agent(concat!("chalet/", env!("CARGO_PKG_VERSION")))
        // A redirect would carry the headers elsewhere.
        .redirect(reqwest::redirect::Policy::none());
    if target.url.scheme() == "http" {
        // Without TLS the machine's certificates do not matter, not even that there are none. A proxy is for the world
        // outside.
        client = client.tls_certs_only([]).no_proxy();
    }
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client.build().map_err(Error::internal)?)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(target.url.as_str())
        .with_headers(target.headers.clone())
        .with_timeout(ANSWER)
        .build()
        .map_err(|error| Error::invalid(format!("spans cannot be sent as OTEL_EXPORTER_OTLP_* says: {error}")))?;
    exporter.set_resource(
        &Resource::builder()
            .with_service_name(target.service.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", id::new()))
            .build(),
    );
    Ok(exporter)
}

/// Ask the collector whether it takes spans, by sending none; where it is, or nothing if traces are off.
pub async fn reach(config: &Config) -> Result<Option<String>> {
    let Some(target) = config.target()? else { return Ok(None) };
    let refused = |reason: String| Error::unavailable("collector", reason);
    let sent = tokio::time::timeout(ANSWER, exporter(&target)?.export(Vec::new())).await;
    sent.map_err(|_| refused("no answer in time".into()))?.map_err(|error| refused(error.to_string()))?;
    Ok(Some(target.url.to_string()))
}
