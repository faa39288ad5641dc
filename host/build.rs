//! Migrations are embedded; a change of theirs has to rebuild the crate.

fn main() {
    println!("cargo::rerun-if-changed=../migrations");
    println!("cargo::rerun-if-changed=../guest-sdk/wit");
}
