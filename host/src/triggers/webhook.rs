//! `chalet:platform/webhook-trigger`: a plugin that receives webhooks.

use wasmtime::Store;
use wasmtime::component::Instance;

use crate::engine::Program;
use crate::engine::bindings::chalet::platform::types;
use crate::engine::bindings::exports::chalet::platform::webhook_trigger;
use crate::engine::guest::Guest;
use crate::triggers::not_exported;

/// A webhook whose signature the host has verified: the source's name in the manifest, the provider's own id of the
/// delivery and its name of the event, and the bytes over which the signature was verified.
pub type Delivery = webhook_trigger::Delivery;

pub(super) async fn call(
    program: &Program,
    store: &mut Store<Guest>,
    instance: Instance,
    delivery: &Delivery,
) -> wasmtime::Result<Result<Option<types::Response>, types::Failure>> {
    let indices = program.webhook.as_ref().ok_or_else(|| not_exported("webhook"))?;
    indices.load(&mut *store, &instance)?.call_handle(store, delivery).await
}
