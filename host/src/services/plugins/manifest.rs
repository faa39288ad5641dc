//! The manifest: what a plugin handles and what it is allowed to touch.
//!
//! Authors write it as `plugin.toml`; `chalet build` embeds it as JSON in the component's custom section
//! `chalet:manifest`, and an upload is read from there. Every value that exists has passed [`Manifest::check`]: names,
//! routes, counts and limits are within bounds, nothing is listed twice, and unknown fields are refused, so that a typing
//! error does not silently grant or withhold something.
//!
//! What it does not know: whether a tenant has approved the grants, what a plan allows, and whether the component's
//! imports and exports agree with it.

use std::collections::BTreeSet;
use std::fmt;

use semver::Version;
use serde::{Deserialize, Serialize};
use wasmparser::{Parser, Payload};

use crate::services::egress::Egress;
use crate::services::webhooks::Scheme;

/// The custom section that holds the manifest as JSON, in the component itself.
pub const SECTION: &str = "chalet:manifest";
/// The custom section that holds the SDK's version as text, in the component's core module.
pub const SDK_SECTION: &str = "chalet:sdk";

/// Largest manifest, in bytes; some hundred routes and grants take a tenth of it.
pub const MANIFEST_BYTES: usize = 64 * 1024;
/// Longest name of a plugin, source, queue or schedule.
const NAME_CHARS: usize = 64;
/// Longest semantic version; SemVer sets none.
const VERSION_CHARS: usize = 64;
/// Most entries of any list: bounds what is compared at an upload and looked up in a call.
const LIST_ENTRIES: usize = 256;
/// Longest route, and longest name of a secret, flag, meter, limit or setting.
const TEXT_BYTES: usize = 256;
/// Most segments of a route's path.
const ROUTE_SEGMENTS: usize = 32;
/// Most fields of an index.
const INDEX_FIELDS: usize = 8;
/// Most attempts of a queue's job.
const ATTEMPTS: u32 = 100;
/// Longest cron expression.
const CRON_BYTES: usize = 128;
/// Memory that a plugin may ask for, in MiB; plans allow less.
const MEMORY_MB: std::ops::RangeInclusive<u32> = 1..=4096;
/// Time that a plugin may ask for, in milliseconds; plans allow less.
const TIMEOUT_MS: std::ops::RangeInclusive<u64> = 1..=900_000;
/// Fuel that a plugin may ask for; about an hour of computing. Plans allow less.
const FUEL: std::ops::RangeInclusive<u64> = 1..=10_000_000_000_000;

/// HTTP methods that a route may name; `ANY` stands for all of them.
const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "ANY"];

/// Why something is no manifest: one sentence for the author, which says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestError(String);

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ManifestError {}

type Result<T, E = ManifestError> = std::result::Result<T, E>;

fn refuse<T>(reason: impl Into<String>) -> Result<T> {
    Err(ManifestError(reason.into()))
}

/// What a plugin handles and is allowed to touch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// 1 to 64 of `a-z 0-9 -`.
    pub name: String,
    /// Semantic versioning 2.0.
    pub version: Version,
    /// The http trigger, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
    /// The sources of the webhook trigger.
    #[serde(default, rename = "webhook", skip_serializing_if = "Vec::is_empty")]
    pub webhooks: Vec<Webhook>,
    /// The subscriptions of the event trigger.
    #[serde(default, rename = "event", skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<Event>,
    /// The queues of the job trigger.
    #[serde(default, rename = "queue", skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<Queue>,
    /// The schedules of the schedule trigger.
    #[serde(default, rename = "schedule", skip_serializing_if = "Vec::is_empty")]
    pub schedules: Vec<Schedule>,
    /// Indexes over collections of documents.
    #[serde(default, rename = "index", skip_serializing_if = "Vec::is_empty")]
    pub indexes: Vec<Index>,
    /// What the plugin may reach; nothing that is not named.
    #[serde(default, skip_serializing_if = "Grants::is_empty")]
    pub grants: Grants,
    /// What an invocation may use, if less (or, where the plan allows it, more) than the plan's default.
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
}

