//! Who may begin: a bounded number of a tenant's invocations runs at a time, a bounded number waits, each for a bounded
//! time; whoever comes beyond that is turned away at once, and told when to come again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::kernel::cache::Cache;
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::tenant::{TenantId, TenantScope};

/// Invocations that wait for their tenant's turn: a second of work at the free plan's rate.
const WAITING: usize = 256;
/// How long an invocation waits for its turn: callers who wait longer have mostly gone.
const PATIENCE: Duration = Duration::from_secs(1);
/// Tenants whose places are remembered; those of a forgotten one are given out anew when it comes back.
const TENANTS: usize = 100_000;

/// The places of all tenants on this node.
pub(super) struct Admission {
    places: Cache<TenantId, Arc<Places>>,
    /// No tenant has more, whatever its plan says: some are left for others.
    most: usize,
    shed: AtomicU64,
}

/// One tenant's places.
struct Places {
    /// What the plan said when they were made.
    concurrency: u32,
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// A place of a running invocation; given back when it is dropped.
pub(super) struct Place {
    _running: OwnedSemaphorePermit,
    _waiting: OwnedSemaphorePermit,
}

impl Admission {
    /// Admission to a node on which so many guests can run.
    pub(super) fn new(slots: usize) -> Self {
        Self { places: Cache::new(TENANTS), most: (slots - slots / 4).max(1), shed: AtomicU64::new(0) }
    }

    /// Invocations that were turned away.
    pub(super) fn shed(&self) -> u64 {
        self.shed.load(Ordering::Relaxed)
    }

    fn places(&self, scope: &TenantScope) -> Arc<Places> {
        let concurrency = scope.plan().concurrency;
        let known = self.places.get(scope.id());
        if let Some(known) = known.filter(|known| known.concurrency == concurrency) {
            return known;
        }
        let running = (concurrency.max(1) as usize).min(self.most);
        let made = Arc::new(Places {
            concurrency,
            running: Arc::new(Semaphore::new(running)),
            waiting: Arc::new(Semaphore::new(running + WAITING)),
        });
        // Of two that make them at the same time one's are forgotten; its invocation runs beside the others.
        self.places.insert(scope.id().clone(), made.clone());
        made
    }

    /// A place among the tenant's running invocations, first come first served.
    pub(super) async fn admit(&self, scope: &TenantScope) -> Result<Place> {
        let places = self.places(scope);
        let Ok(waiting) = places.waiting.clone().try_acquire_owned() else { return Err(self.full()) };
        let running = match places.running.clone().try_acquire_owned() {
            Ok(running) => running,
            Err(_) => match tokio::time::timeout(PATIENCE, places.running.clone().acquire_owned()).await {
                Ok(Ok(running)) => running,
                _ => return Err(self.full()),
            },
        };
        Ok(Place { _running: running, _waiting: waiting })
    }

    fn full(&self) -> Error {
        self.shed.fetch_add(1, Ordering::Relaxed);
        let why = "too many invocations of this tenant are running; try again";
        Error::new(Kind::Limited, "concurrency_exceeded", why).retry_after(Duration::from_secs(1))
    }
}
