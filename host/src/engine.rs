//! How a stranger's component runs: inspected, compiled elsewhere, mapped, and one fresh instance for
//! every invocation.
//!
//! It promises that an instance is used once; that fuel, memory, host calls and the deadline bound it from
//! its first instruction, start functions included; that nothing a component or a guest does ends or stalls
//! the node; and that code is only loaded if this node sealed it.
//!
//! It knows no HTTP and no trigger's meaning: `triggers` calls, `capabilities` answers.

pub mod bindings;
mod cache;
mod compile;
mod config;
pub mod guest;
pub mod inspect;
mod limits;
mod program;
mod run;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use wasmtime::component::{Component, Linker};

#[cfg(test)]
pub(crate) use self::compile::tests::worker as test_worker;
pub use self::compile::{WORKER_ARGUMENT, worker_main};
pub use self::config::Config;
use self::guest::Guest;
pub use self::inspect::{Class, Digest, Inspection};
pub use self::program::Program;
pub use self::run::{Failure, Spent};
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::secret::Master;
use crate::kernel::tenant::TenantScope;

/// Components whose failure is remembered, so that the same bad upload costs one compilation.
const FAILURES: u64 = 10_000;
/// How long: a newer host on the same node may do better.
const FAILURE_TIME: Duration = Duration::from_secs(3_600);

/// An interface that guests may import.
#[derive(Clone, Copy)]
pub struct Capability {
    /// Its name, as in `chalet:platform/kv@0.1.0`.
    pub interface: &'static str,
    /// Give its functions to guests.
    pub link: fn(&mut Linker<Guest>) -> wasmtime::Result<()>,
}

/// The node's one engine. Clones share it.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    wasmtime: wasmtime::Engine,
    linker: Linker<Guest>,
    interfaces: Vec<&'static str>,
    cache: cache::Cache,
    compiler: compile::Compiler,
    programs: moka::sync::Cache<Digest, Arc<Program>>,
    failures: moka::sync::Cache<Digest, Arc<Failed>>,
    loading: compile::Keyed<Digest>,
    slots: Semaphore,
    /// Taken when the engine goes.
    runtime: Option<Runtime>,
}

/// What is remembered of a component that cannot be compiled.
struct Failed {
    code: &'static str,
    message: String,
}

impl Failed {
    fn error(&self) -> Error {
        Error::new(Kind::Invalid, self.code, self.message.clone())
    }
}

impl Engine {
    /// Start the engine and the guests' runtime. `capabilities` is the list of what guests may import;
    /// `master` seals precompiled code.
    pub fn start(config: &Config, capabilities: &[Capability], master: &Master) -> Result<Self> {
        let wasmtime = config::node(config.slots).map_err(Error::internal)?;
        let compatibility = config::Compatibility::of(&wasmtime)?;
        let cache = cache::Cache::open(&config.cache, config.cache_bytes, master.clone(), compatibility)?;
        let mut linker = Linker::new(&wasmtime);
        for capability in capabilities {
            (capability.link)(&mut linker).map_err(Error::internal)?;
        }
        // Apart from the HTTP runtime, and looking at timers and new work after every poll: with the defaults
        // four spinning guests on two threads delay a 5 ms timer by 292 ms.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.threads.max(1))
            .thread_name("guest")
            .event_interval(1)
            .global_queue_interval(1)
            .enable_all()
            .build()
            .map_err(Error::internal)?;
        Ok(Self(Arc::new(Inner {
            wasmtime,
            linker,
            interfaces: capabilities.iter().map(|capability| capability.interface).collect(),
            cache,
            compiler: compile::Compiler::new(config.worker.clone(), config.compile_jobs),
            programs: moka::sync::Cache::new(config.programs),
            failures: moka::sync::Cache::builder().max_capacity(FAILURES).time_to_live(FAILURE_TIME).build(),
            loading: compile::Keyed::default(),
            slots: Semaphore::new(config.slots as usize),
            runtime: Some(runtime),
        })))
    }