/// The http trigger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// Which requests it answers.
    pub routes: Vec<Route>,
    /// Who may call it.
    #[serde(default)]
    pub auth: Auth,
}

/// Who may call a plugin's routes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auth {
    /// A key of the tenant with the scope `invoke`.
    #[default]
    Key,
    /// Anybody.
    None,
}

/// A method and a path with parameters: `GET /orders/{id}`, `ANY /files/{*rest}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Route {
    method: String,
    path: String,
}

impl Route {
    /// `GET`, `HEAD`, `POST`, `PUT`, `PATCH`, `DELETE`, `OPTIONS` or `ANY`.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The path: literal segments, `{name}`, and `{*name}` at the end.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// True if a request of this method can match.
    pub fn allows(&self, method: &str) -> bool {
        self.method == "ANY" || self.method == method
    }

    /// The path with parameters' names left out: two routes of the same shape cannot be told apart.
    fn shape(&self) -> String {
        let segment = |segment: &str| match segment.as_bytes() {
            [b'{', b'*', ..] => "{*}".to_owned(),
            [b'{', ..] => "{}".to_owned(),
            _ => segment.to_owned(),
        };
        let segments: Vec<_> = self.path.split('/').map(segment).collect();
        format!("{} {}", self.method, segments.join("/"))
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

impl From<Route> for String {
    fn from(route: Route) -> Self {
        route.to_string()
    }
}

impl TryFrom<String> for Route {
    type Error = ManifestError;

    fn try_from(text: String) -> Result<Self> {
        let shown = shorten(&text);
        if text.len() > TEXT_BYTES {
            return refuse(format!("the route {shown} is longer than {TEXT_BYTES} bytes; shorten it"));
        }
        let Some((method, path)) = text.split_once(' ') else {
            return refuse(format!("the route {shown} has no method; write it as `GET /orders/{{id}}`"));
        };
        if !METHODS.contains(&method) {
            return refuse(format!("the route {shown} has no known method; use one of {}", METHODS.join(", ")));
        }
        let Some(segments) = path.strip_prefix('/') else {
            return refuse(format!("the path of the route {shown} does not start with `/`; write it as `GET /orders`"));
        };
        let segments: Vec<_> = segments.split('/').collect();
        if segments.len() > ROUTE_SEGMENTS {
            return refuse(format!("the route {shown} has more than {ROUTE_SEGMENTS} segments"));
        }
        let mut parameters = BTreeSet::new();
        for (at, segment) in segments.iter().enumerate() {
            let last = at + 1 == segments.len();
            if segment.is_empty() && !(last && segments.len() == 1) {
                return refuse(format!("the route {shown} has an empty segment; remove the doubled or last `/`"));
            }
            if let Some(inner) = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
                let name = inner.strip_prefix('*').unwrap_or(inner);
                let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
                if name.is_empty() || name.len() > NAME_CHARS || !name.bytes().all(fits) {
                    return refuse(format!("a parameter of the route {shown} has no name of A-Z a-z 0-9 _"));
                }
                if inner.starts_with('*') && !last {
                    return refuse(format!("in the route {shown} `{{*{name}}}` stands for the rest; put it last"));
                }
                if !parameters.insert(name) {
                    return refuse(format!("the route {shown} names the parameter `{name}` twice"));
                }
            } else if !segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()+,;=:@%".contains(&byte))
            {
                return refuse(format!(
                    "the segment {} of the route {shown} has characters that a path has not; percent-encode them, and \
                     let a parameter be a whole segment",
                    shorten(segment)
                ));
            }
        }
        Ok(Self { method: method.to_owned(), path: path.to_owned() })
    }
}

/// A source of inbound webhooks: `POST /hooks/{tenant}/{source}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// 1 to 64 of `a-z 0-9 -`.
    pub source: String,
    /// How its signature is verified.
    pub verify: Scheme,
    /// The name of the secret that it is verified with; the plugin itself need not be granted it.
    pub secret: String,
}

