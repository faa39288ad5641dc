//! A tenant's gate, as far as this node uses it: commits pass it, and who keeps losing holds it, so that others wait.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::kernel::tenant::TenantId;

/// Who of this node holds a tenant's gate, and who passes it. A commit that passes may have to wait in the database for
/// whoever holds it: so that this node never waits for itself, it holds none before its own that pass have ended.
#[derive(Default)]
pub(super) struct Gates {
    tenants: Mutex<HashMap<TenantId, Uses>>,
    /// Somebody who passed has ended.
    ended: Notify,
}

#[derive(Default)]
struct Uses {
    /// Times that it is held or waited for.
    held: u32,
    passing: u32,
}

impl Uses {
    fn count(&mut self, kind: Use) -> &mut u32 {
        match kind {
            Use::Hold => &mut self.held,
            Use::Pass => &mut self.passing,
        }
    }
}

#[derive(Clone, Copy)]
enum Use {
    Hold,
    Pass,
}

/// A use of a tenant's gate, until it is dropped.
pub(super) struct Used {
    gates: Arc<Gates>,
    tenant: TenantId,
    kind: Use,
}

impl Gates {
    fn tenants(&self) -> MutexGuard<'_, HashMap<TenantId, Uses>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pass the gate, unless this node holds it.
    pub(super) fn pass(self: &Arc<Self>, tenant: &TenantId) -> Option<Used> {
        let mut tenants = self.tenants();
        let uses = tenants.entry(tenant.clone()).or_default();
        if uses.held > 0 {
            return None;
        }
        uses.passing += 1;
        Some(Used { gates: self.clone(), tenant: tenant.clone(), kind: Use::Pass })
    }

    /// Hold the gate, when those that pass have ended. From here on nobody else does.
    pub(super) async fn hold(self: &Arc<Self>, tenant: &TenantId) -> Used {
        self.tenants().entry(tenant.clone()).or_default().held += 1;
        let held = Used { gates: self.clone(), tenant: tenant.clone(), kind: Use::Hold };
        loop {
            // Enabled before the look, so that whoever ends in between is heard.
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            if self.tenants().get(tenant).is_none_or(|uses| uses.passing == 0) {
                return held;
            }
            ended.await;
        }
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        let mut tenants = self.gates.tenants();
        if let Some(uses) = tenants.get_mut(&self.tenant) {
            *uses.count(self.kind) -= 1;
            if uses.held == 0 && uses.passing == 0 {
                tenants.remove(&self.tenant);
            }
        }
        drop(tenants);
        self.gates.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_gate_is_held_when_nobody_of_this_node_passes_it_and_passed_when_nobody_holds_it() {
        let gates = Arc::new(Gates::default());
        let [one, other] = ["one", "other"].map(TenantId::from_row);
        let (first, second) = (gates.pass(&one).expect("open"), gates.pass(&one).expect("open"));
        let mut waiting = Box::pin(gates.hold(&one));
        assert!(waiting.as_mut().now_or_never().is_none(), "two are on their way");
        assert!(
            gates.pass(&one).is_none() && gates.pass(&other).is_some(),
            "the next do not wait, and nobody else is held"
        );
        drop(first);
        assert!(waiting.as_mut().now_or_never().is_none(), "one is on its way");
        drop(second);
        let held = waiting.as_mut().now_or_never().expect("nobody is left");
        assert!(gates.hold(&one).now_or_never().is_some(), "the database has them wait for each other");
        assert!(gates.pass(&one).is_none());
        drop(held);
        assert!(gates.pass(&one).is_some());
        // Whoever stops waiting holds nothing.
        let passing = gates.pass(&one);
        assert!(gates.hold(&one).now_or_never().is_none());
        drop(passing);
        assert!(gates.pass(&one).is_some());
        assert!(gates.tenants().is_empty());
    }
}
