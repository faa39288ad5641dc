//! `chalet doctor`: whether this machine can build plugins and run the server, with a remedy for what it cannot.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::client::Client;
use super::terminal::{Ink, bytes, ink, say};
use super::toolchain::{self, Status};
use super::{Failure, Result};
use crate::config::Config;
use crate::engine::{self, Confinement};
use crate::kernel::clock::{Clock, rfc3339};
use crate::kernel::db::{self, Db, Location};
use crate::kernel::trace;

/// Below this a disk is full for a database that is about to write its log.
const DISK_BROKEN: u64 = 100 << 20;
/// Below this somebody should look.
const DISK_LOW: u64 = 2 << 30;
/// When this was written: a clock that shows less is wrong.
const EARLIEST_MS: i64 = 1_767_225_600_000;
/// Signed webhooks are refused beyond 300 s; a tenth of it is worth a word.
const SKEW_MS: i64 = 30_000;
/// How long a database may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Check this machine: what the server and `chalet build` need, each with a remedy.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// The settings file; `chalet.toml` in the working folder if there is one.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data folder.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// What a check found.
enum Finding {
    Well(String),
    /// It works, and could be better.
    Warning(String, String),
    /// It does not work: what is wrong, and the remedy.
    Broken(String, String),
}

use Finding::{Broken, Warning, Well};

impl Doctor {
    pub(super) async fn run(self) -> Result<()> {
        let mut config = Config::load(self.config.as_deref())?;
        config.data = self.data.or(config.data);
        let data = config.data();
        let checks = [
            ("toolchain", toolchain().await),
            ("data folder", folder(&data)),
            ("disk", disk(&data)),
            ("compiler", compiler().await),
            ("database", database(&config, &data).await),
            ("clock", clock()),
            ("port", port(&config).await),
            ("traces", traces(&config).await),
        ];
        let mut broken = 0;
        for (name, finding) in checks {
            let (mark, found, remedy) = match finding {
                Well(found) => (ink(Ink::Green, "ok    "), found, None),
                Warning(found, remedy) => (ink(Ink::Yellow, "warn  "), found, Some(remedy)),
                Broken(found, remedy) => {
                    broken += 1;
                    (ink(Ink::Red, "broken"), found, Some(remedy))
                }
            };
            say(format!("{mark}  {name:11}  {found}"));
            for line in remedy.iter().flat_map(|remedy| remedy.lines()) {
                say(format!("                     {line}"));
            }
        }
        if broken == 0 { Ok(()) } else { Err(Failure::Said) }
    }
}

async fn toolchain() -> Finding {
    match tokio::task::spawn_blocking(toolchain::status).await {
        Ok(Status::Ready(toolchain)) => Well(toolchain.to_string()),
        Ok(Status::Preparable(how)) => Well(how),
        Ok(Status::Missing(remedies)) => Broken("plugins cannot be compiled here".into(), remedies),
        Err(error) => Broken(error.to_string(), "run it again".into()),
    }
}

async fn compiler() -> Finding {
    match engine::try_worker().await {
        Ok(confinement) if confinement.fully() => Well("uploads are compiled without files, network or rights".into()),
        Ok(Confinement { landlock, seccomp }) => {
            let without = [(landlock, "Landlock (Linux 5.13, among the LSMs)"), (seccomp, "seccomp")];
            let missing: Vec<_> = without.into_iter().filter(|(has, _)| !has).map(|(_, name)| name).collect();
            Warning(
                format!("uploads are compiled without {}", missing.join(" and ")),
                "run the server on a kernel that has it, and in a container that allows it".into(),
            )
        }
        Err(error) => Broken(format!("a component was not compiled: {}", error.message()), "run it again".into()),
    }
}

