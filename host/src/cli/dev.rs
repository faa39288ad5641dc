//! `chalet dev`: a plugin on a server of its own, built and deployed again on every save.
//!
//! The server is the one that `chalet serve` runs, in this process, with a tenant `dev`. Its data is gone at the end unless
//! a folder is named. A build that fails leaves the version before it running.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use notify::{EventKind, RecursiveMode, Watcher as _};
use reqwest::Method;
use semver::BuildMetadata;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::build::{self, Options};
use super::client::{Client, ForTenant};
use super::deploy::deploy;
use super::logs::{self, Tail};
use super::terminal::{Ink, error_mark, field, ink, note, say};
use super::{Failure, Result, failed};
use crate::config::Config;
use crate::kernel::clock::Clock;
use crate::platform::Platform;
use crate::services::plugins::manifest::Manifest;

/// The tenant that the plugin is deployed to.
const TENANT: &str = "dev";
/// How long the files must be quiet: an editor saves in several steps, and several files at once.
const QUIET: Duration = Duration::from_millis(150);
/// Versions of a plugin on this server; one is made at every save.
const VERSIONS: u32 = 1_000_000;
/// How long the server may take to end.
const END: Duration = Duration::from_secs(5);

/// Run a plugin on a local server; rebuild and redeploy it on every save.
#[derive(Debug, Args)]
pub(super) struct Dev {
    /// The folder of the plugin's crate.
    #[arg(default_value = ".")]
    path: PathBuf,
    /// The address to listen on; port 0 picks a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Keep the data in this folder, such as .chalet.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

impl Dev {
    pub(super) async fn run(self) -> Result<()> {
        let folder = std::fs::canonicalize(&self.path)
            .map_err(|error| Failure::Failed(format!("{}: {error}", self.path.display())))?;
        build::read_manifest(&folder)?;
        let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter).without_time().init();

        // Held to the end, and removed then.
        let temporary = tempfile::tempdir()?;
        let data = self.data.clone().unwrap_or_else(|| temporary.path().to_owned());
        let admin = hex::encode(rand::random::<[u8; 24]>());
        let mut config = Config { data: Some(data), ..Config::default() };
        config.admin.key = Some(admin.clone());
        let listener = TcpListener::bind(self.listen)
            .await
            .map_err(|error| Failure::Failed(format!("cannot listen on {}: {error}", self.listen)))?;
        let url = format!("http://{}", listener.local_addr()?);
        let platform = Platform::start(&config, Clock::system()).await?;
        let stop = CancellationToken::new();
        let mut server = tokio::spawn(platform.serve(listener, stop.clone()));

        let bench = Bench::set_up(folder, &url, &admin).await?;
        let printing = tokio::spawn(print_logs(bench.client.clone(), bench.of.clone()));
        let worked = tokio::select! {
            worked = bench.work() => worked,
            interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Failure::from),
            ended = &mut server => match ended {
                Ok(Ok(())) => failed("the server ended"),
                Ok(Err(error)) => Err(error.into()),
                Err(error) => failed(format!("the server failed: {error}")),
            },
        };
        // The stream of logs is a request that would not end by itself.
        printing.abort();
        let _ = printing.await;
        stop.cancel();
        if !server.is_finished() {
            let _ = tokio::time::timeout(END, &mut server).await;
        }
        note("");
        worked
    }
}

/// The plugin that is worked on, and the server that it runs on.
struct Bench {
    folder: PathBuf,
    client: Client,
    of: ForTenant,
    key: String,
}

