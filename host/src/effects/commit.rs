//! The way of every change: transactions that end about the same time share one database transaction.
//!
//! Waiting sets are taken round-robin by tenant, so that a busy tenant does not fill the batch; a batch
//! starts when the last one ends, without a timer. A set in the committer's hands is past the point of
//! no return: nothing cancels it, and its caller learns what became of it, or that nobody knows.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::{Notify, oneshot};

use crate::effects::cache::{Cache, Handle};
use crate::effects::set::{Facts, OUTCOME_UNKNOWN, Set, Tag, Verdict};
use crate::effects::together::Together;
use crate::effects::{Breaks, Effects, Gate, Key, Range, Row, SharedStore};
use crate::kernel::clock::Clock;
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::tenant::{TenantId, TenantScope};
use crate::kernel::trace::{self, Span};

/// Rows of a batch: keeps the writer's transaction within a few milliseconds.
const BATCH_ROWS: usize = 512;
/// Bytes of a batch, for the same reason.
const BATCH_BYTES: usize = 1 << 20;
/// How long a set may wait before it enters a batch; past it the caller is told to come back.
const WAIT: Duration = Duration::from_secs(2);
/// Sets that may wait, all tenants: some seconds of work for a disk that syncs 100 times a second.
const WAITING: usize = 16_384;
/// Runs of a transaction of the host's own before a conflict is reported.
const RUNS: u32 = 16;
/// Those of them before other nodes' commits of the tenant are held back: who loses so often is slower than they are.
const UNAIDED: u32 = RUNS / 2;

/// One database that holds some tenants' data: reads, transactions, and the one way to commit.
#[derive(Clone)]
pub struct Shard(Arc<Inner>);

struct Inner {
    store: SharedStore,
    cache: Cache,
    /// Reads of keys; ranges are read beside them.
    reads: Together<Key, (Tag, Vec<Option<Row>>)>,
    clock: Clock,
    exclusive: bool,
    mixed: bool,
    queue: Mutex<Queue>,
    wake: Notify,
    counts: Counts,
    breaks: Breaks,
    generation: AtomicU64,
}

/// The runs of a transaction of the host's own.
#[derive(Default)]
pub(crate) struct Runs {
    lost: u32,
    /// For the run that comes: nobody is held back for long.
    gate: Option<Gate>,
}

impl Runs {
    /// Before another run, since what the last one read has changed; an error if it was one of too many.
    pub(crate) async fn again(&mut self, shard: &Shard, scope: &TenantScope) -> Result<()> {
        self.lost += 1;
        self.gate = None;
        if self.lost >= RUNS {
            return Err(Error::new(Kind::Conflict, "conflict", "others kept changing the same data; try again"));
        }
        if self.lost >= UNAIDED {
            let gate = shard.store().close_gate(scope).await;
            self.gate = gate.inspect_err(|error| tracing::debug!(%error, "other nodes could not be held back")).ok();
        }
        Ok(())
    }
}

/// What the committer has done since the process started.
#[derive(Debug, Default)]
pub struct Counts {
    /// Database transactions.
    pub batches: AtomicU64,
    /// Sets that were committed.
    pub commits: AtomicU64,
    /// Sets whose facts no longer held.
    pub conflicts: AtomicU64,
    /// Statements that read.
    pub reads: AtomicU64,
    /// Reads that the cache answered.
    pub cached_reads: AtomicU64,
}

#[derive(Default)]
struct Queue {
    waiting: usize,
    order: VecDeque<TenantId>,
    sets: HashMap<TenantId, VecDeque<Pending>>,
    busy: HashSet<TenantId>,
    closed: bool,
}

struct Pending {
    set: Set,
    since: Instant,
    caller: Caller,
}

/// Who waits for the verdict on a set.
struct Caller {
    done: oneshot::Sender<Verdict>,
    span: Span,
}

impl Caller {
    /// Tell what became of the set; its span has ended by then.
    fn tell(self, verdict: Verdict) {
        match &verdict {
            Verdict::Committed { .. } => {}
            // It is run again: that is no error.
            Verdict::Conflict { .. } => self.span.set("chalet.code", "conflict"),
            Verdict::Refused(error) => self.span.fail(error.code()),
        }
        drop(self.span);
        let _ = self.done.send(verdict);
    }
}

