//! Key-value collections of a tenant, shared by its plugins as granted.
//!
//! A collection exists by being written. Keys are text, ordered by their bytes; a value is bytes, or a
//! counter that concurrent transactions add to without a conflict. Reads belong to the transaction's
//! snapshot and see its own writes; conditions on versions are judged at the commit, since what they read
//! is validated there.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;

use crate::effects::{Effects, Key, Row, Space, Value};
use crate::kernel::error::{Error, Kind, Result};

/// Characters of a collection's name.
pub const COLLECTION_CHARS: usize = 64;
/// Bytes of a key: half of what the store's index holds.
pub const KEY_BYTES: usize = 512;
/// Bytes of a value; larger ones belong into blobs.
pub const VALUE_BYTES: usize = 256 << 10;
/// Entries of a page.
pub const PAGE: u32 = 1_000;
/// Bytes of the values of a page, so that a page fits into a guest's memory and a response; the page ends
/// early and its cursor says where.
pub const PAGE_BYTES: usize = 2 << 20;
/// The longest time to live: a hundred years, which keeps every time within range.
const TTL_MS: u64 = 100 * 366 * 86_400_000;

/// A stored or staged entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The bytes; a counter as its decimal text.
    pub value: Bytes,
    /// The commit that wrote it; 0 while it is only staged.
    pub version: u64,
}

/// Entries in the order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The entries.
    pub entries: Vec<Entry>,
    /// For the next page; none at the end.
    pub cursor: Option<String>,
}

/// The entry of a key.
pub async fn get(effects: &mut Effects, collection: &str, key: &str) -> Result<Option<Entry>> {
    let row = effects.get(&place(collection, key)?).await?;
    Ok(row.map(|row| entry(key.to_owned(), &row)))
}

/// Stage an entry. `ttl_ms` counts from the transaction's time; with `if_version` the entry must have that
/// version, 0 meaning that it is absent.
pub async fn put(
    effects: &mut Effects,
    collection: &str,
    key: &str,
    value: Bytes,
    ttl_ms: Option<u64>,
    if_version: Option<u64>,
) -> Result<()> {
    let place = place(collection, key)?;
    if value.len() > VALUE_BYTES {
        return Err(Error::new(
            Kind::Invalid,
            "value_too_large",
            format!("a value has at most {VALUE_BYTES} bytes; this one has {}", value.len()),
        ));
    }
    let expires_at_ms = match ttl_ms {
        None => None,
        Some(ttl_ms @ 0..=TTL_MS) => Some(effects.now_ms().saturating_add_unsigned(ttl_ms)),
        Some(_) => return Err(Error::invalid(format!("a time to live is 0 to {TTL_MS} milliseconds"))),
    };
    expect(effects, &place, if_version).await?;
    // What expires at once is never seen, neither by whoever wrote it.
    if ttl_ms == Some(0) { effects.delete(place) } else { effects.put(place, value, expires_at_ms) }
}

/// Stage the removal of an entry; whether there was one.
pub async fn delete(effects: &mut Effects, collection: &str, key: &str, if_version: Option<u64>) -> Result<bool> {
    let place = place(collection, key)?;
    expect(effects, &place, if_version).await?;
    let existed = effects.get(&place).await?.is_some();
    if existed {
        effects.delete(place)?;
    }
    Ok(existed)
}

