//! The places for instances: as many as the pool has, and a bounded queue of guests that wait for one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

/// Guests that wait for a place; each holds its request in memory. Beyond it the node is overloaded.
const WAITING: usize = 1_024;
/// How long a guest waits for a place: callers who wait longer have mostly gone.
const PATIENCE: Duration = Duration::from_secs(1);

/// The places of a node.
pub(super) struct Slots {
    all: usize,
    free: Semaphore,
    waiting: AtomicUsize,
}

impl Slots {
    /// So many places.
    pub(super) fn new(all: usize) -> Self {
        Self { all, free: Semaphore::new(all), waiting: AtomicUsize::new(0) }
    }

    pub(super) fn all(&self) -> usize {
        self.all
    }

    pub(super) fn free(&self) -> usize {
        self.free.available_permits()
    }

    /// A place, if there is one soon.
    pub(super) async fn take(&self) -> Option<SemaphorePermit<'_>> {
        if let Ok(place) = self.free.try_acquire() {
            return Some(place);
        }
        let _waiting = Waiting::one_more(&self.waiting)?;
        tokio::time::timeout(PATIENCE, self.free.acquire()).await.ok()?.ok()
    }
}

/// One who waits; counted until it is dropped.
struct Waiting<'s>(&'s AtomicUsize);

impl<'s> Waiting<'s> {
    fn one_more(waiting: &'s AtomicUsize) -> Option<Self> {
        let counted = Self(waiting);
        (waiting.fetch_add(1, Ordering::Relaxed) < WAITING).then_some(counted)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
