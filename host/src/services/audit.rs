//! The audit log: who changed what through the API, and who was refused what, per tenant.
//!
//! A record is a row in the commit of the change that it tells of: without the one there is not the other. Each has
//! a hash over the hash before it and its own text, and a head says where the chain ends, so that a record that was
//! changed, removed, put in or moved is found ([`Log::verify`]). Somebody who can write all rows can write another
//! chain; whoever kept a hash elsewhere sees that. The head makes all audited changes of a tenant one sequence.
//!
//! Records hold no bodies and no secrets. Those of denials are bounded: the first of a minute are written before
//! they are answered, the rest are counted, and a crash forgets that count. The operator's own log is that of the
//! directory's platform scope; a tenant's ends with the tenant.

mod chain;
mod denials;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedMutexGuard, Semaphore};

use self::chain::Head;
pub use self::chain::{Bad, Verified};
use self::denials::Denials;
use crate::effects::lanes::Lanes;
use crate::effects::{Effects, Key, Runs, Shard};
use crate::kernel::clock::rfc3339;
use crate::kernel::error::{Error, Result};
use crate::kernel::tenant::TenantScope;
use crate::services::keys::{Principal, Right};

/// Records that a tenant keeps: of ten changes a day those of 27 years, in about 50 MB.
pub const KEPT: u64 = 100_000;
/// Characters of a record's target; what is longer is no resource of ours.
const TARGET: usize = 1_000;
/// Records that one look at the log reads.
const LOOK: u64 = 5_000;
/// Verifications of a node at a time: each may read 50 MB.
const VERIFYING: usize = 2;

/// One thing that was done or denied. Fields stand in the order of their names, so that the compact JSON of a
/// record is canonical (RFC 8785).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = AuditRecord)]
pub struct Record {
    /// The operation, such as `plugins.release`: its `operationId` in the API's description.
    pub action: String,
    /// Who.
    pub actor: Actor,
    /// The address that the request came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// When, RFC 3339; never before the record before it.
    pub at: String,
    /// Of a denial: the code of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// SHA-256 of the request's body, hexadecimal; not of a secret's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// SHA-256, hexadecimal, over the 32 bytes of the hash before it (zeros before the first) and the record's other
    /// fields as canonical JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    /// The record's place in its log, from 1 on, without gaps.
    pub number: u64,
    /// What became of it.
    pub outcome: Outcome,
    /// The request, as in the `x-request-id` header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// The right that the operation demands: the actor had it, or was denied for want of it.
    pub right: String,
    /// Denials that this record stands for beside its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suppressed: Option<u64>,
    /// The path.
    pub target: String,
    /// The tenant whose log this is; none in the operator's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// With this record, those up to this number were removed as too old.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trimmed: Option<u64>,
    /// What was asked for beyond the path.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub what: Option<serde_json::Value>,
}

/// Who did it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = AuditActor)]
pub struct Actor {
    /// The public id of the key; none for what a server does at its start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Whose key it is.
    pub of: Party,
}

/// Whose key somebody holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = AuditParty)]
pub enum Party {
    /// The operator's.
    Platform,
    /// The tenant's whose log this is.
    Tenant,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = AuditOutcome)]
pub enum Outcome {
    /// It changed something.
    Done,
    /// It was denied.
    Denied,
}

impl Record {
    /// A record of something done; what the log adds is still missing.
    pub fn new(action: impl Into<String>, actor: Actor, right: Right, target: &str) -> Self {
        let mut kept: String = target.chars().take(TARGET).collect();
        if kept.len() < target.len() {
            kept.push('…');
        }
        Self {
            action: action.into(),
            actor,
            address: None,
            at: String::new(),
            code: None,
            digest: None,
            hash: None,
            number: 0,
            outcome: Outcome::Done,
            request: None,
            right: right.name().into(),
            suppressed: None,
            target: kept,
            tenant: None,
            trimmed: None,
            what: None,
        }
    }

    /// The same with the address that it came from.
    #[must_use]
    pub fn from(mut self, address: IpAddr) -> Self {
        self.address = Some(address.to_canonical().to_string());
        self
    }

    /// The same as denied, for this reason.
    #[must_use]
    pub fn denied(mut self, code: &str) -> Self {
        self.outcome = Outcome::Denied;
        self.code = Some(code.into());
        self
    }
}

impl Actor {
    /// The holder of a key.
    pub fn holder(principal: &Principal) -> Self {
        let of = if principal.tenant.is_some() { Party::Tenant } else { Party::Platform };
        Self { key: Some(principal.key.clone()), of }
    }

    /// A server at its start, which the operator set up.
    pub fn start() -> Self {
        Self { key: None, of: Party::Platform }
    }
}

/// Which records to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only of this action.
    pub action: Option<String>,
    /// Only from this time on, milliseconds since the Unix epoch.
    pub since_ms: Option<i64>,
}

/// The audit logs of a shard's tenants.
pub struct Log {
    shard: Shard,
    kept: u64,
    turns: Lanes,
    verifying: Semaphore,
    denials: Denials,
}

impl Log {
    /// The logs on this shard.
    pub fn new(shard: Shard) -> Self {
        Self::keeping(shard, KEPT)
    }

