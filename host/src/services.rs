//! What the platform does for a tenant: each service chooses spaces, keys and bytes of the tenant's
//! map and says what they mean. A service reads and stages through `Effects`, and never commits.

pub mod directory;
pub mod egress;
pub mod flags;
pub mod idempotency;
pub mod invocations;
pub mod keys;
pub mod kv;
pub mod limits;
pub mod meters;
pub mod plugins;
pub mod secrets;
pub mod settings;
pub mod sweep;
pub mod webhooks;

#[cfg(test)]
pub(crate) mod testing;
