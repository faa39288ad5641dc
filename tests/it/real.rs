//! WebAssembly that people ship passes the gate: engines of JavaScript, Python and SQL, compilers, parsers and codecs, from
//! C, C++, Rust, Go and TinyGo; and plugins that were written in JavaScript and Python answer requests.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use chalet::cli::build;
use chalet::engine::Class;
use chalet::engine::inspect::inspect;
use chalet::services::plugins::manifest::Manifest;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::kit::engine::Engine;
use crate::kit::guests::{built, root};
use crate::kit::packages::{self, npm, pip};
use crate::kit::server::{Server, expect};
use crate::kit::{carrier, soak};

on_both_engines! {
    a_plugin_written_in_javascript_answers,
}

/// Modules that must at least be there: fewer, and the packages have changed.
const MODULES: usize = 40;
/// Bytes from which on a module may need more than a worker's half minute: a bundler of 16 MB does on a slow core.
const DOUBTFUL_BYTES: usize = 12 << 20;

/// Every WebAssembly module below the packages of `tests/real`, once each.
fn modules() -> Vec<(PathBuf, Vec<u8>)> {
    let folder = npm("real").join("node_modules");
    let (mut found, mut seen, mut folders) = (Vec::new(), HashSet::new(), vec![folder.clone()]);
    while let Some(inner) = folders.pop() {
        for entry in std::fs::read_dir(inner).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "wasm") {
                let wasm = std::fs::read(&path).expect("a module");
                if seen.insert(wasm.clone()) {
                    found.push((path.strip_prefix(&folder).expect("below it").to_owned(), wasm));
                }
            }
        }
    }
    found.sort();
    found
}

/// What a plugin may import.
fn interfaces() -> Vec<&'static str> {
    chalet::capabilities::ALL.iter().map(|capability| capability.interface).collect()
}

#[test]
fn what_people_ship_passes_the_gate() {
    let interfaces = interfaces();
    let shipped = modules();
    assert!(shipped.len() >= MODULES, "only {} modules were found", shipped.len());
    let mut refused = Vec::new();
    let (mut usual, mut large) = (0, 0);
    let own = built().iter().map(|(name, path)| (name.into(), std::fs::read(path).expect("a component")));
    let carried = shipped.iter().map(|(path, wasm)| (path.clone(), carrier::beside(wasm)));
    for (name, component) in own.chain(carried) {
        match inspect(&component, Class::Usual, &interfaces) {
            Ok(_) => usual += 1,
            Err(error) => {
                println!("{}: {}", name.display(), error.message());
                match inspect(&component, Class::Large, &interfaces) {
                    Ok(_) => large += 1,
                    Err(error) => refused.push(format!("{}: {}", name.display(), error.message())),
                }
            }
        }
    }
    println!("{usual} are within the usual bounds, {large} need a large plan");
    assert!(refused.is_empty(), "the gate refuses real modules:\n{}", refused.join("\n"));
}

/// What passes the gate must also survive its compilation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_people_ship_compiles_within_a_workers_limits() {
    let server = Server::start();
    large(&server).await;
    // A large one takes a core for ten seconds or more.
    let bytes = soak::either(300_000, usize::MAX);
    let modules = modules().into_iter().filter(|(_, wasm)| wasm.len() <= bytes).enumerate();
    server
        .share(2, modules, async |tenant, (n, (path, wasm))| {
            let component = carrier::beside(&wasm);
            // What needs a proposal that is switched off is refused for that.
            let expected = match carrier::validate(&component) {
                Ok(()) => StatusCode::CREATED,
                Err(_) => StatusCode::UNPROCESSABLE_ENTITY,
            };
            let answer = tenant.upload("real", carrier::named(component, "real", &format!("1.0.{n}"))).await;
            let status = answer.status();
            let told = answer.text().await.expect("text");
            if wasm.len() > DOUBTFUL_BYTES && told.contains("compile_limit") {
                println!("{}: {told}", path.display());
                return;
            }
            assert_eq!(status, expected, "{}: {told}", path.display());
            assert!(status.is_success() || told.contains("component_invalid"), "{}: {told}", path.display());
        })
        .await;
}

/// Give new tenants a plan for guests that carry an interpreter.
async fn large(server: &Server) {
    let plan = json!({ "component_bytes": 32 << 20, "memory_bytes": 256 << 20, "timeout_ms": 30_000,
        "fuel": 20_000_000_000_u64, "versions_per_plugin": 1_000 });
    expect(server.admin(Method::PUT, "/v1/plans/free").json(&plan), StatusCode::OK).await;
}

async fn a_plugin_written_in_javascript_answers(engine: Engine) {
    let folder = npm("real");
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("javascript-{engine:?}.wasm"));
    let mut tool = Command::new("node");
    tool.current_dir(&folder).args(["node_modules/componentize-qjs/bin/componentize-qjs", "--sync", "--stub-wasi"]);
    tool.args(["--world", "http-plugin", "--js", "greet.js", "--wit"]).arg(root().join("guest-sdk/wit"));
    packages::run(tool.arg("--output").arg(&made));
    greets(engine, "JavaScript", &made).await;
}

/// It passes the gate; that it answers is seen by `make soak`. Compiling an interpreter takes ten seconds of a core, which
/// the worker does not get within its minute while all the other tests run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_written_in_python_answers() {
    let tool = pip("real");
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python.wasm");
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", &tool).arg(tool.join("bin/componentize-py")).arg("-d").arg(root().join("guest-sdk/wit"));
    python.args(["-w", "http-plugin", "componentize", "--stub-wasi", "greet", "-o"]).arg(&made);
    packages::run(python.arg("-p").arg(root().join("tests/real")));
    let component = std::fs::read(&made).expect("it was just made");
    let found = inspect(&component, Class::Large, &interfaces()).expect("the gate lets it through");
    assert_eq!(found.triggers, ["http"]);
    if soak::on() {
        greets(Engine::Sqlite, "Python", &made).await;
    }
}

/// Deploy a plugin that counts its visits, and visit it.
async fn greets(engine: Engine, language: &str, component: &Path) {
    let server = engine.server().await;
    large(&server).await;
    let acme = server.tenant("acme").await;
    // Its tool imports all that the contract has, needed or not; and nothing may be imported of which nothing is granted.
    let manifest = r#"
        name = "greet"
        version = "1.0.0"
        [http]
        routes = ["ANY /{*rest}"]
        [grants]
        kv = ["visits"]
        config = ["unused"]
        meters = ["unused"]
        limits = ["unused"]
        flags = ["unused"]
        secrets = ["UNUSED"]
        egress = ["unused.example"]
    "#;
    let component = std::fs::read(component).expect("it was just made");
    let component = build::embed(component, &Manifest::from_toml(manifest).expect("a manifest")).expect("embedded");
    acme.deploy_bytes("greet", component).await;
    for visit in 1..=3 {
        let answer = acme.call(Method::GET, "greet", "/a/b").send().await.expect("an answer");
        let text = answer.text().await.expect("text");
        assert_eq!(text, format!("hello from {language} at /a/b, visit {visit}"));
    }
    let stored = acme.kv("visits", &language.to_lowercase()).await.expect("the counter is the tenant's");
    assert_eq!(stored, b"3");
}
