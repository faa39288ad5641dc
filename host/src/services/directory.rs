//! Tenants and plans: what has to be known before a tenant's own rows can be read.
//!
//! Promises: a tenant's name is unique; its internal id is never reused; another node sees a change
//! within [`FRESH`]. Changes are staged, and happen with the record of them in the operator's audit log: every such
//! transaction has read that log's head before it reads the directory, so that they happen one after another. It
//! holds no tenant data and leaves API keys to `keys`.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::effects::{Effects, Shard, Statement, Verdict};
use crate::kernel::cache::Cache;
use crate::kernel::db::{Db, column, failed};
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::tenant::{Plan, TenantId, TenantScope};

/// How long a node may act on what it has read: a revoked key or changed plan holds this long elsewhere.
pub const FRESH: Duration = Duration::from_secs(2);
/// Tenants whose scope is kept in memory.
const CACHED: usize = 20_000;
/// Plans that are.
const PLANS: usize = 1_000;
/// Characters of a tenant's name: it has to fit into a host name's label.
const NAME_LENGTH: usize = 63;

/// The id under which the operator's own rows stand; a tenant's has no such letters.
const PLATFORM: &str = "platform";

/// What a deleted tenant leaves behind, table by table: a look whether there is any, and what removes a piece of it. A piece
/// has at most 512 rows and about 1 MiB, so that it takes a batch of commits no longer than its own sets do. It ends at a
/// key, because a range of keys is what both engines find without a look at the rest.
const LEFT: &[(&str, &str)] = &[
    (
        "select tenant_id from rows where tenant_id = $1 limit 1",
        "delete from rows where tenant_id = $1 and (space, key) <= ( \
           select space, key from ( \
             select space, key, sum(bytes) over (order by space, key) - bytes as before from ( \
               select space, key, coalesce(length(value), 0) as bytes from rows where tenant_id = $1 \
               order by space, key limit 512 \
             ) as first \
           ) as piece where before < 1048576 order by space desc, key desc limit 1 \
         )",
    ),
    (
        "select tenant_id from usage_totals where tenant_id = $1 limit 1",
        "delete from usage_totals where tenant_id = $1 and (plugin, hour_ms) <= ( \
           select plugin, hour_ms from ( \
             select plugin, hour_ms from usage_totals where tenant_id = $1 order by plugin, hour_ms limit 512 \
           ) as piece order by plugin desc, hour_ms desc limit 1 \
         )",
    ),
    (
        // Two chunks have 1 MiB.
        "select tenant_id from components where tenant_id = $1 limit 1",
        "delete from components where tenant_id = $1 and (digest, chunk) <= ( \
           select digest, chunk from ( \
             select digest, chunk from components where tenant_id = $1 order by digest, chunk limit 2 \
           ) as piece order by digest desc, chunk desc limit 1 \
         )",
    ),
];

/// The same of claims, which are rows only where several processes share a database.
const CLAIMS: (&str, &str) = (
    "select tenant_id from claims where tenant_id = $1 limit 1",
    "delete from claims where tenant_id = $1 and scope <= ( \
       select max(scope) from (select scope from claims where tenant_id = $1 order by scope limit 512) as piece \
     )",
);

/// A tenant as its row has it.
#[derive(Clone, Debug, Serialize)]
pub struct Tenant {
    /// The internal id.
    #[serde(skip)]
    pub id: TenantId,
    /// The name that people use.
    pub name: String,
    /// The plan's name.
    pub plan: String,
    /// When it was made.
    pub created_at_ms: i64,
}

/// The tenants and plans of this database.
#[derive(Clone)]
pub struct Directory {
    db: Db,
    platform: TenantScope,
    by_name: Cache<String, Option<TenantScope>>,
    by_id: Cache<TenantId, Option<TenantScope>>,
    plans: Cache<String, Arc<Plan>>,
}

impl Directory {
    /// The directory in this database.
    pub fn new(db: Db) -> Self {
        Self {
            // No tenant has an empty name.
            platform: TenantScope::mint(TenantId::from_row(PLATFORM), String::new(), Arc::default()),
            by_name: Cache::following(CACHED, FRESH, db.changes()),
            by_id: Cache::following(CACHED, FRESH, db.changes()),
            plans: Cache::following(PLANS, FRESH, db.changes()),
            db,
        }
    }

    /// The scope of what is no tenant's: the operator's audit log, and the answers to the operator's requests.
    pub fn platform(&self) -> &TenantScope {
        &self.platform
    }

