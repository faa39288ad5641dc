//! Rows in one SQLite file: one writer connection, several readers, a lock on the data folder.
//!
//! A commit is `begin immediate`, one look at all rows it touches, and a few multi-row statements,
//! whatever the number of sets: each statement crosses a channel to the connection's thread. Durable
//! means that the write-ahead log was synced: `synchronous=full` is pinned. SQLite has no row-level
//! security; isolation here is the `TenantScope` in every call and the tenant in every key.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteRow, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, QueryBuilder, Row as _, Sqlite};
use tokio::sync::Mutex;

use crate::effects::row::{Key, Range, Row, Value};
use crate::effects::set::{Compute, Datum, Facts, Op, Set, Statement, Tag, Verdict};
use crate::effects::{Batching, Breaks, Store, refusal};
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::tenant::{TenantId, TenantScope};

/// Reader connections: enough that a slow scan does not hold up key reads on a small machine.
const READERS: u32 = 4;
/// Rows bound in one statement: SQLite looks a numbered parameter up by walking the list of all of them, so
/// that the cost of a statement grows with the square of this.
const CHUNK: usize = 256;
/// Bytes of write-ahead log at which it is copied into the file without waiting for readers.
const CHECKPOINT_BYTES: u64 = 4 << 20;
/// Bytes of write-ahead log at which the writer waits for readers, so that the log starts anew.
const RESTART_BYTES: u64 = 64 << 20;
/// How long it waits: longer than reads of the host's own take, and hardly felt if somebody else's stays.
const RESTART_WAIT: Duration = Duration::from_millis(500);

/// A SQLite file as a store.
pub(crate) struct SqliteStore {
    writer: Mutex<SqliteConnection>,
    checkpointer: Mutex<SqliteConnection>,
    readers: SqlitePool,
    wal: std::path::PathBuf,
    unchecked: AtomicU64,
    /// Bytes of write-ahead log at which readers are waited for next.
    restart_at: AtomicU64,
}

/// The options of every connection to the file.
pub(crate) fn options(path: &Path) -> SqliteConnectOptions {
    // A test looks whether `synchronous=off` is noticed; nothing else may turn it off.
    let synchronous = if cfg!(debug_assertions) && std::env::var_os("CHALET_BREAK_SYNC").is_some() {
        SqliteSynchronous::Off
    } else {
        SqliteSynchronous::Full
    };
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .synchronous(synchronous)
        .busy_timeout(Duration::from_secs(5))
        .foreign_keys(true)
        .pragma("trusted_schema", "off")
        .pragma("cell_size_check", "on")
        .pragma("wal_autocheckpoint", "0")
        .disable_statement_logging()
}

impl SqliteStore {
    /// Open the file, which `kernel::db` has migrated.
    pub(crate) async fn open(path: &Path) -> Result<Self> {
        let options = options(path);
        let connect = || async { options.connect().await.map_err(failed) };
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(Duration::from_secs(5))
            .connect_with(options.clone().pragma("query_only", "on"))
            .await
            .map_err(failed)?;
        let mut wal = path.as_os_str().to_owned();
        wal.push("-wal");
        Ok(Self {
            writer: Mutex::new(connect().await?),
            checkpointer: Mutex::new(options.clone().busy_timeout(RESTART_WAIT).connect().await.map_err(failed)?),
            readers,
            wal: wal.into(),
            unchecked: AtomicU64::new(0),
            restart_at: AtomicU64::new(RESTART_BYTES),
        })
    }

