//! The yardstick: axum without anything behind it, answering a price as the plugin `pricing` does.
//!
//! It runs in a process of its own, from this same program, on the runtime that a `chalet serve` uses, and reads the
//! request's body. What it leaves out is all that Chalet adds.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};

use axum::Router;
use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::routing::post;
use tokio::net::TcpListener;

/// The argument that makes this program the yardstick.
pub const ARGUMENT: &str = "--bare-axum";
/// What `pricing` answers to [`crate::PRICE`].
pub const ANSWER: &str = r#"{"total_cents":19990}"#;

/// The yardstick's process; it ends when this is dropped.
pub struct Axum {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    process: Child,
}

impl Axum {
    /// Start it.
    pub fn start() -> Self {
        let program = std::env::current_exe().expect("a program knows its path");
        let mut command = Command::new(program);
        let mut process = command
            .arg(ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts a second time");
        let mut url = String::new();
        let stdout = process.stdout.take().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut url).expect("a line");
        Self { url: url.trim().to_owned(), process }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Axum {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Serve until whoever started this is gone, which closes stdin.
pub fn serve() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.spawn(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port is free");
        println!("http://{}", listener.local_addr().expect("a bound socket has an address"));
        std::io::stdout().flush().expect("stdout is piped");
        let answer = |_body: Bytes| async { ([(CONTENT_TYPE, "application/json")], ANSWER) };
        axum::serve(listener, Router::new().route(crate::PRICE.path, post(answer))).await.expect("axum serves");
    });
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
