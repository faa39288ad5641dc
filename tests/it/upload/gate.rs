//! The gate: each bomb breaks the rule that is for it, before anything compiles it.

use std::fmt::Write;
use std::time::{Duration, Instant};

use crate::kit::oracle::Watch;
use crate::kit::process::{forget_peak, peak_mib, resident_mib};
use crate::kit::server::Server;
use crate::upload::{compiles, rejected, unprocessable};

/// What a refusal may cost the server while it lasts.
const MEMORY_MIB: f64 = 32.0;
/// How long it may take: 200 ms is the aim for an optimized host on a machine with nothing else to do.
const PATIENCE: Duration = Duration::from_secs(5);

fn module(fields: &str) -> String {
    format!("(component (core module {fields}))")
}

fn locals(count: usize) -> String {
    format!("(local {})", "i64 ".repeat(count))
}

fn nested(locals: &str, depth: usize) -> String {
    module(&format!("(func {locals} {} {})", "i32.const 1 if ".repeat(depth), "end ".repeat(depth)))
}

/// Each level makes two instances of the one below: 2^levels in the end.
fn laughs(levels: usize) -> String {
    let mut text = String::from("(component $c0 (core module $m) (core instance (instantiate $m)))");
    for level in 1..=levels {
        let twice = format!("(instance (instantiate $c{0})) (instance (instantiate $c{0}))", level - 1);
        text = format!("(component $c{level} {text} {twice})");
    }
    text
}

/// The same side by side, so that nothing is nested.
fn laughs_beside(levels: usize) -> String {
    let mut text = String::from("(component (component $c0 (core module $m) (core instance (instantiate $m)))");
    for level in 1..=levels {
        let below = format!("(alias outer 1 $c{} (component $x))", level - 1);
        let _ = write!(text, "(component $c{level} {below} (instance (instantiate $x)) (instance (instantiate $x)))");
    }
    text + ")"
}

fn many(count: usize, each: impl Fn(usize) -> String) -> String {
    format!("(component {})", (0..count).map(each).collect::<String>())
}

fn bombs() -> Vec<(&'static str, &'static str, String)> {
    let br_table = format!("block i32.const 0 br_table {} end ", "0 ".repeat(200)).repeat(3_000);
    let lower = "(core func (canon lower (func $f)))".repeat(2_001);
    vec![
        ("20,000 nested blocks", "depth", nested("", 20_000)),
        ("2,000 locals in 20,000 blocks", "locals", nested(&locals(2_000), 20_000)),
        ("400 locals in 1,000 blocks", "locals_times_depth", nested(&locals(400), 1_000)),
        ("3,000 branch tables of 200", "br_table", module(&format!("(func {br_table})"))),
        (
            "100,000 loads in one function",
            "memory_accesses",
            module(&format!("(memory 1) (func {})", "i32.const 0 i64.load8_u drop ".repeat(100_000))),
        ),
        ("a function of 1 MiB", "function_bytes", module(&format!("(func {})", "nop ".repeat(1 << 20)))),
        ("20,001 functions", "functions", module(&"(func)".repeat(20_001))),
        ("a memory of 64 MiB and a page", "memory_bytes", module("(memory 1025)")),
        (
            "two memories of 40 MiB",
            "memory_bytes",
            "(component (core module (memory 640)) (core module (memory 640)))".into(),
        ),
        ("two memories of a module", "memories", module("(memory 1) (memory 1)")),
        ("a table of 20,001", "table_elements", module("(table 20001 funcref)")),
        (
            "90,000 data segments",
            "data_segments",
            module(&format!("(memory 1) {}", "(data (i32.const 0) \"\")".repeat(90_000))),
        ),
        ("10,001 types", "types", many(10_001, |_| "(type (list u8))".into())),
        ("2,001 lowered functions", "canonical_functions", format!("(component (import \"f\" (func $f)) {lower})")),
        ("10 components in one another", "component_depth", format!("{}{}", "(component ".repeat(10), ")".repeat(10))),
        ("laughs, 7 levels", "instances", laughs(7)),
        ("laughs beside one another, 26 levels", "instances", laughs_beside(26)),
        ("laughs beside one another, 200 levels", "instances", laughs_beside(200)),
        ("101 imports", "imports", many(101, |n| format!("(import \"i{n}\" (func))"))),
        ("101 exports", "exports", many(101, |n| format!("(type $t{n} string) (export \"e{n}\" (type $t{n}))"))),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_bomb_breaks_a_rule_of_its_own_at_once() {
    let server = Server::start();
    let hostile = server.tenant("hostile").await;
    let watch = Watch::begin(&server).await;
    let compiled = compiles(&server).await;
    for (what, rule, text) in bombs() {
        let bomb = wat::parse_str(&text).unwrap_or_else(|error| panic!("{what}: {error}"));
        let (before, counted) = (resident_mib(server.pid()), rejected(&server, rule).await);
        forget_peak(server.pid());
        let (bytes, begun) = (bomb.len(), Instant::now());
        let problem = unprocessable(&hostile, bomb, "component_too_complex", what).await;
        let (took, grown) = (begun.elapsed(), peak_mib(server.pid()) - before);
        println!("{what}: {bytes} bytes, {} ms, {grown:.1} MiB", took.as_millis());
        assert_eq!(problem["rule"], rule, "{what}: {problem}");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(rule)), "{what}: {problem}");
        assert_eq!(rejected(&server, rule).await, counted + 1.0, "{what} is not counted");
        assert!(took < PATIENCE, "{what} took {took:?}");
        assert!(grown < MEMORY_MIB, "{what} took {grown} MiB");
    }
    assert_eq!(compiles(&server).await, compiled, "a bomb was compiled");
    watch.end(&server).await;
}
