//! `chalet serve`: the server.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::kernel::clock::Clock;
use crate::kernel::error::{Error, Result};
use crate::kernel::panic;
use crate::platform::Platform;

/// Run the server.
#[derive(Debug, Args)]
pub struct Serve {
    /// The settings file; `chalet.toml` in the working folder if there is one.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data folder; `./chalet-data` if not set.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The address to listen on, such as 127.0.0.1:8080; port 0 picks a free one.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
}

impl Serve {
    /// Serve until SIGTERM or SIGINT.
    pub fn run(self) -> Result<()> {
        logs();
        panic::watch();
        let mut config = Config::load(self.config.as_deref())?;
        config.data = self.data.or(config.data);
        config.listen = self.listen.or(config.listen);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::internal)?;
        runtime.block_on(serve(config))
    }
}

/// Log lines go to stderr as JSON, one object a line; `RUST_LOG` chooses.
fn logs() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    // It warns of each frame that is not right: a stranger would write the log.
    let filter = filter.add_directive("h2=error".parse().expect("a directive"));
    tracing_subscriber::fmt().json().with_writer(std::io::stderr).with_env_filter(filter).init();
}

async fn serve(config: Config) -> Result<()> {
    let address = config.listen();
    let listener = TcpListener::bind(address).await.map_err(|error| {
        Error::invalid(format!("cannot listen on {address}: {error}; choose another address with --listen"))
    })?;
    let address = listener.local_addr().map_err(Error::internal)?;
    let platform = Platform::start(&config, Clock::system()).await?;
    say(&format!("listening on http://{address}"))?;
    if let Some(key) = platform.first_key() {
        say(&format!("admin key: {key}"))?;
    }
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::internal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::internal)?;
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: requests that run are answered first");
        stopping.cancel();
    });
    platform.serve(listener, stop).await
}

/// A line on stdout, which programs wait for.
fn say(line: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).map_err(Error::internal)
}
