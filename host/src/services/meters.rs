//! Usage: events that are counted, meters that say how, and the sums that a bill is made of.
//!
//! An event is stored once, in the same commit that remembers its source and id, whether a meter counts
//! it or not. A meter is a reading of stored events by their own time, so that one defined later counts
//! earlier events too. Plugins record usage through the same events. What the host measures itself
//! (invocations, fuel, bytes) is read from its own sums and has the same form in an answer.

mod definition;
mod event;
mod message;
mod query;
mod sum;

use bytes::Bytes;
use rust_decimal::Decimal;
use serde_json::{Map, Value};

pub use self::definition::{Aggregation, Definition};
pub use self::event::{AHEAD_MS, BACK_MS, EVENT_BYTES, Event, parse};
pub use self::message::receive;
pub use self::query::{Query, UsageRow, Window, query};
use crate::effects::{Effects, Space};
use crate::kernel::error::{Error, Kind, Result};

/// One row a meter: the key is its name, the value its definition.
const METERS: Space = Space::named("usage/meters");
/// One row a meter that a plugin has recorded into.
const RECORDED: Space = Space::named("usage/recorded");
/// One row: how many meters have been recorded into.
const RECORDED_COUNT: Space = Space::named("usage/recorded_count");
/// One row an event, ordered by its type and then its time.
const EVENTS: Space = Space::named("usage/events");
/// One row a source and id that was seen.
const SEEN: Space = Space::named("usage/seen");

/// Events of one request: each is two rows, and a transaction stages 1,000.
pub const BATCH: usize = 400;
/// Characters of a meter's name.
pub const NAME_CHARS: usize = 64;
/// Meters that a tenant defines, and meters that its plugins may bring into being by recording.
pub const METER_COUNT: usize = 1_000;
/// Dimensions of recorded usage.
pub const DIMENSIONS: usize = 16;
/// Bytes of a dimension's value.
pub const DIMENSION_BYTES: usize = 256;
/// How long a source and id are remembered: a day longer than an event may be late.
const SEEN_MS: i64 = BACK_MS + 86_400_000;
/// How long an event is kept: a bill of the last year can be derived again.
const KEPT_MS: i64 = 400 * 86_400_000;
/// Meters of the host's own.
pub const BUILT_IN: &[&str] = &["invocations", "failures", "fuel", "bytes_in", "bytes_out", "storage"];

/// What became of a request's events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct Ingested {
    /// Events that are stored now.
    pub accepted: usize,
    /// Events whose source and id were stored before.
    pub duplicates: usize,
}

/// A meter in a list.
#[derive(Clone, Debug, PartialEq, serde::Serialize, utoipa::ToSchema)]
pub struct Listed {
    /// The name.
    pub name: String,
    /// `built_in`, `defined`, or `recorded`.
    pub kind: &'static str,
    /// How a defined meter counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub definition: Option<Definition>,
}

/// Stage a meter; it replaces the one before. Whether it is new.
pub async fn put(effects: &mut Effects, name: &str, body: &[u8]) -> Result<(Definition, bool)> {
    check_name(name)?;
    if BUILT_IN.contains(&name) {
        return Err(reserved(name));
    }
    let definition = Definition::parse(body)?;
    let key = METERS.key(name.to_owned());
    let new = effects.get(&key).await?.is_none();
    if new && effects.list(&METERS.prefix(""), METER_COUNT).await?.0.len() >= METER_COUNT {
        return Err(too_many());
    }
    effects.put(key, serde_json::to_vec(&definition).map_err(Error::internal)?, None)?;
    Ok((definition, new))
}

/// The meter's definition and the commit that wrote it, if the tenant has defined it.
pub async fn get(effects: &mut Effects, name: &str) -> Result<Option<(Definition, u64)>> {
    check_name(name)?;
    let Some(row) = effects.get(&METERS.key(name.to_owned())).await? else { return Ok(None) };
    Ok(Some((Definition::parse(&row.value.to_bytes())?, row.version)))
}

/// Stage the removal of a meter's definition; whether there was one. Events stay.
pub async fn delete(effects: &mut Effects, name: &str) -> Result<bool> {
    check_name(name)?;
    let key = METERS.key(name.to_owned());
    let existed = effects.get(&key).await?.is_some();
    if existed {
        effects.delete(key)?;
    }
    Ok(existed)
}

/// All meters: the host's own, then the others by name.
pub async fn list(effects: &mut Effects) -> Result<Vec<Listed>> {
    let mut all: Vec<Listed> =
        BUILT_IN.iter().map(|name| Listed { name: (*name).to_owned(), kind: "built_in", definition: None }).collect();
    let (defined, _) = effects.list(&METERS.prefix(""), METER_COUNT).await?;
    let (recorded, _) = effects.list(&RECORDED.prefix(""), METER_COUNT).await?;
    let text = |name: &Bytes| String::from_utf8_lossy(name).into_owned();
    let mut named = std::collections::BTreeMap::new();
    for (name, _) in recorded {
        named.insert(text(&name), Listed { name: text(&name), kind: "recorded", definition: None });
    }
    for (name, row) in defined {
        let definition = Some(Definition::parse(&row.value.to_bytes())?);
        named.insert(text(&name), Listed { name: text(&name), kind: "defined", definition });
    }
    all.extend(named.into_values());
    Ok(all)
}

