//! Rows as of a tenant's latest known commit, so that a read need not go to the database.
//!
//! One tag a tenant says which commit its entries belong to. A commit moves the tag and the entries
//! together; a reader that sees a later state drops the entries of the older one, so that nobody who begins
//! after it can be shown them. A filler takes its handle before it reads, so that a fill that comes late
//! lands in a handle nobody uses any more. Absent rows are entries too.
//!
//! While a commit of this node is under way, readers may see in the database what it made before it says here what that
//! was. The entries are kept for it then: it turns them into those of the new state. From when somebody has seen that until it
//! does, they are shown only to whoever has an older snapshot.
//!
//! Where other processes write as well, settings stand beside these: rows as they were a moment ago. Other nodes'
//! commits do not drop them, and own commits replace them at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::effects::Breaks;
use crate::effects::row::{Key, Row, Value};
use crate::effects::set::{Facts, Op, ReadFact, Tag, Write};
use crate::kernel::cache;
use crate::kernel::tenant::TenantId;

/// Tenants whose rows are kept: with [`TENANT_BYTES`] this bounds the cache to 1 GiB.
const TENANTS: usize = 4_096;
/// Bytes of keys and values kept for a tenant: a few thousand settings-sized rows.
const TENANT_BYTES: usize = 256 << 10;
/// Bytes of a value that is worth keeping; a larger one would push out too many others.
const VALUE_BYTES: usize = 16 << 10;
/// How long a setting is taken for current that another node may have changed.
const RECENT: Duration = Duration::from_secs(1);
/// Bytes counted for an entry beside its key and value: two maps' worth of pointers and lengths.
const ENTRY_BYTES: usize = 128;

/// The cache of one shard.
#[derive(Clone)]
pub(crate) struct Cache {
    tenants: cache::Cache<TenantId, Handle>,
    /// With a promise broken, whose entries all tenants' are.
    shared: Option<TenantId>,
}

/// One tenant's entries.
#[derive(Clone, Default)]
pub(crate) struct Handle(Arc<Mutex<Entries>>);

#[derive(Default)]
struct Entries {
    tag: Option<Tag>,
    /// The latest state that was seen while a commit is under way, if it is later than the entries'.
    seen: Option<Tag>,
    /// Whether a commit of this node is under way.
    committing: bool,
    rows: Rows,
    settings: Settings,
}

/// Rows that were read, in two generations: when the young ones fill their half, they become the old ones, and what was
/// neither asked for nor written since it became old goes. So a stream of rows that are read once does not push out those that are read
/// again and again.
#[derive(Default)]
struct Rows {
    young: HashMap<Key, Option<Row>>,
    /// Bytes of the young ones.
    bytes: usize,
    old: HashMap<Key, Option<Row>>,
}

impl Rows {
    fn get(&mut self, key: &Key) -> Option<Option<Row>> {
        if let Some(row) = self.young.get(key) {
            return Some(row.clone());
        }
        let (key, row) = self.old.remove_entry(key)?;
        self.insert(key, row.clone());
        Some(row)
    }

    /// The same without a trace.
    fn peek(&self, key: &Key) -> Option<&Option<Row>> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    fn insert(&mut self, key: Key, row: Option<Row>) {
        self.remove(&key);
        if row.as_ref().is_some_and(|row| row.value.size() > VALUE_BYTES) {
            return;
        }
        let added = weight(&key, row.as_ref());
        if self.bytes + added > TENANT_BYTES / 2 {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        self.bytes += added;
        self.young.insert(key, row);
    }

    fn remove(&mut self, key: &Key) {
        match self.young.remove(key) {
            Some(row) => self.bytes -= weight(key, row.as_ref()),
            None => drop(self.old.remove(key)),
        }
    }
}

/// Rows, and when each was seen.
#[derive(Default)]
struct Settings {
    rows: HashMap<Key, (Option<Row>, Instant)>,
    bytes: usize,
}

impl Settings {
    fn insert(&mut self, key: Key, row: Option<Row>) {
        let added = weight(&key, row.as_ref());
        if self.bytes + added > TENANT_BYTES {
            *self = Self::default();
        }
        if let Some((old, _)) = self.rows.insert(key.clone(), (row, Instant::now())) {
            self.bytes -= weight(&key, old.as_ref());
        }
        self.bytes += added;
    }

