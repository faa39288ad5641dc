//! What a request costs as tenants and keys become many: the part of the scoreboard that takes long.
//!
//! Every tenant has a plugin of its own. Its bytes differ, so that no code is shared. Keys are put into the database by
//! SQL while the server is stopped, as copies of a row that a plugin wrote.

use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection as _, SqliteConnection};

use crate::bare;
use crate::chart::{self, Curve};
use crate::child;
use crate::goals::{self, Goal};
use crate::kit::guests::numbered;
use crate::kit::process::{cpu, descriptors, resident_mib};
use crate::kit::server::Server;
use crate::load::{self, RANDOM, Request, Spread, Target};
use crate::say;

/// What the curves show.
pub const CURVES: &str = "Microseconds of the server's CPU a request, as tenants and keys become many";
/// Connections of the loads.
const CONNECTIONS: u32 = 32;
/// How long it may take until idle programs are unmapped, twice what the server says.
const IDLE: Duration = Duration::from_secs(240);

/// Calls of one tenant's plugin each, of so many.
const TENANTS: &str = "hello world, tenants";
/// Calls of one tenant's plugin that read and write keys at random, of so many: the bodies.
const KEYS: [(&str, &str); 2] =
    [("two reads, keys", r#"{"reads":["@","@"]}"#), ("a read and a write, keys", r#"{"reads":["@"],"write":"@"}"#)];

/// What one load at one size showed.
struct Point {
    load: &'static str,
    size: u64,
    per_second: f64,
    of_bare: f64,
    cpu_us: f64,
    p99_ms: f64,
    resident_mib: f64,
}

/// What was found, as Markdown, and its curves.
pub async fn run(tenants: usize, keys: u64, rounds: usize, duration: Duration) -> (String, String) {
    let bare = bare::start().expect("the yardstick starts");
    let mut goals = Vec::new();
    let mut points = Vec::new();
    let of_tenants = of_tenants(&bare, tenants, rounds, duration, &mut goals, &mut points).await;
    let of_keys = of_keys(&bare, keys, rounds, duration, &mut goals, &mut points).await;
    let curve = |load: &'static str| {
        let of = points.iter().filter(|point| point.load == load);
        Curve { name: load, points: of.map(|point| (point.size, point.cpu_us)).collect() }
    };
    let curves: Vec<Curve> = std::iter::once(TENANTS).chain(KEYS.map(|(load, _)| load)).map(curve).collect();
    let text = format!("## Goals\n\n{}\n## Measured\n\n{of_tenants}{of_keys}", goals::markdown(&goals));
    (text, chart::curves(CURVES, &curves))
}

/// How many times as much CPU the last of a load's sizes takes as the first.
fn growth(points: &[Point], load: &str) -> Option<f64> {
    let mut of = points.iter().filter(|point| point.load == load);
    let first = of.next()?;
    Some(of.next_back()?.cpu_us / first.cpu_us)
}

/// Sizes up to the last one, ten times as large each.
fn sizes(first: u64, last: u64) -> Vec<u64> {
    let mut sizes: Vec<u64> =
        std::iter::successors(Some(first), |size| size.checked_mul(10)).take_while(|size| *size < last).collect();
    sizes.push(last);
    sizes
}

async fn of_tenants(
    bare: &child::Server,
    tenants: usize,
    rounds: usize,
    duration: Duration,
    goals: &mut Vec<Goal>,
    points: &mut Vec<Point>,
) -> String {
    let mut server = Server::start();
    server.unlimited().await;
    let mut targets = Vec::new();
    for size in sizes(1, tenants as u64) {
        while targets.len() < size as usize {
            targets.push(tenant(&server, targets.len()).await);
            if targets.len() % 100 == 0 {
                say(&format!("{} of {tenants} tenants", targets.len()));
            }
        }
        let request = Request::get(&targets[0].path).answers(bare::HELLO);
        points.push(point(TENANTS, size, bare, &server, &targets, &request, rounds, duration));
    }

    server.kill();
    let started = Instant::now();
    server.crash_and_restart();
    let ready = started.elapsed();
    let (idle_mib, open) = (resident_mib(server.pid()), descriptors(server.pid()));
    let mut first = Vec::new();
    for target in &targets {
        let started = Instant::now();
        let answer = server.http.get(format!("{}{}", server.url, target.path)).bearer_auth(&target.key).send().await;
        assert_eq!(answer.expect("an answer").status(), StatusCode::OK, "{}", target.path);
        first.push(started.elapsed().as_secs_f64() * 1e3);
    }
    first.sort_unstable_by(f64::total_cmp);
    let used_mib = resident_mib(server.pid());
    let called = descriptors(server.pid());
    say("waiting until nobody has called them for a while");
    let until = Instant::now() + IDLE;
    while server.metric("chalet_programs").await > 0.0 && Instant::now() < until {
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    let left_mib = resident_mib(server.pid());
    let kib = |mib: f64| (mib - idle_mib).max(0.0) * 1024.0 / targets.len() as f64;
    let last = points.last().map(|point| point.of_bare);
    goals.extend([
        Goal::at_most("start with all tenants", 5.0, "s", Some(ready.as_secs_f64())),
        Goal::at_most("memory of a plugin that is idle", 64.0, "KiB", Some(kib(left_mib))),
        Goal::at_least("hello world of all tenants, under a Zipf spread", 0.30, "of bare axum", last),
        Goal::at_most("CPU a request, all tenants", 1.5, "times one tenant", growth(points, TENANTS)),
    ]);
    let mut text = format!("### Tenants, each with a plugin of its own\n\n{}\n", table(points));
    text += &format!(
        "After a restart with {} tenants: ready after {:.0} ms, {idle_mib:.0} MiB and {open} descriptors. The first answer of a \
         plugin takes {:.2} ms at the median and {:.2} ms at the 99th of 100; with each of them called just now the process has \
         {used_mib:.0} MiB and {called} descriptors, which is {:.0} KiB a plugin; when nobody has called them for two minutes it has \
         {left_mib:.0} MiB and {} descriptors, which is {:.0} KiB a plugin.\n\n",
        targets.len(),
        ready.as_secs_f64() * 1e3,
        first[first.len() / 2],
        first[first.len() * 99 / 100],
        kib(used_mib),
        descriptors(server.pid()),
        kib(left_mib),
    );
    text
}

/// A tenant with a version of `guest-hello` that nobody else has.
async fn tenant(server: &Server, n: usize) -> Target {
    let name = format!("tenant-{n}");
    patiently(|| server.admin(Method::POST, "/v1/tenants").json(&json!({ "id": name }))).await;
    let key = json!({ "name": "bench", "scopes": ["tenant:admin"] });
    let made = patiently(|| server.admin(Method::POST, &format!("/v1/tenants/{name}/keys")).json(&key)).await;
    let key = made["key"].as_str().expect("the key is shown once").to_owned();
    let version = format!("1.{n}.0");
    let plugin = format!("{}/v1/tenants/{name}/plugins/guest-hello", server.url);
    let component = numbered("guest-hello", &version);
    let upload = || server.http.put(&plugin).header("content-type", "application/wasm").body(component.clone());
    patiently(|| upload().bearer_auth(&key)).await;
    patiently(|| server.http.post(format!("{plugin}/versions/{version}/approve")).bearer_auth(&key)).await;
    let release = json!({ "version": version });
    patiently(|| server.http.post(format!("{plugin}/release")).bearer_auth(&key).json(&release)).await;
    Target { path: format!("/t/{name}/guest-hello/"), key }
}

/// Send a request that must succeed, and wait where the control API's limit says so.
async fn patiently(request: impl Fn() -> RequestBuilder) -> Value {
    loop {
        let answer = request().send().await.expect("an answer");
        let status = answer.status();
        if status == StatusCode::TOO_MANY_REQUESTS {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        }
        let body = answer.text().await.expect("text");
        assert!(status.is_success(), "{status}: {body}");
        return serde_json::from_str(&body).unwrap_or(Value::Null);
    }
}

async fn of_keys(
    bare: &child::Server,
    keys: u64,
    rounds: usize,
    duration: Duration,
    goals: &mut Vec<Goal>,
    points: &mut Vec<Point>,
) -> String {
    let before = points.len();
    let mut server = Server::start();
    server.unlimited().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-work").await;
    let key = acme.key.clone();
    patiently(|| acme.call(Method::POST, "guest-work", "/").json(&json!({ "write": "000000000000" }))).await;
    let targets = vec![Target { path: "/t/acme/guest-work/".into(), key }];
    for size in sizes(1_000, keys) {
        server.kill();
        say(&format!("writing {size} keys"));
        fill(&server, size).await;
        server.crash_and_restart();
        for (load, body) in KEYS {
            let body = body.replace('@', RANDOM);
            let request = Request { random_below: size, ..Request::post(&targets[0].path, body) };
            points.push(point(load, size, bare, &server, &targets, &request, rounds, duration));
        }
    }
    let [reads, writes] = KEYS.map(|(load, _)| growth(points, load));
    goals.extend([
        Goal::at_most("CPU of two reads, all keys", 3.0, "times 1,000 keys", reads),
        Goal::at_most("CPU of a read and a write, all keys", 3.0, "times 1,000 keys", writes),
    ]);
    format!("### Keys of one tenant, at random, SQLite\n\n{}\n", table(&points[before..]))
}

/// Let there be so many entries.
async fn fill(server: &Server, size: u64) {
    let url = format!("sqlite://{}", server.data.path().join("chalet.sqlite").display());
    let mut file = SqliteConnection::connect(&url).await.expect("the server's file opens");
    let copies = "insert or ignore into rows (tenant_id, space, key, counter, version, expires_at_ms, value) \
        with recursive numbers (n) as (select 0 union all select n + 1 from numbers where n < $1 - 1) \
        select tenant_id, space, cast(printf('%012d', n) as blob), counter, version, expires_at_ms, value from numbers, \
        (select * from rows where space = 'kv/data' and key = cast('000000000000' as blob))";
    sqlx::query(copies).bind(size as i64).execute(&mut file).await.expect("copies of a row that is there");
    let there: i64 = sqlx::query_scalar("select count(*) from rows where space = 'kv/data'")
        .fetch_one(&mut file)
        .await
        .expect("they are counted");
    assert!(there as u64 >= size, "{there} rows are fewer than {size}");
}

#[expect(clippy::too_many_arguments, reason = "all of a measurement")]
fn point(
    load: &'static str,
    size: u64,
    bare: &child::Server,
    server: &Server,
    targets: &[Target],
    request: &Request,
    rounds: usize,
    duration: Duration,
) -> Point {
    let what = format!("{load}: {size}");
    let hello = [Target { path: "/".into(), key: targets[0].key.clone() }];
    let yardstick = Request::get("/").answers(bare::HELLO);
    let mut found = Vec::new();
    for round in 0..=rounds {
        let roof = load::run(&bare.url, &hello, Spread::Even, &yardstick, CONNECTIONS, duration).expect("axum answers");
        let before = cpu(server.pid());
        // The first load warms up, and so reaches each of them.
        let spread = if round == 0 { Spread::Even } else { Spread::Zipf };
        let own = load::run(&server.url, targets, spread, request, CONNECTIONS, duration);
        let own = own.unwrap_or_else(|why| panic!("{what}: {why}"));
        let cpu_us = (cpu(server.pid()) - before).as_secs_f64() * 1e6 / own.requests as f64;
        let per_second = own.requests as f64 / own.seconds;
        let of_bare = per_second / (roof.requests as f64 / roof.seconds);
        say(&format!("round {round} of {rounds}: {per_second:8.0}/s {cpu_us:6.1} us  {what}"));
        if round > 0 {
            found.push((of_bare, per_second, cpu_us, own.p99_ms));
        }
    }
    found.sort_unstable_by(|one, other| one.0.total_cmp(&other.0));
    let (of_bare, per_second, cpu_us, p99_ms) = found[found.len() / 2];
    Point { load, size, per_second, of_bare, cpu_us, p99_ms, resident_mib: resident_mib(server.pid()) }
}

fn table(points: &[Point]) -> String {
    let mut text = String::from(
        "| load | size | requests/s | of bare axum | CPU us a request | p99 ms | resident MiB |\n|---|--:|--:|--:|--:|--:|--:|\n",
    );
    for Point { load, size, per_second, of_bare, cpu_us, p99_ms, resident_mib } in points {
        text += &format!(
            "| {load} | {size} | {per_second:.0} | {of_bare:.3} | {cpu_us:.1} | {p99_ms:.2} | {resident_mib:.0} |\n"
        );
    }
    text
}
