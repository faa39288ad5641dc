//! Keeps a copy of the subscriptions that Stripe reports, and meters the events.
//!
//! Every `customer.subscription.*` event writes `subscriptions/{subscription id}` and counts once on the meter
//! `subscription_events`, in one commit. Stripe does not deliver in order, so an event older than what is stored counts
//! but changes nothing. Events of other types are taken and ignored.

use chalet_sdk::webhook::Delivery;
use chalet_sdk::{Plugin, Result, kv, log, meters};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A Stripe event, as far as it is of interest here.
#[derive(Deserialize)]
struct Event {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    /// Seconds since the Unix epoch.
    #[serde(default)]
    created: u64,
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    object: Value,
}

/// What is kept of a subscription under `subscriptions/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// Stripe's id, `sub_…`.
    pub id: String,
    /// Stripe's status: `trialing`, `active`, `past_due`, `canceled` and so on.
    pub status: String,
    /// Stripe's id of the customer.
    #[serde(default)]
    pub customer: Option<String>,
    /// True if it ends with the current period.
    #[serde(default)]
    pub cancel_at_period_end: bool,
    /// The event that said so.
    #[serde(default)]
    pub event: String,
    /// When Stripe made that event, in seconds since the Unix epoch.
    #[serde(default)]
    pub event_created: u64,
}

/// The plugin.
pub struct StripeBilling;

impl Plugin for StripeBilling {
    fn webhook(delivery: Delivery) -> Result<()> {
        let event: Event = delivery.json()?;
        if !event.kind.starts_with("customer.subscription.") {
            return Ok(());
        }
        let mut reported: Subscription = serde_json::from_value(event.data.object)?;
        reported.event = event.id;
        reported.event_created = event.created;

        meters::record("subscription_events", 1)?;
        let known = kv::get::<Subscription>("subscriptions", &reported.id)?;
        if known.is_some_and(|known| known.event_created > reported.event_created) {
            log::info!("{} of {} is older than what is known", event.kind, reported.id);
            return Ok(());
        }
        kv::put("subscriptions", &reported.id, &reported)?;
        log::info!("{}: {} is {}", event.kind, reported.id, reported.status);
        Ok(())
    }
}

chalet_sdk::export!(StripeBilling: webhook);
