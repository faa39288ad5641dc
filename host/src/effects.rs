//! What one transaction wants to change, and what it has read: an invocation of a guest and a
//! request to the control API are the same thing here.
//!
//! All that a tenant stores is one ordered map: a [`Space`] names a part of it, keys are bytes in
//! memcmp order, and a row's version is the number of the commit that wrote it. [`Effects`] reads a
//! consistent snapshot of that map plus its own staged writes; [`Shard::commit`] makes all of it
//! true at once, or nothing. Services are thin layers over it: they choose spaces, keys and bytes.
//!
//! It promises strict serializability within a tenant: commits are totally ordered, each as if it
//! had run alone at its place. It knows no service, no guest and no HTTP.

mod cache;
mod claims;
mod commit;
pub(crate) mod lanes;
pub(crate) mod postgres;
mod row;
mod set;
pub(crate) mod sqlite;
#[doc(hidden)]
pub mod testing;
mod together;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

pub use self::claims::{Claim, Claims, Held};
pub(crate) use self::commit::Runs;
pub use self::commit::{Counts, Shard};
pub use self::row::{Key, Range, Row, Space, Value};
pub use self::set::{Compute, Facts, Op, RangeFact, ReadFact, Set, Statement, Tag, Verdict, Write};
pub use crate::kernel::breaks::Breaks;
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::tenant::TenantScope;

/// Rows that one transaction may stage: what a batch of commits can carry and still be short.
pub const STAGED_ROWS: usize = 1_000;
/// Bytes of keys and values that one transaction may stage; a batch aims at a quarter of it.
pub const STAGED_BYTES: usize = 4 << 20;
/// Rows and bytes that the host adds to an invocation's at its end, beyond those: its record and log, and the answers to
/// its cause, of which one has 1 MiB at most.
const END_ROWS: usize = 8;
const END_BYTES: usize = 2 << 20;
/// Rows that one transaction may read: each is remembered and may have to be validated.
pub const ROWS_READ: usize = 10_000;
/// Bytes of a key: what an index entry of both engines holds with room to spare.
pub const KEY_BYTES: usize = 1_024;
/// Bytes of a space's name, which stands beside the key in the same index entry.
pub const SPACE_BYTES: usize = 512;

/// Where the rows of some tenants are. Two implementations stand beside this file; `tests/it/store.rs`
/// is the suite that both pass.
///
/// Every answer of `read`, `scan` and `holds` comes from one statement and names the head it saw, so
/// that the caller can tell whether two answers belong to one state. `commit` is atomic per call and
/// durable when it returns.
pub trait Store: Send + Sync {
    /// The rows of these keys, in their order; expired rows are returned as they stand.
    fn read<'a>(&'a self, scope: &'a TenantScope, keys: &'a [Key]) -> BoxFuture<'a, Result<(Tag, Vec<Option<Row>>)>>;

    /// At most `limit` rows of a range that are live at `now_ms`, in the order of their keys.
    fn scan<'a>(
        &'a self,
        scope: &'a TenantScope,
        range: &'a Range,
        now_ms: i64,
        limit: usize,
    ) -> BoxFuture<'a, Result<(Tag, Vec<(Bytes, Row)>)>>;

    /// Whether all these facts are true now; the first key found changed otherwise.
    fn holds<'a>(&'a self, scope: &'a TenantScope, facts: &'a Facts) -> BoxFuture<'a, Result<(Tag, Option<Key>)>>;

    /// Commit these sets in their order, each if its facts still hold; an invalid or refused set leaves
    /// the others alone. Of an error nothing is committed, except under the code `outcome_unknown`. `breaks`
    /// turns checks off for tests.
    fn commit<'a>(&'a self, sets: &'a [Set], breaks: Breaks) -> BoxFuture<'a, Result<Vec<Verdict>>>;

    /// Built-in usage by plugin between two hours, the second excluded: (plugin, hour, sums).
    fn usage<'a>(&'a self, scope: &'a TenantScope, from_ms: i64, to_ms: i64) -> BoxFuture<'a, Result<Vec<Compute>>>;

    /// The tenant's head now, and the bytes that count against its storage quota.
    fn head<'a>(&'a self, scope: &'a TenantScope) -> BoxFuture<'a, Result<(Tag, u64)>>;

    /// Hold back other nodes' commits of a tenant, after those that are on their way, until the gate is dropped
    /// or a second has passed without a commit: the last resort of whoever keeps losing to them. Nothing on a
    /// store that one process has to itself.
    fn close_gate<'a>(&'a self, _scope: &'a TenantScope) -> BoxFuture<'a, Result<Gate>> {
        std::future::ready(Ok(Box::new(()) as Gate)).boxed()
    }

    /// Whether one batch may hold sets of several tenants, and how many batches may run at a time.
    fn batching(&self) -> Batching;

    /// Grows when the database behind the store has become another one, as after a fail-over: states seen
    /// before it say nothing any more.
    fn generation(&self) -> u64 {
        0
    }
}

