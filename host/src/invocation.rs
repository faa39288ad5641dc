//! The only way to run a guest: admit it, run it on a snapshot, commit what it staged, run it again if
//! that no longer fits, and write down what happened.
//!
//! Promises: an answer that says ok is given after its effects are durable; of anything else nothing
//! remains but the record and the compute it burned. A cause that has an answer gets that answer and
//! runs nothing. The deadline bounds all runs together.

mod admission;
mod tally;

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

pub use self::tally::{FLUSH, Tally};
use crate::effects::lanes::Lanes;
use crate::effects::{Compute, Effects, Key, Shard, Verdict};
use crate::engine::guest::{Budget, Guest, Invocation, Level, Log, Services};
use crate::engine::{Digest, Engine, Program};
use crate::kernel::db::Db;
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::id;
use crate::kernel::tenant::TenantScope;
use crate::kernel::trace::{self, Span};
use crate::services::idempotency::{Answer as StoredAnswer, Cause, Idempotency};
use crate::services::invocations::{self, Line, Record};
use crate::services::plugins::{Released, components};
use crate::triggers::{self, Answer, Call, Ended, Failure};

/// Runs in the lane of the key that changed, before the tenant's other commits are held back.
const LANE_RUNS: u32 = 8;
/// Runs with the tenant's other commits held back, on this node and, for a second each, on the others.
const GATE_RUNS: u32 = 64;
/// What a plugin that refuses its input for good has answered: the caller's mistake, and nobody's failure.
const REJECTED: &str = "rejected";
/// How much longer than its deadline an invocation may hold its idempotency key.
const LEASE: Duration = Duration::from_secs(5);

/// Everything that an invocation needs, shared by all.
#[derive(Clone)]
pub struct Invoker(Arc<Inner>);

struct Inner {
    engine: Engine,
    db: Db,
    shard: Shard,
    services: Arc<Services>,
    idempotency: Idempotency,
    tally: Tally,
    lanes: Lanes,
    admission: admission::Admission,
    counts: Counts,
}

/// What was run since the process started.
#[derive(Debug, Default)]
pub struct Counts {
    /// Invocations that ended, answers given again not among them.
    pub invocations: AtomicU64,
    /// Those that failed.
    pub failures: AtomicU64,
    /// Runs after an invocation's first, because data changed underneath.
    pub reruns: AtomicU64,
    /// Requests that got a stored answer.
    pub replays: AtomicU64,
}

/// What is to be run.
pub struct Work {
    /// Whose it is.
    pub scope: TenantScope,
    /// The version that runs.
    pub released: Arc<Released>,
    /// The trigger with its input.
    pub call: Call,
    /// What a repetition of this request would have in common with it.
    pub cause: Option<Cause>,
    /// How many invocations called each other until this one.
    pub depth: u8,
}

/// What came of it.
pub struct Done {
    /// The invocation that gave the answer.
    pub invocation: String,
    /// Whether the answer was stored before.
    pub replayed: bool,
    /// The answer.
    pub answer: StoredAnswer,
}

/// An invocation that did not answer ok.
#[derive(Debug)]
pub struct Failed {
    /// Its id.
    pub invocation: String,
    /// Why.
    pub error: Error,
}

impl Invoker {
    /// An invoker over these parts.
    pub fn new(engine: Engine, db: Db, shard: Shard, services: Arc<Services>, idempotency: Idempotency) -> Self {
        Self(Arc::new(Inner {
            tally: Tally::new(shard.clone()),
            db,
            shard,
            services,
            idempotency,
            lanes: Lanes::default(),
            admission: admission::Admission::new(engine.slots()),
            engine,
            counts: Counts::default(),
        }))
    }

    /// Records and usage that are not yet in the database.
    pub fn tally(&self) -> &Tally {
        &self.0.tally
    }

    /// What was run since the process started.
    pub fn counts(&self) -> &Counts {
        &self.0.counts
    }

