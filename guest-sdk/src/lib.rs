//! What a Chalet plugin is written with.
//!
//! A plugin is a type that implements [`Plugin`], and [`export!`] names the triggers it has. Every call of it is a
//! transaction: what it stages through [`kv`] and [`meters`] is committed at once when its handler answers ok (over
//! HTTP: with a status below 500), or never happened.
//!
//! ```
//! use chalet_sdk::{http::{Request, Response}, kv, meters, webhook::Delivery, Plugin, Result};
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Payment { id: String, amount: u64 }
//!
//! struct Orders;
//!
//! impl Plugin for Orders {
//!     fn http(request: Request) -> Result<Response> {
//!         match kv::get::<Payment>("payments", request.param("id")?)? {
//!             Some(payment) => Response::json(&payment),
//!             None => Ok(Response::not_found()),
//!         }
//!     }
//!     fn webhook(delivery: Delivery) -> Result<()> {
//!         let payment: Payment = delivery.json()?;
//!         kv::put("payments", &payment.id, &payment)?;
//!         meters::record("payments", 1)?;
//!         Ok(())
//!     }
//! }
//!
//! chalet_sdk::export!(Orders: http, webhook);
//! # fn main() {}
//! ```
//!
//! `chalet build` compiles it to a WebAssembly component. On any other target the same functions work against the
//! in-memory host in [`testing`], so that `cargo test` tests a plugin.
//!
//! # What a component does not have
//!
//! There is no file system, no network but [`http::send`], no threads, and no clock but [`context::now`]:
//! `SystemTime::now` and `Instant::now` trap. `println!` goes nowhere; use [`log`]. A `HashMap` has the same seeds at
//! every call. Memory starts fresh at every call, so a global is no cache.
//!
//! # Features
//!
//! `getrandom`: the crate `getrandom`, by which other crates make ids and seeds, gets the invocation's randomness; version
//! 0.2 with its feature `custom`, 0.3 and 0.4 in a component that `chalet build` makes.
//!
//! # Memory
//!
//! The global allocator of a component is this crate's: it uses the memory an instance starts with before it asks for
//! more, which halves the cost of a call. The stack that `chalet build` gives has 64 KiB.

pub mod config;
pub mod context;
mod error;
pub mod flags;
pub mod http;
pub mod kv;
pub mod limits;
pub mod log;
pub mod meters;
pub mod secrets;
pub mod webhook;

#[cfg(target_family = "wasm")]
mod guest;
#[cfg(target_family = "wasm")]
use guest as host;

#[cfg(not(target_family = "wasm"))]
pub mod testing;
#[cfg(not(target_family = "wasm"))]
use testing as host;

pub use error::{Error, Failure, LimitHit, Result, reject, retry};

/// A plugin: what the host calls. Implement the triggers that [`export!`] names.
pub trait Plugin {
    /// Answer an HTTP request.
    ///
    /// Ok with a status below 500 commits what was staged; anything else commits nothing.
    fn http(request: Request) -> Result<http::Response> {
        let _ = request;
        Err(reject("this plugin answers no HTTP requests"))
    }

    /// Take in a webhook. Ok commits what was staged and answers 200.
    ///
    /// [`retry`] answers 503, so that the provider delivers again; [`reject`] answers 422, for good.
    fn webhook(delivery: webhook::Delivery) -> Result<()> {
        let _ = delivery;
        Err(reject("this plugin takes no webhooks"))
    }

    /// Take in a webhook and choose the answer, for providers that read it; `None` answers 200.
    ///
    /// The default calls [`Plugin::webhook`].
    fn webhook_with_answer(delivery: webhook::Delivery) -> Result<Option<http::Response>> {
        Self::webhook(delivery).map(|()| None)
    }
}

use http::Request;

/// Make a plugin's triggers callable by the host: `export!(Orders: http, webhook);`
///
/// Call it once, with the triggers that the plugin has. The component exports these and no others, and imports what the
/// plugin uses and nothing else. On targets other than WebAssembly it checks the type and does nothing.
#[macro_export]
macro_rules! export {
    ($plugin:ty: $($trigger:ident),+ $(,)?) => {
        const _: () = {
            const fn is_a_plugin<P: $crate::Plugin>() {}
            is_a_plugin::<$plugin>();
        };
        #[cfg(target_family = "wasm")]
        const _: () = {
            // The SDK's version, by which the host decides whether it can run this component.
            #[unsafe(link_section = "chalet:sdk")]
            #[used]
            static SDK_VERSION: [u8; $crate::__private::SDK_VERSION.len()] = $crate::__private::SDK_VERSION;
        };
        $($crate::__export_trigger!($plugin, $trigger);)+
    };
}

/// One trigger's export; a name that is no trigger fails to compile.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_trigger {
    ($plugin:ty, http) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            type Exported = $crate::__private::Exported<$plugin>;
    $crate::__private::export_http!(Exported with_types_in $crate::__private::http_plugin);
        };
    };
    ($plugin:ty, webhook) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            type Exported = $crate::__private::Exported<$plugin>;
    $crate::__private::export_webhook!(Exported with_types_in $crate::__private::webhook_plugin);
        };
    };
    ($plugin:ty, $other:ident) => {
        ::core::compile_error!(::core::concat!(
            "there is no trigger `",
            ::core::stringify!($other),
            "`; the triggers are http and webhook"
        ));
    };
}

/// What the macros refer to; no part of the interface.
#[doc(hidden)]
pub mod __private {
    const VERSION: &[u8] = env!("CARGO_PKG_VERSION").as_bytes();

    /// The version of this crate.
    pub const SDK_VERSION: [u8; VERSION.len()] = {
        let mut bytes = [0; VERSION.len()];
        bytes.copy_from_slice(VERSION);
        bytes
    };

    #[cfg(target_family = "wasm")]
    pub use crate::guest::{
        Exported,
        bindings::{export_http, export_webhook, http_plugin, webhook_plugin},
    };
}
