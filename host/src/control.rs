//! The API of operators and tenant admins: every route on one screen, each with what it demands.
//!
//! A route cannot be added without saying who may call it and what the audit log keeps of it: the table is what the
//! router is built from.

mod audit;
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
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{ConnectInfo, FromRequestParts, RawPathParams, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};
use utoipa_axum::routes;

use crate::gateway::Door;
use crate::gateway::respond::request_id;
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::tenant::TenantScope;
use crate::kernel::trace;
use crate::services::audit::{Actor, Record};
use crate::services::keys::{Principal, Right, without_secret};
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

/// What the audit log keeps of a route's requests. Denials it keeps of every route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audit {
    /// Nothing: they change nothing.
    Nothing,
    /// Nothing: they change the tenant's own data, as its plugins do, thousands of times a second perhaps.
    Data,
    /// What changes something, with a digest of the body.
    Change,
    /// The same without the digest, from which a short secret could be guessed.
    Secret,
}

/// What holds for a route before it is asked anything.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Its name, such as `plugins.release`.
    pub name: &'static str,
    /// Who may call it.
    pub access: Access,
    /// What the audit log keeps of it.
    pub audit: Audit,
}

/// One route: its rule, and what answers.
pub struct Route {
    /// What holds for it.
    pub rule: Rule,
    router: UtoipaMethodRouter<Door>,
}

impl Route {
    fn new(rule: Rule, mut router: UtoipaMethodRouter<Door>) -> Self {
        for item in router.1.paths.values_mut() {
            let methods = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
            methods.into_iter().flatten().for_each(|operation| operation.operation_id = Some(rule.name.into()));
        }
        Self { rule, router }
    }

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
    use Audit::{Change, Data, Nothing, Secret};
    use Right::{TenantAdmin as Admin, TenantRead as Read, TenantWrite as Write};
    macro_rules! route {
        ($access:expr, $audit:expr, $module:ident::$handler:ident) => {
            Route::new(
                Rule { name: concat!(stringify!($module), ".", stringify!($handler)), access: $access, audit: $audit },
                routes!($module::$handler),
            )
        };
    }
    vec![
        route!(Platform, Change, tenants::create),
        route!(Platform, Nothing, tenants::list),
        route!(Tenant(Read), Nothing, tenants::get),
        route!(Platform, Change, tenants::change),
        route!(Platform, Change, tenants::delete),
        route!(Platform, Nothing, plans::list),
        route!(Platform, Nothing, plans::get),
        route!(Platform, Change, plans::put),
        route!(Tenant(Admin), Change, keys::create),
        route!(Tenant(Admin), Nothing, keys::list),
        route!(Tenant(Admin), Change, keys::delete),
        route!(Tenant(Admin), Change, plugins::upload),
        route!(Tenant(Read), Nothing, plugins::list),
        route!(Tenant(Read), Nothing, plugins::get),
        route!(Tenant(Admin), Change, plugins::delete),
        route!(Tenant(Read), Nothing, plugins::versions),
        route!(Tenant(Admin), Change, plugins::approve),
        route!(Tenant(Admin), Change, plugins::release),
        route!(Tenant(Admin), Change, plugins::rollback),
        route!(Tenant(Read), Nothing, invocations::list),
        route!(Tenant(Read), Nothing, invocations::get),
        route!(Tenant(Read), Nothing, invocations::logs),
        route!(Tenant(Read), Nothing, kv::list),
        route!(Tenant(Read), Nothing, kv::get),
        route!(Tenant(Write), Data, kv::put),
        route!(Tenant(Write), Data, kv::delete),
        route!(Tenant(Write), Data, usage::ingest),
        route!(Tenant(Read), Nothing, usage::query),
        route!(Tenant(Read), Nothing, usage::meters),
        route!(Tenant(Read), Nothing, usage::meter),
        route!(Tenant(Admin), Change, usage::define),
        route!(Tenant(Admin), Change, usage::remove),
        route!(Tenant(Read), Nothing, limits::get),
        route!(Tenant(Admin), Change, limits::put),
        route!(Tenant(Write), Data, limits::check),
        route!(Tenant(Read), Nothing, flags::get),
        route!(Tenant(Write), Change, flags::put),
        route!(Own, Nothing, ofrep::evaluate),
        route!(Own, Nothing, ofrep::evaluate_all),
        route!(Tenant(Admin), Secret, secrets::put),
        route!(Tenant(Read), Nothing, secrets::list),
        route!(Tenant(Admin), Change, secrets::delete),
        route!(Tenant(Admin), Change, webhooks::put),
        route!(Tenant(Read), Nothing, webhooks::list),
        route!(Tenant(Admin), Change, webhooks::delete),
        route!(Tenant(Admin), Nothing, audit::list),
        route!(Tenant(Admin), Nothing, audit::verify),
        route!(Platform, Nothing, audit::list_platform),
        route!(Platform, Nothing, audit::verify_platform),
    ]
}

/// The router of all routes, with the OpenAPI document and its browsable form.
pub fn router(door: &Door) -> Router {
    let mut router = OpenApiRouter::with_openapi(docs::openapi());
    for Route { rule, router: (schemas, paths, methods) } in table() {
        let guarded = methods.layer(middleware::from_fn_with_state((door.clone(), rule), authorize));
        router = router.routes((schemas, paths, guarded));
    }
    let (router, openapi) = router.split_for_parts();
    router.with_state(door.clone()).merge(docs::router(docs::complete(openapi)))
}

