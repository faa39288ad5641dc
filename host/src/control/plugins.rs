//! Plugins: upload, approval, release, rollback.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use crate::control::Tenant;
use crate::control::change::{Change, commit, empty, json};
use crate::control::page::{List, Page, next};
use crate::gateway::Door;
use crate::gateway::extract::{Path, Query};
use crate::kernel::clock::rfc3339;
use crate::kernel::error::{Error, Kind, Result};
use crate::services::plugins::manifest::Manifest;
use crate::services::plugins::{self, Plugin, Share, Stored, Version, components};

/// A plugin.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct PluginView {
    /// The name.
    name: String,
    /// Who gets traffic now.
    release: Vec<Share>,
    /// Versions stored.
    versions: u32,
    /// Approved grants by kind.
    #[schema(value_type = Object)]
    approved: serde_json::Value,
    /// When the first version came.
    created_at: String,
}

impl PluginView {
    fn of(plugin: Plugin) -> Result<Self> {
        Ok(Self {
            approved: serde_json::to_value(&plugin.approved).map_err(Error::internal)?,
            name: plugin.name,
            release: plugin.release,
            versions: plugin.versions,
            created_at: rfc3339(plugin.created_at_ms),
        })
    }
}

/// A version of a plugin.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct VersionView {
    /// The plugin's name.
    plugin: String,
    /// Semantic version.
    version: String,
    /// SHA-256 of the component.
    digest: String,
    /// Bytes of the component.
    size: u64,
    /// Triggers.
    handles: Vec<String>,
    /// Interfaces imported.
    imports: Vec<String>,
    /// `ready`, or `held` until its grants are approved.
    state: String,
    /// Grants that wait for approval.
    held: Vec<String>,
    /// When it came.
    uploaded_at: String,
}

impl VersionView {
    fn of(version: Version) -> Self {
        Self {
            plugin: version.plugin,
            version: version.version,
            digest: version.digest,
            size: version.size,
            handles: version.handles,
            imports: version.imports,
            state: if version.held.is_empty() { "ready" } else { "held" }.into(),
            held: version.held,
            uploaded_at: rfc3339(version.uploaded_at_ms),
        }
    }
}

/// What to release.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewRelease {
    /// The version.
    version: String,
    /// Its share of the traffic; 100 if not given.
    percent: Option<u8>,
}

fn invalid(code: &'static str, message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Kind::Invalid, code, message)
}

/// Upload a version. It is checked, compiled and stored; traffic it gets by a release.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/plugins/{plugin}", tag = "plugins",
    params(("tenant" = String, Path), ("plugin" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/wasm"),
    responses((status = 201, body = VersionView), (status = 200, body = VersionView, description = "The same bytes were stored before")))]
pub(super) async fn upload(
    State(door): State<Door>,
    Path((_, name)): Path<(String, String)>,
    request: Request,
) -> Result<Response> {
    let change = Change::read(request, &door, |scope| scope.plan().component_bytes).await?;
    let (scope, bytes) = (change.scope.clone(), change.body.clone());
    // Checked and compiled first: a version row never names a component that cannot run.
    let inspection = door.engine.accept(&scope, bytes.clone()).await?;
    let manifest = Manifest::from_component(&bytes).map_err(|error| invalid("manifest_invalid", error.to_string()))?;
    if manifest.name != name {
        return Err(invalid("name_mismatch", "the plugin's name in its manifest is not the one in the path"));
    }
    for (declared, trigger) in [(manifest.http.is_some(), "http"), (!manifest.webhooks.is_empty(), "webhook")] {
        if declared && !inspection.triggers.contains(&trigger) {
            return Err(invalid(
                "trigger_missing",
                format!(
                    "the manifest declares {trigger}, and the component does not export {trigger}-trigger; add it to chalet_sdk::export!"
                ),
            ));
        }
    }
    manifest.grants.cover(&inspection.imports).map_err(|error| {
        let denied = invalid("capability_denied", error.to_string());
        door.engine.reject(&denied);
        denied
    })?;
    let new = Version {
        plugin: name,
        version: manifest.version.to_string(),
        digest: inspection.digest.to_string(),
        size: bytes.len() as u64,
        handles: inspection.triggers.iter().map(|&trigger| trigger.to_owned()).collect(),
        imports: inspection.imports,
        held: Vec::new(),
        uploaded_at_ms: 0,
        manifest: serde_json::to_value(&manifest).map_err(Error::internal)?,
    };
    // Bytes first: a version row never names a component that is not there.
    components::store(&door.db, &scope, &new.digest, &bytes, door.shard.clock().now_ms()).await?;
    let what = serde_json::json!({ "digest": new.digest, "version": new.version });
    Ok(commit!(change.noting(what), |effects| match plugins::store(effects, &manifest, new.clone()).await? {
        Stored::New(version) => json(StatusCode::CREATED, &VersionView::of(version)),
        Stored::Same(version) => json(StatusCode::OK, &VersionView::of(version)),
    }))
}

