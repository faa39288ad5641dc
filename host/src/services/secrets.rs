//! Secrets: values that a tenant stores and only its granted plugins and webhook sources read.
//!
//! A value is sealed with the master key for its tenant and its name before it is staged, so that a
//! database holds nothing readable and a row moved to another name or tenant does not open. No list
//! and no error carries a value. Who may read which name is the caller's question, not this file's.

use crate::effects::{Effects, Key, Space};
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::secret::Master;

/// One row a secret: the key is its name, the value is sealed.
const SPACE: Space = Space::named("secrets");
/// Characters of a name: it stands in manifests and in environment-like listings.
pub const NAME_CHARS: usize = 64;
/// Bytes of a value: a certificate chain with its key fits; larger things are no secrets but files.
pub const VALUE_BYTES: usize = 64 << 10;
/// Secrets of a tenant, so that a list is one page; raise it if somebody needs more.
pub const SECRETS: usize = 1_000;

/// Seals and opens the secrets of all tenants.
#[derive(Clone, Debug)]
pub struct Secrets {
    master: Master,
}

/// What a list shows of a secret.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct Listed {
    /// The name.
    pub name: String,
    /// The commit that last wrote it.
    pub version: u64,
}

impl Secrets {
    /// Secrets under this master key.
    pub fn new(master: Master) -> Self {
        Self { master }
    }

    /// Stage a value; it replaces the one before.
    pub async fn put(&self, effects: &mut Effects, name: &str, value: &[u8]) -> Result<()> {
        check_name(name)?;
        if value.is_empty() || value.len() > VALUE_BYTES {
            return Err(Error::new(
                Kind::Invalid,
                "secret_size",
                format!("a secret has 1 to {VALUE_BYTES} bytes; store larger data elsewhere and its key here"),
            ));
        }
        if effects.get(&key(name)).await?.is_none() && self.list(effects).await?.len() >= SECRETS {
            return Err(Error::new(
                Kind::Exhausted,
                "too_many_secrets",
                format!("a tenant has at most {SECRETS} secrets; delete one first"),
            ));
        }
        let sealed = self.master.seal(effects.scope().id(), &place(name), value);
        effects.put(key(name), sealed, None)
    }

    /// The value.
    pub async fn get(&self, effects: &Effects, name: &str) -> Result<Vec<u8>> {
        check_name(name)?;
        let row = effects.setting(&key(name)).await?.ok_or_else(|| missing(name))?;
        self.master.open(effects.scope().id(), &place(name), &row.value.to_bytes())
    }

    /// Stage the removal; whether there was one.
    pub async fn delete(&self, effects: &mut Effects, name: &str) -> Result<bool> {
        check_name(name)?;
        let existed = effects.get(&key(name)).await?.is_some();
        if existed {
            effects.delete(key(name))?;
        }
        Ok(existed)
    }

    /// All names in order; never a value.
    pub async fn list(&self, effects: &mut Effects) -> Result<Vec<Listed>> {
        let (rows, _) = effects.list(&SPACE.prefix(""), SECRETS).await?;
        let listed = rows
            .into_iter()
            .map(|(name, row)| Listed { name: String::from_utf8_lossy(&name).into_owned(), version: row.version });
        Ok(listed.collect())
    }
}

/// Whether this can be a secret's name: an upper-case letter, then letters, digits and underscores.
pub fn check_name(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let starts = bytes.next().is_some_and(|first| first.is_ascii_uppercase());
    if starts && name.len() <= NAME_CHARS && bytes.all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_') {
        return Ok(());
    }
    Err(Error::new(
        Kind::Invalid,
        "secret_name",
        format!(
            "a secret's name is an upper-case letter and then upper-case letters, digits or _, {NAME_CHARS} at most"
        ),
    ))
}

fn key(name: &str) -> Key {
    SPACE.key(name.to_owned())
}

/// What a sealed value is bound to beside its tenant.
fn place(name: &str) -> String {
    format!("secrets/{name}")
}

fn missing(name: &str) -> Error {
    Error::new(
        Kind::NotFound,
        "secret_missing",
        format!("there is no secret {name}; store it with PUT /v1/tenants/{{tenant}}/secrets/{name}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::testing::Bench;

    #[tokio::test]
    async fn a_secret_is_stored_sealed_and_read_back() {
        let bench = Bench::new().await;
        let secrets = Secrets::new(Master::generate());
        let value = b"whsec_hello".as_slice();
        bench.run(async |effects| secrets.put(effects, "KEY", value).await).await.expect("stored");
        assert_eq!(bench.run(async |effects| secrets.get(effects, "KEY").await).await.expect("read"), value);
        let raw = bench.run(async |effects| effects.get(&key("KEY")).await).await.expect("row").expect("row");
        assert!(!raw.value.to_bytes().windows(5).any(|window| window == b"hello"));
        let listed = bench.run(async |effects| secrets.list(effects).await).await.expect("listed");
        assert_eq!(listed.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["KEY"]);
        assert!(listed[0].version > 0);
    }

    #[tokio::test]
    async fn a_missing_secret_says_what_to_do() {
        let bench = Bench::new().await;
        let secrets = Secrets::new(Master::generate());
        let error = bench.run(async |effects| secrets.get(effects, "NOPE").await).await.expect_err("missing");
        assert_eq!((error.kind(), error.code()), (Kind::NotFound, "secret_missing"));
        assert!(error.message().contains("PUT"), "{error}");
        assert!(!bench.run(async |effects| secrets.delete(effects, "NOPE").await).await.expect("nothing"));
    }

    #[tokio::test]
    async fn a_row_copied_to_another_name_or_tenant_does_not_open() {
        let bench = Bench::new().await;
        let secrets = Secrets::new(Master::generate());
        bench.run(async |effects| secrets.put(effects, "A", b"value").await).await.expect("stored");
        let row = bench.run(async |effects| effects.get(&key("A")).await).await.expect("row").expect("row");
        let stolen = row.value.to_bytes();
        bench.run(async |effects| effects.put(key("B"), stolen.clone(), None)).await.expect("copied");
        let error = bench.run(async |effects| secrets.get(effects, "B").await).await.expect_err("bound to its name");
        assert_eq!(error.code(), "secret_unreadable");
        let other = bench.neighbour().await;
        bench
            .shard
            .transact(&other, async |effects| effects.put(key("A"), stolen.clone(), None))
            .await
            .expect("copied");
        let error = bench.shard.transact(&other, async |effects| secrets.get(effects, "A").await).await;
        assert_eq!(error.expect_err("bound to its tenant").code(), "secret_unreadable");
    }

    #[tokio::test]
    async fn names_and_sizes_have_bounds() {
        let bench = Bench::new().await;
        let secrets = Secrets::new(Master::generate());
        for good in ["A", "A1", "STRIPE_KEY", &"A".repeat(NAME_CHARS)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "1A", "_A", "A-B", "A/B", "A B", "Ä", "A\0", &"A".repeat(NAME_CHARS + 1)] {
            assert_eq!(check_name(bad).expect_err(bad).code(), "secret_name");
        }
        for (size, fits) in [(0, false), (1, true), (VALUE_BYTES, true), (VALUE_BYTES + 1, false)] {
            let value = vec![7; size];
            let stored = bench.run(async |effects| secrets.put(effects, "SIZE", &value).await).await;
            assert_eq!(stored.is_ok(), fits, "{size}");
        }
    }
}
