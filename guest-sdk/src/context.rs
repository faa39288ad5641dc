//! Who and when this invocation is.
//!
//! All of it stays the same when the host runs the invocation again, so that a re-run makes the same ids and the same
//! decisions. `SystemTime::now` and `Instant::now` do not work in a component; [`now`] is the clock.

use std::time::{Duration, SystemTime};

use crate::host;

/// Most random bytes the host gives in one call.
const RANDOM_BYTES: u32 = 65_536;

/// The invocation's id, as in the `chalet-invocation` response header.
pub fn invocation_id() -> String {
    host::invocation_id()
}

/// The tenant's name.
pub fn tenant() -> String {
    host::tenant()
}

/// The plugin's name.
pub fn plugin() -> String {
    host::plugin()
}

/// The plugin's version (semantic versioning 2.0).
pub fn version() -> String {
    host::version()
}

/// Milliseconds since the Unix epoch; fixed when the invocation starts.
pub fn now_ms() -> u64 {
    host::now_ms()
}

/// The invocation's time, fixed when it starts.
pub fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(now_ms())
}

/// Wall-clock time left, all runs counted.
pub fn remaining() -> Duration {
    Duration::from_millis(host::remaining_ms())
}

/// Fill a buffer with random bytes from the invocation's seed.
pub fn fill_random(buffer: &mut [u8]) {
    for chunk in buffer.chunks_mut(RANDOM_BYTES as usize) {
        // A chunk is at most RANDOM_BYTES long, and the host answers with exactly what was asked for.
        chunk.copy_from_slice(&host::random_bytes(chunk.len() as u32));
    }
}

/// Random bytes from the invocation's seed.
pub fn random_bytes(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fill_random(&mut bytes);
    bytes
}

/// A random number from the invocation's seed.
pub fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    fill_random(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// A new id: 26 characters of Crockford's base 32, the invocation's millisecond first and 80 random bits after it
/// (the form of a ULID), in lower case.
///
/// Ids of later milliseconds sort after earlier ones; within a millisecond their order is random.
pub fn unique_id() -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut random = [0; 16];
    fill_random(&mut random[6..]);
    // The time fills the upper 48 of 128 bits, the random bytes the rest.
    let bits = (u128::from(now_ms()) << 80) | u128::from_be_bytes(random);
    (0..26).rev().map(|digit| char::from(ALPHABET[(bits >> (digit * 5)) as usize & 31])).collect()
}
