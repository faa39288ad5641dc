use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::*;
use crate::services::testing::Bench;

fn data(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data").join(part)
}

fn files(folder: &str) -> Vec<(String, String)> {
    let mut files: Vec<_> = std::fs::read_dir(data(folder))
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| (path.display().to_string(), std::fs::read_to_string(&path).expect("a file")))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{folder}");
    files
}

fn snapshot(document: &str) -> Snapshot {
    let own = Document::parse(document.as_bytes()).expect("a document");
    Snapshot(Arc::new(Merged::new(own, Arc::default())))
}

/// A rule alone, as a document.
fn targeted(rule: &str) -> String {
    format!(
        r#"{{"flags":{{"f":{{"state":"ENABLED","variants":{{"a":"a"}},"defaultVariant":"a","targeting":{rule}}}}},"$evaluators":{{"some-ref":{{"!":true}}}}}}"#
    )
}

#[test]
fn documents_are_accepted_and_refused_as_flagds_schemas_say() {
    for folder in ["flagd/flags/positive", "flagd/flagd/positive"] {
        for (file, text) in files(folder) {
            let document = Document::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert_eq!(document.warnings, Vec::<String>::new(), "{file}");
        }
    }
    for (file, text) in files("flagd/flags/negative") {
        assert!(Document::parse(text.as_bytes()).is_err(), "{file}");
    }
    for (file, text) in files("flagd/targeting/positive") {
        let document = Document::parse(targeted(&text).as_bytes()).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(document.warnings, Vec::<String>::new(), "{file}");
    }
    // What the schema forbids and the testbed says how to evaluate is accepted with a warning.
    let defined = ["fractional-negative-weighting.json", "sem-ver-invalid-range-specifier.json"];
    for (file, text) in files("flagd/targeting/negative") {
        match Document::parse(targeted(&text).as_bytes()) {
            Err(error) => assert_eq!(error.code(), "flags_invalid", "{file}"),
            Ok(document) => {
                assert!(defined.iter().any(|name| file.ends_with(name)), "{file} was accepted");
                assert_eq!(document.warnings.len(), 1, "{file}");
            }
        }
    }
}

/// One case of the testbed: a scenario with one row of its examples.
struct Case {
    name: String,
    steps: Vec<(String, Vec<Vec<String>>)>,
}

fn row(line: &str) -> Vec<String> {
    let cells = line.trim().trim_matches('|').split('|');
    cells.map(|cell| cell.trim().replace("\\\"", "\"")).collect()
}

/// The part of Gherkin that the testbed uses.
fn cases(feature: &str) -> Vec<Case> {
    let (mut cases, mut background, mut steps) = (Vec::new(), Vec::new(), Vec::<(String, Vec<Vec<String>>)>::new());
    let (mut name, mut in_background, mut skipped, mut tags) = (String::new(), false, false, String::new());
    let mut header: Option<Vec<String>> = None;
    let mut in_examples = false;
    let mut finish =
        |name: &str, outline: bool, steps: &[(String, Vec<Vec<String>>)], background: &[(String, Vec<Vec<String>>)]| {
            if !outline && !steps.is_empty() {
                let steps = background.iter().chain(steps).cloned().collect();
                cases.push(Case { name: name.to_owned(), steps });
            }
        };
    let mut rows: Vec<(String, Vec<(String, Vec<Vec<String>>)>)> = Vec::new();
    let mut outline = false;
    for line in feature.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line.starts_with('@') {
            tags = line.to_owned();
        } else if line.starts_with("Background:") {
            in_background = true;
        } else if line.starts_with("Scenario") {
            finish(&name, outline, &steps, &background);
            (name, outline) = (line.to_owned(), line.starts_with("Scenario Outline"));
            (steps, in_background, in_examples, tags) = (Vec::new(), false, false, String::new());
        } else if line.starts_with("Examples:") {
            skipped = tags.contains("@fractional-v1");
            (in_examples, header, tags) = (true, None, String::new());
        } else if line.starts_with('|') && in_examples {
            match &header {
                None => header = Some(row(line)),
                Some(_) if skipped => {}
                Some(header) => {
                    let values: BTreeMap<&String, String> = header.iter().zip(row(line)).collect();
                    let filled = background.iter().chain(&steps).map(|(step, table): &(String, Vec<Vec<String>>)| {
                        let text = values
                            .iter()
                            .fold(step.clone(), |text, (name, value)| text.replace(&format!("<{name}>"), value));
                        (text, table.clone())
                    });
                    rows.push((format!("{name} {line}"), filled.collect()));
                }
            }
        } else if line.starts_with('|') {
            if let Some((_, table)) = steps.last_mut() {
                table.push(row(line));
            }
        } else if let Some((_, step)) =
            line.split_once(' ').filter(|(word, _)| ["Given", "When", "Then", "And"].contains(word))
        {
            if in_background {
                background.push((step.to_owned(), vec![]))
            } else {
                steps.push((step.to_owned(), vec![]))
            }
        }
    }
    finish(&name, outline, &steps, &background);
    cases.extend(rows.into_iter().map(|(name, steps)| Case { name, steps }));
    cases
}

