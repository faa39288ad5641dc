//! Names whose servers are hostile: slow, silent, lying or endless. The resolver is the machine's, told to ask a server of
//! the test's own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

use crate::http::hostile::{canary, kind, send, tenant};
use crate::http::network;
use crate::kit::oracle::Watch;
use crate::kit::server::{Server, Setup, expect};
use crate::kit::soak;

/// Look-ups of one tenant at a time.
const TENANT_LOOKUPS: usize = 4;

/// What was asked for: each name, how often.
type Asked = Arc<Mutex<BTreeMap<String, usize>>>;

/// The name of a question, and where the question ends (RFC 1035, 4.1.2).
fn question(query: &[u8]) -> Option<(String, usize)> {
    let (mut name, mut at) = (String::new(), 12);
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            return Some((name, at + 4));
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(std::str::from_utf8(query.get(at..at + length)?).ok()?);
        at += length;
    }
}

/// An answer to a query: its flags and code beside "answer, recursion available", and records of the name itself.
fn answer(query: &[u8], end: usize, flags: u16, records: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut answer = query[..2].to_vec();
    answer.extend((0x8180 | flags).to_be_bytes());
    answer.extend([0, 1]);
    answer.extend(u16::try_from(records.len()).expect("few").to_be_bytes());
    answer.extend([0; 4]);
    answer.extend(&query[12..end]);
    for (kind, data) in records {
        answer.extend([0xc0, 12]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1, 0, 0, 0, 0]);
        answer.extend(u16::try_from(data.len()).expect("short").to_be_bytes());
        answer.extend(data);
    }
    answer
}

const A: u16 = 1;
const ALIAS: u16 = 5;
const TRUNCATED: u16 = 0x200;
const NO_SUCH_NAME: u16 = 3;
const REFUSED: u16 = 5;

/// What the server says to a query, if anything: the first label of the name says what it is to try.
fn said(query: &[u8], tcp: bool, asked: &Asked) -> Option<Vec<u8>> {
    let (name, end) = question(query)?;
    *asked.lock().expect("no panic").entry(name.to_lowercase()).or_default() += 1;
    let ipv4 = query[end - 4..end - 2] == A.to_be_bytes();
    let a = |address: [u8; 4]| (A, address.to_vec());
    let records = |records: &[(u16, Vec<u8>)]| answer(query, end, 0, if ipv4 { records } else { &[] });
    let first = name.split(['.', '-']).next().unwrap_or_default();
    Some(match first {
        "slow" => return None,
        "near" => records(&[a([127, 0, 0, 1])]),
        "private" => records(&[a([10, 0, 0, 1])]),
        "mixed" => records(&[a([8, 8, 8, 8]), a([127, 0, 0, 1])]),
        // As many as 64 KiB hold, all of them public; over UDP there is room for none.
        "many" if !tcp => answer(query, end, TRUNCATED, &[]),
        "many" => {
            records(&(0..4_000_u16).map(|n| a([8, 8, n.to_be_bytes()[0], n.to_be_bytes()[1]])).collect::<Vec<_>>())
        }
        // Itself, so that it never ends.
        "alias" => records(&[(ALIAS, vec![0xc0, 12])]),
        "garbage" => query[..2].iter().copied().chain((0..200).map(|n| n ^ 0x5a)).collect(),
        // The answer to another question, under this one's number.
        "liar" => answer(b"\0\0\x01\0\0\x01\0\0\0\0\0\0\x04evil\0\0\x01\0\x01", 22, 0, &[a([127, 0, 0, 1])])
            .iter()
            .enumerate()
            .map(|(at, byte)| if at < 2 { query[at] } else { *byte })
            .collect(),
        "refused" => answer(query, end, REFUSED, &[]),
        _ => answer(query, end, NO_SUCH_NAME, &[]),
    })
}

