//! `/t/{tenant}/{plugin}/…`: a request that a plugin answers.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::gateway::respond::problem;
use crate::gateway::serve::TooSlow;
use crate::gateway::{Door, cookie};
use crate::invocation::{Done, Work};
use crate::kernel;
use crate::kernel::breaks::Breaks;
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::header::is_hop_by_hop;
use crate::kernel::tenant::TenantScope;
use crate::kernel::trace;
use crate::services::idempotency::{self, Cause};
use crate::services::keys::{Principal, Right};
use crate::services::limits::{self, Admission};
use crate::services::plugins::Released;
use crate::services::plugins::manifest::Auth;
use crate::triggers::{Call, http};

/// Invocations that may call each other through the public door. Real chains have two or three.
const DEPTH: u8 = 8;
/// Microseconds after a request at which whoever may not call what its path names is told so. What others have called lately
/// is remembered, and what nobody has is not, so that the time would tell of another tenant's names: it is longer than a
/// look-up takes, and drawn anew each time, so that what a look-up leaves behind, such as a thread that is awake, is lost in it.
const REFUSED_AFTER_US: Range<u64> = 4_000..20_000;

fn no_route() -> Error {
    Error::not_found("no such tenant, plugin or route")
}

/// Answer a request of the data plane.
pub(super) async fn handle(
    State(door): State<Door>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    match answer(&door, peer, request).await {
        Ok(response) | Err(response) => response,
    }
}

async fn answer(door: &Door, peer: SocketAddr, request: Request) -> Result<Response, Response> {
    let (parts, body) = request.into_parts();
    let refuse = |error: Error| error.into_response();
    let mut segments = parts.uri.path().splitn(5, '/').skip(2);
    let (Some(tenant), Some(plugin)) = (segments.next(), segments.next()) else { return Err(refuse(no_route())) };
    let path = format!("/{}", segments.next().unwrap_or(""));
    let mount = "/t/".len() + tenant.len() + "/".len() + plugin.len();

    let begun = Instant::now();
    let (caller, scope, released) = match enter(door, peer, &parts.headers, tenant, plugin).await {
        Ok(entered) => entered,
        Err(error) => {
            if !door.breaks.names {
                let after = Duration::from_micros(rand::random_range(REFUSED_AFTER_US));
                tokio::time::sleep_until(begun + after).await;
            }
            return Err(refuse(error));
        }
    };
    let span = trace::current();
    span.set("chalet.tenant", scope.name());
    span.set("chalet.plugin", plugin);
    let matched = released.routes.find(parts.method.as_str(), &path).ok_or_else(|| refuse(no_route()))?;
    if span.sampled() {
        let route = matched.route.split_once(' ').map_or("", |(_, path)| path);
        span.asks(parts.method.as_str(), Some(&format!("/t/{{tenant}}/{{plugin}}{route}")));
    }

    let key = match &caller {
        Caller::Key(principal) => Some(principal.key.as_str()),
        Caller::Anyone => None,
    };
    let admission = door.limits.admit(&door.shard, &scope, plugin, key).await.map_err(refuse)?;
    if let Some(error) = admission.error() {
        return Err(with_limits(refuse(error), &admission));
    }
    let body = read_body(body, scope.plan().request_body_bytes).await.map_err(refuse)?;
    let cause = cause(&caller, &parts.headers, parts.method.as_str(), &parts.uri, plugin, &matched.route, &body)
        .map_err(refuse)?;
    let depth = depth(&parts.headers).map_err(refuse)?;
    let call = Call::Http(Arc::new(http::Request {
        method: parts.method.as_str().to_owned(),
        path,
        query: parts.uri.query().map(str::to_owned),
        headers: guest_headers(&parts.headers, matches!(caller, Caller::Key(_))),
        body: body.into(),
        route: matched.route,
        params: matched.params,
    }));
    let done = door.invoker.run(Work { scope, released, call, cause, depth }).await;
    let response = match done {
        // The path as it was asked for, up to the plugin's name.
        Ok(done) => render(done, &parts.uri.path()[..mount]),
        Err(failed) => problem(&failed.error, Some(failed.invocation)),
    };
    Ok(with_limits(response, &admission))
}

/// What a request calls, if it may.
async fn enter(
    door: &Door,
    peer: SocketAddr,
    headers: &HeaderMap,
    tenant: &str,
    plugin: &str,
) -> Result<(Caller, TenantScope, Arc<Released>)> {
    let found = find(door, tenant, plugin).await?;
    let public = found.as_ref().is_some_and(|(_, released)| {
        released.manifest.http.as_ref().is_some_and(|http| matches!(http.auth, Auth::None))
    });
    let caller = if public { Caller::Anyone } else { Caller::Key(door.credentials.authenticate(headers, peer).await?) };
    let (scope, released) = found.ok_or_else(no_route)?;
    caller.check(&scope, door.breaks)?;
    Ok((caller, scope, released))
}

