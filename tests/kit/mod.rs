//! The kit that the tests share: servers, databases, tenants and guests, set up in a line.

pub mod carrier;
pub mod collector;
#[macro_use]
#[allow(unused_macros, reason = "the benchmark measures on engines of its own choice")]
pub mod engine;
pub mod guests;
pub mod oracle;
pub mod packages;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod server;
pub mod soak;
pub mod stock;
pub mod store;
pub mod timing;
pub mod wat;
pub mod wire;
