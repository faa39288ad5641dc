//! No byte of one tenant reaches another: three tenants with random 128-bit markers in everything that they store, send,
//! log and leave in memory, and a mix of requests to every route and through every host function.
//!
//! Every byte that comes back is searched for all markers at once. A marker may come to its owner, or to whoever wrote
//! it into the request, and to nobody else; one that a guest left in its memory may come to nobody. The requests, their
//! number in the mix giving each its random numbers, stand in [`mix`]. That the search is not blind is seen by markers
//! that do come to their owners, and by promises that are broken on purpose.

mod mix;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use aho_corasick::AhoCorasick;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chalet::cli::build;
use chalet::services::plugins::manifest::Manifest;
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use reqwest::{Method, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use self::mix::{Ask, Credential};
use crate::kit::guests::component;
use crate::kit::oracle::Watch;
use crate::kit::server::{Server, Setup, expect};
use crate::kit::soak;
use crate::kit::wire::Wire;

/// Requests on each engine. What differs between them is how rows are kept, so PostgreSQL, which takes longer, gets fewer.
const ON_SQLITE: usize = 94_000;
const ON_POSTGRES: usize = 6_000;
/// Requests after which a broken promise must have shown itself.
const CONTROL: usize = 10_000;
/// Connections at a time, each with requests of all tenants.
const LANES: usize = 16;
const TENANTS: [&str; 3] = ["acme", "globex", "initech"];
/// Keys of each tenant, so that the rate of one key does not end the mix.
const KEYS: usize = 12;

/// Where markers are put: each tenant has one for each, so that a leak tells whence it came.
const PLACES: [&str; 15] = [
    "entry",
    "entry-key",
    "secret",
    "secret-name",
    "flag",
    "limit-name",
    "meter",
    "event",
    "dimension",
    "key-name",
    "log",
    "reason",
    "header",
    "sent",
    MEMORY,
];
/// What a guest leaves in its memory.
const MEMORY: &str = "memory";
/// Places whose markers come back to their owner in answers to requests that do not hold them.
const SHOWN: [&str; 12] = [
    "entry",
    "entry-key",
    "secret",
    "secret-name",
    "flag",
    "limit-name",
    "meter",
    "event",
    "dimension",
    "key-name",
    "log",
    "reason",
];

/// A tenant of the mix.
struct Own {
    name: &'static str,
    keys: Vec<String>,
    markers: BTreeMap<&'static str, String>,
}

impl Own {
    fn marker(&self, place: &str) -> &str {
        &self.markers[place]
    }
}

/// Everything that the requests and their judge share.
struct World {
    seed: u64,
    tenants: Vec<Own>,
    upstream: String,
    /// Finds the marker of tenant `n / PLACES.len()` for the place `n % PLACES.len()`, where `n` is a [`FORMS`]th of the
    /// pattern's number.
    finder: AhoCorasick,
    /// What answers gave that later requests name: ids of invocations, of keys, and cursors, of any tenant.
    invocations: Mutex<Vec<String>>,
    made_keys: Mutex<Vec<String>>,
    cursors: Mutex<Vec<String>>,
    found: Mutex<Found>,
}

/// What came of it.
#[derive(Debug, Default)]
struct Found {
    leaks: Vec<String>,
    /// Markers that each tenant's keys ever sent.
    sent: BTreeMap<usize, BTreeSet<(usize, &'static str)>>,
    /// Requests of each kind, and those that were answered with success.
    asked: BTreeMap<String, (usize, usize)>,
    /// Places whose markers came to their owner without being in the request.
    shown: BTreeSet<&'static str>,
    /// Markers that a guest showed of what it had just filled its own memory with.
    own_memory: usize,
    bytes: usize,
}

impl World {
    /// The markers in some bytes: whose, and for which place.
    fn markers(&self, bytes: &[u8]) -> BTreeSet<(usize, &'static str)> {
        let found = self.finder.find_iter(bytes).map(|found| found.pattern().as_usize() / FORMS);
        found.map(|n| (n / PLACES.len(), PLACES[n % PLACES.len()])).collect()
    }

    /// `bytes` came to `reader`, who had sent `given`.
    fn judge(&self, what: &str, reader: Option<usize>, given: &[u8], bytes: &[u8]) {
        let mut given = self.markers(given);
        let came = self.markers(bytes);
        let mut found = self.found.lock().expect("no panic");
        if let Some(reader) = reader {
            found.sent.entry(reader).or_default().extend(&given);
            // A log of denials says what was asked for, in the asker's own words.
            if what.contains("/audit") {
                given.extend(&found.sent[&reader]);
            }
        }
        found.bytes += bytes.len();
        for (owner, place) in came.difference(&given) {
            if reader == Some(*owner) && *place != MEMORY {
                found.shown.insert(place);
            } else {
                let reader = reader.map_or("a stranger", |reader| self.tenants[reader].name);
                found.leaks.push(format!("{place} of {} came to {reader} in {what}", self.tenants[*owner].name));
            }
        }
    }

    async fn ask(&self, wire: &mut Wire, ask: Ask) {
        let Ask { what, by, method, path, headers, body } = ask;
        let mut sent = headers.clone();
        match by {
            Credential::Tenant(tenant, key) => {
                sent.push(("authorization", format!("Bearer {}", self.tenants[tenant].keys[key])))
            }
            Credential::Operator => sent.push(("authorization", format!("Bearer {}", crate::kit::server::ADMIN))),
            Credential::None | Credential::Signature(_) => {}
        }
        let answer = wire.ask(&method, &path, &sent, &body).await;
        let reader = match by {
            Credential::Tenant(tenant, _) | Credential::Signature(tenant) => Some(tenant),
            Credential::Operator | Credential::None => None,
        };
        let mut given = path.clone().into_bytes();
        headers.iter().for_each(|(_, value)| given.extend_from_slice(value.as_bytes()));
        given.extend_from_slice(&body);
        self.judge(&format!("{method} {path}"), reader, &given, &answer.bytes);
        if let Some(id) = answer.header("chalet-invocation") {
            mix::remember(&self.invocations, id.to_owned());
        }
        mix::learn(self, what, by, answer.status, answer.body());
        let mut found = self.found.lock().expect("no panic");
        let count = found.asked.entry(what.to_owned()).or_default();
        count.0 += 1;
        count.1 += usize::from((200..300).contains(&answer.status));
        if what == mix::SHOW_OWN_MEMORY && answer.status == 200 {
            found.own_memory += self.finder.find_iter(answer.body()).count();
        }
    }
}

/// An echo that guests may send to: each request names its tenant in its path, and must hold nothing of another's.
async fn upstream() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    (listener, address)
}

async fn echo(listener: &TcpListener, world: &World) {
    let answer = async |mut stream: tokio::net::TcpStream| {
        let mut request = Vec::new();
        let ended = |request: &[u8]| {
            let head = request.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)?;
            let text = String::from_utf8_lossy(&request[..head]).to_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            (request.len() >= head + length.unwrap_or(0)).then_some(head)
        };
        let head = loop {
            if let Some(head) = ended(&request) {
                break head;
            }
            if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let text = String::from_utf8_lossy(&request).into_owned();
        let tenant = TENANTS.iter().position(|name| text.starts_with(&format!("POST /{name} ")));
        world.judge("a request to the outside", tenant, b"", &request);
        let body = &request[head..];
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        let _ = stream.write_all(&[answer.as_bytes(), body].concat()).await;
    };
    let mut answers = futures_util::stream::FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => answers.push(answer(accepted.expect("it listens").0)),
            Some(()) = futures_util::StreamExt::next(&mut answers) => {}
        }
    }
}

