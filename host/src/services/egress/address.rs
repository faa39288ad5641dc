//! Which addresses the outside world is made of.
//!
//! Everything is refused that is not plain global unicast: the IANA special-purpose registries of both
//! families, and every form in which an IPv6 address carries an IPv4 one, whatever it carries. A
//! translator near the host (NAT64, 6to4, Teredo, ISATAP) would turn such an address into one that was
//! never looked at, so that unwrapping and judging the inner address alone would not be enough.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IPv4 that is not the public internet: (network, prefix length).
const V4: &[(Ipv4Addr, u8)] = &[
    (Ipv4Addr::new(0, 0, 0, 0), 8),        // this network (RFC 791)
    (Ipv4Addr::new(10, 0, 0, 0), 8),       // private (RFC 1918)
    (Ipv4Addr::new(100, 64, 0, 0), 10),    // shared (RFC 6598); 100.100.100.200 is a cloud's metadata
    (Ipv4Addr::new(127, 0, 0, 0), 8),      // loopback (RFC 1122)
    (Ipv4Addr::new(168, 63, 129, 16), 32), // a cloud's metadata and DNS, in a public range
    (Ipv4Addr::new(169, 254, 0, 0), 16),   // link-local (RFC 3927); 169.254.169.254 is metadata
    (Ipv4Addr::new(172, 16, 0, 0), 12),    // private (RFC 1918)
    (Ipv4Addr::new(192, 0, 0, 0), 24),     // IETF protocol assignments (RFC 6890)
    (Ipv4Addr::new(192, 0, 2, 0), 24),     // documentation (RFC 5737)
    (Ipv4Addr::new(192, 31, 196, 0), 24),  // AS112 (RFC 7535)
    (Ipv4Addr::new(192, 52, 193, 0), 24),  // AMT (RFC 7450)
    (Ipv4Addr::new(192, 88, 99, 0), 24),   // 6to4 relay anycast (RFC 7526)
    (Ipv4Addr::new(192, 168, 0, 0), 16),   // private (RFC 1918)
    (Ipv4Addr::new(192, 175, 48, 0), 24),  // AS112 (RFC 7534)
    (Ipv4Addr::new(198, 18, 0, 0), 15),    // benchmarks (RFC 2544)
    (Ipv4Addr::new(198, 51, 100, 0), 24),  // documentation (RFC 5737)
    (Ipv4Addr::new(203, 0, 113, 0), 24),   // documentation (RFC 5737)
    (Ipv4Addr::new(224, 0, 0, 0), 4),      // multicast (RFC 5771)
    (Ipv4Addr::new(240, 0, 0, 0), 4),      // reserved and broadcast (RFC 1112)
];

/// The IPv6 that IANA has given out as global unicast. Loopback, mapped, NAT64, unique local, link-local,
/// site-local, multicast, discard and segment-routing addresses are all outside of it.
const V6_GLOBAL: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);

/// Parts of it that are not the public internet.
const V6: &[(Ipv6Addr, u8)] = &[
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23), // IETF protocols: Teredo, ORCHID, benchmarks, AMT
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32), // documentation (RFC 3849)
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16), // 6to4 (RFC 3056)
    (Ipv6Addr::new(0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0), 48), // AS112 (RFC 7534)
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20), // documentation (RFC 9637)
    (Ipv6Addr::new(0x3ffe, 0, 0, 0, 0, 0, 0, 0), 16), // 6bone, given back (RFC 3701)
];

/// Whether an address is of the public internet.
pub(super) fn public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !V4.iter().any(|(network, length)| v4_in(address, *network, *length)),
        IpAddr::V6(address) => {
            v6_in(address, V6_GLOBAL.0, V6_GLOBAL.1)
                && !V6.iter().any(|(network, length)| v6_in(address, *network, *length))
                && !isatap(address)
        }
    }
}

/// Whether the interface part is ISATAP's, which carries an IPv4 address (RFC 5214, section 6.1).
fn isatap(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    matches!(segments[4], 0x0000 | 0x0200 | 0x0100 | 0x0300) && segments[5] == 0x5efe
}

fn v4_in(address: Ipv4Addr, network: Ipv4Addr, length: u8) -> bool {
    let host_bits = 32 - u32::from(length);
    u32::from(address).checked_shr(host_bits) == u32::from(network).checked_shr(host_bits)
}

fn v6_in(address: Ipv6Addr, network: Ipv6Addr, length: u8) -> bool {
    let host_bits = 128 - u32::from(length);
    u128::from(address).checked_shr(host_bits) == u128::from(network).checked_shr(host_bits)
}

/// A network that the operator keeps to itself, such as `203.0.113.0/24` or a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Network {
    address: IpAddr,
    length: u8,
}

