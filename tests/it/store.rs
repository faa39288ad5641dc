//! What a transaction promises, held by both engines: each behaviour below runs on SQLite and on PostgreSQL.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::kit::engine::Engine;
use crate::kit::store::Bench;
use bytes::Bytes;
use chalet::effects::{
    Breaks, Claim, Compute, Effects, KEY_BYTES, Key, Op, ROWS_READ, Row, STAGED_BYTES, STAGED_ROWS, Set, Shard, Space,
    Value, Verdict, Write,
};
use chalet::kernel::error::Kind;
use chalet::kernel::tenant::{Plan, TenantScope};
use futures_util::future::{join, join_all};
use futures_util::poll;

/// A space whose rows the quota counts, as a tenant's own collections are.
const KV: Space = Space::named("kv/things");
/// A space of the host's own.
const FREE: Space = Space::named("things");

on_both_engines! {
    a_commit_is_seen_whole_by_whoever_begins_after_it,
    a_snapshot_stays_while_others_commit,
    a_transaction_sees_what_it_staged,
    a_missing_tenant_is_not_found,
    a_row_written_by_another_between_two_reads_ends_the_reader,
    a_lost_update_is_a_conflict,
    write_skew_is_a_conflict,
    blind_writes_do_not_conflict,
    an_absent_read_is_a_read,
    a_key_that_was_deleted_and_written_again_has_a_new_version,
    a_page_merges_what_is_staged,
    pages_cover_a_range_once,
    a_prefix_ends_where_its_keys_end,
    phantoms_are_conflicts,
    a_change_behind_a_page_is_no_conflict,
    expiry_is_judged_by_the_transaction_s_clock_and_is_no_conflict,
    the_sweeper_removes_only_what_is_long_gone,
    removing_what_nobody_saw_is_no_conflict,
    additions_do_not_conflict,
    additions_to_a_counter_that_expires_are_judged_by_each_one_s_clock,
    an_addition_to_something_else_fails_without_harm,
    additions_of_one_batch_fail_one_by_one,
    operations_on_one_key_fold_into_one,
    a_full_store_takes_deletes_and_nothing_larger,
    the_quota_is_shared_by_a_batch,
    a_poisoned_set_leaves_sixty_three_others_alone,
    sets_of_a_batch_see_each_other,
    limits_are_refused_where_they_are_passed,
    a_large_value_does_not_slow_its_neighbours_down,
    a_quiet_tenants_commit_goes_before_most_of_a_busy_ones,
    keys_come_in_the_order_of_their_bytes,
    commits_that_end_together_share_a_transaction,
    reads_that_come_together_share_statements,
    reading_nothing_and_writing_nothing_asks_nobody,
    tenants_never_see_each_other,
    usage_is_counted_with_the_commit,
    expiring_rows_are_announced_to_the_sweeper,
    sixty_four_writers_of_one_key_lose_nothing,
    the_directory_speaks_both_dialects,
    a_claim_is_held_by_one,
    claims_that_come_together_are_answered_each,
    a_claim_ends_with_its_caller,
}

fn text(row: Option<Row>) -> Option<String> {
    row.map(|row| String::from_utf8_lossy(&row.value.to_bytes()).into_owned())
}

async fn get(shard: &Shard, scope: &TenantScope, key: &Key) -> Option<String> {
    text(shard.begin(scope).get(key).await.expect("a key can be read"))
}

async fn put(shard: &Shard, scope: &TenantScope, key: &Key, value: &str) {
    let mut effects = shard.begin(scope);
    effects.put(key.clone(), value.to_owned(), None).expect("staged");
    committed(shard, effects).await;
}

async fn commit(shard: &Shard, effects: Effects) -> Verdict {
    shard.commit(effects.into_set(None, None)).await.expect("the committer takes it")
}

async fn committed(shard: &Shard, effects: Effects) -> u64 {
    match commit(shard, effects).await {
        Verdict::Committed { tag } => tag.seq,
        other => panic!("not committed: {other:?}"),
    }
}

async fn conflicted(shard: &Shard, effects: Effects) -> Key {
    match commit(shard, effects).await {
        Verdict::Conflict { key } => key,
        other => panic!("no conflict: {other:?}"),
    }
}

/// These sets as one batch.
async fn batch(shard: &Shard, sets: Vec<Effects>) -> Vec<Verdict> {
    let sets: Vec<Set> = sets.into_iter().map(|effects| effects.into_set(None, None)).collect();
    shard.store().commit(&sets, Breaks::default()).await.expect("the batch runs")
}

fn refusal(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Refused(error) => error.code(),
        other => panic!("not refused: {other:?}"),
    }
}

fn is_committed(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Committed { .. })
}

async fn listed(effects: &mut Effects, range: &chalet::effects::Range, limit: usize) -> (Vec<String>, bool) {
    let (rows, more) = effects.list(range, limit).await.expect("a range can be read");
    (rows.into_iter().map(|(key, _)| String::from_utf8_lossy(&key).into_owned()).collect(), more)
}

async fn a_commit_is_seen_whole_by_whoever_begins_after_it(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    let mut effects = shard.begin(&scope);
    effects.put(KV.key("a"), "1", None).expect("staged");
    effects.put(FREE.key("b"), "2", None).expect("staged");
    effects.add(KV.key("n"), 3).expect("staged");
    let seq = committed(&shard, effects).await;
    assert_eq!(seq, 1, "commits are numbered from one");
    // A second shard has a cache of its own.
    for shard in [&shard, &bench.shard()] {
        let mut effects = shard.begin(&scope);
        let rows = effects.get_many(&[KV.key("a"), FREE.key("b"), KV.key("n"), KV.key("none")]).await.expect("read");
        assert!(rows[..3].iter().flatten().all(|row| row.version == 1) && rows[..3].iter().flatten().count() == 3);
        assert_eq!(
            rows.into_iter().map(text).collect::<Vec<_>>(),
            [Some("1".into()), Some("2".into()), Some("3".into()), None]
        );
    }
    let (tag, bytes) = shard.store().head(&scope).await.expect("a head");
    assert_eq!((tag.epoch, tag.seq, bytes), (1, 1, 1 + 1 + 1 + 8), "only a tenant's own collections count");
}

async fn a_snapshot_stays_while_others_commit(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    put(&shard, &scope, &KV.key("a"), "old").await;
    put(&shard, &scope, &KV.key("b"), "old").await;
    let mut reader = shard.begin(&scope);
    assert_eq!(text(reader.get(&KV.key("a")).await.expect("read")).as_deref(), Some("old"));
    put(&shard, &scope, &KV.key("c"), "new").await;
    // The head has moved, what was read has not: the reader goes on, and reads again what it read before.
    assert_eq!(text(reader.get(&KV.key("b")).await.expect("read")).as_deref(), Some("old"));
    assert_eq!(text(reader.get(&KV.key("c")).await.expect("moved to the present")).as_deref(), Some("new"));
    put(&shard, &scope, &KV.key("a"), "new").await;
    assert_eq!(text(reader.get(&KV.key("a")).await.expect("repeatable")).as_deref(), Some("old"));
    assert!(reader.stale().is_none());
}

