//! Who may call what, generated from the router's own list: a new route is tested by being there.

use chalet::control::{Access, table};
use chalet::services::keys::Right;
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::kit::engine::Engine;
use crate::kit::oracle::Watch;
use crate::kit::server::{Server, expect};

on_both_engines! {
    without_a_valid_credential_every_route_answers_401,
    another_tenants_path_answers_as_one_that_does_not_exist,
    what_a_tenant_does_not_have_answers_as_what_only_another_has,
    a_tenant_that_is_named_beside_the_path_is_nobody,
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
    let (status, _, body) = whole_answer(server, method, path, key).await;
    (status, body)
}

/// The same with its headers, but for those that every answer has anew.
async fn whole_answer(
    server: &Server,
    method: &Method,
    path: &str,
    key: Option<&str>,
) -> (StatusCode, Vec<(String, String)>, Value) {
    let mut request = server.anonymous(method.clone(), path).body("{}");
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    let answer = request.send().await.expect("an answer");
    let status = answer.status();
    let new = ["date", "x-request-id"];
    let headers = answer.headers().iter().filter(|(name, _)| !new.contains(&name.as_str()));
    let headers = headers.map(|(name, value)| (name.to_string(), format!("{value:?}"))).collect();
    let mut body: Value = answer.json().await.unwrap_or(Value::Null);
    if let Some(body) = body.as_object_mut() {
        body.remove("request");
    }
    (status, headers, body)
}

async fn without_a_valid_credential_every_route_answers_401(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
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
    watch.end(&server).await;
}

async fn another_tenants_path_answers_as_one_that_does_not_exist(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    server.tenant("acme").await;
    let globex = server.tenant("globex").await;
    let foreign = operations("acme");
    let absent = operations("nobody");
    for ((access, method, path), (_, _, nowhere)) in foreign.into_iter().zip(absent) {
        if !path.contains("acme") {
            continue;
        }
        for verb in
            [Method::GET, Method::HEAD, Method::PUT, Method::POST, Method::PATCH, Method::DELETE, Method::OPTIONS]
        {
            let theirs = whole_answer(&server, &verb, &path, Some(&globex.key)).await;
            let nobodys = whole_answer(&server, &verb, &nowhere, Some(&globex.key)).await;
            assert_eq!(theirs, nobodys, "{verb} {path}");
            if verb == method {
                let expected = if access == Access::Platform { StatusCode::FORBIDDEN } else { StatusCode::NOT_FOUND };
                assert_eq!(theirs.0, expected, "{verb} {path}");
            }
        }
    }
    watch.end(&server).await;
}

async fn what_a_tenant_does_not_have_answers_as_what_only_another_has(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let (acme, globex) = (server.tenant("acme").await, server.tenant("globex").await);
    acme.deploy("guest-webhook").await;
    acme.secret("THEIRS", "hush").await;
    expect(acme.api(Method::PUT, "/kv/c/theirs").body("x"), StatusCode::CREATED).await;
    let meter = serde_json::json!({ "event_type": "x", "aggregation": "count" });
    expect(acme.api(Method::PUT, "/meters/theirs").json(&meter), StatusCode::CREATED).await;
    let source = serde_json::json!({ "verify": "stripe", "secret": "THEIRS" });
    expect(acme.api(Method::PUT, "/webhooks/sources/theirs").json(&source), StatusCode::CREATED).await;
    let listed = expect(acme.api(Method::GET, "/keys"), StatusCode::OK).await;
    let key = listed["data"][0]["id"].as_str().expect("an id").to_owned();
    for (route, theirs, nobodys) in [
        ("/kv/c/ID", "theirs", "nobodys"),
        ("/meters/ID", "theirs", "nobodys"),
        ("/secrets/ID", "THEIRS", "NOBODYS"),
        ("/webhooks/sources/ID", "theirs", "nobodys"),
        ("/keys/ID", key.as_str(), "aaaaaaaaaaaa"),
        ("/plugins/ID", "guest-webhook", "nobodys"),
        ("/plugins/ID/versions", "guest-webhook", "nobodys"),
        ("/plugins/ID/rollback", "guest-webhook", "nobodys"),
        ("/plugins/ID/versions/1.0.0/approve", "guest-webhook", "nobodys"),
        ("/invocations/ID", "01970000-0000-7000-8000-000000000000", "01970000-0000-7000-8000-000000000001"),
    ] {
        for verb in [Method::GET, Method::POST, Method::DELETE] {
            let answer = async |id: &str| {
                let path = format!("/v1/tenants/globex{}", route.replace("ID", id));
                whole_answer(&server, &verb, &path, Some(&globex.key)).await
            };
            let theirs = answer(theirs).await;
            assert_eq!(theirs, answer(nobodys).await, "{verb} {route}");
            assert!(!theirs.0.is_success(), "{verb} {route}");
        }
    }
    // Nor does a plugin of another tenant answer otherwise than none.
    let call = async |tenant: &str, plugin: &str| {
        whole_answer(&server, &Method::GET, &format!("/t/{tenant}/{plugin}/"), Some(&globex.key)).await
    };
    let nowhere = call("nobody", "nothing").await;
    assert_eq!(nowhere.0, StatusCode::NOT_FOUND);
    for (tenant, plugin) in [("acme", "guest-webhook"), ("acme", "nothing"), ("globex", "guest-webhook")] {
        assert_eq!(call(tenant, plugin).await, nowhere, "{tenant} {plugin}");
    }
    watch.end(&server).await;
}

