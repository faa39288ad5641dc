//! What the host calls: one file per exported WIT interface, and the one way to call any of them.
//!
//! A call is plain data in and plain data out. What a guest answers is checked here, so that nobody behind
//! this file has to.

pub mod http;
pub mod webhook;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::engine::bindings::chalet::platform::types;
use crate::engine::guest::Guest;
use crate::engine::{Engine, Program};
pub use crate::engine::{Failure, Spent};
use crate::kernel::error::Result;

/// Bytes of a guest's reason that are kept; a caller reads a sentence, not more.
const REASON_BYTES: usize = 1 << 10;

/// A call of one of a plugin's triggers. Its input is shared by all runs of an invocation.
#[derive(Clone, Debug)]
pub enum Call {
    /// An HTTP request.
    Http(Arc<http::Request>),
    /// A webhook whose signature was verified.
    Webhook(Arc<webhook::Delivery>),
}

/// What a trigger answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The response.
    Http(http::Response),
    /// The response, if the plugin has its own.
    Webhook(Option<http::Response>),
}

/// A run that is over. The instance is gone.
pub struct Ended {
    /// The answer, or why there is none.
    pub outcome: Result<Answer, Failure>,
    /// What the run read, staged, logged and sent.
    pub guest: Guest,
    /// What the run used.
    pub spent: Spent,
}

/// Run a guest once. An error is a fault of the host that lost the guest with its effects: the engine has
/// ended, or panicked outside of the guest. Dropping the future ends the guest.
pub async fn run(engine: &Engine, program: Arc<Program>, guest: Guest, call: Call) -> Result<Ended> {
    let body_bytes = guest.budget().response_body_bytes;
    Ok(match call {
        Call::Http(request) => {
            let run = engine
                .run(program, guest, |program, store, instance| {
                    Box::pin(async move { http::call(program, store, instance, &request).await })
                })
                .await?;
            let outcome = answered(run.outcome).and_then(|response| http::check(response, body_bytes));
            Ended { outcome: outcome.map(Answer::Http), guest: run.guest, spent: run.spent }
        }
        Call::Webhook(delivery) => {
            let run = engine
                .run(program, guest, |program, store, instance| {
                    Box::pin(async move { webhook::call(program, store, instance, &delivery).await })
                })
                .await?;
            let outcome = answered(run.outcome)
                .and_then(|response| response.map(|response| http::check(response, body_bytes)).transpose());
            Ended { outcome: outcome.map(Answer::Webhook), guest: run.guest, spent: run.spent }
        }
    })
}

/// A guest's own failure is a failure of the run.
fn answered<T>(outcome: Result<Result<T, types::Failure>, Failure>) -> Result<T, Failure> {
    outcome?.map_err(|failure| match failure {
        types::Failure::Retry(after_ms) => Failure::Retry { after_ms },
        types::Failure::Reject(reason) => {
            Failure::Reject(reason[..reason.floor_char_boundary(REASON_BYTES)].to_owned())
        }
    })
}

/// The program does not export the trigger that it was called for.
fn not_exported(trigger: &str) -> wasmtime::Error {
    wasmtime::Error::msg(format!("the plugin exports no {trigger} trigger"))
}
