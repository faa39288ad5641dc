//! The API as other people's tools call it, who have its description and lists of what breaks programs.

use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::kit::engine::Engine;
use crate::kit::oracle::Watch;
use crate::kit::server::{ADMIN, Server, expect};
use crate::kit::soak;
use crate::kit::stock::{self, Stock};

on_both_engines! {
    text_that_is_taken_for_something_else_breaks_nothing,
    a_name_that_is_no_text_to_a_database_names_nothing,
}

/// Requests at a time.
const PARALLEL: usize = 16;
/// Strings that are tried in each place of an operation.
const TRIED: usize = 12;
/// How long a statement would sleep that was smuggled into another.
const SLEEP: Duration = Duration::from_secs(20);

/// An operation of the API as its description has it.
struct Operation {
    method: Method,
    path: String,
    body: Option<Value>,
    query: Vec<String>,
}

impl Operation {
    /// All of them, but for the stream that never ends, and for what would take the tenant away.
    fn all(api: &Value) -> Vec<Self> {
        let mut operations = Vec::new();
        for (path, item) in api["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("operations") {
                let method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
                if path.ends_with("/logs") || method == Method::DELETE && path == "/v1/tenants/{tenant}" {
                    continue;
                }
                let schema = operation.pointer("/requestBody/content/application~1json/schema");
                let query = operation["parameters"].as_array().into_iter().flatten().filter(|one| one["in"] == "query");
                operations.push(Self {
                    method,
                    path: path.clone(),
                    body: schema.map(|schema| example(api, schema)),
                    query: query.map(|one| one["name"].as_str().expect("a name").to_owned()).collect(),
                });
            }
        }
        assert!(operations.len() >= 40, "the description lost routes");
        operations
    }

    /// Whether it is the operator's.
    fn is_the_operators(&self) -> bool {
        !self.path.contains("{tenant}") && !self.path.starts_with("/ofrep") || self.method == Method::PATCH
    }

    /// The path with these segments for its variables, of which the first is the tenant's name.
    fn filled(&self, variable: impl Fn(&str) -> String) -> String {
        let filled = |segment: &str| match segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            Some(name) => encoded(&variable(name)),
            None => segment.to_owned(),
        };
        self.path.split('/').map(filled).collect::<Vec<_>>().join("/")
    }
}

/// A value of a schema, with `x` for each text.
fn example(api: &Value, schema: &Value) -> Value {
    if let Some(reference) = schema["$ref"].as_str() {
        return example(api, api.pointer(&reference[1..]).expect("the schema is there"));
    }
    if let Some(known) = schema["enum"].as_array() {
        return known[0].clone();
    }
    let kind = schema["type"].as_array().map_or(&schema["type"], |kinds| &kinds[0]);
    match kind.as_str() {
        Some("object") => {
            let members = schema["properties"].as_object().into_iter().flatten();
            Value::Object(members.map(|(name, schema)| (name.clone(), example(api, schema))).collect::<Map<_, _>>())
        }
        Some("array") => json!([example(api, &schema["items"])]),
        Some("integer" | "number") => json!(1),
        Some("boolean") => json!(true),
        _ => json!("x"),
    }
}

/// Text as one segment of a path or a value of a query.
fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// Where the texts of a value are.
fn texts(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::String(_) => found.push(at.to_owned()),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(n, item)| texts(item, &format!("{at}/{n}"), found));
        }
        Value::Object(members) => {
            members.iter().for_each(|(name, member)| texts(member, &format!("{at}/{name}"), found))
        }
        _ => {}
    }
}

