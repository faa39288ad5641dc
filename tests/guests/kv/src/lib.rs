//! Key-value operations as a test gives them, and a suite of its own.
//!
//! `POST /run {"ops":[…]}` runs the operations in one invocation and answers `{"results":[…]}`, one for each. An
//! operation that the host refuses has the result `{"error":{…}}`, and the next one runs; so that a test sees every case.
//! The operations are those of [`Op`], with their names in the field `op`.

mod suite;

use chalet_sdk::http::{Request, Response};
use chalet_sdk::kv::{self, PutOptions};
use chalet_sdk::{Plugin, Result, meters, reject, retry};
use guest_report::outcome;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

pub use suite::{committed, suite};

#[derive(Deserialize)]
struct Run {
    ops: Vec<Op>,
}

fn collection() -> String {
    "c".to_owned()
}

/// An operation; `collection` is `c` if it is not given.
#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
enum Op {
    /// `{"value","version"}`, both null if there is no entry.
    Get {
        #[serde(default = "collection")]
        collection: String,
        key: String,
    },
    /// Write a JSON value.
    Put {
        #[serde(default = "collection")]
        collection: String,
        key: String,
        value: Value,
        ttl_ms: Option<u64>,
        if_version: Option<u64>,
    },
    /// `{"deleted"}`.
    Delete {
        #[serde(default = "collection")]
        collection: String,
        key: String,
        if_version: Option<u64>,
    },
    /// Read a number, add, and write it back; an absent entry is 0. `{"value","version"}`: the new value and the version
    /// that was read.
    Add {
        #[serde(default = "collection")]
        collection: String,
        key: String,
        delta: i64,
    },
    /// Add to a counter without reading it.
    Increment {
        #[serde(default = "collection")]
        collection: String,
        key: String,
        delta: i64,
    },
    /// `{"value"}` of a counter, or null.
    Counter {
        #[serde(default = "collection")]
        collection: String,
        key: String,
    },
    /// `{"entries":[{"key","value","version"}],"cursor"}`.
    List {
        #[serde(default = "collection")]
        collection: String,
        #[serde(default)]
        prefix: String,
        cursor: Option<String>,
        limit: Option<u32>,
    },
    /// `{"entries":[{"key","value","version"}]}` of all under a prefix, read in pages of `limit`.
    Pages {
        #[serde(default = "collection")]
        collection: String,
        #[serde(default)]
        prefix: String,
        limit: u32,
    },
    /// `{"sum","count"}` of the numbers under a prefix.
    Sum {
        #[serde(default = "collection")]
        collection: String,
        #[serde(default)]
        prefix: String,
    },
    /// Trap unless the numbers of these keys, each read by itself, have this sum: a guest must never see another.
    AssertSum {
        #[serde(default = "collection")]
        collection: String,
        keys: Vec<String>,
        sum: i64,
    },
    /// Take from one number and give to another.
    Transfer {
        #[serde(default = "collection")]
        collection: String,
        from: String,
        to: String,
        amount: i64,
    },
    /// Record usage.
    Record { meter: String, value: String },
    /// Compute for a while, so that invocations overlap.
    Spin { rounds: u64 },
    /// Fail with reject.
    Fail { reason: Option<String> },
    /// Fail with retry.
    Retry { after_ms: u64 },
    /// Trap.
    Trap,
    /// Answer with this status.
    Status { status: u16 },
}

/// The guest.
pub struct Kv;

impl Plugin for Kv {
    fn http(request: Request) -> Result<Response> {
        match request.route() {
            "POST /suite" => suite().map(|()| Response::text("passed")),
            "POST /suite/committed" => committed().map(|()| Response::text("passed")),
            _ => run(request.json()?),
        }
    }
}

fn run(Run { ops }: Run) -> Result<Response> {
    let mut status = 200;
    let mut results = Vec::with_capacity(ops.len());
    for op in ops {
        match op {
            Op::Fail { reason } => return Err(reject(reason.unwrap_or_else(|| "as the test wants".to_owned()))),
            Op::Retry { after_ms } => return Err(retry(Duration::from_millis(after_ms))),
            Op::Status { status: wanted } => {
                status = wanted;
                results.push(json!({}));
            }
            op => results.push(outcome(apply(op))),
        }
    }
    Ok(Response::json(&json!({ "results": results }))?.with_status(status))
}

