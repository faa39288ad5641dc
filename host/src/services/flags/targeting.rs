//! Targeting rules: JSONLogic with flagd's operators, checked and priced before they may run.
//!
//! A rule comes from a tenant and is evaluated on the host, where nothing interrupts it. So a rule is
//! refused whose worst case, over the largest context, takes too many steps or builds too large a value;
//! and references are resolved under a bound, since each may double the rule. What flagd's schema
//! forbids is refused, except where its evaluators define what happens all the same: that is a warning.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::LazyLock;

use datalogic_rs::bumpalo::Bump;
use datalogic_rs::operator::EvalContext;
use datalogic_rs::{ArenaExt, CustomOperator, DataValue, Engine, Logic};
use serde_json::{Map, Value};

/// Nesting of a rule after its references are resolved; evaluation is recursive.
const DEPTH: usize = 64;
/// Lists that may be walked inside each other.
const LISTS: u32 = 2;
/// Bytes of a rule after its references are resolved.
const RULE_BYTES: usize = 64 << 10;
/// Steps of one evaluation in the worst case: some tens of milliseconds on a slow core.
const STEPS: u64 = 2_000_000;
/// Bytes of a context, and so of any value that a rule reads.
pub(super) const CONTEXT_BYTES: usize = 16 << 10;
/// Steps to find a variable in a context that is one flat object of short names.
const VARIABLE_STEPS: u64 = CONTEXT_BYTES as u64 / 16;
/// Bytes that are compared, copied or hashed in the time of a step.
const BYTES_A_STEP: u64 = 16;
/// The name of our `fractional`: the engine's own would win, and it knows only texts as variants.
const FRACTIONAL: &str = "chalet_fractional";

static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
    Engine::builder()
        .add_operator(FRACTIONAL, Fractional)
        .add_operator("starts_with", Affix(|text, affix| text.starts_with(affix)))
        .add_operator("ends_with", Affix(|text, affix| text.ends_with(affix)))
        .build()
});

/// A rule that may run.
pub(super) struct Rule {
    logic: Logic,
    /// Steps in the worst case.
    pub(super) steps: u64,
    /// Bytes of its text.
    pub(super) bytes: usize,
    /// Whether it divides subjects by `targetingKey` without saying so.
    pub(super) needs_key: bool,
}

impl Rule {
    /// Check and compile a rule. `warnings` receives what will have no effect.
    pub(super) fn compile(
        targeting: &Value,
        evaluators: &Map<String, Value>,
        warnings: &mut Vec<String>,
    ) -> Result<Self, Refusal> {
        let mut resolved = targeting.clone();
        let mut bytes = 0;
        resolve(&mut resolved, evaluators, &mut Vec::new(), &mut bytes)?;
        let mut check = Check { warnings, needs_key: false, walks: 0 };
        let price = check.args(&resolved, Scope::context(), 0).map_err(Refusal::Invalid)?;
        if price.steps > STEPS || price.size > STEPS {
            return Err(Refusal::Invalid(format!(
                "the rule may take {} steps or build {} bytes with the largest context; simplify it, {STEPS} are allowed",
                price.steps, price.size
            )));
        }
        let needs_key = check.needs_key;
        rename(&mut resolved);
        let text = resolved.to_string();
        let logic = ENGINE
            .compile(text.as_str())
            .map_err(|error| Refusal::Invalid(format!("the rule cannot be compiled: {error}")))?;
        Ok(Self { logic, steps: price.steps, bytes: text.len(), needs_key })
    }

    /// What the rule answers for a context.
    pub(super) fn evaluate<'a>(&'a self, context: DataValue<'a>, arena: &'a Bump) -> Result<&'a DataValue<'a>, String> {
        ENGINE.evaluate(&self.logic, context, arena).map_err(|error| error.to_string())
    }
}

/// JSON as a rule reads it.
pub(super) fn data<'a>(value: &'a Value, arena: &'a Bump) -> DataValue<'a> {
    match value {
        Value::Null => DataValue::Null,
        Value::Bool(value) => DataValue::Bool(*value),
        Value::Number(number) => match number.as_i64() {
            Some(number) => DataValue::from_i64(number),
            None => number.as_f64().map_or(DataValue::Null, DataValue::from_f64),
        },
        Value::String(text) => DataValue::String(text),
        Value::Array(items) => {
            DataValue::Array(arena.alloc_slice_fill_iter(items.iter().map(|item| data(item, arena))))
        }
        Value::Object(members) => DataValue::Object(
            arena.alloc_slice_fill_iter(members.iter().map(|(name, member)| (name.as_str(), data(member, arena)))),
        ),
    }
}

