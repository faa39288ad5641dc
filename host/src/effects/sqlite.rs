//! Rows in one SQLite file: one writer connection, several readers, a lock on the data folder.
//!
//! All of it is calls of SQLite where the caller is. A statement on a page that is in memory takes some microseconds, less
//! than handing it to another thread does; so a read of keys runs on the thread that asks, unless the disk was slow
//! lately, and a batch of commits on the committer's own. Ranges, which can be long, are read on threads for that.
//! Durable means that the write-ahead log was synced: `synchronous=full` is pinned. SQLite has no row-level
//! security; isolation here is the `TenantScope` in every call and the tenant in every key.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rusqlite::types::{ToSqlOutput, Value as Column, ValueRef};
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params, params_from_iter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::effects::row::{Key, Range, Row, Value};
use crate::effects::set::{Compute, Datum, Facts, Op, Set, Statement, Tag, Verdict, Write};
use crate::effects::{Batching, Breaks, Store, refusal};
use crate::kernel::cache::Changes;
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::tenant::{TenantId, TenantScope};

/// Reader connections: enough that a slow scan does not hold up key reads on a small machine.
const READERS: usize = 4;
/// How long a read waits for a connection, and a write for a lock.
const PATIENCE: Duration = Duration::from_secs(5);
/// Statements that a connection keeps prepared: more than there are.
const PREPARED: usize = 64;
/// KiB of pages that a connection keeps in memory: the inner pages of an index of ten million keys.
const CACHE_KIB: i64 = 8 << 10;
/// A read of keys that takes longer, and for which the disk was read, had to wait for it.
const SLOW: Duration = Duration::from_millis(2);
/// How long reads stay off the caller's thread after that.
const SLOW_FOR: Duration = Duration::from_secs(1);
/// Bytes of write-ahead log at which it is copied into the file without waiting for readers.
const CHECKPOINT_BYTES: u64 = 4 << 20;
/// Bytes of write-ahead log at which the writer waits for readers, so that the log starts anew.
const RESTART_BYTES: u64 = 64 << 20;
/// How long it waits: longer than reads of the host's own take, and hardly felt if somebody else's stays.
const RESTART_WAIT: Duration = Duration::from_millis(500);
/// Bytes of the log that are not copied then, at most, since those who write wait for their copy: some tenths of a second.
const RESTART_BEHIND: u64 = 64 << 20;
/// Copies that reached the end of the log, one after another, after which more than that is waited for: who writes is
/// faster than they are.
const RESTART_COPIES: u32 = 4;
/// Bytes that a page takes in the log: itself, and its header (SQLite, WAL-mode file format, 4).
const FRAME: u64 = 4_096 + 24;

/// A SQLite file as a store.
pub(crate) struct SqliteStore {
    writer: Mutex<Connection>,
    readers: Readers,
    checkpoints: Arc<Checkpoints>,
    changes: Changes,
}

/// A connection with the settings that every connection to the file has.
fn connect(path: &Path) -> Result<Connection> {
    // A test looks whether `synchronous=off` is noticed; nothing else may turn it off.
    let synchronous =
        if cfg!(debug_assertions) && std::env::var_os("CHALET_BREAK_SYNC").is_some() { "off" } else { "full" };
    let connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(PATIENCE).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(PREPARED);
    let set = |name: &str, value: &dyn rusqlite::ToSql| connection.pragma_update(None, name, value).map_err(failed);
    set("synchronous", &synchronous)?;
    set("foreign_keys", &"on")?;
    set("trusted_schema", &"off")?;
    set("cell_size_check", &"on")?;
    set("wal_autocheckpoint", &0)?;
    set("cache_size", &-CACHE_KIB)?;
    Ok(connection)
}

/// Connections that only read.
#[derive(Clone)]
struct Readers(Arc<Pool>);

struct Pool {
    free: Arc<Semaphore>,
    connections: Mutex<Vec<Connection>>,
    started: Instant,
    /// Until when the disk is taken for slow, in milliseconds since the start.
    slow_until_ms: AtomicU64,
}

/// A reader's connection; given back when it is dropped.
struct Reader {
    pool: Arc<Pool>,
    connection: Option<Connection>,
    _place: OwnedSemaphorePermit,
}

