//! How wasmtime is set up, and how much of the machine guests may use.
//!
//! wasmtime's defaults are not the hardened configuration. Everything that a plugin does not need is
//! off, because most of the engine's past faults were there; what a guest computes is deterministic;
//! and its work is counted in fuel, which also makes it yield, so that epochs stay off (both together
//! cost up to 2.7 times the run time).

use std::ffi::OsString;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};
use wasmparser::{Parser, Payload};
use wasmtime::{
    Config as Wasmtime, Enabled, Engine, InstanceAllocationStrategy, OperatorCost, OptLevel, PoolingAllocationConfig,
    Strategy,
};

use crate::kernel::breaks::Breaks;
use crate::kernel::error::{Error, Result};

/// The oldest wasmtime without a published fault that this configuration is open to.
const OLDEST_WASMTIME: (u64, u64, u64) = (48, 0, 6);
/// Bytes of stack for WebAssembly code; a plugin that recurses deeper is wrong.
const WASM_STACK_BYTES: usize = 512 << 10;
/// Bytes of a guest's whole stack. What exceeds the WebAssembly part is for host functions, whose
/// overflow would end the process; 1.5 MiB is far above what any of them uses.
const STACK_BYTES: usize = 2 << 20;
/// Address space of a linear memory: with 4 GiB no 32-bit access needs a bounds check.
const MEMORY_RESERVATION: u64 = 4 << 30;
/// Unmapped address space behind a memory, for constant offsets.
const MEMORY_GUARD_BYTES: u64 = 32 << 20;
/// Bytes that one linear memory may ever have; the plan's limit, over all memories, is far below.
const MEMORY_BYTES: usize = 1 << 30;
/// Fuel of a page that `memory.grow` asks for: what clearing 64 KiB costs, in instructions.
const GROW_FUEL_PER_PAGE: u8 = 64;
/// Elements of one table; SpiderMonkey, the largest real guest, has 9,403.
pub(super) const TABLE_ELEMENTS: usize = 20_000;
/// Core instances of one component, as the gate allows: componentize-py makes more than thirty.
pub(super) const CORE_INSTANCES: u32 = 64;
/// Memories and tables of one component, and tables of one module: a composition of a few real guests.
const MEMORIES: u32 = 4;
const TABLES: u32 = 8;
const MODULE_TABLES: u32 = 2;
/// What a component is told that has more than these; the gate cannot count what composition makes of it.
pub(super) const PLACE: &str = "the component has more parts than one instance may have: 2 tables a module, and 4 memories, \
    8 tables, 64 core instances and 1 MiB of functions, globals and segments in all; make it simpler";
/// Bytes of data that are copied into each instance; more is mapped.
const COPIED_BYTES: usize = 512 << 10;
/// Bytes of a slot that stay mapped and are cleared by hand when an instance ends: more than a usual
/// plugin touches, so that no system call is made between two invocations.
const MEMORY_KEPT_BYTES: usize = 1 << 20;
/// The same for tables.
const TABLE_KEPT_BYTES: usize = 64 << 10;
/// The same for stacks.
const STACK_KEPT_BYTES: usize = 32 << 10;
/// Slots that stay warm for another instance of the same plugin after they were used.
const WARM_SLOTS: u32 = 128;

/// The engine's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder of precompiled code; made with mode 0700.
    pub cache: PathBuf,
    /// Bytes of precompiled code on disk; the oldest files go first.
    pub cache_bytes: u64,
    /// Programs mapped at a time. Each takes three mappings, and a file descriptor if its data is mapped into instances.
    pub programs: usize,
    /// Guests that run at a time on this node, all tenants.
    pub slots: u32,
    /// Threads of the guests' runtime.
    pub threads: usize,
    /// Components compiled at a time; each takes a core for as long as it lasts.
    pub compile_jobs: usize,
    /// The compile worker's program and its arguments.
    pub worker: Vec<OsString>,
    /// For tests.
    pub breaks: Breaks,
}

