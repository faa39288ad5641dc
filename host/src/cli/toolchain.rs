//! Finds a way to compile guests on this machine, and prepares one where there is none.
//!
//! In this order: the compiler in use has the target's standard library; a compiler that an earlier run prepared in the
//! cache folder, which it did because rustup could not help; `rustup target add`, unless `CHALET_RUSTUP=never`; on Debian
//! and Ubuntu, a compiler that is prepared now from the distribution's packages, with the standard library built once. Nothing is installed
//! system-wide and no root is needed: the packages are downloaded and unpacked below the cache folder, which two runs
//! never prepare at once and which another run sees whole or not at all.
//!
//! It leaves out `wasm32-wasip2`: guests of this project target `wasm32-unknown-unknown`.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

/// What guests are compiled for.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// The linker that makes a component of it; rustc brings it along and finds it by name.
pub const LINKER: &str = "wasm-component-ld";

/// The oldest compiler that the SDK is tested with, major and minor.
const OLDEST: (u32, u32) = (1, 95);

/// How long `rustup target add` may take: a slow line loads 20 MB in it.
const RUSTUP_TIMEOUT: Duration = Duration::from_secs(180);

/// Raised when what is prepared changes, so that a newer `chalet` does not use an older one's.
const LAYOUT: &str = "2";

/// A way to compile guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    /// What to set as `RUSTC`; `None` is the compiler that cargo finds itself.
    pub rustc: Option<PathBuf>,
    /// How it came about.
    pub way: Way,
    /// What it calls itself, as in `rustc 1.95.0 (…)`.
    pub version: String,
    /// A digest of the standard library for guests, if it was built on this machine and not with the compiler.
    pub standard: Option<String>,
}

/// How a toolchain came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The compiler in use has the target.
    Installed,
    /// `rustup target add` added it.
    Rustup,
    /// It was prepared in the cache folder.
    Prepared,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.way {
            Way::Installed => "installed target",
            Way::Rustup => "rustup target add",
            Way::Prepared => "prepared toolchain",
        };
        write!(f, "{}, {way}", self.version)
    }
}

/// What `chalet doctor` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Guests can be compiled now.
    Ready(Toolchain),
    /// The next build prepares a way; the text says which and what it costs.
    Preparable(String),
    /// Guests cannot be compiled; the text names the remedies.
    Missing(String),
}

/// Why no way to compile guests was found: a text for the user that names the remedies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolchainError(String);

impl fmt::Display for ToolchainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ToolchainError {}

type Result<T, E = ToolchainError> = std::result::Result<T, E>;

fn fail<T>(reason: impl Into<String>) -> Result<T> {
    Err(ToolchainError(reason.into()))
}

/// Find a way to compile the crate in `directory`, and prepare one if there is none: seconds to two minutes, with lines
/// on stderr about what is done.
///
/// # Errors
/// If there is none and none can be prepared; the text names the remedies.
pub fn find(directory: &Path) -> Result<Toolchain> {
    if let Some(toolchain) = installed(directory) {
        return Ok(toolchain);
    }
    if let Some(toolchain) = cache_folder().ok().and_then(|cache| prepared(&cache)) {
        return Ok(toolchain);
    }
    let mut reasons = Vec::new();
    if rustup_allowed() {
        match add_by_rustup(directory) {
            Ok(toolchain) => return Ok(toolchain),
            Err(reason) => reasons.push(format!("rustup: {reason}")),
        }
    } else {
        reasons.push("rustup: turned off by CHALET_RUSTUP=never or RUSTC".to_owned());
    }
    match prepare() {
        Ok(toolchain) => Ok(toolchain),
        Err(reason) => {
            reasons.push(format!("distribution packages: {reason}"));
            fail(remedies(&reasons))
        }
    }
}

