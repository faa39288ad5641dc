//! Usage: events are ingested, meters defined, and sums asked for.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use crate::control::Tenant;
use crate::control::change::{Change, commit, empty, json, precondition};
use crate::control::page::List;
use crate::gateway::Door;
use crate::gateway::extract::{Path, Query};
use crate::kernel::error::{Error, Result};
use crate::services::meters::{self, Definition, Ingested, Listed, UsageRow};

/// What usage to sum.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Question {
    /// The meter: a defined or recorded one, or `invocations`, `failures`, `fuel`, `bytes_in`, `bytes_out`, `storage`.
    meter: Option<String>,
    /// RFC 3339, included; 31 days before `to` if not given.
    from: Option<String>,
    /// RFC 3339, excluded; now if not given.
    to: Option<String>,
    /// `minute`, `hour`, `day` or `month`; one window if not given.
    window: Option<String>,
    /// Names with commas between them.
    group_by: Option<String>,
}

/// Ingest CloudEvents 1.0 in any content mode of their HTTP binding: one event, or an array of at most 400; or one
/// whose attributes are headers, with JSON data as the body. An event whose source and id were seen before is counted
/// once. What is accepted is in the next answer.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/usage/events", tag = "usage",
    params(("tenant" = String, Path),
        ("ce-specversion" = Option<String>, Header, description = "In binary mode, which any `ce-` header asks for: `1.0`"),
        ("ce-id" = Option<String>, Header, description = "In binary mode: the event's name at its source"),
        ("ce-source" = Option<String>, Header, description = "In binary mode: where it happened, a URI reference"),
        ("ce-type" = Option<String>, Header, description = "In binary mode: what happened. Other attributes in the same manner")),
    request_body(content((Object = "application/cloudevents+json"), (Vec<Object> = "application/cloudevents-batch+json"),
        (Object = "application/json"))),
    responses((status = 202, body = Ingested)))]
pub(super) async fn ingest(State(door): State<Door>, change: Change) -> Result<Response> {
    let events = meters::receive(&change.headers, &change.body, door.shard.clock().now_ms())?;
    Ok(commit!(change, |effects| json(StatusCode::ACCEPTED, &meters::ingest(effects, &events).await?)))
}

/// Sums of a meter by window and group. Values are decimals.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/usage", tag = "usage", params(("tenant" = String, Path), Question),
    responses((status = 200, body = List<UsageRow>)))]
pub(super) async fn query(
    State(door): State<Door>,
    Tenant(scope): Tenant,
    Query(asked): Query<Question>,
) -> Result<List<UsageRow>> {
    let meter = asked.meter.as_deref().ok_or_else(|| Error::invalid("name a meter: ?meter=NAME"))?;
    // What the host counted up to now is in the answer.
    door.invoker.tally().flush().await;
    let query = meters::Query::parse(
        meter,
        asked.from.as_deref(),
        asked.to.as_deref(),
        asked.window.as_deref(),
        asked.group_by.as_deref(),
        door.shard.clock().now_ms(),
    )?;
    Ok(List { data: meters::query(&door.shard, &scope, &query).await?, next: None })
}

/// The tenant's meters: built-in, defined, and recorded by plugins.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/meters", tag = "usage", params(("tenant" = String, Path)),
    responses((status = 200, body = List<Listed>)))]
pub(super) async fn meters(State(door): State<Door>, Tenant(scope): Tenant) -> Result<List<Listed>> {
    Ok(List { data: meters::list(&mut door.shard.begin(&scope)).await?, next: None })
}

/// One defined meter.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/meters/{meter}", tag = "usage", params(("tenant" = String, Path), ("meter" = String, Path)),
    responses((status = 200, body = Definition)))]
pub(super) async fn meter(
    State(door): State<Door>,
    Tenant(scope): Tenant,
    Path((_, meter)): Path<(String, String)>,
) -> Result<Response> {
    let found = meters::get(&mut door.shard.begin(&scope), &meter).await?;
    let (definition, version) = found.ok_or_else(|| Error::not_found("no such meter is defined"))?;
    let mut response = Json(definition).into_response();
    response
        .headers_mut()
        .insert(header::ETAG, HeaderValue::try_from(format!("\"{version}\"")).map_err(Error::internal)?);
    Ok(response)
}

/// Define a meter. It counts all stored events of its type, earlier ones too.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/meters/{meter}", tag = "usage", params(("tenant" = String, Path), ("meter" = String, Path)),
    request_body = Definition, responses((status = 200, body = Definition), (status = 201, body = Definition)))]
pub(super) async fn define(Path((_, meter)): Path<(String, String)>, change: Change) -> Response {
    let (headers, body) = (change.headers.clone(), change.body.clone());
    commit!(change.versioned(), |effects| {
        let version = meters::get(effects, &meter).await?.map_or(0, |(_, version)| version);
        precondition(&headers, version)?;
        let (definition, made) = meters::put(effects, &meter, &body).await?;
        json(if made { StatusCode::CREATED } else { StatusCode::OK }, &definition)
    })
}

/// Remove a meter's definition. Its events stay.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/meters/{meter}", tag = "usage", params(("tenant" = String, Path), ("meter" = String, Path)),
    responses((status = 204)))]
pub(super) async fn remove(Path((_, meter)): Path<(String, String)>, change: Change) -> Response {
    commit!(change, |effects| {
        if meters::delete(effects, &meter).await? {
            Ok(empty(StatusCode::NO_CONTENT))
        } else {
            Err(Error::not_found("no such meter is defined"))
        }
    })
}