/// Text that ends another text in SQL, and goes on.
const INJECTIONS: &[&str] = &[
    "'",
    "''",
    "\"",
    "`",
    "\\",
    "\\'",
    "';",
    "' --",
    "' #",
    "'/*",
    "') --",
    "' or '1'='1",
    "' or 1=1 --",
    "\" or \"\"=\"",
    "') or ('1'='1",
    "' or true --",
    "1 or 1=1",
    "1; select 1",
    "' union select null --",
    "' union all select null, null, null --",
    "' union select digest from api_keys --",
    "' and 1=(select count(*) from api_keys) --",
    "'; drop table rows; --",
    "'; delete from tenants; --",
    "'; update api_keys set tenant_id = null; --",
    "'; set app.tenant = ''; --",
    "'; select set_config('app.tenant', 'x', false); --",
    "'; reset role; --",
    "'; rollback; --",
    "'; commit; --",
    "'; copy rows to '/tmp/x'; --",
    "'; attach database '/tmp/x' as y; --",
    "'; pragma journal_mode = delete; --",
    "' || pg_sleep(20) --",
    "'; select pg_sleep(20) --",
    "1 and (select 1 from pg_sleep(20)) is null",
    "' and (select pg_sleep(20)) is null --",
    "' || (select randomblob(1000000000)) --",
    "' and 1=like('abcdefg', upper(hex(randomblob(1000000000)))) --",
    "' || (select load_extension('x')) --",
    "$1",
    "$$",
    "$tag$x$tag$",
    "?1",
    ":x",
    "@x",
    "%",
    "_",
    "%' escape '%",
    "e'\\x00'",
    "\0",
    "x\0' --",
    "\u{2019} or 1=1 --",
    "\u{ff07} or 1=1 --",
    "{1,2}",
    "{\"x\",\"y\"}",
    "null",
    "x' collate nocase --",
    "x'::regclass --",
    "x' similar to '%(%",
];