/// Run a future that may block on a thread of its own, to its end or the runtime's.
fn on_own_thread(future: impl Future<Output = ()> + Send + 'static) {
    let runtime = tokio::runtime::Handle::current();
    let (alive, gone) = oneshot::channel::<()>();
    runtime.spawn(async move {
        let _alive = alive;
        std::future::pending::<()>().await;
    });
    let run = move || {
        runtime.block_on(async {
            tokio::select! {
                () = future => {}
                _ = gone => {}
            }
        });
    };
    std::thread::Builder::new().name("commit".into()).spawn(run).expect("the system gives a process its first threads");
}

impl Shard {
    /// A shard over a store; its committer runs on the current runtime until [`Self::close`].
    pub fn new(store: SharedStore, clock: Clock, breaks: Breaks) -> Self {
        let batching = store.batching();
        let shard = Self(Arc::new(Inner {
            store,
            cache: Cache::new(breaks),
            reads: Together::default(),
            clock,
            exclusive: batching.exclusive,
            mixed: batching.mixed,
            queue: Mutex::default(),
            wake: Notify::new(),
            counts: Counts::default(),
            generation: AtomicU64::new(0),
            breaks,
        }));
        for _ in 0..batching.lanes {
            if batching.blocking {
                on_own_thread(shard.clone().lane());
            } else {
                tokio::spawn(shard.clone().lane());
            }
        }
        shard
    }

    /// The store underneath, for what is no transaction.
    pub fn store(&self) -> &dyn crate::effects::Store {
        &*self.0.store
    }

    /// The shard's time.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// What the committer has done.
    pub fn counts(&self) -> &Counts {
        &self.0.counts
    }

    /// Sets waiting for a batch.
    pub fn waiting(&self) -> usize {
        self.queue().waiting
    }

    /// Forget the rows of a tenant that was deleted.
    pub fn forget(&self, scope: &TenantScope) {
        self.0.cache.forget(Some(scope.id()));
    }

    /// Whether rule R2 is off.
    pub(crate) fn checks_off(&self) -> bool {
        self.0.breaks.opacity
    }

    /// Begin a transaction at the shard's time.
    pub fn begin(&self, scope: &TenantScope) -> Effects {
        Effects::new(self.clone(), scope.clone(), self.0.clock.now_ms())
    }

    /// Begin a transaction at a time that was fixed before.
    pub fn begin_at(&self, scope: &TenantScope, now_ms: i64) -> Effects {
        Effects::new(self.clone(), scope.clone(), now_ms)
    }

    /// Read rows, from the cache where that is allowed. `snapshot` is the state that the caller has already
    /// seen; on a store that others write to, the first read of a transaction always asks the database.
    pub(crate) async fn read(
        &self,
        scope: &TenantScope,
        keys: &[Key],
        snapshot: Option<Tag>,
    ) -> Result<(Tag, Vec<Option<Row>>)> {
        let handle = self.0.cache.handle(scope.id());
        if (self.0.exclusive || snapshot.is_some())
            && let Some(known) = handle.lookup(keys, snapshot)
        {
            self.0.counts.cached_reads.fetch_add(1, Ordering::Relaxed);
            return Ok(known);
        }
        let (shard, reader) = (self.clone(), scope.clone());
        let ask = async move |keys: Vec<Key>| {
            shard.0.counts.reads.fetch_add(1, Ordering::Relaxed);
            let (tag, rows) = shard.0.store.read(&reader, &keys).await?;
            if shard.same_database() {
                handle.fill(tag, &keys, &rows, !shard.0.breaks.cache);
            }
            Ok((tag, rows))
        };
        if self.0.exclusive {
            // There is no round trip to share.
            return ask(keys.to_vec()).await;
        }
        let count = keys.len();
        let take = |(tag, rows): &(Tag, Vec<Option<Row>>), from: usize| (*tag, rows[from..from + count].to_vec());
        self.0.reads.ask(scope.id(), keys, ask, take).await
    }

