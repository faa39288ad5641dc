//! Key-value collections of the tenant.
//!
//! Reads see a consistent snapshot and the invocation's own writes. Writes are staged, and committed with the
//! invocation; when two invocations touch the same keys, the host runs the later one again, so that each sees the world
//! as if it were alone.
//!
//! A collection's name is 1 to 64 of `a-z 0-9 _ -`, a key 1 to 512 bytes, a value at most 256 KiB; anything else is
//! [`Error::Invalid`](crate::Error::Invalid). A collection that the manifest does not grant is
//! [`Error::Denied`](crate::Error::Denied).

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Result, host};

/// Entries a page of [`scan`] asks for: large enough that paging costs little, small enough to stay in memory.
const SCAN_PAGE: u32 = 100;

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value's bytes; a counter reads as its decimal text.
    pub value: Vec<u8>,
    /// The sequence number of the commit that wrote it; 0 for a write of this invocation.
    pub version: u64,
}

impl Entry {
    /// The value, read as JSON. Fails with [`Error::Reject`](crate::Error::Reject) if it is not a `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        Ok(serde_json::from_slice(&self.value)?)
    }
}

/// Conditions and lifetime of a write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PutOptions {
    pub(crate) ttl_ms: Option<u64>,
    pub(crate) if_version: Option<u64>,
}

impl PutOptions {
    /// No condition, and an entry that stays.
    pub fn new() -> Self {
        Self::default()
    }

    /// The entry is gone this long after the invocation's time, counted in whole milliseconds.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl_ms = Some(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// Write only if the entry has this version, else [`Error::Conflict`](crate::Error::Conflict).
    pub fn if_version(mut self, version: u64) -> Self {
        self.if_version = Some(version);
        self
    }

    /// Write only if there is no entry, else [`Error::Conflict`](crate::Error::Conflict).
    pub fn if_absent(self) -> Self {
        self.if_version(0)
    }
}

/// Some entries of a collection, in the order of their keys' bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The entries, at most as many as were asked for.
    pub entries: Vec<Entry>,
    /// Give it to the next call of [`list`] to read on; absent at the end.
    pub cursor: Option<String>,
}

/// Read a value as JSON; `None` if there is no entry.
pub fn get<T: DeserializeOwned>(collection: &str, key: &str) -> Result<Option<T>> {
    entry(collection, key)?.map(|entry| entry.json()).transpose()
}

/// Read a value's bytes; `None` if there is no entry.
pub fn get_bytes(collection: &str, key: &str) -> Result<Option<Vec<u8>>> {
    Ok(entry(collection, key)?.map(|entry| entry.value))
}

/// Read an entry with its version; `None` if there is none.
pub fn entry(collection: &str, key: &str) -> Result<Option<Entry>> {
    host::kv_get(collection, key)
}

/// Write a value as JSON.
pub fn put<T: Serialize + ?Sized>(collection: &str, key: &str, value: &T) -> Result<()> {
    put_with(collection, key, value, PutOptions::new())
}

/// Write a value as JSON under conditions.
pub fn put_with<T: Serialize + ?Sized>(collection: &str, key: &str, value: &T, options: PutOptions) -> Result<()> {
    put_bytes_with(collection, key, &serde_json::to_vec(value)?, options)
}

/// Write a value's bytes.
pub fn put_bytes(collection: &str, key: &str, value: &[u8]) -> Result<()> {
    put_bytes_with(collection, key, value, PutOptions::new())
}

/// Write a value's bytes under conditions.
pub fn put_bytes_with(collection: &str, key: &str, value: &[u8], options: PutOptions) -> Result<()> {
    host::kv_put(collection, key, value, options)
}

/// Delete an entry; true if there was one.
pub fn delete(collection: &str, key: &str) -> Result<bool> {
    host::kv_delete(collection, key, None)
}

/// Delete an entry if it has this version, else [`Error::Conflict`](crate::Error::Conflict).
pub fn delete_if_version(collection: &str, key: &str, version: u64) -> Result<bool> {
    host::kv_delete(collection, key, Some(version))
}

/// Read up to `limit` entries (at most 1,000) whose key starts with `prefix`, from `cursor` on.
pub fn list(collection: &str, prefix: &str, cursor: Option<&str>, limit: u32) -> Result<Page> {
    host::kv_list(collection, prefix, cursor, limit)
}

/// Read every entry whose key starts with `prefix`, a page at a time.
///
/// After an error the iterator ends.
pub fn scan(collection: &str, prefix: &str) -> impl Iterator<Item = Result<Entry>> {
    Scan {
        collection: collection.to_owned(),
        prefix: prefix.to_owned(),
        page: Vec::new().into_iter(),
        cursor: None,
        done: false,
    }
}

/// Add to a counter without reading it, so that concurrent invocations do not conflict.
///
/// A missing counter starts at 0. If the entry is no counter, or would leave the range of `i64`, the invocation's
/// commit is refused as invalid.
pub fn increment(collection: &str, key: &str, delta: i64) -> Result<()> {
    host::kv_increment(collection, key, delta)
}

/// Read a counter; `None` if there is no entry, [`Error::Invalid`](crate::Error::Invalid) if it is no counter.
///
/// It is an ordinary read: an invocation that reads a counter conflicts with those that add to it.
pub fn counter(collection: &str, key: &str) -> Result<Option<i64>> {
    host::kv_counter(collection, key)
}

struct Scan {
    collection: String,
    prefix: String,
    page: std::vec::IntoIter<Entry>,
    cursor: Option<String>,
    done: bool,
}

impl Iterator for Scan {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.page.next() {
                return Some(Ok(entry));
            }
            if self.done {
                return None;
            }
            match list(&self.collection, &self.prefix, self.cursor.as_deref(), SCAN_PAGE) {
                Ok(page) => {
                    self.page = page.entries.into_iter();
                    self.done = page.cursor.is_none();
                    self.cursor = page.cursor;
                }
                Err(error) => {
                    self.done = true;
                    return Some(Err(error));
                }
            }
        }
    }
}
