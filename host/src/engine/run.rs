//! One run of a guest: a fresh store and instance, bounded from the first instruction, dropped at the end.
//!
//! A guest runs where its caller is, since most end within a slice, and a hop to another thread costs more than they do.
//! One that waits for what it asked goes on there as well; one that has used up a slice, or that finds no turn, goes on in
//! the guests' runtime, where nothing else keeps it from taking its turn. Dropping the caller's future ends the guest at its
//! next yield.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::task::AtomicWaker;
use tokio::runtime::Runtime;
use wasmtime::component::Instance;
use wasmtime::{PoolConcurrencyLimitError, Store, Trap, WasmBacktrace};

use crate::effects::Key;
use crate::engine::guest::{Guest, Stop};
use crate::engine::limits::{ANSWER_SLACK_BYTES, HANDLES, HOSTCALL_BYTES};
use crate::engine::turns::InTurns;
use crate::engine::{Engine, Program};
use crate::kernel::error::{Error, Result};
use crate::kernel::trace;

/// Units of fuel between two yields: about a tenth of a millisecond, so that a guest that has to go
/// is gone within it, while a yield's cost of about a microsecond is lost in it.
const SLICE_FUEL: u64 = 200_000;
/// Characters of a trap's message, which comes from the guest's own names in part.
const MESSAGE_CHARS: usize = 300;

/// Why a run has no answer.
#[derive(Debug)]
pub enum Failure {
    /// A read found the snapshot gone: run again. The key is the one that changed.
    Rerun(Key),
    /// The guest asks to be called again.
    Retry {
        /// After this long.
        after_ms: u64,
    },
    /// The guest refuses this input for good; the reason is for the caller.
    Reject(String),
    /// The guest trapped, or used up something that has a limit of its own.
    Trap {
        /// `plugin_failed`, `memory_exhausted`, `stack_exhausted`, `hostcall_budget`, `hostcall_bytes`, or `internal`
        /// if the fault is the host's.
        code: &'static str,
        /// For the plugin's author.
        message: String,
    },
    /// The deadline passed.
    Deadline,
    /// The fuel is used up.
    Fuel,
    /// What the guest answered is no valid answer.
    InvalidResponse(String),
    /// The node had no place for the guest.
    Overloaded,
}

impl Failure {
    /// What the caller is told by it, but for a run that is run again: nobody is told of that.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Rerun(_) => "conflict",
            Self::Retry { .. } => "plugin_retry",
            Self::Reject(_) => "rejected",
            Self::Trap { code, .. } => code,
            Self::Deadline => "deadline_exceeded",
            Self::Fuel => "fuel_exhausted",
            Self::InvalidResponse(_) => "invalid_response",
            Self::Overloaded => "overloaded",
        }
    }
}

/// What a run used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// Units of fuel, the host's prices included.
    pub fuel: u64,
    /// Host calls.
    pub host_calls: u32,
    /// Bytes of linear memory at the end.
    pub memory_bytes: usize,
}

/// A run that is over: what the call gave, and the guest.
pub(crate) struct Run<T> {
    pub(crate) outcome: Result<T, Failure>,
    pub(crate) guest: Guest,
    pub(crate) spent: Spent,
}

impl Engine {
    /// Run a guest in a fresh instance of a program: `call` gets the store and the instance, and makes one
    /// call. An error is a fault of the host that lost the guest.
    pub(crate) async fn run<T, F>(&self, program: Arc<Program>, guest: Guest, call: F) -> Result<Run<T>>
    where
        T: Send + 'static,
        F: for<'a> FnOnce(&'a Program, &'a mut Store<Guest>, Instance) -> BoxFuture<'a, wasmtime::Result<T>>
            + Send
            + 'static,
    {
        let runtime = self.0.runtime()?;
        let engine = self.clone();
        let (tenant, deadline) = (guest.invocation().scope.id().clone(), guest.invocation().deadline);
        let running = Box::pin(trace::current().scope(async move { engine.run_here(&program, guest, call).await }));
        let mut running = self.0.turns.take(tenant, deadline, running);
        if let Some(run) = in_place(runtime, &mut running).await {
            return run;
        }
        let mut task = AbortOnDrop(runtime.spawn(running));
        (&mut task.0).await.map_err(Error::internal)?
    }

