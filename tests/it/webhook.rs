//! Inbound webhooks: verified, run once, answered as the provider expects.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::kit::engine::Engine;
use crate::kit::oracle::Watch;
use crate::kit::server::{Tenant, expect};
use crate::kit::stock::Stock;

on_both_engines! {
    a_signed_event_has_its_effects_once_and_a_forged_one_none,
    the_same_signed_bytes_under_another_id_are_a_replay,
    every_scheme_delivers_what_its_provider_sent,
    what_a_providers_own_library_signs_is_delivered_and_nothing_else_is,
    slacks_challenge_is_answered_by_the_host,
    a_delivery_is_a_part_of_its_circle,
    another_tenants_source_answers_as_one_that_does_not_exist,
}

const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const OTHER_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn mac(secret: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().to_vec()
}

fn now_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs()
}

/// Signed as Stripe signs, some seconds ago.
fn stripe(request: RequestBuilder, body: &str, age_s: u64) -> RequestBuilder {
    let time = (now_s() - age_s).to_string();
    let signature = hex::encode(mac(SECRET.as_bytes(), &[time.as_bytes(), b".", body.as_bytes()]));
    request.header("stripe-signature", format!("t={time},v1={signature}")).body(body.to_owned())
}

fn github(request: RequestBuilder, body: &str, delivery: &str, event: &str) -> RequestBuilder {
    let signature = format!("sha256={}", hex::encode(mac(SECRET.as_bytes(), &[body.as_bytes()])));
    let request = request.header("x-hub-signature-256", signature).header("x-github-delivery", delivery);
    request.header("x-github-event", event).body(body.to_owned())
}

fn subscription(event: &str, status: &str, created: u64) -> String {
    json!({
        "id": event, "object": "event", "api_version": "2025-09-30.clover", "created": created, "type": "customer.subscription.updated",
        "data": { "object": { "id": "sub_1MowQVLkdIwHu7ixeRlqHVzs", "object": "subscription", "status": status,
            "customer": "cus_Na6dX7aXxi11N4", "created": created,
            "items": { "object": "list", "data": [{ "id": "si_Na6dzxczY5fwHx", "price": { "id": "price_1", "unit_amount": 1000, "currency": "usd" }, "quantity": 1 }] } } }
    })
    .to_string()
}

async fn status_of(acme: &Tenant<'_>) -> Option<Value> {
    let stored = acme.kv("subscriptions", "sub_1MowQVLkdIwHu7ixeRlqHVzs").await?;
    serde_json::from_slice::<Value>(&stored).ok().map(|stored| stored["status"].clone())
}

async fn a_signed_event_has_its_effects_once_and_a_forged_one_none(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let acme = server.tenant("acme").await;
    acme.deploy("stripe-billing").await;
    let event = subscription("evt_1", "active", now_s());
    // Without its secret nothing can be verified: the provider tries again later.
    let early = stripe(acme.hook("stripe"), &event, 0);
    assert_eq!(expect(early, StatusCode::SERVICE_UNAVAILABLE).await["code"], "webhook_secret_missing");
    acme.secret("STRIPE_WEBHOOK_SECRET", SECRET).await;
    expect(stripe(acme.hook("stripe"), &event, 0), StatusCode::OK).await;
    assert_eq!(status_of(&acme).await, Some(json!("active")));
    let duplicate = stripe(acme.hook("stripe"), &event, 1).send().await.expect("an answer");
    assert_eq!(duplicate.status(), StatusCode::OK);
    assert_eq!(duplicate.headers()["idempotent-replayed"], "true");
    let cancelled = subscription("evt_2", "canceled", now_s() + 1);
    for (forged, why) in [
        (acme.hook("stripe").body(cancelled.clone()), "no signature"),
        (acme.hook("stripe").header("stripe-signature", "t=1,v1=00").body(cancelled.clone()), "a wrong signature"),
        (stripe(acme.hook("stripe"), &cancelled, 301), "a stale one"),
        (stripe(acme.hook("stripe"), &cancelled, 0).body(format!("{cancelled} ")), "another body"),
    ] {
        let answer = forged.send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{why}");
    }
    assert_eq!(status_of(&acme).await, Some(json!("active")));
    expect(stripe(acme.hook("stripe"), &cancelled, 0), StatusCode::OK).await;
    assert_eq!(status_of(&acme).await, Some(json!("canceled")));
    let records = expect(acme.api(Method::GET, "/invocations"), StatusCode::OK).await;
    assert_eq!(records["data"].as_array().map(Vec::len), Some(2), "duplicates and forgeries ran nothing: {records}");
    watch.end(&server).await;
}

async fn the_same_signed_bytes_under_another_id_are_a_replay(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("github-triage").await;
    acme.secret("GITHUB_WEBHOOK_SECRET", SECRET).await;
    let opened =
        json!({ "action": "opened", "issue": { "number": 1, "title": "It breaks", "labels": [{ "name": "bug" }] },
        "repository": { "full_name": "acme/app" }, "sender": { "login": "octocat" } })
        .to_string();
    expect(github(acme.hook("github"), &opened, "d-1", "issues"), StatusCode::OK).await;
    expect(github(acme.hook("github"), &opened, "d-1", "issues"), StatusCode::OK).await;
    expect(github(acme.hook("github"), &opened, "d-2", "issues"), StatusCode::OK).await;
    assert_eq!(acme.kv("labels", "bug").await.as_deref(), Some(&b"1"[..]), "one delivery, however it is called");
}

