//! Callers that go away and callers that are too many: what they held is back at once, and others do not notice.

use std::time::{Duration, Instant};

use chalet::cli::build;
use chalet::services::plugins::manifest::Manifest;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::kit::engine::Engine;
use crate::kit::guests::component;
use crate::kit::oracle::Watch;
use crate::kit::server::{Server, Tenant, expect};

on_both_engines! {
    a_caller_that_goes_away_frees_all_that_it_held,
    a_guest_that_waits_for_the_outside_ends_with_its_time,
    a_tenant_runs_no_more_than_its_plan_allows,
    no_tenant_takes_all_the_places_of_a_node,
}

/// Within this everything is back; the fastest of some tries is measured, since the machine has others to serve.
const BACK: Duration = Duration::from_millis(100);
const TRIES: usize = 5;

/// A server that takes requests and never answers, and tells of each.
async fn silent() -> (String, mpsc::UnboundedReceiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if tell.send(stream).is_err() {
                return;
            }
        }
    });
    (address, told)
}

/// A tenant whose guests may run for a minute, this many at a time, and send to this address.
async fn patient<'s>(server: &'s Server, name: &str, concurrency: u32, upstream: &str) -> Tenant<'s> {
    let plan = json!({ "timeout_ms": 60_000, "fuel": 1_000_000_000_000_u64, "concurrency": concurrency });
    expect(server.admin(Method::PUT, &format!("/v1/plans/{name}")).json(&plan), StatusCode::OK).await;
    let tenant = server.tenant(name).await;
    let change = server.admin(Method::PATCH, &format!("/v1/tenants/{name}")).json(&json!({ "plan": name }));
    expect(change, StatusCode::OK).await;
    let component = component("guest-http");
    let mut manifest = Manifest::from_component(&component).expect("a manifest");
    manifest.grants.egress.push(upstream.to_owned());
    tenant.deploy_bytes("guest-http", build::embed_instead(&component, &manifest).expect("embedded")).await;
    tenant.deploy("guest-misbehave").await;
    tenant
}

fn waiting(upstream: &str) -> Value {
    json!({ "calls": [{ "url": format!("http://{upstream}/") }] })
}

async fn running(server: &Server) -> f64 {
    server.metric("chalet_guests_running").await
}

async fn a_caller_that_goes_away_frees_all_that_it_held(engine: Engine) {
    let (upstream, mut asked) = silent().await;
    let server = Server::start_with(engine.setup().await.with("CHALET_EGRESS_LOCAL", &upstream));
    let watch = Watch::begin(&server).await;
    // One place only: if it is not given back, the next call is not answered.
    let tenant = patient(&server, "leaving", 1, &upstream).await;
    let body = waiting(&upstream).to_string();
    for (what, plugin) in
        [("POST /t/leaving/guest-http/send", "guest-http"), ("GET /t/leaving/guest-misbehave/loop", "guest-misbehave")]
    {
        let mut fastest = Duration::MAX;
        for _ in 0..TRIES {
            let address = server.url.trim_start_matches("http://");
            let mut caller = TcpStream::connect(address).await.expect("the server listens");
            let (key, length) = (&tenant.key, body.len());
            let request = format!(
                "{what} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {length}\r\n\r\n{body}"
            );
            caller.write_all(request.as_bytes()).await.expect("the server reads");
            let sent = if plugin == "guest-http" { asked.recv().await } else { None };
            server.eventually("the guest runs", async || running(&server).await >= 1.0).await;
            // It has burned something by now that is to be billed.
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(caller);
            let gone = Instant::now();
            let well = tenant.call(Method::GET, "guest-misbehave", "/well").send().await.expect("an answer");
            fastest = fastest.min(gone.elapsed());
            assert_eq!(well.status(), StatusCode::OK, "the place was not given back");
            drop(sent);
        }
        assert!(fastest < BACK, "{what}: the place was back after {fastest:?}");
        println!("{what}: back after {fastest:?}");
        server.eventually("the slot is back", async || running(&server).await <= 1.0).await;
    }
    // A record is written when the guest, too, has let go.
    let records = async || {
        let listed = expect(tenant.api(Method::GET, "/invocations?limit=100"), StatusCode::OK).await;
        listed["data"].as_array().expect("a list").clone()
    };
    server
        .eventually("each has its record", async || {
            let records = records().await;
            ["guest-http", "guest-misbehave"].iter().all(|plugin| {
                let cancelled = |one: &&Value| one["plugin"] == *plugin && one["outcome"] == "cancelled";
                records.iter().filter(cancelled).count() == TRIES
            })
        })
        .await;
    let records = records().await;
    // What was computed until then is billed, though nobody waited for it: 20 ms and more of an endless loop, each. Each
    // record shows what is billed for it.
    let usage = expect(tenant.api(Method::GET, "/usage?meter=fuel&group_by=plugin"), StatusCode::OK).await;
    let burned = usage["data"].as_array().expect("rows").iter().find(|row| row["group"]["plugin"] == "guest-misbehave");
    let burned: f64 = burned.and_then(|row| row["value"].as_str()?.parse().ok()).unwrap_or_default();
    assert!(burned > TRIES as f64 * 1_000_000.0, "{burned} units of fuel were billed: {usage}");
    let cancelled = |one: &&Value| one["plugin"] == "guest-misbehave" && one["outcome"] == "cancelled";
    let shown = |one: &Value| one["fuel"].as_f64().is_some_and(|fuel| fuel > 1_000_000.0);
    assert!(records.iter().filter(cancelled).all(shown), "{records:?}");
    let recorded: f64 =
        records.iter().filter(|one| one["plugin"] == "guest-misbehave").filter_map(|one| one["fuel"].as_f64()).sum();
    assert_eq!(recorded, burned, "{records:?}");
    watch.end(&server).await;
}

