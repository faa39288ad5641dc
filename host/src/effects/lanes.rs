//! Who runs again, and when: transactions that meet on the same key queue behind each other instead of
//! losing to each other, and the last resort holds back the tenant's other commits on this node. (Other nodes'
//! are held back by the store.)

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::effects::Key;
use crate::kernel::tenant::TenantId;

/// Entries that are looked through for dead ones at a time, so that the maps stay as small as their use.
const SWEEP: usize = 64;

type Lane = tokio::sync::Mutex<()>;

/// The lanes and gates of this node.
#[derive(Default)]
pub(crate) struct Lanes {
    lanes: Mutex<HashMap<(TenantId, Key), Weak<Lane>>>,
    gates: Mutex<HashMap<TenantId, Weak<RwLock<()>>>>,
}

/// The live entry of a key, made if there is none. Dead entries go as the map grows.
fn entry<K: Clone + Eq + std::hash::Hash, T>(
    map: &Mutex<HashMap<K, Weak<T>>>,
    key: &K,
    make: impl FnOnce() -> T,
) -> Arc<T> {
    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(live) = map.get(key).and_then(Weak::upgrade) {
        return live;
    }
    if map.len().is_multiple_of(SWEEP) {
        map.retain(|_, entry| entry.strong_count() > 0);
    }
    let made = Arc::new(make());
    map.insert(key.clone(), Arc::downgrade(&made));
    made
}

impl Lanes {
    /// Wait, first come first served, until nobody else runs again for this key.
    pub(crate) async fn enter(&self, tenant: &TenantId, key: &Key) -> OwnedMutexGuard<()> {
        entry(&self.lanes, &(tenant.clone(), key.clone()), || Lane::new(())).lock_owned().await
    }

    /// Hold back the tenant's other commits; those on their way end first.
    pub(crate) async fn close_gate(&self, tenant: &TenantId) -> OwnedRwLockWriteGuard<()> {
        entry(&self.gates, tenant, || RwLock::new(())).write_owned().await
    }

    /// Wait until nobody holds the tenant's gate, and keep it open meanwhile.
    pub(crate) async fn pass_gate(&self, tenant: &TenantId) -> OwnedRwLockReadGuard<()> {
        entry(&self.gates, tenant, || RwLock::new(())).read_owned().await
    }
}
