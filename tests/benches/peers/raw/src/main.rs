//! Rows into a database as fast as it takes them: the roof for whoever stores the same rows.
//!
//! `peer-raw sqlite FILE AFTER THROUGH BATCH SECONDS` reads what the server of that file committed for the tenant `acme`
//! after one commit and through another, and writes the same rows into a new file beside it, with the same schema and
//! synced: BATCH commits a transaction, over and over again for so many seconds. `peer-raw postgres URL URL AFTER THROUGH
//! BATCH SECONDS` does that from one database to another, over four connections. A line of JSON says how many commits it
//! wrote.

use std::time::{Duration, Instant};

use rusqlite::Connection;

/// Connections to PostgreSQL: as many as keep two cores and a disk busy.
const CONNECTIONS: usize = 4;
/// Rows that are read at most; after them the first ones come again under other keys.
const ROWS: usize = 200_000;

/// A row as it is stored.
#[derive(Clone)]
struct Row {
    version: i64,
    space: String,
    key: Vec<u8>,
    counter: Option<i64>,
    expires_at_ms: Option<i64>,
    value: Option<Vec<u8>>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |text: &String| text.parse::<u64>().expect("a number");
    let started = Instant::now();
    let (commits, seconds) = match &arguments[..] {
        [engine, file, after, through, batch, seconds] if engine == "sqlite" => {
            let commits = by_commit(read_sqlite(file, number(after), number(through)));
            to_sqlite(file, &commits, number(batch) as usize, Duration::from_secs(number(seconds)))
        }
        [engine, from, to, after, through, batch, seconds] if engine == "postgres" => {
            let commits = by_commit(read_postgres(from, number(after), number(through)));
            to_postgres(to, &commits, number(batch) as usize, Duration::from_secs(number(seconds)))
        }
        _ => panic!("peer-raw sqlite FILE AFTER THROUGH BATCH SECONDS; was called after {:?}", started.elapsed()),
    };
    println!("{}", serde_json::json!({ "requests": commits, "seconds": seconds.as_secs_f64() }));
}

/// Rows in the order of their commits, one list a commit.
fn by_commit(rows: Vec<Row>) -> Vec<Vec<Row>> {
    let commits: Vec<Vec<Row>> = rows.chunk_by(|one, next| one.version == next.version).map(<[Row]>::to_vec).collect();
    assert!(!commits.is_empty(), "the server has committed no rows that could be written again");
    commits
}

/// Batches without end: those of the n-th time around have other keys than before.
fn batches(commits: &[Vec<Row>], batch: usize, lane: usize) -> impl Iterator<Item = (usize, Vec<Row>)> {
    (lane as u64..).step_by(CONNECTIONS).flat_map(move |time| {
        commits.chunks(batch.max(1)).map(move |chunk| {
            let again = |row: &Row| {
                let mut row = row.clone();
                row.key.extend_from_slice(&time.to_be_bytes());
                row
            };
            (chunk.len(), chunk.iter().flatten().map(again).collect())
        })
    })
}

fn read_sqlite(file: &str, after: u64, through: u64) -> Vec<Row> {
    let from =
        Connection::open_with_flags(file, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).expect("the server's file");
    let mut rows = from
        .prepare(
            "select version, space, key, counter, expires_at_ms, value from rows \
             where tenant_id = (select id from tenants where name = 'acme') and version > ?1 and version <= ?2 \
             order by version limit ?3",
        )
        .expect("the schema is Chalet's");
    let row = |row: &rusqlite::Row<'_>| {
        Ok(Row {
            version: row.get(0)?,
            space: row.get(1)?,
            key: row.get(2)?,
            counter: row.get(3)?,
            expires_at_ms: row.get(4)?,
            value: row.get(5)?,
        })
    };
    let found = rows.query_map((after as i64, through as i64, ROWS as i64), row).expect("rows");
    found.collect::<Result<_, _>>().expect("rows have Chalet's types")
}

