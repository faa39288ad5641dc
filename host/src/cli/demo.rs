//! `chalet demo`: the whole main job on real input, judged by nothing but what the server answers over HTTP.
//!
//! It runs from the checkout: it builds the example plugins, starts this same binary as a server on a free port with a
//! temporary data folder, plays the scenes, and counts. A scene that fails does not stop those after it; what they all
//! need does.

mod server;
mod stage;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};

use self::server::Server;
use self::stage::{Actor, Answer, Stage};
use super::build::{self, Options};
use super::client::{ForTenant, path};
use super::deploy::{Outcome, deploy};
use super::terminal::{Ink, bytes, field, ink, note, say};
use super::{Failure, Result, failed};
use crate::kernel::clock::{Clock, rfc3339};
use crate::services::plugins::manifest::Manifest;

/// The subscription that the scenes are about.
const SUBSCRIPTION: &str = "sub_1PqR2sLkdIwHu7ixa1b2c3d4";
/// Calls of a burst, and how many of them the limit lets through.
const BURST: usize = 30;
const ALLOWED: usize = 10;

/// Show the whole platform at work on the example plugins.
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// End when everything was shown: exit code 0 if all of it held, else 1.
    #[arg(long)]
    once: bool,
}

impl Demo {
    pub(super) async fn run(self) -> Result<()> {
        let started = Instant::now();
        let root = checkout()?;
        say(ink(Ink::Bold, "Chalet: an invocation is a transaction"));
        say("");
        let components = tokio::task::spawn_blocking(move || Components::build(&root))
            .await
            .map_err(|error| Failure::Failed(error.to_string()))??;
        let server = Server::start().await?;
        say(format!("server at {}, data in a temporary folder", server.url()));
        let mut stage = Stage::new(server).await?;
        let mut score = Score::default();

        let played = tokio::select! {
            played = play(&mut stage, &components, &mut score) => played,
            _ = tokio::signal::ctrl_c() => failed("interrupted"),
        };
        if score.failed > 0 || played.is_err() {
            stage.server.show_log();
        }
        played?;
        let summary = format!("{} passed, {} failed", score.passed, score.failed);
        say("");
        say(format!(
            "{} {}",
            ink(if score.failed == 0 { Ink::Green } else { Ink::Red }, &summary),
            ink(Ink::Dim, &format!("({:.0} s)", started.elapsed().as_secs_f64()))
        ));
        if !self.once {
            invite(&stage);
            let _ = tokio::signal::ctrl_c().await;
            note("");
        }
        stage.server.stop().await;
        if score.failed == 0 { Ok(()) } else { Err(Failure::Said) }
    }
}

/// How many scenes held.
#[derive(Default)]
struct Score {
    passed: usize,
    failed: usize,
}

impl Score {
    /// Tell what a scene shows, then whether it did and by which evidence.
    fn count(&mut self, claim: &str, outcome: Result<String>) {
        let (mark, evidence) = match outcome {
            Ok(evidence) => {
                self.passed += 1;
                (ink(Ink::Green, "ok    "), evidence)
            }
            Err(failure) => {
                self.failed += 1;
                (ink(Ink::Red, "FAILED"), failure.to_string())
            }
        };
        say(format!("  {mark}  {claim}"));
        say(format!("          {}", ink(Ink::Dim, &evidence)));
    }
}

fn chapter(name: &str) {
    say("");
    say(ink(Ink::Bold, name));
}

/// The checkout that the working folder, or this binary, is in.
fn checkout() -> Result<PathBuf> {
    let is_checkout = |folder: &&Path| {
        ["guest-sdk/Cargo.toml", "plugins/notes/plugin.toml", "tests/guests/misbehave/plugin.toml"]
            .iter()
            .all(|file| folder.join(file).is_file())
    };
    let starts = [std::env::current_dir().ok(), std::env::current_exe().ok()];
    let found = starts.iter().flatten().find_map(|start| start.ancestors().find(is_checkout).map(Path::to_owned));
    found.ok_or_else(|| Failure::Failed("the demo builds the example plugins: run it in a checkout of Chalet".into()))
}

/// What is deployed.
struct Components {
    billing: Vec<u8>,
    triage: Vec<u8>,
    pricing: Vec<u8>,
    /// The same code with a route and a wish more.
    pricing_next: Vec<u8>,
    notes: Vec<u8>,
    /// A plugin that traps, or loops, as its path says.
    misbehave: Vec<u8>,
}

