//! A short, repeatable walk around the seeds of each fuzz target. `make fuzz` searches for longer, and guided by coverage.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::kit::soak;

#[path = "../fuzz/bodies.rs"]
mod bodies;

use bodies::{TARGETS, Target};

/// Mutations of each target's seeds, and how many times more a soak takes.
const MUTATIONS: u64 = 20_000;
const SOAKED: u64 = 100;
/// Bytes that an input may grow to.
const BYTES: usize = 8 << 10;
/// What parsers look for.
const WORDS: &[&[u8]] = &[
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"\n",
    b"\0",
    b"/",
    b"%",
    b"*",
    b"{*x}",
    b"..",
    b"\xff",
    b"\xf0\x9f\x98\x80",
    b"0",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"null",
    b"true",
    b"[[",
    b"= ",
    b"$ref",
    b"\\u0000",
    b"t=",
    b"v1=",
    b"v1,",
];

#[test]
fn any_bytes_are_refused_or_mean_one_thing() {
    std::thread::scope(|scope| {
        for target in TARGETS {
            scope.spawn(|| walk(target));
        }
    });
}

fn walk(target: &Target) {
    let mutations = MUTATIONS * soak::either(1, SOAKED);
    for seed in target.seeds {
        (target.body)(seed);
    }
    let mut random = StdRng::seed_from_u64(0);
    for n in 0..mutations {
        let mut input = target.seeds[random.random_range(0..target.seeds.len())].to_vec();
        for _ in 0..random.random_range(1..=6) {
            mutate(&mut input, target, &mut random);
        }
        input.truncate(BYTES);
        let result = std::panic::catch_unwind(|| (target.body)(&input));
        assert!(result.is_ok(), "mutation {n} of {}: {:?}", target.name, String::from_utf8_lossy(&input));
    }
}

fn mutate(input: &mut Vec<u8>, target: &Target, random: &mut StdRng) {
    let at = random.random_range(0..=input.len());
    let rest = input.len() - at;
    match random.random_range(0..7) {
        0 if rest > 0 => input[at] ^= 1 << random.random_range(0..8),
        1 if rest > 0 => input[at] = random.random(),
        2 => drop(input.drain(at..at + random.random_range(0..=rest.min(16)))),
        3 => {
            let word = WORDS[random.random_range(0..WORDS.len())];
            input.splice(at..at, word.iter().copied());
        }
        4 => {
            // Something of itself once more, perhaps many times: nesting and lists.
            let piece = input[at..at + random.random_range(0..=rest.min(64))].to_vec();
            let times = if random.random_range(0..20) == 0 { 200 } else { 1 };
            input.splice(at..at, piece.repeat(times));
        }
        5 => {
            let other = target.seeds[random.random_range(0..target.seeds.len())];
            let from = random.random_range(0..=other.len());
            input.splice(at.., other[from..].iter().copied());
        }
        _ => input.truncate(at),
    }
}
