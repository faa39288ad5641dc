//! Who is compared, at what, and with whom.

use crate::bare::{HELLO, PRICE};
use crate::load::{NUMBER, Request};
use crate::peers::Peer;
use crate::servers::Kind;

/// Work without effects: fewer connections than a tenant's invocations that may run at once, and as many as fill a batch.
const PURE: &[u32] = &[32, 128];
/// Work that waits for a commit.
const DURABLE: &[u32] = &[64];
/// Work of the operator's own services.
const SERVICE: &[u32] = &[32];

/// What is measured.
pub struct Contestant {
    /// What `CHALET_BENCH_ONLY` calls it.
    pub name: &'static str,
    /// What the table calls it.
    pub title: &'static str,
    /// The part of the table that it stands in.
    pub group: Group,
    /// What it does.
    pub work: Work,
    /// Connections at a time; each number is a row.
    pub connections: &'static [u32],
    /// The name of what it is compared with; a yardstick is compared with itself.
    pub beside: &'static str,
}

/// A part of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// A request that changes nothing.
    Pure,
    /// A request whose effects are on the disk before its answer.
    Durable,
    /// What the operator's own services ask for.
    Service,
}

impl Group {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Pure, Self::Durable, Self::Service];

    /// Its heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Pure => "Requests without effects",
            Self::Durable => "Durable work",
            Self::Service => "Flags and usage",
        }
    }
}

/// What a contestant does.
pub enum Work {
    /// It answers a request.
    Http {
        /// The server.
        server: Kind,
        /// The request.
        request: Request,
        /// Whether requests come with many keys of the tenant.
        many_keys: bool,
        /// Whether each request is a commit.
        commits: bool,
    },
    /// The rows that another contestant commits are written once more, by a program that does nothing else, with as many
    /// commits in a transaction as the other one had.
    Rows {
        /// The server whose rows they are.
        server: Kind,
        /// The contestant who commits them.
        of: &'static str,
    },
    /// pgbench commits in the cluster of the server on PostgreSQL.
    Pgbench(Script),
}

/// What pgbench does in a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// Its own `-N`: one row is updated and read, and one is written.
    SimpleUpdate,
    /// One row is written, in one round trip.
    OneRow,
}

impl Work {
    /// The server that it needs.
    pub fn server(&self) -> Kind {
        match self {
            Self::Http { server, .. } | Self::Rows { server, .. } => *server,
            Self::Pgbench(_) => Kind::Postgres,
        }
    }

    /// Whether it is ours: then a failure of it fails the run.
    pub fn ours(&self) -> bool {
        matches!(self, Self::Http { server: Kind::Sqlite | Kind::Postgres | Kind::Traced(_), .. })
    }

    /// The contestant who has to go before.
    fn after(&self) -> Option<&'static str> {
        match self {
            Self::Rows { of, .. } => Some(of),
            Self::Http { .. } | Self::Pgbench(_) => None,
        }
    }

    fn pure(server: Kind, request: Request) -> Self {
        Self::Http { server, request, many_keys: false, commits: false }
    }

    fn durable(server: Kind, request: Request) -> Self {
        Self::Http { server, request, many_keys: false, commits: true }
    }
}

