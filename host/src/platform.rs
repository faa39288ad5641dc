//! The composition root: from settings to a running node, in the order in which things start, and back in
//! the order in which they stop. The only file that names concrete backends.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::capabilities;
use crate::config::Config;
use crate::control;
use crate::effects::{Effects, Shard};
use crate::engine::guest::Services;
use crate::engine::{self, Engine};
use crate::gateway::credential::Credentials;
use crate::gateway::metrics::Metrics;
use crate::gateway::{self, Door, Parts, serve};
use crate::invocation::{FLUSH, Invoker};
use crate::kernel::breaks::Breaks;
use crate::kernel::clock::Clock;
use crate::kernel::db::{Db, Location, refuse_link};
use crate::kernel::error::{Error, Result};
use crate::kernel::secret::Master;
use crate::kernel::task::{Task, Tasks};
use crate::kernel::trace::Traces;
use crate::services::audit::{Actor, Log, Record};
use crate::services::directory::Directory;
use crate::services::egress::Egress;
use crate::services::flags::Flags;
use crate::services::idempotency::Idempotency;
use crate::services::keys::{Keys, Right};
use crate::services::limits::Limits;
use crate::services::plugins::Plugins;
use crate::services::secrets::Secrets;
use crate::services::sweep;

/// How long requests may take to end after the node was told to stop.
const DRAIN: Duration = Duration::from_secs(30);
/// How long a program that nobody calls stays mapped, at least; it is gone after twice this time.
const IDLE: Duration = Duration::from_secs(60);

/// A node that is up.
pub struct Platform {
    door: Door,
    router: Router,
    tasks: Tasks,
    first_key: Option<String>,
    connections: serve::Config,
}

impl Platform {
    /// Start everything but the listener.
    pub async fn start(config: &Config, clock: Clock) -> Result<Self> {
        let traces = Traces::start(&config.telemetry)?;
        let data = config.data();
        std::fs::create_dir_all(&data)
            .map_err(|error| Error::invalid(format!("the data folder {} cannot be made: {error}", data.display())))?;
        let db = Db::open(&Location::parse(config.database.url.as_deref(), &data)?).await?;
        db.follow(&clock).await?;
        let master = master_key(config, &data)?;
        let breaks = Breaks::from_environment();
        let shard = Shard::new(db.store(), clock.clone(), breaks);
        let directory = Directory::new(db.clone());
        let keys = Keys::new(db.clone(), clock.clone(), master.clone());
        let audit = Arc::new(Log::new(shard.clone()));
        let first_key = first_key(config, &keys, &audit, &directory).await?;

        let defaults = match &config.flags.defaults {
            None => None,
            Some(path) => Some(std::fs::read_to_string(path).map_err(|error| {
                Error::invalid(format!("the default flags {} cannot be read: {error}", path.display()))
            })?),
        };
        let limits = Arc::new(Limits::local(clock.clone()));
        let services = Arc::new(Services {
            flags: Arc::new(Flags::new(defaults.as_deref())?),
            limits: limits.clone(),
            secrets: Arc::new(Secrets::new(master.clone())),
            egress: Arc::new(Egress::new(&config.egress)?),
            master: master.clone(),
            breaks,
        });
        let engine = engine::Config { breaks, ..engine::Config::new(data.join("code"))? };
        let engine = Engine::start(&engine, capabilities::ALL, &master, limits.clone())?;
        let idempotency = Idempotency::new(master.clone(), db.claims().clone());
        let invoker = Invoker::new(engine.clone(), db.clone(), shard.clone(), services.clone(), idempotency.clone());

        let door = Door::new(Parts {
            credentials: Credentials::new(keys.clone()),
            plugins: Plugins::new(shard.clone()),
            metrics: Metrics::new(),
            traces,
            stopping: CancellationToken::new(),
            db,
            shard,
            directory,
            keys,
            limits,
            audit,
            idempotency,
            master,
            services,
            invoker,
            engine,
            breaks,
        });
        let router = gateway::pipeline(door.clone(), control::router(&door));
        let tasks = Tasks::start(tasks(&door));
        Ok(Self { door, router, tasks, first_key, connections: config.connections.clone() })
    }

