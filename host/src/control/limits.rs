//! The tenant's rate limits, and counting by them.

use std::sync::OnceLock;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::control::Tenant;
use crate::control::change::{Change, commit, json, precondition};
use crate::gateway::Door;
use crate::kernel::error::{Error, Result};
use crate::services::limits::{Decision, Document};

/// What to count.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Take {
    /// The limit's name in the document.
    limit: String,
    /// Whom it is counted for: a user, an address.
    key: String,
    /// Units; 1 if not given, 0 only looks.
    cost: Option<u32>,
}

/// What a limit said.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct DecisionView {
    allowed: bool,
    /// Units that the limit holds.
    limit: u64,
    /// Units left.
    remaining: u64,
    /// Milliseconds until the same request could be allowed.
    retry_after_ms: u64,
    /// Milliseconds until the limit is full again.
    reset_after_ms: u64,
}

impl From<Decision> for DecisionView {
    fn from(decision: Decision) -> Self {
        Self {
            allowed: decision.allowed,
            limit: decision.limit,
            remaining: decision.remaining,
            retry_after_ms: decision.retry_after_ms,
            reset_after_ms: decision.reset_after_ms,
        }
    }
}

/// The tenant's limits.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/limits", tag = "limits", params(("tenant" = String, Path)),
    responses((status = 200, body = Document)))]
pub(super) async fn get(State(door): State<Door>, Tenant(scope): Tenant) -> Result<Response> {
    let (document, version) = door.limits.get(&mut door.shard.begin(&scope)).await?;
    let mut response = Json(&*document).into_response();
    response
        .headers_mut()
        .insert(header::ETAG, HeaderValue::try_from(format!("\"{version}\"")).map_err(Error::internal)?);
    Ok(response)
}

/// Replace the tenant's limits.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/limits", tag = "limits", params(("tenant" = String, Path)), request_body = Document,
    responses((status = 200, body = Document)))]
pub(super) async fn put(State(door): State<Door>, change: Change) -> Response {
    let (headers, body) = (change.headers.clone(), change.body.clone());
    commit!(change.versioned(), |effects| {
        let (_, version) = door.limits.get(effects).await?;
        precondition(&headers, version)?;
        json(StatusCode::OK, &door.limits.put(effects, &body)?)
    })
}

/// Count by a limit. The count is taken at once and is not repeated for the same `Idempotency-Key`.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/limits/check", tag = "limits", params(("tenant" = String, Path)), request_body = Take,
    responses((status = 200, body = DecisionView)))]
pub(super) async fn check(State(door): State<Door>, change: Change) -> Result<Response> {
    let take: Take = change.json()?;
    // Counted once, also if the transaction around the stored answer runs again.
    let counted = OnceLock::new();
    Ok(commit!(change, |effects| {
        if counted.get().is_none() {
            let decision = door.limits.check(effects, &take.limit, &take.key, take.cost.unwrap_or(1)).await?;
            let _ = counted.set(DecisionView::from(decision));
        }
        json(StatusCode::OK, &counted.get())
    }))
}
