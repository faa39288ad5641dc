//! The shape of the code, read from its sources: layers, libraries and names stay where ARCHITECTURE.md says.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::kit::guests::root;

/// The layers of host/src, lowest first; siblings of one row do not use each other.
const LAYERS: &[&[&str]] = &[
    &["kernel"],
    &["effects"],
    &["services"],
    &["engine"],
    &["capabilities", "triggers"],
    &["invocation"],
    &["gateway"],
    &["control"],
    &["config"],
    &["platform"],
    &["cli"],
];

/// Uses that go upwards for a reason that stands in the file.
const UPWARD: &[(&str, &str)] = &[
    // The one place that opens databases names both stores, so that nothing above has to.
    ("kernel/db.rs", "effects"),
];

/// Which library appears where, by the beginning of the path below host/src.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("axum", &["gateway", "control", "platform.rs", "cli/"]),
    ("opentelemetry", &["kernel/trace"]),
    ("opentelemetry_otlp", &["kernel/trace"]),
    ("opentelemetry_sdk", &["kernel/trace"]),
    ("wasmtime", &["engine", "capabilities", "triggers"]),
    (
        "sqlx",
        &[
            "effects/",
            "kernel/db.rs",
            "services/directory.rs",
            "services/keys.rs",
            "services/plugins/components.rs",
            "services/sweep.rs",
        ],
    ),
    ("rusqlite", &["effects/sqlite.rs"]),
    ("quick_cache", &["kernel/cache.rs"]),
];

/// Files that may make a `TenantScope`: the directory, which authentication, tasks and tenant creation ask,
/// and the tests of the services.
const MINTS: &[&str] = &[
    "kernel/tenant.rs",
    "services/directory.rs",
    "effects/testing.rs",
    "services/testing.rs",
    "services/egress/tests.rs",
    "triggers/tests.rs",
];

fn sources() -> Vec<(String, String)> {
    let base = root().join("host/src");
    let mut files = Vec::new();
    let mut folders = vec![base.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&base).expect("below host/src").to_string_lossy().into_owned();
                files.push((name, fs::read_to_string(path).expect("text")));
            }
        }
    }
    files
}

/// The source without comments and without its tests.
fn code(source: &str) -> String {
    let source = source.split("#[cfg(test)]\n").next().unwrap_or_default();
    source.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn layer_of(name: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&name))
}

#[test]
fn layers_use_what_is_below_them() {
    let mut wrong = Vec::new();
    for (file, source) in sources() {
        let own = file.split(['/', '.']).next().unwrap_or_default().to_owned();
        // A file of tests may set up what stands above it.
        let Some(own_layer) = layer_of(&own).filter(|_| !file.ends_with("tests.rs")) else { continue };
        for row in LAYERS {
            for name in *row {
                let used = code(&source).contains(&format!("crate::{name}"));
                let below = layer_of(name).is_some_and(|layer| layer < own_layer) || *name == own;
                if used && !below && !UPWARD.contains(&(file.as_str(), name)) {
                    wrong.push(format!("{file} uses {name}"));
                }
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn libraries_stay_in_their_layers() {
    let mut wrong = Vec::new();
    for (file, source) in sources() {
        for (library, places) in LIBRARIES {
            let text = code(&source);
            let used = text.contains(&format!("{library}::")) || text.contains(&format!("use {library};"));
            if used
                && !places.iter().any(|place| file.starts_with(place))
                && !file.ends_with("testing.rs")
                && !file.ends_with("tests.rs")
            {
                wrong.push(format!("{file} uses {library}"));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn few_places_make_a_scope() {
    let wrong: Vec<_> = sources()
        .into_iter()
        .filter(|(file, source)| code(source).contains("TenantScope::mint") && !MINTS.contains(&file.as_str()))
        .map(|(file, _)| file)
        .collect();
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn unsafe_code_is_where_verified_code_is_mapped() {
    let wrong: Vec<_> = sources()
        .into_iter()
        .filter(|(file, source)| code(source).contains("unsafe {") && file != "engine/cache.rs")
        .map(|(file, _)| file)
        .collect();
    assert_eq!(wrong, Vec::<String>::new());
}

fn stems(folder: PathBuf, extension: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).expect("a folder").filter_map(|entry| Some(entry.ok()?.path()));
    let of_kind = entries.filter(|path| path.extension().is_some_and(|own| own == extension));
    of_kind.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect()
}

#[test]
fn every_wit_interface_has_one_host_file_of_the_same_stem() {
    let wit = stems(root().join("guest-sdk/wit"), "wit");
    let capabilities: BTreeSet<_> = stems(root().join("host/src/capabilities"), "rs");
    let triggers: BTreeSet<_> =
        stems(root().join("host/src/triggers"), "rs").into_iter().map(|stem| format!("{stem}-trigger")).collect();
    let expected: BTreeSet<_> =
        wit.iter().filter(|stem| !["types", "world"].contains(&stem.as_str())).cloned().collect();
    let hosted: BTreeSet<_> = capabilities
        .union(&triggers)
        .filter(|stem| !["error", "tests-trigger", "testing-trigger"].contains(&stem.as_str()))
        .cloned()
        .collect();
    assert_eq!(hosted, expected);
    for capability in capabilities.iter().filter(|stem| !["error", "config"].contains(&stem.as_str())) {
        let guest = root().join("tests/guests").join(capability);
        assert!(guest.is_dir(), "no test guest imports {capability}");
    }
}

#[test]
fn every_tenant_table_begins_its_key_with_the_tenant() {
    // Read before a tenant is known, or without tenant content.
    let platform = ["tenants", "plans", "api_keys"];
    for engine in ["sqlite", "postgres"] {
        for path in fs::read_dir(root().join("migrations").join(engine)).expect("migrations") {
            check_tables(&path.expect("an entry").path(), &platform);
        }
    }
}

fn check_tables(path: &Path, platform: &[&str]) {
    let text = fs::read_to_string(path).expect("text").to_lowercase();
    for table in text.split("create table ").skip(1) {
        let name = table.split([' ', '(', '\n']).next().unwrap_or_default().trim_start_matches("if not exists ");
        if platform.contains(&name) || name == "due" {
            continue;
        }
        let body = table.split(");").next().unwrap_or_default();
        let key = match body.split_once("primary key (") {
            Some((_, columns)) => columns.split([',', ')']).next().unwrap_or_default().trim().to_owned(),
            None => body
                .lines()
                .find(|line| line.contains("primary key"))
                .map_or_else(String::new, |line| line.split_whitespace().next().unwrap_or_default().to_owned()),
        };
        assert_eq!(key, "tenant_id", "the key of {name} in {}", path.display());
    }
}
