//! Whose guest computes next.
//!
//! A guest computes in slices of fuel. For each slice it needs a turn, of which there are as many as threads to compute
//! on; between two slices it gives the turn back. A free turn goes to the waiting tenant that has had the least
//! (start-time fair queuing: Goyal, Vin, Cheng 1996), and within a tenant in the order of asking: so tenants share
//! the processor alike, however many guests each has, and a tenant that is alone has all of it. A guest that waits for
//! something else holds no turn.
//!
//! The first slice of an invocation may take any free turn, since most invocations end in it. Later slices of one
//! tenant never hold all turns at a time; nor do first slices of a tenant whose guests were lately seen to compute for
//! long without a pause, as one instruction that fills a whole memory does.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;

use crate::kernel::tenant::TenantId;

/// Microseconds that a turn is taken to last while it is held: a slice of fuel. What it really lasted is counted at its
/// end.
const SLICE_US: u64 = 100;
/// A turn that lasts longer is no usual slice, even on a machine that is busy with other things.
const LONG: Duration = Duration::from_millis(5);
/// How long a tenant with such slices is kept from taking all turns.
const MISTRUST: Duration = Duration::from_secs(1);
/// Tenants that are remembered before those without guests and without mistrust are forgotten.
const SWEEP: usize = 1_024;

/// The turns of a node.
pub(super) struct Turns {
    all: usize,
    next: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Turns that are taken.
    taken: usize,
    lines: HashMap<TenantId, Line>,
    /// Tenants with guests that wait, each once, by the time at which its next turn starts on a clock that counts what
    /// tenants have had; the first is served next.
    order: BTreeSet<(u64, TenantId)>,
    /// That clock: the start of the latest turn. Who comes back after a pause starts here, and has saved nothing up.
    now_us: u64,
    /// Guests that were given a turn and have not been polled since.
    granted: HashSet<u64>,
}

/// A tenant's guests.
#[derive(Default)]
struct Line {
    taken: usize,
    /// When its next turn starts.
    next_us: u64,
    waiting: VecDeque<Waiting>,
    mistrusted_until: Option<Instant>,
}

struct Waiting {
    ticket: u64,
    first: bool,
    waker: Waker,
}

impl Line {
    /// Turns that the tenant may hold at a time, of so many.
    fn most(&self, all: usize, first: bool) -> usize {
        let trusted = first && self.mistrusted_until.is_none_or(|until| Instant::now() >= until);
        if trusted { all } else { (all - 1).max(1) }
    }
}

impl State {
    /// Give free turns to those who wait; the wakers are to be called without the lock.
    fn deal(&mut self, all: usize) -> Vec<Waker> {
        let mut woken = Vec::new();
        let mut passed_over = Vec::new();
        while self.taken < all
            && let Some((start_us, tenant)) = self.order.pop_first()
        {
            let Some(line) = self.lines.get_mut(&tenant) else { continue };
            if line.waiting.front().is_none_or(|head| line.taken >= line.most(all, head.first)) {
                passed_over.push((start_us, tenant));
                continue;
            }
            let Some(head) = line.waiting.pop_front() else { continue };
            line.taken += 1;
            line.next_us = start_us + SLICE_US;
            if !line.waiting.is_empty() {
                self.order.insert((line.next_us, tenant));
            }
            self.taken += 1;
            self.now_us = self.now_us.max(start_us);
            self.granted.insert(head.ticket);
            woken.push(head.waker);
        }
        self.order.extend(passed_over);
        woken
    }
}

