//! Connections that are held, fed slowly, never read, or flooded: each ends at its bound, and others do not notice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Method;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use crate::kit::oracle::Watch;
use crate::kit::raw;
use crate::kit::server::{Server, Setup};

/// How long a connection that has to end may take to, many times what the servers here are told.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server with these settings of connections.
fn set(settings: &str) -> Server {
    let data = TempDir::new().expect("a temporary folder");
    std::fs::write(data.path().join("chalet.toml"), format!("[connections]\n{settings}")).expect("written");
    Server::start_on(Setup::sqlite(), Arc::new(data))
}

/// A server that waits for nobody, and for an idle connection so long.
fn hasty(idle: Duration) -> Server {
    let idle = idle.as_millis();
    set(&format!(
        "idle_timeout_ms = {idle}\nhead_timeout_ms = 500\nbody_timeout_ms = 500\nconnections_per_address = 1000\n"
    ))
}

/// A server whose operator has lifted the bounds, to see that they are what ends the attacks here.
fn patient() -> Server {
    let hour = 3_600_000;
    set(&format!(
        "idle_timeout_ms = {hour}\nhead_timeout_ms = {hour}\nbody_timeout_ms = {hour}\nconnections_per_address = 1000000\n"
    ))
}

/// How long the servers here wait for an idle connection, if nothing else is said.
const IDLE: Duration = Duration::from_millis(1_500);