impl Components {
    fn build(root: &Path) -> Result<Self> {
        note("building the example plugins (a minute or two at the first time)");
        let mut built = build::build_all(root, &Options::default())?;
        built.push(build::build(&root.join("tests/guests/misbehave"), &Options::default())?);
        let read = |name: &str| -> Result<Vec<u8>> {
            let one = built.iter().find(|one| one.manifest.name == name);
            let one = one.ok_or_else(|| Failure::Failed(format!("the checkout has no plugin {name}")))?;
            Ok(std::fs::read(&one.component)?)
        };
        for one in &built {
            let name = format!("{} {}", one.manifest.name, one.manifest.version);
            say(format!("built {name:22}  {}", ink(Ink::Dim, &bytes(one.size_bytes))));
        }
        let pricing = read("pricing")?;
        let refused = |error: &dyn std::fmt::Display| Failure::Failed(format!("pricing: {error}"));
        let mut next = Manifest::from_component(&pricing).map_err(|error| refused(&error))?;
        next.version.minor += 1;
        next.grants.kv.push("quotes".into());
        if let Some(http) = &mut next.http {
            http.routes.push("POST /quote".to_owned().try_into().map_err(|error| refused(&error))?);
        }
        Ok(Self {
            billing: read("stripe-billing")?,
            triage: read("github-triage")?,
            pricing_next: build::embed_instead(&pricing, &next)?,
            pricing,
            notes: read("notes")?,
            misbehave: read("guest-misbehave")?,
        })
    }
}

/// All scenes, in the order in which a visitor understands them. It fails only where nothing more can be shown.
async fn play(stage: &mut Stage, components: &Components, score: &mut Score) -> Result<()> {
    chapter("Deploying");
    score.count("a plugin gets what its tenant approved, and no traffic before", held(stage, components).await);
    for component in [&components.triage, &components.pricing, &components.notes, &components.misbehave] {
        approved(stage, &stage.acme, component).await?;
    }
    approved(stage, &stage.globex, &components.pricing).await?;
    stage.acme.secret("STRIPE_WEBHOOK_SECRET", stage::STRIPE_SECRET).await?;
    stage.acme.secret("GITHUB_WEBHOOK_SECRET", stage::GITHUB_SECRET).await?;

    chapter("Webhooks");
    let (created, updated) = (stage::subscription("created", "incomplete"), stage::subscription("updated", "active"));
    score.count("Stripe's signed event is written and metered in one commit", stripe(stage, &created).await);
    score.count("Stripe's retry of the same event has no second effect", stripe_again(stage, &created).await);
    score.count("a forged signature, and a right one that is stale, change nothing", forged(stage, &updated).await);
    score.count("the next event updates the subscription", stripe_next(stage, &updated).await);
    score.count("GitHub's issue event counts its label once, however often it comes", github(stage).await);

    chapter("HTTP");
    score.count("a plugin answers an HTTP call of its tenant", price(stage).await);
    score.count("a POST repeated with its Idempotency-Key makes one note", note_once(stage).await);

    chapter("Feature flags");
    score.count("a flag flipped between two calls changes the price", flag(stage).await);
    score.count("the same flag over OFREP, as any OpenFeature client asks for it", ofrep(stage).await);

    chapter("Plugins that fail");
    score.count("what a plugin wrote before it trapped does not exist", trap(stage).await);
    score.count("endless loops are stopped, and the other tenant does not feel them", endless(stage).await);

    chapter("Limits");
    score.count("a burst over the limit is turned away; the other tenant's is not", burst(stage).await);

    chapter("Versions");
    score.count("a version that asks for more is held until that is approved", held_next(stage, components).await);
    score.count("it is released, and rolled back, between two calls", release(stage).await);

    chapter("Usage");
    score.count("what was metered is what was committed: two events, however often delivered", usage(stage).await);

    chapter("Isolation");
    score.count("another tenant looks to a key like one that does not exist", isolation(stage).await);
    score.count("nobody gets in without a key", anonymous(stage).await);

    chapter("Crash");
    score.count("after kill -9 everything that was acknowledged is there, once", crash(stage).await?);
    Ok(())
}

