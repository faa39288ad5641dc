//! The audit log: a record of every control change in its own commit, of every denial in the log of the denied, and a
//! chain that shows what was done to it.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;

use chalet::control::{Audit, table};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::{AnyConnection, AssertSqlSafe, Connection as _, Executor as _, Row as _};

use crate::kit::engine::Engine;
use crate::kit::guests::{component, numbered};
use crate::kit::oracle::Watch;
use crate::kit::postgres::{self, Database};
use crate::kit::proxy::Proxy;
use crate::kit::server::{ADMIN, Server, Setup, Tenant, expect};

on_both_engines! {
    every_control_change_leaves_one_record_of_who_did_what,
    what_fails_or_is_repeated_or_is_data_leaves_no_record,
    a_denial_is_in_the_log_of_the_denied_and_in_no_other,
    of_a_flood_of_denials_none_is_lost_and_few_are_written,
    tampering_is_found_and_the_first_bad_record_is_named,
    a_change_whose_record_cannot_be_written_does_not_happen,
    changes_at_the_same_time_form_one_chain,
    without_the_record_a_change_is_seen_to_lack_it,
}

/// Routes that change the tenant's data, or only ask by POST; all others that are no GET are audited.
const NOT_AUDITED: [&str; 6] =
    ["kv.delete", "kv.put", "limits.check", "ofrep.evaluate", "ofrep.evaluate_all", "usage.ingest"];

/// The names of the routes that leave records.
fn audited() -> BTreeSet<&'static str> {
    table()
        .iter()
        .filter(|route| !matches!(route.rule.audit, Audit::Nothing | Audit::Data))
        .map(|route| route.rule.name)
        .collect()
}

#[test]
fn every_route_that_changes_something_is_audited_or_named_here() {
    let (mut not, mut names) = (BTreeSet::new(), BTreeSet::new());
    for route in table() {
        assert!(names.insert(route.rule.name), "two routes are called {}", route.rule.name);
        for (method, path) in route.operations() {
            let kept = !matches!(route.rule.audit, Audit::Nothing | Audit::Data);
            assert!(method != "get" || route.rule.audit == Audit::Nothing, "{path} is only read");
            if method != "get" && !kept {
                not.insert(route.rule.name);
            }
        }
    }
    assert_eq!(not, BTreeSet::from(NOT_AUDITED));
}

/// A log's records, the oldest first: the operator's, or a tenant's.
async fn log(server: &Server, tenant: Option<&str>) -> Vec<Value> {
    let path = tenant.map_or("/v1/audit".to_owned(), |tenant| format!("/v1/tenants/{tenant}/audit"));
    let mut records = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = expect(server.admin(Method::GET, &format!("{path}?limit=7{cursor}")), StatusCode::OK).await;
        records.extend(page["data"].as_array().expect("a list").iter().cloned());
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    records.reverse();
    records
}

async fn verified(server: &Server, tenant: Option<&str>) -> Value {
    let path = tenant.map_or("/v1/audit".to_owned(), |tenant| format!("/v1/tenants/{tenant}/audit"));
    expect(server.admin(Method::GET, &format!("{path}/verify")), StatusCode::OK).await
}

/// Compute the chain anew from what the API shows, as anybody can: the text of a record is its compact JSON, sorted.
fn follows(records: &[Value]) -> String {
    let mut hash = vec![0; 32];
    for (n, record) in records.iter().enumerate() {
        assert_eq!(record["number"], n + 1, "numbers have no gaps");
        let mut text = record.clone();
        let own = text.as_object_mut().and_then(|text| text.remove("hash")).expect("a hash");
        hash = Sha256::new().chain_update(&hash).chain_update(text.to_string()).finalize().to_vec();
        assert_eq!(own, hex::encode(&hash), "{record}");
    }
    hex::encode(hash)
}

/// A log that is whole, with records that say these things of these fields, in this order.
async fn tells(server: &Server, tenant: Option<&str>, fields: &[&str], expected: &[Value]) {
    let records = log(server, tenant).await;
    let told: Vec<_> =
        records.iter().map(|record| fields.iter().map(|field| record[field].clone()).collect::<Value>()).collect();
    assert_eq!(told, expected, "{fields:?}");
    let verified = verified(server, tenant).await;
    assert_eq!((&verified["ok"], &verified["last"]), (&json!(true), &json!(records.len())), "{verified}");
    assert_eq!(verified["hash"], follows(&records));
}

