//! Rate limits by the generic cell rate algorithm (ITU-T I.371), exact: times are counted in units of a period's
//! nanosecond divided by the limit, so that no division rounds.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::limits::Decision;

const NANOS_PER_MS: u128 = 1_000_000;

struct Limit {
    units: u64,
    period_ns: u128,
    /// Theoretical arrival time per key, in nanoseconds times `units`.
    arrivals: BTreeMap<String, u128>,
}

/// The limits of a tenant.
#[derive(Default)]
pub(super) struct Limits(BTreeMap<String, Limit>);

impl Limits {
    pub(super) fn define(&mut self, name: &str, units: u64, period: Duration) {
        let limit = Limit { units, period_ns: period.as_nanos(), arrivals: BTreeMap::new() };
        self.0.insert(name.to_owned(), limit);
    }

    /// Take `cost` units; `None` if there is no such limit.
    pub(super) fn check(&mut self, name: &str, key: &str, cost: u32, now_ms: u64) -> Option<Decision> {
        let Limit { units, period_ns, arrivals } = self.0.get_mut(name)?;
        let (units, period_ns) = (u128::from(*units), *period_ns);
        let now = u128::from(now_ms) * NANOS_PER_MS * units;
        // A full limit lasts for one period; each unit taken moves the arrival on by period / units.
        let window = period_ns * units;
        let arrival = arrivals.get(key).copied().unwrap_or(0).max(now);
        let next = arrival + period_ns * u128::from(cost);
        let allowed = next <= now + window;
        let taken = if allowed { next } else { arrival };
        if allowed && cost > 0 {
            arrivals.insert(key.to_owned(), next);
        }
        let ms = |time: u128| u64::try_from(time.div_ceil(NANOS_PER_MS * units)).unwrap_or(u64::MAX);
        Some(Decision {
            allowed,
            limit: units as u64,
            remaining: ((now + window - taken) / period_ns) as u64,
            retry_after_ms: if allowed { 0 } else { ms(next - now - window) },
            reset_after_ms: ms(taken - now),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_the_whole_limit_and_refills_one_unit_at_a_time() {
        let mut limits = Limits::default();
        limits.define("calls", 3, Duration::from_secs(3));
        for left in [2, 1, 0] {
            let decision = limits.check("calls", "k", 1, 1_000).expect("defined");
            assert!(decision.allowed);
            assert_eq!(decision.remaining, left);
        }
        let refused = limits.check("calls", "k", 1, 1_000).expect("defined");
        assert_eq!(
            refused,
            Decision { allowed: false, limit: 3, remaining: 0, retry_after_ms: 1_000, reset_after_ms: 3_000 }
        );
        assert!(!limits.check("calls", "k", 1, 1_999).expect("defined").allowed);
        assert!(limits.check("calls", "k", 1, 2_000).expect("defined").allowed);
        assert!(limits.check("calls", "other", 3, 2_000).expect("defined").allowed);
        assert!(limits.check("none", "k", 1, 0).is_none());
    }
}
