//! The bodies of the fuzz targets: each takes any bytes and panics if a promise about them is broken. Beside each stand inputs
//! that reach deep into it, from which mutation starts. `make fuzz` lets cargo-fuzz search; `make test` runs the same
//! bodies over a fixed number of mutations (tests/it/fuzz.rs).

use std::sync::LazyLock;

use chalet::fuzzing;
use chalet::kernel::secret::Master;
use chalet::services::flags::Context;
use chalet::services::idempotency;
use chalet::services::plugins::manifest::Manifest;
use chalet::services::webhooks::{self, Source};
use http::{HeaderMap, HeaderName, HeaderValue};

/// A target: its name, its body, and where mutation starts.
pub struct Target {
    pub name: &'static str,
    pub body: fn(&[u8]),
    pub seeds: &'static [&'static [u8]],
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "manifest", body: manifest, seeds: MANIFESTS },
    Target { name: "routes", body: routes, seeds: ROUTES },
    Target { name: "webhook", body: webhook, seeds: WEBHOOKS },
    Target { name: "cursor", body: cursor, seeds: CURSORS },
    Target { name: "structured_header", body: structured_header, seeds: STRUCTURED_HEADERS },
    Target { name: "flags", body: flags, seeds: FLAGS },
];

const MANIFESTS: &[&[u8]] = &[
    b"name = \"a\"\nversion = \"1.0.0\"\n[http]\nroutes = [\"GET /o/{id}\", \"ANY /{*rest}\"]\nauth = \"none\"\n",
    b"name = \"a\"\nversion = \"1.0.0-rc.1+b\"\n[[webhook]]\nsource = \"s\"\nverify = \"stripe\"\nsecret = \"k\"\n[[event]]\ntypes = [\"order.*\"]\n[[queue]]\nname = \"q\"\nattempts = 3\n[[schedule]]\nname = \"n\"\ncron = \"*/5 0-6 1,15 * 1-5\"\n[[index]]\ncollection = \"c\"\nfields = [\"a\", \"b\"]\n[grants]\nkv = [\"c\"]\nkv_read = [\"d\"]\negress = [\"api.example.com\"]\nsecrets = [\"k\"]\nflags = [\"f\"]\nmeters = [\"m\"]\nlimits = [\"l\"]\nconfig = [\"x\"]\n[limits]\nmemory_mb = 64\ntimeout_ms = 1000\nfuel = 1000\n",
    br#"{"name":"a","version":"1.0.0","http":{"routes":["GET /"]},"webhook":[{"source":"s","verify":"hmac","secret":"k"}],"grants":{"kv":["c"],"egress":["a.b"]},"limits":{"fuel":1}}"#,
];

/// A manifest that is accepted means the same after it was written and read again, in any of its forms.
pub fn manifest(bytes: &[u8]) {
    let text = std::str::from_utf8(bytes).ok().and_then(|text| Manifest::from_toml(text).ok());
    for manifest in Manifest::from_json(bytes).into_iter().chain(text).chain(Manifest::from_component(bytes)) {
        manifest.check().expect("what was accepted is in order");
        let again = Manifest::from_json(&manifest.to_json()).expect("what was accepted can be read again");
        assert_eq!(again, manifest);
        let _ = fuzzing::routes(&manifest);
    }
}

const ROUTES: &[&[u8]] = &[
    b"GET /\nGET /o/{id}\nPOST /o\nANY /f/{*rest}\nGET /o/a%20b\nGET /o/1",
    b"GET /a/{x}/b\nGET /a/{y}/c\nPUT /a/{x}\nHEAD /a/b/c\nHEAD /a/1/b",
    b"ANY /{a}/{b}/{c}\nDELETE /x/y/{*z}\nDELETE /x/y/z/%ff/%00",
];

