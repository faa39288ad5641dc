//! A flagd document: what of it is accepted, and what a flag answers.
//!
//! The definition is flagd's schema `flags.json`; `flags` may also be a list with a `key` in each, as
//! the daemon's schema allows, unless the document says with `$schema` that it is of the first kind.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use datalogic_rs::DataValue;
use datalogic_rs::bumpalo::Bump;
use serde_json::{Map, Value};

use super::targeting::{Refusal, Rule};
use super::{Context, DOCUMENT_BYTES};
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::json;

/// Steps of all rules of a document in the worst case: what a bulk evaluation may cost.
const STEPS: u64 = 20_000_000;
/// Bytes of the document's metadata in the answers of all flags together: what a bulk evaluation may hold in memory.
const REPEATED_BYTES: usize = 4 << 20;
/// Characters of a flag's name.
const NAME_CHARS: usize = 255;
/// Bytes that most rules need with their contexts while they are evaluated; others take more.
const ARENA_BYTES: usize = 1 << 10;
/// Warnings that are worth reading.
const WARNINGS: usize = 100;

/// What a flag answers.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Evaluation {
    /// The value; none if the caller's own default is to be used.
    pub value: Option<Arc<Value>>,
    /// The variant's name.
    pub variant: Option<Arc<str>>,
    /// Why.
    pub reason: Reason,
    /// Texts, numbers and booleans of the flag and its document.
    pub metadata: Arc<Map<String, Value>>,
}

/// Why a flag has its value, in OpenFeature's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Reason {
    /// The flag has no rule.
    Static,
    /// The rule did not choose, or there is no default variant.
    Default,
    /// The rule chose.
    TargetingMatch,
    /// The flag is switched off; the caller's default is to be used.
    Disabled,
}

impl Reason {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Static => "STATIC",
            Self::Default => "DEFAULT",
            Self::TargetingMatch => "TARGETING_MATCH",
            Self::Disabled => "DISABLED",
        }
    }
}

/// What is wrong, in OpenFeature's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// There is no such flag.
    FlagNotFound,
    /// The request or the flag's rule cannot be read.
    ParseError,
    /// The flag divides subjects, and the context names none.
    TargetingKeyMissing,
    /// The context is no object of the allowed size.
    InvalidContext,
    /// The rule failed, or chose a variant that there is not.
    General,
}

impl Code {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FlagNotFound => "FLAG_NOT_FOUND",
            Self::ParseError => "PARSE_ERROR",
            Self::TargetingKeyMissing => "TARGETING_KEY_MISSING",
            Self::InvalidContext => "INVALID_CONTEXT",
            Self::General => "GENERAL",
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kind.
    pub code: Code,
    /// For people.
    pub details: String,
}

impl Failure {
    pub(super) fn new(code: Code, details: impl Into<String>) -> Self {
        Self { code, details: details.into() }
    }
}

/// A checked document.
#[derive(Default)]
pub(super) struct Document {
    flags: BTreeMap<String, Flag>,
    metadata: Arc<Map<String, Value>>,
    bytes: usize,
    /// What in it will have no effect.
    pub(super) warnings: Vec<String>,
}

struct Flag {
    enabled: bool,
    default: Fallback,
    variants: BTreeMap<Arc<str>, Arc<Value>>,
    targeting: Targeting,
    metadata: Arc<Map<String, Value>>,
}

/// A variant's name and value.
type Variant<'f> = (&'f Arc<str>, &'f Arc<Value>);

/// What a flag answers where no rule chooses.
enum Fallback {
    /// The caller's own default.
    Callers,
    /// A variant.
    Variant(Arc<str>, Arc<Value>),
    /// A variant is named that there is not.
    Missing,
}

enum Targeting {
    None,
    Rule(Rule),
    /// The rule refers to what there is not.
    Broken(String),
}

