//! What goes to the commit: one transaction's facts and changes, and what became of it.

use std::sync::Arc;

use crate::effects::row::{Key, Range, Value};
use crate::kernel::error::Error;
use crate::kernel::tenant::{TenantId, TenantScope};

/// The code of an error after which nobody knows yet whether the commit happened.
pub(crate) const OUTCOME_UNKNOWN: &str = "outcome_unknown";

/// A tenant's state: how often it moved, and how many commits it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag {
    /// Grows when the tenant moves to another shard.
    pub epoch: u64,
    /// Grows with each commit.
    pub seq: u64,
}

/// A key was read at a version; 0 means that it was absent.
#[derive(Clone, Debug)]
pub struct ReadFact {
    /// The key.
    pub key: Key,
    /// Its version.
    pub version: u64,
}

/// A range was read: so many live rows, and the highest version among them.
#[derive(Clone, Debug)]
pub struct RangeFact {
    /// What was read.
    pub range: Range,
    /// Live rows in it.
    pub count: u64,
    /// The highest version among them; 0 if there is none.
    pub max_version: u64,
}

/// All that a transaction read.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The time by which expiry is judged.
    pub now_ms: i64,
    /// Keys.
    pub reads: Vec<ReadFact>,
    /// Ranges.
    pub ranges: Vec<RangeFact>,
}

impl Facts {
    /// Whether there is nothing to check.
    pub fn is_empty(&self) -> bool {
        self.reads.is_empty() && self.ranges.is_empty()
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Replace the row.
    Put {
        /// What it holds then.
        value: Value,
        /// When it stops to exist.
        expires_at_ms: Option<i64>,
    },
    /// Remove the row.
    Delete,
    /// Add to a counter; a missing or expired one starts at 0.
    Add(i64),
    /// Remove the row if it expired at or before this time.
    Sweep {
        /// Milliseconds since the Unix epoch.
        before_ms: i64,
    },
}

impl Op {
    /// Bytes that the change carries.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Put { value, .. } => value.size(),
            Self::Delete | Self::Sweep { .. } => 0,
            Self::Add(_) => 8,
        }
    }
}

/// One change of one row.
#[derive(Clone, Debug)]
pub struct Write {
    /// The row.
    pub key: Key,
    /// The change.
    pub op: Op,
}

/// Built-in usage of one plugin in one hour.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Compute {
    /// The plugin's name; empty for the control API.
    pub plugin: Arc<str>,
    /// The hour's start, milliseconds since the Unix epoch.
    pub hour_ms: i64,
    /// Invocations that ended.
    pub invocations: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Fuel burned, over all runs.
    pub fuel: u64,
    /// Bytes of request bodies.
    pub bytes_in: u64,
    /// Bytes of response bodies.
    pub bytes_out: u64,
}

impl Compute {
    /// Milliseconds of the period that usage is summed over.
    pub const HOUR_MS: i64 = 3_600_000;

    /// Add another sum of the same plugin and hour.
    pub fn merge(&mut self, other: &Self) {
        self.invocations += other.invocations;
        self.failures += other.failures;
        self.fuel = self.fuel.saturating_add(other.fuel);
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
    }
}

/// A change of tables that are no tenant's map, such as the directory's, or of what is left of a tenant that is gone, in
/// the transaction of a set: it happens if and only if the set is committed. The SQL is portable; what comes from outside is a value.
#[derive(Clone, Debug)]
pub struct Statement {
    pub(crate) sql: &'static str,
    pub(crate) values: Vec<Datum>,
    pub(crate) tenant: Option<TenantId>,
}

/// A value of a statement.
#[derive(Clone, Debug)]
pub(crate) enum Datum {
    Text(Option<String>),
    Bytes(Vec<u8>),
    Number(i64),
}

impl Statement {
    /// A statement without values.
    pub fn new(sql: &'static str) -> Self {
        Self { sql, values: Vec::new(), tenant: None }
    }

    /// The next value: text, or null.
    #[must_use]
    pub fn text<'t>(mut self, text: impl Into<Option<&'t str>>) -> Self {
        self.values.push(Datum::Text(text.into().map(str::to_owned)));
        self
    }

    /// The next value: bytes.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.values.push(Datum::Bytes(bytes.to_vec()));
        self
    }

    /// The next value: a number.
    #[must_use]
    pub fn number(mut self, number: i64) -> Self {
        self.values.push(Datum::Number(number));
        self
    }

    /// The tenant whose tables it may touch, as row-level security wants to know.
    #[must_use]
    pub fn of(mut self, tenant: &TenantId) -> Self {
        self.tenant = Some(tenant.clone());
        self
    }
}

/// A closed transaction.
#[derive(Debug)]
pub struct Set {
    /// Whose it is.
    pub scope: TenantScope,
    /// The state it read from; none if it read nothing.
    pub tag: Option<Tag>,
    /// What must still be true.
    pub facts: Facts,
    /// What it changes, one entry a key.
    pub writes: Vec<Write>,
    /// What it changes beside, in this order.
    pub statements: Vec<Statement>,
    /// A row among `writes` that exists afterwards if and only if this set was committed.
    pub marker: Option<Key>,
    /// Usage that is counted with it.
    pub compute: Option<Compute>,
}

impl Set {
    /// Bytes that it carries into a batch.
    pub fn bytes(&self) -> usize {
        self.writes.iter().map(|write| write.key.key.len() + write.op.bytes()).sum()
    }

    /// When the first of its rows expires.
    pub fn first_expiry_ms(&self) -> Option<i64> {
        self.writes
            .iter()
            .filter_map(|write| match write.op {
                Op::Put { expires_at_ms, .. } => expires_at_ms,
                Op::Delete | Op::Add(_) | Op::Sweep { .. } => None,
            })
            .min()
    }
}

/// What became of a set.
#[derive(Debug)]
pub enum Verdict {
    /// It is durable as this commit.
    Committed {
        /// The state it made; `seq` is the version of every row it wrote.
        tag: Tag,
    },
    /// Something it read has changed; run it again.
    Conflict {
        /// What changed.
        key: Key,
    },
    /// It can never be committed as it is.
    Refused(Error),
}
