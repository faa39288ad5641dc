//! API keys: who calls, for which tenant, with which rights.
//!
//! A key is `chalet_` + 12 base62 (its public id) + `_` + 32 base62 (secret, about 190 bits) + 6 base62
//! (CRC-32 of all before it), so that a mistyped key is refused without a look-up and a scanner can tell
//! a leaked one. Stored are the id and an HMAC of the secret; the key itself is shown once. The operator's
//! first key may be any 32 to 128 of `A-Z a-z 0-9 _ -`. Changes are staged, and happen with their record in the audit
//! log, one after another.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use moka::sync::Cache as Idle;
use serde::Serialize;
use subtle::ConstantTimeEq;

use crate::effects::{Effects, Statement};
use crate::kernel::cache::Cache;
use crate::kernel::clock::Clock;
use crate::kernel::db::{Db, column, failed};
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::secret::{Digester, Master};
use crate::kernel::tenant::{TenantId, TenantScope};
use crate::services::directory::FRESH;

/// The row of the operator's first key.
const FIRST: &str = "admin";
/// Keys of one tenant: enough for one a service and a person, few enough to list.
const KEYS: usize = 1_000;
/// Keys that are kept in memory.
const KNOWN: usize = 100_000;
/// How long a key that was used is remembered as one.
const REMEMBERED: Duration = Duration::from_secs(3_600);
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// What a key may do; each includes what stands below it in its column of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Everything, for every tenant.
    PlatformAdmin,
    /// Everything in one tenant.
    TenantAdmin,
    /// Change data of one tenant.
    TenantWrite,
    /// Read data of one tenant.
    TenantRead,
    /// Call plugins of one tenant.
    Invoke,
}

impl Right {
    const ALL: [(Self, &'static str); 5] = [
        (Self::PlatformAdmin, "platform:admin"),
        (Self::TenantAdmin, "tenant:admin"),
        (Self::TenantWrite, "tenant:write"),
        (Self::TenantRead, "tenant:read"),
        (Self::Invoke, "invoke"),
    ];

    /// The right's name in a key's scopes.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(right, _)| *right == self).map_or("", |(_, name)| name)
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(right, _)| *right)
    }

    /// Whether holding `self` includes `other`.
    fn includes(self, other: Self) -> bool {
        match self {
            Self::PlatformAdmin => true,
            Self::TenantAdmin => other != Self::PlatformAdmin,
            Self::TenantWrite => matches!(other, Self::TenantWrite | Self::TenantRead),
            Self::TenantRead => other == Self::TenantRead,
            Self::Invoke => other == Self::Invoke,
        }
    }
}

/// Who presented a valid key.
#[derive(Debug)]
pub struct Principal {
    /// The key's public id.
    pub key: String,
    /// The one tenant that the key is for; none for the operator's.
    pub tenant: Option<TenantId>,
    rights: Vec<Right>,
}

impl Principal {
    /// Whether the key has this right.
    pub fn may(&self, right: Right) -> bool {
        self.rights.iter().any(|held| held.includes(right))
    }
}

/// A key as a list shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// The public id.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Its rights.
    pub scopes: Vec<String>,
    /// When it was made.
    pub created_at_ms: i64,
}

/// A key that was just made; the only time that its text exists here.
pub struct Minted {
    /// As a list shows it.
    pub listed: Listed,
    /// The key's text.
    pub key: String,
    digest: Vec<u8>,
}

impl fmt::Debug for Minted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.listed.fmt(f)
    }
}

/// A key's row.
struct Stored {
    principal: Arc<Principal>,
    digest: Vec<u8>,
    /// It was presented with its secret since the row was read.
    presented: AtomicBool,
}

/// The API keys of this database.
#[derive(Clone)]
pub struct Keys {
    db: Db,
    clock: Clock,
    master: Master,
    digester: Digester,
    known: Cache<String, Option<Arc<Stored>>>,
    /// Ids of keys that were presented with their secrets not long ago.
    valid: Idle<String, ()>,
}

impl Keys {
    /// The keys in this database, digested under this master key.
    pub fn new(db: Db, clock: Clock, master: Master) -> Self {
        Self {
            clock,
            digester: master.digester("api-key", None),
            master,
            known: Cache::following(KNOWN, FRESH, db.changes()),
            db,
            valid: Idle::builder().max_capacity(KNOWN as u64).time_to_idle(REMEMBERED).build(),
        }
    }

