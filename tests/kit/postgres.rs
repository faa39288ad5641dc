//! A throw-away PostgreSQL: a cluster that the tests start, with one new database a test.
//!
//! A cluster listens on a free loopback port and belongs to this process. A guardian stops it and
//! removes its files when the process ends, however that happens: it waits for the end of a pipe that
//! only this process holds. Two roles stand ready: an owner that migrates, and the application's role,
//! which owns nothing, is no superuser and cannot bypass row-level security.
//!
//! A cluster does not sync its files unless it is asked to. A killed server loses nothing by that, since the
//! kernel keeps what was written; only a power cut would show it, and no test here cuts the power. What is
//! measured has to sync.

use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _};

/// The role that owns the tables and migrates them.
pub const OWNER: &str = "chalet_owner";
/// The role that a server uses.
pub const APP: &str = "chalet_app";
/// The cluster's superuser.
const ADMIN: &str = "chalet_admin";
/// How long a server may take to answer after its start; a small machine under load needs some seconds.
const START: Duration = Duration::from_secs(60);
/// Connections of all tests of a process together.
const CONNECTIONS: u32 = 400;

/// A running cluster.
pub struct Cluster {
    folder: PathBuf,
    programs: PathBuf,
    user: Option<(u32, u32)>,
    port: u16,
    syncs: bool,
    server: Mutex<Option<Child>>,
    guardian: Child,
    databases: AtomicU32,
}

/// A database of its own for one test, migrated.
#[derive(Clone, Debug)]
pub struct Database {
    /// As the application's role.
    pub url: String,
    /// As the owner of the tables.
    pub owner_url: String,
    /// As the superuser.
    pub admin_url: String,
}

/// The cluster that the tests of this process share. A test that kills its server starts its own.
pub fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(Cluster::start)
}

/// A migrated database in the shared cluster.
pub async fn database() -> Database {
    let cluster = tokio::task::spawn_blocking(shared).await.expect("the cluster starts");
    cluster.database().await
}

/// The lock of a tenant's head, held as by a node that stopped in the middle of its commit.
pub struct HeadLock {
    holder: PgConnection,
    // The holder's own transaction would always be shown the same picture.
    watcher: PgConnection,
}

impl Database {
    /// Lock a tenant's head: whoever commits for the tenant waits.
    pub async fn lock_head(&self, tenant: &str) -> HeadLock {
        let mut holder = connect(&self.admin_url).await;
        holder.execute("begin").await.expect("begins");
        let lock = "select 1 from heads join tenants on id = tenant_id where name = $1 for update of heads";
        sqlx::query(lock).bind(tenant).fetch_one(&mut holder).await.expect("the tenant has a head");
        HeadLock { holder, watcher: connect(&self.admin_url).await }
    }
}

impl HeadLock {
    /// Wait until so many commits wait for the lock.
    pub async fn awaited_by(&mut self, commits: i64) {
        let waiting =
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        let until = Instant::now() + Duration::from_secs(10);
        while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut self.watcher).await.expect("counted") < commits {
            assert!(Instant::now() < until, "{commits} commits do not come to wait");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Let the commits go on.
    pub async fn release(mut self) {
        self.holder.execute("rollback").await.expect("ends");
    }
}

impl Cluster {
    /// Make and start a cluster. Blocks for about two seconds.
    pub fn start() -> Self {
        Self::make(false)
    }

    /// The same, with its files synced as in production.
    pub fn start_syncing() -> Self {
        Self::make(true)
    }

    fn make(syncs: bool) -> Self {
        let programs = programs();
        let folder = tempfile::Builder::new().prefix("chalet-postgres-").tempdir().expect("a temporary folder").keep();
        // The server refuses to run as root; then it runs as another user, who owns the folder.
        let user = rustix::process::geteuid().is_root().then(ordinary_user);
        if let Some((uid, gid)) = user {
            std::os::unix::fs::chown(&folder, Some(uid), Some(gid)).expect("root may give a folder away");
        }
        let cluster = Self {
            guardian: guardian(&folder),
            port: free_port(),
            syncs,
            server: Mutex::new(None),
            databases: AtomicU32::new(0),
            folder,
            programs,
            user,
        };
        let made = cluster
            .program("initdb")
            .args(["--username", ADMIN, "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync", "-D"])
            .arg(cluster.data())
            .output()
            .expect("initdb runs");
        assert!(made.status.success(), "initdb failed: {}", String::from_utf8_lossy(&made.stderr));
        cluster.boot();
        let admin = cluster.url(ADMIN, "postgres");
        blocking(async move {
            let mut connection = connect(&admin).await;
            for statement in [format!("create role {OWNER} login createrole"), format!("create role {APP} login")] {
                connection.execute(AssertSqlSafe(statement)).await.expect("a new cluster takes new roles");
            }
        });
        cluster
    }

    /// A new migrated database.
    pub async fn database(&self) -> Database {
        let database = self.empty_database().await;
        chalet::kernel::db::migrate(&database.owner_url, Some(APP)).await.expect("an empty database can be migrated");
        database
    }

