//! API keys under attack: guessed, mistyped, leaked into the wrong place, revoked elsewhere.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use chalet::effects::Effects;
use chalet::kernel::secret::Master;
use chalet::services::directory::Directory;
use chalet::services::keys::{Keys, Right};
use futures_util::{StreamExt as _, stream};
use reqwest::{Client, Method, StatusCode};
use sha2::{Digest as _, Sha256};
use sqlx::{Connection as _, PgConnection, Row as _};

use crate::kit::engine::Engine;
use crate::kit::oracle::Watch;
use crate::kit::postgres;
use crate::kit::server::{ADMIN, Server, Setup, expect};

on_both_engines! {
    what_was_never_a_key_is_refused_without_a_look_up,
    guessing_is_stopped_and_locks_out_nobody_else,
    a_key_is_of_one_tenant_and_of_one_master_key,
}

/// A client at another loopback address.
pub fn at(address: Ipv4Addr) -> Client {
    Client::builder().local_address(IpAddr::V4(address)).pool_max_idle_per_host(4).build().expect("a client")
}

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// So many digits of a key.
pub fn digits(length: usize) -> String {
    (0..length).map(|_| char::from(DIGITS[rand::random_range(0..62)])).collect()
}

/// A key of the right form that nobody was given.
fn guess() -> String {
    key(&digits(12), &digits(32))
}

/// The key of this id and secret: its checksum is made as the server makes it.
pub fn key(id: &str, secret: &str) -> String {
    let body = format!("chalet_{id}_{secret}");
    let mut rest = crc32fast::hash(body.as_bytes()) as usize;
    let mut sum = [b'0'; 6];
    for digit in sum.iter_mut().rev() {
        *digit = DIGITS[rest % 62];
        rest /= 62;
    }
    body + std::str::from_utf8(&sum).expect("ASCII")
}

async fn what_was_never_a_key_is_refused_without_a_look_up(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let acme = server.tenant("acme").await;
    let key = &acme.key;
    let swapped = key.replacen(&key[20..22], &key[20..22].chars().rev().collect::<String>(), 1);
    let mut wrong = vec![
        key[..key.len() - 1].to_owned(),
        format!("{key}0"),
        key.replace("chalet_", "chalet-"),
        key.to_uppercase(),
        key.to_lowercase(),
        key.replacen("chalet_", "", 1),
        "chalet_".into(),
        "x".into(),
        "chalet_\u{e9}".into(),
        format!("{key} {key}"),
        "a".repeat(60_000),
    ];
    if swapped != *key {
        wrong.push(swapped);
    }
    // Every digit counts: the sum is of all of them.
    for at in 7..key.len() {
        let other = if &key[at..=at] == "a" { "b" } else { "a" };
        wrong.push(format!("{}{other}{}", &key[..at], &key[at + 1..]));
    }
    let count = wrong.len();
    for (n, credential) in wrong.iter().enumerate() {
        // From many addresses, so that none has guessed too often.
        let client = at(Ipv4Addr::new(127, 0, 1, u8::try_from(n / 20 + 1).expect("few")));
        let Ok(value) = reqwest::header::HeaderValue::try_from(format!("Bearer {credential}")) else { continue };
        let answer = client.get(format!("{}/v1/tenants/acme", server.url)).header("authorization", value).send().await;
        assert_eq!(answer.expect("an answer").status(), StatusCode::UNAUTHORIZED, "{credential:?}");
    }
    let rejected = server.metric("chalet_auth_checksum_reject_total").await;
    // Some of the shorter ones may be an operator's first key, for which there is no sum.
    assert!(rejected >= count as f64 - 8.0, "{rejected} of {count} were refused by their sum");
    let before = rejected;
    let well_formed = server.anonymous(Method::GET, "/v1/tenants/acme").bearer_auth(guess()).send().await;
    assert_eq!(well_formed.expect("an answer").status(), StatusCode::UNAUTHORIZED);
    assert_eq!(server.metric("chalet_auth_checksum_reject_total").await, before, "a key's form takes a look-up");
    watch.end(&server).await;
}

