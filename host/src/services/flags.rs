//! Feature flags: flagd documents, evaluated in the host for guests, for the API and over OFREP.
//!
//! A tenant stores one document; its flags stand before the platform's, which the operator configures
//! for all tenants. What is stored is what was sent. A compiled snapshot of it is kept by tenant and
//! content, so that an evaluation reads one short row. What an evaluation means is flagd's definition;
//! how OFREP says it is `ofrep.rs`.

mod document;
pub mod ofrep;
mod targeting;

use std::sync::Arc;

use bytes::Bytes;
use datalogic_rs::DataValue;
use datalogic_rs::bumpalo::Bump;
use datalogic_rs::bumpalo::collections::Vec as BumpVec;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

pub use self::document::{Code, Evaluation, Failure, Reason};
use self::document::{Document, Merged};
use crate::effects::{Effects, Space};
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::tenant::TenantId;

/// Two rows: the document as it was sent, and its digest, which says cheaply whether it is known.
const SPACE: Space = Space::named("flags");
/// Bytes of a document: the largest value of a row. Split the flags of a larger product among tenants.
pub const DOCUMENT_BYTES: usize = 256 << 10;
/// Bytes of compiled documents that are kept; a compiled rule takes a few times its text.
const SNAPSHOTS_BYTES: u64 = 64 << 20;

/// Flags of all tenants.
#[derive(Clone)]
pub struct Flags {
    platform: Arc<Document>,
    snapshots: moka::sync::Cache<(TenantId, [u8; 32]), Arc<Merged>>,
}

/// A tenant's flags over the platform's at one moment.
#[derive(Clone)]
pub struct Snapshot(Arc<Merged>);

impl Flags {
    /// Flags over a platform document, which is flagd JSON too.
    pub fn new(platform: Option<&str>) -> Result<Self> {
        let platform = platform.map(|text| Document::parse(text.as_bytes())).transpose()?.unwrap_or_default();
        let weigher =
            |_: &(TenantId, [u8; 32]), merged: &Arc<Merged>| u32::try_from(merged.bytes()).unwrap_or(u32::MAX);
        let snapshots = moka::sync::Cache::builder().weigher(weigher).max_capacity(SNAPSHOTS_BYTES).build();
        Ok(Self { platform: Arc::new(platform), snapshots })
    }

    /// The platform's flags alone.
    pub(crate) fn defaults(&self) -> Snapshot {
        Snapshot(Arc::new(Merged::new(Document::default(), self.platform.clone())))
    }

    /// Stage the tenant's document, which comes from a request, and say what in it will have no effect.
    pub fn put(&self, effects: &mut Effects, body: &[u8]) -> Result<Vec<String>> {
        let document = Document::parse(body)?;
        let warnings = document.warnings.clone();
        let digest: [u8; 32] = Sha256::digest(body).into();
        effects.put(SPACE.key("document"), Bytes::copy_from_slice(body), None)?;
        effects.put(SPACE.key("digest"), digest.to_vec(), None)?;
        Ok(warnings)
    }

    /// The tenant's document as it was sent, and the commit that wrote it.
    pub async fn get(&self, effects: &mut Effects) -> Result<Option<(Bytes, u64)>> {
        let row = effects.get(&SPACE.key("document")).await?;
        Ok(row.map(|row| (row.value.to_bytes(), row.version)))
    }

    /// Stage the removal of the tenant's document; whether there was one.
    pub async fn delete(&self, effects: &mut Effects) -> Result<bool> {
        let existed = effects.get(&SPACE.key("digest")).await?.is_some();
        if existed {
            effects.delete(SPACE.key("document"))?;
            effects.delete(SPACE.key("digest"))?;
        }
        Ok(existed)
    }

    /// The flags as they are set.
    pub async fn snapshot(&self, effects: &mut Effects) -> Result<Snapshot> {
        let tenant = effects.scope().id().clone();
        let digest: [u8; 32] = match effects.setting(&SPACE.key("digest")).await? {
            Some(row) => row.value.to_bytes()[..].try_into().map_err(Error::internal)?,
            None => [0; 32],
        };
        let key = (tenant, digest);
        if let Some(merged) = self.snapshots.get(&key) {
            return Ok(Snapshot(merged));
        }
        // The document may be a later one than the digest; it is kept under its own.
        let (own, digest) = match self.get(effects).await? {
            Some((body, _)) => (Document::parse(&body).map_err(Error::internal)?, Sha256::digest(&body).into()),
            None => (Document::default(), [0; 32]),
        };
        let merged = Arc::new(Merged::new(own, self.platform.clone()));
        self.snapshots.insert((key.0, digest), merged.clone());
        Ok(Snapshot(merged))
    }

