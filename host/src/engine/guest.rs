//! A running guest's side of the host: what it is, what it may use, what it has done, and the one
//! door through which it reaches anything.
//!
//! A host function gets a [`Call`], which holds the guest's store. The only way from a `Call` to the
//! guest's state is [`Call::enter`]: it counts the call and its bytes, takes their price from the guest's fuel and
//! looks at the deadline. [`Call::leave`] turns the answer into the guest's types, and drops a guest whose snapshot
//! is gone. No other code needs to think of budgets.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use wasmtime::StoreContextMut;

use crate::effects::Effects;
use crate::engine::bindings::chalet::platform::{http, kv, log, types};
use crate::engine::limits::Limiter;
use crate::kernel::breaks::Breaks;
use crate::kernel::error::{Error, Kind};
use crate::kernel::secret::Master;
use crate::kernel::tenant::{Plan, TenantScope};
use crate::kernel::text::push_escaped;
use crate::services;
use crate::services::plugins::manifest::{Grants, Limits, Manifest};

/// Fuel that any host call costs: crossing the boundary takes about half a microsecond, in which a guest
/// computes some hundred instructions.
const CALL_FUEL: u64 = 500;
/// Fuel of reading or staging a row: some microseconds when the cache has it.
pub const ROW_FUEL: u64 = 5_000;
/// Fuel of a request to the outside, or of anything else that leaves the process.
pub const OUTSIDE_FUEL: u64 = 100_000;
/// Host calls after which a guest yields to others, although it burnt little fuel of its own: with the
/// prices above this is about as much work as a slice of fuel.
const CALLS_A_SLICE: u32 = 64;
/// Bytes that a line of log counts in addition to its text, so that empty lines are bounded too.
const LINE_BYTES: usize = 16;
/// Immediate calls whose answers are kept for a re-run; each takes about 200 bytes.
const RECORDED_CALLS: usize = 1_000;
/// Bytes of their answers. Past it the guest gets no more outside answers in this invocation.
const RECORDED_BYTES: usize = 8 << 20;

/// The services that guests reach and that hold state of their own.
pub struct Services {
    /// Feature flags.
    pub flags: Arc<services::flags::Flags>,
    /// Rate limits.
    pub limits: Arc<services::limits::Limits>,
    /// Secrets.
    pub secrets: Arc<services::secrets::Secrets>,
    /// Outgoing HTTP.
    pub egress: Arc<services::egress::Egress>,
    /// Derives the idempotency keys of outgoing calls.
    pub master: Master,
    /// What a test has switched off.
    pub breaks: Breaks,
}

/// What stays the same in all runs of one invocation.
pub struct Invocation {
    /// The invocation's id.
    pub id: String,
    /// Whom it is for.
    pub scope: TenantScope,
    /// The plugin's version: its name, number, grants and limits.
    pub manifest: Arc<Manifest>,
    /// What made it happen: an idempotency key, a delivery's id, ... or the invocation's own id. The same
    /// cause gives outgoing calls the same keys.
    pub cause: String,
    /// Whence the guest's random bytes come.
    pub seed: [u8; 32],
    /// When it has to be over, all runs counted.
    pub deadline: Instant,
    /// Told of the fuel of a run that was dropped because its caller went away.
    pub abandoned: Box<dyn Fn(u64) + Send + Sync>,
    /// How many invocations called each other until this one.
    pub depth: u8,
}

/// What one run may use.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Units of fuel, the host's prices included.
    pub fuel: u64,
    /// Bytes of linear memory.
    pub memory_bytes: u64,
    /// Host calls.
    pub host_calls: u32,
    /// Bytes that they hand over to the host, all together.
    pub host_call_bytes: u64,
    /// Requests to the outside, all runs counted.
    pub outgoing_calls: u32,
    /// Bytes of log.
    pub log_bytes: u32,
    /// Bytes of the answer's body.
    pub response_body_bytes: u64,
    /// How long the invocation may take; the caller makes [`Invocation::deadline`] of it.
    pub timeout: Duration,
}

