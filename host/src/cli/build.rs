//! `chalet build`: compiles a plugin's crate to a component and puts its manifest into it.
//!
//! The crate may stand alone or be a member of a workspace, whose own profiles and flags have no say: a guest is built in
//! a profile of its own, with the linker that makes components, a small stack, and a first piece of heap inside the
//! memory that an instance starts with. The result is one file, which is either the old one or the new one, never half
//! of it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use serde::Deserialize;
use wasmparser::{Parser, Payload};

use super::client::Connection;
use super::terminal::{bytes, say, say_json};
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

/// Compile a plugin to a component and put its manifest into it.
#[derive(Debug, Args)]
pub(super) struct Build {
    /// The folder of the plugin's crate.
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Where to write the component, if not to target/chalet/NAME.wasm.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Make it small rather than fast.
    #[arg(long)]
    small: bool,
    /// Fail if Cargo.lock would change.
    #[arg(long)]
    locked: bool,
}

impl Build {
    pub(super) fn run(self, connection: &Connection) -> super::Result<()> {
        let optimise = if self.small { Optimise::Size } else { Optimise::Speed };
        let built = build(&self.path, &Options { optimise, locked: self.locked, output: self.output })?;
        if connection.json {
            say_json(&serde_json::json!({
                "plugin": built.manifest.name,
                "version": built.manifest.version,
                "component": built.component,
                "size": built.size_bytes,
                "toolchain": built.toolchain,
            }));
        } else {
            let Manifest { name, version, .. } = &built.manifest;
            say(format!("{name} {version}: {} ({})", built.component.display(), bytes(built.size_bytes)));
        }
        Ok(())
    }
}

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
            BuildError::NoPlugin(reason) | BuildError::Compile(reason) | BuildError::File(reason) => {
                f.write_str(reason)
            }
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
    let folder =
        fs::canonicalize(path).map_err(|error| BuildError::NoPlugin(format!("{}: {error}", path.display())))?;
    let manifest = read_manifest(&folder)?;
    let workspace = Workspace::at(&folder)?;
    let Some(member) = workspace.members.iter().find(|member| member.folder == folder) else {
        return Err(BuildError::NoPlugin(format!("{} has no Cargo.toml with a package in it", folder.display())));
    };
    let plugin = Plugin { member, manifest };
    let mut built = make(&folder, &workspace, vec![plugin], options)?;
    built.pop().ok_or_else(|| BuildError::Compile("cargo made nothing".to_owned()))
}

/// Build every member of the workspace at `path` that has a `plugin.toml`, by one call of cargo.
///
/// # Errors
/// One [`BuildError`]; also if there is no such member, or an output is named, which could hold only one of them.
pub fn build_all(path: &Path, options: &Options) -> Result<Vec<Built>> {
    let folder =
        fs::canonicalize(path).map_err(|error| BuildError::NoPlugin(format!("{}: {error}", path.display())))?;
    if options.output.is_some() {
        return Err(BuildError::NoPlugin("one output cannot hold several plugins; name none".to_owned()));
    }
    let workspace = Workspace::at(&folder)?;
    let plugins = workspace
        .members
        .iter()
        .filter(|member| member.folder.join("plugin.toml").exists())
        .map(|member| Ok(Plugin { member, manifest: read_manifest(&member.folder)? }))
        .collect::<Result<Vec<_>>>()?;
    if plugins.is_empty() {
        return Err(BuildError::NoPlugin(format!(
            "no crate of the workspace at {} has a plugin.toml",
            folder.display()
        )));
    }
    make(&folder, &workspace, plugins, options)
}

/// A crate that is to become a component, with what it will carry.
struct Plugin<'a> {
    member: &'a Member,
    manifest: Manifest,
}

