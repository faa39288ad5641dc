//! The compile worker: what it can do beside compiling, what its end does to others, and what its work costs a tenant.

use std::fs::File;
use std::time::{Duration, Instant};

use chalet::services::plugins::components;
use reqwest::{Method, StatusCode};
use rustix::io::FdFlags;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::kit::guests::{component, costly, written};
use crate::kit::oracle::Watch;
use crate::kit::process::{cpu, running_children, runs};
use crate::kit::server::{Server, Setup, Tenant, expect};
use crate::upload::{compiles, refused, rejected, unprocessable};

/// What a worker could do that attempts all it must not, on a server that was started with a descriptor too many.
async fn could(breaks: &str) -> String {
    let leaked = File::open("/etc/hostname").expect("a file");
    rustix::io::fcntl_setfd(&leaked, FdFlags::empty()).expect("the descriptor is ours");
    let server = Server::start_with(Setup::sqlite().with("CHALET_BREAK", breaks));
    let tenant = server.tenant("hostile").await;
    let watch = Watch::begin(&server).await;
    let probe = written(|text| text.replace("(start $start)", "(@custom \"chalet:probe\" \"\")"));
    let problem = unprocessable(&tenant, probe, "component_invalid", "the probe").await;
    watch.end(&server).await;
    problem["detail"].as_str().expect("a text").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_can_do_nothing_but_compile() {
    assert_eq!(could("").await, "it could: nothing");
    // The attempts are such that succeed where nothing is in their way.
    let all = "it could: read a variable, read a file, list a folder, write to a file, read the node's environment, \
         listen, make a datagram socket, make a local socket, run a program, start a thread, signal the node, trace the \
         node, use a descriptor of the node's";
    assert_eq!(could("confine").await, all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compiler_that_panics_is_the_hosts_fault_and_no_limit_of_the_upload() {
    let server = Server::start_with(Setup::sqlite().logged());
    let tenant = server.tenant("acme").await;
    let watch = Watch::begin(&server).await;
    let panics = written(|text| text.replace("(start $start)", "(@custom \"chalet:probe\" \"panic\")"));
    let compiled = compiles(&server).await;
    for _ in 0..2 {
        let answer = tenant.upload("start", panics.clone()).await;
        assert!(answer.headers().contains_key("retry-after"));
        let problem = refused(answer, StatusCode::SERVICE_UNAVAILABLE, "a panic").await;
        assert_eq!(problem["code"], "compile_fault", "{problem}");
    }
    assert_eq!(compiles(&server).await - compiled, 2.0, "a newer compiler would not be asked");
    assert_eq!(rejected(&server, "compile_fault").await, 2.0);
    // Its tenant goes on.
    tenant.deploy("guest-hello").await;
    watch.end(&server).await;
    let digest = components::digest(&panics);
    let told = server.log();
    let told: Vec<_> = told.lines().filter(|line| line.contains("the compiler panicked")).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told.iter().all(|line| line.contains(&digest) && line.contains("asked to panic")), "{told:?}");
}

type Upload = JoinHandle<reqwest::Result<reqwest::Response>>;

/// Begin an upload whose compilation lasts: it, and the worker.
async fn begin(tenant: &Tenant<'_>, costly: &[u8]) -> (Upload, u32) {
    let request = tenant.api(Method::PUT, "/plugins/start").body(costly.to_vec()).timeout(Duration::from_secs(120));
    let upload = tokio::spawn(request.send());
    let workers = || running_children(tenant.server.pid());
    // Reading is over by then.
    let compiles = async || workers().first().is_some_and(|&worker| cpu(worker) > Duration::from_millis(200));
    tenant.server.eventually("a worker compiles", compiles).await;
    (upload, workers()[0])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_killed_costs_its_upload_only() {
    let server = Server::start();
    let tenant = server.tenant("acme").await;
    let watch = Watch::begin(&server).await;
    let folder = || std::fs::read_dir(server.data.path().join("code")).expect("a folder").count();
    let files = folder();
    let costly = costly();
    for _ in 0..3 {
        let (upload, pid) = begin(&tenant, &costly).await;
        let pid = Pid::from_raw(pid.cast_signed()).expect("a process");
        kill_process(pid, Signal::KILL).expect("the worker is ours");
        let answer = upload.await.expect("no panic").expect("an answer");
        assert!(answer.headers().contains_key("retry-after"));
        let problem = refused(answer, StatusCode::SERVICE_UNAVAILABLE, "a killed worker").await;
        assert_eq!(problem["code"], "compile_interrupted", "{problem}");
        assert_eq!(folder(), files, "something is left of it");
    }
    // Another upload of the tenant has its turn at once.
    tenant.deploy("guest-hello").await;
    expect(tenant.api(Method::GET, "/plugins/start"), StatusCode::NOT_FOUND).await;
    watch.end(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_ends_with_its_upload_and_with_its_node() {
    let server = Server::start();
    let tenant = server.tenant("acme").await;
    let mut watch = Some(Watch::begin(&server).await);
    let costly = costly();
    for kill_the_node in [false, true] {
        let (upload, pid) = begin(&tenant, &costly).await;
        if kill_the_node {
            server.kill();
        } else {
            upload.abort();
        }
        let since = Instant::now();
        while runs(pid) {
            // It has half a minute of work left.
            assert!(since.elapsed() < Duration::from_secs(10), "the worker goes on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let _ = upload.await;
        if let Some(watch) = watch.take() {
            watch.end(&server).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_pays_for_its_uploads_and_not_for_the_hosts_cold_starts() {
    let mut server = Server::start();
    let plan = json!({ "compile_cpu_seconds_per_hour": 1 });
    expect(server.admin(Method::PUT, "/v1/plans/small").json(&plan), StatusCode::OK).await;
    let key = {
        let acme = server.tenant("acme").await;
        let body = json!({ "plan": "small" });
        expect(server.admin(Method::PATCH, "/v1/tenants/acme").json(&body), StatusCode::OK).await;
        acme.deploy("guest-hello").await;
        acme.key
    };
    // Nothing is compiled yet after this, and the budget is new.
    server.kill();
    for file in std::fs::read_dir(server.data.path().join("code")).expect("a folder") {
        std::fs::remove_file(file.expect("a file").path()).expect("it can be removed");
    }
    server.crash_and_restart();
    let acme = Tenant { server: &server, name: "acme".into(), key };
    assert_eq!(acme.upload("guest-kv", component("guest-kv")).await.status(), StatusCode::CREATED);
    let answer = acme.upload("guest-log", component("guest-log")).await;
    let after: u64 = answer.headers()["retry-after"].to_str().expect("text").parse().expect("seconds");
    let problem = refused(answer, StatusCode::TOO_MANY_REQUESTS, "an upload too many").await;
    assert_eq!(problem["code"], "compile_budget_exhausted", "{problem}");
    // What one job cost comes back at a second an hour: not at once, and not more than all of it.
    assert!((10..=30 * 3_600).contains(&after), "{after} s");
    assert_eq!(compiles(&server).await, 1.0);
    // What is compiled already costs nothing, and what was accepted before is the host's to compile again.
    assert_eq!(acme.upload("guest-kv", component("guest-kv")).await.status(), StatusCode::OK);
    expect(acme.call(Method::GET, "guest-hello", "/"), StatusCode::OK).await;
    assert_eq!(compiles(&server).await, 2.0);
    let other = server.tenant("other").await;
    assert_eq!(other.upload("guest-log", component("guest-log")).await.status(), StatusCode::CREATED);
}