impl Readers {
    fn open(path: &Path) -> Result<Self> {
        let connections = (0..READERS)
            .map(|_| {
                let connection = connect(path)?;
                connection.pragma_update(None, "query_only", "on").map_err(failed)?;
                Ok(connection)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self(Arc::new(Pool {
            free: Arc::new(Semaphore::new(READERS)),
            connections: Mutex::new(connections),
            started: Instant::now(),
            slow_until_ms: AtomicU64::new(0),
        })))
    }

    async fn take(&self) -> Result<Reader> {
        let busy =
            || Error::unavailable("database_unavailable", "too many reads are waiting for the database; try again");
        let place = tokio::time::timeout(PATIENCE, self.0.free.clone().acquire_owned()).await;
        let _place = place.ok().and_then(std::result::Result::ok).ok_or_else(busy)?;
        let connection = self.0.connections().pop();
        Ok(Reader { pool: self.0.clone(), connection, _place })
    }

    /// Read something short, here if the disk is quick.
    async fn here<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let now = self.0.started.elapsed();
        if self.0.slow_until_ms.load(Ordering::Relaxed) > millis(now) {
            return self.elsewhere(read).await;
        }
        let mut reader = self.take().await?;
        let (before, blocks) = (Instant::now(), blocks_read());
        let found = read(&mut reader);
        // A thread that lost its processor for a while says nothing about the disk.
        if before.elapsed() > SLOW && (blocks.is_none() || blocks < blocks_read()) {
            self.0.slow_until_ms.store(millis(now + SLOW_FOR), Ordering::Relaxed);
        }
        found
    }

    /// Read something that may take long.
    async fn elsewhere<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut reader = self.take().await?;
        tokio::task::spawn_blocking(move || read(&mut reader)).await.map_err(Error::internal)?
    }
}

/// What this thread has read from disks so far, where the system counts that.
#[cfg(target_os = "linux")]
fn blocks_read() -> Option<i64> {
    use nix::sys::resource::{UsageWho, getrusage};
    getrusage(UsageWho::RUSAGE_THREAD).ok().map(|used| used.block_reads())
}