impl Document {
    /// Read and check a document.
    pub(super) fn parse(body: &[u8]) -> Result<Self> {
        if body.len() > DOCUMENT_BYTES {
            return Err(invalid(format!("a flags document has at most {DOCUMENT_BYTES} bytes")));
        }
        let root = json::value(body)?;
        let Value::Object(root) = &root else { return Err(invalid("a flags document is a JSON object")) };
        let evaluators = match root.get("$evaluators") {
            None => Map::new(),
            Some(Value::Object(evaluators)) => evaluators.clone(),
            Some(_) => return Err(invalid("$evaluators is an object of named rules")),
        };
        let metadata =
            metadata(root.get("metadata")).map_err(|why| invalid(format!("the document's metadata: {why}")))?;
        let metadata_bytes = root.get("metadata").map_or(0, |metadata| metadata.to_string().len());
        let mut document = Self { metadata: metadata.into(), bytes: body.len(), ..Self::default() };
        let mut steps = 0u64;
        for (name, flag) in flags(root)? {
            if name.is_empty() || name.len() > NAME_CHARS {
                return Err(invalid(format!("a flag's name has 1 to {NAME_CHARS} bytes")));
            }
            let mut warnings = Vec::new();
            let flag = Flag::parse(flag, &evaluators, &mut warnings)
                .map_err(|why| invalid(format!("flag {name:?}: {why}")))?;
            if let Targeting::Rule(rule) = &flag.targeting {
                steps = steps.saturating_add(rule.steps);
                document.bytes += 8 * rule.bytes;
            }
            let room = WARNINGS.saturating_sub(document.warnings.len());
            document
                .warnings
                .extend(warnings.into_iter().take(room).map(|warning| format!("flag {name:?}: {warning}")));
            if document.flags.insert(name.to_owned(), flag).is_some() {
                return Err(invalid(format!("the flag {name:?} is defined twice")));
            }
        }
        let repeated = document.flags.len().saturating_mul(metadata_bytes);
        if repeated > REPEATED_BYTES {
            return Err(invalid(format!(
                "every flag's answer repeats the document's metadata, {repeated} bytes in all; {REPEATED_BYTES} are allowed, so give \
                 it to the flags that need it"
            )));
        }
        if steps > STEPS {
            return Err(invalid(format!(
                "the rules may take {steps} steps together with the largest context; simplify them, {STEPS} are allowed"
            )));
        }
        Ok(document)
    }
}

/// The flags with their names, from either form.
fn flags(root: &Map<String, Value>) -> Result<Vec<(&str, &Value)>> {
    match root.get("flags") {
        Some(Value::Object(flags)) => Ok(flags.iter().map(|(name, flag)| (name.as_str(), flag)).collect()),
        Some(Value::Array(flags)) if !matches!(root.get("$schema"), Some(Value::String(schema)) if schema.ends_with("flags.json")) =>
        {
            let named = |flag: &'_ Value| flag.get("key").and_then(Value::as_str).is_some();
            if !flags.iter().all(named) {
                return Err(invalid("each flag of a list has a key"));
            }
            Ok(flags.iter().filter_map(|flag| Some((flag.get("key")?.as_str()?, flag))).collect())
        }
        _ => Err(invalid("a flags document has an object \"flags\", each flag under its name")),
    }
}

