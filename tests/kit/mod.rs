//! The kit that the tests share: servers, databases, tenants and guests, set up in a line.

pub mod carrier;
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

/// Whether the tests are to take all there is, however long it lasts: `make soak`.
pub fn soak() -> bool {
    std::env::var_os("CHALET_SOAK").is_some()
}