/// The public id in a key's text.
fn id_of(key: &str) -> &str {
    key.split('_').nth(1).unwrap_or("admin")
}

async fn every_control_change_leaves_one_record_of_who_did_what(engine: Engine) {
    let server = engine.server().await;
    let (mut platform, mut tenant) = (vec![json!(["keys.first", null, null, ""])], Vec::new());
    let mut secrets = vec![ADMIN.to_owned(), "hush-hush-0123456789".to_owned()];
    secrets.push(hex::encode(Sha256::digest("hush-hush-0123456789")));
    let send = async |log: &mut Vec<Value>,
                      action: &str,
                      key: &str,
                      method: Method,
                      path: &str,
                      body: Vec<u8>,
                      status: u16| {
        let request = server.anonymous(method, path).bearer_auth(key).body(body);
        let answer = request.send().await.expect("an answer");
        let id = answer.headers()["x-request-id"].to_str().expect("text").to_owned();
        assert_eq!(answer.status(), status, "{action}");
        log.push(json!([action, id_of(key), id, path]));
        serde_json::from_str::<Value>(&answer.text().await.expect("text")).unwrap_or(Value::Null)
    };
    let text = |value: Value| value.to_string().into_bytes();
    let (put, post, delete) = (Method::PUT, Method::POST, Method::DELETE);
    let at = |path: &str| format!("/v1/tenants/acme{path}");

    send(&mut platform, "tenants.create", ADMIN, post.clone(), "/v1/tenants", text(json!({ "id": "acme" })), 201).await;
    send(&mut platform, "plans.put", ADMIN, put.clone(), "/v1/plans/gold", text(json!({})), 200).await;
    send(&mut platform, "tenants.change", ADMIN, Method::PATCH, &at(""), text(json!({ "plan": "gold" })), 200).await;

    let new = |scope: &str| text(json!({ "name": "test", "scopes": [scope] }));
    let made = send(&mut tenant, "keys.create", ADMIN, post.clone(), &at("/keys"), new("tenant:admin"), 201).await;
    let key = made["key"].as_str().expect("a key").to_owned();
    let other = send(&mut tenant, "keys.create", &key, post.clone(), &at("/keys"), new("invoke"), 201).await;
    let other = other["key"].as_str().expect("a key").to_owned();
    secrets.extend([&key, &other].map(|key| key.split('_').nth(2).expect("a secret part").to_owned()));
    let wasm = component("guest-hello");
    let release = |version: &str| text(json!({ "version": version }));
    let source = json!({ "verify": "stripe", "secret": "S" });
    let meter = json!({ "event_type": "completion", "aggregation": "sum", "value": "$.n" });
    let steps: Vec<(&str, Method, String, Vec<u8>, u16)> = vec![
        ("keys.delete", delete.clone(), format!("/keys/{}", id_of(&other)), vec![], 204),
        ("plugins.upload", put.clone(), "/plugins/guest-hello".into(), wasm.clone(), 201),
        ("plugins.approve", post.clone(), "/plugins/guest-hello/versions/1.0.0/approve".into(), vec![], 200),
        ("plugins.release", post.clone(), "/plugins/guest-hello/release".into(), release("1.0.0"), 200),
        ("plugins.upload", put.clone(), "/plugins/guest-hello".into(), numbered("guest-hello", "1.0.1"), 201),
        ("plugins.release", post.clone(), "/plugins/guest-hello/release".into(), release("1.0.1"), 200),
        ("plugins.rollback", post.clone(), "/plugins/guest-hello/rollback".into(), vec![], 200),
        ("plugins.delete", delete.clone(), "/plugins/guest-hello".into(), vec![], 204),
        ("usage.define", put.clone(), "/meters/tokens".into(), text(meter), 201),
        ("usage.remove", delete.clone(), "/meters/tokens".into(), vec![], 204),
        ("limits.put", put.clone(), "/limits".into(), text(json!({})), 200),
        ("flags.put", put.clone(), "/flags".into(), text(json!({ "flags": {} })), 200),
        ("secrets.put", put.clone(), "/secrets/S".into(), b"hush-hush-0123456789".to_vec(), 204),
        ("secrets.delete", delete.clone(), "/secrets/S".into(), vec![], 204),
        ("webhooks.put", put.clone(), "/webhooks/sources/s".into(), text(source), 201),
        ("webhooks.delete", delete.clone(), "/webhooks/sources/s".into(), vec![], 204),
    ];
    for (action, method, path, body, status) in steps {
        send(&mut tenant, action, &key, method, &at(&path), body, status).await;
    }

    let told = async |tenant, expected: &[Value]| {
        let records = log(&server, tenant).await;
        let told: Vec<_> =
            records.iter().map(|r| json!([r["action"], r["actor"]["key"], r["request"], r["target"]])).collect();
        // What a server does at its start is no request.
        assert_eq!(told, expected);
        assert_eq!(verified(&server, tenant).await["hash"], follows(&records));
        for record in &records {
            assert_eq!((&record["outcome"], &record["tenant"]), (&json!("done"), &json!(tenant)), "{record}");
            let secret = secrets.iter().find(|secret| record.to_string().contains(secret.as_str()));
            assert_eq!(secret, None, "{record}");
        }
        records
    };
    let records = told(Some("acme"), &tenant).await;
    assert_eq!(records[0]["actor"]["of"], "platform");
    assert_eq!(records[1]["actor"]["of"], "tenant");
    assert_eq!(records[1]["right"], "tenant:admin");
    assert_eq!(records[1]["address"], "127.0.0.1");
    assert_eq!(records[1]["what"]["key"], id_of(&other));
    assert_eq!(records[3]["digest"], hex::encode(Sha256::digest(&wasm)));
    assert_eq!(records[5]["what"], json!({ "percent": 100, "version": "1.0.0" }));

    // The tenant's log ends with it; what became of it is in the operator's.
    send(&mut platform, "tenants.delete", ADMIN, delete, &at(""), vec![], 204).await;
    expect(server.admin(Method::GET, &at("/audit")), StatusCode::NOT_FOUND).await;
    told(None, &platform).await;

    let seen: BTreeSet<_> = platform.iter().chain(&tenant).filter_map(|record| record[0].as_str()).collect();
    let expected: BTreeSet<_> = audited().into_iter().chain(["keys.first"]).collect();
    assert_eq!(seen, expected, "every kind of change was made");
}

