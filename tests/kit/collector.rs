//! A collector of traces, as an operator has one: what it was sent is there to be looked at.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as Code;
use prost::Message as _;
use tokio::net::TcpListener;

/// How long spans may take until they are here: they wait a second for others.
const ARRIVAL: Duration = Duration::from_secs(20);

/// A collector that runs as long as the test.
pub struct Collector {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    headers: Vec<HeaderMap>,
    spans: Vec<Span>,
}

/// A span as it came.
#[derive(Clone, Debug)]
pub struct Span {
    /// The trace.
    pub trace: String,
    /// The span.
    pub id: String,
    /// The span that it is a part of; empty if it is a trace's first.
    pub parent: String,
    /// Its name.
    pub name: String,
    /// What it is a part of: a request that came, one that was sent, or the process.
    pub kind: SpanKind,
    /// Whether it failed.
    pub failed: bool,
    /// Nanoseconds since 1970.
    pub time: std::ops::RangeInclusive<u64>,
    /// What is said of it, numbers as text.
    pub attributes: BTreeMap<String, String>,
    /// What is said of the process.
    pub resource: BTreeMap<String, String>,
}

impl Span {
    /// What is said of it under this name.
    pub fn said(&self, name: &str) -> &str {
        self.attributes.get(name).unwrap_or_else(|| panic!("{name} is not said of {self:?}"))
    }
}

impl Collector {
    /// One that takes what it is sent.
    pub async fn start() -> Self {
        Self::that(|| async { StatusCode::OK }).await
    }

    /// One that has another answer, or none.
    pub async fn that<F: Future<Output = StatusCode> + Send + 'static>(
        answers: impl Fn() -> F + Clone + Send + Sync + 'static,
    ) -> Self {
        let kept: Arc<Mutex<Kept>> = Arc::default();
        let keeping = kept.clone();
        let take = move |headers: HeaderMap, body: Bytes| {
            let (keeping, answer) = (keeping.clone(), answers());
            async move {
                keeping.lock().expect("no panic").take(headers, &body);
                answer.await
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port is free");
        let url = format!("http://{}", listener.local_addr().expect("a bound socket has an address"));
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/v1/traces", post(take))).await });
        Self { url, kept }
    }

    /// All spans that came.
    pub fn spans(&self) -> Vec<Span> {
        self.kept().spans.clone()
    }

    /// All that came, as it came.
    pub fn bytes(&self) -> Vec<u8> {
        self.kept().bytes.clone()
    }

    /// The headers of all that came.
    pub fn headers(&self) -> Vec<HeaderMap> {
        self.kept().headers.clone()
    }

    /// Wait for a span like this.
    pub async fn span(&self, what: &str, like: impl Fn(&Span) -> bool) -> Span {
        let started = Instant::now();
        loop {
            if let Some(span) = self.kept().spans.iter().find(|span| like(span)) {
                return span.clone();
            }
            assert!(started.elapsed() < ARRIVAL, "{what} did not come; what did: {:#?}", self.spans());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The trace of a request that was answered, once all of it is here: the request's span, and all spans.
    pub async fn trace_of(&self, answer: &reqwest::Response) -> (Span, Vec<Span>) {
        let id = answer.headers()["x-request-id"].to_str().expect("an id");
        let of = |span: &Span| span.attributes.get("chalet.request.id").is_some_and(|own| own == id);
        let request = self.span("the span of the request", of).await;
        let trace = self.spans().into_iter().filter(|span| span.trace == request.trace).collect();
        (request, trace)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("no test panicked with the lock")
    }
}

impl Kept {
    fn take(&mut self, headers: HeaderMap, body: &Bytes) {
        self.headers.push(headers);
        self.bytes.extend_from_slice(body);
        let request = ExportTraceServiceRequest::decode(&body[..]).expect("what the protocol says");
        for of_process in request.resource_spans {
            let resource = said(of_process.resource.unwrap_or_default().attributes);
            for span in of_process.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                self.spans.push(Span {
                    trace: hex::encode(&span.trace_id),
                    id: hex::encode(&span.span_id),
                    parent: hex::encode(&span.parent_span_id),
                    kind: span.kind(),
                    failed: span.status.as_ref().is_some_and(|status| status.code() == Code::Error),
                    time: span.start_time_unix_nano..=span.end_time_unix_nano,
                    attributes: said(span.attributes),
                    resource: resource.clone(),
                    name: span.name,
                });
            }
        }
    }
}

fn said(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Value| match value {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(flag) => flag.to_string(),
        other => panic!("{other:?} is none of ours"),
    };
    attributes.into_iter().map(|one| (one.key, text(one.value.and_then(|any| any.value).expect("a value")))).collect()
}