    /// Read a row that is a setting: as it is, or where others write too as it was at most a second ago. It belongs to
    /// no snapshot.
    pub async fn setting(&self, scope: &TenantScope, key: &Key) -> Result<Option<Row>> {
        let handle = self.0.cache.handle(scope.id());
        if !self.0.exclusive
            && let Some(known) = handle.setting(key)
        {
            self.0.counts.cached_reads.fetch_add(1, Ordering::Relaxed);
            return Ok(known);
        }
        let (_, rows) = self.read(scope, std::slice::from_ref(key), None).await?;
        let row = rows.into_iter().next().flatten();
        if !self.0.exclusive && self.same_database() {
            handle.keep_setting(key, &row);
        }
        Ok(row)
    }

    /// Read a range. Ranges are not cached, but what they show of the head counts.
    pub(crate) async fn scan(
        &self,
        scope: &TenantScope,
        range: &Range,
        now_ms: i64,
        limit: usize,
    ) -> Result<(Tag, Vec<(Bytes, Row)>)> {
        let handle = self.0.cache.handle(scope.id());
        self.0.counts.reads.fetch_add(1, Ordering::Relaxed);
        let (tag, rows) = self.0.store.scan(scope, range, now_ms, limit).await?;
        self.saw(&handle, tag);
        Ok((tag, rows))
    }

    /// Whether these facts are true now.
    pub(crate) async fn holds(&self, scope: &TenantScope, facts: &Facts) -> Result<(Tag, Option<Key>)> {
        let handle = self.0.cache.handle(scope.id());
        self.0.counts.reads.fetch_add(1, Ordering::Relaxed);
        let (tag, changed) = self.0.store.holds(scope, facts).await?;
        self.saw(&handle, tag);
        Ok((tag, changed))
    }

    fn saw(&self, handle: &Handle, tag: Tag) {
        if self.same_database() && !self.0.breaks.cache {
            handle.saw(tag);
        }
    }

    /// Whether the database is still the one that the cache knows; if not, the cache is emptied, and what
    /// was read meanwhile may not enter it.
    fn same_database(&self) -> bool {
        let now = self.0.store.generation();
        if self.0.generation.swap(now, Ordering::SeqCst) == now {
            return true;
        }
        self.0.cache.forget(None);
        false
    }

    /// Run a transaction of the host's own until it commits, at most 16 times. What the closure stages is
    /// committed at once; a closure that stages nothing has read one consistent state.
    pub async fn transact<T>(&self, scope: &TenantScope, run: impl AsyncFn(&mut Effects) -> Result<T>) -> Result<T> {
        self.transact_tagged(scope, run).await.map(|(answer, _)| answer)
    }

    /// The same, with the state that the commit made; none if there was nothing to commit.
    pub async fn transact_tagged<T>(
        &self,
        scope: &TenantScope,
        run: impl AsyncFn(&mut Effects) -> Result<T>,
    ) -> Result<(T, Option<Tag>)> {
        let mut runs = Runs::default();
        loop {
            let mut effects = self.begin(scope);
            let answer = run(&mut effects).await;
            if let Some(done) = self.attempt(effects, answer).await? {
                return Ok(done);
            }
            runs.again(self, scope).await?;
        }
    }

    /// End one run of such a transaction; none means to run again.
    pub(crate) async fn attempt<T>(&self, effects: Effects, answer: Result<T>) -> Result<Option<(T, Option<Tag>)>> {
        if effects.stale().is_some() {
            return Ok(None);
        }
        let answer = answer?;
        if effects.is_empty() {
            return Ok(Some((answer, None)));
        }
        match self.commit(effects.into_set(None, None)).await? {
            Verdict::Committed { tag } => Ok(Some((answer, Some(tag)))),
            Verdict::Conflict { .. } => Ok(None),
            Verdict::Refused(error) => Err(error),
        }
    }

