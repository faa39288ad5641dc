//! Rate limits: counted at once, told in headers, kept apart by tenant.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::kit::engine::Engine;
use crate::kit::oracle::Watch;
use crate::kit::server::expect;

on_both_engines! {
    the_guests_suite_passes_on_the_server,
    a_check_counts_also_if_the_invocation_fails,
    a_burst_beyond_the_plan_is_429_and_leaves_the_neighbour_alone,
    a_document_that_means_nothing_is_refused,
}

async fn the_guests_suite_passes_on_the_server(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-limits").await;
    let document = json!({ "limits": [{ "name": "suite", "rate": 5, "per": "hour", "burst": 5 }] });
    expect(acme.api(Method::PUT, "/limits").json(&document), StatusCode::OK).await;
    expect(acme.call(Method::POST, "guest-limits", "/suite"), StatusCode::OK).await;
}

async fn a_check_counts_also_if_the_invocation_fails(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-limits").await;
    let document = json!({ "limits": [{ "name": "burst", "rate": 1, "per": "day", "burst": 3 }] });
    expect(acme.api(Method::PUT, "/limits").json(&document), StatusCode::OK).await;
    let check = |fail: bool| {
        acme.call(Method::POST, "guest-limits", "/check").json(&json!({ "limit": "burst", "key": "u", "fail": fail }))
    };
    expect(check(true), StatusCode::UNPROCESSABLE_ENTITY).await;
    let over_http =
        |key: &str| acme.api(Method::POST, "/limits/check").json(&json!({ "limit": "burst", "key": key, "cost": 1 }));
    assert_eq!(expect(over_http("u"), StatusCode::OK).await["remaining"], 1);
    let idempotent = || expect(over_http("u").header("idempotency-key", "one"), StatusCode::OK);
    let first = idempotent().await;
    assert_eq!((&first["remaining"], &first["allowed"]), (&json!(0), &json!(true)));
    assert_eq!(idempotent().await, first, "repeated, not counted again");
    assert_eq!(expect(over_http("u"), StatusCode::OK).await["allowed"], false);
    assert_eq!(expect(over_http("v"), StatusCode::OK).await["remaining"], 2);
}

async fn a_burst_beyond_the_plan_is_429_and_leaves_the_neighbour_alone(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let plan = json!({ "requests_per_second": 1, "request_burst": 5 });
    expect(server.admin(Method::PUT, "/v1/plans/small").json(&plan), StatusCode::OK).await;
    let (acme, globex) = (server.tenant("acme").await, server.tenant("globex").await);
    expect(server.admin(Method::PATCH, "/v1/tenants/acme").json(&json!({ "plan": "small" })), StatusCode::OK).await;
    for tenant in [&acme, &globex] {
        tenant.deploy("guest-hello").await;
    }
    let mut refused = 0;
    for _ in 0..20 {
        let answer = acme.call(Method::GET, "guest-hello", "/").send().await.expect("an answer");
        assert!(answer.headers().contains_key("ratelimit") && answer.headers().contains_key("ratelimit-policy"));
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            assert!(answer.headers()["retry-after"].to_str().ok().and_then(|text| text.parse::<u64>().ok()) >= Some(1));
            assert_eq!(answer.json::<Value>().await.expect("a problem")["code"], "rate_limited");
            refused += 1;
        }
        expect(globex.call(Method::GET, "guest-hello", "/"), StatusCode::OK).await;
    }
    assert!(refused >= 10, "{refused} of 20 were refused");
    watch.end(&server).await;
}

async fn a_document_that_means_nothing_is_refused(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    for bad in [
        json!({ "limits": [{ "name": "x", "rate": 0, "per": "hour" }] }),
        json!({ "limit": [] }),
        json!([]),
        json!({ "limits": [{ "name": "", "rate": 1, "per": "hour" }] }),
    ] {
        let answer = acme.api(Method::PUT, "/limits").json(&bad).send().await.expect("an answer");
        assert!(answer.status().is_client_error(), "{bad} answered {}", answer.status());
    }
}
