//! One binary for all integration tests, so that the host is linked once.

#[path = "../kit/mod.rs"]
mod kit;

mod authorization;
mod crash;
mod idempotency;
mod misbehave;
mod plugins;
mod postgres;
mod shape;
mod transaction;
mod webhook;
