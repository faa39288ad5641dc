//! A tenant's API keys.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use crate::control::change::{Change, commit, empty, json};
use crate::control::page::{List, Page, next};
use crate::control::{Caller, Tenant};
use crate::gateway::Door;
use crate::gateway::extract::{Path, Query};
use crate::kernel::clock::rfc3339;
use crate::kernel::error::{Error, Kind, Result};
use crate::services::keys::{Listed, Right};

/// A key to be made.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewKey {
    /// What people call it.
    name: String,
    /// Of `tenant:admin`, `tenant:write`, `tenant:read`, `invoke`.
    scopes: Vec<String>,
}

/// A key.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct KeyView {
    /// The public id, which is part of the key.
    id: String,
    /// What people call it.
    name: String,
    /// Its rights.
    scopes: Vec<String>,
    /// When it was made.
    created_at: String,
    /// The key itself: only in the answer that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl KeyView {
    fn of(listed: Listed, key: Option<String>) -> Self {
        Self { id: listed.id, name: listed.name, scopes: listed.scopes, created_at: rfc3339(listed.created_at_ms), key }
    }
}

/// Make a key. It is shown once.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/keys", tag = "keys", params(("tenant" = String, Path)), request_body = NewKey,
    responses((status = 201, body = KeyView)))]
pub(super) async fn create(State(door): State<Door>, caller: Caller, change: Change) -> Result<Response> {
    let new: NewKey = change.json()?;
    let wider = new.scopes.iter().any(|scope| scope == Right::PlatformAdmin.name());
    if wider {
        return Err(Error::new(Kind::Denied, "forbidden", "a tenant's key cannot have the scope platform:admin"));
    }
    if !caller.principal.may(Right::TenantAdmin) {
        return Err(Error::new(Kind::Denied, "forbidden", "no key makes a wider key"));
    }
    // The same seed over re-runs and repetitions makes the same key, so that none is made that nobody has.
    let seed = change.seed().unwrap_or_else(|| rand::random::<[u8; 32]>().to_vec());
    let scope = change.scope.clone();
    let minted = door.keys.draw(Some(&scope), &new.name, &new.scopes, Some(&seed))?;
    let made = &minted.listed;
    let what = serde_json::json!({ "key": made.id, "name": made.name, "scopes": made.scopes });
    let response = commit!(change.noting(what), |effects| {
        door.keys.store(effects, Some(&scope), &minted).await?;
        json(StatusCode::CREATED, &KeyView::of(minted.listed.clone(), Some(minted.key.clone())))
    });
    door.keys.forget(&minted.listed.id);
    Ok(response)
}

/// The tenant's keys, without their secrets.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/keys", tag = "keys", params(("tenant" = String, Path), Page),
    responses((status = 200, body = List<KeyView>)))]
pub(super) async fn list(
    State(door): State<Door>,
    Tenant(scope): Tenant,
    Query(page): Query<Page>,
) -> Result<List<KeyView>> {
    let place = format!("keys {}", scope.id().as_str());
    let (limit, after) = (page.limit()?, page.after_text(&door, &place)?);
    let mut keys = door.keys.list(Some(&scope), after.as_deref(), limit + 1).await?;
    let more = keys.len() > limit;
    keys.truncate(limit);
    let next = next(&door, &place, keys.last().map(|key| key.id.as_bytes()), more);
    Ok(List { data: keys.into_iter().map(|listed| KeyView::of(listed, None)).collect(), next })
}

/// Revoke a key: at once on this node, within two seconds on others.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/keys/{key}", tag = "keys", params(("tenant" = String, Path), ("key" = String, Path)),
    responses((status = 204)))]
pub(super) async fn delete(
    State(door): State<Door>,
    Path((_, key)): Path<(String, String)>,
    change: Change,
) -> Response {
    let scope = change.scope.clone();
    let response = commit!(change, |effects| {
        if door.keys.delete(effects, &scope, &key).await? {
            Ok(empty(StatusCode::NO_CONTENT))
        } else {
            Err(Error::not_found("no such key"))
        }
    });
    door.keys.forget(&key);
    response
}
