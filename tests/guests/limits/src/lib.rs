//! Checks limits as a test gives them, and a suite of its own.
//!
//! `POST /check {"limit","key","cost":1,"times":1,"fail":false}` answers `{"decisions":[…]}`; with `fail` the invocation
//! is rejected after it, and the units stay taken.

use chalet_sdk::http::{Request, Response};
use chalet_sdk::limits::{self, Decision};
use chalet_sdk::{Error, Plugin, Result, context, reject};
use guest_report::outcome;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Check {
    limit: String,
    key: String,
    #[serde(default = "one")]
    cost: u32,
    #[serde(default = "one")]
    times: u32,
    #[serde(default)]
    fail: bool,
}

fn one() -> u32 {
    1
}

/// The guest.
pub struct Limits;

impl Plugin for Limits {
    fn http(request: Request) -> Result<Response> {
        if request.route() == "POST /suite" {
            return suite().map(|()| Response::text("passed"));
        }
        let Check { limit, key, cost, times, fail } = request.json()?;
        let decisions: Vec<_> = (0..times).map(|_| outcome(limits::check(&limit, &key, cost).map(shown))).collect();
        if fail {
            return Err(reject("as the test wants"));
        }
        Response::json(&json!({ "decisions": decisions }))
    }
}

fn shown(decision: Decision) -> Value {
    json!({
        "allowed": decision.allowed,
        "limit": decision.limit,
        "remaining": decision.remaining,
        "retry_after_ms": decision.retry_after_ms,
        "reset_after_ms": decision.reset_after_ms,
    })
}

/// What every host must keep of `limits.wit`. The tenant has defined the limit `suite` as 5 units an hour, all of which
/// may be taken at once, and no limit `undefined`.
pub fn suite() -> Result<()> {
    // A key of its own for every run, so that runs do not take each other's units.
    let key = context::unique_id();
    let first = limits::check("suite", &key, 2)?;
    assert!(first.allowed);
    assert_eq!((first.limit, first.remaining, first.retry_after_ms), (5, 3, 0));
    assert!(first.reset_after_ms > 0);
    let refused = limits::check("suite", &key, 4)?;
    assert!(!refused.allowed);
    assert_eq!(refused.remaining, 3, "a refused check takes nothing");
    assert!((1..=720_000).contains(&refused.retry_after_ms), "one unit comes every 12 minutes: {refused:?}");
    assert!(limits::check("suite", &key, 3)?.allowed);
    let empty = limits::check("suite", &key, 1)?;
    assert_eq!((empty.allowed, empty.remaining), (false, 0));
    assert!(matches!(limits::require("suite", &key, 1), Err(Error::RateLimited(hit)) if hit.retry_after_ms > 0));
    assert!(limits::check("suite", &format!("{key}-other"), 5)?.allowed, "keys do not share");
    assert!(matches!(limits::check("undefined", &key, 1), Err(Error::NotFound(_))));
    assert!(matches!(limits::check("elsewhere", &key, 1), Err(Error::Denied(_))));
    Ok(())
}

chalet_sdk::export!(Limits: http);
