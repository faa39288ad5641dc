//! Key-value entries over HTTP: the bytes are the body, the version is the ETag.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::{Deserialize, Serialize};

use crate::control::Tenant;
use crate::control::change::{Change, commit, empty, precondition};
use crate::control::page::{List, Page, next};
use crate::gateway::Door;
use crate::gateway::extract::{Path, Query};
use crate::kernel::error::{Error, Result};
use crate::services::kv;

/// An entry in a list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Item {
    key: String,
    /// The number of the commit that wrote it.
    version: u64,
    /// Bytes of the value.
    size: u64,
}

/// Which entries to list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// What the keys start with.
    prefix: Option<String>,
    /// Entries at most; 100 if not given, 1,000 at most.
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// How long an entry lives.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Lifetime {
    /// Milliseconds until the entry expires; it stays if not given.
    ttl_ms: Option<u64>,
}

/// Entries of a collection in the order of their keys' bytes.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/kv/{collection}", tag = "kv", params(("tenant" = String, Path), ("collection" = String, Path), Filter),
    responses((status = 200, body = List<Item>)))]
pub(super) async fn list(
    State(door): State<Door>,
    Tenant(scope): Tenant,
    Path((_, collection)): Path<(String, String)>,
    Query(filter): Query<Filter>,
) -> Result<List<Item>> {
    let page = Page { limit: filter.limit, cursor: filter.cursor };
    let prefix = filter.prefix.unwrap_or_default();
    let place = format!("kv {} {collection} {prefix}", scope.id().as_str());
    let limit = u32::try_from(page.limit()?).unwrap_or(u32::MAX);
    let after = page.after_text(&door, &place)?;
    let mut effects = door.shard.begin(&scope);
    let found = kv::list(&mut effects, &collection, &prefix, after.as_deref(), limit).await?;
    let next = next(&door, &place, found.cursor.as_deref().map(str::as_bytes), found.cursor.is_some());
    let item = |entry: kv::Entry| Item { key: entry.key, version: entry.version, size: entry.value.len() as u64 };
    Ok(List { data: found.entries.into_iter().map(item).collect(), next })
}

/// An entry's bytes.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/kv/{collection}/{key}", tag = "kv",
    params(("tenant" = String, Path), ("collection" = String, Path), ("key" = String, Path)),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"), (status = 304)))]
pub(super) async fn get(
    State(door): State<Door>,
    Tenant(scope): Tenant,
    Path((_, collection, key)): Path<(String, String, String)>,
    headers: axum::http::HeaderMap,
) -> Result<Response> {
    let entry = kv::get(&mut door.shard.begin(&scope), &collection, &key)
        .await?
        .ok_or_else(|| Error::not_found("no such entry"))?;
    let tag = format!("\"{}\"", entry.version);
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let unchanged = known.is_some_and(|known| known.split(',').any(|one| one.trim() == "*" || one.trim() == tag));
    let mut response = if unchanged {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        let mut response = Response::new(Body::from(entry.value));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        // The bytes are a tenant's: a browser must not take them for a page of ours.
        response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    };
    response.headers_mut().insert(header::ETAG, HeaderValue::try_from(tag).map_err(Error::internal)?);
    Ok(response)
}

/// Write an entry. `If-Match` demands a version, `If-None-Match: *` its absence.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/kv/{collection}/{key}", tag = "kv",
    params(("tenant" = String, Path), ("collection" = String, Path), ("key" = String, Path), Lifetime),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, description = "Made"), (status = 204, description = "Replaced")))]
pub(super) async fn put(
    Path((_, collection, key)): Path<(String, String, String)>,
    Query(lifetime): Query<Lifetime>,
    change: Change,
) -> Response {
    let (headers, body) = (change.headers.clone(), change.body.clone());
    commit!(change.versioned(), |effects| {
        let old = kv::get(effects, &collection, &key).await?;
        precondition(&headers, old.as_ref().map_or(0, |entry| entry.version))?;
        kv::put(effects, &collection, &key, body.clone(), lifetime.ttl_ms, None).await?;
        Ok(empty(if old.is_some() { StatusCode::NO_CONTENT } else { StatusCode::CREATED }))
    })
}

/// Remove an entry. `If-Match` demands a version.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/kv/{collection}/{key}", tag = "kv",
    params(("tenant" = String, Path), ("collection" = String, Path), ("key" = String, Path)),
    responses((status = 204)))]
pub(super) async fn delete(Path((_, collection, key)): Path<(String, String, String)>, change: Change) -> Response {
    let headers = change.headers.clone();
    commit!(change, |effects| {
        let old = kv::get(effects, &collection, &key).await?;
        precondition(&headers, old.as_ref().map_or(0, |entry| entry.version))?;
        if !kv::delete(effects, &collection, &key, None).await? {
            return Err(Error::not_found("no such entry"));
        }
        Ok(empty(StatusCode::NO_CONTENT))
    })
}
