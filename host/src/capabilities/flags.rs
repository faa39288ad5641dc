//! `chalet:platform/flags`: feature flags, evaluated in the host.

use wasmtime::component::Linker;

use crate::capabilities::error::grant;
use crate::engine::bindings::chalet::platform::flags;
use crate::engine::guest::{self, Call, Guest, ROW_FUEL, Refusal};
use crate::kernel::error::Error;

/// Bytes of an evaluation's context: some hundred attributes.
const CONTEXT_BYTES: usize = 64 << 10;

pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    guest::interface!(linker, "chalet:platform/flags@0.1.0", flags, { "evaluate" => evaluate(flag, context) })
}

impl flags::Host for Call<'_> {
    async fn evaluate(&mut self, flag: String, context: String) -> Result<flags::Evaluation, Refusal> {
        let guest = self.enter(ROW_FUEL + 8 * context.len() as u64)?;
        grant(&guest.grants().flags, "flags", &flag)?;
        let context = object(&context)?;
        let evaluation = guest.services().flags.evaluate(&mut guest.effects, &flag, context).await?;
        Ok(flags::Evaluation {
            value: evaluation.value.map(|value| value.to_string()),
            variant: evaluation.variant.map(|variant| variant.to_string()),
            reason: evaluation.reason.as_str().to_owned(),
        })
    }
}

/// `context` comes from the guest.
fn object(context: &str) -> Result<serde_json::Value, Error> {
    if context.len() > CONTEXT_BYTES {
        return Err(Error::invalid(format!("a flag's context has at most {CONTEXT_BYTES} bytes")));
    }
    let value: serde_json::Value = serde_json::from_str(context)
        .map_err(|error| Error::invalid(format!("a flag's context is no JSON: {error}")))?;
    if value.is_object() { Ok(value) } else { Err(Error::invalid("a flag's context is a JSON object")) }
}
