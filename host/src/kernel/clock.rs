//! The one source of time. Tests move it; nothing in the host sleeps to let time pass.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

/// Wall-clock time in milliseconds since the Unix epoch. Clones share one clock.
#[derive(Clone, Debug, Default)]
pub struct Clock(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// How far tests have moved the clock.
    advanced_ms: AtomicI64,
    /// What a database said last, and when; without one the system's time counts.
    followed: Mutex<Option<(Instant, i64)>>,
}

impl Clock {
    /// The system's time.
    pub fn system() -> Self {
        Self::default()
    }

    /// Milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> i64 {
        let ms = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        let base = match *self.0.followed.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((since, then_ms)) => then_ms.saturating_add(ms(since.elapsed())),
            None => ms(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()),
        };
        base.saturating_add(self.0.advanced_ms.load(Ordering::Relaxed))
    }

    /// Move this clock and its clones forward.
    pub fn advance(&self, by: Duration) {
        let by_ms = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.0.advanced_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    /// Follow another clock, which shows `now_ms` now: from here on time is that plus what passes, whatever
    /// happens to the system's clock.
    pub fn follow(&self, now_ms: i64) {
        *self.0.followed.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), now_ms));
    }
}

/// The system's own time, for what is laid beside other machines' times: no test moves it, and no database leads it.
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// RFC 3339 in UTC with milliseconds, the form of every time in the API.
pub fn rfc3339(ms: i64) -> String {
    let time = Timestamp::from_millisecond(ms).unwrap_or(if ms < 0 { Timestamp::MIN } else { Timestamp::MAX });
    format!("{time:.3}")
}

/// A time in milliseconds that is written as RFC 3339: `#[serde(with = "clock::text")]`.
pub mod text {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{parse_rfc3339, rfc3339};

    /// As serde wants it.
    pub fn serialize<S: Serializer>(ms: &i64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&rfc3339(*ms))
    }

    /// As serde wants it.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        parse_rfc3339(&text).ok_or_else(|| serde::de::Error::custom("no RFC 3339 time"))
    }
}

/// Read an RFC 3339 time with its offset; what is below a millisecond is cut.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    text.parse::<Timestamp>().ok().map(Timestamp::as_millisecond)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_and_read_as_rfc_3339_says() {
        assert_eq!(rfc3339(951_782_400_123), "2000-02-29T00:00:00.123Z");
        for ms in [0, 1, 951_782_400_123, -1, 4_102_444_799_999] {
            assert_eq!(parse_rfc3339(&rfc3339(ms)), Some(ms));
        }
        assert_eq!(parse_rfc3339("1985-04-12T23:20:50.52Z"), Some(482_196_050_520));
        assert_eq!(parse_rfc3339("1996-12-19T16:39:57-08:00"), Some(851_042_397_000));
        for bad in ["", "2026-02-29T00:00:00Z", "2026-01-01T00:00:00", "yesterday"] {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
    }
}