/// What a build would use now, without changing anything.
pub fn status() -> Status {
    let here = Path::new(".");
    if let Some(toolchain) = installed(here) {
        return Status::Ready(toolchain);
    }
    if let Some(toolchain) = cache_folder().ok().and_then(|cache| prepared(&cache)) {
        return Status::Ready(toolchain);
    }
    if rustup_allowed() && works("rustup", "--version") {
        return Status::Preparable(format!("`rustup target add {TARGET}` at the first build, some seconds"));
    }
    match Debian::here() {
        Ok(_) => Status::Preparable(
            "from the distribution's packages at the first build: 140 MB, about two minutes".to_owned(),
        ),
        Err(reason) => Status::Missing(remedies(&[format!("distribution packages: {reason}")])),
    }
}

fn remedies(reasons: &[String]) -> String {
    format!(
        "no way to compile guests for {TARGET} was found.\n  {}\nDo one of these:\n  \
         - `rustup target add {TARGET}` (and do not set CHALET_RUSTUP=never)\n  \
         - install your distribution's Rust {}.{} or newer with its {TARGET} standard library\n  \
         - on Debian or Ubuntu, let apt reach its package archive, and build again\n  \
         - set RUSTC to a compiler that has the target",
        reasons.join("\n  "),
        OLDEST.0,
        OLDEST.1,
    )
}

/// The compiler in use, if it has the target's standard library. It is asked in the crate's folder, since a
/// `rust-toolchain.toml` there may choose another.
fn installed(directory: &Path) -> Option<Toolchain> {
    let chosen = std::env::var_os("RUSTC").filter(|rustc| !rustc.is_empty());
    let rustc = chosen.clone().unwrap_or_else(|| "rustc".into());
    let version = usable(&rustc, directory)?;
    Some(Toolchain { rustc: chosen.map(Into::into), way: Way::Installed, version, standard: None })
}

/// The compiler's version if it has the target's standard library. The compiler itself is asked, not rustup: that is
/// right for distributions' packages too.
fn usable(rustc: &OsString, directory: &Path) -> Option<String> {
    let ask = |arguments: &[&str]| {
        let output = Command::new(rustc).args(arguments).current_dir(directory).stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let libraries = ask(&["--print", "target-libdir", "--target", TARGET])?;
    let is_std = |entry: fs::DirEntry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libstd-") && name.ends_with(".rlib")
    };
    fs::read_dir(libraries).ok()?.flatten().any(is_std).then(|| ask(&["--version"]))?
}

fn rustup_allowed() -> bool {
    std::env::var_os("CHALET_RUSTUP").is_none_or(|value| value != "never") && std::env::var_os("RUSTC").is_none()
}

fn works(program: &str, argument: &str) -> bool {
    let status =
        Command::new(program).arg(argument).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn add_by_rustup(directory: &Path) -> Result<Toolchain> {
    if !works("rustup", "--version") {
        return fail("it is not installed");
    }
    say(&format!("adding the target {TARGET} by rustup"));
    let mut child = Command::new("rustup")
        .args(["target", "add", TARGET])
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| ToolchainError(error.to_string()))?;
    let errors = child.stderr.take().expect("it was asked for");
    // Read on a thread of its own, so that rustup never waits for a full pipe while this waits for rustup.
    let last_line = std::thread::spawn(move || BufReader::new(errors).lines().map_while(|line| line.ok()).last());
    let started = Instant::now();
    let status = loop {
        match child.try_wait().map_err(|error| ToolchainError(error.to_string()))? {
            Some(status) => break status,
            None if started.elapsed() > RUSTUP_TIMEOUT => {
                // It may end by itself just now; either way it is gone after the wait.
                let _ = child.kill();
                let _ = child.wait();
                return fail(format!("`rustup target add` did not end within {} s", RUSTUP_TIMEOUT.as_secs()));
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let said = last_line.join().ok().flatten().unwrap_or_default();
    match usable(&"rustc".into(), directory) {
        Some(version) if status.success() => Ok(Toolchain { rustc: None, way: Way::Rustup, version, standard: None }),
        _ => fail(format!("`rustup target add` failed: {said}")),
    }
}

/// `$CHALET_CACHE`, `$XDG_CACHE_HOME/chalet` or `~/.cache/chalet`.
///
/// # Errors
/// If none of the variables is set.
pub fn cache_folder() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = variable("CHALET_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("chalet")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/chalet")));
    match folder {
        Some(folder) => std::path::absolute(folder).map_err(|error| ToolchainError(error.to_string())),
        None => fail("there is no cache folder; set CHALET_CACHE"),
    }
}

