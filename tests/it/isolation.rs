//! What is a tenant's stays the tenant's: over connections that break off, after it was deleted, at its quota, and in a
//! database that somebody wrote into.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::json;
use sqlx::{Connection as _, PgConnection, Row as _};

use crate::kit::engine::Engine;
use crate::kit::oracle::Watch;
use crate::kit::postgres;
use crate::kit::server::{Server, Setup, Tenant, expect};
use crate::kit::soak;

on_both_engines! {
    no_tenant_sees_anothers_marker_whatever_breaks_off_in_between,
    a_name_that_is_used_again_has_nothing_of_before,
    a_quota_holds_against_many_writers_at_once,
    keys_are_kept_as_they_are_written_or_refused,
}

/// Requests of all tenants together; a soak has many times more.
fn requests() -> usize {
    soak::either(3_000, 100_000)
}

async fn no_tenant_sees_anothers_marker_whatever_breaks_off_in_between(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    server.unlimited().await;
    let mut tenants = Vec::new();
    for n in 0..12 {
        let tenant = server.tenant(&format!("t-{n}")).await;
        tenant.deploy("guest-kv").await;
        let marker = format!("marker-{:032x}", rand::random::<u128>());
        expect(tenant.api(Method::PUT, "/kv/c/marker").body(marker.clone()), StatusCode::CREATED).await;
        tenants.push((tenant, marker));
    }
    let (broken, answered, refused) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let work = stream::iter(0..requests()).map(async |n| {
        let (tenant, marker) = &tenants[n % tenants.len()];
        let request = match n / tenants.len() % 8 {
            0 => tenant.api(Method::GET, "/kv/c/marker"),
            1 => tenant.api(Method::GET, "/kv/c?prefix="),
            2 => tenant.api(Method::PUT, &format!("/kv/c/k-{}", n % 7)).body(marker.clone()),
            // Refused in the middle of its transaction.
            3 => tenant.api(Method::PUT, "/kv/c/marker").header("if-match", "\"1\"").body("wrong"),
            4 => tenant.api(Method::DELETE, "/kv/c/nothing"),
            5 => tenant.api(Method::GET, &format!("/kv/c/k-{}", n % 7)),
            6 => {
                let ops = json!({ "ops": [{ "op": "get", "key": "marker" }, { "op": "put", "key": "own", "value": marker }, { "op": "get", "key": "own" }] });
                tenant.call(Method::POST, "guest-kv", "/run").json(&ops)
            }
            _ => tenant.api(Method::GET, "/usage?meter=invocations"),
        };
        // Every fifth caller goes away, most of them before the answer.
        let patience = if n % 5 == 0 { Duration::from_micros(rand::random_range(0..4_000)) } else { Duration::from_secs(60) };
        let answer = tokio::time::timeout(patience, async {
            let answer = request.send().await.expect("an answer");
            (answer.status(), answer.text().await.unwrap_or_default())
        });
        let Ok((status, text)) = answer.await else {
            broken.fetch_add(1, Ordering::Relaxed);
            return;
        };
        assert!(status != StatusCode::INTERNAL_SERVER_ERROR, "{text}");
        let count = if status.is_success() { &answered } else { &refused };
        count.fetch_add(1, Ordering::Relaxed);
        for (at, _) in text.match_indices("marker-") {
            assert_eq!(text.get(at..at + marker.len()), Some(marker.as_str()), "{} was shown another's marker", tenant.name);
        }
    });
    work.buffer_unordered(24).collect::<Vec<()>>().await;
    for (tenant, marker) in &tenants {
        assert_eq!(
            tenant.kv("c", "marker").await.as_deref(),
            Some(marker.as_bytes()),
            "{} lost its marker",
            tenant.name
        );
    }
    let [broken, answered, refused] = [broken, answered, refused].map(AtomicUsize::into_inner);
    println!("{answered} answered, {refused} refused, {broken} broken off");
    assert!(broken * 20 > requests() && refused * 20 > requests(), "nothing was broken off: the test proves nothing");
    watch.end(&server).await;
}

