//! Writing, reading and listing notes, in the in-memory host.

use std::collections::BTreeSet;

use chalet_sdk::http::{Request, Response};
use chalet_sdk::testing::Host;
use notes::Notes;
use serde_json::{Value, json};

fn host() -> Host {
    Host::from_manifest(include_str!("../plugin.toml"))
}

fn get(host: &Host, path: &str) -> Response {
    host.http::<Notes>(Request::get(path)).expect("reading does not fail")
}

fn create(host: &Host, text: &str) -> String {
    let request = Request::post("/notes", &json!({ "text": text })).expect("the note is JSON");
    let answer = host.http::<Notes>(request).expect("the note is accepted");
    assert_eq!(answer.status(), 201);
    answer.read_json::<Value>().expect("JSON")["id"].as_str().expect("an id").to_owned()
}

#[test]
fn a_note_reads_back_as_it_was_written() {
    let host = host();
    let id = create(&host, "buy a chair — ☕");
    let answer = get(&host, &format!("/notes/{id}"));
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.read_json::<Value>().unwrap(), json!({ "id": id, "text": "buy a chair — ☕" }));
    assert_eq!(host.keys("notes"), [id]);
}

#[test]
fn an_unknown_note_is_not_found() {
    assert_eq!(get(&host(), "/notes/none").status(), 404);
}

#[test]
fn ids_made_in_the_same_millisecond_differ() {
    let host = host();
    let ids: BTreeSet<_> = (0..1_000).map(|_| create(&host, "x")).collect();
    assert_eq!(ids.len(), 1_000);
}

#[test]
fn the_list_is_read_page_by_page_and_oldest_first() {
    let host = host();
    let ids: Vec<_> = (0..5)
        .map(|n| {
            host.advance(std::time::Duration::from_millis(1));
            create(&host, &format!("note {n}"))
        })
        .collect();
    let (mut listed, mut path) = (Vec::new(), "/notes?limit=2".to_owned());
    loop {
        let page: Value = get(&host, &path).read_json().unwrap();
        listed.extend(page["data"].as_array().unwrap().iter().map(|note| note["id"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["next"].as_str() else { break };
        path = format!("/notes?limit=2&cursor={cursor}");
    }
    assert_eq!(listed, ids);
}

#[test]
fn what_is_no_note_is_rejected_and_leaves_nothing() {
    let host = host();
    let request = Request::post("/notes", &json!({ "body": 1 })).unwrap();
    assert!(!host.http::<Notes>(request).unwrap_err().retryable());
    assert!(!host.http::<Notes>(Request::get("/notes?limit=0")).unwrap_err().retryable());
    assert!(host.keys("notes").is_empty());
}