    /// The operator's key, if this start made it: to be shown once.
    pub fn first_key(&self) -> Option<&str> {
        self.first_key.as_deref()
    }

    /// The parts, for tests that look behind the doors.
    pub fn door(&self) -> &Door {
        &self.door
    }

    /// Answer requests until `stop`, then let those that run end, write what waits, and return.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) -> Result<()> {
        let counts = self.door.metrics.connections.clone();
        let server = serve::serve(listener, self.router, &self.connections, counts, stop.clone());
        let drained = async {
            stop.cancelled().await;
            self.door.stopping.cancel();
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            () = server => {}
            () = drained => tracing::warn!("some requests did not end in time; they are dropped"),
        }
        self.tasks.stop().await;
        self.door.invoker.tally().flush().await;
        self.door.audit.settle(true).await;
        self.door.shard.close().await;
        self.door.traces.close().await;
        Ok(())
    }
}

/// The background work of a node.
fn tasks(door: &Door) -> Vec<Task> {
    let (tally, follower, settler, sweeper) = (door.invoker.tally().clone(), door.clone(), door.clone(), door.clone());
    let engine = door.engine.clone();
    vec![
        Task::new("write usage and records", FLUSH, move || {
            let tally = tally.clone();
            async move {
                tally.flush().await;
                Ok(())
            }
        }),
        Task::new("follow the database's clock", Duration::from_secs(10), move || {
            let door = follower.clone();
            async move { door.db.follow(door.shard.clock()).await }
        }),
        Task::new("write down denials that were only counted", Duration::from_secs(1), move || {
            let door = settler.clone();
            async move {
                door.audit.settle(false).await;
                Ok(())
            }
        }),
        Task::new("unmap the programs that nobody calls", IDLE, move || {
            let engine = engine.clone();
            async move {
                engine.unmap_idle();
                Ok(())
            }
        }),
        Task::new("sweep expired rows", Duration::from_secs(60), move || {
            let door = sweeper.clone();
            async move { sweep::run(&door.db, &door.shard, &door.directory).await }
        }),
    ]
}

/// The master key: given, or read from the data folder, or made there at the first start.
fn master_key(config: &Config, data: &Path) -> Result<Master> {
    if let Some(text) = &config.secrets.master_key {
        return Master::parse(text);
    }
    let path = data.join("master.key");
    refuse_link(&path)?;
    match std::fs::read_to_string(&path) {
        Ok(text) => Master::parse(&text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let master = Master::generate();
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(|error| Error::invalid(format!("{} cannot be written: {error}", path.display())))?;
            file.write_all(master.to_hex().as_bytes()).and_then(|()| file.sync_all()).map_err(Error::internal)?;
            Ok(master)
        }
        Err(error) => Err(Error::invalid(format!("{} cannot be read: {error}", path.display()))),
    }
}

/// Set the operator's first key as configured; or make one, if there is none yet.
async fn first_key(config: &Config, keys: &Keys, audit: &Log, directory: &Directory) -> Result<Option<String>> {
    let record = Record::new("keys.first", Actor::start(), Right::PlatformAdmin, "");
    let drawn = keys.draw(None, "first", &[Right::PlatformAdmin.name().to_owned()], None)?;
    let made = async |effects: &mut Effects| {
        if let Some(key) = &config.admin.key {
            keys.set_first(effects, key).await?;
            return Ok(false);
        }
        let missing = !keys.any_admin().await?;
        if missing {
            keys.store(effects, None, &drawn).await?;
        }
        Ok(missing)
    };
    let made = audit.change(directory.platform(), record, made).await?;
    Ok(made.then_some(drawn.key))
}