async fn every_scheme_delivers_what_its_provider_sent(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-webhook").await;
    acme.secret("WEBHOOK_SECRET", SECRET).await;
    let body =
        json!({ "id": "evt_9", "type": "thing.made", "event_id": "Ev9", "event": { "type": "message" } }).to_string();
    let bytes = body.as_bytes();
    let time = now_s().to_string();
    let shopify =
        acme.hook("shopify").header("x-shopify-hmac-sha256", STANDARD.encode(mac(SECRET.as_bytes(), &[bytes])));
    let slack = format!("v0={}", hex::encode(mac(SECRET.as_bytes(), &[b"v0:", time.as_bytes(), b":", bytes])));
    let signer = standardwebhooks::Webhook::new(SECRET).expect("a secret");
    let standard = signer.sign("msg_9", now_s() as i64, bytes).expect("signed by the reference library");
    let deliveries = [
        stripe(acme.hook("stripe"), &body, 0),
        github(acme.hook("github"), &body, "gh-9", "ping"),
        shopify.header("x-shopify-webhook-id", "sh-9").header("x-shopify-topic", "orders/create").body(body.clone()),
        acme.hook("slack")
            .header("x-slack-signature", slack)
            .header("x-slack-request-timestamp", &time)
            .body(body.clone()),
        acme.hook("standard")
            .header("webhook-id", "msg_9")
            .header("webhook-timestamp", &time)
            .header("webhook-signature", standard)
            .body(body.clone()),
        acme.hook("hmac").header("x-signature", hex::encode(mac(SECRET.as_bytes(), &[bytes]))).body(body.clone()),
    ];
    for delivery in deliveries {
        expect(delivery, StatusCode::OK).await;
    }
    let stored = expect(acme.api(Method::GET, "/kv/deliveries"), StatusCode::OK).await;
    assert_eq!(stored["data"].as_array().map(Vec::len), Some(6), "{stored}");
}

async fn what_a_providers_own_library_signs_is_delivered_and_nothing_else_is(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-webhook").await;
    acme.secret("WEBHOOK_SECRET", SECRET).await;
    let mut signers = Stock::start("sign");
    for (provider, signs_time) in [("stripe", true), ("github", false), ("shopify", false), ("standard", true)] {
        let id = format!("own-{provider}");
        let body = json!({ "id": id, "type": "thing.made", "text": "Ä\u{1f600}\\" }).to_string();
        let mut signed = |secret: &str, age_s: u64, sent: &str| {
            let given = json!({ "secret": secret, "id": id, "body": body, "time_s": now_s() - age_s });
            let headers = signers.ask(provider, given);
            let headers = headers.as_object().expect("headers").clone();
            headers.iter().fold(acme.hook(provider).body(sent.to_owned()), |request, (name, value)| {
                request.header(name, value.as_str().expect("text"))
            })
        };
        let mut refused = vec![
            (signed(SECRET, 0, &body.replace("made", "paid")), "signature_invalid"),
            (signed(OTHER_SECRET, 0, &body), "signature_invalid"),
        ];
        if signs_time {
            refused.push((signed(SECRET, 310, &body), "signature_stale"));
        }
        for (forged, code) in refused {
            assert_eq!(expect(forged, StatusCode::UNAUTHORIZED).await["code"], code, "{provider}");
        }
        assert_eq!(acme.kv("runs", provider).await, None, "a refused delivery of {provider} ran nothing");
        expect(signed(SECRET, 0, &body), StatusCode::OK).await;
        let seen = acme.kv("deliveries", &format!("{provider}:{id}")).await.expect("the delivery, by its own id");
        let seen: Value = serde_json::from_slice(&seen).expect("JSON");
        assert_eq!((&seen["event_type"], &seen["body"]), (&json!("thing.made"), &json!(body)), "{provider}");
    }
}

async fn slacks_challenge_is_answered_by_the_host(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-webhook").await;
    acme.secret("WEBHOOK_SECRET", SECRET).await;
    let body = json!({ "type": "url_verification", "challenge": "3eZbrw1aB", "token": "x" }).to_string();
    let time = now_s().to_string();
    let signature =
        format!("v0={}", hex::encode(mac(SECRET.as_bytes(), &[b"v0:", time.as_bytes(), b":", body.as_bytes()])));
    let request = acme.hook("slack").header("x-slack-signature", signature).header("x-slack-request-timestamp", time);
    let answer = request.body(body).send().await.expect("an answer");
    assert_eq!((answer.status(), answer.text().await.expect("text").as_str()), (StatusCode::OK, "3eZbrw1aB"));
}

async fn a_delivery_is_a_part_of_its_circle(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-webhook").await;
    acme.secret("WEBHOOK_SECRET", SECRET).await;
    for (depth, status) in [
        ("0", StatusCode::OK),
        ("8", StatusCode::OK),
        ("9", StatusCode::LOOP_DETECTED),
        ("x", StatusCode::LOOP_DETECTED),
    ] {
        let body = json!({ "depth": depth }).to_string();
        let delivery = github(acme.hook("github"), &body, depth, "ping").header("chalet-depth", depth);
        let answer = delivery.send().await.expect("an answer");
        assert_eq!(answer.status(), status, "a depth of {depth}");
    }
}

async fn another_tenants_source_answers_as_one_that_does_not_exist(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let acme = server.tenant("acme").await;
    acme.deploy("stripe-billing").await;
    let body = |answer: Value| (answer["status"].clone(), answer["code"].clone(), answer["detail"].clone());
    let absent = body(expect(server.anonymous(Method::POST, "/hooks/nobody/stripe"), StatusCode::NOT_FOUND).await);
    let globex = server.tenant("globex").await;
    for hook in [acme.hook("github"), globex.hook("stripe")] {
        assert_eq!(body(expect(hook, StatusCode::NOT_FOUND).await), absent);
    }
    watch.end(&server).await;
}
