//! Secrets: written, given to the plugins that were granted them, and never shown.

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::kit::server::{Server, expect};

#[tokio::test]
async fn a_granted_secret_reaches_the_guest_and_nothing_else_does() {
    let server = Server::start();
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

#[tokio::test]
async fn no_secret_and_no_key_stands_in_the_files() {
    let server = Server::start();
    let acme = server.tenant("acme").await;
    acme.secret("GRANTED", "hush-hush-0123456789").await;
    // An answer that shows a key is stored for its idempotency key: sealed.
    let request = server.admin(Method::POST, "/v1/tenants/acme/keys").header("idempotency-key", "k");
    let made = expect(request.json(&json!({ "name": "ci", "scopes": ["tenant:read"] })), StatusCode::CREATED).await;
    let key = made["key"].as_str().expect("a key").to_owned();
    server.stop();
    let secret_part = key.split('_').nth(2).expect("a secret part");
    for entry in std::fs::read_dir(server.data.path()).expect("the data folder") {
        let path = entry.expect("an entry").path();
        if path.is_file() && path.file_name().is_some_and(|name| name != "master.key") {
            let bytes = std::fs::read(&path).expect("bytes");
            for needle in ["hush-hush-0123456789", secret_part, crate::kit::server::ADMIN] {
                let found = bytes.windows(needle.len()).any(|window| window == needle.as_bytes());
                assert!(!found, "{} holds a secret", path.display());
            }
        }
    }
}
