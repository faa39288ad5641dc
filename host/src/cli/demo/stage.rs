//! Who takes part in the demo: the operator, two tenants, Stripe and GitHub, and what each sends.

use std::future::Future;
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sha2::Sha256;

use super::super::client::{Client, ForTenant, path};
use super::super::terminal::field;
use super::super::{Failure, Result, failed};
use super::SUBSCRIPTION;
use super::server::Server;
use crate::kernel::clock::Clock;

/// What Stripe and acme know.
pub(super) const STRIPE_SECRET: &str = "whsec_9f2bQmS0Yx4Zr7TnKc1VdUeHjLpAoWgE";
/// What GitHub and acme know.
pub(super) const GITHUB_SECRET: &str = "it's-a-secret-to-everybody";
/// How long any answer may take; the slowest is a loop's, which is stopped after two seconds.
const ANSWER: Duration = Duration::from_secs(30);

/// Everybody, with the server.
pub(super) struct Stage {
    pub(super) server: Server,
    pub(super) admin: Client,
    pub(super) acme: Actor,
    pub(super) globex: Actor,
}

impl Stage {
    /// Two tenants, each with a key.
    pub(super) async fn new(server: Server) -> Result<Self> {
        let admin = Client::with(server.url(), Some(server.admin()))?;
        let acme = Actor::enter(&admin, "acme").await?;
        let globex = Actor::enter(&admin, "globex").await?;
        Ok(Self { server, admin, acme, globex })
    }

    /// What the server answers, whatever it is. The future stands alone, so that many can run at once.
    pub(super) fn ask(&self, request: RequestBuilder) -> impl Future<Output = Result<Answer>> + Send + use<> {
        let client = self.admin.clone();
        async move {
            let answer = client.exchange(request.timeout(ANSWER)).await?;
            let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
            let body = answer.bytes().await.map_err(|error| Failure::Failed(error.to_string()))?.to_vec();
            Ok(Answer { status, headers, body })
        }
    }

    /// A delivery of Stripe's to acme, signed `offset_s` seconds from now.
    pub(super) fn stripe(&self, event: &str, offset_s: i64, secret: &str) -> RequestBuilder {
        let time = now_s() + offset_s;
        let signature = sign(secret, format!("{time}.{event}").as_bytes());
        let request = self.admin.with_key(None).request(Method::POST, "/hooks/acme/stripe");
        request
            .header("content-type", "application/json; charset=utf-8")
            .header("user-agent", "Stripe/1.0 (+https://stripe.com/docs/webhooks)")
            .header("stripe-signature", format!("t={time},v1={signature}"))
            .body(event.to_owned())
    }

    /// A delivery of GitHub's to acme; always the same one.
    pub(super) fn github(&self) -> RequestBuilder {
        let event = issue_labeled();
        let request = self.admin.with_key(None).request(Method::POST, "/hooks/acme/github");
        request
            .header("content-type", "application/json")
            .header("user-agent", "GitHub-Hookshot/044aadd")
            .header("x-github-event", "issues")
            .header("x-github-delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958")
            .header("x-github-hook-id", "292430182")
            .header("x-hub-signature-256", format!("sha256={}", sign(GITHUB_SECRET, event.as_bytes())))
            .body(event)
    }
}

/// A tenant, with a key that may do everything in it.
pub(super) struct Actor {
    pub(super) name: String,
    pub(super) key: String,
    client: Client,
    of: ForTenant,
}

impl Actor {
    async fn enter(admin: &Client, name: &str) -> Result<Self> {
        admin.post("/v1/tenants", &json!({ "id": name })).await?;
        let of = ForTenant { tenant: name.into() };
        let made = admin.post(&of.path(&["keys"]), &json!({ "name": "demo", "scopes": ["tenant:admin"] })).await?;
        let key = field(&made, "key");
        Ok(Self { name: name.into(), client: admin.with_key(Some(&key)), key, of })
    }

    /// A request with the tenant's key.
    pub(super) fn request(&self, method: &str, path: &str) -> RequestBuilder {
        self.client.request(Method::from_bytes(method.as_bytes()).unwrap_or_default(), path)
    }

    /// A request to `/v1/tenants/{tenant}/…`.
    pub(super) fn api(&self, method: &str, segments: &[&str]) -> RequestBuilder {
        self.request(method, &self.of.path(segments))
    }

    /// A request to `/t/{tenant}/{plugin}…`.
    pub(super) fn call(&self, method: &str, plugin: &str, route: &str) -> RequestBuilder {
        self.request(method, &format!("{}{route}", path(&["t", &self.name, plugin])))
    }

    /// Store a secret.
    pub(super) async fn secret(&self, name: &str, value: &str) -> Result<()> {
        self.client.send(self.api("PUT", &["secrets", name]).body(value.to_owned())).await.map(drop)
    }
}

