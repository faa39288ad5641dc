//! Who calls: the credential of a request, and what becomes of addresses that keep guessing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::http::{HeaderMap, header};
use moka::sync::Cache;

use crate::kernel::error::{Error, Kind, Result};
use crate::services::keys::{Keys, Principal};

/// Bad credentials that one address may present a minute.
const GUESSES: u32 = 100;
/// Addresses that are remembered; the oldest are forgotten first.
const ADDRESSES: u64 = 100_000;

/// Authentication, with a bound on guessing.
#[derive(Clone)]
pub struct Credentials {
    keys: Keys,
    guesses: Cache<IpAddr, Arc<AtomicU32>>,
}

/// The key that a request presents, as `Authorization: Bearer` or `X-API-Key`.
pub fn presented(headers: &HeaderMap) -> Option<&str> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| key.trim());
    }
    headers.get("x-api-key")?.to_str().ok()
}

impl Credentials {
    /// Authentication against these keys.
    pub fn new(keys: Keys) -> Self {
        Self { keys, guesses: Cache::builder().max_capacity(ADDRESSES).time_to_live(Duration::from_secs(60)).build() }
    }

    /// Who presents this request.
    pub async fn authenticate(&self, headers: &HeaderMap, peer: SocketAddr) -> Result<Principal> {
        let unauthenticated = || {
            Error::new(
                Kind::Unauthenticated,
                "unauthenticated",
                "present a valid API key as `Authorization: Bearer KEY`",
            )
        };
        let Some(key) = presented(headers) else { return Err(unauthenticated()) };
        let guesses = self.guesses.get(&peer.ip());
        if guesses.as_ref().is_some_and(|count| count.load(Ordering::Relaxed) >= GUESSES) {
            return Err(Error::new(
                Kind::Limited,
                "too_many_bad_credentials",
                "too many invalid credentials came from this address; wait a minute",
            )
            .retry_after(Duration::from_secs(60)));
        }
        match self.keys.authenticate(key).await? {
            Some(principal) => Ok(principal),
            None => {
                self.guesses.get_with(peer.ip(), Arc::default).fetch_add(1, Ordering::Relaxed);
                Err(unauthenticated())
            }
        }
    }
}
