//! The Rust side of the WIT contract: the types, and one `Host` trait per imported interface.
//!
//! The generated `add_to_linker` functions are not used: they would give a host function the store's
//! data but not the store, and then the door could not take the price of a call from the guest's fuel.
//! `engine/guest.rs` links the same traits to a [`Call`](super::guest::Call) instead.

wasmtime::component::bindgen!({
    path: "../guest-sdk/wit",
    world: "plugin",
    imports: { default: async | trappable },
    exports: { default: async },
    trappable_error_type: { "chalet:platform/types.error" => crate::engine::guest::Refusal },
});