    /// Hand a set to the committer and learn what became of it. Dropping the future changes nothing.
    pub async fn commit(&self, set: Set) -> Result<Verdict> {
        let (done, verdict) = oneshot::channel();
        let span = trace::child("commit");
        span.set("chalet.commit.rows", set.writes.len());
        let caller = Caller { done, span };
        {
            let mut queue = self.queue();
            let refuse = |code, what| {
                caller.span.fail(code);
                Err(Error::unavailable(code, what))
            };
            if queue.closed {
                return refuse("stopping", "the server is stopping; try again");
            }
            if queue.waiting >= WAITING {
                return refuse("overloaded", "too many commits are waiting; try again");
            }
            queue.waiting += 1;
            let tenant = set.scope.id().clone();
            let sets = queue.sets.entry(tenant.clone()).or_default();
            let first = sets.is_empty();
            sets.push_back(Pending { set, since: Instant::now(), caller });
            // A lane that is busy with this tenant puts it back into the order itself.
            if first && !queue.busy.contains(&tenant) {
                queue.order.push_back(tenant);
            }
        }
        self.0.wake.notify_one();
        verdict.await.map_err(|_| {
            Error::unavailable(OUTCOME_UNKNOWN, "the commit's outcome is not known; look before you repeat it")
        })
    }