/// Deploy and approve; nothing can be shown without it.
async fn approved(stage: &Stage, tenant: &Actor, component: &[u8]) -> Result<()> {
    let of = ForTenant { tenant: tenant.name.clone() };
    match deploy(&stage.admin, &of, component.to_vec(), 100, true).await? {
        Outcome::Released { .. } => Ok(()),
        Outcome::Held { version } => failed(format!("{} is held although it was approved", field(&version, "plugin"))),
    }
}

async fn held(stage: &Stage, components: &Components) -> Result<String> {
    let of = ForTenant { tenant: stage.acme.name.clone() };
    let Outcome::Held { version } = deploy(&stage.admin, &of, components.billing.clone(), 100, false).await? else {
        return failed("it was released without anybody's approval");
    };
    let release = json!({ "version": field(&version, "version") });
    let refused = stage.acme.api("POST", &["plugins", "stripe-billing", "release"]).json(&release);
    let refused = stage.ask(refused).await?.expect(409)?.code();
    approved(stage, &stage.acme, &components.billing).await?;
    Ok(format!("held for {}; release: 409 {refused}; approved, then released", field(&version, "held")))
}

/// The subscription as it is stored, and the version of its entry.
async fn stored(stage: &Stage) -> Result<(Value, String)> {
    let answer = stage.ask(stage.acme.api("GET", &["kv", "subscriptions", SUBSCRIPTION])).await?.expect(200)?;
    Ok((answer.json()?, answer.header("etag")))
}

async fn stripe(stage: &Stage, event: &str) -> Result<String> {
    let absent = stage.ask(stage.acme.api("GET", &["kv", "subscriptions", SUBSCRIPTION])).await?;
    absent.expect(404)?;
    let answer = stage.ask(stage.stripe(event, 0, stage::STRIPE_SECRET)).await?.expect(200)?;
    let (subscription, tag) = stored(stage).await?;
    equal("status", &field(&subscription, "status"), "incomplete")?;
    Ok(format!("200; subscriptions/{SUBSCRIPTION} is incomplete, version {tag}; invocation {}", answer.invocation()))
}

async fn stripe_again(stage: &Stage, event: &str) -> Result<String> {
    let (_, before) = stored(stage).await?;
    // Stripe signs every attempt anew: the signature differs, the event's id does not.
    let answer = stage.ask(stage.stripe(event, -1, stage::STRIPE_SECRET)).await?.expect(200)?;
    equal("Idempotent-Replayed", &answer.header("idempotent-replayed"), "true")?;
    let (_, after) = stored(stage).await?;
    equal("the entry's version", &after, &before)?;
    Ok(format!("200 with Idempotent-Replayed: true; the entry is still version {after}"))
}

async fn forged(stage: &Stage, event: &str) -> Result<String> {
    let forged = stage.ask(stage.stripe(event, 0, "whsec_somebody_elses")).await?.expect(401)?;
    let stale = stage.ask(stage.stripe(event, -3_600, stage::STRIPE_SECRET)).await?.expect(401)?;
    let (subscription, _) = stored(stage).await?;
    equal("status", &field(&subscription, "status"), "incomplete")?;
    Ok(format!("401 {}, 401 {}; the subscription is as it was", forged.code(), stale.code()))
}

async fn stripe_next(stage: &Stage, event: &str) -> Result<String> {
    stage.ask(stage.stripe(event, 0, stage::STRIPE_SECRET)).await?.expect(200)?;
    let (subscription, tag) = stored(stage).await?;
    equal("status", &field(&subscription, "status"), "active")?;
    Ok(format!("200; the subscription is active, version {tag}"))
}

async fn github(stage: &Stage) -> Result<String> {
    for attempt in 0..3 {
        let answer = stage.ask(stage.github()).await?.expect(200)?;
        let replayed = if attempt == 0 { "" } else { "true" };
        equal("Idempotent-Replayed", &answer.header("idempotent-replayed"), replayed)?;
    }
    let count = stage.ask(stage.acme.api("GET", &["kv", "labels", "bug"])).await?.expect(200)?.text();
    equal("labels/bug", &count, "1")?;
    Ok("delivered three times; labels/bug is 1".into())
}

/// What twelve pieces at 19.99 cost.
async fn quote(stage: &Stage, route: &str) -> Result<Answer> {
    let order = json!({ "sku": "mug-blue", "quantity": 12, "list_cents": 1_999 });
    stage.ask(stage.acme.call("POST", "pricing", route).json(&order)).await
}