    /// Keep the write-ahead log short: copy it while it is small, and wait for readers when it is not.
    async fn checkpoint(&self) {
        // The log's size is looked up every 16th batch; a batch adds at most about 1 MiB.
        if !self.unchecked.fetch_add(1, Ordering::Relaxed).is_multiple_of(16) {
            return;
        }
        let bytes = std::fs::metadata(&self.wal).map_or(0, |file| file.len());
        let restart = bytes >= self.restart_at.load(Ordering::Relaxed);
        if bytes < CHECKPOINT_BYTES {
            return;
        }
        // Cut off, so that its size says how much of it is used.
        let sql = if restart { "pragma wal_checkpoint(truncate)" } else { "pragma wal_checkpoint(passive)" };
        let outcome = sqlx::query(sql).fetch_one(&mut *self.checkpointer.lock().await).await;
        // Whether it was kept from it, the pages of the log, and those that are copied.
        let outcome = outcome
            .and_then(|row| Ok((row.try_get::<i64, _>(0)?, row.try_get::<i64, _>(1)?, row.try_get::<i64, _>(2)?)));
        match outcome {
            // A reader that stays, such as a backup of the operator's: it is waited for again when twice as much is there,
            // so that those who write wait seldom.
            Ok((1.., ..)) if restart => self.restart_at.store(2 * bytes, Ordering::Relaxed),
            Ok((_, pages, copied)) if pages == copied => self.restart_at.store(RESTART_BYTES, Ordering::Relaxed),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "the write-ahead log could not be checkpointed; it will be tried again");
            }
        }
    }
}

/// An error of the database, as the host sees it.
fn failed(error: sqlx::Error) -> Error {
    if let sqlx::Error::Database(database) = &error {
        // The primary result code is the low byte (sqlite.org/rescode.html): 13 is SQLITE_FULL.
        let primary = database.code().and_then(|code| code.parse::<i32>().ok()).map(|code| code & 0xff);
        if primary == Some(13) {
            return Error::unavailable("disk_full", "the server's disk is full; nothing was changed").source(error);
        }
    }
    Error::internal(error)
}

fn tag_of(row: &SqliteRow) -> Result<Tag> {
    let epoch: Option<i64> = row.try_get("epoch").map_err(failed)?;
    let seq: Option<i64> = row.try_get("seq").map_err(failed)?;
    match (epoch, seq) {
        (Some(epoch), Some(seq)) => Ok(Tag { epoch: epoch as u64, seq: seq as u64 }),
        _ => Err(refusal::no_tenant()),
    }
}

fn row_of(row: &SqliteRow) -> Result<Option<Row>> {
    let Some(version) = row.try_get::<Option<i64>, _>("version").map_err(failed)? else { return Ok(None) };
    let counter: Option<i64> = row.try_get("counter").map_err(failed)?;
    let value = match counter {
        Some(count) => Value::Counter(count),
        None => Value::Bytes(row.try_get::<Option<Vec<u8>>, _>("value").map_err(failed)?.unwrap_or_default().into()),
    };
    Ok(Some(Row { value, version: version as u64, expires_at_ms: row.try_get("expires_at_ms").map_err(failed)? }))
}

/// The head as the first column group of every read, so that head and rows come from one statement.
const HEAD: &str = "select h.epoch, h.seq, r.value, r.counter, r.version, r.expires_at_ms";

