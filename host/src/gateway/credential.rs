//! Who calls: the credential of a request, and what becomes of addresses that keep guessing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use axum::http::{HeaderMap, header};

use crate::gateway::serve::owner;
use crate::kernel::cache::Cache;
use crate::kernel::error::{Error, Kind, Result};
use crate::services::keys::{self, Keys, Principal};

/// Bad credentials that one address may present a minute.
const GUESSES: u32 = 100;
/// Bad credentials of a key's form that all addresses together may present a minute: each costs a look-up.
const ALL_GUESSES: u32 = 5_000;
/// Addresses that are remembered; the oldest are forgotten first.
const ADDRESSES: usize = 100_000;
/// How long guesses count.
const MINUTE: Duration = Duration::from_secs(60);

/// Authentication, with a bound on guessing.
#[derive(Clone)]
pub struct Credentials {
    keys: Keys,
    /// By address; of all of them under none.
    guesses: Cache<Option<IpAddr>, Arc<AtomicU32>>,
    /// Credentials that were never a key, refused without a look-up.
    pub rejected: Arc<AtomicU64>,
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
        Self { keys, guesses: Cache::forgetting(ADDRESSES, MINUTE), rejected: Arc::default() }
    }

    /// Who presents this request.
    pub async fn authenticate(&self, headers: &HeaderMap, peer: SocketAddr) -> Result<Arc<Principal>> {
        let unauthenticated = || {
            Error::new(
                Kind::Unauthenticated,
                "unauthenticated",
                "present a valid API key as `Authorization: Bearer KEY`",
            )
        };
        let Some(key) = presented(headers) else { return Err(unauthenticated()) };
        let address = owner(peer.ip());
        let over = |whose: Option<IpAddr>, most: u32| {
            self.guesses.get(&whose).is_some_and(|count| count.load(Ordering::Relaxed) >= most)
        };
        // Who was here before goes on: behind one proxy all have one address, and a guesser there must not lock them out.
        if (over(Some(address), GUESSES) || over(None, ALL_GUESSES)) && !self.keys.was_valid(key) {
            return Err(Error::new(
                Kind::Limited,
                "too_many_bad_credentials",
                "too many invalid credentials came from this address, or from everywhere; wait a minute",
            )
            .retry_after(MINUTE));
        }
        let guessed = |whose: Option<IpAddr>| {
            let count = self.guesses.get(&whose).unwrap_or_else(|| {
                // Of two first guesses at the same moment one is not counted.
                let count = Arc::<AtomicU32>::default();
                self.guesses.insert(whose, count.clone());
                count
            });
            count.fetch_add(1, Ordering::Relaxed);
        };
        if keys::never_was(key) {
            self.rejected.fetch_add(1, Ordering::Relaxed);
            guessed(Some(address));
            return Err(unauthenticated());
        }
        match self.keys.authenticate(key).await? {
            Some(principal) => Ok(principal),
            None => {
                guessed(Some(address));
                guessed(None);
                Err(unauthenticated())
            }
        }
    }
}
