//! Plans: what tenants can buy.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value};
use utoipa::PartialSchema as _;
use utoipa::openapi::{KnownFormat, RefOr, Schema, SchemaFormat};

use crate::control::change::{Change, commit, json, parse_json};
use crate::control::page::List;
use crate::gateway::Door;
use crate::gateway::extract::Path;
use crate::kernel::error::{Error, Result};
use crate::kernel::tenant::Plan;

/// Bytes of a plan: a few dozen numbers.
const BODY_BYTES: u64 = 16 << 10;

/// All plans, by name.
#[utoipa::path(get, path = "/v1/plans", tag = "plans", responses((status = 200, body = List<Plan>)))]
pub(super) async fn list(State(door): State<Door>) -> Result<List<Plan>> {
    Ok(List { data: door.directory.plans().await?, next: None })
}

/// One plan.
#[utoipa::path(get, path = "/v1/plans/{plan}", tag = "plans", params(("plan" = String, Path)),
    responses((status = 200, body = Plan)))]
pub(super) async fn get(State(door): State<Door>, Path(name): Path<String>) -> Result<Json<Plan>> {
    let plans = door.directory.plans().await?;
    plans.into_iter().find(|plan| plan.name == name).map(Json).ok_or_else(|| Error::not_found("no such plan"))
}

/// Define or redefine a plan. Fields that are not given are those of the plan `free`.
#[utoipa::path(put, path = "/v1/plans/{plan}", tag = "plans", params(("plan" = String, Path)), request_body = Plan,
    responses((status = 200, body = Plan)))]
pub(super) async fn put(State(door): State<Door>, Path(name): Path<String>, request: Request) -> Result<Response> {
    let change = Change::read(request, &door, |_| BODY_BYTES).await?;
    let mut fields: Map<String, Value> = change.json()?;
    if fields.get("name").is_some_and(|given| *given != name) {
        return Err(Error::invalid("the plan's name in the body is not the one in the path"));
    }
    fields.insert("name".into(), name.into());
    check_numbers(&fields)?;
    let plan: Plan = parse_json(Value::from(fields).to_string().as_bytes())?;
    let response = commit!(change, |effects| {
        door.directory.put_plan(effects, &plan)?;
        json(StatusCode::OK, &plan)
    });
    door.directory.forget_plan(&plan.name);
    Ok(response)
}

/// Say in a plan's schema how large its numbers may be: what their formats hold, which JSON Schema alone takes for a remark.
pub(super) fn bound(plan: &mut RefOr<Schema>) {
    let RefOr::T(Schema::Object(plan)) = plan else { return };
    for field in plan.properties.values_mut() {
        let RefOr::T(Schema::Object(field)) = field else { continue };
        field.maximum = match &field.format {
            Some(SchemaFormat::KnownFormat(KnownFormat::Int32)) => Some(i32::MAX.into()),
            Some(SchemaFormat::KnownFormat(KnownFormat::Int64)) => Some(i64::MAX.into()),
            _ => None,
        };
    }
}

/// Refuse numbers that the document does not allow: some fields would hold twice as much.
fn check_numbers(fields: &Map<String, Value>) -> Result<()> {
    let mut document = Plan::schema();
    bound(&mut document);
    let document = serde_json::to_value(document).map_err(Error::internal)?;
    for (field, value) in fields {
        let Some(most) = document["properties"][field]["maximum"].as_u64() else { continue };
        if value.as_u64().is_none_or(|number| number > most) {
            return Err(Error::invalid(format!("{field} is a whole number from 0 to {most}")));
        }
    }
    Ok(())
}
