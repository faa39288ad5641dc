//! The plugin on the payloads that Stripe sends, in the in-memory host.

use chalet_sdk::testing::Host;
use chalet_sdk::webhook::Delivery;
use rust_decimal::Decimal;
use serde_json::{Value, json};
use stripe_billing::{StripeBilling, Subscription};

fn host() -> Host {
    Host::from_manifest(include_str!("../plugin.toml"))
}

fn event(id: &str, kind: &str, created: u64, status: &str) -> Value {
    json!({
        "id": id, "object": "event", "api_version": "2025-08-27.basil", "created": created, "type": kind,
        "livemode": false, "pending_webhooks": 1,
        "request": { "id": "req_Dv3rTfQkGv8xJp", "idempotency_key": null },
        "data": {
            "object": {
                "id": "sub_1PqR2sLkdIwHu7ixa1b2c3d4", "object": "subscription", "status": status,
                "customer": "cus_QgTmv8f3H1sK2L", "cancel_at_period_end": false, "collection_method": "charge_automatically",
                "created": 1724947200, "currency": "usd", "latest_invoice": "in_1PqR2sLkdIwHu7ixZz9yX8w7",
                "items": { "object": "list", "has_more": false, "data": [{
                    "id": "si_QgTmAbCdEfGhIj", "object": "subscription_item", "quantity": 1,
                    "current_period_start": 1724947200, "current_period_end": 1727625600,
                    "price": { "id": "price_1PqQzZLkdIwHu7ixAaBbCcDd", "object": "price", "unit_amount": 2000, "currency": "usd",
                               "recurring": { "interval": "month", "interval_count": 1 } }
                }]},
                "metadata": {}, "trial_end": null
            },
            "previous_attributes": { "status": "incomplete" }
        }
    })
}

fn deliver(host: &Host, event: &Value) {
    let text = |field: &str| event[field].as_str().expect("an event has it").to_owned();
    let delivery = Delivery::new("stripe", text("id"), event.to_string()).with_event_type(text("type"));
    assert_eq!(host.webhook::<StripeBilling>(delivery), Ok(None));
}

fn status(host: &Host) -> String {
    host.get::<Subscription>("subscriptions", "sub_1PqR2sLkdIwHu7ixa1b2c3d4").expect("it is kept").status
}

#[test]
fn a_subscription_follows_its_events_and_each_is_metered() {
    let host = host();
    deliver(&host, &event("evt_1", "customer.subscription.created", 100, "incomplete"));
    deliver(&host, &event("evt_2", "customer.subscription.updated", 101, "active"));
    assert_eq!(status(&host), "active");
    deliver(&host, &event("evt_3", "customer.subscription.deleted", 200, "canceled"));
    assert_eq!(status(&host), "canceled");
    assert_eq!(host.meter("subscription_events"), Decimal::from(3));
}

#[test]
fn an_event_that_arrives_late_does_not_undo_a_newer_one() {
    let host = host();
    deliver(&host, &event("evt_2", "customer.subscription.updated", 101, "active"));
    deliver(&host, &event("evt_1", "customer.subscription.created", 100, "incomplete"));
    assert_eq!(status(&host), "active");
    assert_eq!(host.meter("subscription_events"), Decimal::from(2));
}

#[test]
fn events_of_other_types_change_nothing() {
    let host = host();
    let mut paid = event("evt_9", "invoice.paid", 100, "paid");
    paid["data"]["object"] = json!({ "id": "in_1", "object": "invoice", "amount_paid": 2000 });
    deliver(&host, &paid);
    assert!(host.keys("subscriptions").is_empty());
    assert!(host.usage().is_empty());
}

#[test]
fn a_body_that_is_no_event_is_rejected() {
    let error = host().webhook::<StripeBilling>(Delivery::new("stripe", "evt_1", "{}")).unwrap_err();
    assert!(!error.retryable());
}
