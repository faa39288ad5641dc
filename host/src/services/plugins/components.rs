//! The bytes of uploaded components, in chunks, by tenant and digest: written before the version row that
//! names them, and swept when no row does.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::effects::Shard;
use crate::kernel::db::{Db, column, failed};
use crate::kernel::error::{Error, Result};
use crate::kernel::tenant::TenantScope;

/// Bytes of a chunk: small enough that a write does not hold SQLite's writer for long.
const CHUNK: usize = 512 << 10;
/// How long a component may be stored before a version row names it: many times the longest compilation.
pub const UNNAMED_MS: i64 = 3_600_000;

/// SHA-256 of a component, in hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Store a component; storing it again only makes it young again, so that the sweeper leaves it alone until
/// a version row names it.
pub async fn store(db: &Db, scope: &TenantScope, digest: &str, bytes: &[u8], now_ms: i64) -> Result<()> {
    sqlx::query(
        "insert into due (kind, tenant_id, due_at_ms) values ('sweep', $1, $2) on conflict (kind, tenant_id) do nothing",
    )
    .bind(scope.id().as_str())
    .bind(now_ms + UNNAMED_MS)
    .execute(db.directory())
    .await
    .map_err(failed)?;
    for (n, chunk) in bytes.chunks(CHUNK).enumerate() {
        let mut transaction = db.tenant(scope.id()).await?;
        sqlx::query(
            "insert into components (tenant_id, digest, chunk, bytes, stored_at_ms) values ($1, $2, $3, $4, $5) \
             on conflict (tenant_id, digest, chunk) do update set stored_at_ms = excluded.stored_at_ms",
        )
        .bind(scope.id().as_str())
        .bind(digest)
        .bind(n as i64)
        .bind(chunk.to_vec())
        .bind(now_ms)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
    }
    Ok(())
}

/// A stored component. What was stored in part, or has changed on the disk, is an error.
pub async fn load(db: &Db, scope: &TenantScope, digest: &str) -> Result<Bytes> {
    let mut transaction = db.tenant(scope.id()).await?;
    let rows = sqlx::query("select bytes from components where tenant_id = $1 and digest = $2 order by chunk")
        .bind(scope.id().as_str())
        .bind(digest)
        .fetch_all(&mut *transaction)
        .await
        .map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    let mut bytes = Vec::new();
    for row in &rows {
        bytes.extend_from_slice(&column::<Vec<u8>>(row, "bytes")?);
    }
    if self::digest(&bytes) != digest {
        return Err(Error::internal(format!("the stored component {digest} is incomplete or was changed")));
    }
    Ok(bytes.into())
}

/// Remove what no version names: deleted plugins, and uploads that ended between bytes and row.
pub async fn sweep(db: &Db, shard: &Shard, scope: &TenantScope) -> Result<()> {
    let before_ms = shard.clock().now_ms() - UNNAMED_MS;
    let mut transaction = db.tenant(scope.id()).await?;
    let rows = sqlx::query("select distinct digest from components where tenant_id = $1 and stored_at_ms <= $2")
        .bind(scope.id().as_str())
        .bind(before_ms)
        .fetch_all(&mut *transaction)
        .await
        .map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    if rows.is_empty() {
        return Ok(());
    }
    let named = super::digests(&mut shard.begin(scope)).await?;
    for row in &rows {
        let digest: String = column(row, "digest")?;
        if named.contains(&digest) {
            continue;
        }
        // An upload of the same bytes since then has made them young.
        let mut transaction = db.tenant(scope.id()).await?;
        sqlx::query("delete from components where tenant_id = $1 and digest = $2 and stored_at_ms <= $3")
            .bind(scope.id().as_str())
            .bind(digest)
            .bind(before_ms)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
    }
    Ok(())
}
