//! What is PostgreSQL's alone: roles, row-level security, migration, and the kit's own cluster.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::kit::oracle::Watch;
use crate::kit::postgres::{self, Database};
use crate::kit::proxy::Proxy;
use crate::kit::server::{Server, Setup, expect};
use crate::kit::soak;
use crate::kit::store::Bench;
use chalet::effects::{Breaks, Claim, Effects, Key, Shard, Space, Value, Verdict};
use chalet::kernel::clock::Clock;
use chalet::kernel::db::{Db, Location, migrate};
use chalet::kernel::error::Kind;
use chalet::kernel::tenant::TenantScope;
use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
use reqwest::{Method, StatusCode};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};

/// Tables with a `tenant_id` that are read before a tenant is known, or that name tenants without content.
const PLATFORM_TABLES: [&str; 2] = ["api_keys", "due"];

async fn open(url: &str) -> chalet::kernel::error::Result<Db> {
    Db::open(&Location::Postgres { url: url.into() }).await
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.expect("the cluster answers")
}

async fn count(connection: &mut PgConnection, statement: &str) -> i64 {
    let row = connection.fetch_one(AssertSqlSafe(statement.to_owned())).await.expect("the statement runs");
    row.get(0)
}

async fn refused(url: &str) -> String {
    let error = open(url).await.err().expect("the role is refused");
    assert_eq!(error.kind(), Kind::Invalid, "{error:?}");
    error.message().to_owned()
}

#[tokio::test]
async fn only_a_role_that_owns_and_bypasses_nothing_is_accepted() {
    let Database { url, owner_url, admin_url } = postgres::database().await;
    open(&url).await.expect("the application's role is accepted");
    assert!(refused(&owner_url).await.contains("owns tables"));
    assert!(refused(&admin_url).await.contains("superuser"));
    let mut admin = connect(&admin_url).await;
    admin
        .execute("create role bypasser login bypassrls; create role member login in role chalet_owner;")
        .await
        .expect("roles");
    assert!(refused(&url.replace("chalet_app@", "bypasser@")).await.contains("bypassrls"));
    assert!(refused(&url.replace("chalet_app@", "member@")).await.contains("owns tables"));
}

#[tokio::test]
async fn a_database_that_is_not_migrated_is_refused_with_the_way_out() {
    let database = tokio::task::spawn_blocking(postgres::shared).await.expect("starts").empty_database().await;
    assert!(refused(&database.url).await.contains("chalet migrate"));
    migrate(&database.owner_url, None).await.expect("migrates");
    open(&database.url).await.expect("opens");
    migrate(&database.owner_url, None).await.expect("a second time changes nothing");
    migrate(&database.owner_url, Some("late_comer")).await.expect("a role is made and let in");
    open(&database.url.replace("chalet_app@", "late_comer@")).await.expect("opens for the new role");
    let mut owner = connect(&database.owner_url).await;
    owner.execute("delete from _sqlx_migrations").await.expect("the owner may do this");
    assert!(refused(&database.url).await.contains("chalet migrate"));
}

/// A row of a table for the tenant `$1`.
fn inserting(table: &str) -> &'static str {
    match table {
        "heads" => "insert into heads (tenant_id) values ($1)",
        "rows" => "insert into rows values ($1, 's', 'k', 'v', null, 1, null)",
        "usage_totals" => "insert into usage_totals values ($1, 'p', 0, 1, 1, 1, 1, 1)",
        "components" => "insert into components values ($1, 'd', 0, 'b', 0)",
        "claims" => "insert into claims values ($1, 'c', 'f', 'o', 0, 0, 0)",
        other => panic!("{other} is new: what is a row of it?"),
    }
}