impl Bench {
    /// Make the tenant with a key of its own.
    async fn set_up(folder: PathBuf, url: &str, admin: &str) -> Result<Self> {
        let admin = Client::with(url, Some(admin))?;
        // The machine is the author's own: every save may be compiled.
        let plan = json!({ "versions_per_plugin": VERSIONS, "compile_cpu_seconds_per_hour": i32::MAX });
        admin.put("/v1/plans/dev", plan.to_string().into_bytes()).await?;
        let of = ForTenant { tenant: TENANT.into() };
        if admin.get(&of.path(&[])).await.is_err() {
            admin.post("/v1/tenants", &json!({ "id": TENANT, "plan": "dev" })).await?;
        }
        let made = admin.post(&of.path(&["keys"]), &json!({ "name": "dev", "scopes": ["tenant:admin"] })).await?;
        let key = field(&made, "key");
        Ok(Self { folder, client: admin.with_key(Some(&key)), of, key })
    }

    /// Build and deploy, now and whenever a source changes. It ends only by an error.
    async fn work(&self) -> Result<()> {
        let changed = Arc::new(Notify::new());
        let _watcher = watch(&self.folder, changed.clone())?;
        let mut deployed = Deployed::default();
        let mut introduced = false;
        loop {
            match self.redeploy(&mut deployed).await {
                Ok(Some(manifest)) if !introduced => {
                    introduced = true;
                    self.secrets(&manifest).await;
                    self.introduce(&manifest);
                }
                Ok(_) => {}
                Err(failure) => note(format!("{} {failure}", error_mark())),
            }
            changed.notified().await;
            while tokio::time::timeout(QUIET, changed.notified()).await.is_ok() {}
        }
    }

    /// Build, and deploy what was built if it is not what runs.
    async fn redeploy(&self, deployed: &mut Deployed) -> Result<Option<Manifest>> {
        let started = Instant::now();
        let folder = self.folder.clone();
        let built = tokio::task::spawn_blocking(move || build::build(&folder, &Options::default()))
            .await
            .map_err(|error| Failure::Failed(error.to_string()))??;
        let component = std::fs::read(&built.component)?;
        if deployed.component == component {
            note("nothing changed");
            return Ok(None);
        }
        let versions = self.of.path(&["plugins", &built.manifest.name, "versions"]);
        if deployed.versions.is_empty()
            && let Ok(known) = self.client.list(&versions, usize::MAX).await
        {
            deployed.versions.extend(known.data.iter().map(|version| field(version, "version")));
        }
        let manifest = deployed.number(built.manifest)?;
        let numbered = build::embed_instead(&component, &manifest)?;
        deploy(&self.client, &self.of, numbered, 100, true).await?;
        let version = manifest.version.to_string();
        say(format!(
            "{} {} {version} runs {}",
            ink(Ink::Green, "ok"),
            manifest.name,
            ink(Ink::Dim, &format!("({:.1} s)", started.elapsed().as_secs_f64()))
        ));
        deployed.versions.insert(version);
        deployed.component = component;
        Ok(Some(manifest))
    }

    /// Store the secrets that the environment has, and name those that it has not.
    async fn secrets(&self, manifest: &Manifest) {
        let mut names: Vec<_> = manifest.webhooks.iter().map(|webhook| &webhook.secret).collect();
        names.extend(&manifest.grants.secrets);
        names.sort();
        names.dedup();
        for name in names {
            let stored = match std::env::var(name) {
                Ok(value) if !value.is_empty() => {
                    let request = self.client.request(Method::PUT, &self.of.path(&["secrets", name]));
                    self.client.send(request.body(value)).await.map(drop)
                }
                _ => failed(format!("it needs the secret {name}: chalet secret set {name}")),
            };
            match stored {
                Ok(()) => note(format!("the secret {name} is taken from the environment")),
                Err(failure) => note(failure.to_string()),
            }
        }
    }

