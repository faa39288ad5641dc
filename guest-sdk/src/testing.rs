//! An in-memory host, so that `cargo test` tests a plugin natively.
//!
//! [`Host`] keeps what the platform would keep: key-value entries, usage, limits, flags, secrets, settings and a log.
//! A call through it is an invocation with the rules of the real one: what the handler staged is committed when it
//! answers ok (over HTTP: with a status below 500), else it never happened; the clock and the randomness are fixed for
//! its length. [`Host::from_manifest`] also enforces the manifest's grants and matches its routes.
//!
//! What it leaves out: it runs one invocation at a time, so that nothing ever conflicts and nothing is run again, and it
//! bounds neither time, memory nor storage.
//!
//! ```
//! use chalet_sdk::{http::{Request, Response}, kv, testing::Host, Plugin, Result};
//!
//! struct Counter;
//! impl Plugin for Counter {
//!     fn http(_: Request) -> Result<Response> {
//!         kv::increment("counts", "calls", 1)?;
//!         Ok(Response::text("counted"))
//!     }
//! }
//!
//! let host = Host::new();
//! assert_eq!(host.http::<Counter>(Request::get("/")).unwrap().status(), 200);
//! assert_eq!(host.get_bytes("counts", "calls").unwrap(), b"1");
//! ```

mod flags;
mod grants;
mod invocation;
mod limits;
mod store;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use rust_decimal::Decimal;
use serde::de::DeserializeOwned;

use crate::http::{Call, Request, Response};
use crate::log::Level;
use crate::webhook::Delivery;
use crate::{Plugin, Result};

use grants::Manifest;
use invocation::Invocation;
use store::Store;

pub(crate) use invocation::{
    config_get, flag_evaluate, http_send, invocation_id, kv_counter, kv_delete, kv_get, kv_increment, kv_list, kv_put,
    limit_check, log_write, meter_record, now_ms, plugin, random_bytes, remaining_ms, secret_get, tenant, version,
};

/// The clock of a new host, in milliseconds since the Unix epoch: 1 January 2026, so that tests see round times.
const START_MS: u64 = 1_767_225_600_000;

/// One committed use of a meter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// The meter's name.
    pub meter: String,
    /// The quantity.
    pub value: Decimal,
    /// Names and values that it can be grouped by.
    pub dimensions: BTreeMap<String, String>,
    /// Milliseconds since the Unix epoch.
    pub time_ms: u64,
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// How much it matters.
    pub level: Level,
    /// What was written.
    pub message: String,
}

/// Answers outgoing calls in the place of the network.
type Network = Box<dyn FnMut(&Call) -> Result<Response>>;

/// What a host keeps over its invocations.
struct State {
    tenant: String,
    manifest: Option<Manifest>,
    clock_ms: u64,
    invocations: u64,
    store: Store,
    usage: Vec<Usage>,
    limits: limits::Limits,
    flags: flags::Flags,
    secrets: BTreeMap<String, Vec<u8>>,
    config: BTreeMap<String, String>,
    log: Vec<LogLine>,
    calls: Vec<Call>,
}

/// A host of one tenant, in memory. Clones share what they keep.
#[derive(Clone)]
pub struct Host {
    state: Rc<RefCell<State>>,
    network: Rc<RefCell<Option<Network>>>,
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    /// A host without a manifest: everything is granted, and no route is matched.
    pub fn new() -> Self {
        Self::with(None)
    }

    /// A host that grants what the manifest names and nothing else, and matches its routes.
    ///
    /// `plugin_toml` is the text of `plugin.toml`: `Host::from_manifest(include_str!("../plugin.toml"))`.
    ///
    /// # Panics
    /// If it is no manifest.
    pub fn from_manifest(plugin_toml: &str) -> Self {
        match Manifest::parse(plugin_toml) {
            Ok(manifest) => Self::with(Some(manifest)),
            Err(error) => panic!("plugin.toml: {error}"),
        }
    }

    fn with(manifest: Option<Manifest>) -> Self {
        let state = State {
            tenant: "acme".to_owned(),
            manifest,
            clock_ms: START_MS,
            invocations: 0,
            store: Store::default(),
            usage: Vec::new(),
            limits: limits::Limits::default(),
            flags: flags::Flags::default(),
            secrets: BTreeMap::new(),
            config: BTreeMap::new(),
            log: Vec::new(),
            calls: Vec::new(),
        };
        Self { state: Rc::new(RefCell::new(state)), network: Rc::new(RefCell::new(None)) }
    }

    /// Call the plugin's http trigger in an invocation of its own.
    ///
    /// With a manifest the request's route and parameters are those of the route that matches; without a match the
    /// answer is 404 and the plugin is not called.
    ///
    /// # Errors
    /// What the handler returned, or [`Error::Invalid`](crate::Error::Invalid) if the commit was refused.
    pub fn http<P: Plugin>(&self, mut request: Request) -> Result<Response> {
        let route =
            self.state.borrow().manifest.as_ref().map(|manifest| manifest.route(&request.method, &request.path));
        match route {
            Some(None) => return Ok(Response::not_found()),
            Some(Some((route, params))) => {
                request.route = route;
                request.params = params;
            }
            None => {}
        }
        self.invoke(|| P::http(request), |response| response.status() < 500)
    }

