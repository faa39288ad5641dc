//! How the test guests tell an error: as an answer with the case's name, so that a test sees what the guest saw.

use chalet_sdk::{Error, LimitHit};
use serde_json::{Value, json};

/// `{"error":{"kind","message"}}`, with the limit's fields where there are any.
pub fn error(error: &Error) -> Value {
    let kind = match error {
        Error::Denied(_) => "denied",
        Error::NotFound(_) => "not-found",
        Error::Conflict(_) => "conflict",
        Error::Invalid(_) => "invalid",
        Error::RateLimited(_) => "rate-limited",
        Error::BudgetExhausted(_) => "budget-exhausted",
        Error::Unavailable(_) => "unavailable",
        Error::Internal(_) => "internal",
        Error::Retry(_) => "retry",
        Error::Reject(_) => "reject",
        _ => "unknown",
    };
    let mut told = json!({ "kind": kind, "message": error.to_string() });
    if let Error::RateLimited(LimitHit { limit, remaining, retry_after_ms })
    | Error::BudgetExhausted(LimitHit { limit, remaining, retry_after_ms }) = error
    {
        told["limit"] = json!(limit);
        told["remaining"] = json!(remaining);
        told["retry_after_ms"] = json!(retry_after_ms);
    }
    json!({ "error": told })
}

/// The value, or the error as an answer.
pub fn outcome(result: chalet_sdk::Result<Value>) -> Value {
    result.unwrap_or_else(|failed| error(&failed))
}
