//! Rate limits: what a tenant's requests, plugins and keys may use, and what its own code asks to count.
//!
//! Every limit is a bucket that holds `burst` units and is refilled at `rate` units `per` period; a
//! request takes units or is told when it could. A request at the gateway takes from its plan, its
//! tenant, its plugin and its key together, or from none of them. The document that defines the
//! tenant's own limits is read as a snapshot; the counting itself is immediate and is kept when an
//! invocation fails. Where the counts are is the [`Authority`]'s question.

mod authority;
mod document;
mod headers;

use std::sync::Arc;
use std::time::Duration;

pub use self::authority::{Authority, Bucket, Decision, Memory, Quota, Take};
pub use self::document::{Document, Named, Period, Rate};
pub use self::headers::{headers, retry_after_s};
use crate::effects::{Effects, Key, Row, Shard, Space};
use crate::kernel::cache::Cache;
use crate::kernel::clock::Clock;
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::tenant::{TenantId, TenantScope};

/// One row: the tenant's document.
const SPACE: Space = Space::named("limits");
/// Bytes of the key that a named limit is counted for: an address, a user's id, a digest.
pub const KEY_BYTES: usize = 256;
/// Compiled documents that are kept.
const DOCUMENTS: usize = 10_000;
/// Units of the control API and of OFREP that one key may use: the contract's 200 a second, burst 1,000.
pub const CONTROL: Quota = Quota { rate: 200, period_ms: 1_000, burst: 1_000 };
/// Failed log-ins from one address: the contract's 100 a minute.
pub const BAD_CREDENTIALS: Quota = Quota { rate: 100, period_ms: 60_000, burst: 100 };

/// All limits of a node.
#[derive(Clone)]
pub struct Limits {
    authority: Arc<dyn Authority>,
    clock: Clock,
    /// Compiled documents, and the commits that wrote them.
    documents: Cache<TenantId, (u64, Arc<Document>)>,
    none: Arc<Document>,
}

/// What the gateway learned about a request.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Every limit that the request was measured by, outermost first.
    pub measured: Vec<Measured>,
}

/// One limit's decision.
#[derive(Clone, Debug)]
pub struct Measured {
    /// `plan`, `tenant`, `plugin`, `key`, or the name of a limit of the document.
    pub limit: String,
    /// What it allows.
    pub quota: Quota,
    /// What it said.
    pub decision: Decision,
}

impl Admission {
    /// Whether every limit allows the request, and so was debited.
    pub fn allowed(&self) -> bool {
        self.measured.iter().all(|one| one.decision.allowed)
    }

    /// The limit that would take longest to allow the request, if one refuses it.
    pub fn refusal(&self) -> Option<&Measured> {
        self.measured.iter().filter(|one| !one.decision.allowed).max_by_key(|one| one.decision.retry_after_ms)
    }

    /// The answer for a request that is not admitted.
    pub fn error(&self) -> Option<Error> {
        let refusal = self.refusal()?;
        let after = Duration::from_millis(refusal.decision.retry_after_ms);
        let message = format!("the {} limit of {} is used up; wait and try again", refusal.limit, refusal.quota);
        Some(Error::new(Kind::Limited, "rate_limited", message).retry_after(after))
    }
}

impl Limits {
    /// Limits that are counted by this authority, in the time of this clock.
    pub fn new(authority: Arc<dyn Authority>, clock: Clock) -> Self {
        Self { authority, clock, documents: Cache::new(DOCUMENTS), none: Arc::default() }
    }

    /// Limits that are counted in this process.
    pub fn local(clock: Clock) -> Self {
        Self::new(Arc::new(Memory::new()), clock)
    }

    /// Stage the tenant's document, which comes from a request.
    pub fn put(&self, effects: &mut Effects, body: &[u8]) -> Result<Document> {
        let document = Document::parse(body)?;
        effects.put(key(), serde_json::to_vec(&document).map_err(Error::internal)?, None)?;
        Ok(document)
    }

    /// The tenant's document and the commit that wrote it; an empty one of version 0 if there is none.
    pub async fn get(&self, effects: &mut Effects) -> Result<(Arc<Document>, u64)> {
        let row = effects.get(&key()).await?;
        Ok((self.compiled(effects.scope().id(), row.as_ref())?, row.map_or(0, |row| row.version)))
    }

    fn compiled(&self, tenant: &TenantId, row: Option<&Row>) -> Result<Arc<Document>> {
        let Some(row) = row else { return Ok(self.none.clone()) };
        if row.version > 0
            && let Some((version, known)) = self.documents.get(tenant)
            && version == row.version
        {
            return Ok(known);
        }
        let document = Arc::new(Document::parse(&row.value.to_bytes())?);
        if row.version > 0 {
            self.documents.insert(tenant.clone(), (row.version, document.clone()));
        }
        Ok(document)
    }

