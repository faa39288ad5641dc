//! Ids: UUID version 7 (RFC 9562) as 32 lower-case hexadecimal digits, so that they sort by time, and those that one
//! process makes also within a millisecond.

use std::sync::Mutex;

use uuid::{ContextV7, Timestamp, Uuid};

/// Counts within a millisecond (RFC 9562, 6.2, method 1).
static COUNTER: Mutex<ContextV7> = Mutex::new(ContextV7::new());

/// A new id.
pub fn new() -> String {
    Uuid::now_v7().simple().to_string()
}

/// A new id whose time part is `now_ms`, for things that must sort by the host's clock.
pub fn at(now_ms: i64) -> String {
    let ms = u64::try_from(now_ms).unwrap_or(0);
    let subsecond = u32::try_from(ms % 1_000).unwrap_or(0) * 1_000_000;
    Uuid::new_v7(Timestamp::from_unix(&COUNTER, ms / 1_000, subsecond)).simple().to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_of_one_millisecond_sort_in_the_order_in_which_they_were_made() {
        let now_ms = 1_700_000_000_000;
        let ids: Vec<String> = (0..1_000).map(|_| super::at(now_ms)).collect();
        assert!(ids.is_sorted());
        assert!(super::at(now_ms + 1) > ids[999]);
    }
}