async fn a_transaction_sees_what_it_staged(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    put(&shard, &scope, &KV.key("a"), "stored").await;
    let mut effects = shard.begin(&scope);
    effects.put(KV.key("a"), "staged", None).expect("staged");
    assert_eq!(text(effects.get(&KV.key("a")).await.expect("read")).as_deref(), Some("staged"));
    effects.delete(KV.key("a")).expect("staged");
    assert_eq!(effects.get(&KV.key("a")).await.expect("read"), None);
    effects.add(KV.key("a"), 4).expect("after a delete a counter may begin");
    effects.add(KV.key("a"), 1).expect("staged");
    assert_eq!(text(effects.get(&KV.key("a")).await.expect("read")).as_deref(), Some("5"));
    effects.add(KV.key("n"), 2).expect("staged");
    assert_eq!(text(effects.get(&KV.key("n")).await.expect("read")).as_deref(), Some("2"));
    effects.sweep(KV.key("s"), 0).expect("staged");
    assert_eq!(effects.get(&KV.key("s")).await.expect("read"), None);
    assert_eq!(effects.len(), 3);
    committed(&shard, effects).await;
    assert_eq!(get(&shard, &scope, &KV.key("a")).await.as_deref(), Some("5"));
    assert_eq!(get(&shard, &scope, &KV.key("n")).await.as_deref(), Some("2"));
}

async fn a_missing_tenant_is_not_found(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, ghost) = (bench.shard(), Bench::sqlite().await.tenant().await);
    let error = shard.begin(&ghost).get(&KV.key("a")).await.expect_err("no such tenant");
    assert_eq!(error.kind(), Kind::NotFound);
    let error = shard.begin(&ghost).list(&KV.prefix(""), 10).await.expect_err("no such tenant");
    assert_eq!(error.kind(), Kind::NotFound);
    let mut effects = shard.begin(&ghost);
    effects.put(KV.key("a"), "x", None).expect("staged");
    assert_eq!(refusal(&commit(&shard, effects).await), "not_found");
}

async fn a_row_written_by_another_between_two_reads_ends_the_reader(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    put(&shard, &scope, &KV.key("a"), "old").await;
    let mut reader = shard.begin(&scope);
    reader.get(&KV.key("a")).await.expect("read");
    let mut other = shard.begin(&scope);
    other.put(KV.key("a"), "new", None).expect("staged");
    other.put(KV.key("b"), "new", None).expect("staged");
    committed(&shard, other).await;
    let error = reader.get(&KV.key("b")).await.expect_err("a is old and b is new: no state was ever so");
    assert_eq!((error.kind(), reader.stale()), (Kind::Conflict, Some(&KV.key("a"))));
    reader.get(&KV.key("a")).await.expect_err("an ended reader answers nothing more");
    reader.list(&KV.prefix(""), 10).await.expect_err("an ended reader answers nothing more");
    let mut again = reader.again();
    assert_eq!(again.now_ms(), reader.now_ms());
    assert_eq!(text(again.get(&KV.key("a")).await.expect("read")).as_deref(), Some("new"));
}

async fn a_lost_update_is_a_conflict(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    put(&shard, &scope, &KV.key("a"), "0").await;
    let (mut one, mut two) = (shard.begin(&scope), shard.begin(&scope));
    for effects in [&mut one, &mut two] {
        effects.get(&KV.key("a")).await.expect("read");
        effects.put(KV.key("a"), "1", None).expect("staged");
    }
    committed(&shard, one).await;
    assert_eq!(conflicted(&shard, two).await, KV.key("a"));
    assert_eq!(shard.counts().conflicts.load(Ordering::Relaxed), 1);
}

async fn write_skew_is_a_conflict(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    for together in [false, true] {
        let (mut one, mut two) = (shard.begin(&scope), shard.begin(&scope));
        for effects in [&mut one, &mut two] {
            effects.get_many(&[KV.key("a"), KV.key("b")]).await.expect("read");
        }
        one.put(KV.key("a"), "x", None).expect("staged");
        two.put(KV.key("b"), "x", None).expect("staged");
        if together {
            let verdicts = batch(&shard, vec![one, two]).await;
            assert!(
                is_committed(&verdicts[0]) && matches!(&verdicts[1], Verdict::Conflict { key } if *key == KV.key("a"))
            );
        } else {
            committed(&shard, one).await;
            assert_eq!(conflicted(&shard, two).await, KV.key("a"));
        }
    }
}

async fn blind_writes_do_not_conflict(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    let sets = ["1", "2", "3"].map(|value| {
        let mut effects = shard.begin(&scope);
        effects.put(KV.key("a"), value, None).expect("staged");
        effects
    });
    assert!(batch(&shard, sets.into()).await.iter().all(is_committed));
    let row = bench.shard().begin(&scope).get(&KV.key("a")).await.expect("read").expect("there");
    assert_eq!((row.version, row.value), (3, Value::Bytes("3".into())), "the last of the batch stays");
}

async fn an_absent_read_is_a_read(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    let mut effects = shard.begin(&scope);
    assert_eq!(effects.get(&KV.key("a")).await.expect("read"), None);
    effects.put(KV.key("b"), "a was absent", None).expect("staged");
    put(&shard, &scope, &KV.key("a"), "now there").await;
    assert_eq!(conflicted(&shard, effects).await, KV.key("a"));
}

async fn a_key_that_was_deleted_and_written_again_has_a_new_version(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    put(&shard, &scope, &KV.key("a"), "same").await;
    let mut effects = shard.begin(&scope);
    effects.get(&KV.key("a")).await.expect("read");
    effects.put(KV.key("b"), "x", None).expect("staged");
    let mut delete = shard.begin(&scope);
    delete.delete(KV.key("a")).expect("staged");
    committed(&shard, delete).await;
    put(&shard, &scope, &KV.key("a"), "same").await;
    assert_eq!(conflicted(&shard, effects).await, KV.key("a"));
}

async fn a_page_merges_what_is_staged(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    for key in ["b", "d", "f", "h"] {
        put(&shard, &scope, &KV.key(key), "stored").await;
    }
    let mut effects = shard.begin(&scope);
    effects.put(KV.key("a"), "staged", None).expect("staged");
    effects.delete(KV.key("d")).expect("staged");
    effects.put(KV.key("f"), "staged", None).expect("staged");
    effects.put(KV.key("g"), "staged", None).expect("staged");
    effects.put(KV.key("z"), "staged", None).expect("staged");
    effects.sweep(KV.key("h"), 0).expect("staged");
    assert_eq!(listed(&mut effects, &KV.prefix(""), 3).await, (vec!["a".into(), "b".into(), "f".into()], true));
    let rest = KV.prefix("").behind(b"f");
    assert_eq!(listed(&mut effects, &rest, 3).await, (vec!["g".into(), "h".into(), "z".into()], false));
    let (rows, _) = effects.list(&KV.prefix("f"), 3).await.expect("read");
    assert_eq!((rows[0].1.version, rows.len()), (0, 1), "a staged row has no version yet");
    assert_eq!(listed(&mut effects, &KV.prefix(""), 0).await, (vec![], true));
    let mut counters = shard.begin(&scope);
    counters.add(KV.key("i"), 7).expect("staged");
    let (rows, more) = counters.list(&KV.prefix("i"), 1).await.expect("read");
    assert_eq!((rows[0].1.value.clone(), more), (Value::Counter(7), false));
    counters.add(KV.key("b"), 1).expect("not known yet to be no counter");
    assert_eq!(counters.list(&KV.prefix("b"), 1).await.expect_err("no counter").code(), "not_a_counter");
}