#[cfg(not(target_os = "linux"))]
fn blocks_read() -> Option<i64> {
    None
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Pool {
    fn connections(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for Reader {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("there are as many connections as places")
    }
}

impl DerefMut for Reader {
    fn deref_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("there are as many connections as places")
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.pool.connections().extend(self.connection.take());
    }
}

/// What keeps the write-ahead log short: it is copied while it is small, beside the commits, and cut off when it is not,
/// for which its readers are waited for.
struct Checkpoints {
    connection: Mutex<Connection>,
    wal: PathBuf,
    /// Bytes of write-ahead log at which readers are waited for next.
    restart_at: AtomicU64,
    /// Bytes of it that are copied.
    copied: AtomicU64,
    /// Copies that reached its end, one after another.
    copies: AtomicU32,
}

impl Checkpoints {
    fn open(path: &Path) -> Result<Self> {
        let connection = connect(path)?;
        connection.busy_timeout(RESTART_WAIT).map_err(failed)?;
        let mut wal = path.as_os_str().to_owned();
        wal.push("-wal");
        Ok(Self {
            connection: Mutex::new(connection),
            wal: wal.into(),
            restart_at: AtomicU64::new(RESTART_BYTES),
            copied: AtomicU64::new(0),
            copies: AtomicU32::new(0),
        })
    }

    /// Look at the log after a commit. What a reader that stayed has left is copied beside the commits first, however much
    /// it is; and as long as it stays nobody waits for it.
    fn look(self: &Arc<Self>) {
        let bytes = std::fs::metadata(&self.wal).map_or(0, |file| file.len());
        if bytes < CHECKPOINT_BYTES {
            return;
        }
        // While one runs there is no need of another, and no commit waits for it.
        let Ok(connection) = self.connection.try_lock() else { return };
        let behind = bytes.saturating_sub(self.copied.load(Ordering::Relaxed));
        let near = behind <= RESTART_BEHIND || self.copies.load(Ordering::Relaxed) >= RESTART_COPIES;
        if bytes >= self.restart_at.load(Ordering::Relaxed) && near {
            self.run(&connection, Some(bytes));
        } else if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let this = self.clone();
            runtime.spawn_blocking(move || this.run(&this.connection(), None));
        }
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copy the log; one of so many bytes is cut off then, so that its size says how much of it is used.
    fn run(&self, connection: &Connection, restart: Option<u64>) {
        let checkpoint =
            if restart.is_some() { "pragma wal_checkpoint(truncate)" } else { "pragma wal_checkpoint(passive)" };
        // Whether it was kept from it, the pages of the log, and those that are copied.
        let outcome = connection.query_row(checkpoint, [], |row| {
            Ok((row.get::<_, bool>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
        });
        match (outcome, restart) {
            // A reader that stays, such as a backup of the operator's: it is waited for again when twice as much is there,
            // so that those who write wait seldom.
            (Ok((true, ..)), Some(bytes)) => self.restart_at.store(2 * bytes, Ordering::Relaxed),
            // Of a log that was cut off there is nothing, all of which is copied.
            (Ok((_, pages, copied)), _) => {
                self.copied.store(u64::try_from(copied).unwrap_or(0) * FRAME, Ordering::Relaxed);
                if pages == copied {
                    self.restart_at.store(RESTART_BYTES, Ordering::Relaxed);
                    self.copies.fetch_add(1, Ordering::Relaxed);
                } else {
                    self.copies.store(0, Ordering::Relaxed);
                }
            }
            (Err(error), _) => {
                tracing::warn!(%error, "the write-ahead log could not be checkpointed; it will be tried again");
            }
        }
    }
}

impl SqliteStore {
    /// Open the file, which `kernel::db` has migrated; `changes` counts the commits that change its directory.
    pub(crate) fn open(path: &Path, changes: Changes) -> Result<Self> {
        Ok(Self {
            changes,
            writer: Mutex::new(connect(path)?),
            readers: Readers::open(path)?,
            checkpoints: Arc::new(Checkpoints::open(path)?),
        })
    }
}

/// An error of the database, as the host sees it.
fn failed(error: rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => {
            Error::unavailable("disk_full", "the server's disk is full; nothing was changed").source(error)
        }
        _ => Error::internal(error),
    }
}

/// The first two columns of a row: a head's.
fn tag_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Tag> {
    Ok(Tag { epoch: row.get::<_, i64>(0)? as u64, seq: row.get::<_, i64>(1)? as u64 })
}

/// Four columns from `first` on: value, counter, version and expiry.
fn row_of(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<Row> {
    let value = match row.get::<_, Option<i64>>(first + 1)? {
        Some(count) => Value::Counter(count),
        None => Value::Bytes(Bytes::from(row.get::<_, Option<Vec<u8>>>(first)?.unwrap_or_default())),
    };
    Ok(Row { value, version: row.get::<_, i64>(first + 2)? as u64, expires_at_ms: row.get(first + 3)? })
}

fn head_of(connection: &Connection, tenant: &TenantId) -> Result<Tag> {
    let mut statement =
        connection.prepare_cached("select epoch, seq from heads where tenant_id = ?1").map_err(failed)?;
    let head = statement.query_row([tenant.as_str()], tag_of).optional().map_err(failed)?;
    head.ok_or_else(refusal::no_tenant)
}

impl Store for SqliteStore {
    fn read<'a>(&'a self, scope: &'a TenantScope, keys: &'a [Key]) -> BoxFuture<'a, Result<(Tag, Vec<Option<Row>>)>> {
        let (tenant, keys) = (scope.id().clone(), keys.to_vec());
        let read = move |connection: &mut Connection| {
            // Several statements see one state inside a transaction.
            let transaction = connection.transaction().map_err(failed)?;
            let tag = head_of(&transaction, &tenant)?;
            let mut statement = transaction
                .prepare_cached(
                    "select value, counter, version, expires_at_ms from rows \
                     where tenant_id = ?1 and space = ?2 and key = ?3",
                )
                .map_err(failed)?;
            let rows = keys
                .iter()
                .map(|key| {
                    let place = params![tenant.as_str(), key.space.as_str(), &key.key[..]];
                    statement.query_row(place, |row| row_of(row, 0)).optional().map_err(failed)
                })
                .collect::<Result<Vec<_>>>()?;
            Ok((tag, rows))
        };
        self.readers.here(read).boxed()
    }

    fn scan<'a>(
        &'a self,
        scope: &'a TenantScope,
        range: &'a Range,
        now_ms: i64,
        limit: usize,
    ) -> BoxFuture<'a, Result<(Tag, Vec<(Bytes, Row)>)>> {
        let (tenant, range) = (scope.id().clone(), range.clone());
        let read = move |connection: &mut Connection| {
            let transaction = connection.transaction().map_err(failed)?;
            let tag = head_of(&transaction, &tenant)?;
            let (condition, mut values) = inside(&tenant, &range, now_ms);
            values.push(Column::Integer(i64::try_from(limit).unwrap_or(i64::MAX)));
            let sql = format!(
                "select value, counter, version, expires_at_ms, key from rows where {condition} order by key limit ?"
            );
            let mut statement = transaction.prepare_cached(&sql).map_err(failed)?;
            let rows = statement
                .query_map(params_from_iter(values), |row| Ok((row.get::<_, Vec<u8>>(4)?.into(), row_of(row, 0)?)))
                .and_then(Iterator::collect)
                .map_err(failed)?;
            Ok((tag, rows))
        };
        self.readers.elsewhere(read).boxed()
    }

    fn holds<'a>(&'a self, scope: &'a TenantScope, facts: &'a Facts) -> BoxFuture<'a, Result<(Tag, Option<Key>)>> {
        let (tenant, facts) = (scope.id().clone(), facts.clone());
        let read = move |connection: &mut Connection| {
            let transaction = connection.transaction().map_err(failed)?;
            let tag = head_of(&transaction, &tenant)?;
            for read in &facts.reads {
                let stored = old_of(&transaction, &tenant, &read.key)?;
                if stored.map_or(0, |old| old.live_version(facts.now_ms)) != read.version {
                    return Ok((tag, Some(read.key.clone())));
                }
            }
            Ok((tag, changed_range(&transaction, &tenant, &facts)?))
        };
        self.readers.elsewhere(read).boxed()
    }

    /// Blocks the thread until the log is synced: the committer's own.
    fn commit<'a>(&'a self, sets: &'a [Set], breaks: Breaks) -> BoxFuture<'a, Result<Vec<Verdict>>> {
        async move {
            let verdicts = {
                let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
                let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
                let verdicts = apply(&transaction, sets, breaks)?;
                if let Err(error) = transaction.commit() {
                    let error = failed(error);
                    if error.kind() == Kind::Unavailable {
                        return Err(error);
                    }
                    // After a failed sync nobody knows what the disk holds; only a restart, which reads it
                    // again, may answer.
                    tracing::error!(?error, "the commit failed; the process ends so that recovery decides");
                    std::process::abort();
                }
                verdicts
            };
            if sets.iter().any(|set| !set.statements.is_empty()) {
                self.changes.one_more();
            }
            if !breaks.checkpoint {
                self.checkpoints.look();
            }
            Ok(verdicts)
        }
        .boxed()
    }

    fn usage<'a>(&'a self, scope: &'a TenantScope, from_ms: i64, to_ms: i64) -> BoxFuture<'a, Result<Vec<Compute>>> {
        let tenant = scope.id().clone();
        let read = move |connection: &mut Connection| {
            let mut statement = connection
                .prepare_cached(
                    "select plugin, hour_ms, invocations, failures, fuel, bytes_in, bytes_out from usage_totals \
                     where tenant_id = ?1 and hour_ms >= ?2 and hour_ms < ?3 order by hour_ms, plugin",
                )
                .map_err(failed)?;
            statement
                .query_map(params![tenant.as_str(), from_ms, to_ms], compute_of)
                .and_then(Iterator::collect)
                .map_err(failed)
        };
        self.readers.elsewhere(read).boxed()
    }

    fn head<'a>(&'a self, scope: &'a TenantScope) -> BoxFuture<'a, Result<(Tag, u64)>> {
        let tenant = scope.id().clone();
        let read = move |connection: &mut Connection| {
            let mut statement = connection
                .prepare_cached("select epoch, seq, bytes from heads where tenant_id = ?1")
                .map_err(failed)?;
            let head = statement.query_row([tenant.as_str()], |row| Ok((tag_of(row)?, row.get::<_, i64>(2)?)));
            let (tag, bytes) = head.optional().map_err(failed)?.ok_or_else(refusal::no_tenant)?;
            Ok((tag, bytes.max(0) as u64))
        };
        self.readers.here(read).boxed()
    }

    fn batching(&self) -> Batching {
        Batching { lanes: 1, mixed: true, exclusive: true, blocking: true }
    }
}

