//! The kit that the tests share: servers, databases, tenants and guests, set up in a line.

pub mod guests;
pub mod postgres;
pub mod proxy;
pub mod server;
pub mod stock;
pub mod store;
