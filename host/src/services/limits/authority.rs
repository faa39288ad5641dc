//! Who counts: buckets that hold `burst` units and are refilled at an exact rate.
//!
//! A bucket is kept as what has been used of it and when that was true. With time in whole
//! milliseconds, `1 / rate` of a period is no whole number; so use is counted in parts of which one unit
//! has `period_ms`, and `rate` of them come back each millisecond. Nothing is ever rounded in the
//! caller's favour, and nothing drifts.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::{BoxFuture, FutureExt};
use sha2::{Digest, Sha256};

use crate::kernel::cache::Cache;
use crate::kernel::error::{Error, Result};

/// Buckets that are kept in memory, at about 150 bytes each. One that is pushed out is full again when
/// it comes back; the policy keeps those that are used often, so that a flood of new keys pushes out
/// itself before others.
const BUCKETS: usize = 262_144;
/// Milliseconds that time may run backwards between threads and nodes; more is a clock that was set.
const SKEW_MS: i64 = 5_000;

/// How much a bucket holds, and how fast it is refilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Units that come back per period; at least 1.
    pub rate: u32,
    /// Milliseconds of the period; at least 1.
    pub period_ms: u64,
    /// Units that it holds; at least 1.
    pub burst: u32,
}

impl Quota {
    /// So many a second. A plan that says 0 means 1: a limit of nothing is a tenant that is suspended.
    pub fn per_second(rate: u32, burst: u32) -> Self {
        Self { rate: rate.max(1), period_ms: 1_000, burst: burst.max(1) }
    }

    /// Parts of a full bucket.
    fn capacity(self) -> u128 {
        u128::from(self.burst) * u128::from(self.period_ms)
    }

    /// Milliseconds in which so many parts come back, rounded up.
    fn time_ms(self, parts: u128) -> u64 {
        u64::try_from(parts.div_ceil(u128::from(self.rate.max(1)))).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.period_ms / 1_000;
        match seconds {
            1 => write!(f, "{} a second (burst {})", self.rate, self.burst),
            60 => write!(f, "{} a minute (burst {})", self.rate, self.burst),
            3_600 => write!(f, "{} an hour (burst {})", self.rate, self.burst),
            86_400 => write!(f, "{} a day (burst {})", self.rate, self.burst),
            _ => write!(f, "{} per {} ms (burst {})", self.rate, self.period_ms, self.burst),
        }
    }
}

/// A bucket's name: a digest of its parts, so that a hostile key costs no more memory than another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bucket([u8; 32]);

impl Bucket {
    /// The bucket of these parts; other parts, also split otherwise, are another bucket.
    pub fn of(parts: &[&str]) -> Self {
        let mut digest = Sha256::new();
        for part in parts {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part.as_bytes());
        }
        Self(digest.finalize().into())
    }

    /// The name's bytes, for an authority that stores it elsewhere.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// What is asked of one bucket.
#[derive(Clone, Copy, Debug)]
pub struct Take {
    /// The bucket.
    pub bucket: Bucket,
    /// What it holds. A bucket whose quota changed keeps its use, in units.
    pub quota: Quota,
    /// Units to take; 0 looks only.
    pub cost: u32,
}

/// What a bucket said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct Decision {
    /// Whether this bucket had the units. They were taken if all of the question's buckets had theirs.
    pub allowed: bool,
    /// Units that the bucket holds when it is full.
    pub limit: u64,
    /// Whole units left.
    pub remaining: u64,
    /// Milliseconds until the same question could be allowed; 0 if it is.
    pub retry_after_ms: u64,
    /// Milliseconds until the bucket is full.
    pub reset_after_ms: u64,
}

/// Counts for a set of nodes, or for one.
///
/// `take` is atomic: it debits all buckets of the question or none, and no other question sees it half
/// done. The answers have the order of the question, which names no bucket twice. Two questions for
/// the same bucket are answered as if one came first. An authority that cannot be reached answers an
/// error of kind `Unavailable`; whether the caller then goes on is the caller's decision. An authority
/// that forgets a bucket treats it as full.
pub trait Authority: Send + Sync {
    /// Ask and debit at `now_ms`.
    fn take<'a>(&'a self, takes: &'a [Take], now_ms: i64) -> BoxFuture<'a, Result<Vec<Decision>>>;
}

