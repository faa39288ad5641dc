//! What nobody can see any more is removed some time later: expired rows, component bytes that no
//! version names, and records of invocations beyond what a tenant keeps.

use bytes::Bytes;

use crate::effects::{Shard, Space};
use crate::kernel::db::{Db, column, failed};
use crate::kernel::error::Result;
use crate::kernel::tenant::{TenantId, TenantScope};
use crate::services::directory::Directory;
use crate::services::invocations;
use crate::services::plugins::components;

/// How long an expired row stays: longer than any invocation whose clock still shows it alive.
pub const GRACE_MS: i64 = 10 * 60_000;
/// The longest time between two looks at a tenant that has, or had, rows that expire.
const LOOK_MS: i64 = 3_600_000;
/// Tenants of one run.
const TENANTS: i64 = 100;
/// Rows of one transaction: half of what it may stage.
const ROWS: i64 = 500;

/// Remove what is due, of at most 100 tenants. Safe on every node at once: a row that was written anew
/// meanwhile stays, and removing a row twice changes nothing.
pub async fn run(db: &Db, shard: &Shard, directory: &Directory) -> Result<()> {
    let before_ms = shard.clock().now_ms() - GRACE_MS;
    let due = sqlx::query(
        "select tenant_id, due_at_ms from due where kind = 'sweep' and due_at_ms <= $1 order by due_at_ms limit $2",
    )
    .bind(before_ms)
    .bind(TENANTS)
    .fetch_all(db.directory())
    .await
    .map_err(failed)?;
    for row in &due {
        let tenant = TenantId::from_row(&column::<String>(row, "tenant_id")?);
        let due_at_ms: i64 = column(row, "due_at_ms")?;
        sweep(db, shard, directory, &tenant, due_at_ms, before_ms).await?;
    }
    Ok(())
}

async fn sweep(
    db: &Db,
    shard: &Shard,
    directory: &Directory,
    tenant: &TenantId,
    due_at_ms: i64,
    before_ms: i64,
) -> Result<()> {
    let Some(scope) = directory.by_id(tenant).await? else {
        // Deleted some time ago: what was on its way then has come, such as an upload's bytes, and no more will.
        directory.purge(shard, tenant).await?;
        sqlx::query("delete from due where kind = 'sweep' and tenant_id = $1")
            .bind(tenant.as_str())
            .execute(db.directory())
            .await
            .map_err(failed)?;
        return Ok(());
    };
    loop {
        let mut transaction = db.tenant(tenant).await?;
        let expired = sqlx::query(
            "select space, key from rows where tenant_id = $1 and expires_at_ms <= $2 order by expires_at_ms limit $3",
        )
        .bind(tenant.as_str())
        .bind(before_ms)
        .bind(ROWS)
        .fetch_all(&mut *transaction)
        .await
        .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        if expired.is_empty() {
            break;
        }
        let mut effects = shard.begin(&scope);
        for row in &expired {
            let space = Space::from_row(column(row, "space")?);
            effects.sweep(space.key(Bytes::from(column::<Vec<u8>>(row, "key")?)), before_ms)?;
        }
        shard.commit(effects.into_set(None, None)).await?;
    }
    components::sweep(db, shard, &scope).await?;
    trim(db, shard, &scope, invocations::KEPT).await?;
    // The next look is due when the next row is; but at least once an hour, because a commit may have written
    // a row that expires earlier while this ran.
    let mut transaction = db.tenant(tenant).await?;
    let next =
        sqlx::query("select min(expires_at_ms) as next from rows where tenant_id = $1 and expires_at_ms is not null")
            .bind(tenant.as_str())
            .fetch_one(&mut *transaction)
            .await
            .map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    let next_ms = column::<Option<i64>>(&next, "next")?.unwrap_or(i64::MAX).min(before_ms + LOOK_MS);
    sqlx::query("update due set due_at_ms = $3 where kind = 'sweep' and tenant_id = $1 and due_at_ms = $2")
        .bind(tenant.as_str())
        .bind(due_at_ms)
        .bind(next_ms)
        .execute(db.directory())
        .await
        .map_err(failed)?;
    Ok(())
}

/// Remove what is older than the latest `kept` records of invocations.
pub async fn trim(db: &Db, shard: &Shard, scope: &TenantScope, kept: u32) -> Result<()> {
    loop {
        let mut transaction = db.tenant(scope.id()).await?;
        let oldest =
            sqlx::query("select key from rows where tenant_id = $1 and space = $2 order by key limit $3 offset $4")
                .bind(scope.id().as_str())
                .bind(invocations::RECORDS.as_str())
                .bind(ROWS)
                .bind(i64::from(kept))
                .fetch_all(&mut *transaction)
                .await
                .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        if oldest.is_empty() {
            return Ok(());
        }
        let mut effects = shard.begin(scope);
        for row in &oldest {
            invocations::remove(&mut effects, column(row, "key")?)?;
        }
        shard.commit(effects.into_set(None, None)).await?;
    }
}
