//! Traces for the operator: what a sampled request did and how long each part took, as OpenTelemetry spans.
//!
//! A span begins where its work begins, and ends when nobody holds it any more. The current one travels with its task
//! ([`Span::scope`]), so that no layer hands it down; work that goes on in another task takes it along. Promises: where
//! traces are off, and for a request that is not sampled, a span is nothing, and what is set on it is not even
//! copied; export never makes a request wait; what a span holds is bounded.
//!
//! Spans hold names, ids, numbers and codes. Bodies, paths below a route, queries, keys, header values, messages
//! and whatever else may be a tenant's secret are for no collector, and no function here takes them.

mod config;
mod export;
mod parent;

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use http::HeaderMap;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tokio::task::futures::TaskLocalFuture;

pub use self::config::Config;
pub use self::export::reach;
use self::export::{Exporting, Queue};
pub use self::parent::TRACEPARENT;
use self::parent::{Parent, Sampler};
use crate::kernel::clock;
use crate::kernel::error::Result;

/// Bytes of a text: names of ours have at most 64, and no outsider's fill the collector.
const TEXT_BYTES: usize = 256;

tokio::task_local! {
    static CURRENT: Span;
}

/// The traces of a node: off, or a sampler and a way to the collector. Clones share them.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<On>>);

struct On {
    sampler: Sampler,
    queue: Arc<Queue>,
    exporting: Exporting,
}

impl Traces {
    /// As the operator says; off unless an endpoint is set. The export runs on the current runtime until
    /// [`Self::close`].
    pub fn start(config: &Config) -> Result<Self> {
        let Some(target) = config.target()? else { return Ok(Self::default()) };
        let queue = Arc::new(Queue::default());
        let exporting = Exporting::start(&target, queue.clone())?;
        Ok(Self(Some(Arc::new(On { sampler: Sampler::new(target.ratio), queue, exporting }))))
    }

    /// The span of a request with these headers; nothing if it is not sampled. It goes on with the trace that
    /// `traceparent` names, and that a stranger named it changes nothing about how many are sampled.
    pub fn request(&self, headers: &HeaderMap) -> Span {
        let Some(on) = self.0.as_deref().filter(|on| on.sampler.samples()) else { return Span::default() };
        let parent = parent::of(headers);
        let trace = match &parent {
            Some(parent) => on.sampler.takes(parent.trace).then_some(parent.trace),
            None => on.sampler.draw(),
        };
        let Some(trace) = trace else { return Span::default() };
        Span::open(on.queue.clone(), Parent { trace, span: parent.map_or(SpanId::INVALID, |parent| parent.span) }, true)
    }

    /// Spans that the collector took.
    pub fn exported(&self) -> u64 {
        self.0.as_ref().map_or(0, |on| on.queue.exported())
    }

    /// Spans that were lost, because they came faster than the collector took them, or because it failed.
    pub fn dropped(&self) -> u64 {
        self.0.as_ref().map_or(0, |on| on.queue.dropped())
    }

    /// Send what waits, for a bounded time, and send nothing more.
    pub async fn close(&self) {
        if let Some(on) = &self.0 {
            on.exporting.close(&on.queue).await;
        }
    }
}

/// A part of a sampled request, or nothing. Clones are the same span; it ends with the last of them.
#[derive(Clone, Default)]
pub struct Span(Option<Arc<Open>>);

struct Open {
    queue: Arc<Queue>,
    /// The trace, and the span that this one is a part of.
    parent: Parent,
    /// Whether the parent is another process's.
    remote: bool,
    id: SpanId,
    start: SystemTime,
    said: Mutex<Said>,
}

/// What is said of a span before it ends.
struct Said {
    name: Cow<'static, str>,
    kind: SpanKind,
    attributes: Vec<KeyValue>,
    status: Status,
}

/// What a span may say; text is copied only if there is a span.
pub enum Attribute<'a> {
    /// A name, an id or a code.
    Text(&'a str),
    /// A number.
    Number(i64),
    /// Yes or no.
    Flag(bool),
}

/// The span that this task works on.
pub fn current() -> Span {
    CURRENT.try_with(Span::clone).unwrap_or_default()
}

/// A span for a part of what this task works on.
pub fn child(name: &'static str) -> Span {
    CURRENT.try_with(|parent| parent.child(name, SpanKind::Internal)).unwrap_or_default()
}

/// A span for a request that this task sends, by its method.
pub fn outgoing(method: &str) -> Span {
    let span = CURRENT.try_with(|parent| parent.child("", SpanKind::Client)).unwrap_or_default();
    span.asks(method, None);
    span
}

