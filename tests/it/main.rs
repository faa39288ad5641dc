//! One binary for all integration tests, so that the host is linked once.

mod history;
#[path = "../kit/mod.rs"]
mod kit;

mod plugins;
mod postgres;
mod store;
