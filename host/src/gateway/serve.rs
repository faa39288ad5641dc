//! Connections: taken, bounded in number, size and time, and given back.
//!
//! A stranger can open many connections, say little on them or too much, and never read the answers. Promises: a
//! connection on which no request is being handled has a fixed time to begin one and to take what it was answered; a
//! body comes at a least pace; what a connection sends beside requests and their bodies has a bound; one address
//! never takes all places. What a request may mean is `strict`'s and the handlers' question.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, Request, Response, Version, header};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

/// Bytes of an HTTP/1 request's line and headers: above what `strict` allows a target to have, so that it can say what
/// is wrong. A head has at most hyper's 100 headers, too, for which it needs no memory of its own.
const HEAD_BYTES: usize = 128 << 10;
/// Bytes of an HTTP/2 request's headers, as HPACK counts them (RFC 9113, 6.5.2).
const HEADER_LIST_BYTES: u32 = 64 << 10;
/// HTTP/2 requests at a time on one connection: what RFC 9113 (6.5.2) recommends as the least.
const STREAMS: u32 = 100;
/// HTTP/2 streams that were reset before they were handled, until the connection ends (rapid reset, CVE-2023-44487).
const RESETS: usize = 20;
/// HTTP/2 streams that the server reset for their errors, until the connection ends.
const ERRORS: usize = 100;
/// Bytes of bodies in flight on an HTTP/2 stream and connection. A request's body is read whole, so that more only
/// fills memory sooner.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of an answer that HTTP/2 keeps for one stream beside the answer itself.
const SEND_BYTES: usize = 256 << 10;
/// How often a silent HTTP/2 peer is asked whether it is there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(20);
/// Bytes that a connection may send without a request or a body becoming of them: a head, an HTTP/2 window that is
/// full, and many thousand frames that say nothing.
const NOISE_BYTES: u64 = 2 << 20;
/// Bytes a second that a body must come at, and an answer be taken at, once its time is over: a slow mobile phone.
const PACE: u64 = 16 << 10;
/// How long a connection has to say goodbye.
const FAREWELL: Duration = Duration::from_secs(1);
/// Files that the process opens for other things than connections: databases, components, outgoing requests.
const OTHER_FILES: u64 = 1_024;
/// How long to wait when no connection can be taken because the machine is out of something.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// What the operator says about connections.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Connections at a time; fewer, where the process may not open as many files. More wait to be taken.
    pub connections: usize,
    /// Connections at a time of one address, an IPv6 address being its /64. A proxy is one address.
    pub connections_per_address: usize,
    /// How long a connection may stay without a request.
    pub idle_timeout_ms: u64,
    /// How long a request's head may take from its first byte.
    pub head_timeout_ms: u64,
    /// How long a body may take before its pace is looked at.
    pub body_timeout_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            // At 10,000 the buffers of idle connections take some 200 MB.
            connections: 10_000,
            connections_per_address: 2_000,
            // As most proxies have it.
            idle_timeout_ms: 60_000,
            // A head is one or two packets.
            head_timeout_ms: 10_000,
            // A usual body is a few packets.
            body_timeout_ms: 10_000,
        }
    }
}

/// What became of connections since the process started.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections that are open.
    pub open: AtomicU64,
    /// Connections that were closed at once, because their address had its share.
    pub refused: AtomicU64,
    /// Connections that were closed for being idle or slow.
    pub expired: AtomicU64,
}