fn compute_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<Compute> {
    let number = |n: usize| row.get::<_, i64>(n).map(|n| n as u64);
    Ok(Compute {
        plugin: row.get::<_, String>(0)?.into(),
        hour_ms: row.get(1)?,
        invocations: number(2)?,
        failures: number(3)?,
        fuel: number(4)?,
        bytes_in: number(5)?,
        bytes_out: number(6)?,
    })
}

/// The condition that a live row of a range satisfies, with its values.
fn inside(tenant: &TenantId, range: &Range, now_ms: i64) -> (String, Vec<Column>) {
    let text = |text: &str| Column::Text(text.to_owned());
    let mut values = vec![text(tenant.as_str()), text(range.space.as_str()), Column::Blob(range.from.to_vec())];
    let mut condition = "tenant_id = ? and space = ? and key >= ?".to_owned();
    if let Some(to) = &range.to {
        condition += " and key < ?";
        values.push(Column::Blob(to.to_vec()));
    }
    condition += " and (expires_at_ms is null or expires_at_ms > ?)";
    values.push(Column::Integer(now_ms));
    (condition, values)
}

/// What a commit has to know of a row that stands.
#[derive(Clone, Debug)]
struct Old {
    version: u64,
    counter: Option<i64>,
    bytes: usize,
    expires_at_ms: Option<i64>,
}

