//! Rows in PostgreSQL: each read and each commit is one call of a function of the migration, which names
//! the tenant to row-level security and does its work without another round trip.
//!
//! A batch holds one tenant's sets and runs on one of a few connections of its own, so that the database
//! can share a flush between tenants. A commit whose connection is lost is looked for by its sets' marker
//! rows, under the head's lock and when the lost call can no longer run, since its server process is gone or
//! its time over: what is found then is final. Isolation is the database's: the role of a server owns
//! nothing and bypasses nothing.

mod gates;

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgDatabaseError, PgPool, PgPoolOptions, PgRow, PgSeverity};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::gates::Gates;
use crate::effects::row::{Key, Range, Row, Value};
use crate::effects::set::{Compute, Datum, Facts, OUTCOME_UNKNOWN, Op, Set, Statement, Tag, Verdict};
use crate::effects::{Batching, Breaks, Gate, KEY_BYTES, Store, refusal};
use crate::kernel::cache::Cache;
use crate::kernel::error::{Error, Result};
use crate::kernel::tenant::{TenantId, TenantScope};

/// Connections that read. A read takes well under a millisecond; more would only wait inside the database.
const READERS: u32 = 8;
/// Those that one tenant's reads take at a time: whose rows make them slow leaves the others to everybody else.
const TENANT_READERS: usize = 4;
/// How long a read waits for a connection.
const ACQUIRE: Duration = Duration::from_secs(5);
/// Tenants whose reads are counted; a forgotten one's that are on their way count no more.
const TENANTS: usize = 4_096;
/// Batches that run at a time: enough for the database to share a flush, few enough to leave it room.
const LANES: usize = 8;
/// How long a statement may take, and so how old a snapshot may get before it holds up vacuum.
const STATEMENT: Duration = Duration::from_secs(5);
/// How long a commit may wait for another node's commit of the same tenant.
const LOCK: Duration = Duration::from_secs(2);
/// How long a tenant's gate may be held without a commit: half of what others wait for it.
const GATE_MS: i64 = 1_000;
/// How long after it was sent a commit may still begin; past it a lost one is known to be dead.
const GOOD_FOR_MS: i64 = 3_000;
/// How long a commit may take until its connection counts as lost: a statement, and a slow flush.
const COMMIT: Duration = Duration::from_secs(10);
/// How long the fate of a lost commit is looked for.
const SEARCH: Duration = Duration::from_secs(10);
/// How long to wait before the database is asked again for a lost commit.
const PAUSE: Duration = Duration::from_millis(20);
/// Tries of a commit that the database itself asks to repeat, or that was lost and is known not to be there.
const TRIES: u32 = 3;
/// Idle time after which a connection is tested before it is used.
const IDLE: Duration = Duration::from_secs(5);

/// A PostgreSQL database as a store.
#[derive(Clone)]
pub(crate) struct PostgresStore(Arc<Inner>);

struct Inner {
    options: PgConnectOptions,
    reads: PgPool,
    turns: Cache<TenantId, Arc<Semaphore>>,
    idle: Mutex<Vec<Lane>>,
    server: Arc<Server>,
    gates: Arc<Gates>,
}

/// A connection that commits.
struct Lane {
    connection: PgConnection,
    process: Process,
    used: Instant,
}

/// A server process: its number, and when it started, since numbers come again.
#[derive(Clone, Copy)]
struct Process {
    pid: i32,
    started_us: i64,
}

/// What new connections say of the server behind them.
#[derive(Default)]
struct Server {
    time: Mutex<Option<(Instant, i64)>>,
    timeline: Mutex<Option<String>>,
    generation: AtomicU64,
}

impl Server {
    /// Look at the server behind a new connection.
    async fn look(&self, connection: &mut PgConnection) -> sqlx::Result<()> {
        let rows = sqlx::query(
            "select chalet_now_ms(), (select system_identifier::text from pg_control_system()) || \
             case when pg_is_in_recovery() then '' else substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end",
        )
        .fetch_all(connection)
        .await?;
        let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let (now_ms, timeline): (i64, String) = (row.try_get(0)?, row.try_get(1)?);
        *self.time.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), now_ms));
        let mut known = self.timeline.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_some_and(|known| *known != timeline) {
            self.generation.fetch_add(1, Ordering::SeqCst);
        }
        *known = Some(timeline);
        Ok(())
    }

    /// The database's time: what it said last, and what passed since.
    fn now_ms(&self) -> i64 {
        let time = self.time.lock().unwrap_or_else(PoisonError::into_inner);
        time.map_or(0, |(since, ms)| ms + i64::try_from(since.elapsed().as_millis()).unwrap_or(0))
    }
}

