//! How an error leaves the house over HTTP: RFC 9457 problem details with a stable `code`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::invocation::Failed;
use crate::kernel::error::{Error, Kind};
use crate::kernel::trace;

tokio::task_local! {
    /// The id of the request that is being answered.
    pub(super) static REQUEST: String;
}

/// The id of the request that is being answered, as in the `x-request-id` header.
pub(crate) fn request_id() -> Option<String> {
    REQUEST.try_with(Clone::clone).ok()
}

/// The body of every error (RFC 9457).
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// Always `about:blank`: `code` names the problem.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What went wrong, stable and machine-readable.
    pub code: String,
    /// What to do about it.
    pub detail: String,
    /// The bound that was broken, where one of several was: such as `depth` of a component's code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The request's id, as in the `x-request-id` header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// The invocation's id, where a plugin was run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invocation: Option<String>,
}

/// The status of an error.
pub fn status(error: &Error) -> StatusCode {
    match (error.kind(), error.code()) {
        (_, "too_large" | "component_too_large") => StatusCode::PAYLOAD_TOO_LARGE,
        (_, "precondition_failed") => StatusCode::PRECONDITION_FAILED,
        (_, "unsupported_media_type") => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        (_, "method_not_allowed") => StatusCode::METHOD_NOT_ALLOWED,
        (_, "uri_too_long") => StatusCode::URI_TOO_LONG,
        (_, "loop_detected") => StatusCode::LOOP_DETECTED,
        (_, "body_too_slow") => StatusCode::REQUEST_TIMEOUT,
        (_, "deadline_exceeded" | "fuel_exhausted") => StatusCode::GATEWAY_TIMEOUT,
        (Kind::Invalid, "bad_request" | "bad_json" | "idempotency_key_invalid" | "no_such_plan" | "cursor_invalid") => {
            StatusCode::BAD_REQUEST
        }
        (Kind::Invalid, _) => StatusCode::UNPROCESSABLE_ENTITY,
        (Kind::Unauthenticated, _) => StatusCode::UNAUTHORIZED,
        (Kind::Denied, _) => StatusCode::FORBIDDEN,
        (Kind::NotFound, _) => StatusCode::NOT_FOUND,
        (Kind::Conflict, _) => StatusCode::CONFLICT,
        (Kind::Limited, _) => StatusCode::TOO_MANY_REQUESTS,
        (Kind::Exhausted, _) => StatusCode::PAYMENT_REQUIRED,
        (Kind::Unavailable, _) => StatusCode::SERVICE_UNAVAILABLE,
        (Kind::Failed, _) => StatusCode::BAD_GATEWAY,
        (Kind::Internal, _) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The answer to a request that failed. Faults of the host are logged here, once.
pub fn problem(error: &Error, invocation: Option<String>) -> Response {
    let status = status(error);
    let request = request_id();
    if error.kind() == Kind::Internal {
        tracing::error!(?error, request, trace = trace::id(), "a request failed through a fault of the host");
    }
    let body = Problem {
        kind: "about:blank".into(),
        title: status.canonical_reason().unwrap_or("Error").into(),
        status: status.as_u16(),
        code: error.code().into(),
        detail: error.message().into(),
        rule: error.broken_rule().map(str::to_owned),
        request,
        invocation: invocation.clone(),
    };
    let mut response = (status, Json(body)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(after) = error.after() {
        // Whole seconds (RFC 9110, 10.2.3), never too early.
        let seconds = after.as_millis().div_ceil(1_000).max(1);
        if let Ok(value) = HeaderValue::from_str(&seconds.to_string()) {
            headers.insert(header::RETRY_AFTER, value);
        }
    }
    if let Some(value) = invocation.and_then(|id| HeaderValue::from_str(&id).ok()) {
        headers.insert("chalet-invocation", value);
    }
    response
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        problem(&self, None)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        problem(&self.error, Some(self.invocation))
    }
}
