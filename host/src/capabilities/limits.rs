//! `chalet:platform/limits`: the tenant's rate limits. A check counts at once, and once: a re-run of the
//! invocation gets the answer that the first run got.

use wasmtime::component::Linker;

use crate::capabilities::error::grant;
use crate::engine::bindings::chalet::platform::limits;
use crate::engine::guest::{self, Call, Guest, Immediate, ROW_FUEL, Refusal};
use crate::services::limits::Decision;

pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    guest::interface!(linker, "chalet:platform/limits@0.1.0", limits, { "check" => check(limit, key, cost) })
}

impl limits::Host for Call<'_> {
    async fn check(&mut self, limit: String, key: String, cost: u32) -> Result<limits::Decision, Refusal> {
        let guest = self.enter(ROW_FUEL)?;
        grant(&guest.grants().limits, "limits", &limit)?;
        let arguments = guest::arguments("limits.check", [limit.as_bytes(), key.as_bytes(), &cost.to_be_bytes()]);
        let (_, known) = guest.recorded.next(arguments)?;
        if let Some(Immediate::Decision(decision)) = known {
            return Ok(decision.into());
        }
        let decision = guest.services().limits.check(&mut guest.effects, &limit, &key, cost).await?;
        guest.recorded.keep(arguments, Immediate::Decision(decision));
        Ok(decision.into())
    }
}

impl From<Decision> for limits::Decision {
    fn from(decision: Decision) -> Self {
        Self {
            allowed: decision.allowed,
            limit: decision.limit,
            remaining: decision.remaining,
            retry_after_ms: decision.retry_after_ms,
            reset_after_ms: decision.reset_after_ms,
        }
    }
}