    async fn run_here<T, F>(&self, program: &Program, guest: Guest, call: F) -> Result<Run<T>>
    where
        F: for<'a> FnOnce(&'a Program, &'a mut Store<Guest>, Instance) -> BoxFuture<'a, wasmtime::Result<T>>,
    {
        let deadline = guest.invocation().deadline;
        let Some(slot) = self.0.slots.take().await else {
            return Ok(Run { outcome: Err(Failure::Overloaded), guest, spent: Spent::default() });
        };

        let mut burning = Burning(Some(self.store(program, guest).map_err(Error::internal)?));
        let called = async {
            let store = burning.store();
            let instance = program.instance.instantiate_async(&mut *store).await?;
            call(program, store, instance).await
        };
        let called = until(deadline, AssertUnwindSafe(called).catch_unwind()).await;

        // The instance ends here: before the answer is given, and before anything is committed.
        let (guest, fuel) = burning.end();
        drop(slot);
        if guest.limiter.denied() {
            self.0.memory_denied.fetch_add(1, Ordering::Relaxed);
        }
        let spent = Spent { fuel, host_calls: guest.host_calls(), memory_bytes: guest.memory_bytes() };
        Ok(Run { outcome: outcome(called, &guest), guest, spent })
    }

    /// A store whose limits are set before anything of the guest's is in it.
    fn store(&self, program: &Program, guest: Guest) -> wasmtime::Result<Store<Guest>> {
        let fuel = guest.budget().fuel;
        let answer = usize::try_from(guest.budget().response_body_bytes).unwrap_or(usize::MAX);
        let mut store = Store::try_new(program.instance.engine(), guest)?;
        store.limiter(|guest| &mut guest.limiter);
        store.set_hostcall_fuel(HOSTCALL_BYTES.max(answer.saturating_add(ANSWER_SLACK_BYTES)));
        store.set_max_component_handles(HANDLES);
        store.set_fuel(fuel)?;
        store.fuel_async_yield_interval(Some(SLICE_FUEL))?;
        Ok(store)
    }
}

/// A store with a guest. What a guest burned whose caller went away is told when it is dropped: it was computed all the
/// same.
struct Burning(Option<Store<Guest>>);

impl Burning {
    fn store(&mut self) -> &mut Store<Guest> {
        self.0.as_mut().expect("only the end takes it")
    }

    /// The guest, and the fuel that it burned.
    fn end(mut self) -> (Guest, u64) {
        let store = self.0.take().expect("only the end takes it");
        let fuel = burned(&store);
        (store.into_data(), fuel)
    }
}

impl Drop for Burning {
    fn drop(&mut self) {
        if let Some(store) = self.0.take() {
            (store.data().invocation().abandoned)(burned(&store));
        }
    }
}

fn burned(store: &Store<Guest>) -> u64 {
    store.data().budget().fuel.saturating_sub(store.get_fuel().unwrap_or(0))
}

/// Poll a guest where its caller is, until it ends, or has used up its slice, when it asks to be polled again at once, or
/// finds no turn. The runtime is for what it waits for.
async fn in_place<T>(runtime: &Runtime, running: &mut InTurns<T>) -> Option<T> {
    let alarm = Arc::new(Alarm::default());
    let waker = Waker::from(alarm.clone());
    std::future::poll_fn(|context| {
        alarm.caller.register(context.waker());
        alarm.state.store(Alarm::POLLING, Ordering::SeqCst);
        let _runtime = runtime.enter();
        match running.poll_unpin(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => {
                let woken = alarm.state.swap(0, Ordering::SeqCst) & Alarm::WOKEN != 0;
                if woken || running.waits() { Poll::Ready(None) } else { Poll::Pending }
            }
        }
    })
    .await
}

/// Wakes a guest's caller, or notes that the guest was woken while it was polled.
#[derive(Default)]
struct Alarm {
    caller: AtomicWaker,
    state: AtomicU8,
}

impl Alarm {
    const POLLING: u8 = 1;
    const WOKEN: u8 = 2;
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.fetch_or(Self::WOKEN, Ordering::SeqCst) & Self::POLLING == 0 {
            self.caller.wake();
        }
    }
}

/// Poll until the deadline. It is looked at before every poll, since a guest that computes is always ready; the
/// timer is for one that waits.
async fn until<F: Future>(deadline: Instant, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut alarm = pin!(None);
    std::future::poll_fn(|context| {
        if Instant::now() >= deadline {
            return Poll::Ready(None);
        }
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        if alarm.is_none() {
            alarm.set(Some(tokio::time::sleep_until(deadline.into())));
        }
        match alarm.as_mut().as_pin_mut().map(|alarm| alarm.poll(context)) {
            Some(Poll::Ready(())) => Poll::Ready(None),
            _ => Poll::Pending,
        }
    })
    .await
}

type Panic = Box<dyn Any + Send>;

fn outcome<T>(called: Option<Result<wasmtime::Result<T>, Panic>>, guest: &Guest) -> Result<T, Failure> {
    let Some(called) = called else {
        return Err(Failure::Deadline);
    };
    // Whatever else happened: it was computed from a state that is gone.
    if let Some(key) = guest.effects.stale() {
        return Err(Failure::Rerun(key.clone()));
    }
    match called {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(failure(&error, guest)),
        Err(panic) => {
            let text =
                panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            tracing::error!(invocation = guest.invocation().id, panic = text, "a host function panicked");
            Err(Failure::Trap { code: "internal", message: "the host failed; the operator's log has the cause".into() })
        }
    }
}

