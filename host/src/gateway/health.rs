//! Whether this process lives, and whether it should get traffic.

use axum::extract::State;
use axum::response::{IntoResponse, Response};

use crate::gateway::Door;

/// The process answers.
pub(super) async fn live() -> &'static str {
    "ok\n"
}

/// The database answers too.
pub(super) async fn ready(State(door): State<Door>) -> Response {
    match door.db.ping().await {
        Ok(()) => "ready\n".into_response(),
        Err(error) => error.into_response(),
    }
}
