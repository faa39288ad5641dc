//! Inbound webhooks: which sources a tenant has, and how a delivery of each is verified.
//!
//! A source is a name in `/hooks/{tenant}/{source}`, a scheme and the name of the secret that holds
//! its keys. Nothing here answers HTTP, remembers deliveries or runs a guest: [`verify()`] says who
//! sent the bytes and what the provider calls this delivery, and the caller does the rest.

mod verify;

pub use self::verify::{Algorithm, Encoding, Generic, TOLERANCE_S, Verified, keys, verify};

use crate::effects::{Effects, Key, Space};
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::json;
use crate::services::plugins::manifest;
use crate::services::secrets;

/// One row a source: the key is its name, the value this file's JSON.
const SPACE: Space = Space::named("webhooks/sources");
/// Characters of a source's name: a part of a path that people paste into a provider's console.
pub const NAME_CHARS: usize = 64;
/// Sources of a tenant, so that a list is one page; raise it if somebody needs more.
pub const SOURCES: usize = 1_000;

/// Whose signature a source checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scheme {
    /// `Stripe-Signature: t=…,v1=…`; the delivery is the event's `id`.
    Stripe,
    /// `X-Hub-Signature-256: sha256=…`; the delivery is `X-GitHub-Delivery`.
    Github,
    /// `X-Shopify-Hmac-Sha256`; the delivery is `X-Shopify-Webhook-Id`.
    Shopify,
    /// `X-Slack-Signature: v0=…` with `X-Slack-Request-Timestamp`; the delivery is `event_id`.
    Slack,
    /// Standard Webhooks 1.0: `webhook-id`, `webhook-timestamp`, `webhook-signature` (or the same
    /// under `svix-`).
    StandardWebhooks,
    /// An HMAC as [`Generic`] describes it.
    Hmac,
}

/// A source of webhooks, as a manifest or `PUT …/webhooks/sources/{source}` defines it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Whose signature is checked.
    pub verify: Scheme,
    /// The name of the secret with the key. The secret may hold up to four keys, one a line, so that
    /// a key can be replaced while both are in use.
    pub secret: String,
    /// How the signature is made; for the scheme `hmac`, and only there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hmac: Option<Generic>,
}

impl From<&manifest::Webhook> for Source {
    /// What a manifest says: its `hmac` is an HMAC-SHA-256 of the body in hexadecimal in `X-Signature`.
    fn from(webhook: &manifest::Webhook) -> Self {
        let verify = webhook.verify;
        let hmac = (verify == Scheme::Hmac).then(|| Generic {
            header: "x-signature".into(),
            algorithm: Algorithm::default(),
            encoding: Encoding::default(),
            prefix: String::new(),
            id_header: None,
            event_header: None,
            timestamp_header: None,
        });
        Self { verify, secret: webhook.secret.clone(), hmac }
    }
}

impl Source {
    /// Read a request's body.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let source: Self = json::object(body, |why| bad_source(format!("this is no source: {why}")))?;
        source.check()?;
        Ok(source)
    }

    /// Whether it can be used as it stands.
    pub fn check(&self) -> Result<()> {
        secrets::check_name(&self.secret)?;
        match (&self.hmac, self.verify) {
            (Some(generic), Scheme::Hmac) => generic.check(),
            (None, Scheme::Hmac) => {
                Err(bad_source("verify \"hmac\" needs the object \"hmac\" that says how the signature is made"))
            }
            (Some(_), _) => Err(bad_source("the object \"hmac\" belongs to verify \"hmac\" only; remove it")),
            (None, _) => Ok(()),
        }
    }
}

/// Stage a source; it replaces the one before. Whether it is new.
pub async fn put(effects: &mut Effects, name: &str, source: &Source) -> Result<bool> {
    let key = key(name)?;
    source.check()?;
    let new = effects.get(&key).await?.is_none();
    if new && list(effects).await?.len() >= SOURCES {
        return Err(Error::new(
            Kind::Exhausted,
            "too_many_sources",
            format!("a tenant has at most {SOURCES} webhook sources; delete one first"),
        ));
    }
    effects.put(key, serde_json::to_vec(source).map_err(Error::internal)?, None)?;
    Ok(new)
}