    /// Stage `key` as the operator's first key, replacing the one that was set this way before; nothing if it is
    /// that one.
    pub async fn set_first(&self, effects: &mut Effects, key: &str) -> Result<()> {
        let fits =
            (32..=128).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if !fits {
            return Err(Error::invalid("the admin key must be 32 to 128 of A-Z, a-z, 0-9, _ and -"));
        }
        let digest = self.digest(key);
        let known = sqlx::query("select digest from api_keys where id = $1").bind(FIRST);
        let known = known.fetch_optional(self.db.directory()).await.map_err(failed)?;
        if known.map(|row| column::<Vec<u8>>(&row, "digest")).transpose()?.is_some_and(|known| known == digest) {
            return Ok(());
        }
        effects.attach(
            Statement::new(
                "insert into api_keys (id, tenant_id, name, digest, scopes, created_at_ms) values ($1, null, 'admin', $2, 'platform:admin', $3) \
                 on conflict (id) do update set digest = excluded.digest",
            )
            .text(FIRST)
            .bytes(&digest)
            .number(effects.now_ms()),
        );
        Ok(())
    }

    /// Whether the operator has any key yet.
    pub async fn any_admin(&self) -> Result<bool> {
        let row = sqlx::query("select id from api_keys where tenant_id is null limit 1")
            .fetch_optional(self.db.directory())
            .await
            .map_err(failed)?;
        Ok(row.is_some())
    }

    /// Draw a key, which is none until it is stored. With an idempotency `seed` the same call draws the same key,
    /// so that a repeated request neither makes a second one nor loses the first.
    pub fn draw(
        &self,
        scope: Option<&TenantScope>,
        name: &str,
        scopes: &[String],
        seed: Option<&[u8]>,
    ) -> Result<Minted> {
        if name.is_empty() || name.len() > 100 || name.chars().any(char::is_control) {
            return Err(Error::invalid("a key's name is 1 to 100 characters without control characters"));
        }
        let rights = parse_scopes(scopes)?;
        let tenant = scope.map(TenantScope::id);
        if tenant.is_none() != rights.contains(&Right::PlatformAdmin) {
            return Err(Error::invalid(
                "the scope platform:admin is for the operator's keys, every other for a tenant's",
            ));
        }
        let random = match seed {
            Some(seed) => {
                let wide = |part: &str| self.master.digest(part, tenant, seed);
                [wide("key-seed-0"), wide("key-seed-1")].concat()
            }
            None => rand::random::<[u8; 64]>().to_vec(),
        };
        let (id, secret) = (base62(&random[..20], 12), base62(&random[20..], 32));
        let body = format!("chalet_{id}_{secret}");
        let key = format!("{body}{}", checksum(&body));
        let listed = Listed {
            id,
            name: name.into(),
            scopes: rights.iter().map(|right| right.name().to_owned()).collect(),
            created_at_ms: self.clock.now_ms(),
        };
        Ok(Minted { listed, key, digest: self.digest(&secret) })
    }

    /// Stage a key that was drawn.
    pub async fn store(&self, effects: &mut Effects, scope: Option<&TenantScope>, minted: &Minted) -> Result<()> {
        if let Some(scope) = scope
            && self.list(Some(scope), None, KEYS).await?.len() >= KEYS
        {
            return Err(Error::new(
                Kind::Exhausted,
                "too_many_keys",
                format!("a tenant has at most {KEYS} keys; delete one"),
            ));
        }
        let listed = &minted.listed;
        effects.attach(
            Statement::new(
                "insert into api_keys (id, tenant_id, name, digest, scopes, created_at_ms) values ($1, $2, $3, $4, $5, $6) on conflict (id) do nothing",
            )
            .text(listed.id.as_str())
            .text(scope.map(|scope| scope.id().as_str()))
            .text(listed.name.as_str())
            .bytes(&minted.digest)
            .text(listed.scopes.join(" ").as_str())
            .number(listed.created_at_ms),
        );
        Ok(())
    }

    fn digest(&self, secret: &str) -> Vec<u8> {
        self.digester.digest(secret.as_bytes()).to_vec()
    }

