//! A tenant's plugins: versions that never change, the grants that the tenant has approved, and the
//! release that says which versions get which share of the traffic.
//!
//! Promises: a version's bytes never change; a version whose grants go beyond the approved ones is held
//! and gets no traffic; a webhook source belongs to one plugin. Component bytes are stored before the
//! version row that names them, so that a row never points at nothing.

pub mod components;
pub mod manifest;
mod routes;

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::effects::{Effects, Key, Row, Shard, Space};
use crate::kernel::cache::Cache;
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::tenant::{TenantId, TenantScope};
use crate::services::plugins::manifest::{Grants, Manifest};
pub use crate::services::plugins::routes::{Matched, Routes};

const PLUGINS: Space = Space::named("plugins");
const VERSIONS: Space = Space::named("plugins/versions");
const SOURCES: Space = Space::named("plugins/sources");
/// Releases that a plugin remembers, for rolling back.
const HISTORY: usize = 20;
/// Versions that are read at a time.
const PAGE: usize = 100;
/// Releases that a node keeps parsed.
const CACHED: usize = 20_000;

/// A plugin of a tenant.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Plugin {
    /// The name, which is also the manifest's.
    pub name: String,
    /// What the tenant lets this plugin reach.
    pub approved: Grants,
    /// Who gets traffic now; empty before the first release.
    pub release: Vec<Share>,
    /// Earlier releases, the latest last.
    pub history: Vec<Vec<Share>>,
    /// Versions stored.
    pub versions: u32,
    /// When the first version came.
    pub created_at_ms: i64,
}

/// A version's share of the traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Share {
    /// The version.
    pub version: String,
    /// Percent of the traffic, 1 to 100.
    pub percent: u8,
}

/// One immutable upload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Version {
    /// The plugin's name.
    pub plugin: String,
    /// Semantic version, from the manifest.
    pub version: String,
    /// SHA-256 of the component, in hexadecimal.
    pub digest: String,
    /// Bytes of the component.
    pub size: u64,
    /// Triggers that the component exports, such as `http`.
    pub handles: Vec<String>,
    /// Interfaces that it imports.
    pub imports: Vec<String>,
    /// Grants that it asks for and the tenant has not approved; while there are any it gets no traffic.
    pub held: Vec<String>,
    /// When it came.
    pub uploaded_at_ms: i64,
    /// The manifest, as the component carries it.
    pub manifest: serde_json::Value,
}

/// A version that may run: its row and its manifest, read once.
#[derive(Debug)]
pub struct Released {
    /// The plugin's name.
    pub plugin: Arc<str>,
    /// The version's number.
    pub number: Arc<str>,
    /// The row.
    pub version: Version,
    /// The manifest.
    pub manifest: Arc<Manifest>,
    /// Its HTTP routes, ready to be looked up.
    pub routes: Routes,
}

impl Released {
    fn new(version: Version) -> Result<Self> {
        let manifest = read_manifest(&version)?;
        let (plugin, number) = (version.plugin.as_str().into(), version.version.as_str().into());
        Ok(Self { plugin, number, routes: Routes::new(&manifest), manifest: Arc::new(manifest), version })
    }
}

/// What became of an upload.
#[derive(Debug)]
pub enum Stored {
    /// A new version.
    New(Version),
    /// The same bytes were here before.
    Same(Version),
}

/// The plugins of a shard's tenants, with what is read at each request kept parsed.
#[derive(Clone)]
pub struct Plugins {
    shard: Shard,
    releases: Cache<(TenantId, u64, Bytes), Arc<Vec<Part>>>,
}

/// A version's part in a release. The version is read when it first gets traffic: it never changes.
struct Part {
    share: Share,
    released: OnceLock<Arc<Released>>,
}

fn plugin_key(name: &str) -> Key {
    PLUGINS.key(name.as_bytes().to_vec())
}

