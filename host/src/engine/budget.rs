//! What compiling a tenant's uploads may cost on a node: a bucket of processor time, refilled by the hour.
//!
//! A job begins when the bucket holds what a job may cost at most; what it did cost is taken when it has ended,
//! however it ended. So nobody owes anything, and nobody pays for time that was not used.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::confine::CPU_SECONDS;
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::tenant::{Plan, TenantScope};
use crate::services::limits::{Limits, Quota};

/// The bucket's name among the host's limits.
const LIMIT: &str = "compile";
/// What one job may cost, in the bucket's units: milliseconds.
const JOB_MS: u32 = CPU_SECONDS as u32 * 1_000;
const HOUR_MS: u64 = 3_600_000;

/// The budgets of a node's tenants.
#[derive(Clone)]
pub(super) struct Budget(Arc<Limits>);

impl Budget {
    pub(super) fn new(limits: Arc<Limits>) -> Self {
        Self(limits)
    }

    /// Whether a job of this tenant may begin.
    pub(super) async fn admit(&self, scope: &TenantScope) -> Result<()> {
        let quota = quota(scope.plan());
        let left = self.0.charge(LIMIT, scope.id().as_str(), quota, 0).await?.remaining;
        let missing = u64::from(JOB_MS).saturating_sub(left);
        if missing == 0 {
            return Ok(());
        }
        let seconds = scope.plan().compile_cpu_seconds_per_hour;
        let message = format!("compiling may take {seconds} s of processor time an hour, which are used up; wait");
        let after = Duration::from_millis(missing * HOUR_MS / u64::from(quota.rate));
        Err(Error::new(Kind::Limited, "compile_budget_exhausted", message).retry_after(after))
    }

    /// Take what a job has cost.
    pub(super) async fn charge(self, scope: TenantScope, used: Duration) {
        let used_ms = u32::try_from(used.as_millis()).unwrap_or(u32::MAX);
        if let Err(error) = self.0.charge(LIMIT, scope.id().as_str(), quota(scope.plan()), used_ms).await {
            tracing::warn!(%error, "compile time could not be charged");
        }
    }
}

fn quota(plan: &Plan) -> Quota {
    let rate = plan.compile_cpu_seconds_per_hour.saturating_mul(1_000).max(1);
    // A bucket that cannot hold one job would never let one begin.
    Quota { rate, period_ms: HOUR_MS, burst: rate.max(JOB_MS) }
}
