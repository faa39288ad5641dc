//! The chain of an audit log's records in the tenant's rows.
//!
//! A record's row has its number and a random part as the key, so that no two commits ever write the same row; its
//! value is the record's hash and then the record as canonical JSON, over which, behind the hash before, that hash
//! is taken. The hash before the first record ever is 32 zeros.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Record, name};
use crate::effects::{Effects, Key, Range, Row, Runs, Shard, Space};
use crate::kernel::error::{Error, Result};
use crate::kernel::id;
use crate::kernel::tenant::TenantScope;

const RECORDS: Space = Space::named("audit");
const HEAD: Space = Space::named("audit/head");
/// Records that go at a time, when there are so many more than are kept: a small part of what a commit may carry.
pub(super) const TRIM: u64 = 100;
/// Records of a page of verification: about 2 MB.
const PAGE: usize = 4_000;
/// Bytes of a hash.
const HASH: usize = 32;

/// Where the chain begins and ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// The hash before the first record that is kept.
    #[serde(with = "hex::serde")]
    anchor: [u8; HASH],
    /// The time of the last record.
    pub(super) at_ms: i64,
    /// The number of the first record that is kept.
    pub(super) first: u64,
    /// The hash of the last record.
    #[serde(with = "hex::serde")]
    hash: [u8; HASH],
    /// The number of the next record.
    pub(super) next: u64,
}

impl Default for Head {
    fn default() -> Self {
        Self { anchor: [0; HASH], at_ms: 0, first: 1, hash: [0; HASH], next: 1 }
    }
}

impl Head {
    pub(super) fn key() -> Key {
        HEAD.key(Bytes::new())
    }

    /// The head; the beginning of a log that has no record yet.
    pub(super) async fn read(effects: &mut Effects) -> Result<Self> {
        let row = effects.get(&Self::key()).await?;
        row.map_or_else(|| Ok(Self::default()), |row| Self::parse(&row).map_err(Error::internal))
    }

    fn parse(row: &Row) -> serde_json::Result<Self> {
        serde_json::from_slice(&row.value.to_bytes())
    }

    pub(super) fn store(&self, effects: &mut Effects) -> Result<()> {
        effects.put(Self::key(), serde_json::to_vec(self).map_err(Error::internal)?, None)
    }
}

/// Whether a log is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = AuditVerified)]
pub struct Verified {
    /// The first record that is not as it was written, or not there; null if all are.
    pub bad: Option<Bad>,
    /// The number of the first record that is kept.
    pub first: u64,
    /// The hash of the last good record: keep it elsewhere, and nobody can write the log anew unseen.
    pub hash: String,
    /// The number of the last good record; 0 if there is none.
    pub last: u64,
    /// Whether all records are good.
    pub ok: bool,
}

/// A place where the chain is broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = AuditBad)]
pub struct Bad {
    /// The record's number.
    pub number: u64,
    /// What is wrong with it.
    pub why: String,
}

impl Bad {
    fn new<T>(number: u64, why: &str) -> Result<T, Self> {
        Err(Self { number, why: why.into() })
    }
}

/// The rows of the records from one number up to, not including, another.
pub(super) fn between(from: u64, to: u64) -> Range {
    let key = |number: u64| Bytes::copy_from_slice(&number.to_be_bytes());
    Range { space: RECORDS, from: key(from), to: Some(key(to)) }
}

fn hash(before: &[u8; HASH], text: &[u8]) -> [u8; HASH] {
    Sha256::new().chain_update(before).chain_update(text).finalize().into()
}

/// Stage a record as the chain's next.
pub(super) fn push(effects: &mut Effects, head: &mut Head, record: &Record) -> Result<Key> {
    let text = serde_json::to_vec(record).map_err(Error::internal)?;
    head.hash = hash(&head.hash, &text);
    let unique = hex::decode(id::new()).map_err(Error::internal)?;
    let key = RECORDS.key([&head.next.to_be_bytes()[..], &unique].concat());
    effects.put(key.clone(), [&head.hash[..], &text].concat(), None)?;
    head.next += 1;
    Ok(key)
}

/// Stage the removal of the oldest records, and the number of the last of them. A part that is not whole stays, for
/// whoever looks into it.
pub(super) async fn trim(effects: &mut Effects, head: &mut Head) -> Result<Option<u64>> {
    let end = head.first + TRIM;
    let (rows, more) = effects.list(&between(head.first, end), TRIM as usize).await?;
    let mut walk = Walk::at(head);
    if more || rows.iter().any(|(key, row)| walk.step(effects.scope(), key, row).is_err()) || walk.next != end {
        return Ok(None);
    }
    for (key, _) in rows {
        effects.delete(RECORDS.key(key))?;
    }
    (head.first, head.anchor) = (end, walk.hash);
    Ok(Some(end - 1))
}

