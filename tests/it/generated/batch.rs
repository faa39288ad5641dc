//! One process that takes many generated modules through the gate, the compiler and the engine, and that may die of them.
//! It says on standard error what it is about to do, so that whoever waits for it knows of which seed it died.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chalet::capabilities;
use chalet::effects::Shard;
use chalet::engine::guest::{Budget, Guest, Invocation, Services};
use chalet::engine::inspect::inspect;
use chalet::engine::{Class, Config, Engine, Failure};
use chalet::kernel::breaks::Breaks;
use chalet::kernel::clock::Clock;
use chalet::kernel::secret::Master;
use chalet::kernel::tenant::{Plan, TenantScope};
use chalet::services;
use chalet::services::plugins::manifest::{Limits, Manifest};
use chalet::triggers::{self, Call, http};
use rustix::process::{Resource, Rlimit};

use crate::generated::seed;
use crate::kit::carrier::{self, Running};
use crate::kit::process::{descriptors, resident_mib};
use crate::kit::store::Bench;

/// What one run may use: a module that loops is stopped within a few milliseconds.
const FUEL: u64 = 300_000;
const MEMORY_BYTES: u64 = 16 << 20;
/// Far above what the fuel allows: who needs it hangs.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Address space that a batch gets on top of what the engine reserves, as a compile worker has.
const ROOM_BYTES: u64 = 2 << 30;
/// Modules before memory and descriptors are first looked at, so that pools and caches are filled.
const WARM: usize = 300;
/// How much more memory than then a batch may have at its end: what the allocator keeps of the largest compilations. A
/// module that left some kilobytes behind would be seen.
const LEFT_MIB: f64 = 128.0;

/// Which seeds, and what shall go wrong.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The first one.
    pub first: u64,
    /// From one to the next.
    pub step: usize,
    /// The end, not included.
    pub end: u64,
    /// `panic`, `abort`, `hang` or `leak`, for the control; empty for none.
    pub fault: String,
}

impl Batch {
    /// As text of an environment variable.
    pub fn text(&self) -> String {
        format!("{} {} {} {}", self.first, self.step, self.end, self.fault)
    }

    fn parse(text: &str) -> Self {
        let parts: Vec<_> = text.split(' ').collect();
        let number = |at: usize| parts[at].parse().expect("a number");
        Self {
            first: number(0),
            step: usize::try_from(number(1)).expect("few"),
            end: number(2),
            fault: parts[3].into(),
        }
    }
}

/// The body of the process.
pub async fn run(text: &str) {
    let batch = Batch::parse(text);
    let host = Host::start().await;
    let mut tally = BTreeMap::<String, u64>::new();
    let mut before = None;
    for (n, seed) in (batch.first..batch.end).step_by(batch.step).enumerate() {
        say(&format!("> begin {seed}"));
        if n == WARM + 3 {
            host.fail(&batch.fault);
        }
        for outcome in host.take(&seed::module(seed)).await {
            *tally.entry(outcome).or_default() += 1;
        }
        if n == WARM {
            before = Some(Held::now());
        }
    }
    if let Some(before) = before {
        let now = Held::now();
        assert!(
            now.mib <= before.mib + LEFT_MIB && now.descriptors <= before.descriptors + 4,
            "the batch keeps {} MiB and {} descriptors; it had {} and {}",
            now.mib,
            now.descriptors,
            before.mib,
            before.descriptors
        );
    }
    for (outcome, count) in tally {
        say(&format!("> tally {count} {outcome}"));
    }
    say("> end");
}

fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

struct Held {
    mib: f64,
    descriptors: usize,
}

impl Held {
    fn now() -> Self {
        let own = std::process::id();
        Self { mib: resident_mib(own), descriptors: descriptors(own) }
    }
}

/// The parts of a node that a guest meets.
struct Host {
    engine: Engine,
    shard: Shard,
    scope: TenantScope,
    services: Arc<Services>,
    manifest: Arc<Manifest>,
    _bench: Bench,
    _folder: tempfile::TempDir,
}

