//! How a stranger's component runs: inspected, compiled elsewhere, mapped, and one fresh instance for
//! every invocation.
//!
//! It promises that an instance is used once; that fuel, memory, host calls and the deadline bound it from
//! its first instruction, start functions included; that nothing a component or a guest does ends or stalls
//! the node; and that code is only loaded if this node sealed it.
//!
//! It knows no HTTP and no trigger's meaning: `triggers` calls, `capabilities` answers.

pub mod bindings;
mod budget;
mod cache;
mod compile;
mod config;
mod confine;
pub mod guest;
pub mod inspect;
mod limits;
mod program;
mod run;
mod slots;
mod turns;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Runtime;
use wasmtime::component::{Component, Linker};

#[cfg(test)]
pub(crate) use self::compile::tests::worker as test_worker;
pub use self::compile::{WORKER_ARGUMENT, worker_main};
pub use self::config::Config;
use self::config::Start;
pub use self::confine::Confinement;
use self::guest::Guest;
pub use self::inspect::{Class, Digest, Inspection};
pub use self::program::Program;
pub use self::run::{Failure, Spent};
use crate::kernel::cache::Cache;
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::secret::Master;
use crate::kernel::tenant::TenantScope;
use crate::kernel::trace;
use crate::services::limits::Limits;

/// Components whose refusal is remembered, so that the same bad upload costs one look and one compilation.
const REFUSALS: u64 = 10_000;
/// How long: a newer host on the same node may do better.
const REFUSAL_TIME: Duration = Duration::from_secs(3_600);
/// The rule under which an upload is counted that was refused for an earlier one's sake.
const REMEMBERED: &str = "remembered";

/// How much later than the threads that answer requests those of long guests get the processor.
const GUEST_NICE: i32 = 5;

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
    /// In the order of [`Start::ALL`].
    pools: [Pool; 2],
    interfaces: Vec<&'static str>,
    compiler: compile::Compiler,
    budget: budget::Budget,
    rejected: Mutex<BTreeMap<&'static str, u64>>,
    programs: Cache<Digest, Arc<Program>>,
    /// By the gate under a class's bounds, or by the compiler, which has no classes. Nothing of a tenant stands in it:
    /// the same bytes get the same answer from whomever they come.
    refusals: moka::sync::Cache<(Digest, Option<Class>), Arc<Error>>,
    loading: compile::Keyed<Digest>,
    slots: slots::Slots,
    turns: Arc<turns::Turns>,
    memory_denied: AtomicU64,
    /// Taken when the engine goes.
    runtime: Option<Runtime>,
}

/// Where the programs run whose instances start alike.
struct Pool {
    wasmtime: wasmtime::Engine,
    linker: Linker<Guest>,
    cache: cache::Cache,
}

impl Pool {
    fn open(start: Start, config: &Config, capabilities: &[Capability], master: &Master) -> Result<Self> {
        let wasmtime = config::node(config.slots, start).map_err(Error::internal)?;
        let compatibility = config::Compatibility::of(&wasmtime)?;
        let cache =
            cache::Cache::open(&config.cache, config.cache_bytes, master.clone(), compatibility, config.breaks)?;
        let mut linker = Linker::new(&wasmtime);
        for capability in capabilities {
            (capability.link)(&mut linker).map_err(Error::internal)?;
        }
        Ok(Self { wasmtime, linker, cache })
    }
}

