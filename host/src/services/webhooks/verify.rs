//! Who sent a webhook: the signature schemes of providers, over the bytes as they came.
//!
//! Signatures are compared in constant time, against every key that the source's secret holds. A
//! refusal does not tell a wrong key from a wrong body, and a stale time is only reported to a caller
//! whose signature is right. A header that takes part is refused when it comes twice, because two
//! readers might then believe two different things.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256, Sha512};

use super::{Scheme, Source, bad_source};
use crate::kernel::error::{Error, Kind, Result};

/// Seconds that a signed time may be away from ours, before or after: what Stripe, Slack and
/// Standard Webhooks all recommend.
pub const TOLERANCE_S: i64 = 300;
/// Keys of one secret: two during a rotation, and room for a rotation that was interrupted.
pub(super) const KEYS: usize = 4;
/// Signatures of one request that are looked at; a provider that rotates sends two or three.
const SIGNATURES: usize = 16;
/// Bytes of a signature header; sixteen signatures of any scheme fit.
const HEADER_BYTES: usize = 4 << 10;
/// Characters of a delivery id, which becomes part of a row's key.
const ID_CHARS: usize = 255;
/// Characters of an event's name.
const EVENT_CHARS: usize = 255;

/// A delivery whose sender is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// What the provider calls this delivery; `sha256:` and the body's digest where it says nothing.
    pub id: String,
    /// Whether the signature covers the id. If it does not, a recorded request can be sent again under
    /// another id, and only `digest` tells.
    pub id_signed: bool,
    /// The provider's name of the event, where its headers or body have one in a known place.
    pub event_type: Option<String>,
    /// SHA-256 of the body.
    pub digest: [u8; 32],
    /// What the host answers as text instead of running a guest: Slack's `url_verification`.
    pub challenge: Option<String>,
}

/// A signature made as HMAC over the body, for providers without a scheme of their own.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Generic {
    /// The header with the signature.
    pub header: String,
    /// The digest under the HMAC.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// How the signature is written.
    #[serde(default)]
    pub encoding: Encoding,
    /// What stands before the signature, such as `sha256=`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// The header with the delivery's id; without one the body's digest is the id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id_header: Option<String>,
    /// The header with the event's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_header: Option<String>,
    /// The header with the time, in seconds since the Unix epoch. With it the signature is made over
    /// the time, a full stop and the body; a time that is not signed would protect nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp_header: Option<String>,
}

/// The digest under an HMAC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// SHA-256.
    #[default]
    Sha256,
    /// SHA-512.
    Sha512,
}

/// How a signature is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Hexadecimal digits.
    #[default]
    Hex,
    /// Base64 with padding (RFC 4648, section 4).
    Base64,
}

impl Generic {
    pub(super) fn check(&self) -> Result<()> {
        let mut seen: Vec<HeaderName> = Vec::new();
        let others = [&self.id_header, &self.event_header, &self.timestamp_header];
        for name in std::iter::once(&self.header).chain(others.into_iter().flatten()) {
            let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
                bad_source("hmac.header, id_header, event_header and timestamp_header must be header names")
            })?;
            if seen.contains(&header) {
                return Err(bad_source("hmac names the same header twice; each part has a header of its own"));
            }
            seen.push(header);
        }
        if self.prefix.len() > 32 || !self.prefix.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(bad_source("hmac.prefix has at most 32 visible ASCII characters"));
        }
        Ok(())
    }
}

/// The keys that a secret holds: its lines, without blanks around them; empty lines do not count.
pub fn keys(secret: &[u8]) -> Vec<&[u8]> {
    secret.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|key| !key.is_empty()).take(KEYS).collect()
}

/// Verify a delivery of `source` with any of these keys. `headers` and `body` come from a stranger.
pub fn verify(source: &Source, keys: &[&[u8]], headers: &HeaderMap, body: &[u8], now_ms: i64) -> Result<Verified> {
    let request = Request { keys, headers, body, now_s: now_ms.div_euclid(1_000) };
    if keys.is_empty() || keys.iter().any(|key| key.is_empty()) {
        return Err(misconfigured("the source's secret holds no key; store the provider's signing secret in it"));
    }
    match (source.verify, &source.hmac) {
        (Scheme::Stripe, _) => request.stripe(),
        (Scheme::Github, _) => request.github(),
        (Scheme::Shopify, _) => request.shopify(),
        (Scheme::Slack, _) => request.slack(),
        (Scheme::StandardWebhooks, _) => request.standard_webhooks(),
        (Scheme::Hmac, Some(generic)) => request.generic(generic),
        (Scheme::Hmac, None) => {
            Err(misconfigured("the source does not say how its signature is made; define it again"))
        }
    }
}

struct Request<'a> {
    keys: &'a [&'a [u8]],
    headers: &'a HeaderMap,
    body: &'a [u8],
    now_s: i64,
}

