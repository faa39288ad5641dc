use serde_json::json;

use super::*;
use crate::effects::Compute;
use crate::kernel::clock::rfc3339;
use crate::services::testing::Bench;

const TOKENS: &[u8] =
    br#"{"event_type":"completion","aggregation":"sum","value":"$.n","group_by":{"model":"$.model"}}"#;

fn cloud(id: &str, time_ms: i64, data: Value) -> Value {
    json!({ "specversion": "1.0", "source": "/app", "id": id, "type": "completion", "time": rfc3339(time_ms), "data": data })
}

/// A bench whose clock stands at the beginning of a day, in the middle of a month.
struct Day {
    bench: Bench,
    start_ms: i64,
}

impl Day {
    async fn new() -> Self {
        let bench = Bench::new().await;
        let noon = crate::kernel::clock::parse_rfc3339("2027-05-15T00:00:00Z").expect("a time");
        bench.shard.clock().advance(std::time::Duration::from_millis((noon - bench.shard.clock().now_ms()) as u64));
        Self { bench, start_ms: noon }
    }

    async fn send(&self, body: Value) -> Result<Ingested> {
        let body = body.to_string();
        self.bench
            .run(async |effects| {
                let events = parse(body.as_bytes(), effects.now_ms())?;
                ingest(effects, &events).await
            })
            .await
    }

    async fn define(&self, name: &str, body: &[u8]) {
        self.bench.run(async |effects| put(effects, name, body).await).await.expect("defined");
    }

    async fn record(&self, meter: &str, value: &str, dimensions: &[(&str, &str)], id: &str) -> Result<()> {
        let dimensions: Vec<_> =
            dimensions.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        self.bench.run(async |effects| record(effects, meter, value, &dimensions, "/plugins/p", id).await).await
    }

    async fn ask(&self, meter: &str, window: Option<&str>, group_by: Option<&str>) -> Result<Vec<UsageRow>> {
        let query = Query::parse(meter, None, None, window, group_by, self.bench.shard.clock().now_ms())?;
        super::query(&self.bench.shard, &self.bench.scope, &query).await
    }

    async fn total(&self, meter: &str) -> String {
        self.ask(meter, None, None).await.expect("answered").remove(0).value
    }
}

#[tokio::test]
async fn an_event_is_counted_once_however_often_it_comes() {
    let day = Day::new().await;
    day.define("tokens", TOKENS).await;
    assert_eq!(day.total("tokens").await, "0");
    let event = cloud("1", day.start_ms, json!({ "n": 0.1, "model": "a" }));
    assert_eq!(day.send(event.clone()).await.expect("taken"), Ingested { accepted: 1, duplicates: 0 });
    assert_eq!(day.total("tokens").await, "0.1", "an acknowledged event is in the next answer");
    assert_eq!(day.send(event.clone()).await.expect("taken"), Ingested { accepted: 0, duplicates: 1 });
    let batch =
        json!([event, cloud("2", day.start_ms, json!({ "n": 0.2 })), cloud("2", day.start_ms, json!({ "n": 7 }))]);
    assert_eq!(day.send(batch).await.expect("taken"), Ingested { accepted: 1, duplicates: 2 });
    assert_eq!(day.total("tokens").await, "0.3");
    // The same id of another source is another event; of another tenant, too.
    let mut other = cloud("1", day.start_ms, json!({ "n": 1 }));
    other["source"] = json!("/other");
    assert_eq!(day.send(other.clone()).await.expect("taken").accepted, 1);
    assert_eq!(day.total("tokens").await, "1.3");
    let neighbour = day.bench.neighbour().await;
    let now_ms = day.bench.shard.clock().now_ms();
    let events = parse(other.to_string().as_bytes(), now_ms).expect("an event");
    let taken =
        day.bench.shard.transact(&neighbour, async |effects| ingest(effects, &events).await).await.expect("taken");
    assert_eq!(taken.accepted, 1);
    let question = Query::parse("tokens", None, None, None, None, now_ms).expect("a question");
    let error = query(&day.bench.shard, &neighbour, &question).await.expect_err("another tenant's meter");
    assert_eq!((error.kind(), error.code()), (Kind::NotFound, "meter_missing"));
}

