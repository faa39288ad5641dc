//! `chalet build`: compiles a plugin's crate to a component and puts its manifest into it.
//!
//! The crate may stand alone or be a member of a workspace, whose own profiles and flags have no say: a guest is built in
//! a profile of its own, with the linker that makes components, a small stack, and a first piece of heap inside the
//! memory that an instance starts with. The result is one file, which is either the old one or the new one, never half
//! of it.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::toolchain::{self, LINKER, TARGET, ToolchainError};
use crate::services::plugins::manifest::{self, Manifest, ManifestError};

/// The guest's stack, in bytes. A fresh instance pays for every page it touches; serde_json at its deepest needs half
/// of this. A plugin that recurses deeper than it allows traps.
const STACK_BYTES: u32 = 64 * 1024;

/// Heap inside the memory that an instance starts with, in bytes: what a usual call allocates, so that it never grows its
/// memory. With stack and data it makes 256 KiB, which the host keeps resident between calls.
const HEAP_BYTES: u32 = 128 * 1024;

/// The profile's name; its files do not mix with those of `cargo build --release`.
const PROFILE: &str = "chalet";

/// How to build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// What to optimise for.
    pub optimise: Optimise,
    /// Fail if `Cargo.lock` would change.
    pub locked: bool,
    /// Where to write the component; `None` is `target/chalet/NAME.wasm`.
    pub output: Option<PathBuf>,
}

/// What a component is optimised for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Optimise {
    /// Fast calls.
    #[default]
    Speed,
    /// Few bytes, which are also compiled and mapped sooner.
    Size,
}

/// A plugin that was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The component's file.
    pub component: PathBuf,
    /// What it carries.
    pub manifest: Manifest,
    /// The component's length.
    pub size_bytes: u64,
    /// The compiler that made it and how it was found, for people.
    pub toolchain: String,
}

/// Why a plugin was not built; the text says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildError {
    /// There is no way to compile guests on this machine.
    Toolchain(ToolchainError),
    /// `plugin.toml` is refused.
    Manifest(ManifestError),
    /// The path holds no plugin's crate.
    NoPlugin(String),
    /// The compiler refused the source; it has said why on stderr.
    Compile(String),
    /// A file could not be read or written.
    File(String),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BuildError::Toolchain(error) => error.fmt(f),
            BuildError::Manifest(error) => error.fmt(f),
            BuildError::NoPlugin(reason) | BuildError::Compile(reason) | BuildError::File(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for BuildError {}

type Result<T, E = BuildError> = std::result::Result<T, E>;

/// Build the plugin whose crate is in the folder `path`.
///
/// The compiler's messages and progress go to stderr. It may take minutes at the first build on a machine; see
/// [`toolchain::find`].
///
/// # Errors
/// One [`BuildError`]; an older component stays as it was.
pub fn build(path: &Path, options: &Options) -> Result<Built> {
    let folder = fs::canonicalize(path).map_err(|error| BuildError::NoPlugin(format!("{}: {error}", path.display())))?;
    let manifest = read_manifest(&folder)?;
    let package = package(&folder)?;
    let toolchain = toolchain::find(&folder).map_err(BuildError::Toolchain)?;
    let made = compile(&folder, &package, &toolchain, options)?;
    let component = fs::read(&made).map_err(|error| BuildError::File(format!("{}: {error}", made.display())))?;
    let component = embed(component, &manifest)?;

    let output = match &options.output {
        Some(output) => output.clone(),
        None => package.target_directory.join("chalet").join(format!("{}.wasm", manifest.name)),
    };
    replace(&output, &component)?;
    Ok(Built { component: output, manifest, size_bytes: component.len() as u64, toolchain: toolchain.to_string() })
}

/// Read and check `plugin.toml` in a crate's folder.
///
/// # Errors
/// If there is none, or it is refused.
pub fn read_manifest(folder: &Path) -> Result<Manifest> {
    let path = folder.join("plugin.toml");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(BuildError::NoPlugin(format!(
                "{} has no plugin.toml; give the folder of a plugin's crate, or make one with `chalet new NAME`",
                folder.display()
            )));
        }
        Err(error) => return Err(BuildError::File(format!("{}: {error}", path.display()))),
    };
    Manifest::from_toml(&text).map_err(BuildError::Manifest)
}

/// A component with the manifest as its last section.
///
/// # Errors
/// If the bytes are no component, or carry a manifest already.
pub fn embed(mut component: Vec<u8>, manifest: &Manifest) -> Result<Vec<u8>> {
    use wasm_encoder::ComponentSection;
    let section = wasm_encoder::CustomSection { name: manifest::SECTION.into(), data: manifest.to_json().into() };
    section.append_to_component(&mut component);
    // Reading it back refuses what is no component and what had a manifest before.
    match Manifest::from_component(&component) {
        Ok(_) => Ok(component),
        Err(error) => Err(BuildError::Manifest(error)),
    }
}

/// What cargo says about the crate.
struct Package {
    /// Its name and version in the form that tells it from others of the name.
    id: String,
    name: String,
    target_directory: PathBuf,
}

