//! The kit that the tests share: servers, databases, tenants and guests, set up in a line.

#[macro_use]
pub mod engine;
pub mod guests;
pub mod oracle;
pub mod packages;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod server;
pub mod stock;
pub mod store;