#[tokio::test]
async fn without_a_tenant_the_server_s_role_sees_no_row_and_writes_none() {
    let database = postgres::database().await;
    let db = open(&database.url).await.expect("opens");
    let a = chalet::effects::testing::tenant(&db, Default::default()).await.expect("a tenant");
    let b = chalet::effects::testing::tenant(&db, Default::default()).await.expect("a tenant");
    let mut admin = connect(&database.admin_url).await;
    for tenant in [a.id().as_str(), b.id().as_str()] {
        for table in ["rows", "usage_totals", "components", "claims"] {
            sqlx::query(inserting(table)).bind(tenant).execute(&mut admin).await.expect("the superuser writes");
        }
    }
    // The owner is bound as well: the security is forced.
    for url in [&database.url, &database.owner_url] {
        let mut connection = connect(url).await;
        for table in ["heads", "rows", "usage_totals", "components", "claims"] {
            let all = format!("select count(*) from {table}");
            assert_eq!(count(&mut connection, &all).await, 0, "{table} without a tenant");
            for empty in ["set app.tenant = ''", "reset app.tenant"] {
                connection.execute(empty).await.expect("a setting");
                assert_eq!(count(&mut connection, &all).await, 0, "{table} after {empty}");
            }
            let changed = connection.execute(AssertSqlSafe(format!("delete from {table}"))).await.expect("allowed");
            assert_eq!(changed.rows_affected(), 0, "{table}");
            let inserted = connection.execute(AssertSqlSafe(inserting(table).replace("$1", "'new'"))).await;
            let error = inserted.expect_err("whose would it be");
            assert!(error.to_string().contains("row-level security"), "{table}: {error}");
            let mut transaction = connection.begin().await.expect("begins");
            sqlx::query("select set_config('app.tenant', $1, true)")
                .bind(a.id().as_str())
                .execute(&mut *transaction)
                .await
                .expect("a setting");
            assert_eq!(count(&mut transaction, &all).await, 1, "{table} as one tenant");
            let other = format!("update {table} set tenant_id = '{}'", b.id().as_str());
            let error = transaction.execute(AssertSqlSafe(other)).await.expect_err("a row cannot change hands");
            assert!(error.to_string().contains("row-level security"), "{table}: {error}");
        }
        let truncated = connection.execute("truncate rows").await;
        if url == &database.url {
            truncated.expect_err("the server's role may not truncate");
        }
    }
}

#[tokio::test]
async fn every_table_of_a_tenant_is_under_forced_security_and_begins_its_key_with_the_tenant() {
    let database = postgres::database().await;
    let mut admin = connect(&database.admin_url).await;
    let tables = admin
        .fetch_all(
            "select c.relname::text, c.relrowsecurity and c.relforcerowsecurity, \
             (select count(*) from pg_policy p where p.polrelid = c.oid and p.polcmd = '*' and p.polpermissive \
                and p.polqual is not null and p.polwithcheck is not null), \
             (select count(*) from pg_policy p where p.polrelid = c.oid and p.polcmd = '*' and not p.polpermissive \
                and p.polqual is not null and p.polwithcheck is not null), \
             (select count(*) from pg_policy p where p.polrelid = c.oid), \
             (select bool_and(i.indkey[0] = a.attnum) from pg_index i where i.indrelid = c.oid and i.indisunique), \
             (select string_agg(k.attname, ', ') from pg_attribute k where k.attrelid = c.oid and k.attnum > 0 \
                and (k.attname ~ '(^|_)id$' or k.attname in ('space', 'plugin', 'digest', 'scope', 'name', 'kind')) \
                and c.relname not in ('plans', 'api_keys') and k.atttypid = 'text'::regtype and k.attcollation <> '\"C\"'::regcollation) \
             from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id' \
             where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') order by 1",
        )
        .await
        .expect("the catalog answers");
    let mut free = Vec::new();
    for row in &tables {
        let name: String = row.get(0);
        if row.get::<i64, _>(4) == 0 && !row.get::<bool, _>(1) {
            free.push(name);
            continue;
        }
        assert!(row.get::<bool, _>(1), "{name}: row-level security is enabled and forced");
        assert_eq!(
            (row.get::<i64, _>(2), row.get::<i64, _>(3), row.get::<i64, _>(4)),
            (1, 1, 2),
            "{name}: its policies"
        );
        assert!(row.get::<bool, _>(5), "{name}: every unique index begins with the tenant");
        assert_eq!(row.get::<Option<String>, _>(6), None, "{name}: ids compare by their bytes");
    }
    assert_eq!(free, PLATFORM_TABLES, "tables without row-level security stand in this list by name");
    assert!(tables.len() >= 7, "the catalog was read");
}