async fn guessing_is_stopped_and_locks_out_nobody_else(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let acme = server.tenant("acme").await;
    let url = format!("{}/v1/tenants/acme", server.url);
    let ask =
        async |client: &Client, key: &str| client.get(&url).bearer_auth(key).send().await.expect("an answer").status();
    // The tenant's service behind the same address, which was here before; and one that was not.
    let guesser = at(Ipv4Addr::new(127, 0, 2, 1));
    assert_eq!(ask(&guesser, &acme.key).await, StatusCode::OK);
    let late = acme.mint(&["tenant:read"]).await;
    let from = async |clients: &[Client], guesses: usize| {
        let asked = stream::iter(0..guesses).map(async |n| ask(&clients[n % clients.len()], &guess()).await);
        let statuses: Vec<StatusCode> = asked.buffer_unordered(16).collect().await;
        let count = |status: StatusCode| statuses.iter().filter(|one| **one == status).count();
        assert_eq!(count(StatusCode::UNAUTHORIZED) + count(StatusCode::TOO_MANY_REQUESTS), guesses);
        count(StatusCode::UNAUTHORIZED)
    };
    let looked_at = from(std::slice::from_ref(&guesser), 3_000).await;
    assert!((100..=120).contains(&looked_at), "{looked_at} guesses of one address were looked at");
    assert_eq!(ask(&guesser, &acme.key).await, StatusCode::OK, "whoever was here before goes on");
    assert_eq!(ask(&guesser, &late).await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(ask(&guesser, ADMIN).await, StatusCode::TOO_MANY_REQUESTS, "an operator's own key may be weak");
    let forged = guesser.get(&url).bearer_auth(guess()).header("x-forwarded-for", "203.0.113.7");
    let told = forged.header("forwarded", "for=203.0.113.7").send().await.expect("an answer");
    assert_eq!(
        told.status(),
        StatusCode::TOO_MANY_REQUESTS,
        "an address is what a connection has, not what a header says"
    );
    assert!(told.headers().contains_key("retry-after"));
    assert_eq!(ask(&at(Ipv4Addr::new(127, 0, 2, 2)), &late).await, StatusCode::OK, "elsewhere nobody notices");
    // From very many addresses.
    let many: Vec<Client> = (0..100).map(|n| at(Ipv4Addr::new(127, 0, 3, n))).collect();
    let looked_at = from(&many, 7_000).await;
    assert!((4_700..=5_000).contains(&looked_at), "{looked_at} guesses of all addresses were looked at");
    assert_eq!(ask(&guesser, &acme.key).await, StatusCode::OK);
    assert_eq!(ask(&at(Ipv4Addr::new(127, 0, 2, 2)), &late).await, StatusCode::OK);
    // With their connections.
    drop(many);
    watch.end(&server).await;
}

async fn a_key_is_of_one_tenant_and_of_one_master_key(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, directory) = (bench.shard(), Directory::new(bench.db.clone()));
    let keys = Keys::new(bench.db.clone(), bench.clock.clone(), Master::generate());
    let make = async |effects: &mut Effects| {
        let (acme, globex) =
            (directory.create(effects, "acme", "free").await?, directory.create(effects, "globex", "free").await?);
        let minted = keys.draw(Some(&acme), "k", &[Right::TenantRead.name().to_owned()], None)?;
        keys.store(effects, Some(&acme), &minted).await?;
        Ok((acme, globex, minted))
    };
    let (acme, globex, minted) = shard.transact(directory.platform(), make).await.expect("made");
    // The same id for another tenant.
    let again = async |effects: &mut Effects| keys.store(effects, Some(&globex), &minted).await;
    let _ = shard.transact(directory.platform(), again).await;
    let holder = keys.authenticate(&minted.key).await.expect("looked up").expect("a holder");
    assert_eq!(holder.tenant.as_ref(), Some(acme.id()), "a key stays with whom it was made for");
    let stranger = Keys::new(bench.db.clone(), bench.clock.clone(), Master::generate());
    assert!(stranger.authenticate(&minted.key).await.expect("looked up").is_none(), "another master key's node");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_key_the_database_has_what_is_of_no_use_without_the_master_key() {
    let database = postgres::database().await;
    let server = Server::start_with(Setup::on(&database));
    let acme = server.tenant("acme").await;
    let parts: Vec<&str> = acme.key.split('_').collect();
    let mut admin = PgConnection::connect(&database.admin_url).await.expect("the cluster answers");
    let row = sqlx::query("select digest from api_keys where id = $1").bind(parts[1]).fetch_one(&mut admin).await;
    let digest: Vec<u8> = row.expect("one row").get("digest");
    assert_eq!(digest.len(), 32, "HMAC-SHA-256");
    for known in [&parts[2][..32], parts[2], &acme.key] {
        assert_ne!(digest, Sha256::digest(known).as_slice(), "who has the database alone could try keys");
    }
    let twin = "insert into api_keys select id, null, name, digest, 'platform:admin', 0 from api_keys where id = $1";
    let twin = sqlx::query(twin).bind(parts[1]).execute(&mut admin).await.expect_err("an id is one key's");
    assert!(twin.as_database_error().is_some_and(|error| error.is_unique_violation()), "{twin}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_revoked_on_one_node_is_refused_by_another_within_seconds() {
    let database = postgres::database().await;
    let (first, second) = (Server::start_with(Setup::on(&database)), Server::start_with(Setup::on(&database)));
    let acme = first.tenant("acme").await;
    let key = acme.mint(&["tenant:read"]).await;
    let read = async || {
        let answer = second.anonymous(Method::GET, "/v1/tenants/acme").bearer_auth(&key).send().await;
        answer.expect("an answer").status()
    };
    // The second node knows the key well.
    for _ in 0..20 {
        assert_eq!(read().await, StatusCode::OK);
    }
    let id = key.split('_').nth(1).expect("an id");
    let gone = acme.api(Method::DELETE, &format!("/keys/{id}")).send().await.expect("an answer");
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    let revoked = Instant::now();
    while read().await == StatusCode::OK {
        assert!(revoked.elapsed() < Duration::from_secs(5), "the other node still takes it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("the other node refused it after {:?}", revoked.elapsed());
    assert_eq!(read().await, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_counts_in_its_header_alone_and_is_never_written_down() {
    let server = Server::start_with(Setup::sqlite().with("RUST_LOG", "info").logged());
    let watch = Watch::begin(&server).await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-misbehave").await;
    let key = &acme.key;
    acme.secret("NAME", "hush-hush-0123456789").await;
    for name in ["key", "api_key", "apikey", "token", "access_token", "authorization", "x-api-key", "bearer"] {
        let asked = server.anonymous(Method::GET, &format!("/v1/tenants/acme?{name}={key}"));
        assert_eq!(asked.send().await.expect("an answer").status(), StatusCode::UNAUTHORIZED, "{name}");
        let asked = server.anonymous(Method::GET, "/v1/tenants/acme").header("cookie", format!("{name}={key}"));
        assert_eq!(asked.send().await.expect("an answer").status(), StatusCode::UNAUTHORIZED, "{name}");
    }
    let basic = server.anonymous(Method::GET, "/v1/tenants/acme").basic_auth(key, Some(key));
    assert_eq!(basic.send().await.expect("an answer").status(), StatusCode::UNAUTHORIZED);
    // Where a key may end up by mistake, and what is logged of it.
    for path in [
        format!("/{key}"),
        format!("/v1/tenants/{key}"),
        format!("/t/{key}/x/"),
        format!("/hooks/acme/{key}"),
        format!("/v1/tenants/acme/kv/c/x?prefix={key}"),
    ] {
        let asked = server.anonymous(Method::GET, &path).header("referer", format!("https://x/?key={key}"));
        let _ = asked.header("user-agent", key).send().await.expect("an answer");
    }
    // Denied, and in the log for whoever may read it there.
    expect(
        server.anonymous(Method::GET, &format!("/v1/tenants/{key}/plugins")).bearer_auth(key),
        StatusCode::NOT_FOUND,
    )
    .await;
    let wrong = acme.api(Method::POST, "/keys").header("idempotency-key", key).body(format!("{{\"name\": \"{key}\""));
    assert_eq!(wrong.send().await.expect("an answer").status(), StatusCode::BAD_REQUEST);
    // A guest that traps leaves lines in the log.
    let _ = acme.call(Method::GET, "guest-misbehave", &format!("/panic?key={key}")).send().await;
    watch.end(&server).await;
    let listed = async |path: &str| expect(acme.api(Method::GET, path), StatusCode::OK).await.to_string();
    let (audit, invocations) = (listed("/audit?limit=100").await, listed("/invocations?limit=100").await);
    assert!(
        audit.contains("NAME") && audit.contains("/v1/tenants/chalet_") && invocations.contains("guest-misbehave"),
        "{audit} {invocations}"
    );
    let metrics =
        server.anonymous(Method::GET, "/metrics").send().await.expect("an answer").text().await.expect("text");
    server.stop();
    let log = server.log();
    assert!(log.lines().count() > 0, "the log is there");
    let keys = |text: &str| {
        let found = text.match_indices("chalet_").filter(|(at, _)| {
            let rest = &text.as_bytes()[at + 7..];
            rest.len() > 44 && rest[12] == b'_' && rest[..12].iter().chain(&rest[13..45]).all(u8::is_ascii_alphanumeric)
        });
        found.count()
    };
    assert_eq!(keys(&format!("a line with {key} in it, and with chalet_requests_total")), 1, "a key is found");
    for (name, text) in
        [("the log", &log), ("the metrics", &metrics), ("the audit log", &audit), ("the invocations", &invocations)]
    {
        let secret = key.split('_').nth(2).expect("a secret part");
        for needle in [secret, ADMIN, "hush-hush", "Bearer "] {
            assert!(!text.contains(needle), "{name} has {needle}: {text}");
        }
        assert_eq!(keys(text), 0, "{name} has a key: {text}");
    }
}