/// Why a rule cannot run.
pub(super) enum Refusal {
    /// The document is not accepted.
    Invalid(String),
    /// The document is accepted and the flag answers an error, as flagd has it for unknown references.
    Unresolved(String),
}

/// Put the named evaluators in the place of references to them.
fn resolve(
    rule: &mut Value,
    evaluators: &Map<String, Value>,
    open: &mut Vec<String>,
    bytes: &mut usize,
) -> Result<(), Refusal> {
    *bytes += match rule {
        Value::String(text) => text.len() + 2,
        _ => 4,
    };
    if *bytes > RULE_BYTES {
        return Err(Refusal::Invalid(format!(
            "a rule has at most {RULE_BYTES} bytes after its references are resolved"
        )));
    }
    match rule {
        Value::Object(members) => {
            if members.len() == 1
                && let Some(Value::String(name)) = members.get("$ref")
            {
                if open.contains(name) || open.len() >= DEPTH {
                    return Err(Refusal::Invalid(format!(
                        "the evaluator {name:?} refers to itself; remove the circle"
                    )));
                }
                let Some(target) = evaluators.get(name) else {
                    return Err(Refusal::Unresolved(format!("there is no evaluator {name:?}")));
                };
                let name = name.clone();
                let mut target = target.clone();
                open.push(name);
                resolve(&mut target, evaluators, open, bytes)?;
                open.pop();
                *rule = target;
                return Ok(());
            }
            for (name, member) in members {
                *bytes += name.len() + 4;
                resolve(member, evaluators, open, bytes)?;
            }
            Ok(())
        }
        Value::Array(items) => items.iter_mut().try_for_each(|item| resolve(item, evaluators, open, bytes)),
        _ => Ok(()),
    }
}

fn rename(rule: &mut Value) {
    match rule {
        Value::Object(members) => {
            if let Some(args) = members.remove("fractional") {
                members.insert(FRACTIONAL.into(), args);
            }
            members.values_mut().for_each(rename);
        }
        Value::Array(items) => items.iter_mut().for_each(rename),
        _ => {}
    }
}

/// The worst case of a part of a rule.
#[derive(Clone, Copy, Default)]
struct Price {
    /// Steps to evaluate it.
    steps: u64,
    /// Bytes of its answer, which is also more than the elements of a list.
    size: u64,
}

impl Price {
    /// Both of two parts, one after the other.
    fn and(self, other: Self) -> Self {
        Self { steps: self.steps.saturating_add(other.steps), size: self.size.saturating_add(other.size) }
    }
}

/// What variables stand for in a part of a rule.
#[derive(Clone, Copy)]
struct Scope {
    /// Bytes of the largest value that one may have.
    widest: u64,
    /// Bytes of the accumulator, in the body of a `reduce`.
    accumulator: Option<u64>,
    /// How many lists are being walked around this part.
    lists: u32,
}

impl Scope {
    fn context() -> Self {
        Self { widest: CONTEXT_BYTES as u64, accumulator: None, lists: 0 }
    }

    /// The body of an operator that walks a list, for an element of so many bytes.
    fn element(self, bytes: u64) -> Self {
        Self { widest: bytes, lists: self.lists + 1, ..self }
    }
}

struct Check<'w> {
    warnings: &'w mut Vec<String>,
    needs_key: bool,
    /// Operators met that walk a list.
    walks: u32,
}

