//! What every authority must do; each implementation runs all of it.

use proptest::prelude::*;

use super::*;

/// An authority that answers at once.
fn ask(authority: &dyn Authority, takes: &[Take], now_ms: i64) -> Vec<Decision> {
    authority.take(takes, now_ms).now_or_never().expect("in memory").expect("answered")
}

fn one(authority: &dyn Authority, quota: Quota, cost: u32, now_ms: i64) -> Decision {
    ask(authority, &[Take { bucket: Bucket::of(&["b"]), quota, cost }], now_ms)[0]
}

/// The exact oracle, by the definition of the rate and nothing of the algorithm: a request fits if over
/// every stretch of time that ends with it no more was taken than the burst and what came back.
fn fits(taken: &[(i64, u32)], quota: Quota, cost: u32, now_ms: i64) -> bool {
    let period = u128::from(quota.period_ms);
    let mut sum = u128::from(cost);
    let within = |sum: u128, elapsed_ms: i64| {
        sum * period
            <= u128::from(quota.burst) * period + u128::from(elapsed_ms.unsigned_abs()) * u128::from(quota.rate)
    };
    within(sum, 0)
        && taken.iter().rev().all(|(at_ms, cost)| {
            sum += u128::from(*cost);
            within(sum, now_ms - at_ms)
        })
}

fn quotas() -> impl Strategy<Value = Quota> {
    let period = prop_oneof![Just(1_000), Just(60_000), Just(3_600_000), Just(86_400_000), 1..5_000u64];
    (1..2_000u32, period, 1..50u32).prop_map(|(rate, period_ms, burst)| Quota { rate, period_ms, burst })
}