fn prepared_folder(cache: &Path) -> PathBuf {
    cache.join("rust-wasm")
}

/// What an earlier run prepared, if it is whole and works.
fn prepared(cache: &Path) -> Option<Toolchain> {
    let folder = prepared_folder(cache);
    if fs::read_to_string(folder.join("layout")).ok()? != LAYOUT {
        return None;
    }
    let standard = fs::read_to_string(folder.join("standard")).ok()?;
    let rustc = folder.join("bin/rustc");
    let version = usable(&rustc.clone().into(), Path::new("."))?;
    Some(Toolchain { rustc: Some(rustc), way: Way::Prepared, version, standard: Some(standard) })
}

/// Prepare a compiler in the cache folder, or wait for the run that does.
fn prepare() -> Result<Toolchain> {
    let cache = cache_folder()?;
    let debian = Debian::here()?;
    let io = |error: std::io::Error| ToolchainError(format!("{}: {error}", cache.display()));
    fs::create_dir_all(&cache).map_err(io)?;
    let lock = File::create(cache.join("rust-wasm.lock")).map_err(io)?;
    if lock.try_lock().is_err() {
        say("waiting for another build that prepares the compiler");
        lock.lock().map_err(io)?;
    }
    // Another process may have prepared it while this one waited.
    if let Some(toolchain) = prepared(&cache) {
        return Ok(toolchain);
    }
    let started = Instant::now();
    // What a killed run left is removed by the next, which holds the lock now.
    let work = cache.join("rust-wasm.work");
    remove(&work).map_err(io)?;
    let made = debian.prepare(&work);
    let made = made.and_then(|prefix| {
        let folder = prepared_folder(&cache);
        remove(&folder).map_err(io)?;
        fs::rename(prefix, folder).map_err(io)
    });
    remove(&work).map_err(io)?;
    made?;
    say(&format!("the compiler is ready in {} ({} s)", prepared_folder(&cache).display(), started.elapsed().as_secs()));
    prepared(&cache).ok_or_else(|| ToolchainError("the prepared compiler does not run".to_owned()))
}