/// The source of this name and the commit that wrote it, if the tenant has defined it.
pub async fn get(effects: &mut Effects, name: &str) -> Result<Option<(Source, u64)>> {
    let Some(row) = effects.get(&key(name)?).await? else { return Ok(None) };
    let source = serde_json::from_slice(&row.value.to_bytes()).map_err(Error::internal)?;
    Ok(Some((source, row.version)))
}

/// Stage the removal; whether there was one.
pub async fn delete(effects: &mut Effects, name: &str) -> Result<bool> {
    let key = key(name)?;
    let existed = effects.get(&key).await?.is_some();
    if existed {
        effects.delete(key)?;
    }
    Ok(existed)
}

/// All sources by name.
pub async fn list(effects: &mut Effects) -> Result<Vec<(String, Source)>> {
    let (rows, _) = effects.list(&SPACE.prefix(""), SOURCES).await?;
    rows.into_iter()
        .map(|(name, row)| {
            let source = serde_json::from_slice(&row.value.to_bytes()).map_err(Error::internal)?;
            Ok((String::from_utf8_lossy(&name).into_owned(), source))
        })
        .collect()
}

/// Whether this can be a source's name.
pub fn check_name(name: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    let starts = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if starts && name.len() <= NAME_CHARS && name.bytes().all(plain) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Invalid,
        "source_name",
        format!("a source's name is 1 to {NAME_CHARS} of a-z 0-9 _ -, and begins with a letter or a digit"),
    ))
}

fn key(name: &str) -> Result<Key> {
    check_name(name)?;
    Ok(SPACE.key(name.to_owned()))
}

fn bad_source(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Kind::Invalid, "source_invalid", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::testing::Bench;

    #[test]
    fn a_source_is_what_the_contract_says_and_nothing_else() {
        let stripe = Source::parse(br#"{"verify":"stripe","secret":"STRIPE_WEBHOOK_SECRET"}"#).expect("valid");
        assert_eq!(stripe, Source { verify: Scheme::Stripe, secret: "STRIPE_WEBHOOK_SECRET".into(), hmac: None });
        let generic = Source::parse(br#"{"verify":"hmac","secret":"S","hmac":{"header":"X-Sig"}}"#).expect("valid");
        assert_eq!(generic.hmac.expect("hmac").encoding, Encoding::Hex);
        for bad in [
            "",
            "{}",
            r#"["stripe","S"]"#,
            r#"{"verify":"stripe"}"#,
            r#"{"verify":"paypal","secret":"S"}"#,
            r#"{"verify":"stripe","secret":"s"}"#,
            r#"{"verify":"stripe","secret":"S","extra":1}"#,
            r#"{"verify":"hmac","secret":"S"}"#,
            r#"{"verify":"stripe","secret":"S","hmac":{"header":"X-Sig"}}"#,
            r#"{"verify":"hmac","secret":"S","hmac":{"header":"X Sig"}}"#,
            r#"{"verify":"hmac","secret":"S","hmac":{"header":"X-Sig","algorithm":"sha1"}}"#,
            r#"{"verify":"hmac","secret":"S","hmac":{"header":"X-Sig","id_header":"x-sig"}}"#,
        ] {
            assert_eq!(Source::parse(bad.as_bytes()).expect_err(bad).kind(), Kind::Invalid, "{bad}");
        }
    }

    #[tokio::test]
    async fn sources_are_stored_by_name() {
        let bench = Bench::new().await;
        let source = Source { verify: Scheme::Github, secret: "GITHUB_WEBHOOK_SECRET".into(), hmac: None };
        assert!(bench.run(async |effects| put(effects, "github", &source).await).await.expect("new"));
        assert!(!bench.run(async |effects| put(effects, "github", &source).await).await.expect("replaced"));
        let (stored, version) =
            bench.run(async |effects| get(effects, "github").await).await.expect("read").expect("there");
        assert_eq!((stored, version), (source.clone(), 2));
        assert_eq!(
            bench.run(async |effects| list(effects).await).await.expect("listed"),
            [("github".to_owned(), source)]
        );
        assert!(bench.run(async |effects| delete(effects, "github").await).await.expect("gone"));
        assert!(!bench.run(async |effects| delete(effects, "github").await).await.expect("nothing"));
        assert!(bench.run(async |effects| get(effects, "github").await).await.expect("read").is_none());
        for bad in ["", "A", "-a", "a/b", "a b", &"a".repeat(65)] {
            assert_eq!(check_name(bad).expect_err(bad).code(), "source_name");
        }
    }
}
