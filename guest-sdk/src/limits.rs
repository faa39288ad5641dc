//! Rate limits that the tenant has defined.
//!
//! A check counts at once, also if the invocation fails afterwards; when the host runs an invocation again, a check it
//! already made keeps its answer.

use crate::{Error, Result, error::LimitHit, host};

/// What a limit answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// True if the units were taken.
    pub allowed: bool,
    /// Units a window holds.
    pub limit: u64,
    /// Units left now.
    pub remaining: u64,
    /// Milliseconds until the same request could be allowed; 0 if it is.
    pub retry_after_ms: u64,
    /// Milliseconds until the limit is full again.
    pub reset_after_ms: u64,
}

/// Take `cost` units of the named limit for `key` (a user, an address, ...).
///
/// Fails with [`Error::NotFound`] if the tenant has no such limit, [`Error::Denied`] if the manifest does not name it.
pub fn check(limit: &str, key: &str, cost: u32) -> Result<Decision> {
    host::limit_check(limit, key, cost)
}

/// Take `cost` units, or fail with [`Error::RateLimited`], which makes the host answer with the time to wait.
pub fn require(limit: &str, key: &str, cost: u32) -> Result<Decision> {
    let decision = check(limit, key, cost)?;
    if decision.allowed {
        return Ok(decision);
    }
    Err(Error::RateLimited(LimitHit {
        limit: limit.to_owned(),
        remaining: decision.remaining,
        retry_after_ms: decision.retry_after_ms,
    }))
}