/// Compile the plugins together, then finish each.
fn make(folder: &Path, workspace: &Workspace, plugins: Vec<Plugin<'_>>, options: &Options) -> Result<Vec<Built>> {
    for Plugin { member, .. } in &plugins {
        if !member.makes_component {
            return Err(BuildError::NoPlugin(format!(
                "the crate {} makes no component; put this into its Cargo.toml:\n[lib]\ncrate-type = [\"cdylib\", \"lib\"]",
                member.name
            )));
        }
    }
    let toolchain = toolchain::find(folder).map_err(BuildError::Toolchain)?;
    let members: Vec<_> = plugins.iter().map(|plugin| plugin.member).collect();
    let mut made = compile(folder, &members, &toolchain, options)?;
    let mut built = Vec::with_capacity(plugins.len());
    for Plugin { member, manifest } in plugins {
        let linked = made
            .remove(&member.id)
            .ok_or_else(|| BuildError::Compile(format!("cargo made no .wasm file of {}", member.name)))?;
        let component =
            fs::read(&linked).map_err(|error| BuildError::File(format!("{}: {error}", linked.display())))?;
        let component = embed(component, &manifest)?;
        let output = match &options.output {
            Some(output) => output.clone(),
            None => workspace.target_directory.join("chalet").join(format!("{}.wasm", manifest.name)),
        };
        replace(&output, &component)?;
        let size_bytes = component.len() as u64;
        built.push(Built { component: output, manifest, size_bytes, toolchain: toolchain.to_string() });
    }
    Ok(built)
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

/// The same component with another manifest.
///
/// # Errors
/// If the bytes are no component.
pub fn embed_instead(component: &[u8], manifest: &Manifest) -> Result<Vec<u8>> {
    let refused = |error: wasmparser::BinaryReaderError| BuildError::NoPlugin(format!("this is no component: {error}"));
    let (mut without, mut copied, mut last, mut depth) = (Vec::with_capacity(component.len()), 0, 0, 0_u32);
    for payload in Parser::new(0).parse_all(component) {
        let payload = payload.map_err(refused)?;
        match &payload {
            Payload::Version { range, .. } => {
                depth += 1;
                if depth == 1 {
                    last = range.end;
                }
            }
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::CustomSection(section) if depth == 1 && section.name() == manifest::SECTION => {
                // From the end of the section before, so that its header goes too.
                without.extend_from_slice(&component[copied..last]);
                copied = section.range().end;
            }
            _ => {}
        }
        if let Some((_, range)) = payload.as_section()
            && depth == 1
        {
            last = range.end;
        }
    }
    without.extend_from_slice(&component[copied..]);
    embed(without, manifest)
}

/// What cargo says about a workspace; a crate that stands alone is a workspace of one.
struct Workspace {
    members: Vec<Member>,
    target_directory: PathBuf,
}

struct Member {
    /// What tells it from others of its name.
    id: String,
    name: String,
    folder: PathBuf,
    /// True if its crate types have cdylib.
    makes_component: bool,
}

impl Workspace {
    fn at(folder: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Metadata {
            packages: Vec<Package>,
            target_directory: PathBuf,
        }
        #[derive(Deserialize)]
        struct Package {
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
        let member = |package: Package| {
            let folder = fs::canonicalize(package.manifest_path.parent()?).ok()?;
            let makes_component =
                package.targets.iter().any(|target| target.crate_types.iter().any(|kind| kind == "cdylib"));
            Some(Member { id: package.id, name: package.name, folder, makes_component })
        };
        let members = metadata.packages.into_iter().filter_map(member).collect();
        Ok(Self { members, target_directory: metadata.target_directory })
    }
}

/// Run cargo and return the component that it linked of each crate, by the crate's id.
fn compile(
    folder: &Path,
    members: &[&Member],
    toolchain: &toolchain::Toolchain,
    options: &Options,
) -> Result<BTreeMap<String, PathBuf>> {
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
    let mut flags = vec![
        "-Clink-arg=-zstack-size=".to_owned() + &STACK_BYTES.to_string(),
        "-Clink-arg=--initial-heap=".to_owned() + &HEAP_BYTES.to_string(),
        // getrandom 0.3 and 0.4 then call what chalet-sdk defines; others do not look at it.
        "--cfg=getrandom_backend=\"custom\"".to_owned(),
    ];
    // Cargo looks at the compiler only: what was compiled with another standard library would count as fresh.
    flags.extend(toolchain.standard.iter().map(|digest| format!("--cfg=chalet_standard=\"{digest}\"")));
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--lib", "--target", TARGET, "--profile", PROFILE])
        .args(members.iter().flat_map(|member| ["--package", &member.id]))
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
    let mut made = BTreeMap::new();
    for line in messages.lines() {
        let line = line.map_err(|error| BuildError::Compile(format!("cargo: {error}")))?;
        // Build scripts may print lines of their own; what is no message of cargo's is not for us.
        let Ok(message) = serde_json::from_str::<Message>(&line) else { continue };
        if message.reason == "compiler-artifact" {
            let is_wasm = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "wasm");
            if let Some(file) = message.filenames.into_iter().find(is_wasm) {
                made.insert(message.package_id, file);
            }
        }
    }
    let status = running.wait().map_err(|error| BuildError::Compile(format!("cargo: {error}")))?;
    if !status.success() {
        let names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
        return Err(BuildError::Compile(format!("{} did not compile; the reasons are above", names.join(", "))));
    }
    Ok(made)
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
    fn another_manifest_takes_the_place_of_the_first() {
        let mut component = wasm_encoder::Component::new();
        component.section(&wasm_encoder::ModuleSection(&wasm_encoder::Module::new()));
        let mut other = manifest();
        other.version = "0.2.0-dev.1+x".parse().unwrap();
        let built = embed(component.finish(), &manifest()).unwrap();
        let again = embed_instead(&built, &other).unwrap();
        assert_eq!(Manifest::from_component(&again).unwrap(), other);
        assert_eq!(embed_instead(&again, &manifest()).unwrap(), built);
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