/// Answer requests on connections to `listener` until `stop`; return when the last that runs has been answered.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    config: &Config,
    counts: Arc<Counts>,
    stop: CancellationToken,
) {
    let config = Arc::new(config.clone());
    let places = Places::new(&config);
    let protocols = Arc::new(protocols());
    let connections = TaskTracker::new();
    loop {
        let taken = async {
            // The semaphore is never closed.
            let place = places.all.clone().acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = stop.cancelled() => break,
            taken = taken => taken,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // The peer's own failures concern nobody else; others pass when files or memory are free again.
                if !matches!(error.kind(), std::io::ErrorKind::ConnectionAborted | std::io::ErrorKind::ConnectionReset)
                {
                    tracing::error!(%error, "no connection can be taken");
                    tokio::time::sleep(EXHAUSTED).await;
                }
                continue;
            }
        };
        let Some(share) = places.share(peer.ip()) else {
            counts.refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let connection =
            connection(stream, peer, router.clone(), protocols.clone(), config.clone(), counts.clone(), stop.clone());
        connections.spawn(async move {
            connection.await;
            drop((share, place));
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

fn protocols() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // The time that a head may take is `Activity`'s: hyper's own would also end connections that wait for the next.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(ERRORS)
        .max_header_list_size(HEADER_LIST_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BYTES)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
}

/// Serve one connection to its end.
async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    protocols: Arc<auto::Builder<TokioExecutor>>,
    config: Arc<Config>,
    counts: Arc<Counts>,
    stop: CancellationToken,
) {
    // Answers are written whole; waiting for more to send would delay them (Nagle's algorithm).
    if stream.set_nodelay(true).is_err() {
        return;
    }
    counts.open.fetch_add(1, Ordering::Relaxed);
    let activity = Arc::new(Activity::new());
    let (asked, body_timeout) = (activity.clone(), Duration::from_millis(config.body_timeout_ms));
    let service = tower::service_fn(move |request: Request<Incoming>| {
        let running = Running::begin(&asked, &request);
        let mut request = request.map(|body| Body::new(Paced::new(body, asked.clone(), body_timeout)));
        request.extensions_mut().insert(ConnectInfo(peer));
        let answer = router.clone().oneshot(request);
        async move { answer.await.map(|response| held(response, running)) }
    });
    let wire = TokioIo::new(Wire { stream, activity: activity.clone() });
    let mut served = pin!(protocols.serve_connection(wire, TowerToHyperService::new(service)));
    let head = Duration::from_millis(config.head_timeout_ms);
    let idle = Duration::from_millis(config.idle_timeout_ms);
    // A head that begins from now on is not overdue before this.
    let mut look = pin!(tokio::time::sleep(head.min(idle)));
    let mut stopping = false;
    loop {
        tokio::select! {
            biased;
            // How a stranger's connection ends concerns nobody.
            _ = served.as_mut() => break,
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                served.as_mut().graceful_shutdown();
            }
            () = look.as_mut() => {
                let (now, due) = (Instant::now(), activity.state().due(head, idle));
                if due.is_some_and(|due| due <= now) {
                    counts.expired.fetch_add(1, Ordering::Relaxed);
                    served.as_mut().graceful_shutdown();
                    let _ = tokio::time::timeout(FAREWELL, served.as_mut()).await;
                    break;
                }
                look.as_mut().reset(due.unwrap_or(now + idle).min(now + head));
            }
        }
    }
    counts.open.fetch_sub(1, Ordering::Relaxed);
}

/// An answer whose end is known is the connection's to send; one without is being handled until it ends. After one that
/// was given before the body was read, HTTP/1 does not go on, and the client is told so.
fn held(mut response: Response<Body>, running: Running) -> Response<Body> {
    if running.0.state().unread {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _ = &running;
            frame
        }))
    })
}

/// Places for connections, altogether and of one address.
struct Places {
    all: Arc<Semaphore>,
    addresses: Arc<Mutex<HashMap<IpAddr, usize>>>,
    most: usize,
}

impl Places {
    fn new(config: &Config) -> Self {
        let files = usize::try_from(open_files().saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX);
        let all = config.connections.min(files.max(64));
        Self { all: Arc::new(Semaphore::new(all)), addresses: Arc::default(), most: config.connections_per_address }
    }

    /// A place among its address's; none if they are all taken.
    fn share(&self, address: IpAddr) -> Option<Share> {
        let address = owner(address);
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let count = addresses.entry(address).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Share { addresses: self.addresses.clone(), address })
    }
}

/// Whom an address stands for, where shares are given by address: whoever has one address of a /64 has all of them.
pub(super) fn owner(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address => address,
    }
}

/// Files that this process may open, once it has asked for all that it may ask for.
fn open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    match setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum }) {
        Ok(()) => most,
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

struct Share {
    addresses: Arc<Mutex<HashMap<IpAddr, usize>>>,
    address: IpAddr,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.address);
            }
        }
    }
}

/// What happens on one connection.
struct Activity(Mutex<State>);

struct State {
    /// Requests that are being handled.
    running: usize,
    /// Since when none is.
    waiting: Instant,
    /// When the first byte came after that.
    begun: Option<Instant>,
    /// Bytes of answers that were taken since none runs.
    taken: u64,
    /// Bytes that came since the last request or body.
    noise: u64,
    http2: bool,
    /// The body of the last request has not been read to its end.
    unread: bool,
    lines: Lines,
}