impl Old {
    fn live(&self, now_ms: i64) -> bool {
        self.expires_at_ms.is_none_or(|expires_at_ms| expires_at_ms > now_ms)
    }

    fn live_version(&self, now_ms: i64) -> u64 {
        if self.live(now_ms) { self.version } else { 0 }
    }
}

fn old_of(connection: &Connection, tenant: &TenantId, key: &Key) -> Result<Option<Old>> {
    let mut statement = connection
        .prepare_cached(
            "select version, counter, coalesce(length(value), 8), expires_at_ms from rows \
             where tenant_id = ?1 and space = ?2 and key = ?3",
        )
        .map_err(failed)?;
    let old = statement.query_row(params![tenant.as_str(), key.space.as_str(), &key.key[..]], |row| {
        Ok(Old {
            version: row.get::<_, i64>(0)? as u64,
            counter: row.get(1)?,
            bytes: row.get::<_, i64>(2)? as usize,
            expires_at_ms: row.get(3)?,
        })
    });
    old.optional().map_err(failed)
}

fn changed_range(connection: &Connection, tenant: &TenantId, facts: &Facts) -> Result<Option<Key>> {
    for fact in &facts.ranges {
        let (condition, values) = inside(tenant, &fact.range, facts.now_ms);
        let sql = format!("select count(*), coalesce(max(version), 0) from rows where {condition}");
        let mut statement = connection.prepare_cached(&sql).map_err(failed)?;
        let (count, version): (i64, i64) =
            statement.query_row(params_from_iter(values), |row| Ok((row.get(0)?, row.get(1)?))).map_err(failed)?;
        if count as u64 != fact.count || version as u64 != fact.max_version {
            return Ok(Some(fact.range.space.key(fact.range.from.clone())));
        }
    }
    Ok(None)
}

/// A tenant's head while a batch is applied to it.
struct Head {
    tag: Tag,
    bytes: i64,
    active: bool,
}

/// Rows after the sets applied so far; none where a row is gone.
type Overlay<'k> = BTreeMap<(&'k TenantId, &'k Key), Option<(Value, u64, Option<i64>)>>;

fn apply(connection: &Connection, sets: &[Set], breaks: Breaks) -> Result<Vec<Verdict>> {
    let mut heads = heads(connection, sets)?;

    // One look at every row that is written, but for one that is put where nothing is counted, or that a set read from an
    // older state.
    let mut olds: HashMap<(&TenantId, &Key), Old> = HashMap::new();
    let mut looked: HashSet<(&TenantId, &Key)> = HashSet::new();
    for set in sets {
        let tenant = set.scope.id();
        let stale = set.tag != heads.get(tenant).map(|head| head.tag);
        let read = set.facts.reads.iter().filter(|_| stale).map(|read| &read.key);
        let counts = |write: &&Write| write.key.space.charged() || !matches!(write.op, Op::Put { .. });
        for key in set.writes.iter().filter(counts).map(|write| &write.key).chain(read) {
            if looked.insert((tenant, key))
                && let Some(old) = old_of(connection, tenant, key)?
            {
                olds.insert((tenant, key), old);
            }
        }
    }

    let mut overlay: Overlay<'_> = BTreeMap::new();
    let mut verdicts = Vec::with_capacity(sets.len());
    let mut used: BTreeMap<(&TenantId, &str, i64), Compute> = BTreeMap::new();
    let mut due: BTreeMap<&TenantId, i64> = BTreeMap::new();
    let started: HashMap<TenantId, Tag> = heads.iter().map(|(tenant, head)| (tenant.clone(), head.tag)).collect();
    for set in sets {
        let tenant = set.scope.id();
        let Some(head) = heads.get_mut(tenant).filter(|head| head.active) else {
            verdicts.push(Verdict::Refused(refusal::no_tenant()));
            continue;
        };
        let stale = set.tag != started.get(tenant).copied();
        if let Some(key) = invalid(connection, set, &olds, &overlay, stale, breaks)? {
            verdicts.push(Verdict::Conflict { key });
            continue;
        }
        match stage(set, head, &olds, &overlay) {
            Err(error) => verdicts.push(Verdict::Refused(error)),
            Ok((changes, bytes)) => {
                head.tag.seq += 1;
                head.bytes += bytes;
                for (key, change) in changes {
                    overlay.insert((tenant, key), change.map(|(value, expires)| (value, head.tag.seq, expires)));
                }
                if let Some(compute) = &set.compute {
                    used.entry((tenant, &compute.plugin, compute.hour_ms))
                        .and_modify(|sum| sum.merge(compute))
                        .or_insert_with(|| compute.clone());
                }
                if let Some(expiry) = set.first_expiry_ms() {
                    due.entry(tenant).and_modify(|first| *first = expiry.min(*first)).or_insert(expiry);
                }
                verdicts.push(Verdict::Committed { tag: head.tag });
            }
        }
    }
    write_rows(connection, &overlay)?;
    write_heads(connection, &heads, &started)?;
    write_usage(connection, &used)?;
    write_due(connection, &due)?;
    for (set, verdict) in sets.iter().zip(&verdicts) {
        if matches!(verdict, Verdict::Committed { .. }) {
            for statement in &set.statements {
                execute(connection, statement)?;
            }
        }
    }
    Ok(verdicts)
}