    /// Invocations that were turned away for lack of a place.
    pub fn shed(&self) -> u64 {
        self.0.admission.shed()
    }

    /// Run one invocation to its end. Dropping the future cancels it up to the point where its effects are
    /// handed to the committer, and changes nothing from there on.
    pub async fn run(&self, work: Work) -> Result<Done, Failed> {
        let span = trace::child("invocation");
        let started = Started::now(self, &work, span.clone());
        let invocation = started.record.id.clone();
        let result = span.scope(self.run_claimed(work, started)).await;
        match &result {
            Ok(done) => span.set("chalet.replayed", done.replayed),
            Err(error) if error.code() != REJECTED => span.fail(error.code()),
            Err(_) => {}
        }
        result.map_err(|error| Failed { invocation, error })
    }

    /// Look for the answer to a known cause, which costs no place and no instance; else hold the cause's key
    /// while it runs.
    async fn run_claimed(&self, work: Work, mut started: Started) -> Result<Done> {
        // Boxed: what a run may need is larger than all around it, and would be moved with it from layer to layer.
        let Some(cause) = &work.cause else { return Box::pin(self.run_started(work, started)).await };
        if let Some(done) = self.answered(&work.scope, cause).await.inspect_err(|_| started.forget())? {
            started.forget();
            return Ok(done);
        }
        let lease = Duration::from_millis(work.scope.plan().timeout_ms) + LEASE;
        let held = self.0.idempotency.claim(&work.scope, cause, lease).await.inspect_err(|_| started.forget())?;
        let done = Box::pin(self.run_started(work, started)).await;
        match &done {
            // The answer is stored, as all but failures are: a repetition finds it and asks for no key.
            Ok(done) if done.answer.status < 500 => drop(held),
            _ => held.release().await,
        }
        done
    }

    async fn run_started(&self, work: Work, mut started: Started) -> Result<Done> {
        let inner = &*self.0;
        let budget = Budget::of(work.scope.plan(), &work.released.manifest.limits);
        let _place = inner.admission.admit(&work.scope).await.inspect_err(|_| started.forget())?;
        let program = match self.program(&work).await {
            Ok(program) => program,
            Err(error) => return Err(started.fail(self, &work, error, Vec::new())),
        };
        // That this node had to compile the program first is not the guest's time.
        let deadline = Instant::now() + budget.timeout;
        let fuel = budget.fuel;
        let invocation = Arc::new(Invocation {
            id: started.record.id.clone(),
            scope: work.scope.clone(),
            manifest: work.released.manifest.clone(),
            cause: work.cause.as_ref().map_or_else(|| started.record.id.clone(), |cause| hex::encode(cause.digest())),
            seed: rand::random(),
            deadline,
            abandoned: started.abandoned(),
            depth: work.depth,
        });
        let effects = inner.shard.begin_at(&work.scope, started.now_ms);
        let mut guest = Guest::new(invocation, budget, inner.services.clone(), effects);
        let mut lane = None;
        let mut gate = None;
        loop {
            if let Some(cause) = &work.cause {
                // Read inside the transaction: whoever stores an answer meanwhile makes this one run again.
                match inner.idempotency.find(&mut guest.effects, cause).await {
                    Ok(None) => {}
                    Ok(Some(answer)) => {
                        started.forget();
                        inner.counts.replays.fetch_add(1, Ordering::Relaxed);
                        return Ok(Done { invocation: answer.invocation.clone(), replayed: true, answer });
                    }
                    Err(error) => return Err(started.fail(self, &work, error, Vec::new())),
                }
            }
            let ended = match self.run_once(program.clone(), guest, work.call.clone()).await {
                Ok(ended) => ended,
                Err(error) => return Err(started.fail(self, &work, error, Vec::new())),
            };
            started.record.fuel = started.record.fuel.saturating_add(ended.spent.fuel);
            started.record.host_calls = ended.spent.host_calls;
            let changed;
            (changed, guest) = match self.conclude(&work, &mut started, ended, gate.is_some(), fuel).await {
                Concluded::Done(result) => return result,
                Concluded::Again(key, guest) => (key, *guest),
            };
            started.record.reruns += 1;
            inner.counts.reruns.fetch_add(1, Ordering::Relaxed);
            if Instant::now() >= deadline || started.record.reruns > LANE_RUNS + GATE_RUNS {
                let conflict = Error::new(Kind::Conflict, "conflict", "others kept changing the same data; try again")
                    .retry_after(Duration::from_secs(1));
                return Err(started.fail(self, &work, conflict, Vec::new()));
            }
            if started.record.reruns > LANE_RUNS {
                lane = None;
                // First this node's own commits, then the other nodes'; theirs anew for each run, since they are
                // not held back for long.
                let own = match gate.take() {
                    Some((own, _)) => own,
                    None => inner.lanes.close_gate(work.scope.id()).await,
                };
                let others = inner.shard.store().close_gate(&work.scope).await;
                if let Err(error) = &others {
                    tracing::debug!(%error, "other nodes could not be held back");
                }
                gate = Some((own, others.ok()));
            } else if lane.as_ref().is_none_or(|(_, held)| *held != changed) {
                // Given back before the next is taken, so that two invocations never wait for each other.
                drop(lane.take());
                lane = Some((inner.lanes.enter(work.scope.id(), &changed).await, changed));
            }
        }
    }