async fn pages_cover_a_range_once(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    let mut effects = shard.begin(&scope);
    for n in 0..25 {
        effects.put(KV.key(format!("k{n:02}")), "x", None).expect("staged");
    }
    committed(&shard, effects).await;
    for limit in [1, 4, 5, 24, 25, 26] {
        let mut effects = shard.begin(&scope);
        effects.delete(KV.key("k00")).expect("staged");
        effects.delete(KV.key("k07")).expect("staged");
        let (mut all, mut range) = (Vec::new(), KV.prefix("k"));
        loop {
            let (page, more) = listed(&mut effects, &range, limit).await;
            assert!(page.len() <= limit && (!more || page.len() == limit), "{limit}: {page:?}");
            all.extend(page);
            if !more {
                break;
            }
            range = range.behind(all.last().expect("a page with more has a row").as_bytes());
        }
        let expected: Vec<String> = (0..25).filter(|n| ![0, 7].contains(n)).map(|n| format!("k{n:02}")).collect();
        assert_eq!(all, expected, "pages of {limit}");
    }
}

async fn a_prefix_ends_where_its_keys_end(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    let mut effects = shard.begin(&scope);
    let longest = vec![0xff; KEY_BYTES];
    let keys: [&[u8]; 8] = [b"", b"a", b"a\0", b"a\xff", b"a\xff\xff", b"b", b"\xff", &longest];
    for key in keys {
        effects.put(KV.key(key.to_vec()), "x", None).expect("staged");
        effects.put(FREE.key(key.to_vec()), "another space", None).expect("staged");
    }
    committed(&shard, effects).await;
    for (prefix, expected) in [
        (b"".as_slice(), keys.as_slice()),
        (b"a", &keys[1..5]),
        (b"a\xff", &keys[3..5]),
        (b"\xff", &keys[6..]),
        (b"c", &[]),
    ] {
        let mut effects = shard.begin(&scope);
        let (rows, more) = effects.list(&KV.prefix(prefix.to_vec()), 100).await.expect("read");
        let found: Vec<&[u8]> = rows.iter().map(|(key, _)| &key[..]).collect();
        assert_eq!((found.as_slice(), more), (expected, false), "{prefix:?}");
    }
}

async fn phantoms_are_conflicts(engine: Engine) {
    let bench = engine.bench().await;
    let shard = bench.shard();
    type Change = fn(&mut Effects);
    let changes: [(&str, Change); 5] = [
        ("insert", |effects| effects.put(KV.key("k5"), "x", None).expect("staged")),
        ("delete the newest", |effects| effects.delete(KV.key("k3")).expect("staged")),
        ("delete another", |effects| effects.delete(KV.key("k1")).expect("staged")),
        ("replace", |effects| effects.put(KV.key("k1"), "x", None).expect("staged")),
        ("delete one, insert one", |effects| {
            effects.delete(KV.key("k3")).expect("staged");
            effects.put(KV.key("k4"), "x", None).expect("staged");
        }),
    ];
    for (name, change) in changes {
        for together in [false, true] {
            let scope = bench.tenant().await;
            for key in ["k1", "k2", "k3"] {
                put(&shard, &scope, &KV.key(key), "x").await;
            }
            let mut effects = shard.begin(&scope);
            effects.list(&KV.prefix("k"), 10).await.expect("read");
            effects.put(KV.key("sum"), "3", None).expect("staged");
            let mut other = shard.begin(&scope);
            change(&mut other);
            if together {
                let verdicts = batch(&shard, vec![other, effects]).await;
                assert!(
                    is_committed(&verdicts[0]) && matches!(verdicts[1], Verdict::Conflict { .. }),
                    "{name}: {verdicts:?}"
                );
            } else {
                committed(&shard, other).await;
                assert_eq!(conflicted(&shard, effects).await.space, KV, "{name}");
            }
        }
    }
    // An empty range is read as well.
    let scope = bench.tenant().await;
    let mut effects = shard.begin(&scope);
    effects.list(&KV.prefix("k"), 10).await.expect("read");
    effects.put(KV.key("sum"), "0", None).expect("staged");
    put(&shard, &scope, &KV.key("k"), "x").await;
    conflicted(&shard, effects).await;
}

async fn a_change_behind_a_page_is_no_conflict(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    for key in ["a", "b", "c", "d", "e"] {
        put(&shard, &scope, &KV.key(key), "x").await;
    }
    let mut effects = shard.begin(&scope);
    assert_eq!(listed(&mut effects, &KV.prefix(""), 2).await, (vec!["a".into(), "b".into()], true));
    effects.put(FREE.key("sum"), "2", None).expect("staged");
    put(&shard, &scope, &KV.key("e"), "changed").await;
    put(&shard, &scope, &KV.key("f"), "new").await;
    put(&shard, &scope, &FREE.key("a"), "another space").await;
    committed(&shard, effects).await;
}

async fn expiry_is_judged_by_the_transaction_s_clock_and_is_no_conflict(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    let begun_ms = shard.clock().now_ms();
    let mut effects = shard.begin(&scope);
    effects.put(KV.key("a"), "short", Some(begun_ms + 60_000)).expect("staged");
    effects.put(KV.key("b"), "long", Some(begun_ms + 600_000)).expect("staged");
    committed(&shard, effects).await;
    let mut before = shard.begin(&scope);
    assert_eq!(listed(&mut before, &KV.prefix(""), 10).await.0, ["a", "b"]);
    before.put(FREE.key("seen"), "both", None).expect("staged");
    bench.clock.advance(Duration::from_secs(120));
    // Time has passed for the clock, not for the transaction.
    assert_eq!(text(before.get(&KV.key("a")).await.expect("read")).as_deref(), Some("short"));
    committed(&shard, before).await;
    for shard in [&shard, &bench.shard()] {
        let mut after = shard.begin(&scope);
        assert_eq!(after.get(&KV.key("a")).await.expect("read"), None);
        assert_eq!(listed(&mut after, &KV.prefix(""), 10).await.0, ["b"]);
        after.put(FREE.key("seen"), "one", None).expect("staged");
        committed(shard, after).await;
    }
    // An expired row is absent to a reader, and a counter begins anew.
    let mut effects = shard.begin(&scope);
    effects.add(KV.key("a"), 5).expect("staged");
    committed(&shard, effects).await;
    let row = bench.shard().begin(&scope).get(&KV.key("a")).await.expect("read").expect("there");
    assert_eq!((row.value, row.expires_at_ms), (Value::Counter(5), None));
}

