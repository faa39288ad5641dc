//! One binary for all integration tests, so that the host is linked once.

mod history;
mod postgres;
mod store;
