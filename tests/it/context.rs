//! What a guest knows of its invocation, and what it does not.

use reqwest::{Method, StatusCode};

use crate::kit::engine::Engine;
use crate::kit::oracle::Watch;
use crate::kit::server::expect;

on_both_engines! {
    a_public_plugin_needs_no_key_and_a_credential_of_ours_stays_outside,
    another_tenants_plugin_answers_as_one_that_does_not_exist,
    random_bytes_differ_between_invocations,
}

async fn a_public_plugin_needs_no_key_and_a_credential_of_ours_stays_outside(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-context").await;
    acme.deploy("guest-hello").await;
    let told = server.anonymous(Method::GET, "/t/acme/guest-context/context/a%20b?x=1").header("cookie", "a=b");
    let told = expect(told, StatusCode::OK).await;
    let text = told.to_string();
    assert!(text.contains("/context/a%20b") && text.contains("guest-context") && text.contains("acme"), "{text}");
    let anonymous = server.anonymous(Method::GET, "/t/acme/guest-hello/").send().await.expect("an answer");
    assert_eq!(anonymous.status(), StatusCode::UNAUTHORIZED);
    watch.end(&server).await;
}

async fn another_tenants_plugin_answers_as_one_that_does_not_exist(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let (acme, globex) = (server.tenant("acme").await, server.tenant("globex").await);
    acme.deploy("guest-hello").await;
    let get = |path: &str| server.anonymous(Method::GET, path).bearer_auth(&globex.key);
    let without_request = |mut body: serde_json::Value| {
        body.as_object_mut().map(|body| body.remove("request"));
        body
    };
    let theirs = without_request(expect(get("/t/acme/guest-hello/"), StatusCode::NOT_FOUND).await);
    let nobodys = without_request(expect(get("/t/nobody/guest-hello/"), StatusCode::NOT_FOUND).await);
    let absent = without_request(expect(get("/t/globex/guest-hello/"), StatusCode::NOT_FOUND).await);
    assert_eq!((&theirs, &theirs), (&nobodys, &absent));
    let reader = acme.mint(&["tenant:read"]).await;
    let without_scope = server.anonymous(Method::GET, "/t/acme/guest-hello/").bearer_auth(&reader);
    expect(without_scope, StatusCode::FORBIDDEN).await;
    watch.end(&server).await;
}

async fn random_bytes_differ_between_invocations(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-context").await;
    let random = || expect(server.anonymous(Method::GET, "/t/acme/guest-context/random/16"), StatusCode::OK);
    assert_ne!(random().await, random().await);
}