    /// Evaluate a flag. `context` comes from a guest or a request and is a JSON object.
    pub async fn evaluate(&self, effects: &mut Effects, flag: &str, context: Value) -> Result<Evaluation> {
        let now_ms = effects.now_ms();
        let snapshot = self.snapshot(effects).await?;
        let context = Context::new(context).map_err(|failure| failure.error())?;
        snapshot.evaluate(flag, &context, now_ms).map_err(|failure| failure.error())
    }

    /// Evaluate every flag there is, by name.
    pub async fn evaluate_all(
        &self,
        effects: &mut Effects,
        context: Value,
    ) -> Result<Vec<(String, std::result::Result<Evaluation, Failure>)>> {
        let now_ms = effects.now_ms();
        let snapshot = self.snapshot(effects).await?;
        let context = Context::new(context).map_err(|failure| failure.error())?;
        let mut all = Vec::new();
        for name in snapshot.names() {
            all.push((name.to_owned(), snapshot.evaluate(name, &context, now_ms)));
            // A document's rules together may take long; others get their turn between two flags.
            tokio::task::yield_now().await;
        }
        Ok(all)
    }
}

impl Snapshot {
    /// Names of all flags, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.names()
    }

    /// Evaluate a flag at `now_ms`.
    pub fn evaluate(&self, flag: &str, context: &Context, now_ms: i64) -> std::result::Result<Evaluation, Failure> {
        self.0.evaluate(flag, context, now_ms)
    }
}

/// Who and what a flag is evaluated for.
#[derive(Clone, Debug)]
pub struct Context(Map<String, Value>);

impl Context {
    /// A context from outside: an object of bounded size, in which `targetingKey` is a text if it is there.
    pub fn new(context: Value) -> std::result::Result<Self, Failure> {
        let invalid = |details: String| Failure::new(Code::InvalidContext, details);
        let Value::Object(mut members) = context else {
            return Err(invalid("the context is no JSON object".into()));
        };
        match members.get("targetingKey") {
            None | Some(Value::String(_)) => {}
            // Some clients send null for a subject that they do not know.
            Some(Value::Null) => drop(members.remove("targetingKey")),
            Some(_) => return Err(invalid("targetingKey is no string".into())),
        }
        let bytes = serde_json::to_vec(&members).map_or(usize::MAX, |text| text.len());
        if bytes > targeting::CONTEXT_BYTES {
            return Err(invalid(format!(
                "the context has more than {} bytes; leave out what no rule uses",
                targeting::CONTEXT_BYTES
            )));
        }
        // Only the host speaks for the host.
        members.remove("$flagd");
        Ok(Self(members))
    }

    fn has_key(&self) -> bool {
        matches!(self.0.get("targetingKey"), Some(Value::String(key)) if !key.is_empty())
    }

    /// The context as a rule of this flag sees it.
    fn of<'a>(&'a self, flag: &'a str, now_ms: i64, arena: &'a Bump) -> DataValue<'a> {
        let flagd = arena.alloc([
            ("flagKey", DataValue::String(flag)),
            ("timestamp", DataValue::from_i64(now_ms.div_euclid(1_000))),
        ]);
        let members = self.0.iter().map(|(name, member)| (name.as_str(), targeting::data(member, arena)));
        let host = std::iter::once(("$flagd", DataValue::Object(flagd)));
        let mut all = BumpVec::with_capacity_in(self.0.len() + 1, arena);
        all.extend(host.chain(members));
        DataValue::Object(all.into_bump_slice())
    }
}

impl Failure {
    /// The same failure for a guest or the control API.
    pub fn error(&self) -> Error {
        match self.code {
            Code::FlagNotFound => Error::new(
                Kind::NotFound,
                "flag_not_found",
                format!("{}; define it with PUT /v1/tenants/{{tenant}}/flags", self.details),
            ),
            Code::InvalidContext => Error::new(Kind::Invalid, "context_invalid", self.details.clone()),
            Code::TargetingKeyMissing => Error::new(Kind::Invalid, "targeting_key_missing", self.details.clone()),
            Code::ParseError | Code::General => Error::new(Kind::Invalid, "flag_broken", self.details.clone()),
        }
    }
}

#[cfg(test)]
mod tests;