fn apply(op: Op) -> Result<Value> {
    Ok(match op {
        Op::Get { collection, key } => match kv::entry(&collection, &key)? {
            Some(entry) => json!({ "value": shown(&entry.value), "version": entry.version }),
            None => json!({ "value": null, "version": null }),
        },
        Op::Put { collection, key, value, ttl_ms, if_version } => {
            let mut options = PutOptions::new();
            if let Some(ttl_ms) = ttl_ms {
                options = options.ttl(Duration::from_millis(ttl_ms));
            }
            if let Some(version) = if_version {
                options = options.if_version(version);
            }
            kv::put_with(&collection, &key, &value, options)?;
            json!({})
        }
        Op::Delete { collection, key, if_version } => {
            let deleted = match if_version {
                Some(version) => kv::delete_if_version(&collection, &key, version)?,
                None => kv::delete(&collection, &key)?,
            };
            json!({ "deleted": deleted })
        }
        Op::Add { collection, key, delta } => {
            let (value, version) = add(&collection, &key, delta)?;
            json!({ "value": value, "version": version })
        }
        Op::Increment { collection, key, delta } => {
            kv::increment(&collection, &key, delta)?;
            json!({})
        }
        Op::Counter { collection, key } => json!({ "value": kv::counter(&collection, &key)? }),
        Op::List { collection, prefix, cursor, limit } => {
            let page = kv::list(&collection, &prefix, cursor.as_deref(), limit.unwrap_or(1_000))?;
            json!({ "entries": entries(page.entries), "cursor": page.cursor })
        }
        Op::Pages { collection, prefix, limit } => {
            let (mut all, mut cursor) = (Vec::new(), None);
            loop {
                let page = kv::list(&collection, &prefix, cursor.as_deref(), limit)?;
                all.extend(page.entries);
                cursor = page.cursor;
                if cursor.is_none() {
                    break json!({ "entries": entries(all) });
                }
            }
        }
        Op::Sum { collection, prefix } => {
            let (sum, count) = sum(&collection, &prefix)?;
            json!({ "sum": sum, "count": count })
        }
        Op::AssertSum { collection, keys, sum: wanted } => {
            let mut sum = 0;
            for key in keys {
                sum += kv::get::<i64>(&collection, &key)?.unwrap_or(0);
                // Time for others to commit in between.
                spin(50_000);
            }
            assert_eq!(sum, wanted, "the invariant is broken");
            json!({ "sum": sum })
        }
        Op::Transfer { collection, from, to, amount } => {
            let (left, _) = add(&collection, &from, -amount)?;
            let (gained, _) = add(&collection, &to, amount)?;
            json!({ "from": left, "to": gained })
        }
        Op::Record { meter, value } => {
            meters::record(&meter, value)?;
            json!({})
        }
        Op::Spin { rounds } => json!({ "spun": spin(rounds) }),
        Op::Trap => panic!("as the test wants"),
        Op::Fail { .. } | Op::Retry { .. } | Op::Status { .. } => json!({}),
    })
}

fn add(collection: &str, key: &str, delta: i64) -> Result<(i64, u64)> {
    let read = kv::entry(collection, key)?;
    let (value, version) = match read {
        Some(entry) => (entry.json::<i64>()?, entry.version),
        None => (0, 0),
    };
    let value = value.wrapping_add(delta);
    kv::put(collection, key, &value)?;
    Ok((value, version))
}

fn sum(collection: &str, prefix: &str) -> Result<(i64, u64)> {
    let (mut sum, mut count) = (0, 0);
    for entry in kv::scan(collection, prefix) {
        sum += entry?.json::<i64>()?;
        count += 1;
    }
    Ok((sum, count))
}

fn entries(entries: Vec<kv::Entry>) -> Vec<Value> {
    let entry = |entry: kv::Entry| json!({ "key": entry.key, "value": shown(&entry.value), "version": entry.version });
    entries.into_iter().map(entry).collect()
}

/// JSON as it is, other bytes as text.
fn shown(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|_| String::from_utf8_lossy(bytes).into())
}

fn spin(rounds: u64) -> u64 {
    (0..rounds).fold(1, |mixed: u64, round| std::hint::black_box(mixed.wrapping_mul(31).wrapping_add(round)))
}

chalet_sdk::export!(Kv: http);