fn remove(folder: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A line about what is being done.
fn say(line: &str) {
    // Progress is a courtesy: that stderr is closed must not end a build.
    let _ = writeln!(std::io::stderr(), "chalet: {line}");
}

/// Debian and its relatives on a 64-bit machine: apt-get and dpkg-deb, and what their names of it are.
struct Debian {
    /// Rust's name of this machine.
    host: &'static str,
    /// Debian's folder of this machine's libraries.
    libraries: &'static str,
}

/// Where apt keeps its lists; a set of its own lets anybody update them.
struct Apt {
    options: Vec<OsString>,
}

impl Debian {
    fn here() -> Result<Self> {
        let (host, libraries) = match (std::env::consts::OS, std::env::consts::ARCH) {
            ("linux", "x86_64") => ("x86_64-unknown-linux-gnu", "x86_64-linux-gnu"),
            ("linux", "aarch64") => ("aarch64-unknown-linux-gnu", "aarch64-linux-gnu"),
            (system, machine) => return fail(format!("there are none for {machine} {system}")),
        };
        for program in ["apt-get", "apt-cache", "dpkg-deb"] {
            if !works(program, "--version") {
                return fail(format!("this is no Debian or Ubuntu: there is no {program}"));
            }
        }
        if !works("cargo", "--version") {
            return fail("there is no cargo; install Rust from https://rustup.rs");
        }
        Ok(Self { host, libraries })
    }

    /// Makes the compiler below `work` and returns its folder, which may be moved.
    fn prepare(&self, work: &Path) -> Result<PathBuf> {
        let prefix = work.join("prefix");
        let debs = work.join("debs");
        for folder in [&prefix, &debs] {
            fs::create_dir_all(folder).map_err(|error| ToolchainError(format!("{}: {error}", folder.display())))?;
        }
        let (apt, version) = self.choose(work)?;
        say(&format!("preparing a compiler for {TARGET} from rustc-web {version} (once; 140 MB, about two minutes)"));
        // Two of the packages carry a version in their names: they are read from what needs them.
        let standard = apt.dependency("libstd-rust-web-dev", &version, "libstd-rust-web-")?;
        let llvm = apt.dependency(&standard, &version, "libllvm")?;
        say("downloading packages");
        let mut download = vec!["download".to_owned()];
        download.extend(
            ["rustc-web", "rust-web-src", "libstd-rust-web-dev", standard.as_str()]
                .map(|name| format!("{name}={version}")),
        );
        download.push(llvm.clone());
        apt.get(&download, &debs)?;
        say("unpacking");
        self.unpack(&debs, &prefix)?;
        self.wrap(&prefix, "rustc")?;
        self.link(&apt, &llvm, &debs, &prefix)?;
        say(&format!("building the standard library for {TARGET}"));
        self.build_std(&prefix, &work.join("std"))?;
        write(&prefix.join("layout"), LAYOUT)?;
        Ok(prefix)
    }

    /// The newest compiler that apt knows. If that is none or too old, apt's lists are stale: they are fetched into a
    /// folder of our own, for which nobody needs to be root.
    fn choose(&self, work: &Path) -> Result<(Apt, String)> {
        let system = Apt { options: Vec::new() };
        if let Some(version) = system.candidate()? {
            return Ok((system, version));
        }
        let state = work.join("apt");
        for folder in ["lists/partial", "cache/archives/partial"] {
            let folder = state.join(folder);
            fs::create_dir_all(&folder).map_err(|error| ToolchainError(format!("{}: {error}", folder.display())))?;
        }
        let option = |name: &str, folder: &str| {
            let mut option = OsString::from(format!("{name}="));
            option.push(state.join(folder));
            option
        };
        let own = Apt {
            options: vec![
                "-o".into(),
                option("Dir::State::Lists", "lists"),
                "-o".into(),
                option("Dir::Cache", "cache"),
            ],
        };
        say("fetching the lists of the distribution's packages");
        own.get(&["update".to_owned()], work)?;
        match own.candidate()? {
            Some(version) => Ok((own, version)),
            None => fail(format!("they have no rustc-web of {}.{} or newer", OLDEST.0, OLDEST.1)),
        }
    }

    fn unpack(&self, debs: &Path, prefix: &Path) -> Result<()> {
        let entries = fs::read_dir(debs).map_err(|error| ToolchainError(format!("{}: {error}", debs.display())))?;
        for entry in entries.flatten() {
            let source = entry.file_name().to_string_lossy().starts_with("rust-web-src_");
            // The source unpacks to 342 MB, of which only the library and the link to it are needed.
            let select: &[&str] = if source {
                &["--wildcards", "./usr/src/*/library", "./usr/lib/rustlib/src"]
            } else {
                &["--exclude=./usr/share"]
            };
            unpack(&entry.path(), prefix, select)?;
        }
        Ok(())
    }

    /// A script `bin/NAME` that runs `usr/bin/NAME` with its own libraries, wherever the folder is moved to.
    fn wrap(&self, prefix: &Path, name: &str) -> Result<()> {
        let script = format!(
            "#!/bin/sh\nD=$(dirname \"$(dirname \"$(readlink -f \"$0\")\")\")/usr\n\
             LD_LIBRARY_PATH=$D/lib/{}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}} exec \"$D/bin/{name}\" \"$@\"\n",
            self.libraries
        );
        write_script(&prefix.join("bin").join(name), &script)
    }

    /// Puts the linker where this compiler looks for it. Rust's own distribution brings `rust-lld` and
    /// `wasm-component-ld` along even without the target; they are copied, since an update would remove them.
    fn link(&self, apt: &Apt, llvm: &str, debs: &Path, prefix: &Path) -> Result<()> {
        let bin = |root: &Path| root.join("lib/rustlib").join(self.host).join("bin");
        let to = bin(&prefix.join("usr"));
        let gcc_ld = to.join("gcc-ld");
        fs::create_dir_all(&gcc_ld).map_err(|error| ToolchainError(format!("{}: {error}", gcc_ld.display())))?;
        let sysroot =
            run(Command::new("rustc").args(["--print", "sysroot"])).map(|output| stdout(&output)).unwrap_or_default();
        let from = bin(Path::new(&sysroot));
        let copy = |name: &str| {
            fs::copy(from.join(name), to.join(name))
                .map(drop)
                .map_err(|error| ToolchainError(format!("{name}: {error}")))
        };
        if !from.join(LINKER).exists() {
            return fail(format!("the rustc in use brings no {LINKER} along; install Rust from https://rustup.rs"));
        }
        copy(LINKER)?;
        if from.join("rust-lld").exists() && from.join("gcc-ld/wasm-ld").exists() {
            copy("rust-lld")?;
            return copy("gcc-ld/wasm-ld");
        }
        // A distribution's rustc leaves lld to a package of its own, of the same LLVM.
        let lld = format!("lld-{}", llvm.trim_start_matches("libllvm"));
        let folder = debs.join("lld");
        fs::create_dir_all(&folder).map_err(|error| ToolchainError(format!("{}: {error}", folder.display())))?;
        apt.get(&["download".to_owned(), lld], &folder)?;
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            unpack(&entry.path(), prefix, &["--exclude=./usr/share"])?;
        }
        let version = llvm.trim_start_matches("libllvm");
        let script = |up: &str, program: &str| {
            format!(
                "#!/bin/sh\nD=$(dirname \"$(readlink -f \"$0\")\")/{up}\n\
                 LD_LIBRARY_PATH=$D/lib/{} exec \"$D/lib/llvm-{version}/bin/{program}\" \"$@\"\n",
                self.libraries
            )
        };
        write_script(&to.join("rust-lld"), &script("../../../..", "lld"))?;
        write_script(&gcc_ld.join("wasm-ld"), &script("../../../../..", "wasm-ld"))
    }

    /// Builds the standard library with the bitcode that link-time optimisation wants.
    fn build_std(&self, prefix: &Path, work: &Path) -> Result<()> {
        write(&work.join("src/lib.rs"), "")?;
        write(
            &work.join("Cargo.toml"),
            "[package]\nname = \"std-of-guests\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\
             [profile.release]\npanic = \"abort\"\ndebug = 0\ncodegen-units = 1\n[workspace]\n",
        )?;
        let source = prefix.join("usr/lib/rustlib/src/rust");
        let flags = format!("-Cembed-bitcode=yes\u{1f}--remap-path-prefix={}=/rust-src", source.display());
        let target = work.join("target");
        let mut cargo = Command::new("cargo");
        cargo
            .args(["build", "--quiet", "--release", "--target", TARGET, "-Z", "build-std=std,panic_abort"])
            .current_dir(work)
            .env("RUSTC", prefix.join("bin/rustc"))
            // A released compiler builds std only when it is told that it may.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags)
            .env("CARGO_TARGET_DIR", &target);
        for variable in
            ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTUP_TOOLCHAIN", "CARGO_BUILD_TARGET"]
        {
            cargo.env_remove(variable);
        }
        run(&mut cargo)?;
        let libraries = prefix.join("usr/lib/rustlib").join(TARGET).join("lib");
        let io = |error: std::io::Error| ToolchainError(format!("{}: {error}", libraries.display()));
        fs::create_dir_all(&libraries).map_err(io)?;
        let mut made: Vec<_> = fs::read_dir(target.join(TARGET).join("release/deps")).map_err(io)?.flatten().collect();
        made.sort_by_key(fs::DirEntry::file_name);
        let mut digest = Sha256::new();
        for entry in made {
            let name = entry.file_name();
            let shown = name.to_string_lossy();
            if shown.ends_with(".rlib") && !shown.starts_with("libstd_of_guests") {
                digest.update(fs::read(entry.path()).map_err(io)?);
                fs::copy(entry.path(), libraries.join(&name)).map_err(io)?;
            }
        }
        write(&prefix.join("standard"), &hex::encode(&digest.finalize()[..8]))
    }
}

