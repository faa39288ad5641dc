//! What a meter counts: `{"event_type":"completion","aggregation":"sum","value":"$.n","group_by":{"model":"$.model"}}`.
//!
//! Paths are JSONPath (RFC 9535) into an event's data, of the singular kind: one place, no search. A
//! search could visit an event's data many times over, and its answer would be no one value.

use std::collections::BTreeMap;

use rust_decimal::Decimal;
use serde_json::Value;
use serde_json_path::JsonPath;

use super::check_name;
use super::event::TYPE_BYTES;
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::json;

/// Names that usage can be grouped by.
const GROUPS: usize = 16;
/// Bytes of a path.
const PATH_BYTES: usize = 256;
/// Bytes of a definition.
const BODY_BYTES: usize = 16 << 10;

/// A meter.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// The type of the events that it counts.
    pub event_type: String,
    /// How it counts them.
    pub aggregation: Aggregation,
    /// Where in an event's data the value is, for a sum. An event without a number there is not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What usage can be grouped by: names, and where in an event's data each is.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub group_by: BTreeMap<String, String>,
}

/// How events are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Aggregation {
    /// The sum of a value.
    Sum,
    /// The number of events.
    Count,
}

impl Definition {
    /// Read and check a definition.
    pub fn parse(body: &[u8]) -> Result<Self> {
        if body.len() > BODY_BYTES {
            return Err(invalid(format!("a meter has at most {BODY_BYTES} bytes")));
        }
        let definition: Self = json::object(body, |why| invalid(format!("this is no meter: {why}")))?;
        if definition.event_type.is_empty() || definition.event_type.len() > TYPE_BYTES {
            return Err(invalid(format!("event_type has 1 to {TYPE_BYTES} bytes")));
        }
        match (definition.aggregation, &definition.value) {
            (Aggregation::Sum, None) => {
                return Err(invalid("a sum needs value, the path of what is summed, such as $.n".into()));
            }
            (Aggregation::Count, Some(_)) => return Err(invalid("a count has no value; leave it out".into())),
            (Aggregation::Sum, Some(_)) | (Aggregation::Count, None) => {}
        }
        if definition.group_by.len() > GROUPS {
            return Err(invalid(format!("a meter has at most {GROUPS} names to group by")));
        }
        for name in definition.group_by.keys() {
            check_name(name)
                .map_err(|_| invalid(format!("{name:?} cannot name a group: use 1 to 64 of a-z 0-9 . _ -")))?;
        }
        for text in definition.value.iter().chain(definition.group_by.values()) {
            path(text)?;
        }
        Ok(definition)
    }

    pub(super) fn compile(&self) -> Result<Compiled> {
        Ok(Compiled {
            event_type: self.event_type.clone(),
            value: self.value.as_deref().map(path).transpose()?,
            group_by: self
                .group_by
                .iter()
                .map(|(name, text)| Ok((name.clone(), path(text)?)))
                .collect::<Result<_>>()?,
        })
    }
}

/// A definition whose paths are parsed.
pub(super) struct Compiled {
    pub(super) event_type: String,
    /// None for a count.
    pub(super) value: Option<JsonPath>,
    pub(super) group_by: BTreeMap<String, JsonPath>,
}

/// The number at a path, if there is one; a text that is a decimal is one too.
pub(super) fn number(data: &Value, path: &JsonPath) -> Option<Decimal> {
    match path.query(data).at_most_one().ok()?? {
        Value::Number(number) => decimal(&number.to_string()),
        Value::String(text) => decimal(text),
        _ => None,
    }
}

pub(super) fn decimal(text: &str) -> Option<Decimal> {
    Decimal::from_str_exact(text).ok().or_else(|| Decimal::from_scientific(text).ok())
}

/// The text at a path; empty where there is none.
pub(super) fn text(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => value.to_string(),
        _ => String::new(),
    }
}

fn path(text: &str) -> Result<JsonPath> {
    let bad = || {
        invalid(format!(
            "{text:?} is no singular JSONPath of at most {PATH_BYTES} bytes, such as $.usage.tokens or $['n'][0]"
        ))
    };
    if text.len() > PATH_BYTES || !singular(text) {
        return Err(bad());
    }
    JsonPath::parse(text).map_err(|_| bad())
}

/// Whether a path has name and index selectors only (RFC 9535, section 2.3.5.1).
fn singular(text: &str) -> bool {
    let (mut quote, mut escaped, mut before) = (None, false, ' ');
    for c in text.chars() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '\'' || c == '"' => quote = Some(c),
            None if "*?:,@".contains(c) || (c == '.' && before == '.') => return false,
            None => {}
        }
        before = c;
    }
    true
}

fn invalid(message: String) -> Error {
    Error::new(Kind::Invalid, "meter_invalid", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_is_checked_before_it_is_stored() {
        let good = r#"{"event_type":"completion","aggregation":"sum","value":"$.n","group_by":{"model":"$.model"}}"#;
        let definition = Definition::parse(good.as_bytes()).expect("valid");
        assert_eq!(serde_json::to_string(&definition).expect("JSON"), good);
        assert!(Definition::parse(br#"{"event_type":"e","aggregation":"count"}"#).is_ok());
        for bad in [
            "[]",
            r#"["e","count"]"#,
            "{}",
            r#"{"event_type":"","aggregation":"count"}"#,
            r#"{"event_type":"e","aggregation":"sum"}"#,
            r#"{"event_type":"e","aggregation":"count","value":"$.n"}"#,
            r#"{"event_type":"e","aggregation":"max","value":"$.n"}"#,
            r#"{"event_type":"e","aggregation":"count","extra":1}"#,
            r#"{"event_type":"e","aggregation":"count","group_by":{"A B":"$.n"}}"#,
            r#"{"event_type":"e","aggregation":"count","group_by":{"a":"n"}}"#,
        ] {
            assert_eq!(Definition::parse(bad.as_bytes()).expect_err(bad).code(), "meter_invalid", "{bad}");
        }
    }

    #[test]
    fn a_path_names_one_place() {
        for good in ["$", "$.n", "$.a.b", "$['a b'].c", "$[\"x\"][0]", "$[-1]", "$['a,b:*?@..']"] {
            assert!(path(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "n",
            "$.",
            "$..n",
            "$.*",
            "$[*]",
            "$[0:2]",
            "$[0,1]",
            "$['a','b']",
            "$[?@.a]",
            "$.a[?@.b == 1]",
            "$['a",
        ] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_value_is_a_number_or_a_text_of_one() {
        let data =
            serde_json::json!({"i": 7, "f": 0.1, "t": "12.50", "e": 1e3, "s": "x", "b": true, "n": null, "l": [1]});
        let at = |text: &str| number(&data, &path(text).expect("a path")).map(|number| number.to_string());
        assert_eq!(["$.i", "$.f", "$.t"].map(at), [Some("7".into()), Some("0.1".into()), Some("12.50".into())]);
        assert_eq!(at("$.e").as_deref(), Some("1000.0"));
        assert_eq!(["$.s", "$.b", "$.n", "$.l", "$.missing"].map(at), [None, None, None, None, None]);
    }
}
