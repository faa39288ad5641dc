//! The API of operators and tenant admins: every route on one screen, each with what it demands.
//!
//! A route cannot be added without saying who may call it: the table is what the router is built from.

mod change;
mod docs;
mod flags;
mod invocations;
mod keys;
mod kv;
mod limits;
mod ofrep;
pub(crate) mod page;
mod plans;
mod plugins;
mod secrets;
mod tenants;
mod usage;
mod webhooks;

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, FromRequestParts, RawPathParams, Request, State};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};
use utoipa_axum::routes;

use crate::gateway::Door;
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::tenant::TenantScope;
use crate::services::keys::{Principal, Right};
use crate::services::limits::CONTROL;

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The operator.
    Platform,
    /// Holders of this right in the tenant that the path names.
    Tenant(Right),
    /// Holders of a tenant's key that may read or invoke; the tenant is the key's.
    Own,
}

/// One route: who may call it, and what answers.
pub struct Route {
    /// Who may call it.
    pub access: Access,
    router: UtoipaMethodRouter<Door>,
}

impl Route {
    /// Methods and path, such as `("get", "/v1/tenants")`.
    pub fn operations(&self) -> Vec<(&'static str, String)> {
        let mut operations = Vec::new();
        for (path, item) in &self.router.1.paths {
            for (method, operation) in [
                ("get", &item.get),
                ("put", &item.put),
                ("post", &item.post),
                ("delete", &item.delete),
                ("patch", &item.patch),
            ] {
                if operation.is_some() {
                    operations.push((method, path.clone()));
                }
            }
        }
        operations
    }
}

/// All routes. The authorization tests are generated from this list.
pub fn table() -> Vec<Route> {
    use Access::{Own, Platform, Tenant};
    use Right::{TenantAdmin as Admin, TenantRead as Read, TenantWrite as Write};
    macro_rules! route {
        ($access:expr, $handler:path) => {
            Route { access: $access, router: routes!($handler) }
        };
    }
    vec![
        route!(Platform, tenants::create),
        route!(Platform, tenants::list),
        route!(Tenant(Read), tenants::get),
        route!(Platform, tenants::change),
        route!(Platform, tenants::delete),
        route!(Platform, plans::list),
        route!(Platform, plans::get),
        route!(Platform, plans::put),
        route!(Tenant(Admin), keys::create),
        route!(Tenant(Admin), keys::list),
        route!(Tenant(Admin), keys::delete),
        route!(Tenant(Admin), plugins::upload),
        route!(Tenant(Read), plugins::list),
        route!(Tenant(Read), plugins::get),
        route!(Tenant(Admin), plugins::delete),
        route!(Tenant(Read), plugins::versions),
        route!(Tenant(Admin), plugins::approve),
        route!(Tenant(Admin), plugins::release),
        route!(Tenant(Admin), plugins::rollback),
        route!(Tenant(Read), invocations::list),
        route!(Tenant(Read), invocations::get),
        route!(Tenant(Read), invocations::logs),
        route!(Tenant(Read), kv::list),
        route!(Tenant(Read), kv::get),
        route!(Tenant(Write), kv::put),
        route!(Tenant(Write), kv::delete),
        route!(Tenant(Write), usage::ingest),
        route!(Tenant(Read), usage::query),
        route!(Tenant(Read), usage::meters),
        route!(Tenant(Read), usage::meter),
        route!(Tenant(Admin), usage::define),
        route!(Tenant(Admin), usage::remove),
        route!(Tenant(Read), limits::get),
        route!(Tenant(Admin), limits::put),
        route!(Tenant(Write), limits::check),
        route!(Tenant(Read), flags::get),
        route!(Tenant(Write), flags::put),
        route!(Own, ofrep::evaluate),
        route!(Own, ofrep::evaluate_all),
        route!(Tenant(Admin), secrets::put),
        route!(Tenant(Read), secrets::list),
        route!(Tenant(Admin), secrets::delete),
        route!(Tenant(Admin), webhooks::put),
        route!(Tenant(Read), webhooks::list),
        route!(Tenant(Admin), webhooks::delete),
    ]
}