impl Budget {
    /// The plan's limits, or the manifest's where they are lower.
    pub fn of(plan: &Plan, limits: &Limits) -> Self {
        let memory_bytes = limits.memory_mb.map_or(u64::MAX, |mb| u64::from(mb) << 20);
        Self {
            fuel: plan.fuel.min(limits.fuel.unwrap_or(u64::MAX)),
            memory_bytes: plan.memory_bytes.min(memory_bytes),
            host_calls: plan.host_calls,
            host_call_bytes: plan.host_call_bytes,
            outgoing_calls: plan.outgoing_calls,
            log_bytes: plan.log_bytes,
            response_body_bytes: plan.response_body_bytes,
            timeout: Duration::from_millis(plan.timeout_ms.min(limits.timeout_ms.unwrap_or(u64::MAX))),
        }
    }
}

/// How serious a line of log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Finer than debugging.
    Trace,
    /// For the developer.
    Debug,
    /// Normal.
    Info,
    /// Suspicious.
    Warn,
    /// Wrong.
    Error,
}

/// A line of a guest's log; control characters in it are escaped, so that it is one line anywhere.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Line {
    /// How serious.
    pub level: Level,
    /// The text.
    pub message: String,
}

/// What a run has logged.
#[derive(Clone, Debug, Default)]
pub struct Log {
    lines: Vec<Line>,
    bytes: usize,
    truncated: bool,
}

impl Log {
    /// The lines, in order.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Whether the plan's bytes were used up and the rest was dropped.
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// `message` comes from the guest.
    pub(crate) fn write(&mut self, level: Level, message: &str, limit: usize) {
        if self.truncated {
            return;
        }
        let room = limit.saturating_sub(self.bytes + LINE_BYTES);
        let mut text = String::with_capacity(message.len().min(room));
        for character in message.chars() {
            let before = text.len();
            match character {
                '\t' => text.push('\t'),
                other => push_escaped(&mut text, other),
            }
            if text.len() > room {
                text.truncate(before);
                self.truncated = true;
                break;
            }
        }
        self.truncated |= self.bytes + LINE_BYTES > limit;
        if !(self.truncated && text.is_empty()) {
            self.bytes += LINE_BYTES + text.len();
            self.lines.push(Line { level, message: text });
        }
    }
}

/// The answer of a call that took effect at once, kept so that a re-run does not repeat it.
#[derive(Clone, Debug)]
pub(crate) enum Immediate {
    /// `limits.check`.
    Decision(services::limits::Decision),
    /// `http.send`.
    Response(Result<types::Response, types::Error>),
}

impl Immediate {
    fn bytes(&self) -> usize {
        match self {
            Self::Decision(_) | Self::Response(Err(_)) => 0,
            Self::Response(Ok(response)) => {
                response.body.len()
                    + response.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
            }
        }
    }
}

/// The digest of an immediate call's arguments.
pub(crate) type Arguments = [u8; 32];

/// Immediate calls of all runs of an invocation, by the digest of their arguments and the ordinal among
/// equal ones: never by position, since another run may call in another order.
#[derive(Debug, Default)]
pub struct Recorded {
    answers: HashMap<Arguments, Vec<Immediate>>,
    made: HashMap<Arguments, usize>,
    bytes: usize,
    calls: usize,
    outgoing: u32,
}

impl Recorded {
    /// Calls that an earlier run made and this one has not (yet): they stay done.
    pub fn orphaned(&self) -> usize {
        self.calls
            - self
                .made
                .iter()
                .map(|(arguments, made)| (*made).min(self.answers.get(arguments).map_or(0, Vec::len)))
                .sum::<usize>()
    }

    /// Requests that were sent to the outside.
    pub fn outgoing(&self) -> u32 {
        self.outgoing
    }

    /// The next call with these arguments: its ordinal, and its answer if an earlier run made it.
    pub(crate) fn next(&mut self, arguments: Arguments) -> Result<(usize, Option<Immediate>), Error> {
        let made = self.made.entry(arguments).or_default();
        let n = *made;
        let known = self.answers.get(&arguments).and_then(|answers| answers.get(n)).cloned();
        if known.is_none() && (self.calls >= RECORDED_CALLS || self.bytes > RECORDED_BYTES) {
            return Err(Error::new(
                Kind::Exhausted,
                "too_many_calls",
                format!(
                    "an invocation makes at most {RECORDED_CALLS} immediate calls and receives {RECORDED_BYTES} bytes"
                ),
            ));
        }
        *made += 1;
        Ok((n, known))
    }

