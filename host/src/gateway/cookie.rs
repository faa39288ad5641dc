//! Cookies of plugins, which share one host: each goes back to the plugin that set it, and to no other.
//!
//! It keeps plugins from overwriting and receiving each other's cookies. It is no wall between pages: scripts of one origin
//! reach each other, and so an operator who lets plugins answer pages to people gives each tenant a host of its own.

/// A `Set-Cookie` of the plugin that is reached under `mount`: without a domain, which would name other hosts, and for no
/// path outside of it (RFC 6265, section 5.2). `value` comes from the guest.
pub(super) fn confine(value: &[u8], mount: &str) -> Vec<u8> {
    let mut parts = value.split(|byte| *byte == b';');
    let mut confined = parts.next().unwrap_or_default().to_vec();
    let mut path = mount.as_bytes();
    for attribute in parts {
        let mut sides = attribute.splitn(2, |byte| *byte == b'=').map(<[u8]>::trim_ascii);
        let (name, own) = (sides.next().unwrap_or_default(), sides.next().unwrap_or_default());
        if name.eq_ignore_ascii_case(b"path") {
            // The last one holds.
            let inside = own.strip_prefix(mount.as_bytes()).is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
            path = if inside { own } else { mount.as_bytes() };
        } else if !name.eq_ignore_ascii_case(b"domain") {
            confined.push(b';');
            confined.extend_from_slice(attribute);
        }
    }
    confined.extend_from_slice(b"; Path=");
    confined.extend_from_slice(path);
    confined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_stays_with_its_plugin() {
        for (given, confined) in [
            ("a=1", "a=1; Path=/t/acme/shop"),
            ("a=1; Domain=example.com; Secure", "a=1; Secure; Path=/t/acme/shop"),
            ("a=1; DOMAIN = .com;Path=/", "a=1; Path=/t/acme/shop"),
            ("a=1; Path=/t/acme/shop/cart", "a=1; Path=/t/acme/shop/cart"),
            ("a=1; path=/t/acme/shop/cart; path=/t/acme/shopping", "a=1; Path=/t/acme/shop"),
            ("a=1; Path=/t/globex/shop", "a=1; Path=/t/acme/shop"),
            ("a=1; Path", "a=1; Path=/t/acme/shop"),
            ("", "; Path=/t/acme/shop"),
        ] {
            assert_eq!(String::from_utf8_lossy(&confine(given.as_bytes(), "/t/acme/shop")), confined, "{given}");
        }
    }
}
