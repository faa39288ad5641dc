//! Passes what it is given through every host function, and shows what its memory held before.
//!
//! `POST /use {"marker","key","steps":[…],"then":…}` takes the steps that are named, of [`step`], with the marker wherever
//! a host function takes something, and answers `{"seen":[…]}` with all that came back. `then` ends it as `reject`, `retry`,
//! `trap` or with the status 501. A webhook's payload is the same.
//!
//! `POST /fill {"marker","mib","then_show":false}` fills its stack and so much memory with the marker.
//! `GET /memory` asks for more memory and answers every block of its whole linear memory that holds anything at all.

#[cfg(target_family = "wasm")]
mod memory;

use std::hint::black_box;
use std::time::Duration;

use chalet_sdk::flags::Context;
use chalet_sdk::http::{Call, Request, Response};
use chalet_sdk::webhook::Delivery;
use chalet_sdk::{Plugin, Result, config, context, flags, kv, limits, log, meters, reject, retry, secrets};
use guest_report::outcome;
use serde::Deserialize;
use serde_json::{Value, json};

/// Frames of a kilobyte and what belongs to them: half of the stack, and not all of it.
const FRAMES: u32 = 16;

#[derive(Deserialize)]
struct Use {
    marker: String,
    key: String,
    steps: Vec<String>,
    url: Option<String>,
    then: Option<String>,
}

#[derive(Deserialize)]
struct Fill {
    marker: String,
    mib: usize,
    #[serde(default)]
    then_show: bool,
}

/// The guest.
pub struct Markers;

impl Plugin for Markers {
    fn http(request: Request) -> Result<Response> {
        match request.route() {
            "POST /use" => {
                let header = |(name, value): (&str, &[u8])| format!("{name}: {}", String::from_utf8_lossy(value));
                used(request.json()?, request.headers().iter().map(header).collect())
            }
            "POST /fill" => fill(&request.json()?),
            _ => Ok(shown()),
        }
    }

    fn webhook_with_answer(delivery: Delivery) -> Result<Option<Response>> {
        used(delivery.json()?, vec![delivery.id().to_owned()]).map(Some)
    }
}

fn used(given: Use, came: Vec<String>) -> Result<Response> {
    let mut seen = vec![json!(came)];
    for name in &given.steps {
        seen.push(outcome(step(name, &given)));
    }
    let status = match given.then.as_deref() {
        Some("reject") => return Err(reject(given.marker)),
        Some("retry") => return Err(retry(Duration::from_secs(1))),
        Some("trap") => panic!("{}", given.marker),
        Some("status") => 501,
        _ => 200,
    };
    Ok(Response::json(&json!({ "seen": seen }))?.with_status(status).with_header("x-marker", &given.marker))
}

/// Call the host function of this name.
fn step(name: &str, given: &Use) -> Result<Value> {
    let Use { marker, key, .. } = given;
    Ok(match name {
        "put" => json!(kv::put("m", key, marker)?),
        "get" => json!(kv::get::<Value>("m", key)?),
        "delete" => json!(kv::delete("m", key)?),
        "list" => {
            let page = kv::list("m", "", None, 20)?;
            let shown = |entry: &kv::Entry| json!([entry.key, String::from_utf8_lossy(&entry.value)]);
            json!([page.entries.iter().map(shown).collect::<Vec<_>>(), page.cursor])
        }
        "increment" => json!(kv::increment("m", &format!("n-{key}"), 1)?),
        "counter" => json!(kv::counter("m", &format!("n-{key}"))?),
        "record" => json!(meters::record_with("m", 1, &[("who", marker)])?),
        "check" => json!(limits::check("m", marker, 1)?.remaining),
        "evaluate" => {
            let evaluated = flags::evaluate("m", &Context::new().with("who", marker))?;
            json!([evaluated.value, evaluated.variant])
        }
        "secret" => json!(secrets::get_string("M")?),
        "config" => json!(config::get("m")?),
        "context" => json!([
            context::invocation_id(),
            context::tenant(),
            context::plugin(),
            context::version(),
            context::now_ms(),
            context::remaining().as_millis() as u64,
            context::random_bytes(16),
        ]),
        "log" => {
            for write in [log::trace, log::debug, log::info, log::warn, log::error] {
                write(marker);
            }
            Value::Null
        }
        "send" => {
            let url = given.url.clone().unwrap_or_default();
            let answer = Call::new("POST", url).header("x-marker", marker).body(marker.as_str()).send()?;
            json!([answer.status(), answer.to_text()])
        }
        other => return Err(reject(format!("there is no step {other}"))),
    })
}

fn fill(given: &Fill) -> Result<Response> {
    let marker = given.marker.as_bytes();
    let filled: Vec<u8> = marker.iter().copied().cycle().take(given.mib << 20).collect();
    fill_stack(marker, FRAMES);
    let answer = if given.then_show { shown() } else { Response::text("filled") };
    black_box(filled);
    Ok(answer)
}

/// Leave the marker in this many frames.
fn fill_stack(marker: &[u8], frames: u32) {
    let mut frame = [0_u8; 1_024];
    for (to, from) in frame.iter_mut().zip(marker.iter().cycle()) {
        *to = *from;
    }
    if frames > 0 {
        fill_stack(marker, frames - 1);
    }
    black_box(frame);
}

fn shown() -> Response {
    #[cfg(target_family = "wasm")]
    return Response::new(200).with_body(memory::shown());
    #[cfg(not(target_family = "wasm"))]
    Response::new(200)
}

chalet_sdk::export!(Markers: http, webhook);