/// A tenant's gate among nodes; open again when it is dropped.
pub type Gate = Box<dyn Send>;

/// How a store wants its batches.
#[derive(Clone, Copy, Debug)]
pub struct Batching {
    /// Batches that may run at the same time; two never hold the same tenant.
    pub lanes: usize,
    /// Whether a batch may hold several tenants' sets.
    pub mixed: bool,
    /// Whether this process is the only one that writes, so that its cache is always current.
    pub exclusive: bool,
    /// Whether a commit blocks its thread, so that a lane needs one of its own.
    pub blocking: bool,
}

/// One transaction: a snapshot of a tenant's rows, and the changes staged on it.
pub struct Effects {
    shard: Shard,
    scope: TenantScope,
    now_ms: i64,
    tag: Option<Tag>,
    reads: HashMap<Key, Option<Row>>,
    ranges: Vec<RangeFact>,
    writes: BTreeMap<Key, Op>,
    statements: Vec<Statement>,
    rows_read: usize,
    staged_bytes: usize,
    ending: bool,
    stale: Option<Key>,
}

impl Effects {
    fn new(shard: Shard, scope: TenantScope, now_ms: i64) -> Self {
        Self {
            shard,
            scope,
            now_ms,
            tag: None,
            reads: HashMap::new(),
            ranges: Vec::new(),
            writes: BTreeMap::new(),
            statements: Vec::new(),
            rows_read: 0,
            staged_bytes: 0,
            ending: false,
            stale: None,
        }
    }

    /// The tenant that this transaction belongs to.
    pub fn scope(&self) -> &TenantScope {
        &self.scope
    }

    /// The transaction's time: expiry is judged by it, and it does not move.
    pub fn now_ms(&self) -> i64 {
        self.now_ms
    }