fn typed(kind: &str, text: &str) -> Value {
    match kind {
        "Boolean" => Value::Bool(text == "true"),
        "Integer" => json!(text.parse::<i64>().expect("an integer")),
        "Float" => json!(text.parse::<f64>().expect("a number")),
        "Object" => serde_json::from_str(text).expect("JSON"),
        _ => Value::String(text.into()),
    }
}

fn same(kind: &str, value: &Value, expected: &str) -> bool {
    match kind {
        "Integer" | "Float" => value.as_f64() == expected.parse().ok(),
        _ => *value == typed(kind, expected),
    }
}

/// Run a case as a provider does: the caller's default stands in for an absent value and for an error.
fn run(snapshot: &Snapshot, case: &Case) {
    let (mut kind, mut key, mut fallback) = (String::new(), String::new(), Value::Null);
    let mut context = Map::new();
    let mut outcome = None;
    for (step, table) in &case.steps {
        // A quoted part may contain quotes of its own at its end only: the value of an object flag.
        let quoted: Vec<&str> = match step.split_once("\"{") {
            Some((_, object)) if step.starts_with("the resolved details value") => {
                vec![&step[step.len() - object.len() - 1..step.len() - 1]]
            }
            _ => step.split('"').skip(1).step_by(2).collect(),
        };
        if let Some((before, _)) = step.split_once("-flag with key") {
            kind = before.trim_start_matches("a ").into();
            (key, fallback) = (
                quoted[0].into(),
                typed(&kind, step.split("fallback value ").nth(1).expect("a value").trim_matches('"')),
            );
        } else if step.contains("targeting key with value") {
            context.insert("targetingKey".into(), quoted[0].into());
        } else if step.contains("nested property") {
            context.insert(quoted[0].into(), json!({ quoted[1]: quoted[2] }));
        } else if step.contains("a context containing a key") {
            context.insert(quoted[0].into(), typed(quoted[1], quoted[2]));
        } else if step.contains("was evaluated") {
            let context = Context::new(Value::Object(context.clone())).expect("a context");
            outcome = Some(snapshot.evaluate(&key, &context, 0));
        } else if let Some(outcome) = &outcome {
            let value = outcome.as_ref().ok().and_then(|evaluation| evaluation.value.as_deref().cloned());
            let fits = value.as_ref().is_none_or(|value| match kind.as_str() {
                "Boolean" => value.is_boolean(),
                "Integer" | "Float" => value.is_number(),
                "Object" => value.is_object(),
                _ => value.is_string(),
            });
            let code = match outcome {
                Err(failure) => failure.code.as_str(),
                Ok(_) if !fits => "TYPE_MISMATCH",
                Ok(_) => "",
            };
            let metadata = outcome.as_ref().map(|evaluation| (*evaluation.metadata).clone()).unwrap_or_default();
            let reason = outcome.as_ref().map_or("ERROR", |evaluation| evaluation.reason.as_str());
            let value = value.filter(|_| fits).unwrap_or_else(|| fallback.clone());
            match step.as_str() {
                s if s.contains("details value should be") => {
                    assert!(same(&kind, &value, quoted[0]), "{}: {value} is not {}", case.name, quoted[0]);
                }
                s if s.contains("reason should be") => assert_eq!(reason, quoted[0], "{}", case.name),
                s if s.contains("error-code should be") => assert_eq!(code, quoted[0], "{}", case.name),
                s if s.contains("metadata is empty") => assert!(metadata.is_empty(), "{}", case.name),
                s if s.contains("metadata should contain") => {
                    for cells in &table[1..] {
                        assert!(same(&cells[1], &metadata[&cells[0]], &cells[2]), "{}: {cells:?}", case.name);
                    }
                }
                other => panic!("{}: unknown step {other}", case.name),
            }
        } else {
            assert_eq!(step, "an evaluator", "{}", case.name);
        }
    }
    assert!(outcome.is_some(), "{} evaluates nothing", case.name);
}

