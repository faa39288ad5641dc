//! Tenants: made, listed, moved to another plan and deleted by the operator.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use crate::control::Tenant;
use crate::control::change::{Change, commit, empty, json};
use crate::control::page::{List, Page, next};
use crate::gateway::Door;
use crate::gateway::extract::Query;
use crate::kernel::clock::rfc3339;
use crate::kernel::error::Result;
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
pub(super) async fn create(State(door): State<Door>, request: Request) -> Result<Response> {
    let change = Change::read(request, &door, |_| BODY_BYTES).await?;
    let new: NewTenant = change.json()?;
    let plan = new.plan.as_deref().unwrap_or("free");
    let what = serde_json::json!({ "plan": plan, "tenant": new.id });
    let response = commit!(change.noting(what), |effects| {
        door.directory.create(effects, &new.id, plan).await?;
        let created_at = rfc3339(effects.now_ms());
        json(
            StatusCode::CREATED,
            &TenantView { id: new.id.clone(), plan: plan.into(), created_at, storage_bytes: None },
        )
    });
    door.directory.forget(&new.id);
    Ok(response)
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
pub(super) async fn change(State(door): State<Door>, Tenant(scope): Tenant, request: Request) -> Result<Response> {
    let change = Change::read(request, &door, |_| BODY_BYTES).await?;
    let wanted: TenantChange = change.json()?;
    let response = commit!(change.noting(serde_json::json!({ "plan": wanted.plan })), |effects| {
        let tenant = door.directory.change_plan(effects, &scope, &wanted.plan).await?;
        json(StatusCode::OK, &TenantView::of(&tenant, None))
    });
    door.directory.forget(scope.name());
    Ok(response)
}

/// Delete a tenant with all that it stored.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = String, Path)),
    responses((status = 204)))]
pub(super) async fn delete(State(door): State<Door>, Tenant(scope): Tenant, change: Change) -> Response {
    let response = commit!(change, |effects| {
        door.directory.delete(effects, &scope).await?;
        Ok(empty(StatusCode::NO_CONTENT))
    });
    door.directory.forget(scope.name());
    door.keys.forget_all();
    door.shard.forget(&scope);
    // Nothing, if the tenant is still there; what fails here, the sweeper does.
    if let Err(error) = door.directory.purge(&door.shard, scope.id()).await {
        tracing::warn!(?error, "what a deleted tenant stored is removed later");
    }
    response
}