    /// Take `cost` units of a limit of the tenant's document for `for_key`, both from a guest or a request.
    /// A cost of 0 takes nothing and shows what is left.
    pub async fn check(&self, effects: &mut Effects, limit: &str, for_key: &str, cost: u32) -> Result<Decision> {
        if for_key.len() > KEY_BYTES {
            return Err(Error::new(
                Kind::Invalid,
                "limit_key",
                format!("the key of a limit has at most {KEY_BYTES} bytes; use a digest of a longer one"),
            ));
        }
        let row = effects.setting(&key()).await?;
        let document = self.compiled(effects.scope().id(), row.as_ref())?;
        let quota = document.limit(limit).ok_or_else(|| {
            Error::new(
                Kind::NotFound,
                "limit_missing",
                "there is no such limit; define it with PUT /v1/tenants/{tenant}/limits",
            )
        })?;
        if cost > quota.burst {
            return Err(Error::new(
                Kind::Invalid,
                "cost_too_large",
                format!("the limit never holds more than its burst of {} units; ask for fewer", quota.burst),
            ));
        }
        let tenant = effects.scope().id().as_str();
        let take = Take { bucket: Bucket::of(&["named", tenant, limit, for_key]), quota, cost };
        Ok(self.take(&[take]).await?.remove(0))
    }

    /// Count a request of the data plane: by the tenant's plan, and by what its document says of the
    /// tenant, of this plugin and of this API key. Either all of them are debited or none.
    pub async fn admit(
        &self,
        shard: &Shard,
        scope: &TenantScope,
        plugin: &str,
        key_id: Option<&str>,
    ) -> Result<Admission> {
        let row = shard.setting(scope, &key()).await?;
        let document = self.compiled(scope.id(), row.as_ref())?;
        let (tenant, plan) = (scope.id().as_str(), scope.plan());
        let plan = Quota::per_second(plan.requests_per_second, plan.request_burst);
        let mut names = vec!["plan"];
        let mut takes = vec![Take { bucket: Bucket::of(&["plan", tenant]), quota: plan, cost: 1 }];
        let mut add = |name, parts: &[&str], quota: Option<Quota>| {
            if let Some(quota) = quota {
                names.push(name);
                takes.push(Take { bucket: Bucket::of(parts), quota, cost: 1 });
            }
        };
        add("tenant", &["tenant", tenant], document.tenant());
        add("plugin", &["plugin", tenant, plugin], document.plugin(plugin));
        if let Some(key_id) = key_id {
            add("key", &["key", tenant, key_id], document.key(key_id));
        }
        let decisions = self.take(&takes).await?;
        let measured = names.into_iter().zip(takes).zip(decisions);
        Ok(Admission {
            measured: measured
                .map(|((limit, take), decision)| Measured { limit: limit.to_owned(), quota: take.quota, decision })
                .collect(),
        })
    }

    /// Count something of the host's own, such as log-ins of an address.
    pub async fn host(&self, limit: &'static str, for_key: &str, quota: Quota) -> Result<Admission> {
        let take = Take { bucket: Bucket::of(&["host", limit, for_key]), quota, cost: 1 };
        let decision = self.take(&[take]).await?.remove(0);
        Ok(Admission { measured: vec![Measured { limit: limit.to_owned(), quota, decision }] })
    }

    /// Take units of something of the host's own that have been used already: all there are, if they are fewer.
    /// 0 units show what is left.
    pub async fn charge(&self, limit: &'static str, for_key: &str, quota: Quota, units: u32) -> Result<Decision> {
        let take = |cost| Take { bucket: Bucket::of(&["host", limit, for_key]), quota, cost };
        let decision = self.take(&[take(units)]).await?.remove(0);
        if decision.allowed {
            return Ok(decision);
        }
        let left = u32::try_from(decision.remaining).unwrap_or(units);
        Ok(self.take(&[take(left)]).await?.remove(0))
    }

    async fn take(&self, takes: &[Take]) -> Result<Vec<Decision>> {
        let decisions = self.authority.take(takes, self.clock.now_ms()).await?;
        if decisions.len() == takes.len() {
            return Ok(decisions);
        }
        Err(Error::internal("the limit authority answered another number of questions"))
    }
}

fn key() -> Key {
    SPACE.key("document")
}

#[cfg(test)]
mod tests;