/// Ways around row-level security, each with a statement that finds where the schema has one.
const WAYS_AROUND: [(&str, &str); 12] = [
    (
        "a view that reads with its owner's rights",
        "select relname::text from pg_class where relkind = 'v' and relnamespace = 'public'::regnamespace \
         and not coalesce(reloptions::text ~ 'security_invoker=(true|on)', false)",
    ),
    (
        "a copy of rows that has no security",
        "select relname::text from pg_class where relkind in ('m', 'f') and relnamespace = 'public'::regnamespace",
    ),
    (
        "a function that runs with its owner's rights",
        "select proname::text from pg_proc where pronamespace = 'public'::regnamespace and prosecdef",
    ),
    (
        "a function that finds its tables by the caller's search path",
        "select proname::text from pg_proc where pronamespace = 'public'::regnamespace \
         and prolang = (select oid from pg_language where lanname = 'plpgsql') \
         and not coalesce(proconfig::text like '%search_path%', false)",
    ),
    (
        "a second policy that lets more pass",
        "select polrelid::regclass::text from pg_policy where polpermissive group by polrelid having count(*) > 1",
    ),
    ("a policy for one role alone", "select polrelid::regclass::text from pg_policy where polroles <> '{0}'"),
    (
        "a reference that tells whether another tenant's row exists",
        "select conrelid::regclass::text from pg_constraint c where contype = 'f' \
         and exists (select 1 from pg_attribute where attrelid = confrelid and attname = 'tenant_id') \
         and not exists (select 1 from pg_attribute where attrelid = conrelid and attname = 'tenant_id' and attnum = any (conkey))",
    ),
    (
        "a unique key that tells whether another tenant's row exists",
        "select indexrelid::regclass::text from pg_index join pg_class on oid = indrelid where relrowsecurity and indisunique \
         and not exists (select 1 from pg_attribute where attrelid = indrelid and attname = 'tenant_id' and attnum = any (indkey))",
    ),
    (
        "a right that row-level security does not bind",
        "select relname::text from pg_class where relkind in ('r', 'p') and relnamespace = 'public'::regnamespace \
         and has_table_privilege('chalet_app', oid, 'truncate, references, trigger')",
    ),
    (
        "a trigger or rule that runs beside the statement",
        "select tgrelid::regclass::text from pg_trigger where not tgisinternal \
         union all select ev_class::regclass::text from pg_rewrite join pg_class c on c.oid = ev_class \
         where rulename <> '_RETURN' and relnamespace = 'public'::regnamespace",
    ),
    (
        "a schema that the server's role may make things in",
        "select nspname::text from pg_namespace where nspname !~ '^pg_temp' and has_schema_privilege('chalet_app', oid, 'create')",
    ),
    (
        "a role that reads or runs more than its tables",
        "select rolname::text from pg_roles where rolname ~ '^pg_' and pg_has_role('chalet_app', oid, 'member')",
    ),
];

/// A statement that opens each of them, in the same order.
const OPENED: [&str; 12] = [
    "create view planted as select * from rows",
    "create materialized view planted as select 1",
    "create function planted() returns int language sql security definer set search_path = public return 1",
    "create function planted() returns int language plpgsql as 'begin return 1; end'",
    "create policy planted on rows using (true)",
    "create policy planted on rows as restrictive to chalet_app using (true)",
    "alter table tenants add planted text, add foreign key (planted) references api_keys (id)",
    "create unique index planted on rows (space, key)",
    "grant truncate on rows to chalet_app",
    "create rule planted as on delete to rows do also select 1",
    "grant create on schema public to chalet_app",
    "grant pg_read_all_data to chalet_app",
];

#[tokio::test]
async fn there_is_no_way_around_row_level_security_and_each_would_be_found() {
    let database = postgres::database().await;
    let mut admin = connect(&database.admin_url).await;
    let found = async |connection: &mut PgConnection| {
        let mut ways = Vec::new();
        for (way, statement) in WAYS_AROUND {
            let places: Vec<String> = sqlx::query_scalar(statement).fetch_all(&mut *connection).await.expect(way);
            ways.extend(places.into_iter().map(|place| (way, place)));
        }
        ways
    };
    assert_eq!(found(&mut admin).await, []);
    for ((way, _), statement) in WAYS_AROUND.iter().zip(OPENED) {
        admin.execute("begin").await.expect("begins");
        admin.execute(statement).await.expect(way);
        let ways = found(&mut admin).await;
        admin.execute("rollback").await.expect("ends");
        assert!(ways.iter().any(|(found, _)| found == way), "{statement} is not found: {ways:?}");
    }
}