/// The trace that this task works on, for its log lines.
pub fn id() -> Option<String> {
    CURRENT.try_with(|span| span.0.as_ref().map(|open| open.parent.trace.to_string())).ok().flatten()
}

impl Span {
    fn open(queue: Arc<Queue>, parent: Parent, remote: bool) -> Self {
        let said = Said {
            name: Cow::Borrowed(""),
            kind: SpanKind::Server,
            // A request's and an invocation's have about as many.
            attributes: Vec::with_capacity(12),
            status: Status::Unset,
        };
        let id = SpanId::from_bytes(rand::random());
        Self(Some(Arc::new(Open { queue, parent, remote, id, start: clock::wall(), said: Mutex::new(said) })))
    }

    fn child(&self, name: &'static str, kind: SpanKind) -> Self {
        let Some(open) = &self.0 else { return Self::default() };
        let child = Self::open(open.queue.clone(), Parent { trace: open.parent.trace, span: open.id }, false);
        child.say(|said| (said.name, said.kind) = (Cow::Borrowed(name), kind));
        child
    }

    /// Whether there is anything to say anything to.
    pub fn sampled(&self) -> bool {
        self.0.is_some()
    }

    /// Say something of it; what was said before under this key is replaced.
    pub fn set<'a>(&self, key: &'static str, value: impl Into<Attribute<'a>>) {
        self.say(|said| said.set(key, value.into()));
    }

    /// It is a request with this method, to this route where that is known. Strangers choose methods, too: one that is
    /// not of HTTP is not repeated.
    pub fn asks(&self, method: &str, route: Option<&str>) {
        self.say(|said| {
            let method = known(method);
            said.set("http.request.method", Attribute::Text(method.unwrap_or("_OTHER")));
            let method = method.unwrap_or("HTTP");
            said.name = match route {
                None => method.into(),
                Some(route) => {
                    said.set("http.route", Attribute::Text(route));
                    format!("{method} {}", cut(route)).into()
                }
            };
        });
    }

    /// It failed, for the reason that this code names.
    pub fn fail(&self, code: &str) {
        self.say(|said| {
            said.set("error.type", Attribute::Text(code));
            said.status = Status::error(cut(code).to_owned());
        });
    }

    /// Make it the span that a future works on, whichever thread polls it.
    pub fn scope<F: Future>(&self, future: F) -> TaskLocalFuture<Self, F> {
        CURRENT.scope(self.clone(), future)
    }

    /// What tells another process to go on with this trace (W3C Trace Context).
    pub fn traceparent(&self) -> Option<String> {
        self.0.as_ref().map(|open| Parent { trace: open.parent.trace, span: open.id }.to_string())
    }

    fn say(&self, say: impl FnOnce(&mut Said)) {
        if let Some(open) = &self.0 {
            say(&mut open.said());
        }
    }
}

impl Open {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Said {
    fn set(&mut self, key: &'static str, value: Attribute<'_>) {
        let value = match value {
            Attribute::Text(text) => Value::from(cut(text).to_owned()),
            Attribute::Number(number) => Value::I64(number),
            Attribute::Flag(flag) => Value::Bool(flag),
        };
        match self.attributes.iter_mut().find(|one| one.key.as_str() == key) {
            Some(one) => one.value = value,
            None => self.attributes.push(KeyValue::new(key, value)),
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let said = {
            let mut said = self.said();
            Said {
                name: std::mem::take(&mut said.name),
                kind: said.kind.clone(),
                attributes: std::mem::take(&mut said.attributes),
                status: std::mem::take(&mut said.status),
            }
        };
        let sampled = TraceFlags::SAMPLED;
        self.queue.push(SpanData {
            span_context: SpanContext::new(self.parent.trace, self.id, sampled, false, TraceState::NONE),
            parent_span_id: self.parent.span,
            parent_span_is_remote: self.remote && self.parent.span != SpanId::INVALID,
            span_kind: said.kind,
            name: said.name,
            start_time: self.start,
            // A clock that was set back must not make an end come before its start.
            end_time: clock::wall().max(self.start),
            attributes: said.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: said.status,
            instrumentation_scope: InstrumentationScope::default(),
        });
    }
}

/// A method of HTTP (RFC 9110 and RFC 5789), which is what traces call one.
fn known(method: &str) -> Option<&'static str> {
    const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    METHODS.iter().find(|known| **known == method).copied()
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES)]
}

impl<'a> From<&'a str> for Attribute<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Attribute<'_> {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<usize> for Attribute<'_> {
    fn from(number: usize) -> Self {
        Self::from(number as u64)
    }
}

impl From<u32> for Attribute<'_> {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u16> for Attribute<'_> {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<bool> for Attribute<'_> {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}