    /// Keep the answer of the call that [`Self::next`] announced last for these arguments.
    pub(crate) fn keep(&mut self, arguments: Arguments, answer: Immediate) {
        self.calls += 1;
        self.bytes += answer.bytes();
        self.answers.entry(arguments).or_default().push(answer);
    }

    /// Take one of the invocation's outgoing calls.
    pub(crate) fn take_outgoing(&mut self, limit: u32) -> Result<(), Error> {
        if self.outgoing >= limit {
            return Err(Error::new(
                Kind::Exhausted,
                "outgoing_calls",
                format!("an invocation sends at most {limit} requests; change the plan or send fewer"),
            ));
        }
        self.outgoing += 1;
        Ok(())
    }
}

/// The digest of a call's name and arguments, each part with its length.
pub(crate) fn arguments<'a>(operation: &'a str, parts: impl IntoIterator<Item = &'a [u8]>) -> Arguments {
    let mut digest = Sha256::new();
    for part in std::iter::once(operation.as_bytes()).chain(parts) {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

/// One run of an invocation: the data of its store.
pub struct Guest {
    /// What it reads and stages.
    pub effects: Effects,
    /// What it has logged.
    pub log: Log,
    /// Immediate calls of this and earlier runs.
    pub recorded: Recorded,
    invocation: Arc<Invocation>,
    budget: Budget,
    services: Arc<Services>,
    pub(super) limiter: Limiter,
    random: u64,
    host_calls: u32,
    host_call_bytes: u64,
}

impl Guest {
    /// The first run of an invocation.
    pub fn new(invocation: Arc<Invocation>, budget: Budget, services: Arc<Services>, effects: Effects) -> Self {
        Self {
            effects,
            log: Log::default(),
            recorded: Recorded::default(),
            limiter: Limiter::new(budget.memory_bytes),
            invocation,
            budget,
            services,
            random: 0,
            host_calls: 0,
            host_call_bytes: 0,
        }
    }

    /// Another run of the same invocation: nothing read, staged or logged, at the same time, with the same
    /// random bytes and the answers of the calls that were made. `fuel` is what this run may burn.
    #[must_use]
    pub fn again(self, fuel: u64) -> Self {
        let recorded = Recorded { made: HashMap::new(), ..self.recorded };
        let budget = Budget { fuel, ..self.budget };
        Self { recorded, ..Self::new(self.invocation, budget, self.services, self.effects.again()) }
    }

    /// What stays the same in all runs.
    pub fn invocation(&self) -> &Arc<Invocation> {
        &self.invocation
    }

    /// What this run may use.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Host calls of this run.
    pub fn host_calls(&self) -> u32 {
        self.host_calls
    }

    /// Bytes of linear memory that this run had at its end.
    pub fn memory_bytes(&self) -> usize {
        self.limiter.bytes()
    }

    pub(crate) fn grants(&self) -> &Grants {
        &self.invocation.manifest.grants
    }

    pub(crate) fn services(&self) -> Arc<Services> {
        self.services.clone()
    }

    /// What a test has switched off.
    pub(crate) fn breaks(&self) -> Breaks {
        self.services.breaks
    }

    /// What is left of the invocation's time.
    pub(crate) fn remaining(&self) -> Duration {
        self.invocation.deadline.saturating_duration_since(Instant::now())
    }

    /// The next bytes of the invocation's random stream: SHA-256 of the seed and a counter, so that a
    /// recorded seed gives the same bytes in every version of the host.
    pub(crate) fn random_bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 32);
        while bytes.len() < length {
            let block = Sha256::new().chain_update(self.invocation.seed).chain_update(self.random.to_be_bytes());
            bytes.extend_from_slice(&block.finalize());
            self.random += 1;
        }
        bytes.truncate(length);
        bytes
    }
}

/// Why the host ended a guest that did not end itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    Deadline,
    Fuel,
    HostCalls,
    HostCallBytes,
    Stale,
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Deadline => "the deadline passed",
            Self::Fuel => "the fuel is used up",
            Self::HostCalls => "too many host calls",
            Self::HostCallBytes => "too many bytes in host calls",
            Self::Stale => "the snapshot is gone",
        })
    }
}

impl std::error::Error for Stop {}

