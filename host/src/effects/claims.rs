//! Who is working on a request that carries an idempotency key, so that a repetition can be told to wait.
//!
//! A claim is a courtesy, not a lock: it makes the 409, while that an effect happens once rests on the answer
//! row in the commit. So a claim may be lost in a crash, and its lease may end while its holder still runs.
//! On SQLite claims live in this process, which is the only one; on PostgreSQL they are rows whose write
//! does not wait for the disk, and they end with the connection that made them: nobody waits for a dead node. There a
//! tenant's claims that come at the same time share a statement, and so do those that are given back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::Row as _;
use sqlx::postgres::{PgPool, PgRow};

use crate::effects::postgres::failed;
use crate::effects::together::Together;
use crate::kernel::error::{Error, Result};
use crate::kernel::id;
use crate::kernel::tenant::{TenantId, TenantScope};

/// Claims of a process that are kept; a request holds one only while it runs, so this is far away.
const HELD: usize = 65_536;
/// Bytes of a scope: it is part of an index entry.
const SCOPE_BYTES: usize = 1_024;

/// What became of an attempt to claim.
#[derive(Clone, Copy)]
pub enum Claim<H = Held> {
    /// The caller works on it now.
    Claimed(H),
    /// Somebody else works on the same request.
    Running {
        /// When the other's lease ends.
        retry_after: Duration,
    },
    /// Somebody else works on another request with the same key.
    Mismatch,
}

/// A claim. Dropped without [`Self::release`], because its holder went away or need not wait, it is given back in the
/// background.
pub struct Held {
    claims: Claims,
    tenant: TenantId,
    given: Option<Given>,
}

/// The claims of a database.
#[derive(Clone)]
pub struct Claims(Arc<Place>);

enum Place {
    Process(Mutex<HashMap<(TenantId, String), Standing>>),
    Postgres { pool: PgPool, claims: Together<Asked, Vec<Claim<()>>>, releases: Together<Given, ()> },
}

/// A claim of this process's.
struct Standing {
    fingerprint: Vec<u8>,
    owner: String,
    until: Instant,
}

/// An attempt to claim.
#[derive(Clone)]
struct Asked {
    given: Given,
    fingerprint: Vec<u8>,
    lease: Duration,
}

/// What it takes to give a claim back: its key, and a name that no other attempt has.
#[derive(Clone)]
struct Given {
    key: String,
    owner: String,
}

impl Claims {
    /// Claims that only this process sees.
    pub(crate) fn in_process() -> Self {
        Self(Arc::new(Place::Process(Mutex::default())))
    }

    /// Claims that all processes on a database see.
    pub(crate) fn in_postgres(pool: PgPool) -> Self {
        Self(Arc::new(Place::Postgres { pool, claims: Together::default(), releases: Together::default() }))
    }

    /// Claim `key`, which comes from a request; `fingerprint` tells requests apart. A lease that is over is taken from
    /// whoever held it.
    pub async fn claim(&self, scope: &TenantScope, key: &str, fingerprint: &[u8], lease: Duration) -> Result<Claim> {
        if key.len() > SCOPE_BYTES || key.contains('\0') {
            return Err(Error::invalid("the idempotency key is too long, or is no text"));
        }
        let given = Given { key: key.to_owned(), owner: id::new() };
        let held = Held { claims: self.clone(), tenant: scope.id().clone(), given: Some(given.clone()) };
        let asked = Asked { given, fingerprint: fingerprint.to_vec(), lease };
        match &*self.0 {
            Place::Process(_) => held.claim(asked).await,
            // In a task: if the caller goes away, the claim is made all the same, and given back after that.
            Place::Postgres { .. } => tokio::spawn(held.claim(asked)).await.map_err(Error::internal)?,
        }
    }
}

impl Held {
    async fn claim(mut self, asked: Asked) -> Result<Claim> {
        let outcome = match &*self.claims.0 {
            Place::Process(standing) => claim_here(standing, &self.tenant, asked)?,
            Place::Postgres { pool, claims, .. } => {
                let (pool, tenant) = (pool.clone(), self.tenant.clone());
                let send = async move |all: Vec<Asked>| claim_all(&pool, &tenant, &all).await;
                // One that fails may have been made: it is given back.
                claims.ask(&self.tenant, &[asked], send, |all, n| all[n]).await?
            }
        };
        self.given.take_if(|_| !matches!(outcome, Claim::Claimed(())));
        Ok(match outcome {
            Claim::Claimed(()) => Claim::Claimed(self),
            Claim::Running { retry_after } => Claim::Running { retry_after },
            Claim::Mismatch => Claim::Mismatch,
        })
    }