    /// A commit of this node wrote the row.
    fn written(&mut self, write: &Write, version: u64) {
        if !self.rows.contains_key(&write.key) {
            return;
        }
        match &write.op {
            Op::Put { value, expires_at_ms } => {
                let row = Row { value: value.clone(), version, expires_at_ms: *expires_at_ms };
                self.insert(write.key.clone(), Some(row));
            }
            Op::Delete => self.insert(write.key.clone(), None),
            Op::Add(_) | Op::Sweep { .. } => {
                if let Some((old, _)) = self.rows.remove(&write.key) {
                    self.bytes -= weight(&write.key, old.as_ref());
                }
            }
        }
    }
}

impl Entries {
    fn clear(&mut self) {
        self.rows = Rows::default();
    }

    /// Move to a state that was seen, if it is later than the entries'; whether they are of that state then.
    fn follow(&mut self, tag: Tag) -> bool {
        match self.tag {
            Some(known) if known == tag => true,
            Some(known) if tag < known => false,
            Some(_) if self.committing => {
                self.seen = self.seen.max(Some(tag));
                false
            }
            _ => {
                self.clear();
                self.tag = Some(tag);
                true
            }
        }
    }

    /// The commit that was under way has ended, and what it wrote is in the entries.
    fn settle(&mut self) {
        self.committing = false;
        if let Some(seen) = self.seen.take() {
            self.follow(seen);
        }
    }
}

fn weight(key: &Key, row: Option<&Row>) -> usize {
    key.key.len() + row.map_or(0, |row| row.value.size()) + ENTRY_BYTES
}

impl Cache {
    pub(crate) fn new(breaks: Breaks) -> Self {
        let shared = breaks.cache_tenant.then(|| TenantId::from_row(""));
        Self { tenants: cache::Cache::new(TENANTS), shared }
    }

    /// Whose entries a tenant's are: its own.
    fn owner<'a>(&'a self, tenant: &'a TenantId) -> &'a TenantId {
        self.shared.as_ref().unwrap_or(tenant)
    }

    /// The tenant's entries; to be taken before the read that may fill them.
    pub(crate) fn handle(&self, tenant: &TenantId) -> Handle {
        self.tenants.get_or_make(self.owner(tenant), Handle::default)
    }

    /// Forget a tenant, or after a change of timeline everything.
    pub(crate) fn forget(&self, tenant: Option<&TenantId>) {
        match tenant {
            Some(tenant) => self.tenants.remove(tenant),
            None => self.tenants.clear(),
        }
    }

    /// A commit of this node begins: until [`Self::publish`] or [`Self::settle`] ends it, a later state that somebody
    /// sees is probably its own.
    pub(crate) fn begin(&self, tenant: &TenantId) {
        if let Some(handle) = self.tenants.get(self.owner(tenant)) {
            handle.lock().committing = true;
        }
    }

    /// It has ended and changed nothing, as far as anybody knows.
    pub(crate) fn settle(&self, tenant: &TenantId) {
        if let Some(handle) = self.tenants.get(self.owner(tenant)) {
            handle.lock().settle();
        }
    }