async fn what_fails_or_is_repeated_or_is_data_leaves_no_record(engine: Engine) {
    let mut server = engine.server().await;
    let acme = server.tenant("acme").await;
    let twice = async |request: &dyn Fn() -> RequestBuilder, status: StatusCode| {
        let first = expect(request().header("idempotency-key", "k"), status).await;
        assert_eq!(expect(request().header("idempotency-key", "k"), status).await, first);
    };
    twice(&|| server.admin(Method::POST, "/v1/tenants").json(&json!({ "id": "globex" })), StatusCode::CREATED).await;
    let key = json!({ "name": "ci", "scopes": ["tenant:read"] });
    twice(&|| acme.api(Method::POST, "/keys").json(&key), StatusCode::CREATED).await;
    twice(&|| acme.api(Method::PUT, "/flags").json(&json!({ "flags": {} })), StatusCode::OK).await;
    for (again, status) in [(201, StatusCode::CREATED), (200, StatusCode::OK)] {
        let uploaded = acme.upload("guest-hello", component("guest-hello")).await;
        assert_eq!(uploaded.status(), status, "{again}");
    }

    let fails = async |request: RequestBuilder, status: u16| {
        assert_eq!(request.send().await.expect("an answer").status(), status);
    };
    let event = json!({ "specversion": "1.0", "id": "1", "source": "s", "type": "t" });
    let limit = json!({ "limit": "none", "key": "k" });
    for (request, status) in [
        (server.admin(Method::POST, "/v1/tenants").json(&json!({ "id": "acme" })), 409),
        (server.admin(Method::POST, "/v1/tenants").json(&json!({ "id": "-" })), 400),
        (server.admin(Method::PATCH, "/v1/tenants/acme").json(&json!({ "plan": "none" })), 400),
        (server.admin(Method::DELETE, "/v1/tenants/nobody"), 404),
        (server.admin(Method::PUT, "/v1/plans/gold").body("{"), 400),
        (acme.api(Method::DELETE, "/secrets/NONE"), 404),
        (acme.api(Method::DELETE, "/keys/none"), 404),
        (acme.api(Method::PUT, "/flags").header("if-match", "\"999999\"").json(&json!({ "flags": {} })), 412),
        (acme.api(Method::PUT, "/flags").body("no document"), 400),
        (acme.api(Method::POST, "/plugins/none/release").json(&json!({ "version": "1.0.0" })), 404),
        (acme.api(Method::PUT, "/kv/c/k").body("data"), 201),
        (acme.api(Method::DELETE, "/kv/c/k"), 204),
        (
            acme.api(Method::POST, "/usage/events")
                .header("content-type", "application/cloudevents+json")
                .body(event.to_string()),
            202,
        ),
        (acme.api(Method::POST, "/limits/check").json(&limit), 404),
        (acme.api(Method::GET, "/audit"), 200),
        (acme.api(Method::GET, "/audit/verify"), 200),
    ] {
        fails(request, status).await;
    }
    let platform = [json!(["keys.first"]), json!(["tenants.create"]), json!(["tenants.create"])];
    tells(&server, None, &["action"], &platform).await;
    let own = ["keys.create", "keys.create", "flags.put", "plugins.upload"].map(|action| json!([action]));
    tells(&server, Some("acme"), &["action"], &own).await;

    // The key that the operator set is the one that it was: nothing changed.
    server.crash_and_restart();
    tells(&server, None, &["action"], &platform).await;
    let since = log(&server, Some("acme")).await[2]["at"].clone();
    let page =
        expect(server.admin(Method::GET, "/v1/tenants/acme/audit").query(&[("since", since.as_str())]), StatusCode::OK);
    let page = page.await["data"].as_array().map(Vec::len);
    assert!((2..=4).contains(&page.unwrap_or(0)), "{page:?}");
    let of = server.admin(Method::GET, "/v1/tenants/acme/audit").query(&[("action", "keys.create")]);
    assert_eq!(expect(of, StatusCode::OK).await["data"].as_array().map(Vec::len), Some(2));
}

