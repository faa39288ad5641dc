//! A database of either engine below any service, for tests of transactions alone.

use chalet::effects::{Breaks, Shard, testing};
use chalet::kernel::clock::Clock;
use chalet::kernel::db::{Db, Location};
use chalet::kernel::tenant::{Plan, TenantScope};

use crate::kit::postgres;

/// One open database, and a clock that the test moves.
pub struct Bench {
    /// The database.
    pub db: Db,
    /// The time of its shards.
    pub clock: Clock,
    location: Location,
    _folder: Option<tempfile::TempDir>,
}

impl Bench {
    /// A new SQLite file.
    pub async fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let location = Location::Sqlite { path: folder.path().join("chalet.sqlite") };
        Self::on(location, Some(folder)).await
    }

    /// A new PostgreSQL database.
    pub async fn postgres() -> Self {
        Self::on(Location::Postgres { url: postgres::database().await.url }, None).await
    }

    async fn on(location: Location, folder: Option<tempfile::TempDir>) -> Self {
        let db = Db::open(&location).await.expect("the database opens");
        let clock = Clock::system();
        // Time stands except for what passes on this process's own monotonic clock.
        db.follow(&clock).await.expect("the database says its time");
        Self { db, clock, location, _folder: folder }
    }

    /// Whether several processes may use it.
    pub fn shared(&self) -> bool {
        self.db.shared()
    }

    /// A shard on it.
    pub fn shard(&self) -> Shard {
        self.broken(Breaks::default())
    }

    /// A shard that breaks some promises.
    pub fn broken(&self, breaks: Breaks) -> Shard {
        Shard::new(self.db.store(), self.clock.clone(), breaks)
    }

    /// Another node on the same database, with connections and a cache of its own.
    pub async fn other_node(&self, breaks: Breaks) -> Shard {
        let db = Db::open(&self.location).await.expect("the database opens once more");
        Shard::new(db.store(), self.clock.clone(), breaks)
    }

    /// A new tenant on the plan `free`.
    pub async fn tenant(&self) -> TenantScope {
        self.tenant_on(Plan::default()).await
    }

    /// A new tenant on this plan.
    pub async fn tenant_on(&self, plan: Plan) -> TenantScope {
        testing::tenant(&self.db, plan).await.expect("a tenant is made")
    }
}