/// The router of all routes, with the OpenAPI document and its browsable form.
pub fn router(door: &Door) -> Router {
    let mut router = OpenApiRouter::with_openapi(docs::openapi());
    for Route { access, router: (schemas, paths, methods) } in table() {
        let guarded = methods.layer(middleware::from_fn_with_state((door.clone(), access), authorize));
        router = router.routes((schemas, paths, guarded));
    }
    let (router, openapi) = router.split_for_parts();
    router.with_state(door.clone()).merge(docs::router(openapi))
}

/// The OpenAPI document.
pub fn openapi() -> OpenApi {
    let mut router = OpenApiRouter::<Door>::with_openapi(docs::openapi());
    for Route { router: routes, .. } in table() {
        router = router.routes(routes);
    }
    router.to_openapi()
}

/// The one answer for a tenant that does not exist and for another's.
fn no_tenant() -> Error {
    Error::not_found("no such tenant")
}

async fn authorize(
    State((door, access)): State<(Door, Access)>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    params: RawPathParams,
    mut request: Request,
    next: Next,
) -> Response {
    let name = params.iter().find(|(name, _)| *name == "tenant").map(|(_, tenant)| tenant.to_owned());
    match permit(&door, access, peer, name.as_deref(), request.headers()).await {
        Err(error) => error.into_response(),
        Ok((principal, scope)) => {
            request.extensions_mut().insert(Caller(principal));
            if let Some(scope) = scope {
                request.extensions_mut().insert(Tenant(scope));
            }
            next.run(request).await
        }
    }
}

async fn permit(
    door: &Door,
    access: Access,
    peer: SocketAddr,
    name: Option<&str>,
    headers: &HeaderMap,
) -> Result<(Principal, Option<TenantScope>)> {
    let principal = door.credentials.authenticate(headers, peer).await?;
    door.limits.host("control", &principal.key, CONTROL).await?.error().map_or(Ok(()), Err)?;
    let forbidden = |right: &str| Error::new(Kind::Denied, "forbidden", format!("the key lacks the scope `{right}`"));
    match access {
        Access::Platform => {
            if !principal.may(Right::PlatformAdmin) {
                return Err(forbidden(Right::PlatformAdmin.name()));
            }
            let scope = match name {
                Some(name) => Some(door.directory.by_name(name).await?.ok_or_else(no_tenant)?),
                None => None,
            };
            Ok((principal, scope))
        }
        Access::Tenant(right) => {
            let scope = door.directory.by_name(name.unwrap_or("")).await?.ok_or_else(no_tenant)?;
            if principal.tenant.as_ref().is_some_and(|own| own != scope.id()) {
                return Err(no_tenant());
            }
            if !principal.may(right) {
                return Err(forbidden(right.name()));
            }
            Ok((principal, Some(scope)))
        }
        Access::Own => {
            let Some(own) = &principal.tenant else {
                return Err(Error::new(
                    Kind::Denied,
                    "forbidden",
                    "present a tenant's key; the operator's has no tenant",
                ));
            };
            if !principal.may(Right::TenantRead) && !principal.may(Right::Invoke) {
                return Err(forbidden("tenant:read` or `invoke"));
            }
            let scope = door.directory.by_id(own).await?.ok_or_else(no_tenant)?;
            Ok((principal, Some(scope)))
        }
    }
}

/// The tenant that the route was authorized for.
#[derive(Clone, Debug)]
struct Tenant(TenantScope);

/// Who calls.
#[derive(Clone, Debug)]
struct Caller(Principal);

fn unauthorized_route() -> Error {
    Error::internal("a handler was reached without authorization")
}

impl<S: Sync> FromRequestParts<S> for Tenant {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        parts.extensions.get::<Self>().cloned().ok_or_else(unauthorized_route)
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        parts.extensions.get::<Self>().cloned().ok_or_else(unauthorized_route)
    }
}

/// How often a log stream looks for new invocations.
const LOG_POLL: Duration = Duration::from_millis(300);
