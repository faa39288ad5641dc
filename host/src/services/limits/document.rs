//! The tenant's limits document.
//!
//! ```json
//! {
//!   "limits": [{ "name": "emails", "rate": 10, "per": "minute", "burst": 20 }],
//!   "tenant": { "rate": 50, "per": "second", "burst": 100 },
//!   "plugins": { "orders": { "rate": 10, "per": "second" }, "*": { "rate": 5, "per": "second" } },
//!   "keys": { "4fJ2mQ8sT1xZ": { "rate": 1000, "per": "day" } }
//! }
//! ```
//!
//! `limits` are counted by `limits.check` and `POST …/limits/check`, each for whatever key the caller
//! gives. The others count requests of the data plane, beside what the plan allows: all of the tenant,
//! of one plugin, of one API key by its id. `*` is for every plugin or key without an entry, each
//! counted alone. `burst` is what may be used at once after a quiet time; without it, `rate`.

use std::collections::BTreeMap;

use super::Quota;
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::json;

/// Bytes of a document: all entries that it may have, with short names.
pub(super) const DOCUMENT_BYTES: usize = 256 << 10;
/// Entries of each part.
const ENTRIES: usize = 1_000;
/// Characters of a name.
const NAME_CHARS: usize = 64;
/// Units of a rate or a burst: beyond it a limit limits nothing.
const UNITS: u32 = 1_000_000_000;

/// What a tenant limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Document {
    /// Limits that are counted when somebody asks.
    pub limits: Vec<Named>,
    /// All requests of the data plane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Rate>,
    /// Requests of a plugin, by its name or `*`.
    pub plugins: BTreeMap<String, Rate>,
    /// Requests with an API key, by its id or `*`.
    pub keys: BTreeMap<String, Rate>,
}

/// A limit with a name.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// 1 to 64 of `a-z 0-9 . _ -`.
    pub name: String,
    /// Units that come back per period.
    pub rate: u32,
    /// The period.
    pub per: Period,
    /// Units that may be taken at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

/// How much per how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Requests that come back per period.
    pub rate: u32,
    /// The period.
    pub per: Period,
    /// Requests that may come at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

/// A period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    /// 1 s.
    Second,
    /// 60 s.
    Minute,
    /// 3,600 s.
    Hour,
    /// 86,400 s.
    Day,
}

impl Period {
    fn ms(self) -> u64 {
        match self {
            Self::Second => 1_000,
            Self::Minute => 60_000,
            Self::Hour => 3_600_000,
            Self::Day => 86_400_000,
        }
    }
}

fn quota(rate: u32, per: Period, burst: Option<u32>) -> Quota {
    Quota { rate, period_ms: per.ms(), burst: burst.unwrap_or(rate) }
}

impl Rate {
    fn quota(self) -> Quota {
        quota(self.rate, self.per, self.burst)
    }
}

impl Document {
    /// Read and check a document.
    pub fn parse(body: &[u8]) -> Result<Self> {
        if body.len() > DOCUMENT_BYTES {
            return Err(invalid(format!("a limits document has at most {DOCUMENT_BYTES} bytes")));
        }
        let document: Self = json::object(body, |why| invalid(format!("this is no limits document: {why}")))?;
        document.check()?;
        Ok(document)
    }

    fn check(&self) -> Result<()> {
        if self.limits.len() > ENTRIES || self.plugins.len() > ENTRIES || self.keys.len() > ENTRIES {
            return Err(invalid(format!("each part of a limits document has at most {ENTRIES} entries")));
        }
        let mut names: Vec<&str> = self.limits.iter().map(|limit| limit.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(invalid(format!("the limit {} is defined twice; give each a name of its own", twice[0])));
        }
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        if let Some(bad) = names.iter().find(|name| !(1..=NAME_CHARS).contains(&name.len()) || !name.bytes().all(plain))
        {
            return Err(invalid(format!("{bad:?} cannot name a limit: use 1 to {NAME_CHARS} of a-z 0-9 . _ -")));
        }
        let named = self.limits.iter().map(|limit| (limit.rate, limit.burst));
        let rates = self.tenant.iter().chain(self.plugins.values()).chain(self.keys.values());
        for (rate, burst) in named.chain(rates.map(|rate| (rate.rate, rate.burst))) {
            if ![rate, burst.unwrap_or(rate)].iter().all(|units| (1..=UNITS).contains(units)) {
                return Err(invalid(format!("a rate or a burst is 1 to {UNITS}")));
            }
        }
        Ok(())
    }

    pub(super) fn limit(&self, name: &str) -> Option<Quota> {
        self.limits.iter().find(|limit| limit.name == name).map(|limit| quota(limit.rate, limit.per, limit.burst))
    }

    pub(super) fn tenant(&self) -> Option<Quota> {
        self.tenant.map(Rate::quota)
    }

    pub(super) fn plugin(&self, plugin: &str) -> Option<Quota> {
        self.plugins.get(plugin).or_else(|| self.plugins.get("*")).map(|rate| rate.quota())
    }

    pub(super) fn key(&self, key_id: &str) -> Option<Quota> {
        self.keys.get(key_id).or_else(|| self.keys.get("*")).map(|rate| rate.quota())
    }
}

fn invalid(message: String) -> Error {
    Error::new(Kind::Invalid, "limits_invalid", message)
}