fn version_key(plugin: &str, version: &str) -> Key {
    VERSIONS.key(format!("{plugin}\0{version}").into_bytes())
}

fn parse<T: serde::de::DeserializeOwned>(row: &Row) -> Result<T> {
    serde_json::from_slice(&row.value.to_bytes()).map_err(Error::internal)
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(Error::internal)
}

fn no_plugin() -> Error {
    Error::not_found("no such plugin")
}

fn no_version() -> Error {
    Error::not_found("no such version of this plugin")
}

async fn find(effects: &mut Effects, name: &str) -> Result<Option<Plugin>> {
    effects.get(&plugin_key(name)).await?.as_ref().map(parse).transpose()
}

async fn find_version(effects: &mut Effects, plugin: &str, version: &str) -> Result<Option<Version>> {
    effects.get(&version_key(plugin, version)).await?.as_ref().map(parse).transpose()
}

/// One plugin.
pub async fn get(effects: &mut Effects, name: &str) -> Result<Plugin> {
    find(effects, name).await?.ok_or_else(no_plugin)
}

/// One version.
pub async fn version(effects: &mut Effects, plugin: &str, version: &str) -> Result<Version> {
    find_version(effects, plugin, version).await?.ok_or_else(no_version)
}

/// Plugins in the order of their names, and whether there are more.
pub async fn list(effects: &mut Effects, after: Option<&[u8]>, limit: usize) -> Result<(Vec<Plugin>, bool)> {
    let mut range = PLUGINS.prefix(Bytes::new());
    if let Some(after) = after {
        range = range.behind(after);
    }
    let (rows, more) = effects.list(&range, limit).await?;
    Ok((rows.iter().map(|(_, row)| parse(row)).collect::<Result<_>>()?, more))
}

/// A plugin's versions in the order of their text, and whether there are more.
pub async fn versions(
    effects: &mut Effects,
    plugin: &str,
    after: Option<&str>,
    limit: usize,
) -> Result<(Vec<Version>, bool)> {
    get(effects, plugin).await?;
    let mut range = VERSIONS.prefix(format!("{plugin}\0").into_bytes());
    if let Some(after) = after {
        range = range.behind(&version_key(plugin, after).key);
    }
    let (rows, more) = effects.list(&range, limit).await?;
    Ok((rows.iter().map(|(_, row)| parse(row)).collect::<Result<_>>()?, more))
}

/// The digests that any version names.
async fn digests(effects: &mut Effects) -> Result<HashSet<String>> {
    let mut digests = HashSet::new();
    let mut range = VERSIONS.prefix(Bytes::new());
    loop {
        let (rows, more) = effects.list(&range, PAGE).await?;
        for (_, row) in &rows {
            digests.insert(parse::<Version>(row)?.digest);
        }
        let Some((last, _)) = rows.last().filter(|_| more) else { return Ok(digests) };
        range = range.behind(last);
    }
}

/// Store a version; it gets no traffic by that. The component's bytes are already stored.
pub async fn store(effects: &mut Effects, manifest: &Manifest, mut new: Version) -> Result<Stored> {
    let plan = effects.scope().plan().clone();
    if let Some(old) = find_version(effects, &new.plugin, &new.version).await? {
        if old.digest == new.digest {
            return Ok(Stored::Same(old));
        }
        return Err(Error::new(
            Kind::Conflict,
            "version_exists",
            "this version is stored with other bytes; raise `version` in plugin.toml",
        ));
    }
    let mut plugin = match find(effects, &new.plugin).await? {
        Some(plugin) => plugin,
        None => {
            let (_, more) = effects.list(&PLUGINS.prefix(Bytes::new()), plan.plugins.max(1) as usize - 1).await?;
            if more {
                return Err(Error::new(
                    Kind::Exhausted,
                    "too_many_plugins",
                    "the plan's plugins are used up; delete one",
                ));
            }
            Plugin { name: new.plugin.clone(), created_at_ms: effects.now_ms(), ..Plugin::default() }
        }
    };
    if plugin.versions >= plan.versions_per_plugin {
        return Err(Error::new(
            Kind::Exhausted,
            "too_many_versions",
            "the plan's versions of one plugin are used up; delete the plugin or change the plan",
        ));
    }
    new.held = manifest.grants.beyond(&plugin.approved);
    new.uploaded_at_ms = effects.now_ms();
    plugin.versions += 1;
    effects.put(plugin_key(&plugin.name), json(&plugin)?, None)?;
    effects.put(version_key(&new.plugin, &new.version), json(&new)?, None)?;
    Ok(Stored::New(new))
}

