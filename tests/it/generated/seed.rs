//! A module from a seed: what `wasm-smith` makes, and a quarter of it damaged or changed.

use arbitrary::Unstructured;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use wasm_mutate::WasmMutate;
use wasm_smith::{Config, Module};

use crate::kit::carrier;

/// Bytes that decide a module's shape; a function's instruction takes a few.
const ENTROPY_BYTES: std::ops::Range<usize> = 200..6_000;

/// The module of this seed. It is the same on every machine, as long as the versions in Cargo.lock are.
pub fn module(seed: u64) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut entropy = vec![0; random.random_range(ENTROPY_BYTES)];
    random.fill_bytes(&mut entropy);
    let config = config(&mut random);
    let Ok(module) = Module::new(config, &mut Unstructured::new(&entropy)) else {
        // Some bytes make no module; then they are one that is not.
        return entropy;
    };
    let module = module.to_bytes();
    match random.random_range(0..8) {
        0 => mutated(&module, random.random()).unwrap_or(module),
        1 => damaged(module, &mut random),
        _ => module,
    }
}

/// Mostly what the engine takes, so that most modules run; some with imports, and some with everything.
fn config(random: &mut StdRng) -> Config {
    let kind = random.random_range(0..16);
    if kind == 0 {
        return Config::default();
    }
    Config {
        available_imports: (kind < 5).then(|| carrier::world().to_vec()),
        disallow_traps: kind % 3 == 0,
        export_everything: true,
        min_funcs: 1,
        max_funcs: random.random_range(1..30),
        max_imports: if kind < 5 { 10 } else { 0 },
        max_instructions: random.random_range(50..1_000),
        max_memory32_bytes: 32 << 20,
        max_table_elements: 25_000,
        compact_imports_enabled: false,
        custom_page_sizes_enabled: false,
        exceptions_enabled: false,
        gc_enabled: false,
        memory64_enabled: false,
        // Mostly off: with them most modules get an `externref` somewhere, which the engine does not take.
        reference_types_enabled: kind % 5 == 0,
        relaxed_simd_enabled: false,
        shared_everything_threads_enabled: false,
        tail_call_enabled: false,
        threads_enabled: false,
        wide_arithmetic_enabled: false,
        ..Config::default()
    }
}

/// Changed as a compiler could have; none if there is nothing to change.
fn mutated(module: &[u8], seed: u64) -> Option<Vec<u8>> {
    let mut mutate = WasmMutate::default();
    mutate.seed(seed).fuel(300);
    mutate.run(module).ok()?.next()?.ok()
}

/// Up to four bits turned over, behind the header.
fn damaged(mut module: Vec<u8>, random: &mut StdRng) -> Vec<u8> {
    for _ in 0..random.random_range(1..=4) {
        if let Some(byte) = module.get_mut(8..).and_then(|bytes| {
            let at = random.random_range(0..bytes.len().max(1));
            bytes.get_mut(at)
        }) {
            *byte ^= 1 << random.random_range(0..8);
        }
    }
    module
}