impl Check<'_> {
    /// An operand: a rule, a list of operands, or a plain value.
    fn args(&mut self, value: &Value, scope: Scope, depth: usize) -> Result<Price, String> {
        if depth > DEPTH {
            return Err(format!("a rule is at most {DEPTH} levels deep"));
        }
        match value {
            Value::Object(members) => {
                let mut members = members.iter();
                match (members.next(), members.next()) {
                    (Some((operator, args)), None) => self.operation(operator, args, scope, depth),
                    (None, _) if depth == 0 => Ok(Price::default()),
                    _ => Err("an object in a rule has one member, the operator".into()),
                }
            }
            // Each round could double what the round before built.
            Value::Array(items)
                if scope.accumulator.is_some() && items.iter().any(|item| !item.is_string() && !item.is_number()) =>
            {
                Err("a list inside \"reduce\" holds texts and numbers only".into())
            }
            Value::Array(items) => items.iter().try_fold(Price { steps: 1, size: 2 }, |sum, item| {
                Ok(sum.and(self.args(item, scope, depth + 1)?).and(Price { steps: 0, size: 1 }))
            }),
            Value::String(text) => Ok(Price { steps: 1, size: text.len() as u64 + 2 }),
            Value::Null | Value::Bool(_) | Value::Number(_) => Ok(Price { steps: 1, size: 24 }),
        }
    }

    fn operation(&mut self, operator: &str, args: &Value, scope: Scope, depth: usize) -> Result<Price, String> {
        let list = args.as_array().map(Vec::as_slice);
        let arity = |least: usize, most: usize| match list {
            Some(list) if (least..=most).contains(&list.len()) => Ok(list),
            _ if least == most => Err(format!("{operator:?} takes a list of {least} operands")),
            _ => Err(format!("{operator:?} takes a list of at least {least} operands")),
        };
        let all = usize::MAX;
        match operator {
            "var" => variable(args, scope),
            "missing" => {
                let list = arity(0, all)?;
                list.iter().all(Value::is_string).then_some(()).ok_or("\"missing\" takes a list of names")?;
                Ok(Price { steps: VARIABLE_STEPS * list.len() as u64 + 1, size: text_size(args) })
            }
            "missing_some" => match arity(2, 2)? {
                [Value::Number(_), Value::Array(names)] if names.iter().all(Value::is_string) => {
                    Ok(Price { steps: VARIABLE_STEPS * names.len() as u64 + 1, size: text_size(args) })
                }
                _ => Err("\"missing_some\" takes a number and a list of names".into()),
            },
            "==" | "===" | "!=" | "!==" | ">" | ">=" | "%" | "/" | "in" => self.scalar(arity(2, 2)?, scope, depth),
            "<" | "<=" | "substr" => self.widest_of(arity(2, 3)?, scope, depth),
            "*" => self.scalar(arity(2, all)?, scope, depth),
            "!" | "!!" => match list {
                Some([one]) => self.scalar(std::slice::from_ref(one), scope, depth),
                Some(_) => Err(format!("{operator:?} takes one operand")),
                None => self.scalar(std::slice::from_ref(args), scope, depth),
            },
            "+" | "-" | "max" | "min" => self.scalar(arity(1, all)?, scope, depth),
            "if" | "or" | "and" => self.widest_of(arity(1, all)?, scope, depth),
            "cat" | "merge" => {
                if scope.accumulator.is_some() {
                    // Each round could double what the round before built.
                    return Err(format!("{operator:?} cannot be used inside \"reduce\""));
                }
                let sum = self.list(arity(1, all)?, scope, depth)?;
                Ok(Price { steps: sum.steps.saturating_add(sum.size / BYTES_A_STEP), size: sum.size })
            }
            "map" | "filter" | "all" | "none" | "some" => {
                let [over, body] = arity(2, 2)? else { return Err(format!("{operator:?} takes 2 operands")) };
                let over = self.args(over, scope, depth + 1)?;
                let walked = self.walk(over, body, scope, depth)?;
                let size = match operator {
                    "map" => walked.size,
                    "filter" => over.size,
                    _ => 5,
                };
                Ok(Price { steps: over.steps.saturating_add(walked.steps), size })
            }
            "reduce" => {
                let [over, body, start] = arity(3, 3)? else { return Err("\"reduce\" takes 3 operands".into()) };
                let over = self.args(over, scope, depth + 1)?;
                let start = self.args(start, scope, depth + 1)?;
                // What the body answers becomes the accumulator. Nothing in it builds larger values, so that the
                // largest answer for an empty accumulator is the largest there will be.
                let probe = Scope { accumulator: Some(start.size), ..scope.element(over.size) };
                let kept = self.warnings.len();
                let answer = self.args(body, probe, depth + 1)?;
                self.warnings.truncate(kept);
                let accumulator = start.size.max(answer.size);
                let walked = self.walk(over, body, Scope { accumulator: Some(accumulator), ..scope }, depth)?;
                Ok(Price {
                    steps: over.steps.saturating_add(start.steps).saturating_add(walked.steps),
                    size: accumulator,
                })
            }
            "starts_with" | "ends_with" => self.affix(operator, arity(0, all)?, scope, depth),
            "sem_ver" => self.versions(arity(0, all)?, scope, depth),
            "fractional" => self.fractional(arity(1, all)?, scope, depth),
            _ => Err(format!("{operator:?} is no operator of flagd; see its reference for those there are")),
        }
    }

    /// The body of an operator for every element of a list.
    fn walk(&mut self, over: Price, body: &Value, scope: Scope, depth: usize) -> Result<Price, String> {
        self.walks += 1;
        if scope.lists >= LISTS {
            return Err(format!("lists are walked inside lists at most {LISTS} deep"));
        }
        // An element takes two bytes at least, with its comma.
        let rounds = over.size / 2 + 1;
        let walks = self.walks;
        let one = self.args(body, scope.element(over.size), depth + 1)?;
        let times = |price: Price| Price {
            steps: price.steps.saturating_add(1).saturating_mul(rounds),
            size: price.size.saturating_mul(rounds),
        };
        if self.walks > walks {
            return Ok(times(one));
        }
        // The body's cost grows in step with the element, and the elements share the list's bytes: as much as
        // the smallest element costs every time, and the whole list once.
        let kept = self.warnings.len();
        let least = self.args(body, scope.element(2), depth + 1)?;
        self.warnings.truncate(kept);
        Ok(times(least).and(one))
    }

    /// Operands that are all evaluated.
    fn list(&mut self, list: &[Value], scope: Scope, depth: usize) -> Result<Price, String> {
        list.iter().try_fold(Price { steps: 1, size: 0 }, |sum, item| Ok(sum.and(self.args(item, scope, depth + 1)?)))
    }

    /// Operands that are compared or counted: each is walked once, and the answer is short.
    fn scalar(&mut self, list: &[Value], scope: Scope, depth: usize) -> Result<Price, String> {
        let sum = self.list(list, scope, depth)?;
        Ok(Price { steps: sum.steps.saturating_add(sum.size / BYTES_A_STEP), size: 24 })
    }

    /// Operands of which one, or a part of it, is the answer.
    fn widest_of(&mut self, list: &[Value], scope: Scope, depth: usize) -> Result<Price, String> {
        let mut sum = Price { steps: 1, size: 24 };
        for item in list {
            let price = self.args(item, scope, depth + 1)?;
            sum.steps = sum.steps.saturating_add(price.steps);
            sum.size = sum.size.max(price.size);
        }
        Ok(sum)
    }

    fn affix(&mut self, operator: &str, list: &[Value], scope: Scope, depth: usize) -> Result<Price, String> {
        if !list.iter().all(|operand| operand.is_string() || operand.is_object()) {
            return Err(format!("{operator:?} compares texts; write them as strings"));
        }
        if list.len() != 2 {
            self.warn(format!("{operator:?} takes 2 operands; with {} the default variant is served", list.len()));
        }
        self.scalar(list, scope, depth)
    }

    fn versions(&mut self, list: &[Value], scope: Scope, depth: usize) -> Result<Price, String> {
        for operand in list.iter().step_by(2) {
            match operand {
                Value::String(text) if semver::Version::parse(text).is_ok() => {}
                Value::String(text) if version(text) => {
                    self.warn(format!("{text:?} is read as a semantic version; write major.minor.patch"));
                }
                Value::Object(members) if members.contains_key("var") => {}
                _ => return Err("\"sem_ver\" compares semantic versions, as texts or variables".into()),
            }
        }
        match list.get(1) {
            Some(Value::String(range)) if ["=", "!=", "<", "<=", ">", ">=", "^", "~"].contains(&range.as_str()) => {}
            _ => {
                self.warn("\"sem_ver\" knows = != < <= > >= ^ and ~; with another the default variant is served".into())
            }
        }
        if list.len() != 3 {
            self.warn(format!("\"sem_ver\" takes 3 operands; with {} the default variant is served", list.len()));
        }
        self.scalar(list, scope, depth)
    }

    fn fractional(&mut self, list: &[Value], scope: Scope, depth: usize) -> Result<Price, String> {
        let (unit, buckets) = match list {
            [unit @ Value::Object(_), buckets @ ..] => (Some(unit), buckets),
            buckets => (None, buckets),
        };
        self.needs_key |= unit.is_none();
        let mut sum = match unit {
            Some(unit) => self.args(unit, scope, depth + 1)?,
            None => Price { steps: VARIABLE_STEPS, size: scope.widest },
        };
        // The unit is hashed.
        sum = Price { steps: sum.steps.saturating_add(sum.size / BYTES_A_STEP), size: 24 };
        for bucket in buckets {
            let (variant, weight) = match bucket.as_array().map(Vec::as_slice) {
                Some([variant]) => (variant, None),
                Some([variant, weight]) => (variant, Some(weight)),
                _ => return Err("a bucket of \"fractional\" is a list of a variant and a weight".into()),
            };
            let variant = self.args(variant, scope, depth + 2)?;
            sum = Price { steps: sum.steps.saturating_add(variant.steps), size: sum.size.max(variant.size) };
            match weight {
                None => {}
                Some(Value::Number(number)) if number.as_f64().is_some_and(|n| n.fract() == 0.0) => {
                    if number.as_f64().is_some_and(|n| n < 0.0) {
                        self.warn(format!("the weight {number} of \"fractional\" counts as 0"));
                    }
                }
                Some(rule @ Value::Object(_)) => {
                    sum.steps = sum.steps.saturating_add(self.args(rule, scope, depth + 2)?.steps);
                }
                Some(_) => return Err("a weight of \"fractional\" is a whole number or a rule".into()),
            }
        }
        Ok(sum)
    }

    fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }
}

