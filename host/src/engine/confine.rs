//! What a compile worker gives up before it looks at a stranger's bytes, so that a fault of the compiler is
//! worth nothing to whoever found it.
//!
//! It keeps three pipes, its memory and its time, each within bounds. It loses every other descriptor, the right
//! to gain rights, its place among the processes that a debugger may look into; then all files, sockets and
//! signals to others (Landlock), and all system calls but those of a program that computes (seccomp). A kernel
//! without one of the last two is worked with: [`Confinement`] says which hold.

use rustix::process::{Resource, Rlimit};

/// Address space of a worker: the largest real guests need 313 MB.
pub(super) const MEMORY_BYTES: u64 = 2 << 30;
/// Seconds of CPU time: the largest real guests need 10 on a slow core.
pub(super) const CPU_SECONDS: u64 = 30;
/// File descriptors: three are used.
const FILES: u64 = 16;
/// Bytes that a worker may write to a file; it writes to a pipe only.
const FILE_BYTES: u64 = 256 << 20;
/// How much later than others a worker gets the processor.
const NICE: i32 = 10;

/// How far the kernel keeps a worker from what is not its business.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// No file, no socket, no signal to others (Landlock).
    pub landlock: bool,
    /// No system call but those of a program that computes (seccomp).
    pub seccomp: bool,
}

impl Confinement {
    /// Whether this kernel has all that a worker asks for.
    pub fn fully(self) -> bool {
        self.landlock && self.seccomp
    }

    /// As a byte of a worker's answer.
    pub(super) fn to_byte(self) -> u8 {
        u8::from(self.landlock) | u8::from(self.seccomp) << 1
    }

    pub(super) fn of_byte(byte: u8) -> Self {
        Self { landlock: byte & 1 != 0, seccomp: byte & 2 != 0 }
    }
}

