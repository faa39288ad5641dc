//! The kit that the tests share: servers, databases, tenants and guests, set up in a line.

pub mod postgres;
pub mod store;
