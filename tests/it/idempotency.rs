//! One effect per idempotency key, over the API and over a plugin.

use std::sync::Arc;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::kit::server::{Server, expect};

#[tokio::test]
async fn a_repeated_request_gets_the_first_answer_and_has_one_effect() {
    let server = Server::start();
    let acme = server.tenant("acme").await;
    acme.deploy("notes").await;
    let post = |key: &str| {
        acme.call(Method::POST, "notes", "/notes").header("idempotency-key", key).json(&json!({ "text": "once" }))
    };
    let first = post("k-1").send().await.expect("an answer");
    assert_eq!(first.status(), StatusCode::CREATED);
    assert!(first.headers().get("idempotent-replayed").is_none());
    let first: Value = first.json().await.expect("JSON");
    // Quoted and unquoted are the same key.
    for key in ["k-1", "\"k-1\""] {
        let again = post(key).send().await.expect("an answer");
        assert_eq!(again.status(), StatusCode::CREATED);
        assert_eq!(again.headers()["idempotent-replayed"], "true");
        assert_eq!(again.json::<Value>().await.expect("JSON"), first);
    }
    let notes = expect(acme.api(Method::GET, "/kv/notes"), StatusCode::OK).await;
    assert_eq!(notes["data"].as_array().map(Vec::len), Some(1));
    let other =
        acme.call(Method::POST, "notes", "/notes").header("idempotency-key", "k-1").json(&json!({ "text": "other" }));
    assert_eq!(expect(other, StatusCode::UNPROCESSABLE_ENTITY).await["code"], "idempotency_key_reused");
}

#[tokio::test]
async fn the_same_key_at_the_same_time_has_one_effect() {
    let server = Arc::new(Server::start());
    let acme = server.tenant("acme").await;
    acme.deploy("notes").await;
    for round in 0..20 {
        let calls = (0..10).map(|_| {
            let request =
                acme.call(Method::POST, "notes", "/notes").header("idempotency-key", format!("round-{round}"));
            request.json(&json!({ "text": "race" })).send()
        });
        for answer in futures_util::future::join_all(calls).await {
            let status = answer.expect("an answer").status();
            assert!(matches!(status, StatusCode::CREATED | StatusCode::CONFLICT), "{status}");
        }
    }
    let notes = expect(acme.api(Method::GET, "/kv/notes?limit=1000"), StatusCode::OK).await;
    assert_eq!(notes["data"].as_array().map(Vec::len), Some(20));
}

#[tokio::test]
async fn keys_of_different_callers_and_tenants_do_not_meet() {
    let server = Server::start();
    let (acme, globex) = (server.tenant("acme").await, server.tenant("globex").await);
    let other_key = acme.mint(&["tenant:write"]).await;
    let write = |tenant: &str, key: &str, value: &'static str| {
        let path = format!("/v1/tenants/{tenant}/kv/c/k");
        server.anonymous(Method::PUT, &path).bearer_auth(key).header("idempotency-key", "same").body(value).send()
    };
    assert_eq!(write("acme", &acme.key, "1").await.expect("an answer").status(), StatusCode::CREATED);
    assert_eq!(write("acme", &other_key, "2").await.expect("an answer").status(), StatusCode::NO_CONTENT);
    assert_eq!(write("globex", &globex.key, "3").await.expect("an answer").status(), StatusCode::CREATED);
    assert_eq!(acme.kv("c", "k").await.as_deref(), Some(&b"2"[..]));
    assert_eq!(globex.kv("c", "k").await.as_deref(), Some(&b"3"[..]));
}

#[tokio::test]
async fn making_a_tenant_or_a_key_again_gives_the_same_answer() {
    let server = Server::start();
    let make = || {
        server.admin(Method::POST, "/v1/tenants").header("idempotency-key", "t").json(&json!({ "id": "acme" })).send()
    };
    let first = make().await.expect("an answer");
    assert_eq!(first.status(), StatusCode::CREATED);
    let first: Value = first.json().await.expect("JSON");
    let again = make().await.expect("an answer");
    assert_eq!(
        (again.status(), again.headers()["idempotent-replayed"].to_str().ok()),
        (StatusCode::CREATED, Some("true"))
    );
    assert_eq!(again.json::<Value>().await.expect("JSON"), first);
    let key = || {
        let request = server.admin(Method::POST, "/v1/tenants/acme/keys").header("idempotency-key", "k");
        expect(request.json(&json!({ "name": "ci", "scopes": ["tenant:read"] })), StatusCode::CREATED)
    };
    assert_eq!(key().await, key().await);
    let keys = expect(server.admin(Method::GET, "/v1/tenants/acme/keys"), StatusCode::OK).await;
    assert_eq!(keys["data"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_failure_is_not_stored_and_the_next_try_runs() {
    let server = Server::start();
    let acme = server.tenant("acme").await;
    acme.deploy("guest-kv").await;
    let run = |ops: Value| {
        acme.call(Method::POST, "guest-kv", "/run").header("idempotency-key", "k").json(&json!({ "ops": ops }))
    };
    let failing = json!([{ "op": "put", "key": "a", "value": 1 }, { "op": "status", "status": 500 }]);
    expect(run(failing.clone()), StatusCode::INTERNAL_SERVER_ERROR).await;
    assert_eq!(acme.kv("c", "a").await, None, "nothing of a failed invocation is there");
    // The same key with another request is free: the failure left no answer behind.
    expect(run(json!([{ "op": "put", "key": "a", "value": 2 }])), StatusCode::OK).await;
    assert_eq!(acme.kv("c", "a").await.as_deref(), Some(&b"2"[..]));
}
