//! `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers), as structured fields.
//!
//! A policy says how many units a full bucket holds (`q`) and in how many seconds an empty one is full
//! (`w`); a limit says how many are left (`r`) and in how many seconds it is full again (`t`).

use http::HeaderValue;
use sfv::{Integer, KeyRef, ListSerializer, StringRef};

use super::{Admission, Measured, Quota};

/// The values of `RateLimit-Policy` and `RateLimit` for what a request was measured by; none if by nothing.
pub fn headers(admission: &Admission) -> Option<(HeaderValue, HeaderValue)> {
    let policy = list(admission, |one| [("q", u64::from(one.quota.burst)), ("w", window_s(one.quota))])?;
    let limit =
        list(admission, |one| [("r", one.decision.remaining), ("t", one.decision.reset_after_ms.div_ceil(1_000))])?;
    Some((policy, limit))
}

/// The value of `Retry-After` for so many milliseconds: whole seconds, rounded up, at least one.
pub fn retry_after_s(ms: u64) -> u64 {
    ms.div_ceil(1_000).max(1)
}

fn window_s(quota: Quota) -> u64 {
    let ms = u64::from(quota.burst).saturating_mul(quota.period_ms).div_ceil(u64::from(quota.rate.max(1)));
    ms.div_ceil(1_000).max(1)
}

fn list(admission: &Admission, parameters: impl Fn(&Measured) -> [(&'static str, u64); 2]) -> Option<HeaderValue> {
    let mut list = ListSerializer::new();
    for one in &admission.measured {
        let mut item = list.bare_item(StringRef::from_str(&one.limit).ok()?);
        for (name, value) in parameters(one) {
            item = item.parameter(KeyRef::constant(name), integer(value));
        }
    }
    HeaderValue::from_str(&list.finish()?).ok()
}

/// Structured integers have at most 15 digits (RFC 9651, section 3.3.1).
fn integer(value: u64) -> Integer {
    Integer::try_from(value).unwrap_or(Integer::MAX)
}