    /// It has ended: the tenant's head moved from `before` to `after` by these writes, in this order.
    pub(crate) fn publish<'a>(
        &self,
        tenant: &TenantId,
        before: Tag,
        after: Tag,
        writes: impl Iterator<Item = (&'a Write, u64)> + Clone,
    ) {
        let Some(handle) = self.tenants.get(self.owner(tenant)) else { return };
        let mut entries = handle.lock();
        writes.clone().for_each(|(write, version)| entries.settings.written(write, version));
        match entries.tag {
            Some(tag) if tag == before => {}
            // A reader already saw this commit, or a later one.
            Some(tag) if tag.epoch == after.epoch && tag.seq >= after.seq => return entries.settle(),
            _ => entries.clear(),
        }
        entries.tag = Some(after);
        for (write, version) in writes {
            // What nobody has read is not worth a place: most of it is records.
            let Some(known) = entries.rows.peek(&write.key) else { continue };
            let row = match &write.op {
                Op::Put { value, expires_at_ms } => {
                    Some(Some(Row { value: value.clone(), version, expires_at_ms: *expires_at_ms }))
                }
                Op::Delete => Some(None),
                Op::Sweep { .. } => None,
                Op::Add(delta) => match known {
                    Some(Row { value: Value::Counter(count), expires_at_ms: None, .. }) => count
                        .checked_add(*delta)
                        .map(|sum| Some(Row { value: Value::Counter(sum), version, expires_at_ms: None })),
                    _ => None,
                },
            };
            match row {
                Some(row) => entries.rows.insert(write.key.clone(), row),
                None => entries.rows.remove(&write.key),
            }
        }
        entries.settle();
    }
}

impl Handle {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All these rows and the state they belong to, if every one is known. Whoever has a snapshot gets them of that state or a later one;
    /// who has none, of the latest that anybody has seen.
    pub(crate) fn lookup(&self, keys: &[Key], snapshot: Option<Tag>) -> Option<(Tag, Vec<Option<Row>>)> {
        let mut entries = self.lock();
        let tag = entries.tag.filter(|tag| match snapshot {
            None => entries.seen.is_none(),
            Some(snapshot) => tag.epoch == snapshot.epoch && *tag >= snapshot,
        })?;
        let rows = keys.iter().map(|key| entries.rows.get(key)).collect::<Option<Vec<_>>>()?;
        Some((tag, rows))
    }

    /// The state that the entries belong to, if these facts are known to be true in it.
    pub(crate) fn holds(&self, facts: &Facts) -> Option<Tag> {
        let entries = self.lock();
        let tag = entries.tag.filter(|_| entries.seen.is_none() && facts.ranges.is_empty())?;
        let still = |fact: &ReadFact| {
            let live =
                |row: &Option<Row>| row.as_ref().filter(|row| row.live(facts.now_ms)).map_or(0, |row| row.version);
            entries.rows.peek(&fact.key).map(live) == Some(fact.version)
        };
        facts.reads.iter().all(still).then_some(tag)
    }

    /// A row as it was a moment ago; none if that is not known.
    pub(crate) fn setting(&self, key: &Key) -> Option<Option<Row>> {
        let entries = self.lock();
        let (row, seen) = entries.settings.rows.get(key)?;
        (seen.elapsed() < RECENT).then(|| row.clone())
    }

    /// Keep a row that was just read as a setting.
    pub(crate) fn keep_setting(&self, key: &Key, row: &Option<Row>) {
        self.lock().settings.insert(key.clone(), row.clone());
    }

    /// Keep what was just read, if it belongs to the state that the entries belong to or to a later one.
    /// Only a test that has to see this rule missing turns `checked` off.
    pub(crate) fn fill(&self, tag: Tag, keys: &[Key], rows: &[Option<Row>], checked: bool) {
        let mut entries = self.lock();
        if !checked {
            entries.tag = entries.tag.filter(|known| known.seq > tag.seq).or(Some(tag));
        }
        if !checked || entries.follow(tag) {
            for (key, row) in keys.iter().zip(rows) {
                entries.rows.insert(key.clone(), row.clone());
            }
        }
    }

