//! The yardstick: axum without anything behind it, answering what the plugins `guest-hello` and `pricing` do.
//!
//! It runs in a process of its own, from this same program, on the runtime that a `chalet serve` uses, and reads the
//! request's body where there is one. What it leaves out is all that Chalet adds. Beside that it is a collector of traces
//! that forgets them.

use std::io::{Read as _, Write as _};
use std::process::Command;

use axum::Router;
use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::routing::{get, post};
use tokio::net::TcpListener;

use crate::child;

/// The argument that makes this program the yardstick.
pub const ARGUMENT: &str = "--bare-axum";
/// What `guest-hello` answers.
pub const HELLO: &str = "hello";
/// What `pricing` answers to ten chairs of 1999 cents.
pub const PRICE: &str = r#"{"total_cents":19990}"#;

/// Start it.
pub fn start() -> Result<child::Server, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    child::Server::that_says_where(Command::new(program).arg(ARGUMENT))
}

/// Serve until whoever started this is gone, which closes stdin.
pub fn serve() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.spawn(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port is free");
        println!("http://{}", listener.local_addr().expect("a bound socket has an address"));
        std::io::stdout().flush().expect("stdout is piped");
        let hello = || async { HELLO };
        let price = |_body: Bytes| async { ([(CONTENT_TYPE, "application/json")], PRICE) };
        let forget = |_spans: Bytes| async {};
        let router = Router::new().route("/", get(hello).post(price)).route("/v1/traces", post(forget));
        axum::serve(listener, router).await.expect("axum serves");
    });
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
