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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Pair {
        _a: u8,
        _b: String,
    }

    #[test]
    fn what_is_no_json_is_told_from_what_is_of_another_shape() {
        let code = |body: &[u8]| {
            object::<Pair>(body, |why| Error::new(Kind::Invalid, "other_shape", why))
                .map_or_else(|error| error.code(), |_| "fits")
        };
        for (body, expected) in [
            (br#"{"_a":1,"_b":"x"}"#.as_slice(), "fits"),
            (b" \n{\"_b\":\"x\",\"_a\":1}", "fits"),
            (br#"[1,"x"]"#, "other_shape"),
            (b"null", "other_shape"),
            (br#"{"_a":"1","_b":"x"}"#, "other_shape"),
            (br#"{"_a":256,"_b":"x"}"#, "other_shape"),
            (b"", "bad_json"),
            (b"[1,]", "bad_json"),
            // What is wrong with the shape comes first, and is not all that is wrong.
            (br#"{"_a":"1","_b":x}"#, "bad_json"),
            (b"{\"_a\":1,\"_b\":\"\xff\"}", "bad_json"),
        ] {
            assert_eq!(code(body), expected, "{}", String::from_utf8_lossy(body));
        }
    }
}