    /// Somebody saw this state: entries of an older one must not be shown to anybody after that.
    pub(crate) fn saw(&self, tag: Tag) {
        self.lock().follow(tag);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effects::row::Space;
    use crate::effects::set::RangeFact;

    #[test]
    fn what_a_commit_does_not_touch_stays_although_a_reader_saw_the_commit_first() {
        let tag = |seq| Tag { epoch: 1, seq };
        let [a, b] = ["a", "b"].map(|key| Space::named("kv/c").key(key));
        let row =
            |text: &'static str, version| Some(Row { value: Value::Bytes(text.into()), version, expires_at_ms: None });
        let put = Write { key: a.clone(), op: Op::Put { value: Value::Bytes("new".into()), expires_at_ms: None } };
        let (cache, tenant) = (Cache::new(Breaks::default()), TenantId::new());
        let handle = cache.handle(&tenant);
        let shown = |key: &Key, snapshot| handle.lookup(std::slice::from_ref(key), snapshot).map(|(tag, _)| tag.seq);
        let fill = |seq, rows: [Option<Row>; 2]| handle.fill(tag(seq), &[a.clone(), b.clone()], &rows, true);

        fill(1, [row("old", 1), row("b", 1)]);
        cache.begin(&tenant);
        handle.saw(tag(2));
        assert_eq!(shown(&b, None), None, "nobody who begins now is shown the state before");
        assert_eq!(shown(&b, Some(tag(2))), None);
        assert_eq!(shown(&b, Some(tag(1))), Some(1));
        cache.publish(&tenant, tag(1), tag(2), std::iter::once((&put, 2)));
        assert_eq!(shown(&b, None), Some(2));
        assert_eq!(handle.lookup(std::slice::from_ref(&a), None), Some((tag(2), vec![row("new", 2)])));

        // The state that was seen is another node's, and later.
        cache.begin(&tenant);
        handle.saw(tag(4));
        cache.publish(&tenant, tag(2), tag(3), std::iter::once((&put, 3)));
        assert_eq!([shown(&a, Some(tag(2))), shown(&b, Some(tag(2)))], [None, None]);

        // Nothing came of the commit.
        fill(4, [row("new", 3), row("b", 4)]);
        cache.begin(&tenant);
        cache.settle(&tenant);
        assert_eq!(shown(&b, None), Some(4));
        cache.begin(&tenant);
        handle.saw(tag(5));
        cache.settle(&tenant);
        assert_eq!(shown(&b, Some(tag(4))), None);
    }

    #[test]
    fn a_stream_of_rows_that_are_read_once_leaves_those_that_are_read_again() {
        let (cache, tenant) = (Cache::new(Breaks::default()), TenantId::new());
        let (handle, tag) = (cache.handle(&tenant), Tag { epoch: 1, seq: 1 });
        let keys = |name: String| [Space::named("kv/c").key(name)];
        let fill = |name: &str| {
            let row = Row { value: Value::Bytes(vec![0; 1 << 10].into()), version: 1, expires_at_ms: None };
            handle.fill(tag, &keys(name.into()), &[Some(row)], true);
        };
        let known = |name: &str| handle.lookup(&keys(name.into()), None).is_some();
        fill("again");
        for n in 0..2_000 {
            fill(&format!("once {n}"));
            assert!(known("again"), "after {n}");
        }
        assert!(known("once 1999") && !known("once 0"));
        let held = (0..2_000).filter(|n| known(&format!("once {n}"))).count();
        assert!(held <= TENANT_BYTES >> 10, "{held} rows of a kilobyte");
        // What nobody has read is not kept when it is written.
        let put = |name: &str| {
            let [key] = keys(name.into());
            Write { key, op: Op::Put { value: Value::Bytes("new".into()), expires_at_ms: None } }
        };
        let (read, unread) = (put("again"), put("unread"));
        let after = Tag { seq: 2, ..tag };
        cache.publish(&tenant, tag, after, [(&read, 2), (&unread, 2)].into_iter());
        assert!(known("again") && !known("unread"));
    }

    #[test]
    fn facts_hold_in_the_entries_state_if_all_their_rows_are_known_and_as_they_were_read() {
        let tag = |seq| Tag { epoch: 1, seq };
        let [read, absent, unknown] = ["read", "absent", "unknown"].map(|key| Space::named("kv/c").key(key));
        let (cache, tenant) = (Cache::new(Breaks::default()), TenantId::new());
        let handle = cache.handle(&tenant);
        let row = Row { value: Value::Bytes("x".into()), version: 3, expires_at_ms: Some(1_000) };
        handle.fill(tag(5), &[read.clone(), absent.clone()], &[Some(row), None], true);
        let holds = |now_ms, facts: &[(&Key, u64)]| {
            let reads =
                facts.iter().map(|(key, version)| ReadFact { key: (*key).clone(), version: *version }).collect();
            handle.holds(&Facts { now_ms, reads, ranges: Vec::new() })
        };
        assert_eq!(holds(0, &[(&read, 3), (&absent, 0)]), Some(tag(5)));
        for (now_ms, facts) in [
            (0, [(&read, 2), (&absent, 0)]),
            (0, [(&read, 3), (&absent, 1)]),
            (0, [(&read, 3), (&unknown, 0)]),
            // It has expired by then.
            (1_000, [(&read, 3), (&absent, 0)]),
        ] {
            assert_eq!(holds(now_ms, &facts), None, "{now_ms} {facts:?}");
        }
        // Whether a range is still so is not known.
        let range = RangeFact { range: Space::named("kv/c").prefix(""), count: 1, max_version: 3 };
        assert_eq!(handle.holds(&Facts { now_ms: 0, reads: Vec::new(), ranges: vec![range] }), None);
        // A commit of this node writes one of them.
        let put = Write { key: absent.clone(), op: Op::Put { value: Value::Bytes("new".into()), expires_at_ms: None } };
        cache.begin(&tenant);
        cache.publish(&tenant, tag(5), tag(6), std::iter::once((&put, 6)));
        assert_eq!(holds(0, &[(&read, 3)]), Some(tag(6)));
        assert_eq!(holds(0, &[(&read, 3), (&absent, 0)]), None);
        // Another node's commit has been seen.
        handle.saw(tag(7));
        assert_eq!(holds(0, &[(&read, 3)]), None);
    }

    #[test]
    fn a_fill_that_comes_after_a_later_commit_is_not_shown() {
        let tag = |seq| Tag { epoch: 1, seq };
        let key = Space::named("kv/c").key("k");
        let row =
            |text: &'static str, version| Some(Row { value: Value::Bytes(text.into()), version, expires_at_ms: None });
        let put = Write { key: key.clone(), op: Op::Put { value: Value::Bytes("new".into()), expires_at_ms: None } };
        let (cache, tenant) = (Cache::new(Breaks::default()), TenantId::new());
        let shown = |own_commit: bool, checked: bool| {
            cache.forget(Some(&tenant));
            let late = cache.handle(&tenant);
            late.fill(tag(1), std::slice::from_ref(&key), &[row("old", 1)], true);
            // The handle is taken, and the row read from the database once more; then a commit comes first.
            if own_commit {
                cache.publish(&tenant, tag(1), tag(2), std::iter::once((&put, 2)));
            } else {
                cache.handle(&tenant).saw(tag(2));
            }
            late.fill(tag(1), std::slice::from_ref(&key), &[row("old", 1)], checked);
            cache.handle(&tenant).lookup(std::slice::from_ref(&key), None)
        };
        assert_eq!(shown(true, true), Some((tag(2), vec![row("new", 2)])));
        assert_eq!(shown(false, true), None);
        // Without the rule, an old row is shown as the new state's.
        assert_eq!(shown(true, false), Some((tag(2), vec![row("old", 1)])));
        assert_eq!(shown(false, false), Some((tag(2), vec![row("old", 1)])));
    }
}