    /// Whether anything is staged.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.statements.is_empty()
    }

    /// Staged rows.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// The key whose change ended this transaction, if a read found its snapshot gone: whoever runs
    /// it must drop it and run again, whatever it answered.
    pub fn stale(&self) -> Option<&Key> {
        self.stale.as_ref()
    }

    /// The row of a key, as this transaction sees it.
    pub async fn get(&mut self, key: &Key) -> Result<Option<Row>> {
        Ok(self.get_many(std::slice::from_ref(key)).await?.pop().flatten())
    }

    /// The row of a key that is a setting, own writes included: as it is, or where others write too as it was at most a
    /// second ago. It is no part of the snapshot, so that whoever changes it conflicts with nobody.
    pub async fn setting(&self, key: &Key) -> Result<Option<Row>> {
        match self.writes.get(key) {
            None => Ok(self.shard.setting(&self.scope, key).await?.filter(|row| row.live(self.now_ms))),
            Some(_) => self.overlaid(key),
        }
    }

    /// The rows of several keys, in one round trip.
    pub async fn get_many(&mut self, keys: &[Key]) -> Result<Vec<Option<Row>>> {
        self.alive()?;
        let mut seen: HashSet<&Key> = HashSet::new();
        let mut wanted: Vec<Key> = Vec::new();
        for key in keys {
            check_space(&key.space)?;
            let needs_base = !matches!(self.writes.get(key), Some(Op::Put { .. } | Op::Delete));
            if needs_base && !self.reads.contains_key(key) && seen.insert(key) {
                wanted.push(key.clone());
            }
        }
        self.charge_reads(wanted.len())?;
        self.fetch(&wanted).await?;
        keys.iter().map(|key| self.overlaid(key)).collect()
    }

    /// A remembered row under the staged change of its key.
    fn overlaid(&self, key: &Key) -> Result<Option<Row>> {
        let base = || self.reads.get(key).cloned().flatten();
        Ok(match self.writes.get(key) {
            None => base(),
            Some(Op::Put { value, expires_at_ms }) => {
                Some(Row { value: value.clone(), version: 0, expires_at_ms: *expires_at_ms })
            }
            Some(Op::Delete) => None,
            // What it removes is already no row to this transaction.
            Some(Op::Sweep { .. }) => base(),
            Some(Op::Add(delta)) => match base() {
                None => Some(Row { value: Value::Counter(*delta), version: 0, expires_at_ms: None }),
                Some(row) => match row.value {
                    Value::Counter(count) => Some(Row {
                        value: Value::Counter(count.checked_add(*delta).ok_or_else(counter_overflow)?),
                        version: 0,
                        expires_at_ms: row.expires_at_ms,
                    }),
                    Value::Bytes(_) => return Err(not_a_counter()),
                },
            },
        })
    }

    async fn fetch(&mut self, keys: &[Key]) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let (tag, rows) = self.shard.read(&self.scope, keys, self.tag).await?;
        let old_enough = |s: Tag| rows.iter().all(|row| row.as_ref().is_some_and(|row| row.version <= s.seq));
        let fits = match self.tag {
            None => true,
            Some(s) => s == tag || (s.epoch == tag.epoch && old_enough(s)),
        };
        for (key, row) in keys.iter().zip(rows) {
            let live = row.filter(|row| row.live(self.now_ms));
            self.reads.insert(key.clone(), live);
        }
        if self.tag.is_none() {
            self.tag = Some(tag);
        } else if !fits {
            let fits = self.revalidate().await;
            if fits.is_err() {
                // Rows of another state than the rest must not be seen later either.
                keys.iter().for_each(|key| drop(self.reads.remove(key)));
            }
            return fits;
        }
        Ok(())
    }

    /// A transaction that found its snapshot gone answers nothing more.
    fn alive(&self) -> Result<()> {
        if self.stale.is_some() { Err(snapshot_gone()) } else { Ok(()) }
    }

    /// Move the snapshot to the present, if all that was read is still true there.
    async fn revalidate(&mut self) -> Result<()> {
        if self.shard.checks_off() {
            return Ok(());
        }
        let facts = self.facts();
        let (tag, changed) = self.shard.holds(&self.scope, &facts).await?;
        match changed {
            None => {
                self.tag = Some(tag);
                Ok(())
            }
            Some(key) => {
                self.stale = Some(key);
                Err(snapshot_gone())
            }
        }
    }

    fn charge_reads(&mut self, rows: usize) -> Result<()> {
        self.rows_read += rows;
        if self.rows_read > ROWS_READ {
            return Err(Error::new(
                Kind::Invalid,
                "too_many_reads",
                format!("an invocation reads at most {ROWS_READ} rows; read fewer, or page over several invocations"),
            ));
        }
        Ok(())
    }

    /// At most `limit` rows of a range in key order, own writes included, and whether there are more.
    pub async fn list(&mut self, range: &Range, limit: usize) -> Result<(Vec<(Bytes, Row)>, bool)> {
        self.alive()?;
        check_space(&range.space)?;
        let staged = self.staged_in(range);
        // Staged deletes hide stored rows, and one more tells whether a next page exists. One row more than
        // may be read is enough to find out that there are too many.
        let hidden = staged.iter().filter(|(_, op)| matches!(op, Op::Delete)).count();
        let left = ROWS_READ.saturating_sub(self.rows_read) + 1;
        let ask = limit.saturating_add(hidden + 1).min(left);
        let (tag, stored) = self.shard.scan(&self.scope, range, self.now_ms, ask).await?;
        self.charge_reads(stored.len())?;
        let whole = stored.len() < ask;
        let covered = match stored.last() {
            Some((last, _)) if !whole => Range { to: Some(row::after(last)), ..range.clone() },
            _ => range.clone(),
        };
        self.ranges.push(RangeFact {
            range: covered,
            count: stored.len() as u64,
            max_version: stored.iter().map(|(_, row)| row.version).max().unwrap_or(0),
        });
        if self.tag.is_none() {
            self.tag = Some(tag);
        } else if self.tag != Some(tag)
            && let Err(error) = self.revalidate().await
        {
            self.ranges.pop();
            return Err(error);
        }

        let horizon = if whole { None } else { stored.last().map(|(key, _)| key.clone()) };
        let mut merged: BTreeMap<Bytes, Row> = stored.into_iter().collect();
        for (key, op) in staged {
            if horizon.as_ref().is_some_and(|horizon| key > *horizon) {
                continue;
            }
            match op {
                Op::Delete => {
                    merged.remove(&key);
                }
                Op::Sweep { .. } => {}
                Op::Put { value, expires_at_ms } => {
                    merged.insert(key, Row { value, version: 0, expires_at_ms });
                }
                Op::Add(delta) => {
                    let (base, expires_at_ms) = match merged.get(&key) {
                        None => (0, None),
                        Some(Row { value: Value::Counter(count), expires_at_ms, .. }) => (*count, *expires_at_ms),
                        Some(_) => return Err(not_a_counter()),
                    };
                    let sum = base.checked_add(delta).ok_or_else(counter_overflow)?;
                    merged.insert(key, Row { value: Value::Counter(sum), version: 0, expires_at_ms });
                }
            }
        }
        let more = merged.len() > limit || !whole;
        let mut rows: Vec<_> = merged.into_iter().collect();
        rows.truncate(limit);
        Ok((rows, more))
    }

    fn staged_in(&self, range: &Range) -> Vec<(Bytes, Op)> {
        let from = Key { space: range.space.clone(), key: range.from.clone() };
        self.writes
            .range((Bound::Included(from), Bound::Unbounded))
            .take_while(|(key, _)| key.space == range.space && range.to.as_ref().is_none_or(|to| key.key < *to))
            .map(|(key, op)| (key.key.clone(), op.clone()))
            .collect()
    }

    /// Stage a row. It replaces whatever is there at the commit.
    pub fn put(&mut self, key: Key, value: impl Into<Bytes>, expires_at_ms: Option<i64>) -> Result<()> {
        self.stage(key, Op::Put { value: Value::Bytes(value.into()), expires_at_ms })
    }

    /// Stage the absence of a row.
    pub fn delete(&mut self, key: Key) -> Result<()> {
        self.stage(key, Op::Delete)
    }

    /// Stage the removal of a row that expired before `before_ms`; a row written anew stays.
    pub fn sweep(&mut self, key: Key, before_ms: i64) -> Result<()> {
        // What this transaction itself does to the row comes after its expiry.
        if self.writes.contains_key(&key) { Ok(()) } else { self.stage(key, Op::Sweep { before_ms }) }
    }

    /// Stage an addition to a counter. It reads nothing, so that concurrent additions do not conflict.
    pub fn add(&mut self, key: Key, delta: i64) -> Result<()> {
        let known = self.reads.get(&key).cloned().flatten();
        let op = match (self.writes.get(&key), known) {
            (None, Some(Row { value: Value::Bytes(_), .. })) => return Err(not_a_counter()),
            (None | Some(Op::Sweep { .. }), _) => Op::Add(delta),
            (Some(Op::Add(staged)), _) => Op::Add(staged.checked_add(delta).ok_or_else(counter_overflow)?),
            (Some(Op::Delete), _) => Op::Put { value: Value::Counter(delta), expires_at_ms: None },
            (Some(Op::Put { value: Value::Counter(count), expires_at_ms }), _) => Op::Put {
                value: Value::Counter(count.checked_add(delta).ok_or_else(counter_overflow)?),
                expires_at_ms: *expires_at_ms,
            },
            (Some(Op::Put { value: Value::Bytes(_), .. }), _) => return Err(not_a_counter()),
        };
        self.stage(key, op)
    }

    /// Stage a change of tables that are no tenant's map. A service of the host's own says it, never a guest.
    pub fn attach(&mut self, statement: Statement) {
        self.statements.push(statement);
    }

    /// What is staged from here on is the host's: nobody is refused for it who has staged all that may be.
    pub fn end(&mut self) {
        self.ending = true;
    }

    fn stage(&mut self, key: Key, op: Op) -> Result<()> {
        check_space(&key.space)?;
        if key.key.len() > KEY_BYTES {
            return Err(Error::invalid(format!("a key has at most {KEY_BYTES} bytes")));
        }
        let added = key.key.len() + op.bytes();
        let removed = self.writes.get(&key).map_or(0, |old| key.key.len() + old.bytes());
        let bytes = self.staged_bytes + added - removed;
        let rows = self.writes.len() + usize::from(removed == 0 && !self.writes.contains_key(&key));
        let (more_rows, more_bytes) = if self.ending { (END_ROWS, END_BYTES) } else { (0, 0) };
        if rows > STAGED_ROWS + more_rows || bytes > STAGED_BYTES + more_bytes {
            return Err(Error::new(
                Kind::Invalid,
                "too_many_effects",
                format!(
                    "an invocation stages at most {STAGED_ROWS} rows and {STAGED_BYTES} bytes; do the work in several invocations"
                ),
            ));
        }
        self.staged_bytes = bytes;
        self.writes.insert(key, op);
        Ok(())
    }

    fn facts(&self) -> Facts {
        Facts {
            now_ms: self.now_ms,
            reads: self
                .reads
                .iter()
                .map(|(key, row)| ReadFact { key: key.clone(), version: row.as_ref().map_or(0, |row| row.version) })
                .collect(),
            ranges: self.ranges.clone(),
        }
    }

    /// Close the transaction: what it read and staged, ready for [`Shard::commit`]. `marker` is a staged
    /// row that exists afterwards if and only if this set was committed; `compute` is counted with it.
    pub fn into_set(self, marker: Option<Key>, compute: Option<Compute>) -> Set {
        let facts = self.facts();
        Set {
            tag: self.tag,
            facts,
            writes: self.writes.into_iter().map(|(key, op)| Write { key, op }).collect(),
            statements: self.statements,
            marker,
            compute,
            scope: self.scope,
        }
    }

    /// The same tenant at the same time, with nothing read and nothing staged: for another run.
    pub fn again(&self) -> Self {
        Self::new(self.shard.clone(), self.scope.clone(), self.now_ms)
    }
}

