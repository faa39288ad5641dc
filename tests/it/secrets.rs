//! Secrets: written, given to the plugins that were granted them, and never shown.

use reqwest::{Method, StatusCode};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::kit::engine::Engine;
use crate::kit::postgres;
use crate::kit::server::{ADMIN, Server, Setup, expect};

on_both_engines! {
    a_granted_secret_reaches_the_guest_and_nothing_else_does,
}

async fn a_granted_secret_reaches_the_guest_and_nothing_else_does(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-secrets").await;
    acme.secret("GRANTED", "hush-hush-0123456789").await;
    acme.secret("OTHER", "not-for-you").await;
    let read = |name: &str| acme.call(Method::GET, "guest-secrets", &format!("/secrets/{name}"));
    assert_eq!(expect(read("GRANTED"), StatusCode::OK).await, json!({ "value": "hush-hush-0123456789" }));
    assert_eq!(expect(read("OTHER"), StatusCode::OK).await["error"]["kind"], "denied");
    assert_eq!(expect(read("UNSET"), StatusCode::OK).await["error"]["kind"], "not-found");
    let listed = expect(acme.api(Method::GET, "/secrets"), StatusCode::OK).await;
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(2));
    assert!(!listed.to_string().contains("hush"));
}

/// Store a secret, and an answer that shows a key for its idempotency key; what must not be found anywhere.
async fn store_secrets(server: &Server) -> [String; 3] {
    let acme = server.tenant("acme").await;
    acme.secret("GRANTED", "hush-hush-0123456789").await;
    let request = server.admin(Method::POST, "/v1/tenants/acme/keys").header("idempotency-key", "k");
    let made = expect(request.json(&json!({ "name": "ci", "scopes": ["tenant:read"] })), StatusCode::CREATED).await;
    let secret_part = made["key"].as_str().and_then(|key| key.split('_').nth(2)).expect("a secret part");
    // What is no secret is found by the same search.
    expect(acme.api(Method::PUT, "/kv/c/k").body(PLAIN), StatusCode::CREATED).await;
    ["hush-hush-0123456789".to_owned(), secret_part.to_owned(), ADMIN.to_owned()]
}

/// A value that is stored as it is.
const PLAIN: &str = "plain-0123456789";

#[tokio::test]
async fn no_secret_and_no_key_stands_in_the_files() {
    let server = Server::start();
    let needles = store_secrets(&server).await;
    server.stop();
    let mut plain = 0;
    for entry in std::fs::read_dir(server.data.path()).expect("the data folder") {
        let path = entry.expect("an entry").path();
        if path.is_file() && path.file_name().is_some_and(|name| name != "master.key") {
            let bytes = std::fs::read(&path).expect("bytes");
            let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
            plain += usize::from(holds(PLAIN));
            for needle in &needles {
                assert!(!holds(needle), "{} holds a secret", path.display());
            }
        }
    }
    assert!(plain > 0, "the files were searched");
}

#[tokio::test]
async fn no_secret_and_no_key_stands_in_a_dump() {
    let database = postgres::database().await;
    let needles = store_secrets(&Server::start_with(Setup::on(&database))).await;
    let mut admin = PgConnection::connect(&database.admin_url).await.expect("the cluster answers");
    let tables = "select relname::text from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut admin).await.expect("the catalog answers");
    let mut plain = 0;
    for table in tables {
        let dump = AssertSqlSafe(format!("select t::text from {table} t"));
        for row in sqlx::query_scalar::<_, String>(dump).fetch_all(&mut admin).await.expect("read") {
            // Bytes show in hexadecimal.
            let holds = |text: &str| row.contains(text) || row.contains(&hex::encode(text));
            plain += usize::from(holds(PLAIN));
            for needle in &needles {
                assert!(!holds(needle), "{table} holds a secret");
            }
        }
    }
    assert!(plain > 0, "the rows were searched");
}
