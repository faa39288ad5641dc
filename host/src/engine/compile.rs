//! Compiling strangers' components where it can do no harm: in a child process that has nothing.
//!
//! The child is this same binary under `chalet compile-worker`. It gets no environment, bounds and confines
//! itself before it looks at a byte (`confine.rs`), and is killed when it takes too long. A compiler that runs out of
//! memory aborts rather than fails; here the abort is an answer.
//!
//! One job of a tenant runs at a time, and the next one waits behind those of the others: a tenant with many jobs
//! delays another's only one by those that run. What an upload's job costs is charged to its tenant (`budget.rs`).
//!
//! What comes back is machine code. It is trusted as far as the compiler is: the node signs it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::hash::Hash;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

use crate::engine::budget::Budget;
use crate::engine::config::{self, Start};
use crate::engine::confine::{self, CPU_SECONDS, Confinement, MEMORY_BYTES};
use crate::engine::inspect::Digest;
use crate::kernel::breaks::Breaks;
use crate::kernel::error::{Error, Kind, Result};
use crate::kernel::tenant::{TenantId, TenantScope};
use crate::kernel::text;

/// The hidden command that makes the binary a compile worker.
pub const WORKER_ARGUMENT: &str = "compile-worker";

/// Its argument, in debug builds, by which it gives nothing up.
const UNCONFINED: &str = "unconfined";
/// Wall-clock time of a job: ten times its processor time, for a machine that is busy with other things. A worker that
/// takes longer hangs, or its node has no time for it; neither is its tenant's fault.
const WALL: Duration = Duration::from_secs(10 * CPU_SECONDS);
/// Bytes of a component that a worker reads; plans allow less.
const INPUT_BYTES: u64 = 64 << 20;
/// Bytes of code that the node takes: about six times the largest component's.
const OUTPUT_BYTES: u64 = 256 << 20;
/// Bytes of a worker's complaints that are logged.
const COMPLAINT_BYTES: u64 = 4 << 10;
/// Jobs that wait, all tenants; each holds its component in memory.
const WAITING: usize = 64;
/// Jobs of one tenant that wait: a project's plugins deployed at once.
const WAITING_PER_TENANT: usize = 16;

/// How long to wait before the same component is tried again on which the compiler failed: until somebody has looked.
const FAULT_RETRY: Duration = Duration::from_secs(3_600);

/// The first byte of a worker's answer.
const COMPILED: u8 = 0;
const REFUSED: u8 = 1;

/// The exit code of a Rust program whose main thread panicked.
const PANICKED: i32 = 101;

/// Why there is no code.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: Error,
    /// Whether the same component will fail again.
    pub(super) lasting: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, lasting: false }
    }
}

/// Runs compile workers: a bounded number at a time, one per tenant, the rest in a bounded queue.
pub(super) struct Compiler {
    worker: Vec<OsString>,
    breaks: Breaks,
    wall: Duration,
    jobs: Semaphore,
    waiting: AtomicUsize,
    tenants: Keyed<TenantId>,
    started: AtomicU64,
    /// Whether an incomplete confinement was told of.
    told: Once,
}

impl Compiler {
    pub(super) fn new(worker: Vec<OsString>, jobs: usize, breaks: Breaks) -> Self {
        Self {
            worker,
            breaks,
            wall: WALL,
            jobs: Semaphore::new(jobs.max(1)),
            waiting: AtomicUsize::new(0),
            tenants: Keyed::default(),
            started: AtomicU64::new(0),
            told: Once::new(),
        }
    }

    /// Workers that were started.
    pub(super) fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// Compile the smallest component there is: what its worker was held to.
    pub(super) async fn try_one(&self) -> Result<Confinement, Failed> {
        let (_, confinement) = self.run(Bytes::from_static(b"\0asm\x0d\0\x01\0"), None).await?;
        Ok(confinement)
    }

