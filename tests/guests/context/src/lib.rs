//! Tells what it knows about its invocation.
//!
//! `ANY /context/{*rest}` answers the context and the request as the guest saw them; `GET /random/{length}` answers that
//! many random bytes in hexadecimal, twice.

use std::collections::BTreeMap;

use chalet_sdk::http::{Request, Response};
use chalet_sdk::{Plugin, Result, context};
use serde_json::json;

/// The guest.
pub struct Context;

impl Plugin for Context {
    fn http(request: Request) -> Result<Response> {
        if request.route() == "GET /random/{length}" {
            let length = request.param("length")?.parse()?;
            let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            let (first, second) = (hex(context::random_bytes(length)), hex(context::random_bytes(length)));
            return Response::json(&json!({ "first": first, "second": second }));
        }
        let headers: BTreeMap<_, _> =
            request.headers().iter().map(|(name, value)| (name, String::from_utf8_lossy(value))).collect();
        Response::json(&json!({
            "invocation": context::invocation_id(),
            "tenant": context::tenant(),
            "plugin": context::plugin(),
            "version": context::version(),
            "now_ms": context::now_ms(),
            "now_ms_again": context::now_ms(),
            "remaining_ms": context::remaining().as_millis() as u64,
            "unique_id": context::unique_id(),
            "request": {
                "method": request.method(),
                "path": request.path(),
                "query": request.query(),
                "headers": headers,
                "body": String::from_utf8_lossy(request.body()),
                "route": request.route(),
                "rest": request.param("rest")?,
            }
        }))
    }
}

chalet_sdk::export!(Context: http);
