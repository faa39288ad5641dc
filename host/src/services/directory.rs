//! Tenants and plans: what has to be known before a tenant's own rows can be read.
//!
//! Promises: a tenant's name is unique; its internal id is never reused; another node sees a change
//! within [`FRESH`]. It holds no tenant data and leaves API keys to `keys`.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use serde::Serialize;

use crate::effects::Key;
use crate::kernel::db::{Db, column, failed};
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::tenant::{Plan, TenantId, TenantScope};

/// How long a node may act on what it has read: a revoked key or changed plan holds this long elsewhere.
pub const FRESH: Duration = Duration::from_secs(2);
/// Tenants whose scope is kept in memory.
const CACHED: u64 = 10_000;
/// Characters of a tenant's name: it has to fit into a host name's label.
const NAME_LENGTH: usize = 63;

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
    by_name: Cache<String, Option<TenantScope>>,
    by_id: Cache<TenantId, Option<TenantScope>>,
    plans: Cache<String, Arc<Plan>>,
}

impl Directory {
    /// The directory in this database.
    pub fn new(db: Db) -> Self {
        let builder = || Cache::builder().max_capacity(CACHED).time_to_live(FRESH);
        Self {
            db,
            by_name: builder().build(),
            by_id: Cache::builder().max_capacity(CACHED).time_to_live(FRESH).build(),
            plans: Cache::builder().max_capacity(1_000).time_to_live(FRESH).build(),
        }
    }

    /// Make a tenant on a plan. `first` may give a row that it has from the start, with its expiry: what
    /// answers a repetition of the request that made it.
    pub async fn create(
        &self,
        name: &str,
        plan: &str,
        now_ms: i64,
        first: impl FnOnce(&TenantId) -> Result<Option<(Key, Vec<u8>, i64)>>,
    ) -> Result<TenantScope> {
        check_name(name)?;
        let plan = self.plan(plan).await?;
        let id = TenantId::new();
        let first = first(&id)?;
        let mut transaction = self.db.tenant(&id).await?;
        let made = sqlx::query(
            "insert into tenants (id, name, plan, created_at_ms) values ($1, $2, $3, $4) on conflict (name) do nothing",
        )
        .bind(id.as_str())
        .bind(name)
        .bind(plan.name.as_str())
        .bind(now_ms)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        if made.rows_affected() == 0 {
            return Err(Error::new(Kind::Conflict, "tenant_exists", "there is a tenant of this name; choose another"));
        }
        sqlx::query("insert into heads (tenant_id, seq) values ($1, 1)")
            .bind(id.as_str())
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        if let Some((key, value, expires_at_ms)) = first {
            sqlx::query("insert into rows (tenant_id, space, key, value, version, expires_at_ms) values ($1, $2, $3, $4, 1, $5)")
                .bind(id.as_str())
                .bind(key.space.as_str().to_owned())
                .bind(key.key.to_vec())
                .bind(value)
                .bind(expires_at_ms)
                .execute(&mut *transaction)
                .await
                .map_err(failed)?;
            sqlx::query("insert into due (kind, tenant_id, due_at_ms) values ('sweep', $1, $2)")
                .bind(id.as_str())
                .bind(expires_at_ms)
                .execute(&mut *transaction)
                .await
                .map_err(failed)?;
        }
        transaction.commit().await.map_err(failed)?;
        let scope = TenantScope::mint(id.clone(), name.into(), plan);
        self.by_name.invalidate(name);
        self.by_id.invalidate(&id);
        Ok(scope)
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
        let row = sqlx::query("select id, name, plan from tenants where name = $1")
            .bind(name)
            .fetch_optional(self.db.directory())
            .await
            .map_err(failed)?;
        let scope = self.scope_of(row).await?;
        self.by_name.insert(name.into(), scope.clone());
        Ok(scope)
    }

    /// The scope of the tenant that a row names.
    pub async fn by_id(&self, id: &TenantId) -> Result<Option<TenantScope>> {
        if let Some(known) = self.by_id.get(id) {
            return Ok(known);
        }
        let row = sqlx::query("select id, name, plan from tenants where id = $1")
            .bind(id.as_str())
            .fetch_optional(self.db.directory())
            .await
            .map_err(failed)?;
        let scope = self.scope_of(row).await?;
        self.by_id.insert(id.clone(), scope.clone());
        Ok(scope)
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

    /// Put a tenant on another plan.
    pub async fn change_plan(&self, scope: &TenantScope, plan: &str) -> Result<()> {
        let plan = self.plan(plan).await?;
        sqlx::query("update tenants set plan = $2 where id = $1")
            .bind(scope.id().as_str())
            .bind(plan.name.as_str())
            .execute(self.db.directory())
            .await
            .map_err(failed)?;
        self.forget(scope);
        Ok(())
    }

    /// Delete a tenant with all that it stored. Commits that come after it find no tenant.
    pub async fn delete(&self, scope: &TenantScope) -> Result<()> {
        let mut transaction = self.db.tenant(scope.id()).await?;
        for statement in [
            "delete from heads where tenant_id = $1",
            "delete from rows where tenant_id = $1",
            "delete from usage_totals where tenant_id = $1",
            "delete from components where tenant_id = $1",
            "delete from due where tenant_id = $1",
            "delete from api_keys where tenant_id = $1",
            "delete from tenants where id = $1",
        ] {
            sqlx::query(statement).bind(scope.id().as_str()).execute(&mut *transaction).await.map_err(failed)?;
        }
        transaction.commit().await.map_err(failed)?;
        self.forget(scope);
        Ok(())
    }

    fn forget(&self, scope: &TenantScope) {
        self.by_name.invalidate(scope.name());
        self.by_id.invalidate(scope.id());
    }

    /// A plan by its name. The plan `free` exists without having been stored.
    pub async fn plan(&self, name: &str) -> Result<Arc<Plan>> {
        if let Some(known) = self.plans.get(name) {
            return Ok(known);
        }
        let row = sqlx::query("select body from plans where name = $1")
            .bind(name)
            .fetch_optional(self.db.directory())
            .await
            .map_err(failed)?;
        let plan = match row {
            Some(row) => plan_of(&row)?,
            None if name == Plan::default().name => Plan::default(),
            None => {
                return Err(Error::new(
                    Kind::Invalid,
                    "no_such_plan",
                    "there is no plan of this name; GET /v1/plans lists them",
                ));
            }
        };
        let plan = Arc::new(plan);
        self.plans.insert(name.into(), plan.clone());
        Ok(plan)
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

    /// Define or redefine a plan; tenants on it have the new limits within [`FRESH`].
    pub async fn put_plan(&self, plan: &Plan) -> Result<()> {
        check_name(&plan.name)?;
        let body = serde_json::to_string(plan).map_err(Error::internal)?;
        sqlx::query(
            "insert into plans (name, body) values ($1, $2) on conflict (name) do update set body = excluded.body",
        )
        .bind(plan.name.as_str())
        .bind(body)
        .execute(self.db.directory())
        .await
        .map_err(failed)?;
        self.plans.invalidate(&plan.name);
        self.by_name.invalidate_all();
        self.by_id.invalidate_all();
        Ok(())
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
