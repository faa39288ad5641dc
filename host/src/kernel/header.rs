//! Headers that are not a message's own.

/// How many plugins called each other before this request: what goes around comes to an end.
pub const DEPTH: &str = "chalet-depth";

/// Whether a header, its name in lower case, concerns one connection and not the message that it came with
/// (RFC 9110, section 7.6.1).
pub fn is_hop_by_hop(name: &str) -> bool {
    name.starts_with("proxy-")
        || matches!(name, "connection" | "keep-alive" | "te" | "trailer" | "transfer-encoding" | "upgrade")
}