impl rusqlite::ToSql for Datum {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Text(text) => text.as_deref().map_or(ValueRef::Null, |text| ValueRef::Text(text.as_bytes())),
            Self::Bytes(bytes) => ValueRef::Blob(bytes),
            Self::Number(number) => ValueRef::Integer(*number),
        }))
    }
}

fn execute(connection: &Connection, statement: &Statement) -> Result<()> {
    let mut prepared = connection.prepare_cached(statement.sql).map_err(failed)?;
    for (n, value) in (1..).zip(&statement.values) {
        // To SQLite `$1` is a name, and its number is that of its first place in the text.
        if let Some(index) = prepared.parameter_index(&format!("${n}")).map_err(failed)? {
            prepared.raw_bind_parameter(index, value).map_err(failed)?;
        }
    }
    prepared.raw_execute().map_err(failed)?;
    Ok(())
}

fn heads(connection: &Connection, sets: &[Set]) -> Result<HashMap<TenantId, Head>> {
    let mut statement =
        connection.prepare_cached("select epoch, seq, bytes, state from heads where tenant_id = ?1").map_err(failed)?;
    let mut heads = HashMap::new();
    for tenant in sets.iter().map(|set| set.scope.id()) {
        if heads.contains_key(tenant) {
            continue;
        }
        let head = statement.query_row([tenant.as_str()], |row| {
            Ok(Head { tag: tag_of(row)?, bytes: row.get(2)?, active: row.get_ref(3)?.as_str()? == "active" })
        });
        if let Some(head) = head.optional().map_err(failed)? {
            heads.insert(tenant.clone(), head);
        }
    }
    Ok(heads)
}

/// The first thing that a set read and that is no longer so.
fn invalid(
    connection: &Connection,
    set: &Set,
    olds: &HashMap<(&TenantId, &Key), Old>,
    overlay: &Overlay<'_>,
    stale: bool,
    breaks: Breaks,
) -> Result<Option<Key>> {
    let tenant = set.scope.id();
    if set.facts.is_empty() || breaks.reads {
        return Ok(None);
    }
    if !breaks.overlay {
        // Removing what this set did not see anyway changes nothing for it.
        let changed = |place: &(&TenantId, &Key), now: &Option<(Value, u64, Option<i64>)>| {
            now.is_some() || olds.get(place).is_some_and(|old| old.live(set.facts.now_ms))
        };
        for read in &set.facts.reads {
            let place = (tenant, &read.key);
            if overlay.get(&place).is_some_and(|now| changed(&place, now)) {
                return Ok(Some(read.key.clone()));
            }
        }
        for fact in set.facts.ranges.iter().filter(|_| !breaks.ranges) {
            let from = fact.range.space.key(fact.range.from.clone());
            let inside =
                overlay.range((tenant, &from)..).take_while(|((t, key), _)| *t == tenant && fact.range.contains(key));
            for (place, now) in inside {
                if changed(place, now) {
                    return Ok(Some(place.1.clone()));
                }
            }
        }
    }
    if !stale {
        return Ok(None);
    }
    for read in &set.facts.reads {
        let version = olds.get(&(tenant, &read.key)).map_or(0, |old| old.live_version(set.facts.now_ms));
        if version != read.version {
            return Ok(Some(read.key.clone()));
        }
    }
    if breaks.ranges { Ok(None) } else { changed_range(connection, tenant, &set.facts) }
}

/// Changes of one set, and by how much they change the bytes that the quota counts.
type Staged<'s> = (Vec<(&'s Key, Option<(Value, Option<i64>)>)>, i64);

