//! Usage: recorded by guests, ingested over HTTP, and asked for.

use std::collections::BTreeMap;
use std::sync::Mutex;

use futures_util::{StreamExt as _, stream};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::kit::engine::Engine;
use crate::kit::oracle::Watch;
use crate::kit::server::{Tenant, expect};
use crate::kit::soak;
use crate::kit::stock::Stock;

on_both_engines! {
    the_guests_suite_passes_on_the_server,
    what_a_guest_records_is_part_of_its_commit,
    ingested_events_are_counted_once_and_exactly,
    usage_is_the_sum_of_the_events_that_were_sent,
    the_cloudevents_librarys_events_count_in_both_of_its_modes,
    another_event_in_headers_is_another_request_under_an_idempotency_key,
    the_hosts_own_meters_count_every_invocation,
}

async fn usage(tenant: &Tenant<'_>, query: &str) -> Value {
    expect(tenant.api(Method::GET, &format!("/usage?{query}")), StatusCode::OK).await["data"].clone()
}

fn event(id: &str, n: Value, model: &str) -> Value {
    json!({ "specversion": "1.0", "id": id, "source": "/app", "type": "completion", "data": { "n": n, "model": model } })
}

async fn the_guests_suite_passes_on_the_server(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-meters").await;
    expect(acme.call(Method::POST, "guest-meters", "/suite"), StatusCode::OK).await;
}

async fn what_a_guest_records_is_part_of_its_commit(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-meters").await;
    let record = |value: &str, fail: bool| {
        let body = json!({ "meter": "tokens", "value": value, "dimensions": { "model": "small" }, "fail": fail });
        acme.call(Method::POST, "guest-meters", "/record").json(&body)
    };
    expect(record("1.5", false), StatusCode::OK).await;
    expect(record("0.25", false), StatusCode::OK).await;
    expect(record("100", true), StatusCode::UNPROCESSABLE_ENTITY).await;
    assert_eq!(usage(&acme, "meter=tokens").await[0]["value"], "1.75");
    let grouped = usage(&acme, "meter=tokens&group_by=model").await;
    assert_eq!((&grouped[0]["group"], &grouped[0]["value"]), (&json!({ "model": "small" }), &json!("1.75")));
}

async fn ingested_events_are_counted_once_and_exactly(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    let ingest = |body: Value| {
        let kind = if body.is_array() { "application/cloudevents-batch+json" } else { "application/cloudevents+json" };
        acme.api(Method::POST, "/usage/events").header("content-type", kind).body(body.to_string())
    };
    // Before there is a meter: stored all the same.
    let first = expect(ingest(event("1", json!(3), "small")), StatusCode::ACCEPTED).await;
    assert_eq!(first, json!({ "accepted": 1, "duplicates": 0 }));
    let definition =
        json!({ "event_type": "completion", "aggregation": "sum", "value": "$.n", "group_by": { "model": "$.model" } });
    expect(acme.api(Method::PUT, "/meters/tokens").json(&definition), StatusCode::CREATED).await;
    let batch = json!([
        event("1", json!(3), "small"),
        event("2", json!("0.1"), "small"),
        event("3", json!(0.2), "large"),
        event("3", json!(9), "large")
    ]);
    assert_eq!(expect(ingest(batch), StatusCode::ACCEPTED).await, json!({ "accepted": 2, "duplicates": 2 }));
    let rows = usage(&acme, "meter=tokens&group_by=model").await;
    let mut sums: Vec<_> = rows
        .as_array()
        .expect("rows")
        .iter()
        .map(|row| (row["group"]["model"].to_string(), row["value"].to_string()))
        .collect();
    sums.sort();
    assert_eq!(sums, [("\"large\"".to_owned(), "\"0.2\"".to_owned()), ("\"small\"".to_owned(), "\"3.1\"".to_owned())]);
    let mut stale = event("4", json!(1), "small");
    stale["time"] = json!("2020-01-01T00:00:00Z");
    assert!(ingest(stale).send().await.expect("an answer").status().is_client_error());
    assert!(ingest(json!({ "id": "5" })).send().await.expect("an answer").status().is_client_error());
}

