use super::*;
use crate::services::testing::Bench;

const DOCUMENT: &[u8] = br#"{
  "limits": [{ "name": "emails", "rate": 2, "per": "minute" }, { "name": "login", "rate": 1, "per": "second", "burst": 3 }],
  "plugins": { "orders": { "rate": 2, "per": "hour" }, "*": { "rate": 3, "per": "hour" } },
  "keys": { "k1": { "rate": 1, "per": "day" } }
}"#;

#[tokio::test]
async fn a_named_limit_counts_for_each_key_of_each_tenant() {
    let bench = Bench::new().await;
    let limits = Limits::local(bench.shard.clock().clone());
    let check = async |scope: &TenantScope, limit: &str, key: &str, cost: u32| {
        bench.shard.transact(scope, async |effects| limits.check(effects, limit, key, cost).await).await
    };
    let error = check(&bench.scope, "emails", "u1", 1).await.expect_err("none yet");
    assert_eq!((error.kind(), error.code()), (Kind::NotFound, "limit_missing"));
    let other = bench.neighbour().await;
    for scope in [&bench.scope, &other] {
        bench.shard.transact(scope, async |effects| limits.put(effects, DOCUMENT)).await.expect("stored");
    }
    for _ in 0..2 {
        assert!(check(&bench.scope, "emails", "u1", 1).await.expect("counted").allowed);
    }
    let refused = check(&bench.scope, "emails", "u1", 1).await.expect("counted");
    assert!(!refused.allowed && refused.remaining == 0 && refused.limit == 2);
    assert!((29_000..=30_000).contains(&refused.retry_after_ms), "{refused:?}");
    assert!(check(&bench.scope, "emails", "u2", 2).await.expect("counted").allowed);
    assert!(check(&other, "emails", "u1", 2).await.expect("counted").allowed);
    bench.shard.clock().advance(Duration::from_secs(30));
    assert!(check(&bench.scope, "emails", "u1", 1).await.expect("counted").allowed);
    assert_eq!(check(&bench.scope, "login", "", 4).await.expect_err("never").code(), "cost_too_large");
    let long = "k".repeat(KEY_BYTES + 1);
    assert_eq!(check(&bench.scope, "login", &long, 1).await.expect_err("long").code(), "limit_key");
    assert!(check(&bench.scope, "login", &long[1..], 3).await.expect("counted").allowed);
}