fn stage<'s>(
    set: &'s Set,
    head: &Head,
    olds: &HashMap<(&TenantId, &Key), Old>,
    overlay: &Overlay<'_>,
) -> Result<Staged<'s>> {
    let tenant = set.scope.id();
    let mut changes = Vec::with_capacity(set.writes.len());
    let mut delta: i64 = 0;
    for write in &set.writes {
        let old = match overlay.get(&(tenant, &write.key)) {
            Some(None) => None,
            Some(Some((value, version, expires_at_ms))) => Some(Old {
                version: *version,
                counter: match value {
                    Value::Counter(count) => Some(*count),
                    Value::Bytes(_) => None,
                },
                bytes: value.size(),
                expires_at_ms: *expires_at_ms,
            }),
            None => olds.get(&(tenant, &write.key)).cloned(),
        };
        let change = match &write.op {
            Op::Put { value, expires_at_ms } => Some((value.clone(), *expires_at_ms)),
            Op::Delete => None,
            Op::Sweep { before_ms } => match &old {
                Some(old) if old.expires_at_ms.is_some_and(|expires| expires <= *before_ms) => None,
                _ => continue,
            },
            Op::Add(by) => match old.as_ref().filter(|old| old.live(set.facts.now_ms)) {
                None => Some((Value::Counter(*by), None)),
                Some(old) => {
                    let count = old.counter.ok_or_else(refusal::not_a_counter)?;
                    let sum = count.checked_add(*by).ok_or_else(refusal::counter_overflow)?;
                    Some((Value::Counter(sum), old.expires_at_ms))
                }
            },
        };
        if write.key.space.charged() {
            let size = |bytes: usize| (bytes + write.key.key.len()) as i64;
            delta += change.as_ref().map_or(0, |(value, _)| size(value.size()));
            delta -= old.as_ref().map_or(0, |old| size(old.bytes));
        }
        changes.push((&write.key, change));
    }
    let quota = i64::try_from(set.scope.plan().storage_bytes).unwrap_or(i64::MAX);
    if delta > 0 && head.bytes + delta > quota {
        return Err(refusal::storage_exhausted());
    }
    Ok((changes, delta))
}

fn write_rows(connection: &Connection, overlay: &Overlay<'_>) -> Result<()> {
    let mut put = connection
        .prepare_cached(
            "insert into rows (tenant_id, space, key, value, counter, version, expires_at_ms) \
             values (?1, ?2, ?3, ?4, ?5, ?6, ?7) on conflict (tenant_id, space, key) do update set \
             value = excluded.value, counter = excluded.counter, version = excluded.version, \
             expires_at_ms = excluded.expires_at_ms",
        )
        .map_err(failed)?;
    let mut delete = connection
        .prepare_cached("delete from rows where tenant_id = ?1 and space = ?2 and key = ?3")
        .map_err(failed)?;
    for ((tenant, key), change) in overlay {
        let (tenant, space, key) = (tenant.as_str(), key.space.as_str(), &key.key[..]);
        match change {
            None => delete.execute(params![tenant, space, key]),
            Some((value, version, expires_at_ms)) => {
                let (bytes, counter) = match value {
                    Value::Bytes(bytes) => (Some(&bytes[..]), None),
                    Value::Counter(count) => (None, Some(*count)),
                };
                put.execute(params![tenant, space, key, bytes, counter, *version as i64, expires_at_ms])
            }
        }
        .map_err(failed)?;
    }
    Ok(())
}

fn write_heads(
    connection: &Connection,
    heads: &HashMap<TenantId, Head>,
    started: &HashMap<TenantId, Tag>,
) -> Result<()> {
    let mut statement =
        connection.prepare_cached("update heads set seq = ?2, bytes = ?3 where tenant_id = ?1").map_err(failed)?;
    for (tenant, head) in heads.iter().filter(|(tenant, head)| started.get(tenant) != Some(&head.tag)) {
        statement.execute(params![tenant.as_str(), head.tag.seq as i64, head.bytes]).map_err(failed)?;
    }
    Ok(())
}

fn write_usage(connection: &Connection, used: &BTreeMap<(&TenantId, &str, i64), Compute>) -> Result<()> {
    let mut statement = connection
        .prepare_cached(
            "insert into usage_totals (tenant_id, plugin, hour_ms, invocations, failures, fuel, bytes_in, bytes_out) \
             values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) on conflict (tenant_id, plugin, hour_ms) do update set \
             invocations = invocations + excluded.invocations, failures = failures + excluded.failures, \
             fuel = case when fuel > 9223372036854775807 - excluded.fuel then 9223372036854775807 \
             else fuel + excluded.fuel end, \
             bytes_in = bytes_in + excluded.bytes_in, bytes_out = bytes_out + excluded.bytes_out",
        )
        .map_err(failed)?;
    for ((tenant, plugin, hour_ms), sum) in used {
        let fuel = i64::try_from(sum.fuel).unwrap_or(i64::MAX);
        let number = |number: u64| number as i64;
        let values = params![
            tenant.as_str(),
            plugin,
            hour_ms,
            number(sum.invocations),
            number(sum.failures),
            fuel,
            number(sum.bytes_in),
            number(sum.bytes_out)
        ];
        statement.execute(values).map_err(failed)?;
    }
    Ok(())
}