/// Why a host function does not answer: an error for the guest, or the end of the guest.
#[derive(Debug)]
pub enum Refusal {
    /// A normal answer, rendered by `capabilities/error.rs`.
    Error(Error),
    /// The guest's own form of an error, as it was recorded.
    Known(types::Error),
    /// The guest is dropped.
    Trap(wasmtime::Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<wasmtime::Error> for Refusal {
    fn from(error: wasmtime::Error) -> Self {
        Self::Trap(error)
    }
}

/// For host functions that cannot refuse: their only failure is the end of the guest.
impl From<Refusal> for wasmtime::Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Trap(error) => error,
            Refusal::Error(error) => Self::from(error),
            Refusal::Known(error) => Self::msg(format!("{error:?}")),
        }
    }
}

/// A host call in progress.
pub struct Call<'a> {
    store: StoreContextMut<'a, Guest>,
    operation: &'static str,
    bytes: u64,
}

impl<'a> Call<'a> {
    #[doc(hidden)]
    pub fn new(store: StoreContextMut<'a, Guest>, operation: &'static str, bytes: u64) -> Self {
        Self { store, operation, bytes }
    }

    /// The call's name, such as `kv.get`.
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    /// The door. `fuel` is what the call costs beyond crossing the boundary with its bytes.
    pub fn enter(&mut self, fuel: u64) -> Result<&mut Guest, Refusal> {
        let left = self.store.get_fuel()?;
        let price = CALL_FUEL.saturating_add(self.bytes).saturating_add(fuel);
        self.store.set_fuel(left.saturating_sub(price))?;
        let guest = self.store.data_mut();
        guest.host_calls = guest.host_calls.saturating_add(1);
        guest.host_call_bytes = guest.host_call_bytes.saturating_add(self.bytes);
        let stop = if guest.host_calls > guest.budget.host_calls {
            Stop::HostCalls
        } else if guest.host_call_bytes > guest.budget.host_call_bytes {
            Stop::HostCallBytes
        } else if left <= price {
            Stop::Fuel
        } else if guest.remaining().is_zero() {
            Stop::Deadline
        } else {
            return Ok(guest);
        };
        Err(Refusal::Trap(stop.into()))
    }

    /// The way back. A guest whose snapshot is gone ends here, whatever the host function answered: it
    /// must not see a state that never was.
    #[doc(hidden)]
    pub async fn leave<A: Answer>(mut self, answer: A) -> wasmtime::Result<A::Wit> {
        if self.store.data().effects.stale().is_some() {
            return Err(Stop::Stale.into());
        }
        if self.store.data().host_calls.is_multiple_of(CALLS_A_SLICE) {
            tokio::task::yield_now().await;
        }
        answer.into_wit(&mut self)
    }
}

/// What a guest hands over in a call. The host has copied it before any function of ours runs, and so it is counted
/// whatever becomes of the call.
#[doc(hidden)]
pub trait Given {
    /// Its bytes; a number's count as none, since the call itself has a price.
    fn bytes(&self) -> u64;
}

impl Given for String {
    fn bytes(&self) -> u64 {
        self.len() as u64
    }
}

impl Given for Vec<u8> {
    fn bytes(&self) -> u64 {
        self.len() as u64
    }
}

impl<T: Given> Given for Vec<T> {
    /// An element takes room also if it is empty.
    fn bytes(&self) -> u64 {
        size_of_val(self.as_slice()) as u64 + self.iter().map(Given::bytes).sum::<u64>()
    }
}

impl<T: Given> Given for Option<T> {
    fn bytes(&self) -> u64 {
        self.as_ref().map_or(0, Given::bytes)
    }
}

impl<A: Given, B: Given> Given for (A, B) {
    fn bytes(&self) -> u64 {
        self.0.bytes() + self.1.bytes()
    }
}

impl Given for http::Request {
    fn bytes(&self) -> u64 {
        self.method.bytes() + self.url.bytes() + self.headers.bytes() + self.body.bytes()
    }
}

macro_rules! without_bytes {
    ($($type:ty),*) => {
        $(impl Given for $type {
            fn bytes(&self) -> u64 {
                0
            }
        })*
    };
}

without_bytes!(u32, u64, i64, kv::PutOptions, log::Level);

/// A host function's result in the form that wasmtime hands to the guest.
#[doc(hidden)]
pub trait Answer {
    type Wit;

