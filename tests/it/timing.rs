//! What the time tells that an answer takes: nothing of a key's secret, and nothing of another tenant.

use std::hint::black_box;
use std::net::Ipv4Addr;

use chalet::effects::Effects;
use chalet::kernel::secret::Master;
use chalet::services::directory::Directory;
use chalet::services::keys::{Keys, Right};
use reqwest::{Method, StatusCode};

use crate::keys::{at, digits, key};
use crate::kit::engine::Engine;
use crate::kit::oracle::Watch;
use crate::kit::server::{Server, Setup, Tenant, expect};
use crate::kit::soak;
use crate::kit::timing::{LEAK, largest_t, smallest_t};

/// Characters of a secret.
const SECRET: usize = 32;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_nearly_right_takes_as_long_as_any_other() {
    let bench = Engine::Sqlite.bench().await;
    let (shard, directory) = (bench.shard(), Directory::new(bench.db.clone()));
    let keys = Keys::new(bench.db.clone(), bench.clock.clone(), Master::generate());
    let make = async |effects: &mut Effects| {
        let scope = directory.create(effects, "acme", "free").await?;
        let minted = keys.draw(Some(&scope), "k", &[Right::TenantRead.name().to_owned()], None)?;
        keys.store(effects, Some(&scope), &minted).await?;
        Ok(minted.key)
    };
    let right = shard.transact(directory.platform(), make).await.expect("made");
    assert!(keys.authenticate(&right).await.expect("looked up").is_some());
    let mut parts = right.split('_').skip(1);
    let id = parts.next().expect("an id").to_owned();
    let secret = parts.next().expect("a secret")[..SECRET].to_owned();
    let measurements = soak::either(20_000, 1_000_000);
    // So much of its beginning is the right one, and the next character is not.
    let guess = |same: usize| {
        let wrong = if secret[same..].starts_with('x') { "y" } else { "x" };
        key(&id, &(secret[..same].to_owned() + wrong + &digits(SECRET - same - 1)))
    };
    let alike = async |same: usize| {
        let input = |kind| guess([0, same][kind]);
        largest_t(measurements, input, async |guess| {
            assert!(keys.authenticate(&guess).await.expect("looked up").is_none());
        })
        .await
    };
    for same in [8, 16, 31] {
        let t = smallest_t(async || alike(same).await).await;
        println!("the first {same} of {SECRET} characters right: |t| = {t:.2}");
        assert!(t < LEAK, "with {same} characters right it takes another time: |t| = {t:.2}");
    }
    // A comparison that ends at the first difference, beside the same work, is found out.
    let leaky = |guess: &str| guess[20..].bytes().zip(secret.bytes()).all(|(one, other)| black_box(one == other));
    let mut found = 0.0_f64;
    for _ in 0..3 {
        let input = |kind| guess([0, 31][kind]);
        let t = largest_t(measurements, input, async |guess| {
            let none = keys.authenticate(&guess).await.expect("looked up").is_none();
            assert!(none && !black_box(leaky(&guess)));
        });
        found = found.max(t.await);
    }
    println!("with a comparison that ends at the first difference: |t| = {found:.2}");
    assert!(found > LEAK, "a leak is not found: |t| = {found:.2}");
}

/// Whoever guesses over the network has five thousand guesses a minute; what they tell together is what is looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_secret_takes_as_long_as_a_key_that_nobody_has() {
    /// Guesses of an address, below those after which it is told to wait.
    const GUESSES: usize = 90;
    let server = Server::start();
    let watch = Watch::begin(&server).await;
    let acme = server.tenant("acme").await;
    let known = acme.key.split('_').nth(1).expect("an id").to_owned();
    let nobodys = digits(12);
    let mut addresses = 0..=u8::MAX;
    let mut measure = async |guess: &dyn Fn(usize) -> String| {
        let mut guessed = GUESSES;
        let mut client = None;
        let mut clients = Vec::new();
        for _ in 0..24 {
            let client = at(Ipv4Addr::new(127, 0, 4, addresses.next().expect("some are left")));
            let answer = client.get(format!("{}/healthz", server.url)).send().await.expect("an answer");
            assert_eq!(answer.status(), StatusCode::OK);
            clients.push(client);
        }
        let input = |kind| {
            if guessed == GUESSES {
                (guessed, client) = (0, clients.pop());
            }
            guessed += 1;
            let client = client.clone().expect("some are left");
            client.get(format!("{}/v1/tenants/acme", server.url)).bearer_auth(guess(kind))
        };
        largest_t(1_400, input, async |request| {
            assert_eq!(request.send().await.expect("an answer").status(), StatusCode::UNAUTHORIZED);
        })
        .await
    };
    let t = smallest_t(async || measure(&|kind| key([known.as_str(), &nobodys][kind], &digits(SECRET))).await).await;
    println!("a known id or none: |t| = {t:.2}");
    assert!(t < LEAK, "an id that exists takes another time: |t| = {t:.2}");
    // What was never a key is refused before anything is looked up, and everybody may know which those are.
    let mut found = 0.0_f64;
    for _ in 0..3 {
        let never = |kind: usize| key(&digits(12), &digits(SECRET)) + ["", "x"][kind];
        found = found.max(measure(&never).await);
        if found > LEAK {
            break;
        }
    }
    println!("a key or what was never one: |t| = {found:.2}");
    assert!(found > LEAK, "a look-up more is not found: |t| = {found:.2}");
    watch.end(&server).await;
}

