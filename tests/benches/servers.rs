//! The servers that the contestants ask, each in processes of its own.

use crate::bare::Axum;
use crate::kit::postgres::Cluster;
use crate::kit::server::{Server, Setup};

/// A kind of server. One of each runs for all contestants that ask it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// axum alone.
    Axum,
    /// `chalet serve` on SQLite.
    Sqlite,
    /// `chalet serve` on PostgreSQL, which syncs.
    Postgres,
}

/// A server that runs; it ends when this is dropped.
pub enum Running {
    /// axum alone.
    Axum(Axum),
    /// `chalet serve`.
    Chalet(Box<Chalet>),
}

/// `chalet serve` with the tenant `acme`; the server ends before its database.
pub struct Chalet {
    server: Server,
    /// A key of the tenant.
    key: String,
    cluster: Option<Cluster>,
}

/// What a server has committed since it started.
#[derive(Clone, Copy, Default)]
pub struct Commits {
    /// Invocations and other transactions.
    pub commits: f64,
    /// Transactions of the database that carried them.
    pub batches: f64,
}

impl Commits {
    /// What was committed after `before`.
    pub fn since(self, before: Self) -> Self {
        Self { commits: self.commits - before.commits, batches: self.batches - before.batches }
    }
}

impl Running {
    /// Start one, with all that the contestants ask it for.
    pub async fn start(kind: Kind) -> Self {
        match kind {
            Kind::Axum => Self::Axum(Axum::start()),
            Kind::Sqlite => Self::chalet(Setup::sqlite(), None).await,
            Kind::Postgres => {
                let cluster = Cluster::start_syncing();
                Self::chalet(Setup::on(&cluster.database().await), Some(cluster)).await
            }
        }
    }

    async fn chalet(setup: Setup, cluster: Option<Cluster>) -> Self {
        let server = Server::start_with(setup);
        server.unlimited().await;
        let acme = server.tenant("acme").await;
        acme.deploy("pricing").await;
        acme.deploy("notes").await;
        let key = acme.key;
        Self::Chalet(Box::new(Chalet { server, key, cluster }))
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        match self {
            Self::Axum(axum) => &axum.url,
            Self::Chalet(chalet) => &chalet.server.url,
        }
    }

    /// The key that requests present; axum gets one too, and does not look at it.
    pub fn key(&self) -> &str {
        match self {
            Self::Axum(_) => "chalet_0123456789ab_0123456789abcdef0123456789abcdef012345",
            Self::Chalet(chalet) => &chalet.key,
        }
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        match self {
            Self::Axum(axum) => axum.pid(),
            Self::Chalet(chalet) => chalet.server.pid(),
        }
    }

    /// The process of its database, if that is another one.
    pub fn database(&self) -> Option<u32> {
        match self {
            Self::Axum(_) => None,
            Self::Chalet(chalet) => chalet.cluster.as_ref().map(Cluster::pid),
        }
    }

    /// What it has committed so far.
    pub async fn commits(&self) -> Commits {
        let Self::Chalet(chalet) = self else { return Commits::default() };
        Commits {
            commits: chalet.server.metric("chalet_commits_total").await,
            batches: chalet.server.metric("chalet_commit_batches_total").await,
        }
    }
}
