//! The first answer: of a plugin that was just uploaded, and of a known one after the process has started again.

use std::time::Instant;

use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::board::median;
use crate::kit::guests::numbered;
use crate::kit::server::{Server, Tenant, expect};

/// Plugins that are uploaded, each under a version of its own: no code of one is another's.
const PLUGINS: usize = 12;

/// What was found, medians in milliseconds.
pub struct Cold {
    /// From the start of the upload to the first answer, compiled, approved and released in between.
    pub upload_ms: f64,
    /// Kilobytes of the component.
    pub component_kb: f64,
    /// From the start of the process to the first answer of a known plugin.
    pub restart_ms: f64,
    /// The first answer of each other known plugin, in a process that runs.
    pub known_ms: f64,
    /// A later answer of the same, on the same client.
    pub warm_ms: f64,
}

impl Cold {
    /// The table.
    pub fn markdown(&self) -> String {
        format!(
            "### First answers\n\n| what | ms |\n|---|--:|\n\
             | upload of {:.0} kB to the first answer | {:.1} |\n\
             | start of the process to the first answer of a known plugin | {:.1} |\n\
             | the first answer of another known plugin in it | {:.2} |\n\
             | a later answer of the same plugin, same client | {:.2} |\n",
            self.component_kb, self.upload_ms, self.restart_ms, self.known_ms, self.warm_ms
        )
    }
}

/// Measure them on a server of its own, on SQLite.
pub async fn run() -> Cold {
    let mut server = Server::start();
    server.unlimited().await;
    let key = server.tenant("acme").await.key;
    let mut uploads = Vec::new();
    let mut component_kb = 0.0;
    for n in 0..PLUGINS {
        let acme = Tenant { server: &server, name: "acme".into(), key: key.clone() };
        let bytes = numbered("guest-hello", &format!("1.0.{n}"));
        component_kb = bytes.len() as f64 / 1e3;
        let started = Instant::now();
        acme.deploy_bytes("guest-hello", bytes).await;
        call(&acme).await;
        uploads.push(milliseconds(started));
    }
    // Each other plugin is a version of the same, released in turn.
    let started = Instant::now();
    server.crash_and_restart();
    let acme = Tenant { server: &server, name: "acme".into(), key };
    call(&acme).await;
    let restart_ms = milliseconds(started);
    let (mut known, mut warm) = (Vec::new(), Vec::new());
    for n in 0..PLUGINS - 1 {
        let version = json!({ "version": format!("1.0.{n}") });
        expect(acme.api(Method::POST, "/plugins/guest-hello/release").json(&version), StatusCode::OK).await;
        let started = Instant::now();
        call(&acme).await;
        known.push(milliseconds(started));
        let started = Instant::now();
        call(&acme).await;
        warm.push(milliseconds(started));
    }
    let middle = |times: Vec<f64>| median(times).expect("there are plugins");
    Cold { upload_ms: middle(uploads), component_kb, restart_ms, known_ms: middle(known), warm_ms: middle(warm) }
}

async fn call(acme: &Tenant<'_>) {
    let answer = acme.call(Method::GET, "guest-hello", "/").send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    answer.bytes().await.expect("bytes");
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