/// An answer of the server's.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    /// The answer, if it has this status.
    pub(super) fn expect(self, status: u16) -> Result<Self> {
        if self.status == status {
            return Ok(self);
        }
        let text: String = self.text().chars().take(300).collect();
        failed(format!("answered {}, and should have answered {status}: {text}", self.status))
    }

    pub(super) fn header(&self, name: &str) -> String {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    }

    pub(super) fn invocation(&self) -> String {
        self.header("chalet-invocation")
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(super) fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).map_err(|_| Failure::Failed(format!("answered no JSON: {}", self.text())))
    }

    pub(super) fn field(&self, name: &str) -> Result<String> {
        Ok(field(&self.json()?, name))
    }

    /// The code of a problem.
    pub(super) fn code(&self) -> String {
        self.field("code").unwrap_or_default()
    }
}

fn now_s() -> i64 {
    Clock::system().now_ms() / 1_000
}

fn sign(secret: &str, message: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(message);
    hex::encode(mac.finalize().into_bytes())
}

/// An event of Stripe's as it comes over the wire: `customer.subscription.{what}`.
pub(super) fn subscription(what: &str, status: &str) -> String {
    // Stripe numbers its times in whole seconds, and the second event comes after the first.
    let created = now_s() - if what == "created" { 60 } else { 30 };
    let price = json!({
        "id": "price_1PqQzZLkdIwHu7ixAaBbCcDd",
        "object": "price",
        "active": true,
        "billing_scheme": "per_unit",
        "currency": "usd",
        "product": "prod_QgTjKlMnOpQrSt",
        "recurring": { "interval": "month", "interval_count": 1, "meter": null, "usage_type": "licensed" },
        "type": "recurring",
        "unit_amount": 2_000,
        "unit_amount_decimal": "2000"
    });
    let item = json!({
        "id": "si_QgTmAbCdEfGhIj",
        "object": "subscription_item",
        "created": created,
        "current_period_end": created + 2_592_000,
        "current_period_start": created,
        "metadata": {},
        "price": price,
        "quantity": 1,
        "subscription": SUBSCRIPTION
    });
    let subscription = json!({
        "id": SUBSCRIPTION,
        "object": "subscription",
        "application": null,
        "automatic_tax": { "disabled_reason": null, "enabled": false, "liability": null },
        "billing_cycle_anchor": created,
        "cancel_at": null,
        "cancel_at_period_end": false,
        "canceled_at": null,
        "collection_method": "charge_automatically",
        "created": created,
        "currency": "usd",
        "customer": "cus_QgTmv8f3H1sK2L",
        "discounts": [],
        "items": { "object": "list", "data": [item], "has_more": false, "total_count": 1, "url": "/v1/subscription_items" },
        "latest_invoice": "in_1PqR2sLkdIwHu7ixZz9yX8w7",
        "livemode": false,
        "metadata": {},
        "start_date": created,
        "status": status,
        "trial_end": null
    });
    let event = json!({
        "id": format!("evt_1PqR2t{what}LkdIwHu7ix"),
        "object": "event",
        "api_version": "2025-08-27.basil",
        "created": created,
        "data": { "object": subscription },
        "livemode": false,
        "pending_webhooks": 1,
        "request": { "id": "req_Dv3rTfQkGv8xJp", "idempotency_key": "5d3f6c2e-3f0f-4a58-9d55-0d3c1a4b7e21" },
        "type": format!("customer.subscription.{what}")
    });
    // Stripe sends its events indented, and signs them so.
    serde_json::to_string_pretty(&event).unwrap_or_default()
}

/// GitHub's event `issues`, action `labeled`.
fn issue_labeled() -> String {
    let bug = json!({
        "id": 208_045_946, "node_id": "MDU6TGFiZWwyMDgwNDU5NDY=", "name": "bug", "color": "d73a4a", "default": true,
        "description": "Something isn't working", "url": "https://api.github.com/repos/octocat/hello-world/labels/bug"
    });
    let octocat = json!({
        "login": "octocat", "id": 1, "node_id": "MDQ6VXNlcjE=", "type": "User", "site_admin": false,
        "url": "https://api.github.com/users/octocat", "html_url": "https://github.com/octocat"
    });
    json!({
        "action": "labeled",
        "issue": {
            "id": 1_234_567, "node_id": "MDU6SXNzdWUx", "number": 1_347, "title": "Found a bug", "state": "open",
            "user": octocat, "labels": [bug], "locked": false, "assignees": [], "comments": 0,
            "created_at": "2025-04-22T13:33:48Z", "updated_at": "2025-04-22T13:35:01Z", "closed_at": null,
            "author_association": "COLLABORATOR", "body": "I'm having a problem with this.",
            "html_url": "https://github.com/octocat/hello-world/issues/1347"
        },
        "label": bug,
        "repository": {
            "id": 1_296_269, "node_id": "MDEwOlJlcG9zaXRvcnkxMjk2MjY5", "name": "hello-world", "private": false,
            "full_name": "octocat/hello-world", "owner": octocat, "default_branch": "main"
        },
        "sender": octocat
    })
    .to_string()
}