/// What providers put into a body to name the event, unread.
#[derive(Default, serde::Deserialize)]
struct Named<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    event_id: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "type")]
    event_type: Option<&'a RawValue>,
    #[serde(borrow, default)]
    challenge: Option<&'a RawValue>,
    #[serde(borrow, default)]
    event: Option<&'a RawValue>,
}

/// A member's text; anything but a string is as if absent.
fn text(member: Option<&RawValue>) -> Option<String> {
    serde_json::from_str(member?.get()).ok()
}

impl<'a> Request<'a> {
    fn stripe(&self) -> Result<Verified> {
        let header = self.required("stripe-signature")?;
        let (mut time, mut signatures) = (None, Vec::new());
        for part in header.split(',') {
            match part.trim().split_once('=') {
                Some(("t", value)) if time.replace(value).is_some() => return Err(invalid()),
                Some(("v1", value)) => signatures.push(hex_bytes(value)),
                _ => {}
            }
        }
        let time = time.ok_or_else(invalid)?;
        self.matches::<Sha256>(&[time.as_bytes(), b".", self.body], self.keys, &signatures)?;
        self.fresh(time)?;
        let named = self.named();
        Ok(self.verified(text(named.id).as_deref(), true, text(named.event_type).as_deref()))
    }

    fn github(&self) -> Result<Verified> {
        let signature = self.required("x-hub-signature-256")?.strip_prefix("sha256=").ok_or_else(invalid)?;
        self.matches::<Sha256>(&[self.body], self.keys, &[hex_bytes(signature)])?;
        let (id, event) = (self.id("x-github-delivery")?, self.header("x-github-event")?);
        Ok(self.verified(id, false, event))
    }

    fn shopify(&self) -> Result<Verified> {
        let signature = self.required("x-shopify-hmac-sha256")?;
        self.matches::<Sha256>(&[self.body], self.keys, &[base64_bytes(signature)])?;
        let (id, event) = (self.id("x-shopify-webhook-id")?, self.header("x-shopify-topic")?);
        Ok(self.verified(id, false, event))
    }

    fn slack(&self) -> Result<Verified> {
        let signature = self.required("x-slack-signature")?.strip_prefix("v0=").ok_or_else(invalid)?;
        let time = self.required("x-slack-request-timestamp")?;
        let parts = [b"v0:", time.as_bytes(), b":", self.body];
        self.matches::<Sha256>(&parts, self.keys, &[hex_bytes(signature)])?;
        self.fresh(time)?;
        let named = self.named();
        let outer = text(named.event_type);
        let inner = named.event.and_then(|event| serde_json::from_str::<Named<'_>>(event.get()).ok());
        let event = inner.and_then(|event| text(event.event_type)).or_else(|| outer.clone());
        let mut verified = self.verified(text(named.event_id).as_deref(), true, event.as_deref());
        if outer.as_deref() == Some("url_verification") {
            verified.challenge = text(named.challenge);
        }
        Ok(verified)
    }

    fn standard_webhooks(&self) -> Result<Verified> {
        // Providers on Svix send the same three values under its own names.
        let prefix = if self.headers.contains_key("webhook-signature") { "webhook" } else { "svix" };
        let signatures = self.required(&format!("{prefix}-signature"))?;
        let id = self.required(&format!("{prefix}-id"))?;
        let time = self.required(&format!("{prefix}-timestamp"))?;
        // The parts are signed with full stops between them: one inside a part could be moved.
        if id.contains('.') || !identifies(id) {
            return Err(invalid());
        }
        let signatures: Vec<_> =
            signatures.split_ascii_whitespace().filter_map(|one| one.strip_prefix("v1,")).map(base64_bytes).collect();
        let keys = self.keys.iter().map(|key| standard_key(key)).collect::<Result<Vec<_>>>()?;
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let parts = [id.as_bytes(), b".", time.as_bytes(), b".", self.body];
        self.matches::<Sha256>(&parts, &keys, &signatures)?;
        self.fresh(time)?;
        Ok(self.verified(Some(id), true, text(self.named().event_type).as_deref()))
    }

    fn generic(&self, generic: &Generic) -> Result<Verified> {
        let signature = self.required(&generic.header)?.strip_prefix(generic.prefix.as_str()).ok_or_else(invalid)?;
        let signature = match generic.encoding {
            Encoding::Hex => hex_bytes(signature),
            Encoding::Base64 => base64_bytes(signature),
        };
        let time = generic.timestamp_header.as_deref().map(|name| self.required(name)).transpose()?;
        let mut parts: Vec<&[u8]> = Vec::with_capacity(3);
        if let Some(time) = time {
            parts.extend([time.as_bytes(), b"."]);
        }
        parts.push(self.body);
        match generic.algorithm {
            Algorithm::Sha256 => self.matches::<Sha256>(&parts, self.keys, &[signature])?,
            Algorithm::Sha512 => self.matches::<Sha512>(&parts, self.keys, &[signature])?,
        }
        time.map(|time| self.fresh(time)).transpose()?;
        let id = generic.id_header.as_deref().map(|name| self.id(name)).transpose()?.flatten();
        let event = generic.event_header.as_deref().map(|name| self.header(name)).transpose()?.flatten();
        Ok(self.verified(id, false, event))
    }

    /// Whether one of the signatures is the HMAC of `parts` under one of the keys. Every pair is
    /// compared, so that the time taken does not say which one was right.
    fn matches<D>(&self, parts: &[&[u8]], keys: &[&[u8]], signatures: &[Option<Vec<u8>>]) -> Result<()>
    where
        D: hmac::EagerHash,
    {
        if signatures.len() > SIGNATURES {
            return Err(invalid());
        }
        let mut right = false;
        for key in keys {
            let mut mac = Hmac::<D>::new_from_slice(key).expect("HMAC takes a key of any length");
            for part in parts {
                mac.update(part);
            }
            for signature in signatures.iter().flatten() {
                right |= mac.clone().verify_slice(signature).is_ok();
            }
        }
        if right { Ok(()) } else { Err(invalid()) }
    }

    fn fresh(&self, time: &str) -> Result<()> {
        // Twelve digits reach the year 33658; no sign, no blank, no fraction.
        let digits = (1..=12).contains(&time.len()) && time.bytes().all(|b| b.is_ascii_digit());
        let time: i64 = time.parse().ok().filter(|_| digits).ok_or_else(invalid)?;
        if (self.now_s - time).abs() <= TOLERANCE_S {
            return Ok(());
        }
        Err(Error::new(
            Kind::Unauthenticated,
            "signature_stale",
            format!("the signed time is more than {TOLERANCE_S} seconds away from the server's; sign and send again"),
        ))
    }

    /// The one value of a header that takes part; absent is absent, twice is an attempt to confuse.
    fn header(&self, name: &str) -> Result<Option<&'a str>> {
        let mut values = self.headers.get_all(name).iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() || value.len() > HEADER_BYTES {
            return Err(invalid());
        }
        value.to_str().map(Some).map_err(|_| invalid())
    }

