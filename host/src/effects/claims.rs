//! Who is working on a request that carries an idempotency key, so that a repetition can be told to wait.
//!
//! A claim is a courtesy, not a lock: it makes the 409, while that an effect happens once rests on the answer
//! row in the commit. So a claim may be lost in a crash, and its lease may end while its holder still runs.
//! On SQLite claims live in this process, which is the only one; on PostgreSQL they are rows whose write
//! does not wait for the disk, and they end with the connection that made them: nobody waits for a dead node.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::Row as _;
use sqlx::postgres::PgPool;

use crate::effects::postgres::failed;
use crate::kernel::error::{Error, Result};
use crate::kernel::tenant::{TenantId, TenantScope};

/// Claims of a process that are kept; a request holds one only while it runs, so this is far away.
const HELD: usize = 65_536;
/// Bytes of a scope: it is part of an index entry.
const SCOPE_BYTES: usize = 1_024;

/// What became of an attempt to claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The caller works on it now.
    Claimed,
    /// Somebody else works on the same request.
    Running {
        /// When the other's lease ends.
        retry_after: Duration,
    },
    /// Somebody else works on another request with the same key.
    Mismatch,
}

/// The claims of a database.
#[derive(Clone)]
pub struct Claims(Place);

#[derive(Clone)]
enum Place {
    Process(Arc<Mutex<HashMap<(TenantId, String), Held>>>),
    Postgres(PgPool),
}

struct Held {
    fingerprint: Vec<u8>,
    owner: String,
    until: Instant,
}

impl Claims {
    /// Claims that only this process sees.
    pub(crate) fn in_process() -> Self {
        Self(Place::Process(Arc::default()))
    }

    /// Claims that all processes on a database see.
    pub(crate) fn in_postgres(pool: PgPool) -> Self {
        Self(Place::Postgres(pool))
    }

    /// Claim `key` for `owner`, a name that no other attempt has; `fingerprint` tells requests apart. A lease
    /// that is over is taken from whoever held it. `key` comes from a request.
    pub async fn claim(
        &self,
        scope: &TenantScope,
        key: &str,
        fingerprint: &[u8],
        owner: &str,
        lease: Duration,
    ) -> Result<Claim> {
        if key.len() > SCOPE_BYTES || key.contains('\0') {
            return Err(Error::invalid("the idempotency key is too long, or is no text"));
        }
        match &self.0 {
            Place::Process(held) => {
                let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
                let now = Instant::now();
                let place = (scope.id().clone(), key.to_owned());
                if let Some(other) = held.get(&place).filter(|other| other.until > now) {
                    return Ok(if other.fingerprint == fingerprint {
                        Claim::Running { retry_after: other.until - now }
                    } else {
                        Claim::Mismatch
                    });
                }
                if held.len() >= HELD {
                    held.retain(|_, held| held.until > now);
                }
                if held.len() >= HELD {
                    return Err(Error::unavailable("overloaded", "too many requests are being worked on; try again"));
                }
                let claim = Held { fingerprint: fingerprint.to_vec(), owner: owner.to_owned(), until: now + lease };
                held.insert(place, claim);
                Ok(Claim::Claimed)
            }
            Place::Postgres(pool) => {
                let rows = sqlx::query("select outcome, wait_ms from chalet_claim($1, $2, $3, $4, $5)")
                    .bind(scope.id().as_str())
                    .bind(key)
                    .bind(fingerprint)
                    .bind(owner)
                    .bind(i64::try_from(lease.as_millis()).unwrap_or(i64::MAX))
                    .fetch_all(pool)
                    .await
                    .map_err(failed)?;
                let row = rows.first().ok_or_else(|| failed(sqlx::Error::RowNotFound))?;
                let wait_ms: i64 = row.try_get("wait_ms").map_err(failed)?;
                Ok(match row.try_get::<i32, _>("outcome").map_err(failed)? {
                    0 => Claim::Claimed,
                    1 => Claim::Running { retry_after: Duration::from_millis(wait_ms.max(0) as u64) },
                    _ => Claim::Mismatch,
                })
            }
        }
    }

    /// Give a claim back; nothing happens if somebody else has taken it since.
    pub async fn release(&self, scope: &TenantScope, key: &str, owner: &str) -> Result<()> {
        match &self.0 {
            Place::Process(held) => {
                let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
                let place = (scope.id().clone(), key.to_owned());
                if held.get(&place).is_some_and(|held| held.owner == owner) {
                    held.remove(&place);
                }
            }
            Place::Postgres(pool) => {
                sqlx::query("select chalet_release($1, $2, $3)")
                    .bind(scope.id().as_str())
                    .bind(key)
                    .bind(owner)
                    .fetch_all(pool)
                    .await
                    .map_err(failed)?;
            }
        }
        Ok(())
    }
}