#[test]
fn flags_answer_what_the_flagd_testbed_says() {
    let document = std::fs::read_to_string(data("flagd-testbed/flags/testkit-flags.json")).expect("a file");
    let snapshot = snapshot(&document);
    let mut count = 0;
    for (_, feature) in files("flagd-testbed/gherkin") {
        for case in cases(&feature) {
            run(&snapshot, &case);
            count += 1;
        }
    }
    assert!(count >= 110, "{count} cases");
}

const DOCUMENT: &str = r#"{
  "metadata": { "version": "7", "team": "all" },
  "flags": {
    "volume-discount": { "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "off",
      "targeting": { "if": [{ "==": [{ "var": "tier" }, "gold"] }, "on", null] }, "metadata": { "team": "pricing" } },
    "off": { "state": "DISABLED", "variants": { "a": 1 }, "defaultVariant": "a" },
    "split": { "state": "ENABLED", "variants": { "a": "A", "b": "B" }, "defaultVariant": "a",
      "targeting": { "fractional": [["a", 50], ["b", 50]] } },
    "wrong": { "state": "ENABLED", "variants": { "a": 1 }, "defaultVariant": "a", "targeting": { "cat": ["z"] } },
    "clock": { "state": "ENABLED", "variants": { "late": 1, "early": 2 }, "defaultVariant": "early",
      "targeting": { "if": [{ ">=": [{ "var": "$flagd.timestamp" }, 1700000000] }, "late"] } }
  }
}"#;