impl Store for SqliteStore {
    fn read<'a>(&'a self, scope: &'a TenantScope, keys: &'a [Key]) -> BoxFuture<'a, Result<(Tag, Vec<Option<Row>>)>> {
        async move {
            if let [key] = keys {
                let row = sqlx::query(
                    "select h.epoch, h.seq, r.value, r.counter, r.version, r.expires_at_ms from heads h \
                     left join rows r on r.tenant_id = h.tenant_id and r.space = $2 and r.key = $3 where h.tenant_id = $1",
                )
                .bind(scope.id().as_str())
                .bind(key.space.as_str())
                .bind(&key.key[..])
                .fetch_optional(&self.readers)
                .await
                .map_err(failed)?
                .ok_or_else(refusal::no_tenant)?;
                return Ok((tag_of(&row)?, vec![row_of(&row)?]));
            }
            // Several statements see one state inside a read transaction.
            let mut connection = self.readers.acquire().await.map_err(failed)?;
            let mut transaction = connection.begin().await.map_err(failed)?;
            let mut tag = None;
            let mut rows = Vec::with_capacity(keys.len());
            for chunk in keys.chunks(CHUNK) {
                let mut query = QueryBuilder::<Sqlite>::new("with wanted (n, space, key) as (");
                query.push_values(chunk.iter().enumerate(), |mut values, (n, key)| {
                    values.push_bind(n as i64).push_bind(key.space.as_str()).push_bind(&key.key[..]);
                });
                query.push(") ").push(HEAD).push(
                    ", w.n from heads h left join wanted w left join rows r \
                     on r.tenant_id = h.tenant_id and r.space = w.space and r.key = w.key where h.tenant_id = ",
                );
                query.push_bind(scope.id().as_str());
                let found = query.build().fetch_all(&mut *transaction).await.map_err(failed)?;
                tag = Some(tag_of(found.first().ok_or_else(refusal::no_tenant)?)?);
                let start = rows.len();
                rows.resize(start + chunk.len(), None);
                for row in &found {
                    let n: i64 = row.try_get("n").map_err(failed)?;
                    rows[start + n as usize] = row_of(row)?;
                }
            }
            let tag = tag.ok_or_else(|| Error::internal("a read of no keys"))?;
            Ok((tag, rows))
        }
        .boxed()
    }

    fn scan<'a>(
        &'a self,
        scope: &'a TenantScope,
        range: &'a Range,
        now_ms: i64,
        limit: usize,
    ) -> BoxFuture<'a, Result<(Tag, Vec<(Bytes, Row)>)>> {
        async move {
            let mut query = QueryBuilder::<Sqlite>::new(HEAD);
            query.push(", r.key from heads h left join (select * from rows where tenant_id = ");
            query.push_bind(scope.id().as_str());
            push_range(&mut query, range, now_ms);
            query.push(" order by key limit ").push_bind(limit as i64);
            query.push(") r on r.tenant_id = h.tenant_id where h.tenant_id = ");
            query.push_bind(scope.id().as_str()).push(" order by r.key");
            let found = query.build().fetch_all(&self.readers).await.map_err(failed)?;
            let tag = tag_of(found.first().ok_or_else(refusal::no_tenant)?)?;
            let mut rows = Vec::with_capacity(found.len());
            for row in &found {
                if let Some(stored) = row_of(row)? {
                    rows.push((Bytes::from(row.try_get::<Vec<u8>, _>("key").map_err(failed)?), stored));
                }
            }
            Ok((tag, rows))
        }
        .boxed()
    }

    fn holds<'a>(&'a self, scope: &'a TenantScope, facts: &'a Facts) -> BoxFuture<'a, Result<(Tag, Option<Key>)>> {
        async move {
            // Several statements see one state inside a read transaction.
            let mut connection = self.readers.acquire().await.map_err(failed)?;
            let mut transaction = connection.begin().await.map_err(failed)?;
            let head = sqlx::query("select epoch, seq from heads where tenant_id = $1")
                .bind(scope.id().as_str())
                .fetch_optional(&mut *transaction)
                .await
                .map_err(failed)?
                .ok_or_else(refusal::no_tenant)?;
            let tag = tag_of(&head)?;
            let keys: Vec<(&TenantId, &Key)> = facts.reads.iter().map(|read| (scope.id(), &read.key)).collect();
            let stored = versions(&mut transaction, &keys).await?;
            for read in &facts.reads {
                let version = stored.get(&(scope.id(), &read.key)).map_or(0, |old| old.live_version(facts.now_ms));
                if version != read.version {
                    return Ok((tag, Some(read.key.clone())));
                }
            }
            let changed = changed_range(&mut transaction, scope.id(), facts).await?;
            Ok((tag, changed))
        }
        .boxed()
    }

    fn commit<'a>(&'a self, sets: &'a [Set], breaks: Breaks) -> BoxFuture<'a, Result<Vec<Verdict>>> {
        async move {
            let verdicts = {
                let mut writer = self.writer.lock().await;
                let mut transaction = writer.begin_with("begin immediate").await.map_err(failed)?;
                let verdicts = apply(&mut transaction, sets, breaks).await?;
                if let Err(error) = transaction.commit().await {
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
            if !breaks.checkpoint {
                self.checkpoint().await;
            }
            Ok(verdicts)
        }
        .boxed()
    }

    fn usage<'a>(&'a self, scope: &'a TenantScope, from_ms: i64, to_ms: i64) -> BoxFuture<'a, Result<Vec<Compute>>> {
        async move {
            let found = sqlx::query(
                "select plugin, hour_ms, invocations, failures, fuel, bytes_in, bytes_out from usage_totals \
                 where tenant_id = $1 and hour_ms >= $2 and hour_ms < $3 order by hour_ms, plugin",
            )
            .bind(scope.id().as_str())
            .bind(from_ms)
            .bind(to_ms)
            .fetch_all(&self.readers)
            .await
            .map_err(failed)?;
            found.iter().map(compute_of).collect()
        }
        .boxed()
    }

    fn head<'a>(&'a self, scope: &'a TenantScope) -> BoxFuture<'a, Result<(Tag, u64)>> {
        async move {
            let head = sqlx::query("select epoch, seq, bytes from heads where tenant_id = $1")
                .bind(scope.id().as_str())
                .fetch_optional(&self.readers)
                .await
                .map_err(failed)?
                .ok_or_else(refusal::no_tenant)?;
            let bytes: i64 = head.try_get("bytes").map_err(failed)?;
            Ok((tag_of(&head)?, bytes.max(0) as u64))
        }
        .boxed()
    }

    fn batching(&self) -> Batching {
        Batching { lanes: 1, mixed: true, exclusive: true }
    }
}

fn compute_of(row: &SqliteRow) -> Result<Compute> {
    let number = |name: &str| row.try_get::<i64, _>(name).map(|n| n as u64).map_err(failed);
    Ok(Compute {
        plugin: row.try_get::<String, _>("plugin").map_err(failed)?.into(),
        hour_ms: row.try_get("hour_ms").map_err(failed)?,
        invocations: number("invocations")?,
        failures: number("failures")?,
        fuel: number("fuel")?,
        bytes_in: number("bytes_in")?,
        bytes_out: number("bytes_out")?,
    })
}

fn push_range(query: &mut QueryBuilder<Sqlite>, range: &Range, now_ms: i64) {
    query.push(" and space = ").push_bind(range.space.as_str().to_owned());
    query.push(" and key >= ").push_bind(range.from.to_vec());
    if let Some(to) = &range.to {
        query.push(" and key < ").push_bind(to.to_vec());
    }
    query.push(" and (expires_at_ms is null or expires_at_ms > ").push_bind(now_ms).push(")");
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

async fn versions<'k>(
    connection: &mut SqliteConnection,
    keys: &[(&'k TenantId, &'k Key)],
) -> Result<HashMap<(&'k TenantId, &'k Key), Old>> {
    let mut olds = HashMap::with_capacity(keys.len());
    for chunk in keys.chunks(CHUNK) {
        let mut query = QueryBuilder::<Sqlite>::new("with wanted (n, tenant_id, space, key) as (");
        query.push_values(chunk.iter().enumerate(), |mut values, (n, (tenant, key))| {
            values.push_bind(n as i64).push_bind(tenant.as_str()).push_bind(key.space.as_str()).push_bind(&key.key[..]);
        });
        query.push(
            ") select w.n, r.version, r.counter, coalesce(length(r.value), 8) as bytes, r.expires_at_ms from wanted w \
             cross join rows r on r.tenant_id = w.tenant_id and r.space = w.space and r.key = w.key",
        );
        for row in query.build().fetch_all(&mut *connection).await.map_err(failed)? {
            let n: i64 = row.try_get("n").map_err(failed)?;
            let (tenant, key) = chunk[n as usize];
            let bytes: i64 = row.try_get("bytes").map_err(failed)?;
            let version: i64 = row.try_get("version").map_err(failed)?;
            let old = Old {
                version: version as u64,
                counter: row.try_get("counter").map_err(failed)?,
                bytes: bytes as usize,
                expires_at_ms: row.try_get("expires_at_ms").map_err(failed)?,
            };
            olds.insert((tenant, key), old);
        }
    }
    Ok(olds)
}

async fn changed_range(connection: &mut SqliteConnection, tenant: &TenantId, facts: &Facts) -> Result<Option<Key>> {
    for fact in &facts.ranges {
        let mut query = QueryBuilder::<Sqlite>::new(
            "select count(*) as n, coalesce(max(version), 0) as v from rows where tenant_id = ",
        );
        query.push_bind(tenant.as_str());
        push_range(&mut query, &fact.range, facts.now_ms);
        let row = query.build().fetch_one(&mut *connection).await.map_err(failed)?;
        let (count, version): (i64, i64) = (row.try_get("n").map_err(failed)?, row.try_get("v").map_err(failed)?);
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

async fn apply(connection: &mut SqliteConnection, sets: &[Set], breaks: Breaks) -> Result<Vec<Verdict>> {
    let mut heads = heads(connection, sets).await?;

    // One look at every row that is written, or that a set read from an older state.
    let mut keys: Vec<(&TenantId, &Key)> = Vec::new();
    for set in sets {
        let tenant = set.scope.id();
        keys.extend(set.writes.iter().map(|write| (tenant, &write.key)));
        let current = heads.get(tenant).map(|head| head.tag);
        if set.tag != current {
            keys.extend(set.facts.reads.iter().map(|read| (tenant, &read.key)));
        }
    }
    keys.sort_unstable();
    keys.dedup();
    let olds = versions(connection, &keys).await?;

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
        if let Some(key) = invalid(connection, set, &olds, &overlay, stale, breaks).await? {
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
    write_rows(connection, &overlay).await?;
    write_heads(connection, &heads, &started).await?;
    write_usage(connection, &used).await?;
    write_due(connection, &due).await?;
    for (set, verdict) in sets.iter().zip(&verdicts) {
        if matches!(verdict, Verdict::Committed { .. }) {
            for statement in &set.statements {
                execute(connection, statement).await?;
            }
        }
    }
    Ok(verdicts)
}

async fn execute(connection: &mut SqliteConnection, statement: &Statement) -> Result<()> {
    let mut query = sqlx::query(statement.sql);
    for value in &statement.values {
        query = match value {
            Datum::Text(text) => query.bind(text.as_deref()),
            Datum::Bytes(bytes) => query.bind(&bytes[..]),
            Datum::Number(number) => query.bind(*number),
        };
    }
    query.execute(connection).await.map_err(failed)?;
    Ok(())
}

async fn heads(connection: &mut SqliteConnection, sets: &[Set]) -> Result<HashMap<TenantId, Head>> {
    let mut tenants: Vec<&str> = sets.iter().map(|set| set.scope.id().as_str()).collect();
    tenants.sort_unstable();
    tenants.dedup();
    let mut query =
        QueryBuilder::<Sqlite>::new("select tenant_id, epoch, seq, bytes, state from heads where tenant_id in (");
    let mut list = query.separated(", ");
    for tenant in tenants {
        list.push_bind(tenant);
    }
    query.push(")");
    let mut heads = HashMap::new();
    for row in query.build().fetch_all(connection).await.map_err(failed)? {
        let head = Head {
            tag: tag_of(&row)?,
            bytes: row.try_get("bytes").map_err(failed)?,
            active: row.try_get::<String, _>("state").map_err(failed)? == "active",
        };
        heads.insert(TenantId::from_row(&row.try_get::<String, _>("tenant_id").map_err(failed)?), head);
    }
    Ok(heads)
}

/// The first thing that a set read and that is no longer so.
async fn invalid(
    connection: &mut SqliteConnection,
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
    if breaks.ranges { Ok(None) } else { changed_range(connection, tenant, &set.facts).await }
}

/// Changes of one set, and by how much they change the bytes that the quota counts.
type Changes<'s> = (Vec<(&'s Key, Option<(Value, Option<i64>)>)>, i64);

fn stage<'s>(
    set: &'s Set,
    head: &Head,
    olds: &HashMap<(&TenantId, &Key), Old>,
    overlay: &Overlay<'_>,
) -> Result<Changes<'s>> {
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

async fn write_rows(connection: &mut SqliteConnection, overlay: &Overlay<'_>) -> Result<()> {
    let (mut puts, mut deletes) = (Vec::new(), Vec::new());
    for ((tenant, key), change) in overlay {
        match change {
            Some(row) => puts.push((*tenant, *key, row)),
            None => deletes.push((*tenant, *key)),
        }
    }
    for chunk in puts.chunks(CHUNK) {
        let mut query = QueryBuilder::<Sqlite>::new(
            "insert into rows (tenant_id, space, key, value, counter, version, expires_at_ms) ",
        );
        query.push_values(chunk, |mut values, (tenant, key, (value, version, expires_at_ms))| {
            let (bytes, counter) = match value {
                Value::Bytes(bytes) => (Some(&bytes[..]), None),
                Value::Counter(count) => (None, Some(*count)),
            };
            values
                .push_bind(tenant.as_str())
                .push_bind(key.space.as_str())
                .push_bind(&key.key[..])
                .push_bind(bytes)
                .push_bind(counter)
                .push_bind(*version as i64)
                .push_bind(*expires_at_ms);
        });
        query.push(
            " on conflict (tenant_id, space, key) do update set value = excluded.value, counter = excluded.counter, \
             version = excluded.version, expires_at_ms = excluded.expires_at_ms",
        );
        query.build().execute(&mut *connection).await.map_err(failed)?;
    }
    for chunk in deletes.chunks(CHUNK) {
        let mut query = QueryBuilder::<Sqlite>::new("delete from rows where (tenant_id, space, key) in (");
        query.push_values(chunk, |mut values, (tenant, key)| {
            values.push_bind(tenant.as_str()).push_bind(key.space.as_str()).push_bind(&key.key[..]);
        });
        query.push(")");
        query.build().execute(&mut *connection).await.map_err(failed)?;
    }
    Ok(())
}

async fn write_heads(
    connection: &mut SqliteConnection,
    heads: &HashMap<TenantId, Head>,
    started: &HashMap<TenantId, Tag>,
) -> Result<()> {
    let moved: Vec<_> = heads.iter().filter(|(tenant, head)| started.get(tenant) != Some(&head.tag)).collect();
    if moved.is_empty() {
        return Ok(());
    }
    let mut query = QueryBuilder::<Sqlite>::new("insert into heads (tenant_id, seq, bytes) ");
    query.push_values(moved, |mut values, (tenant, head)| {
        values.push_bind(tenant.as_str()).push_bind(head.tag.seq as i64).push_bind(head.bytes);
    });
    query.push(" on conflict (tenant_id) do update set seq = excluded.seq, bytes = excluded.bytes");
    query.build().execute(connection).await.map_err(failed)?;
    Ok(())
}

async fn write_usage(
    connection: &mut SqliteConnection,
    used: &BTreeMap<(&TenantId, &str, i64), Compute>,
) -> Result<()> {
    if used.is_empty() {
        return Ok(());
    }
    let mut query = QueryBuilder::<Sqlite>::new(
        "insert into usage_totals (tenant_id, plugin, hour_ms, invocations, failures, fuel, bytes_in, bytes_out) ",
    );
    query.push_values(used, |mut values, ((tenant, plugin, hour_ms), sum)| {
        values
            .push_bind(tenant.as_str())
            .push_bind(*plugin)
            .push_bind(*hour_ms)
            .push_bind(sum.invocations as i64)
            .push_bind(sum.failures as i64)
            .push_bind(i64::try_from(sum.fuel).unwrap_or(i64::MAX))
            .push_bind(sum.bytes_in as i64)
            .push_bind(sum.bytes_out as i64);
    });
    query.push(
        " on conflict (tenant_id, plugin, hour_ms) do update set invocations = invocations + excluded.invocations, \
         failures = failures + excluded.failures, \
         fuel = case when fuel > 9223372036854775807 - excluded.fuel then 9223372036854775807 else fuel + excluded.fuel end, bytes_in = bytes_in + excluded.bytes_in, \
         bytes_out = bytes_out + excluded.bytes_out",
    );
    query.build().execute(connection).await.map_err(failed)?;
    Ok(())
}

async fn write_due(connection: &mut SqliteConnection, due: &BTreeMap<&TenantId, i64>) -> Result<()> {
    if due.is_empty() {
        return Ok(());
    }
    let mut query = QueryBuilder::<Sqlite>::new("insert into due (kind, tenant_id, due_at_ms) ");
    query.push_values(due, |mut values, (tenant, due_at_ms)| {
        values.push_bind("sweep").push_bind(tenant.as_str()).push_bind(*due_at_ms);
    });
    query.push(
        " on conflict (kind, tenant_id) do update set due_at_ms = excluded.due_at_ms where excluded.due_at_ms < due_at_ms",
    );
    query.build().execute(connection).await.map_err(failed)?;
    Ok(())
}