async fn a_denial_is_in_the_log_of_the_denied_and_in_no_other(engine: Engine) {
    let server = engine.server().await;
    let (acme, globex) = (server.tenant("acme").await, server.tenant("globex").await);
    let weak = acme.mint(&["invoke"]).await;
    let mistyped = format!("chalet_{}_{}", "a".repeat(12), "b".repeat(38));
    let wider = json!({ "name": "wider", "scopes": ["platform:admin"] });
    let mut expected =
        vec![json!(["keys.create", "done", null, id_of(ADMIN)]), json!(["keys.create", "done", null, id_of(ADMIN)])];
    for (key, method, path, status, denied) in [
        (&weak, Method::PUT, "/v1/tenants/acme/secrets/S", 403, Some(("secrets.put", "forbidden"))),
        (&weak, Method::GET, "/v1/tenants/acme/keys", 403, Some(("keys.list", "forbidden"))),
        // Whether there is such a tenant makes no difference.
        (&acme.key, Method::GET, "/v1/tenants/globex/kv/c/k", 404, Some(("kv.get", "not_found"))),
        (&acme.key, Method::GET, "/v1/tenants/nobody/kv/c/k", 404, Some(("kv.get", "not_found"))),
        (&acme.key, Method::GET, "/v1/tenants/globex/audit", 404, Some(("audit.list", "not_found"))),
        (&acme.key, Method::DELETE, "/v1/tenants/globex", 403, Some(("tenants.delete", "forbidden"))),
        (&acme.key, Method::GET, "/v1/audit", 403, Some(("audit.list_platform", "forbidden"))),
        (&acme.key, Method::POST, "/v1/tenants/acme/keys", 403, Some(("keys.create", "forbidden"))),
        // No such thing in one's own tenant, and no valid key.
        (&acme.key, Method::GET, "/v1/tenants/acme/kv/c/k", 404, None),
        (&mistyped, Method::GET, "/v1/tenants/acme/keys", 401, None),
    ] {
        let answer = server.anonymous(method, path).bearer_auth(key).json(&wider).send().await.expect("an answer");
        assert_eq!(answer.status(), status, "{path}");
        if let Some((action, code)) = denied {
            expected.push(json!([action, "denied", code, id_of(key)]));
        }
    }
    let ofrep = server.admin(Method::POST, "/ofrep/v1/evaluate/flags").json(&json!({}));
    expect(ofrep, StatusCode::FORBIDDEN).await;
    expect(server.admin(Method::GET, "/v1/tenants/nobody"), StatusCode::NOT_FOUND).await;

    let records = log(&server, Some("acme")).await;
    let told: Vec<_> =
        records.iter().map(|r| json!([r["action"], r["outcome"], r["code"], r["actor"]["key"]])).collect();
    assert_eq!(told, expected);
    assert_eq!(records[2]["right"], "tenant:admin", "what was lacking");
    assert_eq!(records[4]["target"], "/v1/tenants/globex/kv/c/k");
    assert_eq!(log(&server, Some("globex")).await.len(), 1, "the other tenant's log is not touched");
    let platform = log(&server, None).await;
    assert_eq!((&platform[3]["action"], &platform[3]["outcome"]), (&json!("ofrep.evaluate_all"), &json!("denied")));
    assert_eq!(platform.len(), 4);
    for whose in [None, Some("acme"), Some("globex")] {
        assert_eq!(verified(&server, whose).await["ok"], true);
    }
    let seen = globex.api(Method::GET, "/audit");
    assert_eq!(expect(seen, StatusCode::OK).await["data"].as_array().map(Vec::len), Some(1), "one's own log is open");
}