    /// The code of a component, at the cost of a tenant's budget if one is given. Dropping the future kills the
    /// worker.
    pub(super) async fn compile(
        &self,
        scope: &TenantScope,
        wasm: Bytes,
        budget: Option<&Budget>,
    ) -> Result<Vec<u8>, Failed> {
        let _place = Place::take(&self.waiting)?;
        if self.tenants.holders(scope.id()) >= WAITING_PER_TENANT {
            return Err(overloaded().into());
        }
        let _tenant = self.tenants.lock(scope.id()).await;
        // Asked by one job of the tenant at a time, when what the one before has cost is known.
        if let Some(budget) = budget {
            budget.admit(scope).await?;
        }
        let _job = self.jobs.acquire().await.map_err(Error::internal)?;
        let payer = budget.map(|budget| (budget.clone(), scope.clone()));
        let (code, confinement) = self.run(wasm, payer).await?;
        if !confinement.fully() {
            self.told.call_once(|| {
                tracing::warn!(?confinement, "compile workers are not fully confined; `chalet doctor` says more");
            });
        }
        Ok(code)
    }

    async fn run(&self, wasm: Bytes, payer: Option<(Budget, TenantScope)>) -> Result<(Vec<u8>, Confinement), Failed> {
        let mut child = self.start()?;
        // Dropped before the child, whose time can be read until it has been waited for.
        let bill = Bill { pid: child.id(), begun: Instant::now(), payer };
        let (Some(mut input), Some(mut output), Some(complaints)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(Error::internal("a compile worker has no pipes").into());
        };
        let mapped = Start::of(&wasm) == Start::Mapped;
        let write = async {
            // A worker that dies early closes its end; why it died is asked below.
            let _ = input.write_all(&[u8::from(mapped)]).await;
            let _ = input.write_all(&(wasm.len() as u64).to_le_bytes()).await;
            let _ = input.write_all(&wasm).await;
            drop(input);
        };
        let listen = async {
            let mut text = Vec::new();
            let _ = complaints.take(COMPLAINT_BYTES).read_to_end(&mut text).await;
            text
        };
        let talk = async { tokio::join!(write, answer(&mut output), listen) };
        let talked = tokio::time::timeout(self.wall, talk).await;
        bill.settle().await;
        // It has closed its pipes or has had its time: one that still lives is of no more use. What one that is
        // dying dies of does not change.
        let _ = child.start_kill();
        let status = child.wait().await;
        let Ok(((), answered, complaints)) = talked else {
            tracing::warn!(limit_s = self.wall.as_secs(), "a compile worker did not end in its time and was stopped");
            return Err(interrupted());
        };
        match answered {
            Ok(Answer { kind: COMPILED, confinement, bytes }) => Ok((bytes, confinement)),
            Ok(Answer { kind: REFUSED, bytes, .. }) => {
                let message = String::from_utf8_lossy(&bytes).into_owned();
                Err(Failed { error: Error::new(Kind::Invalid, "component_invalid", message), lasting: true })
            }
            Ok(Answer { kind, .. }) => Err(Error::internal(format!("a compile worker answered {kind}")).into()),
            Err(_) => {
                let complaints = String::from_utf8_lossy(&complaints).into_owned();
                let status = status.map_err(Error::internal)?;
                if status.code() == Some(PANICKED) {
                    let component = Digest::of(&wasm);
                    tracing::error!(%component, complaints, "the compiler panicked, which is a fault of the host");
                } else {
                    tracing::info!(?status, complaints, "a compile worker died");
                }
                Err(death(&status))
            }
        }
    }

    fn start(&self) -> Result<Child> {
        let (program, arguments) =
            self.worker.split_first().ok_or_else(|| Error::internal("no compile worker is set"))?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir("/").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if self.breaks.confine {
            command.arg(UNCONFINED);
        } else {
            command.env_clear();
        }
        let child = command.spawn().map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::PermissionDenied => Error::internal(error),
            // No descriptor, no process, no memory: there will be again.
            _ => overloaded().source(error),
        })?;
        self.started.fetch_add(1, Ordering::Relaxed);
        Ok(child)
    }
}

/// What a worker says: its kind, what the worker is held to, a length, and as many bytes.
struct Answer {
    kind: u8,
    confinement: Confinement,
    bytes: Vec<u8>,
}

