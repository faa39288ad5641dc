//! A bounded map for what is looked up with every request.
//!
//! A look-up marks its entry and takes a reader's lock of one part of the map: some ten nanoseconds, also when every core
//! looks up the same entry. (A cache that writes down each look-up, as moka does for its order of eviction, takes ten
//! times as long there.) Entries that are used stay; a flood of new keys pushes out itself first.

use std::borrow::Borrow;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::kernel::error::Result;

/// How long an entry stands at most of which it is known that nothing has changed.
const LONGEST: Duration = Duration::from_secs(60);

/// The map. Clones share it.
pub(crate) struct Cache<K, V>(Arc<Entries<K, V>>);

struct Entries<K, V> {
    map: quick_cache::sync::Cache<K, (V, Option<Read>)>,
    life: Option<Duration>,
    changes: Changes,
}

/// When an entry was read, and how many changes had been made before.
#[derive(Clone, Copy)]
struct Read {
    at: Instant,
    changes: Option<u64>,
}

/// A count of the changes of what entries are read from; none where other processes change it as well.
#[derive(Clone, Default)]
pub(crate) struct Changes(Option<Arc<AtomicU64>>);

impl Changes {
    /// A count that begins.
    pub(crate) fn counted() -> Self {
        Self(Some(Arc::default()))
    }

    /// Something may have changed: to be said when whoever reads sees it.
    pub(crate) fn one_more(&self) {
        if let Some(count) = &self.0 {
            count.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn count(&self) -> Option<u64> {
        self.0.as_ref().map(|count| count.load(Ordering::SeqCst))
    }
}

impl<K, V> Clone for Cache<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Cache<K, V> {
    /// A map of about so many entries: it has parts, each of which rounds up.
    pub(crate) fn new(capacity: usize) -> Self {
        Self::with(capacity, None, Changes::default())
    }

    /// A map of so many entries, each of which is forgotten so long after it was put in.
    pub(crate) fn forgetting(capacity: usize, life: Duration) -> Self {
        Self::with(capacity, Some(life), Changes::default())
    }

    /// The same, but what was read with [`Self::get_or_read`] stands longer, until something changes; a minute at most.
    pub(crate) fn following(capacity: usize, life: Duration, changes: Changes) -> Self {
        Self::with(capacity, Some(life), changes)
    }

    fn with(capacity: usize, life: Option<Duration>, changes: Changes) -> Self {
        Self(Arc::new(Entries { map: quick_cache::sync::Cache::new(capacity), life, changes }))
    }

    /// The entry of a key.
    pub(crate) fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let (value, read) = self.0.map.get(key)?;
        read.is_none_or(|read| self.stands(read)).then_some(value)
    }

    fn stands(&self, read: Read) -> bool {
        let age = read.at.elapsed();
        self.0.life.is_none_or(|life| age < life)
            || age < LONGEST && read.changes.is_some() && read.changes == self.0.changes.count()
    }

    /// The entry of a key, read if there is none.
    pub(crate) async fn get_or_read<Q>(&self, key: &Q, read: impl AsyncFnOnce() -> Result<V>) -> Result<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if let Some(known) = self.get(key) {
            return Ok(known);
        }
        // Counted before it is read: a change that is seen meanwhile only has it read once more.
        let changes = self.0.changes.count();
        let value = read().await?;
        self.0.map.insert(key.to_owned(), (value.clone(), Some(Read { at: Instant::now(), changes })));
        Ok(value)
    }

    /// The entry of a key, made if there is none: once, however many ask at the same time.
    pub(crate) fn get_or_make(&self, key: &K, make: impl FnOnce() -> V) -> V {
        debug_assert!(self.0.life.is_none(), "an entry that is forgotten would be given out");
        let Ok((value, _)) = self.0.map.get_or_insert_with(key, || Ok::<_, std::convert::Infallible>((make(), None)));
        value
    }

    /// Put an entry in.
    pub(crate) fn insert(&self, key: K, value: V) {
        let read = self.0.life.map(|_| Read { at: Instant::now(), changes: None });
        self.0.map.insert(key, (value, read));
    }

    /// Forget an entry.
    pub(crate) fn remove<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.0.map.remove(key);
    }

    /// Forget the entries that are not to be kept.
    pub(crate) fn retain(&self, keep: impl Fn(&V) -> bool) {
        self.0.map.retain(|_, (value, _)| keep(value));
    }

    /// Forget all.
    pub(crate) fn clear(&self) {
        self.0.map.clear();
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.map.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_with_an_end_is_not_given_out_after_it() {
        let cache = Cache::forgetting(10, Duration::from_secs(3_600));
        cache.insert("key".to_owned(), 1);
        assert_eq!(cache.get("key"), Some(1));
        cache.remove("key");
        assert_eq!(cache.get("key"), None);
        let brief = Cache::forgetting(10, Duration::ZERO);
        brief.insert("key".to_owned(), 1);
        assert_eq!(brief.get("key"), None);
    }

    #[tokio::test]
    async fn an_entry_that_follows_changes_is_read_again_after_one() {
        let changes = Changes::counted();
        let cache = Cache::following(10, Duration::ZERO, changes.clone());
        let read = async |value: u32| cache.get_or_read("key", async || Ok(value)).await.unwrap();
        assert_eq!((read(1).await, read(2).await), (1, 1), "nothing has changed");
        changes.one_more();
        assert_eq!((read(3).await, read(4).await), (3, 3));
        // A change that comes while it is read may have been missed by that.
        changes.one_more();
        let reading = async || {
            changes.one_more();
            Ok(5)
        };
        assert_eq!(cache.get_or_read("key", reading).await.unwrap(), 5);
        assert_eq!(read(6).await, 6);
        let others_change_it = Cache::<String, u32>::following(10, Duration::ZERO, Changes::default());
        for value in [1, 2] {
            assert_eq!(others_change_it.get_or_read("key", async || Ok(value)).await.unwrap(), value);
        }
    }

    #[test]
    fn a_flood_of_new_keys_pushes_out_itself_first() {
        let cache = Cache::new(1_000);
        for key in 0..100 {
            cache.insert(key, key);
        }
        for new in 1_000..100_000_u32 {
            cache.insert(new, new);
            // What is in use is used again and again.
            assert!(new % 16 > 0 || (0..100).all(|key| cache.get(&key).is_some()), "after {new}");
        }
        assert!(cache.len() <= 1_000);
    }
}
