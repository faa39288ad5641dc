//! Whether two kinds of input take the same time, as dudect asks it (Reparaz, Balasch, Verbauwhede: Dude, is my code
//! constant time?, 2017): inputs of both kinds in random order, and Welch's t-test on how long they took, with the
//! slowest left out at several places, since what is slow is slow for the machine's reasons.

use std::time::{Duration, Instant};

/// The t above which the two differ: chance alone does that once in some hundred thousand times.
pub const LEAK: f64 = 4.5;
/// Parts of the measurements that are kept, fastest first, each for a test of its own.
const KEPT: [f64; 6] = [0.5, 0.7, 0.9, 0.97, 0.99, 1.0];
/// Measurements before those that count.
const WARM: usize = 50;
/// Inputs that are made ahead, so that what making one leaves in the processor's caches says nothing of its kind.
const AHEAD: usize = 500;
/// Times that both may seem to differ, on a machine that has others to serve.
const TRIES: usize = 3;

/// The largest |t| of so many measurements and a few more. `input` makes one of the kind 0 or 1, outside of what is measured.
pub async fn largest_t<I>(measurements: usize, mut input: impl FnMut(usize) -> I, mut run: impl AsyncFnMut(I)) -> f64 {
    let mut took: [Vec<f64>; 2] = Default::default();
    let mut warm = WARM;
    while took[0].len() + took[1].len() < measurements {
        let mut ahead = Vec::with_capacity(AHEAD);
        for _ in 0..AHEAD {
            let kind = usize::from(rand::random::<bool>());
            ahead.push((kind, input(kind)));
        }
        for (kind, input) in ahead {
            let started = Instant::now();
            run(input).await;
            let elapsed = started.elapsed();
            match warm.checked_sub(1) {
                Some(left) => warm = left,
                None => took[kind].push(nanoseconds(elapsed)),
            }
        }
    }
    let mut all = took.concat();
    all.sort_unstable_by(f64::total_cmp);
    let most = |kept: f64| all[((all.len() as f64 * kept) as usize).clamp(1, all.len()) - 1];
    KEPT.iter().map(|kept| welch(&took, most(*kept)).abs()).fold(0.0, f64::max)
}

/// The smallest such t of some tries, which ends at the first that shows no difference.
pub async fn smallest_t(mut measure: impl AsyncFnMut() -> f64) -> f64 {
    let mut smallest = f64::MAX;
    for _ in 0..TRIES {
        smallest = smallest.min(measure().await);
        if smallest < LEAK {
            break;
        }
    }
    smallest
}

fn nanoseconds(time: Duration) -> f64 {
    time.as_nanos() as f64
}

/// Welch's t of the measurements that are not above `most`.
fn welch(took: &[Vec<f64>; 2], most: f64) -> f64 {
    let [first, second] = took.each_ref().map(|took| {
        let kept = || took.iter().filter(|one| **one <= most);
        let count = kept().count() as f64;
        let mean = kept().sum::<f64>() / count;
        let variance = kept().map(|one| (one - mean).powi(2)).sum::<f64>() / (count - 1.0);
        (mean, variance / count)
    });
    let spread = (first.1 + second.1).sqrt();
    // Two that always take the same time do not differ.
    if spread > 0.0 { (first.0 - second.0) / spread } else { 0.0 }
}
