//! The background task that removes what nobody can see any more, and what a deleted tenant leaves.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chalet::effects::{Claim, Compute, Effects, Shard, Space, Verdict, testing};
use chalet::kernel::error::Kind;
use chalet::kernel::tenant::TenantScope;
use chalet::services::directory::Directory;
use chalet::services::invocations::{self, Line, Record};
use chalet::services::plugins::components::{self, UNNAMED_MS};
use chalet::services::plugins::manifest::Manifest;
use chalet::services::plugins::{self, Version};
use chalet::services::sweep::{self, GRACE_MS};

use crate::kit::engine::Engine;
use crate::kit::guests::component;

on_both_engines! {
    expired_rows_of_every_tenant_are_removed_after_the_grace_time,
    a_component_that_no_version_names_is_removed,
    a_tenant_keeps_its_latest_records,
    what_a_deleted_tenant_left_is_removed_in_pieces_between_which_others_commit,
    the_sweeper_works_beside_commits,
}

const KV: Space = Space::named("kv/things");

fn ms(ms: i64) -> Duration {
    Duration::from_millis(ms.unsigned_abs())
}

async fn made(shard: &Shard, directory: &Directory, name: &str) -> TenantScope {
    let make = async |effects: &mut Effects| directory.create(effects, name, "free").await;
    shard.transact(directory.platform(), make).await.expect("made")
}

async fn expired_rows_of_every_tenant_are_removed_after_the_grace_time(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, directory) = (bench.shard(), Directory::new(bench.db.clone()));
    let mut scopes = Vec::new();
    for name in ["acme", "globex"] {
        let scope = made(&shard, &directory, name).await;
        let mut effects = shard.begin(&scope);
        // More than one transaction removes.
        for n in 0..600 {
            effects.put(KV.key(format!("{n}")), "x", Some(effects.now_ms() + 1_000)).expect("staged");
        }
        effects.put(KV.key("stays"), "x", None).expect("staged");
        shard.commit(effects.into_set(None, None)).await.expect("committed");
        scopes.push(scope);
    }
    let left = async || {
        let mut left = Vec::new();
        for scope in &scopes {
            left.push(shard.store().scan(scope, &KV.prefix(""), i64::MIN, 1_000).await.expect("read").1.len());
        }
        left
    };
    bench.clock.advance(ms(GRACE_MS));
    sweep::run(&bench.db, &shard, &directory).await.expect("swept");
    assert_eq!(left().await, [601, 601], "an invocation may still see them");
    bench.clock.advance(ms(2_000));
    sweep::run(&bench.db, &shard, &directory).await.expect("swept");
    assert_eq!(left().await, [1, 1]);
}

async fn a_component_that_no_version_names_is_removed(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, directory) = (bench.shard(), Directory::new(bench.db.clone()));
    let scope = made(&shard, &directory, "acme").await;
    let store = async |bytes: &[u8]| {
        let digest = components::digest(bytes);
        components::store(&bench.db, &scope, &digest, bytes, bench.clock.now_ms()).await.expect("stored");
        digest
    };
    let named = component("notes");
    let (named, unnamed) = (store(&named).await, store(b"an upload that ended between bytes and row").await);
    let manifest = Manifest::from_component(&component("notes")).expect("a manifest");
    let version = Version {
        plugin: "notes".into(),
        version: manifest.version.to_string(),
        digest: named.clone(),
        size: 1,
        handles: Vec::new(),
        imports: Vec::new(),
        held: Vec::new(),
        uploaded_at_ms: 0,
        manifest: serde_json::to_value(&manifest).expect("JSON"),
    };
    let mut effects = shard.begin(&scope);
    plugins::store(&mut effects, &manifest, version).await.expect("staged");
    shard.commit(effects.into_set(None, None)).await.expect("committed");
    let there = async |digest: &str| match components::load(&bench.db, &scope, digest).await {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), Kind::Internal, "{error:?}");
            false
        }
    };
    let sweep = async || sweep::run(&bench.db, &shard, &directory).await.expect("swept");

    bench.clock.advance(ms(UNNAMED_MS - 60_000));
    sweep().await;
    assert!(there(&unnamed).await, "its version row may still come");
    // The same bytes once more: whoever uploads them has the whole time again.
    store(b"an upload that ended between bytes and row").await;
    bench.clock.advance(ms(UNNAMED_MS - 60_000));
    sweep().await;
    assert!(there(&unnamed).await);
    bench.clock.advance(ms(UNNAMED_MS + GRACE_MS));
    sweep().await;
    assert_eq!((there(&named).await, there(&unnamed).await), (true, false));

    let mut effects = shard.begin(&scope);
    plugins::delete(&mut effects, "notes").await.expect("staged");
    shard.commit(effects.into_set(None, None)).await.expect("committed");
    bench.clock.advance(ms(2 * UNNAMED_MS + GRACE_MS));
    sweep().await;
    assert!(!there(&named).await, "a deleted plugin's bytes are removed");
}

async fn a_tenant_keeps_its_latest_records(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, directory) = (bench.shard(), Directory::new(bench.db.clone()));
    let scope = made(&shard, &directory, "acme").await;
    let ids: Vec<String> = (0..620).map(|n| format!("{n:032x}")).collect();
    for some in ids.chunks(310) {
        let mut effects = shard.begin(&scope);
        for id in some {
            let record = Record {
                id: id.clone(),
                plugin: "p".into(),
                version: "1.0.0".into(),
                trigger: "http".into(),
                outcome: "ok".into(),
                code: "200".into(),
                fuel: 0,
                duration_ms: 0,
                host_calls: 0,
                reruns: 0,
                error: None,
                started_at_ms: 0,
            };
            let line = Line { level: "info".into(), message: "hello".into() };
            invocations::record(&mut effects, &record, &[line]).expect("staged");
        }
        shard.commit(effects.into_set(None, None)).await.expect("committed");
    }
    sweep::trim(&bench.db, &shard, &scope, 50).await.expect("trimmed");
    let (left, more) = invocations::list(&mut shard.begin(&scope), None, 100).await.expect("read");
    let left: Vec<_> = left.into_iter().map(|record| record.id).collect();
    assert_eq!((left, more), (ids.iter().rev().take(50).cloned().collect(), false));
    let log = async |id: &str| invocations::log(&mut shard.begin(&scope), id).await.expect("read").len();
    assert_eq!((log(&ids[619]).await, log(&ids[569]).await), (1, 0), "a log goes with its record");
}

