//! Usage events: CloudEvents 1.0 in the JSON format, and how they lie in rows.

use bytes::Bytes;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::effects::{Range, Space};
use crate::kernel::clock;
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::json;

/// How old an event may be: 35 days, as the largest billing provider has it.
pub const BACK_MS: i64 = 35 * 86_400_000;
/// How far ahead of our clock an event's may be.
pub const AHEAD_MS: i64 = 300_000;
/// Bytes of an event: what CloudEvents asks every intermediary to carry.
pub const EVENT_BYTES: usize = 64 << 10;
/// Bytes of an event's type.
pub(super) const TYPE_BYTES: usize = 255;
/// Bytes of an event's source or subject, and of its id.
const SOURCE_BYTES: usize = 1_024;
const ID_BYTES: usize = 255;
/// Bytes of a digest in a key; a collision among a tenant's types or events is out of reach.
const DIGEST_BYTES: usize = 16;

/// An event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Where it happened; with `id` it names the event.
    pub source: String,
    /// Its name there.
    pub id: String,
    /// What happened.
    pub event_type: String,
    /// Whom it concerns.
    pub subject: Option<String>,
    /// When it happened.
    pub time_ms: i64,
    /// What is counted.
    pub data: Option<Value>,
    /// Whether a plugin recorded it into the meter of its type.
    pub recorded: bool,
}

/// An event's row.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct Stored {
    #[serde(rename = "type")]
    pub(super) event_type: String,
    source: String,
    id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    pub(super) time_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) data: Option<Value>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) recorded: bool,
}

impl Event {
    /// What is remembered of it.
    pub(super) fn identity(&self) -> [u8; 32] {
        digest(&[&self.source, &self.id])
    }

    /// Its place: after all of its type that happened before it.
    pub(super) fn key(&self) -> Bytes {
        let mut key = place(&self.event_type, self.time_ms);
        key.extend_from_slice(&self.identity()[..DIGEST_BYTES]);
        key.into()
    }

    pub(super) fn row(&self) -> Result<Vec<u8>> {
        let stored = Stored {
            event_type: self.event_type.clone(),
            source: self.source.clone(),
            id: self.id.clone(),
            subject: self.subject.clone(),
            time_ms: self.time_ms,
            data: self.data.clone(),
            recorded: self.recorded,
        };
        serde_json::to_vec(&stored).map_err(Error::internal)
    }
}

/// Where events of a type from a time on begin.
fn place(event_type: &str, time_ms: i64) -> Vec<u8> {
    let mut key = digest(&[event_type])[..DIGEST_BYTES].to_vec();
    // With the sign bit turned, times before 1970 come first.
    key.extend_from_slice(&(time_ms as u64 ^ 1 << 63).to_be_bytes());
    key
}

/// The events of a type between two times, the second excluded.
pub(super) fn between(space: Space, event_type: &str, from_ms: i64, to_ms: i64) -> Range {
    Range { space, from: place(event_type, from_ms).into(), to: Some(place(event_type, to_ms).into()) }
}

fn digest(parts: &[&str]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part.as_bytes());
    }
    digest.finalize().into()
}

/// Read one event or an array of them, from a request at `now_ms`. One that is not right refuses all, so
/// that a sender never has to find out which half was taken.
pub fn parse(body: &[u8], now_ms: i64) -> Result<Vec<Event>> {
    match json::value(body)? {
        Value::Array(events) => events
            .into_iter()
            .enumerate()
            .map(|(n, event)| one(event, now_ms).map_err(|why| refused(&format!("event {n} of the batch: "), why)))
            .collect(),
        event => Ok(vec![single(event, now_ms)?]),
    }
}

/// Read an event that came alone.
pub(super) fn single(event: Value, now_ms: i64) -> Result<Event> {
    one(event, now_ms).map_err(|why| refused("", why))
}

/// A code and what to do.
type Why = (&'static str, String);

fn one(event: Value, now_ms: i64) -> Result<Event, Why> {
    let bad = |what: &str| ("event_invalid", what.to_owned());
    let Value::Object(mut members) = event else { return Err(bad("a CloudEvent is a JSON object")) };
    if serde_json::to_vec(&members).map_or(usize::MAX, |text| text.len()) > EVENT_BYTES {
        return Err(("event_too_large", format!("an event has at most {EVENT_BYTES} bytes")));
    }
    if members.contains_key("data_base64") {
        return Err(bad("data_base64 cannot be counted; send data as JSON"));
    }
    let data = members.remove("data").filter(|data| !data.is_null());
    attributes(&members)?;
    if members.get("specversion").and_then(Value::as_str) != Some("1.0") {
        return Err(bad("specversion is \"1.0\""));
    }
    let source = text(&members, "source", SOURCE_BYTES)?
        .ok_or_else(|| bad("source is missing: where it happened, a URI reference"))?;
    let id = text(&members, "id", ID_BYTES)?.ok_or_else(|| bad("id is missing: the event's name at its source"))?;
    let event_type = text(&members, "type", TYPE_BYTES)?.ok_or_else(|| bad("type is missing: what happened"))?;
    if source.bytes().any(|b| b <= b' ' || b == 0x7f) {
        return Err(bad("source is a URI reference, without blanks"));
    }
    let subject = text(&members, "subject", SOURCE_BYTES)?;
    if let Some(format) = text(&members, "datacontenttype", SOURCE_BYTES)?
        && !is_json(&media_type(&format))
    {
        return Err(bad("datacontenttype is a JSON type, such as application/json; only JSON can be counted"));
    }
    let time_ms = match text(&members, "time", SOURCE_BYTES)? {
        None => now_ms,
        Some(time) => {
            clock::parse_rfc3339(&time).ok_or_else(|| bad("time is an RFC 3339 time, such as 2026-01-31T12:00:00Z"))?
        }
    };
    if time_ms < now_ms.saturating_sub(BACK_MS) {
        return Err(("event_too_old", "an event is accepted up to 35 days after its time; this one is older".into()));
    }
    if time_ms > now_ms.saturating_add(AHEAD_MS) {
        return Err((
            "event_in_future",
            "an event's time is at most 5 minutes ahead of the server's; set the sender's clock".into(),
        ));
    }
    Ok(Event { source, id, event_type, subject, time_ms, data, recorded: false })
}

/// A content type without its parameters.
pub(super) fn media_type(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

pub(super) fn is_json(media_type: &str) -> bool {
    media_type.ends_with("/json") || media_type.ends_with("+json")
}

/// Attributes have names of lower-case letters and digits, and plain values (CloudEvents 1.0, section 3).
fn attributes(members: &Map<String, Value>) -> Result<(), Why> {
    for (name, value) in members {
        let named = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !named || value.is_array() || value.is_object() {
            return Err((
                "event_invalid",
                "an attribute has a name of a-z 0-9 and a plain value; put other things into data".into(),
            ));
        }
    }
    Ok(())
}

/// An attribute that is a text and not empty; null is absent.
fn text(members: &Map<String, Value>, name: &'static str, most: usize) -> Result<Option<String>, Why> {
    match members.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if (1..=most).contains(&text.len()) => Ok(Some(text.clone())),
        Some(_) => Err(("event_invalid", format!("{name} is a string of 1 to {most} bytes"))),
    }
}

fn refused(which: &str, (code, what): Why) -> Error {
    Error::new(Kind::Invalid, code, format!("{which}{what}"))
}

pub(super) fn invalid(message: String) -> Error {
    Error::new(Kind::Invalid, "event_invalid", message)
}
