//! The tenant's flags: one flagd document.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;

use crate::control::Tenant;
use crate::control::change::{Change, commit, json, precondition};
use crate::gateway::Door;
use crate::kernel::error::{Error, Result};

/// The tenant's flag document.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/flags", tag = "flags", params(("tenant" = String, Path)),
    responses((status = 200, body = Object, description = "A flagd document")))]
pub(super) async fn get(State(door): State<Door>, Tenant(scope): Tenant) -> Result<Response> {
    let found = door.services.flags.get(&mut door.shard.begin(&scope)).await?;
    let (document, version) = found.ok_or_else(|| Error::not_found("the tenant has no flag document; PUT one"))?;
    let mut response = Response::new(Body::from(document));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::ETAG, HeaderValue::try_from(format!("\"{version}\"")).map_err(Error::internal)?);
    Ok(response)
}

/// Replace the tenant's flag document. `If-Match` demands a version of it.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/flags", tag = "flags", params(("tenant" = String, Path)),
    request_body(content = Object, description = "A flagd document"),
    responses((status = 200, body = Object, description = "What in the document may not be meant as it stands: `{\"warnings\":[…]}`")))]
pub(super) async fn put(State(door): State<Door>, change: Change) -> Response {
    let (headers, body) = (change.headers.clone(), change.body.clone());
    commit!(change.versioned(), |effects| {
        let version = door.services.flags.get(effects).await?.map_or(0, |(_, version)| version);
        precondition(&headers, version)?;
        let warnings = door.services.flags.put(effects, &body)?;
        json(StatusCode::OK, &serde_json::json!({ "warnings": warnings }))
    })
}
