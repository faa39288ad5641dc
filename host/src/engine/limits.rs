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
/// Instances, tables and memories of one invocation; the gate and the pool allow fewer per component.
const INSTANCES: usize = 32;
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
    last: Growth,
    denied: bool,
}

#[derive(Clone, Copy, Debug)]
enum Growth {
    None,
    Bytes(usize),
    Elements(usize),
}

impl Limiter {
    pub(super) fn new(allowed_bytes: u64) -> Self {
        let allowed_bytes = usize::try_from(allowed_bytes).unwrap_or(usize::MAX);
        Self { bytes: 0, elements: 0, allowed_bytes, last: Growth::None, denied: false }
    }

    /// Whether memory or table space was refused: then a trap that follows is no bug of its own.
    pub(super) fn denied(&self) -> bool {
        self.denied
    }

    /// Bytes of linear memory that the invocation has.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn take_back(&mut self) {
        match std::mem::replace(&mut self.last, Growth::None) {
            Growth::None => {}
            Growth::Bytes(bytes) => self.bytes -= bytes,
            Growth::Elements(elements) => self.elements -= elements,
        }
        self.denied = true;
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        let fits = self.bytes.checked_add(more).is_some_and(|bytes| bytes <= self.allowed_bytes);
        if fits {
            self.bytes += more;
            self.last = Growth::Bytes(more);
        } else {
            self.denied = true;
        }
        Ok(fits)
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.take_back();
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        let fits = self.elements.checked_add(more).is_some_and(|elements| elements <= ELEMENTS);
        if fits {
            self.elements += more;
            self.last = Growth::Elements(more);
        } else {
            self.denied = true;
        }
        Ok(fits)
    }

    fn table_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.take_back();
        Ok(())
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
    fn memories_share_one_limit_and_a_failed_growth_is_taken_back() {
        let mut limiter = Limiter::new(10);
        assert!(limiter.memory_growing(0, 6, None).unwrap());
        assert!(!limiter.memory_growing(0, 6, None).unwrap());
        assert!(limiter.denied());
        assert!(limiter.memory_growing(0, 4, None).unwrap());
        limiter.memory_grow_failed(wasmtime::Error::msg("no space")).unwrap();
        assert_eq!(limiter.bytes(), 6);
    }
}