/// Everyone.
pub fn all() -> Vec<Contestant> {
    let one =
        |name, title, group, connections, beside, work| Contestant { name, title, group, work, connections, beside };
    let pure = |name, title, beside, work| one(name, title, Group::Pure, PURE, beside, work);
    let hello = |path: &str| Request::get(path).answers(HELLO);
    let price = |path: &str| Request::post(path, r#"{"sku":"chair","quantity":10,"list_cents":1999}"#).answers(PRICE);
    let work = |body: String| Request::post("/t/acme/guest-work/", body);
    let ten: Vec<String> = (1..=10).map(|key| format!("\"{key}\"")).collect();
    let write = || work(format!(r#"{{"write":"w{NUMBER}"}}"#));
    let ten_reads = || work(format!(r#"{{"reads":[{}],"write":"t{NUMBER}"}}"#, ten.join(",")));
    let note = || {
        let text = r#"{"text":"The blue chairs are back on Thursday; call Ms Ito before they go."}"#;
        Request::post("/t/acme/notes/notes", text).status(201)
    };
    let events = || {
        let event = format!(
            r#"{{"specversion":"1.0","id":"{NUMBER}","source":"/api","type":"tokens","subject":"customer-7","data":{{"model":"small","tokens":412}}}}"#
        );
        let events = vec![event; 100].join(",");
        let request = Request::post("/v1/tenants/acme/usage/events", format!("[{events}]")).status(202);
        Request { content_type: "application/cloudevents-batch+json", ..request }
    };
    let peer = |name, title, peer| pure(name, title, "bare-get", Work::pure(Kind::Peer(peer), hello("/")));
    let traced =
        |name, title, ratio| pure(name, title, "hello", Work::pure(Kind::Traced(ratio), hello("/t/acme/guest-hello/")));
    let mut all = vec![
        pure("bare-get", "bare axum, GET", "bare-get", Work::pure(Kind::Axum, hello("/"))),
        pure("bare-post", "bare axum, POST", "bare-post", Work::pure(Kind::Axum, price("/"))),
        peer("nginx", "nginx: no sandbox", Peer::Nginx),
        peer("plain", "axum and wasmtime, tuned, no pipeline: fresh instances", Peer::Plain),
        peer("wasmtime", "`wasmtime serve`: fresh instances", Peer::Wasmtime),
        peer("wasmtime-reused", "`wasmtime serve`: instances are shared", Peer::WasmtimeReused),
        peer("workerd", "workerd: an isolate is shared", Peer::Workerd),
        peer("extism", "Extism: fresh plugins", Peer::Extism),
        peer("extism-pooled", "Extism: plugins are shared", Peer::ExtismPooled),
        pure("hello", "**Chalet**, hello world", "bare-get", Work::pure(Kind::Sqlite, hello("/t/acme/guest-hello/"))),
        traced("hello-traced-0", "**Chalet**, hello world, of its requests traced: none", "0"),
        traced("hello-traced-0.01", "**Chalet**, hello world, of its requests traced: 1 in 100", "0.01"),
        traced("hello-traced-1", "**Chalet**, hello world, of its requests traced: all", "1"),
        pure(
            "pricing",
            "**Chalet**, `pricing`: JSON and a flag",
            "bare-post",
            Work::pure(Kind::Sqlite, price("/t/acme/pricing/price")),
        ),
        one(
            "reads",
            "**Chalet**, JSON and two reads",
            Group::Pure,
            &[32, 64, 128],
            "bare-post",
            Work::pure(Kind::Sqlite, work(r#"{"reads":["1","2"]}"#.into()).answers(r#"{"found":2}"#)),
        ),
        pure(
            "duplicate",
            "**Chalet**, a repeated `Idempotency-Key`",
            "hello",
            Work::pure(Kind::Sqlite, work(r#"{"write":"once"}"#.into()).once("always-the-same")),
        ),
        pure(
            "pricing-postgres",
            "**Chalet**, `pricing`, PostgreSQL",
            "bare-post",
            Work::pure(Kind::Postgres, price("/t/acme/pricing/price")),
        ),
    ];
    for (server, names) in [
        (Kind::Sqlite, ["write", "ten-reads", "notes", "new-key"]),
        (Kind::Postgres, ["write-postgres", "ten-reads-postgres", "notes-postgres", "new-key-postgres"]),
    ] {
        let on = |sqlite, postgres| if server == Kind::Sqlite { sqlite } else { postgres };
        let durable = |name, title, beside, request| {
            one(name, title, Group::Durable, DURABLE, beside, Work::durable(server, request))
        };
        let [one_write, ten, notes, new_key] = names;
        all.extend([
            durable(
                one_write,
                on("**Chalet**, one write, SQLite", "**Chalet**, one write, PostgreSQL"),
                one_write,
                write(),
            ),
            durable(
                ten,
                on("**Chalet**, ten reads and one write, SQLite", "**Chalet**, ten reads and one write, PostgreSQL"),
                one_write,
                ten_reads(),
            ),
            durable(
                new_key,
                on(
                    "**Chalet**, one write, a new `Idempotency-Key`, SQLite",
                    "**Chalet**, one write, a new `Idempotency-Key`, PostgreSQL",
                ),
                one_write,
                write().once(NUMBER),
            ),
            durable(
                notes,
                on("**Chalet**, `notes` POST, SQLite", "**Chalet**, `notes` POST, PostgreSQL"),
                one_write,
                note(),
            ),
        ]);
    }
    all.extend([
        one(
            "write-rows",
            "the rows of one write, the same batches, SQLite",
            Group::Durable,
            DURABLE,
            "write",
            Work::Rows { server: Kind::Sqlite, of: "write" },
        ),
        one(
            "write-rows-postgres",
            "the rows of one write, the same batches, PostgreSQL",
            Group::Durable,
            DURABLE,
            "write-postgres",
            Work::Rows { server: Kind::Postgres, of: "write-postgres" },
        ),
        one("pgbench", "`pgbench -N`", Group::Durable, DURABLE, "write-postgres", Work::Pgbench(Script::SimpleUpdate)),
        one(
            "pgbench-row",
            "pgbench, one row a commit",
            Group::Durable,
            DURABLE,
            "write-postgres",
            Work::Pgbench(Script::OneRow),
        ),
    ]);
    let service = |name, title, beside, work| one(name, title, Group::Service, SERVICE, beside, work);
    let ofrep =
        Request::post("/ofrep/v1/evaluate/flags/express", r#"{"context":{"targetingKey":"user-7","country":"us"}}"#);
    let many = |server, request, commits| Work::Http { server, request, many_keys: true, commits };
    all.extend([
        service("ofrep", "**Chalet**, a flag over OFREP", "bare-post", many(Kind::Sqlite, ofrep, false)),
        service("usage", "**Chalet**, 100 usage events, SQLite", "usage", many(Kind::Sqlite, events(), true)),
        service(
            "usage-rows",
            "the rows of 100 usage events, the same batches, SQLite",
            "usage",
            Work::Rows { server: Kind::Sqlite, of: "usage" },
        ),
        service(
            "usage-postgres",
            "**Chalet**, 100 usage events, PostgreSQL",
            "usage-postgres",
            many(Kind::Postgres, events(), true),
        ),
        service(
            "usage-rows-postgres",
            "the rows of 100 usage events, the same batches, PostgreSQL",
            "usage-postgres",
            Work::Rows { server: Kind::Postgres, of: "usage-postgres" },
        ),
    ]);
    all
}

/// Whether a name contains one of these comma-separated texts; every name does if there are none.
pub fn named(only: Option<&str>, name: &str) -> bool {
    let Some(only) = only else { return true };
    only.split(',').map(str::trim).any(|text| !text.is_empty() && name.contains(text))
}

/// Those with one of these texts in their names, and whom they are compared with.
pub fn chosen(only: Option<&str>) -> Vec<Contestant> {
    let mut all = all();
    // Latencies at a low rate are those of everyone without effects.
    let low = only.is_some() && named(only, "steady");
    let chosen = all.iter().filter(|one| named(only, one.name) || (low && one.group == Group::Pure));
    let mut wanted: Vec<&str> = chosen.map(|one| one.name).collect();
    let mut next = 0;
    while let Some(name) = wanted.get(next) {
        let one = all.iter().find(|one| one.name == *name);
        for other in one.into_iter().flat_map(|one| [Some(one.beside), one.work.after()]).flatten() {
            if !wanted.contains(&other) {
                wanted.push(other);
            }
        }
        next += 1;
    }
    all.retain(|one| wanted.contains(&one.name));
    all
}
