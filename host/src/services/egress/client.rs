//! One request over one connection to addresses that were already looked at.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::target::Target;
use super::{HEADER_BYTES, HEADERS, REQUEST_BYTES, RESPONSE_BYTES, Request, Response};
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::header::is_hop_by_hop;

/// How long one address may take to accept before the next is tried.
const CONNECT: Duration = Duration::from_secs(5);
/// Addresses that are tried.
const TRIES: usize = 4;

/// Headers that the host writes itself, beside those of the connection.
const RESERVED: &[&str] = &["content-length", "expect", "forwarded", "host", "http2-settings", "via"];
const METHODS: &[Method] =
    &[Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

/// What goes onto the wire for a guest's request, or why it must not.
pub(super) fn message(target: &Target, request: &Request) -> Result<http::Request<Full<Bytes>>> {
    let bad = |what: String| Error::new(Kind::Invalid, "request_invalid", what);
    let method = METHODS.iter().find(|method| method.as_str() == request.method);
    let method =
        method.ok_or_else(|| bad("the method is one of GET, HEAD, POST, PUT, PATCH, DELETE and OPTIONS".into()))?;
    if request.body.len() > REQUEST_BYTES {
        return Err(bad(format!("the body of an outgoing request has at most {REQUEST_BYTES} bytes")));
    }
    let bytes: usize = request.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if request.headers.len() > HEADERS || bytes > HEADER_BYTES {
        return Err(bad(format!("an outgoing request has at most {HEADERS} headers and {HEADER_BYTES} bytes of them")));
    }
    let mut headers = HeaderMap::with_capacity(request.headers.len() + 2);
    let host = HeaderValue::from_str(&target.authority).map_err(|_| bad("the URL's host cannot be a header".into()))?;
    headers.insert(header::HOST, host);
    for (name, value) in &request.headers {
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| bad("a header's name is no token; correct it".into()))?;
        if RESERVED.contains(&name.as_str()) || is_hop_by_hop(name.as_str()) {
            return Err(bad(format!("the header {name} is written by the host; leave it out")));
        }
        let value = HeaderValue::from_bytes(value)
            .map_err(|_| bad(format!("the header {name} has a line end or another control character; remove it")))?;
        headers.append(name, value);
    }
    headers.entry(header::USER_AGENT).or_insert(HeaderValue::from_static("chalet"));
    let path: Uri =
        target.path.parse().map_err(|_| bad("the URL's path or query cannot be sent; percent-encode it".into()))?;
    let mut message = http::Request::new(Full::new(request.body.clone()));
    *message.method_mut() = method.clone();
    *message.uri_mut() = path;
    *message.headers_mut() = headers;
    Ok(message)
}

/// Connect to one of the addresses, send, and read all of the answer.
pub(super) async fn exchange(
    target: &Target,
    addresses: &[SocketAddr],
    tls: Arc<rustls::ClientConfig>,
    message: http::Request<Full<Bytes>>,
) -> Result<Response> {
    let stream = connect(addresses).await?;
    if target.scheme == "https" {
        let name = ServerName::try_from(target.host.clone())
            .map_err(|error| failed("the host's name cannot be checked by TLS", error))?;
        let stream = tokio_rustls::TlsConnector::from(tls)
            .connect(name, stream)
            .await
            .map_err(|error| failed("the TLS handshake failed; check the host's certificate", error))?;
        talk(stream, message).await
    } else {
        talk(stream, message).await
    }
}

async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream> {
    let mut last = None;
    for address in addresses.iter().take(TRIES) {
        match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true).map_err(Error::internal)?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = Some(error),
            Err(_) => last = Some(std::io::ErrorKind::TimedOut.into()),
        }
    }
    let cause = last.unwrap_or_else(|| std::io::ErrorKind::AddrNotAvailable.into());
    Err(failed("the host does not accept connections; try again", cause))
}

async fn talk(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    message: http::Request<Full<Bytes>>,
) -> Result<Response> {
    let broken = |error: hyper::Error| {
        if error.is_parse_too_large() {
            return too_large(format!("the response has more than {HEADERS} headers or {HEADER_BYTES} bytes of them"));
        }
        failed("the host's answer broke off or is no HTTP; try again", error)
    };
    let (mut sender, connection) = http1::Builder::new()
        .max_headers(HEADERS)
        .max_header_size(HEADER_BYTES)
        .max_buf_size(2 * HEADER_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    // The connection lives as long as this future: nothing is left behind when the guest is stopped.
    let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
    let (head, mut body) = sender.send_request(message).await.map_err(broken)?.into_parts();
    let over = || too_large(format!("the response's body has more than {RESPONSE_BYTES} bytes; ask for less"));
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        if bytes.len() + data.len() > RESPONSE_BYTES {
            return Err(over());
        }
        bytes.extend_from_slice(&data);
    }
    let kept = head.headers.iter().filter(|(name, _)| !is_hop_by_hop(name.as_str()));
    Ok(Response {
        status: head.status.as_u16(),
        headers: kept
            .map(|(name, value)| (name.as_str().to_owned(), Bytes::copy_from_slice(value.as_bytes())))
            .collect(),
        body: bytes.freeze(),
    })
}

fn failed(message: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::unavailable("upstream_error", message).source(source)
}

fn too_large(message: String) -> Error {
    Error::new(Kind::Invalid, "response_too_large", message)
}
