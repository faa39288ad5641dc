//! How much a random test does: what fits into `make test`, or ten times that under `CHALET_SOAK=1`.

/// Times as much, if asked for.
pub fn count(usual: usize) -> usize {
    let soak = std::env::var("CHALET_SOAK").is_ok_and(|text| text == "1");
    if soak { 10 * usual } else { usual }
}

/// Where random numbers begin: `CHALET_SEED`, to see a failure again, or anywhere.
pub fn seed() -> u64 {
    std::env::var("CHALET_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random)
}
