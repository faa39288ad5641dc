//! Records usage as a test gives it, and a suite of its own.
//!
//! `POST /record {"meter","value","dimensions":{…},"fail":false}` answers `{}` or `{"error":{…}}`; with `fail` the
//! invocation is rejected after it.

use std::collections::BTreeMap;

use chalet_sdk::http::{Request, Response};
use chalet_sdk::{Error, Plugin, Result, meters, reject};
use guest_report::outcome;
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Record {
    meter: String,
    value: String,
    #[serde(default)]
    dimensions: BTreeMap<String, String>,
    #[serde(default)]
    fail: bool,
}

/// The guest.
pub struct Meters;

impl Plugin for Meters {
    fn http(request: Request) -> Result<Response> {
        if request.route() == "POST /suite" {
            return suite().map(|()| Response::text("passed"));
        }
        let Record { meter, value, dimensions, fail } = request.json()?;
        let dimensions: Vec<_> = dimensions.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let recorded = meters::record_with(&meter, value, &dimensions);
        if fail {
            return Err(reject("as the test wants"));
        }
        Response::json(&outcome(recorded.map(|()| json!({}))))
    }
}

/// What every host must keep of `meters.wit`. It adds 6.75 to the meter `suite`, 0.5 of it with `model` = `small`.
pub fn suite() -> Result<()> {
    meters::record("suite", 1)?;
    meters::record("suite", 5_u64)?;
    meters::record("suite", "0.25")?;
    meters::record("suite", 0)?;
    meters::record_with("suite", "0.50", &[("model", "small")])?;
    let invalid = |value: &str| {
        let refused = meters::record("suite", value);
        assert!(matches!(refused, Err(Error::Invalid(_))), "{value:?}: {refused:?}");
    };
    for value in ["", "-1", "+1", "1.", ".5", "1e3", "1,5", " 1", "NaN", "0x1", "１", "1\0"] {
        invalid(value);
    }
    invalid(&"9".repeat(29));
    invalid(&"9".repeat(100_000));
    assert!(matches!(meters::record("suite", -1), Err(Error::Invalid(_))));
    let names: Vec<_> = (0..17).map(|n| format!("d{n}")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), "x")).collect();
    assert!(matches!(meters::record_with("suite", 1, &many), Err(Error::Invalid(_))));
    assert!(matches!(meters::record("elsewhere", 1), Err(Error::Denied(_))));
    Ok(())
}

chalet_sdk::export!(Meters: http);