    /// Give the key back, so that a repetition need not wait; nothing happens if somebody else has taken it since.
    pub async fn release(mut self) {
        if let Some(given) = self.given.take() {
            give_back(&self.claims, &self.tenant, given).await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(given) = self.given.take() else { return };
        let (claims, tenant) = (self.claims.clone(), self.tenant.clone());
        // Without a runtime the process ends, and its claims with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { give_back(&claims, &tenant, given).await });
        }
    }
}

async fn give_back(claims: &Claims, tenant: &TenantId, given: Given) {
    match &*claims.0 {
        Place::Process(standing) => {
            let mut standing = standing.lock().unwrap_or_else(PoisonError::into_inner);
            let place = (tenant.clone(), given.key);
            if standing.get(&place).is_some_and(|standing| standing.owner == given.owner) {
                standing.remove(&place);
            }
        }
        Place::Postgres { pool, releases, .. } => {
            let (pool, all_of) = (pool.clone(), tenant.clone());
            let send = async move |all: Vec<Given>| release_all(&pool, &all_of, &all).await;
            if let Err(error) = releases.ask(tenant, &[given], send, |(), _| ()).await {
                tracing::debug!(%error, "a claim was not given back; it ends with its lease");
            }
        }
    }
}

fn claim_here(
    standing: &Mutex<HashMap<(TenantId, String), Standing>>,
    tenant: &TenantId,
    asked: Asked,
) -> Result<Claim<()>> {
    let mut standing = standing.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    let Asked { given: Given { key, owner }, fingerprint, lease } = asked;
    let place = (tenant.clone(), key);
    if let Some(other) = standing.get(&place).filter(|other| other.until > now) {
        return Ok(if other.fingerprint == fingerprint {
            Claim::Running { retry_after: other.until - now }
        } else {
            Claim::Mismatch
        });
    }
    if standing.len() >= HELD {
        standing.retain(|_, standing| standing.until > now);
    }
    if standing.len() >= HELD {
        return Err(Error::unavailable("overloaded", "too many requests are being worked on; try again"));
    }
    standing.insert(place, Standing { fingerprint, owner, until: now + lease });
    Ok(Claim::Claimed(()))
}

async fn claim_all(pool: &PgPool, tenant: &TenantId, all: &[Asked]) -> Result<Vec<Claim<()>>> {
    let rows = sqlx::query("select outcome, wait_ms from chalet_claim($1, $2, $3, $4, $5)")
        .bind(tenant.as_str())
        .bind(all.iter().map(|asked| &*asked.given.key).collect::<Vec<_>>())
        .bind(all.iter().map(|asked| &*asked.fingerprint).collect::<Vec<_>>())
        .bind(all.iter().map(|asked| &*asked.given.owner).collect::<Vec<_>>())
        .bind(all.iter().map(|asked| i64::try_from(asked.lease.as_millis()).unwrap_or(i64::MAX)).collect::<Vec<_>>())
        .fetch_all(pool)
        .await
        .map_err(failed)?;
    if rows.len() != all.len() {
        return Err(failed(sqlx::Error::RowNotFound));
    }
    let outcome = |row: &PgRow| {
        Ok(match row.try_get::<i32, _>("outcome")? {
            0 => Claim::Claimed(()),
            1 => {
                let wait_ms: i64 = row.try_get("wait_ms")?;
                Claim::Running { retry_after: Duration::from_millis(wait_ms.max(0) as u64) }
            }
            _ => Claim::Mismatch,
        })
    };
    rows.iter().map(outcome).collect::<sqlx::Result<_>>().map_err(failed)
}

async fn release_all(pool: &PgPool, tenant: &TenantId, all: &[Given]) -> Result<()> {
    sqlx::query("select chalet_release($1, $2, $3)")
        .bind(tenant.as_str())
        .bind(all.iter().map(|given| &*given.key).collect::<Vec<_>>())
        .bind(all.iter().map(|given| &*given.owner).collect::<Vec<_>>())
        .fetch_all(pool)
        .await
        .map_err(failed)?;
    Ok(())
}
