//! `chalet:platform/context`: who and when the invocation is.

use wasmtime::component::Linker;

use crate::engine::bindings::chalet::platform::context;
use crate::engine::guest::{self, Call, Guest};

/// Bytes of one `random-bytes`, as the interface says.
const RANDOM_BYTES: u32 = 65_536;

pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    guest::interface!(linker, "chalet:platform/context@0.1.0", context, {
        "invocation-id" => invocation_id(),
        "tenant" => tenant(),
        "plugin" => plugin(),
        "version" => version(),
        "now-ms" => now_ms(),
        "random-bytes" => random_bytes(length),
        "remaining-ms" => remaining_ms(),
    })
}

impl context::Host for Call<'_> {
    async fn invocation_id(&mut self) -> wasmtime::Result<String> {
        Ok(self.enter(0)?.invocation().id.clone())
    }

    async fn tenant(&mut self) -> wasmtime::Result<String> {
        Ok(self.enter(0)?.invocation().scope.name().to_owned())
    }

    async fn plugin(&mut self) -> wasmtime::Result<String> {
        Ok(self.enter(0)?.invocation().manifest.name.clone())
    }

    async fn version(&mut self) -> wasmtime::Result<String> {
        Ok(self.enter(0)?.invocation().manifest.version.to_string())
    }

    async fn now_ms(&mut self) -> wasmtime::Result<u64> {
        Ok(u64::try_from(self.enter(0)?.effects.now_ms()).unwrap_or(0))
    }

    async fn random_bytes(&mut self, length: u32) -> wasmtime::Result<Vec<u8>> {
        // The result has no error in it, so a length out of bounds is a trap.
        wasmtime::ensure!(length <= RANDOM_BYTES, "random-bytes gives at most {RANDOM_BYTES} bytes a call");
        Ok(self.enter(u64::from(length) * 4)?.random_bytes(length as usize))
    }

    async fn remaining_ms(&mut self) -> wasmtime::Result<u64> {
        Ok(u64::try_from(self.enter(0)?.remaining().as_millis()).unwrap_or(u64::MAX))
    }
}
