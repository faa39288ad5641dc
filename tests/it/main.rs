//! One binary for all integration tests, so that the host is linked once.

#[path = "../kit/mod.rs"]
mod kit;

mod authorization;
mod cli;
mod context;
mod crash;
mod flags;
mod history;
mod http;
mod idempotency;
mod kv;
mod limits;
mod log;
mod meters;
mod misbehave;
mod plugins;
mod postgres;
mod secrets;
mod shape;
mod store;
mod transaction;
mod webhook;
