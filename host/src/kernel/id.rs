//! Ids: UUID version 7 (RFC 9562) as 32 lower-case hexadecimal digits, so that they sort by time.

use uuid::Uuid;

/// A new id.
pub fn new() -> String {
    Uuid::now_v7().simple().to_string()
}

/// A new id whose time part is `now_ms`, for things that must sort by the host's clock.
pub fn at(now_ms: i64) -> String {
    let ms = u64::try_from(now_ms).unwrap_or(0);
    let timestamp =
        uuid::Timestamp::from_unix(uuid::NoContext, ms / 1_000, u32::try_from(ms % 1_000).unwrap_or(0) * 1_000_000);
    Uuid::new_v7(timestamp).simple().to_string()
}
