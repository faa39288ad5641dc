//! The OpenFeature Remote Evaluation Protocol: what stock OpenFeature providers ask. The tenant is the key's.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::control::Tenant;
use crate::gateway::Door;
use crate::gateway::extract::Path;
use crate::gateway::plugin::read_body;
use crate::kernel::error::{Kind, Result};
use crate::kernel::tenant::TenantScope;
use crate::services::flags::Snapshot;
use crate::services::flags::ofrep::{self, Answer};

/// Bytes of an evaluation context: a hundred attributes with room to spare.
const CONTEXT_BYTES: u64 = 64 << 10;

/// Evaluate one flag.
#[utoipa::path(post, path = "/ofrep/v1/evaluate/flags/{key}", tag = "ofrep", params(("key" = String, Path)), request_body = Object,
    responses((status = 200, body = Object), (status = 400, body = Object), (status = 404, body = Object)))]
pub(super) async fn evaluate(
    State(door): State<Door>,
    Tenant(scope): Tenant,
    Path(key): Path<String>,
    request: Request,
) -> Result<Response> {
    let body = read_body(request.into_body(), CONTEXT_BYTES).await?;
    Ok(match snapshot(&door, &scope).await {
        Ok((snapshot, now_ms)) => rendered(ofrep::single(&snapshot, &key, &body, now_ms)),
        Err(response) => response,
    })
}

/// Evaluate all flags. The ETag changes when an evaluation does.
#[utoipa::path(post, path = "/ofrep/v1/evaluate/flags", tag = "ofrep", request_body = Object,
    responses((status = 200, body = Object), (status = 304), (status = 400, body = Object)))]
pub(super) async fn evaluate_all(
    State(door): State<Door>,
    Tenant(scope): Tenant,
    request: Request,
) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let body = read_body(body, CONTEXT_BYTES).await?;
    let known = parts.headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    Ok(match snapshot(&door, &scope).await {
        Ok((snapshot, now_ms)) => rendered(ofrep::bulk(&snapshot, &body, known, now_ms).await),
        Err(response) => response,
    })
}

async fn snapshot(door: &Door, scope: &TenantScope) -> Result<(Snapshot, i64), Response> {
    let mut effects = door.shard.begin(scope);
    let now_ms = effects.now_ms();
    match door.services.flags.snapshot(&mut effects).await {
        Ok(snapshot) => Ok((snapshot, now_ms)),
        Err(error) if error.kind() == Kind::Internal => {
            tracing::error!(?error, "flags could not be evaluated");
            Err((StatusCode::INTERNAL_SERVER_ERROR, Json(ofrep::fault())).into_response())
        }
        Err(error) => Err(error.into_response()),
    }
}

fn rendered(answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let mut response = match answer.body {
        Some(body) => (status, Json(body)).into_response(),
        None => status.into_response(),
    };
    if let Some(Ok(etag)) = answer.etag.map(HeaderValue::try_from) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}