impl Flag {
    fn parse(
        flag: &Value,
        evaluators: &Map<String, Value>,
        warnings: &mut Vec<String>,
    ) -> std::result::Result<Self, Cow<'static, str>> {
        let Value::Object(flag) = flag else { return Err("a flag is an object".into()) };
        let enabled = match flag.get("state").and_then(Value::as_str) {
            Some("ENABLED") => true,
            Some("DISABLED") => false,
            _ => return Err("state is ENABLED or DISABLED".into()),
        };
        let Some(Value::Object(variants)) =
            flag.get("variants").filter(|variants| variants.as_object().is_some_and(|v| !v.is_empty()))
        else {
            return Err("variants is an object with at least one variant".into());
        };
        let kinds = [Value::is_boolean, Value::is_string, Value::is_number, Value::is_object];
        if variants.contains_key("") || !kinds.iter().any(|kind| variants.values().all(kind)) {
            return Err("variants have names, and are all booleans, all strings, all numbers or all objects".into());
        }
        let variants: BTreeMap<Arc<str>, Arc<Value>> =
            variants.iter().map(|(name, value)| (name.as_str().into(), Arc::new(value.clone()))).collect();
        let default = match flag.get("defaultVariant") {
            None | Some(Value::Null) => Fallback::Callers,
            Some(Value::String(name)) => match variants.get_key_value(name.as_str()) {
                Some((name, value)) => Fallback::Variant(name.clone(), value.clone()),
                None => {
                    warnings.push(format!(
                        "defaultVariant {name:?} is none of the variants; the flag answers an error where it is needed"
                    ));
                    Fallback::Missing
                }
            },
            Some(_) => return Err("defaultVariant is a variant's name, or null".into()),
        };
        let targeting = match flag.get("targeting") {
            None => Targeting::None,
            Some(Value::Object(rule)) if rule.is_empty() => Targeting::None,
            Some(rule @ Value::Object(_)) => match Rule::compile(rule, evaluators, warnings) {
                Ok(rule) => Targeting::Rule(rule),
                Err(Refusal::Invalid(why)) => return Err(format!("targeting: {why}").into()),
                Err(Refusal::Unresolved(why)) => {
                    warnings.push(format!("targeting: {why}; the flag answers an error"));
                    Targeting::Broken(why)
                }
            },
            Some(_) => return Err("targeting is a rule, an object".into()),
        };
        let metadata = metadata(flag.get("metadata"))?.into();
        Ok(Self { enabled, default, variants, targeting, metadata })
    }

    fn default(&self, name: &str) -> std::result::Result<Option<Variant<'_>>, Failure> {
        match &self.default {
            Fallback::Callers => Ok(None),
            Fallback::Variant(variant, value) => Ok(Some((variant, value))),
            Fallback::Missing => Err(Failure::new(
                Code::General,
                format!("the default variant of flag {name:?} is none of its variants"),
            )),
        }
    }

    fn evaluate(
        &self,
        name: &str,
        context: &Context,
        now_ms: i64,
    ) -> std::result::Result<(Option<Variant<'_>>, Reason), Failure> {
        if !self.enabled {
            return Ok((None, Reason::Disabled));
        }
        let rule = match &self.targeting {
            Targeting::None => {
                let default = self.default(name)?;
                return Ok((default, if default.is_some() { Reason::Static } else { Reason::Default }));
            }
            Targeting::Broken(why) => {
                return Err(Failure::new(Code::ParseError, format!("the rule of flag {name:?} cannot be used: {why}")));
            }
            Targeting::Rule(rule) => rule,
        };
        if rule.needs_key && !context.has_key() {
            return Err(Failure::new(
                Code::TargetingKeyMissing,
                format!("flag {name:?} divides subjects by targetingKey; put one into the context"),
            ));
        }
        let arena = Bump::with_capacity(ARENA_BYTES);
        let answer = rule
            .evaluate(context.of(name, now_ms, &arena), &arena)
            .map_err(|why| Failure::new(Code::General, format!("the rule of flag {name:?} failed: {why}")))?;
        let chosen = match answer {
            DataValue::Null => return Ok((self.default(name)?, Reason::Default)),
            DataValue::String(variant) => variant,
            DataValue::Bool(true) => "true",
            DataValue::Bool(false) => "false",
            _ => "",
        };
        match self.variants.get_key_value(chosen) {
            Some(variant) => Ok((Some(variant), Reason::TargetingMatch)),
            None => Err(Failure::new(
                Code::General,
                format!("the rule of flag {name:?} chose a variant that the flag does not have"),
            )),
        }
    }
}

fn metadata(value: Option<&Value>) -> std::result::Result<Map<String, Value>, Cow<'static, str>> {
    match value {
        None => Ok(Map::new()),
        Some(Value::Object(members))
            if members.values().all(|value| value.is_string() || value.is_number() || value.is_boolean()) =>
        {
            Ok(members.clone())
        }
        Some(_) => Err("metadata is an object of strings, numbers and booleans".into()),
    }
}

/// A tenant's document over the platform's.
pub(super) struct Merged {
    own: Document,
    platform: Arc<Document>,
}

impl Merged {
    pub(super) fn new(own: Document, platform: Arc<Document>) -> Self {
        Self { own, platform }
    }

    /// What keeping it costs.
    pub(super) fn bytes(&self) -> usize {
        1_024 + self.own.bytes
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let mut names: Vec<&str> = self.own.flags.keys().map(String::as_str).collect();
        names.extend(self.platform.flags.keys().filter(|name| !self.own.flags.contains_key(*name)).map(String::as_str));
        names.sort_unstable();
        names.into_iter()
    }

    pub(super) fn evaluate(
        &self,
        name: &str,
        context: &Context,
        now_ms: i64,
    ) -> std::result::Result<Evaluation, Failure> {
        let documents = [&self.own, &*self.platform];
        let Some((document, flag)) = documents.into_iter().find_map(|one| Some((one, one.flags.get(name)?))) else {
            return Err(Failure::new(Code::FlagNotFound, format!("there is no flag {name:?}")));
        };
        let (variant, reason) = flag.evaluate(name, context, now_ms)?;
        let (variant, value) = variant.map(|(variant, value)| (variant.clone(), value.clone())).unzip();
        // Merged when it is asked for: kept with each flag, a document of many flags would grow a thousandfold.
        let metadata = match (document.metadata.is_empty(), flag.metadata.is_empty()) {
            (true, _) => flag.metadata.clone(),
            (false, true) => document.metadata.clone(),
            (false, false) => {
                let mut merged = (*document.metadata).clone();
                merged.extend((*flag.metadata).clone());
                merged.into()
            }
        };
        Ok(Evaluation { value, variant, reason, metadata })
    }
}

fn invalid(message: impl Into<Cow<'static, str>>) -> Error {
    Error::new(Kind::Invalid, "flags_invalid", message)
}
