//! What only tests of this layer need: tenants without the services that make real ones.

use std::sync::Arc;

use crate::kernel::db::{Db, column, failed};
use crate::kernel::error::{Error, Result};
use crate::kernel::tenant::{Plan, TenantId, TenantScope};

/// A new tenant with this plan, and proof of it.
pub async fn tenant(db: &Db, plan: Plan) -> Result<TenantScope> {
    let id = TenantId::new();
    let mut transaction = db.tenant(&id).await?;
    sqlx::query("insert into tenants (id, name, plan, created_at_ms) values ($1, $2, $3, 0)")
        .bind(id.as_str())
        .bind(id.as_str())
        .bind(plan.name.as_str())
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
    sqlx::query("insert into heads (tenant_id) values ($1)")
        .bind(id.as_str())
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    Ok(TenantScope::mint(id.clone(), id.as_str().to_owned(), Arc::new(plan)))
}

/// The same tenant under another plan.
pub fn with_plan(scope: &TenantScope, plan: Plan) -> TenantScope {
    TenantScope::mint(scope.id().clone(), scope.name().to_owned(), Arc::new(plan))
}

/// When the sweeper is due for a tenant.
pub async fn due(db: &Db, scope: &TenantScope) -> Result<Option<i64>> {
    let row = sqlx::query("select due_at_ms from due where kind = 'sweep' and tenant_id = $1")
        .bind(scope.id().as_str())
        .fetch_optional(db.directory())
        .await
        .map_err(failed)?;
    row.map(|row| column(&row, "due_at_ms")).transpose()
}

/// Rows of a tenant in all tables of tenant data, whether it is there or not.
pub async fn left(db: &Db, scope: &TenantScope) -> Result<i64> {
    let mut transaction = db.tenant(scope.id()).await?;
    let claims = if db.shared() { " + (select count(*) from claims where tenant_id = $1)" } else { "" };
    let counted = format!(
        "select (select count(*) from heads where tenant_id = $1) + (select count(*) from rows where tenant_id = $1) \
         + (select count(*) from usage_totals where tenant_id = $1) \
         + (select count(*) from components where tenant_id = $1){claims} as n"
    );
    let query = sqlx::query(sqlx::AssertSqlSafe(counted)).bind(scope.id().as_str());
    let row = query.fetch_one(&mut *transaction).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    column(&row, "n")
}

/// Whether the directory's pool takes and gives every kind of value that its tables hold.
pub async fn directory_dialect(db: &Db) -> Result<()> {
    let digest: Vec<u8> = (0..=255).collect();
    for (id, tenant) in [("with", Some("t")), ("without", None)] {
        if let Some(tenant) = tenant {
            sqlx::query("insert into tenants (id, name, plan, created_at_ms) values ($1, $2, 'free', $3) on conflict (id) do nothing")
                .bind(tenant)
                .bind("name")
                .bind(i64::MAX)
                .execute(db.directory())
                .await
                .map_err(failed)?;
        }
        sqlx::query(
            "insert into api_keys (id, tenant_id, name, digest, scopes, created_at_ms) values ($1, $2, $3, $4, $5, $6)",
        )
        .bind(id)
        .bind(tenant)
        .bind("Schlüssel")
        .bind(digest.clone())
        .bind("a b")
        .bind(-1_i64)
        .execute(db.directory())
        .await
        .map_err(failed)?;
        let row = sqlx::query("select tenant_id, name, digest, created_at_ms from api_keys where id = $1")
            .bind(id)
            .fetch_one(db.directory())
            .await
            .map_err(failed)?;
        let found: Option<String> = column(&row, "tenant_id")?;
        let same = found.as_deref() == tenant
            && column::<String>(&row, "name")? == "Schlüssel"
            && column::<Vec<u8>>(&row, "digest")? == digest
            && column::<i64>(&row, "created_at_ms")? == -1;
        if !same {
            return Err(Error::internal("a value came back changed"));
        }
    }
    let deleted = sqlx::query("delete from api_keys where tenant_id = $1")
        .bind(Some("t"))
        .execute(db.directory())
        .await
        .map_err(failed)?;
    let none = sqlx::query("delete from api_keys where tenant_id = $1")
        .bind(None::<String>)
        .execute(db.directory())
        .await
        .map_err(failed)?;
    if (deleted.rows_affected(), none.rows_affected()) != (1, 0) {
        return Err(Error::internal("a null was compared"));
    }
    Ok(())
}
