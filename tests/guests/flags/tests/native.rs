//! The suite on the in-memory host.

use chalet_sdk::testing::Host;
use guest_flags::suite;

#[test]
fn the_suite_passes() {
    let host = Host::from_manifest(include_str!("../plugin.toml"));
    host.set_flags(include_str!("../flags.json"));
    host.run(suite).unwrap();
}
