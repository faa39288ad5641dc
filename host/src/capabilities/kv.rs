//! `chalet:platform/kv`: the tenant's collections.

use wasmtime::component::Linker;

use crate::capabilities::error::{grant, missing};
use crate::engine::bindings::chalet::platform::kv;
use crate::engine::guest::{self, Call, Guest, ROW_FUEL, Refusal};
use crate::kernel::error::Error;
use crate::services;

pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    guest::interface!(linker, "chalet:platform/kv@0.1.0", kv, {
        "get" => get(collection, key),
        "put" => put(collection, key, value, options),
        "delete" => delete(collection, key, if_version),
        "list" => list(collection, prefix, cursor, limit),
        "increment" => increment(collection, key, delta),
        "counter" => counter(collection, key),
    })
}

impl kv::Host for Call<'_> {
    async fn get(&mut self, collection: String, key: String) -> Result<Option<kv::Entry>, Refusal> {
        let guest = self.reading(&collection, 1)?;
        Ok(services::kv::get(&mut guest.effects, &collection, &key).await?.map(Into::into))
    }

    async fn put(
        &mut self,
        collection: String,
        key: String,
        value: Vec<u8>,
        options: kv::PutOptions,
    ) -> Result<(), Refusal> {
        let guest = self.writing(&collection)?;
        let effects = &mut guest.effects;
        Ok(services::kv::put(effects, &collection, &key, value.into(), options.ttl_ms, options.if_version).await?)
    }

    async fn delete(&mut self, collection: String, key: String, if_version: Option<u64>) -> Result<bool, Refusal> {
        let guest = self.writing(&collection)?;
        Ok(services::kv::delete(&mut guest.effects, &collection, &key, if_version).await?)
    }

    async fn list(
        &mut self,
        collection: String,
        prefix: String,
        cursor: Option<String>,
        limit: u32,
    ) -> Result<kv::Page, Refusal> {
        // A page costs its rows, not more than the interface gives.
        let guest = self.reading(&collection, u64::from(limit.clamp(1, services::kv::PAGE)))?;
        let page = services::kv::list(&mut guest.effects, &collection, &prefix, cursor.as_deref(), limit).await?;
        Ok(kv::Page { entries: page.entries.into_iter().map(Into::into).collect(), cursor: page.cursor })
    }

    async fn increment(&mut self, collection: String, key: String, delta: i64) -> Result<(), Refusal> {
        let guest = self.writing(&collection)?;
        Ok(services::kv::increment(&mut guest.effects, &collection, &key, delta).await?)
    }

    async fn counter(&mut self, collection: String, key: String) -> Result<Option<i64>, Refusal> {
        let guest = self.reading(&collection, 1)?;
        Ok(services::kv::counter(&mut guest.effects, &collection, &key).await?)
    }
}

impl Call<'_> {
    fn reading(&mut self, collection: &str, rows: u64) -> Result<&mut Guest, Refusal> {
        let guest = self.enter(ROW_FUEL * rows)?;
        let grants = guest.grants();
        if grants.kv.iter().chain(&grants.kv_read).any(|granted| granted == collection) {
            return Ok(guest);
        }
        Err(missing("kv_read", collection).into())
    }

    fn writing(&mut self, collection: &str) -> Result<&mut Guest, Refusal> {
        let guest = self.enter(ROW_FUEL)?;
        let granted: Result<(), Error> = grant(&guest.grants().kv, "kv", collection);
        granted?;
        Ok(guest)
    }
}

impl From<services::kv::Entry> for kv::Entry {
    fn from(entry: services::kv::Entry) -> Self {
        Self { key: entry.key, value: entry.value.into(), version: entry.version }
    }
}
