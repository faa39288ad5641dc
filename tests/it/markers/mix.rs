//! The requests of the mix: every route of the API from the router's own list, the data plane through every host
//! function, and what a stranger may ask for.
//!
//! One in ten presents the key or the signature of another tenant than the one that it is about.

use std::sync::Mutex;

use chalet::control::table;
use hmac::{Hmac, KeyInit as _, Mac as _};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use sha2::Sha256;

use super::{KEYS, MEMORY, Own, World};
use crate::kit::guests::component;

/// A guest that is asked for its memory after it has filled it.
pub(super) const SHOW_OWN_MEMORY: &str = "guest fills and shows";
/// What cannot succeed here: there is nothing to go back to, and only a stranger's answer to the unknown.
pub(super) const NEVER_OK: [&str; 2] = ["nowhere", "post /v1/tenants/{tenant}/plugins/{plugin}/rollback"];
/// Entries, and names that are remembered for later requests.
const ENTRIES: u32 = 40;
const REMEMBERED: usize = 200;

/// Who asks.
#[derive(Clone, Copy)]
pub(super) enum Credential {
    /// A tenant, with this key of it.
    Tenant(usize, usize),
    /// A tenant's provider.
    Signature(usize),
    Operator,
    None,
}

/// A request.
pub(super) struct Ask {
    /// Its kind.
    pub what: &'static str,
    pub by: Credential,
    pub method: String,
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

/// Every operation of the API, as `get /v1/tenants`.
pub(super) fn operations() -> Vec<String> {
    table().iter().flat_map(|route| route.operations()).map(|(method, path)| format!("{method} {path}")).collect()
}

/// The same, with how often each is asked for.
fn weighed() -> &'static [(&'static str, u32)] {
    static WEIGHED: std::sync::OnceLock<Vec<(&'static str, u32)>> = std::sync::OnceLock::new();
    WEIGHED.get_or_init(|| {
        let weight = |operation: &str| match operation {
            "get /v1/tenants/{tenant}/kv/{collection}/{key}" => 60,
            "put /v1/tenants/{tenant}/kv/{collection}/{key}" | "get /v1/tenants/{tenant}/kv/{collection}" => 30,
            _ if operation.contains("/ofrep/") || operation.contains("/kv/") => 10,
            // These write the whole of something, or begin with a flush.
            _ if operation.contains("/logs") || operation.contains("/usage") || operation.contains("/invocations") => 3,
            _ if !operation.contains("{tenant}") || operation.contains("/plugins") => 2,
            _ => 5,
        };
        operations().into_iter().map(|operation| (&*operation.leak(), weight)).map(|(one, of)| (one, of(one))).collect()
    })
}

/// Remember one of the last.
pub(super) fn remember<T>(list: &Mutex<Vec<T>>, one: T) {
    let mut list = list.lock().expect("no panic");
    if list.len() >= REMEMBERED {
        list.remove(0);
    }
    list.push(one);
}

fn remembered<T: Clone>(list: &Mutex<Vec<T>>, random: &mut StdRng) -> Option<T> {
    let list = list.lock().expect("no panic");
    if list.is_empty() { None } else { Some(list[random.random_range(0..list.len())].clone()) }
}

/// Take from an answer what later requests name.
pub(super) fn learn(world: &World, what: &str, by: Credential, status: u16, body: &[u8]) {
    if status >= 300 || !matches!(by, Credential::Tenant(..)) {
        return;
    }
    match what {
        "get /v1/tenants/{tenant}/kv/{collection}" => {
            let page: Value = serde_json::from_slice(body).expect("JSON");
            if let Some(cursor) = page["next"].as_str() {
                remember(&world.cursors, cursor.to_owned());
            }
        }
        "post /v1/tenants/{tenant}/keys" => {
            let made: Value = serde_json::from_slice(body).expect("JSON");
            remember(&world.made_keys, made["id"].as_str().expect("an id").to_owned());
        }
        _ => {}
    }
}

/// A document that a tenant stores whole.
pub(super) fn document(own: &Own, name: &str) -> Value {
    match name {
        "flags" => {
            let flag = json!({ "state": "ENABLED", "variants": { "v": own.marker("flag") }, "defaultVariant": "v" });
            json!({ "flags": { "m": flag } })
        }
        _ => {
            let limit = |name: &str| json!({ "name": name, "rate": 1_000_000, "per": "second", "burst": 1_000_000 });
            json!({ "limits": [limit("m"), limit(own.marker("limit-name"))] })
        }
    }
}

/// The `n`th request.
pub(super) fn ask(world: &World, n: usize) -> Ask {
    let mut random = StdRng::seed_from_u64(world.seed ^ (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let random = &mut random;
    let about = random.random_range(0..world.tenants.len());
    let own = &world.tenants[about];
    let other = |random: &mut StdRng| (about + random.random_range(1..world.tenants.len())) % world.tenants.len();
    let by = if random.random_ratio(1, 10) { other(random) } else { about };
    let by = Credential::Tenant(by, random.random_range(0..KEYS));
    match random.random_range(0..100) {
        0..38 => guest_call(world, random, own, by),
        38..40 => Ask {
            what: "guest shows its memory",
            by,
            method: "GET".into(),
            path: format!("/t/{}/guest-markers/memory", own.name),
            headers: Vec::new(),
            body: Vec::new(),
        },
        40..42 => {
            let then_show = random.random_ratio(1, 10);
            let given = json!({ "marker": own.marker(MEMORY), "mib": if then_show { 1 } else { random.random_range(1..=3) },
                "then_show": then_show });
            let what = if then_show { SHOW_OWN_MEMORY } else { "guest fills its memory" };
            post(what, by, format!("/t/{}/guest-markers/fill", own.name), &given)
        }
        42..47 => webhook(world, random, about, by),
        47..50 => strangers(random, own),
        _ => api(world, random, own, by, n),
    }
}

fn post(what: &'static str, by: Credential, path: String, given: &Value) -> Ask {
    let headers = vec![("content-type", "application/json".to_owned())];
    Ask { what, by, method: "POST".into(), path, headers, body: given.to_string().into_bytes() }
}

/// Steps that a guest takes together, and the place that their marker is for.
const USES: &[(&str, &[&str])] = &[
    ("entry", &["put"]),
    ("entry", &["put", "get", "list"]),
    ("header", &["get", "list"]),
    ("header", &["get", "counter", "context", "config"]),
    ("header", &["secret", "evaluate", "config"]),
    ("header", &["delete"]),
    ("dimension", &["record", "increment"]),
    ("header", &["check", "counter"]),
    ("log", &["log"]),
    ("sent", &["send"]),
];

fn used(world: &World, random: &mut StdRng, own: &Own) -> Value {
    let (place, steps) = USES[random.random_range(0..USES.len())];
    let then = match random.random_range(0..40) {
        0 => Some("reject"),
        1 => Some("retry"),
        2 => Some("trap"),
        3 => Some("status"),
        _ => None,
    };
    let place = if then == Some("reject") { "reason" } else { place };
    let url = format!("http://{}/{}", world.upstream, own.name);
    json!({ "marker": own.marker(place), "key": key(random, own), "steps": steps, "url": url, "then": then })
}

fn key(random: &mut StdRng, own: &Own) -> String {
    format!("{}-{}", random.random_range(0..ENTRIES), own.marker("entry-key"))
}

fn guest_call(world: &World, random: &mut StdRng, own: &Own, by: Credential) -> Ask {
    let given = used(world, random, own);
    let mut ask = post("guest", by, format!("/t/{}/guest-markers/use", own.name), &given);
    ask.headers.push(("x-marker", own.marker("header").to_owned()));
    if random.random_ratio(1, 8) {
        // The same keys in all tenants.
        ask.headers.push(("idempotency-key", format!("same-{}", random.random_range(0..500))));
    }
    ask
}

fn webhook(world: &World, random: &mut StdRng, about: usize, by: Credential) -> Ask {
    let own = &world.tenants[about];
    let signer = match by {
        Credential::Tenant(tenant, _) => tenant,
        _ => about,
    };
    let given = used(world, random, own);
    let mut ask = post("webhook", Credential::Signature(signer), format!("/hooks/{}/events", own.name), &given);
    let mut mac = Hmac::<Sha256>::new_from_slice(world.tenants[signer].marker("secret").as_bytes()).expect("any key");
    mac.update(&ask.body);
    ask.headers.push(("x-hub-signature-256", format!("sha256={}", hex::encode(mac.finalize().into_bytes()))));
    ask.headers.push(("x-github-delivery", format!("delivery-{}", random.random_range(0..5_000))));
    ask.headers.push(("x-github-event", "push".to_owned()));
    ask
}

/// What needs no credential, and what nobody has.
fn strangers(random: &mut StdRng, own: &Own) -> Ask {
    let (what, path) = match random.random_range(0..6) {
        0 | 1 => ("metrics", "/metrics".to_owned()),
        2 => ("ready", "/readyz".to_owned()),
        3 => ("document", "/v1/openapi.json".to_owned()),
        4 => ("nowhere", format!("/t/{}/nothing/at/all", own.name)),
        _ => ("nowhere", format!("/v1/tenants/{}/kv/m/{}", own.name, key(random, own))),
    };
    Ask { what, by: Credential::None, method: "GET".into(), path, headers: Vec::new(), body: Vec::new() }
}

fn api(world: &World, random: &mut StdRng, own: &Own, by: Credential, n: usize) -> Ask {
    let total: u32 = weighed().iter().map(|(_, weight)| weight).sum();
    let mut at = random.random_range(0..total);
    let what = weighed().iter().find(|(_, weight)| at.checked_sub(*weight).map(|left| at = left).is_none());
    let what = what.expect("the weights end where the range ends").0;
    let (method, template) = what.split_once(' ').expect("a method and a path");
    let (last, body) = filling(world, random, own, what, n);
    // Operators' routes are asked for by operators, but for one in four, who is refused.
    let platform = matches!(method, "post" | "get") && template == "/v1/tenants"
        || template.starts_with("/v1/plans")
        || template.starts_with("/v1/audit")
        || matches!(method, "patch" | "delete") && template == "/v1/tenants/{tenant}";
    let by = if platform && random.random_ratio(3, 4) { Credential::Operator } else { by };
    let named = if platform { format!("spare-{}", random.random_range(0..3)) } else { own.name.to_owned() };
    let mut path = template.replace("{tenant}", &named);
    for name in last {
        let (from, to) = (path.find('{').expect("a parameter"), path.find('}').expect("a parameter"));
        path.replace_range(from..=to, &name);
    }
    assert!(!path.contains('{'), "{what} is new: it needs names of its own here");
    match what {
        "get /v1/tenants/{tenant}/kv/{collection}" => {
            path += "?limit=5";
            if let Some(cursor) = remembered(&world.cursors, random).filter(|_| random.random_ratio(1, 3)) {
                path += &format!("&cursor={cursor}");
            }
        }
        "get /v1/tenants/{tenant}/usage" => {
            path += ["?meter=m&group_by=who", "?meter=e&group_by=who", "?meter=invocations"][random.random_range(0..3)];
        }
        "get /v1/tenants/{tenant}/logs" => path += "?follow=false",
        "get /v1/tenants/{tenant}/invocations" => path += "?limit=20",
        _ => {}
    }
    let mut headers = Vec::new();
    match body {
        Some(Body::Json(_)) => headers.push(("content-type", "application/json".to_owned())),
        Some(Body::Event(_)) => headers.push(("content-type", "application/cloudevents+json".to_owned())),
        Some(Body::Bytes(_)) | None => {}
    }
    if method == "post" && random.random_ratio(1, 8) {
        headers.push(("idempotency-key", format!("same-{}", random.random_range(0..500))));
    }
    let body = match body {
        Some(Body::Json(value) | Body::Event(value)) => value.to_string().into_bytes(),
        Some(Body::Bytes(bytes)) => bytes,
        None => Vec::new(),
    };
    Ask { what, by, method: method.to_uppercase(), path, headers, body }
}

enum Body {
    Json(Value),
    Event(Value),
    Bytes(Vec<u8>),
}

/// What stands for the parameters behind the tenant, and the body.
fn filling(world: &World, random: &mut StdRng, own: &Own, what: &str, n: usize) -> (Vec<String>, Option<Body>) {
    let (method, template) = what.split_once(' ').expect("a method and a path");
    let behind = template.strip_prefix("/v1/tenants/{tenant}").unwrap_or(template);
    let plugin = || vec!["guest-markers".to_owned()];
    let text = |place: &str| Some(Body::Bytes(own.marker(place).as_bytes().to_vec()));
    let secret_name = format!("S{}", own.marker("secret-name").to_uppercase());
    match (method, behind) {
        ("post", "/v1/tenants") => {
            (vec![], Some(Body::Json(json!({ "id": format!("spare-{}", random.random_range(0..3)) }))))
        }
        ("patch", "") => (vec![], Some(Body::Json(json!({ "plan": "free" })))),
        ("put", "/v1/plans/{plan}") => (vec!["spare".into()], Some(Body::Json(json!({ "concurrency": 7 })))),
        ("get", "/v1/plans/{plan}") => (vec!["free".into()], None),
        ("post", "/keys") => {
            (vec![], Some(Body::Json(json!({ "name": own.marker("key-name"), "scopes": ["tenant:read"] }))))
        }
        ("delete", "/keys/{key}") => {
            (vec![remembered(&world.made_keys, random).unwrap_or_else(|| "none".into())], None)
        }
        ("put", "/plugins/{plugin}") => (vec!["guest-hello".into()], Some(Body::Bytes(component("guest-hello")))),
        ("delete", "/plugins/{plugin}") => (vec!["guest-hello".into()], None),
        ("post", "/plugins/{plugin}/versions/{version}/approve") => {
            (vec!["guest-markers".into(), "1.0.0".into()], None)
        }
        ("post", "/plugins/{plugin}/release") => (plugin(), Some(Body::Json(json!({ "version": "1.0.0" })))),
        (_, "/plugins/{plugin}" | "/plugins/{plugin}/versions" | "/plugins/{plugin}/rollback") => (plugin(), None),
        ("get", "/invocations/{id}") => {
            (vec![remembered(&world.invocations, random).unwrap_or_else(|| "none".into())], None)
        }
        ("get", "/kv/{collection}") => (vec!["m".into()], None),
        ("put", "/kv/{collection}/{key}") => (vec!["m".into(), key(random, own)], text("entry")),
        (_, "/kv/{collection}/{key}") => (vec!["m".into(), key(random, own)], None),
        ("post", "/usage/events") => {
            let data = json!({ "n": 1, "who": own.marker("event") });
            let event =
                json!({ "specversion": "1.0", "id": n.to_string(), "source": "/mix", "type": "mixed", "data": data });
            (vec![], Some(Body::Event(event)))
        }
        ("put", "/meters/{meter}") => {
            let grouped = json!({ "who": "$.who" });
            if random.random_bool(0.5) {
                let meter = json!({ "event_type": "mixed", "aggregation": "count", "group_by": grouped });
                (vec!["e".into()], Some(Body::Json(meter)))
            } else {
                let meter = json!({ "event_type": own.marker("meter"), "aggregation": "count" });
                (vec!["spare".into()], Some(Body::Json(meter)))
            }
        }
        ("delete", "/meters/{meter}") => (vec!["spare".into()], None),
        ("get", "/meters/{meter}") => (vec!["spare".into()], None),
        ("put", "/limits") => (vec![], Some(Body::Json(document(own, "limits")))),
        ("post", "/limits/check") => {
            (vec![], Some(Body::Json(json!({ "limit": "m", "key": own.marker("header"), "cost": 1 }))))
        }
        ("put", "/flags") => (vec![], Some(Body::Json(document(own, "flags")))),
        ("post", "/ofrep/v1/evaluate/flags/{key}") => {
            (vec!["m".into()], Some(Body::Json(json!({ "context": { "targetingKey": own.marker("header") } }))))
        }
        ("post", "/ofrep/v1/evaluate/flags") => {
            (vec![], Some(Body::Json(json!({ "context": { "targetingKey": own.marker("header") } }))))
        }
        ("put", "/secrets/{name}") => {
            if random.random_bool(0.5) {
                (vec!["M".into()], text("secret"))
            } else {
                (vec![secret_name], text("secret"))
            }
        }
        ("delete", "/secrets/{name}") => (vec![secret_name], None),
        ("put", "/webhooks/sources/{source}") => {
            (vec!["spare".into()], Some(Body::Json(json!({ "verify": "github", "secret": secret_name }))))
        }
        ("delete", "/webhooks/sources/{source}") => (vec!["spare".into()], None),
        _ => (vec![], None),
    }
}