async fn find(door: &Door, tenant: &str, plugin: &str) -> Result<Option<(TenantScope, Arc<Released>)>> {
    let Some(scope) = door.directory.by_name(tenant).await? else { return Ok(None) };
    let dice = rand::random_range(0..100);
    Ok(door.plugins.released(&scope, plugin, dice).await?.map(|released| (scope, released)))
}

/// Who calls a plugin.
enum Caller {
    /// The plugin's routes are public.
    Anyone,
    /// A key's holder.
    Key(Arc<Principal>),
}

impl Caller {
    fn check(&self, scope: &TenantScope, breaks: Breaks) -> Result<()> {
        let Self::Key(principal) = self else { return Ok(()) };
        if principal.tenant.as_ref().is_some_and(|tenant| tenant != scope.id()) && !breaks.tenant {
            return Err(no_route());
        }
        if !principal.may(Right::Invoke) {
            return Err(Error::new(Kind::Denied, "forbidden", "the key lacks the scope `invoke`"));
        }
        Ok(())
    }

    /// Whose idempotency keys these are. Strangers are told apart by what they present to the plugin, so that
    /// nobody is given another's answer.
    fn name(&self, headers: &HeaderMap) -> String {
        match self {
            Self::Key(principal) => format!("key {}", principal.key),
            Self::Anyone => {
                let mut hash = Sha256::new();
                for name in [header::AUTHORIZATION, header::COOKIE] {
                    for value in headers.get_all(&name) {
                        hash.update((value.len() as u64).to_be_bytes());
                        hash.update(value.as_bytes());
                    }
                    hash.update([0xff; 8]);
                }
                format!("anyone {}", hex::encode(hash.finalize()))
            }
        }
    }
}

fn cause(
    caller: &Caller,
    headers: &HeaderMap,
    method: &str,
    uri: &axum::http::Uri,
    plugin: &str,
    route: &str,
    body: &Bytes,
) -> Result<Option<Cause>> {
    if matches!(method, "GET" | "HEAD" | "OPTIONS") {
        return Ok(None);
    }
    let Some(header) = headers.get("idempotency-key") else { return Ok(None) };
    let key = idempotency::parse_key(header.as_bytes())?;
    let content_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    let fingerprint = idempotency::fingerprint(&[method.as_bytes(), target.as_bytes(), content_type, body]);
    let route = format!("plugin {plugin} {route}");
    Ok(Some(Cause::new(&caller.name(headers), &route, &key, fingerprint, idempotency::API_MS)))
}

/// How many invocations called each other until this request, as the outgoing requests of this host say.
pub(super) fn depth(headers: &HeaderMap) -> Result<u8> {
    let said = headers.get(kernel::header::DEPTH);
    let depth = said.map_or(Some(0), |value| value.to_str().ok()?.parse().ok()).unwrap_or(u8::MAX);
    if depth > DEPTH {
        return Err(Error::new(
            Kind::Failed,
            "loop_detected",
            format!("more than {DEPTH} plugins called each other; let one of them answer by itself"),
        ));
    }
    Ok(depth)
}

/// A body of at most `limit` bytes; what is longer is refused without being read to its end.
pub(crate) async fn read_body(body: Body, limit: u64) -> Result<Bytes> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    axum::body::to_bytes(body, limit).await.map_err(|error| {
        let causes = || std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        if causes().any(|cause| cause.is::<http_body_util::LengthLimitError>()) {
            Error::new(Kind::Invalid, "too_large", format!("the body has more than {limit} bytes"))
        } else if causes().any(|cause| cause.is::<TooSlow>()) {
            Error::new(Kind::Invalid, "body_too_slow", "the body did not arrive in time; send it at once")
        } else {
            Error::invalid("the body could not be read to its end")
        }
    })
}

/// What a guest sees of the request's headers: neither the connection's nor the host's credential.
fn guest_headers(headers: &HeaderMap, credential: bool) -> Vec<(String, Vec<u8>)> {
    headers
        .iter()
        .filter(|(name, _)| !is_hop_by_hop(name.as_str()))
        .filter(|(name, _)| !credential || !matches!(name.as_str(), "authorization" | "x-api-key"))
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect()
}

/// The answer of a plugin that is reached under `mount`, or the same given again.
pub(super) fn render(done: Done, mount: &str) -> Response {
    let status = StatusCode::from_u16(done.answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let mut response = Response::new(Body::from(done.answer.body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, mut value) in done.answer.headers {
        if name == header::SET_COOKIE.as_str() {
            value = cookie::confine(&value, mount).into();
        }
        // Validated when the guest answered; a stored answer of an older host may still hold others.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_maybe_shared(value))
            && !is_hop_by_hop(name.as_str())
        {
            headers.append(name, value);
        }
    }
    if let Ok(value) = HeaderValue::from_str(&done.invocation) {
        headers.insert("chalet-invocation", value);
    }
    if done.replayed {
        headers.insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    response
}

/// Say what is left of the limits that the request was measured by.
fn with_limits(mut response: Response, admission: &Admission) -> Response {
    if let Some((policy, state)) = limits::headers(admission) {
        response.headers_mut().insert("ratelimit-policy", policy);
        response.headers_mut().insert("ratelimit", state);
    }
    response
}
