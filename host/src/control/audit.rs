//! The audit logs: a tenant's, and the operator's own.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;

use crate::control::Tenant;
use crate::control::page::{List, Page, next};
use crate::gateway::Door;
use crate::gateway::extract::Query;
use crate::kernel::clock::parse_rfc3339;
use crate::kernel::error::{Error, Result};
use crate::kernel::tenant::TenantScope;
use crate::services::audit::{Filter, Record, Verified};

/// Which records to list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Question {
    /// Only of this action, such as `plugins.release`.
    action: Option<String>,
    /// Only from this time on, RFC 3339.
    since: Option<String>,
    /// Records at most; 100 if not given, 1,000 at most.
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// What was changed and denied in the tenant, the latest first. A page may have fewer records than there are, and
/// still a `next`.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/audit", tag = "audit", params(("tenant" = String, Path), Question),
    responses((status = 200, body = List<Record>)))]
pub(super) async fn list(
    State(door): State<Door>,
    Tenant(scope): Tenant,
    Query(asked): Query<Question>,
) -> Result<List<Record>> {
    answer(&door, &scope, asked).await
}

/// What was changed and denied on the operator's routes, the latest first.
#[utoipa::path(get, path = "/v1/audit", tag = "audit", params(Question),
    responses((status = 200, body = List<Record>)))]
pub(super) async fn list_platform(State(door): State<Door>, Query(asked): Query<Question>) -> Result<List<Record>> {
    answer(&door, door.directory.platform(), asked).await
}

/// Whether the tenant's log is whole: no record was changed, removed, put in or moved.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/audit/verify", tag = "audit", params(("tenant" = String, Path)),
    responses((status = 200, body = Verified)))]
pub(super) async fn verify(State(door): State<Door>, Tenant(scope): Tenant) -> Result<Json<Verified>> {
    Ok(Json(door.audit.verify(&scope).await?))
}

/// Whether the operator's log is whole.
#[utoipa::path(get, path = "/v1/audit/verify", tag = "audit",
    responses((status = 200, body = Verified)))]
pub(super) async fn verify_platform(State(door): State<Door>) -> Result<Json<Verified>> {
    Ok(Json(door.audit.verify(door.directory.platform()).await?))
}

async fn answer(door: &Door, scope: &TenantScope, asked: Question) -> Result<List<Record>> {
    let page = Page { limit: asked.limit, cursor: asked.cursor };
    let place = format!("audit {}", scope.id().as_str());
    let before = page.after_text(door, &place)?.and_then(|number| number.parse().ok());
    let since = |text: String| parse_rfc3339(&text).ok_or_else(|| Error::invalid("since is a time as RFC 3339 has it"));
    let filter = Filter { action: asked.action, since_ms: asked.since.map(since).transpose()? };
    let mut effects = door.shard.begin(scope);
    let (data, rest) = door.audit.list(&mut effects, &filter, before, page.limit()?).await?;
    let rest = rest.map(|number| number.to_string());
    let next = next(door, &place, rest.as_deref().map(str::as_bytes), true);
    Ok(List { data, next })
}
