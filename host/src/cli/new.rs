//! `chalet new NAME`: a plugin to start from, which builds, passes its test and says what to do next.
//!
//! Inside a checkout of this project, or with `sdk`, the crate depends on chalet-sdk by path, else by version.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use super::terminal::{note, say};

/// The SDK's version that a crate outside a checkout depends on; SDK and host are released together.
const SDK_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Make a plugin to start from.
#[derive(Debug, Args)]
pub(super) struct New {
    /// Its name: a-z 0-9 -; also the folder's.
    name: String,
    /// The language that it is written in.
    #[arg(long, default_value = "rust", value_parser = ["rust"])]
    lang: String,
    /// The folder of the crate chalet-sdk; inside a checkout of Chalet it is found.
    #[arg(long, value_name = "PATH")]
    sdk: Option<PathBuf>,
}

impl New {
    pub(super) fn run(self) -> super::Result<()> {
        let folder = new(&self.name, &Options { sdk: self.sdk, parent: None })?;
        say(format!("made {} ({})", self.name, folder.display()));
        note(format!("next: cd {} && cargo test && chalet dev", self.name));
        Ok(())
    }
}

/// How to make a plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// The folder of the crate chalet-sdk.
    pub sdk: Option<PathBuf>,
    /// Where to make the plugin's folder; `None` is the current folder.
    pub parent: Option<PathBuf>,
}

/// Why no plugin was made; the text says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewError {
    /// The name cannot be a plugin's and a crate's.
    Name(String),
    /// There is something of this name already.
    Exists(String),
    /// A file could not be read or written.
    File(String),
}

impl fmt::Display for NewError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NewError::Name(reason) | NewError::Exists(reason) | NewError::File(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for NewError {}

type Result<T, E = NewError> = std::result::Result<T, E>;

/// Make the folder `name` with a plugin in it, and return its path.
///
/// # Errors
/// One [`NewError`]; what exists is never overwritten.
pub fn new(name: &str, options: &Options) -> Result<PathBuf> {
    check_name(name)?;
    let parent = options.parent.clone().unwrap_or_else(|| PathBuf::from("."));
    let parent = fs::canonicalize(&parent).map_err(|error| NewError::File(format!("{}: {error}", parent.display())))?;
    let folder = parent.join(name);
    let sdk = match &options.sdk {
        Some(sdk) if is_sdk(sdk) => Some(fs::canonicalize(sdk).map_err(|error| NewError::File(error.to_string()))?),
        Some(sdk) => return Err(NewError::File(format!("{} is not the folder of chalet-sdk", sdk.display()))),
        None => parent.ancestors().map(|above| above.join("guest-sdk")).find(|sdk| is_sdk(sdk)),
    };
    // Inside another workspace cargo refuses a crate that says neither that it belongs to it nor that it does not.
    let inside_workspace = parent.ancestors().any(|above| {
        fs::read_to_string(above.join("Cargo.toml")).is_ok_and(|manifest| manifest.contains("[workspace]"))
    });

    match fs::create_dir(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(NewError::Exists(format!("{} exists already; choose another name", folder.display())));
        }
        made => made.map_err(|error| NewError::File(format!("{}: {error}", folder.display())))?,
    }
    write(&folder, "Cargo.toml", &cargo_toml(name, sdk.as_deref(), inside_workspace))?;
    write(&folder, "plugin.toml", &fill(PLUGIN_TOML, name))?;
    write(&folder, "src/lib.rs", &fill(LIB_RS, name))?;
    write(&folder, "tests/greeting.rs", &fill(TEST_RS, name))?;
    write(&folder, "README.md", &fill(README_MD, name))?;
    write(&folder, ".gitignore", "/target\n")?;
    Ok(folder)
}

