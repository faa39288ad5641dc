use serde_json::json;

use super::*;
use crate::effects::{Range, Space};
use crate::services::testing::Bench;

const RECORDS: Space = Space::named("audit");

fn record(action: &str) -> Record {
    let actor = Actor { key: Some("k".into()), of: Party::Tenant };
    let what = Some(json!({ "version": "1.0.0", "percent": 10, "names": ["ä\u{1}", "\"\\/"] }));
    Record { what, ..Record::new(action, actor, Right::TenantAdmin, "/v1/x") }
}

async fn append(bench: &Bench, log: &Log, records: u64) {
    for n in 0..records {
        let appended = async |effects: &mut Effects| log.append(effects, record(&format!("a.{n}"))).await;
        bench.run(appended).await.expect("appended");
    }
}

fn all() -> Range {
    RECORDS.prefix("")
}

#[tokio::test]
async fn the_oldest_records_are_removed_and_the_rest_still_is_a_chain() {
    let bench = Bench::new().await;
    let log = Log::keeping(bench.shard.clone(), 150);
    append(&bench, &log, 249).await;
    let verified = log.verify(&bench.scope).await.expect("verified");
    assert!((verified.ok, verified.first, verified.last) == (true, 1, 249), "{verified:?}");
    append(&bench, &log, 2).await;
    let verified = log.verify(&bench.scope).await.expect("verified");
    assert!((verified.ok, verified.first, verified.last) == (true, 101, 251), "{verified:?}");
    append(&bench, &log, 450).await;
    let verified = log.verify(&bench.scope).await.expect("verified");
    assert!((verified.ok, verified.first, verified.last) == (true, 501, 701), "{verified:?}");
    let rows = bench.run(async |effects: &mut Effects| effects.list(&all(), 1_000).await).await.expect("read").0;
    assert_eq!(rows.len(), 201);

    // Somebody removes more, and says in the head that this was right.
    let cut = async |effects: &mut Effects| {
        let mut head = Head::read(effects).await?;
        let last = chain::trim(effects, &mut head).await?;
        head.store(effects)?;
        Ok(last)
    };
    assert_eq!(bench.run(cut).await.expect("cut"), Some(600));
    let verified = log.verify(&bench.scope).await.expect("verified");
    assert_eq!((verified.ok, verified.bad.map(|bad| bad.number)), (false, Some(600)));
}

#[tokio::test]
async fn a_part_that_is_broken_is_not_removed_as_too_old() {
    let bench = Bench::new().await;
    let log = Log::keeping(bench.shard.clone(), 150);
    append(&bench, &log, 200).await;
    let remove = async |effects: &mut Effects| {
        let (rows, _) = effects.list(&all(), 50).await?;
        effects.delete(RECORDS.key(rows[49].0.clone()))
    };
    bench.run(remove).await.expect("removed");
    append(&bench, &log, 100).await;
    let verified = log.verify(&bench.scope).await.expect("verified");
    let bad = verified.bad.expect("a record is missing");
    assert_eq!((verified.first, bad.number, bad.why.as_str()), (1, 50, "the record is missing"));
}

#[tokio::test]
async fn a_list_goes_back_in_pages_and_filters() {
    let bench = Bench::new().await;
    let log = Log::new(bench.shard.clone());
    append(&bench, &log, 25).await;
    let page = async |filter: &Filter, before, limit| {
        let (records, next) =
            log.list(&mut bench.shard.begin(&bench.scope), filter, before, limit).await.expect("read");
        (records.iter().map(|record| record.number).collect::<Vec<_>>(), next)
    };
    let everything = Filter::default();
    assert_eq!(page(&everything, None, 10).await, ((16..=25).rev().collect(), Some(16)));
    assert_eq!(page(&everything, Some(16), 10).await, ((6..=15).rev().collect(), Some(6)));
    assert_eq!(page(&everything, Some(6), 10).await, ((1..=5).rev().collect(), None));
    let one = Filter { action: Some("a.7".into()), since_ms: None };
    assert_eq!(page(&one, None, 3).await, (vec![8], None));
    let none = Filter { action: None, since_ms: Some(i64::MAX / 2) };
    assert_eq!(page(&none, None, 10).await, (vec![], None));
}

#[tokio::test]
async fn the_chain_of_another_tenant_does_not_pass_for_ones_own() {
    let bench = Bench::new().await;
    let (log, neighbour) = (Log::new(bench.shard.clone()), bench.neighbour().await);
    append(&bench, &log, 3).await;
    let rows = bench.run(async |effects: &mut Effects| effects.list(&all(), 10).await).await.expect("read").0;
    let head = bench.run(async |effects: &mut Effects| effects.get(&Head::key()).await).await.expect("read");
    let copy = async |effects: &mut Effects| {
        for (key, row) in &rows {
            effects.put(RECORDS.key(key.clone()), row.value.to_bytes(), None)?;
        }
        effects.put(Head::key(), head.clone().expect("a head").value.to_bytes(), None)
    };
    bench.shard.transact(&neighbour, copy).await.expect("copied");
    let verified = log.verify(&neighbour).await.expect("verified");
    assert_eq!(verified.bad.map(|bad| (bad.number, bad.why)), Some((1, "the record belongs elsewhere".into())));
}

#[test]
fn the_text_of_a_record_is_canonical() {
    let full = Record {
        address: Some("127.0.0.1".into()),
        code: Some("c".into()),
        digest: Some("d".into()),
        hash: Some("h".into()),
        request: Some("r".into()),
        suppressed: Some(1),
        tenant: Some("t".into()),
        trimmed: Some(1),
        ..record("a.b")
    };
    let text = serde_json::to_string(&full).expect("JSON");
    // Objects of this type are sorted by their names.
    let sorted: std::collections::BTreeMap<String, serde_json::Value> = serde_json::from_str(&text).expect("JSON");
    assert_eq!(text, serde_json::to_string(&sorted).expect("JSON"));
    assert!(text.contains(r#""what":{"names":["ä\u0001","\"\\/"],"percent":10,"version":"1.0.0"}"#), "{text}");
}

#[tokio::test]
async fn of_many_denials_the_first_are_written_and_the_others_counted() {
    let bench = Bench::new().await;
    let log = Log::new(bench.shard.clone());
    for n in 0..35 {
        log.deny(&bench.scope, record(&format!("a.{n}")).denied("forbidden")).await;
    }
    let written = async || {
        let list = log.list(&mut bench.shard.begin(&bench.scope), &Filter::default(), None, 100).await.expect("read").0;
        list.into_iter().rev().map(|record| (record.action, record.suppressed)).collect::<Vec<_>>()
    };
    let singly: Vec<_> = (0..10).map(|n| (format!("a.{n}"), None)).collect();
    log.settle(false).await;
    assert_eq!(written().await, singly, "the minute is not over");
    log.settle(true).await;
    assert_eq!(written().await[10..], [("a.34".to_owned(), Some(24))]);
    log.settle(true).await;
    assert_eq!(written().await.len(), 11, "what was counted is written once");
}