async fn a_name_that_is_used_again_has_nothing_of_before(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let old = server.tenant("acme").await;
    old.deploy("guest-kv").await;
    expect(old.api(Method::PUT, "/kv/c/k").header("idempotency-key", "once").body("old"), StatusCode::CREATED).await;
    old.secret("GRANTED", "old").await;
    let flags = json!({ "flags": { "f": { "state": "ENABLED", "variants": { "on": true }, "defaultVariant": "on" } } });
    expect(old.api(Method::PUT, "/flags").json(&flags), StatusCode::OK).await;
    let limits = json!({ "limits": [{ "name": "l", "rate": 1, "per": "hour" }] });
    expect(old.api(Method::PUT, "/limits").json(&limits), StatusCode::OK).await;
    let meter = json!({ "event_type": "x", "aggregation": "count" });
    expect(old.api(Method::PUT, "/meters/m").json(&meter), StatusCode::CREATED).await;
    let source = json!({ "verify": "stripe", "secret": "GRANTED" });
    expect(old.api(Method::PUT, "/webhooks/sources/s").json(&source), StatusCode::CREATED).await;
    let ops = json!({ "ops": [{ "op": "put", "key": "guest", "value": "old" }] });
    let ran = old.call(Method::POST, "guest-kv", "/run").json(&ops).send().await.expect("an answer");
    let invocation = ran.headers()["chalet-invocation"].to_str().expect("an id").to_owned();
    expect(server.admin(Method::DELETE, "/v1/tenants/acme"), StatusCode::NO_CONTENT).await;
    expect(old.api(Method::GET, "/kv/c/k"), StatusCode::UNAUTHORIZED).await;

    let new = server.tenant("acme").await;
    expect(old.api(Method::GET, "/kv/c/k"), StatusCode::UNAUTHORIZED).await;
    for path in ["/kv/c", "/plugins", "/secrets", "/webhooks/sources", "/invocations"] {
        assert_eq!(expect(new.api(Method::GET, path), StatusCode::OK).await["data"], json!([]), "{path}");
    }
    let keys = expect(new.api(Method::GET, "/keys"), StatusCode::OK).await;
    assert_eq!(keys["data"].as_array().map(Vec::len), Some(1), "only the new one's own");
    for path in
        ["/kv/c/k", "/kv/c/guest", "/plugins/guest-kv", "/flags", "/meters/m", &format!("/invocations/{invocation}")]
    {
        expect(new.api(Method::GET, path), StatusCode::NOT_FOUND).await;
    }
    expect(new.call(Method::POST, "guest-kv", "/run").json(&ops), StatusCode::NOT_FOUND).await;
    let limits = expect(new.api(Method::GET, "/limits"), StatusCode::OK).await;
    assert!(!limits.to_string().contains("\"l\""), "{limits}");
    let usage = expect(new.api(Method::GET, "/usage?meter=invocations"), StatusCode::OK).await;
    assert!(!usage.to_string().contains("\"1\""), "{usage}");
    // The old one's answer to this key is not given again.
    let again =
        new.api(Method::PUT, "/kv/c/k").header("idempotency-key", "once").body("old").send().await.expect("an answer");
    assert_eq!((again.status(), again.headers().get("idempotent-replayed")), (StatusCode::CREATED, None));
    let tenant = expect(new.api(Method::GET, ""), StatusCode::OK).await;
    assert!(tenant["storage_bytes"].as_u64().is_some_and(|bytes| bytes < 100), "{tenant}");
    watch.end(&server).await;
}