/// Events that the plugin handles.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// CloudEvents types; a last `*` stands for any rest.
    pub types: Vec<String>,
}

/// A queue whose jobs the plugin works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    /// 1 to 64 of `a-z 0-9 -`.
    pub name: String,
    /// How often a job is tried before it is dead; the platform's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
}

/// A time at which the plugin is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// 1 to 64 of `a-z 0-9 -`.
    pub name: String,
    /// Five fields: minute, hour, day of the month, month, day of the week; in UTC.
    pub cron: String,
}

/// An index over a collection of documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// The collection.
    pub collection: String,
    /// The fields, the most significant first.
    pub fields: Vec<String>,
}

/// What a plugin may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grants {
    /// Collections to read and write.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kv: Vec<String>,
    /// Collections to read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kv_read: Vec<String>,
    /// Hosts to send requests to, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<String>,
    /// Secrets to read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// Flags to evaluate.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// Meters to record on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub meters: Vec<String>,
    /// Limits to check.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<String>,
    /// Settings to read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub config: Vec<String>,
}

impl Grants {
    /// The lists with their names, in one place for all that goes through them.
    pub fn lists(&self) -> [(&'static str, &[String]); 8] {
        [
            ("kv", &self.kv),
            ("kv_read", &self.kv_read),
            ("egress", &self.egress),
            ("secrets", &self.secrets),
            ("flags", &self.flags),
            ("meters", &self.meters),
            ("limits", &self.limits),
            ("config", &self.config),
        ]
    }

    /// That a component imports nothing of which nothing is granted, such as `chalet:platform/kv@0.1.0` without a
    /// collection: it could only fail.
    pub fn cover(&self, imports: &[String]) -> Result<()> {
        for import in imports {
            let interface = import.split(['/', '@']).nth(1).unwrap_or(import);
            let lists: &[&str] = match interface {
                "kv" => &["kv", "kv_read"],
                "http" => &["egress"],
                "secrets" | "flags" | "meters" | "limits" | "config" => &[interface],
                _ => continue,
            };
            if !self.lists().iter().any(|(name, list)| lists.contains(name) && !list.is_empty()) {
                return refuse(format!(
                    "the component imports {import}, and the manifest grants nothing of it; add `{} = [...]` under [grants]",
                    lists[0]
                ));
            }
        }
        Ok(())
    }

    /// True if nothing is granted.
    pub fn is_empty(&self) -> bool {
        self.lists().iter().all(|(_, list)| list.is_empty())
    }

    /// What these grants name and `approved` does not, as `list: name`; empty if all of it is approved.
    ///
    /// The right to write a collection includes reading it.
    pub fn beyond(&self, approved: &Grants) -> Vec<String> {
        let mut beyond = Vec::new();
        for ((name, wanted), (_, granted)) in self.lists().into_iter().zip(approved.lists()) {
            for entry in wanted {
                let covered = granted.contains(entry) || (name == "kv_read" && approved.kv.contains(entry));
                if !covered {
                    beyond.push(format!("{name}: {entry}"));
                }
            }
        }
        beyond
    }

    /// Add what `others` name.
    pub fn extend(&mut self, others: &Grants) {
        let own = [
            &mut self.kv,
            &mut self.kv_read,
            &mut self.egress,
            &mut self.secrets,
            &mut self.flags,
            &mut self.meters,
            &mut self.limits,
            &mut self.config,
        ];
        for (own, (_, others)) in own.into_iter().zip(others.lists()) {
            let new: Vec<_> = others.iter().filter(|entry| !own.contains(entry)).cloned().collect();
            own.extend(new);
        }
    }
}

/// What an invocation may use; absent is the plan's default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// MiB of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// Milliseconds of wall-clock time, all runs counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Units of fuel, about one an instruction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fuel: Option<u64>,
}