/// Wait until a metric of the server is as `enough` wants it.
async fn reaches(server: &Server, metric: &str, enough: impl Fn(f64) -> bool) {
    let until = Instant::now() + 2 * PATIENCE;
    loop {
        let value = server.metric(metric).await;
        if enough(value) {
            return;
        }
        assert!(Instant::now() < until, "{metric} stays at {value}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Send these bytes, and then one more again and again, until the server ends the connection; what it said.
async fn trickle(url: &str, first: &[u8], more: u8) -> String {
    let mut stream = raw::connect(url).await;
    stream.write_all(first).await.expect("sent");
    let (mut reader, mut writer) = stream.into_split();
    let feeder = tokio::spawn(async move {
        while writer.write_all(&[more]).await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    });
    let mut said = Vec::new();
    let ended = timeout(PATIENCE, reader.read_to_end(&mut said)).await;
    feeder.abort();
    let _ = ended.unwrap_or_else(|_| panic!("the server goes on: {:?}", String::from_utf8_lossy(&said)));
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_slowly_is_cut_off() {
    let server = hasty(IDLE);
    let watch = Watch::begin(&server).await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-kv").await;
    let url = &server.url;
    let key = &acme.key;
    let body = |line: &str| {
        format!("{line} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: 1000\r\n\r\n")
    };
    let chunked = format!(
        "PUT /v1/tenants/acme/kv/c/k HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    let (put, run) = (body("PUT /v1/tenants/acme/kv/c/k"), body("POST /t/acme/guest-kv/run"));
    let upload = body("PUT /v1/tenants/acme/plugins/start");
    let bodies = async {
        let (put, run, upload, chunked) = tokio::join!(
            trickle(url, put.as_bytes(), b'x'),
            trickle(url, run.as_bytes(), b'x'),
            trickle(url, upload.as_bytes(), b'x'),
            trickle(url, chunked.as_bytes(), b'0')
        );
        for said in [put, run, upload, chunked] {
            assert!(said.starts_with("HTTP/1.1 408 ") && said.contains("body_too_slow"), "{said}");
        }
    };
    let heads = async {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        tokio::join!(
            trickle(url, b"GET /healthz HTTP/1.1\r\nx: ", b'y'),
            trickle(url, b"GET /", b'y'),
            trickle(url, b"P", b'R'),
            trickle(url, preface, 0),
        );
        // A connection that was used before is bound no less.
        let said = trickle(url, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /healthz HTTP/1.1\r\nx: ", b'y').await;
        assert_eq!(said.matches("HTTP/1.1 200").count(), 1, "{said}");
    };
    let idle = async {
        for first in ["", "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"] {
            let mut stream = raw::connect(url).await;
            stream.write_all(first.as_bytes()).await.expect("sent");
            let (started, mut said) = (Instant::now(), Vec::new());
            timeout(PATIENCE, stream.read_to_end(&mut said)).await.expect("it ends").expect("in good order");
            assert!(started.elapsed() >= Duration::from_millis(1_400), "it had its time: {:?}", started.elapsed());
            assert_eq!(said.is_empty(), first.is_empty());
        }
    };
    tokio::join!(bodies, heads, idle);
    assert!(
        server.metric("chalet_connections_expired_total").await >= 5.0,
        "the connections were ended for their slowness"
    );
    watch.end(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_bounds_a_server_waits_for_whoever_sends_slowly() {
    let server = patient();
    let acme = server.tenant("acme").await;
    let put = format!(
        "PUT /v1/tenants/acme/kv/c/k HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 1000\r\n\r\n",
        acme.key
    );
    let mut held = Vec::new();
    for first in ["", "GET /healthz HTTP/1.1\r\nx: ", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &put] {
        let mut stream = raw::connect(&server.url).await;
        stream.write_all(first.as_bytes()).await.expect("sent");
        held.push((first, stream));
    }
    // Twice the longest time that a hasty server gives any of them.
    sleep(2 * IDLE).await;
    for (first, stream) in &mut held {
        let mut said = [0; 4_096];
        // HTTP/2 has its settings to say.
        let open = match timeout(Duration::from_millis(100), stream.read(&mut said)).await {
            Err(_) => true,
            Ok(read) => first.starts_with("PRI") && read.is_ok_and(|read| read > 0),
        };
        assert!(open, "{first:?} was ended");
    }
    assert_eq!(server.metric("chalet_connections_expired_total").await, 0.0);
    assert!(server.metric("chalet_connections").await >= held.len() as f64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_comes_at_its_pace_may_take_longer() {
    let server = hasty(IDLE);
    let acme = server.tenant("acme").await;
    let mut stream = raw::connect(&server.url).await;
    let (chunk, chunks) = (vec![b'x'; 4 << 10], 30);
    let head = format!(
        "PUT /v1/tenants/acme/kv/c/k HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
        acme.key,
        chunk.len() * chunks
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    let started = Instant::now();
    for _ in 0..chunks {
        stream.write_all(&chunk).await.expect("sent");
        sleep(Duration::from_millis(40)).await;
    }
    assert!(started.elapsed() > Duration::from_millis(1_000), "it took longer than a slow body may");
    assert_eq!(raw::read(&mut stream).await.statuses(), [201]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_never_reads_the_answers_is_cut_off() {
    let server = hasty(IDLE);
    let acme = server.tenant("acme").await;
    let put = acme.api(Method::PUT, "/kv/c/large").body(vec![b'x'; 256 << 10]);
    assert_eq!(put.send().await.expect("an answer").status(), 201);
    let watch = Watch::begin(&server).await;
    let ask =
        format!("GET /v1/tenants/acme/kv/c/large HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n", acme.key);
    let before = server.metric("chalet_connections_expired_total").await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut stream = raw::connect(&server.url).await;
        stream.write_all(ask.repeat(100).as_bytes()).await.expect("sent");
        held.push(stream);
    }
    reaches(&server, "chalet_connections_expired_total", |ended| ended >= before + 3.0).await;
    watch.end(&server).await;
}

/// Five thousand connections of two other loopback addresses, as far as they are taken, which say nothing.
async fn crowd(server: &Server) -> Vec<TcpStream> {
    // Both ends of them, and the rest.
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum })
        .expect("up to the hard limit");
    let server_address: SocketAddr = server.url.trim_start_matches("http://").parse().expect("an address");
    let mut held = Vec::new();
    for n in 0..5_000_u32 {
        let socket = TcpSocket::new_v4().expect("a socket");
        let from = if n % 2 == 0 { [127, 0, 0, 2] } else { [127, 0, 0, 3] };
        socket.bind(SocketAddr::from((from, 0))).expect("every loopback address is ours");
        if let Ok(stream) = socket.connect(server_address).await {
            held.push(stream);
        }
    }
    held
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_connections_take_no_place_from_others() {
    // It waits longer than it takes to open them all; the share of an address is a thousand.
    let server = hasty(Duration::from_secs(10));
    let watch = Watch::begin(&server).await;
    let held = crowd(&server).await;
    // Those above their address's share are refused at once, and the others end at their time.
    reaches(&server, "chalet_connections_refused_total", |refused| refused >= 2_900.0).await;
    reaches(&server, "chalet_connections", |open| open < 50.0).await;
    let took = watch.end(&server).await;
    println!(
        "{} connections were held; the slowest of {} calls beside them took {:?}",
        held.len(),
        took.len(),
        took.last()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_bounds_a_server_holds_whatever_comes() {
    let server = patient();
    let held = crowd(&server).await;
    reaches(&server, "chalet_connections", |open| open >= held.len() as f64).await;
    // Longer than it takes where they are refused.
    sleep(Duration::from_secs(1)).await;
    let open = server.metric("chalet_connections").await;
    assert!(held.len() >= 4_900 && open >= held.len() as f64, "{open} of {} are open", held.len());
    assert_eq!(server.metric("chalet_connections_refused_total").await, 0.0);
    assert_eq!(server.metric("chalet_connections_expired_total").await, 0.0);
}

/// A frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).expect("short").to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW: u8 = 8;
const CONTINUATION: u8 = 9;
/// A GOAWAY's code for a peer that asks too much.
const ENHANCE_YOUR_CALM: u32 = 11;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `POST http://x/healthz` as HPACK has it (RFC 7541): three indexed fields and two literals.
const POST: &[u8] = b"\x83\x86\x04\x08/healthz\x01\x01x";
/// `GET` of the same.
const GET: &[u8] = b"\x82\x86\x04\x08/healthz\x01\x01x";

/// What became of a flood.
struct Flood {
    frames: u32,
    /// The code of the last GOAWAY.
    goaway: Option<u32>,
    ended: bool,
}

/// Open a connection with these settings, send `frames(0)`, `frames(1)` and so on until the server ends it.
async fn flood(url: &str, settings: &[u8], most: u32, frames: impl Fn(u32) -> Vec<u8>) -> Flood {
    let mut stream = raw::connect(url).await;
    stream.set_nodelay(true).expect("set");
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("sent");
    stream.write_all(&frame(SETTINGS, 0, 0, settings)).await.expect("sent");
    let (mut reader, mut writer) = stream.into_split();
    let reading = tokio::spawn(async move {
        let (mut said, mut goaway) = (Vec::new(), None);
        let mut buffer = vec![0; 64 << 10];
        while let Ok(n @ 1..) = reader.read(&mut buffer).await {
            said.extend_from_slice(&buffer[..n]);
            while said.len() >= 9 {
                let length = usize::from(said[0]) << 16 | usize::from(said[1]) << 8 | usize::from(said[2]);
                if said.len() < 9 + length {
                    break;
                }
                if said[3] == GOAWAY && length >= 8 {
                    goaway = said[13..17].try_into().ok().map(u32::from_be_bytes);
                }
                said.drain(..9 + length);
            }
        }
        goaway
    });
    let mut sent = 0;
    // Many at a time, as an attacker would.
    while sent < most {
        let batch: Vec<u8> = (sent..most.min(sent + 64)).flat_map(&frames).collect();
        match timeout(PATIENCE, writer.write_all(&batch)).await {
            Ok(Ok(())) => sent += 64,
            _ => break,
        }
    }
    let ended = timeout(PATIENCE, reading).await;
    Flood { frames: sent, ended: ended.is_ok(), goaway: ended.ok().and_then(|goaway| goaway.expect("no panic")) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_frames_ends_its_connection() {
    let server = hasty(IDLE);
    let watch = Watch::begin(&server).await;
    let url = &server.url;
    let id = |n: u32| 2 * n + 1;
    // An entry of 4,000 bytes in the table of the connection, and a header block that names it 4,000 times.
    let entry = [b"\x40\x01x\x7f\xa1\x1e".as_slice(), &[b'y'; 4_000]].concat();
    let bomb = [GET, entry.as_slice(), &[0xbe; 4_000]].concat();
    const MANY: u32 = 1 << 20;
    let cases: Vec<(&str, u32, Box<dyn Fn(u32) -> Vec<u8>>)> = vec![
        (
            "rapid reset",
            MANY,
            Box::new(|n| {
                [frame(HEADERS, END_STREAM | END_HEADERS, id(n), GET), frame(RESET, 0, id(n), &[0, 0, 0, 8])].concat()
            }),
        ),
        ("streams that stay open", MANY, Box::new(|n| frame(HEADERS, END_HEADERS, id(n), POST))),
        (
            "requests that are not read",
            MANY,
            Box::new(|n| frame(HEADERS, END_STREAM | END_HEADERS, id(n), b"\xff\xff\xff")),
        ),
        (
            "headers that never end",
            MANY,
            Box::new(|n| if n == 0 { frame(HEADERS, 0, 1, GET) } else { frame(CONTINUATION, 0, 1, b"\x00\x01x\x01y") }),
        ),
        (
            "empty continuations",
            MANY,
            Box::new(|n| if n == 0 { frame(HEADERS, 0, 1, GET) } else { frame(CONTINUATION, 0, 1, b"") }),
        ),
        ("an HPACK bomb", MANY, Box::new(|n| frame(HEADERS, END_STREAM | END_HEADERS, id(n), &bomb))),
        (
            "empty data",
            MANY,
            Box::new(|n| if n == 0 { frame(HEADERS, END_HEADERS, 1, POST) } else { frame(DATA, 0, 1, b"") }),
        ),
        (
            "data of one byte",
            MANY,
            Box::new(|n| if n == 0 { frame(HEADERS, END_HEADERS, 1, POST) } else { frame(DATA, 0, 1, b"x") }),
        ),
        (
            "padding alone",
            MANY,
            Box::new(|n| {
                if n == 0 { frame(HEADERS, END_HEADERS, 1, POST) } else { frame(DATA, 8, 1, &[7, 0, 0, 0, 0, 0, 0, 0]) }
            }),
        ),
        ("settings", MANY, Box::new(|_| frame(SETTINGS, 0, 0, b""))),
        ("acknowledgements", MANY, Box::new(|_| frame(SETTINGS, 1, 0, b""))),
        ("pings", MANY, Box::new(|_| frame(PING, 0, 0, b"12345678"))),
        ("pongs", MANY, Box::new(|_| frame(PING, 1, 0, b"12345678"))),
        ("priorities", MANY, Box::new(|n| frame(PRIORITY, 0, id(n), &[0, 0, 0, 0, 9]))),
        ("window updates", MANY, Box::new(|_| frame(WINDOW, 0, 0, &[0, 0, 0, 1]))),
        ("window updates that overflow", MANY, Box::new(|_| frame(WINDOW, 0, 0, &[0x7f, 0xff, 0xff, 0xff]))),
        ("frames of no known kind", MANY, Box::new(|_| frame(0xbe, 0, 0, b""))),
        ("resets of streams that never were", MANY, Box::new(|n| frame(RESET, 0, id(n), &[0, 0, 0, 8]))),
        (
            "a frame that is too long",
            MANY,
            Box::new(|n| if n == 0 { b"\xff\xff\xff\x00\x00\x00\x00\x00\x01".to_vec() } else { vec![0; 1 << 10] }),
        ),
        ("a body that is announced and does not come", 1, Box::new(|_| frame(HEADERS, END_HEADERS, 1, POST))),
        ("a head that does not come", 1, Box::new(|_| frame(HEADERS, 0, 1, GET))),
        ("nothing", 0, Box::new(|_| Vec::new())),
    ];
    // What costs a server most is answered as the protocol says (RFC 9113, 7).
    let told = ["rapid reset", "headers that never end", "empty continuations", "an HPACK bomb", "empty data"];
    for (what, most, frames) in cases {
        let flood = flood(url, b"", most, frames).await;
        println!("{what}: {} frames, GOAWAY {:?}", flood.frames, flood.goaway);
        assert!(flood.ended && (most < MANY || flood.frames < MANY), "{what}: the server takes it");
        if told.contains(&what) {
            assert_eq!(flood.goaway, Some(ENHANCE_YOUR_CALM), "{what}");
        }
    }
    // Answers to a peer that opens no window for them.
    let closed = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])[9..].to_vec();
    let stalled = flood(url, &closed, 100, |n| frame(HEADERS, END_STREAM | END_HEADERS, id(n), GET)).await;
    assert!(stalled.ended, "a peer that never takes its answers is cut off");
    watch.end(&server).await;
}

/// Not a test of the server but of this file's own frames: a request that is written with them is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_as_they_are_written_here_are_understood() {
    let server = Server::start();
    let mut stream: TcpStream = raw::connect(&server.url).await;
    let request = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(SETTINGS, 0, 0, b""),
        frame(HEADERS, END_STREAM | END_HEADERS, 1, GET),
    ];
    stream.write_all(&request.concat()).await.expect("sent");
    let answers = raw::read(&mut stream).await;
    assert!(answers.text.contains("ok\n") && !answers.closed, "{answers:?}");
}