    fn required(&self, name: &str) -> Result<&'a str> {
        self.header(name)?.filter(|value| !value.is_empty()).ok_or_else(|| {
            Error::new(
                Kind::Unauthenticated,
                "signature_missing",
                "the request does not carry the signature headers of this source; send them",
            )
        })
    }

    fn id(&self, name: &str) -> Result<Option<&'a str>> {
        match self.header(name)? {
            None => Ok(None),
            Some(id) if identifies(id) => Ok(Some(id)),
            Some(_) => Err(Error::new(
                Kind::Invalid,
                "delivery_id_invalid",
                format!("a delivery id is 1 to {ID_CHARS} visible ASCII characters"),
            )),
        }
    }

    fn named(&self) -> Named<'a> {
        serde_json::from_slice(self.body).unwrap_or_default()
    }

    fn verified(&self, id: Option<&str>, id_signed: bool, event: Option<&str>) -> Verified {
        let digest: [u8; 32] = Sha256::digest(self.body).into();
        let given = id.filter(|id| identifies(id));
        Verified {
            id_signed: id_signed || given.is_none(),
            id: given.map_or_else(|| format!("sha256:{}", hex::encode(digest)), str::to_owned),
            event_type: event.filter(|event| !event.is_empty() && event.len() <= EVENT_CHARS).map(str::to_owned),
            digest,
            challenge: None,
        }
    }
}

/// Whether this can name a delivery.
fn identifies(id: &str) -> bool {
    (1..=ID_CHARS).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
}

fn hex_bytes(text: &str) -> Option<Vec<u8>> {
    hex::decode(text).ok()
}

fn base64_bytes(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// A Standard Webhooks key: base64, with or without `whsec_` before it.
fn standard_key(key: &[u8]) -> Result<Vec<u8>> {
    let text = key.strip_prefix(b"whsec_").unwrap_or(key);
    STANDARD.decode(text).ok().filter(|key| !key.is_empty()).ok_or_else(|| {
        misconfigured(
            "the source's secret is no Standard Webhooks key; store it as whsec_ and base64, as the provider shows it",
        )
    })
}

fn invalid() -> Error {
    Error::new(
        Kind::Unauthenticated,
        "signature_invalid",
        "the signature is not right for this body; check the signing secret on both sides",
    )
}

/// The tenant has to repair its source; until then the provider tries again.
fn misconfigured(message: &'static str) -> Error {
    Error::unavailable("source_misconfigured", message)
}

#[cfg(test)]
mod tests;
