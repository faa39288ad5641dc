//! Flags as flagd defines them, evaluated by OpenFeature's own engine.

use std::collections::HashMap;
use std::sync::Arc;

use flagd_evaluation_engine::{FeatureFlag, FlagParser, Operator};
use open_feature::{EvaluationContext, EvaluationContextFieldValue, StructValue, Value as Field};
use serde_json::Value;

use crate::error::{Error, Result};

/// A tenant's flags.
#[derive(Default)]
pub(super) struct Flags(HashMap<String, FeatureFlag>);

impl Flags {
    pub(super) fn parse(document: &str) -> Result<Self> {
        match FlagParser::parse_string(document) {
            Ok(parsed) => Ok(Self(parsed.flags)),
            Err(error) => Err(Error::Invalid(format!("not a flagd document: {error}"))),
        }
    }

    /// Value, variant and reason; see `flags.wit`.
    pub(super) fn evaluate(
        &self,
        key: &str,
        context: &str,
        now_ms: u64,
    ) -> Result<(Option<String>, Option<String>, String)> {
        let context: Value = serde_json::from_str(context)
            .map_err(|error| Error::Invalid(format!("the context is no JSON: {error}")))?;
        let Value::Object(context) = context else {
            return Err(Error::Invalid("the context is no JSON object".into()));
        };
        let flag = self.0.get(key).ok_or_else(|| Error::NotFound(format!("there is no flag `{key}`")))?;
        if flag.state != "ENABLED" {
            return Ok((None, None, "DISABLED".into()));
        }
        let targeted = match &flag.targeting {
            Some(Value::Object(rule)) if !rule.is_empty() => {
                let rule = flag.get_targeting();
                Operator::new()
                    .apply(key, &rule, &evaluation_context(key, context, now_ms))
                    .map_err(|error| Error::Invalid(format!("the targeting of `{key}` fails: {error}")))?
            }
            _ => return Ok(variant(flag, &flag.default_variant, "STATIC")),
        };
        match targeted {
            Some(chosen) if flag.variants.contains_key(&chosen) => Ok(variant(flag, &chosen, "TARGETING_MATCH")),
            Some(chosen) => Err(Error::Invalid(format!("`{key}` has no variant `{chosen}`"))),
            None => Ok(variant(flag, &flag.default_variant, "DEFAULT")),
        }
    }
}

fn variant(flag: &FeatureFlag, name: &str, reason: &str) -> (Option<String>, Option<String>, String) {
    (flag.variants.get(name).map(Value::to_string), Some(name.to_owned()), reason.to_owned())
}

/// The context with `$flagd` of the invocation's time in the place of the engine's own, so that a test can set it.
fn evaluation_context(key: &str, context: serde_json::Map<String, Value>, now_ms: u64) -> EvaluationContext {
    let mut made = EvaluationContext::default();
    for (name, value) in context {
        match (name.as_str(), value) {
            ("targetingKey", Value::String(subject)) => made = made.with_targeting_key(subject),
            (_, value) => {
                if let Some(field) = field(value) {
                    made = made.with_custom_field(name, EvaluationContextFieldValue::Struct(Arc::new(field)));
                }
            }
        }
    }
    let flagd = StructValue::default()
        .with_field("flagKey", key.to_owned())
        .with_field("timestamp", i64::try_from(now_ms / 1_000).unwrap_or(i64::MAX));
    made.with_custom_field("$flagd", EvaluationContextFieldValue::Struct(Arc::new(flagd)))
}

/// A JSON value in OpenFeature's terms, which have no null.
fn field(value: Value) -> Option<Field> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(value) => Field::Bool(value),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => Field::Int(integer),
            None => Field::Float(number.as_f64()?),
        },
        Value::String(text) => Field::String(text),
        Value::Array(items) => Field::Array(items.into_iter().filter_map(field).collect()),
        Value::Object(fields) => {
            let mut made = StructValue::default();
            for (name, value) in fields {
                if let Some(value) = field(value) {
                    made.add_field(name, value);
                }
            }
            Field::Struct(made)
        }
    })
}
