//! Spaces, keys and rows of a tenant's ordered map.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;

/// A named part of a tenant's map, such as `flags` or `kv/orders`. Names come from services, never
/// from a request unchecked.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Space(Cow<'static, str>);

impl Space {
    /// A space of a fixed name.
    pub const fn named(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }

    /// A space under a service's name, such as a collection under `kv`.
    pub fn under(service: &'static str, part: &str) -> Self {
        Self(Cow::Owned(format!("{service}/{part}")))
    }

    /// A space as a database row has it.
    pub(crate) fn from_row(name: String) -> Self {
        Self(Cow::Owned(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether rows here count against the tenant's storage quota: what a tenant puts there itself.
    pub fn charged(&self) -> bool {
        self.0.starts_with("kv/")
    }

    /// A key in this space.
    pub fn key(&self, key: impl Into<Bytes>) -> Key {
        Key { space: self.clone(), key: key.into() }
    }

    /// All keys that start with `prefix`, from `from` on if that is given.
    pub fn prefix(&self, prefix: impl Into<Bytes>) -> Range {
        let prefix = prefix.into();
        Range { space: self.clone(), to: successor(&prefix), from: prefix }
    }
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A row's place.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Key {
    /// The part of the map.
    pub space: Space,
    /// The key in it.
    pub key: Bytes,
}

/// Keys of one space, from `from` up to, not including, `to`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    /// The part of the map.
    pub space: Space,
    /// The first key.
    pub from: Bytes,
    /// The first key that is not in the range; none if it reaches the end of the space.
    pub to: Option<Bytes>,
}

impl Range {
    /// The rest of this range behind a key.
    #[must_use]
    pub fn behind(mut self, key: &[u8]) -> Self {
        self.from = after(key).max(self.from);
        self
    }

    /// Whether a key is in the range.
    pub fn contains(&self, key: &Key) -> bool {
        key.space == self.space && key.key >= self.from && self.to.as_ref().is_none_or(|to| key.key < *to)
    }
}

/// The smallest key greater than `key`.
pub(crate) fn after(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

/// The smallest key greater than every key that starts with `prefix`; none if there is no such key.
fn successor(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut next = prefix[..=last].to_vec();
    next[last] += 1;
    Some(next.into())
}

/// What a row holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// Any bytes.
    Bytes(Bytes),
    /// A number that commits add to.
    Counter(i64),
}

impl Value {
    /// The bytes; a counter as its decimal text.
    pub fn to_bytes(&self) -> Bytes {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Counter(count) => count.to_string().into(),
        }
    }

    /// The size that the storage quota counts.
    pub fn size(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Counter(_) => 8,
        }
    }
}

/// A stored or staged row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// What it holds.
    pub value: Value,
    /// The number of the commit that wrote it; 0 while it is only staged.
    pub version: u64,
    /// When it stops to exist, if ever.
    pub expires_at_ms: Option<i64>,
}

impl Row {
    /// Whether the row exists at this time.
    pub fn live(&self, now_ms: i64) -> bool {
        self.expires_at_ms.is_none_or(|expires_at_ms| expires_at_ms > now_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_covers_its_keys_and_no_others() {
        let space = Space::named("s");
        let range = space.prefix("ab");
        for (key, inside) in [("ab", true), ("ab\u{7f}", true), ("ac", false), ("aa", false), ("b", false)] {
            assert_eq!(range.contains(&space.key(key.as_bytes().to_vec())), inside, "{key}");
        }
        assert_eq!(successor(&[0xff, 0xff]), None);
        assert_eq!(successor(&[1, 0xff]).as_deref(), Some([2].as_slice()));
        assert_eq!(successor(b""), None);
    }
}