async fn price(stage: &Stage) -> Result<String> {
    let answer = quote(stage, "/price").await?.expect(200)?;
    equal("total_cents", &answer.field("total_cents")?, "23988")?;
    Ok(format!("12 at 19.99 cost 239.88; {}", answer.header("ratelimit")))
}

async fn note_once(stage: &Stage) -> Result<String> {
    let post = |text: &str| {
        let request = stage.acme.call("POST", "notes", "/notes").header("idempotency-key", "demo-note-1");
        stage.ask(request.json(&json!({ "text": text })))
    };
    let first = post("buy milk").await?.expect(201)?;
    let second = post("buy milk").await?.expect(201)?;
    equal("the id", &second.field("id")?, &first.field("id")?)?;
    equal("Idempotent-Replayed", &second.header("idempotent-replayed"), "true")?;
    let other = post("buy bread").await?.expect(422)?;
    equal("notes stored", &notes(stage).await?.to_string(), "1")?;
    Ok(format!("201 and 201 with the same id, one note stored; the key with another body: 422 {}", other.code()))
}

async fn notes(stage: &Stage) -> Result<usize> {
    let listed = stage.ask(stage.acme.call("GET", "notes", "/notes")).await?.expect(200)?.json()?;
    Ok(listed["data"].as_array().map_or(0, Vec::len))
}

async fn set_flag(stage: &Stage, variant: &str) -> Result<()> {
    let document = json!({ "flags": { "volume-discount": {
        "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": variant,
    }}});
    stage.ask(stage.acme.api("PUT", &["flags"]).json(&document)).await?.expect(200).map(drop)
}

async fn flag(stage: &Stage) -> Result<String> {
    set_flag(stage, "off").await?;
    let full = quote(stage, "/price").await?.expect(200)?.field("total_cents")?;
    set_flag(stage, "on").await?;
    let reduced = quote(stage, "/price").await?.expect(200)?.field("total_cents")?;
    equal("the price with the flag off", &full, "23988")?;
    equal("the price with the flag on", &reduced, "21589")?;
    Ok("volume-discount off: 239.88; on: 215.89".into())
}

async fn ofrep(stage: &Stage) -> Result<String> {
    let request = stage.acme.request("POST", &path(&["ofrep", "v1", "evaluate", "flags", "volume-discount"]));
    let request = request.json(&json!({ "context": { "targetingKey": "customer-7" } }));
    let answer = stage.ask(request).await?.expect(200)?;
    equal("value", &answer.field("value")?, "true")?;
    Ok(format!("value true, variant {}, reason {}", answer.field("variant")?, answer.field("reason")?))
}

async fn trap(stage: &Stage) -> Result<String> {
    let trace = || stage.ask(stage.acme.api("GET", &["kv", "misbehave", "trace"]));
    // The control: the same plugin, the same write, and no trap.
    stage.ask(stage.acme.call("GET", "guest-misbehave", "/well")).await?.expect(200)?;
    trace().await?.expect(200)?;
    stage.ask(stage.acme.api("DELETE", &["kv", "misbehave", "trace"])).await?.expect(204)?;
    let trapped = stage.ask(stage.acme.call("GET", "guest-misbehave", "/unreachable")).await?.expect(502)?;
    trace().await?.expect(404)?;
    let record = stage.ask(stage.acme.api("GET", &["invocations", &trapped.invocation()])).await?.expect(200)?;
    equal("the recorded outcome", &record.field("outcome")?, "failed")?;
    Ok(format!("502 {}; the entry: 404; the failure is on record: {}", trapped.code(), trapped.invocation()))
}

