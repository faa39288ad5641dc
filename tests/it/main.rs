//! One binary for all integration tests, so that the host is linked once.

#![expect(unreachable_pub, reason = "the kit is public to the tests, and the tests are all there is here")]
#![allow(clippy::print_stdout, reason = "a test that measures says what it measured")]

#[macro_use]
#[path = "../kit/mod.rs"]
#[expect(dead_code, reason = "a part of the kit serves the benchmark alone")]
mod kit;

mod authorization;
mod cli;
mod context;
mod corpora;
mod crash;
mod demo;
mod durability;
mod flags;
mod fuzz;
mod generated;
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
mod real;
mod secrets;
mod shape;
mod store;
mod sweep;
mod transaction;
mod webhook;