    /// The same with another bound on what is kept.
    pub(crate) fn keeping(shard: Shard, kept: u64) -> Self {
        let verifying = Semaphore::new(VERIFYING);
        Self { shard, kept, turns: Lanes::default(), verifying, denials: Denials::default() }
    }

    /// Wait for this node's turn to change what a log tells of. All such changes meet at its head, so that they
    /// would only make each other run again.
    pub async fn turn(&self, scope: &TenantScope) -> OwnedMutexGuard<()> {
        self.turns.enter(scope.id(), &Head::key()).await
    }

    /// Read the head, before anything that is not the tenant's rows is read: what is read after it is still so at
    /// the commit, as far as audited changes alone change it.
    pub async fn look(&self, effects: &mut Effects) -> Result<()> {
        Head::read(effects).await.map(drop)
    }

    /// Stage a record; the row that exists if and only if these effects are committed.
    pub async fn append(&self, effects: &mut Effects, mut record: Record) -> Result<Key> {
        let mut head = Head::read(effects).await?;
        head.at_ms = head.at_ms.max(effects.now_ms());
        record.at = rfc3339(head.at_ms);
        record.number = head.next;
        record.tenant = name(effects.scope());
        if head.next - head.first >= self.kept + chain::TRIM {
            record.trimmed = chain::trim(effects, &mut head).await?;
        }
        let key = chain::push(effects, &mut head, &record)?;
        head.store(effects)?;
        Ok(key)
    }

    /// Make a change of the host's own, with its record if it changes anything.
    pub async fn change<T>(
        &self,
        scope: &TenantScope,
        record: Record,
        run: impl AsyncFn(&mut Effects) -> Result<T>,
    ) -> Result<T> {
        let _turn = self.turn(scope).await;
        let change = async |effects: &mut Effects| {
            self.look(effects).await?;
            let answer = run(effects).await?;
            if !effects.is_empty() {
                self.append(effects, record.clone()).await?;
            }
            Ok(answer)
        };
        self.shard.transact(scope, change).await
    }

    /// Records, the latest first, before the number `before`; and the number to go on before, if there may be more.
    pub async fn list(
        &self,
        effects: &mut Effects,
        filter: &Filter,
        before: Option<u64>,
        limit: usize,
    ) -> Result<(Vec<Record>, Option<u64>)> {
        let head = Head::read(effects).await?;
        let since = filter.since_ms.map(rfc3339);
        let mut found = Vec::new();
        let mut end = before.unwrap_or(u64::MAX).min(head.next);
        let stop = end.saturating_sub(LOOK).max(head.first);
        while end > stop {
            let start = end.saturating_sub(limit as u64).max(stop);
            // Numbers have no gaps and each stands once; of a log where that is not so, this shows what it finds.
            let (rows, _) = effects.list(&chain::between(start, end), limit).await?;
            for (number, record) in rows.iter().rev().filter_map(|(key, row)| chain::shown(key, row)) {
                if since.as_ref().is_some_and(|since| record.at < *since) {
                    return Ok((found, None));
                }
                if filter.action.as_ref().is_none_or(|action| record.action == *action) {
                    found.push(record);
                    if found.len() == limit {
                        return Ok((found, (number > head.first).then_some(number)));
                    }
                }
            }
            end = start;
        }
        Ok((found, (end > head.first).then_some(end)))
    }

    /// Walk the whole chain, page by page, and say whether it is whole.
    pub async fn verify(&self, scope: &TenantScope) -> Result<Verified> {
        let busy = |_| Error::unavailable("overloaded", "other logs are being verified; try again");
        let _place = self.verifying.try_acquire().map_err(busy)?;
        chain::verify(&self.shard, scope).await
    }

    /// Write down that somebody was denied something, in the log of those whose key it is; or count it, if there
    /// were many. The denial stands whether or not that succeeds.
    pub async fn deny(&self, scope: &TenantScope, record: Record) {
        if self.denials.count(scope, &record) && self.write(scope, &record).await.is_err() {
            self.denials.leave_out(scope, record);
        }
    }

    /// Write what was only counted: of the minutes that are over, or of `all`.
    pub async fn settle(&self, all: bool) {
        for (scope, record) in self.denials.over(all) {
            // Who is gone has no log any more.
            let _ = self.write(&scope, &record).await;
        }
    }

    async fn write(&self, scope: &TenantScope, record: &Record) -> Result<()> {
        let _turn = self.turn(scope).await;
        let mut runs = Runs::default();
        let written = loop {
            let mut effects = self.shard.begin(scope);
            let appended = self.append(&mut effects, record.clone()).await;
            let next = match self.shard.attempt(effects, appended).await {
                Ok(None) => runs.again(&self.shard, scope).await,
                done => break done.map(drop),
            };
            if next.is_err() {
                break next;
            }
        };
        if let Err(error) = &written {
            tracing::warn!(?error, "a denial is not in the audit log");
        }
        written
    }
}

/// The name in a log's records: none in the operator's.
fn name(scope: &TenantScope) -> Option<String> {
    Some(scope.name().to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests;