impl Host {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let master = Master::generate();
        let mut config = Config::new(folder.path().join("code")).expect("settings");
        config.slots = 4;
        config.threads = 1;
        let limits = Arc::new(services::limits::Limits::local(Clock::system()));
        let engine = Engine::start(&config, capabilities::ALL, &master, limits.clone()).expect("the engine starts");
        let bench = Bench::sqlite().await;
        let scope = bench.tenant_on(Plan::default()).await;
        let egress = services::egress::Egress::new(&services::egress::Config::default()).expect("no roots to read");
        let services = Services {
            flags: Arc::new(services::flags::Flags::new(None).expect("no flags")),
            limits,
            secrets: Arc::new(services::secrets::Secrets::new(master.clone())),
            egress: Arc::new(egress),
            master,
            breaks: Breaks::default(),
        };
        // Whatever makes the allocator abort in a worker does so here.
        let used = std::fs::read_to_string("/proc/self/statm").expect("/proc is mounted");
        let pages: u64 = used.split(' ').next().and_then(|pages| pages.parse().ok()).expect("a number");
        let room = Some(pages * rustix::param::page_size() as u64 + ROOM_BYTES);
        rustix::process::setrlimit(Resource::As, Rlimit { current: room, maximum: room }).expect("a lower limit");
        Self {
            engine,
            shard: bench.shard(),
            scope,
            services: Arc::new(services),
            manifest: Arc::new(carrier::manifest("stranger", "1.0.0")),
            _bench: bench,
            _folder: folder,
        }
    }

    /// Take a module as far as it goes; what became of it, and of each of its functions.
    async fn take(&self, module: &[u8]) -> Vec<String> {
        let Running { component, functions } = carrier::running(module);
        if let Err(error) = inspect(&component, Class::Usual, &[]) {
            return vec![format!("gate: {} {}", error.code(), error.broken_rule().unwrap_or_default())];
        }
        let program = match self.engine.compile_here(&component) {
            Ok(program) => Arc::new(program),
            Err(error) => {
                assert_eq!(error.code(), "component_invalid", "{error:?}");
                // A reason names types and indices behind its first words.
                let reason: Vec<_> = error.message().split([' ', '(', ':']).take(4).collect();
                return vec![format!("compiler: {}", reason.join(" "))];
            }
        };
        let mut outcomes = vec!["compiler: ok".to_owned()];
        for function in 0..functions.max(1) {
            let call = Call::Http(Arc::new(http::Request {
                method: "GET".into(),
                path: "/".repeat(function + 1),
                query: None,
                headers: Vec::new(),
                body: Vec::new(),
                route: "GET /".into(),
                params: Vec::new(),
            }));
            let ended =
                triggers::run(&self.engine, program.clone(), self.guest(), call).await.expect("the engine lives");
            outcomes.push(match ended.outcome {
                Ok(_) => "run: ok".into(),
                Err(Failure::Fuel) => "run: fuel_exhausted".into(),
                Err(Failure::Trap { code, message }) if code != "internal" => {
                    // A trap's reason stands before the function's name.
                    format!("run: {code} {}", message.split(", in ").next().unwrap_or_default())
                }
                // Nothing here reads, answers or waits; whoever says so is the host, and is wrong.
                Err(failure) => panic!("function {function}: {failure:?}"),
            });
        }
        outcomes
    }

    fn guest(&self) -> Guest {
        let limits = Limits::default();
        let mut budget = Budget::of(self.scope.plan(), &limits);
        (budget.fuel, budget.memory_bytes, budget.timeout) = (FUEL, MEMORY_BYTES, TIMEOUT);
        let invocation = Invocation {
            id: chalet::kernel::id::new(),
            scope: self.scope.clone(),
            manifest: self.manifest.clone(),
            cause: "generated".into(),
            seed: [0; 32],
            deadline: Instant::now() + budget.timeout,
            abandoned: Box::new(|_| {}),
            depth: 0,
        };
        Guest::new(Arc::new(invocation), budget, self.services.clone(), self.shard.begin(&self.scope))
    }

    /// Do what must never happen.
    fn fail(&self, fault: &str) {
        match fault {
            "panic" => panic!("the control"),
            "hang" => std::thread::sleep(Duration::from_secs(600)),
            "leak" => drop(Box::leak(vec![1_u8; 200 << 20].into_boxed_slice())),
            // A component of a kilobyte that no compiler survives, past the gate, which refuses it.
            "abort" => {
                let mut text = String::from("(component $c0 (core module $m) (core instance (instantiate $m)))");
                for level in 1..=26 {
                    let twice = format!("(instance (instantiate $c{0})) (instance (instantiate $c{0}))", level - 1);
                    text = format!("(component $c{level} {text} {twice})");
                }
                let bomb = wat::parse_str(&text).expect("it assembles");
                let refused = inspect(&bomb, Class::Large, &[]).expect_err("the gate is there");
                assert_eq!(refused.code(), "component_too_complex");
                let _ = self.engine.compile_here(&bomb);
            }
            _ => {}
        }
    }
}