fn package(folder: &Path) -> Result<Package> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Member>,
        target_directory: PathBuf,
    }
    #[derive(Deserialize)]
    struct Member {
        id: String,
        name: String,
        manifest_path: PathBuf,
        targets: Vec<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        crate_types: Vec<String>,
    }
    let output = Command::new("cargo")
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| BuildError::NoPlugin(format!("cargo: {error}; install Rust from https://rustup.rs")))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        return Err(BuildError::NoPlugin(format!("{}: {}", folder.display(), reason.trim())));
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout)
        .map_err(|error| BuildError::NoPlugin(format!("cargo metadata is not understood: {error}")))?;
    let manifest_path = folder.join("Cargo.toml");
    let is_here = |member: &Member| fs::canonicalize(&member.manifest_path).is_ok_and(|path| path == manifest_path);
    let Some(member) = metadata.packages.into_iter().find(is_here) else {
        return Err(BuildError::NoPlugin(format!("{} has no Cargo.toml with a package in it", folder.display())));
    };
    if !member.targets.iter().any(|target| target.crate_types.iter().any(|kind| kind == "cdylib")) {
        return Err(BuildError::NoPlugin(format!(
            "the crate {} makes no component; put this into its Cargo.toml:\n[lib]\ncrate-type = [\"cdylib\", \"lib\"]",
            member.name
        )));
    }
    Ok(Package { id: member.id, name: member.name, target_directory: metadata.target_directory })
}

/// Run cargo and return the component that it linked.
fn compile(
    folder: &Path,
    package: &Package,
    toolchain: &toolchain::Toolchain,
    options: &Options,
) -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        reason: String,
        #[serde(default)]
        package_id: String,
        #[serde(default)]
        filenames: Vec<PathBuf>,
    }
    let opt_level = match options.optimise {
        Optimise::Speed => "3",
        Optimise::Size => "\"s\"",
    };
    let flags = [
        "-Clink-arg=-zstack-size=".to_owned() + &STACK_BYTES.to_string(),
        "-Clink-arg=--initial-heap=".to_owned() + &HEAP_BYTES.to_string(),
        // getrandom 0.3 and 0.4 then call what chalet-sdk defines; others do not look at it.
        "--cfg=getrandom_backend=\"custom\"".to_owned(),
    ];
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--lib", "--target", TARGET, "--profile", PROFILE, "--package", &package.id])
        .arg("--message-format=json-render-diagnostics")
        .args(["--config", &format!("profile.{PROFILE}.inherits='release'")])
        .args(["--config", &format!("profile.{PROFILE}.opt-level={opt_level}")])
        .args(["--config", &format!("profile.{PROFILE}.lto=true")])
        .args(["--config", &format!("profile.{PROFILE}.codegen-units=1")])
        .args(["--config", &format!("profile.{PROFILE}.panic='abort'")])
        .args(["--config", &format!("profile.{PROFILE}.debug=false")])
        // Functions keep their names, so that a trap can say where it was.
        .args(["--config", &format!("profile.{PROFILE}.strip='debuginfo'")])
        .current_dir(folder)
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", LINKER)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        // A build for the machine itself may run around this one; its flags are not for guests.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    if options.locked {
        cargo.arg("--locked");
    }
    if let Some(rustc) = &toolchain.rustc {
        cargo.env("RUSTC", rustc);
    }
    let mut running = cargo.spawn().map_err(|error| BuildError::Compile(format!("cargo: {error}")))?;
    let messages = BufReader::new(running.stdout.take().expect("it was asked for"));
    let mut made = None;
    for line in messages.lines() {
        let line = line.map_err(|error| BuildError::Compile(format!("cargo: {error}")))?;
        // Build scripts may print lines of their own; what is no message of cargo's is not for us.
        let Ok(message) = serde_json::from_str::<Message>(&line) else { continue };
        if message.reason == "compiler-artifact" && message.package_id == package.id {
            let is_wasm = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "wasm");
            made = message.filenames.into_iter().find(is_wasm).or(made);
        }
    }
    let status = running.wait().map_err(|error| BuildError::Compile(format!("cargo: {error}")))?;
    if !status.success() {
        return Err(BuildError::Compile(format!("{} does not compile; the reasons are above", package.name)));
    }
    made.ok_or_else(|| BuildError::Compile(format!("cargo made no .wasm file of {}", package.name)))
}

/// Write a file so that a reader sees the old one or the new one.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |error: std::io::Error| BuildError::File(format!("{}: {error}", path.display()));
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", std::process::id()));
    fs::write(&beside, bytes).map_err(failed)?;
    fs::rename(&beside, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest::from_toml("name = \"a\"\nversion = \"0.1.0\"").unwrap()
    }

    #[test]
    fn a_manifest_is_embedded_once() {
        let component = wasm_encoder::Component::new().finish();
        let built = embed(component, &manifest()).unwrap();
        assert_eq!(Manifest::from_component(&built).unwrap(), manifest());
        let error = embed(built, &manifest()).unwrap_err().to_string();
        assert!(error.contains("two sections"), "{error}");
    }

    #[test]
    fn a_core_module_is_no_component() {
        assert!(embed(wasm_encoder::Module::new().finish(), &manifest()).is_err());
    }

    #[test]
    fn a_folder_without_a_plugin_is_refused_with_the_way_on() {
        let error = build(Path::new("/"), &Options::default()).unwrap_err();
        assert!(matches!(&error, BuildError::NoPlugin(reason) if reason.contains("chalet new")), "{error}");
    }
}