    /// A new database without tables.
    pub async fn empty_database(&self) -> Database {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let mut connection = connect(&self.url(ADMIN, "postgres")).await;
        // Copying files is faster than logging pages for the small template.
        let create = format!("create database {name} owner {OWNER} strategy file_copy");
        connection.execute(AssertSqlSafe(create)).await.expect("the superuser may create a database");
        connection.close().await.expect("the connection was idle");
        Database { url: self.url(APP, &name), owner_url: self.url(OWNER, &name), admin_url: self.url(ADMIN, &name) }
    }

    /// End the server as a crash does: every process of it at once, without a word.
    pub fn kill(&self) {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut postmaster) = server.take() else { return };
        let pid = rustix::process::Pid::from_raw(postmaster.id().cast_signed()).expect("a child has a pid");
        // Its children end by themselves as soon as they see that the postmaster is gone.
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("the server runs");
        postmaster.wait().expect("a killed child can be waited for");
    }

    /// Start a killed server again on its files; returns when it has recovered.
    pub fn boot(&self) {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.join("log"))
            .expect("the folder can be written");
        let until = Instant::now() + START;
        let sync = if self.syncs { "on" } else { "off" };
        loop {
            // A crashed server's children keep the shared memory for a moment; the next try finds it free.
            let mut child = self
                .program("postgres")
                .arg("-D")
                .arg(self.data())
                .args(["-p", &self.port.to_string()])
                .args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
                .args(["-c", &format!("fsync={sync}"), "-c", &format!("full_page_writes={sync}")])
                .args(["-c", "synchronous_commit=on", "-c", "timezone=UTC"])
                .args(["-c", &format!("max_connections={CONNECTIONS}"), "-c", "shared_buffers=128MB"])
                .args(["-c", "restart_after_crash=on", "-c", "log_min_messages=warning"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log.try_clone().expect("a file handle can be copied"))
                .spawn()
                .expect("postgres runs");
            while child.try_wait().expect("a child can be asked").is_none() {
                if self.ready() {
                    *server = Some(child);
                    return;
                }
                assert!(Instant::now() < until, "postgres did not start:\n{}", self.log());
                std::thread::sleep(Duration::from_millis(20));
            }
            assert!(Instant::now() < until, "postgres ended:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The process id of the server, whose children do the work.
    pub fn pid(&self) -> u32 {
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        server.as_ref().expect("the server was not killed").id()
    }

    /// What the server has logged: warnings and worse.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn ready(&self) -> bool {
        self.program("pg_isready")
            .args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()])
            .status()
            .is_ok_and(|status| status.success())
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn url(&self, role: &str, database: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        // The caller's folder may be closed to the user that the program runs as.
        command.current_dir("/").env("LC_ALL", "C");
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The guardian sees its pipe end, stops the server and removes the folder.
        drop(self.guardian.stdin.take());
        if let Some(mut server) = self.server.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = server.wait();
        }
        let _ = self.guardian.wait();
    }
}

/// A shell that outlives this process for a moment: at the end of its input it stops the server that
/// uses `folder` and removes the folder.
fn guardian(folder: &Path) -> Child {
    let script = r#"
        trap '' HUP INT TERM
        cat > /dev/null
        pid=$(head -n 1 "$1/data/postmaster.pid" 2> /dev/null)
        if [ -n "$pid" ]; then
            kill -QUIT "$pid" 2> /dev/null
            n=0
            while kill -0 "$pid" 2> /dev/null && [ $n -lt 100 ]; do sleep 0.05; n=$((n + 1)); done
        fi
        rm -rf "$1"
    "#;
    Command::new("/bin/sh")
        .args(["-c", script, "guardian"])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("a shell runs")
}

/// The folder with `initdb` and `postgres`, of the newest version there is.
fn programs() -> PathBuf {
    let version = |path: &Path| {
        let digits = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        digits.trim_start_matches(|c: char| !c.is_ascii_digit()).parse::<f32>().unwrap_or(0.0)
    };
    let mut found: Vec<PathBuf> = ["/usr/lib/postgresql", "/usr", "/usr/local", "/opt/homebrew/opt"]
        .iter()
        .filter_map(|parent| std::fs::read_dir(parent).ok())
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()))
        .filter(|folder| folder.join("initdb").exists() && folder.join("postgres").exists())
        .collect();
    found.sort_by(|a, b| version(a).total_cmp(&version(b)));
    found.pop().unwrap_or_else(|| {
        let _ = writeln!(
            std::io::stderr(),
            "PostgreSQL is missing: install the package `postgresql` (version 14 or later)"
        );
        panic!("initdb was found neither in /usr/lib/postgresql/*/bin nor in PATH")
    })
}

/// The user and group of `postgres`, or else of `nobody`.
fn ordinary_user() -> (u32, u32) {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let find = |name: &str| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    find("postgres").or_else(|| find("nobody")).unwrap_or((65_534, 65_534))
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
    listener.local_addr().expect("a bound socket has an address").port()
}

async fn connect(url: &str) -> PgConnection {
    let options: PgConnectOptions = url.parse().expect("the kit writes a valid url");
    options.disable_statement_logging().connect().await.expect("the cluster answers")
}

/// Run a future on a runtime of its own, from code that may or may not be inside one.
fn blocking(future: impl Future<Output = ()> + Send + 'static) {
    std::thread::spawn(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future);
    })
    .join()
    .expect("the set-up of the cluster succeeds");
}