impl Config {
    /// Settings sized to this machine.
    pub fn new(cache: impl Into<PathBuf>) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let worker = std::env::current_exe().map_err(Error::internal)?;
        Ok(Self {
            cache: cache.into(),
            cache_bytes: 8 << 30,
            programs: programs(),
            slots: slots(cores),
            threads: cores,
            compile_jobs: cores.div_ceil(2),
            worker: vec![worker.into(), super::compile::WORKER_ARGUMENT.into()],
            breaks: Breaks::default(),
        })
    }
}

/// A quarter of the descriptors that the process may open, and not more than the default of
/// `vm.max_map_count` (65,530) holds at three mappings each with as much again to spare.
fn programs() -> usize {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    (descriptors / 4).clamp(64, 10_000) as usize
}

/// Enough to keep every core busy while most guests wait for the database, but not more than half of
/// the machine's memory holds when each has grown to the default plan's 64 MiB.
fn slots(cores: usize) -> u32 {
    let by_memory = memory_bytes().unwrap_or(4 << 30) / 2 / (64 << 20);
    let by_cores = cores as u64 * 128;
    u32::try_from(by_memory.min(by_cores).clamp(32, 1_024)).unwrap_or(1_024)
}

/// The machine's memory, where Linux tells.
fn memory_bytes() -> Option<u64> {
    let table = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = table.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1 << 10)
}

/// How a fresh instance's memory comes to hold the component's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// It is copied in. A slot serves one program after another without a system call: with a thousand tenants' plugins
    /// in turn, a call takes a fifth of what it takes if their data is mapped.
    Copied,
    /// It is mapped copy-on-write, since a language runtime's megabytes would take longer to copy.
    Mapped,
}

impl Start {
    /// Both; each is the place of its pool.
    pub(super) const ALL: [Self; 2] = [Self::Copied, Self::Mapped];

    /// How instances of this component start.
    pub(super) fn of(wasm: &[u8]) -> Self {
        let payloads = Parser::new(0).parse_all(wasm).map_while(Result::ok);
        let data = payloads.map(|payload| match payload {
            Payload::DataSection(section) => section.range().len(),
            _ => 0,
        });
        if data.sum::<usize>() <= COPIED_BYTES { Self::Copied } else { Self::Mapped }
    }
}

/// What decides the compiled code: the same in the node and in its compile worker.
fn base(start: Start) -> Wasmtime {
    let mut cost = OperatorCost::new();
    cost.variable.memory_grow_per_page = GROW_FUEL_PER_PAGE;

    let mut config = Wasmtime::new();
    config.strategy(Strategy::Cranelift);
    config.cranelift_opt_level(OptLevel::Speed);

    // The same input gives the same answer, on every run and on every machine.
    config.cranelift_nan_canonicalization(true);
    config.relaxed_simd_deterministic(true);

    // What no plugin needs.
    config.concurrency_support(false);
    config.gc_support(false);
    config.wasm_gc(false);
    config.wasm_function_references(false);
    config.wasm_exceptions(false);
    config.wasm_threads(false);
    config.shared_memory(false);
    config.wasm_memory64(false);
    config.wasm_tail_call(false);
    config.wasm_relaxed_simd(false);
    // Guests have one memory a module: the gate sees to it. What the compiler itself makes between two components of a
    // composition copies from the memory of one to that of the other.
    config.wasm_multi_memory(true);

    config.epoch_interruption(false);
    config.consume_fuel(true);
    config.operator_cost(cost);

    config.max_wasm_stack(WASM_STACK_BYTES);
    config.async_stack_size(STACK_BYTES);
    config.async_stack_zeroing(true); // no tenant finds another's bytes on its stack
    config.memory_reservation(MEMORY_RESERVATION);
    config.memory_guard_size(MEMORY_GUARD_BYTES);
    config.memory_may_move(false);
    config.guard_before_linear_memory(true);
    config.memory_init_cow(start == Start::Mapped);
    config.signals_based_traps(true);
    config
}