#[tokio::test]
async fn a_tenants_flags_stand_before_the_platforms_and_are_in_force_with_their_commit() {
    let bench = Bench::new().await;
    let platform = r#"{"flags":{"p":{"state":"ENABLED","variants":{"a":1,"b":2},"defaultVariant":"a"}}}"#;
    let (flags, alone) = (Flags::new(Some(platform)).expect("flags"), Flags::new(None).expect("flags"));
    let value = async |flags: &Flags, flag: &str| {
        let answer = bench.run(async |effects| flags.evaluate(effects, flag, json!({})).await).await;
        answer.map(|evaluation| evaluation.value.as_deref().cloned()).map_err(|error| (error.kind(), error.code()))
    };
    let missing = Err((Kind::NotFound, "flag_not_found"));
    assert_eq!(value(&alone, "p").await, missing, "a tenant without a document");
    assert_eq!(value(&flags, "p").await, Ok(Some(json!(1))));
    let put = async |body: &str| bench.run(async |effects| flags.put(effects, body.as_bytes())).await;
    put(&platform.replace(r#""a","#, r#""b","#).replace(r#""defaultVariant":"a""#, r#""defaultVariant":"b""#))
        .await
        .expect("stored");
    assert_eq!(value(&flags, "p").await, Ok(Some(json!(2))));
    put(DOCUMENT).await.expect("stored");
    assert_eq!(value(&flags, "p").await, Ok(Some(json!(1))), "the platform's again");
    assert_eq!(value(&alone, "p").await, missing);
    let stored = bench.run(async |effects| flags.get(effects).await).await.expect("read").expect("there");
    assert_eq!((&stored.0[..], stored.1), (DOCUMENT.as_bytes(), 2));
    // What is staged is seen by its own transaction, and by nobody else.
    let mut effects = bench.shard.begin(&bench.scope);
    flags.put(&mut effects, platform.as_bytes()).expect("staged");
    assert!(flags.evaluate(&mut effects, "split", json!({})).await.is_err());
    assert_eq!(value(&flags, "volume-discount").await, Ok(Some(json!(false))));
    let neighbour = bench.neighbour().await;
    let other =
        bench.shard.transact(&neighbour, async |effects| flags.evaluate(effects, "split", json!({})).await).await;
    assert_eq!(other.expect_err("another tenant's").code(), "flag_not_found");
    assert!(bench.run(async |effects| flags.delete(effects).await).await.expect("deleted"));
    assert!(!bench.run(async |effects| flags.delete(effects).await).await.expect("nothing"));
    assert_eq!(value(&alone, "volume-discount").await, missing);
    assert_eq!(put("{}").await.expect_err("no flags").code(), "flags_invalid");
    let all = bench.run(async |effects| flags.evaluate_all(effects, json!({})).await).await.expect("all");
    assert_eq!(all.len(), 1);
}

#[test]
fn a_documents_metadata_is_kept_once_and_repeated_within_bounds() {
    let document = |flags: usize, bytes: usize| {
        let flag =
            json!({ "state": "ENABLED", "variants": { "a": 1 }, "defaultVariant": "a", "metadata": { "own": 1 } });
        let flags: Map<String, Value> = (0..flags).map(|n| (format!("f{n}"), flag.clone())).collect();
        json!({ "flags": flags, "metadata": { "all": "x".repeat(bytes) } }).to_string()
    };
    assert!(Document::parse(document(1_000, 4_000).as_bytes()).is_ok());
    let refused = Document::parse(document(1_000, 5_000).as_bytes()).err().expect("five million bytes of answers");
    assert!(refused.message().contains("metadata"), "{}", refused.message());
    let answered =
        snapshot(&document(2, 3)).evaluate("f1", &Context::new(json!({})).expect("a context"), 0).expect("a");
    assert_eq!(*answered.metadata, json!({ "all": "xxx", "own": 1 }).as_object().cloned().expect("an object"));
}

#[test]
fn a_rule_sees_the_transactions_time_and_not_the_callers_word_for_it() {
    let snapshot = snapshot(DOCUMENT);
    let lying = json!({ "$flagd": { "timestamp": 9_999_999_999_i64 }, "$flagd.timestamp": 9_999_999_999_i64 });
    let context = Context::new(lying).expect("a context");
    let variant = |now_ms| snapshot.evaluate("clock", &context, now_ms).expect("evaluated").variant;
    assert_eq!(variant(1_699_999_999_999).as_deref(), Some("early"));
    assert_eq!(variant(1_700_000_000_000).as_deref(), Some("late"));
}

#[tokio::test]
async fn ofrep_bodies_are_the_specifications() {
    let snapshot = snapshot(DOCUMENT);
    let single = |key: &str, body: &str| ofrep::single(&snapshot, key, body.as_bytes(), 0);
    let answer = single("volume-discount", r#"{"context":{"targetingKey":"u1","tier":"gold"}}"#);
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.body,
        Some(json!({ "key": "volume-discount", "value": true, "variant": "on", "reason": "TARGETING_MATCH",
            "metadata": { "version": "7", "team": "pricing" } }))
    );
    let reason =
        |key: &str| single(key, r#"{"context":{"targetingKey":"u1"}}"#).body.expect("a body")["reason"].clone();
    assert_eq!(reason("volume-discount"), "UNKNOWN");
    assert_eq!(
        single("off", r#"{"context":{}}"#).body,
        Some(json!({ "key": "off", "reason": "DISABLED", "metadata": { "version": "7", "team": "all" } }))
    );
    for (key, body, status, code) in [
        ("none", r#"{"context":{"targetingKey":"u1"}}"#, 404, "FLAG_NOT_FOUND"),
        ("split", r#"{"context":{}}"#, 400, "TARGETING_KEY_MISSING"),
        ("split", r#"{"context":{"targetingKey":""}}"#, 400, "TARGETING_KEY_MISSING"),
        ("split", r#"{"context":{"targetingKey":null}}"#, 400, "TARGETING_KEY_MISSING"),
        ("split", r#"{"context":{"targetingKey":7}}"#, 400, "INVALID_CONTEXT"),
        ("split", r#"{"context":[]}"#, 400, "INVALID_CONTEXT"),
        ("split", r#"{}"#, 400, "INVALID_CONTEXT"),
        ("split", r#"[]"#, 400, "PARSE_ERROR"),
        ("split", r#"{"context":"#, 400, "PARSE_ERROR"),
        ("split", "", 400, "PARSE_ERROR"),
        ("wrong", r#"{"context":{}}"#, 400, "GENERAL"),
        (
            "split",
            &format!(r#"{{"context":{{"a":"{}"}}}}"#, "a".repeat(targeting::CONTEXT_BYTES)),
            400,
            "INVALID_CONTEXT",
        ),
    ] {
        let answer = single(key, body);
        let found = answer.body.expect("a body");
        assert_eq!(
            (answer.status, &found["errorCode"], &found["key"]),
            (status, &json!(code), &json!(key)),
            "{body:.80}"
        );
        assert!(found["errorDetails"].is_string());
    }
}

#[tokio::test]
async fn ofrep_bulk_answers_every_flag_and_knows_what_the_client_has() {
    let snapshot = snapshot(DOCUMENT);
    let body = br#"{"context":{"tier":"gold"}}"#;
    let answer = ofrep::bulk(&snapshot, body, None, 0).await;
    let flags = answer.body.expect("a body")["flags"].as_array().cloned().expect("a list");
    let summary: Vec<String> = flags
        .iter()
        .map(|flag| {
            format!("{} {}", flag["key"], if flag["reason"].is_null() { &flag["errorCode"] } else { &flag["reason"] })
        })
        .collect();
    assert_eq!(
        summary,
        [
            r#""clock" "UNKNOWN""#,
            r#""off" "DISABLED""#,
            r#""split" "TARGETING_KEY_MISSING""#,
            r#""volume-discount" "TARGETING_MATCH""#,
            r#""wrong" "GENERAL""#,
        ]
    );
    let etag = answer.etag.expect("a tag");
    for known in [etag.clone(), etag.trim_matches('"').into(), format!("\"x\", W/{etag}"), "*".into()] {
        let again = ofrep::bulk(&snapshot, body, Some(&known), 0).await;
        assert_eq!((again.status, again.body), (304, None), "{known}");
    }
    assert_eq!(ofrep::bulk(&snapshot, br#"{"context":{"tier":"tin"}}"#, Some(&etag), 0).await.status, 200);
    assert_eq!(
        ofrep::bulk(&snapshot, body, Some(&etag), 1_700_000_000_000).await.status,
        200,
        "a rule looks at the time"
    );
    let bad = ofrep::bulk(&snapshot, b"{}", None, 0).await;
    assert_eq!((bad.status, &bad.body.expect("a body")["errorCode"]), (400, &json!("INVALID_CONTEXT")));
    let empty = ofrep::bulk(&Snapshot(Arc::new(Merged::new(Document::default(), Arc::default()))), body, None, 0).await;
    assert_eq!(empty.body, Some(json!({ "flags": [] })));
}

#[test]
fn a_document_has_bounds() {
    let flag = |name: &str| format!(r#""{name}":{{"state":"ENABLED","variants":{{"a":1}},"defaultVariant":"a"}}"#);
    let document = |flags: &str| format!(r#"{{"flags":{{{flags}}}}}"#);
    assert!(Document::parse(document(&flag("f")).as_bytes()).is_ok());
    for bad in [
        document(&flag("")),
        document(&flag(&"f".repeat(256))),
        format!("{}{}", document(&flag("f")), " ".repeat(DOCUMENT_BYTES)),
        r#"{"flags":[{"key":"f","state":"ENABLED","variants":{"a":1}},{"key":"f","state":"ENABLED","variants":{"a":2}}]}"#.into(),
        r#"{"flags":[{"state":"ENABLED","variants":{"a":1}}]}"#.into(),
        r#"{"flags":{},"$evaluators":[]}"#.into(),
        "[]".into(),
        "{}".into(),
    ] {
        assert_eq!(Document::parse(bad.as_bytes()).err().map(|error| error.code()), Some("flags_invalid"), "{bad:.80}");
    }
    let rule = r#""targeting":{"==":[{"var":"a"},{"var":"b"}]}"#;
    let many: Vec<String> =
        (0..20_000).map(|n| flag(&n.to_string()).replace(r#""defaultVariant":"a""#, rule)).collect();
    let many = document(&many.join(","));
    assert!(many.len() > DOCUMENT_BYTES, "the size bounds the number");
    let warned = Document::parse(document(&flag("f").replace(r#":"a""#, r#":"b""#)).as_bytes()).expect("accepted");
    assert!(warned.warnings[0].contains("none of the variants"), "{:?}", warned.warnings);
}
