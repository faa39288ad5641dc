//! A tenant on a SQLite file of its own, for the unit tests of services.

use std::sync::Arc;

use crate::effects::{Breaks, Effects, Shard};
use crate::kernel::clock::Clock;
use crate::kernel::db::{Db, Location};
use crate::kernel::error::Result;
use crate::kernel::tenant::{Plan, TenantId, TenantScope};

/// A shard with one tenant; the folder goes when this is dropped.
pub(crate) struct Bench {
    pub(crate) shard: Shard,
    pub(crate) scope: TenantScope,
    pub(crate) db: Db,
    _folder: tempfile::TempDir,
}

impl Bench {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let location = Location::Sqlite { path: folder.path().join("test.sqlite") };
        let db = Db::open(&location).await.expect("the database opens");
        let shard = Shard::new(db.store(), Clock::system(), Breaks::default());
        let scope = Self::tenant(&db, "acme").await;
        Self { shard, scope, db, _folder: folder }
    }

    async fn tenant(db: &Db, name: &str) -> TenantScope {
        let id = TenantId::new();
        sqlx::query("insert into heads (tenant_id) values ($1)")
            .bind(id.as_str().to_owned())
            .execute(db.directory())
            .await
            .expect("a head");
        TenantScope::mint(id, name.into(), Arc::new(Plan::default()))
    }

    /// Another tenant of the same shard.
    pub(crate) async fn neighbour(&self) -> TenantScope {
        Self::tenant(&self.db, "globex").await
    }

    /// Run and commit.
    pub(crate) async fn run<T>(&self, run: impl AsyncFn(&mut Effects) -> Result<T>) -> Result<T> {
        self.shard.transact(&self.scope, run).await
    }
}
