//! The bytes of uploaded components, in chunks, by tenant and digest: written before the version row that
//! names them, and swept when no row does.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::kernel::db::{Db, column, failed};
use crate::kernel::error::{Error, Result};
use crate::kernel::tenant::TenantScope;

/// Bytes of a chunk: small enough that a write does not hold SQLite's writer for long.
const CHUNK: usize = 512 << 10;

/// SHA-256 of a component, in hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Store a component; storing it again changes nothing.
pub async fn store(db: &Db, scope: &TenantScope, digest: &str, bytes: &[u8], now_ms: i64) -> Result<()> {
    for (n, chunk) in bytes.chunks(CHUNK).enumerate() {
        let mut transaction = db.tenant(scope.id()).await?;
        sqlx::query(
            "insert into components (tenant_id, digest, chunk, bytes, stored_at_ms) values ($1, $2, $3, $4, $5) \
             on conflict (tenant_id, digest, chunk) do nothing",
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
