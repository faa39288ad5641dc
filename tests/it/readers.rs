//! Readers that do not end: what they hold up has a bound. Neither the write-ahead log grows for their sake, nor do those
//! who write wait for them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, SqliteConnection};

use crate::kit::engine::Engine;
use crate::kit::postgres;
use crate::kit::server::{Server, Setup, Tenant, expect};
use crate::kit::soak;

on_both_engines! {
    listings_without_a_pause_hold_up_nobody_who_writes,
    a_reader_that_stays_holds_up_nobody_who_writes,
}

/// Bytes of write-ahead log that a server may have: those at which it waits for readers (64 MiB), and what the batches
/// write until it looks again, sixteen of about 1 MiB with their indexes.
const WAL_BYTES: u64 = 96 << 20;
/// How long a server's snapshot of PostgreSQL may live: what the database lets a statement or an idle transaction have.
const SNAPSHOT: Duration = Duration::from_secs(6);
/// How much longer the slowest hundredth of the writes may take beside readers, with whom they share the machine.
const RATIO: u32 = 8;
const SLACK: Duration = Duration::from_millis(100);
/// Clients that write, and bytes of what they write.
const CLIENTS: usize = 4;
const BYTES: usize = 128 << 10;

/// How long is written beside a reader.
fn time() -> Duration {
    Duration::from_secs(soak::either(5, 60))
}

/// The tenant by so many keys, to be used in turn so that none comes above its rate.
async fn by_keys<'s>(tenant: &Tenant<'s>, scope: &str, keys: usize) -> Vec<Tenant<'s>> {
    let scopes = [scope];
    let keys = join_all((0..keys).map(|_| tenant.mint(&scopes))).await;
    keys.into_iter().map(|key| Tenant { key, ..tenant.clone() }).collect()
}

/// Write over and over again for so long; how long each write took, in order of length.
async fn write(tenant: &Tenant<'_>, time: Duration) -> Vec<Duration> {
    let clients = (0..CLIENTS).map(async |client| {
        let tenants = by_keys(tenant, "tenant:write", 4).await;
        let until = Instant::now() + time;
        let mut took = Vec::new();
        for tenant in tenants.iter().cycle().take_while(|_| Instant::now() < until) {
            // Other bytes each time: SQLite does not write a page anew that is as it was.
            let put = tenant.api(Method::PUT, &format!("/kv/c/{client}")).body(vec![rand::random::<u8>(); BYTES]);
            let started = Instant::now();
            let answer = put.send().await.expect("an answer");
            took.push(started.elapsed());
            let status = answer.status();
            assert!(status.is_success(), "{status} {}", answer.text().await.expect("text"));
        }
        took
    });
    let mut took = join_all(clients).await.concat();
    took.sort_unstable();
    took
}

fn p99(took: &[Duration]) -> Duration {
    took[took.len() * 99 / 100]
}

/// A server, and where its rows are.
struct Place {
    server: Server,
    database: Option<postgres::Database>,
}

impl Place {
    async fn on(engine: Engine) -> Self {
        let (setup, database) = match engine {
            Engine::Sqlite => (Setup::sqlite(), None),
            Engine::Postgres => {
                let database = postgres::database().await;
                (Setup::on(&database), Some(database))
            }
        };
        let server = Server::start_with(setup);
        server.unlimited().await;
        Self { server, database }
    }

    fn wal(&self) -> PathBuf {
        self.server.data.path().join("chalet.sqlite-wal")
    }

    async fn admin(&self) -> PgConnection {
        let database = self.database.as_ref().expect("it is on PostgreSQL");
        PgConnection::connect(&database.admin_url).await.expect("the cluster answers")
    }

