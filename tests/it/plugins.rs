//! A stranger's component answers: upload, approval, release, calls, rollback.

use chalet::cli::build;
use chalet::services::plugins::manifest::Manifest;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::kit::engine::Engine;
use crate::kit::guests::component;
use crate::kit::server::{Tenant, expect};

on_both_engines! {
    a_plugin_answers_over_http_and_its_effects_are_stored,
    an_upload_releases_nothing_and_waits_for_its_grants,
    a_percentage_of_the_calls_goes_to_a_new_version_until_it_is_rolled_back,
    a_version_that_asks_for_more_is_held_and_an_approval_takes_nothing_away,
    a_version_never_changes,
    a_webhook_source_belongs_to_one_plugin,
    a_deleted_plugin_is_gone_with_its_approvals_and_its_data_stays,
}

/// A guest with some of its manifest changed.
fn with(name: &str, change: impl FnOnce(&mut Manifest)) -> Vec<u8> {
    let component = component(name);
    let mut manifest = Manifest::from_component(&component).expect("a manifest");
    change(&mut manifest);
    build::embed_instead(&component, &manifest).expect("embedded")
}

fn version(version: &str) -> impl FnOnce(&mut Manifest) {
    let version = version.parse().expect("a version");
    move |manifest| manifest.version = version
}

async fn release(tenant: &Tenant<'_>, plugin: &str, body: Value, status: StatusCode) -> Value {
    expect(tenant.api(Method::POST, &format!("/plugins/{plugin}/release")).json(&body), status).await
}

async fn rollback(tenant: &Tenant<'_>, plugin: &str, status: StatusCode) -> Value {
    expect(tenant.api(Method::POST, &format!("/plugins/{plugin}/rollback")), status).await
}