    /// Say how to reach the plugin.
    fn introduce(&self, manifest: &Manifest) {
        let (url, name, key) = (self.client.url(), &manifest.name, &self.key);
        say("");
        if let Some(http) = &manifest.http {
            let simple = http.routes.iter().find(|route| !route.path().contains('{'));
            if let Some(route) = simple.or(http.routes.first()) {
                let path = route.path().replace(['{', '}', '*'], "");
                let method = match route.method() {
                    "GET" | "ANY" => "",
                    "HEAD" => "--head ",
                    "POST" => "-d '{}' ",
                    _ => "-d '{}' -X ",
                };
                let named = if method.ends_with("-X ") { format!("{} ", route.method()) } else { String::new() };
                say(format!("  curl {method}{named}-H 'authorization: Bearer {key}' {url}/t/{TENANT}/{name}{path}"));
            }
        }
        for webhook in &manifest.webhooks {
            say(format!("  webhooks: {url}/hooks/{TENANT}/{}", webhook.source));
        }
        say(format!("  elsewhere: export CHALET_URL={url} CHALET_TENANT={TENANT} CHALET_KEY={key}"));
        say(format!("  API: {url}/docs"));
        say("");
        note("waiting for changes and calls; Ctrl-C ends it");
    }
}

/// What runs, and which versions are taken.
#[derive(Default)]
struct Deployed {
    component: Vec<u8>,
    versions: HashSet<String>,
}

impl Deployed {
    /// Give the manifest a version that is free: its own, else with `+dev.N`, since a version's bytes never change.
    fn number(&self, mut manifest: Manifest) -> Result<Manifest> {
        let base = manifest.version.build.clone();
        let mut n = 0_u32;
        while self.versions.contains(&manifest.version.to_string()) {
            n += 1;
            let build = if base.is_empty() { format!("dev.{n}") } else { format!("{base}.dev.{n}") };
            manifest.version.build =
                BuildMetadata::new(&build).map_err(|error| Failure::Failed(format!("the version {build}: {error}")))?;
        }
        Ok(manifest)
    }
}

/// Tell `changed` of every change to what the plugin is built from. It ends when the watcher is dropped.
fn watch(folder: &Path, changed: Arc<Notify>) -> Result<notify::RecommendedWatcher> {
    let broken = |error: notify::Error| Failure::Failed(format!("the sources cannot be watched: {error}"));
    let (root, target) = (folder.to_owned(), folder.join("target"));
    let is_source = move |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // Editors' own files come and go beside the sources. The build itself writes Cargo.lock.
        let scratch = name.starts_with('.') || name.ends_with('~') || name == "Cargo.lock";
        let inside = path.parent() != Some(root.as_path()) || matches!(name, "Cargo.toml" | "plugin.toml" | "build.rs");
        !scratch && inside && !path.starts_with(&target)
    };
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        if !matches!(event.kind, EventKind::Access(_)) && event.paths.iter().any(&is_source) {
            changed.notify_one();
        }
    })
    .map_err(broken)?;
    // Not the whole folder: a watch below target/ would follow the build.
    watcher.watch(folder, RecursiveMode::NonRecursive).map_err(broken)?;
    let sources = folder.join("src");
    if sources.is_dir() {
        watcher.watch(&sources, RecursiveMode::Recursive).map_err(broken)?;
    }
    Ok(watcher)
}

/// Print invocations and what they log, until the task is stopped.
async fn print_logs(client: Client, of: ForTenant) {
    let Ok(mut tail) = Tail::open(&client, &of, None, true).await else { return };
    while let Ok(Some(invocation)) = tail.next().await {
        logs::print(&invocation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_is_taken_gets_a_number_behind_it() {
        let manifest = |version: &str| Manifest::from_toml(&format!("name = \"a\"\nversion = \"{version}\"")).unwrap();
        let mut deployed = Deployed::default();
        let mut next = |version: &str| {
            let version = deployed.number(manifest(version)).unwrap().version.to_string();
            deployed.versions.insert(version.clone());
            version
        };
        assert_eq!(next("1.0.0"), "1.0.0");
        assert_eq!(next("1.0.0"), "1.0.0+dev.1");
        assert_eq!(next("1.0.0"), "1.0.0+dev.2");
        assert_eq!(next("1.1.0+x"), "1.1.0+x");
        assert_eq!(next("1.1.0+x"), "1.1.0+x.dev.1");
    }
}
