//! One binary for all integration tests, so that the host is linked once.

#[path = "../kit/mod.rs"]
mod kit;

mod cli;
mod plugins;
mod postgres;