async fn a_plugin_answers_over_http_and_its_effects_are_stored(engine: Engine) {
    let server = engine.server().await;
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

async fn an_upload_releases_nothing_and_waits_for_its_grants(engine: Engine) {
    let server = engine.server().await;
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

async fn a_percentage_of_the_calls_goes_to_a_new_version_until_it_is_rolled_back(engine: Engine) {
    let server = engine.server().await;
    // A fast machine makes these calls faster than the plan's burst allows.
    server.unlimited().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-context").await;
    let next = with("guest-context", version("1.1.0"));
    assert_eq!(acme.upload("guest-context", next).await.status(), StatusCode::CREATED);
    let calls_of_the_new = async || {
        let mut new = 0;
        for _ in 0..300 {
            let answer = expect(server.anonymous(Method::GET, "/t/acme/guest-context/context/x"), StatusCode::OK).await;
            new += usize::from(answer["version"] == "1.1.0");
        }
        new
    };
    assert_eq!(calls_of_the_new().await, 0, "an upload gets no traffic");
    let shares = release(&acme, "guest-context", json!({ "version": "1.1.0", "percent": 20 }), StatusCode::OK).await;
    assert_eq!(
        shares["release"],
        json!([{ "version": "1.1.0", "percent": 20 }, { "version": "1.0.0", "percent": 80 }])
    );
    // 60 are expected; 6 standard deviations are 42.
    let new = calls_of_the_new().await;
    assert!((18..=102).contains(&new), "{new} of 300 calls got the new version");
    release(&acme, "guest-context", json!({ "version": "1.1.0" }), StatusCode::OK).await;
    assert_eq!(calls_of_the_new().await, 300);
    rollback(&acme, "guest-context", StatusCode::OK).await;
    let shares = rollback(&acme, "guest-context", StatusCode::OK).await;
    assert_eq!(shares["release"], json!([{ "version": "1.0.0", "percent": 100 }]));
    assert_eq!(calls_of_the_new().await, 0);
    assert_eq!(rollback(&acme, "guest-context", StatusCode::CONFLICT).await["code"], "no_earlier_release");
    for percent in [0, 101] {
        let share = json!({ "version": "1.1.0", "percent": percent });
        release(&acme, "guest-context", share, StatusCode::BAD_REQUEST).await;
    }
}

async fn a_version_that_asks_for_more_is_held_and_an_approval_takes_nothing_away(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-kv").await;
    // What asks for less needs no approval; who approves it all the same can still go back.
    let less = with("guest-kv", |manifest| {
        version("1.1.0")(manifest);
        manifest.grants.kv_read.clear();
    });
    let uploaded: Value = acme.upload("guest-kv", less).await.json().await.expect("JSON");
    assert_eq!(uploaded["state"], "ready");
    expect(acme.api(Method::POST, "/plugins/guest-kv/versions/1.1.0/approve"), StatusCode::OK).await;
    release(&acme, "guest-kv", json!({ "version": "1.1.0" }), StatusCode::OK).await;
    rollback(&acme, "guest-kv", StatusCode::OK).await;

    let more = with("guest-kv", |manifest| {
        version("1.2.0")(manifest);
        manifest.grants.egress.push("api.example.com".into());
    });
    let uploaded: Value = acme.upload("guest-kv", more).await.json().await.expect("JSON");
    assert_eq!((&uploaded["state"], &uploaded["held"]), (&json!("held"), &json!(["egress: api.example.com"])));
    let refused = release(&acme, "guest-kv", json!({ "version": "1.2.0" }), StatusCode::CONFLICT).await;
    assert_eq!(refused["code"], "grants_not_approved");
    // Writing a plugin is not enough to widen what it may reach.
    let writer = acme.mint(&["tenant:write"]).await;
    let path = "/v1/tenants/acme/plugins/guest-kv/versions/1.2.0/approve";
    expect(server.anonymous(Method::POST, path).bearer_auth(&writer), StatusCode::FORBIDDEN).await;
    expect(acme.api(Method::POST, "/plugins/guest-kv/versions/1.2.0/approve"), StatusCode::OK).await;
    release(&acme, "guest-kv", json!({ "version": "1.2.0" }), StatusCode::OK).await;
    let versions = expect(acme.api(Method::GET, "/plugins/guest-kv/versions"), StatusCode::OK).await;
    let states: Vec<_> = versions["data"].as_array().expect("a list").iter().map(|one| &one["state"]).collect();
    assert_eq!(states, ["ready", "ready", "ready"]);
}

async fn a_version_never_changes(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-hello").await;
    let other = with("guest-hello", |manifest| manifest.grants.kv.push("other".into()));
    let refused = acme.upload("guest-hello", other).await;
    assert_eq!(refused.status(), StatusCode::CONFLICT);
    assert_eq!(refused.json::<Value>().await.expect("JSON")["code"], "version_exists");
}

async fn a_webhook_source_belongs_to_one_plugin(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("stripe-billing").await;
    let rival = with("stripe-billing", |manifest| manifest.name = "rival".into());
    assert_eq!(acme.upload("rival", rival).await.status(), StatusCode::CREATED);
    expect(acme.api(Method::POST, "/plugins/rival/versions/1.0.0/approve"), StatusCode::OK).await;
    let refused = release(&acme, "rival", json!({ "version": "1.0.0" }), StatusCode::CONFLICT).await;
    assert_eq!(refused["code"], "source_taken");
    // Once the first is gone the source is free.
    expect(acme.api(Method::DELETE, "/plugins/stripe-billing"), StatusCode::NO_CONTENT).await;
    release(&acme, "rival", json!({ "version": "1.0.0" }), StatusCode::OK).await;
}

async fn a_deleted_plugin_is_gone_with_its_approvals_and_its_data_stays(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("notes").await;
    let note = acme.call(Method::POST, "notes", "/notes").json(&json!({ "text": "kept" }));
    let id = expect(note, StatusCode::CREATED).await["id"].as_str().expect("an id").to_owned();
    expect(acme.api(Method::DELETE, "/plugins/notes"), StatusCode::NO_CONTENT).await;
    expect(acme.call(Method::GET, "notes", "/notes"), StatusCode::NOT_FOUND).await;
    expect(acme.api(Method::GET, "/plugins/notes/versions"), StatusCode::NOT_FOUND).await;
    assert!(acme.kv("notes", &id).await.is_some(), "a collection belongs to the tenant");
    let again: Value = acme.upload("notes", component("notes")).await.json().await.expect("JSON");
    assert_eq!(again["state"], "held");
    acme.deploy("notes").await;
    expect(acme.call(Method::GET, "notes", &format!("/notes/{id}")), StatusCode::OK).await;
}
