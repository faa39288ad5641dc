//! What the platform does for a tenant: each service chooses spaces, keys and bytes of the tenant's
//! map and says what they mean. A service reads and stages through `Effects`, and never commits.

pub mod egress;
pub mod flags;
pub mod limits;
pub mod meters;
pub mod secrets;
pub mod webhooks;

#[cfg(test)]
pub(crate) mod testing;
