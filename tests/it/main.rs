//! One binary for all integration tests, so that the host is linked once.

#[path = "../kit/mod.rs"]
mod kit;

mod authorization;
mod crash;
mod history;
mod idempotency;
mod misbehave;
mod plugins;
mod postgres;
mod shape;
mod store;
mod transaction;
mod webhook;