async fn the_sweeper_removes_only_what_is_long_gone(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    let now_ms = shard.clock().now_ms();
    let mut effects = shard.begin(&scope);
    effects.put(KV.key("gone"), "x", Some(now_ms - 10)).expect("staged");
    effects.put(KV.key("late"), "x", Some(now_ms + 10_000_000)).expect("staged");
    effects.put(KV.key("ever"), "x", None).expect("staged");
    committed(&shard, effects).await;
    let (_, full) = shard.store().head(&scope).await.expect("a head");
    let mut sweep = shard.begin(&scope);
    sweep.put(KV.key("anew"), "x", None).expect("staged");
    for key in ["gone", "late", "ever", "never", "anew"] {
        sweep.sweep(KV.key(key), now_ms - 10).expect("staged");
    }
    committed(&shard, sweep).await;
    let (_, rows) = shard.store().scan(&scope, &KV.prefix(""), i64::MIN, 10).await.expect("read");
    let keys: Vec<&[u8]> = rows.iter().map(|(key, _)| &key[..]).collect();
    assert_eq!(keys, [b"anew".as_slice(), b"ever", b"late"]);
    let (_, left) = shard.store().head(&scope).await.expect("a head");
    assert_eq!(full - left, 0, "what is swept no longer counts, what was written does");
}

async fn removing_what_nobody_saw_is_no_conflict(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    let now_ms = shard.clock().now_ms();
    let mut effects = shard.begin(&scope);
    effects.put(KV.key("expired"), "x", Some(now_ms - 1_000)).expect("staged");
    committed(&shard, effects).await;
    let mut reader = shard.begin(&scope);
    assert_eq!(reader.get(&KV.key("expired")).await.expect("read"), None);
    assert!(listed(&mut reader, &KV.prefix(""), 10).await.0.is_empty());
    reader.put(FREE.key("x"), "x", None).expect("staged");
    let mut sweep = shard.begin(&scope);
    sweep.sweep(KV.key("expired"), now_ms - 500).expect("staged");
    sweep.delete(KV.key("never there")).expect("staged");
    let verdicts = batch(&shard, vec![sweep, reader]).await;
    assert!(verdicts.iter().all(is_committed), "{verdicts:?}");
}