/// Counts of this process.
pub struct Memory {
    buckets: Cache<Bucket, Arc<Mutex<Level>>>,
}

/// What is used of a bucket, and when that was so.
#[derive(Clone, Copy)]
struct Level {
    used: u128,
    at_ms: i64,
    quota: Quota,
}

impl Level {
    fn empty(quota: Quota, now_ms: i64) -> Self {
        Self { used: 0, at_ms: now_ms, quota }
    }

    /// The level at `now_ms` under `quota`.
    fn advanced(mut self, quota: Quota, now_ms: i64) -> Self {
        let elapsed_ms = now_ms.saturating_sub(self.at_ms);
        if elapsed_ms > 0 {
            let back = u128::from(elapsed_ms.unsigned_abs()) * u128::from(self.quota.rate);
            self.used = self.used.saturating_sub(back);
            self.at_ms = now_ms;
        } else if elapsed_ms < -SKEW_MS {
            // A clock that was set back must not stop the bucket until it catches up.
            self.at_ms = now_ms;
        }
        if self.quota != quota {
            // The units used stay used; their parts have another size now.
            self.used = (self.used * u128::from(quota.period_ms)).div_ceil(u128::from(self.quota.period_ms.max(1)));
            self.quota = quota;
        }
        self
    }

    fn after(self, cost: u32) -> u128 {
        self.used + u128::from(cost) * u128::from(self.quota.period_ms)
    }

    fn decide(self, cost: u32, all: bool) -> Decision {
        let (quota, capacity) = (self.quota, self.quota.capacity());
        let after = self.after(cost);
        let allowed = after <= capacity;
        let used = if all { after } else { self.used };
        Decision {
            allowed,
            limit: u64::from(quota.burst),
            remaining: u64::try_from(capacity.saturating_sub(used) / u128::from(quota.period_ms.max(1)))
                .unwrap_or(u64::MAX),
            retry_after_ms: quota.time_ms(after.saturating_sub(capacity)),
            reset_after_ms: quota.time_ms(used),
        }
    }
}

impl Memory {
    /// Nothing used yet.
    pub fn new() -> Self {
        Self::holding(BUCKETS)
    }

    fn holding(buckets: usize) -> Self {
        Self { buckets: Cache::new(buckets) }
    }

    fn decide(&self, takes: &[Take], now_ms: i64) -> Result<Vec<Decision>> {
        // Locks are taken in the order of the names, so that two questions never wait for each other.
        let mut order: Vec<usize> = (0..takes.len()).collect();
        order.sort_unstable_by_key(|n| takes[*n].bucket);
        if order.windows(2).any(|pair| takes[pair[0]].bucket == takes[pair[1]].bucket) {
            return Err(Error::internal("a question names one bucket twice"));
        }
        let levels: Vec<Arc<Mutex<Level>>> = takes
            .iter()
            .map(|take| {
                self.buckets.get_or_make(&take.bucket, || Arc::new(Mutex::new(Level::empty(take.quota, now_ms))))
            })
            .collect();
        let mut held: Vec<(usize, MutexGuard<'_, Level>)> =
            order.into_iter().map(|n| (n, levels[n].lock().unwrap_or_else(PoisonError::into_inner))).collect();
        held.sort_unstable_by_key(|(n, _)| *n);
        for (n, level) in &mut held {
            **level = level.advanced(takes[*n].quota, now_ms);
        }
        let all = held.iter().all(|(n, level)| level.after(takes[*n].cost) <= level.quota.capacity());
        let decisions = held.iter().map(|(n, level)| level.decide(takes[*n].cost, all)).collect();
        if all {
            for (n, level) in &mut held {
                level.used = level.after(takes[*n].cost);
            }
        }
        Ok(decisions)
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority for Memory {
    fn take<'a>(&'a self, takes: &'a [Take], now_ms: i64) -> BoxFuture<'a, Result<Vec<Decision>>> {
        std::future::ready(self.decide(takes, now_ms)).boxed()
    }
}

#[cfg(test)]
mod contract;