/// Stage events, each unless its source and id are known.
pub async fn ingest(effects: &mut Effects, events: &[Event]) -> Result<Ingested> {
    if events.len() > BATCH {
        return Err(Error::new(
            Kind::Invalid,
            "batch_too_large",
            format!("a request carries at most {BATCH} events; send the others in another"),
        ));
    }
    let mut done = Ingested::default();
    let now_ms = effects.now_ms();
    // One round trip; the rows are remembered by the transaction.
    let keys: Vec<_> = events.iter().map(|event| SEEN.key(event.identity().to_vec())).collect();
    effects.get_many(&keys).await?;
    for (event, seen) in events.iter().zip(keys) {
        // Read again, over what this loop has staged: a batch may hold an event twice.
        if effects.get(&seen).await?.is_some() {
            done.duplicates += 1;
            continue;
        }
        effects.put(seen, Bytes::new(), Some(now_ms.saturating_add(SEEN_MS)))?;
        let kept_until_ms = now_ms.max(event.time_ms).saturating_add(KEPT_MS);
        effects.put(EVENTS.key(event.key()), event.row()?, Some(kept_until_ms))?;
        done.accepted += 1;
    }
    Ok(done)
}

/// Record usage for a guest, from which meter, value and dimensions come. `source` and `id` name this
/// call of this invocation, so that a repetition changes nothing. A meter that is not defined exists
/// from then on, as a sum.
pub async fn record(
    effects: &mut Effects,
    meter: &str,
    value: &str,
    dimensions: &[(String, String)],
    source: &str,
    id: &str,
) -> Result<()> {
    check_name(meter)?;
    if BUILT_IN.contains(&meter) {
        return Err(reserved(meter));
    }
    let value = amount(value)?;
    let mut data = Map::new();
    for (name, text) in dimensions {
        check_name(name).map_err(|_| bad_dimension())?;
        if name == "value" || text.len() > DIMENSION_BYTES || data.insert(name.clone(), text.as_str().into()).is_some()
        {
            return Err(bad_dimension());
        }
    }
    if data.len() > DIMENSIONS {
        return Err(bad_dimension());
    }
    data.insert("value".into(), value.to_string().into());
    let event = Event {
        source: source.to_owned(),
        id: id.to_owned(),
        event_type: meter.to_owned(),
        subject: None,
        time_ms: effects.now_ms(),
        data: Some(Value::Object(data)),
        recorded: true,
    };
    let known = RECORDED.key(meter.to_owned());
    if effects.get(&known).await?.is_none() {
        let count = RECORDED_COUNT.key("n");
        let recorded: usize = match effects.get(&count).await? {
            None => 0,
            Some(row) => {
                std::str::from_utf8(&row.value.to_bytes()).map_err(Error::internal)?.parse().map_err(Error::internal)?
            }
        };
        if recorded >= METER_COUNT {
            return Err(too_many());
        }
        effects.put(count, (recorded + 1).to_string(), None)?;
        effects.put(known, Bytes::new(), None)?;
    }
    ingest(effects, std::slice::from_ref(&event)).await?;
    Ok(())
}

/// A decimal of a guest: not negative, at most 28 significant digits.
fn amount(text: &str) -> Result<Decimal> {
    let shape = !text.is_empty()
        && text.len() <= 64
        && text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        && text.bytes().filter(|b| *b == b'.').count() <= 1
        && text.starts_with(|c: char| c.is_ascii_digit())
        && text.ends_with(|c: char| c.is_ascii_digit());
    let significant = text.bytes().filter(u8::is_ascii_digit).skip_while(|b| *b == b'0').count();
    shape.then(|| Decimal::from_str_exact(text).ok()).flatten().filter(|_| significant <= 28).ok_or_else(|| {
        Error::new(
            Kind::Invalid,
            "meter_value",
            "recorded usage is a decimal such as 1 or 0.25: not negative, at most 28 significant digits",
        )
    })
}

/// Whether this can be a meter's name, or a dimension's.
pub fn check_name(name: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    let starts = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if starts && name.len() <= NAME_CHARS && name.bytes().all(plain) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Invalid,
        "meter_name",
        format!("a meter's name is 1 to {NAME_CHARS} of a-z 0-9 . _ -, and begins with a letter or a digit"),
    ))
}

fn bad_dimension() -> Error {
    Error::new(
        Kind::Invalid,
        "meter_dimension",
        format!(
            "usage has at most {DIMENSIONS} dimensions, each name once and not \"value\", named as meters are, with at most {DIMENSION_BYTES} bytes of text"
        ),
    )
}

fn reserved(name: &str) -> Error {
    Error::new(Kind::Invalid, "meter_reserved", format!("{name} is a meter of the host's own; choose another name"))
}

fn too_many() -> Error {
    Error::new(
        Kind::Exhausted,
        "too_many_meters",
        format!("a tenant has at most {METER_COUNT} meters; delete one, or use a dimension"),
    )
}

#[cfg(test)]
mod tests;