    /// Commit what waits, then take nothing more.
    pub async fn close(&self) {
        self.queue().closed = true;
        self.0.wake.notify_waiters();
        loop {
            let idle = {
                let queue = self.queue();
                queue.waiting == 0 && queue.busy.is_empty()
            };
            if idle {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Take batches one after another.
    async fn lane(self) {
        loop {
            let wake = self.0.wake.notified();
            let (batch, closed) = self.take();
            if batch.is_empty() {
                if closed {
                    return;
                }
                wake.await;
                continue;
            }
            let tenants: HashSet<TenantId> = batch.iter().map(|pending| pending.set.scope.id().clone()).collect();
            if !self.0.mixed {
                // This lane took one tenant; another lane may take the next.
                self.0.wake.notify_one();
            }
            // A fault in one batch must not end the lane: nobody else would commit this shard's sets.
            if AssertUnwindSafe(self.run(batch)).catch_unwind().await.is_err() {
                tracing::error!("a batch ended in a panic; the outcome of its sets is not known");
                tenants.iter().for_each(|tenant| self.0.cache.forget(Some(tenant)));
            }
            let more = {
                let mut queue = self.queue();
                for tenant in &tenants {
                    queue.busy.remove(tenant);
                    if queue.sets.get(tenant).is_some_and(|sets| !sets.is_empty()) && !queue.order.contains(tenant) {
                        if self.0.breaks.turns {
                            queue.order.push_front(tenant.clone());
                        } else {
                            queue.order.push_back(tenant.clone());
                        }
                    }
                }
                !queue.order.is_empty()
            };
            if more {
                self.0.wake.notify_one();
            }
        }
    }

    /// The next batch: one set of each waiting tenant in turn, until it is full.
    fn take(&self) -> (Vec<Pending>, bool) {
        let mut queue = self.queue();
        let mut batch: Vec<Pending> = Vec::new();
        let (mut rows, mut bytes) = (0, 0);
        while let Some(tenant) = queue.order.pop_front() {
            let Some(sets) = queue.sets.get_mut(&tenant) else { continue };
            let Some(next) = sets.front() else {
                queue.sets.remove(&tenant);
                continue;
            };
            let full = rows + next.set.writes.len() > BATCH_ROWS || bytes + next.set.bytes() > BATCH_BYTES;
            if full && !batch.is_empty() {
                queue.order.push_front(tenant);
                break;
            }
            rows += next.set.writes.len();
            bytes += next.set.bytes();
            let pending = sets.pop_front().expect("the front was just looked at");
            let drained = sets.is_empty();
            if drained {
                queue.sets.remove(&tenant);
            }
            queue.waiting -= 1;
            batch.push(pending);
            queue.busy.insert(tenant.clone());
            if self.0.mixed && !self.0.breaks.turns {
                if !drained {
                    queue.order.push_back(tenant);
                }
            } else if !drained {
                // The tenant's next sets join this batch; the others wait for another lane.
                queue.order.push_front(tenant);
            } else {
                break;
            }
        }
        if !self.0.mixed {
            let busy = batch.first().map(|pending| pending.set.scope.id().clone());
            if let Some(busy) = busy {
                queue.order.retain(|tenant| *tenant != busy);
            }
        }
        (batch, queue.closed)
    }

    async fn run(&self, batch: Vec<Pending>) {
        let (mut sets, mut callers) = (Vec::new(), Vec::new());
        for pending in batch {
            let Pending { set, since, caller } = pending;
            let waited = since.elapsed();
            caller.span.set("chalet.commit.waited_us", waited.as_micros() as u64);
            if waited > WAIT {
                let late = Error::unavailable("overloaded", "the commit waited too long for its turn; try again");
                caller.tell(Verdict::Refused(late));
            } else {
                sets.push(set);
                callers.push(caller);
            }
        }
        callers.iter().for_each(|caller| caller.span.set("chalet.commit.batch", sets.len()));
        if sets.is_empty() {
            return;
        }
        let verdicts = match self.commit_batch(&mut sets).await {
            Ok(verdicts) => verdicts,
            // No set is at fault: the database is busy, full, or does not answer.
            Err(error) if error.kind() == Kind::Unavailable || sets.len() == 1 => {
                sets.iter().map(|_| Verdict::Refused(error.clone())).collect()
            }
            Err(error) => {
                tracing::warn!(?error, sets = sets.len(), "a batch failed; its sets are committed one by one");
                let mut verdicts = Vec::with_capacity(sets.len());
                for set in &mut sets {
                    let alone = self.commit_batch(std::slice::from_mut(set)).await;
                    verdicts.push(alone.map_or_else(Verdict::Refused, |mut one| one.remove(0)));
                }
                verdicts
            }
        };
        let mut verdicts = verdicts.into_iter();
        for caller in callers {
            let verdict = verdicts.next().unwrap_or_else(|| {
                Verdict::Refused(Error::unavailable(
                    OUTCOME_UNKNOWN,
                    "the commit's outcome is not known; look before you repeat it",
                ))
            });
            caller.tell(verdict);
        }
    }

    /// Move sets to the present where the cache knows that what they read is still so: if that is the head when they are
    /// committed, the database need not look at their rows.
    fn renew(&self, sets: &mut [Set]) {
        if !self.same_database() {
            return;
        }
        for set in sets.iter_mut().filter(|set| !set.facts.is_empty()) {
            set.tag = set.tag.max(self.0.cache.handle(set.scope.id()).holds(&set.facts));
        }
    }

    async fn commit_batch(&self, sets: &mut [Set]) -> Result<Vec<Verdict>> {
        self.renew(sets);
        let sets = &*sets;
        let mut by_tenant: HashMap<&TenantId, Vec<(&Set, Tag)>> =
            sets.iter().map(|set| (set.scope.id(), Vec::new())).collect();
        by_tenant.keys().for_each(|tenant| self.0.cache.begin(tenant));
        let verdicts = match self.0.store.commit(sets, self.0.breaks).await {
            Ok(verdicts) => verdicts,
            Err(error) => {
                by_tenant.keys().for_each(|tenant| self.0.cache.settle(tenant));
                return Err(error);
            }
        };
        let counts = &self.0.counts;
        counts.batches.fetch_add(1, Ordering::Relaxed);
        for (set, verdict) in sets.iter().zip(&verdicts) {
            match verdict {
                Verdict::Committed { tag } => {
                    counts.commits.fetch_add(1, Ordering::Relaxed);
                    by_tenant.entry(set.scope.id()).or_default().push((set, *tag));
                }
                Verdict::Conflict { .. } => {
                    counts.conflicts.fetch_add(1, Ordering::Relaxed);
                }
                Verdict::Refused(_) => {}
            }
        }
        if self.0.breaks.cache {
            return Ok(verdicts);
        }
        for (tenant, mut committed) in by_tenant {
            committed.sort_by_key(|(_, tag)| tag.seq);
            let (Some((_, first)), Some((_, last))) = (committed.first(), committed.last()) else {
                self.0.cache.settle(tenant);
                continue;
            };
            if last.seq - first.seq + 1 != committed.len() as u64 {
                // Commits between these are not known here, as after a lost connection.
                self.0.cache.forget(Some(tenant));
                continue;
            }
            let before = Tag { seq: first.seq - 1, ..*first };
            let writes = committed.iter().flat_map(|(set, tag)| set.writes.iter().map(|write| (write, tag.seq)));
            self.0.cache.publish(tenant, before, *last, writes);
        }
        Ok(verdicts)
    }
}
