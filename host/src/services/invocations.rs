//! What happened in each invocation, for the people who have to explain it: records and logs.
//!
//! Everything with effects is recorded in its own commit. Keys are inverted ids, so that the latest comes
//! first. Records and logs expire with the plan's retention, the oldest earlier where there are very many.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::effects::{Effects, Key, Space};
use crate::kernel::clock;
use crate::kernel::error::{Error, Result};

pub(super) const RECORDS: Space = Space::named("invocations");
const LOGS: Space = Space::named("invocations/logs");
/// Records that a tenant keeps: what a person can look through, and a bound on what a busy plugin stores.
pub const KEPT: u32 = 100_000;

/// One invocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Record {
    /// The id, as in the `chalet-invocation` header.
    pub id: String,
    /// The plugin.
    #[schema(value_type = String)]
    pub plugin: Arc<str>,
    /// Its version.
    #[schema(value_type = String)]
    pub version: Arc<str>,
    /// `http` or `webhook`.
    #[schema(value_type = String)]
    pub trigger: Cow<'static, str>,
    /// `ok`, `failed`, `rejected`, `conflict` or `cancelled`.
    #[schema(value_type = String)]
    pub outcome: Cow<'static, str>,
    /// The stable code of a failure; the HTTP status of a success, where it has one.
    #[schema(value_type = String)]
    pub code: Cow<'static, str>,
    /// Fuel burned, all runs.
    pub fuel: u64,
    /// Milliseconds from admission to the answer.
    pub duration_ms: u64,
    /// Host calls of the last run.
    pub host_calls: u32,
    /// Runs after the first, because data changed underneath.
    pub reruns: u32,
    /// What went wrong, for the plugin's author.
    pub error: Option<String>,
    /// When it started, RFC 3339.
    #[serde(rename = "started_at", with = "clock::text")]
    #[schema(value_type = String, format = DateTime)]
    pub started_at_ms: i64,
}

/// One line of a plugin's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Line {
    /// `trace`, `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// The text, control characters escaped.
    pub message: String,
}

fn inverted(id: &str) -> Option<Vec<u8>> {
    let bytes = hex::decode(id).ok().filter(|bytes| bytes.len() == 16)?;
    Some(bytes.into_iter().map(|byte| !byte).collect())
}

/// The row of an invocation's record.
pub fn key(id: &str) -> Result<Key> {
    Ok(RECORDS.key(inverted(id).ok_or_else(|| Error::internal(format!("{id} is no invocation id")))?))
}

/// Stage a record and its log.
pub fn record(effects: &mut Effects, record: &Record, log: &[Line]) -> Result<()> {
    let retention = i64::try_from(effects.scope().plan().retention_ms).unwrap_or(i64::MAX);
    let expires = Some(effects.now_ms().saturating_add(retention));
    let key = key(&record.id)?;
    if !log.is_empty() {
        let lines = serde_json::to_vec(log).map_err(Error::internal)?;
        effects.put(LOGS.key(key.key.clone()), lines, expires)?;
    }
    effects.put(key, serde_json::to_vec(record).map_err(Error::internal)?, expires)
}

/// One record; `id` comes from the caller.
pub async fn get(effects: &mut Effects, id: &str) -> Result<Record> {
    let absent = || Error::not_found("no such invocation; records are kept as long as the plan says");
    let key = RECORDS.key(inverted(id).ok_or_else(absent)?);
    let row = effects.get(&key).await?.ok_or_else(absent)?;
    serde_json::from_slice(&row.value.to_bytes()).map_err(Error::internal)
}

/// The log of an invocation; empty if it wrote none.
pub async fn log(effects: &mut Effects, id: &str) -> Result<Vec<Line>> {
    let Some(key) = inverted(id) else { return Ok(Vec::new()) };
    let Some(row) = effects.get(&LOGS.key(key)).await? else { return Ok(Vec::new()) };
    serde_json::from_slice(&row.value.to_bytes()).map_err(Error::internal)
}

/// Records, the latest first, behind `after`, and whether there are more.
pub async fn list(effects: &mut Effects, after: Option<&str>, limit: usize) -> Result<(Vec<Record>, bool)> {
    let mut range = RECORDS.prefix(Bytes::new());
    if let Some(after) = after.and_then(inverted) {
        range = range.behind(&after);
    }
    let (rows, more) = effects.list(&range, limit).await?;
    let records = rows.iter().map(|(_, row)| serde_json::from_slice(&row.value.to_bytes()).map_err(Error::internal));
    Ok((records.collect::<Result<_>>()?, more))
}

/// Stage the removal of a record, by its row's key, and of its log.
pub(super) fn remove(effects: &mut Effects, key: Vec<u8>) -> Result<()> {
    effects.delete(LOGS.key(key.clone()))?;
    effects.delete(RECORDS.key(key))
}