    async fn run_once(&self, program: Arc<Program>, guest: Guest, call: Call) -> Result<Ended> {
        let span = trace::child("run");
        let ended = span.scope(triggers::run(&self.0.engine, program, guest, call)).await;
        match &ended {
            Ok(ended) => {
                span.set("chalet.fuel", ended.spent.fuel);
                span.set("chalet.host_calls", ended.spent.host_calls);
                match &ended.outcome {
                    Ok(_) => {}
                    Err(failure @ (Failure::Rerun(_) | Failure::Reject(_))) => span.set("chalet.code", failure.code()),
                    Err(failure) => span.fail(failure.code()),
                }
            }
            Err(error) => span.fail(error.code()),
        }
        ended
    }

    /// The program of the version: mapped, or fetched and compiled if this node does not have it.
    async fn program(&self, work: &Work) -> Result<Arc<Program>> {
        let inner = &*self.0;
        let digest = Digest::parse(&work.released.version.digest)?;
        if let Some(program) = inner.engine.loaded(&digest) {
            return Ok(program);
        }
        let fetch = components::load(&inner.db, &work.scope, &work.released.version.digest);
        inner.engine.load(&work.scope, &digest, fetch).await
    }

    /// What a run amounts to: an answer, a failure, or a reason to run again. `fuel` is what another run may burn.
    async fn conclude(
        &self,
        work: &Work,
        started: &mut Started,
        ended: Ended,
        gate_held: bool,
        fuel: u64,
    ) -> Concluded {
        let Ended { outcome, guest, .. } = ended;
        let log = lines(&guest.log);
        let answer = match outcome {
            Ok(answer) => answer,
            Err(Failure::Rerun(key)) => return Concluded::again(key, guest, fuel),
            Err(Failure::Reject(reason)) if matches!(work.call, Call::Webhook(_)) && work.cause.is_some() => {
                return self.refuse_for_good(work, started, guest, log, reason, fuel).await;
            }
            Err(failure) => return Concluded::Done(Err(started.fail(self, work, failure_error(failure), log))),
        };
        let (status, given) = given(&started.record.id, answer);
        if status >= 500 {
            let error = Error::new(Kind::Failed, "status", format!("the plugin answered with status {status}"));
            started.fail(self, work, error, log);
            return Concluded::Done(Ok(given));
        }
        started.record.outcome = "ok".into();
        started.record.code = code_of(status);
        let settling = Settling { given, log, gate_held, fuel };
        self.settle(work, started, guest, settling).await
    }