/// A variable: its name is searched among the members of one flat object at worst.
fn variable(args: &Value, scope: Scope) -> Result<Price, String> {
    let plain = |value: &Value| !value.is_object() && !value.is_array();
    match args {
        Value::String(name) => match name.strip_prefix("$flagd.") {
            Some("timestamp" | "flagKey") | None => {}
            Some(other) => {
                return Err(format!("there is no \"$flagd.{other}\"; there are $flagd.timestamp and $flagd.flagKey"));
            }
        },
        Value::Array(list) if matches!(list.first(), Some(Value::String(_))) && list[1..].iter().all(plain) => {}
        Value::Number(_) | Value::Null => {}
        _ => return Err("\"var\" takes a name, or a list of a name and a default".into()),
    }
    let name = args.as_array().and_then(|list| list.first()).unwrap_or(args).as_str().unwrap_or_default();
    let bytes = match scope.accumulator {
        Some(accumulator) if name.starts_with("accumulator") => accumulator,
        _ => scope.widest,
    };
    // The value as a whole needs no search.
    let steps = if name.is_empty() { 1 } else { 1 + bytes / BYTES_A_STEP };
    Ok(Price { steps, size: bytes.saturating_add(text_size(args)) })
}

fn text_size(value: &Value) -> u64 {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write!(text, "{value}");
    text.len() as u64
}