impl Apt {
    /// The version of rustc-web that would be downloaded, if it is new enough.
    fn candidate(&self) -> Result<Option<String>> {
        let output =
            run(Command::new("apt-cache").args(&self.options).args(["policy", "rustc-web"]).env("LC_ALL", "C"))?;
        let version =
            stdout(&output).lines().find_map(|line| line.trim().strip_prefix("Candidate: ").map(str::to_owned));
        Ok(version.filter(|version| new_enough(version)))
    }

    /// The first dependency of a package whose name starts with `prefix` and goes on with a digit.
    fn dependency(&self, package: &str, version: &str, prefix: &str) -> Result<String> {
        let wanted = format!("{package}={version}");
        let output = run(Command::new("apt-cache").args(&self.options).args(["show", &wanted]).env("LC_ALL", "C"))?;
        let text = stdout(&output);
        let depends = text.lines().find_map(|line| line.strip_prefix("Depends:")).unwrap_or_default();
        let name = depends.split([',', '|', ' ']).find(|name| {
            name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
        });
        name.map(str::to_owned)
            .ok_or_else(|| ToolchainError(format!("{wanted} needs no {prefix}N; Debian changed its packages")))
    }

    fn get(&self, arguments: &[String], directory: &Path) -> Result<()> {
        let mut apt = Command::new("apt-get");
        // apt wants to download as a user of its own, who cannot write to a cache folder.
        apt.args(["-q", "-o", "APT::Sandbox::User=root"]).args(&self.options).args(arguments).current_dir(directory);
        run(&mut apt).map(drop)
    }
}