impl Engine {
    /// Start the engine and the guests' runtime. `capabilities` is the list of what guests may import;
    /// `master` seals precompiled code; `limits` count what compiling costs.
    pub fn start(config: &Config, capabilities: &[Capability], master: &Master, limits: Arc<Limits>) -> Result<Self> {
        let [copied, mapped] = Start::ALL.map(|start| Pool::open(start, config, capabilities, master));
        // Apart from the HTTP runtime, and looking at timers and new work after every poll: with the defaults
        // four spinning guests on two threads delay a 5 ms timer by 292 ms.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.threads.max(1))
            .thread_name("guest")
            // Whoever answers requests comes before a guest that computes for long.
            .on_thread_start(|| {
                // Where the system does not let us, they compete as equals.
                let _ = rustix::process::nice(GUEST_NICE);
            })
            .event_interval(1)
            .global_queue_interval(1)
            .enable_all()
            .build()
            .map_err(Error::internal)?;
        Ok(Self(Arc::new(Inner {
            pools: [copied?, mapped?],
            interfaces: capabilities.iter().map(|capability| capability.interface).collect(),
            compiler: compile::Compiler::new(config.worker.clone(), config.compile_jobs, config.breaks),
            budget: budget::Budget::new(limits),
            rejected: Mutex::default(),
            programs: Cache::new(config.programs),
            refusals: moka::sync::Cache::builder().max_capacity(REFUSALS).time_to_live(REFUSAL_TIME).build(),
            loading: compile::Keyed::default(),
            slots: slots::Slots::new(config.slots as usize),
            turns: turns::Turns::new(if config.breaks.turns { usize::MAX } else { config.threads }),
            memory_denied: AtomicU64::new(0),
            runtime: Some(runtime),
        })))
    }

    /// Take an upload: inspect it, compile it, and say what it is. It is loaded and stored when this returns.
    pub async fn accept(&self, scope: &TenantScope, wasm: Bytes) -> Result<Inspection> {
        let class = Class::of(scope.plan());
        let (inner, bytes) = (self.0.clone(), wasm.clone());
        let inspected = tokio::task::spawn_blocking(move || inner.inspect(&bytes, class)).await;
        let inspection = inspected.map_err(Error::internal)??;
        let fetch = async { Ok(wasm) };
        let obtained = self.obtain(scope, &inspection.digest, Some(&self.0.budget), fetch).await;
        obtained.map(|_| inspection).inspect_err(|error| self.0.reject(error))
    }

    /// A component compiled in this process and kept nowhere, without the gate and without a worker's limits: for tests
    /// that try more of them than workers could be started. The code is the same that a worker makes.
    #[doc(hidden)]
    pub fn compile_here(&self, wasm: &[u8]) -> Result<Program> {
        let pool = self.0.pool(wasm);
        let component = Component::from_binary(&pool.wasmtime, wasm)
            .map_err(|error| Error::new(Kind::Invalid, "component_invalid", format!("{error:#}")))?;
        Program::new(Digest::of(wasm), &component, &pool.linker)
    }

    /// The program with this digest, if it is mapped already.
    pub fn loaded(&self, digest: &Digest) -> Option<Arc<Program>> {
        self.0.programs.get(digest).inspect(|program| program.touch())
    }

    /// Unmap the programs that nobody asked for since this was called last. The next call maps its program again, which
    /// takes less than a millisecond; mapped, a small plugin takes some 280 KiB.
    pub fn unmap_idle(&self) {
        self.0.programs.retain(|program| program.in_use());
    }

    /// The program with this digest: mapped, or from the folder of code, or compiled from the component that
    /// `fetch` gives, which is asked only then. Callers that want the same one at the same time wait for the
    /// first. It was accepted before, so that compiling it again is the host's own affair and costs no tenant's
    /// budget.
    pub async fn load(
        &self,
        scope: &TenantScope,
        digest: &Digest,
        fetch: impl Future<Output = Result<Bytes>> + Send,
    ) -> Result<Arc<Program>> {
        self.obtain(scope, digest, None, fetch).await
    }

    async fn obtain(
        &self,
        scope: &TenantScope,
        digest: &Digest,
        budget: Option<&budget::Budget>,
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
        // What was accepted under another plan's bounds still runs.
        if let Some(refusal) = self.0.refused(*digest, None) {
            return Err(refusal);
        }
        let wasm = fetch.await?;
        if Digest::of(&wasm) != *digest {
            return Err(Error::internal(format!("the stored component {digest} is damaged")));
        }
        let span = trace::child("compile");
        span.set("chalet.component.bytes", wasm.len());
        let compiled = self.0.compiler.compile(scope, wasm.clone(), budget).await;
        if let Err(failed) = &compiled {
            span.fail(failed.error.code());
        }
        drop(span);
        match compiled {
            Ok(code) => {
                let (inner, key) = (self.0.clone(), *digest);
                tokio::task::spawn_blocking(move || inner.pool(&wasm).cache.store(&key, &code))
                    .await
                    .map_err(Error::internal)??;
            }
            Err(failed) => {
                if failed.lasting {
                    self.0.remember(*digest, None, &failed.error);
                }
                return Err(failed.error);
            }
        }
        // What is sealed and does not load has more parts than the pool has room for in one place; the log names them.
        self.map(*digest).await?.ok_or_else(|| {
            let error = Error::new(Kind::Invalid, "component_too_complex", config::PLACE).rule("place");
            self.0.remember(*digest, None, &error);
            error
        })
    }