/// Approve all that a version asks for, beside what was approved before: an approval takes nothing away, so that
/// a rollback stays possible. Other held versions that ask for no more are free by it too.
pub async fn approve(effects: &mut Effects, plugin: &str, version: &str) -> Result<Version> {
    let mut of = get(effects, plugin).await?;
    let approved = self::version(effects, plugin, version).await?;
    let manifest = read_manifest(&approved)?;
    of.approved.extend(&manifest.grants);
    effects.put(plugin_key(plugin), json(&of)?, None)?;
    let (all, _) = versions(effects, plugin, None, of.versions as usize).await?;
    let mut answer = approved;
    for mut each in all {
        let held = read_manifest(&each)?.grants.beyond(&of.approved);
        if held != each.held {
            each.held = held;
            effects.put(version_key(plugin, &each.version), json(&each)?, None)?;
        }
        if each.version == version {
            answer = each;
        }
    }
    Ok(answer)
}

/// Give a version a share of the traffic; the rest stays with the version that has most of it now.
pub async fn release(effects: &mut Effects, plugin: &str, version: &str, percent: u8) -> Result<Plugin> {
    if !(1..=100).contains(&percent) {
        return Err(Error::invalid("percent is a whole number from 1 to 100"));
    }
    let mut of = get(effects, plugin).await?;
    let new = self::version(effects, plugin, version).await?;
    if !new.held.is_empty() {
        return Err(Error::new(
            Kind::Conflict,
            "grants_not_approved",
            format!(
                "this version waits for its grants ({}) to be approved; POST …/versions/{version}/approve",
                new.held.join(", ")
            ),
        ));
    }
    let incumbent =
        of.release.iter().filter(|share| share.version != version).max_by_key(|share| share.percent).cloned();
    let mut shares = vec![Share { version: version.into(), percent }];
    match incumbent {
        _ if percent == 100 => {}
        Some(other) => shares.push(Share { version: other.version, percent: 100 - percent }),
        None => {
            return Err(Error::new(
                Kind::Conflict,
                "no_other_version",
                "no other version is released; release this one to 100 percent",
            ));
        }
    }
    if shares != of.release {
        let old = std::mem::replace(&mut of.release, shares);
        if !old.is_empty() {
            of.history.push(old);
        }
        if of.history.len() > HISTORY {
            of.history.remove(0);
        }
    }
    claim_sources(effects, &of).await?;
    effects.put(plugin_key(plugin), json(&of)?, None)?;
    Ok(of)
}

/// Go back to the release before this one.
pub async fn rollback(effects: &mut Effects, plugin: &str) -> Result<Plugin> {
    let mut of = get(effects, plugin).await?;
    let Some(earlier) = of.history.pop() else {
        return Err(Error::new(Kind::Conflict, "no_earlier_release", "there is no earlier release to go back to"));
    };
    for share in &earlier {
        let version = self::version(effects, plugin, &share.version).await?;
        if !version.held.is_empty() {
            return Err(Error::new(
                Kind::Conflict,
                "grants_not_approved",
                "the earlier version's grants are no longer approved",
            ));
        }
    }
    of.release = earlier;
    claim_sources(effects, &of).await?;
    effects.put(plugin_key(plugin), json(&of)?, None)?;
    Ok(of)
}

