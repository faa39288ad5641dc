//! One decision of other people's rate limiters, and one evaluation of another flag engine, in this process: `peer-micro
//! MILLISECONDS` spends so long on each and prints a line of JSON, nanoseconds by name.

use std::collections::HashMap;
use std::hint::black_box;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use governor::{Quota, RateLimiter};
use limitador::limit::Limit;
use serde_json::json;
use unleash_yggdrasil::{Context, EngineState};

/// Callers that are told apart.
const CALLERS: usize = 1_000;

fn main() {
    let milliseconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).expect("peer-micro MILLISECONDS");
    let duration = Duration::from_millis(milliseconds);
    let callers: Vec<String> = (0..CALLERS).map(|n| format!("caller-{n}")).collect();

    let quota = Quota::per_second(NonZeroU32::new(1_000_000_000).expect("above 0"));
    let direct = RateLimiter::direct(quota);
    let keyed = RateLimiter::keyed(quota);
    let governor = nanoseconds(duration, |_| direct.check().is_ok());
    let governor_keyed = nanoseconds(duration, |n| keyed.check_key(&callers[n % CALLERS]).is_ok());

    let limiter = limitador::RateLimiter::new(10_000);
    let caller = "caller".try_into().expect("a variable");
    limiter.add_limit(Limit::new("bench", u64::MAX >> 1, 60, [], [caller]));
    let contexts: Vec<_> =
        callers.iter().map(|caller| HashMap::from([("caller".to_owned(), caller.clone())]).into()).collect();
    let namespace = "bench".into();
    let limitador = nanoseconds(duration, |n| {
        let checked = limiter.check_rate_limited_and_update(&namespace, &contexts[n % CALLERS], 1);
        checked.is_ok_and(|checked| !checked.limited)
    });

    let engine = EngineState::default();
    let features = json!({ "version": 2, "features": [
        { "name": "plain", "enabled": true, "strategies": [] },
        { "name": "express", "enabled": true, "strategies": [
            { "name": "default", "parameters": {}, "constraints": [
                { "contextName": "country", "operator": "IN", "values": ["jp", "de", "fr"] }] },
            { "name": "flexibleRollout", "constraints": [], "parameters":
                { "rollout": "50", "stickiness": "userId", "groupId": "express" } }] }] });
    let warnings = engine.apply_client_features(serde_json::from_value(features).expect("Unleash's own form"));
    assert!(warnings.is_none(), "the rules are not understood");
    let country = || Some(HashMap::from([("country".to_owned(), "us".to_owned())]));
    let contexts: Vec<Context> = callers
        .iter()
        .map(|caller| Context { user_id: Some(caller.clone()), properties: country(), ..Context::default() })
        .collect();
    let on = contexts.iter().filter(|context| engine.is_enabled("express", context, &None)).count();
    assert!((CALLERS / 3..CALLERS * 2 / 3).contains(&on), "{on} of {CALLERS} is no half");
    let unleash = nanoseconds(duration, |n| engine.is_enabled("plain", &contexts[n % CALLERS], &None));
    let unleash_rule = nanoseconds(duration, |n| {
        black_box(engine.is_enabled("express", &contexts[n % CALLERS], &None));
        true
    });

    let found = json!({ "governor": governor, "governor-keyed": governor_keyed, "limitador": limitador,
        "unleash": unleash, "unleash-rule": unleash_rule });
    println!("{found}");
}

/// What one call takes; each must say yes.
fn nanoseconds(duration: Duration, call: impl Fn(usize) -> bool) -> f64 {
    let (started, mut calls) = (Instant::now(), 0);
    while started.elapsed() < duration {
        for n in calls..calls + 1_000 {
            assert!(black_box(call(black_box(n))), "no limit is reached and no flag is off");
        }
        calls += 1_000;
    }
    started.elapsed().as_secs_f64() * 1e9 / calls as f64
}
