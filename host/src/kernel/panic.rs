//! How many panics this process has had. Each is a fault of the host, wherever it was caught; an operator watches
//! that there are none.

use std::sync::atomic::{AtomicU64, Ordering};

static COUNT: AtomicU64 = AtomicU64::new(0);

/// Count panics from now on, and log them as everything else is logged.
pub fn watch() {
    std::panic::set_hook(Box::new(|panic| {
        COUNT.fetch_add(1, Ordering::Relaxed);
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, said = panic.payload_as_str(), "a panic");
    }));
}

/// Panics since [`watch`].
pub fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}
