//! Answers, and does nothing else: the cost of a call.

use chalet_sdk::http::{Request, Response};
use chalet_sdk::{Plugin, Result};

/// The guest.
pub struct Hello;

impl Plugin for Hello {
    fn http(_: Request) -> Result<Response> {
        Ok(Response::text("hello"))
    }
}

chalet_sdk::export!(Hello: http);