async fn usage_is_the_sum_of_the_events_that_were_sent(engine: Engine) {
    /// Events in a request, as many as one carries, and how many of the request before it go with it again.
    const BATCH: usize = 400;
    const AGAIN: usize = 20;
    let events = soak::either(4_000, 1_000_000);
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    server.unlimited().await;
    let acme = server.tenant("acme").await;
    let definition =
        json!({ "event_type": "completion", "aggregation": "sum", "value": "$.n", "group_by": { "model": "$.model" } });
    expect(acme.api(Method::PUT, "/meters/tokens").json(&definition), StatusCode::CREATED).await;
    // What was sent, in thousandths, by model: the events themselves, each once.
    let sent = Mutex::new(BTreeMap::<String, u64>::new());
    let batches = stream::iter(0..events / BATCH).for_each_concurrent(8, async |batch| {
        let made: Vec<Value> = (0..BATCH)
            .map(|n| {
                let (thousandths, model) = (rand::random_range(0..=9_999_999_u64), format!("m-{}", n % 7));
                *sent.lock().expect("no panic").entry(model.clone()).or_default() += thousandths;
                let value = format!("{}.{:03}", thousandths / 1_000, thousandths % 1_000);
                event(&format!("{batch}-{n}"), json!(value), &model)
            })
            .collect();
        let send = async |some: &[Value]| {
            let request = acme.api(Method::POST, "/usage/events");
            let request = request.header("content-type", "application/cloudevents-batch+json");
            expect(request.body(json!(some).to_string()), StatusCode::ACCEPTED).await
        };
        assert_eq!(send(&made).await, json!({ "accepted": BATCH, "duplicates": 0 }));
        assert_eq!(send(&made[..AGAIN]).await, json!({ "accepted": 0, "duplicates": AGAIN }));
    });
    batches.await;
    let sent = sent.into_inner().expect("no panic");
    let in_thousandths = |value: &Value| {
        let (whole, part) =
            value.as_str().expect("a decimal").split_once('.').unwrap_or((value.as_str().expect("one"), ""));
        format!("{whole}{part:0<3}").parse::<u64>().expect("three places at most")
    };
    let total = usage(&acme, "meter=tokens").await;
    assert_eq!(in_thousandths(&total[0]["value"]), sent.values().sum::<u64>());
    let rows = usage(&acme, "meter=tokens&group_by=model").await;
    let rows = rows.as_array().expect("rows").iter();
    let by_model: BTreeMap<_, _> = rows
        .map(|row| (row["group"]["model"].as_str().expect("a model").to_owned(), in_thousandths(&row["value"])))
        .collect();
    assert_eq!(by_model, sent);
    println!("{events} events of {} models are summed exactly", by_model.len());
    watch.end(&server).await;
}

async fn the_cloudevents_librarys_events_count_in_both_of_its_modes(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    let definition =
        json!({ "event_type": "completion", "aggregation": "sum", "value": "$.n", "group_by": { "model": "$.model" } });
    expect(acme.api(Method::PUT, "/meters/tokens").json(&definition), StatusCode::CREATED).await;
    let mut library = Stock::start("events");
    let mut emit = |mode: &str, event: Value| {
        let url = format!("{}/v1/tenants/acme/usage/events", server.url);
        library.ask("emit", json!({ "url": url, "key": acme.key, "mode": mode, "event": event }))
    };
    let taken = json!({ "accepted": 1, "duplicates": 0 });
    assert_eq!(emit("structured", event("1", json!(3), "small")), taken);
    assert_eq!(emit("binary", event("2", json!("0.5"), "small")), taken);
    let mut extended = event("3", json!(2), "large");
    extended["subject"] = json!("customer-7");
    extended["partitionkey"] = json!("p-1");
    assert_eq!(emit("binary", extended), taken);
    let again = emit("binary", event("1", json!(3), "small"));
    assert_eq!(again, json!({ "accepted": 0, "duplicates": 1 }), "an event is the same in both modes");
    let mut stale = event("4", json!(1), "small");
    stale["time"] = json!("2020-01-01T00:00:00Z");
    assert_eq!(emit("binary", stale)["code"], "event_too_old");
    assert_eq!(usage(&acme, "meter=tokens").await[0]["value"], "5.5");
}

async fn another_event_in_headers_is_another_request_under_an_idempotency_key(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    let send = |id: &str| {
        let request = acme.api(Method::POST, "/usage/events").header("idempotency-key", "k-1").header("ce-id", id);
        let request =
            request.header("ce-specversion", "1.0").header("ce-source", "/app").header("ce-type", "completion");
        request.json(&json!({ "n": 1 }))
    };
    expect(send("1"), StatusCode::ACCEPTED).await;
    // At once after each other: a refusal does not keep the key from the request that it belongs to.
    for _ in 0..20 {
        expect(send("2"), StatusCode::UNPROCESSABLE_ENTITY).await;
        let replayed = send("1").send().await.expect("an answer");
        assert_eq!(replayed.status(), StatusCode::ACCEPTED);
        assert_eq!(replayed.headers()["idempotent-replayed"], "true");
    }
}

async fn the_hosts_own_meters_count_every_invocation(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-hello").await;
    acme.deploy("notes").await;
    for _ in 0..7 {
        expect(acme.call(Method::GET, "guest-hello", "/"), StatusCode::OK).await;
    }
    for _ in 0..3 {
        expect(acme.call(Method::POST, "notes", "/notes").json(&json!({ "text": "x" })), StatusCode::CREATED).await;
    }
    assert_eq!(usage(&acme, "meter=invocations").await[0]["value"], "10");
    let by_plugin = usage(&acme, "meter=invocations&group_by=plugin").await;
    assert_eq!(by_plugin.as_array().map(Vec::len), Some(2), "{by_plugin}");
    let fuel: u64 =
        usage(&acme, "meter=fuel").await[0]["value"].as_str().and_then(|text| text.parse().ok()).expect("a number");
    assert!(fuel > 10_000);
}
