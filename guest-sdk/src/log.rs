//! The plugin's log: kept with the invocation's record, also when the invocation fails.
//!
//! `log::info!("charged {amount}")` formats like `println!`, which itself goes nowhere in a component. Past 64 KiB an
//! invocation the rest is cut, and the record says so. A panic's message is logged as an error.

use std::fmt::Display;

use crate::host;

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Every step, for somebody who reads along.
    Trace,
    /// For finding a fault.
    Debug,
    /// What happened.
    Info,
    /// What somebody should look at.
    Warn,
    /// What went wrong.
    Error,
}

/// Write a line.
pub fn write(level: Level, message: impl Display) {
    host::log_write(level, &message.to_string());
}

/// Write a line of level trace.
pub fn trace(message: impl Display) {
    write(Level::Trace, message);
}

/// Write a line of level debug.
pub fn debug(message: impl Display) {
    write(Level::Debug, message);
}

/// Write a line of level info.
pub fn info(message: impl Display) {
    write(Level::Info, message);
}

/// Write a line of level warn.
pub fn warn(message: impl Display) {
    write(Level::Warn, message);
}

/// Write a line of level error.
pub fn error(message: impl Display) {
    write(Level::Error, message);
}

#[doc(inline)]
pub use crate::{
    __log_debug as debug, __log_error as error, __log_info as info, __log_trace as trace, __log_warn as warn,
};

/// Write a formatted line of level trace.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_trace {
    ($($message:tt)+) => { $crate::log::write($crate::log::Level::Trace, ::core::format_args!($($message)+)) };
}

/// Write a formatted line of level debug.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_debug {
    ($($message:tt)+) => { $crate::log::write($crate::log::Level::Debug, ::core::format_args!($($message)+)) };
}

/// Write a formatted line of level info.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_info {
    ($($message:tt)+) => { $crate::log::write($crate::log::Level::Info, ::core::format_args!($($message)+)) };
}

/// Write a formatted line of level warn.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_warn {
    ($($message:tt)+) => { $crate::log::write($crate::log::Level::Warn, ::core::format_args!($($message)+)) };
}

/// Write a formatted line of level error.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_error {
    ($($message:tt)+) => { $crate::log::write($crate::log::Level::Error, ::core::format_args!($($message)+)) };
}
