//! The component's side of the WIT contract: every import as a function of the shape the public modules call, and the
//! exports that call a [`Plugin`].
//!
//! The in-memory host in `testing` has the same functions; the public modules know neither.

pub(crate) mod bindings;
mod heap;
#[cfg(feature = "getrandom")]
mod random;

use std::marker::PhantomData;

use bindings::imports::chalet::platform as wit;

use crate::error::{Error, Failure, LimitHit, Result};
use crate::http::{Call, Headers, Request, Response};
use crate::kv::{Entry, Page, PutOptions};
use crate::limits::Decision;
use crate::log::Level;
use crate::webhook::Delivery;
use crate::{Plugin, log};

/// A plugin as the generated bindings want it.
pub struct Exported<P>(PhantomData<P>);

impl<P: Plugin> bindings::http_plugin::exports::chalet::platform::http_trigger::Guest for Exported<P> {
    fn handle(
        request: bindings::http_plugin::exports::chalet::platform::http_trigger::Request,
    ) -> std::result::Result<wit::types::Response, wit::types::Failure> {
        log_panics();
        let request = Request {
            method: request.method,
            path: request.path,
            query: request.query,
            headers: Headers(request.headers),
            body: request.body,
            route: request.route,
            params: request.params,
        };
        P::http(request).map(Into::into).map_err(fail)
    }
}

impl<P: Plugin> bindings::webhook_plugin::exports::chalet::platform::webhook_trigger::Guest for Exported<P> {
    fn handle(
        delivery: bindings::webhook_plugin::exports::chalet::platform::webhook_trigger::Delivery,
    ) -> std::result::Result<Option<wit::types::Response>, wit::types::Failure> {
        log_panics();
        let delivery = Delivery {
            source: delivery.source,
            id: delivery.id,
            event_type: delivery.event_type,
            headers: Headers(delivery.headers),
            body: delivery.body,
        };
        P::webhook_with_answer(delivery).map(|answer| answer.map(Into::into)).map_err(fail)
    }
}

/// A panic ends in a trap, which carries no message; so the message is logged first.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| log::error(panic)));
}

fn fail(error: Error) -> wit::types::Failure {
    match error.failure() {
        Failure::Retry(after_ms) => wit::types::Failure::Retry(after_ms),
        Failure::Reject(reason) => wit::types::Failure::Reject(reason),
    }
}

impl From<wit::types::Error> for Error {
    fn from(error: wit::types::Error) -> Self {
        use wit::types::Error as Refusal;
        match error {
            Refusal::Denied(what) => Error::Denied(what),
            Refusal::NotFound(what) => Error::NotFound(what),
            Refusal::Conflict(what) => Error::Conflict(what),
            Refusal::Invalid(what) => Error::Invalid(what),
            Refusal::RateLimited(hit) => Error::RateLimited(hit.into()),
            Refusal::BudgetExhausted(hit) => Error::BudgetExhausted(hit.into()),
            Refusal::Unavailable(what) => Error::Unavailable(what),
            Refusal::Internal(what) => Error::Internal(what),
        }
    }
}

impl From<wit::types::LimitInfo> for LimitHit {
    fn from(info: wit::types::LimitInfo) -> Self {
        LimitHit { limit: info.limit, remaining: info.remaining, retry_after_ms: info.retry_after_ms }
    }
}

impl From<Response> for wit::types::Response {
    fn from(response: Response) -> Self {
        wit::types::Response { status: response.status, headers: response.headers.0, body: response.body }
    }
}

impl From<wit::kv::Entry> for Entry {
    fn from(entry: wit::kv::Entry) -> Self {
        Entry { key: entry.key, value: entry.value, version: entry.version }
    }
}

pub(crate) fn kv_get(collection: &str, key: &str) -> Result<Option<Entry>> {
    Ok(wit::kv::get(collection, key)?.map(Into::into))
}

pub(crate) fn kv_put(collection: &str, key: &str, value: &[u8], options: PutOptions) -> Result<()> {
    let options = wit::kv::PutOptions { ttl_ms: options.ttl_ms, if_version: options.if_version };
    Ok(wit::kv::put(collection, key, value, options)?)
}

pub(crate) fn kv_delete(collection: &str, key: &str, if_version: Option<u64>) -> Result<bool> {
    Ok(wit::kv::delete(collection, key, if_version)?)
}

pub(crate) fn kv_list(collection: &str, prefix: &str, cursor: Option<&str>, limit: u32) -> Result<Page> {
    let page = wit::kv::list(collection, prefix, cursor, limit)?;
    Ok(Page { entries: page.entries.into_iter().map(Into::into).collect(), cursor: page.cursor })
}

pub(crate) fn kv_increment(collection: &str, key: &str, delta: i64) -> Result<()> {
    Ok(wit::kv::increment(collection, key, delta)?)
}

pub(crate) fn kv_counter(collection: &str, key: &str) -> Result<Option<i64>> {
    Ok(wit::kv::counter(collection, key)?)
}

pub(crate) fn meter_record(meter: &str, value: &str, dimensions: &[(&str, &str)]) -> Result<()> {
    let dimensions: Vec<_> = dimensions.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    Ok(wit::meters::record(meter, value, &dimensions)?)
}

pub(crate) fn limit_check(limit: &str, key: &str, cost: u32) -> Result<Decision> {
    let decision = wit::limits::check(limit, key, cost)?;
    Ok(Decision {
        allowed: decision.allowed,
        limit: decision.limit,
        remaining: decision.remaining,
        retry_after_ms: decision.retry_after_ms,
        reset_after_ms: decision.reset_after_ms,
    })
}

pub(crate) fn flag_evaluate(flag: &str, context: &str) -> Result<(Option<String>, Option<String>, String)> {
    let evaluation = wit::flags::evaluate(flag, context)?;
    Ok((evaluation.value, evaluation.variant, evaluation.reason))
}

pub(crate) fn secret_get(name: &str) -> Result<Vec<u8>> {
    Ok(wit::secrets::get(name)?)
}

pub(crate) fn config_get(name: &str) -> Result<Option<String>> {
    Ok(wit::config::get(name)?)
}

pub(crate) fn log_write(level: Level, message: &str) {
    let level = match level {
        Level::Trace => wit::log::Level::Trace,
        Level::Debug => wit::log::Level::Debug,
        Level::Info => wit::log::Level::Info,
        Level::Warn => wit::log::Level::Warn,
        Level::Error => wit::log::Level::Error,
    };
    wit::log::write(level, message);
}

pub(crate) use wit::context::{invocation_id, now_ms, plugin, random_bytes, remaining_ms, tenant, version};

pub(crate) fn http_send(call: Call) -> Result<Response> {
    let response = wit::http::send(&wit::http::Request {
        method: call.method,
        url: call.url,
        headers: call.headers.0,
        body: call.body,
        timeout_ms: call.timeout_ms,
    })?;
    Ok(Response { status: response.status, headers: Headers(response.headers), body: response.body })
}
