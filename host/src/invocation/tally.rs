//! Usage and records of invocations that committed nothing: kept in memory, written in batches.
//!
//! Every invocation is counted exactly while the process lives; a crash loses at most what came since the
//! last flush, [`FLUSH`] ago. Records are sampled: the counts are exact all the same.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;

use crate::effects::{Compute, Shard, Space, Verdict};
use crate::kernel::error::Result;
use crate::kernel::id;
use crate::kernel::tenant::{TenantId, TenantScope};
use crate::services::invocations::{self, Line, Record};

/// How often the tally is written: the most usage of effect-free invocations that a crash loses.
pub const FLUSH: Duration = Duration::from_millis(100);
/// Records of effect-free successes kept per plugin and second.
const SUCCESSES: u32 = 10;
/// Records of failures kept per plugin and second.
const FAILURES: u32 = 100;
/// Records that a node keeps in memory.
const RECENT: usize = 10_000;
/// Records in one set, with their logs far below what a set may carry.
const RECORDS_A_SET: usize = 32;

/// How long a flush can be told from one that never was: far longer than a commit's outcome stays open.
const MARKER_MS: i64 = 3_600_000;
const FLUSHES: Space = Space::named("usage/flushes");

/// What is not yet in the database.
#[derive(Clone)]
pub struct Tally(Arc<Inner>);

struct Inner {
    shard: Shard,
    state: Mutex<State>,
    flushing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    sums: HashMap<(TenantId, Arc<str>, i64), (TenantScope, Compute)>,
    records: HashMap<TenantId, (TenantScope, Vec<Recorded>)>,
    sampled: HashMap<(TenantId, Arc<str>, bool), (i64, u32)>,
    recent: VecDeque<(TenantId, Arc<Record>)>,
}

/// A record that is to be written, with its log.
type Recorded = (Arc<Record>, Vec<Line>);

impl Tally {
    pub(super) fn new(shard: Shard) -> Self {
        Self(Arc::new(Inner { shard, state: Mutex::default(), flushing: tokio::sync::Mutex::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Count an invocation whose record is not in a commit.
    pub(super) fn add(&self, scope: &TenantScope, (record, compute): (Record, Compute), log: Vec<Line>) {
        let record = Arc::new(record);
        self.count(scope, compute);
        let mut state = self.state();
        let tenant = scope.id();
        let failed = record.outcome != "ok";
        let second = record.started_at_ms / 1_000;
        let kept = state.sampled.entry((tenant.clone(), record.plugin.clone(), failed)).or_insert((second, 0));
        if kept.0 != second {
            *kept = (second, 0);
        }
        kept.1 += 1;
        if kept.1 <= if failed { FAILURES } else { SUCCESSES } {
            let records = state.records.entry(tenant.clone()).or_insert_with(|| (scope.clone(), Vec::new()));
            records.1.push((record.clone(), log));
        }
        Self::keep(&mut state, tenant, record);
    }

    /// Count usage.
    pub(super) fn count(&self, scope: &TenantScope, compute: Compute) {
        self.state()
            .sums
            .entry((scope.id().clone(), compute.plugin.clone(), compute.hour_ms))
            .and_modify(|(_, sum)| sum.merge(&compute))
            .or_insert_with(|| (scope.clone(), compute));
    }

    /// Keep the record of an invocation that was counted in its commit.
    pub(super) fn remember(&self, scope: &TenantScope, (record, _): (Record, Compute)) {
        Self::keep(&mut self.state(), scope.id(), Arc::new(record));
    }

    fn keep(state: &mut State, tenant: &TenantId, record: Arc<Record>) {
        if state.recent.len() >= RECENT {
            state.recent.pop_front();
        }
        state.recent.push_back((tenant.clone(), record));
    }

    /// A record of a tenant, written or not, that this node still has in memory.
    pub fn find(&self, scope: &TenantScope, id: &str) -> Option<Record> {
        let state = self.state();
        let mut latest = state.recent.iter().rev();
        latest.find(|(tenant, record)| tenant == scope.id() && record.id == id).map(|(_, record)| (**record).clone())
    }

    /// Write all that waits. What cannot be written now waits for the next flush.
    pub async fn flush(&self) {
        let _one_at_a_time = self.0.flushing.lock().await;
        let (sums, mut records) = {
            let mut state = self.state();
            // Samples of past seconds only take memory.
            if state.sampled.len() > RECENT {
                state.sampled.clear();
            }
            (std::mem::take(&mut state.sums), std::mem::take(&mut state.records))
        };
        // A tenant's first records go with its first sum: where many tenants are called now and then, a set for each of both
        // would be most of what the node does.
        let mut sets = Vec::with_capacity(sums.len());
        for ((tenant, ..), (scope, sum)) in sums {
            let with = records.get_mut(&tenant).map_or_else(Vec::new, |(_, waiting)| first(waiting));
            sets.push((scope, Some(sum), with));
        }
        for (scope, mut waiting) in records.into_values() {
            while !waiting.is_empty() {
                sets.push((scope.clone(), None, first(&mut waiting)));
            }
        }
        // All at once, so that they share the committer's batches.
        join_all(sets.into_iter().map(|(scope, sum, records)| self.write_or_keep(scope, sum, records))).await;
    }

    async fn write_or_keep(&self, scope: TenantScope, sum: Option<Compute>, records: Vec<Recorded>) {
        let Err(error) = self.write(&scope, sum.clone(), &records).await else { return };
        // A tenant that is gone is billed no more; anything else is tried again.
        if error.code() == "not_found" {
            return;
        }
        tracing::warn!(tenant = ?scope.id(), %error, records = records.len(),
            "usage could not be written and waits for the next flush; records of invocations were lost");
        if let Some(sum) = sum {
            self.count(&scope, sum);
        }
    }

    async fn write(&self, scope: &TenantScope, sum: Option<Compute>, records: &[Recorded]) -> Result<()> {
        let mut effects = self.0.shard.begin(scope);
        for (record, log) in records {
            invocations::record(&mut effects, record, log)?;
        }
        // A row that tells after a lost connection whether the sum was counted.
        let marker = match records.first() {
            Some((record, _)) => invocations::key(&record.id)?,
            None => {
                let marker = FLUSHES.key(id::new().into_bytes());
                effects.put(marker.clone(), Vec::new(), Some(effects.now_ms() + MARKER_MS))?;
                marker
            }
        };
        match self.0.shard.commit(effects.into_set(Some(marker), sum)).await? {
            Verdict::Refused(error) => Err(error),
            Verdict::Committed { .. } | Verdict::Conflict { .. } => Ok(()),
        }
    }
}

/// The first of these that fit into a set.
fn first(waiting: &mut Vec<Recorded>) -> Vec<Recorded> {
    waiting.drain(..waiting.len().min(RECORDS_A_SET)).collect()
}