/// The last line is a request, the others are routes. What is found matches, and what matches is found.
pub fn routes(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Some((routes, request)) = text.rsplit_once('\n') else { return };
    let Some((method, path)) = request.split_once(' ') else { return };
    let routes: Vec<_> = routes.split('\n').collect();
    let json = serde_json::json!({ "name": "a", "version": "1.0.0", "http": { "routes": routes } });
    let Ok(manifest) = Manifest::from_json(json.to_string().as_bytes()) else { return };
    let routes = &manifest.http.as_ref().expect("it has routes").routes;
    let fits = |route: &&chalet::services::plugins::manifest::Route| {
        (route.allows(method) || (method == "HEAD" && route.allows("GET"))) && matches(route.path(), path)
    };
    match fuzzing::routes(&manifest).find(method, path) {
        Some(found) => {
            let route =
                routes.iter().find(|route| route.to_string() == found.route).expect("it is one of the manifest's");
            assert!(fits(&route), "{route} does not match {request}");
            assert_eq!(found.params.len(), route.path().matches('{').count());
        }
        None => assert_eq!(routes.iter().filter(fits).count(), 0, "{request} finds no route"),
    }
}

/// Whether a route's path stands for this one.
fn matches(pattern: &str, path: &str) -> bool {
    let (mut patterns, mut parts) = (pattern.split('/'), path.split('/'));
    loop {
        match (patterns.next(), parts.next()) {
            (None, None) => return true,
            (Some(pattern), Some(part)) if pattern.starts_with("{*") => {
                return !part.is_empty() || parts.next().is_some();
            }
            (Some(pattern), Some(part)) if pattern.starts_with('{') && !part.is_empty() => {}
            (Some(pattern), Some(part)) if pattern == part => {}
            _ => return false,
        }
    }
}

const KEY: &[u8] = b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER_KEY: &[u8] = b"whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
/// The time of the signatures below, in milliseconds.
const NOW_MS: i64 = 1_614_265_330_000;
const WEBHOOKS: &[&[u8]] = &[
    // The example of the Standard Webhooks specification.
    b"{\"verify\":\"standard-webhooks\",\"secret\":\"k\"}\nwebhook-id: msg_p5jXN8AQM9LWM0D4loKWxJek\nwebhook-timestamp: 1614265330\nwebhook-signature: v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=\n\n{\"test\": 2432232314}",
    b"{\"verify\":\"stripe\",\"secret\":\"k\"}\nstripe-signature: t=1614265330,v1=00ff\n\n{\"id\":\"evt_1\",\"type\":\"a\"}",
    b"{\"verify\":\"github\",\"secret\":\"k\"}\nx-hub-signature-256: sha256=00ff\nx-github-delivery: 1\nx-github-event: push\n\n{}",
    b"{\"verify\":\"shopify\",\"secret\":\"k\"}\nx-shopify-hmac-sha256: AP8=\nx-shopify-webhook-id: 1\n\n{}",
    b"{\"verify\":\"slack\",\"secret\":\"k\"}\nx-slack-signature: v0=00ff\nx-slack-request-timestamp: 1614265330\n\n{\"type\":\"url_verification\",\"challenge\":\"c\"}",
    b"{\"verify\":\"hmac\",\"secret\":\"k\",\"hmac\":{\"header\":\"x-s\",\"algorithm\":\"sha512\",\"encoding\":\"base64\",\"prefix\":\"p=\",\"id_header\":\"x-i\",\"event_header\":\"x-e\",\"timestamp_header\":\"x-t\"}}\nx-s: p=AP8=\nx-i: 1\nx-e: e\nx-t: 1614265330\n\nbody",
];

/// A source, headers and a body: whoever is believed under one key is not believed under another, nor with another body.
pub fn webhook(bytes: &[u8]) {
    let Some(at) = bytes.windows(2).position(|two| two == b"\n\n") else { return };
    let (head, body) = (&bytes[..at], &bytes[at + 2..]);
    let mut lines = head.split(|byte| *byte == b'\n');
    let Ok(source) = Source::parse(lines.next().unwrap_or_default()) else { return };
    let mut headers = HeaderMap::new();
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(line[colon + 1..].trim_ascii()));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let verify = |keys: &[&[u8]], body: &[u8]| webhooks::verify(&source, keys, &headers, body, NOW_MS);
    if let Ok(verified) = verify(&[OTHER_KEY, KEY], body) {
        assert!((1..=255).contains(&verified.id.len()) && verified.id.bytes().all(|byte| byte.is_ascii_graphic()));
        assert_eq!(verify(&[KEY], body).expect("one key is enough"), verified);
        assert!(verify(&[OTHER_KEY], body).is_err(), "believed under a key that signed nothing");
        assert!(verify(&[KEY], &[body, b" "].concat()).is_err(), "believed with another body");
    }
}