/// The OpenAPI document.
pub fn openapi() -> OpenApi {
    let mut router = OpenApiRouter::<Door>::with_openapi(docs::openapi());
    for Route { router: routes, .. } in table() {
        router = router.routes(routes);
    }
    docs::complete(router.to_openapi())
}

/// The one answer for a tenant that does not exist and for another's.
fn no_tenant() -> Error {
    Error::not_found("no such tenant")
}

async fn authorize(
    State((door, rule)): State<(Door, Rule)>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    params: Result<RawPathParams, RawPathParamsRejection>,
    mut request: Request,
    next: Next,
) -> Response {
    let principal = match identify(&door, peer, request.headers()).await {
        Ok(principal) => principal,
        Err(error) => return error.into_response(),
    };
    let params = match params {
        Ok(params) => params,
        Err(refused) => return Error::invalid(refused.body_text()).into_response(),
    };
    let target = request.uri().clone();
    let caller = Caller { principal, rule, peer };
    let name = params.iter().find(|(name, _)| *name == "tenant").map(|(_, tenant)| tenant.to_owned());
    let permitted = permit(&door, rule.access, &caller.principal, name.as_deref()).await;
    let (response, denied) = match permitted.and_then(|scope| plain(request.headers()).map(|()| scope)) {
        Err(error) => {
            // That there is no such tenant is a denial to whoever may not know of others; of both, the same is kept.
            let hidden = error.kind() == Kind::NotFound && caller.principal.tenant.is_some();
            let denied = (hidden || error.kind() == Kind::Denied).then(|| error.code());
            (error.into_response(), denied)
        }
        Ok(scope) => {
            request.extensions_mut().insert(caller.clone());
            if let Some(scope) = scope {
                trace::current().set("chalet.tenant", scope.name());
                request.extensions_mut().insert(Tenant(scope));
            }
            let response = next.run(request).await;
            let denied = (response.status() == StatusCode::FORBIDDEN).then_some("forbidden");
            (response, denied)
        }
    };
    if let Some(code) = denied {
        // The caller's own log: another's tells nobody of it, and is not touched.
        let own = match &caller.principal.tenant {
            None => Ok(Some(door.directory.platform().clone())),
            Some(own) => door.directory.by_id(own).await,
        };
        if let Ok(Some(own)) = own {
            door.audit.deny(&own, caller.record(&target).denied(code)).await;
        }
    }
    response
}

/// Bodies are read as they come: nothing here undoes an encoding, so that no few bytes become many.
fn plain(headers: &HeaderMap) -> Result<()> {
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    if encodings.all(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Ok(());
    }
    Err(Error::new(Kind::Invalid, "unsupported_media_type", "send the body without a content encoding"))
}

async fn identify(door: &Door, peer: SocketAddr, headers: &HeaderMap) -> Result<Arc<Principal>> {
    let principal = door.credentials.authenticate(headers, peer).await?;
    door.limits.host("control", &principal.key, CONTROL).await?.error().map_or(Ok(()), Err)?;
    Ok(principal)
}

async fn permit(door: &Door, access: Access, principal: &Principal, name: Option<&str>) -> Result<Option<TenantScope>> {
    let forbidden = |right: &str| Error::new(Kind::Denied, "forbidden", format!("the key lacks the scope `{right}`"));
    match access {
        Access::Platform => {
            if !principal.may(Right::PlatformAdmin) {
                return Err(forbidden(Right::PlatformAdmin.name()));
            }
            match name {
                Some(name) => Ok(Some(door.directory.by_name(name).await?.ok_or_else(no_tenant)?)),
                None => Ok(None),
            }
        }
        Access::Tenant(right) => {
            let name = name.unwrap_or("");
            let scope = match &principal.tenant {
                // Another's name is not looked up: how long that takes would tell whether there is such a tenant.
                Some(own) if !door.breaks.names && !door.breaks.tenant => {
                    door.directory.by_id(own).await?.filter(|own| own.name() == name)
                }
                _ => door.directory.by_name(name).await?,
            };
            let scope = scope.ok_or_else(no_tenant)?;
            if principal.tenant.as_ref().is_some_and(|own| own != scope.id()) && !door.breaks.tenant {
                return Err(no_tenant());
            }
            if !principal.may(right) {
                return Err(forbidden(right.name()));
            }
            Ok(Some(scope))
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
            Ok(Some(door.directory.by_id(own).await?.ok_or_else(no_tenant)?))
        }
    }
}

/// The tenant that the route was authorized for.
#[derive(Clone, Debug)]
struct Tenant(TenantScope);

/// Who calls, from where, for what.
#[derive(Clone, Debug)]
struct Caller {
    principal: Arc<Principal>,
    rule: Rule,
    peer: SocketAddr,
}

impl Caller {
    /// What the audit log says of the request before it is worked on.
    fn record(&self, target: &Uri) -> Record {
        let right = match self.rule.access {
            Access::Platform => Right::PlatformAdmin,
            Access::Tenant(right) => right,
            Access::Own => Right::TenantRead,
        };
        // Somebody's key may stand in a path by mistake, and those who read the log may not have it.
        let target: Vec<_> = target.path().split('/').map(without_secret).collect();
        let record = Record::new(self.rule.name, Actor::holder(&self.principal), right, &target.join("/"));
        Record { request: request_id(), ..record.from(self.peer.ip()) }
    }
}

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
