//! Who may call what, generated from the router's own list: a new route is tested by being there.

use chalet::control::{Access, table};
use chalet::services::keys::Right;
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::kit::engine::Engine;
use crate::kit::server::Server;

on_both_engines! {
    without_a_valid_credential_every_route_answers_401,
    another_tenants_path_answers_as_one_that_does_not_exist,
    a_key_without_the_scope_is_refused_and_one_with_it_is_not,
    no_key_makes_a_wider_key,
    a_revoked_key_is_refused_at_once,
}

/// Every operation of the API with what it demands, its path filled in for a tenant.
fn operations(tenant: &str) -> Vec<(Access, Method, String)> {
    let mut operations = Vec::new();
    for route in table() {
        for (method, path) in route.operations() {
            let mut filled = path.replace("{tenant}", tenant);
            while let (Some(from), Some(to)) = (filled.find('{'), filled.find('}')) {
                filled.replace_range(from..=to, "x");
            }
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
            operations.push((route.rule.access, method, filled));
        }
    }
    assert!(operations.len() >= 40, "the table lost routes");
    operations
}

async fn answer(server: &Server, method: &Method, path: &str, key: Option<&str>) -> (StatusCode, Value) {
    let mut request = server.anonymous(method.clone(), path).body("{}");
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    let answer = request.send().await.expect("an answer");
    let status = answer.status();
    let mut body: Value = answer.json().await.unwrap_or(Value::Null);
    if let Some(body) = body.as_object_mut() {
        body.remove("request");
    }
    (status, body)
}

async fn without_a_valid_credential_every_route_answers_401(engine: Engine) {
    let server = engine.server().await;
    server.tenant("acme").await;
    let mistyped = format!("chalet_{}_{}", "a".repeat(12), "b".repeat(38));
    for (_, method, path) in operations("acme") {
        for key in [None, Some(mistyped.as_str())] {
            let (status, body) = answer(&server, &method, &path, key).await;
            // Guessing is throttled at some point; that is no way in either.
            let closed =
                status == StatusCode::UNAUTHORIZED || (key.is_some() && status == StatusCode::TOO_MANY_REQUESTS);
            assert!(closed, "{method} {path} answered {status} {body}");
        }
    }
}

async fn another_tenants_path_answers_as_one_that_does_not_exist(engine: Engine) {
    let server = engine.server().await;
    server.tenant("acme").await;
    let globex = server.tenant("globex").await;
    let foreign = operations("acme");
    let absent = operations("nobody");
    for ((access, method, path), (_, _, nowhere)) in foreign.into_iter().zip(absent) {
        if !path.contains("acme") {
            continue;
        }
        let theirs = answer(&server, &method, &path, Some(&globex.key)).await;
        let nobodys = answer(&server, &method, &nowhere, Some(&globex.key)).await;
        assert_eq!(theirs, nobodys, "{method} {path}");
        let expected = if access == Access::Platform { StatusCode::FORBIDDEN } else { StatusCode::NOT_FOUND };
        assert_eq!(theirs.0, expected, "{method} {path}");
    }
}

async fn a_key_without_the_scope_is_refused_and_one_with_it_is_not(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    let mut keys = Vec::new();
    for (right, includes) in [
        (Right::Invoke, vec![Right::Invoke]),
        (Right::TenantRead, vec![Right::TenantRead]),
        (Right::TenantWrite, vec![Right::TenantWrite, Right::TenantRead]),
    ] {
        keys.push((acme.mint(&[right.name()]).await, includes));
    }
    for (access, method, path) in operations("acme") {
        // A stream that never ends is not asked for; its refusals are.
        let stream = path.ends_with("/logs");
        for (key, includes) in &keys {
            let allowed = match access {
                Access::Platform => false,
                Access::Tenant(right) => includes.contains(&right),
                Access::Own => includes.contains(&Right::TenantRead) || includes.contains(&Right::Invoke),
            };
            if allowed && stream {
                continue;
            }
            let (status, body) = answer(&server, &method, &path, Some(key)).await;
            let refused = status == StatusCode::FORBIDDEN && body["code"] == "forbidden";
            assert_eq!(!refused, allowed, "{method} {path} with {includes:?} answered {status} {body}");
        }
    }
}

async fn no_key_makes_a_wider_key(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    let make = |key: &str, scope: &str| {
        let request = server.anonymous(Method::POST, "/v1/tenants/acme/keys").bearer_auth(key);
        request.json(&serde_json::json!({ "name": "wider", "scopes": [scope] })).send()
    };
    assert_eq!(make(&acme.key, "platform:admin").await.expect("an answer").status(), StatusCode::FORBIDDEN);
    let writer = acme.mint(&["tenant:write"]).await;
    assert_eq!(make(&writer, "tenant:read").await.expect("an answer").status(), StatusCode::FORBIDDEN);
}

async fn a_revoked_key_is_refused_at_once(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    let key = acme.mint(&["tenant:read"]).await;
    let id = key.split('_').nth(1).expect("an id").to_owned();
    let read = || server.anonymous(Method::GET, "/v1/tenants/acme").bearer_auth(&key).send();
    assert_eq!(read().await.expect("an answer").status(), StatusCode::OK);
    let gone = acme.api(Method::DELETE, &format!("/keys/{id}")).send().await.expect("an answer");
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    assert_eq!(read().await.expect("an answer").status(), StatusCode::UNAUTHORIZED);
}
