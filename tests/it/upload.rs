//! What a hostile upload can do: be refused, with the reason and at a bounded cost. The store has no part in it, so
//! that these tests run on one engine.

mod bytes;
mod cache;
mod gate;
mod worker;

use reqwest::{Response, StatusCode};
use serde_json::Value;

use crate::kit::server::{Server, Tenant};

/// The problem of an upload that must be refused with this status.
async fn refused(answer: Response, status: StatusCode, what: &str) -> Value {
    let got = answer.status();
    let body = answer.text().await.expect("text");
    assert_eq!(got, status, "{what}: {body}");
    serde_json::from_str(&body).unwrap_or_else(|_| panic!("{what} is refused without a problem: {body}"))
}

/// The same of an upload that is not processable, which is what its code must say.
async fn unprocessable(tenant: &Tenant<'_>, bytes: Vec<u8>, code: &str, what: &str) -> Value {
    let problem = refused(tenant.upload("start", bytes).await, StatusCode::UNPROCESSABLE_ENTITY, what).await;
    assert_eq!(problem["code"], code, "{what}: {problem}");
    problem
}

/// Uploads that a server refused under this rule.
async fn rejected(server: &Server, rule: &str) -> f64 {
    server.metric_where("chalet_compile_rejected_total", &format!("rule=\"{rule}\"")).await
}

/// Compile workers that it started.
async fn compiles(server: &Server) -> f64 {
    server.metric("chalet_compiles_total").await
}