/// The tenant's plugins, by name.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/plugins", tag = "plugins", params(("tenant" = String, Path), Page),
    responses((status = 200, body = List<PluginView>)))]
pub(super) async fn list(
    State(door): State<Door>,
    Tenant(scope): Tenant,
    Query(page): Query<Page>,
) -> Result<List<PluginView>> {
    let place = format!("plugins {}", scope.id().as_str());
    let after = page.after(&door, &place)?;
    let (found, more) = plugins::list(&mut door.shard.begin(&scope), after.as_deref(), page.limit()?).await?;
    let next = next(&door, &place, found.last().map(|plugin| plugin.name.as_bytes()), more);
    Ok(List { data: found.into_iter().map(PluginView::of).collect::<Result<_>>()?, next })
}

/// One plugin.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/plugins/{plugin}", tag = "plugins", params(("tenant" = String, Path), ("plugin" = String, Path)),
    responses((status = 200, body = PluginView)))]
pub(super) async fn get(
    State(door): State<Door>,
    Tenant(scope): Tenant,
    Path((_, plugin)): Path<(String, String)>,
) -> Result<Json<PluginView>> {
    Ok(Json(PluginView::of(plugins::get(&mut door.shard.begin(&scope), &plugin).await?)?))
}

/// Remove a plugin with its versions. What it stored stays: collections belong to the tenant.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/plugins/{plugin}", tag = "plugins", params(("tenant" = String, Path), ("plugin" = String, Path)),
    responses((status = 204)))]
pub(super) async fn delete(Path((_, plugin)): Path<(String, String)>, change: Change) -> Response {
    commit!(change, |effects| {
        plugins::delete(effects, &plugin).await?;
        Ok(empty(StatusCode::NO_CONTENT))
    })
}

/// A plugin's versions.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/plugins/{plugin}/versions", tag = "plugins", params(("tenant" = String, Path), ("plugin" = String, Path), Page),
    responses((status = 200, body = List<VersionView>)))]
pub(super) async fn versions(
    State(door): State<Door>,
    Tenant(scope): Tenant,
    Path((_, plugin)): Path<(String, String)>,
    Query(page): Query<Page>,
) -> Result<List<VersionView>> {
    let place = format!("versions {} {plugin}", scope.id().as_str());
    let after = page.after_text(&door, &place)?;
    let (found, more) =
        plugins::versions(&mut door.shard.begin(&scope), &plugin, after.as_deref(), page.limit()?).await?;
    let next = next(&door, &place, found.last().map(|version| version.version.as_bytes()), more);
    Ok(List { data: found.into_iter().map(VersionView::of).collect(), next })
}

/// Approve all grants that a version asks for.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/plugins/{plugin}/versions/{version}/approve", tag = "plugins",
    params(("tenant" = String, Path), ("plugin" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = VersionView)))]
pub(super) async fn approve(Path((_, plugin, version)): Path<(String, String, String)>, change: Change) -> Response {
    commit!(change, |effects| json(
        StatusCode::OK,
        &VersionView::of(plugins::approve(effects, &plugin, &version).await?)
    ))
}

/// Give a version a share of the traffic.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/plugins/{plugin}/release", tag = "plugins", params(("tenant" = String, Path), ("plugin" = String, Path)),
    request_body = NewRelease, responses((status = 200, body = PluginView)))]
pub(super) async fn release(Path((_, plugin)): Path<(String, String)>, change: Change) -> Result<Response> {
    let new: NewRelease = change.json()?;
    let percent = new.percent.unwrap_or(100);
    let what = serde_json::json!({ "percent": percent, "version": new.version });
    Ok(commit!(change.noting(what), |effects| {
        json(StatusCode::OK, &PluginView::of(plugins::release(effects, &plugin, &new.version, percent).await?)?)
    }))
}

/// Go back to the release before this one.
#[utoipa::path(post, path = "/v1/tenants/{tenant}/plugins/{plugin}/rollback", tag = "plugins", params(("tenant" = String, Path), ("plugin" = String, Path)),
    responses((status = 200, body = PluginView)))]
pub(super) async fn rollback(Path((_, plugin)): Path<(String, String)>, change: Change) -> Response {
    commit!(change, |effects| json(StatusCode::OK, &PluginView::of(plugins::rollback(effects, &plugin).await?)?))
}