    fn into_wit(self, call: &mut Call<'_>) -> wasmtime::Result<Self::Wit>;
}

impl<T> Answer for Result<T, Refusal> {
    type Wit = (Result<T, types::Error>,);

    fn into_wit(self, call: &mut Call<'_>) -> wasmtime::Result<Self::Wit> {
        match self {
            Ok(value) => Ok((Ok(value),)),
            Err(refusal) => Ok((Err(types::Host::convert_error(call, refusal)?),)),
        }
    }
}

impl Answer for wasmtime::Result<()> {
    type Wit = ();

    fn into_wit(self, _: &mut Call<'_>) -> wasmtime::Result<()> {
        self
    }
}

impl Answer for wasmtime::Result<String> {
    type Wit = (String,);

    fn into_wit(self, _: &mut Call<'_>) -> wasmtime::Result<Self::Wit> {
        self.map(|value| (value,))
    }
}

impl Answer for wasmtime::Result<u64> {
    type Wit = (u64,);

    fn into_wit(self, _: &mut Call<'_>) -> wasmtime::Result<Self::Wit> {
        self.map(|value| (value,))
    }
}

impl Answer for wasmtime::Result<Vec<u8>> {
    type Wit = (Vec<u8>,);

    fn into_wit(self, _: &mut Call<'_>) -> wasmtime::Result<Self::Wit> {
        self.map(|value| (value,))
    }
}

/// Link the functions of one WIT interface: each goes through a [`Call`] to the `Host` trait generated for
/// the interface, so that the compiler checks arguments and results against the contract.
macro_rules! interface {
    ($linker:expr, $interface:literal, $module:ident, { $($name:literal => $function:ident($($argument:ident),*)),* $(,)? }) => {{
        let mut instance = $linker.instance($interface)?;
        $(instance.func_wrap_async($name, |store, ($($argument,)*)| {
            const OPERATION: &str = concat!(stringify!($module), ".", $name);
            let bytes = 0 $(+ $crate::engine::guest::Given::bytes(&$argument))*;
            let answer = async move {
                let mut call = $crate::engine::guest::Call::new(store, OPERATION, bytes);
                let answer = $module::Host::$function(&mut call, $($argument),*).await;
                call.leave(answer).await
            };
            Box::new(tracing::Instrument::instrument(answer, tracing::trace_span!("host call", operation = OPERATION)))
        })?;)*
        Ok(())
    }};
}
pub(crate) use interface;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_bounded_and_each_message_is_one_line() {
        let mut log = Log::default();
        log.write(Level::Info, "a\nb\u{1b}[31m\u{202e}\r", 200);
        assert_eq!(log.lines()[0].message, "a\\nb\\u{1b}[31m\\u{202e}\\r");
        assert!(!log.truncated());
        for _ in 0..1_000 {
            log.write(Level::Info, "", 200);
        }
        assert!(log.truncated() && log.lines().len() < 13);
        let mut log = Log::default();
        log.write(Level::Warn, &"ä".repeat(1_000), 100);
        assert!(log.truncated());
        assert_eq!(log.lines()[0].message.len(), 84);
    }

    #[test]
    fn a_recorded_call_is_found_by_its_arguments_and_ordinal() {
        let decision = |remaining| {
            Immediate::Decision(services::limits::Decision {
                allowed: true,
                limit: 9,
                remaining,
                retry_after_ms: 0,
                reset_after_ms: 0,
            })
        };
        let (a, b) = (arguments("x", [b"ab".as_slice(), b"c"]), arguments("x", [b"a".as_slice(), b"bc"]));
        assert_ne!(a, b);
        let mut recorded = Recorded::default();
        for (call, remaining) in [(a, 1), (b, 2), (a, 3)] {
            let (_, known) = recorded.next(call).unwrap();
            assert!(known.is_none());
            recorded.keep(call, decision(remaining));
        }
        recorded.made.clear();
        assert_eq!(recorded.orphaned(), 3);
        for (call, remaining) in [(a, 1), (a, 3), (b, 2)] {
            match recorded.next(call).unwrap() {
                (_, Some(Immediate::Decision(decision))) => assert_eq!(decision.remaining, remaining),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(recorded.orphaned(), 0);
        assert!(recorded.next(a).unwrap().1.is_none());
    }
}
