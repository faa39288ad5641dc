//! How much memory a guest may take: counted over all its memories and tables together.
//!
//! wasmtime's own `StoreLimits` bounds each memory, so that a component with eight of them would get
//! eight times the plan's bytes.

use wasmtime::ResourceLimiter;

/// Bytes that a guest may hand over in one host call or answer, at the least: the largest value that
/// an interface takes is 1 MiB.
pub(super) const HOSTCALL_BYTES: usize = 2 << 20;
/// Bytes that an answer may have on top of the plan's body, for its headers.
pub(super) const ANSWER_SLACK_BYTES: usize = 256 << 10;
/// Live handles of resources. No interface has resources yet; what a component makes for itself counts.
pub(super) const HANDLES: usize = 2_000;
/// Instances, tables and memories of one invocation: what a component may have, and as many tables and memories again.
const INSTANCES: usize = super::config::CORE_INSTANCES as usize;
const TABLES: usize = 16;
const MEMORIES: usize = 8;
/// Table elements of one invocation: twice the largest single table.
const ELEMENTS: usize = 2 * super::config::TABLE_ELEMENTS;

/// Counts what an invocation has, and remembers whether something was refused.
#[derive(Debug)]
pub(super) struct Limiter {
    bytes: usize,
    elements: usize,
    allowed_bytes: usize,
    denied: bool,
}

impl Limiter {
    pub(super) fn new(allowed_bytes: u64) -> Self {
        let allowed_bytes = usize::try_from(allowed_bytes).unwrap_or(usize::MAX);
        Self { bytes: 0, elements: 0, allowed_bytes, denied: false }
    }

    /// Whether memory or table space was refused: then a trap that follows is no bug of its own.
    pub(super) fn denied(&self) -> bool {
        self.denied
    }

    /// Bytes of linear memory that the invocation has.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Add a growth to what there is, if it fits.
fn grow(total: &mut usize, allowed: usize, current: usize, desired: usize) -> bool {
    match total.checked_add(desired.saturating_sub(current)).filter(|total| *total <= allowed) {
        Some(grown) => {
            *total = grown;
            true
        }
        None => false,
    }
}

/// What fails after it was allowed stays counted: wasmtime also reports failures that it never asked about, so
/// that taking something back would let a guest count down by failing.
impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false); // the module's own limit
        }
        let fits = grow(&mut self.bytes, self.allowed_bytes, current, desired);
        self.denied |= !fits;
        Ok(fits)
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let fits = grow(&mut self.elements, ELEMENTS, current, desired);
        self.denied |= !fits;
        Ok(fits)
    }

    fn instances(&self) -> usize {
        INSTANCES
    }

    fn tables(&self) -> usize {
        TABLES
    }

    fn memories(&self) -> usize {
        MEMORIES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_share_one_limit_and_a_failure_takes_nothing_back() {
        let mut limiter = Limiter::new(10);
        assert!(limiter.memory_growing(0, 6, None).unwrap());
        assert!(!limiter.memory_growing(6, 20, Some(7)).unwrap());
        assert!(!limiter.denied());
        assert!(!limiter.memory_growing(0, 6, None).unwrap());
        assert!(limiter.denied());
        limiter.memory_grow_failed(wasmtime::Error::msg("no space")).unwrap();
        assert_eq!(limiter.bytes(), 6);
        assert!(limiter.memory_growing(0, 4, None).unwrap());
        assert!(!limiter.table_growing(0, ELEMENTS + 1, None).unwrap());
    }
}
