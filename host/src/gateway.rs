//! The public door: what every request passes, in this order, and who answers it.

mod cookie;
pub mod credential;
pub(crate) mod extract;
mod health;
mod hooks;
pub mod metrics;
pub(crate) mod plugin;
pub mod respond;
pub mod serve;
mod strict;

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::effects::Shard;
use crate::engine::guest::Services;
use crate::gateway::credential::Credentials;
use crate::gateway::metrics::Metrics;
use crate::gateway::respond::REQUEST;
use crate::invocation::Invoker;
use crate::kernel::breaks::Breaks;
use crate::kernel::db::Db;
use crate::kernel::error::{Error, Kind};
use crate::kernel::id;
use crate::kernel::trace::{Span, Traces};
use crate::services::audit::Log;
use crate::services::directory::Directory;
use crate::services::keys::Keys;
use crate::services::limits::Limits;
use crate::services::plugins::Plugins;

/// What the doors need.
#[derive(Clone)]
pub struct Door(Arc<Parts>);

/// The parts behind the doors; named here once for the public door and the control API.
pub struct Parts {
    /// The database.
    pub db: Db,
    /// Tenants' rows.
    pub shard: Shard,
    /// Tenants and plans.
    pub directory: Directory,
    /// API keys.
    pub keys: Keys,
    /// Who calls.
    pub credentials: Credentials,
    /// Plugins.
    pub plugins: Plugins,
    /// Rate limits.
    pub limits: Arc<Limits>,
    /// Who changed what, and who was denied what.
    pub audit: Arc<Log>,
    /// Answers to idempotency keys.
    pub idempotency: crate::services::idempotency::Idempotency,
    /// The master key, for what is signed or derived.
    pub master: crate::kernel::secret::Master,
    /// What guests and the API share.
    pub services: Arc<Services>,
    /// Guests.
    pub invoker: Invoker,
    /// The engine, for uploads.
    pub engine: crate::engine::Engine,
    /// Counts for operators.
    pub metrics: Metrics,
    /// Traces for operators.
    pub traces: Traces,
    /// Cancelled when the node is told to stop: an answer without an end ends then.
    pub stopping: CancellationToken,
    /// What a test has switched off.
    pub breaks: Breaks,
}

impl Door {
    /// A door in front of these parts.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl std::ops::Deref for Door {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// The routes of the data plane with `control` beside them, behind the layers of every request.
pub fn pipeline(door: Door, control: Router) -> Router {
    let data = Router::new()
        .route("/t/{*rest}", any(plugin::handle))
        .route("/hooks/{tenant}/{source}", post(hooks::handle))
        .route("/healthz", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::render))
        .with_state(door.clone());
    data.merge(control)
        .fallback(|| async { Error::not_found("no such route; the API is described at /docs") })
        .method_not_allowed_fallback(|| async {
            Error::new(
                Kind::Invalid,
                "method_not_allowed",
                "the route has other methods; the `Allow` header names them",
            )
        })
        .layer(middleware::from_fn_with_state(door, meet))
}

/// What every request passes, in one layer, since each costs a few allocations. Everything inside carries the
/// request's id, errors and log lines too; what is no sound request comes no further; a panic costs its request alone; and
/// what is counted is the status that leaves the house.
async fn meet(State(door): State<Door>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let plane = metrics::plane(request.uri().path());
    let id = id::new();
    let named = HeaderValue::from_str(&id);
    let span = span(&door, plane, &id, &request);
    let answer = async {
        if let Some(refusal) = strict::refusal(&request) {
            return refusal;
        }
        let answered = std::panic::AssertUnwindSafe(next.run(request)).catch_unwind().await;
        answered.unwrap_or_else(|panic| {
            let said = text_of(&*panic);
            Error::internal(format!("a request panicked: {said}")).into_response()
        })
    };
    let mut response = span.scope(REQUEST.scope(id, answer)).await;
    if let Ok(value) = named {
        response.headers_mut().insert(HeaderName::from_static("x-request-id"), value);
    }
    span.set("http.response.status_code", response.status().as_u16());
    if response.status().is_server_error() {
        span.fail(response.status().as_str());
    }
    door.metrics.answered(plane, response.status(), started.elapsed());
    response
}

/// The request's span. Nobody wants to look at those of probes, scrapes and the documentation.
fn span(door: &Door, plane: &'static str, id: &str, request: &Request) -> Span {
    if plane == "other" {
        return Span::default();
    }
    let span = door.traces.request(request.headers());
    if span.sampled() {
        span.asks(request.method().as_str(), request.extensions().get::<MatchedPath>().map(MatchedPath::as_str));
        span.set("chalet.plane", plane);
        span.set("chalet.request.id", id);
    }
    span
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown")
}
