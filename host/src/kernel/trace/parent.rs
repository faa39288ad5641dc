//! Which requests are sampled, and whose part they are: W3C Trace Context at the edge.
//!
//! A trace is sampled by its id, as samplers of other services do it that are set to the same ratio
//! (`TraceIdRatioBased` of the OpenTelemetry specification), so that a trace is whole or absent. The sampled flag of a
//! caller is not asked: anybody can set it. Ids can be chosen as well; so requests that name a trace fill a budget by
//! the ratio, each sampled one takes from it, and however they are chosen no more than the ratio are sampled.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};

use http::{HeaderMap, HeaderName};
use opentelemetry::trace::{SpanId, TraceId};

/// The header that names a trace (W3C Trace Context, 3.2).
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Bytes of version, trace, span and flags with the dashes between them.
const LENGTH: usize = 55;
/// Sampled requests that name a trace which the budget may save up: traces come in bursts, such as a page that asks
/// for many things.
const BURST: i64 = 256;
/// One sampled request, as the budget counts it: ratios down to one in 4 billion are more than nothing.
const ONE: i64 = 1 << 32;

/// A span of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) trace: TraceId,
    pub(super) span: SpanId,
}

impl fmt::Display for Parent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-01", self.trace, self.span)
    }
}

/// What a request's headers name; nothing if they name nothing, more than one, or something malformed.
pub(super) fn of(headers: &HeaderMap) -> Option<Parent> {
    let mut named = headers.get_all(TRACEPARENT).iter();
    let (Some(one), None) = (named.next(), named.next()) else { return None };
    parse(one.as_bytes())
}

fn parse(text: &[u8]) -> Option<Parent> {
    // A later version may say more, after another dash.
    let (known, more) = text.split_at_checked(LENGTH)?;
    if !known.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-')) {
        return None;
    }
    let (version, rest) = (&known[..2], &known[2..]);
    let sound = match version {
        b"00" => more.is_empty(),
        b"ff" => false,
        _ => more.is_empty() || more[0] == b'-',
    };
    if !sound || version.contains(&b'-') || rest[0] != b'-' || rest[33] != b'-' || rest[50] != b'-' {
        return None;
    }
    let (mut trace, mut span, mut flags) = ([0; 16], [0; 8], [0; 1]);
    hex::decode_to_slice(&rest[1..33], &mut trace).ok()?;
    hex::decode_to_slice(&rest[34..50], &mut span).ok()?;
    hex::decode_to_slice(&rest[51..], &mut flags).ok()?;
    let parent = Parent { trace: TraceId::from_bytes(trace), span: SpanId::from_bytes(span) };
    (parent.trace != TraceId::INVALID && parent.span != SpanId::INVALID).then_some(parent)
}

/// Decides which requests are sampled.
pub(super) struct Sampler {
    /// Of the 63 bits of an id that are looked at, those below this are sampled.
    below: u64,
    /// What a request that names a trace adds to the budget.
    fill: i64,
    budget: AtomicI64,
}

impl Sampler {
    /// One for a ratio from 0 to 1.
    pub(super) fn new(ratio: f64) -> Self {
        Self {
            below: (ratio * (1_u64 << 63) as f64) as u64,
            fill: (ratio * ONE as f64) as i64,
            budget: AtomicI64::new(BURST * ONE),
        }
    }

    /// Whether any request is.
    pub(super) fn samples(&self) -> bool {
        self.below > 0
    }

    /// The trace of a request that names none; nothing if it is not sampled.
    pub(super) fn draw(&self) -> Option<TraceId> {
        let low: u64 = rand::random();
        self.wants(low).then(|| TraceId::from(u128::from(rand::random::<u64>()) << 64 | u128::from(low)))
    }

    /// Whether a request that names this trace is sampled.
    pub(super) fn takes(&self, trace: TraceId) -> bool {
        let wanted = self.wants(u128::from_be_bytes(trace.to_bytes()) as u64);
        if self.fill >= ONE {
            return wanted;
        }
        let mut taken = false;
        let _ = self.budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |budget| {
            let budget = (budget + self.fill).min(BURST * ONE);
            taken = wanted && budget >= ONE;
            Some(if taken { budget - ONE } else { budget })
        });
        taken
    }

    fn wants(&self, low: u64) -> bool {
        low >> 1 < self.below
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_as_trace_context_says() {
        let parent = parse(SPAN.as_bytes()).expect("the specification's own example");
        assert_eq!(parent.to_string(), SPAN);
        for sound in [
            SPAN.replace("-01", "-00"),
            SPAN.replace("-01", "-ff"),
            SPAN.replacen("00-", "cc-", 1),
            SPAN.replacen("00-", "cc-", 1) + "-what-the-future-brings",
        ] {
            assert_eq!(parse(sound.as_bytes()), Some(parent), "{sound}");
        }
        for malformed in [
            String::new(),
            "00".into(),
            SPAN.to_uppercase(),
            SPAN.replacen("00-", "ff-", 1),
            SPAN.replacen("00-", "0--", 1),
            SPAN.to_owned() + "-more",
            SPAN.to_owned() + "0",
            SPAN.replacen("00-", "cc-", 1) + "0",
            SPAN.replace('-', "0"),
            SPAN.replace("b7ad", "b7a-"),
            SPAN.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            SPAN.replace("b7ad6b7169203331", &"0".repeat(16)),
            SPAN.replace("0af7", "xaf7"),
            SPAN.replace("0af7", "0äf"),
        ] {
            assert_eq!(parse(malformed.as_bytes()), None, "{malformed}");
        }
        let mut headers = HeaderMap::new();
        headers.append(TRACEPARENT, SPAN.parse().expect("a value"));
        assert_eq!(of(&headers), Some(parent));
        headers.append(TRACEPARENT, SPAN.parse().expect("a value"));
        assert_eq!(of(&headers), None, "two traces are none");
    }

    #[test]
    fn the_ratio_is_what_is_sampled() {
        let drawn = |ratio: f64| {
            let sampler = Sampler::new(ratio);
            (0..100_000).filter(|_| sampler.draw().is_some_and(|trace| trace != TraceId::INVALID)).count()
        };
        assert_eq!((drawn(0.0), drawn(1.0)), (0, 100_000));
        // Nine standard deviations.
        assert!((700..1_300).contains(&drawn(0.01)));
        let named = |ratio: f64| {
            let sampler = Sampler::new(ratio);
            (0..100_000).filter(|_| sampler.takes(TraceId::from_bytes(rand::random()))).count()
        };
        assert_eq!((named(0.0), named(1.0)), (0, 100_000));
        assert!((700..1_300).contains(&named(0.01)));
    }

    #[test]
    fn who_draws_a_trace_and_who_is_told_of_it_decide_alike() {
        let sampler = Sampler::new(0.5);
        let drawn: Vec<TraceId> = (0..200).filter_map(|_| sampler.draw()).collect();
        assert!(!drawn.is_empty() && drawn.iter().all(|trace| Sampler::new(0.5).takes(*trace)));
    }

    #[test]
    fn nobody_forces_more_than_the_ratio_by_the_ids_that_he_chooses() {
        let sampler = Sampler::new(0.01);
        let chosen = TraceId::from(1 << 127);
        let taken = (0..100_000).filter(|_| sampler.takes(chosen)).count() as i64;
        assert!((1_000..=1_000 + BURST).contains(&taken), "{taken} of 100,000 at a ratio of 0.01");
    }
}