    /// A tenant's keys, or the operator's, in the order of their ids.
    pub async fn list(&self, scope: Option<&TenantScope>, after: Option<&str>, limit: usize) -> Result<Vec<Listed>> {
        let rows = sqlx::query(
            "select id, name, scopes, created_at_ms from api_keys where coalesce(tenant_id, '') = $1 and id > $2 order by id limit $3",
        )
        .bind(scope.map_or("", |scope| scope.id().as_str()))
        .bind(after.unwrap_or(""))
        .bind(limit as i64)
        .fetch_all(self.db.directory())
        .await
        .map_err(failed)?;
        rows.iter()
            .map(|row| {
                Ok(Listed {
                    id: column(row, "id")?,
                    name: column(row, "name")?,
                    scopes: column::<String>(row, "scopes")?.split(' ').map(str::to_owned).collect(),
                    created_at_ms: column(row, "created_at_ms")?,
                })
            })
            .collect()
    }

    /// Stage the revocation of a tenant's key. False if there is none.
    pub async fn delete(&self, effects: &mut Effects, scope: &TenantScope, id: &str) -> Result<bool> {
        // Anything else may be no text to the database.
        if !id.bytes().all(|byte| BASE62.contains(&byte)) {
            return Ok(false);
        }
        let found = sqlx::query("select id from api_keys where id = $1 and tenant_id = $2")
            .bind(id)
            .bind(scope.id().as_str())
            .fetch_optional(self.db.directory())
            .await
            .map_err(failed)?;
        if found.is_some() {
            effects.attach(
                Statement::new("delete from api_keys where id = $1 and tenant_id = $2")
                    .text(id)
                    .text(scope.id().as_str()),
            );
        }
        Ok(found.is_some())
    }

    /// Read a key anew, after it was made or revoked: at once here, within [`FRESH`] on other nodes.
    pub fn forget(&self, id: &str) {
        self.known.remove(id);
    }

    /// Who a credential belongs to; none if it is no valid key. `credential` comes from a stranger.
    pub async fn authenticate(&self, credential: &str) -> Result<Option<Arc<Principal>>> {
        let (id, secret) = match parse(credential) {
            Parsed::Key { id, secret } => (id, secret),
            Parsed::Mistyped => return Ok(None),
            Parsed::Other => (FIRST, credential),
        };
        // Made also for an id that nobody has, so that the time does not tell which there are.
        let (stored, digest) = (self.find(id).await?, self.digester.digest(secret.as_bytes()));
        let Some(stored) = stored else { return Ok(None) };
        if !bool::from(digest.as_slice().ct_eq(&stored.digest)) {
            return Ok(None);
        }
        if id != FIRST && !stored.presented.swap(true, Ordering::Relaxed) {
            self.valid.insert(id.to_owned(), ());
        }
        Ok(Some(stored.principal.clone()))
    }

    /// Whether this key's id was presented with its secret not long ago. A secret of ours has too many bits to be
    /// guessed by whoever knows that; the operator's first key may not have, and is never remembered.
    pub fn was_valid(&self, credential: &str) -> bool {
        matches!(parse(credential), Parsed::Key { id, .. } if self.valid.get(id).is_some())
    }

    /// Forget what was read, after a tenant was deleted with its keys.
    pub fn forget_all(&self) {
        self.known.clear();
    }

    async fn find(&self, id: &str) -> Result<Option<Arc<Stored>>> {
        let read = async || {
            let row = sqlx::query("select tenant_id, digest, scopes from api_keys where id = $1").bind(id);
            let Some(row) = row.fetch_optional(self.db.directory()).await.map_err(failed)? else { return Ok(None) };
            Ok(Some(Arc::new(Stored {
                principal: Arc::new(Principal {
                    key: id.to_owned(),
                    tenant: column::<Option<String>>(&row, "tenant_id")?.map(|id| TenantId::from_row(&id)),
                    rights: column::<String>(&row, "scopes")?.split(' ').filter_map(Right::parse).collect(),
                }),
                digest: column(&row, "digest")?,
                presented: AtomicBool::new(false),
            })))
        };
        self.known.get_or_read(id, read).await
    }
}

fn parse_scopes(scopes: &[String]) -> Result<Vec<Right>> {
    let known = || Right::ALL.map(|(_, name)| name).join(", ");
    if scopes.is_empty() || scopes.len() > Right::ALL.len() {
        return Err(Error::invalid(format!("scopes is a list of one or more of {}", known())));
    }
    let mut rights = Vec::new();
    for scope in scopes {
        let right = Right::parse(scope)
            .ok_or_else(|| Error::invalid(format!("an unknown scope; the scopes are {}", known())))?;
        if !rights.contains(&right) {
            rights.push(right);
        }
    }
    Ok(rights)
}