#[tokio::test]
async fn what_the_planner_knows_of_rows_is_not_told() {
    let database = postgres::database().await;
    let (mut admin, mut app) = (connect(&database.admin_url).await, connect(&database.url).await);
    let fill = "insert into rows (tenant_id, space, key, value, version) \
                select 't', 'marker', n::text::bytea, 'marker', 0 from generate_series(1, 500) n; analyze rows";
    admin.execute(fill).await.expect("inserted");
    let known = "select count(*) from pg_stats where tablename = 'rows' and most_common_vals::text like '%marker%'";
    assert!(count(&mut admin, known).await > 0, "there is something to be told");
    assert_eq!(count(&mut app, known).await, 0);
    for statement in [
        "copy rows to '/tmp/planted'",
        "copy rows to program 'cat'",
        "copy rows from '/etc/passwd'",
        "select pg_read_file('/etc/passwd')",
        "select * from pg_statistic",
        "set role chalet_owner",
        "set session authorization chalet_owner",
        "alter table rows disable row level security",
        "alter role chalet_app bypassrls",
        "truncate rows",
    ] {
        app.execute(statement).await.expect_err(statement);
    }
    app.execute("set row_security = off").await.expect("a setting that only turns silence into an error");
    app.execute("select * from rows").await.expect_err("the query would be affected by row-level security");
}

/// Calls of every function that looks rows of the tenant `t` up by their keys, each with three keys.
const LOOKS: [&str; 4] = [
    "select count(*) from chalet_read('t', array['s', 's', 's'], array['a', 'b', 'c']::bytea[])",
    "select count(*) from chalet_holds('t', 0, array['s', 's', 's'], array['a', 'b', 'c']::bytea[], \
     array[0, 0, 0], '{}', '{}', '{}', '{}', '{}')",
    "select count(*) from chalet_outcome('t', 0, 0, 0, array['s', 's', 's'], array['a', 'b', 'c']::bytea[])",
    "select count(*) from chalet_commit('t', 9000000000000000, true, false, array[1], array[null]::bigint[], \
     array[null]::bigint[], array[false], array[0], array[1000000], array[3], array[0], array[3], \
     array[null]::bigint[], array[null]::text[], array[0], array[0], array[0], array[0], array[0], array[0], \
     array[1, 1, 1], array['s', 's', 's'], array['d', 'e', 'f']::bytea[], array[0, 0, 0], \
     '{}', '{}', '{}', '{}', '{}', '{}', \
     array[1, 1, 1], array['s', 's', 's'], array['a', 'b', 'c']::bytea[], array[0, 3, 2], \
     array['x', null, null]::bytea[], array[null, 1, null]::bigint[], array[null, null, null]::bigint[], \
     array[true, true, true])",
];

#[tokio::test]
async fn a_look_for_a_key_fetches_no_other_row_of_the_tenant() {
    let database = postgres::database().await;
    let (mut admin, mut app) = (connect(&database.admin_url).await, connect(&database.url).await);
    admin.execute("insert into heads (tenant_id) values ('t')").await.expect("inserted");
    // The first call of a connection makes its plans: here while the planner takes every tenant for small.
    for look in LOOKS {
        app.execute(AssertSqlSafe(format!("begin; {look}; rollback"))).await.expect("the function runs");
    }
    let fill = "insert into rows (tenant_id, space, key, value, version) \
                select 't', 's', n::text::bytea, 'x', 0 from generate_series(1, 2000) n";
    admin.execute(fill).await.expect("inserted");
    for look in LOOKS {
        app.execute("begin").await.expect("begun");
        count(&mut app, look).await;
        let fetched =
            "select (seq_tup_read + idx_tup_fetch)::bigint from pg_stat_xact_user_tables where relname = 'rows'";
        let fetched = count(&mut app, fetched).await;
        app.execute("rollback").await.expect("rolled back");
        assert!(fetched < 20, "{fetched} rows were fetched by {look}");
    }
}

