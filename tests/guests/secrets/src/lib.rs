//! Reads secrets and settings that a test names.
//!
//! `GET /secrets/{name}` answers `{"value"}` or `{"error":{…}}`, `GET /config/{name}` answers `{"value"}`, null if it is
//! not set.

use chalet_sdk::http::{Request, Response};
use chalet_sdk::{Plugin, Result, config, secrets};
use guest_report::outcome;
use serde_json::json;

/// The guest.
pub struct Secrets;

impl Plugin for Secrets {
    fn http(request: Request) -> Result<Response> {
        let name = request.param("name")?;
        let read = match request.route() {
            "GET /secrets/{name}" => secrets::get_string(name).map(|value| json!({ "value": value })),
            _ => config::get(name).map(|value| json!({ "value": value })),
        };
        Response::json(&outcome(read))
    }
}

chalet_sdk::export!(Secrets: http);