async fn endless(stage: &Stage) -> Result<String> {
    let started = Instant::now();
    let looping: Vec<_> =
        (0..4).map(|_| tokio::spawn(stage.ask(stage.acme.call("GET", "guest-misbehave", "/loop")))).collect();
    let (mut calls, mut slowest) = (0, std::time::Duration::ZERO);
    while looping.iter().any(|call| !call.is_finished()) {
        let sent = Instant::now();
        let order = json!({ "sku": "mug-blue", "quantity": 1, "list_cents": 500 });
        stage.ask(stage.globex.call("POST", "pricing", "/price").json(&order)).await?.expect(200)?;
        slowest = slowest.max(sent.elapsed());
        calls += 1;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let took = started.elapsed().as_secs_f64();
    let mut code = String::new();
    for call in looping {
        code = call.await.map_err(|error| Failure::Failed(error.to_string()))??.expect(504)?.code();
    }
    // Whoever had to wait for the loops took as long as they did, however fast the machine is.
    if calls < 5 || slowest.as_secs_f64() > took / 2.0 {
        return failed(format!("{calls} calls of the other tenant, the slowest in {} ms", slowest.as_millis()));
    }
    Ok(format!(
        "4 loops: 504 {code} within {took:.1} s; {calls} calls of globex meanwhile, the slowest in {} ms",
        slowest.as_millis()
    ))
}

async fn burst(stage: &Stage) -> Result<String> {
    let limits = json!({ "plugins": { "pricing": { "rate": ALLOWED, "per": "minute", "burst": ALLOWED } } });
    stage.ask(stage.acme.api("PUT", &["limits"]).json(&limits)).await?.expect(200)?;
    let shoot = |tenant: &Actor| {
        let order = json!({ "sku": "mug-blue", "quantity": 1, "list_cents": 500 });
        let calls: Vec<_> =
            (0..BURST).map(|_| stage.ask(tenant.call("POST", "pricing", "/price").json(&order))).collect();
        futures_util::future::join_all(calls)
    };
    let (acme, globex) = tokio::join!(shoot(&stage.acme), shoot(&stage.globex));
    stage.ask(stage.acme.api("PUT", &["limits"]).json(&json!({}))).await?.expect(200)?;
    let (mut passed, mut after) = (0, String::new());
    for answer in acme {
        let answer = answer?;
        if answer.status == 200 {
            passed += 1;
        } else {
            after = answer.expect(429)?.header("retry-after");
        }
    }
    for answer in globex {
        answer?.expect(200)?;
    }
    // On a slow machine one more may have come back to the bucket meanwhile.
    if !(ALLOWED..=ALLOWED + 1).contains(&passed) {
        return failed(format!("{passed} of {BURST} were let through"));
    }
    if after.parse::<u32>().is_err() {
        return failed("429 came without Retry-After");
    }
    let turned_away = BURST - passed;
    Ok(format!("acme: {passed} x 200, {turned_away} x 429 with Retry-After: {after}; globex: {BURST} x 200"))
}

async fn held_next(stage: &Stage, components: &Components) -> Result<String> {
    let of = ForTenant { tenant: stage.acme.name.clone() };
    let Outcome::Held { version } = deploy(&stage.admin, &of, components.pricing_next.clone(), 100, false).await?
    else {
        return failed("it was released without anybody's approval");
    };
    quote(stage, "/quote").await?.expect(404)?;
    let number = field(&version, "version");
    stage.ask(stage.acme.api("POST", &["plugins", "pricing", "versions", &number, "approve"])).await?.expect(200)?;
    Ok(format!("pricing {number} was held for {}; the one before went on answering", field(&version, "held")))
}

async fn release(stage: &Stage) -> Result<String> {
    // What runs is told by the API, and shown by a route that the earlier version has not.
    let runs = || async {
        let plugin = stage.ask(stage.acme.api("GET", &["plugins", "pricing"])).await?.expect(200)?;
        Ok::<_, Failure>(field(&plugin.json()?["release"][0], "version"))
    };
    let release = json!({ "version": "1.1.0" });
    stage.ask(stage.acme.api("POST", &["plugins", "pricing", "release"]).json(&release)).await?.expect(200)?;
    equal("the version after the release", &runs().await?, "1.1.0")?;
    quote(stage, "/quote").await?.expect(200)?;
    stage.ask(stage.acme.api("POST", &["plugins", "pricing", "rollback"])).await?.expect(200)?;
    equal("the version after the rollback", &runs().await?, "1.0.0")?;
    quote(stage, "/quote").await?.expect(404)?;
    quote(stage, "/price").await?.expect(200)?;
    Ok("1.1.0 runs, POST /quote: 200; rolled back: 1.0.0 runs, POST /quote: 404, POST /price: 200".into())
}

async fn usage(stage: &Stage) -> Result<String> {
    /// A day either side, so that midnight is of no matter.
    const DAY_MS: i64 = 86_400_000;
    let now = Clock::system().now_ms();
    let (from, to) = (rfc3339(now - DAY_MS), rfc3339(now + DAY_MS));
    let query = [("meter", "subscription_events"), ("from", &from), ("to", &to)];
    let answer = stage.ask(stage.acme.api("GET", &["usage"]).query(&query)).await?.expect(200)?.json()?;
    let values = answer["data"].as_array().into_iter().flatten();
    let total: f64 = values.filter_map(|row| row["value"].as_str()?.parse::<f64>().ok()).sum();
    equal("subscription_events", &total.to_string(), "2")?;
    Ok("subscription_events: 2, after five deliveries of two events".into())
}

async fn isolation(stage: &Stage) -> Result<String> {
    let mut answers = Vec::new();
    for tenant in ["acme", "no-such-tenant"] {
        let answer = stage.ask(stage.globex.request("GET", &path(&["v1", "tenants", tenant]))).await?.expect(404)?;
        answers.push((answer.code(), answer.field("detail")?));
    }
    if answers[0] != answers[1] {
        return failed("another tenant's answer differs from that of one that does not exist");
    }
    let of_acme = |rest: &[&str]| path(&[&["v1", "tenants", "acme"], rest].concat());
    for other in [
        stage.globex.request("GET", &of_acme(&["kv", "subscriptions", SUBSCRIPTION])),
        stage.globex.request("GET", &of_acme(&["invocations"])),
        stage.globex.request("PUT", &of_acme(&["secrets", "STRIPE_WEBHOOK_SECRET"])).body("mine"),
        stage.globex.request("POST", "/t/acme/pricing/price").json(&json!({})),
    ] {
        stage.ask(other).await?.expect(404)?;
    }
    Ok(format!("globex's key on acme's tenant, entries, records, secrets and plugins: 404 {}", answers[0].0))
}

async fn anonymous(stage: &Stage) -> Result<String> {
    let anonymous = stage.admin.with_key(None);
    for url in ["/v1/tenants", "/v1/tenants/acme", "/t/acme/notes/notes"] {
        stage.ask(anonymous.request(reqwest::Method::GET, url)).await?.expect(401)?;
    }
    Ok("401 on the control API and on the plugins' routes".into())
}

/// It fails as a whole if the server does not come back, since nobody could visit it then.
async fn crash(stage: &mut Stage) -> Result<Result<String>> {
    let before = match (stored(stage).await, notes(stage).await) {
        (Ok((_, tag)), Ok(notes)) => (tag, notes),
        (Err(failure), _) | (_, Err(failure)) => return Ok(Err(failure)),
    };
    stage.server.crash_and_restart().await?;
    Ok(survived(stage, before).await)
}

async fn survived(stage: &Stage, before: (String, usize)) -> Result<String> {
    let after = (stored(stage).await?.1, notes(stage).await?);
    equal("the subscription's version", &after.0, &before.0)?;
    equal("the notes", &after.1.to_string(), &before.1.to_string())?;
    let repeated = stage.acme.call("POST", "notes", "/notes").header("idempotency-key", "demo-note-1");
    let repeated = stage.ask(repeated.json(&json!({ "text": "buy milk" }))).await?.expect(201)?;
    equal("Idempotent-Replayed", &repeated.header("idempotent-replayed"), "true")?;
    equal("the notes", &notes(stage).await?.to_string(), "1")?;
    Ok(format!("the subscription is version {}, the note is there, and its POST is still not done twice", after.0))
}

fn equal(what: &str, is: &str, should: &str) -> Result<()> {
    if is == should { Ok(()) } else { failed(format!("{what} is {is:?}, and should be {should:?}")) }
}

/// How to go on by hand.
fn invite(stage: &Stage) {
    let (url, key) = (stage.server.url(), &stage.acme.key);
    say("");
    say(format!("The server goes on: {}", ink(Ink::Bold, &format!("{url}/docs"))));
    say("");
    say(format!("  export CHALET_URL={url} CHALET_TENANT=acme CHALET_KEY={key}"));
    say("  chalet plugins");
    say("  chalet invocations");
    say("  curl -H \"authorization: Bearer $CHALET_KEY\" -d '{\"text\":\"hello\"}' $CHALET_URL/t/acme/notes/notes");
    say("  curl -H \"authorization: Bearer $CHALET_KEY\" $CHALET_URL/t/acme/notes/notes");
    say("");
    note("Ctrl-C ends it and removes its data");
}