/// Whether flagd reads this as a version: a `v` before it, one or two parts only, and build metadata are fine.
fn version(text: &str) -> bool {
    let text = text.strip_prefix(['v', 'V']).unwrap_or(text);
    let core = text.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<&str> = core.split('.').collect();
    parts.len() <= 3 && parts.iter().all(|part| part.parse::<u64>().is_ok())
}

/// `starts_with` and `ends_with`: null, and so the default variant, for anything but two texts.
struct Affix(fn(&str, &str) -> bool);

impl CustomOperator for Affix {
    fn evaluate<'a>(
        &self,
        args: &[&'a DataValue<'a>],
        _: &mut EvalContext<'_, 'a>,
        arena: &'a Bump,
    ) -> datalogic_rs::Result<&'a DataValue<'a>> {
        Ok(match args {
            [text, affix] => match (text.as_str(), affix.as_str()) {
                (Some(text), Some(affix)) => arena.bool((self.0)(text, affix)),
                _ => arena.null(),
            },
            _ => arena.null(),
        })
    }
}

/// flagd's `fractional`: a subject falls into the bucket that MurmurHash3 (x86, 32 bits, seed 0) of its
/// UTF-8 text chooses, `hash * total weight >> 32`. Anything unusable answers null.
struct Fractional;

