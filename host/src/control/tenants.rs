//! Tenants: made, listed, moved to another plan and deleted by the operator.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::control::change::{cause, json, parse_json, rendered};
use crate::control::page::{List, Page, next};
use crate::control::{Caller, Tenant, no_tenant};
use crate::gateway::Door;
use crate::gateway::extract::{Path, Query};
use crate::gateway::plugin::read_body;
use crate::kernel::clock::rfc3339;
use crate::kernel::error::{Error, Result};
use crate::services::directory;

/// Bytes of a body here: two short names.
const BODY_BYTES: u64 = 16 << 10;

/// A tenant to be made.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTenant {
    /// The name: 1 to 63 of `a-z 0-9 -`.
    id: String,
    /// The plan's name; `free` if not given.
    plan: Option<String>,
}

/// What may be changed.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TenantChange {
    /// The new plan's name.
    plan: String,
}

/// A tenant.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct TenantView {
    /// The name.
    id: String,
    /// The plan's name.
    plan: String,
    /// When it was made.
    created_at: String,
    /// Bytes stored that count against the plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    storage_bytes: Option<u64>,
}

impl TenantView {
    fn of(tenant: &directory::Tenant, storage_bytes: Option<u64>) -> Self {
        Self {
            id: tenant.name.clone(),
            plan: tenant.plan.clone(),
            created_at: rfc3339(tenant.created_at_ms),
            storage_bytes,
        }
    }
}

/// Make a tenant.
#[utoipa::path(post, path = "/v1/tenants", tag = "tenants", request_body = NewTenant,
    responses((status = 201, body = TenantView)))]
pub(super) async fn create(State(door): State<Door>, Caller(caller): Caller, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let body = read_body(body, BODY_BYTES).await?;
    let new: NewTenant = parse_json(&body)?;
    let cause = cause(&parts, &caller.key, &body)?;
    let plan = new.plan.as_deref().unwrap_or("free");
    // The stored answer lives with the tenant that the request made, and is written with it.
    if let Some(cause) = &cause
        && let Some(scope) = door.directory.by_name(&new.id).await?
        && let Some(answer) = door.idempotency.find(&mut door.shard.begin(&scope), cause).await?
    {
        let mut response = rendered(answer);
        response.headers_mut().insert("idempotent-replayed", axum::http::HeaderValue::from_static("true"));
        return Ok(response);
    }
    let created_at_ms = door.shard.clock().now_ms();
    let view =
        TenantView { id: new.id.clone(), plan: plan.into(), created_at: rfc3339(created_at_ms), storage_bytes: None };
    let answer = json(StatusCode::CREATED, &view)?;
    let first =
        |id: &_| cause.as_ref().map(|cause| door.idempotency.sealed(id, cause, &answer, created_at_ms)).transpose();
    door.directory.create(&new.id, plan, created_at_ms, first).await?;
    Ok(rendered(answer))
}

/// All tenants, by name.
#[utoipa::path(get, path = "/v1/tenants", tag = "tenants", params(Page),
    responses((status = 200, body = List<TenantView>)))]
pub(super) async fn list(State(door): State<Door>, Query(page): Query<Page>) -> Result<List<TenantView>> {
    let limit = page.limit()?;
    let after = page.after_text(&door, "tenants")?;
    let mut tenants = door.directory.list(after.as_deref(), limit + 1).await?;
    let more = tenants.len() > limit;
    tenants.truncate(limit);
    let last = tenants.last().map(|tenant| tenant.name.as_bytes());
    let next = next(&door, "tenants", last, more);
    Ok(List { data: tenants.iter().map(|tenant| TenantView::of(tenant, None)).collect(), next })
}

/// One tenant.
#[utoipa::path(get, path = "/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = String, Path)),
    responses((status = 200, body = TenantView)))]
pub(super) async fn get(State(door): State<Door>, Tenant(scope): Tenant) -> Result<Json<TenantView>> {
    let tenant = door.directory.describe(&scope).await?;
    let (_, bytes) = door.shard.store().head(&scope).await?;
    Ok(Json(TenantView::of(&tenant, Some(bytes))))
}

/// Put a tenant on another plan.
#[utoipa::path(patch, path = "/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = String, Path)), request_body = TenantChange,
    responses((status = 200, body = TenantView)))]
pub(super) async fn change(
    State(door): State<Door>,
    Tenant(scope): Tenant,
    request: Request,
) -> Result<Json<TenantView>> {
    let body = read_body(request.into_body(), BODY_BYTES).await?;
    let change: TenantChange = parse_json(&body)?;
    door.directory.change_plan(&scope, &change.plan).await?;
    Ok(Json(TenantView::of(&door.directory.describe(&scope).await?, None)))
}

/// Delete a tenant with all that it stored.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = String, Path)),
    responses((status = 204)))]
pub(super) async fn delete(State(door): State<Door>, Path(name): Path<String>) -> Result<Response> {
    let scope = door.directory.by_name(&name).await?.ok_or_else(no_tenant)?;
    door.directory.delete(&scope).await.map_err(|error: Error| error)?;
    door.keys.forget_all();
    door.shard.forget(&scope);
    Ok(StatusCode::NO_CONTENT.into_response())
}