impl Limits {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Manifest {
    /// Read and check the text of `plugin.toml`.
    ///
    /// # Errors
    /// A sentence for the author, with the line where there is one.
    pub fn from_toml(text: &str) -> Result<Self> {
        bounded(text.len())?;
        let manifest: Self = toml::from_str(text)
            .map_err(|error| ManifestError(format!("plugin.toml: {}", error.to_string().trim_end())))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Read and check the JSON form.
    ///
    /// # Errors
    /// A sentence for the author.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        bounded(bytes.len())?;
        let manifest: Self = serde_json::from_slice(bytes)
            .map_err(|error| ManifestError(format!("the manifest in the component cannot be read: {error}")))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The JSON form, which [`Manifest::from_json`] reads.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest is made of text, numbers and lists")
    }

    /// Read the manifest that a component carries. `bytes` come from a stranger: nothing is compiled, and only the outer
    /// sections are walked.
    ///
    /// # Errors
    /// If it is no component, or carries no manifest, more than one, or one that is refused.
    pub fn from_component(bytes: &[u8]) -> Result<Self> {
        let mut found = None;
        walk(bytes, |depth, name, data| {
            if depth == 0 && name == SECTION {
                if found.is_some() {
                    return refuse(format!("the component has two sections `{SECTION}`; build it with `chalet build`"));
                }
                found = Some(data.to_vec());
            }
            Ok(())
        })?;
        match found {
            Some(data) => Self::from_json(&data),
            None => refuse(format!("the component has no section `{SECTION}`; build it with `chalet build`")),
        }
    }

    /// Check bounds, names and doubles.
    ///
    /// # Errors
    /// A sentence for the author.
    pub fn check(&self) -> Result<()> {
        name("name", &self.name)?;
        if self.version.to_string().len() > VERSION_CHARS {
            return refuse(format!("version is longer than {VERSION_CHARS} characters; shorten it"));
        }
        if let Some(http) = &self.http {
            if http.routes.is_empty() {
                return refuse(
                    "[http] has no routes; name some, as in routes = [\"GET /orders/{id}\"], or remove [http]",
                );
            }
            list("[http] routes", &http.routes)?;
            let mut shapes = BTreeSet::new();
            for route in &http.routes {
                if !shapes.insert(route.shape()) {
                    return refuse(format!("the route `{route}` matches the same requests as another; remove one"));
                }
            }
        }
        list("[[webhook]]", &self.webhooks)?;
        distinct("[[webhook]] source", self.webhooks.iter().map(|webhook| &webhook.source))?;
        for webhook in &self.webhooks {
            name("[[webhook]] source", &webhook.source)?;
            identifier("[[webhook]] secret", &webhook.secret)?;
        }
        list("[[event]]", &self.events)?;
        for event in &self.events {
            if event.types.is_empty() {
                return refuse("[[event]] names no types; write types = [\"order.*\"]");
            }
            list("[[event]] types", &event.types)?;
            distinct("[[event]] types", &event.types)?;
            for kind in &event.types {
                text("[[event]] types", kind)?;
                if kind.strip_suffix('*').unwrap_or(kind).contains('*') {
                    return refuse(format!("the event type {} has a `*` that is not last", shorten(kind)));
                }
            }
        }
        list("[[queue]]", &self.queues)?;
        distinct("[[queue]] name", self.queues.iter().map(|queue| &queue.name))?;
        for queue in &self.queues {
            name("[[queue]] name", &queue.name)?;
            if queue.attempts.is_some_and(|attempts| !(1..=ATTEMPTS).contains(&attempts)) {
                return refuse(format!("[[queue]] attempts is not 1 to {ATTEMPTS}"));
            }
        }
        list("[[schedule]]", &self.schedules)?;
        distinct("[[schedule]] name", self.schedules.iter().map(|schedule| &schedule.name))?;
        for schedule in &self.schedules {
            name("[[schedule]] name", &schedule.name)?;
            cron(&schedule.cron)?;
        }
        list("[[index]]", &self.indexes)?;
        for index in &self.indexes {
            collection("[[index]] collection", &index.collection)?;
            if index.fields.is_empty() || index.fields.len() > INDEX_FIELDS {
                return refuse(format!("[[index]] fields of `{}` are not 1 to {INDEX_FIELDS}", index.collection));
            }
            distinct("[[index]] fields", &index.fields)?;
            for field in &index.fields {
                text("[[index]] fields", field)?;
            }
        }
        self.check_grants()?;
        within("memory_mb", self.limits.memory_mb, &MEMORY_MB)?;
        within("timeout_ms", self.limits.timeout_ms, &TIMEOUT_MS)?;
        within("fuel", self.limits.fuel, &FUEL)
    }

