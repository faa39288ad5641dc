//! One effect per idempotency key, whatever is repeated: the stored answer is a row in the same commit as
//! the work (IETF draft-ietf-httpapi-idempotency-key-header). A later request with the key and the same
//! fingerprint gets that answer; with another fingerprint it is refused.
//!
//! Once-only rests on that row alone: two requests that run at the same time both read it as absent, so
//! the second one's commit conflicts and its re-run finds the answer. The claim only lets the second one
//! know early (409). Answers are sealed with the tenant's key.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::effects::{Claim, Claims, Effects, Held, Key, Space};
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::secret::Master;
use crate::kernel::tenant::TenantScope;

const ANSWERS: Space = Space::named("answers");
/// How long an answer to an API call can be asked for again.
pub const API_MS: i64 = 24 * 3_600_000;
/// The same for webhooks: longer than the providers' retries go on.
pub const WEBHOOK_MS: i64 = 7 * 24 * 3_600_000;
/// Bytes of an answer that is kept.
pub const ANSWER_BYTES: usize = 1 << 20;
/// Characters of a key: what the providers' ids and common clients need, several times over.
const KEY_LENGTH: usize = 255;

/// One cause, and the request that it came with.
#[derive(Clone, Debug)]
pub struct Cause {
    row: Key,
    fingerprint: [u8; 32],
    keep_ms: i64,
    // Another name of the same cause, and how long it stands for it.
    alias: Option<(Key, i64)>,
}

/// What a request was: the same key with another request is a mistake of the client.
pub fn fingerprint(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

fn row(caller: &str, route: &str, key: &str) -> Key {
    ANSWERS.key(fingerprint(&[caller.as_bytes(), route.as_bytes(), key.as_bytes()]).to_vec())
}

impl Cause {
    /// The cause that a caller names by a key on a route.
    pub fn new(caller: &str, route: &str, key: &str, fingerprint: [u8; 32], keep_ms: i64) -> Self {
        Self { row: row(caller, route, key), fingerprint, keep_ms, alias: None }
    }

    /// The same cause under a second key, which stands for it for `keep_ms`.
    #[must_use]
    pub fn or_same(mut self, caller: &str, route: &str, key: &str, keep_ms: i64) -> Self {
        self.alias = Some((row(caller, route, key), keep_ms));
        self
    }

    /// A digest of caller, route and key, from which keys of outgoing calls are derived.
    pub fn digest(&self) -> &[u8] {
        &self.row.key
    }

    /// The row that exists once the work is committed.
    pub fn row(&self) -> &Key {
        &self.row
    }
}

/// The key of an `Idempotency-Key` header: a structured-field string, or the same without its quotes.
pub fn parse_key(header: &[u8]) -> Result<String> {
    let bad = || {
        Error::new(
            Kind::Invalid,
            "idempotency_key_invalid",
            "Idempotency-Key must be 1 to 255 printable ASCII characters, quoted or not",
        )
    };
    let text = std::str::from_utf8(header).map_err(|_| bad())?.trim();
    let key = if text.starts_with('"') {
        let item: sfv::Item = sfv::Parser::new(text).parse().map_err(|_| bad())?;
        item.bare_item.as_string().ok_or_else(bad)?.as_str().to_owned()
    } else {
        text.to_owned()
    };
    let fits = (1..=KEY_LENGTH).contains(&key.len()) && key.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if fits { Ok(key) } else { Err(bad()) }
}

/// An answer that was given, to be given again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The invocation that gave it.
    pub invocation: String,
    /// HTTP status.
    pub status: u16,
    /// Header names and values.
    pub headers: Vec<(String, Bytes)>,
    /// The body.
    pub body: Bytes,
}

/// What stands before the body of a stored answer; header values are hexadecimal, since they are bytes.
#[derive(Serialize, Deserialize)]
struct Head {
    fingerprint: [u8; 32],
    invocation: String,
    status: u16,
    headers: Vec<(String, String)>,
}

/// The head's length in four bytes, the head, the body.
fn encode(fingerprint: [u8; 32], answer: &Answer) -> Result<Vec<u8>> {
    let head = serde_json::to_vec(&Head {
        fingerprint,
        invocation: answer.invocation.clone(),
        status: answer.status,
        headers: answer.headers.iter().map(|(name, value)| (name.clone(), hex::encode(value))).collect(),
    })
    .map_err(Error::internal)?;
    let length = u32::try_from(head.len()).map_err(Error::internal)?;
    Ok([&length.to_be_bytes()[..], &head, &answer.body].concat())
}