impl Fractional {
    fn choose<'a>(args: &[&'a DataValue<'a>], root: &'a DataValue<'a>) -> Option<&'a DataValue<'a>> {
        let member = |name: &str| root.get(name).and_then(DataValue::as_str);
        let implicit = || {
            let key = member("targetingKey").filter(|key| !key.is_empty())?;
            let flag = root.get("$flagd").and_then(|flagd| flagd.get("flagKey")).and_then(DataValue::as_str);
            Some(Cow::Owned(format!("{}{key}", flag.unwrap_or_default())))
        };
        let (first, rest) = args.split_first()?;
        let (unit, buckets) = match first.as_str() {
            Some(unit) => (Cow::Borrowed(unit), rest),
            None if first.is_null() => (implicit()?, rest),
            None => (implicit()?, args),
        };
        let mut total = 0u64;
        for bucket in buckets {
            total += Self::bucket(bucket)?.1;
        }
        // The limit that flagd gives for the sum.
        if total == 0 || total > i32::MAX as u64 {
            return None;
        }
        let mut chosen = (u64::from(murmur3(unit.as_bytes())) * total) >> 32;
        for bucket in buckets {
            let (variant, weight) = Self::bucket(bucket)?;
            if chosen < weight {
                return Some(variant);
            }
            chosen -= weight;
        }
        None
    }

    /// A bucket's variant and weight.
    fn bucket<'a>(bucket: &'a DataValue<'a>) -> Option<(&'a DataValue<'a>, u64)> {
        let bucket = bucket.as_array()?;
        let variant = bucket.first().filter(|variant| !variant.is_array() && !variant.is_object())?;
        let weight = match bucket.get(1) {
            None => 1.0,
            Some(weight) => weight.as_f64().filter(|weight| weight.fract() == 0.0)?.max(0.0),
        };
        (weight <= f64::from(i32::MAX)).then_some((variant, weight as u64))
    }
}

impl CustomOperator for Fractional {
    fn evaluate<'a>(
        &self,
        args: &[&'a DataValue<'a>],
        context: &mut EvalContext<'_, 'a>,
        arena: &'a Bump,
    ) -> datalogic_rs::Result<&'a DataValue<'a>> {
        Ok(Self::choose(args, context.root_input()).unwrap_or_else(|| arena.null()))
    }
}