/// Remove a plugin with its versions. Its collections stay: they are the tenant's.
pub async fn delete(effects: &mut Effects, plugin: &str) -> Result<()> {
    let mut of = get(effects, plugin).await?;
    let (all, _) = versions(effects, plugin, None, of.versions as usize).await?;
    for version in all {
        effects.delete(version_key(plugin, &version.version))?;
    }
    of.release.clear();
    claim_sources(effects, &of).await?;
    effects.delete(plugin_key(plugin))
}

/// Let the webhook sources of the released versions point at this plugin, and no others.
async fn claim_sources(effects: &mut Effects, plugin: &Plugin) -> Result<()> {
    let mut wanted: Vec<String> = Vec::new();
    for share in &plugin.release {
        let version = version(effects, &plugin.name, &share.version).await?;
        wanted.extend(read_manifest(&version)?.webhooks.into_iter().map(|webhook| webhook.source));
    }
    let (claims, _) = effects.list(&SOURCES.prefix(Bytes::new()), 1_000).await?;
    for (source, row) in claims {
        let (owner, source) = (row.value.to_bytes(), String::from_utf8_lossy(&source).into_owned());
        let ours = owner == plugin.name.as_bytes();
        if ours && !wanted.contains(&source) {
            effects.delete(SOURCES.key(source.into_bytes()))?;
        } else if !ours && wanted.contains(&source) {
            return Err(Error::new(
                Kind::Conflict,
                "source_taken",
                format!("another plugin of the tenant receives the webhook source {source}; remove it there first"),
            ));
        }
    }
    for source in wanted {
        effects.put(SOURCES.key(source.into_bytes()), plugin.name.clone().into_bytes(), None)?;
    }
    Ok(())
}

fn read_manifest(version: &Version) -> Result<Manifest> {
    serde_json::from_value(version.manifest.clone()).map_err(Error::internal)
}

impl Plugins {
    /// The plugins of this shard's tenants.
    pub fn new(shard: Shard) -> Self {
        Self { shard, releases: Cache::new(CACHED) }
    }

    /// The version that a request of this plugin gets now. `dice` is uniform over 0..100. Read as a setting: a release in
    /// between does not make an invocation conflict.
    pub async fn released(&self, scope: &TenantScope, plugin: &str, dice: u8) -> Result<Option<Arc<Released>>> {
        let key = plugin_key(plugin);
        let Some(row) = self.shard.setting(scope, &key).await? else { return Ok(None) };
        let place = (scope.id().clone(), row.version, key.key);
        let release = match self.releases.get(&place) {
            Some(known) => known,
            None => {
                let shares = parse::<Plugin>(&row)?.release.into_iter();
                let parts = Arc::new(shares.map(|share| Part { share, released: OnceLock::new() }).collect::<Vec<_>>());
                self.releases.insert(place, parts.clone());
                parts
            }
        };
        let mut left = dice % 100;
        for part in release.iter() {
            if left >= part.share.percent {
                left -= part.share.percent;
                continue;
            }
            if let Some(known) = part.released.get() {
                return Ok(Some(known.clone()));
            }
            let row = self.shard.setting(scope, &version_key(plugin, &part.share.version)).await?;
            let Some(row) = row else { return Ok(None) };
            let released = Arc::new(Released::new(parse(&row)?)?);
            return Ok(Some(part.released.get_or_init(|| released).clone()));
        }
        Ok(None)
    }

    /// The plugin that receives a webhook source, and the version that gets this delivery.
    pub async fn receiver(&self, scope: &TenantScope, source: &str, dice: u8) -> Result<Option<Arc<Released>>> {
        let row = self.shard.setting(scope, &SOURCES.key(source.as_bytes().to_vec())).await?;
        let Some(row) = row else { return Ok(None) };
        let plugin = String::from_utf8_lossy(&row.value.to_bytes()).into_owned();
        self.released(scope, &plugin, dice).await
    }
}
