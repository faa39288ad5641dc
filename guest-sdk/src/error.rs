//! One error for everything a plugin does: what the host refused, and what the plugin decided.
//!
//! Each case says what its receiver does next. A handler that returns an [`Error`] fails the invocation, and nothing it
//! staged is committed; [`Error::failure`] says whether the host calls the plugin again with the same input.

use std::fmt;
use std::time::Duration;

/// The result of a host call or of a handler.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Milliseconds after which a failure is tried again when nobody said how long to wait: long enough for a conflict or a
/// short outage to pass, short enough for a person who waits.
const RETRY_AFTER_MS: u64 = 1_000;

/// Longest reason that is shown to the caller, in bytes; a reason is a sentence, not a dump.
const REASON_BYTES: usize = 1_024;

/// Which limit was hit, and when it is worth trying again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitHit {
    /// The limit's name, as in the tenant's limits document or plan.
    pub limit: String,
    /// Units left in the current window.
    pub remaining: u64,
    /// Milliseconds until the request could succeed; 0 if waiting does not help.
    pub retry_after_ms: u64,
}

/// Why a host call was refused, or why a handler gives up.
///
/// The first eight cases are the host's answers; the last two are the plugin's own decisions, made with
/// [`crate::retry`] and [`crate::reject`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The manifest does not grant this, or the tenant has not approved it. Change the manifest.
    Denied(String),
    /// There is no such thing. Create it, or treat it as absent.
    NotFound(String),
    /// The thing changed underneath the caller. Read it again.
    Conflict(String),
    /// The arguments cannot be accepted. Correct them; the same call never succeeds.
    Invalid(String),
    /// A rate was exceeded. Try again after the time given.
    RateLimited(LimitHit),
    /// A quota or budget is used up. Waiting does not help within the period.
    BudgetExhausted(LimitHit),
    /// Something the host depends on does not answer. Try again later.
    Unavailable(String),
    /// A fault of the host. It is logged there.
    Internal(String),
    /// The plugin asks to be called again with the same input after this long.
    Retry(Duration),
    /// The plugin never wants to see this input again; the reason is shown to the caller.
    Reject(String),
}

/// What the host does about a handler that failed. Either way nothing it staged is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Deliver or call again after this many milliseconds.
    Retry(u64),
    /// Never call again with this input; the reason is shown to the caller.
    Reject(String),
}

/// An error that makes the host call again with the same input after `after`.
///
/// Over HTTP the caller sees 503 with `Retry-After`; a provider's webhook is delivered again.
pub fn retry(after: Duration) -> Error {
    Error::Retry(after)
}

/// An error that makes the host give up on this input and show `reason` to the caller.
///
/// Over HTTP and for webhooks the caller sees 422. The reason is cut after 1,024 bytes.
pub fn reject(reason: impl Into<String>) -> Error {
    Error::Reject(reason.into())
}

impl Error {
    /// How the host treats a handler that returns this error.
    ///
    /// Rates and outages pass, so they are retried: a rate after the time the host gave, the others after a second.
    /// What the same input can never change is rejected.
    pub fn failure(&self) -> Failure {
        match self {
            Error::Retry(after) => Failure::Retry(u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
            Error::RateLimited(hit) => Failure::Retry(hit.retry_after_ms.max(1)),
            Error::BudgetExhausted(hit) => Failure::Retry(hit.retry_after_ms.max(RETRY_AFTER_MS)),
            Error::Conflict(_) | Error::Unavailable(_) | Error::Internal(_) => Failure::Retry(RETRY_AFTER_MS),
            Error::Denied(_) | Error::NotFound(_) | Error::Invalid(_) => Failure::Reject(cut(self.to_string())),
            Error::Reject(reason) => Failure::Reject(cut(reason.clone())),
        }
    }

    /// True if the same call may succeed later.
    pub fn retryable(&self) -> bool {
        matches!(self.failure(), Failure::Retry(_))
    }
}

/// The reason at a character's boundary within [`REASON_BYTES`].
fn cut(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(REASON_BYTES));
    reason
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Denied(what) => write!(f, "denied: {what}"),
            Error::NotFound(what) => write!(f, "not found: {what}"),
            Error::Conflict(what) => write!(f, "conflict: {what}"),
            Error::Invalid(what) => write!(f, "invalid: {what}"),
            Error::RateLimited(hit) => {
                write!(f, "rate limit `{}` exceeded; try again in {} ms", hit.limit, hit.retry_after_ms)
            }
            Error::BudgetExhausted(hit) => write!(f, "budget `{}` is used up", hit.limit),
            Error::Unavailable(what) => write!(f, "unavailable: {what}"),
            Error::Internal(what) => write!(f, "internal: {what}"),
            Error::Retry(after) => write!(f, "to be tried again in {} ms", after.as_millis()),
            Error::Reject(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for Error {}

/// JSON that is not what the plugin expects stays so however often it is delivered.
impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        reject(format!("the JSON is not what was expected: {error}"))
    }
}

impl From<std::str::Utf8Error> for Error {
    fn from(error: std::str::Utf8Error) -> Self {
        reject(format!("the text is not UTF-8: {error}"))
    }
}

impl From<std::string::FromUtf8Error> for Error {
    fn from(error: std::string::FromUtf8Error) -> Self {
        error.utf8_error().into()
    }
}

impl From<std::num::ParseIntError> for Error {
    fn from(error: std::num::ParseIntError) -> Self {
        reject(format!("the number is not what was expected: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hit(retry_after_ms: u64) -> LimitHit {
        LimitHit { limit: "calls".into(), remaining: 0, retry_after_ms }
    }

    #[test]
    fn what_passes_with_time_is_retried_and_what_does_not_is_rejected() {
        assert_eq!(Error::RateLimited(hit(250)).failure(), Failure::Retry(250));
        assert_eq!(Error::BudgetExhausted(hit(0)).failure(), Failure::Retry(RETRY_AFTER_MS));
        assert_eq!(Error::Conflict("c".into()).failure(), Failure::Retry(RETRY_AFTER_MS));
        assert_eq!(Error::Unavailable("u".into()).failure(), Failure::Retry(RETRY_AFTER_MS));
        assert_eq!(Error::Internal("i".into()).failure(), Failure::Retry(RETRY_AFTER_MS));
        assert_eq!(retry(Duration::from_secs(3)).failure(), Failure::Retry(3_000));
        assert_eq!(Error::Denied("kv".into()).failure(), Failure::Reject("denied: kv".into()));
        assert!(!Error::NotFound("x".into()).retryable());
        assert!(!Error::Invalid("x".into()).retryable());
        assert_eq!(reject("no").failure(), Failure::Reject("no".into()));
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let Failure::Reject(reason) = reject("ä".repeat(2_000)).failure() else { panic!("a reject rejects") };
        assert_eq!(reason.len(), REASON_BYTES);
        let Failure::Reject(reason) = reject(format!("x{}", "ä".repeat(2_000))).failure() else {
            panic!("a reject rejects")
        };
        assert_eq!(reason.len(), REASON_BYTES - 1);
    }

    #[test]
    fn bad_json_rejects() {
        let error: Error = serde_json::from_str::<u32>("\"x\"").expect_err("a string is no number").into();
        assert!(!error.retryable());
    }
}