#[tokio::test]
async fn the_clock_follows_the_database() {
    let database = postgres::database().await;
    let db = open(&database.url).await.expect("opens");
    // A database whose time is a day ahead.
    let mut owner = connect(&database.owner_url).await;
    owner
        .execute(
            "create or replace function chalet_now_ms() returns bigint language sql volatile \
             return (extract(epoch from clock_timestamp()) * 1000)::bigint + 86400000",
        )
        .await
        .expect("the owner may do this");
    let clock = Clock::system();
    let system_ms = Clock::system().now_ms();
    db.follow(&clock).await.expect("the database says its time");
    let ahead_ms = clock.now_ms() - system_ms;
    assert!((86_400_000..86_460_000).contains(&ahead_ms), "{ahead_ms}");
}

const KV: Space = Space::named("kv/things");

/// What a writer was told of its commits, by their marker rows.
#[derive(Default)]
struct Told {
    committed: HashSet<Key>,
    not_committed: HashSet<Key>,
    unknown: HashSet<Key>,
}

/// Commit until told to stop: each time a row of its own, which is the marker, and one more in a counter.
async fn write(shard: Shard, scope: TenantScope, name: usize, stop: Arc<AtomicBool>) -> Told {
    let mut told = Told::default();
    let mut n = 0;
    while !stop.load(Ordering::SeqCst) {
        n += 1;
        let marker = KV.key(format!("row/{name}/{n}"));
        let mut effects = shard.begin(&scope);
        effects.put(marker.clone(), "x", None).expect("staged");
        effects.add(KV.key("count"), 1).expect("staged");
        let outcome = match shard.commit(effects.into_set(Some(marker.clone()), None)).await {
            Ok(Verdict::Committed { .. }) => &mut told.committed,
            Ok(Verdict::Conflict { key }) => panic!("nothing was read, and {key:?} conflicts"),
            Ok(Verdict::Refused(error)) | Err(error) => {
                assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
                // The database may be away for a moment.
                tokio::task::yield_now().await;
                if error.code() == "outcome_unknown" { &mut told.unknown } else { &mut told.not_committed }
            }
        };
        outcome.insert(marker);
    }
    told
}

/// Writers of some tenants while `trouble` happens; then everything they were told is compared with what is there.
async fn survives(bench: Bench, trouble: impl Future<Output = ()>) {
    const TENANTS: usize = 4;
    const WRITERS: usize = 4;
    let shard = bench.shard();
    let stop = Arc::new(AtomicBool::new(false));
    let mut scopes = Vec::new();
    let mut writers = Vec::new();
    for _ in 0..TENANTS {
        let scope = bench.tenant().await;
        let own = (0..WRITERS).map(|name| tokio::spawn(write(shard.clone(), scope.clone(), name, stop.clone())));
        writers.push(own.collect::<Vec<_>>());
        scopes.push(scope);
    }
    trouble.await;
    stop.store(true, Ordering::SeqCst);
    let (mut committed, mut not_committed, mut unknown) = (0, 0, 0);
    for (scope, writers) in scopes.iter().zip(writers) {
        let mut told = Told::default();
        for writer in writers {
            let one = writer.await.expect("a writer ends");
            told.committed.extend(one.committed);
            told.not_committed.extend(one.not_committed);
            told.unknown.extend(one.unknown);
        }
        let other = bench.other_node(Default::default()).await;
        let mut there = HashSet::new();
        let (tag, count) = {
            let (tag, rows) = other.store().scan(scope, &KV.prefix("row/"), 0, 1_000_000).await.expect("read");
            there.extend(rows.into_iter().map(|(key, _)| KV.key(key)));
            let (_, rows) = other.store().read(scope, &[KV.key("count")]).await.expect("read");
            (tag, rows[0].as_ref().map_or(0, |row| if let Value::Counter(count) = row.value { count } else { -1 }))
        };
        assert_eq!(there.len() as i64, count, "every row was written once, with its count");
        assert_eq!(tag.seq, there.len() as u64, "every commit has a number of its own");
        assert!(told.committed.is_subset(&there), "what was acknowledged is there");
        assert!(told.not_committed.is_disjoint(&there), "what was refused is not there");
        committed += told.committed.len();
        not_committed += told.not_committed.len();
        unknown += told.unknown.len();
    }
    println!("{committed} commits acknowledged, {not_committed} refused, {unknown} unknown");
    assert!(committed > 100, "there was load: {committed}");
}