static MASTER: LazyLock<Master> = LazyLock::new(|| Master::parse(&"5e".repeat(32)).expect("a key"));
const CURSORS: &[&[u8]] = &[b"YS9iL2M", b"a/b\na/", b"AAAAAAAAAAAAAAAAYQ", b"_-8", b"=", b"plugins\nlast"];

/// A cursor that is accepted is the only one of its place; one that a list made is accepted there, and nowhere else.
pub fn cursor(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (cursor, other) = text.split_once('\n').unwrap_or((&text, ""));
    if let Ok(last) = fuzzing::kv_cursor(cursor, other) {
        assert!(last.starts_with(other.as_bytes()) && last.len() <= 512);
    }
    assert!(fuzzing::list_cursor(&MASTER, other, cursor).is_err(), "a cursor that nobody made is accepted");
    let made = fuzzing::make_list_cursor(&MASTER, other, cursor.as_bytes());
    assert_eq!(fuzzing::list_cursor(&MASTER, other, &made).expect("it was made here"), cursor.as_bytes());
    assert!(fuzzing::list_cursor(&MASTER, &format!("{other} "), &made).is_err(), "accepted by another list");
    assert!(fuzzing::list_cursor(&MASTER, other, &format!("{made}A")).is_err(), "accepted with more behind it");
}

const STRUCTURED_HEADERS: &[&[u8]] =
    &[b"\"8e03978e-40d5-43e8-bc93-6894a57f9324\"", b"\"a\\\"b\\\\c\"; p=1;q", b"plain key", b"\"\"", b"?1", b":AA==:"];

/// A key that is accepted is printable, of bounded length, and the same when it is sent again as a string.
pub fn structured_header(bytes: &[u8]) {
    let Ok(key) = idempotency::parse_key(bytes) else { return };
    assert!((1..=255).contains(&key.len()) && key.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
    let quoted = format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
    assert_eq!(idempotency::parse_key(quoted.as_bytes()).expect("a string"), key);
}

const FLAGS: &[&[u8]] = &[
    br#"{"flags":{"a":{"state":"ENABLED","variants":{"on":true,"off":false},"defaultVariant":"off","targeting":{"if":[{"==":[{"var":"tier"},"gold"]},"on","off"]}}}}"#,
    br#"{"$evaluators":{"e":{"in":["@x",{"var":"mail"}]}},"flags":{"b":{"state":"ENABLED","variants":{"x":1,"y":2.5},"defaultVariant":"x","targeting":{"if":[{"$ref":"e"},"x",{"fractional":[["x",50],["y",50]]}]}}}}"#,
    br#"{"metadata":{"v":1},"flags":[{"key":"c","state":"DISABLED","variants":{"o":{"a":[1]},"p":{}},"defaultVariant":null,"metadata":{"m":"n"},"targeting":{"if":[{"sem_ver":[{"var":"version"},"^","1.2.3"]},"o",{"starts_with":[{"var":"mail"},"a"]},"p",{"cat":["o",""]}]}}]}"#,
];

/// A document that is accepted answers every flag, the same each time.
pub fn flags(bytes: &[u8]) {
    let Ok(document) = std::str::from_utf8(bytes) else { return };
    let context = serde_json::json!({ "targetingKey": "a", "tier": "gold", "mail": "a@x", "version": "1.2.9", "n": 3 });
    let context = Context::new(context).expect("a context");
    let Ok(answers) = fuzzing::evaluate(document, &context) else { return };
    assert_eq!(fuzzing::evaluate(document, &context).expect("it was accepted"), answers);
}
