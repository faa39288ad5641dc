//! Encryption at rest and keyed digests, all from one master key.
//!
//! A sealed text is bound to its place: opening it with another tenant's or another name's context
//! fails. Losing the master key loses every secret; it is never stored in a database.

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{Key, KeyInit, XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::tenant::TenantId;

/// Bytes of an XChaCha20 nonce.
const NONCE_BYTES: usize = 24;

/// HMAC-SHA-256 under the key of one purpose.
#[derive(Clone)]
pub(crate) struct Digester(Hmac<Sha256>);

impl Digester {
    pub(crate) fn digest(&self, data: &[u8]) -> [u8; 32] {
        self.0.clone().chain_update(data).finalize().into_bytes().into()
    }
}

/// The node's master key. Its `Debug` shows nothing.
#[derive(Clone)]
pub struct Master([u8; 32]);

impl std::fmt::Debug for Master {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Master(..)")
    }
}

impl Master {
    /// A new random key.
    pub fn generate() -> Self {
        Self(rand::random())
    }

    /// Read a key from 64 hexadecimal digits, the form of `CHALET_MASTER_KEY` and of the key file.
    pub fn parse(text: &str) -> Result<Self> {
        let mut key = [0; 32];
        hex::decode_to_slice(text.trim(), &mut key)
            .map_err(|_| Error::invalid("the master key must be 64 hexadecimal digits"))?;
        Ok(Self(key))
    }

    /// The key as 64 hexadecimal digits, to be written to a file that only its owner can read.
    pub fn to_hex(&self) -> String {
        hex::encode(self.0)
    }

    /// A key for one purpose and, where given, one tenant: HMAC-SHA-256 of both.
    fn derive(&self, purpose: &str, tenant: Option<&TenantId>) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        for part in [purpose, tenant.map_or("", TenantId::as_str)] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac.finalize().into_bytes().into()
    }

    /// HMAC-SHA-256 under the key of this purpose.
    pub fn digest(&self, purpose: &str, tenant: Option<&TenantId>, data: &[u8]) -> [u8; 32] {
        self.digester(purpose, tenant).digest(data)
    }

    /// The same for many texts.
    pub(crate) fn digester(&self, purpose: &str, tenant: Option<&TenantId>) -> Digester {
        let key = self.derive(purpose, tenant);
        Digester(Hmac::new_from_slice(&key).expect("HMAC takes a key of any length"))
    }

    /// Encrypt with XChaCha20-Poly1305 under the tenant's key, bound to `place`.
    pub fn seal(&self, tenant: &TenantId, place: &str, plain: &[u8]) -> Vec<u8> {
        let key = self.derive("seal", Some(tenant));
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let cipher = XChaCha20Poly1305::new(&Key::from(key));
        let sealed = cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: plain, aad: place.as_bytes() })
            .expect("XChaCha20-Poly1305 encrypts any text that fits into memory");
        [nonce.as_slice(), &sealed].concat()
    }

    /// Decrypt what [`Self::seal`] made for the same tenant and place.
    pub fn open(&self, tenant: &TenantId, place: &str, sealed: &[u8]) -> Result<Vec<u8>> {
        let unreadable = || {
            Error::new(
                Kind::Internal,
                "secret_unreadable",
                "a stored secret cannot be read with this node's master key; set the key it was stored with, or store the secret again",
            )
        };
        let (nonce, text) = sealed.split_at_checked(NONCE_BYTES).ok_or_else(unreadable)?;
        let nonce: [u8; NONCE_BYTES] = nonce.try_into().map_err(|_| unreadable())?;
        XChaCha20Poly1305::new(&Key::from(self.derive("seal", Some(tenant))))
            .decrypt(&XNonce::from(nonce), Payload { msg: text, aad: place.as_bytes() })
            .map_err(|_| unreadable())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_text_opens_only_in_its_own_place_for_its_own_tenant() {
        let master = Master::generate();
        let (a, b) = (TenantId::from_row("a"), TenantId::from_row("b"));
        let sealed = master.seal(&a, "secrets/X", b"hello");
        assert_eq!(master.open(&a, "secrets/X", &sealed).expect("opens"), b"hello");
        assert!(master.open(&b, "secrets/X", &sealed).is_err());
        assert!(master.open(&a, "secrets/Y", &sealed).is_err());
        assert!(Master::generate().open(&a, "secrets/X", &sealed).is_err());
        assert!(master.open(&a, "secrets/X", &sealed[..10]).is_err());
        assert!(!sealed.windows(5).any(|w| w == b"hello"));
    }
}
