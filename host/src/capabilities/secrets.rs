//! `chalet:platform/secrets`: the tenant's secrets that the manifest names.

use wasmtime::component::Linker;

use crate::capabilities::error::grant;
use crate::engine::bindings::chalet::platform::secrets;
use crate::engine::guest::{self, Call, Guest, ROW_FUEL, Refusal};

pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    guest::interface!(linker, "chalet:platform/secrets@0.1.0", secrets, { "get" => get(name) })
}

impl secrets::Host for Call<'_> {
    async fn get(&mut self, name: String) -> Result<Vec<u8>, Refusal> {
        let guest = self.enter(ROW_FUEL)?;
        grant(&guest.grants().secrets, "secrets", &name)?;
        Ok(guest.services().secrets.get(&guest.effects, &name).await?)
    }
}