    /// Take an upload: inspect it, compile it, and say what it is. It is loaded and stored when this returns.
    pub async fn accept(&self, scope: &TenantScope, wasm: Bytes) -> Result<Inspection> {
        let class = Class::of(scope.plan());
        let inner = self.0.clone();
        let bytes = wasm.clone();
        let inspection = tokio::task::spawn_blocking(move || inspect::inspect(&bytes, class, &inner.interfaces))
            .await
            .map_err(Error::internal)??;
        self.load(scope, &inspection.digest, async { Ok(wasm) }).await?;
        Ok(inspection)
    }

    /// Look at a component without compiling it.
    pub fn inspect(&self, bytes: &[u8], class: Class) -> Result<Inspection> {
        inspect::inspect(bytes, class, &self.0.interfaces)
    }

    /// A component compiled in this process and kept nowhere, without the gate and without a worker's limits: for tests
    /// that try more of them than workers could be started. The code is the same that a worker makes.
    #[doc(hidden)]
    pub fn compile_here(&self, wasm: &[u8]) -> Result<Program> {
        let component = Component::from_binary(&self.0.wasmtime, wasm)
            .map_err(|error| Error::new(Kind::Invalid, "component_invalid", format!("{error:#}")))?;
        Program::new(Digest::of(wasm), &component, &self.0.linker)
    }

    /// The program with this digest, if it is mapped already.
    pub fn loaded(&self, digest: &Digest) -> Option<Arc<Program>> {
        self.0.programs.get(digest)
    }

    /// The program with this digest: mapped, or from the folder of code, or compiled from the component that
    /// `fetch` gives, which is asked only then. Callers that want the same one at the same time wait for the
    /// first.
    pub async fn load(
        &self,
        scope: &TenantScope,
        digest: &Digest,
        fetch: impl Future<Output = Result<Bytes>> + Send,
    ) -> Result<Arc<Program>> {
        if let Some(program) = self.loaded(digest) {
            return Ok(program);
        }
        let _first = self.0.loading.lock(digest).await;
        if let Some(program) = self.loaded(digest) {
            return Ok(program);
        }
        if let Some(program) = self.map(*digest).await? {
            return Ok(program);
        }
        if let Some(failed) = self.0.failures.get(digest) {
            return Err(failed.error());
        }
        let wasm = fetch.await?;
        if Digest::of(&wasm) != *digest {
            return Err(Error::internal(format!("the stored component {digest} is damaged")));
        }
        match self.0.compiler.compile(scope, wasm).await {
            Ok(code) => {
                let (inner, key) = (self.0.clone(), *digest);
                tokio::task::spawn_blocking(move || inner.cache.store(&key, &code))
                    .await
                    .map_err(Error::internal)??;
            }
            Err(failed) => {
                if failed.lasting {
                    self.forget_not(digest, &failed.error);
                }
                return Err(failed.error);
            }
        }
        // What is sealed and does not load has more parts than the pool has room for in one place; the log names them.
        self.map(*digest).await?.ok_or_else(|| {
            let error = Error::new(Kind::Invalid, "component_too_complex", config::PLACE);
            self.forget_not(digest, &error);
            error
        })
    }

    /// Map a program from the folder of code.
    async fn map(&self, digest: Digest) -> Result<Option<Arc<Program>>> {
        let inner = self.0.clone();
        let mapped = tokio::task::spawn_blocking(move || {
            let component = inner.cache.load(&inner.wasmtime, &digest)?;
            Some(Program::new(digest, &component, &inner.linker))
        })
        .await
        .map_err(Error::internal)?;
        match mapped {
            None => Ok(None),
            Some(Err(error)) => Err(error),
            Some(Ok(program)) => {
                let program = Arc::new(program);
                self.0.programs.insert(digest, program.clone());
                Ok(Some(program))
            }
        }
    }

    fn forget_not(&self, digest: &Digest, error: &Error) {
        let failed = Failed { code: error.code(), message: error.message().to_owned() };
        self.0.failures.insert(*digest, Arc::new(failed));
    }

    /// Programs that are mapped now.
    pub fn programs(&self) -> u64 {
        self.0.programs.entry_count()
    }

    /// Guests that could start now without waiting.
    pub fn free_slots(&self) -> usize {
        self.0.slots.available_permits()
    }
}

impl Inner {
    fn runtime(&self) -> Result<&Runtime> {
        self.runtime.as_ref().ok_or_else(|| Error::internal("the guests' runtime has ended"))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A runtime that waits for its threads must not be dropped by one of them, nor by another runtime's.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