fn failure(error: &wasmtime::Error, guest: &Guest) -> Failure {
    if let Some(stop) = error.downcast_ref::<Stop>() {
        return match stop {
            Stop::Deadline => Failure::Deadline,
            Stop::Fuel => Failure::Fuel,
            Stop::HostCalls => Failure::Trap {
                code: "hostcall_budget",
                message: format!("more than {} host calls", guest.budget().host_calls),
            },
            Stop::HostCallBytes => Failure::Trap {
                code: "hostcall_bytes",
                message: format!("more than {} bytes in host calls", guest.budget().host_call_bytes),
            },
            // `outcome` has looked for the key; a stop without one would be ours.
            Stop::Stale => internal(error, guest),
        };
    }
    if error.is::<PoolConcurrencyLimitError>() {
        return Failure::Overloaded;
    }
    if guest.limiter.denied() {
        // What a guest does after memory was refused follows from that: most abort.
        let message = format!("more than {} bytes of memory", guest.budget().memory_bytes);
        return Failure::Trap { code: "memory_exhausted", message };
    }
    if error.is::<Error>() {
        return internal(error, guest);
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => Failure::Fuel,
        Some(Trap::StackOverflow) => {
            Failure::Trap { code: "stack_exhausted", message: "the call stack is exhausted".into() }
        }
        Some(trap) => Failure::Trap { code: "plugin_failed", message: described(&trap.to_string(), error) },
        None => {
            let text = error.root_cause().to_string();
            // The lift of an answer has no guest on the stack, that of a host call's arguments has.
            if text.contains("hostcalls has been exhausted") && error.downcast_ref::<WasmBacktrace>().is_none() {
                return Failure::InvalidResponse("the answer is larger than the plan allows".into());
            }
            Failure::Trap { code: "plugin_failed", message: described(&text, error) }
        }
    }
}

/// A trap's reason and the innermost function that has a name.
fn described(reason: &str, error: &wasmtime::Error) -> String {
    let backtrace = error.downcast_ref::<WasmBacktrace>();
    let function =
        backtrace.and_then(|trace| trace.frames().iter().find_map(|frame| frame.func_name().map(str::to_owned)));
    let text = match function {
        Some(function) => format!("{reason}, in {function}"),
        None => reason.to_owned(),
    };
    text.chars().take(MESSAGE_CHARS).flat_map(char::escape_debug).collect()
}

fn internal(error: &wasmtime::Error, guest: &Guest) -> Failure {
    tracing::error!(invocation = guest.invocation().id, ?error, "a host function failed");
    Failure::Trap { code: "internal", message: "the host failed; the operator's log has the cause".into() }
}

/// A task that ends with whoever waits for it.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::turns::Turns;
    use crate::kernel::tenant::TenantId;

    fn runtime() -> Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    /// A guest that does this, in turns.
    fn guest<T>(turns: &Arc<Turns>, does: impl Future<Output = T> + Send + 'static) -> InTurns<T> {
        turns.take(TenantId::new(), Instant::now() + Duration::from_secs(60), Box::pin(does))
    }

    #[test]
    fn a_guest_that_waits_for_an_answer_stays_with_its_caller() {
        let (caller, guests, turns) = (runtime(), runtime(), Turns::new(1));
        let (answer, answered) = tokio::sync::oneshot::channel();
        let mut waits = guest(&turns, answered);
        let answering = async {
            tokio::task::yield_now().await;
            answer.send("rows").unwrap();
        };
        let (ended, ()) = caller.block_on(async { tokio::join!(in_place(&guests, &mut waits), answering) });
        assert_eq!(ended, Some(Ok("rows")));
    }

    #[test]
    fn a_guest_that_has_used_up_its_slice_leaves() {
        let (caller, guests, turns) = (runtime(), runtime(), Turns::new(1));
        let mut slices = 0;
        let mut computes = guest(
            &turns,
            std::future::poll_fn(move |context| {
                slices += 1;
                context.waker().wake_by_ref();
                if slices < 3 { Poll::Pending } else { Poll::Ready(slices) }
            }),
        );
        assert_eq!(caller.block_on(in_place(&guests, &mut computes)), None);
        assert_eq!(caller.block_on(computes), 3);
    }

    #[test]
    fn a_guest_that_finds_no_turn_leaves() {
        let (caller, guests, turns) = (runtime(), runtime(), Turns::new(1));
        let mut second = guest(&turns, std::future::ready(()));
        // It holds the only turn while it is polled.
        let guests = Arc::new(guests);
        let own = guests.clone();
        let mut first = guest(&turns, async move { in_place(&own, &mut second).await });
        assert_eq!(caller.block_on(async { futures_util::poll!(&mut first) }), Poll::Ready(None));
    }
}