/// The guest with a grant for the echo.
fn guest(upstream: &str) -> Vec<u8> {
    let component = component("guest-markers");
    let mut manifest = Manifest::from_component(&component).expect("a manifest");
    manifest.grants.egress.push(upstream.to_owned());
    build::embed_instead(&component, &manifest).expect("embedded")
}

/// Forms in which a marker is looked for.
const FORMS: usize = 4;

/// A marker as it is, and what is sure of it in Base64, as cursors are written, behind any number of other bytes.
fn forms(marker: &str) -> [String; FORMS] {
    let behind = |others: usize| {
        let text = URL_SAFE_NO_PAD.encode([&b"\0\0"[..others], marker.as_bytes()].concat());
        // The characters at both ends stand for other bytes as well.
        text[(others * 8).div_ceil(6)..text.len() - 1].to_owned()
    };
    [marker.to_owned(), behind(0), behind(1), behind(2)]
}

/// Make the tenants, each with all that it stores.
async fn settle(server: &Server, seed: u64, upstream: &str) -> World {
    server.unlimited().await;
    let mut random = StdRng::seed_from_u64(seed);
    let guest = guest(upstream);
    let mut tenants = Vec::new();
    for name in TENANTS {
        let tenant = server.tenant(name).await;
        let markers: BTreeMap<_, _> =
            PLACES.into_iter().map(|place| (place, format!("{:032x}", random.random::<u128>()))).collect();
        tenant.deploy_bytes("guest-markers", guest.clone()).await;
        tenant.deploy("guest-hello").await;
        let mut keys = vec![tenant.key.clone()];
        for _ in 1..KEYS {
            keys.push(tenant.mint(&["tenant:admin"]).await);
        }
        tenant.secret("M", &markers["secret"]).await;
        tenant.secret("EVENTS", &markers["secret"]).await;
        let own = Own { name, keys, markers };
        for document in ["flags", "limits"] {
            let given = mix::document(&own, document);
            expect(tenant.api(Method::PUT, &format!("/{document}")).json(&given), StatusCode::OK).await;
        }
        tenants.push(own);
    }
    let patterns = tenants.iter().flat_map(|own| PLACES.map(|place| forms(own.marker(place)))).flatten();
    let finder = AhoCorasick::builder().ascii_case_insensitive(true).build(patterns).expect("a finder");
    World {
        seed,
        tenants,
        upstream: upstream.to_owned(),
        finder,
        invocations: Mutex::default(),
        made_keys: Mutex::default(),
        cursors: Mutex::default(),
        found: Mutex::default(),
    }
}

