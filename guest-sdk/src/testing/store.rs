//! Committed entries of all collections, and the changes that an invocation stages over them.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::kv::{Entry, Page, PutOptions};

/// Most entries of a page, as the WIT says.
const PAGE_ENTRIES: u32 = 1_000;
/// Longest key, in bytes.
const KEY_BYTES: usize = 512;
/// Largest value, in bytes.
const VALUE_BYTES: usize = 256 * 1024;
/// Longest collection name, in bytes.
const COLLECTION_BYTES: usize = 64;

/// Collection and key.
type Place = (String, String);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Bytes(Vec<u8>),
    Counter(i64),
}

impl Value {
    fn to_bytes(&self) -> Vec<u8> {
        match self {
            Value::Bytes(bytes) => bytes.clone(),
            Value::Counter(count) => count.to_string().into_bytes(),
        }
    }
}

#[derive(Debug, Clone)]
struct Row {
    value: Value,
    version: u64,
    expires_ms: Option<u64>,
}

impl Row {
    fn live(&self, now_ms: u64) -> bool {
        self.expires_ms.is_none_or(|expires_ms| now_ms < expires_ms)
    }
}

/// What was committed. A row's version is the number of the commit that wrote it; numbers are never used again.
#[derive(Debug, Default)]
pub(super) struct Store {
    seq: u64,
    rows: BTreeMap<Place, Row>,
}

impl Store {
    pub(super) fn get(&self, collection: &str, key: &str, now_ms: u64) -> Option<Entry> {
        self.row(collection, key, now_ms).map(|row| Entry {
            key: key.to_owned(),
            value: row.value.to_bytes(),
            version: row.version,
        })
    }

    pub(super) fn keys(&self, collection: &str, now_ms: u64) -> Vec<String> {
        self.rows
            .iter()
            .filter(|((known, _), row)| known == collection && row.live(now_ms))
            .map(|((_, key), _)| key.clone())
            .collect()
    }

    pub(super) fn commit_put(&mut self, collection: &str, key: &str, value: &[u8]) {
        self.seq += 1;
        let row = Row { value: Value::Bytes(value.to_vec()), version: self.seq, expires_ms: None };
        self.rows.insert((collection.to_owned(), key.to_owned()), row);
    }

    /// Apply what was staged at once, or refuse all of it.
    pub(super) fn commit(&mut self, staged: Staged, now_ms: u64) -> Result<()> {
        let mut rows = Vec::new();
        for ((collection, key), change) in staged.changes {
            let row = match change {
                Change::Put { value, expires_ms } => Some((value, expires_ms)),
                Change::Delete => None,
                Change::Add(delta) => {
                    let (count, expires_ms) = match self.row(&collection, &key, now_ms) {
                        None => (0, None),
                        Some(Row { value: Value::Counter(count), expires_ms, .. }) => (*count, *expires_ms),
                        Some(_) => return Err(no_counter(&collection, &key)),
                    };
                    let sum = count.checked_add(delta).ok_or_else(|| overflow(&collection, &key))?;
                    Some((Value::Counter(sum), expires_ms))
                }
            };
            rows.push(((collection, key), row));
        }
        if rows.is_empty() {
            return Ok(());
        }
        self.seq += 1;
        for (place, row) in rows {
            match row {
                Some((value, expires_ms)) => {
                    self.rows.insert(place, Row { value, version: self.seq, expires_ms });
                }
                None => {
                    self.rows.remove(&place);
                }
            }
        }
        Ok(())
    }

    fn row(&self, collection: &str, key: &str, now_ms: u64) -> Option<&Row> {
        self.rows.get(&(collection.to_owned(), key.to_owned())).filter(|row| row.live(now_ms))
    }
}

#[derive(Debug, Clone)]
enum Change {
    Put {
        value: Value,
        expires_ms: Option<u64>,
    },
    Delete,
    /// To a counter that this invocation has not read.
    Add(i64),
}

/// What an invocation wants to change; its reads see it.
#[derive(Debug, Default)]
pub(super) struct Staged {
    changes: BTreeMap<Place, Change>,
}

impl Staged {
    pub(super) fn get(&self, store: &Store, collection: &str, key: &str, now_ms: u64) -> Result<Option<Entry>> {
        check_place(collection, key)?;
        self.read(store, collection, key, now_ms)
    }

    /// The committed row under what was staged, without checking the names.
    fn read(&self, store: &Store, collection: &str, key: &str, now_ms: u64) -> Result<Option<Entry>> {
        let own = |value: Vec<u8>| Entry { key: key.to_owned(), value, version: 0 };
        match self.changes.get(&(collection.to_owned(), key.to_owned())) {
            None => Ok(store.get(collection, key, now_ms)),
            Some(Change::Put { value, expires_ms }) => {
                let live = expires_ms.is_none_or(|expires_ms| now_ms < expires_ms);
                Ok(live.then(|| own(value.to_bytes())))
            }
            Some(Change::Delete) => Ok(None),
            Some(Change::Add(delta)) => {
                let count = match store.row(collection, key, now_ms).map(|row| &row.value) {
                    None => 0,
                    Some(Value::Counter(count)) => *count,
                    Some(Value::Bytes(_)) => return Err(no_counter(collection, key)),
                };
                let sum = count.checked_add(*delta).ok_or_else(|| overflow(collection, key))?;
                Ok(Some(own(sum.to_string().into_bytes())))
            }
        }
    }

