//! How many denials are written: the first of each tenant's minute singly, the rest as one.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Record;
use crate::kernel::tenant::{TenantId, TenantScope};

/// Denials of a tenant that a node writes singly in [`MINUTE`]: enough to see a mistake or an attempt in detail. A key
/// that is refused all day long writes 16,000 records, so that it takes six days to push a record out of the log.
const SINGLY: u64 = 10;
/// The time after which the others are written as one.
const MINUTE: Duration = Duration::from_secs(60);

/// The denials of the last minute; a tenant that had none has no entry.
#[derive(Default)]
pub(super) struct Denials(Mutex<HashMap<TenantId, Minute>>);

struct Minute {
    scope: TenantScope,
    since: Instant,
    count: u64,
    left_out: u64,
    latest: Option<Record>,
}

impl Denials {
    fn minutes(&self) -> MutexGuard<'_, HashMap<TenantId, Minute>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Count a denial; whether it is to be written singly.
    pub(super) fn count(&self, scope: &TenantScope, record: &Record) -> bool {
        let singly = {
            let mut minutes = self.minutes();
            let minute = minutes.entry(scope.id().clone()).or_insert_with(|| Minute::begin(scope));
            minute.count += 1;
            minute.count <= SINGLY
        };
        if !singly {
            self.leave_out(scope, record.clone());
        }
        singly
    }

    /// Keep a denial for the record that stands for all that were left out.
    pub(super) fn leave_out(&self, scope: &TenantScope, record: Record) {
        let mut minutes = self.minutes();
        let minute = minutes.entry(scope.id().clone()).or_insert_with(|| Minute::begin(scope));
        minute.left_out += 1;
        minute.latest = Some(record);
    }

    /// The records of minutes that are over, or of `all`: the latest that was left out, with the number of the others.
    pub(super) fn over(&self, all: bool) -> Vec<(TenantScope, Record)> {
        let over = self.minutes().extract_if(|_, minute| all || minute.since.elapsed() >= MINUTE).collect::<Vec<_>>();
        over.into_iter()
            .filter_map(|(_, minute)| {
                let suppressed = Some(minute.left_out.saturating_sub(1)).filter(|others| *others > 0);
                minute.latest.map(|record| (minute.scope, Record { suppressed, ..record }))
            })
            .collect()
    }
}

impl Minute {
    fn begin(scope: &TenantScope) -> Self {
        Self { scope: scope.clone(), since: Instant::now(), count: 0, left_out: 0, latest: None }
    }
}
