//! A bounded map for what is looked up with every request.
//!
//! A look-up marks its entry and takes a reader's lock of one part of the map: some ten nanoseconds, also when every core
//! looks up the same entry. (A cache that writes down each look-up, as moka does for its order of eviction, takes ten
//! times as long there.) Entries that are used stay; a flood of new keys pushes out itself first.

use std::borrow::Borrow;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The map. Clones share it.
pub(crate) struct Cache<K, V>(Arc<Entries<K, V>>);

struct Entries<K, V> {
    map: quick_cache::sync::Cache<K, (V, Option<Instant>)>,
    life: Option<Duration>,
}

impl<K, V> Clone for Cache<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Cache<K, V> {
    /// A map of about so many entries: it has parts, each of which rounds up.
    pub(crate) fn new(capacity: usize) -> Self {
        Self(Arc::new(Entries { map: quick_cache::sync::Cache::new(capacity), life: None }))
    }

    /// A map of so many entries, each of which is forgotten so long after it was put in.
    pub(crate) fn forgetting(capacity: usize, life: Duration) -> Self {
        Self(Arc::new(Entries { map: quick_cache::sync::Cache::new(capacity), life: Some(life) }))
    }

    /// The entry of a key.
    pub(crate) fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let (value, end) = self.0.map.get(key)?;
        end.is_none_or(|end| Instant::now() < end).then_some(value)
    }

    /// The entry of a key, made if there is none: once, however many ask at the same time.
    pub(crate) fn get_or_make(&self, key: &K, make: impl FnOnce() -> V) -> V {
        debug_assert!(self.0.life.is_none(), "an entry that is forgotten would be given out");
        let Ok((value, _)) = self.0.map.get_or_insert_with(key, || Ok::<_, std::convert::Infallible>((make(), None)));
        value
    }

    /// Put an entry in.
    pub(crate) fn insert(&self, key: K, value: V) {
        self.0.map.insert(key, (value, self.0.life.map(|life| Instant::now() + life)));
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