async fn a_guest_that_waits_for_the_outside_ends_with_its_time(engine: Engine) {
    let (upstream, mut asked) = silent().await;
    let server = Server::start_with(engine.setup().await.with("CHALET_EGRESS_LOCAL", &upstream));
    let watch = Watch::begin(&server).await;
    let tenant = patient(&server, "hurried", 1, &upstream).await;
    let time = Duration::from_millis(400);
    let plan = json!({ "timeout_ms": time.as_millis(), "concurrency": 1 });
    expect(server.admin(Method::PUT, "/v1/plans/hurried").json(&plan), StatusCode::OK).await;
    let mut fastest = Duration::MAX;
    for _ in 0..TRIES {
        let begun = Instant::now();
        let answer = tenant.call(Method::POST, "guest-http", "/send").json(&waiting(&upstream)).send().await;
        let answer = answer.expect("an answer");
        let took = begun.elapsed();
        assert_eq!(answer.status(), StatusCode::GATEWAY_TIMEOUT);
        let problem: Value = answer.json().await.expect("a problem");
        assert_eq!(problem["code"], "deadline_exceeded", "{problem}");
        assert!(took >= time, "it had its time: {took:?}");
        fastest = fastest.min(took - time);
        // The one place is free, and nobody waits for the outside any more.
        expect(tenant.call(Method::GET, "guest-misbehave", "/well"), StatusCode::OK).await;
        let mut waited_for = asked.recv().await.expect("a request to the outside");
        let mut sent = Vec::new();
        tokio::time::timeout(Duration::from_secs(5), waited_for.read_to_end(&mut sent))
            .await
            .expect("it is closed")
            .ok();
    }
    println!("ended {fastest:?} after its time");
    assert!(fastest < BACK, "ended {fastest:?} after its time");
    watch.end(&server).await;
}