    /// Call the plugin's webhook trigger in an invocation of its own; `None` is the plain answer 200.
    ///
    /// # Errors
    /// What the handler returned, or [`Error::Invalid`](crate::Error::Invalid) if the commit was refused.
    pub fn webhook<P: Plugin>(&self, delivery: Delivery) -> Result<Option<Response>> {
        self.invoke(
            || P::webhook_with_answer(delivery),
            |answer| answer.as_ref().is_none_or(|answer| answer.status() < 500),
        )
    }

    /// Run a function as an invocation, which commits if it answers ok.
    ///
    /// # Errors
    /// What the function returned, or [`Error::Invalid`](crate::Error::Invalid) if the commit was refused.
    pub fn run<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.invoke(work, |_| true)
    }

    fn invoke<T>(&self, work: impl FnOnce() -> Result<T>, commits: impl FnOnce(&T) -> bool) -> Result<T> {
        let running = Invocation::start(self);
        let answer = work()?;
        if commits(&answer) {
            running.commit()?;
        }
        Ok(answer)
    }

    /// The host's time in milliseconds since the Unix epoch; it moves only by [`Host::advance`] and [`Host::set_time`].
    pub fn now_ms(&self) -> u64 {
        self.state.borrow().clock_ms
    }

    /// Set the host's time, in milliseconds since the Unix epoch.
    pub fn set_time(&self, now_ms: u64) {
        self.state.borrow_mut().clock_ms = now_ms;
    }

    /// Let time pass.
    pub fn advance(&self, time: Duration) {
        self.state.borrow_mut().clock_ms += u64::try_from(time.as_millis()).expect("a test's time is short");
    }

    /// Name the tenant; it is `acme` otherwise.
    pub fn set_tenant(&self, tenant: &str) {
        self.state.borrow_mut().tenant = tenant.to_owned();
    }

    /// Set a secret.
    pub fn set_secret(&self, name: &str, value: impl AsRef<[u8]>) {
        self.state.borrow_mut().secrets.insert(name.to_owned(), value.as_ref().to_vec());
    }

    /// Set a setting.
    pub fn set_config(&self, name: &str, value: &str) {
        self.state.borrow_mut().config.insert(name.to_owned(), value.to_owned());
    }

    /// Define a limit: `units` in every `period`, all of which may be taken at once.
    ///
    /// # Panics
    /// If the units or the period are 0.
    pub fn set_limit(&self, name: &str, units: u64, period: Duration) {
        assert!(units > 0 && !period.is_zero(), "a limit holds some units in some time");
        self.state.borrow_mut().limits.define(name, units, period);
    }

    /// Set the tenant's flags: a flagd document.
    ///
    /// # Panics
    /// If it is no flagd document.
    pub fn set_flags(&self, flagd_document: &str) {
        match flags::Flags::parse(flagd_document) {
            Ok(flags) => self.state.borrow_mut().flags = flags,
            Err(error) => panic!("flags: {error}"),
        }
    }

    /// Answer outgoing calls by this function; without one they fail as unavailable.
    ///
    /// It sees calls to hosts that the manifest names only.
    pub fn set_network(&self, answer: impl FnMut(&Call) -> Result<Response> + 'static) {
        *self.network.borrow_mut() = Some(Box::new(answer));
    }

    /// Write an entry as if an earlier invocation had committed it.
    pub fn put_bytes(&self, collection: &str, key: &str, value: impl AsRef<[u8]>) {
        let state = &mut *self.state.borrow_mut();
        state.store.commit_put(collection, key, value.as_ref());
    }

    /// The committed bytes of an entry that has not expired; a counter reads as its decimal text.
    pub fn get_bytes(&self, collection: &str, key: &str) -> Option<Vec<u8>> {
        let state = self.state.borrow();
        state.store.get(collection, key, state.clock_ms).map(|entry| entry.value)
    }

    /// The committed value of an entry, read as JSON.
    ///
    /// # Panics
    /// If it is not a `T`.
    pub fn get<T: DeserializeOwned>(&self, collection: &str, key: &str) -> Option<T> {
        let bytes = self.get_bytes(collection, key)?;
        match serde_json::from_slice(&bytes) {
            Ok(value) => Some(value),
            Err(error) => panic!("{collection}/{key}: {error}: {}", String::from_utf8_lossy(&bytes)),
        }
    }

    /// The keys of a collection's committed entries that have not expired, in the order of their bytes.
    pub fn keys(&self, collection: &str) -> Vec<String> {
        let state = self.state.borrow();
        state.store.keys(collection, state.clock_ms)
    }

    /// The sum that was committed to a meter.
    pub fn meter(&self, name: &str) -> Decimal {
        self.state.borrow().usage.iter().filter(|usage| usage.meter == name).map(|usage| usage.value).sum()
    }

    /// Everything that was committed to meters, in its order.
    pub fn usage(&self) -> Vec<Usage> {
        self.state.borrow().usage.clone()
    }

    /// The log of all invocations, failed ones included.
    pub fn log(&self) -> Vec<LogLine> {
        self.state.borrow().log.clone()
    }

    /// The outgoing calls that were sent, in their order.
    pub fn calls(&self) -> Vec<Call> {
        self.state.borrow().calls.clone()
    }
}
