//! What the platform does for a tenant: each service chooses spaces, keys and bytes of the tenant's
//! map and says what they mean. A service reads and stages through `Effects`, and never commits; what is no request's
//! work is the exception: the sweeper, and the audit log's records of denials.

pub mod audit;
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