/// Bound what this process may use, and let it end with its parent.
pub(super) fn bound() -> std::io::Result<()> {
    let limits = [
        (Resource::As, MEMORY_BYTES, MEMORY_BYTES),
        // The soft limit ends the process with a signal of its own, so that the node can say why.
        (Resource::Cpu, CPU_SECONDS, CPU_SECONDS + 1),
        (Resource::Nofile, FILES, FILES),
        (Resource::Core, 0, 0),
        (Resource::Fsize, FILE_BYTES, FILE_BYTES),
    ];
    for (resource, soft, hard) in limits {
        let hard = rustix::process::getrlimit(resource).maximum.map_or(hard, |maximum| maximum.min(hard));
        rustix::process::setrlimit(resource, Rlimit { current: Some(soft.min(hard)), maximum: Some(hard) })?;
    }
    rustix::process::nice(NICE)?;
    // A node that has died before this line is noticed by the missing input.
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn close_inherited() {}

#[cfg(not(target_os = "linux"))]
pub(super) fn give_up(_answer: i32) -> std::io::Result<Confinement> {
    Ok(Confinement::default())
}

#[cfg(target_os = "linux")]
pub(super) use self::linux::{close_inherited, give_up};

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::BTreeMap;
    use std::os::fd::RawFd;

    use landlock::{
        ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError, RulesetStatus,
        Scope,
    };
    use rustix::process::DumpableBehavior;
    use seccompiler::SeccompCmpArgLen::Dword;
    use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
    use seccompiler::{
        BackendError, SeccompAction, SeccompCondition as Condition, SeccompFilter, SeccompRule, TargetArch,
    };

    use super::Confinement;

    /// The newest Landlock that is asked for: files, TCP, abstract sockets and signals. seccomp denies the rest.
    const LANDLOCK: ABI = ABI::V6;
    /// Standard error: where a worker complains.
    const STDERR: RawFd = 2;

    /// Close what the node was started with and did not know of; its own descriptors close by themselves.
    pub(in crate::engine) fn close_inherited() {
        let Ok(folder) = std::fs::read_dir("/proc/self/fd") else { return };
        let open: Vec<RawFd> = folder.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
        for descriptor in open.into_iter().filter(|&descriptor| descriptor > STDERR) {
            // The folder's own is closed already.
            let _ = nix::unistd::close(descriptor);
        }
    }

    /// Give up everything but computing, and writing to `answer` and standard error. There is no way back.
    pub(in crate::engine) fn give_up(answer: RawFd) -> std::io::Result<Confinement> {
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        rustix::thread::set_no_new_privs(true)?;
        let landlock = landlock().map_err(std::io::Error::other)?;
        let filter = filter(answer).map_err(std::io::Error::other)?;
        // This error is a kernel without seccomp, or one whose own sandbox does not lend it.
        let seccomp = filter.is_some_and(|filter| seccompiler::apply_filter(&filter).is_ok());
        Ok(Confinement { landlock, seccomp })
    }

    fn landlock() -> Result<bool, RulesetError> {
        let status = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(LANDLOCK))?
            .handle_access(AccessNet::from_all(LANDLOCK))?
            .scope(Scope::from_all(LANDLOCK))?
            .create()?
            .restrict_self()?;
        Ok(status.ruleset != RulesetStatus::NotEnforced)
    }

    /// What a program that computes asks of the kernel. Anything else fails as not permitted rather than ends the
    /// process: a library that tries something and goes on without it does so. None for a machine that the
    /// filter's compiler does not know.
    fn filter(answer: RawFd) -> Result<Option<seccompiler::BpfProgram>, BackendError> {
        let Ok(machine) = TargetArch::try_from(std::env::consts::ARCH) else { return Ok(None) };
        let is = |argument, value: i32| Condition::new(argument, Dword, Eq, u64::from(value.unsigned_abs()));
        let bit = |argument, mask: i32, set: bool| {
            let mask = u64::from(mask.unsigned_abs());
            Condition::new(argument, Dword, MaskedEq(mask), if set { mask } else { 0 })
        };
        let to_its_pipes =
            || Ok(vec![SeccompRule::new(vec![is(0, answer)?])?, SeccompRule::new(vec![is(0, STDERR)?])?]);
        let own = i32::try_from(std::process::id()).unwrap_or(i32::MAX);
        let mut calls: BTreeMap<i64, Vec<SeccompRule>> = [
            // Memory that has no file behind it and is never executed: a worker does not run what it compiles.
            (
                libc::SYS_mmap,
                vec![SeccompRule::new(vec![bit(2, libc::PROT_EXEC, false)?, bit(3, libc::MAP_ANONYMOUS, true)?])?],
            ),
            (libc::SYS_mprotect, vec![SeccompRule::new(vec![bit(2, libc::PROT_EXEC, false)?])?]),
            (libc::SYS_write, to_its_pipes()?),
            (libc::SYS_writev, to_its_pipes()?),
            // How an abort ends the process.
            (libc::SYS_tgkill, vec![SeccompRule::new(vec![is(0, own)?, is(2, libc::SIGABRT)?])?]),
        ]
        .into();
        let harmless = [
            libc::SYS_brk,
            libc::SYS_clock_gettime,
            libc::SYS_close,
            libc::SYS_exit,
            libc::SYS_exit_group,
            libc::SYS_futex,
            libc::SYS_getpid,
            libc::SYS_getppid,
            libc::SYS_getrandom,
            libc::SYS_gettid,
            libc::SYS_madvise,
            libc::SYS_mremap,
            libc::SYS_munmap,
            libc::SYS_restart_syscall,
            libc::SYS_rt_sigaction,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_sigreturn,
            libc::SYS_sched_getaffinity,
            libc::SYS_sched_yield,
            libc::SYS_sigaltstack,
        ];
        calls.extend(harmless.map(|call| (call, Vec::new())));
        let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
        SeccompFilter::new(calls, denied, SeccompAction::Allow, machine)?.try_into().map(Some)
    }
}

#[cfg(all(debug_assertions, target_os = "linux"))]
pub(super) mod probe;
