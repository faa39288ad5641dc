//! Components that the tests upload: the shipped plugins and the test guests, built once a process by the
//! same code as `chalet build`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use chalet::cli::build::{self, Options};
use chalet::services::plugins::manifest::Manifest;

/// Where tests build plugins that they make: what does not depend on a plugin's place is compiled once.
pub const PLUGINS_TARGET: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/plugins");

/// The project's folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("host/ is in the project").to_path_buf()
}

/// All of them: their manifests' names and where they are.
pub fn built() -> &'static HashMap<String, PathBuf> {
    static BUILT: OnceLock<HashMap<String, PathBuf>> = OnceLock::new();
    BUILT.get_or_init(|| {
        let mut built = HashMap::new();
        for folder in [root(), root().join("tests/guests")] {
            for one in
                build::build_all(&folder, &Options::default()).expect("the guests build; see what cargo said above")
            {
                built.insert(one.manifest.name.clone(), one.component);
            }
        }
        built
    })
}

/// The component of a shipped plugin (`notes`) or of a test guest (`guest-kv`), by its manifest's name.
pub fn component(name: &str) -> Vec<u8> {
    let built = built();
    let path = built.get(name).unwrap_or_else(|| panic!("no guest is called {name}; there are {:?}", built.keys()));
    std::fs::read(path).expect("a component that was just built")
}

/// An http plugin `start` that loops in its start function, its text changed.
pub fn written(change: impl FnOnce(String) -> String) -> Vec<u8> {
    let text = std::fs::read_to_string(root().join("tests/guests/wat/loop-in-start.wat")).expect("the source");
    let manifest = "name = \"start\"\nversion = \"1.0.0\"\n[http]\nroutes = [\"GET /\"]";
    let manifest = Manifest::from_toml(manifest).expect("a manifest");
    build::embed(wat::parse_str(change(text)).expect("it assembles"), &manifest).expect("embedded")
}

/// The same, each function of which is within the bounds of the gate, and which together cost minutes to compile: in
/// every one of nested loops all locals change.
pub fn costly() -> Vec<u8> {
    const LOCALS: usize = 400;
    const NESTED: usize = 240;
    let bump: String =
        (0..LOCALS).map(|n| format!("(local.set {n} (i32.add (local.get {n}) (local.get 0)))")).collect();
    let nest = format!("{}{bump}{}", "(loop (br_if 0 (local.get 1))".repeat(NESTED), ")".repeat(NESTED));
    let function = format!("(func (local {}) {})", "i32 ".repeat(LOCALS), nest.repeat(24));
    written(|text| text.replace("(start $start)", &format!("(start $start) {}", function.repeat(60))))
}

/// The same component under another version.
pub fn numbered(name: &str, version: &str) -> Vec<u8> {
    let component = component(name);
    let mut manifest = Manifest::from_component(&component).expect("what was built has a manifest");
    manifest.version = version.parse().expect("a version");
    build::embed_instead(&component, &manifest).expect("a component")
}
