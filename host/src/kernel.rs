//! What everything else stands on: errors, time, ids, tenants, encryption, databases and traces.

pub mod breaks;
pub(crate) mod cache;
pub mod clock;
pub mod db;
pub mod error;
pub mod header;
pub mod id;
pub mod json;
pub mod panic;
pub mod secret;
pub mod task;
pub mod tenant;
pub(crate) mod text;
pub mod trace;