    fn check_grants(&self) -> Result<()> {
        for (list_name, entries) in self.grants.lists() {
            let shown = format!("[grants] {list_name}");
            list(&shown, entries)?;
            distinct(&shown, entries)?;
            for entry in entries {
                match list_name {
                    "kv" | "kv_read" => collection(&shown, entry)?,
                    "egress" => host(&shown, entry)?,
                    "secrets" | "config" => identifier(&shown, entry)?,
                    _ => text(&shown, entry)?,
                }
            }
        }
        Ok(())
    }
}

/// The version of the SDK that a component was made with, as its text; `None` if it was made without one, as guests in
/// other languages are.
///
/// # Errors
/// If it is no component, or carries several that differ or one that is no text of at most 64 bytes.
pub fn sdk_version(bytes: &[u8]) -> Result<Option<String>> {
    let mut found: Option<String> = None;
    walk(bytes, |_, name, data| {
        if name != SDK_SECTION {
            return Ok(());
        }
        let version = match std::str::from_utf8(data) {
            Ok(version) if version.len() <= VERSION_CHARS => version,
            _ => return refuse(format!("the section `{SDK_SECTION}` holds no version; build with `chalet build`")),
        };
        if found.as_deref().is_some_and(|known| known != version) {
            return refuse("the component was made with two versions of chalet-sdk; keep one in Cargo.lock");
        }
        found = Some(version.to_owned());
        Ok(())
    })?;
    Ok(found)
}

/// Show every custom section of a component to `visit`, with its depth (0 is the component itself), name and data.
fn walk(bytes: &[u8], mut visit: impl FnMut(usize, &str, &[u8]) -> Result<()>) -> Result<()> {
    if !Parser::is_component(bytes) {
        return refuse("the file is no WebAssembly component; build it with `chalet build`");
    }
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(|error| ManifestError(format!("the component is damaged: {}", error.message())))? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::CustomSection(section) => visit(depth, section.name(), section.data())?,
            _ => {}
        }
    }
    Ok(())
}

fn bounded(length: usize) -> Result<()> {
    if length > MANIFEST_BYTES {
        return refuse(format!("the manifest has {length} bytes; at most {MANIFEST_BYTES} are allowed"));
    }
    Ok(())
}

fn list<T>(what: &str, entries: &[T]) -> Result<()> {
    if entries.len() > LIST_ENTRIES {
        return refuse(format!("{what} has {} entries; at most {LIST_ENTRIES} are allowed", entries.len()));
    }
    Ok(())
}

fn distinct<'a>(what: &str, entries: impl IntoIterator<Item = &'a String>) -> Result<()> {
    let mut seen = BTreeSet::new();
    for entry in entries {
        if !seen.insert(entry) {
            return refuse(format!("{what} names {} twice; remove one", shorten(entry)));
        }
    }
    Ok(())
}

fn name(what: &str, name: &str) -> Result<()> {
    let fits = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    if (1..=NAME_CHARS).contains(&name.len()) && name.bytes().all(fits) {
        return Ok(());
    }
    refuse(format!("{what} = {} is not 1 to {NAME_CHARS} of a-z 0-9 -; rename it", shorten(name)))
}

fn collection(what: &str, name: &str) -> Result<()> {
    let fits = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
    if (1..=NAME_CHARS).contains(&name.len()) && name.bytes().all(fits) {
        return Ok(());
    }
    refuse(format!("{what}: {} is not 1 to {NAME_CHARS} of a-z 0-9 _ -; rename it", shorten(name)))
}

