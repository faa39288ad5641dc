//! OFREP 0.3: what a stock OpenFeature provider sends and is answered.
//!
//! The bodies and codes are the specification's; nothing here knows HTTP beyond a status. Its list of
//! reasons has no `DEFAULT`: such an answer says `UNKNOWN`, which no client caches, as it would
//! `STATIC`. A context without `targetingKey` is accepted, because stock clients send one; a flag that
//! needs the key says so.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::document::{Code, Evaluation, Failure, Reason};
use super::{Context, Snapshot};

/// An answer: its status, its body, and for a bulk evaluation its entity tag.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// 200, 304, 400 or 404.
    pub status: u16,
    /// JSON; none for 304.
    pub body: Option<Value>,
    /// The value of `ETag`, with its quotes.
    pub etag: Option<String>,
}

impl Answer {
    fn of(status: u16, body: Value) -> Self {
        Self { status, body: Some(body), etag: None }
    }
}

/// `POST /ofrep/v1/evaluate/flags/{key}`.
pub fn single(snapshot: &Snapshot, key: &str, body: &[u8], now_ms: i64) -> Answer {
    match context(body).and_then(|context| snapshot.evaluate(key, &context, now_ms)) {
        Ok(evaluation) => Answer::of(200, success(key, evaluation)),
        Err(failure) => Answer::of(if failure.code == Code::FlagNotFound { 404 } else { 400 }, error(key, &failure)),
    }
}

/// `POST /ofrep/v1/evaluate/flags`. The entity tag is one of the answer, so that it holds for this context
/// and for rules that look at the time.
pub async fn bulk(snapshot: &Snapshot, body: &[u8], if_none_match: Option<&str>, now_ms: i64) -> Answer {
    let context = match context(body) {
        Ok(context) => context,
        Err(failure) => {
            return Answer::of(400, json!({ "errorCode": failure.code.as_str(), "errorDetails": failure.details }));
        }
    };
    let mut flags = Vec::new();
    for name in snapshot.names() {
        flags.push(match snapshot.evaluate(name, &context, now_ms) {
            Ok(evaluation) => success(name, evaluation),
            Err(failure) => error(name, &failure),
        });
        // A document's rules together may take long; others get their turn between two flags.
        tokio::task::yield_now().await;
    }
    let body = json!({ "flags": flags });
    let digest = Sha256::digest(body.to_string());
    let etag = format!("\"{}\"", hex::encode(&digest[..16]));
    if if_none_match.is_some_and(|header| names(header, &etag)) {
        return Answer { status: 304, body: None, etag: Some(etag) };
    }
    Answer { status: 200, body: Some(body), etag: Some(etag) }
}

/// The body for a fault of the server, with status 500.
pub fn fault() -> Value {
    json!({ "errorDetails": "the server failed; the operator's log has the cause" })
}

/// Whether `If-None-Match` names this tag; weakly compared (RFC 9110, section 13.1.2), and with or without
/// quotes, since some clients leave them out.
fn names(header: &str, etag: &str) -> bool {
    let bare = |tag: &str| tag.trim().trim_start_matches("W/").trim_matches('"').to_owned();
    header.trim() == "*" || header.split(',').any(|tag| bare(tag) == bare(etag))
}

fn context(body: &[u8]) -> Result<Context, Failure> {
    let request: Value = serde_json::from_slice(body)
        .map_err(|_| Failure::new(Code::ParseError, "the request is no JSON object with a context"))?;
    match request {
        Value::Object(mut members) => match members.remove("context") {
            Some(context) => Context::new(context),
            None => Err(Failure::new(
                Code::InvalidContext,
                "the request has no context; send {\"context\":{\"targetingKey\":\"…\"}}",
            )),
        },
        _ => Err(Failure::new(Code::ParseError, "the request is no JSON object with a context")),
    }
}

fn success(key: &str, evaluation: Evaluation) -> Value {
    let reason = match evaluation.reason {
        Reason::Default => "UNKNOWN",
        reason => reason.as_str(),
    };
    let mut body = Map::new();
    body.insert("key".into(), key.into());
    body.insert("reason".into(), reason.into());
    if let Some(variant) = evaluation.variant {
        body.insert("variant".into(), (*variant).into());
    }
    if let Some(value) = evaluation.value {
        body.insert("value".into(), Arc::unwrap_or_clone(value));
    }
    if !evaluation.metadata.is_empty() {
        body.insert("metadata".into(), Value::Object(Arc::unwrap_or_clone(evaluation.metadata)));
    }
    Value::Object(body)
}

fn error(key: &str, failure: &Failure) -> Value {
    json!({ "key": key, "errorCode": failure.code.as_str(), "errorDetails": failure.details })
}
