//! How much a test of many cases does: what fits into `make test`, or far more under `make soak`.

/// Whether a test is to take all there is, however long it lasts.
pub fn on() -> bool {
    std::env::var("CHALET_SOAK").is_ok_and(|text| text == "1")
}

/// What a test does as part of `make test`, or under `make soak`.
pub fn either<T>(usual: T, soaked: T) -> T {
    if on() { soaked } else { usual }
}

/// Ten times as much, if asked for.
pub fn count(usual: usize) -> usize {
    either(usual, 10 * usual)
}

/// Where random numbers begin: `CHALET_SEED`, to see a failure again, or anywhere.
pub fn seed() -> u64 {
    std::env::var("CHALET_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random)
}
