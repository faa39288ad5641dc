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

/// The same component under another version.
pub fn numbered(name: &str, version: &str) -> Vec<u8> {
    let component = component(name);
    let mut manifest = Manifest::from_component(&component).expect("what was built has a manifest");
    manifest.version = version.parse().expect("a version");
    build::embed_instead(&component, &manifest).expect("a component")
}
