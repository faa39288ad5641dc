//! Uploads that are no plugin, or one that this host does not run: each is refused for what it is.

use std::time::Duration;

use chalet::cli::build;
use chalet::services::plugins::manifest::{Grants, Manifest};
use futures_util::StreamExt as _;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wasm_encoder::{
    Component, ComponentImportSection, ComponentSectionId, ComponentTypeRef, Encode as _, RawSection, Section as _,
};

use crate::kit::carrier;
use crate::kit::guests::{component, written};
use crate::kit::oracle::Watch;
use crate::kit::process::{forget_peak, peak_mib, resident_mib};
use crate::kit::server::{Server, Tenant, expect};
use crate::upload::{compiles, rejected, unprocessable};

/// Bytes of a component on the default plan.
const LIMIT: usize = 8 << 20;
/// What an upload may cost the server while it lasts: itself, and the pieces that it came in.
const MEMORY_MIB: f64 = 32.0;

/// A plugin whose core module has these fields beside its own.
fn beside(fields: &str) -> Vec<u8> {
    written(|text| text.replace("(start $start)", fields))
}

/// A plugin that has another core module with these fields.
fn apart(fields: &str) -> Vec<u8> {
    written(|text| text.replacen("(core module", &format!("(core module {fields}) (core module"), 1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_component_is_refused_for_what_it_is() {
    let server = Server::start();
    let tenant = server.tenant("hostile").await;
    tenant.deploy("guest-hello").await;
    let watch = Watch::begin(&server).await;
    let compiled = compiles(&server).await;
    let whole = component("guest-hello");
    let mut dice = StdRng::seed_from_u64(7);
    let mut noise = vec![0; 4_096];
    dice.fill_bytes(&mut noise);
    let code = std::fs::read_dir(server.data.path().join("code")).expect("a folder").next().expect("a file of code");
    let machine_code = std::fs::read(code.expect("a file of code").path()).expect("bytes");
    for (bytes, word, what) in [
        (Vec::new(), "empty", "nothing"),
        (vec![0], "no WebAssembly", "one byte"),
        (b"\x7fELF\x02\x01\x01\0".to_vec(), "no WebAssembly", "an ELF file"),
        (b"PK\x03\x04\x14\0\0\0".to_vec(), "no WebAssembly", "a zip file"),
        (b"(component)".to_vec(), "text", "text"),
        (b"\n ;; a comment\n(module)".to_vec(), "text", "text behind a comment"),
        (noise.clone(), "no WebAssembly", "noise"),
        ([b"\0asm\x0d\0\x01\0".as_slice(), &noise].concat(), "damaged", "noise behind a header"),
        (wat::parse_str("(module)").expect("a module"), "core module", "a core module"),
        (machine_code, "machine code", "what this server compiled"),
        (b"\0asm\x0d\0\x01\0".to_vec(), "trigger", "an empty component"),
    ] {
        let problem = unprocessable(&tenant, bytes, "component_invalid", what).await;
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(word)), "{what}: {problem}");
    }
    for length in (8..whole.len()).step_by(whole.len() / 40) {
        unprocessable(&tenant, whole[..length].to_vec(), "component_invalid", &format!("{length} bytes of it")).await;
    }
    assert_eq!(compiles(&server).await, compiled, "the gate let something through");
    // A flipped bit may spare what counts.
    for _ in 0..24 {
        let mut flipped = whole.clone();
        let bit = dice.random_range(0..flipped.len() * 8);
        flipped[bit / 8] ^= 1 << (bit % 8);
        let status = tenant.upload("guest-hello", flipped).await.status();
        let expected = [StatusCode::UNPROCESSABLE_ENTITY, StatusCode::CREATED, StatusCode::OK, StatusCode::CONFLICT];
        assert!(expected.contains(&status), "with bit {bit} flipped it is answered with {status}");
    }
    watch.end(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_engine_does_not_run_is_refused_by_its_worker() {
    let server = Server::start();
    let tenant = server.tenant("hostile").await;
    let watch = Watch::begin(&server).await;
    // Without any of it the same is taken, and so each is refused for what it has: the answer names it.
    for (version, bytes) in [("1.0.1", apart("(memory 1)")), ("1.0.2", beside("(func (param i32))"))] {
        let named = build::embed_instead(&bytes, &carrier::manifest("start", version)).expect("embedded");
        let taken = tenant.upload("start", named).await;
        assert_eq!(taken.status(), StatusCode::CREATED, "{}", taken.text().await.unwrap_or_default());
    }
    for (what, word, bytes) in [
        ("a 64-bit memory", "memory64", apart("(memory i64 1)")),
        ("a shared memory", "threads", apart("(memory 1 1 shared)")),
        ("a struct of the collector's", "gc", beside("(type (struct (field i32)))")),
        ("an array of the collector's", "gc", beside("(type (array i8))")),
        ("a reference to a function's type", "function", beside("(type $t (func)) (func (param (ref $t)))")),
        ("an exception", "exceptions", beside("(tag (param i32))")),
        ("a tail call", "tail call", beside("(func $t return_call $t)")),
        ("an external reference", "gc", beside("(func (param externref))")),
        (
            "a relaxed vector",
            "relaxed SIMD",
            beside("(func (param v128 v128) (result v128) local.get 0 local.get 1 i8x16.relaxed_swizzle)"),
        ),
        ("an atomic access", "threads", beside("(func (drop (i32.atomic.load (i32.const 0))))")),
        ("a function of another type than it says", "type mismatch", beside("(func (result i32) i64.const 1)")),
    ] {
        let problem = unprocessable(&tenant, bytes, "component_invalid", what).await;
        let said = problem["detail"].as_str().expect("text");
        assert!(said.contains(word), "{what}: {said}");
    }
    // A component type that holds a type, which is a component type, and so on (0x41: one declaration; 0x01: a type).
    let data = [[1].as_slice(), &[0x41, 1, 1].repeat(200_000), &[0x73]].concat();
    let mut bytes = beside("");
    RawSection { id: ComponentSectionId::Type.into(), data: &data }.append_to(&mut bytes);
    let answer = tenant.upload("start", bytes).await;
    assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY, "types in one another");
    watch.end(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_that_is_unknown_or_not_granted_is_named() {
    let server = Server::start();
    let tenant = server.tenant("hostile").await;
    let watch = Watch::begin(&server).await;
    let import =
        |name: &str| wat::parse_str(format!("(component (import \"{name}\" (instance)))")).expect("a component");
    for name in ["wasi:sockets/tcp@0.2.0", "chalet:platform/kv@0.9.0", "chalet:platform/everything@0.1.0"] {
        let problem = unprocessable(&tenant, import(name), "capability_denied", name).await;
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(name)), "{problem}");
    }
    let without = |name: &str, grant: fn(&mut Grants) -> &mut Vec<String>| {
        let component = component(name);
        let mut manifest = Manifest::from_component(&component).expect("a manifest");
        manifest.name = "start".into();
        grant(&mut manifest.grants).clear();
        build::embed_instead(&component, &manifest).expect("embedded")
    };
    let cases: [(_, _, fn(&mut Grants) -> &mut Vec<String>); 4] = [
        ("guest-kv", "meters", |grants| &mut grants.meters),
        ("guest-secrets", "secrets", |grants| &mut grants.secrets),
        ("guest-http", "http", |grants| &mut grants.egress),
        ("notes", "kv", |grants| &mut grants.kv),
    ];
    for (guest, interface, grant) in cases {
        let problem = unprocessable(&tenant, without(guest, grant), "capability_denied", guest).await;
        let import = format!("chalet:platform/{interface}@0.1.0");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(&import)), "{problem}");
    }
    assert_eq!(rejected(&server, "capability_denied").await, 7.0);
    assert_eq!(expect(tenant.api(Method::GET, "/plugins"), StatusCode::OK).await["data"], json!([]));
    watch.end(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_that_would_grant_nothing_is_refused_with_what_to_write() {
    let server = Server::start();
    let tenant = server.tenant("hostile").await;
    let watch = Watch::begin(&server).await;
    for (host, remedy) in [
        ("*.example.com", "name each"),
        ("*", "name each"),
        ("api.*.com", "name each"),
        ("https://api.example.com", "without scheme"),
        ("2606:4700::1", "is no host"),
    ] {
        let mut manifest = carrier::manifest("start", "1.0.0");
        manifest.grants.egress = vec![host.into()];
        let bytes = carrier::with(carrier::beside(b"\0asm\x01\0\0\0"), &manifest);
        let problem = unprocessable(&tenant, bytes, "manifest_invalid", host).await;
        let said = problem["detail"].as_str().expect("a text");
        assert!(said.contains(host) && said.contains(remedy), "{host}: {said}");
    }
    watch.end(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_taken_or_refused_and_never_repeated_as_they_are() {
    let server = Server::start();
    let tenant = server.tenant("hostile").await;
    let watch = Watch::begin(&server).await;
    let long = "n".repeat(100_000);
    let custom = |name: &[u8]| {
        let mut bytes = beside("");
        custom_section(&mut bytes, name);
        bytes
    };
    let ugly = "\u{1b}[31m\u{202e}\r\n\u{0}\u{200b}";
    let import = |name: &str| {
        let mut imports = ComponentImportSection::new();
        imports.import(name, ComponentTypeRef::Func(0));
        let mut component = Component::new();
        component.section(&imports);
        component.finish()
    };
    let mut many = beside("");
    (0..10_000).for_each(|n| custom_section(&mut many, format!("s{n}").as_bytes()));
    for (what, bytes) in [
        ("10,000 custom sections", many),
        ("a custom section with a name of 100,000 bytes", custom(long.as_bytes())),
        ("a custom section whose name is no UTF-8", custom(b"\xff\xfe")),
        ("a custom section with an ugly name", custom(ugly.as_bytes())),
        ("an import with a name of 100,000 bytes", import(&long)),
        ("an import with an ugly name", import(ugly)),
        ("a function with an ugly name", beside(&format!("(func (export \"{}\"))", ugly.escape_unicode()))),
    ] {
        let answer = tenant.upload("start", bytes).await;
        let status = answer.status();
        let body = answer.text().await.expect("text");
        println!("{what}: {status} {}", body.chars().take(300).collect::<String>());
        let taken = [StatusCode::CREATED, StatusCode::OK, StatusCode::CONFLICT].contains(&status);
        assert!(taken || status == StatusCode::UNPROCESSABLE_ENTITY, "{what}: {status} {body}");
        let detail = serde_json::from_str::<serde_json::Value>(&body).expect("JSON")["detail"].clone();
        let detail = detail.as_str().unwrap_or_default();
        assert!(detail.len() < 2_000, "{what}: {} bytes", detail.len());
        assert!(!detail.contains(|c: char| c.is_control() || ugly.contains(c) && !c.is_ascii()), "{what}: {detail:?}");
    }
    watch.end(&server).await;
}

/// Append a custom section with this name and nothing in it.
fn custom_section(bytes: &mut Vec<u8>, name: &[u8]) {
    let mut data = Vec::new();
    name.len().encode(&mut data);
    data.extend_from_slice(name);
    RawSection { id: ComponentSectionId::CoreCustom.into(), data: &data }.append_to(bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_upload_is_looked_at_once_and_compiled_once() {
    let server = Server::start();
    // Of two plans, and of two tenants: what is remembered has nothing of a tenant in it.
    let plan = json!({ "component_bytes": 16 << 20 });
    expect(server.admin(Method::PUT, "/v1/plans/large").json(&plan), StatusCode::OK).await;
    let tenants = [server.tenant("one").await, server.tenant("two").await];
    expect(server.admin(Method::PATCH, "/v1/tenants/two").json(&json!({ "plan": "large" })), StatusCode::OK).await;
    let watch = Watch::begin(&server).await;
    let bombs = [
        // Through the gate, and not through the validator.
        (beside("(func (result i32) i64.const 1)"), "component_invalid", 1.0),
        (
            wat::parse_str("(component (import \"wasi:cli/run@0.2.0\" (func)))").expect("a component"),
            "capability_denied",
            0.0,
        ),
    ];
    for (bytes, code, once) in bombs {
        let (compiled, remembered) = (compiles(&server).await, rejected(&server, "remembered").await);
        let upload = async |n: usize| unprocessable(&tenants[n % 2], bytes.clone(), code, &n.to_string()).await;
        // The first alone, and then as many at a time as clients would.
        upload(0).await;
        let uploads = futures_util::stream::iter(1..1_000).map(upload).buffer_unordered(16);
        assert_eq!(uploads.count().await, 999);
        assert_eq!(compiles(&server).await - compiled, once);
        // The gate looks once for each plan's bounds.
        let remembered = rejected(&server, "remembered").await - remembered;
        assert!(remembered >= 980.0, "{remembered} were remembered");
    }
    watch.end(&server).await;
}

/// Speak HTTP by hand: a head for an upload, and what `body` writes; the answer, as far as there is one.
async fn by_hand(
    tenant: &Tenant<'_>,
    head: &str,
    body: impl AsyncFnOnce(&mut tokio::net::tcp::OwnedWriteHalf),
) -> String {
    let address = tenant.server.url.trim_start_matches("http://");
    let (mut input, mut output) = TcpStream::connect(address).await.expect("a connection").into_split();
    let head = format!(
        "PUT /v1/tenants/{}/plugins/start HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n{head}\r\n\r\n",
        tenant.name, tenant.key
    );
    let reading = tokio::spawn(async move {
        let mut answer = Vec::new();
        let mut chunk = [0; 4_096];
        // Until the problem has come: the connection may stay open.
        while let Ok(read @ 1..) = input.read(&mut chunk).await {
            answer.extend_from_slice(&chunk[..read]);
            if answer.ends_with(b"}") {
                break;
            }
        }
        String::from_utf8_lossy(&answer).into_owned()
    });
    output.write_all(head.as_bytes()).await.expect("the head is taken");
    body(&mut output).await;
    tokio::time::timeout(Duration::from_secs(30), reading).await.expect("an answer or an end").expect("no panic")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_too_long_or_lies_about_its_length_takes_no_memory() {
    let server = Server::start();
    let tenant = server.tenant("hostile").await;
    let watch = Watch::begin(&server).await;
    let before = resident_mib(server.pid());
    forget_peak(server.pid());
    assert_eq!(tenant.upload("start", vec![0; LIMIT + 1]).await.status(), StatusCode::PAYLOAD_TOO_LARGE);

    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let endless = by_hand(&tenant, "transfer-encoding: chunked", async |output| {
        let mut sent = 0;
        while output.write_all(chunk.as_bytes()).await.is_ok() {
            sent += 0x10000;
            assert!(sent < 8 * LIMIT, "the server takes {sent} bytes and more");
        }
    });
    let endless = endless.await;
    // The answer may be lost when the server closes on what is still coming.
    assert!(endless.is_empty() || endless.starts_with("HTTP/1.1 413"), "{endless}");

    let short = by_hand(&tenant, "content-length: 1000", async |output| {
        let _ = output.write_all(b"\0asm").await;
        let _ = output.shutdown().await;
    });
    let short = short.await;
    assert!(short.is_empty() || short.starts_with("HTTP/1.1 400"), "{short}");

    // What follows the body is another request, and no good one.
    let long = by_hand(&tenant, "content-length: 4", async |output| {
        let _ = output.write_all(&[b"\0asm".as_slice(), &[0xff; 4_096]].concat()).await;
    });
    let long = long.await;
    assert!(long.starts_with("HTTP/1.1 422") || long.starts_with("HTTP/1.1 400"), "{long}");

    let grown = peak_mib(server.pid()) - before;
    println!("uploads that are too long or lie: {grown:.1} MiB");
    assert!(grown < MEMORY_MIB, "{grown} MiB");
    assert_eq!(expect(tenant.api(Method::GET, "/plugins"), StatusCode::OK).await["data"], json!([]));
    watch.end(&server).await;
}
