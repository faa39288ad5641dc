//! A component that is ready to be instantiated: compiled, mapped, its imports resolved.

use std::sync::atomic::{AtomicBool, Ordering};

use wasmtime::component::{Component, InstancePre, Linker};

use crate::engine::bindings::exports::chalet::platform::{http_trigger, webhook_trigger};
use crate::engine::guest::Guest;
use crate::engine::inspect::Digest;
use crate::kernel::error::{Error, Kind, Result};

/// A loaded component, shared by all tenants that uploaded the same bytes.
pub struct Program {
    digest: Digest,
    pub(crate) instance: InstancePre<Guest>,
    pub(crate) http: Option<http_trigger::GuestIndices>,
    pub(crate) webhook: Option<webhook_trigger::GuestIndices>,
    /// Somebody asked for it since it was last looked whether anybody does.
    used: AtomicBool,
}

impl Program {
    /// Resolve a component's imports. One whose imports or exports have other types than the contract's is
    /// refused as the component's fault.
    pub(super) fn new(digest: Digest, component: &Component, linker: &Linker<Guest>) -> Result<Self> {
        let mismatch = |error: wasmtime::Error| {
            let reason = error.chain().take(2).map(|reason| reason.to_string()).collect::<Vec<_>>().join(": ");
            let reason = reason.replace(char::is_control, " ");
            let reason = &reason[..reason.floor_char_boundary(300)];
            Error::new(
                Kind::Invalid,
                "component_invalid",
                format!(
                    "the component does not fit chalet:platform@0.1.0: {reason}; build it against this version's WIT"
                ),
            )
        };
        let instance = linker.instantiate_pre(component).map_err(mismatch)?;
        let exports = |interface: &str| component.get_export_index(None, interface).is_some();
        let [(_, http), (_, webhook)] = super::inspect::TRIGGERS;
        Ok(Self {
            digest,
            http: exports(http).then(|| http_trigger::GuestIndices::new(&instance)).transpose().map_err(mismatch)?,
            webhook: exports(webhook)
                .then(|| webhook_trigger::GuestIndices::new(&instance))
                .transpose()
                .map_err(mismatch)?,
            instance,
            used: AtomicBool::new(true),
        })
    }

    /// Note that somebody asked for it.
    pub(super) fn touch(&self) {
        // Mostly it stands there already, and a write would take the line from the other cores.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// Whether somebody asked for it since this was called last.
    pub(super) fn in_use(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    /// The digest of the component's bytes.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}