impl PostgresStore {
    /// Connect as the application's role, to a migrated database.
    pub(crate) async fn open(url: &str) -> Result<Self> {
        let options = options(url)?;
        let mut connection = options.connect().await.map_err(failed)?;
        check_role(&mut connection).await?;
        check_migrations(&mut connection).await?;
        let server = Arc::new(Server::default());
        server.look(&mut connection).await.map_err(failed)?;
        connection.close().await.map_err(failed)?;
        let seen = server.clone();
        let reads = PgPoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(ACQUIRE)
            // A test before each use would double the round trips of a read.
            .test_before_acquire(false)
            .before_acquire(|connection, meta| {
                Box::pin(async move { Ok(meta.idle_for < IDLE || connection.ping().await.is_ok()) })
            })
            .after_connect(move |connection, _| {
                let seen = seen.clone();
                Box::pin(async move { seen.look(connection).await })
            })
            .connect_with(options.clone())
            .await
            .map_err(failed)?;
        let turns = Cache::new(TENANTS);
        Ok(Self(Arc::new(Inner { options, reads, turns, idle: Mutex::default(), server, gates: Arc::default() })))
    }

    /// Connections for single calls that are no commits.
    pub(crate) fn pool(&self) -> &PgPool {
        &self.0.reads
    }

    /// The database's time now, asked anew.
    pub(crate) async fn ask_time(&self) -> Result<i64> {
        let mut connection = self.0.reads.acquire().await.map_err(failed)?;
        self.0.server.look(&mut connection).await.map_err(failed)?;
        Ok(self.0.server.now_ms())
    }

    async fn lane(&self) -> Result<Lane> {
        loop {
            let idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut lane) = idle else { break };
            if lane.used.elapsed() < IDLE || lane.connection.ping().await.is_ok() {
                return Ok(lane);
            }
        }
        let mut connection = self.0.options.connect().await.map_err(failed)?;
        self.0.server.look(&mut connection).await.map_err(failed)?;
        let rows =
            sqlx::query("select pid, chalet_us(backend_start) from pg_stat_activity where pid = pg_backend_pid()")
                .fetch_all(&mut connection)
                .await
                .map_err(failed)?;
        let row = rows.first().ok_or_else(|| failed(sqlx::Error::RowNotFound))?;
        let process = Process { pid: row.try_get(0).map_err(failed)?, started_us: row.try_get(1).map_err(failed)? };
        Ok(Lane { connection, process, used: Instant::now() })
    }

    fn give_back(&self, lane: Lane) {
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < LANES {
            idle.push(Lane { used: Instant::now(), ..lane });
        }
    }

    /// A turn among the tenant's reads.
    async fn turn(&self, scope: &TenantScope) -> Result<OwnedSemaphorePermit> {
        let turns = self.0.turns.get_or_make(scope.id(), || Arc::new(Semaphore::new(TENANT_READERS)));
        match tokio::time::timeout(ACQUIRE, turns.acquire_owned()).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(Error::unavailable("database_busy", "reads of this tenant take too long; try again")),
        }
    }

    /// Run a read again if its connection turns out to be dead: it changes nothing.
    async fn query(&self, scope: &TenantScope, query: impl Fn() -> Query) -> Result<Vec<PgRow>> {
        let _turn = self.turn(scope).await?;
        for _ in 0..READERS {
            match query().fetch_all(&self.0.reads).await {
                Err(sqlx::Error::Io(_) | sqlx::Error::Protocol(_)) => {}
                Err(sqlx::Error::Database(error)) if fatal(&*error) => {}
                other => return other.map_err(failed),
            }
        }
        query().fetch_all(&self.0.reads).await.map_err(failed)
    }

    /// Which of these sets, whose commit was lost, are there. None: that could not be learned in time.
    async fn search(&self, sets: &[&Set], lost: Process, not_after_ms: i64) -> Option<(u64, HashMap<usize, u64>)> {
        let until = Instant::now() + SEARCH;
        let marked: Vec<(usize, &Key)> =
            sets.iter().enumerate().filter_map(|(n, set)| Some((n, set.marker.as_ref()?))).collect();
        let scope = &sets.first()?.scope;
        while Instant::now() < until {
            match self.look_for(scope, &marked, lost, not_after_ms).await {
                Ok(Some(found)) => return Some(found),
                Ok(None) => {}
                Err(error) => tracing::warn!(?error, "a lost commit is being looked for"),
            }
            tokio::time::sleep(PAUSE).await;
        }
        None
    }

    async fn look_for(
        &self,
        scope: &TenantScope,
        marked: &[(usize, &Key)],
        lost: Process,
        not_after_ms: i64,
    ) -> Result<Option<(u64, HashMap<usize, u64>)>> {
        let spaces: Vec<&str> = marked.iter().map(|(_, key)| key.space.as_str()).collect();
        let keys: Vec<&[u8]> = marked.iter().map(|(_, key)| &key.key[..]).collect();
        let mut lane = self.lane().await?;
        let rows = sqlx::query("select epoch, dead, n, version from chalet_outcome($1, $2, $3, $4, $5, $6)")
            .bind(scope.id().as_str())
            .bind(not_after_ms)
            .bind(lost.pid)
            .bind(lost.started_us)
            .bind(spaces)
            .bind(keys)
            .fetch_all(&mut lane.connection)
            .await
            .map_err(failed)?;
        self.give_back(lane);
        let mut found = HashMap::new();
        let (mut dead, mut epoch) = (false, 0);
        for row in &rows {
            dead = row.try_get("dead").map_err(failed)?;
            epoch = row.try_get::<Option<i64>, _>("epoch").map_err(failed)?.unwrap_or(0) as u64;
            let n: i64 = row.try_get("n").map_err(failed)?;
            if let Some(version) = row.try_get::<Option<i64>, _>("version").map_err(failed)? {
                found.insert(marked[n as usize - 1].0, version as u64);
            }
        }
        // One row found says that the whole call was committed; none says nothing while it may still be.
        Ok((dead || !found.is_empty() || marked.is_empty()).then_some((epoch, found)))
    }
}