impl Turns {
    /// So many turns.
    pub(super) fn new(all: usize) -> Arc<Self> {
        Arc::new(Self { all: all.max(1), next: AtomicU64::new(0), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Guests that wait for a turn.
    pub(super) fn waiting(&self) -> usize {
        self.state().lines.values().map(|line| line.waiting.len()).sum()
    }

    /// Run a guest's future in turns. It is polled without one when its deadline has passed, and must end then.
    pub(super) fn take<T>(
        self: &Arc<Self>,
        tenant: TenantId,
        deadline: Instant,
        future: BoxFuture<'static, T>,
    ) -> InTurns<T> {
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        InTurns { turns: self.clone(), tenant, deadline, future, ticket, first: true, asked: false }
    }

    /// Whether the guest has a turn now; if not, it is woken when it has.
    fn ask(&self, tenant: &TenantId, ticket: u64, first: bool, asked: &mut bool, waker: &Waker) -> bool {
        let mut state = self.state();
        let state = &mut *state;
        if *asked {
            if state.granted.remove(&ticket) {
                *asked = false;
                return true;
            }
            let line = state.lines.get_mut(tenant);
            let place = line.and_then(|line| line.waiting.iter_mut().find(|waiting| waiting.ticket == ticket));
            if let Some(waiting) = place {
                waiting.waker.clone_from(waker);
            }
            return false;
        }
        if !state.lines.contains_key(tenant) {
            if state.lines.len() >= SWEEP {
                let now = Instant::now();
                state.lines.retain(|_, line| {
                    line.taken > 0 || !line.waiting.is_empty() || line.mistrusted_until.is_some_and(|until| now < until)
                });
            }
            state.lines.insert(tenant.clone(), Line::default());
        }
        let Some(line) = state.lines.get_mut(tenant) else { return false };
        let start_us = line.next_us.max(state.now_us);
        if state.taken < self.all && line.waiting.is_empty() && line.taken < line.most(self.all, first) {
            line.taken += 1;
            line.next_us = start_us + SLICE_US;
            state.taken += 1;
            state.now_us = start_us;
            return true;
        }
        if line.waiting.is_empty() {
            line.next_us = start_us;
            state.order.insert((start_us, tenant.clone()));
        }
        line.waiting.push_back(Waiting { ticket, first, waker: waker.clone() });
        *asked = true;
        false
    }

    /// Give a turn back after this long.
    fn give_back(&self, tenant: &TenantId, held: Duration) {
        let woken = {
            let mut state = self.state();
            state.taken -= 1;
            let state = &mut *state;
            if let Some(line) = state.lines.get_mut(tenant) {
                line.taken -= 1;
                // Also the shortest turn counts, or who only has such would always be the next.
                let held_us = u64::try_from(held.as_micros()).unwrap_or(u64::MAX).max(1);
                let next_us = line.next_us.saturating_add(held_us).saturating_sub(SLICE_US);
                if state.order.remove(&(line.next_us, tenant.clone())) {
                    state.order.insert((next_us, tenant.clone()));
                }
                line.next_us = next_us;
                if held > LONG {
                    line.mistrusted_until = Some(Instant::now() + MISTRUST);
                }
            }
            if state.order.is_empty() { Vec::new() } else { state.deal(self.all) }
        };
        woken.into_iter().for_each(Waker::wake);
    }

    /// A guest goes that has asked for a turn.
    fn leave(&self, tenant: &TenantId, ticket: u64) {
        let mut state = self.state();
        if state.granted.remove(&ticket) {
            drop(state);
            self.give_back(tenant, Duration::ZERO);
            return;
        }
        if let Some(line) = state.lines.get_mut(tenant) {
            line.waiting.retain(|waiting| waiting.ticket != ticket);
            if line.waiting.is_empty() {
                let place = (line.next_us, tenant.clone());
                state.order.remove(&place);
            }
        }
    }
}

/// A guest's future that is polled in turns.
pub(super) struct InTurns<T> {
    turns: Arc<Turns>,
    tenant: TenantId,
    deadline: Instant,
    future: BoxFuture<'static, T>,
    ticket: u64,
    first: bool,
    asked: bool,
}

/// A turn that is held; given back also if the poll panics.
struct Turn<'t>(&'t Turns, &'t TenantId, Instant);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.give_back(self.1, self.2.elapsed());
    }
}

impl<T> InTurns<T> {
    /// Whether the guest waits for a turn.
    pub(super) fn waits(&self) -> bool {
        self.asked
    }
}

impl<T> Future for InTurns<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let this = self.get_mut();
        if !this.turns.ask(&this.tenant, this.ticket, this.first, &mut this.asked, context.waker()) {
            if Instant::now() < this.deadline {
                return Poll::Pending;
            }
            return this.future.as_mut().poll(context);
        }
        this.first = false;
        let _turn = Turn(&this.turns, &this.tenant, Instant::now());
        this.future.as_mut().poll(context)
    }
}

