//! `chalet:platform/webhook-trigger`: a plugin that receives webhooks.

use bytes::Bytes;
use wasmtime::Store;
use wasmtime::component::Instance;

use crate::engine::Program;
use crate::engine::bindings::chalet::platform::types;
use crate::engine::bindings::exports::chalet::platform::webhook_trigger;
use crate::engine::guest::Guest;
use crate::triggers::not_exported;

/// A webhook whose signature the host has verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The source's name in the manifest.
    pub source: String,
    /// The provider's own id of the delivery.
    pub id: String,
    /// The provider's name of the event, where it is known.
    pub event_type: Option<String>,
    /// Names in lower case.
    pub headers: Vec<(String, Bytes)>,
    /// The bytes over which the signature was verified.
    pub body: Bytes,
}

pub(super) async fn call(
    program: &Program,
    store: &mut Store<Guest>,
    instance: Instance,
    delivery: Delivery,
) -> wasmtime::Result<Result<Option<types::Response>, types::Failure>> {
    let indices = program.webhook.as_ref().ok_or_else(|| not_exported("webhook"))?;
    let delivery = webhook_trigger::Delivery {
        source: delivery.source,
        id: delivery.id,
        event_type: delivery.event_type,
        headers: delivery.headers.into_iter().map(|(name, value)| (name, value.into())).collect(),
        body: delivery.body.into(),
    };
    indices.load(&mut *store, &instance)?.call_handle(store, &delivery).await
}