type Query = sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments>;

/// The options of every connection of a server.
fn options(url: &str) -> Result<PgConnectOptions> {
    let ms = |duration: Duration| duration.as_millis().to_string();
    let options = PgConnectOptions::from_str(url).map_err(|error| {
        Error::invalid("the database URL cannot be read; it has the form postgres://user:password@host/database")
            .source(error)
    })?;
    Ok(options
        .application_name("chalet")
        .options([
            ("statement_timeout", ms(STATEMENT)),
            ("lock_timeout", ms(LOCK)),
            ("idle_in_transaction_session_timeout", ms(STATEMENT)),
            ("synchronous_commit", "on".into()),
            // Compiling a statement takes longer than running one of ours.
            ("jit", "off".into()),
        ])
        .disable_statement_logging())
}

/// Refuse a role to which row-level security would not apply.
async fn check_role(connection: &mut PgConnection) -> Result<()> {
    let row = sqlx::query(
        "select rolname::text, rolsuper, rolbypassrls, \
         (select count(*) from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') \
            and relname not like '\\_sqlx%' and pg_has_role(current_user, relowner, 'member')) as owned \
         from pg_roles where rolname = current_user",
    )
    .fetch_one(connection)
    .await
    .map_err(failed)?;
    let role: String = row.try_get(0).map_err(failed)?;
    let refuse = |why: &str| {
        Err(Error::invalid(format!(
            "the database role {role} {why}; row-level security would not hold: give the server the role that `chalet migrate` prepared"
        )))
    };
    if row.try_get::<bool, _>(1).map_err(failed)? {
        return refuse("is a superuser");
    }
    if row.try_get::<bool, _>(2).map_err(failed)? {
        return refuse("has bypassrls");
    }
    if row.try_get::<i64, _>(3).map_err(failed)? > 0 {
        return refuse("owns tables, or may act as their owner");
    }
    Ok(())
}

/// Refuse a database without all migrations of this build.
async fn check_migrations(connection: &mut PgConnection) -> Result<()> {
    let missing =
        || Error::invalid("the database is not migrated to this version; run `chalet migrate` with the owner's role");
    let rows = match sqlx::query_scalar::<_, i64>("select version from public._sqlx_migrations where success")
        .fetch_all(connection)
        .await
    {
        Ok(rows) => rows,
        // Undefined table, insufficient privilege: nobody has migrated, or not for this role.
        Err(sqlx::Error::Database(error)) if matches!(error.code().as_deref(), Some("42P01" | "42501")) => {
            return Err(missing().source(sqlx::Error::Database(error)));
        }
        Err(error) => return Err(failed(error)),
    };
    let all = MIGRATIONS.iter().all(|migration| rows.contains(&migration.version));
    if all { Ok(()) } else { Err(missing()) }
}

