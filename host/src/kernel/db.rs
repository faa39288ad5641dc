//! The database of a node: which engine it is, how it is opened and migrated, and the few statements
//! that are not transactions of a tenant. The dialects live here and in `effects/{sqlite,postgres}.rs`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::any::{AnyPoolOptions, AnyRow};
use sqlx::sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode};
use sqlx::{Any, AnyPool, ConnectOptions, Connection, Transaction};

use crate::effects::sqlite::SqliteStore;
use crate::effects::{Claims, SharedStore, postgres, postgres::PostgresStore};
use crate::kernel::cache::Changes;
use crate::kernel::clock::Clock;
use crate::kernel::error::{Error, Result};
use crate::kernel::tenant::TenantId;

/// Connections for what is no tenant transaction: key look-ups, components, directory changes.
const CONNECTIONS: u32 = 4;

/// The server's role on PostgreSQL, if the operator names no other.
pub const APP_ROLE: &str = "chalet_app";

/// Where the data is.
#[derive(Clone, Debug)]
pub enum Location {
    /// One file in the data folder, used by this process only.
    Sqlite {
        /// The file.
        path: PathBuf,
    },
    /// A PostgreSQL database, as a role that owns nothing.
    Postgres {
        /// `postgres://…`
        url: String,
    },
}

impl Location {
    /// Read `CHALET_DATABASE_URL`; without one the data folder holds a SQLite file.
    pub fn parse(url: Option<&str>, data: &Path) -> Result<Self> {
        match url {
            None => Ok(Self::Sqlite { path: data.join("chalet.sqlite") }),
            Some(url) if url.starts_with("postgres://") || url.starts_with("postgresql://") => {
                Ok(Self::Postgres { url: url.into() })
            }
            Some(url) => match url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:")) {
                Some(path) if !path.is_empty() => Ok(Self::Sqlite { path: path.into() }),
                _ => Err(Error::invalid("the database URL must start with sqlite: or postgres://")),
            },
        }
    }
}

/// An open database.
#[derive(Clone)]
pub struct Db {
    pool: AnyPool,
    store: SharedStore,
    claims: Claims,
    postgres: Option<PostgresStore>,
    changes: Changes,
    // Held while the process lives; a second process on the same file is refused.
    _lock: Option<Arc<std::fs::File>>,
}

impl Db {
    /// Open, and on SQLite migrate, the database. PostgreSQL is migrated by `chalet migrate` alone, with
    /// the owner's role, which a server never has.
    pub async fn open(location: &Location) -> Result<Self> {
        sqlx::any::install_default_drivers();
        match location {
            Location::Sqlite { path } => {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
                std::fs::create_dir_all(folder).map_err(Error::internal)?;
                for name in ["", "-wal", "-shm"] {
                    let mut file = path.as_os_str().to_owned();
                    file.push(name);
                    refuse_link(Path::new(&file))?;
                }
                let lock = lock(&path.with_extension("lock"))?;
                let options = SqliteConnectOptions::new()
                    .filename(path)
                    .create_if_missing(true)
                    .journal_mode(SqliteJournalMode::Wal)
                    .auto_vacuum(SqliteAutoVacuum::Incremental)
                    .disable_statement_logging();
                let mut connection = options.connect().await.map_err(failed)?;
                sqlx::migrate!("../migrations/sqlite").run(&mut connection).await.map_err(Error::internal)?;
                connection.close().await.map_err(failed)?;
                let url = format!("sqlite://{}", path.display());
                let changes = Changes::counted();
                Ok(Self {
                    pool: pool(&url).await?,
                    store: Arc::new(SqliteStore::open(path, changes.clone())?),
                    claims: Claims::in_process(),
                    postgres: None,
                    changes,
                    _lock: Some(Arc::new(lock)),
                })
            }
            Location::Postgres { url } => {
                let store = PostgresStore::open(url).await?;
                Ok(Self {
                    pool: pool(url).await?,
                    claims: Claims::in_postgres(store.pool().clone()),
                    store: Arc::new(store.clone()),
                    postgres: Some(store),
                    changes: Changes::default(),
                    _lock: None,
                })
            }
        }
    }

    /// The tenants' rows.
    pub fn store(&self) -> SharedStore {
        self.store.clone()
    }

    /// Who is working on which request.
    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// The changes of tenants, plans and keys, counted where no other process makes any.
    pub(crate) fn changes(&self) -> Changes {
        self.changes.clone()
    }

    /// Whether other processes may share this database.
    pub fn shared(&self) -> bool {
        self.postgres.is_some()
    }

