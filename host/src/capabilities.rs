//! What guests may import: one file per WIT interface, and the list of them.
//!
//! A host function enters the door, checks the manifest's grant, and calls a service. What it may not do is
//! keep anything of the guest's: what outlives the call is in the effects, the log or the recorded calls.

mod config;
mod context;
mod error;
mod flags;
mod http;
mod kv;
mod limits;
mod log;
mod meters;
mod secrets;

use crate::engine::Capability;

/// Everything that a plugin may import.
pub const ALL: &[Capability] = &[
    Capability { interface: "chalet:platform/types@0.1.0", link: error::link },
    Capability { interface: "chalet:platform/context@0.1.0", link: context::link },
    Capability { interface: "chalet:platform/log@0.1.0", link: log::link },
    Capability { interface: "chalet:platform/config@0.1.0", link: config::link },
    Capability { interface: "chalet:platform/kv@0.1.0", link: kv::link },
    Capability { interface: "chalet:platform/meters@0.1.0", link: meters::link },
    Capability { interface: "chalet:platform/limits@0.1.0", link: limits::link },
    Capability { interface: "chalet:platform/flags@0.1.0", link: flags::link },
    Capability { interface: "chalet:platform/secrets@0.1.0", link: secrets::link },
    Capability { interface: "chalet:platform/http@0.1.0", link: http::link },
];
