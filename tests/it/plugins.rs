//! A stranger's component answers: upload, approval, release, calls, rollback.

use crate::kit::guests::component;
use crate::kit::server::{Server, expect};
use reqwest::{Method, StatusCode};
use serde_json::json;

#[tokio::test]
async fn a_plugin_answers_over_http_and_its_effects_are_stored() {
    let server = Server::start();
    let acme = server.tenant("acme").await;
    acme.deploy("notes").await;
    let made =
        expect(acme.call(Method::POST, "notes", "/notes").json(&json!({ "text": "hello" })), StatusCode::CREATED).await;
    let id = made["id"].as_str().expect("an id");
    let read = expect(acme.call(Method::GET, "notes", &format!("/notes/{id}")), StatusCode::OK).await;
    assert_eq!(read, json!({ "id": id, "text": "hello" }));
    let stored = acme.kv("notes", id).await.expect("the note is in the tenant's collection");
    assert!(String::from_utf8_lossy(&stored).contains("hello"));
    let records = expect(acme.api(Method::GET, "/invocations"), StatusCode::OK).await;
    assert_eq!(records["data"][1]["plugin"], "notes");
    assert_eq!(records["data"][1]["outcome"], "ok");
}

#[tokio::test]
async fn an_upload_releases_nothing_and_waits_for_its_grants() {
    let server = Server::start();
    let acme = server.tenant("acme").await;
    let uploaded = acme.upload("notes", component("notes")).await;
    assert_eq!(uploaded.status(), StatusCode::CREATED);
    let version = uploaded.json::<serde_json::Value>().await.expect("JSON");
    assert_eq!(version["state"], "held");
    assert_eq!(
        acme.call(Method::GET, "notes", "/notes").send().await.expect("an answer").status(),
        StatusCode::NOT_FOUND
    );
    let release = acme.api(Method::POST, "/plugins/notes/release").json(&json!({ "version": version["version"] }));
    let refused = expect(release, StatusCode::CONFLICT).await;
    assert_eq!(refused["code"], "grants_not_approved");
    assert_eq!(acme.upload("notes", component("notes")).await.status(), StatusCode::OK, "the same bytes again");
    let other =
        expect(acme.api(Method::PUT, "/plugins/other").body(component("notes")), StatusCode::UNPROCESSABLE_ENTITY)
            .await;
    assert_eq!(other["code"], "name_mismatch");
}