/// How differently a server takes its time for what other tenants have and for what nobody has.
struct Others<'s> {
    acme: Tenant<'s>,
    keys: Vec<String>,
    /// Templates of paths, each with what others have, and with what nobody has.
    places: Vec<(&'static str, [Vec<String>; 2])>,
}

impl<'s> Others<'s> {
    async fn on(server: &'s Server) -> Self {
        let (acme, globex) = (server.tenant("acme").await, server.tenant("globex").await);
        let mut keys = Vec::new();
        // So many that none reaches its rate.
        for _ in 0..24 {
            keys.push(acme.mint(&["tenant:read"]).await);
        }
        globex.deploy("guest-hello").await;
        let (mut names, mut invocations) = (Vec::new(), Vec::new());
        for _ in 0..12 {
            let name = nobodys("000000000000");
            server.tenant(&name).await;
            names.push(name);
            let answer = globex.call(Method::GET, "guest-hello", "/").send().await.expect("an answer");
            invocations.push(answer.headers()["chalet-invocation"].to_str().expect("an id").to_owned());
        }
        expect(globex.api(Method::GET, "/invocations"), StatusCode::OK).await;
        // Names that are new each time, as far as the directory remembers; ids that are asked for as often as the others,
        // since it is known for a while that a row is not there.
        let new: Vec<String> = (0..5_000).map(|_| nobodys(&names[0])).collect();
        let ids = invocations.iter().map(|id| nobodys(id)).collect();
        let (called, uncalled) =
            (vec!["guest-hello".to_owned()], (0..5_000).map(|_| nobodys("000000000000")).collect());
        let places = vec![
            ("/v1/tenants/ID/kv/c/k", [names.clone(), new.clone()]),
            ("/v1/tenants/acme/invocations/ID", [invocations, ids]),
            ("/t/ID/guest-hello/", [names, new]),
            ("/t/globex/ID/", [called, uncalled]),
        ];
        Self { acme, keys, places }
    }

    async fn t(&self, place: usize, measurements: usize) -> f64 {
        let (path, ids) = &self.places[place];
        let one_of = |all: &[String]| all[rand::random_range(0..all.len())].clone();
        let input = |kind: usize| {
            let path = path.replace("ID", &one_of(&ids[kind]));
            self.acme.server.anonymous(Method::GET, &path).bearer_auth(one_of(&self.keys))
        };
        largest_t(measurements, input, async |request| {
            assert_eq!(request.send().await.expect("an answer").status(), StatusCode::NOT_FOUND);
        })
        .await
    }
}

/// A name or id of the same form, that nobody has.
fn nobodys(theirs: &str) -> String {
    let hex = |c: char| if c == '-' { c } else { char::from_digit(rand::random_range(0..16), 16).expect("a digit") };
    theirs.chars().map(hex).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_tenant_has_takes_as_long_as_what_nobody_has() {
    let server = Server::start();
    let others = Others::on(&server).await;
    for (place, (path, _)) in others.places.iter().enumerate() {
        let t = smallest_t(async || others.t(place, soak::either(1_500, 20_000)).await).await;
        println!("{path}: |t| = {t:.2}");
        assert!(t < LEAK, "{path} takes another time: |t| = {t:.2}");
    }
    let server = Server::start_with(Setup::sqlite().with("CHALET_BREAK", "names"));
    let others = Others::on(&server).await;
    for (place, (path, _)) in others.places.iter().enumerate().filter(|(_, (path, _))| !path.contains("invocations")) {
        let t = others.t(place, 3_000).await;
        println!("{path} with a look-up of the name: |t| = {t:.2}");
        assert!(t > LEAK, "a leak is not found in {path}: |t| = {t:.2}");
    }
}
