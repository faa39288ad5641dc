//! How much was used: sums over windows and groups, read from the events themselves.
//!
//! Events are read in pages and forgotten, so that their number is not bounded and the memory is. The
//! pages are no transaction: an event that was acknowledged before the query began is counted once, one
//! that is stored meanwhile may be counted or not.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde_json::Value;

use super::definition::{self, Compiled};
use super::event::{self, Stored};
use super::sum::Sum;
use super::{AHEAD_MS, BUILT_IN, EVENTS, RECORDED, check_name};
use crate::effects::{Compute, Shard};
use crate::kernel::clock;
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::tenant::TenantScope;

/// Events of a page: with the largest of them 16 MiB.
const PAGE: usize = 256;
/// Rows of an answer.
const ROWS: usize = 10_000;
/// Bytes of all groups' texts of an answer.
const GROUP_BYTES: usize = 4 << 20;
/// What a query without `from` covers: a month, before `to`.
const DEFAULT_MS: i64 = 31 * 86_400_000;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The meter's name.
    pub meter: String,
    /// The first millisecond.
    pub from_ms: i64,
    /// The first millisecond that is not in it.
    pub to_ms: i64,
    /// How time is divided; none is one window from `from` to `to`.
    pub window: Option<Window>,
    /// Names to group by.
    pub group_by: Vec<String>,
}

/// A division of time, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Minutes.
    Minute,
    /// Hours.
    Hour,
    /// Days.
    Day,
    /// Calendar months.
    Month,
}

/// One line of an answer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct UsageRow {
    /// RFC 3339; the window's beginning, or the query's if that is later.
    pub from: String,
    /// RFC 3339, excluded; the window's end, or the query's if that is earlier.
    pub to: String,
    /// A decimal.
    pub value: String,
    /// Name and text of each group.
    pub group: BTreeMap<String, String>,
}

impl Query {
    /// A question from the parameters of a request. Without `to` it ends with the last event that may have
    /// been accepted; without `from` it begins 31 days before its end.
    pub fn parse(
        meter: &str,
        from: Option<&str>,
        to: Option<&str>,
        window: Option<&str>,
        group_by: Option<&str>,
        now_ms: i64,
    ) -> Result<Self> {
        check_name(meter)?;
        let time = |text: &str| {
            clock::parse_rfc3339(text)
                .ok_or_else(|| invalid("from and to are RFC 3339 times, such as 2026-01-01T00:00:00Z".into()))
        };
        let to_ms = to.map_or_else(|| Ok(now_ms + AHEAD_MS + 1), time)?;
        let from_ms = from.map_or_else(|| Ok(to_ms.saturating_sub(DEFAULT_MS)), time)?;
        if from_ms >= to_ms {
            return Err(invalid("from is before to".into()));
        }
        let window = match window {
            None => None,
            Some("minute") => Some(Window::Minute),
            Some("hour") => Some(Window::Hour),
            Some("day") => Some(Window::Day),
            Some("month") => Some(Window::Month),
            Some(_) => return Err(invalid("window is minute, hour, day or month".into())),
        };
        let mut groups: Vec<String> =
            group_by.into_iter().flat_map(|list| list.split(',')).map(str::to_owned).collect();
        groups.sort_unstable();
        groups.dedup();
        if groups.len() > super::DIMENSIONS || groups.iter().any(|name| check_name(name).is_err()) {
            return Err(invalid("group_by is a list of names with commas between them, at most 16".into()));
        }
        Ok(Self { meter: meter.to_owned(), from_ms, to_ms, window, group_by: groups })
    }

    /// The bounds of the window that a time lies in, within the query.
    fn window_of(&self, time_ms: i64) -> (i64, i64) {
        let fixed = |length_ms: i64| {
            let start = time_ms.div_euclid(length_ms) * length_ms;
            (start, start.saturating_add(length_ms))
        };
        let (from, to) = match self.window {
            None => (self.from_ms, self.to_ms),
            Some(Window::Minute) => fixed(60_000),
            Some(Window::Hour) => fixed(3_600_000),
            Some(Window::Day) => fixed(86_400_000),
            Some(Window::Month) => month(time_ms).unwrap_or((self.from_ms, self.to_ms)),
        };
        (from.max(self.from_ms), to.min(self.to_ms))
    }
}

