//! A server beside the measured ones, in a process of its own that ends with this one's interest in it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a server may take until it listens; one of them compiles JavaScript.
const START: Duration = Duration::from_secs(30);

/// A running server; it is killed when this is dropped.
pub struct Server {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    process: Child,
    _folder: Option<TempDir>,
}

impl Server {
    /// Start a server that prints its address as its first line, and ends when its stdin does.
    pub fn that_says_where(command: &mut Command) -> Result<Self, String> {
        let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut process = started.map_err(|error| format!("{}: {error}", command.get_program().display()))?;
        let stdout = process.stdout.take().expect("stdout is piped");
        let mut server = Self { url: String::new(), process, _folder: None };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).map_err(|error| error.to_string())?;
        server.url = line.trim().to_owned();
        if server.url.is_empty() { Err("it ended before it listened".into()) } else { Ok(server) }
    }

    /// Start a server that listens on the port that it is told, and wait until it does.
    pub fn on(port: u16, command: &mut Command, folder: Option<TempDir>) -> Result<Self, String> {
        let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let process = started.map_err(|error| format!("{}: {error}", command.get_program().display()))?;
        let mut server = Self { url: format!("http://127.0.0.1:{port}"), process, _folder: folder };
        let until = Instant::now() + START;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = server.process.try_wait().map_err(|error| error.to_string())?;
            if ended.is_some() || Instant::now() > until {
                let _ = server.process.kill();
                let mut said = String::new();
                let _ = server.process.stderr.take().map(|mut stderr| stderr.read_to_string(&mut said));
                return Err(format!("it does not listen: {}", said.lines().last().unwrap_or("it said nothing")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A loopback port that nobody listens on.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
    listener.local_addr().expect("a bound socket has an address").port()
}