/// The same of a node that has read all of it before, and did none of what happened since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_node_forgets_a_deleted_tenant_within_seconds() {
    let database = postgres::database().await;
    let nodes = [Server::start_with(Setup::on(&database)), Server::start_with(Setup::on(&database))];
    let watch = Watch::begin(&nodes[1]).await;
    let old = nodes[0].tenant("acme").await;
    old.deploy("guest-kv").await;
    expect(old.api(Method::PUT, "/kv/c/k").body("old"), StatusCode::CREATED).await;
    let elsewhere = |tenant: &Tenant<'_>| Tenant { server: &nodes[1], name: "acme".into(), key: tenant.key.clone() };
    let there = elsewhere(&old);
    let ops = json!({ "ops": [{ "op": "put", "key": "guest", "value": "old" }] });
    let put = |tenant: &Tenant<'_>| tenant.api(Method::PUT, "/kv/c/once").header("idempotency-key", "once").body("old");
    let run = |tenant: &Tenant<'_>| tenant.call(Method::POST, "guest-kv", "/run").json(&ops);
    expect(put(&there), StatusCode::CREATED).await;
    for _ in 0..20 {
        assert_eq!(there.kv("c", "k").await.as_deref(), Some(&b"old"[..]));
        expect(run(&there), StatusCode::OK).await;
    }
    expect(nodes[0].admin(Method::DELETE, "/v1/tenants/acme"), StatusCode::NO_CONTENT).await;
    let new = nodes[0].tenant("acme").await;
    let deleted = Instant::now();
    // What the other node may go on with is what it remembers, and that not for long.
    let status = async |request: RequestBuilder| request.send().await.expect("an answer").status();
    let refused = async || {
        status(there.api(Method::GET, "/kv/c/k")).await == StatusCode::UNAUTHORIZED
            && status(run(&there)).await == StatusCode::UNAUTHORIZED
    };
    while !refused().await {
        assert!(deleted.elapsed() < Duration::from_secs(5), "the other node still takes the old key");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("the other node refused the old key after {:?}", deleted.elapsed());
    // As soon as it knows the new one, it shows it nothing of the old.
    let there = elsewhere(&new);
    while status(there.api(Method::GET, "")).await != StatusCode::OK {
        assert!(deleted.elapsed() < Duration::from_secs(5), "the other node does not take the new key");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for key in ["k", "guest", "once"] {
        assert_eq!(there.kv("c", key).await, None, "{key}");
    }
    expect(run(&there), StatusCode::NOT_FOUND).await;
    let again = put(&there).send().await.expect("an answer");
    assert_eq!((again.status(), again.headers().get("idempotent-replayed")), (StatusCode::CREATED, None));
    for path in ["/plugins", "/invocations"] {
        assert_eq!(expect(there.api(Method::GET, path), StatusCode::OK).await["data"], json!([]), "{path}");
    }
    watch.end(&nodes[1]).await;
}

async fn a_quota_holds_against_many_writers_at_once(engine: Engine) {
    quota_holds_on(&[&engine.server().await]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_holds_against_writers_on_two_nodes() {
    let setup = Setup::postgres().await;
    quota_holds_on(&[&Server::start_with(setup.clone()), &Server::start_with(setup)]).await;
}

async fn quota_holds_on(nodes: &[&Server]) {
    const QUOTA: u64 = 200_000;
    const VALUE: usize = 10_000;
    let server = nodes[0];
    let watch = Watch::begin(server).await;
    let plan = json!({ "storage_bytes": QUOTA, "requests_per_second": 100_000, "request_burst": 100_000 });
    expect(server.admin(Method::PUT, "/v1/plans/small").json(&plan), StatusCode::OK).await;
    let acme = server.tenant("acme").await;
    expect(server.admin(Method::PATCH, "/v1/tenants/acme").json(&json!({ "plan": "small" })), StatusCode::OK).await;
    let on: Vec<_> = nodes.iter().map(|server| Tenant { server, ..acme.clone() }).collect();
    for round in 0..3 {
        let writes = (0..48).map(async |n| {
            let put = on[n % on.len()].api(Method::PUT, &format!("/kv/c/{round}-{n}")).body(vec![b'x'; VALUE]);
            put.send().await.expect("an answer").status()
        });
        let statuses = join_all(writes).await;
        let written = statuses.iter().filter(|status| **status == StatusCode::CREATED).count();
        let refused = statuses.iter().filter(|status| **status == StatusCode::PAYMENT_REQUIRED).count();
        assert_eq!(written + refused, statuses.len(), "{statuses:?}");
        let stored =
            expect(acme.api(Method::GET, ""), StatusCode::OK).await["storage_bytes"].as_u64().expect("a number");
        assert!(
            stored <= QUOTA + VALUE as u64 && stored + 2 * VALUE as u64 > QUOTA,
            "{stored} bytes of {QUOTA}, {written} written"
        );
        // What is there can be made less, by many at once as well.
        let page = expect(acme.api(Method::GET, "/kv/c?limit=1000"), StatusCode::OK).await;
        let deletes = page["data"].as_array().expect("a list").iter().map(async |item| {
            let path = format!("/kv/c/{}", item["key"].as_str().expect("a key"));
            expect(acme.api(Method::DELETE, &path), StatusCode::NO_CONTENT).await
        });
        join_all(deletes).await;
        let stored =
            expect(acme.api(Method::GET, ""), StatusCode::OK).await["storage_bytes"].as_u64().expect("a number");
        assert_eq!(stored, 0, "all was given back");
    }
    watch.end(server).await;
}

async fn keys_are_kept_as_they_are_written_or_refused(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let (acme, globex) = (server.tenant("acme").await, server.tenant("globex").await);
    let mut kept = Vec::new();
    let (long, longer) = ("k".repeat(512), "é".repeat(400));
    for key in [
        "../x",
        "...",
        "../../globex/kv/c/k",
        "a/b",
        "a//b",
        "/",
        "\\",
        "a:b",
        "{a}b",
        "*",
        "a*",
        "%",
        "_",
        "a%b",
        "a\nb",
        "a\r\nb",
        "a\tb",
        "\0",
        "a\0b",
        "\u{feff}a",
        "\u{202e}a",
        "\u{e9}",
        "e\u{301}",
        "ﬁ",
        "fi",
        "K",
        "k",
        "\u{212a}",
        "ß",
        "SS",
        "\u{10ffff}",
        "\u{7f}",
        " ",
        " a",
        "a ",
        "null",
        "true",
        "0",
        "-1",
        "acme",
        "globex",
        "kv/c",
        "\u{1f468}\u{200d}\u{1f469}",
        "'",
        "\"",
        ";",
        "?",
        "#",
        "&",
        "+",
        "=",
        &long,
        &longer,
        "k-\u{fffd}",
    ] {
        let path = format!("/kv/c/{}", percent_encoding::utf8_percent_encode(key, percent_encoding::NON_ALPHANUMERIC));
        let put = acme.api(Method::PUT, &path).body(key.to_owned()).send().await.expect("an answer");
        match put.status() {
            StatusCode::CREATED => kept.push((key.to_owned(), path)),
            status => assert!(
                status == StatusCode::BAD_REQUEST || status == StatusCode::UNPROCESSABLE_ENTITY,
                "{key:?} answered {status}"
            ),
        }
    }
    for longer in ["k".repeat(513), "k".repeat(8 << 10)] {
        let refused = acme.api(Method::PUT, &format!("/kv/c/{longer}")).body("x").send().await.expect("an answer");
        assert!(refused.status().is_client_error(), "{} bytes answered {}", longer.len(), refused.status());
    }
    let nameless = acme.api(Method::PUT, "/kv/c/").body("x").send().await.expect("an answer");
    assert!(nameless.status().is_client_error(), "a key of no bytes answered {}", nameless.status());
    // Not tried are `.` and `..`, of which every client makes another path, however they are written.
    // Twins that look alike are two keys: each was new, and has its own value.
    for (key, path) in &kept {
        let read = acme.api(Method::GET, path).send().await.expect("an answer");
        assert_eq!(read.text().await.expect("text"), *key);
        expect(globex.api(Method::GET, path), StatusCode::NOT_FOUND).await;
    }
    let listed = expect(acme.api(Method::GET, "/kv/c?limit=1000"), StatusCode::OK).await;
    let listed: Vec<&str> =
        listed["data"].as_array().expect("a list").iter().filter_map(|item| item["key"].as_str()).collect();
    let mut expected: Vec<&str> = kept.iter().map(|(key, _)| key.as_str()).collect();
    expected.sort_unstable();
    assert_eq!(listed, expected, "in the order of their bytes");
    for (prefix, _) in &kept {
        let query = percent_encoding::utf8_percent_encode(prefix, percent_encoding::NON_ALPHANUMERIC);
        let page = expect(acme.api(Method::GET, &format!("/kv/c?limit=1000&prefix={query}")), StatusCode::OK).await;
        let found: Vec<&str> =
            page["data"].as_array().expect("a list").iter().filter_map(|item| item["key"].as_str()).collect();
        let wanted: Vec<&str> = expected.iter().copied().filter(|key| key.starts_with(prefix.as_str())).collect();
        assert_eq!(found, wanted, "no character of a prefix means more than itself: {prefix:?}");
        let other = expect(globex.api(Method::GET, &format!("/kv/c?prefix={query}")), StatusCode::OK).await;
        assert_eq!(other["data"], json!([]), "{prefix:?}");
    }
    println!("{} keys were kept", kept.len());
    assert!(kept.len() > 30, "most of them are keys like others");
    watch.end(&server).await;
}

/// Whoever can write into the database, and has no master key, cannot give a tenant another's secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_was_moved_to_another_tenant_is_not_opened() {
    let database = postgres::database().await;
    let server = Server::start_with(Setup::on(&database));
    let (acme, globex) = (server.tenant("acme").await, server.tenant("globex").await);
    for tenant in [&acme, &globex] {
        tenant.deploy("guest-secrets").await;
        tenant.secret("GRANTED", &format!("hush of {}", tenant.name)).await;
    }
    let mut admin = PgConnection::connect(&database.admin_url).await.expect("the cluster answers");
    let sealed = "select value from rows join tenants on id = tenant_id where name = $1 and space = 'secrets' and key = 'GRANTED'";
    let theirs: Vec<u8> = sqlx::query(sealed).bind("acme").fetch_one(&mut admin).await.expect("a row").get(0);
    let moved = "update rows set value = $1, version = version + 1 where space = 'secrets' and key = 'GRANTED' \
                 and tenant_id = (select id from tenants where name = 'globex')";
    let moved = sqlx::query(moved).bind(&theirs).execute(&mut admin).await.expect("the superuser writes");
    assert_eq!(moved.rows_affected(), 1);
    // A node that has not read the row before.
    let other = Server::start_with(Setup::on(&database));
    let read = |tenant: &str, key: &str| {
        let call = other.anonymous(Method::GET, &format!("/t/{tenant}/guest-secrets/secrets/GRANTED")).bearer_auth(key);
        async { call.send().await.expect("an answer").text().await.expect("text") }
    };
    let answer = read("globex", &globex.key).await;
    assert!(answer.contains("error") || answer.contains("code"), "{answer}");
    assert!(!answer.contains("hush"), "{answer}");
    assert!(read("acme", &acme.key).await.contains("hush of acme"), "its owner's is as it was");
}