    /// A webhook that the plugin never wants again: the answer is kept, the effects are not.
    async fn refuse_for_good(
        &self,
        work: &Work,
        started: &mut Started,
        guest: Guest,
        log: Vec<Line>,
        reason: String,
        fuel: u64,
    ) -> Concluded {
        started.record.outcome = REJECTED.into();
        started.record.code = REJECTED.into();
        started.record.error = Some(reason.clone());
        let problem = serde_json::json!({ "type": "about:blank", "title": "Unprocessable Content", "status": 422,
            "code": "rejected", "detail": reason, "invocation": started.record.id });
        let given = Done {
            invocation: started.record.id.clone(),
            replayed: false,
            answer: StoredAnswer {
                invocation: started.record.id.clone(),
                status: 422,
                headers: vec![("content-type".into(), "application/problem+json".into())],
                body: problem.to_string().into(),
            },
        };
        let settling = Settling { given, log, gate_held: false, fuel };
        self.settle(work, started, guest.again(fuel), settling).await
    }

    /// Commit what was staged, with its record and its stored answer; without effects there is no commit.
    async fn settle(&self, work: &Work, started: &mut Started, mut guest: Guest, settling: Settling) -> Concluded {
        let inner = &*self.0;
        let Settling { given, log, gate_held, fuel } = settling;
        started.finish(given.answer.body.len() as u64);
        if guest.effects.is_empty() && work.cause.is_none() {
            inner.tally.add(&work.scope, started.close(), log);
            inner.counts.invocations.fetch_add(1, Ordering::Relaxed);
            return Concluded::Done(Ok(given));
        }
        let marker = match stage_end(inner, work, started, &mut guest.effects, &given.answer, &log) {
            Ok(marker) => marker,
            Err(error) => return Concluded::Done(Err(started.fail(self, work, error, log))),
        };
        let fresh = guest.effects.again();
        let set = std::mem::replace(&mut guest.effects, fresh).into_set(Some(marker), Some(started.compute()));
        let open = if gate_held { None } else { Some(inner.lanes.pass_gate(work.scope.id()).await) };
        let verdict = inner.shard.commit(set).await;
        drop(open);
        match verdict {
            Ok(Verdict::Committed { .. }) => {
                inner.tally.remember(&work.scope, started.close());
                inner.counts.invocations.fetch_add(1, Ordering::Relaxed);
                Concluded::Done(Ok(given))
            }
            Ok(Verdict::Conflict { key }) => Concluded::again(key, guest, fuel),
            Ok(Verdict::Refused(error)) | Err(error) => Concluded::Done(Err(started.fail(self, work, error, log))),
        }
    }

    async fn answered(&self, scope: &TenantScope, cause: &Cause) -> Result<Option<Done>> {
        let mut effects = self.0.shard.begin(scope);
        let found = self.0.idempotency.find(&mut effects, cause).await?;
        Ok(found.map(|answer| {
            self.0.counts.replays.fetch_add(1, Ordering::Relaxed);
            Done { invocation: answer.invocation.clone(), replayed: true, answer }
        }))
    }
}

/// What a run that answered ok still needs.
struct Settling {
    given: Done,
    log: Vec<Line>,
    gate_held: bool,
    /// What another run may burn.
    fuel: u64,
}

/// A guest's log as it is recorded; a line says so if more was written than is kept.
fn lines(log: &Log) -> Vec<Line> {
    let level = |level: Level| match level {
        Level::Trace => "trace",
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
    };
    let mut lines: Vec<Line> = log
        .lines()
        .iter()
        .map(|line| Line { level: level(line.level).into(), message: line.message.clone() })
        .collect();
    if log.truncated() {
        lines.push(Line {
            level: "warn".into(),
            message: "the log was cut here: the invocation wrote more than is kept".into(),
        });
    }
    lines
}