/// A row's number, and its record with the hash; none if it is no record.
pub(super) fn shown(key: &[u8], row: &Row) -> Option<(u64, Record)> {
    let value = row.value.to_bytes();
    let (hash, text) = value.split_at_checked(HASH)?;
    let record: Record = serde_json::from_slice(text).ok()?;
    Some((u64::from_be_bytes(*key.first_chunk()?), Record { hash: Some(hex::encode(hash)), ..record }))
}

/// A walk along the chain: what comes next, and what it has to follow from.
struct Walk {
    first: u64,
    next: u64,
    hash: [u8; HASH],
    trimmed: u64,
}

impl Walk {
    fn at(head: &Head) -> Self {
        Self { first: head.first, next: head.first, hash: head.anchor, trimmed: 0 }
    }

    /// Take a row as the next record.
    fn step(&mut self, scope: &TenantScope, key: &[u8], row: &Row) -> Result<(), Bad> {
        let expected = self.next;
        let Some((number, _)) = key.split_first_chunk().filter(|_| key.len() == 8 + 16) else {
            return Bad::new(expected, "a row that no record was written to stands here");
        };
        let number = u64::from_be_bytes(*number);
        if number > expected {
            return Bad::new(expected, "the record is missing");
        }
        if number < expected {
            return Bad::new(number, "a second record stands in this place");
        }
        let value = row.value.to_bytes();
        let Some((own, text)) = value.split_first_chunk::<HASH>() else {
            return Bad::new(number, "the record was changed");
        };
        if *own != hash(&self.hash, text) {
            return Bad::new(number, "the record was changed, or does not follow the one before it");
        }
        match serde_json::from_slice::<Record>(text) {
            Ok(record) if record.number == number && record.tenant == name(scope) => {
                self.trimmed = record.trimmed.unwrap_or(self.trimmed);
            }
            _ => return Bad::new(number, "the record belongs elsewhere"),
        }
        (self.next, self.hash) = (number + 1, *own);
        Ok(())
    }

    fn result(self, outcome: Result<(), Bad>) -> Verified {
        Verified {
            ok: outcome.is_ok(),
            bad: outcome.err(),
            first: self.first,
            hash: hex::encode(self.hash),
            last: self.next - 1,
        }
    }

    /// Whether the chain ends as its head says.
    fn end(&self, head: &Head) -> Result<(), Bad> {
        if self.next > head.next {
            return Bad::new(head.next, "there are more records than were written");
        }
        if self.next < head.next {
            return Bad::new(self.next, "the record is missing");
        }
        if self.hash != head.hash {
            return Bad::new(self.next.saturating_sub(1), "the head does not follow from the last record");
        }
        if self.trimmed != head.first - 1 {
            return Bad::new(head.first - 1, "the record is missing, and no later one says that it was removed");
        }
        Ok(())
    }
}

/// Walk along the whole chain, a page in a transaction.
pub(super) async fn verify(shard: &Shard, scope: &TenantScope) -> Result<Verified> {
    // The walk so far, and what is left of the rows.
    let mut walked: Option<Walk> = None;
    let mut rest = RECORDS.prefix(Bytes::new());
    let mut runs = Runs::default();
    loop {
        let mut effects = shard.begin(scope);
        let page = page(&mut effects, &rest).await;
        let Some(((head, rows, more), _)) = shard.attempt(effects, page).await? else {
            runs.again(shard, scope).await?;
            continue;
        };
        runs = Runs::default();
        let Ok(head) = head else { return Ok(Walk::at(&Head::default()).result(Bad::new(0, "the head was changed"))) };
        let mut walk = walked.take().unwrap_or_else(|| Walk::at(&head));
        if walk.next < head.first {
            // What the walk stands on was removed meanwhile: it begins anew.
            rest = RECORDS.prefix(Bytes::new());
            continue;
        }
        let followed = rows.iter().try_for_each(|(key, row)| walk.step(scope, key, row));
        match rows.last() {
            Some((last, _)) if more && followed.is_ok() => {
                rest = rest.behind(last);
                walked = Some(walk);
            }
            _ => {
                let outcome = followed.and_then(|()| walk.end(&head));
                return Ok(walk.result(outcome));
            }
        }
    }
}

/// The head, if it can be read as one, with some rows of the same state, and whether there are more.
async fn page(effects: &mut Effects, range: &Range) -> Result<(serde_json::Result<Head>, Vec<(Bytes, Row)>, bool)> {
    let head = effects.get(&Head::key()).await?;
    let (rows, more) = effects.list(range, PAGE).await?;
    Ok((head.map_or_else(|| Ok(Head::default()), |row| Head::parse(&row)), rows, more))
}
