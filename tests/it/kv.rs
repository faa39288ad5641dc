//! Key-value entries over HTTP and from a guest.

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::kit::engine::Engine;
use crate::kit::server::expect;

on_both_engines! {
    the_guests_suite_passes_on_the_server,
    an_entrys_version_is_its_etag,
    lists_are_paged_by_prefix_and_a_forged_cursor_is_refused,
    storage_beyond_the_plan_is_refused_and_deletes_still_work,
    keys_and_values_have_bounds,
}

async fn the_guests_suite_passes_on_the_server(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-kv").await;
    expect(acme.call(Method::POST, "guest-kv", "/suite"), StatusCode::OK).await;
    expect(acme.call(Method::POST, "guest-kv", "/suite/committed"), StatusCode::OK).await;
}

async fn an_entrys_version_is_its_etag(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    let put = |value: &'static str| acme.api(Method::PUT, "/kv/orders/o-1").body(value);
    let tag = |answer: &reqwest::Response| answer.headers()["etag"].to_str().expect("text").to_owned();
    let made = put("one").send().await.expect("an answer");
    assert_eq!(made.status(), StatusCode::CREATED);
    let first = tag(&made);
    let read = acme.api(Method::GET, "/kv/orders/o-1").send().await.expect("an answer");
    assert_eq!((read.status(), tag(&read)), (StatusCode::OK, first.clone()));
    assert_eq!(&read.bytes().await.expect("bytes")[..], b"one");
    let unchanged = acme.api(Method::GET, "/kv/orders/o-1").header("if-none-match", &first);
    expect(unchanged, StatusCode::NOT_MODIFIED).await;
    let second = put("two").header("if-match", &first).send().await.expect("an answer");
    assert_eq!(second.status(), StatusCode::NO_CONTENT);
    assert_ne!(tag(&second), first);
    assert_eq!(
        expect(put("three").header("if-match", &first), StatusCode::PRECONDITION_FAILED).await["code"],
        "precondition_failed"
    );
    expect(put("three").header("if-none-match", "*"), StatusCode::PRECONDITION_FAILED).await;
    expect(acme.api(Method::DELETE, "/kv/orders/o-1").header("if-match", &first), StatusCode::PRECONDITION_FAILED)
        .await;
    expect(acme.api(Method::DELETE, "/kv/orders/o-1").header("if-match", tag(&second)), StatusCode::NO_CONTENT).await;
    expect(acme.api(Method::GET, "/kv/orders/o-1"), StatusCode::NOT_FOUND).await;
    let again = put("four").send().await.expect("an answer");
    assert_ne!(tag(&again), first, "a version is never used again");
}

async fn lists_are_paged_by_prefix_and_a_forged_cursor_is_refused(engine: Engine) {
    let server = engine.server().await;
    let (acme, globex) = (server.tenant("acme").await, server.tenant("globex").await);
    for n in 0..25 {
        expect(acme.api(Method::PUT, &format!("/kv/c/a-{n:02}")).body("x"), StatusCode::CREATED).await;
    }
    expect(acme.api(Method::PUT, "/kv/c/b").body("x"), StatusCode::CREATED).await;
    let (mut keys, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = expect(acme.api(Method::GET, &format!("/kv/c?prefix=a-&limit=10{cursor}")), StatusCode::OK).await;
        keys.extend(
            page["data"].as_array().expect("a list").iter().map(|item| item["key"].as_str().expect("a key").to_owned()),
        );
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(keys, (0..25).map(|n| format!("a-{n:02}")).collect::<Vec<_>>());
    // A cursor belongs to its list and its tenant.
    let stolen = globex.api(Method::GET, &format!("/kv/c?prefix=a-&limit=10{cursor}"));
    assert_eq!(expect(stolen, StatusCode::BAD_REQUEST).await["code"], "cursor_invalid");
    assert_eq!(expect(globex.api(Method::GET, "/kv/c"), StatusCode::OK).await, json!({ "data": [], "next": null }));
}

async fn storage_beyond_the_plan_is_refused_and_deletes_still_work(engine: Engine) {
    let server = engine.server().await;
    expect(server.admin(Method::PUT, "/v1/plans/small").json(&json!({ "storage_bytes": 10_000 })), StatusCode::OK)
        .await;
    let acme = server.tenant("acme").await;
    expect(server.admin(Method::PATCH, "/v1/tenants/acme").json(&json!({ "plan": "small" })), StatusCode::OK).await;
    let put = |key: &str| acme.api(Method::PUT, &format!("/kv/c/{key}")).body(vec![0; 4_000]);
    expect(put("a"), StatusCode::CREATED).await;
    expect(put("b"), StatusCode::CREATED).await;
    assert_eq!(expect(put("c"), StatusCode::PAYMENT_REQUIRED).await["code"], "storage_exhausted");
    expect(acme.api(Method::DELETE, "/kv/c/a"), StatusCode::NO_CONTENT).await;
    expect(put("c"), StatusCode::CREATED).await;
    let tenant = expect(acme.api(Method::GET, ""), StatusCode::OK).await;
    assert_eq!(tenant["storage_bytes"], 2 * 4_001);
}

async fn keys_and_values_have_bounds(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    expect(acme.api(Method::PUT, &format!("/kv/c/{}", "k".repeat(512))).body("x"), StatusCode::CREATED).await;
    for (path, body) in [
        (format!("/kv/c/{}", "k".repeat(513)), vec![0]),
        ("/kv/C/k".to_owned(), vec![0]),
        (format!("/kv/{}/k", "c".repeat(65)), vec![0]),
        ("/kv/c/large".to_owned(), vec![0; (256 << 10) + 1]),
    ] {
        let answer = acme.api(Method::PUT, &path).body(body).send().await.expect("an answer");
        assert!(answer.status().is_client_error(), "{path} answered {}", answer.status());
    }
}