impl<T> Drop for InTurns<T> {
    fn drop(&mut self) {
        if self.asked {
            self.turns.leave(&self.tenant, self.ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::from_row(name)
    }

    /// A guest that computes for so many slices, and says whose it is at each.
    fn guest(
        turns: &Arc<Turns>,
        name: &'static str,
        slices: usize,
        log: &Arc<Mutex<Vec<&'static str>>>,
    ) -> InTurns<()> {
        let (log, mut left) = (log.clone(), slices);
        let work = std::future::poll_fn(move |context: &mut Context<'_>| {
            log.lock().expect("no panic").push(name);
            let started = Instant::now();
            while started.elapsed() < Duration::from_micros(2 * SLICE_US) {}
            left -= 1;
            if left == 0 {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        });
        turns.take(tenant(name), Instant::now() + Duration::from_secs(60), work.boxed())
    }

    #[test]
    fn tenants_take_turns_however_many_guests_each_has() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (turns, log) = (Turns::new(1), Arc::default());
        // Somebody computes while all others come and ask.
        let held = turns.ask(&tenant("x"), u64::MAX, true, &mut false, Waker::noop());
        assert!(held);
        runtime.block_on(async {
            let mut guests = tokio::task::JoinSet::new();
            for _ in 0..8 {
                guests.spawn(guest(&turns, "busy", 10, &log));
            }
            guests.spawn(guest(&turns, "quiet", 10, &log));
            while turns.waiting() < 9 {
                tokio::task::yield_now().await;
            }
            turns.give_back(&tenant("x"), Duration::ZERO);
            while guests.join_next().await.is_some() {}
        });
        let log = log.lock().expect("no panic");
        let last = log.iter().rposition(|name| *name == "quiet").expect("it computed");
        // Twenty if all slices were of one length; eighty-nine if guests took turns instead of tenants.
        assert!(last < 45, "the quiet tenant's ten slices ended after {last} slices of all");
        let state = turns.state();
        assert_eq!((log.len(), state.taken, state.granted.len(), state.order.len()), (90, 0, 0, 0));
    }

    #[test]
    fn a_tenant_alone_has_all_turns_for_first_slices_and_one_less_for_later_ones() {
        let turns = Turns::new(3);
        let ask = |ticket, first| turns.ask(&tenant("a"), ticket, first, &mut false, Waker::noop());
        assert!(ask(1, true) && ask(2, true) && ask(3, true));
        assert!(!ask(4, true), "there are no more");
        turns.leave(&tenant("a"), 4);
        (0..3).for_each(|_| turns.give_back(&tenant("a"), Duration::ZERO));
        assert!(ask(5, false) && ask(6, false));
        assert!(!ask(7, false), "one is left for others");
        turns.leave(&tenant("a"), 7);
        assert!(turns.ask(&tenant("b"), 8, true, &mut false, Waker::noop()));
        turns.give_back(&tenant("a"), LONG * 2);
        turns.give_back(&tenant("a"), Duration::ZERO);
        turns.give_back(&tenant("b"), Duration::ZERO);
        assert!(ask(9, true) && ask(10, true) && !ask(11, true), "who computed for long is mistrusted");
    }

    #[test]
    fn who_leaves_takes_no_turn_along() {
        let turns = Turns::new(1);
        let log = Arc::default();
        let mut context = Context::from_waker(Waker::noop());
        assert!(turns.ask(&tenant("x"), u64::MAX, true, &mut false, Waker::noop()));
        let (mut one, mut two) = (guest(&turns, "one", 1, &log), guest(&turns, "two", 1, &log));
        assert!(one.poll_unpin(&mut context).is_pending() && two.poll_unpin(&mut context).is_pending());
        // The first is granted the turn and goes without having used it.
        turns.give_back(&tenant("x"), Duration::ZERO);
        drop(one);
        assert!(two.poll_unpin(&mut context).is_ready());
        assert_eq!(turns.waiting(), 0);
        assert_eq!(turns.state().taken, 0);
    }

    #[test]
    fn a_guest_whose_deadline_passes_ends_without_a_turn() {
        let turns = Turns::new(1);
        assert!(turns.ask(&tenant("x"), u64::MAX, true, &mut false, Waker::noop()));
        let mut late = turns.take(tenant("a"), Instant::now(), std::future::ready(()).boxed());
        assert!(late.poll_unpin(&mut Context::from_waker(Waker::noop())).is_ready());
        drop(late);
        assert_eq!(turns.waiting(), 0);
    }
}