/// The engine of a compile worker, which never runs what it compiles.
pub(super) fn compiler(start: Start) -> wasmtime::Result<Engine> {
    Engine::new(&base(start))
}

/// An engine of a node.
pub(super) fn node(slots: u32, start: Start) -> wasmtime::Result<Engine> {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        .total_core_instances(slots * 4)
        .total_memories(slots * 2)
        .total_tables(slots * 4)
        .total_stacks(slots)
        .total_gc_heaps(1)
        .max_component_instance_size(1 << 20)
        .max_core_instance_size(1 << 20)
        .max_core_instances_per_component(CORE_INSTANCES)
        .max_memories_per_component(MEMORIES)
        .max_tables_per_component(TABLES)
        .max_memories_per_module(1)
        .max_tables_per_module(MODULE_TABLES)
        .table_elements(TABLE_ELEMENTS)
        .max_memory_size(MEMORY_BYTES)
        .max_unused_warm_slots(WARM_SLOTS)
        .linear_memory_keep_resident(MEMORY_KEPT_BYTES)
        .table_keep_resident(TABLE_KEPT_BYTES)
        .async_stack_keep_resident(STACK_KEPT_BYTES)
        .pagemap_scan(Enabled::Auto);
    let mut config = base(start);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config)
}

/// What this engine's code is compatible with: the version of wasmtime that is linked, and a digest
/// of everything that decides the compiled code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Compatibility {
    pub(super) version: String,
    pub(super) digest: [u8; 32],
}

impl Compatibility {
    /// Read from the engine. Refuses a wasmtime that is too old to run strangers' code.
    pub(super) fn of(engine: &Engine) -> Result<Self> {
        let mut hashed = Hashed(Vec::new());
        engine.precompile_compatibility_hash().hash(&mut hashed);
        // What wasmtime hashes ends with its own version; there is no other way to ask for it.
        let text = hashed.0.strip_suffix(&[0xff]).unwrap_or(&hashed.0);
        let start = text.iter().rposition(|byte| !byte.is_ascii_digit() && *byte != b'.').map_or(0, |at| at + 1);
        let version = String::from_utf8_lossy(&text[start..]).into_owned();
        let mut numbers = version.split('.').map(str::parse::<u64>);
        let new_enough = match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch))) => (major, minor, patch) >= OLDEST_WASMTIME,
            _ => false,
        };
        if !new_enough {
            return Err(Error::internal(format!("wasmtime {version:?} is not at least {OLDEST_WASMTIME:?}")));
        }
        Ok(Self { version, digest: Sha256::digest(&hashed.0).into() })
    }
}

/// A hasher that keeps what it is fed.
struct Hashed(Vec<u8>);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_and_its_worker_make_the_same_code() {
        let all = Start::ALL.map(|start| {
            let (node, worker) = (node(4, start).unwrap(), compiler(start).unwrap());
            let of_node = Compatibility::of(&node).unwrap();
            assert_eq!(of_node, Compatibility::of(&worker).unwrap());
            assert_eq!(of_node, Compatibility::of(&node).unwrap());
            assert!(of_node.version.starts_with("48.0."), "{of_node:?}");
            of_node
        });
        assert_ne!(all[0], all[1], "what one made the other must not run");
    }

    #[test]
    fn little_data_is_copied_and_much_is_mapped() {
        let start = |bytes: usize| {
            let data = "x".repeat(bytes);
            let text = format!("(component (core module (memory 20) (data (i32.const 0) \"{data}\")))");
            Start::of(&wat::parse_str(text).unwrap())
        };
        assert_eq!([0, 1 << 10, 1 << 20].map(start), [Start::Copied, Start::Copied, Start::Mapped]);
        assert_eq!(Start::of(b"no component"), Start::Copied);
    }
}