    /// Stage a new tenant on a plan.
    pub async fn create(&self, effects: &mut Effects, name: &str, plan: &str) -> Result<TenantScope> {
        check_name(name)?;
        let plan = self.plan(plan).await?;
        let known = sqlx::query("select id from tenants where name = $1").bind(name);
        if known.fetch_optional(self.db.directory()).await.map_err(failed)?.is_some() {
            return Err(Error::new(Kind::Conflict, "tenant_exists", "there is a tenant of this name; choose another"));
        }
        let id = TenantId::new();
        effects.attach(
            Statement::new("insert into tenants (id, name, plan, created_at_ms) values ($1, $2, $3, $4)")
                .text(id.as_str())
                .text(name)
                .text(plan.name.as_str())
                .number(effects.now_ms()),
        );
        effects.attach(Statement::new("insert into heads (tenant_id) values ($1)").text(id.as_str()).of(&id));
        Ok(TenantScope::mint(id, name.into(), plan))
    }

    /// The scope of a tenant that a credential or a path names.
    pub async fn by_name(&self, name: &str) -> Result<Option<TenantScope>> {
        if let Some(known) = self.by_name.get(name) {
            return Ok(known);
        }
        // A name that cannot exist is neither asked for nor kept.
        if check_name(name).is_err() {
            return Ok(None);
        }
        let read = async || {
            let row = sqlx::query("select id, name, plan from tenants where name = $1").bind(name);
            self.scope_of(row.fetch_optional(self.db.directory()).await.map_err(failed)?).await
        };
        self.by_name.get_or_read(name, read).await
    }

    /// The scope of the tenant that a row names.
    pub async fn by_id(&self, id: &TenantId) -> Result<Option<TenantScope>> {
        if id.as_str() == PLATFORM {
            return Ok(Some(self.platform.clone()));
        }
        let read = async || {
            let row = sqlx::query("select id, name, plan from tenants where id = $1").bind(id.as_str());
            self.scope_of(row.fetch_optional(self.db.directory()).await.map_err(failed)?).await
        };
        self.by_id.get_or_read(id, read).await
    }

    async fn scope_of(&self, row: Option<sqlx::any::AnyRow>) -> Result<Option<TenantScope>> {
        let Some(row) = row else { return Ok(None) };
        let (id, name, plan): (String, String, String) =
            (column(&row, "id")?, column(&row, "name")?, column(&row, "plan")?);
        Ok(Some(TenantScope::mint(TenantId::from_row(&id), name, self.plan(&plan).await?)))
    }

    /// One tenant's row.
    pub async fn describe(&self, scope: &TenantScope) -> Result<Tenant> {
        let row = sqlx::query("select id, name, plan, created_at_ms from tenants where id = $1")
            .bind(scope.id().as_str())
            .fetch_optional(self.db.directory())
            .await
            .map_err(failed)?
            .ok_or_else(|| Error::not_found("no such tenant"))?;
        tenant_of(&row)
    }

    /// Tenants in the order of their names, behind `after`.
    pub async fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<Tenant>> {
        let rows =
            sqlx::query("select id, name, plan, created_at_ms from tenants where name > $1 order by name limit $2")
                .bind(after.unwrap_or(""))
                .bind(limit as i64)
                .fetch_all(self.db.directory())
                .await
                .map_err(failed)?;
        rows.iter().map(tenant_of).collect()
    }

    /// Stage that a tenant is on another plan; the tenant as it is then.
    pub async fn change_plan(&self, effects: &mut Effects, scope: &TenantScope, plan: &str) -> Result<Tenant> {
        let plan = self.plan(plan).await?;
        let tenant = self.describe(scope).await?;
        effects.attach(
            Statement::new("update tenants set plan = $2 where id = $1")
                .text(scope.id().as_str())
                .text(plan.name.as_str()),
        );
        Ok(Tenant { plan: plan.name.clone(), ..tenant })
    }

    /// Stage that a tenant is no more. Commits that come after it find no tenant; what it stored is for
    /// [`Self::purge`] to remove, which is due from then on.
    pub async fn delete(&self, effects: &mut Effects, scope: &TenantScope) -> Result<()> {
        self.describe(scope).await?;
        let id = scope.id();
        for sql in [
            // The head first: whoever commits for the tenant holds it.
            "delete from heads where tenant_id = $1",
            "delete from api_keys where tenant_id = $1",
            "delete from tenants where id = $1",
        ] {
            effects.attach(Statement::new(sql).text(id.as_str()).of(id));
        }
        effects.attach(
            Statement::new(
                "insert into due (kind, tenant_id, due_at_ms) values ('sweep', $1, $2) \
                 on conflict (kind, tenant_id) do update set due_at_ms = excluded.due_at_ms",
            )
            .text(id.as_str())
            .number(effects.now_ms()),
        );
        Ok(())
    }

