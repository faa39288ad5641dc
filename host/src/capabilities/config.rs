//! `chalet:platform/config`: the plugin's settings in this tenant.

use wasmtime::component::Linker;

use crate::capabilities::error::grant;
use crate::engine::bindings::chalet::platform::config;
use crate::engine::guest::{self, Call, Guest, ROW_FUEL, Refusal};
use crate::services::settings;

pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    guest::interface!(linker, "chalet:platform/config@0.1.0", config, { "get" => get(name) })
}

impl config::Host for Call<'_> {
    async fn get(&mut self, name: String) -> Result<Option<String>, Refusal> {
        let guest = self.enter(ROW_FUEL)?;
        grant(&guest.grants().config, "config", &name)?;
        let invocation = guest.invocation().clone();
        Ok(settings::get(&guest.effects, &invocation.manifest.name, &name).await?)
    }
}
