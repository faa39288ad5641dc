//! Rows in PostgreSQL.
use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::effects::row::{Key, Range, Row};
use crate::effects::set::{Compute, Facts, Set, Tag, Verdict};
use crate::effects::{Batching, Breaks, Store};
use crate::kernel::error::Result;
use crate::kernel::tenant::TenantScope;

/// A PostgreSQL database as a store.
pub(crate) struct PostgresStore;

impl PostgresStore {
    pub(crate) async fn open(_url: &str) -> Result<Self> {
        unimplemented!()
    }
}

impl Store for PostgresStore {
    fn read<'a>(&'a self, _: &'a TenantScope, _: &'a [Key]) -> BoxFuture<'a, Result<(Tag, Vec<Option<Row>>)>> {
        unimplemented!()
    }
    fn scan<'a>(&'a self, _: &'a TenantScope, _: &'a Range, _: i64, _: usize) -> BoxFuture<'a, Result<(Tag, Vec<(Bytes, Row)>)>> {
        unimplemented!()
    }
    fn holds<'a>(&'a self, _: &'a TenantScope, _: &'a Facts) -> BoxFuture<'a, Result<(Tag, Option<Key>)>> {
        unimplemented!()
    }
    fn commit<'a>(&'a self, _: &'a [Set], _: Breaks) -> BoxFuture<'a, Result<Vec<Verdict>>> {
        unimplemented!()
    }
    fn usage<'a>(&'a self, _: &'a TenantScope, _: i64, _: i64) -> BoxFuture<'a, Result<Vec<Compute>>> {
        unimplemented!()
    }
    fn head<'a>(&'a self, _: &'a TenantScope) -> BoxFuture<'a, Result<(Tag, u64)>> {
        unimplemented!()
    }
    fn batching(&self) -> Batching {
        Batching { lanes: 8, mixed: false, exclusive: false }
    }
}
