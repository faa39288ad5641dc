//! Feature flags: flagd definitions of the tenant, evaluated in the host.
//!
//! The typed readers take a default and never fail: a flag that is missing, disabled, of another type or not granted
//! reads as the default, so that a plugin works before its flags exist. [`evaluate`] says what happened.
//!
//! ```
//! # use chalet_sdk::{flags::{self, Context}, testing::Host};
//! # Host::new().run(|| {
//! let context = Context::new().targeting_key("user-1").with("plan", "pro");
//! if flags::boolean("volume-discount", false, &context) { /* … */ }
//! # Ok(()) }).unwrap();
//! ```

use serde::Serialize;
use serde_json::{Map, Value};

use crate::{Result, host};

/// Who a flag is evaluated for: a JSON object whose `targetingKey` names the subject.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Context(Map<String, Value>);

impl Context {
    /// A context that says nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Name the subject, such as a user; it decides which side of a percentage the subject is on.
    pub fn targeting_key(self, key: impl Into<String>) -> Self {
        self.with("targetingKey", key.into())
    }

    /// Add an attribute that targeting rules may read. A value that has no JSON form is left out.
    pub fn with(mut self, name: impl Into<String>, value: impl Serialize) -> Self {
        if let Ok(value) = serde_json::to_value(value) {
            self.0.insert(name.into(), value);
        }
        self
    }
}

/// What the host found.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// The value; absent if the caller's own default is to be used.
    pub value: Option<Value>,
    /// The variant's name, if one was chosen.
    pub variant: Option<String>,
    /// STATIC, DEFAULT, TARGETING_MATCH, SPLIT, DISABLED or UNKNOWN.
    pub reason: String,
}

/// Evaluate a flag. Fails with [`Error::NotFound`](crate::Error::NotFound) if there is no such flag, and with
/// [`Error::Denied`](crate::Error::Denied) if the manifest does not name it.
pub fn evaluate(flag: &str, context: &Context) -> Result<Evaluation> {
    let (value, variant, reason) = host::flag_evaluate(flag, &serde_json::to_string(&context.0)?)?;
    let value = value.map(|value| serde_json::from_str(&value)).transpose()?;
    Ok(Evaluation { value, variant, reason })
}

/// The flag's boolean, or `default`.
pub fn boolean(flag: &str, default: bool, context: &Context) -> bool {
    value(flag, context).and_then(|value| value.as_bool()).unwrap_or(default)
}

/// The flag's text, or `default`.
pub fn string(flag: &str, default: &str, context: &Context) -> String {
    match value(flag, context) {
        Some(Value::String(text)) => text,
        _ => default.to_owned(),
    }
}

/// The flag's number, or `default`.
pub fn number(flag: &str, default: f64, context: &Context) -> f64 {
    value(flag, context).and_then(|value| value.as_f64()).unwrap_or(default)
}

/// The flag's whole number, or `default`.
pub fn integer(flag: &str, default: i64, context: &Context) -> i64 {
    value(flag, context).and_then(|value| value.as_i64()).unwrap_or(default)
}

/// The flag's object, or `default`.
pub fn object(flag: &str, default: Map<String, Value>, context: &Context) -> Map<String, Value> {
    match value(flag, context) {
        Some(Value::Object(object)) => object,
        _ => default,
    }
}

fn value(flag: &str, context: &Context) -> Option<Value> {
    evaluate(flag, context).ok()?.value
}
