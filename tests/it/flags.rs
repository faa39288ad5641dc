//! Feature flags from guests and over OFREP.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::kit::engine::Engine;
use crate::kit::guests::root;
use crate::kit::server::{Tenant, expect};
use crate::kit::stock::Stock;

on_both_engines! {
    the_guests_suite_passes_on_the_server,
    a_flag_flipped_between_two_calls_changes_the_second,
    ofrep_answers_for_the_keys_own_tenant,
    a_document_is_replaced_only_in_the_state_that_was_read,
    a_stock_server_side_client_gets_values_variants_and_reasons,
    a_stock_browsers_client_sees_a_flip_and_is_spared_what_has_not_changed,
}

fn document() -> Value {
    let text = std::fs::read_to_string(root().join("tests/guests/flags/flags.json")).expect("the document");
    serde_json::from_str(&text).expect("JSON")
}

async fn the_guests_suite_passes_on_the_server(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-flags").await;
    expect(acme.api(Method::PUT, "/flags").json(&document()), StatusCode::OK).await;
    expect(acme.call(Method::POST, "guest-flags", "/suite"), StatusCode::OK).await;
}

async fn a_flag_flipped_between_two_calls_changes_the_second(engine: Engine) {
    let server = engine.server().await;
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

async fn ofrep_answers_for_the_keys_own_tenant(engine: Engine) {
    let server = engine.server().await;
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

async fn a_document_is_replaced_only_in_the_state_that_was_read(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    let put = || acme.api(Method::PUT, "/flags").json(&document());
    let first = put().send().await.expect("an answer");
    let etag = first.headers()["etag"].to_str().expect("text").to_owned();
    expect(put().header("if-match", &etag), StatusCode::OK).await;
    expect(put().header("if-match", &etag), StatusCode::PRECONDITION_FAILED).await;
    expect(acme.api(Method::PUT, "/flags").json(&json!({ "flags": { "x": {} } })), StatusCode::UNPROCESSABLE_ENTITY)
        .await;
}

async fn a_stock_server_side_client_gets_values_variants_and_reasons(engine: Engine) {
    let server = engine.server().await;
    let (acme, globex) = (server.tenant("acme").await, server.tenant("globex").await);
    expect(acme.api(Method::PUT, "/flags").json(&document()), StatusCode::OK).await;
    let mut client = Stock::start("flags");
    let mut ask = |key: &str, flag: &str, fallback: Value, context: Value| {
        let given = json!({ "url": server.url, "key": key, "flag": flag, "fallback": fallback, "context": context });
        client.ask("ask", given)
    };
    let layout = json!({ "columns": 3, "tags": ["a", "b"] });
    for (flag, fallback, context, value, variant, reason) in [
        ("on", json!(false), json!({}), json!(true), "yes", "STATIC"),
        ("layout", json!({}), json!({}), layout, "wide", "STATIC"),
        ("colour", json!("?"), json!({ "plan": "pro" }), json!("#0f0"), "green", "TARGETING_MATCH"),
        // OFREP has no word for a default that a rule fell back to.
        ("colour", json!("?"), json!({ "plan": "free" }), json!("#f00"), "red", "UNKNOWN"),
        ("size", json!(0), json!({ "email": "ada@example.com" }), json!(2.5), "large", "TARGETING_MATCH"),
        ("half", json!("?"), json!({ "targetingKey": "u1" }), json!("left"), "left", "TARGETING_MATCH"),
    ] {
        let found = ask(&acme.key, flag, fallback, context);
        let (said, expected) = ((&found["variant"], &found["reason"]), (&json!(variant), &json!(reason)));
        assert_eq!((&found["value"], said), (&value, expected), "{flag}: {found}");
    }
    for (key, flag, code) in [
        (&acme.key, "nothing", "FLAG_NOT_FOUND"),
        (&globex.key, "on", "FLAG_NOT_FOUND"),
        (&"chalet_wrong".to_owned(), "on", "GENERAL"),
    ] {
        let missed = ask(key, flag, json!(false), json!({}));
        assert_eq!((&missed["value"], &missed["errorCode"]), (&json!(false), &json!(code)), "{flag}: {missed}");
    }
}

async fn a_stock_browsers_client_sees_a_flip_and_is_spared_what_has_not_changed(engine: Engine) {
    let server = engine.server().await;
    let (acme, globex) = (server.tenant("acme").await, server.tenant("globex").await);
    let flip = |variant: &str| {
        let flag = json!({ "flags": { "banner": { "state": "ENABLED", "variants": { "new": "Hello", "old": "Hi" },
            "defaultVariant": variant } } });
        expect(acme.api(Method::PUT, "/flags").json(&flag), StatusCode::OK)
    };
    flip("old").await;
    let clients = std::cell::RefCell::new(Stock::start("flags"));
    let watch = |tenant: &Tenant<'_>, key: &str| {
        let given = json!({ "name": tenant.name, "url": server.url, "key": key, "context": { "targetingKey": "u1" } });
        clients.borrow_mut().ask("watch", given)
    };
    let see = |tenant: &Tenant<'_>| {
        let given = json!({ "name": tenant.name, "flag": "banner", "fallback": "none" });
        clients.borrow_mut().ask("see", given)
    };
    // How often the client was given all flags, and how often it was told that nothing changed.
    let answered = |seen: &Value, status: u16| {
        seen["answered"].as_array().expect("statuses").iter().filter(|own| **own == json!(status)).count()
    };
    assert_eq!(watch(&acme, &acme.key), "READY");
    server.eventually("a poll that found nothing new", async || answered(&see(&acme), 304) >= 2).await;
    let before = see(&acme);
    assert_eq!((&before["value"], &before["variant"]), (&json!("Hi"), &json!("old")));
    flip("new").await;
    server.eventually("the flip", async || see(&acme)["value"] == "Hello").await;
    let flipped = answered(&see(&acme), 304);
    server.eventually("a poll after the flip", async || answered(&see(&acme), 304) > flipped).await;
    assert_eq!(answered(&see(&acme), 200), 2, "the flags are sent at first and after the flip, and no third time");

    assert_eq!(watch(&globex, &globex.key), "READY");
    assert_eq!(see(&globex)["errorCode"], "FLAG_NOT_FOUND", "another tenant's key sees nothing of it");
    assert_eq!(watch(&globex, "chalet_wrong"), "FATAL");
}