/// The tables and functions of this build.
pub(crate) static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("../migrations/postgres");

/// Whether the server ended the connection with this error.
fn fatal(error: &dyn sqlx::error::DatabaseError) -> bool {
    let severity = error.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::severity);
    !matches!(severity, Some(PgSeverity::Error | PgSeverity::Warning | PgSeverity::Notice))
}

/// An error of the database, as the host sees it.
pub(crate) fn failed(error: sqlx::Error) -> Error {
    let busy = |code, message| Error::unavailable(code, message);
    let answer = match &error {
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Io(_) | sqlx::Error::Tls(_) => {
            busy("database_unavailable", "the database does not answer; try again")
        }
        sqlx::Error::Database(database) => match database.code().as_deref() {
            // Lock not available, query cancelled, our own "too late", serialization failure, deadlock.
            Some("55P03" | "57014" | "CH001" | "40001" | "40P01") => {
                busy("database_busy", "the database is too busy; try again")
            }
            // Disk full, and the rest of "insufficient resources".
            Some("53100") => busy("disk_full", "the database's disk is full; nothing was changed"),
            Some(code) if code.starts_with("53") || code.starts_with("08") || code.starts_with("57P") => {
                busy("database_unavailable", "the database does not answer; try again")
            }
            _ => return Error::internal(error),
        },
        _ => return Error::internal(error),
    };
    answer.source(error)
}

fn unknown() -> Error {
    Error::unavailable(OUTCOME_UNKNOWN, "the commit's outcome is not known; look before you repeat it")
}

fn tag_of(row: &PgRow) -> Result<Tag> {
    let (epoch, seq): (i64, i64) = (row.try_get("epoch").map_err(failed)?, row.try_get("seq").map_err(failed)?);
    Ok(Tag { epoch: epoch as u64, seq: seq as u64 })
}

fn row_of(row: &PgRow) -> Result<Option<Row>> {
    let Some(version) = row.try_get::<Option<i64>, _>("version").map_err(failed)? else { return Ok(None) };
    let value = match row.try_get::<Option<i64>, _>("counter").map_err(failed)? {
        Some(count) => Value::Counter(count),
        None => Value::Bytes(row.try_get::<Option<Vec<u8>>, _>("value").map_err(failed)?.unwrap_or_default().into()),
    };
    Ok(Some(Row { value, version: version as u64, expires_at_ms: row.try_get("expires_at_ms").map_err(failed)? }))
}

/// The end of a range; where it is open, a key longer and so greater than any that can be stored.
fn end(range: &Range) -> Vec<u8> {
    range.to.as_ref().map_or_else(|| vec![0xff; KEY_BYTES + 1], |to| to.to_vec())
}