/// T6 of the transaction rules: processes end in the middle of a commit, and answers are lost behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_connection_is_cut_happens_once_or_not_at_all() {
    let direct = postgres::database().await;
    let port = direct.url.split(':').next_back().and_then(|rest| rest.split('/').next()).expect("a port");
    let proxy = Proxy::start(port.parse().expect("a number")).await;
    let bench = Bench::at(&Database { url: direct.url.replace(port, &proxy.port.to_string()), ..direct.clone() }).await;
    survives(bench, async {
        let mut admin = connect(&direct.admin_url).await;
        proxy.lost_per_mille.store(20, Ordering::Relaxed);
        let (until, mut ended) = (Instant::now() + Duration::from_secs(4), 0);
        while Instant::now() < until {
            let end = "select count(*) from (select pg_terminate_backend(pid) from pg_stat_activity \
                       where usename = 'chalet_app' and datname = current_database() and state = 'active' and random() < 0.2) c";
            ended += count(&mut admin, end).await;
            admin.execute("select pg_sleep(0.02)").await.expect("sleeps");
        }
        proxy.lost_per_mille.store(0, Ordering::Relaxed);
        let cuts = proxy.cuts.load(Ordering::Relaxed);
        println!("{ended} server processes ended, {cuts} answers lost");
        assert!(ended > 10 && cuts > 10, "connections were cut: {ended}, {cuts}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_killed_under_load_loses_nothing_that_was_acknowledged() {
    let cluster = Arc::new(tokio::task::spawn_blocking(postgres::Cluster::start).await.expect("starts"));
    let bench = Bench::at(&cluster.database().await).await;
    let server = cluster.clone();
    survives(bench, async move {
        for _ in 0..3 {
            // Under load for a while; the time is not what the test waits for.
            tokio::time::sleep(Duration::from_millis(500)).await;
            let server = server.clone();
            tokio::task::spawn_blocking(move || {
                server.kill();
                server.boot();
            })
            .await
            .expect("the server starts again");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_waits_too_long_for_another_node_is_refused_and_harms_nobody() {
    let database = postgres::database().await;
    let bench = Bench::at(&database).await;
    let (shard, scope, other) = (bench.shard(), bench.tenant().await, bench.tenant().await);
    // A node that was stopped in the middle of its commit holds the head's lock.
    let lock = database.lock_head(scope.name()).await;
    let commit = async |scope: &TenantScope| {
        let mut effects = shard.begin(scope);
        effects.put(KV.key("k"), "x", None).expect("staged");
        shard.commit(effects.into_set(None, None)).await.expect("answered")
    };
    let (waited, quiet) = tokio::join!(commit(&scope), commit(&other));
    assert!(matches!(quiet, Verdict::Committed { .. }), "another tenant does not wait: {quiet:?}");
    assert!(matches!(&waited, Verdict::Refused(error) if error.code() == "database_busy"), "{waited:?}");
    let mut reader = shard.begin(&scope);
    assert_eq!(reader.get(&KV.key("k")).await.expect("readers do not wait"), None);
    lock.release().await;
    let after = commit(&scope).await;
    assert!(matches!(after, Verdict::Committed { tag } if tag.seq == 1), "{after:?}");
}

/// As if a tenant's rows were so many, or so large, that statements which read them do not end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_slow_statements_are_ended_and_hold_up_nobody_else() {
    let database = postgres::database().await;
    let server = Server::start_with(Setup::on(&database));
    let watch = Watch::begin(&server).await;
    let (acme, quiet) = (server.tenant("acme").await, server.tenant("quiet").await);
    for tenant in [&acme, &quiet] {
        expect(tenant.api(Method::PUT, "/kv/c/k").body("x"), StatusCode::CREATED).await;
    }
    let mut admin = connect(&database.admin_url).await;
    let id: String =
        sqlx::query("select id from tenants where name = 'acme'").fetch_one(&mut admin).await.expect("it").get(0);
    let slow = format!(
        "create policy slow on rows as restrictive for select \
         using (tenant_id <> '{id}' or key <> 'k' or pg_sleep(30)::text is null)"
    );
    sqlx::raw_sql(AssertSqlSafe(slow)).execute(&mut admin).await.expect("the owner's right");
    let ended = async |n: usize| {
        let started = Instant::now();
        let path = if n.is_multiple_of(2) { "/kv/c/k" } else { "/kv/c?prefix=k" };
        let answer = acme.api(Method::GET, path).send().await.expect("an answer");
        (answer.status(), started.elapsed())
    };
    let scans = join_all((0..64).map(ended));
    let beside = async {
        let mut slowest = Duration::ZERO;
        for n in 0..200 {
            let started = Instant::now();
            expect(quiet.api(Method::PUT, &format!("/kv/c/k-{n}")).body("x"), StatusCode::CREATED).await;
            expect(quiet.api(Method::GET, &format!("/kv/c/none-{n}")), StatusCode::NOT_FOUND).await;
            slowest = slowest.max(started.elapsed());
        }
        slowest
    };
    let (answers, slowest) = tokio::join!(scans, beside);
    let slowest_scan = answers.iter().map(|(_, took)| *took).max().expect("answers");
    println!(
        "statements that do not end were ended after {slowest_scan:?} at most; others took {slowest:?} beside them"
    );
    assert!(answers.iter().all(|(status, _)| *status == StatusCode::SERVICE_UNAVAILABLE), "{answers:?}");
    // A statement may take five seconds, and wait for its turn as long.
    assert!(slowest_scan < Duration::from_secs(15), "{slowest_scan:?}");
    assert!(slowest < Duration::from_secs(2), "others wait: {slowest:?}");
    sqlx::raw_sql("drop policy slow on rows").execute(&mut admin).await.expect("the owner's right");
    expect(acme.api(Method::GET, "/kv/c?prefix=k"), StatusCode::OK).await;
    watch.end(&server).await;
}

#[tokio::test]
async fn a_transaction_that_keeps_losing_to_a_faster_node_gets_its_turn() {
    let bench = Bench::postgres().await;
    let (slow, fast, scope) = (bench.shard(), bench.other_node(Breaks::default()).await, bench.tenant().await);
    let contended = Space::named("things").key("contended");
    let read_then_write = async |effects: &mut Effects| {
        effects.get(&contended).await?;
        // Whatever this transaction reads is written by the other node before it commits, unless that node is held back.
        let theirs = fast.transact(&scope, async |effects| effects.put(contended.clone(), "theirs", None));
        let _ = tokio::time::timeout(Duration::from_millis(500), theirs).await;
        effects.put(contended.clone(), "ours", None)
    };
    slow.transact(&scope, read_then_write).await.expect("it gets its turn");
}

#[tokio::test]
async fn a_claim_ends_with_the_connection_that_made_it() {
    let database = postgres::database().await;
    let db = open(&database.url).await.expect("opens");
    let scope = chalet::effects::testing::tenant(&db, Default::default()).await.expect("a tenant");
    let lease = Duration::from_secs(3_600);
    let mut other_node = connect(&database.url).await;
    let theirs = sqlx::query("select outcome from chalet_claim($1, '{k}', '{f}', '{theirs}', '{3600000}')");
    theirs.bind(scope.id().as_str()).fetch_one(&mut other_node).await.expect("claimed");
    let claim = async |print: &[u8]| db.claims().claim(&scope, "k", print, lease).await.expect("answered");
    assert!(matches!(claim(b"f").await, Claim::Running { .. }));
    assert!(matches!(claim(b"g").await, Claim::Mismatch));
    other_node.close().await.expect("closed");
    let until = Instant::now() + Duration::from_secs(10);
    while !matches!(claim(b"f").await, Claim::Claimed(_)) {
        assert!(Instant::now() < until, "a claim outlives its node");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The database makes a claim also for a caller who has gone while it waited for another node's.
#[tokio::test]
async fn a_claim_whose_caller_went_away_is_given_back() {
    let database = postgres::database().await;
    let db = open(&database.url).await.expect("opens");
    let scope = chalet::effects::testing::tenant(&db, Default::default()).await.expect("a tenant");
    let lease = Duration::from_secs(3_600);
    let mut other_node = connect(&database.url).await;
    other_node.execute("begin").await.expect("begun");
    let theirs = sqlx::query("select outcome from chalet_claim($1, '{k}', '{f}', '{theirs}', '{3600000}')");
    theirs.bind(scope.id().as_str()).fetch_one(&mut other_node).await.expect("claimed");
    let mut watcher = connect(&database.url).await;
    let waits = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    let waiting = async {
        while sqlx::query(waits).fetch_all(&mut watcher).await.expect("read").is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        _ = db.claims().claim(&scope, "k", b"f", lease) => panic!("the other node has not decided"),
        () = waiting => {}
    }
    // What is given back goes one after another: whatever its going away sets off is over when this is.
    let Claim::Claimed(another) = db.claims().claim(&scope, "another", b"f", lease).await.expect("answered") else {
        panic!("nobody holds it")
    };
    another.release().await;
    other_node.execute("rollback").await.expect("rolled back");
    let until = Instant::now() + Duration::from_secs(10);
    while !matches!(db.claims().claim(&scope, "k", b"g", lease).await.expect("answered"), Claim::Claimed(_)) {
        assert!(Instant::now() < until, "nobody works on it, and nobody can");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Nodes that want the same keys in opposite orders wait for each other in one order only, with what they give back, too.
#[tokio::test]
async fn claims_of_two_nodes_do_not_wait_for_each_other_in_a_ring() {
    let database = postgres::database().await;
    let nodes = [open(&database.url).await.expect("opens"), open(&database.url).await.expect("opens")];
    let scope = &chalet::effects::testing::tenant(&nodes[0], Default::default()).await.expect("a tenant");
    let lease = Duration::from_secs(60);
    for round in 0..20 {
        let claims = nodes.iter().enumerate().flat_map(|(node, db)| {
            (0..60).map(move |n| {
                let key = format!("key {}", if node == 0 { n } else { 59 - n });
                async move { (n, db.claims().claim(scope, &key, b"f", lease).await) }
            })
        });
        let mut given = 0;
        for (n, claim) in futures_util::future::join_all(claims).await {
            // A deadlock would be an error here.
            if let Claim::Claimed(held) = claim.expect("answered") {
                given += 1;
                if n % 2 == 0 { drop(held) } else { held.release().await }
            }
        }
        assert!(given >= 60 || round > 0, "{given} of 60 keys were given in the first round");
    }
}

/// Whoever loses to others too often holds them back, at the tenant's gate; if a commit of its own node waited there, nobody
/// would go on until the database ends the holder's connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_never_waits_at_a_gate_that_it_holds() {
    let database = postgres::database().await;
    let server = Server::start_with(Setup::on(&database));
    let acme = server.tenant("acme").await;
    let mut keys = Vec::new();
    for _ in 0..16 {
        keys.push(acme.mint(&["tenant:write"]).await);
    }
    // Beside those who lose are some who never do, so that commits are on their way when a gate is asked for.
    let put = async |n: usize| {
        let path = if n.is_multiple_of(2) { "hot".to_owned() } else { format!("own-{n}") };
        let request = server.anonymous(Method::PUT, &format!("/v1/tenants/acme/kv/c/{path}"));
        let request = request.bearer_auth(&keys[n % keys.len()]);
        request.body(n.to_string()).send().await.expect("an answer").status()
    };
    let mut statuses: Vec<StatusCode> = Vec::new();
    // Between rounds everybody is done, and no gate is held.
    for round in 0..soak::count(12) {
        let writes = stream::iter(round * 64..(round + 1) * 64).map(put).buffer_unordered(2 * keys.len());
        statuses.extend(writes.collect::<Vec<_>>().await);
    }
    let with = |status: StatusCode| statuses.iter().filter(|one| **one == status).count();
    println!(
        "{} written, {} lost too often",
        with(StatusCode::NO_CONTENT) + with(StatusCode::CREATED),
        with(StatusCode::CONFLICT)
    );
    assert!(statuses.iter().all(|status| !status.is_server_error()), "{statuses:?}");
    let mut admin = connect(&database.admin_url).await;
    let ended = "select sessions_fatal from pg_stat_database where datname = current_database()";
    assert_eq!(count(&mut admin, ended).await, 0, "the database ended a connection that held a gate and said nothing");
}