async fn of_a_flood_of_denials_none_is_lost_and_few_are_written(engine: Engine) {
    const DENIALS: usize = 300;
    let mut server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let acme = server.tenant("acme").await;
    let weak = acme.mint(&["invoke"]).await;
    let denied = (0..DENIALS).map(|n| {
        let tenant = if n % 2 == 0 { "acme" } else { "nobody" };
        server.anonymous(Method::GET, &format!("/v1/tenants/{tenant}/keys")).bearer_auth(&weak).send()
    });
    let answers: Vec<_> = futures_util::stream::iter(denied).buffer_unordered(20).collect().await;
    for answer in answers {
        let status = answer.expect("an answer").status();
        assert!(matches!(status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND), "{status}");
    }
    let singly = log(&server, Some("acme")).await.len() - 2;
    assert!((1..=20).contains(&singly), "{singly} records of {DENIALS} denials");
    watch.end(&server).await;
    // A server that stops writes what it has counted.
    server.stop();
    server.crash_and_restart();
    let records = log(&server, Some("acme")).await;
    let told: u64 = records[2..].iter().map(|record| 1 + record["suppressed"].as_u64().unwrap_or(0)).sum();
    assert_eq!(told, DENIALS as u64);
    assert!(records.len() <= 2 + 22, "{} records", records.len());
    assert_eq!(verified(&server, Some("acme")).await["ok"], true);
}

/// A server, and its database as somebody sees it who may do everything there.
async fn with_database(engine: Engine) -> (Server, AnyConnection) {
    sqlx::any::install_default_drivers();
    let (server, url) = match engine {
        Engine::Sqlite => {
            let server = Server::start();
            let url = format!("sqlite://{}", server.data.path().join("chalet.sqlite").display());
            (server, url)
        }
        Engine::Postgres => {
            let database = postgres::database().await;
            (Server::start_with(Setup::on(&database)), database.admin_url)
        }
    };
    (server, AnyConnection::connect(&url).await.expect("the database opens"))
}

