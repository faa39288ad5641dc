//! What only tests of this layer need: tenants without the services that make real ones.

use std::sync::Arc;

use crate::kernel::db::{Db, failed};
use crate::kernel::error::Result;
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
