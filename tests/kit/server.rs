//! Servers as their users have them: the `chalet` binary in a process of its own, reached over HTTP.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::kit::guests::component;
use crate::kit::postgres;

/// The operator's key of every test server.
pub const ADMIN: &str = "test-admin-key-0123456789-abcdefghijklmnop";

/// Connections that the tests' client keeps open to a server.
pub const IDLE_CONNECTIONS: usize = 128;
/// How long it keeps them: less than the minute after which the server closes them, so that no request meets that.
const IDLE: Duration = Duration::from_secs(30);
/// How long a server may take to show its metrics, on a machine that is busy with other tests.
const SCRAPE: Duration = Duration::from_secs(20);
/// The file in the data folder that a log is kept in.
const LOG: &str = "log.jsonl";

/// The binary, which cargo has built for these tests.
pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_chalet"))
}

/// Where a server keeps its data.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Variables of its environment, beside the ones that every test server has.
    pub variables: Vec<(String, String)>,
    logged: bool,
    listen: Option<SocketAddr>,
    stand_ins: Vec<(PathBuf, String)>,
}

impl Setup {
    /// SQLite in the data folder.
    pub fn sqlite() -> Self {
        Self::default()
    }

    /// A migrated PostgreSQL database of its own.
    pub async fn postgres() -> Self {
        Self::on(&postgres::database().await)
    }

    /// This database, as the application's role. Nodes on one database share its master key.
    pub fn on(database: &postgres::Database) -> Self {
        Self::default().with("CHALET_DATABASE_URL", &database.url).with("CHALET_MASTER_KEY", &"5e".repeat(32))
    }

    /// Listen at this address, where a server has to be told its own.
    #[must_use]
    pub fn at(mut self, address: SocketAddr) -> Self {
        self.listen = Some(address);
        self
    }

    /// Let it find `file` where the machine has its own `place`, such as `/etc/resolv.conf`. Only root may do that, or who is
    /// root of a namespace.
    #[must_use]
    pub fn standing_in(mut self, file: &Path, place: &str) -> Self {
        self.stand_ins.push((file.to_owned(), place.to_owned()));
        self
    }

    /// Keep its log for [`Server::log`] instead of showing it.
    #[must_use]
    pub fn logged(mut self) -> Self {
        self.logged = true;
        self
    }

    /// One more variable.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }
}

/// A running server. When this is dropped it is killed, after it was judged: it has to live, unless the test ended it, and it
/// must not have panicked nor answered with 500.
pub struct Server {
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    /// A client that keeps connections.
    pub http: reqwest::Client,
    /// The data folder.
    pub data: std::sync::Arc<TempDir>,
    setup: Setup,
    process: Mutex<Child>,
    /// The test itself has ended it.
    ended: AtomicBool,
    /// What the test makes happen in it.
    panics: AtomicU32,
    errors: AtomicBool,
}

impl Server {
    /// A server on SQLite with an empty data folder.
    pub fn start() -> Self {
        Self::start_with(Setup::sqlite())
    }

    /// A server with an empty data folder.
    pub fn start_with(setup: Setup) -> Self {
        let data = TempDir::new().expect("a temporary folder");
        Self::start_on(setup, std::sync::Arc::new(data))
    }

    /// A server on a data folder that may have been used before.
    pub fn start_on(setup: Setup, data: std::sync::Arc<TempDir>) -> Self {
        // The client asks for it also where it never speaks TLS; a second installation changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().pool_max_idle_per_host(IDLE_CONNECTIONS).pool_idle_timeout(IDLE);
        let http = http.build().expect("a client");
        let (process, url) = spawn(&setup, data.path());
        Self {
            url,
            http,
            data,
            setup,
            process: Mutex::new(process),
            ended: AtomicBool::new(false),
            panics: AtomicU32::new(0),
            errors: AtomicBool::new(false),
        }
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.process.lock().expect("no test panicked with the lock").id()
    }