    /// Remove all that a deleted tenant stored; nothing of one that has a head. It happens in pieces, between which others
    /// commit, and may end between two of them and begin again.
    pub async fn purge(&self, shard: &Shard, id: &TenantId) -> Result<()> {
        // An id is never used again: without a head it stays without one.
        if self.any(id, "select tenant_id from heads where tenant_id = $1").await? {
            return Ok(());
        }
        for &(any, piece) in LEFT.iter().chain(self.db.shared().then_some(&CLAIMS)) {
            while self.any(id, any).await? {
                let mut effects = shard.begin(&self.platform);
                effects.attach(Statement::new(piece).text(id.as_str()).of(id));
                if let Verdict::Refused(error) = shard.commit(effects.into_set(None, None)).await? {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn any(&self, id: &TenantId, sql: &'static str) -> Result<bool> {
        let mut transaction = self.db.tenant(id).await?;
        let found = sqlx::query(sql).bind(id.as_str()).fetch_optional(&mut *transaction).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        Ok(found.is_some())
    }

    /// Read a tenant anew, after it was made, changed or deleted.
    pub fn forget(&self, name: &str) {
        self.by_name.remove(name);
        self.by_id.clear();
    }

    /// A plan by its name. The plan `free` exists without having been stored.
    pub async fn plan(&self, name: &str) -> Result<Arc<Plan>> {
        let none =
            || Error::new(Kind::Invalid, "no_such_plan", "there is no plan of this name; GET /v1/plans lists them");
        let read = async || {
            // A name that cannot exist may be no text to the database.
            check_name(name).map_err(|_| none())?;
            let row = sqlx::query("select body from plans where name = $1").bind(name);
            match row.fetch_optional(self.db.directory()).await.map_err(failed)? {
                Some(row) => Ok(Arc::new(plan_of(&row)?)),
                None if name == Plan::default().name => Ok(Arc::default()),
                None => Err(none()),
            }
        };
        self.plans.get_or_read(name, read).await
    }

    /// All plans, by name.
    pub async fn plans(&self) -> Result<Vec<Plan>> {
        let rows =
            sqlx::query("select body from plans order by name").fetch_all(self.db.directory()).await.map_err(failed)?;
        let mut plans = rows.iter().map(plan_of).collect::<Result<Vec<_>>>()?;
        if plans.iter().all(|plan| plan.name != Plan::default().name) {
            plans.insert(0, Plan::default());
        }
        Ok(plans)
    }

    /// Stage a new or redefined plan; tenants on it have the new limits within [`FRESH`].
    pub fn put_plan(&self, effects: &mut Effects, plan: &Plan) -> Result<()> {
        check_name(&plan.name)?;
        let body = serde_json::to_string(plan).map_err(Error::internal)?;
        effects.attach(
            Statement::new(
                "insert into plans (name, body) values ($1, $2) on conflict (name) do update set body = excluded.body",
            )
            .text(plan.name.as_str())
            .text(body.as_str()),
        );
        Ok(())
    }

    /// Read a plan, and the tenants that may be on it, anew.
    pub fn forget_plan(&self, name: &str) {
        self.plans.remove(name);
        self.by_name.clear();
        self.by_id.clear();
    }
}

/// Names of tenants and plans.
fn check_name(name: &str) -> Result<()> {
    let bytes = name.as_bytes();
    let fits = (1..=NAME_LENGTH).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-';
    if fits {
        Ok(())
    } else {
        Err(Error::invalid("a name is 1 to 63 of a-z, 0-9 and -, and neither begins nor ends with -"))
    }
}

fn tenant_of(row: &sqlx::any::AnyRow) -> Result<Tenant> {
    Ok(Tenant {
        id: TenantId::from_row(&column::<String>(row, "id")?),
        name: column(row, "name")?,
        plan: column(row, "plan")?,
        created_at_ms: column(row, "created_at_ms")?,
    })
}

fn plan_of(row: &sqlx::any::AnyRow) -> Result<Plan> {
    serde_json::from_str(&column::<String>(row, "body")?).map_err(Error::internal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effects::Space;
    use crate::services::testing::Bench;

    #[tokio::test]
    async fn what_was_read_stands_until_the_directory_changes() {
        let bench = Bench::new().await;
        let directory = Directory::new(bench.db.clone());
        let read = Cache::following(1, Duration::ZERO, bench.db.changes());
        let read = async |n: u32| read.get_or_read("what was read", async || Ok(n)).await.unwrap();
        assert_eq!(read(1).await, 1);
        let own = async |effects: &mut Effects| effects.put(Space::named("kv/c").key("k"), "v", None);
        bench.run(own).await.unwrap();
        assert_eq!(read(2).await, 1, "what a tenant commits for itself is not the directory's");
        let create = async |effects: &mut Effects| directory.create(effects, "globex", "free").await;
        bench.shard.transact(directory.platform(), create).await.unwrap();
        assert_eq!(read(3).await, 3);
    }
}