/// The calendar month of a time, in UTC.
fn month(time_ms: i64) -> Option<(i64, i64)> {
    let time = Timestamp::from_millisecond(time_ms).ok()?.to_zoned(TimeZone::UTC);
    let first = time.first_of_month().ok()?.start_of_day().ok()?;
    let next = first.checked_add(1.month()).ok()?;
    Some((first.timestamp().as_millisecond(), next.timestamp().as_millisecond()))
}

/// Sums by window and group.
struct Table<'q> {
    query: &'q Query,
    sums: BTreeMap<(i64, i64, Vec<String>), Sum>,
    group_bytes: usize,
}

impl<'q> Table<'q> {
    fn new(query: &'q Query) -> Self {
        Self { query, sums: BTreeMap::new(), group_bytes: 0 }
    }

    fn sum(&mut self, time_ms: i64, groups: Vec<String>) -> Result<&mut Sum> {
        let (from, to) = self.query.window_of(time_ms);
        let key = (from, to, groups);
        if !self.sums.contains_key(&key) {
            self.group_bytes += key.2.iter().map(String::len).sum::<usize>();
            if self.sums.len() >= ROWS || self.group_bytes > GROUP_BYTES {
                return Err(Error::new(
                    Kind::Invalid,
                    "too_many_rows",
                    format!(
                        "an answer has at most {ROWS} rows and {GROUP_BYTES} bytes of groups; ask for less time, longer windows or fewer groups"
                    ),
                ));
            }
        }
        Ok(self.sums.entry(key).or_default())
    }

    fn rows(mut self) -> Vec<UsageRow> {
        // A question without windows and groups has one answer, also if nothing was used.
        if self.sums.is_empty() && self.query.window.is_none() && self.query.group_by.is_empty() {
            self.sums.insert((self.query.from_ms, self.query.to_ms, vec![]), Sum::default());
        }
        let row = |((from, to, groups), sum): ((i64, i64, Vec<String>), Sum)| UsageRow {
            from: clock::rfc3339(from),
            to: clock::rfc3339(to),
            value: sum.to_string(),
            group: self.query.group_by.iter().cloned().zip(groups).collect(),
        };
        self.sums.into_iter().map(row).collect()
    }
}

/// Answer a question.
pub async fn query(shard: &Shard, scope: &TenantScope, query: &Query) -> Result<Vec<UsageRow>> {
    if BUILT_IN.contains(&query.meter.as_str()) {
        return built_in(shard, scope, query).await;
    }
    let mut effects = shard.begin(scope);
    let definition =
        super::get(&mut effects, &query.meter).await?.map(|(definition, _)| definition.compile()).transpose()?;
    let recorded = effects.get(&RECORDED.key(query.meter.clone())).await?.is_some();
    drop(effects);
    if definition.is_none() && !recorded {
        return Err(Error::new(
            Kind::NotFound,
            "meter_missing",
            "there is no such meter; define it with PUT /v1/tenants/{tenant}/meters/{meter}, or record into it",
        ));
    }
    // What plugins recorded has the dimensions that they gave it.
    if let Some(definition) = definition.as_ref().filter(|_| !recorded)
        && let Some(unknown) = query.group_by.iter().find(|name| !definition.group_by.contains_key(*name))
    {
        return Err(invalid(format!("the meter cannot be grouped by {unknown}; name it in its group_by")));
    }
    let mut table = Table::new(query);
    let counts = definition.as_ref().is_some_and(|definition| definition.value.is_none());
    if let Some(definition) = &definition {
        let own = definition.event_type == query.meter;
        scan(shard, scope, query, &definition.event_type, |stored| {
            if own && stored.recorded {
                count_recorded(&mut table, counts, stored)
            } else {
                count(&mut table, definition, stored)
            }
        })
        .await?;
    }
    if recorded && definition.as_ref().is_none_or(|definition| definition.event_type != query.meter) {
        scan(shard, scope, query, &query.meter, |stored| {
            if stored.recorded { count_recorded(&mut table, counts, stored) } else { Ok(()) }
        })
        .await?;
    }
    Ok(table.rows())
}