impl Store for PostgresStore {
    fn read<'a>(&'a self, scope: &'a TenantScope, keys: &'a [Key]) -> BoxFuture<'a, Result<(Tag, Vec<Option<Row>>)>> {
        async move {
            let query = || {
                sqlx::query("select epoch, seq, n, value, counter, version, expires_at_ms from chalet_read($1, $2, $3)")
                    .bind(scope.id().as_str().to_owned())
                    .bind(keys.iter().map(|key| key.space.as_str().to_owned()).collect::<Vec<_>>())
                    .bind(keys.iter().map(|key| key.key.to_vec()).collect::<Vec<_>>())
            };
            let found = self.query(scope, query).await?;
            let tag = tag_of(found.first().ok_or_else(refusal::no_tenant)?)?;
            let mut rows = vec![None; keys.len()];
            for row in &found {
                if let Some(n) = row.try_get::<Option<i64>, _>("n").map_err(failed)? {
                    rows[n as usize - 1] = row_of(row)?;
                }
            }
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
            let query = || {
                sqlx::query("select epoch, seq, key, value, counter, version, expires_at_ms from chalet_scan($1, $2, $3, $4, $5, $6)")
                    .bind(scope.id().as_str().to_owned())
                    .bind(range.space.as_str().to_owned())
                    .bind(range.from.to_vec())
                    .bind(end(range))
                    .bind(now_ms)
                    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            };
            let found = self.query(scope, query).await?;
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
            let query = || {
                let (reads, ranges) = (&facts.reads, &facts.ranges);
                sqlx::query("select epoch, seq, space, key from chalet_holds($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)")
                    .bind(scope.id().as_str().to_owned())
                    .bind(facts.now_ms)
                    .bind(reads.iter().map(|read| read.key.space.as_str().to_owned()).collect::<Vec<_>>())
                    .bind(reads.iter().map(|read| read.key.key.to_vec()).collect::<Vec<_>>())
                    .bind(reads.iter().map(|read| read.version as i64).collect::<Vec<_>>())
                    .bind(ranges.iter().map(|fact| fact.range.space.as_str().to_owned()).collect::<Vec<_>>())
                    .bind(ranges.iter().map(|fact| fact.range.from.to_vec()).collect::<Vec<_>>())
                    .bind(ranges.iter().map(|fact| end(&fact.range)).collect::<Vec<_>>())
                    .bind(ranges.iter().map(|fact| fact.count as i64).collect::<Vec<_>>())
                    .bind(ranges.iter().map(|fact| fact.max_version as i64).collect::<Vec<_>>())
            };
            let found = self.query(scope, query).await?;
            let row = found.first().ok_or_else(refusal::no_tenant)?;
            Ok((tag_of(row)?, key_of(row)?))
        }
        .boxed()
    }

    fn commit<'a>(&'a self, sets: &'a [Set], breaks: Breaks) -> BoxFuture<'a, Result<Vec<Verdict>>> {
        async move {
            let mut verdicts: Vec<Option<Verdict>> = sets.iter().map(|_| None).collect();
            let mut open: Vec<usize> = (0..sets.len()).collect();
            let mut last = Error::unavailable("database_busy", "the database is too busy; try again");
            for _ in 0..TRIES {
                let waiting: Vec<&Set> = open.iter().map(|n| &sets[*n]).collect();
                // A batch is one tenant's.
                let passing = self.0.gates.pass(waiting[0].scope.id());
                let call = Call::of(&waiting, passing.is_none(), breaks);
                let not_after_ms = self.0.server.now_ms() + GOOD_FOR_MS;
                let mut lane = match self.lane().await {
                    Ok(lane) => lane,
                    Err(error) if open.len() == sets.len() => return Err(error),
                    Err(error) => {
                        last = error;
                        break;
                    }
                };
                let outcome = tokio::time::timeout(COMMIT, call.run(&mut lane.connection, not_after_ms)).await;
                match outcome {
                    Ok(Ok(found)) => {
                        self.give_back(lane);
                        for (n, verdict) in open.drain(..).zip(found) {
                            verdicts[n] = Some(verdict);
                        }
                        break;
                    }
                    // The server itself says that it rolled back.
                    Ok(Err(sqlx::Error::Database(error))) if !fatal(&*error) => {
                        self.give_back(lane);
                        let again = matches!(error.code().as_deref(), Some("40001" | "40P01"));
                        last = failed(sqlx::Error::Database(error));
                        if !again {
                            break;
                        }
                    }
                    lost => {
                        let process = lane.process;
                        drop(lane);
                        let cause = lost.err().map_or_else(|| "connection lost".to_owned(), |late| late.to_string());
                        tracing::warn!(
                            cause,
                            sets = open.len(),
                            "a commit's connection was lost; its rows are looked for"
                        );
                        let found = self.search(&waiting, process, not_after_ms).await;
                        last = Error::unavailable("database_unavailable", "the database does not answer; try again");
                        let mut gone = Vec::new();
                        for (place, n) in open.drain(..).enumerate() {
                            verdicts[n] = match (&found, &sets[n].marker) {
                                (Some((epoch, found)), Some(_)) => match found.get(&place) {
                                    Some(seq) => Some(Verdict::Committed { tag: Tag { epoch: *epoch, seq: *seq } }),
                                    None => {
                                        gone.push(n);
                                        None
                                    }
                                },
                                _ => Some(Verdict::Refused(unknown())),
                            };
                        }
                        // What is surely not there can be committed anew: its facts are looked at again.
                        open = gone;
                    }
                }
                if open.is_empty() {
                    break;
                }
            }
            if open.len() == sets.len() {
                return Err(last);
            }
            Ok(verdicts.into_iter().map(|verdict| verdict.unwrap_or_else(|| Verdict::Refused(last.clone()))).collect())
        }
        .boxed()
    }

    fn close_gate<'a>(&'a self, scope: &'a TenantScope) -> BoxFuture<'a, Result<Gate>> {
        async move {
            // From here on this node's own commits do not wait, also those that are no invocation's.
            let held = self.0.gates.hold(scope.id()).await;
            let mut lane = self.lane().await?;
            sqlx::raw_sql("begin").execute(&mut lane.connection).await.map_err(failed)?;
            sqlx::query("select chalet_close_gate($1, $2)")
                .bind(scope.id().as_str())
                .bind(GATE_MS)
                .fetch_all(&mut lane.connection)
                .await
                .map_err(failed)?;
            // The transaction ends with its connection.
            Ok(Box::new((lane.connection, held)) as Gate)
        }
        .boxed()
    }

    fn usage<'a>(&'a self, scope: &'a TenantScope, from_ms: i64, to_ms: i64) -> BoxFuture<'a, Result<Vec<Compute>>> {
        async move {
            let query = || {
                sqlx::query("select * from chalet_usage($1, $2, $3)")
                    .bind(scope.id().as_str().to_owned())
                    .bind(from_ms)
                    .bind(to_ms)
            };
            self.query(scope, query).await?.iter().map(compute_of).collect()
        }
        .boxed()
    }

    fn head<'a>(&'a self, scope: &'a TenantScope) -> BoxFuture<'a, Result<(Tag, u64)>> {
        async move {
            let query =
                || sqlx::query("select epoch, seq, bytes from chalet_head($1)").bind(scope.id().as_str().to_owned());
            let found = self.query(scope, query).await?;
            let head = found.first().ok_or_else(refusal::no_tenant)?;
            let bytes: i64 = head.try_get("bytes").map_err(failed)?;
            Ok((tag_of(head)?, bytes.max(0) as u64))
        }
        .boxed()
    }

    fn batching(&self) -> Batching {
        Batching { lanes: LANES, mixed: false, exclusive: false, blocking: false }
    }

    fn generation(&self) -> u64 {
        self.0.server.generation.load(Ordering::SeqCst)
    }
}

