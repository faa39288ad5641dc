//! The OpenAPI 3.1 document and its browsable form.

use axum::routing::get;
use axum::{Json, Router};
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::gateway::respond::Problem;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Chalet",
        description = "The control API of Chalet, a tenant-aware platform runtime that runs WebAssembly plugins. \
            Errors are RFC 9457 problem details with a stable `code`. Mutating routes take `Idempotency-Key`. \
            Times are RFC 3339 in UTC. Lists are `{\"data\":[…],\"next\":cursor|null}`.",
    ),
    components(schemas(Problem)),
    security(("key" = [])),
    modifiers(&Security),
)]
struct Document;

struct Security;

impl utoipa::Modify for Security {
    fn modify(&self, openapi: &mut OpenApi) {
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("key", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    }
}

pub(super) fn openapi() -> OpenApi {
    Document::openapi()
}

/// `/v1/openapi.json` and `/docs`.
pub(super) fn router(openapi: OpenApi) -> Router {
    let ui = SwaggerUi::new("/docs").config(Config::from("/v1/openapi.json"));
    Router::new().route("/v1/openapi.json", get(move || async move { Json(openapi) })).merge(ui)
}