/// Every event of a type in the query's time, in the order of time.
async fn scan(
    shard: &Shard,
    scope: &TenantScope,
    query: &Query,
    event_type: &str,
    mut each: impl FnMut(&Stored) -> Result<()>,
) -> Result<()> {
    let mut range = event::between(EVENTS, event_type, query.from_ms, query.to_ms);
    loop {
        let (_, page) = shard.store().scan(scope, &range, shard.clock().now_ms(), PAGE).await?;
        for (_, row) in &page {
            let stored: Stored = serde_json::from_slice(&row.value.to_bytes()).map_err(Error::internal)?;
            if stored.event_type == event_type {
                each(&stored)?;
            }
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => range = range.behind(last),
            _ => return Ok(()),
        }
    }
}

/// Count an event as the definition says; one without a value is not counted.
fn count(table: &mut Table<'_>, definition: &Compiled, stored: &Stored) -> Result<()> {
    let data = stored.data.as_ref().unwrap_or(&Value::Null);
    let value = match &definition.value {
        None => None,
        Some(path) => match definition::number(data, path) {
            None => return Ok(()),
            value => value,
        },
    };
    let place =
        |name: &String| definition.group_by.get(name).and_then(|path| path.query(data).at_most_one().ok().flatten());
    let groups = table.query.group_by.iter().map(|name| definition::text(place(name))).collect();
    let sum = table.sum(stored.time_ms, groups)?;
    match value {
        None => sum.add_units(1),
        Some(value) => sum.add(value),
    }
    Ok(())
}

/// Count what a plugin recorded: its value, or one.
fn count_recorded(table: &mut Table<'_>, counts: bool, stored: &Stored) -> Result<()> {
    let member = |name: &str| stored.data.as_ref().and_then(|data| data.get(name));
    let value = member("value").and_then(Value::as_str).and_then(definition::decimal);
    let groups =
        table.query.group_by.iter().map(|name| definition::text(member(name).filter(|_| name != "value"))).collect();
    let sum = table.sum(stored.time_ms, groups)?;
    match value {
        Some(value) if !counts => sum.add(value),
        _ => sum.add_units(1),
    }
    Ok(())
}

/// What the host measured, by the hour in which it happened.
async fn built_in(shard: &Shard, scope: &TenantScope, query: &Query) -> Result<Vec<UsageRow>> {
    if query.window == Some(Window::Minute) {
        return Err(invalid("the host's own meters are kept by the hour; ask for hour, day or month".into()));
    }
    let mut table = Table::new(query);
    if query.meter == "storage" {
        if query.window.is_some() || !query.group_by.is_empty() {
            return Err(invalid("storage is what is stored now; ask without window and group_by".into()));
        }
        let (_, bytes) = shard.store().head(scope).await?;
        table.sum(query.from_ms, vec![])?.add_units(bytes);
        return Ok(table.rows());
    }
    let by_plugin = match query.group_by.as_slice() {
        [] => false,
        [one] if one == "plugin" => true,
        _ => return Err(invalid("the host's own meters can be grouped by plugin".into())),
    };
    let units: fn(&Compute) -> u64 = match query.meter.as_str() {
        "invocations" => |compute| compute.invocations,
        "failures" => |compute| compute.failures,
        "fuel" => |compute| compute.fuel,
        "bytes_in" => |compute| compute.bytes_in,
        _ => |compute| compute.bytes_out,
    };
    for compute in shard.store().usage(scope, query.from_ms, query.to_ms).await? {
        let groups = if by_plugin { vec![compute.plugin.to_string()] } else { vec![] };
        table.sum(compute.hour_ms, groups)?.add_units(units(&compute));
    }
    Ok(table.rows())
}

fn invalid(message: String) -> Error {
    Error::new(Kind::Invalid, "usage_query", message)
}