async fn a_tenant_that_is_named_beside_the_path_is_nobody(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let (acme, globex) = (server.tenant("acme").await, server.tenant("globex").await);
    expect(acme.api(Method::PUT, "/kv/c/k").body("acme's"), StatusCode::CREATED).await;
    let put = globex.api(Method::PUT, "/kv/c/k?tenant=acme&tenant_id=acme&app.tenant=acme");
    let named = [
        "x-tenant",
        "x-tenant-id",
        "tenant",
        "tenant-id",
        "x-chalet-tenant",
        "x-forwarded-host",
        "x-original-url",
        "x-rewrite-url",
    ];
    let named =
        |request: reqwest::RequestBuilder| named.iter().fold(request, |request, name| request.header(*name, "acme"));
    expect(named(put).body("globex's"), StatusCode::CREATED).await;
    assert_eq!(acme.kv("c", "k").await.as_deref(), Some(b"acme's".as_slice()));
    let read = named(globex.api(Method::GET, "/kv/c/k?tenant=acme")).send().await.expect("an answer");
    assert_eq!(read.text().await.expect("text"), "globex's");
    // OFREP takes the tenant from the key alone.
    let flags = serde_json::json!({ "flags": { "f": { "state": "ENABLED", "variants": { "on": true }, "defaultVariant": "on" } } });
    expect(acme.api(Method::PUT, "/flags").json(&flags), StatusCode::OK).await;
    let evaluate = server.anonymous(Method::POST, "/ofrep/v1/evaluate/flags/f?tenant=acme").bearer_auth(&globex.key);
    let body = serde_json::json!({ "tenant": "acme", "tenant_id": "acme", "context": { "targetingKey": "u", "tenant": "acme" } });
    expect(named(evaluate).json(&body), StatusCode::NOT_FOUND).await;
    // A body that says more than is asked is refused where its shape is known.
    let key = serde_json::json!({ "name": "x", "scopes": ["invoke"], "tenant": "acme" });
    expect(globex.api(Method::POST, "/keys").json(&key), StatusCode::BAD_REQUEST).await;
    watch.end(&server).await;
}

async fn a_key_without_the_scope_is_refused_and_one_with_it_is_not(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
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
    watch.end(&server).await;
}

async fn no_key_makes_a_wider_key(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let acme = server.tenant("acme").await;
    let make = |key: &str, scope: &str| {
        let request = server.anonymous(Method::POST, "/v1/tenants/acme/keys").bearer_auth(key);
        request.json(&serde_json::json!({ "name": "wider", "scopes": [scope] })).send()
    };
    assert_eq!(make(&acme.key, "platform:admin").await.expect("an answer").status(), StatusCode::FORBIDDEN);
    let writer = acme.mint(&["tenant:write"]).await;
    assert_eq!(make(&writer, "tenant:read").await.expect("an answer").status(), StatusCode::FORBIDDEN);
    watch.end(&server).await;
}

async fn a_revoked_key_is_refused_at_once(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let acme = server.tenant("acme").await;
    let key = acme.mint(&["tenant:read"]).await;
    let id = key.split('_').nth(1).expect("an id").to_owned();
    let read = || server.anonymous(Method::GET, "/v1/tenants/acme").bearer_auth(&key).send();
    assert_eq!(read().await.expect("an answer").status(), StatusCode::OK);
    let gone = acme.api(Method::DELETE, &format!("/keys/{id}")).send().await.expect("an answer");
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    assert_eq!(read().await.expect("an answer").status(), StatusCode::UNAUTHORIZED);
    watch.end(&server).await;
}
