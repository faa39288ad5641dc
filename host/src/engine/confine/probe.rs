//! A worker's attempts at what it must not be able to do, for the tests. A component that carries the section
//! [`SECTION`] asks a worker of a debug build to make them, where it would compile, or to panic; release builds have none
//! of it.

use std::fs::{self, OpenOptions};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::RawFd;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use wasmparser::{Parser, Payload};

/// The custom section that asks for it.
const SECTION: &str = "chalet:probe";
/// What it holds to ask for a panic.
const PANIC: &[u8] = b"panic";
/// Descriptors that are looked for: more than any node was started with.
const DESCRIPTORS: RawFd = 1_024;

/// What this process could do, if the component asks.
pub(in crate::engine) fn asked(wasm: &[u8]) -> Option<String> {
    let mut asked = Parser::new(0).parse_all(wasm).filter_map(|payload| match payload {
        Ok(Payload::CustomSection(section)) if section.name() == SECTION => Some(section.data()),
        _ => None,
    });
    let asked = asked.next()?;
    assert!(asked != PANIC, "the compiler was asked to panic");
    let done = attempt();
    Some(format!("it could: {}", if done.is_empty() { "nothing".to_owned() } else { done.join(", ") }))
}

fn attempt() -> Vec<String> {
    let parent = rustix::process::getppid().map_or(0, |parent| parent.as_raw_nonzero().get());
    let mut done = Vec::new();
    let mut note = |what: &str, could: bool| {
        if could {
            done.push(what.to_owned());
        }
    };
    note("read a variable", std::env::vars_os().next().is_some());
    note("read a file", fs::read("/etc/passwd").is_ok());
    note("list a folder", fs::read_dir("/").is_ok());
    note("write to a file", OpenOptions::new().write(true).open("/dev/null").is_ok());
    note("read the node's environment", fs::read(format!("/proc/{parent}/environ")).is_ok());
    note("listen", TcpListener::bind("127.0.0.1:0").is_ok());
    note("make a datagram socket", UdpSocket::bind("127.0.0.1:0").is_ok());
    note("make a local socket", UnixDatagram::unbound().is_ok());
    note("run a program", Command::new("/bin/true").status().is_ok());
    note("start a thread", std::thread::Builder::new().spawn(|| {}).is_ok_and(|thread| thread.join().is_ok()));
    note("signal the node", nix::sys::signal::kill(nix::unistd::Pid::from_raw(parent), None).is_ok());
    // Seizing does not stop the node, and ends with this process.
    let seized = nix::sys::ptrace::seize(nix::unistd::Pid::from_raw(parent), nix::sys::ptrace::Options::empty());
    note("trace the node", seized.is_ok());
    let inherited = (3..DESCRIPTORS).filter(|&descriptor| nix::unistd::close(descriptor).is_ok()).count();
    note("use a descriptor of the node's", inherited > 0);
    done
}
