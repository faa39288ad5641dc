//! The servers that the contestants ask, each in processes of its own.

use reqwest::{Method, StatusCode};
use serde_json::json;
use sqlx::{Connection as _, PgConnection, SqliteConnection};

use crate::kit::postgres::{Cluster, Database};
use crate::kit::server::{Server, Setup, expect};
use crate::load::Target;
use crate::peers::{self, Peer};
use crate::{bare, child};

/// Keys of the tenant: the control API allows each of them 200 requests a second.
const KEYS: usize = 300;
/// A rule that looks at the context, as most do, and one that rolls out to half of the subjects.
pub const FLAGS: &str = r#"{"flags":{"express":{"state":"ENABLED","variants":{"on":true,"off":false},
    "defaultVariant":"off","targeting":{"if":[{"in":[{"var":"country"},["jp","de","fr"]]},
    {"fractional":[["on",50],["off",50]]}]}},
    "plain":{"state":"ENABLED","variants":{"on":true,"off":false},"defaultVariant":"on"}}}"#;

/// A kind of server. One of each runs for all contestants that ask it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// axum alone.
    Axum,
    /// `chalet serve` on SQLite.
    Sqlite,
    /// `chalet serve` on PostgreSQL, which syncs.
    Postgres,
    /// `chalet serve` on SQLite with a collector of traces, at this ratio.
    Traced(&'static str),
    /// Somebody else's.
    Peer(Peer),
}

/// A server that runs; it ends when this is dropped.
pub enum Running {
    /// Somebody else's.
    Other(child::Server),
    /// `chalet serve`.
    Chalet(Box<Chalet>),
}

/// `chalet serve` with the tenant `acme`; the server ends before its database and its collector.
pub struct Chalet {
    server: Server,
    keys: Vec<String>,
    postgres: Option<Postgres>,
    _collector: Option<child::Server>,
}

/// A cluster with the server's database and an empty one beside it.
struct Postgres {
    cluster: Cluster,
    database: Database,
    // Another migrated database, for what others do with the same cluster.
    other: Database,
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
    pub async fn start(kind: Kind) -> Result<Self, String> {
        Ok(match kind {
            Kind::Axum => Self::Other(bare::start()?),
            Kind::Sqlite => Self::chalet(Setup::sqlite(), None, None).await,
            Kind::Postgres => {
                let cluster = Cluster::start_syncing();
                let (database, other) = (cluster.database().await, cluster.database().await);
                Self::chalet(Setup::on(&database), Some(Postgres { cluster, database, other }), None).await
            }
            Kind::Traced(ratio) => {
                let collector = bare::start()?;
                let setup = Setup::sqlite().with("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url);
                Self::chalet(setup.with("OTEL_TRACES_SAMPLER_ARG", ratio), None, Some(collector)).await
            }
            Kind::Peer(peer) => Self::Other(peers::start(peer)?),
        })
    }

    async fn chalet(setup: Setup, postgres: Option<Postgres>, collector: Option<child::Server>) -> Self {
        let server = Server::start_with(setup);
        server.unlimited().await;
        let acme = server.tenant("acme").await;
        for plugin in ["guest-hello", "guest-work", "pricing", "notes"] {
            acme.deploy(plugin).await;
        }
        expect(acme.api(Method::PUT, "/flags").body(FLAGS), StatusCode::OK).await;
        for key in 1..=10 {
            let write = json!({ "write": key.to_string() });
            expect(acme.call(Method::POST, "guest-work", "/").json(&write), StatusCode::OK).await;
        }
        let mut keys = vec![acme.key.clone()];
        while keys.len() < KEYS {
            keys.push(acme.mint(&["tenant:admin"]).await);
        }
        Self::Chalet(Box::new(Chalet { server, keys, postgres, _collector: collector }))
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> &str {
        match self {
            Self::Other(server) => &server.url,
            Self::Chalet(chalet) => &chalet.server.url,
        }
    }

    /// Where requests to this path go: with the tenant's key, or with each of its keys in turn. Others get a key too, and
    /// do not look at it.
    pub fn targets(&self, path: &str, many_keys: bool) -> Vec<Target> {
        let with = |key: &str| Target { path: path.to_owned(), key: key.to_owned() };
        match self {
            Self::Other(_) => vec![with("chalet_0123456789ab_0123456789abcdef0123456789abcdef012345")],
            Self::Chalet(chalet) if many_keys => chalet.keys.iter().map(|key| with(key)).collect(),
            Self::Chalet(chalet) => vec![with(&chalet.keys[0])],
        }
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        match self {
            Self::Other(server) => server.pid(),
            Self::Chalet(chalet) => chalet.server.pid(),
        }
    }

    /// The process of its database, if that is another one.
    pub fn database(&self) -> Option<u32> {
        match self {
            Self::Other(_) => None,
            Self::Chalet(chalet) => chalet.postgres.as_ref().map(|postgres| postgres.cluster.pid()),
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

    /// The number of the tenant's last commit.
    pub async fn last_commit(&self) -> u64 {
        let Self::Chalet(chalet) = self else { return 0 };
        let seq = "select seq from heads where tenant_id = (select id from tenants where name = 'acme')";
        let found: Result<i64, sqlx::Error> = match &chalet.postgres {
            None => {
                let url = format!("sqlite://{}?mode=ro", chalet.file());
                let mut connection = SqliteConnection::connect(&url).await.expect("the server's file opens");
                sqlx::query_scalar(seq).fetch_one(&mut connection).await
            }
            Some(postgres) => {
                let mut connection = PgConnection::connect(&postgres.database.admin_url).await.expect("it answers");
                sqlx::query_scalar(seq).fetch_one(&mut connection).await
            }
        };
        found.expect("the tenant has a head") as u64
    }

    /// The server itself, if it is ours.
    pub fn ours(&self) -> Option<&Chalet> {
        match self {
            Self::Other(_) => None,
            Self::Chalet(chalet) => Some(chalet),
        }
    }
}

impl Chalet {
    /// The SQLite file.
    pub fn file(&self) -> String {
        self.server.data.path().join("chalet.sqlite").display().to_string()
    }

    /// The databases of PostgreSQL as their superuser: the server's and the other one.
    pub fn urls(&self) -> Option<(&str, &str)> {
        self.postgres.as_ref().map(|postgres| (&postgres.database.admin_url[..], &postgres.other.admin_url[..]))
    }
}
