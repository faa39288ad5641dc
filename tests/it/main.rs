//! One binary for all integration tests, so that the host is linked once.

#![expect(unreachable_pub, reason = "the kit is public to the tests, and the tests are all there is here")]
#![allow(clippy::print_stdout, reason = "a test that measures says what it measured")]

#[macro_use]
#[path = "../kit/mod.rs"]
mod kit;

mod audit;
mod authorization;
mod cancelled;
mod cli;
mod context;
mod corpora;
mod crash;
mod demo;
mod durability;
mod edge;
mod fairness;
mod flags;
mod fuzz;
mod generated;
mod history;
mod hostile;
mod http;
mod idempotency;
mod isolation;
mod keys;
mod kv;
mod limits;
mod log;
mod markers;
mod meters;
mod misbehave;
mod plugins;
mod postgres;
mod readers;
mod real;
mod secrets;
mod shape;
mod store;
mod sweep;
mod timing;
mod traces;
mod transaction;
mod upload;
mod watch;
mod webhook;
