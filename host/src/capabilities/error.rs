//! `chalet:platform/types`: how an error of the host looks to a guest. Nothing else makes this decision.

use wasmtime::component::Linker;

use crate::engine::bindings::chalet::platform::types;
use crate::engine::guest::{Call, Guest, Refusal};
use crate::kernel::error::{Error, Kind};

/// The interface has types and no functions.
pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.instance("chalet:platform/types@0.1.0").map(drop)
}

impl types::Host for Call<'_> {
    fn convert_error(&mut self, refusal: Refusal) -> wasmtime::Result<types::Error> {
        match refusal {
            Refusal::Trap(error) => Err(error),
            Refusal::Known(error) => Ok(error),
            Refusal::Error(error) => Ok(to_wit(&error, self.operation())),
        }
    }
}

/// The guest's form of an error of the host's.
pub(super) fn to_wit(error: &Error, operation: &str) -> types::Error {
    let message = || error.message().to_owned();
    let info = || types::LimitInfo {
        limit: error.code().to_owned(),
        remaining: 0,
        retry_after_ms: error.after().map_or(0, |after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
    };
    match error.kind() {
        Kind::Denied | Kind::Unauthenticated => types::Error::Denied(message()),
        Kind::NotFound => types::Error::NotFound(message()),
        Kind::Conflict => types::Error::Conflict(message()),
        Kind::Invalid => types::Error::Invalid(message()),
        Kind::Limited => types::Error::RateLimited(info()),
        Kind::Exhausted => types::Error::BudgetExhausted(info()),
        Kind::Unavailable => types::Error::Unavailable(message()),
        Kind::Failed | Kind::Internal => {
            tracing::error!(?error, operation, "a host call failed");
            types::Error::Internal(message())
        }
    }
}

/// The manifest grants no such thing. `list` is the name of the list under `[grants]` that would.
pub(super) fn grant(granted: &[String], list: &str, name: &str) -> Result<(), Error> {
    if granted.iter().any(|granted| granted == name) {
        return Ok(());
    }
    Err(missing(list, name))
}

/// As [`grant`] says it. `name` comes from the guest.
pub(super) fn missing(list: &str, name: &str) -> Error {
    let shown: String = name.chars().take(100).collect();
    Error::new(
        Kind::Denied,
        "not_granted",
        format!("the manifest does not grant this; add {shown:?} to [grants] {list} in plugin.toml"),
    )
}
