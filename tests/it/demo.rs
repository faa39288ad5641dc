//! The demo judges by itself; here it is judged: it passes on this build, and fails on a broken one.

use std::path::Path;
use std::process::Command;

use crate::kit::guests::{PLUGINS_TARGET, root};
use crate::kit::server::binary;

/// Exit code and output of `chalet demo --once` as this sets it up.
fn demo(set_up: impl FnOnce(&mut Command) -> &mut Command) -> (Option<i32>, String) {
    let output = set_up(Command::new(binary()).args(["demo", "--once"])).output().expect("the binary is built");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.code(), text)
}

/// What the demo builds, copied so that it can be broken.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder").flatten() {
        let (name, kind) = (entry.file_name(), entry.file_type().expect("a kind"));
        if name == "target" {
            continue;
        }
        let to = to.join(&name);
        if kind.is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).expect("copied");
        }
    }
}

#[test]
fn the_demo_passes() {
    let (code, text) = demo(|command| command.current_dir(root()));
    assert!(code == Some(0) && text.contains(" 0 failed"), "{text}");
}

#[test]
fn the_demo_fails_on_a_broken_build() {
    let checkout = tempfile::tempdir().expect("a temporary folder");
    for part in ["guest-sdk", "plugins", "tests/guests"] {
        copy(&root().join(part), &checkout.path().join(part));
    }
    std::fs::copy(root().join("Cargo.lock"), checkout.path().join("Cargo.lock")).expect("copied");
    let workspace = std::fs::read_to_string(root().join("Cargo.toml")).expect("read");
    let without_host = workspace.replace("members = [\"host\", ", "members = [");
    assert_ne!(workspace, without_host);
    std::fs::write(checkout.path().join("Cargo.toml"), without_host).expect("written");
    let pricing = checkout.path().join("plugins/pricing/src/lib.rs");
    let source = std::fs::read_to_string(&pricing).expect("read");
    let broken = source.replace("tens * 9 + ", "tens * 8 + ");
    assert_ne!(source, broken);
    std::fs::write(pricing, broken).expect("written");

    let (code, text) = demo(|command| command.current_dir(checkout.path()).env("CARGO_TARGET_DIR", PLUGINS_TARGET));
    assert!(code == Some(1) && text.contains("FAILED  a flag flipped") && text.contains(" 1 failed"), "{text}");
}
