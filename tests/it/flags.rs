//! Feature flags from guests and over OFREP.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::kit::guests::root;
use crate::kit::server::{Server, Setup, expect};

fn document() -> Value {
    let text = std::fs::read_to_string(root().join("tests/guests/flags/flags.json")).expect("the document");
    serde_json::from_str(&text).expect("JSON")
}

#[tokio::test]
async fn the_guests_suite_passes_on_the_server() {
    for setup in Setup::engines().await {
        let server = Server::start_with(setup);
        let acme = server.tenant("acme").await;
        acme.deploy("guest-flags").await;
        expect(acme.api(Method::PUT, "/flags").json(&document()), StatusCode::OK).await;
        expect(acme.call(Method::POST, "guest-flags", "/suite"), StatusCode::OK).await;
    }
}

#[tokio::test]
async fn a_flag_flipped_between_two_calls_changes_the_second() {
    for setup in Setup::engines().await {
        let server = Server::start_with(setup);
        let acme = server.tenant("acme").await;
        acme.deploy("pricing").await;
        let price = || {
            let order = json!({ "sku": "a", "quantity": 10, "list_cents": 1_000 });
            expect(acme.call(Method::POST, "pricing", "/price").json(&order), StatusCode::OK)
        };
        assert_eq!(price().await["total_cents"], 10_000, "without a document the plugin's default holds");
        let flip = |on: bool| {
            let flag = json!({ "flags": { "volume-discount": { "state": "ENABLED", "variants": { "on": true, "off": false },
                "defaultVariant": if on { "on" } else { "off" } } } });
            expect(acme.api(Method::PUT, "/flags").json(&flag), StatusCode::OK)
        };
        flip(true).await;
        assert_eq!(price().await["total_cents"], 9_000);
        flip(false).await;
        assert_eq!(price().await["total_cents"], 10_000);
    }
}

#[tokio::test]
async fn ofrep_answers_for_the_keys_own_tenant() {
    let server = Server::start();
    let (acme, globex) = (server.tenant("acme").await, server.tenant("globex").await);
    expect(acme.api(Method::PUT, "/flags").json(&document()), StatusCode::OK).await;
    let one = |key: &str, flag: &str| {
        let path = format!("/ofrep/v1/evaluate/flags/{flag}");
        server
            .anonymous(Method::POST, &path)
            .bearer_auth(key)
            .json(&json!({ "context": { "targetingKey": "u1", "plan": "pro" } }))
    };
    let found = expect(one(&acme.key, "colour"), StatusCode::OK).await;
    assert_eq!(
        (&found["value"], &found["variant"], &found["reason"]),
        (&json!("#0f0"), &json!("green"), &json!("TARGETING_MATCH"))
    );
    let missing = expect(one(&globex.key, "colour"), StatusCode::NOT_FOUND).await;
    assert_eq!(missing["errorCode"], "FLAG_NOT_FOUND");
    expect(server.anonymous(Method::POST, "/ofrep/v1/evaluate/flags/colour"), StatusCode::UNAUTHORIZED).await;
    let all = || {
        let request = server.anonymous(Method::POST, "/ofrep/v1/evaluate/flags").bearer_auth(&acme.key);
        request.json(&json!({ "context": { "targetingKey": "u1" } }))
    };
    let bulk = all().send().await.expect("an answer");
    let etag = bulk.headers()["etag"].to_str().expect("text").to_owned();
    assert_eq!(bulk.json::<Value>().await.expect("JSON")["flags"].as_array().map(Vec::len), Some(6));
    expect(all().header("if-none-match", &etag), StatusCode::NOT_MODIFIED).await;
}

#[tokio::test]
async fn a_document_is_replaced_only_in_the_state_that_was_read() {
    let server = Server::start();
    let acme = server.tenant("acme").await;
    let put = || acme.api(Method::PUT, "/flags").json(&document());
    let first = put().send().await.expect("an answer");
    let etag = first.headers()["etag"].to_str().expect("text").to_owned();
    expect(put().header("if-match", &etag), StatusCode::OK).await;
    expect(put().header("if-match", &etag), StatusCode::PRECONDITION_FAILED).await;
    expect(acme.api(Method::PUT, "/flags").json(&json!({ "flags": { "x": {} } })), StatusCode::UNPROCESSABLE_ENTITY)
        .await;
}
