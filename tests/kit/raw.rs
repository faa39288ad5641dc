//! HTTP/1 as no client would speak it: bytes in, bytes out.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long to wait for more of an answer.
const QUIET: Duration = Duration::from_millis(300);
/// How long to wait for the first byte of an answer, or for the end of a connection that has to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// What came back on one connection.
#[derive(Debug)]
pub struct Answers {
    /// All of it.
    pub text: String,
    /// Whether the server has closed the connection.
    pub closed: bool,
}

impl Answers {
    /// The status of each answer, in their order.
    pub fn statuses(&self) -> Vec<u16> {
        let heads = self.text.match_indices("HTTP/1.");
        heads.filter_map(|(at, _)| self.text.get(at + 9..at + 12)?.parse().ok()).collect()
    }
}

/// A connection to a server's `http://ADDRESS`.
pub async fn connect(url: &str) -> TcpStream {
    TcpStream::connect(url.trim_start_matches("http://")).await.expect("the server takes connections")
}

/// Send these bytes on a new connection, and read until it ends or nothing more comes.
pub async fn exchange(url: &str, request: &[u8]) -> Answers {
    let mut stream = connect(url).await;
    // A server that refuses early may close before all was sent.
    let _ = timeout(PATIENCE, stream.write_all(request)).await.expect("the server reads or refuses");
    read(&mut stream).await
}

/// Read what comes until the connection ends or nothing more comes.
pub async fn read(stream: &mut TcpStream) -> Answers {
    let (mut text, mut buffer, mut wait) = (Vec::new(), vec![0; 64 << 10], PATIENCE);
    let closed = loop {
        match timeout(wait, stream.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => break true,
            Ok(Ok(n)) => text.extend_from_slice(&buffer[..n]),
            Err(_) => break false,
        }
        wait = QUIET;
    };
    Answers { text: String::from_utf8_lossy(&text).into_owned(), closed }
}
