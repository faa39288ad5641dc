//! Secrets: written and deleted, listed by name, never read back.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use crate::control::Tenant;
use crate::control::change::{Change, commit, empty};
use crate::control::page::List;
use crate::gateway::Door;
use crate::gateway::extract::Path;
use crate::kernel::error::{Error, Result};

/// A secret, without its value.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct SecretView {
    name: String,
    /// The number of the commit that wrote it.
    version: u64,
}

/// Store a secret: the body's bytes.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/secrets/{name}", tag = "secrets", params(("tenant" = String, Path), ("name" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 204)))]
pub(super) async fn put(State(door): State<Door>, Path((_, name)): Path<(String, String)>, change: Change) -> Response {
    let body = change.body.clone();
    commit!(change, |effects| {
        door.services.secrets.put(effects, &name, &body).await?;
        Ok(empty(StatusCode::NO_CONTENT))
    })
}

/// Names of the tenant's secrets.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/secrets", tag = "secrets", params(("tenant" = String, Path)),
    responses((status = 200, body = List<SecretView>)))]
pub(super) async fn list(State(door): State<Door>, Tenant(scope): Tenant) -> Result<List<SecretView>> {
    let listed = door.services.secrets.list(&mut door.shard.begin(&scope)).await?;
    Ok(List {
        data: listed.into_iter().map(|one| SecretView { name: one.name, version: one.version }).collect(),
        next: None,
    })
}

/// Delete a secret.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/secrets/{name}", tag = "secrets", params(("tenant" = String, Path), ("name" = String, Path)),
    responses((status = 204)))]
pub(super) async fn delete(
    State(door): State<Door>,
    Path((_, name)): Path<(String, String)>,
    change: Change,
) -> Response {
    commit!(change, |effects| {
        if door.services.secrets.delete(effects, &name).await? {
            Ok(empty(StatusCode::NO_CONTENT))
        } else {
            Err(Error::not_found("no such secret"))
        }
    })
}
