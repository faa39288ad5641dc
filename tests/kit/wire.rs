//! An HTTP/1.1 connection whose answers are all their bytes, the status line and headers among them.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::kit::server::Server;

/// A connection to a server; it is made again when the server has closed it.
pub struct Wire {
    address: String,
    stream: Option<TcpStream>,
}

/// An answer as it came, its body without the framing of chunks.
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Status line, headers and body.
    pub bytes: Vec<u8>,
    head: usize,
}

impl Answer {
    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.bytes[self.head..]
    }

    /// A header, its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let head = std::str::from_utf8(&self.bytes[..self.head]).ok()?;
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(own, _)| *own == name).map(|(_, value)| value)
    }
}

impl Wire {
    /// A connection to this server, made with the first request.
    pub fn to(server: &Server) -> Self {
        Self { address: server.url.trim_start_matches("http://").to_owned(), stream: None }
    }

    /// Send a request, and read its answer to the end. Not for one that has no end.
    pub async fn ask(&mut self, method: &str, path: &str, headers: &[(&str, String)], body: &[u8]) -> Answer {
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.address);
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        request += &format!("content-length: {}\r\n\r\n", body.len());
        let mut request = request.into_bytes();
        request.extend_from_slice(body);
        loop {
            let fresh = self.stream.is_none();
            if fresh {
                self.stream = Some(TcpStream::connect(&self.address).await.expect("the server listens"));
            }
            match self.exchange(&request).await {
                Ok(answer) => return answer,
                // The server may have closed it since the last answer.
                Err(error) => assert!(!fresh, "{method} {path} was not answered: {error}"),
            }
        }
    }

    async fn exchange(&mut self, request: &[u8]) -> std::io::Result<Answer> {
        let mut stream = self.stream.take().expect("it was just made");
        stream.write_all(request).await?;
        let mut bytes = Vec::new();
        let head = loop {
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            more(&mut stream, &mut bytes).await?;
        };
        let status = std::str::from_utf8(&bytes[9..12]).ok().and_then(|text| text.parse().ok()).expect("a status");
        let mut answer = Answer { status, bytes, head };
        if answer.header("transfer-encoding") == Some("chunked") {
            unchunk(&mut stream, &mut answer).await?;
        } else {
            let length: usize = answer.header("content-length").map_or(0, |text| text.parse().expect("a length"));
            while answer.body().len() < length {
                more(&mut stream, &mut answer.bytes).await?;
            }
        }
        if answer.header("connection") != Some("close") {
            self.stream = Some(stream);
        }
        Ok(answer)
    }
}

async fn more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> std::io::Result<()> {
    match stream.read_buf(bytes).await? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// Read chunks to the last, and leave what they hold.
async fn unchunk(stream: &mut TcpStream, answer: &mut Answer) -> std::io::Result<()> {
    let mut framed = answer.bytes.split_off(answer.head);
    loop {
        let line = loop {
            if let Some(at) = framed.windows(2).position(|window| window == b"\r\n") {
                break at;
            }
            more(stream, &mut framed).await?;
        };
        let size = std::str::from_utf8(&framed[..line]).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
        let (start, size) = (line + 2, size.expect("a chunk's size"));
        while framed.len() < start + size + 2 {
            more(stream, &mut framed).await?;
        }
        answer.bytes.extend_from_slice(&framed[start..start + size]);
        framed.drain(..start + size + 2);
        if size == 0 {
            return Ok(());
        }
    }
}