fn write_due(connection: &Connection, due: &BTreeMap<&TenantId, i64>) -> Result<()> {
    let mut statement = connection
        .prepare_cached(
            "insert into due (kind, tenant_id, due_at_ms) values ('sweep', ?1, ?2) on conflict (kind, tenant_id) \
             do update set due_at_ms = excluded.due_at_ms where excluded.due_at_ms < due_at_ms",
        )
        .map_err(failed)?;
    for (tenant, due_at_ms) in due {
        statement.execute(params![tenant.as_str(), due_at_ms]).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::thread;

    use super::*;

    fn readers() -> (tempfile::TempDir, Readers) {
        let folder = tempfile::tempdir().unwrap();
        let readers = Readers::open(&folder.path().join("rows")).unwrap();
        (folder, readers)
    }

    async fn is_read_here(readers: &Readers) -> bool {
        readers.here(|_| Ok(thread::current().id())).await.unwrap() == thread::current().id()
    }

    #[tokio::test]
    async fn reads_stay_here_after_one_that_took_long_for_another_reason_than_the_disk() {
        let (_folder, readers) = readers();
        let slow = |_: &mut Connection| {
            thread::sleep(2 * SLOW);
            Ok(())
        };
        readers.here(slow).await.unwrap();
        assert!(is_read_here(&readers).await);
    }

    #[tokio::test]
    async fn reads_go_elsewhere_after_one_that_waited_for_the_disk() {
        let (folder, readers) = readers();
        let path = folder.path().join("not in memory");
        let mut file = std::fs::File::create_new(&path).unwrap();
        file.write_all(&[7; 1 << 20]).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let slow = move |_: &mut Connection| {
            let before = blocks_read();
            std::fs::File::open(path).unwrap().read_to_end(&mut Vec::new()).unwrap();
            thread::sleep(2 * SLOW);
            Ok(before < blocks_read())
        };
        // A folder in memory is no disk.
        let from_disk = readers.here(slow).await.unwrap();
        assert_eq!(is_read_here(&readers).await, !from_disk);
    }

    /// A log of so many MiB, what is to keep it short, and a connection that reads since before it was written.
    fn log(mebibytes: u32) -> (tempfile::TempDir, Arc<Checkpoints>, Connection) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let (writer, reader) = (connect(&path).unwrap(), connect(&path).unwrap());
        writer.pragma_update(None, "journal_mode", "wal").unwrap();
        writer.execute_batch("create table t (x)").unwrap();
        reader.execute_batch("begin").unwrap();
        reader.query_row("select count(*) from t", [], |row| row.get::<_, i64>(0)).unwrap();
        for _ in 0..mebibytes {
            writer.execute("insert into t values (randomblob(1 << 20))", []).unwrap();
        }
        (folder, Arc::new(Checkpoints::open(&path).unwrap()), reader)
    }

    #[test]
    fn a_commit_does_not_wait_for_a_copy_of_the_log() {
        let (_folder, checkpoints, _reader) = log(65);
        let copying = checkpoints.connection();
        let (tell, looked) = std::sync::mpsc::channel();
        let looking = checkpoints.clone();
        thread::spawn(move || {
            looking.look();
            let _ = tell.send(());
        });
        looked.recv_timeout(Duration::from_secs(10)).expect("it does not wait");
        drop(copying);
    }

    #[test]
    fn the_log_that_a_reader_left_is_copied_before_anybody_waits_for_its_end() {
        let (_folder, checkpoints, reader) = log(70);
        let copy = || checkpoints.run(&checkpoints.connection(), None);
        let bytes = || std::fs::metadata(&checkpoints.wal).unwrap().len();
        copy();
        checkpoints.look();
        assert!(bytes() > RESTART_BYTES, "{} bytes are left while it stays", bytes());
        assert_eq!(checkpoints.restart_at.load(Ordering::Relaxed), RESTART_BYTES, "it was not waited for");
        reader.execute_batch("commit").unwrap();
        checkpoints.look();
        assert!(bytes() > RESTART_BYTES, "so much is copied beside the commits");
        copy();
        checkpoints.look();
        assert_eq!(bytes(), 0, "nothing is left to be copied, and the log begins anew");
    }
}