enum Concluded {
    Done(Result<Done>),
    Again(Key, Box<Guest>),
}

impl Concluded {
    /// Another run of the same invocation, with nothing read and nothing staged.
    fn again(key: Key, guest: Guest, fuel: u64) -> Self {
        Self::Again(key, Box::new(guest.again(fuel)))
    }
}

/// Stage what the end of an invocation adds to its effects; the row that marks the commit.
fn stage_end(
    inner: &Inner,
    work: &Work,
    started: &Started,
    effects: &mut Effects,
    answer: &StoredAnswer,
    log: &[Line],
) -> Result<Key> {
    effects.end();
    if let Some(cause) = &work.cause {
        inner.idempotency.store(effects, cause, answer)?;
    }
    invocations::record(effects, &started.record, log)?;
    invocations::key(&started.record.id)
}

/// A success's code: its status.
fn code_of(status: u16) -> Cow<'static, str> {
    match status {
        200 => "200".into(),
        201 => "201".into(),
        204 => "204".into(),
        other => other.to_string().into(),
    }
}

fn given(invocation: &str, answer: Answer) -> (u16, Done) {
    let response = match answer {
        Answer::Http(response) => response,
        Answer::Webhook(Some(response)) => response,
        Answer::Webhook(None) => {
            triggers::http::Response { status: 200, headers: Vec::new(), body: bytes::Bytes::new() }
        }
    };
    let status = response.status;
    let answer =
        StoredAnswer { invocation: invocation.to_owned(), status, headers: response.headers, body: response.body };
    (status, Done { invocation: invocation.to_owned(), replayed: false, answer })
}

/// A failure of a guest, as its caller sees it.
fn failure_error(failure: Failure) -> Error {
    let code = failure.code();
    match failure {
        Failure::Rerun(_) => Error::internal("a re-run was taken for a failure"),
        Failure::Retry { after_ms } => Error::unavailable(code, "the plugin asks to be called again")
            .retry_after(Duration::from_millis(after_ms.min(86_400_000))),
        Failure::Reject(reason) => Error::new(Kind::Invalid, code, reason),
        Failure::Trap { message, .. } => Error::new(Kind::Failed, code, message),
        Failure::Deadline => {
            Error::new(Kind::Failed, code, "the plugin did not answer in its time; nothing was changed")
        }
        Failure::Fuel => Error::new(
            Kind::Failed,
            code,
            "the plugin burned the fuel that one invocation may burn; nothing was changed",
        ),
        Failure::Overloaded => Error::unavailable(code, "the server has no place for the plugin now; try again")
            .retry_after(Duration::from_secs(1)),
        Failure::InvalidResponse(reason) => Error::new(Kind::Failed, code, reason),
    }
}

/// An invocation that has begun and is not yet counted. If it is dropped before it ends, because its caller
/// went away, it is counted as cancelled.
struct Started {
    at: Instant,
    now_ms: i64,
    record: Record,
    bytes_in: u64,
    bytes_out: u64,
    open: Option<Arc<Open>>,
    span: Span,
}

/// What is counted of an invocation whose caller went away, when both have let go of it: the caller, and the guest, which
/// outlives it by a moment and only then knows what it burned.
struct Open {
    tally: Tally,
    scope: TenantScope,
    cancelled: OnceLock<(Record, Compute)>,
    fuel: AtomicU64,
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some((mut record, mut compute)) = self.cancelled.take() else { return };
        let fuel = *self.fuel.get_mut();
        record.fuel = record.fuel.saturating_add(fuel);
        compute.fuel = record.fuel;
        self.tally.add(&self.scope, (record, compute), Vec::new());
    }
}