async fn answer(output: &mut tokio::process::ChildStdout) -> std::io::Result<Answer> {
    let kind = output.read_u8().await?;
    let confinement = Confinement::of_byte(output.read_u8().await?);
    let length = output.read_u64_le().await?;
    if length > OUTPUT_BYTES {
        return Err(std::io::Error::other("the answer is too long"));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    output.take(length).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 == length {
        Ok(Answer { kind, confinement, bytes })
    } else {
        Err(ErrorKind::UnexpectedEof.into())
    }
}

/// What a tenant owes for a job: charged when it is settled, or when the job is dropped.
struct Bill {
    pid: Option<u32>,
    begun: Instant,
    payer: Option<(Budget, TenantScope)>,
}

impl Bill {
    async fn settle(mut self) {
        if let Some(charge) = self.owed() {
            charge.await;
        }
    }

    /// The charge, once. Where the kernel does not tell the processor's time, the clock's is charged.
    fn owed(&mut self) -> Option<impl Future<Output = ()> + Send + use<>> {
        let (budget, scope) = self.payer.take()?;
        let used = self.pid.and_then(processor_time).unwrap_or_else(|| self.begun.elapsed());
        Some(budget.charge(scope, used))
    }
}

impl Drop for Bill {
    fn drop(&mut self) {
        if let (Some(charge), Ok(runtime)) = (self.owed(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(charge);
        }
    }
}

/// Processor time of a process that has not been waited for (proc_pid_stat(5)).
fn processor_time(pid: u32) -> Option<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before the fields may hold spaces and parentheses; the first field behind it is the third.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(14 - 3).map(str::parse::<u64>);
    let ticks = fields.next()?.ok()? + fields.next()?.ok()?;
    Some(Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second().max(1)))
}

/// What a worker that gave no answer died of.
fn death(status: &ExitStatus) -> Failed {
    use rustix::process::Signal;
    let died_of = |signal: Signal| status.signal() == Some(signal.as_raw());
    if died_of(Signal::XCPU) {
        limit(format!("{CPU_SECONDS} s of processor time"))
    } else if died_of(Signal::ABORT) {
        limit(format!("{} MiB of memory", MEMORY_BYTES >> 20))
    } else if died_of(Signal::SEGV) || died_of(Signal::BUS) {
        limit("the compiler's stack".into())
    } else if status.code() == Some(PANICKED) {
        let message = "the compiler failed on this component, which is a fault of the host: its log says more, and a newer one may do better";
        Error::unavailable("compile_fault", message).retry_after(FAULT_RETRY).into()
    } else {
        // Killed from outside, or something that no limit explains: the next try may succeed.
        interrupted()
    }
}

fn limit(limit: String) -> Failed {
    let message = format!("compiling the component needs more than {limit}; make its functions smaller");
    Failed { error: Error::new(Kind::Invalid, "compile_limit", message), lasting: true }
}

fn interrupted() -> Failed {
    Error::unavailable("compile_interrupted", "the compiler was stopped before it was done; try again").into()
}

fn overloaded() -> Error {
    Error::unavailable("overloaded", "too many components wait to be compiled; try again")
        .retry_after(Duration::from_secs(5))
}

/// A place in the queue; given back when dropped.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize) -> Result<Self> {
        if waiting.fetch_add(1, Ordering::Relaxed) >= WAITING {
            waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(overloaded());
        }
        Ok(Self(waiting))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A lock per key, which exists while somebody holds it or waits for it.
pub(super) struct Keyed<K>(Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>);

impl<K> Default for Keyed<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// The held lock of a key.
pub(super) struct Held<'a, K: Hash + Eq> {
    keyed: &'a Keyed<K>,
    key: K,
    guard: Option<tokio::sync::OwnedMutexGuard<()>>,
}

impl<K: Hash + Eq + Clone> Keyed<K> {
    pub(super) async fn lock(&self, key: &K) -> Held<'_, K> {
        let lock = self.locks().entry(key.clone()).or_default().clone();
        // Made before the wait, so that a waiter that is dropped cleans up too.
        let mut held = Held { keyed: self, key: key.clone(), guard: None };
        held.guard = Some(lock.lock_owned().await);
        held
    }

    /// How many hold the key's lock or wait for it.
    fn holders(&self, key: &K) -> usize {
        self.locks().get(key).map_or(0, |lock| Arc::strong_count(lock) - 1)
    }
}

impl<K> Keyed<K> {
    fn locks(&self) -> std::sync::MutexGuard<'_, HashMap<K, Arc<tokio::sync::Mutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq> Drop for Held<'_, K> {
    fn drop(&mut self) {
        self.guard = None;
        let mut locks = self.keyed.locks();
        if locks.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.key);
        }
    }
}