/// What is a plugin's name and, with `_` for `-`, a crate's: it starts with a letter and ends with no `-`.
fn check_name(name: &str) -> Result<()> {
    let fits = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    let shaped = (1..=64).contains(&name.len())
        && name.bytes().all(fits)
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && !name.ends_with('-');
    if !shaped {
        return Err(NewError::Name(format!(
            "{name:?} is no plugin's name; use 1 to 64 of a-z 0-9 -, beginning with a letter and not ending with -"
        )));
    }
    // Words that cargo or the language take, or that the scaffold's own crates have.
    const TAKEN: [&str; 54] = [
        "abstract",
        "as",
        "async",
        "await",
        "become",
        "box",
        "break",
        "const",
        "continue",
        "crate",
        "do",
        "dyn",
        "else",
        "enum",
        "extern",
        "false",
        "final",
        "fn",
        "for",
        "gen",
        "if",
        "impl",
        "in",
        "let",
        "loop",
        "macro",
        "match",
        "mod",
        "move",
        "mut",
        "override",
        "priv",
        "pub",
        "ref",
        "return",
        "self",
        "static",
        "struct",
        "super",
        "test",
        "trait",
        "true",
        "try",
        "type",
        "typeof",
        "unsafe",
        "unsized",
        "use",
        "virtual",
        "where",
        "while",
        "yield",
        "serde",
        "chalet-sdk",
    ];
    if TAKEN.contains(&name) || ["core", "std", "alloc", "proc-macro"].contains(&name) {
        return Err(NewError::Name(format!("{name:?} means something to Rust; choose another name")));
    }
    Ok(())
}

fn is_sdk(folder: &Path) -> bool {
    fs::read_to_string(folder.join("Cargo.toml")).is_ok_and(|manifest| manifest.contains("name = \"chalet-sdk\""))
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    let failed = |error: std::io::Error| NewError::File(format!("{}: {error}", path.display()));
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    fs::write(&path, text).map_err(failed)
}

fn fill(template: &str, name: &str) -> String {
    template.replace("@crate@", &name.replace('-', "_")).replace("@name@", name)
}

fn cargo_toml(name: &str, sdk: Option<&Path>, inside_workspace: bool) -> String {
    let sdk = match sdk {
        // A path in quotes of TOML's basic strings needs the escapes that Rust's debug form makes for ordinary paths.
        Some(sdk) => format!("{{ path = {:?} }}", sdk.display().to_string()),
        None => format!("{SDK_VERSION:?}"),
    };
    let workspace = if inside_workspace {
        "\n# This crate stands alone, although a workspace is above it.\n[workspace]\n"
    } else {
        ""
    };
    format!(
        "[package]\nname = {name:?}\nversion = \"0.1.0\"\nedition = \"2024\"\npublish = false\n\n\
         [lib]\ncrate-type = [\"cdylib\", \"lib\"]\n\n\
         [dependencies]\nchalet-sdk = {sdk}\nserde = {{ version = \"1\", features = [\"derive\"] }}\n{workspace}"
    )
}

const PLUGIN_TOML: &str = r#"# What this plugin handles and what it may touch. Nothing is granted that is not named here.
name = "@name@"
version = "0.1.0"

[http]
routes = ["POST /greetings", "GET /greetings/{name}"]

[grants]
kv = ["greetings"]
meters = ["greetings"]
"#;

const LIB_RS: &str = r#"//! Greets people and remembers how often.
//!
//! Every call is a transaction: what a handler stages is committed when it answers ok with a status below 500, or never
//! happened.

use chalet_sdk::http::{Request, Response};
use chalet_sdk::{Plugin, Result, kv, log, meters};
use serde::{Deserialize, Serialize};

/// Who is to be greeted: the body of `POST /greetings`.
#[derive(Deserialize)]
struct Greet {
    name: String,
}

/// What is kept under `greetings/{name}`.
#[derive(Default, Serialize, Deserialize)]
struct Greeting {
    name: String,
    times: u64,
}

/// The plugin.
pub struct Greeter;

impl Plugin for Greeter {
    fn http(request: Request) -> Result<Response> {
        match request.route() {
            "POST /greetings" => greet(&request),
            _ => read(&request),
        }
    }
}

