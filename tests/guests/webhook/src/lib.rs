//! Keeps what it is delivered and answers as the payload says.
//!
//! Each delivery writes `deliveries/{source}:{id}` with what the guest saw, adds one to the counter `runs/{source}`, and
//! records one on the meter `deliveries`. Then the payload's field `then` decides, if there is one: `retry`, `reject`,
//! `trap`, `loop`, or a number, which is the answer's status.

use chalet_sdk::http::Response;
use chalet_sdk::webhook::Delivery;
use chalet_sdk::{Plugin, Result, kv, meters, reject, retry};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// The guest.
pub struct Webhook;

impl Plugin for Webhook {
    fn webhook_with_answer(delivery: Delivery) -> Result<Option<Response>> {
        let headers: BTreeMap<_, _> =
            delivery.headers().iter().map(|(name, value)| (name, String::from_utf8_lossy(value))).collect();
        let body = String::from_utf8_lossy(delivery.body());
        let seen = json!({ "event_type": delivery.event_type(), "headers": headers, "body": body });
        kv::put("deliveries", &format!("{}:{}", delivery.source(), delivery.id()), &seen)?;
        kv::increment("runs", delivery.source(), 1)?;
        meters::record_with("deliveries", 1, &[("source", delivery.source())])?;

        let payload: Value = serde_json::from_str(&body).unwrap_or_default();
        match payload.get("then") {
            Some(Value::String(then)) if then == "retry" => Err(retry(Duration::from_secs(7))),
            Some(Value::String(then)) if then == "reject" => Err(reject("as the test wants")),
            Some(Value::String(then)) if then == "trap" => panic!("as the test wants"),
            Some(Value::String(then)) if then == "loop" => loop {
                std::hint::black_box(());
            },
            Some(Value::Number(status)) => {
                let status = status.as_u64().and_then(|status| u16::try_from(status).ok()).unwrap_or(200);
                Ok(Some(Response::text("as the test wants").with_status(status)))
            }
            _ => Ok(None),
        }
    }
}

chalet_sdk::export!(Webhook: webhook);