fn identifier(what: &str, name: &str) -> Result<()> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if (1..=TEXT_BYTES).contains(&name.len()) && name.bytes().all(fits) {
        return Ok(());
    }
    refuse(format!("{what}: {} is not 1 to {TEXT_BYTES} of A-Z a-z 0-9 _ - .; rename it", shorten(name)))
}

fn text(what: &str, text: &str) -> Result<()> {
    if (1..=TEXT_BYTES).contains(&text.len()) && !text.chars().any(char::is_control) {
        return Ok(());
    }
    refuse(format!("{what}: {} is not 1 to {TEXT_BYTES} bytes without control characters", shorten(text)))
}

/// What outgoing requests take for one host, or one host and port. It is written as hosts are compared, so that none is
/// granted twice and none looks like another.
fn host(what: &str, host: &str) -> Result<()> {
    let as_compared = host.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase());
    if as_compared && Egress::check_grant(host).is_ok() {
        return Ok(());
    }
    let remedy = if host.contains('*') {
        "a grant is of one host, so name each, as in api.example.com"
    } else {
        "write its name in lower case, others than ASCII as in xn--bcher-kva.example, without scheme and path, as in api.stripe.com or api.stripe.com:8443"
    };
    refuse(format!("{what}: {} is no host; {remedy}", shorten(host)))
}

/// Five fields of digits, `*`, `,`, `-`, `/` and names; what they mean is checked where schedules are run.
fn cron(expression: &str) -> Result<()> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"*,-/".contains(&byte);
    let fields: Vec<_> = expression.split_ascii_whitespace().collect();
    if expression.len() <= CRON_BYTES && fields.len() == 5 && fields.iter().all(|field| field.bytes().all(fits)) {
        return Ok(());
    }
    refuse(format!(
        "[[schedule]] cron = {} is not five fields of minute, hour, day, month, weekday; write \"0 3 * * *\" for three at night",
        shorten(expression)
    ))
}

fn within<T: PartialOrd + fmt::Display>(
    what: &str,
    value: Option<T>,
    range: &std::ops::RangeInclusive<T>,
) -> Result<()> {
    match value {
        Some(value) if !range.contains(&value) => {
            refuse(format!("[limits] {what} = {value} is not {} to {}", range.start(), range.end()))
        }
        _ => Ok(()),
    }
}