/// The answer and how long it took, once the key's bucket has room: the operator's has one for all of its routes.
async fn in_turn(request: RequestBuilder) -> reqwest::Result<(Response, Duration)> {
    loop {
        let started = Instant::now();
        let answer = request.try_clone().expect("bytes").send().await?;
        if answer.status() != StatusCode::TOO_MANY_REQUESTS {
            return Ok((answer, started.elapsed()));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn text_that_is_taken_for_something_else_breaks_nothing(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    server.unlimited().await;
    let acme = server.tenant("acme").await;
    let mut keys = vec![acme.key.clone()];
    for _ in 0..15 {
        keys.push(acme.mint(&["tenant:admin"]).await);
    }
    let api: Value =
        server.anonymous(Method::GET, "/v1/openapi.json").send().await.expect("sent").json().await.expect("JSON");
    let naughty =
        tokio::task::spawn_blocking(|| Stock::start("corpora").ask("naughty", Value::Null)).await.expect("answered");
    let naughty = naughty.as_array().expect("a list").iter().filter_map(Value::as_str);
    let strings: Vec<String> = INJECTIONS.iter().copied().chain(naughty).map(str::to_owned).collect();
    let most = soak::either(TRIED, strings.len());
    let mut next = 0;
    let mut some = || {
        next += most;
        (next - most..next).map(|n| strings[n % strings.len()].clone()).collect::<Vec<_>>()
    };
    let mut turn = 0;
    let mut ask = |operation: &Operation, target: String| {
        turn += 1;
        let key = if operation.is_the_operators() { ADMIN } else { &keys[turn % keys.len()] };
        server.anonymous(operation.method.clone(), &target).bearer_auth(key)
    };
    // The operator may put a tenant on the plan that is tried, under which nobody gets far.
    server.tenant("moved").await;
    let mut asked: Vec<(String, RequestBuilder)> = Vec::new();
    for operation in Operation::all(&api) {
        let tenant = if operation.is_the_operators() { "moved" } else { "acme" };
        let usual = |name: &str| if name == "tenant" { tenant.to_owned() } else { "x".to_owned() };
        let name = format!("{} {}", operation.method, operation.path);
        let with_body = |request: RequestBuilder| match &operation.body {
            Some(body) => request.json(body),
            None => request,
        };
        let variables: Vec<&str> = operation.path.split(['{', '}']).skip(1).step_by(2).collect();
        for variable in variables {
            for text in some() {
                let target = operation.filled(|one| if one == variable { text.clone() } else { usual(one) });
                asked.push((format!("{name} with {variable} {text:?}"), with_body(ask(&operation, target))));
            }
        }
        for parameter in &operation.query {
            for text in some() {
                let target = format!("{}?{parameter}={}", operation.filled(usual), encoded(&text));
                asked.push((format!("{name} with ?{parameter} {text:?}"), with_body(ask(&operation, target))));
            }
        }
        let mut places = Vec::new();
        operation.body.iter().for_each(|body| texts(body, "", &mut places));
        for place in places {
            for text in some() {
                let mut body = operation.body.clone().expect("it has places");
                *body.pointer_mut(&place).expect("found before") = text.clone().into();
                let request = ask(&operation, operation.filled(usual)).json(&body);
                asked.push((format!("{name} with {place} {text:?}"), request));
            }
        }
        for header in ["idempotency-key", "if-match", "if-none-match", "content-type", "ce-id", "x-request-id", "host"]
        {
            for text in some() {
                let Ok(value) = reqwest::header::HeaderValue::from_str(&text) else { continue };
                let request = with_body(ask(&operation, operation.filled(usual))).header(header, value);
                asked.push((format!("{name} with {header} {text:?}"), request));
            }
        }
    }
    let count = asked.len();
    let answers = stream::iter(asked).map(async |(what, request)| {
        let (answer, took) = in_turn(request).await.unwrap_or_else(|error| panic!("{what} got no answer: {error}"));
        let (status, kind) = (answer.status(), answer.headers().get("content-type").cloned());
        let text = answer.text().await.unwrap_or_default();
        // What costs much is refused when several ask for it.
        let shed = status == StatusCode::SERVICE_UNAVAILABLE && text.contains("\"overloaded\"");
        assert!(!status.is_server_error() || shed, "{what} answered {status}: {text}");
        assert!(took < SLEEP, "{what} took {took:?}");
        let problem = kind.is_some_and(|kind| kind == "application/problem+json");
        assert!(!status.is_client_error() || problem || what.contains("/ofrep/"), "{what} answered {status}: {text}");
        for leak in ["sqlite", "postgres", "sqlx", "syntax error", "panicked", "/src/", "relation \""] {
            assert!(problem_detail(&text).is_none_or(|detail| !detail.to_lowercase().contains(leak)), "{what}: {text}");
        }
        status
    });
    let statuses: Vec<StatusCode> = answers.buffer_unordered(PARALLEL).collect().await;
    assert_eq!(statuses.len(), count);
    let shares = |status: u16| statuses.iter().filter(|one| one.as_u16() == status).count();
    println!(
        "{count} requests: {} ok, {} 400, {} 404, {} 422",
        statuses.iter().filter(|status| status.is_success()).count(),
        shares(400),
        shares(404),
        shares(422)
    );
    assert_eq!(server.admin(Method::GET, "/v1/tenants/acme").send().await.expect("an answer").status(), StatusCode::OK);
    watch.end(&server).await;
}

async fn a_name_that_is_no_text_to_a_database_names_nothing(engine: Engine) {
    let server = engine.server().await;
    let watch = Watch::begin(&server).await;
    let acme = server.tenant("acme").await;
    expect(acme.api(Method::DELETE, "/keys/a%00b"), StatusCode::NOT_FOUND).await;
    expect(server.admin(Method::GET, "/v1/tenants/a%00b"), StatusCode::NOT_FOUND).await;
    expect(server.admin(Method::GET, "/v1/plans/a%00b"), StatusCode::NOT_FOUND).await;
    let moved = server.admin(Method::PATCH, "/v1/tenants/acme").json(&json!({ "plan": "a\0b" }));
    assert_eq!(expect(moved, StatusCode::BAD_REQUEST).await["code"], "no_such_plan");
    let made = server.admin(Method::POST, "/v1/tenants").json(&json!({ "id": "other", "plan": "a\0b" }));
    assert_eq!(expect(made, StatusCode::BAD_REQUEST).await["code"], "no_such_plan");
    for path in
        ["/plugins/a%00b", "/meters/a%00b", "/secrets/a%00b", "/kv/a%00b/c", "/kv/a/b%00c", "/invocations/a%00b"]
    {
        let answer = acme.api(Method::GET, path).send().await.expect("an answer");
        assert!(answer.status().is_client_error(), "GET {path} answered {}", answer.status());
    }
    watch.end(&server).await;
}

/// What an error says to the caller, without what the caller said.
fn problem_detail(text: &str) -> Option<String> {
    let problem: Value = serde_json::from_str(text).ok()?;
    let detail = problem.get("detail")?.as_str()?;
    Some(detail.split(['"', '`', '\'']).step_by(2).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_json_is_called_so_and_what_is_json_is_not() {
    let server = Server::start();
    let watch = Watch::begin(&server).await;
    server.unlimited().await;
    let acme = server.tenant("acme").await;
    let mut keys = Vec::new();
    for _ in 0..16 {
        keys.push(acme.mint(&["tenant:admin"]).await);
    }
    let api: Value =
        server.anonymous(Method::GET, "/v1/openapi.json").send().await.expect("sent").json().await.expect("JSON");
    let suite =
        tokio::task::spawn_blocking(|| Stock::start("corpora").ask("json", Value::Null)).await.expect("answered");
    let mut cases: Vec<(String, Vec<u8>)> = Vec::new();
    for case in suite.as_array().expect("a list") {
        let text = |name: &str| case[name].as_str().expect("text").to_owned();
        cases.push((text("name"), text("input").into_bytes()));
    }
    assert!(cases.len() >= 300, "the suite is there");
    // The suite's own are lost on their way through a text.
    for (name, bytes) in [
        ("n_utf8_lone_byte", b"{\"x\":\"\xff\"}".as_slice()),
        ("n_utf8_overlong", b"{\"x\":\"\xc0\xaf\"}"),
        ("n_utf8_surrogate", b"{\"x\":\"\xed\xa0\x80\"}"),
        ("n_nothing", b""),
    ] {
        cases.push((name.to_owned(), bytes.to_vec()));
    }
    let with_json: Vec<_> = Operation::all(&api).into_iter().filter(|operation| operation.body.is_some()).collect();
    assert!(with_json.len() >= 10, "{} routes take JSON", with_json.len());
    let mut asked = Vec::new();
    for (n, operation) in with_json.iter().enumerate() {
        for (m, (name, body)) in cases.iter().enumerate() {
            let target = operation.filled(|name| if name == "tenant" { "acme".to_owned() } else { "x".to_owned() });
            let key = if operation.is_the_operators() { ADMIN } else { &keys[(n + m) % keys.len()] };
            let request = server.anonymous(operation.method.clone(), &target).bearer_auth(key);
            let request = request.header("content-type", "application/json").body(body.clone());
            asked.push((
                format!("{} {} with {name}", operation.method, operation.path),
                name.clone(),
                body.len(),
                request,
            ));
        }
    }
    let count = asked.len();
    let answers = stream::iter(asked).map(async |(what, name, size, request)| {
        let (answer, _) = in_turn(request).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let status = answer.status();
        let body: Value = answer.json().await.unwrap_or(Value::Null);
        let called = body["code"] == "bad_json" || body["errorCode"] == "PARSE_ERROR";
        assert!(!status.is_server_error(), "{what} answered {status} {body}");
        match &name[..2] {
            // Beyond its bound nobody looks whether it is JSON.
            "n_" => assert!(
                status == StatusCode::BAD_REQUEST && called || size > 16 << 10,
                "{what} answered {status} {body}"
            ),
            // OFREP says the same of JSON that is no object.
            "y_" => assert!(body["code"] != "bad_json", "{what} answered {status} {body}"),
            _ => {}
        }
    });
    answers.buffer_unordered(PARALLEL).collect::<Vec<()>>().await;
    println!("{count} bodies were sent to {} routes", with_json.len());
    watch.end(&server).await;
}

/// What Schemathesis looks at. Left out: that data which its generator calls valid is accepted, since names have rules
/// that a schema does not say.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,\
    response_headers_conformance,unsupported_method,use_after_free";

/// Let Schemathesis loose on the paths that `paths` matches, with these settings; what it said, and whether it is content.
async fn schemathesis(server: &Server, document: &str, key: &str, paths: &str, settings: &str) -> (String, bool) {
    let folder = TempDir::new().expect("a temporary folder");
    std::fs::write(folder.path().join("schemathesis.toml"), settings).expect("written");
    let examples = soak::either("6", "200");
    // Whether it goes without a key is asked as a tenant: bad credentials from one address lock out an operator's first key.
    let checks = if key == ADMIN { CHECKS.to_owned() } else { format!("{CHECKS},ignored_auth") };
    let mut command = tokio::task::spawn_blocking(|| stock::python("schemathesis")).await.expect("installed");
    command
        .args(["run", document, "--url", &server.url, "--checks", &checks, "--max-examples", examples])
        .args(["--header", &format!("Authorization: Bearer {key}"), "--include-path-regex", paths])
        // A stream that never ends, what would take away what the others need, and bytes that it cannot make up.
        .args(
            ["invocations.logs", "tenants.delete", "plugins.upload"]
                .iter()
                .flat_map(|id| ["--exclude-operation-id", id]),
        )
        // One worker: its parser of Python is not safe for threads (CPython 3.11).
        .args(["--workers", "1", "--rate-limit", "180/s", "--seed", "1", "--generation-database", "none"])
        .args(["--phases", "examples,coverage,fuzzing,stateful", "--continue-on-failure", "--no-color"])
        .current_dir(folder.path());
    let done = tokio::process::Command::from(command).output().await.expect("it runs");
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    (said, done.status.success())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_answers_as_its_description_says() {
    let server = Server::start();
    let watch = Watch::begin(&server).await;
    let acme = server.tenant("acme").await;
    let document = format!("{}/v1/openapi.json", server.url);
    // A description that does not say what a missing entry answers is found out.
    let mut wrong: Value =
        server.anonymous(Method::GET, "/v1/openapi.json").send().await.expect("sent").json().await.expect("JSON");
    let paths = wrong["paths"].as_object_mut().expect("paths");
    paths.retain(|path, _| path == "/v1/plans/{plan}");
    let answers =
        paths["/v1/plans/{plan}"].pointer_mut("/get/responses").and_then(Value::as_object_mut).expect("answers");
    answers.remove("404").expect("it was said");
    let file = server.data.path().join("wrong.json");
    std::fs::write(&file, wrong.to_string()).expect("written");
    let (said, content) = schemathesis(&server, &file.to_string_lossy(), ADMIN, "/v1/plans", "").await;
    assert!(!content && said.contains("404"), "{said}");
    // What the canary lives by, its plan among it, is left alone.
    let settings = "[parameters]\n\"path.tenant\" = \"acme\"\n\"path.plan\" = \"fuzzed\"\n";
    for (key, paths) in
        [(ADMIN, "^/v1/(plans|audit|tenants$|tenants/.tenant.$)"), (acme.key.as_str(), "/v1/tenants/.tenant.|/ofrep/")]
    {
        let (said, content) = schemathesis(&server, &document, key, paths, settings).await;
        assert!(content, "{said}");
        println!("{}", said.lines().find(|line| line.contains("generated,")).unwrap_or_default());
    }
    watch.end(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plans_numbers_are_what_its_description_says() {
    let server = Server::start();
    let watch = Watch::begin(&server).await;
    let api: Value =
        server.anonymous(Method::GET, "/v1/openapi.json").send().await.expect("sent").json().await.expect("JSON");
    let fields = api["components"]["schemas"]["Plan"]["properties"].as_object().expect("fields");
    let numbers: Map<String, Value> = fields
        .iter()
        .filter(|(_, schema)| schema["type"] == "integer")
        .map(|(field, schema)| {
            let most = match schema["format"].as_str() {
                Some("int32") => i64::from(i32::MAX),
                Some("int64") => i64::MAX,
                other => panic!("{field} has the format {other:?}"),
            };
            assert_eq!((&schema["minimum"], &schema["maximum"]), (&json!(0), &json!(most)), "{field}");
            (field.clone(), json!(most))
        })
        .collect();
    assert!(numbers.len() >= 15, "{numbers:?}");
    let put = |plan: Value| server.admin(Method::PUT, "/v1/plans/large").json(&plan);
    for (field, most) in &numbers {
        let more = most.as_u64().expect("positive") + 1;
        for wrong in [json!(more), json!(-1), json!(1.5), json!(u64::MAX), json!(1e30), json!("1"), json!(null)] {
            let problem = expect(put(json!({ field: wrong })), StatusCode::BAD_REQUEST).await;
            let said = problem["detail"].as_str().expect("a text");
            assert!(said.contains(field.as_str()) && said.contains(&most.to_string()), "{field} = {wrong}: {said}");
        }
        assert_eq!(expect(put(json!({ field: most })), StatusCode::OK).await[field], *most);
        assert_eq!(expect(put(json!({ field: 0 })), StatusCode::OK).await[field], 0);
    }
    // Whoever has all of it can be served.
    expect(put(Value::from(numbers)), StatusCode::OK).await;
    let acme = server.tenant("acme").await;
    expect(server.admin(Method::PATCH, "/v1/tenants/acme").json(&json!({ "plan": "large" })), StatusCode::OK).await;
    acme.deploy("guest-kv").await;
    let ops = json!({ "ops": [{ "op": "put", "key": "k", "value": "v" }] });
    let call = acme.call(Method::POST, "guest-kv", "/run").header("idempotency-key", "once").json(&ops);
    expect(call, StatusCode::OK).await;
    expect(acme.api(Method::GET, "/invocations"), StatusCode::OK).await;
    watch.end(&server).await;
}