/// MurmurHash3, x86, 32 bits, seed 0 (A. Appleby, public domain).
fn murmur3(bytes: &[u8]) -> u32 {
    let scramble = |block: u32| block.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    let mut hash = 0u32;
    let mut blocks = bytes.chunks_exact(4);
    for block in &mut blocks {
        hash ^= scramble(u32::from_le_bytes([block[0], block[1], block[2], block[3]]));
        hash = hash.rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
    }
    let tail = blocks.remainder().iter().rev().fold(0, |tail, byte| tail << 8 | u32::from(*byte));
    hash ^= scramble(tail);
    hash ^= bytes.len() as u32;
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur3_has_the_known_values() {
        for (text, hash) in [
            ("", 0),
            ("hello", 0x248b_fa47),
            ("foo", 0xf6a5_c420),
            ("The quick brown fox jumps over the lazy dog", 0x2e4f_f723),
            ("ejOoVL", 0),
            ("bY9fO-", 1),
            ("6LvT0", 0x8000_0000),
            ("ceQdGm", 0xffff_ffff),
        ] {
            assert_eq!(murmur3(text.as_bytes()), hash, "{text}");
        }
    }

    fn answer(rule: &Rule, context: &Value) -> String {
        let arena = Bump::new();
        rule.evaluate(data(context, &arena), &arena).expect("an answer").to_string()
    }

    fn refused(rule: &str) -> String {
        let rule = serde_json::from_str(rule).expect("JSON");
        match Rule::compile(&rule, &Map::new(), &mut Vec::new()) {
            Err(Refusal::Invalid(why) | Refusal::Unresolved(why)) => why,
            Ok(rule) => panic!("accepted at {} steps", rule.steps),
        }
    }

    #[test]
    fn a_rule_that_could_hold_up_the_host_is_refused() {
        let list = r#"{"var":"list"}"#;
        let twice = format!(r#"{{"map":[{list},{{"map":[{list},1]}}]}}"#);
        assert!(refused(&twice).contains("steps"));
        let often = r#"{"map":[[1],{"map":[[1],{"map":[[1],1]}]}]}"#.to_owned();
        assert!(refused(&often).contains("inside lists"));
        let doubling =
            format!(r#"{{"reduce":[{list},{{"cat":[{{"var":"accumulator"}},{{"var":"accumulator"}}]}},"a"]}}"#);
        assert!(refused(&doubling).contains("reduce"));
        let wide = format!(r#"{{"map":[{list},{{"cat":["{}"]}}]}}"#, "a".repeat(1_000));
        assert!(refused(&wide).contains("steps"));
        let pair = format!(r#"{{"reduce":[{list},[{{"var":"accumulator"}},{{"var":"accumulator"}}],"a"]}}"#);
        assert!(refused(&pair).contains("reduce"));
        let pairs =
            format!(r#"{{"reduce":[{list},{{"map":[{{"var":"accumulator"}},[{{"var":""}},{{"var":""}}]]}},["a"]]}}"#);
        assert!(refused(&pairs).contains("reduce"));
        let searched =
            format!(r#"{{"reduce":[{list},{{"in":["x",{{"if":[{{"var":"accumulator"}}]}}]}},{{"var":"text"}}]}}"#);
        assert!(refused(&searched).contains("steps"));
        let deep = format!("{}1{}", r#"{"!":"#.repeat(DEPTH + 2), "}".repeat(DEPTH + 2));
        assert!(refused(&deep).contains("deep"));
        let long = format!(r#"{{"cat":["{}"]}}"#, "a".repeat(RULE_BYTES));
        assert!(refused(&long).contains("bytes"));
    }

    #[test]
    fn an_element_of_a_list_hides_what_is_around_it() {
        // The price of a body rests on this: its variables are parts of the element.
        let rule = serde_json::json!({"map": [[{"var": "list"}, 1], {"var": "list"}]});
        let rule = Rule::compile(&rule, &Map::new(), &mut Vec::new()).unwrap_or_else(|_| panic!("simple"));
        assert_eq!(answer(&rule, &serde_json::json!({"list": "whole"})), "[null,null]");
    }

    #[test]
    fn references_cannot_circle_or_explode() {
        let compile = |evaluators: Value| {
            let rule = serde_json::json!({"if": [{"$ref": "a"}, "on"]});
            let evaluators = evaluators.as_object().cloned().expect("an object");
            match Rule::compile(&rule, &evaluators, &mut Vec::new()) {
                Ok(_) => "accepted".into(),
                Err(Refusal::Invalid(why) | Refusal::Unresolved(why)) => why,
            }
        };
        assert!(compile(serde_json::json!({"a": {"$ref": "a"}})).contains("circle"));
        assert!(compile(serde_json::json!({"a": {"!": {"$ref": "b"}}, "b": {"!": {"$ref": "a"}}})).contains("circle"));
        assert!(compile(serde_json::json!({"b": true})).contains("no evaluator"));
        let mut laughs = Map::new();
        for n in 0..40u8 {
            let next = serde_json::json!({"$ref": format!("{}", char::from(b'b' + n))});
            laughs.insert(char::from(b'a' + n).to_string(), serde_json::json!({"or": [next, next]}));
        }
        laughs.insert(char::from(b'a' + 40).to_string(), Value::Bool(true));
        assert!(compile(Value::Object(laughs)).contains("bytes"));
    }

    #[test]
    fn the_worst_context_takes_a_bounded_time() {
        let worst = |rule: Value, context: Value| {
            let rule =
                Rule::compile(&rule, &Map::new(), &mut Vec::new()).unwrap_or_else(|_| panic!("{rule} is refused"));
            let started = std::time::Instant::now();
            let answer = answer(&rule, &context);
            // Generous for a build without optimization on a busy machine; an unbounded rule takes hours.
            assert!(started.elapsed().as_secs() < 10, "{answer:?}");
        };
        let list: Vec<u8> = vec![1; CONTEXT_BYTES / 2 - 10];
        worst(
            serde_json::json!({"some": [{"var": "list"}, {"==": [{"var": ""}, 2]}]}),
            serde_json::json!({ "list": list }),
        );
        worst(
            serde_json::json!({"reduce": [{"var": "list"}, {"+": [{"var": "current"}, {"var": "accumulator"}]}, 0]}),
            serde_json::json!({ "list": list }),
        );
        let rule: Value = serde_json::json!({"some": [["a", "b", "c"], {"==": [{"var": ""}, "b"]}]});
        let rule = Rule::compile(&rule, &Map::new(), &mut Vec::new()).unwrap_or_else(|_| panic!("simple"));
        assert_eq!(answer(&rule, &serde_json::json!({})), "true");
    }
}