impl Network {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address.parse().ok()?, Some(length.parse().ok()?)),
            None => (text.parse().ok()?, None),
        };
        let most = if matches!(address, IpAddr::V4(_)) { 32 } else { 128 };
        let length = length.unwrap_or(most);
        (length <= most).then_some(Self { address, length })
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        match (address, self.address) {
            (IpAddr::V4(address), IpAddr::V4(network)) => v4_in(address, network, self.length),
            (IpAddr::V6(address), IpAddr::V6(network)) => v6_in(address, network, self.length),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(text: &str) -> bool {
        public(text.parse().unwrap_or_else(|_| panic!("{text} is no address")))
    }

    #[test]
    fn every_special_ipv4_network_is_refused_up_to_its_edges() {
        // first and last address of the network, and the public neighbours where there are any
        let table = [
            ("0.0.0.0", "0.255.255.255", None, Some("1.0.0.0")),
            ("10.0.0.0", "10.255.255.255", Some("9.255.255.255"), Some("11.0.0.0")),
            ("100.64.0.0", "100.127.255.255", Some("100.63.255.255"), Some("100.128.0.0")),
            ("127.0.0.0", "127.255.255.255", Some("126.255.255.255"), Some("128.0.0.0")),
            ("168.63.129.16", "168.63.129.16", Some("168.63.129.15"), Some("168.63.129.17")),
            ("169.254.0.0", "169.254.255.255", Some("169.253.255.255"), Some("169.255.0.0")),
            ("172.16.0.0", "172.31.255.255", Some("172.15.255.255"), Some("172.32.0.0")),
            ("192.0.0.0", "192.0.0.255", Some("191.255.255.255"), Some("192.0.1.0")),
            ("192.0.2.0", "192.0.2.255", Some("192.0.1.255"), Some("192.0.3.0")),
            ("192.31.196.0", "192.31.196.255", Some("192.31.195.255"), Some("192.31.197.0")),
            ("192.52.193.0", "192.52.193.255", Some("192.52.192.255"), Some("192.52.194.0")),
            ("192.88.99.0", "192.88.99.255", Some("192.88.98.255"), Some("192.88.100.0")),
            ("192.168.0.0", "192.168.255.255", Some("192.167.255.255"), Some("192.169.0.0")),
            ("192.175.48.0", "192.175.48.255", Some("192.175.47.255"), Some("192.175.49.0")),
            ("198.18.0.0", "198.19.255.255", Some("198.17.255.255"), Some("198.20.0.0")),
            ("198.51.100.0", "198.51.100.255", Some("198.51.99.255"), Some("198.51.101.0")),
            ("203.0.113.0", "203.0.113.255", Some("203.0.112.255"), Some("203.0.114.0")),
            ("224.0.0.0", "239.255.255.255", Some("223.255.255.255"), None),
            ("240.0.0.0", "255.255.255.255", None, None),
        ];
        for (first, last, before, behind) in table {
            assert!(!judge(first) && !judge(last), "{first} to {last}");
            for neighbour in [before, behind].into_iter().flatten() {
                assert!(judge(neighbour), "{neighbour}");
            }
        }
        for metadata in ["169.254.169.254", "100.100.100.200", "169.254.170.2", "192.0.0.192"] {
            assert!(!judge(metadata), "{metadata}");
        }
    }

    #[test]
    fn every_ipv6_that_is_not_plain_global_unicast_is_refused() {
        for address in [
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::ffff:0:127.0.0.1",
            "::127.0.0.1",
            "::7f00:1",
            "::8.8.8.8",
            "64:ff9b::127.0.0.1",
            "64:ff9b::8.8.8.8",
            "64:ff9b:1::a00:1",
            "64:ff9b:1:ffff:ffff:ffff:ffff:ffff",
            "100::",
            "100::1",
            "100:0:0:1::1",
            "1fff:ffff::1",
            "2001::1",
            "2001:0:53aa:64c::1",
            "2001:1::1",
            "2001:2::1",
            "2001:3::1",
            "2001:4:112::1",
            "2001:10::1",
            "2001:20::1",
            "2001:30::1",
            "2001:1ff:ffff::1",
            "2001:db8::1",
            "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
            "2002::1",
            "2002:7f00:1::",
            "2002:808:808::1",
            "2620:4f:8000::1",
            "3ffe::1",
            "3fff::1",
            "3fff:fff:ffff::1",
            "4000::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fdff:ffff::1",
            "fe80::1",
            "fe80::a9fe:a9fe",
            "febf::1",
            "fec0::1",
            "feff::1",
            "ff00::1",
            "ff02::1",
            "ffff::1",
            "2606:4700::5efe:7f00:1",
            "2606:4700::200:5efe:a00:1",
        ] {
            assert!(!judge(address), "{address}");
        }
        for address in [
            "2000::1",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2001:db7:ffff::1",
            "2001:db9::1",
            "2003::1",
            "2606:4700:4700::1111",
            "2a00:1450::1",
            "3ffd::1",
            "3fff:1000::1",
            "2620:4f:8001::1",
        ] {
            assert!(judge(address), "{address}");
        }
    }

    #[test]
    fn an_operators_network_is_an_address_or_a_prefix() {
        let contains = |network: &str, address: &str| {
            Network::parse(network).is_some_and(|network| network.contains(address.parse().expect("an address")))
        };
        assert!(contains("198.20.1.0/24", "198.20.1.255"));
        assert!(!contains("198.20.1.0/24", "198.20.2.0"));
        assert!(contains("0.0.0.0/0", "8.8.8.8") && !contains("0.0.0.0/0", "2606:4700::1"));
        assert!(contains("2606:4700::/32", "2606:4700:1::1") && contains("2606:4700::1", "2606:4700::1"));
        for bad in ["", "x", "1.2.3.4/33", "::/129", "1.2.3.4/-1", "1.2.3.4/"] {
            assert_eq!(Network::parse(bad), None, "{bad}");
        }
    }
}
