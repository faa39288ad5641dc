//! Sources of inbound webhooks, where the tenant says other than the manifest.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use crate::control::Tenant;
use crate::control::change::{Change, commit, empty, json};
use crate::control::page::List;
use crate::gateway::Door;
use crate::gateway::extract::Path;
use crate::kernel::error::{Error, Result};
use crate::services::webhooks::{self, Source};

/// A source with its name.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct SourceView {
    name: String,
    #[serde(flatten)]
    source: Source,
}

/// Define how a source is verified.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/webhooks/sources/{source}", tag = "webhooks", params(("tenant" = String, Path), ("source" = String, Path)),
    request_body = Source, responses((status = 200, body = Source), (status = 201, body = Source)))]
pub(super) async fn put(Path((_, name)): Path<(String, String)>, change: Change) -> Result<Response> {
    let source = Source::parse(&change.body)?;
    Ok(commit!(change, |effects| {
        let made = webhooks::put(effects, &name, &source).await?;
        json(if made { StatusCode::CREATED } else { StatusCode::OK }, &source)
    }))
}

/// The sources that the tenant has defined.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/webhooks/sources", tag = "webhooks", params(("tenant" = String, Path)),
    responses((status = 200, body = List<SourceView>)))]
pub(super) async fn list(State(door): State<Door>, Tenant(scope): Tenant) -> Result<List<SourceView>> {
    let sources = webhooks::list(&mut door.shard.begin(&scope)).await?;
    Ok(List { data: sources.into_iter().map(|(name, source)| SourceView { name, source }).collect(), next: None })
}

/// Go back to what the manifest says.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/webhooks/sources/{source}", tag = "webhooks", params(("tenant" = String, Path), ("source" = String, Path)),
    responses((status = 204)))]
pub(super) async fn delete(Path((_, name)): Path<(String, String)>, change: Change) -> Response {
    commit!(change, |effects| {
        if webhooks::delete(effects, &name).await? {
            Ok(empty(StatusCode::NO_CONTENT))
        } else {
            Err(Error::not_found("no such source"))
        }
    })
}