/// A name server at the one port that resolvers know.
async fn name_server(asked: &Asked) -> Ipv4Addr {
    let address = Ipv4Addr::new(127, 0, 0, 53);
    let udp = UdpSocket::bind((address, 53)).await.expect("the network is this test's own");
    let tcp = TcpListener::bind((address, 53)).await.expect("the network is this test's own");
    let (over_udp, over_tcp) = (asked.clone(), asked.clone());
    tokio::spawn(async move {
        let mut query = [0; 512];
        while let Ok((length, peer)) = udp.recv_from(&mut query).await {
            if let Some(answer) = said(&query[..length], false, &over_udp) {
                let _ = udp.send_to(&answer, peer).await;
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let asked = over_tcp.clone();
            tokio::spawn(async move {
                // A resolver may ask for several addresses on one connection.
                while let Ok(length) = stream.read_u16().await {
                    let mut query = vec![0; length.into()];
                    stream.read_exact(&mut query).await?;
                    if let Some(answer) = said(&query, true, &asked) {
                        stream.write_u16(u16::try_from(answer.len()).expect("64 KiB")).await?;
                        stream.write_all(&answer).await?;
                    }
                }
                std::io::Result::Ok(())
            });
        }
    });
    address
}

#[test]
fn a_hostile_name_costs_its_tenant_a_bounded_time_and_nobody_else_anything() {
    println!("{}", network::alone("http::names::be_asked"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the body of the process that another test starts"]
async fn be_asked() {
    network::up();
    let asked = Asked::default();
    let address = name_server(&asked).await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let resolver = folder.path().join("resolv.conf");
    // A second for each try, where the usual is five; a search list that nothing of a guest's may reach.
    let conf = format!("nameserver {address}\nsearch near.example.org\noptions timeout:1 attempts:2 ndots:5\n");
    std::fs::write(&resolver, conf).expect("written");
    let (port, hits) = canary().await;
    let near = format!("near.hostile.example.net:{port}");
    // What the machine's own list of hosts names is near; who looked there would be denied.
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n10.0.0.1 listed.hostile.example.net\n").expect("written");
    let setup = Setup::sqlite().standing_in(&resolver, "/etc/resolv.conf").standing_in(&hosts, "/etc/hosts");
    let server = Server::start_with(setup.with("CHALET_EGRESS_LOCAL", &near));
    // Time enough that it is the resolver's own that ends a look-up.
    let plan = json!({ "timeout_ms": 60_000 });
    expect(server.admin(Method::PUT, "/v1/plans/free").json(&plan), StatusCode::OK).await;
    let watch = Watch::begin(&server).await;

    let at = |label: &str| format!("{label}.hostile.example.net");
    let label = "l".repeat(63);
    let longest = [&label[..], &label, &label, &"l".repeat(61)].join(".");
    assert_eq!(longest.len(), 253);
    let (too_long, wide) = (format!("x{longest}"), at(&"w".repeat(64)));
    let mut grants: Vec<String> =
        ["private", "mixed", "many", "alias", "garbage", "liar", "refused", "nx", "listed", "slow"].map(at).to_vec();
    let slow: Vec<String> = (0..12).map(|n| at(&format!("slow-{n}"))).collect();
    grants.extend(slow.iter().cloned().chain([longest.clone(), near.clone()]));
    let acme = tenant(&server, "acme", grants).await;
    let quiet = tenant(&server, "quiet", [near.clone()]).await;
    let call = |host: &str, timeout_ms: u64| json!({ "url": format!("https://{host}/"), "timeout_ms": timeout_ms });
    let is_near = async |who| {
        let answers = send(who, vec![json!({ "url": format!("http://{near}/"), "timeout_ms": 2_000 })]).await;
        kind(&answers[0]).to_owned()
    };
    assert_eq!(is_near(&quiet).await, "answered", "the server asks the test's name server");

    for (host, expected) in [
        (at("private"), "denied"),
        (at("mixed"), "denied"),
        (at("many"), "denied"),
        (at("alias"), "unavailable"),
        (at("garbage"), "unavailable"),
        (at("liar"), "unavailable"),
        (at("refused"), "unavailable"),
        (at("nx"), "unavailable"),
        (at("listed"), "unavailable"),
        (at("slow"), "unavailable"),
        (longest.clone(), "unavailable"),
        (too_long.clone(), "invalid"),
        (wide.clone(), "invalid"),
    ] {
        let started = Instant::now();
        let answers = send(&acme, vec![call(&host, 10_000)]).await;
        println!("{host}: {} after {:?}", answers[0], started.elapsed());
        assert_eq!(kind(&answers[0]), expected, "{host}: {answers:?}");
        assert!(started.elapsed() < Duration::from_secs(8), "{host} took {:?}", started.elapsed());
    }
    assert_eq!(hits.load(Ordering::Relaxed), 1, "only the operator's own was reached");

    // Names that do not exist, as many as a manifest names, in four invocations at a time; ten thousand in a soak.
    for tenants in 0..soak::either(1, 50) {
        let flood: Vec<String> = (0..200).map(|n| at(&format!("nx-{tenants}-{n}"))).collect();
        let flooder = tenant(&server, &format!("flooder-{tenants}"), flood.iter().cloned()).await;
        let floods = flood
            .chunks(50)
            .map(async |some| send(&flooder, some.iter().map(|host| call(host, 2_000)).collect()).await);
        let answers = join_all(floods).await.concat();
        assert!(answers.iter().all(|answer| kind(answer) == "unavailable"), "{answers:?}");
    }

    // As many as may be at a time wait for nothing, and the next is told so at once.
    let started = Instant::now();
    let waits = slow.iter().map(async |host| send(&acme, vec![call(host, 500)]).await.remove(0));
    let (waited, others) = tokio::join!(join_all(waits), is_near(&quiet));
    assert_eq!(others, "answered", "another tenant waits for nobody");
    let told_at_once = |answer: &&Value| answer.to_string().contains("looked up already");
    assert_eq!(waited.iter().filter(told_at_once).count(), slow.len() - TENANT_LOOKUPS, "{waited:?}");
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    let names: BTreeSet<String> = asked.lock().expect("no panic").keys().cloned().collect();
    assert_eq!(names.iter().filter(|name| name.starts_with("slow-")).count(), TENANT_LOOKUPS, "{names:?}");
    // The resolver gives up in its time, and the tenant's next names have their turn.
    server.eventually("the tenant's look-ups are over", async || is_near(&acme).await == "answered").await;

    assert!(!names.contains(&too_long) && !names.contains(&wide), "what is no name was asked for");
    assert!(names.contains(&longest), "the longest name was asked for");
    assert!(names.contains(&at("listed")), "what is in the machine's list of hosts was asked for as any other");
    let astray: Vec<_> = names.iter().filter(|name| name.ends_with("near.example.org")).collect();
    // The operator's own entry is looked up as the machine would.
    assert!(astray.iter().all(|name| name.starts_with("near.hostile")), "{astray:?}");
    watch.end(&server).await;
}
