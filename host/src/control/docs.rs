//! The OpenAPI 3.1 document and its browsable form.

use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use utoipa::OpenApi as _;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{Content, OpenApi, Ref, RefOr, ResponseBuilder};
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::control::plans;
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

/// What any route may answer beside what it says of itself: the status, and when.
const PROBLEMS: &[(StatusCode, &str)] = &[
    (StatusCode::BAD_REQUEST, "The request is malformed, or a value is out of its bounds"),
    (StatusCode::UNAUTHORIZED, "No valid key was presented"),
    (StatusCode::PAYMENT_REQUIRED, "The plan is used up; delete something or buy more"),
    (StatusCode::FORBIDDEN, "The key lacks the scope that the route demands"),
    (StatusCode::NOT_FOUND, "There is no such thing, or none that the key may know of"),
    (StatusCode::REQUEST_TIMEOUT, "The body did not arrive in time"),
    (StatusCode::CONFLICT, "Others changed the same data, or the thing is in another state"),
    (StatusCode::PAYLOAD_TOO_LARGE, "The body is too large"),
    (StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body has a content type or encoding that is not read here"),
    (StatusCode::UNPROCESSABLE_ENTITY, "The body can be read, and what it asks for cannot be done"),
    (StatusCode::TOO_MANY_REQUESTS, "A rate limit is used up; `Retry-After` says when it is worth trying again"),
    (StatusCode::SERVICE_UNAVAILABLE, "Too busy, or the database does not answer; try again"),
];

/// Say of every operation how it fails, and what bounds a plan's numbers. It is said here once, so that no route forgets it.
pub(super) fn complete(mut openapi: OpenApi) -> OpenApi {
    let schemas = openapi.components.iter_mut().flat_map(|components| &mut components.schemas);
    schemas.filter(|(name, _)| *name == "Plan").for_each(|(_, plan)| plans::bound(plan));
    for item in openapi.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
        for operation in operations.into_iter().flatten() {
            for (status, when) in PROBLEMS {
                let answers = operation
                    .responses
                    .responses
                    .entry(status.as_str().to_owned())
                    .or_insert_with(|| ResponseBuilder::new().description(*when).build().into());
                if let RefOr::T(answer) = answers {
                    let problem = Content::new(Some(Ref::from_schema_name("Problem")));
                    answer.content.insert("application/problem+json".to_owned(), problem.into());
                }
            }
        }
    }
    openapi
}

/// `/v1/openapi.json` and `/docs`.
pub(super) fn router(openapi: OpenApi) -> Router {
    let ui = SwaggerUi::new("/docs").config(Config::from("/v1/openapi.json"));
    Router::new().route("/v1/openapi.json", get(move || async move { Json(openapi) })).merge(ui)
}