fn compute_of(row: &PgRow) -> Result<Compute> {
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

fn key_of(row: &PgRow) -> Result<Option<Key>> {
    let space: Option<String> = row.try_get("space").map_err(failed)?;
    let key: Option<Vec<u8>> = row.try_get("key").map_err(failed)?;
    Ok(space.zip(key).map(|(space, key)| crate::effects::Space::from_row(space).key(key)))
}

/// The parameters of one call of `chalet_commit`: the sets' parts side by side, as its comment names them.
#[derive(Default)]
struct Call<'s> {
    tenant: &'s str,
    lock: bool,
    gated: bool,
    run: Vec<i32>,
    epoch: Vec<Option<i64>>,
    seq: Vec<Option<i64>>,
    check: Vec<bool>,
    now_ms: Vec<i64>,
    quota: Vec<i64>,
    reads: Vec<i32>,
    ranges: Vec<i32>,
    writes: Vec<i32>,
    due_at_ms: Vec<Option<i64>>,
    plugin: Vec<Option<&'s str>>,
    hour_ms: Vec<i64>,
    invocations: Vec<i64>,
    failures: Vec<i64>,
    fuel: Vec<i64>,
    bytes_in: Vec<i64>,
    bytes_out: Vec<i64>,
    read: Places<'s>,
    read_version: Vec<i64>,
    range: Places<'s>,
    range_end: Vec<Vec<u8>>,
    range_count: Vec<i64>,
    range_version: Vec<i64>,
    write: Places<'s>,
    write_kind: Vec<i32>,
    write_value: Vec<Option<&'s [u8]>>,
    write_number: Vec<Option<i64>>,
    write_expires_at_ms: Vec<Option<i64>>,
    write_charged: Vec<bool>,
    statements: Vec<&'s [Statement]>,
}

/// Which set, and which place in the tenant's map.
#[derive(Default)]
struct Places<'s> {
    set: Vec<i32>,
    space: Vec<&'s str>,
    key: Vec<&'s [u8]>,
}

impl<'s> Places<'s> {
    fn push(&mut self, set: usize, space: &'s crate::effects::Space, key: &'s [u8]) {
        self.set.push(set as i32 + 1);
        self.space.push(space.as_str());
        self.key.push(key);
    }

    fn len(&self) -> i32 {
        self.set.len() as i32
    }
}

