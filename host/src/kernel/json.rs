//! JSON from strangers: what is no JSON at all is told from JSON that is not what was asked for.

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use crate::kernel::error::{Error, Kind, Result};

/// Any JSON.
pub fn value(body: &[u8]) -> Result<Value> {
    serde_json::from_slice(body).map_err(bad)
}

/// An object of this shape; `wrong` makes the error for JSON that is another.
pub fn object<T: DeserializeOwned>(body: &[u8], wrong: impl Fn(String) -> Error) -> Result<T> {
    // The first difference in shape would end the reading, and what comes after it might be no JSON.
    let text = std::str::from_utf8(body).map_err(bad)?;
    serde_json::from_str::<IgnoredAny>(text).map_err(bad)?;
    // An array would be read as the members in their order.
    if !text.trim_ascii_start().starts_with('{') {
        return Err(wrong("it is no JSON object".into()));
    }
    serde_json::from_str(text).map_err(|error| if error.is_data() { wrong(error.to_string()) } else { bad(error) })
}

fn bad(error: impl std::fmt::Display) -> Error {
    Error::new(Kind::Invalid, "bad_json", format!("the body is no JSON: {error}"))
}