#[tokio::test]
async fn a_new_document_is_in_force_with_its_commit() {
    let bench = Bench::new().await;
    let limits = Limits::local(bench.shard.clock().clone());
    let admit = async || limits.admit(&bench.shard, &bench.scope, "orders", None).await.expect("measured");
    assert_eq!(admit().await.measured.len(), 1);
    let stored = async |body: &'static [u8]| {
        bench.run(async |effects| limits.put(effects, body)).await.expect("stored");
        bench.run(async |effects| limits.get(effects).await).await.expect("read").1
    };
    assert_eq!(stored(DOCUMENT).await, 1);
    assert!(admit().await.allowed() && admit().await.allowed());
    assert!(!admit().await.allowed());
    assert_eq!(stored(br#"{"plugins":{"orders":{"rate":3,"per":"hour"}}}"#).await, 2);
    assert!(admit().await.allowed(), "a raised limit helps at once");
    assert_eq!(stored(b"{}").await, 3);
    assert_eq!(admit().await.measured.len(), 1);
}

#[tokio::test]
async fn a_request_is_measured_by_plan_tenant_plugin_and_key_together() {
    let bench = Bench::new().await;
    let limits = Limits::local(bench.shard.clock().clone());
    bench.run(async |effects| limits.put(effects, DOCUMENT)).await.expect("stored");
    let admit = async |plugin: &str, key: Option<&str>| {
        limits.admit(&bench.shard, &bench.scope, plugin, key).await.expect("measured")
    };
    let names = |admission: &Admission| admission.measured.iter().map(|one| one.limit.clone()).collect::<Vec<_>>();
    let first = admit("orders", Some("k1")).await;
    assert!(first.allowed() && first.error().is_none());
    assert_eq!(names(&first), ["plan", "plugin", "key"]);
    // The key is used up: nothing else is debited.
    let refused = admit("orders", Some("k1")).await;
    assert!(!refused.allowed());
    assert_eq!(refused.refusal().map(|one| one.limit.as_str()), Some("key"));
    let error = refused.error().expect("refused");
    assert_eq!((error.kind(), error.code()), (Kind::Limited, "rate_limited"));
    assert!(
        error.after().is_some_and(|after| after.as_secs() > 86_000) && error.message().contains("1 a day"),
        "{error}"
    );
    assert_eq!(refused.measured[1].decision.remaining, 1);
    assert!(admit("orders", Some("k2")).await.allowed());
    assert!(!admit("orders", None).await.allowed());
    // Other plugins share the entry `*` and no bucket.
    for plugin in ["a", "b"] {
        let allowed = [
            admit(plugin, None).await,
            admit(plugin, None).await,
            admit(plugin, None).await,
            admit(plugin, None).await,
        ]
        .map(|admission| admission.allowed());
        assert_eq!(allowed, [true, true, true, false], "{plugin}");
    }
}

#[tokio::test]
async fn the_plan_and_the_tenants_own_ceiling_hold() {
    let bench = Bench::new().await;
    let limits = Limits::local(bench.shard.clock().clone());
    let admitted = async || {
        let mut count = 0;
        while limits.admit(&bench.shard, &bench.scope, "p", None).await.expect("measured").allowed() {
            count += 1;
        }
        count
    };
    // The clock runs while this counts: what comes back meanwhile may be taken too.
    let count = admitted().await;
    assert!((1_000..1_500).contains(&count), "{count}");
    bench.shard.clock().advance(Duration::from_secs(10));
    bench.run(async |effects| limits.put(effects, br#"{"tenant":{"rate":5,"per":"hour"}}"#)).await.expect("stored");
    assert_eq!(admitted().await, 5);
    let host = async |key: &str| limits.host("credentials", key, BAD_CREDENTIALS).await.expect("measured").allowed();
    for _ in 0..100 {
        assert!(host("10.0.0.1").await);
    }
    assert!(!host("10.0.0.1").await);
    assert!(host("10.0.0.2").await);
}

#[test]
fn headers_are_structured_fields_of_the_draft() {
    let measured = |limit: &str, quota, remaining, reset_after_ms| Measured {
        limit: limit.into(),
        quota,
        decision: Decision { allowed: true, limit: 0, remaining, retry_after_ms: 0, reset_after_ms },
    };
    let admission = Admission {
        measured: vec![
            measured("plan", Quota::per_second(100, 1_000), 999, 10),
            measured("key", Quota { rate: 7, period_ms: 86_400_000, burst: 7 }, 0, u64::MAX),
        ],
    };
    let (policy, limit) = headers(&admission).expect("measured");
    assert_eq!(policy, r#""plan";q=1000;w=10, "key";q=7;w=86400"#);
    assert_eq!(limit, r#""plan";r=999;t=1, "key";r=0;t=999999999999999"#);
    let parsed: sfv::List = sfv::Parser::new(limit.to_str().expect("ascii")).parse().expect("a list");
    assert_eq!(parsed.len(), 2);
    assert!(headers(&Admission { measured: vec![] }).is_none());
    assert_eq!([0, 1, 1_000, 1_001].map(retry_after_s), [1, 1, 1, 2]);
}

#[test]
fn a_document_is_checked_before_it_is_stored() {
    let document = Document::parse(DOCUMENT).expect("valid");
    assert_eq!(document.limit("login"), Some(Quota { rate: 1, period_ms: 1_000, burst: 3 }));
    assert_eq!(document.limit("emails"), Some(Quota { rate: 2, period_ms: 60_000, burst: 2 }));
    assert_eq!(document.plugin("other").map(|quota| quota.rate), Some(3));
    assert_eq!(document.key("other"), None);
    let again = serde_json::to_vec(&document).expect("JSON");
    assert_eq!(Document::parse(&again).expect("valid"), document);
    let limit = |fields: &str| format!(r#"{{"limits":[{{{fields}}}]}}"#);
    for bad in [
        "[]",
        r#"{"limit":[]}"#,
        &limit(r#""name":"a","rate":1"#),
        &limit(r#""name":"a","rate":0,"per":"second""#),
        &limit(r#""name":"a","rate":-1,"per":"second""#),
        &limit(r#""name":"a","rate":1.5,"per":"second""#),
        &limit(r#""name":"a","rate":1,"per":"week""#),
        &limit(r#""name":"a","rate":1,"per":"second","burst":0"#),
        &limit(r#""name":"a","rate":1000000001,"per":"second""#),
        &limit(r#""name":"a","rate":1,"per":"second","extra":1"#),
        &limit(r#""name":"","rate":1,"per":"second""#),
        &limit(r#""name":"A","rate":1,"per":"second""#),
        r#"{"limits":[{"name":"a","rate":1,"per":"second"},{"name":"a","rate":2,"per":"second"}]}"#,
        r#"{"tenant":{"rate":0,"per":"second"}}"#,
        r#"{"plugins":{"a":{"rate":1,"per":"second","burst":0}}}"#,
        r#"{"keys":{"a":{"rate":0,"per":"second"}}}"#,
        &format!("{{}}{}", " ".repeat(document::DOCUMENT_BYTES)),
    ] {
        assert_eq!(Document::parse(bad.as_bytes()).expect_err(bad).code(), "limits_invalid", "{bad}");
    }
}
