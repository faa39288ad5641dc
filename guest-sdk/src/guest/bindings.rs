//! Generated bindings: one module for the imports, and one for each trigger's world.
//!
//! The worlds are separate so that a component exports the triggers that its plugin has and no others; they share the
//! imports' types.

/// What every plugin may import; what it does not use is left out of its component.
pub mod imports {
    #![allow(missing_docs, unreachable_pub, reason = "generated; the documentation is in the WIT files")]
    wit_bindgen::generate!({ path: "wit", world: "imports", generate_all });
}

macro_rules! trigger {
    ($(#[$docs:meta])* $module:ident, $world:literal, $export:ident = $export_name:literal) => {
        $(#[$docs])*
        pub mod $module {
            #![allow(missing_docs, unreachable_pub, reason = "generated; the documentation is in the WIT files")]
            wit_bindgen::generate!({
                path: "wit",
                world: $world,
                with: {
                    "chalet:platform/types@0.1.0": super::imports::chalet::platform::types,
                    "chalet:platform/context@0.1.0": super::imports::chalet::platform::context,
                    "chalet:platform/log@0.1.0": super::imports::chalet::platform::log,
                    "chalet:platform/config@0.1.0": super::imports::chalet::platform::config,
                    "chalet:platform/kv@0.1.0": super::imports::chalet::platform::kv,
                    "chalet:platform/meters@0.1.0": super::imports::chalet::platform::meters,
                    "chalet:platform/limits@0.1.0": super::imports::chalet::platform::limits,
                    "chalet:platform/flags@0.1.0": super::imports::chalet::platform::flags,
                    "chalet:platform/secrets@0.1.0": super::imports::chalet::platform::secrets,
                    "chalet:platform/http@0.1.0": super::imports::chalet::platform::http,
                },
                pub_export_macro: true,
                export_macro_name: $export_name,
                generate_all,
            });
        }
        pub use $module::$export;
    };
}

trigger!(
    /// The http trigger.
    http_plugin, "http-plugin", export_http = "export_http"
);
trigger!(
    /// The webhook trigger.
    webhook_plugin, "webhook-plugin", export_webhook = "export_webhook"
);