fn to_sqlite(beside: &str, commits: &[Vec<Row>], batch: usize, duration: Duration) -> (usize, Duration) {
    let path = format!("{beside}.raw-{}", std::process::id());
    let mut to = Connection::open(&path).expect("a new file");
    to.pragma_update(None, "journal_mode", "wal").expect("a write-ahead log");
    to.pragma_update(None, "synchronous", "full").expect("syncs");
    to.execute_batch(include_str!("../../../../../migrations/sqlite/0001_init.sql")).expect("the schema");
    let (mut written, mut seq) = (0, 0_i64);
    let started = Instant::now();
    for (commits, rows) in batches(commits, batch, 0) {
        if started.elapsed() >= duration {
            break;
        }
        let transaction =
            to.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).expect("nobody else writes");
        {
            let mut insert = transaction
                .prepare_cached(
                    "insert into rows (tenant_id, space, key, counter, version, expires_at_ms, value) \
                     values ('acme', ?1, ?2, ?3, ?4, ?5, ?6) on conflict (tenant_id, space, key) do update \
                     set counter = excluded.counter, version = excluded.version, \
                         expires_at_ms = excluded.expires_at_ms, value = excluded.value",
                )
                .expect("a statement");
            for row in rows {
                let values = (&row.space, &row.key, row.counter, row.version, row.expires_at_ms, &row.value);
                insert.execute(values).expect("a row is written");
            }
            seq += commits as i64;
            let head = "insert into heads (tenant_id, seq, bytes) values ('acme', ?1, ?1) \
                        on conflict (tenant_id) do update set seq = excluded.seq, bytes = excluded.bytes";
            transaction.prepare_cached(head).expect("a statement").execute([seq]).expect("the head is written");
            let usage = "insert into usage_totals values ('acme', 'p', 0, ?1, 0, 0, 0, 0) \
                         on conflict (tenant_id, plugin, hour_ms) do update set invocations = excluded.invocations";
            transaction.prepare_cached(usage).expect("a statement").execute([seq]).expect("usage is written");
        }
        transaction.commit().expect("the disk takes it");
        written += commits;
    }
    let took = started.elapsed();
    drop(to);
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{path}{end}"));
    }
    (written, took)
}

fn read_postgres(url: &str, after: u64, through: u64) -> Vec<Row> {
    let mut from = postgres::Client::connect(url, postgres::NoTls).expect("the server's database");
    let found = from
        .query(
            "select version, space, key, counter, expires_at_ms, value from rows \
             where tenant_id = (select id from tenants where name = 'acme') and version > $1 and version <= $2 \
             order by version limit $3",
            &[&(after as i64), &(through as i64), &(ROWS as i64)],
        )
        .expect("the schema is Chalet's");
    let row = |row: &postgres::Row| Row {
        version: row.get(0),
        space: row.get(1),
        key: row.get(2),
        counter: row.get(3),
        expires_at_ms: row.get(4),
        value: row.get(5),
    };
    found.iter().map(row).collect()
}

fn to_postgres(url: &str, commits: &[Vec<Row>], batch: usize, duration: Duration) -> (usize, Duration) {
    let mut to = postgres::Client::connect(url, postgres::NoTls).expect("the other database");
    to.batch_execute("truncate rows").expect("the schema is Chalet's");
    let started = Instant::now();
    let written = std::thread::scope(|scope| {
        let lane = |lane: usize| {
            let mut to = postgres::Client::connect(url, postgres::NoTls).expect("the other database");
            let insert = to
                .prepare(
                    "insert into rows (tenant_id, space, key, counter, version, expires_at_ms, value) \
                     select 'acme', * from unnest($1::text[], $2::bytea[], $3::int8[], $4::int8[], $5::int8[], $6::bytea[]) \
                     on conflict (tenant_id, space, key) do update \
                     set counter = excluded.counter, version = excluded.version, \
                         expires_at_ms = excluded.expires_at_ms, value = excluded.value",
                )
                .expect("a statement");
            let mut written = 0;
            for (commits, rows) in batches(commits, batch, lane) {
                if started.elapsed() >= duration {
                    break;
                }
                let spaces: Vec<&str> = rows.iter().map(|row| &row.space[..]).collect();
                let keys: Vec<&[u8]> = rows.iter().map(|row| &row.key[..]).collect();
                let counters: Vec<Option<i64>> = rows.iter().map(|row| row.counter).collect();
                let versions: Vec<i64> = rows.iter().map(|row| row.version).collect();
                let expiries: Vec<Option<i64>> = rows.iter().map(|row| row.expires_at_ms).collect();
                let values: Vec<Option<&[u8]>> = rows.iter().map(|row| row.value.as_deref()).collect();
                to.execute(&insert, &[&spaces, &keys, &counters, &versions, &expiries, &values])
                    .expect("rows are written");
                written += commits;
            }
            written
        };
        let lanes: Vec<_> = (0..CONNECTIONS).map(|nth| scope.spawn(move || lane(nth))).collect();
        lanes.into_iter().map(|lane| lane.join().expect("a lane ends")).sum()
    });
    (written, started.elapsed())
}
