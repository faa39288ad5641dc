//! Other people's servers: how they come to be on this machine, and how they are started.
//!
//! A peer that cannot be had is no failure of ours: whoever asks for it is told why, and what would help. Rust programs
//! are built from the workspace `peers`, on demand and at the lowest priority, into the cache folder of `chalet build`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use chalet::cli::toolchain;

use crate::child::{self, free_port};
use crate::kit::guests::{component, root};

/// A server that Chalet is measured beside; each answers `hello` to `GET /`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// nginx: no sandbox, and no program behind it.
    Nginx,
    /// axum and wasmtime without a pipeline, tuned, with our own plugin: what a pipeline costs is what lies between.
    Plain,
    /// `wasmtime serve` with an instance a request.
    Wasmtime,
    /// `wasmtime serve` with instances that requests share.
    WasmtimeReused,
    /// workerd: an isolate that requests share.
    Workerd,
    /// Extism behind axum with a plugin a request.
    Extism,
    /// Extism behind axum with plugins that requests share.
    ExtismPooled,
}

/// Start it, and bring it here first where that is needed.
pub fn start(peer: Peer) -> Result<child::Server, String> {
    match peer {
        Peer::Nginx => nginx(),
        Peer::Workerd => workerd(),
        Peer::Plain => {
            let folder = cache()?;
            let plugin = folder.join("guest-hello.wasm");
            fs::write(&plugin, component("guest-hello")).map_err(|error| error.to_string())?;
            child::Server::that_says_where(Command::new(program("peer-plain")?).arg(plugin))
        }
        Peer::Wasmtime => wasmtime_serve(&[]),
        Peer::WasmtimeReused => wasmtime_serve(&["--max-instance-reuse-count", "1000000"]),
        Peer::Extism | Peer::ExtismPooled => {
            let how = if peer == Peer::Extism { "fresh" } else { "pooled" };
            let plugin = guest("peer-guest-extism", None)?;
            child::Server::that_says_where(Command::new(program("peer-extism")?).arg(how).arg(plugin))
        }
    }
}

/// The program of a package of the workspace `peers`, built when it is not yet.
pub fn program(package: &'static str) -> Result<PathBuf, String> {
    static ASKED: Mutex<BTreeMap<&str, Result<PathBuf, String>>> = Mutex::new(BTreeMap::new());
    let mut asked = ASKED.lock().expect("nobody panicked with the lock");
    let build = || {
        cargo(package, &["--release"], |_| {})?;
        Ok(cache()?.join("target/release").join(package))
    };
    asked.entry(package).or_insert_with(build).clone()
}

/// The same of a guest: a component if a linker makes one of it, or else a core module.
fn guest(package: &str, linker: Option<&str>) -> Result<PathBuf, String> {
    let sources = sources();
    let toolchain = toolchain::find(&sources).map_err(|error| error.to_string())?;
    cargo(package, &["--profile", "guest", "--target", toolchain::TARGET], |cargo| {
        if let Some(linker) = linker {
            cargo.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
        }
        if let Some(rustc) = &toolchain.rustc {
            cargo.env("RUSTC", rustc);
        }
    })?;
    let file = format!("target/{}/guest/{}.wasm", toolchain::TARGET, package.replace('-', "_"));
    Ok(cache()?.join(file))
}

fn cargo(package: &str, arguments: &[&str], set: impl Fn(&mut Command)) -> Result<(), String> {
    let mut cargo = Command::new("nice");
    cargo
        .args(["-n", "19", "cargo", "build", "--locked", "--package", package])
        .args(arguments)
        .current_dir(sources())
        .env("CARGO_TARGET_DIR", cache()?.join("target"))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    set(&mut cargo);
    let status = cargo.status().map_err(|error| format!("cargo does not start: {error}"))?;
    let remedy = format!("`cargo build --package {package}` in tests/benches/peers says why");
    if status.success() { Ok(()) } else { Err(format!("it does not build; {remedy}")) }
}

fn sources() -> PathBuf {
    root().join("tests/benches/peers")
}

/// Where what is built or fetched for this stays from run to run.
fn cache() -> Result<PathBuf, String> {
    let folder = toolchain::cache_folder().map_err(|error| error.to_string())?.join("bench");
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(folder)
}

/// A folder with a peer's files, PORT being replaced in its configuration.
fn configured(from: &str, file: &str, port: u16) -> Result<tempfile::TempDir, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    for entry in fs::read_dir(sources().join(from)).map_err(|error| error.to_string())?.flatten() {
        fs::copy(entry.path(), folder.path().join(entry.file_name())).map_err(|error| error.to_string())?;
    }
    let path = folder.path().join(file);
    let text = fs::read_to_string(&path).map_err(|error| error.to_string())?;
    fs::write(&path, text.replace("PORT", &port.to_string())).map_err(|error| error.to_string())?;
    Ok(folder)
}

fn nginx() -> Result<child::Server, String> {
    let port = free_port();
    let folder = configured("nginx", "nginx.conf", port)?;
    // Debian keeps it where an ordinary user does not look.
    let usual = Path::new("/usr/sbin/nginx");
    let mut command = Command::new(if usual.exists() { usual } else { Path::new("nginx") });
    command.arg("-p").arg(folder.path()).arg("-c").arg(folder.path().join("nginx.conf"));
    child::Server::on(port, &mut command, Some(folder)).map_err(|why| format!("{why}; install the package `nginx`"))
}

fn wasmtime_serve(how: &[&str]) -> Result<child::Server, String> {
    let component = guest("peer-guest-wasi", Some("wasm-component-ld"))?;
    let port = free_port();
    let mut command = Command::new(program("peer-wasmtime-serve")?);
    command.args(["--addr", &format!("127.0.0.1:{port}")]).args(how).arg(component);
    child::Server::on(port, &mut command, None)
}

fn workerd() -> Result<child::Server, String> {
    let folder = cache()?.join("workerd");
    fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let locked = ["package.json", "package-lock.json", ".npmrc"];
    let wanted = |file: &str| sources().join("workerd").join(file);
    // Written last, and removed by npm with all the rest before it installs.
    let mark = folder.join("node_modules/.installed-lock.json");
    let lock = fs::read(wanted("package-lock.json")).map_err(|error| error.to_string())?;
    if fs::read(&mark).map_or(true, |installed| installed != lock) {
        for file in locked {
            fs::copy(wanted(file), folder.join(file)).map_err(|error| error.to_string())?;
        }
        let npm = Command::new("npm").args(["ci", "--loglevel=error"]).current_dir(&folder).output();
        let npm = npm.map_err(|error| format!("npm does not start ({error}); install the package `npm`"))?;
        if !npm.status.success() {
            let said = String::from_utf8_lossy(&npm.stderr).into_owned();
            return Err(format!("npm ci failed: {}", said.lines().last().unwrap_or_default()));
        }
        fs::write(&mark, lock).map_err(|error| error.to_string())?;
    }
    // The package brings one program for each kind of machine; npm has installed the one for this.
    let programs = fs::read_dir(folder.join("node_modules/@cloudflare")).map_err(|error| error.to_string())?;
    let program = programs.flatten().map(|entry| entry.path().join("bin/workerd")).find(|path| path.exists());
    let program = program.ok_or("the npm package `workerd` has no program for this machine")?;
    let port = free_port();
    let folder = configured("workerd", "config.capnp", port)?;
    child::Server::on(port, Command::new(program).arg("serve").arg(folder.path().join("config.capnp")), Some(folder))
}