/// The body of a compile worker: a component on standard input, behind how its instances start, its code on standard
/// output.
pub fn worker_main() -> ExitCode {
    let confined = !(cfg!(debug_assertions) && std::env::args_os().any(|argument| argument == UNCONFINED));
    if confined {
        confine::close_inherited();
    }
    match work(std::io::stdin().lock(), std::io::stdout().lock(), confined) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn work(mut input: impl Read, mut output: impl Write + AsRawFd, confined: bool) -> std::io::Result<()> {
    confine::bound()?;
    let (mut mapped, mut length) = ([0], [0; 8]);
    input.read_exact(&mut mapped)?;
    input.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > INPUT_BYTES {
        return Err(std::io::Error::other("the component is too long"));
    }
    let mut wasm = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    input.take(length).read_to_end(&mut wasm)?;
    let start = if mapped == [0] { Start::Copied } else { Start::Mapped };
    let engine = config::compiler(start).map_err(std::io::Error::other)?;
    // From here on, whatever the input does ends with this process.
    let confinement = if confined { confine::give_up(output.as_raw_fd())? } else { Confinement::default() };
    let (kind, bytes) = compiled(&engine, &wasm);
    output.write_all(&[kind, confinement.to_byte()])?;
    output.write_all(&(bytes.len() as u64).to_le_bytes())?;
    output.write_all(&bytes)?;
    output.flush()
}

fn compiled(engine: &wasmtime::Engine, wasm: &[u8]) -> (u8, Vec<u8>) {
    #[cfg(all(debug_assertions, target_os = "linux"))]
    if let Some(report) = confine::probe::asked(wasm) {
        return (REFUSED, report.into_bytes());
    }
    match engine.precompile_component(wasm) {
        Ok(code) => (COMPILED, code),
        Err(error) => (REFUSED, complaint(&error).into_bytes()),
    }
}

/// What the component's author reads: where it fails and why, which are the outermost and the innermost reason, on one line,
/// escaped and bounded.
fn complaint(error: &wasmtime::Error) -> String {
    let mut reasons = error.chain();
    let reasons = [reasons.next(), reasons.last()].into_iter().flatten();
    let reasons: Vec<_> = reasons.map(|reason| text::escaped(&reason.to_string())).collect();
    let text = format!("the component does not compile: {}", reasons.join(": "));
    text[..text.floor_char_boundary(500)].to_owned()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The test binary itself as a worker. The test harness writes to standard output, so the worker's
    /// answer goes through another descriptor.
    pub(crate) fn worker() -> Vec<OsString> {
        let binary = std::env::current_exe().expect("this binary").into_os_string();
        let script = "exec 3>&1 >/dev/null; exec \"$0\" --exact engine::compile::tests::be_a_worker --ignored --nocapture --test-threads=1";
        vec!["/bin/sh".into(), "-c".into(), script.into(), binary]
    }

    #[test]
    #[ignore = "the body of the workers that other tests start"]
    fn be_a_worker() {
        let output = std::fs::OpenOptions::new().write(true).open("/proc/self/fd/3").expect("the answer's descriptor");
        work(std::io::stdin().lock(), output, true).expect("works");
    }

    fn scope(id: &str) -> TenantScope {
        TenantScope::mint(TenantId::from_row(id), id.into(), Arc::default())
    }

    fn compiler(worker: Vec<OsString>, jobs: usize) -> Compiler {
        Compiler::new(worker, jobs, Breaks::default())
    }

    async fn compile(wat: &str) -> Result<Vec<u8>, Failed> {
        let wasm = wat::parse_str(wat).expect("text");
        compiler(worker(), 1).compile(&scope("a"), wasm.into(), None).await
    }

    #[tokio::test]
    async fn a_component_comes_back_as_code_and_a_wrong_one_as_its_fault() {
        let code = compile("(component)").await.expect("compiles");
        assert!(wasmtime::Engine::detect_precompiled(&code).is_some());
        let failed = compiler(worker(), 1)
            .compile(&scope("a"), Bytes::from_static(b"\0asm\x0d\0\x01\0\x01"), None)
            .await
            .unwrap_err();
        assert_eq!((failed.error.code(), failed.lasting), ("component_invalid", true));
    }

    #[tokio::test]
    async fn a_component_that_asks_for_too_much_memory_kills_its_worker_only() {
        // Each level holds two instances of the one below: 2^26 in the end.
        let mut text = String::from("(component $c0 (core module $m) (core instance (instantiate $m)))");
        for level in 1..=26 {
            text = format!(
                "(component $c{level} {text} (instance (instantiate $c{0})) (instance (instantiate $c{0})))",
                level - 1
            );
        }
        let failed = compile(&text).await.unwrap_err();
        // Which limit it hits first, memory or time, depends on how busy the machine is.
        assert_eq!(failed.error.code(), "compile_limit", "{:?}", failed.error);
    }

    #[tokio::test]
    async fn a_worker_that_cannot_start_or_says_nothing_is_no_fault_of_the_component() {
        let dead = compiler(vec!["/bin/false".into()], 1);
        let failed = dead.compile(&scope("a"), Bytes::from_static(b"x"), None).await.unwrap_err();
        assert_eq!((failed.error.code(), failed.lasting), ("compile_interrupted", false));
        let missing = compiler(vec!["/nonexistent".into()], 1);
        assert_eq!(missing.compile(&scope("a"), Bytes::new(), None).await.unwrap_err().error.code(), "internal");
    }

    #[tokio::test]
    async fn a_worker_that_does_not_end_is_stopped_and_is_no_fault_of_the_component() {
        let mut compiler = compiler(vec!["/bin/sleep".into(), "3600".into()], 1);
        compiler.wall = Duration::from_millis(100);
        let failed = compiler.compile(&scope("a"), Bytes::new(), None).await.unwrap_err();
        assert_eq!((failed.error.code(), failed.lasting), ("compile_interrupted", false));
    }

    #[tokio::test]
    async fn a_tenant_with_many_jobs_delays_anothers_only_one_by_those_that_run() {
        // Workers that end at once, one at a time, so that the order in which jobs end is that in which they ran.
        let compiler = Arc::new(compiler(vec!["/bin/false".into()], 1));
        let mut jobs = tokio::task::JoinSet::new();
        for tenant in std::iter::repeat_n("a", WAITING_PER_TENANT).chain(["b", "c"]) {
            let compiler = compiler.clone();
            jobs.spawn(async move {
                let _ = compiler.compile(&scope(tenant), Bytes::new(), None).await;
                tenant
            });
        }
        let mut order = Vec::new();
        while let Some(tenant) = jobs.join_next().await {
            order.push(tenant.expect("no panic"));
        }
        assert_eq!(order[..4], ["a", "b", "c", "a"]);
    }

    #[tokio::test]
    async fn the_queue_is_bounded_and_a_tenant_has_one_job_at_a_time() {
        let compiler = Arc::new(compiler(vec!["/bin/sleep".into(), "60".into()], 2));
        let mut jobs = tokio::task::JoinSet::new();
        let start = |jobs: &mut tokio::task::JoinSet<_>, tenant: &'static str| {
            let compiler = compiler.clone();
            jobs.spawn(async move { compiler.compile(&scope(tenant), Bytes::new(), None).await.map(drop) });
        };
        for _ in 0..WAITING_PER_TENANT {
            start(&mut jobs, "a");
        }
        while compiler.tenants.holders(&TenantId::from_row("a")) < WAITING_PER_TENANT {
            tokio::task::yield_now().await;
        }
        assert_eq!(compiler.jobs.available_permits(), 1);
        start(&mut jobs, "a");
        let refused = jobs.join_next().await.expect("a job").expect("ends").unwrap_err();
        assert_eq!(refused.error.code(), "overloaded");
        for tenant in ["b", "c", "d"] {
            for _ in 0..WAITING_PER_TENANT {
                start(&mut jobs, tenant);
            }
        }
        while compiler.waiting.load(Ordering::Relaxed) < WAITING {
            tokio::task::yield_now().await;
        }
        start(&mut jobs, "e");
        assert_eq!(jobs.join_next().await.expect("a job").expect("ends").unwrap_err().error.code(), "overloaded");
        jobs.shutdown().await;
        assert_eq!(compiler.waiting.load(Ordering::Relaxed), 0);
        assert!(compiler.tenants.locks().is_empty());
    }
}