    /// Map a program from the folder of code.
    async fn map(&self, digest: Digest) -> Result<Option<Arc<Program>>> {
        let inner = self.0.clone();
        let mapped = tokio::task::spawn_blocking(move || {
            let loaded = |pool: &Pool| {
                let component = pool.cache.load(&pool.wasmtime, &digest)?;
                Some(Program::new(digest, &component, &pool.linker))
            };
            inner.pools.iter().find_map(loaded)
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

    /// Compile workers that were started.
    pub fn compiles(&self) -> u64 {
        self.0.compiler.started()
    }

    /// Count an upload that was refused for what it holds.
    pub fn reject(&self, error: &Error) {
        self.0.reject(error);
    }

    /// Uploads that were refused, by the rule that they broke.
    pub fn rejected(&self) -> BTreeMap<&'static str, u64> {
        self.0.rejected().clone()
    }

    /// Programs that are mapped now.
    pub fn programs(&self) -> usize {
        self.0.programs.len()
    }

    /// Guests that wait for their turn to compute.
    pub fn waiting(&self) -> usize {
        self.0.turns.waiting()
    }

    /// Tasks of guests that have not ended.
    pub fn tasks(&self) -> usize {
        self.0.runtime.as_ref().map_or(0, |runtime| runtime.metrics().num_alive_tasks())
    }

    /// Guests that can run at the same time.
    pub fn slots(&self) -> usize {
        self.0.slots.all()
    }

    /// Guests that could start now without waiting.
    pub fn free_slots(&self) -> usize {
        self.0.slots.free()
    }

    /// Guests that run now.
    pub fn running(&self) -> usize {
        self.slots() - self.free_slots()
    }

    /// Runs that asked for more memory or table space than they may have.
    pub fn memory_denied(&self) -> u64 {
        self.0.memory_denied.load(Ordering::Relaxed)
    }
}

/// Try a compile worker as a node would start it: what this kernel holds it to.
pub async fn try_worker() -> Result<Confinement> {
    let config = Config::new("")?;
    let compiler = compile::Compiler::new(config.worker, 1, config.breaks);
    compiler.try_one().await.map_err(|failed| failed.error)
}

impl Inner {
    /// Where a component runs.
    fn pool(&self, wasm: &[u8]) -> &Pool {
        &self.pools[Start::of(wasm) as usize]
    }

    /// The gate, which looks at the same bytes once.
    fn inspect(&self, wasm: &[u8], class: Class) -> Result<Inspection> {
        let digest = Digest::of(wasm);
        if let Some(refusal) = self.refused(digest, None).or_else(|| self.refused(digest, Some(class))) {
            self.count(REMEMBERED);
            return Err(refusal);
        }
        inspect::inspect(wasm, class, &self.interfaces).inspect_err(|error| {
            self.reject(error);
            self.remember(digest, Some(class), error);
        })
    }

    fn refused(&self, digest: Digest, class: Option<Class>) -> Option<Error> {
        self.refusals.get(&(digest, class)).map(|error| Error::clone(&error))
    }

    fn remember(&self, digest: Digest, class: Option<Class>, error: &Error) {
        self.refusals.insert((digest, class), Arc::new(error.clone()));
    }

    /// Count a refusal.
    fn reject(&self, error: &Error) {
        self.count(error.broken_rule().unwrap_or(error.code()));
    }

    fn count(&self, rule: &'static str) {
        *self.rejected().entry(rule).or_default() += 1;
    }

    fn rejected(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.rejected.lock().unwrap_or_else(PoisonError::into_inner)
    }

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