async fn additions_do_not_conflict(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    let mut sets = Vec::new();
    for n in 0..64 {
        let mut effects = shard.begin(&scope);
        effects.add(KV.key("n"), 1).expect("staged");
        effects.add(KV.key("m"), if n % 2 == 0 { 5 } else { -5 }).expect("staged");
        effects.put(KV.key(format!("own{n}")), "x", None).expect("staged");
        sets.push(effects);
    }
    let verdicts = batch(&shard, sets).await;
    let numbers: Vec<u64> = verdicts
        .iter()
        .map(|verdict| match verdict {
            Verdict::Committed { tag } => tag.seq,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(numbers, (1..=64).collect::<Vec<_>>());
    let mut effects = bench.shard().begin(&scope);
    let row = effects.get(&KV.key("n")).await.expect("read").expect("there");
    assert_eq!((row.value, row.version), (Value::Counter(64), 64));
    assert_eq!(effects.get(&KV.key("m")).await.expect("read").expect("there").value, Value::Counter(0));
    let (_, bytes) = shard.store().head(&scope).await.expect("a head");
    assert_eq!(bytes, 2 * 9 + (0..64).map(|n| format!("own{n}").len() as u64 + 1).sum::<u64>());
}

async fn additions_to_a_counter_that_expires_are_judged_by_each_one_s_clock(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    let expires_at_ms = Some(1_000);
    let set = |now_ms, op| {
        let mut set = shard.begin(&scope).into_set(None, None);
        set.facts.now_ms = now_ms;
        set.writes.push(Write { key: KV.key("n"), op });
        set
    };
    let sets = [
        set(500, Op::Put { value: Value::Counter(10), expires_at_ms }),
        set(600, Op::Add(1)),
        set(700, Op::Add(1)),
        set(2_000, Op::Add(100)),
        set(900, Op::Add(1)),
    ];
    for (sets, expected) in [(&sets[..3], (12, expires_at_ms)), (&sets[3..], (101, None))] {
        let verdicts = shard.store().commit(sets, Breaks::default()).await.expect("the batch runs");
        assert!(verdicts.iter().all(is_committed), "{verdicts:?}");
        let (_, rows) = shard.store().read(&scope, &[KV.key("n")]).await.expect("read");
        let row = rows[0].clone().expect("there");
        assert_eq!((row.value, row.expires_at_ms), (Value::Counter(expected.0), expected.1));
    }
}

async fn an_addition_to_something_else_fails_without_harm(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    put(&shard, &scope, &KV.key("bytes"), "x").await;
    let mut effects = shard.begin(&scope);
    effects.add(KV.key("max"), i64::MAX).expect("staged");
    effects.add(KV.key("min"), i64::MIN).expect("staged");
    committed(&shard, effects).await;
    for (key, delta, code) in
        [("bytes", 1, "not_a_counter"), ("max", 1, "counter_overflow"), ("min", -1, "counter_overflow")]
    {
        let mut effects = shard.begin(&scope);
        effects.add(KV.key(key), delta).expect("nobody has looked yet");
        effects.put(KV.key("beside"), "x", None).expect("staged");
        assert_eq!(refusal(&commit(&shard, effects).await), code);
        let mut looked = shard.begin(&scope);
        looked.get(&KV.key(key)).await.expect("read");
        if looked.add(KV.key(key), delta).is_ok() {
            assert_eq!(looked.get(&KV.key(key)).await.expect_err("overflow").code(), code);
        }
    }
    assert_eq!(get(&shard, &scope, &KV.key("beside")).await, None);
    let mut effects = shard.begin(&scope);
    effects.add(KV.key("n"), i64::MAX).expect("staged");
    assert_eq!(effects.add(KV.key("n"), 1).expect_err("overflow").code(), "counter_overflow");
}

async fn additions_of_one_batch_fail_one_by_one(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    let add = |delta| {
        let mut effects = shard.begin(&scope);
        effects.add(KV.key("n"), delta).expect("staged");
        effects
    };
    let verdicts = batch(&shard, vec![add(i64::MAX), add(1), add(-5), add(5), add(i64::MIN)]).await;
    assert_eq!(verdicts.iter().map(is_committed).collect::<Vec<_>>(), [true, false, true, true, true], "{verdicts:?}");
    assert_eq!(refusal(&verdicts[1]), "counter_overflow");
    assert_eq!(get(&bench.shard(), &scope, &KV.key("n")).await.as_deref(), Some("-1"));
}

async fn operations_on_one_key_fold_into_one(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    let stage = |run: &dyn Fn(&mut Effects)| {
        let mut effects = shard.begin(&scope);
        run(&mut effects);
        effects
    };
    let verdicts = batch(
        &shard,
        vec![
            stage(&|e| e.put(KV.key("a"), "x", None).expect("staged")),
            stage(&|e| e.delete(KV.key("a")).expect("staged")),
            stage(&|e| e.add(KV.key("a"), 2).expect("staged")),
            stage(&|e| e.add(KV.key("a"), 3).expect("staged")),
            stage(&|e| e.put(KV.key("b"), "12345", None).expect("staged")),
            stage(&|e| e.put(KV.key("b"), "1", None).expect("staged")),
            stage(&|e| e.add(KV.key("b"), 1).expect("staged")),
            stage(&|e| e.delete(KV.key("c")).expect("staged")),
            stage(&|e| {
                e.put(KV.key("d"), "x", None).expect("staged");
                e.delete(KV.key("d")).expect("staged");
                e.put(KV.key("d"), "yy", None).expect("staged");
            }),
        ],
    )
    .await;
    let codes: Vec<bool> = verdicts.iter().map(is_committed).collect();
    assert_eq!(codes, [true, true, true, true, true, true, false, true, true], "{verdicts:?}");
    let (_, rows) =
        shard.store().read(&scope, &[KV.key("a"), KV.key("b"), KV.key("c"), KV.key("d")]).await.expect("read");
    let seen: Vec<Option<(Value, u64)>> = rows.into_iter().map(|row| row.map(|row| (row.value, row.version))).collect();
    assert_eq!(
        seen,
        [Some((Value::Counter(5), 4)), Some((Value::Bytes("1".into()), 6)), None, Some((Value::Bytes("yy".into()), 8)),]
    );
    let (tag, bytes) = shard.store().head(&scope).await.expect("a head");
    assert_eq!((tag.seq, bytes), (8, 9 + 2 + 3));
}

async fn a_full_store_takes_deletes_and_nothing_larger(engine: Engine) {
    let bench = engine.bench().await;
    let scope = bench.tenant_on(Plan { storage_bytes: 100, ..Plan::default() }).await;
    let shard = bench.shard();
    put(&shard, &scope, &KV.key("a"), &"x".repeat(99)).await;
    let mut effects = shard.begin(&scope);
    effects.put(KV.key("b"), "", None).expect("staged");
    let verdict = commit(&shard, effects).await;
    assert_eq!(refusal(&verdict), "storage_exhausted");
    assert!(matches!(verdict, Verdict::Refused(error) if error.kind() == Kind::Exhausted));
    let mut effects = shard.begin(&scope);
    effects.put(FREE.key("record"), "y".repeat(1_000), None).expect("staged");
    committed(&shard, effects).await;
    put(&shard, &scope, &KV.key("a"), &"x".repeat(98)).await;
    put(&shard, &scope, &KV.key("b"), "").await;
    let mut effects = shard.begin(&scope);
    effects.delete(KV.key("a")).expect("staged");
    effects.put(KV.key("c"), "z".repeat(98), None).expect("staged");
    committed(&shard, effects).await;
    // Under a smaller plan the store is too full, and still shrinks.
    let smaller = chalet::effects::testing::with_plan(&scope, Plan { storage_bytes: 10, ..Plan::default() });
    let mut effects = shard.begin(&smaller);
    effects.put(KV.key("c"), "z".repeat(90), None).expect("staged");
    committed(&shard, effects).await;
    let (_, bytes) = shard.store().head(&scope).await.expect("a head");
    assert_eq!(bytes, 1 + 91);
}

async fn the_quota_is_shared_by_a_batch(engine: Engine) {
    let bench = engine.bench().await;
    let scope = bench.tenant_on(Plan { storage_bytes: 100, ..Plan::default() }).await;
    let shard = bench.shard();
    let sets = [50, 60, 40, 20, 7].map(|bytes| {
        let mut effects = shard.begin(&scope);
        effects.put(KV.key(format!("k{bytes:02}")), "x".repeat(bytes - 3), None).expect("staged");
        effects
    });
    let verdicts = batch(&shard, sets.into()).await;
    assert_eq!(verdicts.iter().map(is_committed).collect::<Vec<_>>(), [true, false, true, false, true], "{verdicts:?}");
    let (tag, bytes) = shard.store().head(&scope).await.expect("a head");
    assert_eq!((tag.seq, bytes), (3, 97), "a refused set takes no number");
}

async fn a_poisoned_set_leaves_sixty_three_others_alone(engine: Engine) {
    let bench = engine.bench().await;
    let scope = bench.tenant_on(Plan { storage_bytes: 100_000, ..Plan::default() }).await;
    let shard = bench.shard();
    put(&shard, &scope, &KV.key("bytes"), "x").await;
    let mut full = shard.begin(&scope);
    full.add(KV.key("full"), i64::MAX).expect("staged");
    committed(&shard, full).await;
    let mut seen = shard.begin(&scope);
    seen.get(&KV.key("bytes")).await.expect("read");
    seen.put(KV.key("seen"), "x", None).expect("staged");
    put(&shard, &scope, &KV.key("bytes"), "y").await;
    let mut poisons: Vec<(Effects, &str)> = Vec::new();
    let mut stage = |code, run: &dyn Fn(&mut Effects)| {
        let mut effects = shard.begin(&scope);
        run(&mut effects);
        poisons.push((effects, code));
    };
    stage("counter_overflow", &|e| e.add(KV.key("full"), 1).expect("staged"));
    stage("not_a_counter", &|e| e.add(KV.key("bytes"), 1).expect("staged"));
    stage("storage_exhausted", &|e| e.put(KV.key("large"), vec![0; 100_000], None).expect("staged"));
    poisons.push((seen, "conflict"));
    for (round, (poison, code)) in poisons.into_iter().enumerate() {
        let mut sets = Vec::new();
        for n in 0..63 {
            let mut effects = shard.begin(&scope);
            effects.put(KV.key(format!("r{round}n{n}")), "good \0 \u{fffd}", None).expect("staged");
            effects.add(KV.key("hits"), 1).expect("staged");
            sets.push(effects);
        }
        sets.insert(31, poison);
        let mut verdicts = batch(&shard, sets).await;
        let bad = verdicts.remove(31);
        assert!(verdicts.iter().all(is_committed), "{code}: {verdicts:?}");
        match bad {
            Verdict::Conflict { .. } => assert_eq!(code, "conflict"),
            bad => assert_eq!(refusal(&bad), code),
        }
        assert_eq!(get(&bench.shard(), &scope, &KV.key("hits")).await, Some((63 * (round + 1)).to_string()));
    }
    // What no database could hold as it is meant does not get that far.
    let mut effects = shard.begin(&scope);
    let zero = Space::under("kv", "a\0b");
    assert_eq!(effects.put(zero.key("k"), "x", None).expect_err("refused").kind(), Kind::Invalid);
    assert_eq!(effects.get(&zero.key("k")).await.expect_err("refused").kind(), Kind::Invalid);
    assert_eq!(effects.list(&zero.prefix(""), 1).await.expect_err("refused").kind(), Kind::Invalid);
    effects.put(KV.key(vec![0, 0xff, 0xc0]), vec![0, 0xff], None).expect("any bytes are a key");
    committed(&shard, effects).await;
}

async fn sets_of_a_batch_see_each_other(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    put(&shard, &scope, &KV.key("a"), "0").await;
    let mut sets = Vec::new();
    for _ in 0..8 {
        let mut effects = shard.begin(&scope);
        effects.get(&KV.key("a")).await.expect("read");
        effects.put(KV.key("a"), "1", None).expect("staged");
        sets.push(effects);
    }
    let mut other = shard.begin(&scope);
    other.get(&KV.key("b")).await.expect("read");
    other.put(KV.key("c"), "1", None).expect("staged");
    sets.push(other);
    let verdicts = batch(&shard, sets).await;
    let expected: Vec<bool> = (0..9).map(|n| n == 0 || n == 8).collect();
    assert_eq!(
        verdicts.iter().map(is_committed).collect::<Vec<_>>(),
        expected,
        "one of eight, and the one that read elsewhere"
    );
    // A set that read a batch's result is valid behind it, and one that read before the batch is not.
    let mut after = shard.begin(&scope);
    bench.shard().begin(&scope).get(&KV.key("a")).await.expect("read");
    after.get(&KV.key("c")).await.expect("read");
    after.put(KV.key("d"), "1", None).expect("staged");
    committed(&shard, after).await;
}

async fn limits_are_refused_where_they_are_passed(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    let mut effects = shard.begin(&scope);
    assert_eq!(effects.put(KV.key(vec![1; KEY_BYTES + 1]), "x", None).expect_err("too long").kind(), Kind::Invalid);
    for n in 0..STAGED_ROWS {
        effects.put(KV.key(n.to_be_bytes().to_vec()), "x", None).expect("staged");
    }
    assert_eq!(effects.put(KV.key("one more"), "x", None).expect_err("too many").code(), "too_many_effects");
    effects.put(KV.key(0_usize.to_be_bytes().to_vec()), "replaced", None).expect("no more rows than before");
    committed(&shard, effects).await;
    let mut effects = shard.begin(&scope);
    effects.put(KV.key("large"), vec![7; STAGED_BYTES - 5], None).expect("exactly full");
    assert_eq!(effects.put(KV.key("b"), "", None).expect_err("too large").code(), "too_many_effects");
    effects.put(KV.key("large"), vec![7; STAGED_BYTES - 6], None).expect("smaller again");
    effects.put(KV.key("b"), "", None).expect("there is room");
    committed(&shard, effects).await;
    assert_eq!(
        bench.shard().begin(&scope).get(&KV.key("large")).await.expect("read").expect("there").value.size(),
        STAGED_BYTES - 6
    );
    let mut effects = shard.begin(&scope);
    let keys: Vec<Key> = (0..ROWS_READ).map(|n| FREE.key(n.to_string())).collect();
    assert_eq!(effects.get_many(&keys).await.expect("exactly as many as allowed").len(), ROWS_READ);
    effects.get(&keys[0]).await.expect("a row read before costs nothing");
    assert_eq!(effects.get(&FREE.key("more")).await.expect_err("too many").code(), "too_many_reads");
    let mut effects = shard.begin(&scope);
    let (rows, more) = effects.list(&KV.prefix(""), usize::MAX).await.expect("no overflow");
    assert_eq!((rows.len(), more), (STAGED_ROWS + 2, false));
    for _ in 0..8 {
        effects.list(&KV.prefix(""), usize::MAX).await.expect("below the limit");
    }
    assert_eq!(effects.list(&KV.prefix(""), usize::MAX).await.expect_err("too many").code(), "too_many_reads");
}

/// How many of a busy tenant's 64 large commits end before a small one of a tenant that came after all of them.
async fn before_a_small_one(bench: &Bench, breaks: Breaks) -> usize {
    let shard = bench.broken(breaks);
    let (busy, quiet) = (bench.tenant().await, bench.tenant().await);
    let commit = async |scope: &TenantScope, key: String, bytes: usize| {
        let mut effects = shard.begin(scope);
        effects.put(FREE.key(key), vec![7; bytes], None).expect("staged");
        let verdict = shard.commit(effects.into_set(None, None)).await.expect("answered");
        assert!(matches!(verdict, Verdict::Committed { .. }), "{verdict:?}");
    };
    let ended = AtomicUsize::new(0);
    let large = async |n: usize| {
        commit(&busy, format!("k{n}"), 128 << 10).await;
        ended.fetch_add(1, Ordering::SeqCst);
    };
    // What is looked at once waits for its turn from then on.
    let mut all: Vec<_> = (0..64).map(|n| Box::pin(large(n))).collect();
    for one in &mut all {
        assert!(poll!(one).is_pending());
    }
    let mut small = Box::pin(async {
        commit(&quiet, "k".into(), 1).await;
        ended.load(Ordering::SeqCst)
    });
    assert!(poll!(&mut small).is_pending());
    join(join_all(all), small).await.1
}

async fn a_quiet_tenants_commit_goes_before_most_of_a_busy_ones(engine: Engine) {
    let bench = engine.bench().await;
    // Of some times, since the first has to connect.
    let mut ended = usize::MAX;
    for _ in 0..5 {
        ended = ended.min(before_a_small_one(&bench, Breaks::default()).await);
    }
    println!("{ended} of 64 large commits ended first");
    // The batch that was on its way, and the tenant's share of its own.
    assert!(ended <= 32, "{ended} of 64 large commits ended first");
    // PostgreSQL commits tenants beside each other.
    if engine == Engine::Sqlite {
        let ended = before_a_small_one(&bench, Breaks { turns: true, ..Breaks::default() }).await;
        assert!(ended > 48, "without turns only {ended} of 64 large commits ended first");
    }
}

async fn a_large_value_does_not_slow_its_neighbours_down(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    let keys: Vec<Key> = (0..2_000).map(|n| KV.key(format!("k{n:04}"))).collect();
    let measure = async || {
        // Without the cache, and the best of some, since other tests run beside this one.
        let mut best = Duration::MAX;
        for _ in 0..5 {
            let since = std::time::Instant::now();
            shard.store().read(&scope, &keys).await.expect("read");
            best = best.min(since.elapsed());
        }
        best
    };
    let mut effects = shard.begin(&scope);
    for key in keys.iter().step_by(20) {
        effects.put(key.clone(), "x", None).expect("staged");
    }
    committed(&shard, effects).await;
    let before = measure().await;
    let mut effects = shard.begin(&scope);
    effects.put(KV.key("k1000-large"), vec![7; STAGED_BYTES - 100], None).expect("staged");
    committed(&shard, effects).await;
    let after = measure().await;
    assert!(after < before * 5 + Duration::from_millis(20), "{before:?} became {after:?}");
}

async fn keys_come_in_the_order_of_their_bytes(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    let mut keys: Vec<Vec<u8>> = (0..600)
        .map(|_| {
            let length = rand::random_range(0..=12);
            // Few different bytes, so that many keys are prefixes of others.
            (0..length).map(|_| [0, 1, b'A', b'a', 0x7f, 0x80, 0xc3, 0xff][rand::random_range(0..8)]).collect()
        })
        .collect();
    let mut effects = shard.begin(&scope);
    for key in &keys {
        effects.put(KV.key(key.clone()), "x", None).expect("staged");
    }
    committed(&shard, effects).await;
    keys.sort_unstable();
    keys.dedup();
    let (rows, _) = shard.begin(&scope).list(&KV.prefix(""), 1_000).await.expect("read");
    assert_eq!(rows.into_iter().map(|(key, _)| key.to_vec()).collect::<Vec<_>>(), keys);
    for _ in 0..50 {
        let (mut from, mut to) = (&keys[rand::random_range(0..keys.len())], &keys[rand::random_range(0..keys.len())]);
        if from > to {
            (from, to) = (to, from);
        }
        let range = chalet::effects::Range { space: KV, from: from.clone().into(), to: Some(to.clone().into()) };
        let (rows, _) = shard.begin(&scope).list(&range, 1_000).await.expect("read");
        let expected: Vec<&Vec<u8>> = keys.iter().filter(|key| *key >= from && *key < to).collect();
        assert_eq!(rows.iter().map(|(key, _)| key.to_vec()).collect::<Vec<_>>().iter().collect::<Vec<_>>(), expected);
    }
}

async fn commits_that_end_together_share_a_transaction(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    put(&shard, &scope, &KV.key("warm"), "x").await;
    let before = shard.counts().batches.load(Ordering::Relaxed);
    let commits = (0..64).map(|n| {
        let shard = shard.clone();
        let mut effects = shard.begin(&scope);
        effects.put(KV.key(format!("k{n}")), "x", None).expect("staged");
        async move { committed(&shard, effects).await }
    });
    let mut numbers = join_all(commits).await;
    numbers.sort_unstable();
    assert_eq!(numbers, (2..66).collect::<Vec<_>>());
    let batches = shard.counts().batches.load(Ordering::Relaxed) - before;
    assert!(batches < 16, "{batches} transactions for 64 commits");
}

async fn reads_that_come_together_share_statements(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, tenants) = (bench.shard(), [bench.tenant().await, bench.tenant().await]);
    for scope in &tenants {
        put(&shard, scope, &KV.key("whose"), scope.name()).await;
    }
    let before = shard.counts().reads.load(Ordering::Relaxed);
    let reads = (0..128).map(|n| {
        let (shard, scope) = (shard.clone(), tenants[n % 2].clone());
        async move { (get(&shard, &scope, &KV.key("whose")).await, scope.name().to_owned()) }
    });
    for (found, name) in join_all(reads).await {
        assert_eq!(found, Some(name));
    }
    let statements = shard.counts().reads.load(Ordering::Relaxed) - before;
    // A quick statement may end before the last reader has come.
    assert!(statements < 16, "{statements} statements for 64 readers of each of two tenants");
}

async fn reading_nothing_and_writing_nothing_asks_nobody(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    shard.transact(&scope, async |_| Ok(())).await.expect("nothing to do");
    let counts = shard.counts();
    assert_eq!(counts.batches.load(Ordering::Relaxed) + counts.reads.load(Ordering::Relaxed), 0);
}

async fn tenants_never_see_each_other(engine: Engine) {
    let bench = engine.bench().await;
    let shard = bench.shard();
    let (a, b) = (bench.tenant().await, bench.tenant().await);
    put(&shard, &a, &KV.key("k"), "a's").await;
    assert_eq!(get(&shard, &b, &KV.key("k")).await, None);
    put(&shard, &b, &KV.key("k"), "b's").await;
    let sets = [(&a, "1"), (&b, "2")].map(|(scope, value)| {
        let mut effects = shard.begin(scope);
        effects.put(KV.key("own"), value, None).expect("staged");
        (scope.clone(), effects)
    });
    join_all(sets.map(|(_, effects)| committed(&shard, effects))).await;
    for (scope, own, k) in [(&a, "1", "a's"), (&b, "2", "b's")] {
        let mut effects = bench.shard().begin(scope);
        let (rows, _) = effects.list(&KV.prefix(""), 10).await.expect("read");
        let seen: Vec<(&[u8], Bytes)> = rows.iter().map(|(key, row)| (&key[..], row.value.to_bytes())).collect();
        assert_eq!(seen, [(b"k".as_slice(), Bytes::from(k)), (b"own", Bytes::from(own))]);
    }
    let (tag, _) = shard.store().head(&a).await.expect("a head");
    assert_eq!(tag.seq, 2, "each tenant counts its own commits");
}

async fn usage_is_counted_with_the_commit(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    let compute = |plugin: &str, hour: i64, fuel| Compute {
        plugin: plugin.into(),
        hour_ms: hour * Compute::HOUR_MS,
        invocations: 1,
        failures: 0,
        fuel,
        bytes_in: 10,
        bytes_out: 20,
    };
    let mut conflicting = shard.begin(&scope);
    conflicting.get(&KV.key("k0")).await.expect("read");
    let mut sets: Vec<Set> = Vec::new();
    for (n, compute) in
        [compute("p", 1, 5), compute("p", 1, 6), compute("q", 1, 7), compute("p", 2, u64::MAX)].into_iter().enumerate()
    {
        let mut effects = shard.begin(&scope);
        effects.put(KV.key(format!("k{n}")), "x", None).expect("staged");
        sets.push(effects.into_set(None, Some(compute)));
    }
    sets.push(conflicting.into_set(None, Some(compute("p", 1, 1_000))));
    sets.push(shard.begin(&scope).into_set(None, Some(compute("p", 2, u64::MAX))));
    let verdicts = shard.store().commit(&sets, Breaks::default()).await.expect("the batch runs");
    assert_eq!(verdicts.iter().filter(|verdict| is_committed(verdict)).count(), 5, "{verdicts:?}");
    let mut more = shard.begin(&scope);
    more.put(KV.key("k"), "x", None).expect("staged");
    shard.commit(more.into_set(None, Some(compute("p", 2, 1)))).await.expect("commits");
    let used = shard.store().usage(&scope, Compute::HOUR_MS, 3 * Compute::HOUR_MS).await.expect("usage");
    let seen: Vec<(&str, i64, u64, u64, u64)> = used
        .iter()
        .map(|sum| (&*sum.plugin, sum.hour_ms / Compute::HOUR_MS, sum.invocations, sum.fuel, sum.bytes_out))
        .collect();
    let most = i64::MAX as u64;
    assert_eq!(seen, [("p", 1, 2, 11, 40), ("q", 1, 1, 7, 20), ("p", 2, 3, most, 60)]);
    assert!(shard.store().usage(&scope, 2 * Compute::HOUR_MS, 2 * Compute::HOUR_MS).await.expect("usage").is_empty());
}

async fn expiring_rows_are_announced_to_the_sweeper(engine: Engine) {
    let bench = engine.bench().await;
    let (shard, scope) = (bench.shard(), bench.tenant().await);
    let put = |key: &str, expires_at_ms| {
        let mut effects = shard.begin(&scope);
        effects.put(KV.key(key.to_owned()), "x", expires_at_ms).expect("staged");
        effects
    };
    committed(&shard, put("ever", None)).await;
    assert_eq!(chalet::effects::testing::due(&bench.db, &scope).await.expect("due"), None);
    assert!(
        batch(&shard, vec![put("a", Some(7_000)), put("b", Some(5_000)), put("c", None)])
            .await
            .iter()
            .all(is_committed)
    );
    assert_eq!(chalet::effects::testing::due(&bench.db, &scope).await.expect("due"), Some(5_000));
    committed(&shard, put("d", Some(9_000))).await;
    assert_eq!(chalet::effects::testing::due(&bench.db, &scope).await.expect("due"), Some(5_000), "the first stays");
}

/// T4 of the transaction rules.
async fn sixty_four_writers_of_one_key_lose_nothing(engine: Engine) {
    let bench = engine.bench().await;
    let scope = bench.tenant().await;
    let mut nodes = vec![bench.shard()];
    if bench.shared() {
        nodes.push(bench.other_node(Breaks::default()).await);
    }
    const ROUNDS: u64 = 8;
    let writers = (0..64).map(|n| {
        let shard = nodes[n % nodes.len()].clone();
        let scope = scope.clone();
        tokio::spawn(async move {
            for _ in 0..ROUNDS {
                loop {
                    let added = shard
                        .transact(&scope, async |effects| {
                            let old = text(effects.get(&KV.key("n")).await?)
                                .map_or(0, |n| n.parse::<u64>().expect("a number"));
                            effects.put(KV.key("n"), (old + 1).to_string(), None)
                        })
                        .await;
                    match added {
                        Ok(()) => break,
                        Err(error) if error.kind() == Kind::Conflict => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
            }
        })
    });
    for writer in join_all(writers).await {
        writer.expect("a writer ends");
    }
    assert_eq!(get(&bench.shard(), &scope, &KV.key("n")).await, Some((64 * ROUNDS).to_string()));
    let conflicts: u64 = nodes.iter().map(|node| node.counts().conflicts.load(Ordering::Relaxed)).sum();
    let batches: u64 = nodes.iter().map(|node| node.counts().batches.load(Ordering::Relaxed)).sum();
    assert!(conflicts > 0, "writers met");
    println!("T4 on {} node(s): {} commits, {conflicts} conflicts, {batches} batches", nodes.len(), 64 * ROUNDS);
}

async fn the_directory_speaks_both_dialects(engine: Engine) {
    let bench = engine.bench().await;
    chalet::effects::testing::directory_dialect(&bench.db)
        .await
        .expect("texts, numbers, bytes and nulls come back as they went");
}

async fn a_claim_is_held_by_one(engine: Engine) {
    let bench = engine.bench().await;
    let (scope, other) = (bench.tenant().await, bench.tenant().await);
    let claims = bench.db.claims();
    let lease = Duration::from_secs(60);
    let claim = async |scope: &TenantScope, key: &str, print: &[u8], lease| {
        claims.claim(scope, key, print, lease).await.expect("the claim is answered")
    };
    let held = async |scope: &TenantScope, key: &str, print: &[u8], lease| match claim(scope, key, print, lease).await {
        Claim::Claimed(held) => held,
        _ => panic!("nobody holds {key}"),
    };
    let one = held(&scope, "k", b"f", lease).await;
    let second = claim(&scope, "k", b"f", lease).await;
    assert!(matches!(second, Claim::Running { retry_after } if !retry_after.is_zero() && retry_after <= lease));
    assert!(matches!(claim(&scope, "k", b"g", lease).await, Claim::Mismatch));
    let _two = held(&scope, "l", b"f", lease).await;
    let _other = held(&other, "k", b"g", lease).await;
    one.release().await;
    let brief = held(&scope, "k", b"g", Duration::from_millis(1)).await;
    // The lease is over at once; whoever comes next takes it, and a late release is not theirs to make.
    let until = tokio::time::Instant::now() + Duration::from_secs(10);
    let mut next = claim(&scope, "k", b"f", lease).await;
    while !matches!(next, Claim::Claimed(_)) {
        assert!(tokio::time::Instant::now() < until, "a lease ends");
        next = claim(&scope, "k", b"f", lease).await;
    }
    brief.release().await;
    assert!(matches!(claim(&scope, "k", b"f", lease).await, Claim::Running { .. }));
    let error = claims.claim(&scope, "a\0b", b"f", lease).await.err().expect("no text");
    assert_eq!(error.kind(), Kind::Invalid);
}

/// What comes at the same time shares statements; whoever comes with it has an answer of their own.
async fn claims_that_come_together_are_answered_each(engine: Engine) {
    let bench = engine.bench().await;
    let (scope, other) = (bench.tenant().await, bench.tenant().await);
    let claims = bench.db.claims();
    let lease = Duration::from_secs(60);
    let standing = claims.claim(&scope, "standing", b"f", lease).await.expect("answered");
    let ask_for = |scope, key: String, print: &'static [u8]| async move {
        claims.claim(scope, &key, print, lease).await.expect("answered")
    };
    let ask = |key, print| ask_for(&scope, key, print);
    // 300 keys, each asked for by four at once, and one that somebody holds.
    let many = join_all((0..1_200).map(|n| ask(format!("key {}", n % 300), b"f")));
    let strangers = join_all((0..300).map(|n| ask_for(&other, format!("key {n}"), b"f")));
    let (many, again, mismatch, strangers) =
        tokio::join!(many, ask("standing".into(), b"f"), ask("standing".into(), b"g"), strangers);
    for key in 0..300 {
        let of_key = || many.iter().skip(key).step_by(300);
        assert_eq!(of_key().filter(|claim| matches!(claim, Claim::Claimed(_))).count(), 1, "of key {key} one is given");
        assert_eq!(of_key().filter(|claim| matches!(claim, Claim::Running { .. })).count(), 3, "the others know");
    }
    assert!(matches!(again, Claim::Running { .. }) && matches!(mismatch, Claim::Mismatch));
    assert!(strangers.iter().all(|claim| matches!(claim, Claim::Claimed(_))), "tenants do not share keys");
    // All given back, some in the background: each can be had again, and what somebody else holds cannot.
    for (n, claim) in many.into_iter().enumerate() {
        match claim {
            Claim::Claimed(held) if n % 2 == 0 => held.release().await,
            other => drop(other),
        }
    }
    let until = tokio::time::Instant::now() + Duration::from_secs(10);
    for key in 0..300 {
        while !matches!(ask(format!("key {key}"), b"g").await, Claim::Claimed(_)) {
            assert!(tokio::time::Instant::now() < until, "key {key} was given back");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert!(matches!(ask("standing".into(), b"f").await, Claim::Running { .. }));
    drop(standing);
}

/// A claim whose caller goes away is given back, at whatever point that was.
async fn a_claim_ends_with_its_caller(engine: Engine) {
    let bench = engine.bench().await;
    let scope = bench.tenant().await;
    let claims = bench.db.claims();
    let lease = Duration::from_secs(3_600);
    for n in 0..100_u64 {
        let going = claims.claim(&scope, "k", b"f", lease);
        let _ = tokio::time::timeout(Duration::from_micros(n * 20), going).await;
        let until = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            match claims.claim(&scope, "k", b"f", lease).await.expect("answered") {
                Claim::Claimed(held) => break held.release().await,
                _ => {
                    assert!(tokio::time::Instant::now() < until, "the claim of the one that went away after {n} stays")
                }
            }
        }
    }
}
