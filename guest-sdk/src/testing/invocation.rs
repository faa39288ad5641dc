//! The invocation that runs on this thread, and the host calls it makes.

use std::cell::RefCell;
use std::collections::BTreeMap;

use rust_decimal::Decimal;

use super::grants::Grant;
use super::store::Staged;
use super::{Host, LogLine, Usage};
use crate::error::{Error, Result};
use crate::http::{Call, Response};
use crate::kv::{Entry, Page, PutOptions};
use crate::limits::Decision;
use crate::log::Level;

/// Most dimensions of one usage record.
const DIMENSIONS: usize = 16;
/// Most significant digits of a metered value.
const DIGITS: usize = 28;
/// Milliseconds that an invocation has: the platform's default.
const DEADLINE_MS: u64 = 2_000;
/// Most bytes of log that an invocation keeps.
const LOG_BYTES: usize = 64 * 1024;

thread_local! {
    static RUNNING: RefCell<Option<Running>> = const { RefCell::new(None) };
}

struct Running {
    host: Host,
    id: u64,
    now_ms: u64,
    random: u64,
    log_bytes: usize,
    staged: Staged,
    usage: Vec<Usage>,
}

/// The invocation of this thread; dropped without a commit it leaves nothing.
pub(super) struct Invocation;

impl Invocation {
    /// # Panics
    /// If one runs already: an invocation starts no other.
    pub(super) fn start(host: &Host) -> Self {
        let (id, now_ms) = {
            let mut state = host.state.borrow_mut();
            state.invocations += 1;
            (state.invocations, state.clock_ms)
        };
        RUNNING.with_borrow_mut(|running| {
            assert!(running.is_none(), "an invocation runs on this thread already; it cannot start another");
            *running = Some(Running {
                host: host.clone(),
                id,
                now_ms,
                random: id,
                log_bytes: 0,
                staged: Staged::default(),
                usage: Vec::new(),
            });
        });
        Self
    }

    pub(super) fn commit(self) -> Result<()> {
        let running = RUNNING.take().expect("it was started and runs on this thread");
        let mut state = running.host.state.borrow_mut();
        state.store.commit(running.staged, running.now_ms)?;
        state.usage.extend(running.usage);
        Ok(())
    }
}

impl Drop for Invocation {
    fn drop(&mut self) {
        RUNNING.set(None);
    }
}

/// What the host calls work on.
fn with<T>(work: impl FnOnce(&mut Running) -> T) -> T {
    RUNNING.with_borrow_mut(|running| {
        work(running.as_mut().expect("call the plugin through chalet_sdk::testing::Host: no invocation runs here"))
    })
}

/// The same for something that the manifest must grant.
fn with_grant<T>(grant: Grant, name: &str, work: impl FnOnce(&mut Running) -> Result<T>) -> Result<T> {
    with(|running| {
        if let Some(manifest) = &running.host.state.borrow().manifest {
            manifest.check(grant, name)?;
        }
        work(running)
    })
}

pub(crate) fn kv_get(collection: &str, key: &str) -> Result<Option<Entry>> {
    with_grant(Grant::KvRead, collection, |running| {
        running.staged.get(&running.host.state.borrow().store, collection, key, running.now_ms)
    })
}

pub(crate) fn kv_put(collection: &str, key: &str, value: &[u8], options: PutOptions) -> Result<()> {
    with_grant(Grant::KvWrite, collection, |running| {
        let store = &running.host.state.borrow().store;
        running.staged.put(store, (collection, key), value, options, running.now_ms)
    })
}

pub(crate) fn kv_delete(collection: &str, key: &str, if_version: Option<u64>) -> Result<bool> {
    with_grant(Grant::KvWrite, collection, |running| {
        let store = &running.host.state.borrow().store;
        running.staged.delete(store, (collection, key), if_version, running.now_ms)
    })
}

pub(crate) fn kv_list(collection: &str, prefix: &str, cursor: Option<&str>, limit: u32) -> Result<Page> {
    with_grant(Grant::KvRead, collection, |running| {
        let store = &running.host.state.borrow().store;
        running.staged.list(store, (collection, prefix), cursor, limit, running.now_ms)
    })
}

pub(crate) fn kv_increment(collection: &str, key: &str, delta: i64) -> Result<()> {
    with_grant(Grant::KvWrite, collection, |running| running.staged.increment((collection, key), delta))
}

pub(crate) fn kv_counter(collection: &str, key: &str) -> Result<Option<i64>> {
    with_grant(Grant::KvRead, collection, |running| {
        running.staged.counter(&running.host.state.borrow().store, collection, key, running.now_ms)
    })
}