fn decode(plain: &[u8]) -> Result<([u8; 32], Answer)> {
    let broken = || Error::internal("a stored answer is cut short");
    let (length, rest) = plain.split_first_chunk::<4>().ok_or_else(broken)?;
    let (head, body) = rest.split_at_checked(u32::from_be_bytes(*length) as usize).ok_or_else(broken)?;
    let head: Head = serde_json::from_slice(head).map_err(Error::internal)?;
    let mut headers = Vec::with_capacity(head.headers.len());
    for (name, value) in head.headers {
        headers.push((name, hex::decode(value).map_err(Error::internal)?.into()));
    }
    let answer =
        Answer { invocation: head.invocation, status: head.status, headers, body: Bytes::copy_from_slice(body) };
    Ok((head.fingerprint, answer))
}

fn reused() -> Error {
    Error::new(
        Kind::Invalid,
        "idempotency_key_reused",
        "this Idempotency-Key came with another request before; use a new key for a new request",
    )
}

/// Stored answers, and the requests that run now.
#[derive(Clone)]
pub struct Idempotency {
    master: Master,
    claims: Claims,
}

impl Idempotency {
    /// Answers sealed with this master key; claims that the nodes of a database share.
    pub fn new(master: Master, claims: Claims) -> Self {
        Self { master, claims }
    }

    /// Hold a key while its request runs, at most as long as `lease`; 409 if another request holds it.
    pub async fn claim(&self, scope: &TenantScope, cause: &Cause, lease: Duration) -> Result<Held> {
        let key = hex::encode(&cause.row.key);
        match self.claims.claim(scope, &key, &cause.fingerprint, lease).await? {
            Claim::Claimed(held) => Ok(held),
            Claim::Running { retry_after } => Err(Error::new(
                Kind::Conflict,
                "idempotency_key_in_use",
                "a request with this Idempotency-Key is still running; try again",
            )
            .retry_after(retry_after.min(Duration::from_secs(1)))),
            Claim::Mismatch => Err(reused()),
        }
    }

    /// The answer that this cause already has. The read belongs to the transaction, so that its commit
    /// conflicts if another request stores an answer meanwhile.
    pub async fn find(&self, effects: &mut Effects, cause: &Cause) -> Result<Option<Answer>> {
        Ok(self.find_versioned(effects, cause).await?.map(|(answer, _)| answer))
    }

    /// The same, with the number of the commit that stored it.
    pub async fn find_versioned(&self, effects: &mut Effects, cause: &Cause) -> Result<Option<(Answer, u64)>> {
        let keys: Vec<Key> =
            std::iter::once(&cause.row).chain(cause.alias.as_ref().map(|(row, _)| row)).cloned().collect();
        let rows = effects.get_many(&keys).await?;
        let Some((key, row)) = keys.iter().zip(rows).find_map(|(key, row)| Some((key, row?))) else { return Ok(None) };
        let place = hex::encode(&key.key);
        let plain = self.master.open(effects.scope().id(), &place, &row.value.to_bytes())?;
        let (fingerprint, answer) = decode(&plain)?;
        if fingerprint != cause.fingerprint {
            return Err(reused());
        }
        Ok(Some((answer, row.version)))
    }

    /// Stage the answer of this cause.
    pub fn store(&self, effects: &mut Effects, cause: &Cause, answer: &Answer) -> Result<()> {
        if answer.body.len() > ANSWER_BYTES {
            return Err(Error::new(
                Kind::Failed,
                "answer_too_large",
                format!("an answer to a request with an Idempotency-Key has at most {ANSWER_BYTES} bytes"),
            ));
        }
        let plain = encode(cause.fingerprint, answer)?;
        let own = std::iter::once((&cause.row, cause.keep_ms));
        for (row, keep_ms) in own.chain(cause.alias.as_ref().map(|(row, keep_ms)| (row, *keep_ms))) {
            let sealed = self.master.seal(effects.scope().id(), &hex::encode(&row.key), &plain);
            effects.put(row.clone(), sealed, Some(effects.now_ms() + keep_ms))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_and_unquoted_keys_are_equal() {
        assert_eq!(parse_key(b"\"abc-1\"").expect("quoted"), "abc-1");
        assert_eq!(parse_key(b"abc-1").expect("unquoted"), "abc-1");
        assert_eq!(parse_key(b"  abc-1 ").expect("padded"), "abc-1");
        for bad in [&b""[..], b"\"\"", b"\"a", b"a\nb", b"\xff", &[b'a'; 256]] {
            assert!(parse_key(bad).is_err(), "{bad:?}");
        }
    }
}
