//! What a URL points at, and what a grant names: both are read by the same parser and compared whole.

use std::net::IpAddr;

use url::{Host, Url};

use super::{URL_BYTES, denied};
use crate::kernel::error::{Error, Kind, Result};

/// Ports of other protocols, some of whose servers would take the lines of a request as their own: those that browsers
/// send no request to (WHATWG Fetch, "port blocking"), and those of databases, caches and queues that it does not list.
const OTHER_PROTOCOLS: &[u16] = &[
    1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109, 110,
    111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531, 532,
    540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1433, 1521, 1719, 1720, 1723, 2049, 3306, 3659, 4045,
    4190, 4222, 5060, 5061, 5432, 5672, 6000, 6379, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 9042, 9092, 10080,
    11211, 27017,
];

/// A URL, read once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// `https` or `http`.
    pub(super) scheme: String,
    /// A name in lower-case ASCII without a final dot, or an address without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// Path and query as they go onto the wire.
    pub(super) path: String,
    /// As `Host` says it: with brackets and, where it is not the scheme's own, with the port.
    pub(super) authority: String,
    literal: Option<IpAddr>,
}

impl Target {
    /// Read a URL of a guest.
    pub(super) fn parse(url: &str) -> Result<Self> {
        let bad = |what: &'static str| Error::new(Kind::Invalid, "url_invalid", what);
        if url.len() > URL_BYTES {
            return Err(bad("a URL has at most 8192 bytes"));
        }
        // The parser would drop tabs and line ends and turn backslashes into slashes; another reader of the
        // same text would not, and the two would disagree on the host.
        if url.bytes().any(|b| b <= b' ' || b == 0x7f || b == b'\\') {
            return Err(bad("a URL has no blanks, control characters or backslashes; percent-encode them"));
        }
        let url = Url::parse(url).map_err(|_| bad("the URL is not absolute or not well formed"))?;
        if !matches!(url.scheme(), "https" | "http") {
            return Err(denied("only https is reachable from here; use an https URL"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad("a URL has no user name or password; send an authorization header"));
        }
        let (host, literal) = host(&url).ok_or_else(|| bad("the URL names no host"))?;
        let port = url
            .port_or_known_default()
            .filter(|port| *port != 0)
            .ok_or_else(|| bad("the URL's port cannot be used"))?;
        let path = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let bracketed = if matches!(literal, Some(IpAddr::V6(_))) { format!("[{host}]") } else { host.clone() };
        let authority = url.port().map_or_else(|| bracketed.clone(), |port| format!("{bracketed}:{port}"));
        Ok(Self { scheme: url.scheme().to_owned(), host, port, path, authority, literal })
    }

    /// The address, if the URL has one in place of a name.
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.literal
    }

    /// Whether the name is one that public DNS never answers, and a private resolver might (RFC 6761,
    /// RFC 6762, RFC 7686, RFC 8375, and ICANN's `internal`).
    pub(super) fn special_use(&self) -> bool {
        const SPECIAL: &[&str] = &[
            "localhost",
            "local",
            "internal",
            "home.arpa",
            "onion",
            "test",
            "example",
            "invalid",
            "intranet",
            "lan",
            "corp",
        ];
        let under =
            |name: &&str| self.host == **name || self.host.strip_suffix(*name).is_some_and(|rest| rest.ends_with('.'));
        self.literal.is_none() && (!self.host.contains('.') || SPECIAL.iter().any(under))
    }

    /// Whether the port belongs to a protocol that is not HTTP.
    pub(super) fn other_protocol(&self) -> bool {
        OTHER_PROTOCOLS.contains(&self.port)
    }

    fn default_port(&self) -> u16 {
        if self.scheme == "https" { 443 } else { 80 }
    }
}

/// A host that a manifest names, or a host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    host: String,
    /// None is the port of the scheme.
    pub(super) port: Option<u16>,
}

impl Grant {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let bad = || {
            Error::new(
                Kind::Invalid,
                "egress_grant",
                "an egress grant is one host or host:port, such as api.example.com; no wildcard, scheme, path or user name",
            )
        };
        let plain = |b: u8| b.is_ascii_graphic() && !b"/\\?#@*%".contains(&b) || !b.is_ascii();
        if text.is_empty() || text.len() > 260 || !text.bytes().all(plain) {
            return Err(bad());
        }
        // With a scheme of which no default port is known, the port stays as it is written.
        let url = Url::parse(&format!("https://{text}/")).map_err(|_| bad())?;
        let (host, _) = host(&url).ok_or_else(bad)?;
        let written = text.rsplit_once(':').filter(|(before, _)| !before.contains(':') || before.ends_with(']'));
        let port = match written {
            Some((_, port)) => Some(port.parse().ok().filter(|port| *port != 0).ok_or_else(bad)?),
            None => None,
        };
        Ok(Self { host, port })
    }

    /// Whether this grant is for that host and port: equal, not similar.
    pub(super) fn names(&self, target: &Target) -> bool {
        self.host == target.host && self.port.unwrap_or_else(|| target.default_port()) == target.port
    }
}

/// The host in the one form in which hosts are compared here.
fn host(url: &Url) -> Option<(String, Option<IpAddr>)> {
    match url.host()? {
        Host::Ipv4(address) => Some((address.to_string(), Some(address.into()))),
        Host::Ipv6(address) => Some((address.to_string(), Some(address.into()))),
        Host::Domain(name) => {
            let name = name.strip_suffix('.').unwrap_or(name);
            let label = |label: &str| {
                (1..=63).contains(&label.len())
                    && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
            };
            (name.len() <= 253 && name.split('.').all(label)).then(|| (name.to_owned(), None))
        }
    }
}