/// True for Debian's versions of [`OLDEST`] and newer, such as `1.96.0+dfsg1-1~deb12u2`.
fn new_enough(version: &str) -> bool {
    let mut numbers = version.split(|digit: char| !digit.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= OLDEST,
        _ => false,
    }
}

fn unpack(deb: &Path, prefix: &Path, select: &[&str]) -> Result<()> {
    let failed = |error: std::io::Error| ToolchainError(format!("{}: {error}", deb.display()));
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let bytes = archive.stdout.take().expect("it was asked for");
    let unpacked = run(Command::new("tar").arg("-x").arg("-C").arg(prefix).args(select).stdin(bytes));
    // tar reads to the end of what it was given, so that dpkg-deb ends.
    let status = archive.wait().map_err(failed)?;
    unpacked?;
    if status.success() { Ok(()) } else { fail(format!("{} cannot be unpacked", deb.display())) }
}

/// Run to the end; an error has the last lines that it printed.
fn run(command: &mut Command) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    if command.get_envs().all(|(variable, _)| variable != "LC_ALL") {
        command.env("LC_ALL", "C");
    }
    let output = command.output().map_err(|error| ToolchainError(format!("{name}: {error}")))?;
    if output.status.success() {
        return Ok(output);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = errors.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(5)..].join("\n    ");
    fail(format!("{name} failed ({}): {last}", output.status))
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn write(path: &Path, text: &str) -> Result<()> {
    let io = |error: std::io::Error| ToolchainError(format!("{}: {error}", path.display()));
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(io)?;
    }
    fs::write(path, text).map_err(io)
}

fn write_script(path: &Path, text: &str) -> Result<()> {
    write(path, text)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
            .map_err(|error| ToolchainError(format!("{}: {error}", path.display())))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_versions_from_the_oldest_on_are_new_enough() {
        assert!(new_enough("1.96.0+dfsg1-1~deb12u2"));
        assert!(new_enough("1.95.0"));
        assert!(new_enough("2.0"));
        assert!(!new_enough("1.85.0+dfsg3-1~deb12u3"));
        assert!(!new_enough("(none)"));
    }

    #[test]
    fn a_compiler_that_is_not_there_is_not_usable() {
        assert_eq!(usable(&"/nonexistent/rustc".into(), Path::new(".")), None);
    }

    #[test]
    fn a_failure_says_which_program_failed_and_what_it_printed() {
        let error = run(Command::new("sh").args(["-c", "echo because >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.starts_with("sh failed") && error.ends_with("because"), "{error}");
    }

    #[test]
    fn the_remedies_name_what_was_tried() {
        let text = remedies(&["rustup: it is not installed".to_owned()]);
        assert!(text.contains("rustup: it is not installed") && text.contains("rustup target add"));
    }
}