impl Activity {
    fn new() -> Self {
        Self(Mutex::new(State {
            running: 0,
            waiting: Instant::now(),
            begun: None,
            taken: 0,
            noise: 0,
            http2: false,
            unread: false,
            lines: Lines::default(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// When the connection has to end, if nothing else happens on it.
    fn due(&self, head: Duration, idle: Duration) -> Option<Instant> {
        if self.running > 0 {
            return None;
        }
        let idle = self.waiting + idle + Duration::from_secs(self.taken / PACE);
        Some(self.begun.map_or(idle, |begun| idle.min(begun + head)))
    }

    /// Look at what came. False if it is too much.
    fn came(&mut self, bytes: &mut [u8]) -> bool {
        if self.running == 0 && !self.http2 && !bytes.is_empty() {
            self.begun.get_or_insert_with(Instant::now);
            self.lines.spoil(bytes);
        }
        self.noise += bytes.len() as u64;
        self.noise <= NOISE_BYTES
    }
}

/// Lines of a head end in CR LF. A parser that takes LF alone for an end and one that does not read different
/// requests, and hyper's does: a bare LF is spoilt, so that it refuses the request. Looked at is what comes while no
/// request is being handled; what is sent before that (pipelining) is no proxy's doing.
#[derive(Default)]
struct Lines {
    /// The last bytes that came, as far as they are of an empty line.
    matched: usize,
    /// The empty line has come; a body may follow.
    ended: bool,
    /// A bare LF has come. The parser is to be told of no more than the end of this head.
    spoilt: bool,
}

impl Lines {
    fn spoil(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            if self.ended {
                return;
            }
            match (*byte, self.matched) {
                (b'\r', 0 | 2) => self.matched += 1,
                (b'\r', _) => self.matched = 1,
                (b'\n', 1 | 3) => self.matched += 1,
                (b'\n', _) => {
                    *byte = 0;
                    self.spoilt = true;
                }
                _ => self.matched = 0,
            }
            self.ended = self.matched == 4;
        }
    }
}

/// A request that is being handled.
struct Running(Arc<Activity>);

impl Running {
    fn begin(activity: &Arc<Activity>, request: &Request<Incoming>) -> Self {
        let mut state = activity.state();
        state.running += 1;
        state.begun = None;
        state.noise = 0;
        state.http2 = request.version() == Version::HTTP_2;
        state.unread = !state.http2 && !request.body().is_end_stream();
        Self(activity.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.running -= 1;
        if state.running == 0 {
            state.waiting = Instant::now();
            state.taken = 0;
            state.lines = Lines::default();
        }
    }
}

/// The bytes of a connection, looked at as they pass.
struct Wire {
    stream: TcpStream,
    activity: Arc<Activity>,
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if std::mem::take(&mut self.activity.state().lines.spoilt) {
            buffer.put_slice(&b"\r\n\r\n"[..buffer.remaining().min(4)]);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let within = self.activity.state().came(&mut buffer.filled_mut()[before..]);
        Poll::Ready(if within { Ok(()) } else { Err(std::io::ErrorKind::QuotaExceeded.into()) })
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.activity.state().taken += written as u64;
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices))?;
        self.activity.state().taken += written as u64;
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A request's body that has to keep its pace.
struct Paced {
    body: Incoming,
    activity: Arc<Activity>,
    began: Instant,
    timeout: Duration,
    bytes: u64,
    /// Armed when the peer was waited for the first time, which it is for few bodies.
    late: Option<Pin<Box<Sleep>>>,
}

/// A body came too slowly.
#[derive(Debug)]
pub struct TooSlow;

impl std::fmt::Display for TooSlow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the body came too slowly")
    }
}

impl std::error::Error for TooSlow {}

impl Paced {
    fn new(body: Incoming, activity: Arc<Activity>, timeout: Duration) -> Self {
        Self { body, activity, began: Instant::now(), timeout, bytes: 0, late: None }
    }

    fn due(&self) -> Instant {
        self.began + self.timeout + Duration::from_secs(self.bytes / PACE)
    }
}

impl hyper::body::Body for Paced {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            let bytes = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref().map(Bytes::len)).unwrap_or(0);
            self.bytes += bytes as u64;
            let mut state = self.activity.state();
            if bytes > 0 {
                state.noise = 0;
            }
            if frame.is_none() || self.body.is_end_stream() {
                state.unread = false;
            }
            drop(state);
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let due = self.due();
        let late = self.late.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if late.deadline() < due {
            late.as_mut().reset(due);
        }
        ready!(late.as_mut().poll(cx));
        Poll::Ready(Some(Err(TooSlow.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
