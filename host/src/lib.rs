//! Chalet: a tenant-aware platform runtime that runs WebAssembly plugins, where an invocation is a
//! transaction. The modules stand in the order of their layers, lowest first; a layer uses itself
//! and what is above it in this list. See ARCHITECTURE.md.

pub mod kernel;

pub mod effects;

pub mod services;

pub mod engine;

pub mod capabilities;
pub mod triggers;

pub mod invocation;

pub mod gateway;

pub mod control;

pub mod config;
pub mod platform;

pub mod cli;

#[doc(hidden)]
pub mod fuzzing;