impl<'s> Call<'s> {
    fn of(sets: &[&'s Set], gated: bool, breaks: Breaks) -> Self {
        let mut call = Self { lock: !breaks.lock, gated, ..Self::default() };
        for (n, set) in sets.iter().enumerate() {
            call.tenant = set.scope.id().as_str();
            call.epoch.push(set.tag.map(|tag| tag.epoch as i64));
            call.seq.push(set.tag.map(|tag| tag.seq as i64));
            call.now_ms.push(set.facts.now_ms);
            call.quota.push(i64::try_from(set.scope.plan().storage_bytes).unwrap_or(i64::MAX));
            call.due_at_ms.push(set.first_expiry_ms());
            call.push_compute(set.compute.as_ref());
            if !breaks.reads {
                for read in &set.facts.reads {
                    call.read.push(n, &read.key.space, &read.key.key);
                    call.read_version.push(read.version as i64);
                }
            }
            if !breaks.reads && !breaks.ranges {
                for fact in &set.facts.ranges {
                    call.range.push(n, &fact.range.space, &fact.range.from);
                    call.range_end.push(end(&fact.range));
                    call.range_count.push(fact.count as i64);
                    call.range_version.push(fact.max_version as i64);
                }
            }
            for write in &set.writes {
                call.push_write(n, write);
            }
            call.statements.push(&set.statements);
            call.reads.push(call.read.len());
            call.ranges.push(call.range.len());
            call.writes.push(call.write.len());
        }
        let (run, check) = runs(sets);
        call.run = run;
        call.check = if breaks.overlay { vec![false; sets.len()] } else { check };
        call
    }

    fn push_compute(&mut self, compute: Option<&'s Compute>) {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let sum = |field: fn(&Compute) -> u64| compute.map_or(0, |compute| number(field(compute)));
        self.plugin.push(compute.map(|compute| &*compute.plugin));
        self.hour_ms.push(compute.map_or(0, |compute| compute.hour_ms));
        self.invocations.push(sum(|compute| compute.invocations));
        self.failures.push(sum(|compute| compute.failures));
        self.fuel.push(sum(|compute| compute.fuel));
        self.bytes_in.push(sum(|compute| compute.bytes_in));
        self.bytes_out.push(sum(|compute| compute.bytes_out));
    }

    fn push_write(&mut self, n: usize, write: &'s crate::effects::Write) {
        self.write.push(n, &write.key.space, &write.key.key);
        let (kind, value, number, expires_at_ms) = match &write.op {
            Op::Put { value: Value::Bytes(bytes), expires_at_ms } => (0, Some(&bytes[..]), None, *expires_at_ms),
            Op::Put { value: Value::Counter(count), expires_at_ms } => (1, None, Some(*count), *expires_at_ms),
            Op::Delete => (2, None, None, None),
            Op::Add(delta) => (3, None, Some(*delta), None),
            Op::Sweep { before_ms } => (4, None, Some(*before_ms), None),
        };
        self.write_kind.push(kind);
        self.write_value.push(value);
        self.write_number.push(number);
        self.write_expires_at_ms.push(expires_at_ms);
        self.write_charged.push(write.key.space.charged());
    }

    /// Commit. Where statements come with it, the head stays locked over their round trips: the directory changes
    /// seldom.
    async fn run(&self, connection: &mut PgConnection, not_after_ms: i64) -> sqlx::Result<Vec<Verdict>> {
        if self.statements.iter().all(|statements| statements.is_empty()) {
            return self.call(connection, not_after_ms).await;
        }
        let mut transaction = connection.begin().await?;
        match self.call_and_execute(&mut transaction, not_after_ms).await {
            Ok(verdicts) => transaction.commit().await.map(|()| verdicts),
            Err(error) => {
                // At once, so that nobody waits for the locks; a lost connection has none.
                let _ = transaction.rollback().await;
                Err(error)
            }
        }
    }

    async fn call_and_execute(&self, connection: &mut PgConnection, not_after_ms: i64) -> sqlx::Result<Vec<Verdict>> {
        let verdicts = self.call(connection, not_after_ms).await?;
        for (statements, verdict) in self.statements.iter().zip(&verdicts) {
            if matches!(verdict, Verdict::Committed { .. }) {
                for statement in *statements {
                    execute(connection, statement).await?;
                }
            }
        }
        Ok(verdicts)
    }

    async fn call(&self, connection: &mut PgConnection, not_after_ms: i64) -> sqlx::Result<Vec<Verdict>> {
        // All rows are awaited: the server commits after it has sent them, and says that it is ready after that.
        let rows = sqlx::query(
            "select outcome, epoch, seq, space, key from chalet_commit($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, \
             $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, \
             $35, $36, $37, $38, $39)",
        )
        .bind(self.tenant)
        .bind(not_after_ms)
        .bind(self.lock)
        .bind(self.gated)
        .bind(&self.run)
        .bind(&self.epoch)
        .bind(&self.seq)
        .bind(&self.check)
        .bind(&self.now_ms)
        .bind(&self.quota)
        .bind(&self.reads)
        .bind(&self.ranges)
        .bind(&self.writes)
        .bind(&self.due_at_ms)
        .bind(&self.plugin)
        .bind(&self.hour_ms)
        .bind(&self.invocations)
        .bind(&self.failures)
        .bind(&self.fuel)
        .bind(&self.bytes_in)
        .bind(&self.bytes_out)
        .bind(&self.read.set)
        .bind(&self.read.space)
        .bind(&self.read.key)
        .bind(&self.read_version)
        .bind(&self.range.set)
        .bind(&self.range.space)
        .bind(&self.range.key)
        .bind(&self.range_end)
        .bind(&self.range_count)
        .bind(&self.range_version)
        .bind(&self.write.set)
        .bind(&self.write.space)
        .bind(&self.write.key)
        .bind(&self.write_kind)
        .bind(&self.write_value)
        .bind(&self.write_number)
        .bind(&self.write_expires_at_ms)
        .bind(&self.write_charged)
        .fetch_all(connection)
        .await?;
        rows.iter().map(verdict_of).collect()
    }
}

async fn execute(connection: &mut PgConnection, statement: &Statement) -> sqlx::Result<()> {
    if let Some(tenant) = &statement.tenant {
        let set = sqlx::query("select set_config('app.tenant', $1, true)").bind(tenant.as_str());
        set.fetch_all(&mut *connection).await?;
    }
    let mut query = sqlx::query(statement.sql);
    for value in &statement.values {
        query = match value {
            Datum::Text(text) => query.bind(text.as_deref()),
            Datum::Bytes(bytes) => query.bind(&bytes[..]),
            Datum::Number(number) => query.bind(*number),
        };
    }
    query.execute(connection).await?;
    Ok(())
}

fn verdict_of(row: &PgRow) -> sqlx::Result<Verdict> {
    Ok(match row.try_get::<i32, _>("outcome")? {
        0 => {
            let (epoch, seq): (i64, i64) = (row.try_get("epoch")?, row.try_get("seq")?);
            Verdict::Committed { tag: Tag { epoch: epoch as u64, seq: seq as u64 } }
        }
        1 => {
            let (space, key): (String, Vec<u8>) = (row.try_get("space")?, row.try_get("key")?);
            Verdict::Conflict { key: crate::effects::Space::from_row(space).key(key) }
        }
        2 => Verdict::Refused(refusal::no_tenant()),
        3 => Verdict::Refused(refusal::not_a_counter()),
        4 => Verdict::Refused(refusal::counter_overflow()),
        5 => Verdict::Refused(refusal::storage_exhausted()),
        other => return Err(sqlx::Error::Protocol(format!("chalet_commit gave the outcome {other}"))),
    })
}

/// The last set (from 1) of each set's run, and whether an earlier set writes into what it reads. Of a run, no
/// set writes what a later one reads, and only additions share a row.
fn runs(sets: &[&Set]) -> (Vec<i32>, Vec<bool>) {
    // The key's latest writer, and whether all of its run only add.
    let mut writers: BTreeMap<&Key, (usize, bool)> = BTreeMap::new();
    let mut firsts = Vec::with_capacity(sets.len());
    let mut checks = Vec::with_capacity(sets.len());
    let mut first = 0;
    for (n, set) in sets.iter().enumerate() {
        let mut latest: Option<usize> = None;
        for read in &set.facts.reads {
            latest = latest.max(writers.get(&read.key).map(|(writer, _)| *writer));
        }
        for fact in &set.facts.ranges {
            let from = Key { space: fact.range.space.clone(), key: fact.range.from.clone() };
            let inside = writers.range(from..).take_while(|(key, _)| fact.range.contains(key));
            latest = latest.max(inside.map(|(_, (writer, _))| *writer).max());
        }
        checks.push(latest.is_some());
        let clashes = set.writes.iter().any(|write| {
            writers
                .get(&write.key)
                .is_some_and(|(writer, adds)| *writer >= first && !(*adds && matches!(write.op, Op::Add(_))))
        });
        if clashes || latest.is_some_and(|writer| writer >= first) {
            first = n;
        }
        firsts.push(first);
        for write in &set.writes {
            writers.insert(&write.key, (n, matches!(write.op, Op::Add(_))));
        }
    }
    let mut run = vec![0; sets.len()];
    let mut last = sets.len();
    for n in (0..sets.len()).rev() {
        run[n] = last as i32;
        if firsts[n] == n {
            last = n;
        }
    }
    (run, checks)
}