async fn a_tenant_runs_no_more_than_its_plan_allows(engine: Engine) {
    const PLACES: u32 = 4;
    let (upstream, mut asked) = silent().await;
    let server = Server::start_with(engine.setup().await.with("CHALET_EGRESS_LOCAL", &upstream));
    let watch = Watch::begin(&server).await;
    let tenant = patient(&server, "crowded", PLACES, &upstream).await;
    // Connections of their own, which are closed with it.
    let crowd = reqwest::Client::new();
    let calls = (0..300).map(|_| {
        let request = crowd.post(format!("{}/t/crowded/guest-http/send", server.url)).bearer_auth(&tenant.key);
        let request = request.json(&waiting(&upstream)).timeout(Duration::from_secs(30));
        tokio::spawn(async move { request.send().await })
    });
    let calls: Vec<_> = calls.collect();
    let mut held = Vec::new();
    for _ in 0..PLACES {
        held.push(asked.recv().await.expect("a request to the outside"));
    }
    // Everybody else is told to come again, within the second that they may wait.
    let turned_away = async || server.metric("chalet_invocations_shed_total").await;
    let expected = 300.0 - f64::from(PLACES);
    server
        .eventually("the others are turned away", async || {
            // The bystander's guest may be among them.
            assert!(running(&server).await <= f64::from(PLACES) + 1.0, "more run than the plan allows");
            turned_away().await >= expected
        })
        .await;
    assert_eq!(turned_away().await, expected);
    assert!(asked.try_recv().is_err(), "a fifth was sent");
    // Those that hold a place get their answer, an error of the outside's, now that it hangs up.
    drop(held);
    let mut answers = std::collections::BTreeMap::new();
    for call in calls {
        let answer = call.await.expect("no panic").expect("an answer");
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            assert!(answer.headers().contains_key("retry-after"));
        }
        *answers.entry(answer.status().as_u16()).or_insert(0) += 1;
    }
    drop(crowd);
    assert_eq!(answers.into_iter().collect::<Vec<_>>(), [(200, PLACES), (429, 300 - PLACES)]);
    watch.end(&server).await;
}

async fn no_tenant_takes_all_the_places_of_a_node(engine: Engine) {
    let (upstream, mut asked) = silent().await;
    let server = Server::start_with(engine.setup().await.with("CHALET_EGRESS_LOCAL", &upstream));
    let quiet = server.tenant("quiet").await;
    quiet.deploy("guest-hello").await;
    let (one, other) =
        (patient(&server, "one", 10_000, &upstream).await, patient(&server, "other", 10_000, &upstream).await);
    server.eventually("nothing runs", async || running(&server).await == 0.0).await;
    let slots = server.metric("chalet_slots_free").await as usize;
    let crowd = reqwest::Client::new();
    let send = |tenant: &Tenant<'_>, count: usize| -> Vec<_> {
        let call = |_| {
            let request =
                crowd.post(format!("{}/t/{}/guest-http/send", server.url, tenant.name)).bearer_auth(&tenant.key);
            let request = request.json(&waiting(&upstream)).timeout(Duration::from_secs(30));
            tokio::spawn(async move { request.send().await.expect("an answer") })
        };
        (0..count).map(call).collect()
    };
    // Three quarters, whatever its plan says.
    let most = slots - slots / 4;
    let calls = send(&one, slots);
    let mut held = Vec::new();
    for _ in 0..most {
        held.push(asked.recv().await.expect("a request to the outside"));
    }
    let shed = async || server.metric("chalet_invocations_shed_total").await as usize;
    server.eventually("the others are turned away", async || shed().await == slots - most).await;
    assert!(asked.try_recv().is_err(), "one more runs");
    expect(quiet.call(Method::GET, "guest-hello", "/"), StatusCode::OK).await;
    // Two such tenants together fill the node. Then it is the node that is full, and nobody's fault.
    let more = send(&other, slots);
    for _ in most..slots {
        held.push(asked.recv().await.expect("a request to the outside"));
    }
    let turned_away = || more.iter().filter(|call| call.is_finished()).count();
    server.eventually("those who find no place are turned away", async || turned_away() == most).await;
    let full = other.call(Method::GET, "guest-misbehave", "/well").send().await.expect("an answer");
    assert!(full.headers().contains_key("retry-after"));
    assert_eq!(full.status(), StatusCode::SERVICE_UNAVAILABLE);
    let problem: Value = full.json().await.expect("a problem");
    assert_eq!(problem["code"], "overloaded", "{problem}");
    drop(held);
    drop(asked);
    for call in calls.into_iter().chain(more) {
        let status = call.await.expect("no panic").status();
        let expected = [StatusCode::OK, StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        assert!(expected.contains(&status), "{status}");
    }
    println!("{most} of {slots} places were one tenant's");
    server.eventually("all places are back", async || running(&server).await == 0.0).await;
    expect(quiet.call(Method::GET, "guest-hello", "/"), StatusCode::OK).await;
}