/// The rows of one tenant's records.
struct Rows {
    connection: AnyConnection,
    tenant: String,
    stored: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Rows {
    async fn of(mut connection: AnyConnection, tenant: &str) -> Self {
        let id = sqlx::query("select id from tenants where name = $1").bind(tenant.to_owned());
        let tenant: String = id.fetch_one(&mut connection).await.expect("a tenant").get(0);
        let rows = sqlx::query("select key, value from rows where tenant_id = $1 and space = 'audit' order by key");
        let rows = rows.bind(tenant.clone()).fetch_all(&mut connection).await.expect("rows");
        Self { connection, tenant, stored: rows.iter().map(|row| (row.get(0), row.get(1))).collect() }
    }

    /// Let these be all.
    async fn replace(&mut self, rows: &[(Vec<u8>, Vec<u8>)]) {
        let all = sqlx::query("delete from rows where tenant_id = $1 and space = 'audit'").bind(self.tenant.clone());
        all.execute(&mut self.connection).await.expect("deleted");
        for (key, value) in rows {
            sqlx::query("insert into rows (tenant_id, space, key, value, version) values ($1, 'audit', $2, $3, 1)")
                .bind(self.tenant.clone())
                .bind(key.clone())
                .bind(value.clone())
                .execute(&mut self.connection)
                .await
                .expect("inserted");
        }
    }
}

async fn tampering_is_found_and_the_first_bad_record_is_named(engine: Engine) {
    let (server, connection) = with_database(engine).await;
    let acme = server.tenant("acme").await;
    for n in 2..=9 {
        acme.secret(&format!("S{n}"), "x").await;
    }
    let mut rows = Rows::of(connection, "acme").await;
    assert_eq!(rows.stored.len(), 9);
    type Stored = Vec<(Vec<u8>, Vec<u8>)>;
    let key = |number: u64, rest: u8| [&number.to_be_bytes()[..], &[rest; 16]].concat();
    let cases: [(&str, u64, &dyn Fn(&mut Stored)); 12] = [
        ("a record is changed", 4, &|rows| *rows[3].1.last_mut().expect("bytes") ^= 1),
        ("a hash is changed", 4, &|rows| rows[3].1[0] ^= 1),
        ("a record is changed with its hash", 5, &|rows| {
            let (before, mut text) = (rows[2].1[..32].to_vec(), rows[3].1[32..].to_vec());
            let place = text.windows(2).position(|two| two == b"S4").expect("the secret's name");
            text[place + 1] = b'7';
            rows[3].1 = [Sha256::new().chain_update(before).chain_update(&text).finalize().to_vec(), text].concat();
        }),
        ("a record is cut", 4, &|rows| rows[3].1.truncate(10)),
        ("a record is removed", 4, &|rows| drop(rows.remove(3))),
        ("the first record is removed", 1, &|rows| drop(rows.remove(0))),
        ("the last record is removed", 9, &|rows| drop(rows.remove(8))),
        ("all are removed", 1, &|rows| rows.clear()),
        ("two change places", 4, &|rows| {
            let fourth = rows[3].1.clone();
            rows[3].1 = std::mem::replace(&mut rows[4].1, fourth);
        }),
        ("one is put in behind the last", 10, &|rows| rows.push((key(10, 0), rows[8].1.clone()))),
        ("one is put in beside another", 5, &|rows| rows.push((key(5, 0xff), rows[4].1.clone()))),
        ("one is put in before the first", 0, &|rows| rows.push((key(0, 0), rows[0].1.clone()))),
    ];
    let whole = rows.stored.clone();
    for (what, bad, change) in cases {
        let mut changed = whole.clone();
        change(&mut changed);
        rows.replace(&changed).await;
        let found = verified(&server, Some("acme")).await;
        assert_eq!((&found["ok"], &found["bad"]["number"]), (&json!(false), &json!(bad)), "{what}: {found}");
        // What is left can still be read.
        log(&server, Some("acme")).await;
        rows.replace(&whole).await;
        assert_eq!(verified(&server, Some("acme")).await["ok"], true, "after {what}");
    }
}

async fn a_change_whose_record_cannot_be_written_does_not_happen(engine: Engine) {
    let (server, mut connection) = with_database(engine).await;
    server.allow_errors();
    let acme = server.tenant("acme").await;
    acme.secret("OLD", "x").await;
    let (stop, go) = match engine {
        Engine::Sqlite => (
            "create trigger audit_full before insert on rows when new.space = 'audit' \
             begin select raise(abort, 'no room'); end",
            "drop trigger audit_full",
        ),
        Engine::Postgres => (
            "create function audit_full() returns trigger language plpgsql as \
             $$ begin raise exception 'no room' using errcode = '53100'; end $$; \
             create trigger audit_full before insert on rows for each row when (new.space = 'audit') \
             execute function audit_full()",
            "drop trigger audit_full on rows",
        ),
    };
    let state = async || {
        let mut state = HashMap::new();
        for path in ["/v1/tenants", "/v1/plans", "/v1/tenants/acme/keys", "/v1/tenants/acme/secrets", "/v1/audit"] {
            state.insert(path, expect(server.admin(Method::GET, path), StatusCode::OK).await);
        }
        state
    };
    let before = state().await;
    sqlx::raw_sql(AssertSqlSafe(stop)).execute(&mut connection).await.expect("records cannot be written");
    for request in [
        server.admin(Method::POST, "/v1/tenants").json(&json!({ "id": "globex" })),
        server.admin(Method::PATCH, "/v1/tenants/acme").json(&json!({ "plan": "free" })),
        server.admin(Method::PUT, "/v1/plans/gold").json(&json!({})),
        server.admin(Method::DELETE, "/v1/tenants/acme"),
        acme.api(Method::POST, "/keys").json(&json!({ "name": "new", "scopes": ["invoke"] })),
        acme.api(Method::DELETE, &format!("/keys/{}", id_of(&acme.key))),
        acme.api(Method::PUT, "/secrets/NEW").body("x"),
        acme.api(Method::DELETE, "/secrets/OLD"),
    ] {
        let answer = request.send().await.expect("an answer");
        assert!(answer.status().is_server_error(), "{} {}", answer.url(), answer.status());
    }
    // What leaves no record goes on, and a denial stays one.
    expect(acme.api(Method::PUT, "/kv/c/k").body("x"), StatusCode::CREATED).await;
    expect(acme.api(Method::GET, "/../nobody/keys"), StatusCode::NOT_FOUND).await;
    assert_eq!(state().await, before);
    connection.execute(go).await.expect("records can be written");
    acme.secret("NEW", "x").await;
    let told = ["keys.create", "secrets.put", "secrets.put"].map(|action| json!([action, "done"]));
    tells(&server, Some("acme"), &["action", "outcome"], &told).await;
}

async fn changes_at_the_same_time_form_one_chain(engine: Engine) {
    let setup = engine.setup().await;
    let nodes = match engine {
        Engine::Sqlite => vec![Server::start_with(setup)],
        Engine::Postgres => vec![Server::start_with(setup.clone()), Server::start_with(setup)],
    };
    let acme = nodes[0].tenant("acme").await;
    let on = |n: usize| Tenant { server: &nodes[n % nodes.len()], ..acme.clone() };
    let secrets = (0..60).map(|n| on(n).api(Method::PUT, &format!("/secrets/S{n}")).body("x").send());
    let key = json!({ "name": "k", "scopes": ["invoke"] });
    let keys = (0..20).map(|n| on(n).api(Method::POST, "/keys").json(&key).send());
    let tenants = (0..20).map(|n| {
        nodes[n % nodes.len()].admin(Method::POST, "/v1/tenants").json(&json!({ "id": format!("t-{}", n / 2) })).send()
    });
    let (secrets, keys, tenants) = tokio::join!(join_all(secrets), join_all(keys), join_all(tenants));
    let statuses = |answers: Vec<reqwest::Result<Response>>| {
        let mut counts = HashMap::new();
        answers.into_iter().for_each(|one| *counts.entry(one.expect("an answer").status().as_u16()).or_insert(0) += 1);
        counts
    };
    assert_eq!(statuses(secrets), HashMap::from([(204, 60)]));
    assert_eq!(statuses(keys), HashMap::from([(201, 20)]));
    assert_eq!(statuses(tenants), HashMap::from([(201, 10), (409, 10)]), "each name is taken once");
    let server = &nodes[0];
    let records = log(server, Some("acme")).await;
    let of = |action: &str| records.iter().filter(|record| record["action"] == action).count();
    assert_eq!((of("secrets.put"), of("keys.create")), (60, 21));
    assert_eq!(verified(server, Some("acme")).await["hash"], follows(&records));
    let platform = log(server, None).await;
    assert_eq!(platform.len(), 2 + 10);
    assert_eq!(verified(server, None).await["hash"], follows(&platform));
}

/// The control of this file: a server that leaves out the records.
async fn without_the_record_a_change_is_seen_to_lack_it(engine: Engine) {
    let server = Server::start_with(engine.setup().await.with("CHALET_BREAK", "audit"));
    let acme = server.tenant("acme").await;
    acme.secret("S", "x").await;
    assert_eq!(log(&server, Some("acme")).await, Vec::<Value>::new(), "two changes were made");
}

/// Changes over a wire that loses answers together with their connections. How many answers lost their outcome.
async fn over_a_bad_wire(breaks: &str) -> usize {
    const CHANGES: usize = 200;
    let direct = postgres::database().await;
    let port = direct.url.split(':').next_back().and_then(|rest| rest.split('/').next()).expect("a port");
    let proxy = Proxy::start(port.parse().expect("a number")).await;
    let wire = Database { url: direct.url.replace(port, &proxy.port.to_string()), ..direct.clone() };
    let server = Server::start_with(Setup::on(&wire).with("CHALET_BREAK", breaks));
    let acme = server.tenant("acme").await;
    proxy.lost_per_mille.store(20, Ordering::Relaxed);
    let (mut unknown, mut done) = (0, Vec::new());
    for n in 0..CHANGES {
        let name = format!("N{n}");
        // A row, and a key, whose statement makes the commit several round trips long.
        let request = if n % 2 == 0 {
            acme.api(Method::PUT, &format!("/secrets/{name}")).body("x")
        } else {
            acme.api(Method::POST, "/keys").json(&json!({ "name": name, "scopes": ["invoke"] }))
        };
        let answer = request.send().await.expect("an answer");
        if answer.status().is_success() {
            done.push(name);
        } else {
            unknown += usize::from(answer.text().await.expect("text").contains("outcome_unknown"));
        }
    }
    proxy.lost_per_mille.store(0, Ordering::Relaxed);
    let cuts = proxy.cuts.load(Ordering::Relaxed);
    println!("{cuts} answers lost, {} changes done, {unknown} unknown", done.len());
    assert!(cuts > 5 && done.len() > CHANGES / 2, "{cuts} answers lost, {} changes done", done.len());
    if breaks.is_empty() {
        let there = Server::start_with(Setup::on(&direct));
        let list = async |what: &str| {
            let path = format!("/v1/tenants/acme/{what}?limit=1000");
            let list = expect(there.admin(Method::GET, &path), StatusCode::OK).await;
            let names = list["data"].as_array().expect("a list").iter();
            names
                .filter_map(|one| one["name"].as_str().map(str::to_owned))
                .filter(|name| name != "test")
                .collect::<Vec<_>>()
        };
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names
        };
        let made = sorted([list("secrets").await, list("keys").await].concat());
        let records = log(&there, Some("acme")).await;
        let name = |record: &Value| match record["what"]["name"].as_str() {
            Some(name) => name.to_owned(),
            None => record["target"].as_str().and_then(|path| path.rsplit('/').next()).expect("a name").to_owned(),
        };
        let told = sorted(records.iter().map(name).filter(|name| name != "test").collect());
        assert_eq!(made, told, "what was made has its record");
        assert_eq!(made, sorted(done), "what was made was acknowledged, and nothing else");
        assert_eq!(verified(&there, Some("acme")).await["ok"], true);
    }
    unknown
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_whose_answer_was_lost_on_the_wire_is_looked_up_by_its_record() {
    assert_eq!(over_a_bad_wire("").await, 0);
    for _ in 0..5 {
        if over_a_bad_wire("audit").await > 0 {
            return;
        }
    }
    panic!("without records nobody knows what became of lost commits");
}