/// Steps of time around the points where a unit comes back, and costs around what is there.
fn requests() -> impl Strategy<Value = Vec<(i64, u32)>> {
    let step = prop_oneof![Just(0), Just(1), 0..20i64, 0..5_000i64, 0..10_000_000i64];
    proptest::collection::vec((step, 0..8u32), 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_decision_is_what_the_definition_of_the_rate_says(quota in quotas(), requests in requests()) {
        let memory = Memory::new();
        let (mut now_ms, mut taken) = (1_700_000_000_000i64, Vec::new());
        for (step, cost) in requests {
            now_ms += step;
            let expected = fits(&taken, quota, cost, now_ms);
            let decision = one(&memory, quota, cost, now_ms);
            prop_assert_eq!(decision.allowed, expected);
            if expected {
                taken.push((now_ms, cost));
                prop_assert_eq!(decision.retry_after_ms, 0);
            } else if cost <= quota.burst {
                // The time given is right to the millisecond.
                let at = now_ms + decision.retry_after_ms as i64;
                prop_assert!(fits(&taken, quota, cost, at));
                prop_assert!(!fits(&taken, quota, cost, at - 1));
            }
            let remaining = u32::try_from(decision.remaining).expect("small");
            prop_assert!(fits(&taken, quota, remaining, now_ms));
            prop_assert!(!fits(&taken, quota, remaining + 1, now_ms));
            let full = now_ms + decision.reset_after_ms as i64;
            prop_assert!(fits(&taken, quota, quota.burst, full));
            prop_assert!(decision.reset_after_ms == 0 || !fits(&taken, quota, quota.burst, full - 1));
        }
    }

    #[test]
    fn several_buckets_are_debited_together_or_not_at_all(inner in quotas(), outer in quotas(), requests in requests()) {
        let memory = Memory::new();
        let (mut now_ms, mut taken) = (1_700_000_000_000i64, Vec::new());
        for (step, cost) in requests {
            now_ms += step;
            let expected = [inner, outer].map(|quota| fits(&taken, quota, cost, now_ms));
            let takes = [
                Take { bucket: Bucket::of(&["inner"]), quota: inner, cost },
                Take { bucket: Bucket::of(&["outer"]), quota: outer, cost },
            ];
            let decisions = ask(&memory, &takes, now_ms);
            prop_assert_eq!([decisions[0].allowed, decisions[1].allowed], expected);
            if expected == [true, true] {
                taken.push((now_ms, cost));
            }
        }
    }
}

#[test]
fn a_bucket_holds_exactly_its_burst_and_gives_back_at_its_rate() {
    let memory = Memory::new();
    let quota = Quota { rate: 3, period_ms: 1_000, burst: 5 };
    let allowed = (0..10).filter(|_| one(&memory, quota, 1, 0).allowed).count();
    assert_eq!(allowed, 5);
    let refused = one(&memory, quota, 1, 0);
    // A third of a second is no whole number of milliseconds: 334, not 333.
    assert_eq!(
        refused,
        Decision { allowed: false, limit: 5, remaining: 0, retry_after_ms: 334, reset_after_ms: 1_667 }
    );
    assert!(!one(&memory, quota, 1, 333).allowed);
    assert!(one(&memory, quota, 1, 334).allowed);
    // Over a long time nothing drifts: three a second for two minutes.
    let allowed = (335..=120_334).filter(|now_ms| one(&memory, quota, 1, *now_ms).allowed).count();
    assert_eq!(allowed, 3 * 120);
}

#[test]
fn the_largest_quota_does_not_overflow() {
    let memory = Memory::new();
    let quota = Quota { rate: 1, period_ms: 86_400_000, burst: 1_000_000_000 };
    assert!(one(&memory, quota, 1_000_000_000, 0).allowed);
    let refused = one(&memory, quota, 1_000_000_000, 0);
    assert_eq!(refused.retry_after_ms, 86_400_000_000_000_000);
    assert!(one(&memory, quota, 1, i64::MAX).allowed);
    let quota = Quota { rate: u32::MAX, period_ms: 1, burst: u32::MAX };
    assert!(one(&Memory::new(), quota, u32::MAX, i64::MAX).allowed);
    assert!(one(&memory, quota, 1, i64::MIN).allowed);
}

#[test]
fn looking_takes_nothing() {
    let memory = Memory::new();
    let quota = Quota { rate: 1, period_ms: 1_000, burst: 2 };
    assert_eq!((0..5).map(|_| one(&memory, quota, 0, 0).remaining).collect::<Vec<_>>(), [2; 5]);
    assert!(one(&memory, quota, 2, 0).allowed);
    let empty = one(&memory, quota, 0, 0);
    assert!(empty.allowed && empty.remaining == 0);
}

#[test]
fn a_changed_quota_keeps_what_was_used() {
    let memory = Memory::new();
    let slow = Quota { rate: 1, period_ms: 3_600_000, burst: 10 };
    assert!(one(&memory, slow, 10, 0).allowed);
    assert!(!one(&memory, slow, 1, 0).allowed);
    // A raised limit helps at once, and only by what it was raised.
    let raised = Quota { burst: 15, ..slow };
    assert_eq!(one(&memory, raised, 0, 0).remaining, 5);
    let faster = Quota { rate: 10, period_ms: 1_000, burst: 15 };
    assert_eq!(one(&memory, faster, 0, 0).remaining, 5);
    assert_eq!(one(&memory, faster, 0, 1_000).remaining, 15);
    let lowered = Quota { burst: 1, ..slow };
    assert!(one(&memory, faster, 15, 1_000).allowed);
    assert!(!one(&memory, lowered, 1, 1_000).allowed);
}

#[test]
fn a_clock_that_steps_gives_no_more_than_a_burst_and_does_not_stop() {
    let memory = Memory::new();
    let quota = Quota { rate: 10, period_ms: 1_000, burst: 10 };
    assert!(one(&memory, quota, 10, 1_000_000).allowed);
    // Threads read the clock at slightly different times: that gives nothing back twice.
    for now_ms in [999_990, 1_000_000].repeat(20) {
        assert!(!one(&memory, quota, 1, now_ms).allowed);
    }
    assert!(!one(&memory, quota, 1, 100_000).allowed, "set back by a quarter of an hour");
    assert!(one(&memory, quota, 1, 100_100).allowed, "and a unit comes back after its time");
    assert!(one(&memory, quota, 10, 9_000_000).allowed, "set forward");
    assert!(!one(&memory, quota, 1, 9_000_000).allowed);
}

#[test]
fn a_flood_of_keys_takes_a_bounded_memory_and_spares_what_is_used() {
    let memory = Memory::holding(500);
    let quota = Quota { rate: 1, period_ms: 86_400_000, burst: 200 };
    let busy = |memory: &Memory| one(memory, quota, 1, 0).allowed;
    let allowed = (0..100).filter(|_| busy(&memory)).count();
    assert_eq!(allowed, 100);
    for n in 0..20_000u32 {
        let takes = [Take { bucket: Bucket::of(&["flood", &n.to_string()]), quota, cost: 1 }];
        assert!(ask(&memory, &takes, 0)[0].allowed);
        if n % 100 == 0 {
            one(&memory, quota, 0, 0);
        }
    }
    // Its parts round up.
    assert!(memory.buckets.len() <= 510);
    assert_eq!(one(&memory, quota, 0, 0).remaining, 100, "the busy bucket was forgotten");
}

#[test]
fn threads_together_get_no_more_than_the_burst() {
    let memory = Memory::new();
    let quota = Quota { rate: 1, period_ms: 86_400_000, burst: 1_000 };
    let allowed: usize = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8)
            .map(|n| {
                let memory = &memory;
                scope.spawn(move || {
                    let own = Take { bucket: Bucket::of(&["own", &n.to_string()]), quota, cost: 1 };
                    let shared = Take { bucket: Bucket::of(&["b"]), quota, cost: 1 };
                    // Half of the workers name their buckets the other way round.
                    let takes = if n % 2 == 0 { [own, shared] } else { [shared, own] };
                    (0..500).filter(|_| ask(memory, &takes, 0).iter().all(|decision| decision.allowed)).count()
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("no panic")).sum()
    });
    assert_eq!(allowed, 1_000);
}

#[test]
fn parts_of_a_name_cannot_be_moved() {
    assert_ne!(Bucket::of(&["ab", "c"]), Bucket::of(&["a", "bc"]));
    assert_ne!(Bucket::of(&["a", ""]), Bucket::of(&["a"]));
    let twice = [Take { bucket: Bucket::of(&["b"]), quota: Quota::per_second(1, 1), cost: 1 }; 2];
    assert!(Memory::new().take(&twice, 0).now_or_never().expect("in memory").is_err());
}