/// At most `limit` entries whose keys start with `prefix`, from `cursor` on. A page ends early where its
/// values reach [`PAGE_BYTES`].
pub async fn list(
    effects: &mut Effects,
    collection: &str,
    prefix: &str,
    cursor: Option<&str>,
    limit: u32,
) -> Result<Page> {
    if limit == 0 || limit > PAGE {
        return Err(Error::invalid(format!("a page has 1 to {PAGE} entries")));
    }
    if prefix.len() > KEY_BYTES {
        return Err(Error::invalid(format!("a prefix has at most {KEY_BYTES} bytes")));
    }
    let mut range = space(collection)?.prefix(prefix.as_bytes().to_vec());
    if let Some(cursor) = cursor {
        range = range.behind(&last_of(cursor, prefix)?);
    }
    let (rows, mut more) = effects.list(&range, limit as usize).await?;
    let mut page = Page::default();
    let mut bytes = 0;
    for (key, row) in rows {
        bytes += row.value.size();
        if bytes > PAGE_BYTES && !page.entries.is_empty() {
            more = true;
            break;
        }
        page.entries.push(entry(text(key)?, &row));
    }
    if let (true, Some(last)) = (more, page.entries.last()) {
        page.cursor = Some(BASE64_URL_SAFE_NO_PAD.encode(&last.key));
    }
    Ok(page)
}

/// Stage an addition to a counter, without reading it. What is no counter, or leaves the range, is found at
/// the commit.
pub async fn increment(effects: &mut Effects, collection: &str, key: &str, delta: i64) -> Result<()> {
    effects.add(place(collection, key)?, delta)
}

/// Read a counter.
pub async fn counter(effects: &mut Effects, collection: &str, key: &str) -> Result<Option<i64>> {
    match effects.get(&place(collection, key)?).await? {
        None => Ok(None),
        Some(Row { value: Value::Counter(count), .. }) => Ok(Some(count)),
        Some(_) => Err(Error::new(
            Kind::Invalid,
            "not_a_counter",
            "the entry is not a counter; read it with get, or count under another key",
        )),
    }
}

async fn expect(effects: &mut Effects, place: &Key, if_version: Option<u64>) -> Result<()> {
    let Some(expected) = if_version else {
        return Ok(());
    };
    let row = effects.get(place).await?;
    // A staged entry has version 0 too, but it is there.
    let as_expected = match &row {
        None => expected == 0,
        Some(row) => expected != 0 && row.version == expected,
    };
    if as_expected {
        return Ok(());
    }
    let found = row.map_or_else(|| "is absent".to_owned(), |row| format!("has version {}", row.version));
    Err(Error::new(Kind::Conflict, "version_mismatch", format!("the entry {found}, not {expected}; read it again")))
}

fn entry(key: String, row: &Row) -> Entry {
    Entry { key, value: row.value.to_bytes(), version: row.version }
}

fn text(key: Bytes) -> Result<String> {
    // Only text is ever stored as a key.
    String::from_utf8(key.into()).map_err(Error::internal)
}

/// The key after which the page begins. `cursor` comes from a stranger.
pub(crate) fn last_of(cursor: &str, prefix: &str) -> Result<Vec<u8>> {
    let bad = || Error::invalid("the cursor is not one that a page of this list gave");
    if cursor.len() > 2 * KEY_BYTES {
        return Err(bad());
    }
    let last = BASE64_URL_SAFE_NO_PAD.decode(cursor).map_err(|_| bad())?;
    if last.len() > KEY_BYTES || !last.starts_with(prefix.as_bytes()) {
        return Err(bad());
    }
    Ok(last)
}

fn place(collection: &str, key: &str) -> Result<Key> {
    if key.is_empty() || key.len() > KEY_BYTES {
        return Err(Error::invalid(format!("a key has 1 to {KEY_BYTES} bytes")));
    }
    // Text that not every database and tool can hold is refused where it is staged.
    if key.contains('\0') {
        return Err(Error::invalid("a key has no NUL in it"));
    }
    Ok(space(collection)?.key(key.as_bytes().to_vec()))
}

fn space(collection: &str) -> Result<Space> {
    let fits = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    if (1..=COLLECTION_CHARS).contains(&collection.len()) && collection.bytes().all(fits) {
        return Ok(Space::under("kv", collection));
    }
    Err(Error::invalid(format!("a collection's name is 1 to {COLLECTION_CHARS} of a-z 0-9 _ -")))
}