#[tokio::test]
async fn a_meter_counts_events_that_are_older_than_itself_by_their_own_time() {
    let day = Day::new().await;
    let hour = 3_600_000;
    for (n, (hours, value)) in
        [(-1, json!("12.5")), (-20, json!(1)), (-30 * 24, json!(2)), (0, json!("x")), (0, json!(null))]
            .iter()
            .enumerate()
    {
        let event = cloud(&n.to_string(), day.start_ms + hours * hour, json!({ "n": value }));
        assert_eq!(day.send(event).await.expect("stored without a meter").accepted, 1);
    }
    day.define("tokens", TOKENS).await;
    day.define("calls", br#"{"event_type":"completion","aggregation":"count"}"#).await;
    assert_eq!(day.total("tokens").await, "15.5");
    assert_eq!(day.total("calls").await, "5", "an event without a number is one event all the same");
    let windows = |rows: Vec<UsageRow>| {
        rows.into_iter().map(|row| format!("{} {}", &row.from[..16], row.value)).collect::<Vec<_>>()
    };
    let rows = day.ask("tokens", Some("month"), None).await.expect("answered");
    assert_eq!(windows(rows), ["2027-04-14T00:05 2", "2027-05-01T00:00 13.5"]);
    let rows = day.ask("tokens", Some("day"), None).await.expect("answered");
    assert_eq!(windows(rows), ["2027-04-15T00:00 2", "2027-05-14T00:00 13.5"]);
    let rows = day.ask("tokens", Some("hour"), None).await.expect("answered");
    assert_eq!(windows(rows), ["2027-04-15T00:00 2", "2027-05-14T04:00 1", "2027-05-14T23:00 12.5"]);
    assert!(day.bench.run(async |effects| delete(effects, "tokens").await).await.expect("deleted"));
    assert_eq!(day.ask("tokens", None, None).await.expect_err("gone").code(), "meter_missing");
}

#[tokio::test]
async fn the_first_millisecond_is_included_and_the_last_is_not() {
    let day = Day::new().await;
    day.define("tokens", TOKENS).await;
    for n in [-1, 0, 1, 59_999, 60_000] {
        day.send(cloud(&n.to_string(), day.start_ms + n, json!({ "n": 1 }))).await.expect("taken");
    }
    let ask = async |from: i64, to: i64, window: Option<&str>| {
        let (from, to) = (rfc3339(day.start_ms + from), rfc3339(day.start_ms + to));
        let question = Query::parse("tokens", Some(&from), Some(&to), window, None, 0).expect("a question");
        let rows = query(&day.bench.shard, &day.bench.scope, &question).await.expect("answered");
        rows.into_iter().map(|row| (row.value, row.from, row.to)).collect::<Vec<_>>()
    };
    assert_eq!(ask(0, 60_000, None).await[0].0, "3");
    assert_eq!(ask(-1, 60_001, None).await[0].0, "5");
    assert_eq!(ask(1, 59_999, None).await[0].0, "1");
    assert_eq!(ask(2, 3, None).await[0].0, "0");
    let minutes = ask(-1, 60_001, Some("minute")).await;
    let at = |ms: i64| rfc3339(day.start_ms + ms);
    assert_eq!(
        minutes,
        [("1".into(), at(-1), at(0)), ("3".into(), at(0), at(60_000)), ("1".into(), at(60_000), at(60_001))]
    );
}

#[tokio::test]
async fn usage_is_grouped_by_what_the_meter_names() {
    let day = Day::new().await;
    day.define("tokens", TOKENS).await;
    for (n, model) in [json!("a"), json!("b"), json!("a"), json!(7), json!(null), json!({"x": 1})].iter().enumerate() {
        day.send(cloud(&n.to_string(), day.start_ms, json!({ "n": 1, "model": model }))).await.expect("taken");
    }
    let rows = day.ask("tokens", None, Some("model")).await.expect("answered");
    let groups: Vec<_> = rows.iter().map(|row| (row.group["model"].as_str(), row.value.as_str())).collect();
    assert_eq!(groups, [("", "2"), ("7", "1"), ("a", "2"), ("b", "1")]);
    let error = day.ask("tokens", None, Some("user")).await.expect_err("no such group");
    assert_eq!(error.code(), "usage_query");
}

#[tokio::test]
async fn more_events_than_a_transaction_reads_are_summed_exactly() {
    let day = Day::new().await;
    day.define("tokens", TOKENS).await;
    let events: Vec<Value> =
        (0..10_400).map(|n| cloud(&n.to_string(), day.start_ms + n % 7, json!({ "n": "0.01" }))).collect();
    for batch in events.chunks(BATCH) {
        assert_eq!(day.send(json!(batch)).await.expect("taken").accepted, BATCH);
    }
    assert_eq!(day.total("tokens").await, "104");
    let too_many: Vec<Value> = (0..=BATCH).map(|n| cloud(&format!("x{n}"), day.start_ms, json!({}))).collect();
    assert_eq!(day.send(json!(too_many)).await.expect_err("too many").code(), "batch_too_large");
}

#[tokio::test]
async fn what_a_plugin_records_is_a_meter() {
    let day = Day::new().await;
    assert_eq!(day.ask("payments", None, None).await.expect_err("nothing yet").code(), "meter_missing");
    day.record("payments", "1", &[("currency", "eur")], "i-1").await.expect("recorded");
    day.record("payments", "0.25", &[("currency", "usd")], "i-2").await.expect("recorded");
    day.record("payments", "5", &[], "i-2").await.expect("the same call of a repeated invocation");
    assert_eq!(day.total("payments").await, "1.25");
    let rows = day.ask("payments", None, Some("currency")).await.expect("answered");
    let groups: Vec<_> = rows.iter().map(|row| (row.group["currency"].as_str(), row.value.as_str())).collect();
    assert_eq!(groups, [("eur", "1"), ("usd", "0.25")]);
    // A definition says otherwise, and loses nothing that was recorded.
    day.define("payments", br#"{"event_type":"completion","aggregation":"count"}"#).await;
    day.send(cloud("1", day.start_ms, json!({}))).await.expect("taken");
    assert_eq!(day.total("payments").await, "3");
    day.define("payments", br#"{"event_type":"payments","aggregation":"sum","value":"$.n"}"#).await;
    assert_eq!(day.total("payments").await, "1.25", "recorded usage counts with its own value");
    day.define("volume", br#"{"event_type":"payments","aggregation":"sum","value":"$.value"}"#).await;
    assert_eq!(day.total("volume").await, "1.25", "and is an event like another for other meters");
    let listed = day.bench.run(async |effects| list(effects).await).await.expect("listed");
    let names: Vec<_> = listed.iter().map(|one| format!("{} {}", one.kind, one.name)).collect();
    assert_eq!(names[BUILT_IN.len() - 1..], ["built_in storage", "defined payments", "defined volume"]);
}

#[tokio::test]
async fn a_plugin_cannot_record_what_is_no_usage() {
    let day = Day::new().await;
    for value in [
        "",
        "-1",
        "+1",
        "NaN",
        "inf",
        "1e3",
        "1.",
        ".5",
        "1,5",
        " 1",
        "0x1",
        &"9".repeat(29),
        &format!("0.{}1", "0".repeat(30)),
    ] {
        assert_eq!(day.record("m", value, &[], "1").await.expect_err(value).code(), "meter_value", "{value}");
    }
    for (n, value) in ["0", "1", "0.25", "007", &"9".repeat(28), &format!("0.{}1", "0".repeat(27))].iter().enumerate() {
        day.record("m", value, &[], &n.to_string()).await.expect(value);
    }
    assert_eq!(day.total("m").await, format!("1{}7.{}1", "0".repeat(27), "25".to_owned() + &"0".repeat(25)));
    for name in ["", "A", "a b", "-a", &"a".repeat(65)] {
        assert_eq!(day.record(name, "1", &[], "1").await.expect_err(name).code(), "meter_name", "{name}");
    }
    assert_eq!(day.record("fuel", "1", &[], "1").await.expect_err("the host's").code(), "meter_reserved");
    let long = "a".repeat(DIMENSION_BYTES + 1);
    let many: Vec<String> = (0..=DIMENSIONS).map(|n| format!("d{n}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "")).collect();
    for dimensions in
        [vec![("value", "1")], vec![("A", "1")], vec![("a", "1"), ("a", "2")], vec![("a", long.as_str())], many]
    {
        assert_eq!(day.record("m", "1", &dimensions, "1").await.expect_err("a dimension").code(), "meter_dimension");
    }
}

#[tokio::test]
async fn an_event_is_what_cloudevents_says_and_neither_too_old_nor_ahead() {
    let day = Day::new().await;
    let now_ms = day.start_ms;
    let outcome = |event: &Value| parse(event.to_string().as_bytes(), now_ms).map_err(|error| error.code());
    let good = cloud("1", now_ms, json!({ "n": 1 }));
    let with = |name: &str, value: Value| {
        let mut event = good.clone();
        event[name] = value;
        event
    };
    for (time, expected) in [
        (now_ms - BACK_MS - 1, Some("event_too_old")),
        (now_ms - BACK_MS, None),
        (now_ms + AHEAD_MS, None),
        (now_ms + AHEAD_MS + 1, Some("event_in_future")),
    ] {
        assert_eq!(outcome(&with("time", json!(rfc3339(time)))).err(), expected, "{}", time - now_ms);
    }
    let minimal = json!({ "specversion": "1.0", "source": "s", "id": "i", "type": "t" });
    let event = outcome(&minimal).expect("the required attributes suffice").remove(0);
    assert_eq!((event.time_ms, event.data), (now_ms, None));
    for good in [
        with("subject", json!("customer-1")),
        with("subject", json!(null)),
        with("datacontenttype", json!("application/json; charset=utf-8")),
        with("datacontenttype", json!("application/vnd.acme+json")),
        with("dataschema", json!("https://example.com/schema")),
        with("traceparent", json!("00-0af7")),
        with("sampledrate", json!(10)),
        with("data", json!([1, 2])),
    ] {
        assert!(outcome(&good).is_ok(), "{good}");
    }
    for bad in [
        json!("x"),
        json!(7),
        json!([good, {}]),
        with("specversion", json!("0.3")),
        with("specversion", json!(null)),
        with("id", json!("")),
        with("id", json!(7)),
        with("id", json!("i".repeat(256))),
        with("source", json!(null)),
        with("source", json!("a b")),
        with("type", json!("")),
        with("time", json!("yesterday")),
        with("time", json!("2027-05-15T00:00:00")),
        with("datacontenttype", json!("text/xml")),
        with("data_base64", json!("AA==")),
        with("myExtension", json!("x")),
        with("my_extension", json!("x")),
        with("extension", json!({"a": 1})),
    ] {
        assert_eq!(outcome(&bad).err(), Some("event_invalid"), "{bad}");
    }
    assert_eq!(outcome(&with("data", json!("a".repeat(EVENT_BYTES)))).err(), Some("event_too_large"));
    assert!(parse(b"[]", now_ms).expect("an empty batch").is_empty());
    let error = parse(json!([good, {}]).to_string().as_bytes(), now_ms).expect_err("the second");
    assert!(error.message().starts_with("event 1 of the batch"), "{error}");
}

#[tokio::test]
async fn the_hosts_own_meters_have_the_same_form() {
    let day = Day::new().await;
    let hour = |n: i64| day.start_ms + n * Compute::HOUR_MS;
    for (n, (plugin, hour_ms, invocations)) in
        [("a", hour(0), 3), ("b", hour(0), 2), ("a", hour(1), 5), ("a", hour(24), 7)].into_iter().enumerate()
    {
        let mut effects = day.bench.shard.begin(&day.bench.scope);
        effects.put(crate::effects::Space::under("kv", "c").key(format!("k{n}")), vec![0; 8], None).expect("staged");
        let compute = Compute {
            plugin: plugin.into(),
            hour_ms,
            invocations,
            failures: 1,
            fuel: 1_000,
            bytes_in: 10,
            bytes_out: 20,
        };
        day.bench.shard.commit(effects.into_set(None, Some(compute))).await.expect("committed");
    }
    let ask = async |meter: &str, window: Option<&str>, group_by: Option<&str>| {
        let (from, to) = (rfc3339(hour(0)), rfc3339(hour(48)));
        let question = Query::parse(meter, Some(&from), Some(&to), window, group_by, 0)?;
        let rows = query(&day.bench.shard, &day.bench.scope, &question).await?;
        Ok::<_, Error>(
            rows.into_iter()
                .map(|row| format!("{} {:?} {}", &row.from[..13], row.group.values().collect::<Vec<_>>(), row.value))
                .collect::<Vec<_>>(),
        )
    };
    assert_eq!(ask("invocations", None, None).await.expect("answered"), ["2027-05-15T00 [] 17"]);
    assert_eq!(ask("failures", None, None).await.expect("answered"), ["2027-05-15T00 [] 4"]);
    assert_eq!(
        ask("fuel", Some("day"), None).await.expect("answered"),
        ["2027-05-15T00 [] 3000", "2027-05-16T00 [] 1000"]
    );
    assert_eq!(
        ask("bytes_out", None, Some("plugin")).await.expect("answered"),
        ["2027-05-15T00 [\"a\"] 60", "2027-05-15T00 [\"b\"] 20"]
    );
    assert_eq!(
        ask("invocations", Some("hour"), Some("plugin")).await.expect("answered"),
        ["2027-05-15T00 [\"a\"] 3", "2027-05-15T00 [\"b\"] 2", "2027-05-15T01 [\"a\"] 5", "2027-05-16T00 [\"a\"] 7"]
    );
    assert_eq!(ask("storage", None, None).await.expect("answered"), ["2027-05-15T00 [] 40"]);
    for (meter, window, group_by) in
        [("fuel", Some("minute"), None), ("fuel", None, Some("model")), ("storage", Some("day"), None)]
    {
        assert_eq!(ask(meter, window, group_by).await.expect_err("not kept").code(), "usage_query", "{meter}");
    }
    let define = day.bench.run(async |effects| put(effects, "fuel", TOKENS).await).await;
    assert_eq!(define.expect_err("the host's").code(), "meter_reserved");
}

#[test]
fn a_question_is_checked() {
    let parse = |from, to, window, group_by| Query::parse("m", from, to, window, group_by, 1_000_000);
    let (a, b) = (Some("2027-01-01T00:00:00Z"), Some("2027-02-01T00:00:00+01:00"));
    let question = parse(a, b, Some("day"), Some("y,x,y")).expect("a question");
    assert_eq!(
        (question.to_ms - question.from_ms, question.group_by),
        (31 * 86_400_000 - 3_600_000, vec!["x".into(), "y".into()])
    );
    for (from, to, window, group_by) in [
        (b, a, None, None),
        (a, a, None, None),
        (Some("2027-01-01"), b, None, None),
        (a, b, Some("week"), None),
        (a, b, None, Some("")),
        (a, b, None, Some("A")),
    ] {
        assert_eq!(parse(from, to, window, group_by).expect_err("bad").code(), "usage_query");
    }
    assert!(Query::parse("A", None, None, None, None, 0).is_err());
}