impl Started {
    fn now(invoker: &Invoker, work: &Work, span: Span) -> Self {
        let now_ms = invoker.0.shard.clock().now_ms();
        let (trigger, bytes_in) = match &work.call {
            Call::Http(request) => ("http", request.body.len()),
            Call::Webhook(delivery) => ("webhook", delivery.body.len()),
        };
        let record = Record {
            id: id::at(now_ms),
            plugin: work.released.plugin.clone(),
            version: work.released.number.clone(),
            trigger: trigger.into(),
            outcome: "cancelled".into(),
            code: "cancelled".into(),
            fuel: 0,
            duration_ms: 0,
            host_calls: 0,
            reruns: 0,
            error: None,
            started_at_ms: now_ms,
        };
        let (tally, scope) = (invoker.0.tally.clone(), work.scope.clone());
        let open = Some(Arc::new(Open { tally, scope, cancelled: OnceLock::new(), fuel: AtomicU64::new(0) }));
        span.set("chalet.tenant", work.scope.name());
        span.set("chalet.plugin", &record.plugin[..]);
        span.set("chalet.version", &record.version[..]);
        span.set("chalet.trigger", trigger);
        span.set("chalet.invocation.id", &record.id[..]);
        Self { at: Instant::now(), now_ms, record, bytes_in: bytes_in as u64, bytes_out: 0, open, span }
    }

    /// It was no invocation after all: nothing ran.
    fn forget(&mut self) {
        self.open = None;
    }

    fn finish(&mut self, bytes_out: u64) {
        self.bytes_out = bytes_out;
        self.record.duration_ms = u64::try_from(self.at.elapsed().as_millis()).unwrap_or(u64::MAX);
    }

    fn compute(&self) -> Compute {
        Compute {
            plugin: self.record.plugin.clone(),
            hour_ms: self.now_ms - self.now_ms.rem_euclid(Compute::HOUR_MS),
            invocations: 1,
            failures: u64::from(self.record.outcome != "ok"),
            fuel: self.record.fuel,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
        }
    }

    /// What is told the fuel of a run that ended without its caller.
    fn abandoned(&self) -> Box<dyn Fn(u64) + Send + Sync> {
        let open = self.open.clone();
        Box::new(move |fuel| {
            if let Some(open) = &open {
                open.fuel.fetch_add(fuel, Ordering::Relaxed);
            }
        })
    }

    /// Say of its span how it ended.
    fn describe(&self) {
        let (record, span) = (&self.record, &self.span);
        span.set("chalet.outcome", &record.outcome[..]);
        span.set("chalet.code", &record.code[..]);
        span.set("chalet.fuel", record.fuel);
        span.set("chalet.reruns", record.reruns);
        if !matches!(&record.outcome[..], "ok" | REJECTED) {
            span.fail(&record.code);
        }
    }

    /// End it: what is left to count.
    fn close(&mut self) -> (Record, Compute) {
        // A fault of the host may have lost the guest, and not what it burned.
        let lost = self.open.take().map_or(0, |open| open.fuel.load(Ordering::Relaxed));
        self.record.fuel = self.record.fuel.saturating_add(lost);
        self.describe();
        (self.record.clone(), self.compute())
    }

    /// End it as a failure; the error goes on to the caller.
    fn fail(&mut self, invoker: &Invoker, work: &Work, error: Error, log: Vec<Line>) -> Error {
        self.record.outcome = match error.code() {
            REJECTED => REJECTED,
            "conflict" => "conflict",
            _ => "failed",
        }
        .into();
        self.record.code = error.code().into();
        self.record.error = Some(error.message().to_owned());
        self.finish(0);
        if error.kind() == Kind::Internal {
            let trace = trace::id();
            tracing::error!(invocation = %self.record.id, trace, ?error, "an invocation failed through a fault of the host");
        }
        invoker.0.tally.add(&work.scope, self.close(), log);
        invoker.0.counts.invocations.fetch_add(1, Ordering::Relaxed);
        invoker.0.counts.failures.fetch_add(1, Ordering::Relaxed);
        error
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            self.finish(0);
            self.describe();
            let _ = open.cancelled.set((self.record.clone(), self.compute()));
        }
    }
}