fn greet(request: &Request) -> Result<Response> {
    let Greet { name } = request.json()?;
    let mut greeting: Greeting = kv::get("greetings", &name)?.unwrap_or_default();
    greeting.times += 1;
    greeting.name = name;
    kv::put("greetings", &greeting.name, &greeting)?;
    meters::record("greetings", 1)?;
    log::info!("greeted {} for the {}. time", greeting.name, greeting.times);
    Response::json(&greeting)
}

fn read(request: &Request) -> Result<Response> {
    match kv::get::<Greeting>("greetings", request.param("name")?)? {
        Some(greeting) => Response::json(&greeting),
        None => Ok(Response::not_found()),
    }
}

chalet_sdk::export!(Greeter: http);
"#;

const TEST_RS: &str = r##"//! The plugin on the in-memory host, with the grants and routes of its manifest.

use chalet_sdk::http::Request;
use chalet_sdk::testing::Host;
use @crate@::Greeter;

fn host() -> Host {
    Host::from_manifest(include_str!("../plugin.toml"))
}

#[test]
fn greetings_are_counted() {
    let host = host();
    for times in 1..=2 {
        let request = Request::new("POST", "/greetings").with_body(r#"{"name":"Ada"}"#);
        let answer = host.http::<Greeter>(request).unwrap();
        assert_eq!(answer.to_text(), format!(r#"{{"name":"Ada","times":{times}}}"#));
    }
    assert_eq!(host.http::<Greeter>(Request::get("/greetings/Ada")).unwrap().status(), 200);
    assert_eq!(host.meter("greetings").to_string(), "2");
}

#[test]
fn nobody_is_greeted_by_a_body_that_is_no_greeting() {
    let host = host();
    assert!(host.http::<Greeter>(Request::new("POST", "/greetings").with_body("{}")).is_err());
    assert_eq!(host.http::<Greeter>(Request::get("/greetings/Ada")).unwrap().status(), 404);
}
"##;

const README_MD: &str = r#"# @name@

A Chalet plugin: `src/lib.rs` is its source, `plugin.toml` what it handles and may touch.

- Test it natively: `cargo test`
- Build the component: `chalet build`
- Run it while you work: `chalet dev`
- Deploy it: `chalet deploy . --tenant acme --approve`
- Call it: `curl -H "Authorization: Bearer $CHALET_KEY" -d '{"name":"Ada"}' $CHALET_URL/t/acme/@name@/greetings`
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::plugins::manifest::Manifest;

    #[test]
    fn names_that_cargo_or_the_platform_refuse_are_refused() {
        for name in ["", "A", "1st", "-a", "a-", "a_b", "fn", "test", "core", "../a", &"a".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(check_name("my-plugin-2").is_ok());
    }

    #[test]
    fn the_scaffold_has_a_manifest_that_is_accepted_and_overwrites_nothing() {
        let parent = std::env::temp_dir().join(format!("chalet-new-{}", std::process::id()));
        fs::create_dir_all(&parent).unwrap();
        let options = Options { sdk: None, parent: Some(parent.clone()) };
        let made = new("my-plugin", &options).unwrap();
        let manifest = Manifest::from_toml(&fs::read_to_string(made.join("plugin.toml")).unwrap()).unwrap();
        assert_eq!(manifest.name, "my-plugin");
        let cargo: toml::Table = fs::read_to_string(made.join("Cargo.toml")).unwrap().parse().unwrap();
        assert_eq!(cargo["dependencies"]["chalet-sdk"].as_str(), Some(SDK_VERSION));
        assert!(fs::read_to_string(made.join("tests/greeting.rs")).unwrap().contains("use my_plugin::Greeter;"));
        assert!(matches!(new("my-plugin", &options), Err(NewError::Exists(_))));
        fs::remove_dir_all(parent).unwrap();
    }

    #[test]
    fn the_manifest_depends_on_a_checkout_by_path() {
        let cargo: toml::Table = cargo_toml("a", Some(Path::new("/x/guest-sdk")), true).parse().unwrap();
        assert_eq!(cargo["dependencies"]["chalet-sdk"]["path"].as_str(), Some("/x/guest-sdk"));
        assert!(cargo.contains_key("workspace"));
    }
}
