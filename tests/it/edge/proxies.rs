//! The same requests behind other people's proxies: whatever a proxy takes for one request is one here as well.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::kit::oracle::Watch;
use crate::kit::raw;
use crate::kit::server::Server;

use super::requests::ambiguous;

/// A proxy in front of a server; it ends when this is dropped.
struct Proxy {
    process: Child,
    url: String,
    _folder: TempDir,
}

impl Proxy {
    /// Start `program` with this file of settings, in which `PORT` is where it listens and `SERVER` whom it asks.
    async fn start(program: &str, arguments: &[&str], settings: &str, server: &Server) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
        let folder = TempDir::new().expect("a temporary folder");
        let file = folder.path().join("settings");
        let settings =
            settings.replace("PORT", &port.to_string()).replace("SERVER", server.url.trim_start_matches("http://"));
        std::fs::write(&file, settings.replace("FOLDER", &folder.path().to_string_lossy())).expect("written");
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let process = Command::new(program)
            .args(arguments)
            .arg(&file)
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program} does not start, see tests/prepare.sh: {error}"));
        let until = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(Instant::now() < until, "{program} does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Self { process, url: format!("http://127.0.0.1:{port}"), _folder: folder }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One process, which keeps its connections to the server.
const NGINX: &str = "daemon off; master_process off; pid FOLDER/pid; error_log FOLDER/errors; events {}
http {
    access_log off; client_body_temp_path FOLDER/body; proxy_temp_path FOLDER/proxy;
    fastcgi_temp_path FOLDER/fastcgi; uwsgi_temp_path FOLDER/uwsgi; scgi_temp_path FOLDER/scgi;
    upstream chalet { server SERVER; keepalive 8; }
    server {
        listen 127.0.0.1:PORT;
        location / { proxy_pass http://chalet; proxy_http_version 1.1; proxy_set_header connection \"\"; proxy_request_buffering off; }
    }
}
";

const HAPROXY: &str = "defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
    http-reuse always
listen chalet
    bind 127.0.0.1:PORT
    server chalet SERVER
";

async fn the_same_count(server: &Server, proxy: &Proxy) {
    // Without the canary's, which calls a plugin.
    let seen = async || {
        let control = server.metric_where("chalet_requests_total", "plane=\"control\"").await;
        control + server.metric_where("chalet_requests_total", "plane=\"other\"").await
    };
    let mut answered = 0;
    for (what, request, _) in ambiguous() {
        let before = seen().await;
        let answers = raw::exchange(&proxy.url, &request).await;
        // Only what this server answers has a number. A proxy may break off what it has passed on in part.
        let ours = answers.text.to_lowercase().matches("x-request-id:").count();
        // Of the four looks, two are counted between the others.
        let (count, all) = (seen().await - before - 2.0, answers.statuses().len());
        assert!(
            (ours as f64..=all as f64).contains(&count),
            "{what:?}: {count} requests came, {ours} of {all} answers are theirs: {}",
            answers.text
        );
        answered += ours;
    }
    println!("{answered} requests were passed on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_and_the_server_count_the_same_requests() {
    let server = Server::start();
    let watch = Watch::begin(&server).await;
    let proxy = Proxy::start("nginx", &["-c"], NGINX, &server).await;
    the_same_count(&server, &proxy).await;
    drop(proxy);
    watch.end(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_and_the_server_count_the_same_requests() {
    let server = Server::start();
    let watch = Watch::begin(&server).await;
    let proxy = Proxy::start("haproxy", &["-db", "-f"], HAPROXY, &server).await;
    the_same_count(&server, &proxy).await;
    drop(proxy);
    watch.end(&server).await;
}