/// The folder, or the nearest one above it that exists.
fn existing(data: &Path) -> PathBuf {
    let absolute = std::path::absolute(data).unwrap_or_else(|_| data.to_owned());
    absolute.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn folder(data: &Path) -> Finding {
    let folder = existing(data);
    match tempfile::tempfile_in(&folder) {
        Ok(_) if data.is_dir() => Well(format!("{} can be written", data.display())),
        Ok(_) => Well(format!("{} will be made at the first start", data.display())),
        Err(error) => Broken(
            format!("{}: {error}", folder.display()),
            "let this user write there, or choose another folder with --data".into(),
        ),
    }
}

fn disk(data: &Path) -> Finding {
    let folder = existing(data);
    let free = match rustix::fs::statvfs(&folder) {
        Ok(disk) => disk.f_bavail.saturating_mul(disk.f_frsize),
        Err(error) => {
            return Broken(format!("{}: {error}", folder.display()), "see whether the disk is mounted".into());
        }
    };
    let found = format!("{} free", bytes(free));
    match free {
        ..DISK_BROKEN => Broken(found, "free some space: a database that cannot write refuses every change".into()),
        DISK_BROKEN..DISK_LOW => Warning(found, "free some space before it runs out".into()),
        _ => Well(found),
    }
}

async fn database(config: &Config, data: &Path) -> Finding {
    let url = config.database.url.as_deref();
    let location = match Location::parse(url, data) {
        Ok(location) => location,
        Err(error) => return Broken(error.message().to_owned(), "correct CHALET_DATABASE_URL".into()),
    };
    match &location {
        Location::Sqlite { path } if !path.exists() => Well("SQLite, made at the first start".into()),
        Location::Sqlite { path } => match db::sqlite_version(path).await {
            Ok(version) => Well(format!("SQLite {version}, {}", path.display())),
            Err(error) => Broken(
                format!("{}: {error}", path.display()),
                "restore the file from a backup, or choose another folder with --data".into(),
            ),
        },
        Location::Postgres { url } => {
            // As a server does, so that a role with too many rights or an old schema is found too.
            let opened = tokio::time::timeout(ANSWER, Db::open(&location)).await;
            let skew = match opened {
                Err(_) => {
                    Err(("PostgreSQL does not answer".to_owned(), "see whether it runs and can be reached".to_owned()))
                }
                Ok(Err(error)) => Err((
                    format!("PostgreSQL: {}", Failure::from(error)),
                    "correct CHALET_DATABASE_URL, or run `chalet migrate` with the owner's CHALET_DATABASE_OWNER_URL"
                        .to_owned(),
                )),
                Ok(Ok(_)) => Ok(db::postgres_skew_ms(url).await.unwrap_or(0)),
            };
            match skew {
                Err((found, remedy)) => Broken(found, remedy),
                Ok(ms) if ms.abs() > SKEW_MS => Warning(
                    format!("PostgreSQL answers; its clock is {} s away from this machine's", ms / 1_000),
                    "synchronise both clocks (NTP): signed webhooks are refused beyond 300 s".into(),
                ),
                Ok(_) => Well("PostgreSQL answers, and the role is as it should be".into()),
            }
        }
    }
}

fn clock() -> Finding {
    let now = Clock::system().now_ms();
    let shown = rfc3339(now);
    if now < EARLIEST_MS {
        Broken(format!("{shown} is in the past"), "set the clock (NTP): signed webhooks and expiry need it".into())
    } else {
        Well(shown)
    }
}

async fn traces(config: &Config) -> Finding {
    match trace::reach(&config.telemetry).await {
        Ok(None) => Well("off, since no collector is set".into()),
        Ok(Some(url)) => Well(format!("the collector at {url} takes them")),
        Err(error) => Broken(
            format!("the collector does not take them: {}", error.message()),
            "correct OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_HEADERS, or start the collector; requests do not \
             wait for it"
                .into(),
        ),
    }
}

async fn port(config: &Config) -> Finding {
    let address = config.listen();
    let error = match TcpListener::bind(address) {
        Ok(_) => return Well(format!("{address} is free")),
        Err(error) => error,
    };
    let url = format!("http://{address}");
    if let Ok(client) = Client::with(&url, None)
        && client.send(client.request(reqwest::Method::GET, "/healthz").timeout(ANSWER)).await.is_ok()
    {
        return Well(format!("a server answers at {url}"));
    }
    Broken(format!("{address}: {error}"), "choose another address with --listen or CHALET_LISTEN".into())
}