    pub(super) fn put(
        &mut self,
        store: &Store,
        (collection, key): (&str, &str),
        value: &[u8],
        options: PutOptions,
        now_ms: u64,
    ) -> Result<()> {
        check_place(collection, key)?;
        if value.len() > VALUE_BYTES {
            return Err(Error::Invalid(format!("a value has at most {VALUE_BYTES} bytes")));
        }
        self.check_version(store, collection, key, options.if_version, now_ms)?;
        let expires_ms = options.ttl_ms.map(|ttl_ms| now_ms.saturating_add(ttl_ms));
        let change = Change::Put { value: Value::Bytes(value.to_vec()), expires_ms };
        self.changes.insert((collection.to_owned(), key.to_owned()), change);
        Ok(())
    }

    pub(super) fn delete(
        &mut self,
        store: &Store,
        (collection, key): (&str, &str),
        if_version: Option<u64>,
        now_ms: u64,
    ) -> Result<bool> {
        check_place(collection, key)?;
        self.check_version(store, collection, key, if_version, now_ms)?;
        let existed = self.read(store, collection, key, now_ms)?.is_some();
        self.changes.insert((collection.to_owned(), key.to_owned()), Change::Delete);
        Ok(existed)
    }

    pub(super) fn list(
        &self,
        store: &Store,
        (collection, prefix): (&str, &str),
        cursor: Option<&str>,
        limit: u32,
        now_ms: u64,
    ) -> Result<Page> {
        check_collection(collection)?;
        if !(1..=PAGE_ENTRIES).contains(&limit) {
            return Err(Error::Invalid(format!("a page has 1 to {PAGE_ENTRIES} entries")));
        }
        let mut keys: Vec<_> = store.keys(collection, now_ms);
        keys.extend(self.changes.keys().filter(|(known, _)| known == collection).map(|(_, key)| key.clone()));
        keys.sort_unstable();
        keys.dedup();
        let mut page = Page::default();
        for key in keys {
            if !key.starts_with(prefix) || cursor.is_some_and(|cursor| key.as_str() <= cursor) {
                continue;
            }
            let Some(entry) = self.read(store, collection, &key, now_ms)? else { continue };
            if page.entries.len() == limit as usize {
                page.cursor = page.entries.last().map(|entry| entry.key.clone());
                break;
            }
            page.entries.push(entry);
        }
        Ok(page)
    }

    pub(super) fn increment(&mut self, (collection, key): (&str, &str), delta: i64) -> Result<()> {
        check_place(collection, key)?;
        let overflow = || overflow(collection, key);
        let change = match self.changes.get(&(collection.to_owned(), key.to_owned())) {
            None => Change::Add(delta),
            Some(Change::Add(sum)) => Change::Add(sum.checked_add(delta).ok_or_else(overflow)?),
            Some(Change::Delete) => Change::Put { value: Value::Counter(delta), expires_ms: None },
            Some(Change::Put { value: Value::Counter(count), expires_ms }) => Change::Put {
                value: Value::Counter(count.checked_add(delta).ok_or_else(overflow)?),
                expires_ms: *expires_ms,
            },
            Some(Change::Put { value: Value::Bytes(_), .. }) => return Err(no_counter(collection, key)),
        };
        self.changes.insert((collection.to_owned(), key.to_owned()), change);
        Ok(())
    }

    pub(super) fn counter(&self, store: &Store, collection: &str, key: &str, now_ms: u64) -> Result<Option<i64>> {
        check_place(collection, key)?;
        let committed = match store.row(collection, key, now_ms).map(|row| &row.value) {
            None => Ok(None),
            Some(Value::Counter(count)) => Ok(Some(*count)),
            Some(Value::Bytes(_)) => Err(no_counter(collection, key)),
        };
        match self.changes.get(&(collection.to_owned(), key.to_owned())) {
            None => committed,
            Some(Change::Delete) => Ok(None),
            Some(Change::Put { value: Value::Counter(count), .. }) => Ok(Some(*count)),
            Some(Change::Put { value: Value::Bytes(_), .. }) => Err(no_counter(collection, key)),
            Some(Change::Add(delta)) => {
                let sum = committed?.unwrap_or(0).checked_add(*delta).ok_or_else(|| overflow(collection, key))?;
                Ok(Some(sum))
            }
        }
    }

    fn check_version(
        &self,
        store: &Store,
        collection: &str,
        key: &str,
        if_version: Option<u64>,
        now_ms: u64,
    ) -> Result<()> {
        let Some(wanted) = if_version else { return Ok(()) };
        let found = self.read(store, collection, key, now_ms)?;
        // An entry that this invocation wrote has no version yet, so that no version names it.
        let holds = match (&found, wanted) {
            (None, 0) => true,
            (Some(entry), wanted) => wanted != 0 && entry.version == wanted,
            (None, _) => false,
        };
        if holds {
            return Ok(());
        }
        Err(Error::Conflict(format!("{collection}/{key} does not have version {wanted}")))
    }
}

fn check_place(collection: &str, key: &str) -> Result<()> {
    check_collection(collection)?;
    if key.is_empty() || key.len() > KEY_BYTES {
        return Err(Error::Invalid(format!("a key has 1 to {KEY_BYTES} bytes")));
    }
    if key.contains('\0') {
        return Err(Error::Invalid("a key has no NUL in it".into()));
    }
    Ok(())
}

fn check_collection(collection: &str) -> Result<()> {
    let allowed = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    if (1..=COLLECTION_BYTES).contains(&collection.len()) && collection.bytes().all(allowed) {
        return Ok(());
    }
    Err(Error::Invalid(format!("a collection's name is 1 to {COLLECTION_BYTES} of a-z 0-9 _ -")))
}

fn no_counter(collection: &str, key: &str) -> Error {
    Error::Invalid(format!("{collection}/{key} is no counter"))
}

fn overflow(collection: &str, key: &str) -> Error {
    Error::Invalid(format!("the counter {collection}/{key} would leave the range of 64 bits"))
}