    /// Let a clock follow the database's time, so that all nodes agree; to be called at start and every
    /// few seconds. A database that is a file has this process's time.
    pub async fn follow(&self, clock: &Clock) -> Result<()> {
        if let Some(postgres) = &self.postgres {
            clock.follow(postgres.ask_time().await?);
        }
        Ok(())
    }

    /// Connections for tables that are read before a tenant is known.
    pub(crate) fn directory(&self) -> &AnyPool {
        &self.pool
    }

    /// A transaction that looks at one tenant's tables, or changes those that are not rows; row-level security names that
    /// tenant in it. One that looks must not change anything afterwards: SQLite would refuse it whenever a commit came
    /// between ("database is locked"), and waits only for what changes something at once.
    pub(crate) async fn tenant(&self, tenant: &TenantId) -> Result<Transaction<'static, Any>> {
        let mut transaction = self.pool.begin().await.map_err(failed)?;
        if self.postgres.is_some() {
            sqlx::query("select set_config('app.tenant', $1, true)")
                .bind(tenant.as_str())
                .execute(&mut *transaction)
                .await
                .map_err(failed)?;
        }
        Ok(transaction)
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<()> {
        sqlx::query("select 1").execute(&self.pool).await.map_err(failed)?;
        Ok(())
    }
}

/// Bring a PostgreSQL database to this version, as the role that owns its tables (`CHALET_DATABASE_OWNER_URL`),
/// and let the server's role use it: `role`, or `chalet_app`. A role that does not exist is made, without a
/// password; giving it one is the operator's. It may be called again at any time, also for another role.
pub async fn migrate(owner_url: &str, role: Option<&str>) -> Result<()> {
    let options: sqlx::postgres::PgConnectOptions = owner_url.parse().map_err(|error: sqlx::Error| {
        Error::invalid(
            "the owner's database URL cannot be read; it has the form postgres://user:password@host/database",
        )
        .source(error)
    })?;
    let mut connection = options.disable_statement_logging().connect().await.map_err(failed)?;
    postgres::MIGRATIONS.run(&mut connection).await.map_err(Error::internal)?;
    sqlx::query("select chalet_grant($1)")
        .bind(role.unwrap_or(APP_ROLE))
        .execute(&mut connection)
        .await
        .map_err(failed)?;
    connection.close().await.map_err(failed)
}

/// The version of SQLite that reads this file, opened for reading only: a file that is no database is found
/// out, because its schema is read.
pub async fn sqlite_version(path: &Path) -> Result<String, sqlx::Error> {
    let options = SqliteConnectOptions::new().filename(path).read_only(true);
    let mut connection = options.connect().await?;
    let version = sqlx::query_scalar("select sqlite_version() from (select count(*) from sqlite_schema)")
        .fetch_one(&mut connection)
        .await?;
    connection.close().await?;
    Ok(version)
}

/// How many milliseconds a PostgreSQL server's clock is ahead of this machine's.
pub async fn postgres_skew_ms(url: &str) -> Result<i64, sqlx::Error> {
    let mut connection = sqlx::postgres::PgConnection::connect(url).await?;
    let theirs: i64 = sqlx::query_scalar("select (extract(epoch from clock_timestamp()) * 1000)::bigint")
        .fetch_one(&mut connection)
        .await?;
    connection.close().await?;
    Ok(theirs - Clock::system().now_ms())
}

/// An error of the driver; what it says is for the log.
pub(crate) fn failed(error: sqlx::Error) -> Error {
    match error {
        sqlx::Error::PoolTimedOut | sqlx::Error::Io(_) | sqlx::Error::PoolClosed => {
            Error::unavailable("database_unavailable", "the database does not answer; try again").source(error)
        }
        error => Error::internal(error),
    }
}

async fn pool(url: &str) -> Result<AnyPool> {
    AnyPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(Duration::from_secs(5))
        .connect(url)
        .await
        .map_err(failed)
}

/// Refuse a file of this node's that is a link: whoever planted it would choose what is read and written as the node's own.
pub(crate) fn refuse_link(path: &Path) -> Result<()> {
    if path.is_symlink() {
        return Err(Error::invalid(format!(
            "{} is a symbolic link, which is not followed; put the file itself there, or give --data the folder that has it",
            path.display()
        )));
    }
    Ok(())
}

fn lock(path: &Path) -> Result<std::fs::File> {
    refuse_link(path)?;
    let file =
        std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(Error::internal)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        Error::unavailable(
            "data_in_use",
            "another chalet process uses this data folder; stop it, or give --data another folder",
        )
    })?;
    Ok(file)
}

/// A column of a row of the directory.
pub(crate) fn column<'r, T>(row: &'r AnyRow, name: &str) -> Result<T>
where
    T: sqlx::Decode<'r, Any> + sqlx::Type<Any>,
{
    sqlx::Row::try_get(row, name).map_err(failed)
}