/// The text in quotes, escaped, and cut so that a stranger's manifest does not fill a log.
fn shorten(text: &str) -> String {
    let kept = &text[..text.floor_char_boundary(80)];
    let dots = if kept.len() < text.len() { "…" } else { "" };
    format!("{kept:?}{dots}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The manifest of the design, with every table that there is.
    const FULL: &str = r#"
        name = "orders"
        version = "1.2.0"
        [http]
        routes = ["GET /orders/{id}", "POST /orders", "ANY /files/{*rest}", "GET /"]
        auth = "none"
        [[webhook]]
        source = "stripe"
        verify = "stripe"
        secret = "STRIPE_WEBHOOK_SECRET"
        [[webhook]]
        source = "partner"
        verify = "standard-webhooks"
        secret = "PARTNER"
        [[event]]
        types = ["order.*"]
        [[queue]]
        name = "emails"
        attempts = 8
        [[schedule]]
        name = "nightly"
        cron = "0 3 * * *"
        [grants]
        kv = ["orders"]
        kv_read = ["prices"]
        egress = ["api.stripe.com", "api.example.com:8443", "[2606:4700::1]:8443"]
        secrets = ["STRIPE_KEY"]
        flags = ["volume-discount"]
        meters = ["payments"]
        limits = ["per-user"]
        config = ["currency"]
        [limits]
        memory_mb = 64
        timeout_ms = 2000
        fuel = 500_000_000
        [[index]]
        collection = "orders"
        fields = ["status", "created_at"]
    "#;

    fn component(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let mut component = wasm_encoder::Component::new();
        for (name, data) in sections {
            component.section(&wasm_encoder::CustomSection { name: (*name).into(), data: (*data).into() });
        }
        component.finish()
    }

    #[test]
    fn grants_are_added_list_by_list_and_once() {
        let of = |name: &str| vec![name.to_owned()];
        let all = Grants {
            kv: of("kv"),
            kv_read: of("kv_read"),
            egress: of("egress"),
            secrets: of("secrets"),
            flags: of("flags"),
            meters: of("meters"),
            limits: of("limits"),
            config: of("config"),
        };
        for (name, list) in all.lists() {
            assert_eq!(list, [name]);
        }
        let mut sum = Grants::default();
        sum.extend(&all);
        sum.extend(&all);
        assert_eq!(sum, all);
    }

    #[test]
    fn every_table_reads_and_survives_the_json_form() {
        let manifest = Manifest::from_toml(FULL).unwrap();
        assert_eq!(manifest.http.as_ref().unwrap().routes[0].to_string(), "GET /orders/{id}");
        assert_eq!(manifest.webhooks[1].verify, Scheme::StandardWebhooks);
        assert_eq!(manifest.limits.fuel, Some(500_000_000));
        assert_eq!(Manifest::from_json(&manifest.to_json()).unwrap(), manifest);
        let carried = component(&[("other", b"x"), (SECTION, &manifest.to_json())]);
        assert_eq!(Manifest::from_component(&carried).unwrap(), manifest);
    }

    #[test]
    fn the_smallest_manifest_grants_nothing() {
        let manifest = Manifest::from_toml("name = \"a\"\nversion = \"0.1.0\"").unwrap();
        assert!(manifest.grants.is_empty() && manifest.http.is_none());
        assert_eq!(manifest.to_json(), br#"{"name":"a","version":"0.1.0"}"#);
    }

    #[test]
    fn auth_is_the_key_unless_the_manifest_says_otherwise() {
        let text = "name = \"a\"\nversion = \"0.1.0\"\n[http]\nroutes = [\"GET /\"]";
        assert_eq!(Manifest::from_toml(text).unwrap().http.unwrap().auth, Auth::Key);
    }

    #[test]
    fn what_is_wrong_is_refused_with_a_reason() {
        let with = |rest: &str| format!("name = \"a\"\nversion = \"1.0.0\"\n{rest}");
        let route = |route: &str| with(&format!("[http]\nroutes = [\"{route}\"]"));
        let cases = [
            ("version = \"1.0.0\"".into(), "missing field `name`"),
            ("name = \"A\"\nversion = \"1.0.0\"".into(), "a-z 0-9 -"),
            (format!("name = \"{}\"\nversion = \"1.0.0\"", "a".repeat(65)), "1 to 64"),
            ("name = \"a\"\nversion = \"1.0\"".into(), "version"),
            (with("colour = 1"), "unknown field"),
            (with("[grants]\nkvs = []"), "unknown field"),
            (route("/orders"), "no method"),
            (route("FETCH /orders"), "no known method"),
            (route("GET orders"), "does not start with"),
            (route("GET /a//b"), "empty segment"),
            (route("GET /a/"), "empty segment"),
            (route("GET /{*rest}/b"), "put it last"),
            (route("GET /{a}/{a}"), "twice"),
            (route("GET /a{b}"), "percent-encode"),
            (route("GET /{}"), "no name"),
            (with("[http]\nroutes = []"), "no routes"),
            (with("[http]\nroutes = [\"GET /{a}\", \"GET /{b}\"]"), "same requests"),
            (with("[http]\nroutes = [\"GET /\"]\nauth = \"basic\""), "unknown variant"),
            (with("[[webhook]]\nsource = \"s\"\nverify = \"md5\"\nsecret = \"S\""), "unknown variant"),
            (
                with(
                    "[[webhook]]\nsource = \"s\"\nverify = \"hmac\"\nsecret = \"S\"\n[[webhook]]\nsource = \"s\"\nverify = \"hmac\"\nsecret = \"T\"",
                ),
                "twice",
            ),
            (with("[[event]]\ntypes = [\"a.*.b\"]"), "not last"),
            (with("[[queue]]\nname = \"q\"\nattempts = 0"), "attempts"),
            (with("[[schedule]]\nname = \"s\"\ncron = \"daily\""), "five fields"),
            (with("[grants]\nkv = [\"Orders\"]"), "a-z 0-9 _ -"),
            (with("[grants]\nkv = [\"o\", \"o\"]"), "twice"),
            (with("[grants]\negress = [\"https://api.stripe.com\"]"), "no host"),
            (with("[grants]\negress = [\"API.stripe.com\"]"), "no host"),
            (with("[grants]\negress = [\"*.example.com\"]"), "name each"),
            (with("[grants]\negress = [\"bücher.example\"]"), "xn--"),
            // What outgoing requests would read as no host grants nothing, and is not taken.
            (with("[grants]\negress = [\"2606:4700::1\"]"), "no host"),
            (with("[grants]\negress = [\"api.stripe.com:0\"]"), "no host"),
            (with("[grants]\negress = [\"user@api.stripe.com\"]"), "no host"),
            (with("[grants]\nsecrets = [\"a b\"]"), "A-Z a-z"),
            (with("[limits]\nmemory_mb = 0"), "memory_mb"),
            (with("[limits]\nfuel = 99999999999999"), "fuel"),
            (
                with(&format!("[grants]\nflags = {:?}", (0..257).map(|n| format!("f{n}")).collect::<Vec<_>>())),
                "at most 256",
            ),
            (" ".repeat(MANIFEST_BYTES + 1), "at most 65536"),
        ];
        for (text, reason) in cases {
            let error = Manifest::from_toml(&text).expect_err(&text).to_string();
            assert!(error.contains(reason), "{text}\n-> {error}\nwanted: {reason}");
        }
    }

    #[test]
    fn a_component_carries_exactly_one_manifest_at_its_outside() {
        let json: &[u8] = br#"{"name":"a","version":"0.1.0"}"#;
        let reason = |bytes: &[u8]| Manifest::from_component(bytes).unwrap_err().to_string();
        assert!(reason(&component(&[])).contains("has no section"));
        assert!(reason(&component(&[(SECTION, json), (SECTION, json)])).contains("two sections"));
        assert!(reason(b"\0asm\x01\0\0\0").contains("no WebAssembly component"));
        assert!(reason(b"").contains("no WebAssembly component"));
        assert!(reason(&component(&[(SECTION, b"{")])).contains("cannot be read"));
        let mut outer = wasm_encoder::Component::new();
        outer.section(&wasm_encoder::RawSection { id: 4, data: &component(&[(SECTION, json)]) });
        assert!(reason(&outer.finish()).contains("has no section"));
        let mut cut = component(&[(SECTION, json)]);
        cut.truncate(cut.len() - 1);
        assert!(reason(&cut).contains("damaged"));
    }

    #[test]
    fn the_sdk_version_is_found_in_the_core_module() {
        let mut module = wasm_encoder::Module::new();
        module.section(&wasm_encoder::CustomSection { name: SDK_SECTION.into(), data: (b"0.1.0" as &[u8]).into() });
        let mut outer = wasm_encoder::Component::new();
        outer.section(&wasm_encoder::ModuleSection(&module));
        let bytes = outer.finish();
        assert_eq!(sdk_version(&bytes).unwrap().as_deref(), Some("0.1.0"));
        assert_eq!(sdk_version(&component(&[])).unwrap(), None);
        assert!(sdk_version(&component(&[(SDK_SECTION, b"1"), (SDK_SECTION, b"2")])).is_err());
    }

    #[test]
    fn grants_beyond_the_approved_ones_are_named() {
        let approved = Grants { kv: vec!["a".into()], ..Grants::default() };
        let wanted =
            Grants { kv: vec!["a".into(), "b".into()], kv_read: vec!["a".into(), "c".into()], ..Grants::default() };
        assert_eq!(wanted.beyond(&approved), ["kv: b", "kv_read: c"]);
        assert!(approved.beyond(&approved).is_empty());
    }
}