/// Refuse a name that a database cannot hold as text; a part of it may come from a guest.
fn check_space(space: &Space) -> Result<()> {
    if space.as_str().len() > SPACE_BYTES || space.as_str().contains('\0') {
        return Err(Error::invalid(format!("a collection's name has at most {SPACE_BYTES} bytes, none of them zero")));
    }
    Ok(())
}

fn snapshot_gone() -> Error {
    Error::new(Kind::Conflict, "conflict", "the data changed while it was read; try again")
}

fn not_a_counter() -> Error {
    Error::new(Kind::Invalid, "not_a_counter", "the entry is not a counter; increment only entries made by increment")
}

fn counter_overflow() -> Error {
    Error::new(Kind::Invalid, "counter_overflow", "the counter would leave the range of a signed 64-bit integer")
}

/// The refusals that a store finds at commit, with the same words on both engines.
pub(crate) mod refusal {
    use super::{Error, Kind};

    pub(crate) fn not_a_counter() -> Error {
        super::not_a_counter()
    }

    pub(crate) fn counter_overflow() -> Error {
        super::counter_overflow()
    }

    pub(crate) fn storage_exhausted() -> Error {
        Error::new(
            Kind::Exhausted,
            "storage_exhausted",
            "the plan's storage is used up; delete something or change the plan",
        )
    }

    pub(crate) fn no_tenant() -> Error {
        Error::not_found("no such tenant")
    }
}

/// What a store and its callers share.
pub(crate) type SharedStore = Arc<dyn Store>;