pub(crate) fn meter_record(meter: &str, value: &str, dimensions: &[(&str, &str)]) -> Result<()> {
    with_grant(Grant::Meter, meter, |running| {
        let value = decimal(value)?;
        if dimensions.len() > DIMENSIONS {
            return Err(Error::Invalid(format!("usage has at most {DIMENSIONS} dimensions")));
        }
        let mut named = BTreeMap::new();
        for (name, value) in dimensions {
            if named.insert((*name).to_owned(), (*value).to_owned()).is_some() {
                return Err(Error::Invalid(format!("the dimension `{name}` is given twice")));
            }
        }
        running.usage.push(Usage { meter: meter.to_owned(), value, dimensions: named, time_ms: running.now_ms });
        Ok(())
    })
}

/// Digits with at most one point between them: no sign, no exponent, at most 28 significant digits.
fn decimal(text: &str) -> Result<Decimal> {
    let invalid = || {
        Error::Invalid(format!(
            "a metered value is a decimal such as 1 or 0.25, not negative, of at most {DIGITS} digits"
        ))
    };
    let (whole, fraction) = match text.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
        Some(_) => return Err(invalid()),
        None => (text, ""),
    };
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return Err(invalid());
    }
    let digits = whole.trim_start_matches('0').len() + fraction.len();
    if digits > DIGITS {
        return Err(invalid());
    }
    Decimal::from_str_exact(text).map_err(|_| invalid())
}

pub(crate) fn limit_check(limit: &str, key: &str, cost: u32) -> Result<Decision> {
    with_grant(Grant::Limit, limit, |running| {
        let mut state = running.host.state.borrow_mut();
        state
            .limits
            .check(limit, key, cost, running.now_ms)
            .ok_or_else(|| Error::NotFound(format!("there is no limit `{limit}`")))
    })
}

pub(crate) fn flag_evaluate(flag: &str, context: &str) -> Result<(Option<String>, Option<String>, String)> {
    with_grant(Grant::Flag, flag, |running| running.host.state.borrow().flags.evaluate(flag, context, running.now_ms))
}

pub(crate) fn secret_get(name: &str) -> Result<Vec<u8>> {
    with_grant(Grant::Secret, name, |running| {
        let state = running.host.state.borrow();
        state.secrets.get(name).cloned().ok_or_else(|| Error::NotFound(format!("the secret `{name}` is not set")))
    })
}

pub(crate) fn config_get(name: &str) -> Result<Option<String>> {
    with_grant(Grant::Config, name, |running| Ok(running.host.state.borrow().config.get(name).cloned()))
}

pub(crate) fn log_write(level: Level, message: &str) {
    with(|running| {
        let room = LOG_BYTES - running.log_bytes;
        let kept = &message[..message.floor_char_boundary(room)];
        running.log_bytes += kept.len();
        if room > 0 {
            let line = LogLine { level, message: kept.to_owned() };
            running.host.state.borrow_mut().log.push(line);
        }
    });
}

pub(crate) fn http_send(call: Call) -> Result<Response> {
    // The answering function may look at the host, so that nothing is borrowed while it runs.
    let host = with(|running| running.host.clone());
    let target = host_of(&call.url)?;
    if let Some(manifest) = &host.state.borrow().manifest {
        manifest.check(Grant::Egress, &target)?;
    }
    host.state.borrow_mut().calls.push(call.clone());
    match host.network.borrow_mut().as_mut() {
        Some(answer) => answer(&call),
        None => Err(Error::Unavailable("no network: give the host one with set_network".into())),
    }
}

/// The host's name in an absolute URL, in lower case, without its port.
fn host_of(url: &str) -> Result<String> {
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"))
        .ok_or_else(|| Error::Invalid("a URL starts with https://".into()))?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return Err(Error::Invalid("a URL has no user name in it".into()));
    }
    let host = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => authority.split(':').next().unwrap_or_default(),
    };
    if host.is_empty() {
        return Err(Error::Invalid("a URL names a host".into()));
    }
    Ok(host.to_ascii_lowercase())
}

pub(crate) fn invocation_id() -> String {
    with(|running| format!("inv-{}", running.id))
}

pub(crate) fn tenant() -> String {
    with(|running| running.host.state.borrow().tenant.clone())
}

pub(crate) fn plugin() -> String {
    with(|running| match &running.host.state.borrow().manifest {
        Some(manifest) => manifest.name.clone(),
        None => "test".to_owned(),
    })
}

pub(crate) fn version() -> String {
    with(|running| match &running.host.state.borrow().manifest {
        Some(manifest) => manifest.version.clone(),
        None => "0.0.0".to_owned(),
    })
}

pub(crate) fn now_ms() -> u64 {
    with(|running| running.now_ms)
}

pub(crate) fn remaining_ms() -> u64 {
    DEADLINE_MS
}

/// Bytes of SplitMix64 from the invocation's number: the same in every run of a test, another for every invocation.
pub(crate) fn random_bytes(length: u32) -> Vec<u8> {
    with(|running| {
        let mut bytes = Vec::with_capacity(length as usize + 8);
        while bytes.len() < length as usize {
            running.random = running.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = running.random;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            bytes.extend_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
        }
        bytes.truncate(length as usize);
        bytes
    })
}
