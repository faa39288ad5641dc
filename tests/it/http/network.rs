//! Outgoing HTTP in a network of its own that has the addresses which a cloud's machines have, a listener at each of them:
//! what gets past the classifier is seen there, and no packet leaves.

use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

use serde_json::json;

use super::hostile::{canary, kind, send, server, tenant};
use crate::kit::guests::built;
use crate::kit::oracle::Watch;
use crate::kit::server::Setup;

/// Where clouds keep their machines' credentials and names, and what is inside of a network.
const INSIDE: [&str; 9] = [
    "127.0.0.1",
    "127.8.8.8",
    "10.0.0.1",
    "169.254.169.254",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "[::1]",
    "[fd00:ec2::254]",
];
/// Addresses that anybody may reach. Here they are this machine's.
const OUTSIDE: [&str; 2] = ["93.184.215.14", "[2600:1406:bc00:53::b81e:94ce]"];

/// Run a command that has to succeed; what it said.
fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{command:?} said {said}");
    said
}

/// Run an ignored test in a network of its own; what it said. Nobody has to be root for it.
pub fn alone(test: &str) -> String {
    // Cargo has what it needs before there is no way to a registry.
    built();
    let said = run(Command::new("unshare")
        .args(["--map-root-user", "--net", "--"])
        .arg(std::env::current_exe().expect("this program"))
        .args([test, "--exact", "--ignored", "--nocapture"]));
    assert!(said.contains("1 passed"), "{said}");
    said
}

/// Let this network have the machine's own addresses.
pub fn up() {
    run(Command::new("ip").args(["link", "set", "lo", "up"]));
}

#[test]
fn no_address_inside_a_clouds_network_is_reached() {
    let said = alone("http::network::be_inside");
    println!("{}", said.lines().find(|line| line.contains("were refused")).expect("it says what it did"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the body of the process that another test starts"]
async fn be_inside() {
    up();
    for address in INSIDE.iter().chain(&OUTSIDE).filter(|address| !matches!(**address, "127.0.0.1" | "[::1]")) {
        let address = address.trim_matches(['[', ']']);
        let length = if address.contains(':') { 128 } else { 32 };
        run(Command::new("ip").args(["address", "add", &format!("{address}/{length}"), "dev", "lo"]));
    }
    let (port, hits) = canary().await;
    let at = |address: &&str| format!("{address}:{port}");
    let calls = |addresses: &[&str]| -> Vec<_> {
        addresses.iter().map(|address| json!({ "url": format!("http://{}/", at(address)) })).collect()
    };
    let grants = || INSIDE.iter().chain(&OUTSIDE).map(at);

    let closed = server(Setup::sqlite());
    let watch = Watch::begin(&closed).await;
    let acme = tenant(&closed, "acme", grants()).await;
    for (address, answer) in INSIDE.iter().zip(send(&acme, calls(&INSIDE)).await) {
        assert_eq!(kind(&answer), "denied", "{address}: {answer}");
    }
    assert_eq!(hits.load(Ordering::Relaxed), 0, "nothing reached a listener");
    for (address, answer) in OUTSIDE.iter().zip(send(&acme, calls(&OUTSIDE)).await) {
        assert_eq!(answer["status"], 200, "{address}: {answer}");
    }
    assert_eq!(hits.load(Ordering::Relaxed), OUTSIDE.len(), "who may be reached is reached");
    watch.end(&closed).await;

    // Whoever does not look where he goes reaches each: its refusal was no lack of a listener.
    for address in INSIDE.iter().map(at) {
        closed.http.get(format!("http://{address}/")).send().await.unwrap_or_else(|error| panic!("{address}: {error}"));
    }
    assert_eq!(hits.load(Ordering::Relaxed), OUTSIDE.len() + INSIDE.len());
    println!("{} addresses were refused, each of which has a listener", INSIDE.len());
}
