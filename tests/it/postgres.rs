//! What is PostgreSQL's alone: roles, row-level security, migration, and the kit's own cluster.

use crate::kit::postgres::{self, Database};
use chalet::kernel::clock::Clock;
use chalet::kernel::db::{Db, Location, migrate};
use chalet::kernel::error::Kind;
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

#[tokio::test]
async fn without_a_tenant_the_server_s_role_sees_no_row_and_writes_none() {
    let database = postgres::database().await;
    let db = open(&database.url).await.expect("opens");
    let a = chalet::effects::testing::tenant(&db, Default::default()).await.expect("a tenant");
    let b = chalet::effects::testing::tenant(&db, Default::default()).await.expect("a tenant");
    let mut admin = connect(&database.admin_url).await;
    for tenant in [a.id().as_str(), b.id().as_str()] {
        for statement in [
            "insert into rows values ($1, 's', 'k', 'v', null, 1, null)",
            "insert into usage_totals values ($1, 'p', 0, 1, 1, 1, 1, 1)",
            "insert into components values ($1, 'd', 0, 'b', 0)",
            "insert into claims values ($1, 'c', 'f', 'o', 0)",
        ] {
            sqlx::query(statement).bind(tenant).execute(&mut admin).await.expect("the superuser writes");
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
    let odd = count(
        &mut admin,
        "select count(*) from pg_proc where pronamespace = 'public'::regnamespace and prosecdef \
         or pronamespace = 'public'::regnamespace and prolang = (select oid from pg_language where lanname = 'plpgsql') \
            and not coalesce(proconfig::text like '%search_path%', false)",
    )
    .await;
    assert_eq!(odd, 0, "every function runs with its caller's rights and a fixed search path");
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
