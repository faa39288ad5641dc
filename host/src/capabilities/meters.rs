//! `chalet:platform/meters`: what the tenant is billed for.

use wasmtime::component::Linker;

use crate::capabilities::error::grant;
use crate::engine::bindings::chalet::platform::meters;
use crate::engine::guest::{self, Call, Guest, ROW_FUEL, Refusal};
use crate::services;

pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    guest::interface!(linker, "chalet:platform/meters@0.1.0", meters, { "record" => record(meter, value, dimensions) })
}

impl meters::Host for Call<'_> {
    async fn record(&mut self, meter: String, value: String, dimensions: Vec<(String, String)>) -> Result<(), Refusal> {
        let guest = self.enter(ROW_FUEL)?;
        grant(&guest.grants().meters, "meters", &meter)?;
        // Unique in the tenant, and the same in every run: the plugin, the invocation and the call's ordinal.
        let source = format!("plugin/{}", guest.invocation().manifest.name);
        let id = format!("{}/{}", guest.invocation().id, guest.host_calls());
        Ok(services::meters::record(&mut guest.effects, &meter, &value, &dimensions, &source, &id).await?)
    }
}