    /// Kill it with SIGKILL and start it again on the same data.
    pub fn crash_and_restart(&mut self) {
        self.kill();
        let (process, url) = spawn(&self.setup, self.data.path());
        self.process = Mutex::new(process);
        self.ended = AtomicBool::new(false);
        self.url = url;
    }

    /// Kill it with SIGKILL.
    pub fn kill(&self) {
        self.ended.store(true, Ordering::Relaxed);
        let mut process = self.process.lock().expect("no test panicked with the lock");
        let _ = process.kill();
        let _ = process.wait();
    }

    /// Ask it to stop, and its exit status.
    pub fn stop(&self) -> std::process::ExitStatus {
        self.ended.store(true, Ordering::Relaxed);
        self.signal(Signal::TERM);
        self.process.lock().expect("no test panicked with the lock").wait().expect("the server ends")
    }

    /// Stop it in the middle of what it does, with all its connections open.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Let it go on after [`Self::freeze`].
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.lock().expect("no test panicked with the lock");
        kill_process(Pid::from_child(&process), signal).expect("the server lives");
    }

    /// The test makes the host panic so many times.
    pub fn expect_panics(&self, panics: u32) {
        self.panics.store(panics, Ordering::Relaxed);
    }

    /// The test lets a plugin answer with 500, or has broken what the host relies on.
    pub fn allow_errors(&self) {
        self.errors.store(true, Ordering::Relaxed);
    }

    /// Whether nothing happened in it that must not, whatever a test did to it.
    pub fn verdict(&self) -> Result<(), String> {
        let ended = self.process.lock().expect("no test panicked with the lock").try_wait().expect("it is our child");
        if let Some(status) = ended {
            return Err(format!("the server has ended by itself: {status}"));
        }
        let metrics = scrape(&self.url).map_err(|error| format!("the server shows no metrics: {error}"))?;
        let panics = sum(&metrics, "chalet_host_panics_total", "");
        if panics != f64::from(self.panics.load(Ordering::Relaxed)) {
            return Err(format!("the host panicked {panics} times"));
        }
        let errors = sum(&metrics, "chalet_requests_total", "status=\"500\"");
        if errors > 0.0 && !self.errors.load(Ordering::Relaxed) {
            return Err(format!("{errors} requests were answered with 500"));
        }
        Ok(())
    }

    /// What it has logged, if it was started [`Setup::logged`].
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.data.path().join(LOG)).expect("the server was told to keep its log")
    }

    /// A request with the operator's key.
    pub fn admin(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(ADMIN)
    }

    /// A request without a credential.
    pub fn anonymous(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    /// A tenant with a key that may do everything in it.
    pub async fn tenant(&self, name: &str) -> Tenant<'_> {
        let made =
            self.admin(Method::POST, "/v1/tenants").json(&json!({ "id": name })).send().await.expect("an answer");
        assert_eq!(made.status(), StatusCode::CREATED, "{}", made.text().await.unwrap_or_default());
        let mut tenant = Tenant { server: self, name: name.into(), key: String::new() };
        tenant.key = tenant.mint(&["tenant:admin"]).await;
        tenant
    }

    /// Give the plan of new tenants rates that do not stand in the way of a load.
    pub async fn unlimited(&self) {
        let plan = json!({ "requests_per_second": 1_000_000, "request_burst": 1_000_000, "concurrency": 256,
            "timeout_ms": 10_000, "storage_bytes": 1_u64 << 40, "versions_per_plugin": 1_000_000,
            "compile_cpu_seconds_per_hour": 1_000_000 });
        expect(self.admin(Method::PUT, "/v1/plans/free").json(&plan), StatusCode::OK).await;
    }

    /// Let this many tenants work through `items`, each one after the other.
    pub async fn share<T>(&self, tenants: usize, items: impl Iterator<Item = T>, work: impl AsyncFn(&Tenant<'_>, T)) {
        let items = Mutex::new(items);
        let next = || items.lock().expect("no test panicked with the lock").next();
        let (next, work) = (&next, &work);
        futures_util::future::join_all((0..tenants).map(async |n| {
            let tenant = self.tenant(&format!("worker-{n}")).await;
            while let Some(item) = next() {
                work(&tenant, item).await;
            }
        }))
        .await;
    }

    /// Wait until `check` is true, at most ten seconds.
    pub async fn eventually(&self, what: &str, check: impl AsyncFn() -> bool) {
        let started = Instant::now();
        while !check().await {
            assert!(started.elapsed() < Duration::from_secs(10), "{what} did not come true");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A metric of `/metrics`, summed over its labels.
    pub async fn metric(&self, name: &str) -> f64 {
        self.metric_where(name, "").await
    }

    /// The same, of the lines that have this text among their labels, such as `status="500"`.
    pub async fn metric_where(&self, name: &str, label: &str) -> f64 {
        let text = self.anonymous(Method::GET, "/metrics").send().await.expect("an answer").text().await.expect("text");
        sum(&text, name, label)
    }

    /// Requests that were answered with this status.
    pub async fn answered(&self, status: u16) -> f64 {
        self.metric_where("chalet_requests_total", &format!("status=\"{status}\"")).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let judged = !std::thread::panicking() && !self.ended.load(Ordering::Relaxed);
        let verdict = if judged { self.verdict() } else { Ok(()) };
        self.kill();
        verdict.unwrap_or_else(|fault| panic!("{fault}"));
    }
}

/// The sum of a metric over the lines that have this text among their labels.
fn sum(metrics: &str, name: &str, label: &str) -> f64 {
    let own = metrics.lines().filter(|line| line.split(['{', ' ']).next() == Some(name) && line.contains(label));
    own.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// A server's metrics, where nothing can be awaited.
fn scrape(url: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://"))?;
    stream.set_read_timeout(Some(SCRAPE))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    if text.starts_with("HTTP/1.1 200 ") { Ok(text) } else { Err(std::io::Error::other(text)) }
}

fn spawn(setup: &Setup, data: &Path) -> (Child, String) {
    let mut command = Command::new(binary());
    if !setup.stand_ins.is_empty() {
        let mount = "while [ \"$1\" != -- ]; do mount --bind \"$1\" \"$2\" || exit; shift 2; done; shift; exec \"$@\"";
        command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", mount, "sh"]);
        command.args(setup.stand_ins.iter().flat_map(|(file, place)| [file.as_os_str(), place.as_ref()]));
        command.arg("--").arg(binary());
    }
    command
        .args(["serve", "--listen", &setup.listen.unwrap_or(([127, 0, 0, 1], 0).into()).to_string(), "--data"])
        .arg(data)
        .env("CHALET_ADMIN_KEY", ADMIN)
        .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".into()))
        .envs(setup.variables.iter().map(|(name, value)| (name, value)))
        .current_dir(data)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    if setup.logged {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(data.join(LOG)).expect("a file");
        command.stderr(log);
    }
    let mut process = command.spawn().expect("the server starts");
    let mut line = String::new();
    let stdout = process.stdout.take().expect("stdout is piped");
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    let url = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("the server did not start: {line}"));
    (process, url.to_owned())
}

/// A tenant on a server, with a key of it.
#[derive(Clone)]
pub struct Tenant<'s> {
    /// The server.
    pub server: &'s Server,
    /// The tenant's name.
    pub name: String,
    /// A key with `tenant:admin`.
    pub key: String,
}

impl Tenant<'_> {
    /// A new key with these scopes.
    pub async fn mint(&self, scopes: &[&str]) -> String {
        let path = format!("/v1/tenants/{}/keys", self.name);
        let made =
            self.server.admin(Method::POST, &path).json(&json!({ "name": "test", "scopes": scopes })).send().await;
        let made = made.expect("an answer");
        assert_eq!(made.status(), StatusCode::CREATED);
        let made: Value = made.json().await.expect("JSON");
        made["key"].as_str().expect("the key is shown once").to_owned()
    }

    /// A request to `/v1/tenants/{tenant}{path}` with the tenant's key.
    pub fn api(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}/v1/tenants/{}{path}", self.server.url, self.name);
        self.server.http.request(method, url).bearer_auth(&self.key)
    }

    /// A request to `/t/{tenant}/{plugin}{path}` with the tenant's key.
    pub fn call(&self, method: Method, plugin: &str, path: &str) -> RequestBuilder {
        let url = format!("{}/t/{}/{plugin}{path}", self.server.url, self.name);
        self.server.http.request(method, url).bearer_auth(&self.key)
    }

    /// A request to `/hooks/{tenant}/{source}`.
    pub fn hook(&self, source: &str) -> RequestBuilder {
        self.server.anonymous(Method::POST, &format!("/hooks/{}/{source}", self.name))
    }

    /// Upload, approve and release a shipped plugin or test guest.
    pub async fn deploy(&self, name: &str) {
        self.deploy_bytes(name, component(name)).await;
    }

    /// The same with these bytes; the version.
    pub async fn deploy_bytes(&self, name: &str, bytes: Vec<u8>) -> String {
        let uploaded = self.upload(name, bytes).await;
        assert!(uploaded.status().is_success(), "{}", uploaded.text().await.unwrap_or_default());
        let version: Value = uploaded.json().await.expect("JSON");
        let version = version["version"].as_str().expect("a version").to_owned();
        let path = format!("/plugins/{name}/versions/{version}/approve");
        expect(self.api(Method::POST, &path), StatusCode::OK).await;
        let release = self.api(Method::POST, &format!("/plugins/{name}/release")).json(&json!({ "version": version }));
        expect(release, StatusCode::OK).await;
        version
    }

    /// Upload a component.
    pub async fn upload(&self, name: &str, bytes: Vec<u8>) -> Response {
        let request = self.api(Method::PUT, &format!("/plugins/{name}")).header("content-type", "application/wasm");
        request.body(bytes).send().await.expect("an answer")
    }

    /// Store a secret.
    pub async fn secret(&self, name: &str, value: &str) {
        expect(self.api(Method::PUT, &format!("/secrets/{name}")).body(value.to_owned()), StatusCode::NO_CONTENT).await;
    }

    /// An entry's bytes; none if it is absent.
    pub async fn kv(&self, collection: &str, key: &str) -> Option<Vec<u8>> {
        let answer = self.api(Method::GET, &format!("/kv/{collection}/{key}")).send().await.expect("an answer");
        match answer.status() {
            StatusCode::OK => Some(answer.bytes().await.expect("bytes").to_vec()),
            StatusCode::NOT_FOUND => None,
            other => panic!("reading {collection}/{key} answered {other}"),
        }
    }
}

/// A tenant `acme` with `guest-kv` and room for load, to be called on each of these nodes, which have loaded it.
pub async fn acme_on<'s>(nodes: &[&'s Server]) -> Vec<Tenant<'s>> {
    nodes[0].unlimited().await;
    let acme = nodes[0].tenant("acme").await;
    acme.deploy("guest-kv").await;
    let acme: Vec<_> = nodes.iter().map(|server| Tenant { server, ..acme.clone() }).collect();
    for node in &acme {
        let ops = json!({ "ops": [{ "op": "put", "key": "loaded", "value": "yes" }] });
        expect(node.call(Method::POST, "guest-kv", "/run").json(&ops), StatusCode::OK).await;
    }
    acme
}

/// Send a request that must be answered with this status; the body as JSON, null if it is none.
pub async fn expect(request: RequestBuilder, status: StatusCode) -> Value {
    let answer = request.send().await.expect("an answer");
    let got = answer.status();
    let body = answer.text().await.expect("text");
    assert_eq!(got, status, "{body}");
    serde_json::from_str(&body).unwrap_or(Value::Null)
}