/// Send so many requests of the mix to a server that breaks this promise, if one is named: then until one leaks.
async fn mixed(setup: Setup, requests: usize, breaks: Option<&str>) -> Found {
    let seed = soak::seed();
    let (listener, address) = upstream().await;
    let setup = setup.with("CHALET_EGRESS_LOCAL", &address);
    let mut server = Server::start_with(setup.clone());
    let world = settle(&server, seed, &address).await;
    if let Some(breaks) = breaks {
        server.stop();
        server = Server::start_on(setup.with("CHALET_BREAK", breaks), server.data.clone());
        // Rows that are another tenant's are rows that cannot be read.
        server.allow_errors();
    }
    let next = AtomicUsize::new(0);
    let begun = std::time::Instant::now();
    let lane = async |end: usize| {
        let mut wire = Wire::to(&server);
        loop {
            let leaked = || !world.found.lock().expect("no panic").leaks.is_empty();
            if next.load(Ordering::Relaxed) >= end || (breaks.is_some() && leaked()) {
                return;
            }
            world.ask(&mut wire, mix::ask(&world, next.fetch_add(1, Ordering::Relaxed))).await;
        }
    };
    let until = |end: usize| join_all((0..LANES).map(move |_| end).map(&lane));
    let all = async {
        // By the watch's beginning caches hold what they are going to hold: after a fifth they do not yet.
        until(requests / 2).await;
        let watch = if breaks.is_none() { Some(Watch::begin(&server).await) } else { None };
        until(requests).await;
        if let Some(watch) = watch {
            watch.end(&server).await;
        }
    };
    tokio::select! {
        () = all => {}
        () = echo(&listener, &world) => {}
    }
    let found = world.found.into_inner().expect("no panic");
    let asked: usize = found.asked.values().map(|(asked, _)| asked).sum();
    println!("seed {seed}: {asked} requests, {} MiB came back, {:?}", found.bytes >> 20, begun.elapsed());
    found
}

fn nothing_leaked_and_everything_was_tried(found: &Found) {
    assert_eq!(found.leaks, Vec::<String>::new());
    let missing: Vec<_> = SHOWN.iter().filter(|place| !found.shown.contains(**place)).collect();
    assert!(missing.is_empty(), "the search never saw {missing:?}, so it would see no leak of them");
    assert!(found.own_memory > 10_000, "a guest saw its own memory only {} times", found.own_memory);
    let failed: Vec<_> = found.asked.iter().filter(|(_, (_, ok))| *ok == 0).map(|(what, _)| what).collect();
    assert_eq!(failed, mix::NEVER_OK, "{:#?}", found.asked);
    for operation in mix::operations() {
        assert!(found.asked.contains_key(&operation), "{operation} was never asked");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_of_a_tenant_reaches_another_on_sqlite() {
    nothing_leaked_and_everything_was_tried(&mixed(Setup::sqlite(), soak::count(ON_SQLITE), None).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_of_a_tenant_reaches_another_on_postgres() {
    let setup = Setup::postgres().await;
    nothing_leaked_and_everything_was_tried(&mixed(setup, soak::count(ON_POSTGRES), None).await);
}

/// The mix on a server that breaks this promise finds a leak.
async fn notices(setup: Setup, breaks: &str) {
    let found = mixed(setup, CONTROL, Some(breaks)).await;
    println!("{breaks}: {:?}", found.leaks);
    assert!(!found.leaks.is_empty(), "{breaks} went unnoticed in {CONTROL} requests");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_opens_every_tenant_is_noticed() {
    notices(Setup::sqlite(), "tenant").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_does_not_ask_for_the_tenant_is_noticed() {
    notices(Setup::sqlite(), "cache_tenant").await;
    notices(Setup::postgres().await, "cache_tenant").await;
}