/// Commit a row of a tenant.
async fn write(shard: &Shard, scope: &TenantScope, key: &str, expires_at_ms: Option<i64>) {
    let mut effects = shard.begin(scope);
    effects.put(KV.key(key.to_owned()), "x", expires_at_ms).expect("staged");
    let verdict = shard.commit(effects.into_set(None, None)).await.expect("decided");
    assert!(matches!(verdict, Verdict::Committed { .. }), "{verdict:?}");
}

/// Commit for a tenant without a pause while `work` lasts: what it gives, and how many commits there were.
async fn beside_commits<T>(shard: &Shard, scope: &TenantScope, work: impl Future<Output = T>) -> (T, u64) {
    let mut work = pin!(work);
    let mut commits = 0;
    loop {
        tokio::select! {
            biased;
            done = &mut work => return (done, commits),
            () = write(shard, scope, "busy", None) => commits += 1,
        }
    }
}

async fn what_a_deleted_tenant_left_is_removed_in_pieces_between_which_others_commit(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, directory) = (bench.shard(), Directory::new(bench.db.clone()));
    let (gone, stays) = (made(&shard, &directory, "gone").await, made(&shard, &directory, "stays").await);
    let left = async || testing::left(&bench.db, &gone).await.expect("counted");
    // Small rows, of which a piece has 512, and large ones, of which it has four.
    for n in 0..5 {
        let mut effects = shard.begin(&gone);
        for m in 0..900 {
            effects.put(KV.key(format!("{n}/{m}")), "x", None).expect("staged");
        }
        for m in 0..8 {
            effects.put(KV.key(format!("large/{n}/{m}")), vec![b'x'; 256 << 10], None).expect("staged");
        }
        let usage = Compute { plugin: "p".into(), hour_ms: n * Compute::HOUR_MS, ..Compute::default() };
        shard.commit(effects.into_set(None, Some(usage))).await.expect("committed");
    }
    let upload = vec![b'x'; 5 << 20];
    let digest = components::digest(&upload);
    let upload = async || components::store(&bench.db, &gone, &digest, &upload, bench.clock.now_ms()).await;
    upload().await.expect("stored");
    let claim = bench.db.claims().claim(&gone, "a request that ended with its node", b"", ms(60_000)).await;
    let Claim::Claimed(_held) = claim.expect("answered") else { panic!("nobody holds it") };
    let all = left().await;
    directory.purge(&shard, gone.id()).await.expect("looked at");
    assert_eq!(left().await, all, "a tenant that is there keeps what it has");

    let delete = async |effects: &mut Effects| directory.delete(effects, &gone).await;
    shard.transact(directory.platform(), delete).await.expect("deleted");
    assert_eq!(left().await, all - 1, "all but its head");
    // Ended in the middle, as by a crash.
    let some = async {
        let mut seen = vec![left().await];
        while seen.last().is_some_and(|rows| *rows > all / 2) {
            seen.push(left().await);
        }
        seen.dedup();
        seen
    };
    let (seen, _) = beside_commits(&shard, &stays, async {
        tokio::select! {
            purged = directory.purge(&shard, gone.id()) => panic!("it was over at once: {purged:?}"),
            seen = some => seen,
        }
    })
    .await;
    assert!(seen.len() >= 3, "it went in one piece: {seen:?}");
    let commits = || shard.counts().commits.load(Ordering::Relaxed);
    let before = commits();
    let (purged, others) = beside_commits(&shard, &stays, directory.purge(&shard, gone.id())).await;
    purged.expect("removed");
    assert_eq!(left().await, 0);
    let pieces = commits() - before - others;
    println!("{others} commits of another tenant beside {pieces} pieces");
    assert!(others >= 5 && pieces >= 10, "{others} commits beside {pieces} pieces");

    // An upload that was on its way; the sweeper comes for it when none can be any more.
    upload().await.expect("stored");
    bench.clock.advance(ms(GRACE_MS + 1_000));
    let (swept, _) = beside_commits(&shard, &stays, sweep::run(&bench.db, &shard, &directory)).await;
    swept.expect("swept");
    assert_eq!((left().await, testing::due(&bench.db, &gone).await.expect("asked")), (0, None));
}

/// On SQLite, whoever reads and then writes in one transaction is refused when a commit came between.
async fn the_sweeper_works_beside_commits(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, directory) = (bench.shard(), Directory::new(bench.db.clone()));
    let (swept, busy) = (made(&shard, &directory, "swept").await, made(&shard, &directory, "busy").await);
    for n in 0..20 {
        write(&shard, &swept, &format!("{n}"), Some(bench.clock.now_ms() + 1_000)).await;
        bench.clock.advance(ms(GRACE_MS + 2_000));
        let (done, _) = beside_commits(&shard, &busy, sweep::run(&bench.db, &shard, &directory)).await;
        done.unwrap_or_else(|error| panic!("run {n}: {error:?}"));
        assert_eq!(shard.store().scan(&swept, &KV.prefix(""), i64::MIN, 10).await.expect("read").1.len(), 0);
    }
}