    /// Look again and again, until it is told to stop, at how much a reader makes the database keep: bytes of SQLite's log,
    /// or the age in milliseconds of the oldest snapshot of a server on PostgreSQL. The most of it.
    async fn most_kept(&self, stop: &AtomicBool) -> u64 {
        let mut most = 0;
        let mut admin = match &self.database {
            Some(_) => Some(self.admin().await),
            None => None,
        };
        while !stop.load(Ordering::Relaxed) {
            let kept = match &mut admin {
                None => std::fs::metadata(self.wal()).map_or(0, |file| file.len()),
                Some(admin) => {
                    let oldest = "select coalesce(max(extract(epoch from clock_timestamp() - xact_start) * 1000), 0)::bigint \
                         from pg_stat_activity where datname = current_database() and usename = $1";
                    let oldest = sqlx::query_scalar::<_, i64>(oldest).bind(postgres::APP);
                    oldest.fetch_one(admin).await.expect("the cluster answers").unsigned_abs()
                }
            };
            most = most.max(kept);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        most
    }

    /// What [`Self::most_kept`] may be.
    fn bound(&self) -> u64 {
        if self.database.is_some() { SNAPSHOT.as_millis() as u64 } else { WAL_BYTES }
    }
}

async fn listings_without_a_pause_hold_up_nobody_who_writes(engine: Engine) {
    let place = Place::on(engine).await;
    let (writing, reading) = (place.server.tenant("writing").await, place.server.tenant("reading").await);
    for n in 0..400 {
        let put = reading.api(Method::PUT, &format!("/kv/c/{n:04}")).body(vec![b'x'; 4 << 10]);
        expect(put, StatusCode::CREATED).await;
    }
    let mut measured = Vec::new();
    for _ in 0..3 {
        let (stop, pages) = (AtomicBool::new(false), AtomicU64::new(0));
        let readers = (0..2).map(async |_| {
            let tenants = by_keys(&reading, "tenant:read", 16).await;
            for reading in tenants.iter().cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                expect(reading.api(Method::GET, "/kv/c?limit=1000"), StatusCode::OK).await;
                pages.fetch_add(1, Ordering::Relaxed);
            }
        });
        let alone = write(&writing, time() / 4).await;
        let beside = async {
            let beside = write(&writing, time()).await;
            stop.store(true, Ordering::Relaxed);
            beside
        };
        let (beside, most, _) = tokio::join!(beside, place.most_kept(&stop), join_all(readers));
        let (writes, pages) = (beside.len(), pages.into_inner());
        let (alone, beside) = (p99(&alone), p99(&beside));
        println!("p99 {alone:?} alone, {beside:?} beside {pages} pages; {writes} writes; the most kept is {most}");
        assert!(most <= place.bound(), "readers make the database keep {most}, of {}", place.bound());
        assert!(pages > 10, "{pages} pages were read");
        if beside <= alone * RATIO + SLACK {
            return;
        }
        measured.push((alone, beside));
    }
    panic!("p99 of writes, alone and beside listings: {measured:?}");
}

/// A reader of the operator's, such as a backup: a transaction that has seen something.
enum Stays {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Stays {
    async fn at(place: &Place) -> Self {
        if place.database.is_some() {
            let mut connection = place.admin().await;
            sqlx::raw_sql("begin isolation level repeatable read; select count(*) from rows")
                .execute(&mut connection)
                .await
                .expect("it reads");
            Self::Postgres(connection)
        } else {
            let file = place.server.data.path().join("chalet.sqlite");
            let mut connection = SqliteConnectOptions::new().filename(file).connect().await.expect("it opens");
            sqlx::raw_sql("begin; select count(*) from rows").execute(&mut connection).await.expect("it reads");
            Self::Sqlite(connection)
        }
    }

    async fn end(self) {
        match self {
            Self::Sqlite(connection) => connection.close().await.expect("it closes"),
            Self::Postgres(connection) => connection.close().await.expect("it closes"),
        }
    }
}

async fn a_reader_that_stays_holds_up_nobody_who_writes(engine: Engine) {
    let place = Place::on(engine).await;
    let writing = place.server.tenant("writing").await;
    let mut measured = Vec::new();
    for _ in 0..3 {
        let alone = write(&writing, time() / 4).await;
        let reader = Stays::at(&place).await;
        let beside = write(&writing, time()).await;
        reader.end().await;
        let log = std::fs::metadata(place.wal()).map_or(0, |file| file.len());
        // When it is gone, the log is short again, if there is one.
        let again = Instant::now();
        while std::fs::metadata(place.wal()).is_ok_and(|file| file.len() > WAL_BYTES) {
            write(&writing, Duration::from_millis(200)).await;
            assert!(again.elapsed() < Duration::from_secs(20), "the log stays long after its reader went");
        }
        let (writes, alone, beside) = (beside.len(), p99(&alone), p99(&beside));
        println!("p99 {alone:?} alone, {beside:?} beside a reader that stays; {writes} writes; {log} bytes of log");
        if beside <= alone * RATIO + SLACK {
            return;
        }
        measured.push((alone, beside));
    }
    panic!("p99 of writes, alone and beside a reader that stays: {measured:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_checkpoints_the_log_grows_beyond_its_bound() {
    let setup = Setup::sqlite().with("CHALET_BREAK", "checkpoint");
    let place = Place { server: Server::start_with(setup), database: None };
    place.server.unlimited().await;
    let writing = place.server.tenant("writing").await;
    let (started, mut log) = (Instant::now(), 0);
    while log <= place.bound() {
        assert!(started.elapsed() < Duration::from_secs(120), "the log has {log} bytes");
        write(&writing, Duration::from_millis(500)).await;
        log = std::fs::metadata(place.wal()).map_or(0, |file| file.len());
    }
    println!("{log} bytes of log after {:?}", started.elapsed());
}