/// Whether a credential cannot be a key: it has no key's form, or its checksum does not hold.
pub fn never_was(credential: &str) -> bool {
    matches!(parse(credential), Parsed::Mistyped)
}

/// A part of a request as a log may keep it: of what has a key's form, the id.
pub fn without_secret(text: &str) -> Cow<'_, str> {
    match text.strip_prefix("chalet_").and_then(|rest| rest.split_at_checked(12)) {
        Some((id, secret)) if secret.starts_with('_') => format!("chalet_{id}_…").into(),
        _ => text.into(),
    }
}

enum Parsed<'c> {
    /// Of a key's form, and its checksum holds.
    Key { id: &'c str, secret: &'c str },
    /// Of a key's form, but it was never one.
    Mistyped,
    /// Possibly the operator's first key.
    Other,
}

fn parse(credential: &str) -> Parsed<'_> {
    let Some(rest) = credential.strip_prefix("chalet_") else {
        return if (32..=128).contains(&credential.len()) { Parsed::Other } else { Parsed::Mistyped };
    };
    let split = rest.is_ascii() && rest.len() == 12 + 1 + 32 + 6 && rest.as_bytes()[12] == b'_';
    if !split || checksum(&credential[..7 + 45]) != credential[7 + 45..] {
        // The operator may have chosen a first key that begins like one of ours.
        return if rest.len() != 51 && (32..=128).contains(&credential.len()) {
            Parsed::Other
        } else {
            Parsed::Mistyped
        };
    }
    Parsed::Key { id: &rest[..12], secret: &rest[13..45] }
}

fn checksum(body: &str) -> String {
    let mut rest = crc32fast::hash(body.as_bytes()) as usize;
    let mut digits = [b'0'; 6];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[rest % 62];
        rest /= 62;
    }
    digits.iter().map(|digit| char::from(*digit)).collect()
}

/// `length` base62 digits of random bytes; a byte of 248 or more would favour the first digits and is
/// reduced by its neighbour instead.
fn base62(random: &[u8], length: usize) -> String {
    let fair = random.iter().filter(|byte| **byte < 248);
    let more = random.iter().map(|byte| byte.wrapping_mul(151).wrapping_add(97));
    fair.copied().chain(more).take(length).map(|byte| char::from(BASE62[usize::from(byte % 62)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_key_is_told_from_a_real_one_without_a_look_up() {
        let body = format!("chalet_{}_{}", "a".repeat(12), "B".repeat(32));
        let key = format!("{body}{}", checksum(&body));
        assert_eq!(key.len(), 58);
        assert!(matches!(parse(&key), Parsed::Key { id, secret } if id == "a".repeat(12) && secret == "B".repeat(32)));
        assert!(matches!(parse(&key.replacen("aaaa", "aaab", 1)), Parsed::Mistyped));
        assert!(matches!(parse(&key[..57]), Parsed::Other | Parsed::Mistyped));
        assert!(matches!(parse(""), Parsed::Mistyped));
        assert!(matches!(parse(&"x".repeat(1 << 20)), Parsed::Mistyped));
        assert!(matches!(parse("chalet_äöüäöüäöüäöüäöüäöüäöüäöüäöüäöüäöüäöü"), Parsed::Other | Parsed::Mistyped));
    }

    #[test]
    fn of_a_key_its_id_is_kept() {
        assert_eq!(without_secret(&format!("chalet_{}_{}", "a".repeat(12), "B".repeat(38))), "chalet_aaaaaaaaaaaa_…");
        for other in ["", "acme", "chalet_", "chalet_acme", "chalet_äöüäöüäöüäöü_x"] {
            assert_eq!(without_secret(other), other);
        }
    }

    #[test]
    fn rights_include_what_the_contract_says() {
        use Right::{Invoke, PlatformAdmin, TenantAdmin, TenantRead, TenantWrite};
        assert!(PlatformAdmin.includes(Invoke) && TenantAdmin.includes(Invoke) && TenantAdmin.includes(TenantWrite));
        assert!(TenantWrite.includes(TenantRead) && !TenantRead.includes(TenantWrite) && !TenantWrite.includes(Invoke));
        assert!(!TenantAdmin.includes(PlatformAdmin) && !Invoke.includes(TenantRead));
    }
}
