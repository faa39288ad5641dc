//! The server of the demo: this binary in a process of its own, on a free port, with data that is removed at the end.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::super::terminal::note;
use super::super::{Failure, Result};

/// How long a server may take to start: on a slow disk it makes its tables first.
const START: Duration = Duration::from_secs(60);
/// How long it may take to end.
const END: Duration = Duration::from_secs(10);
/// Lines of its log that are shown when something failed.
const SHOWN: usize = 20;
/// Settings of the operator's own server that this one must not take up.
const SETTINGS: [&str; 9] = [
    "CHALET_DATA",
    "CHALET_LISTEN",
    "CHALET_DATABASE_URL",
    "CHALET_DATABASE_OWNER_URL",
    "CHALET_REDIS_URL",
    "CHALET_MASTER_KEY",
    "CHALET_EGRESS_LOCAL",
    "CHALET_FLAGS_DEFAULTS",
    "CHALET_KEY",
];

/// A running server; it is killed when this is dropped.
pub(super) struct Server {
    // Before the folder, so that it is killed before its data is removed.
    process: Child,
    folder: TempDir,
    admin: String,
    url: String,
}

impl Server {
    /// Start with an empty data folder.
    pub(super) async fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("chalet-demo-").tempdir()?;
        let admin = hex::encode(rand::random::<[u8; 24]>());
        let (process, url) = spawn(&folder, &admin, "127.0.0.1:0").await?;
        Ok(Self { folder, admin, url, process })
    }

    /// `http://127.0.0.1:PORT`.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The operator's key.
    pub(super) fn admin(&self) -> &str {
        &self.admin
    }

    /// Kill it with SIGKILL, and start it again on the same data and port.
    pub(super) async fn crash_and_restart(&mut self) -> Result<()> {
        self.process.kill().await?;
        let address = self.url.trim_start_matches("http://").to_owned();
        (self.process, self.url) = spawn(&self.folder, &self.admin, &address).await?;
        Ok(())
    }

    /// Let it end in its own time, within bounds.
    pub(super) async fn stop(&mut self) {
        if let Some(id) = self.process.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
            let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        }
        if tokio::time::timeout(END, self.process.wait()).await.is_err() {
            let _ = self.process.kill().await;
        }
    }

    /// The end of its log, for whoever has to find out why something failed.
    pub(super) fn show_log(&self) {
        let log = std::fs::read_to_string(log(&self.folder)).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        for line in &lines[lines.len().saturating_sub(SHOWN)..] {
            note(format!("server: {line}"));
        }
    }
}

fn log(folder: &TempDir) -> PathBuf {
    folder.path().join("server.log")
}

async fn spawn(folder: &TempDir, admin: &str, address: &str) -> Result<(Child, String)> {
    let program = std::env::current_exe()?;
    let errors = std::fs::File::options().create(true).append(true).open(log(folder))?;
    let mut command = Command::new(program);
    command
        .args(["serve", "--listen", address, "--data"])
        .arg(folder.path().join("data"))
        // Not where a chalet.toml may lie.
        .current_dir(folder.path())
        .env("CHALET_ADMIN_KEY", admin)
        .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".into()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .kill_on_drop(true);
    for setting in SETTINGS {
        command.env_remove(setting);
    }
    let mut process = command.spawn()?;
    let mut line = String::new();
    if let Some(stdout) = process.stdout.take() {
        let mut stdout = BufReader::new(stdout);
        let _ = tokio::time::timeout(START, stdout.read_line(&mut line)).await;
    }
    match line.trim().strip_prefix("listening on ") {
        Some(url) => Ok((process, url.to_owned())),
        None => {
            let log = std::fs::read_to_string(log(folder)).unwrap_or_default();
            Err(Failure::Failed(format!(
                "the server did not start: {}",
                log.lines().last().unwrap_or("it said nothing")
            )))
        }
    }
}
