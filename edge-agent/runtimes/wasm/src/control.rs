//! What the three threads of the process share, and what the agent may ask of it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cnova_ral::{Control, Grace, Health, Metrics, Phase};
use rustix::process::Signal;
use rustix::time::ClockId;
use tokio::sync::Notify;

use crate::desk::{Desk, Unanswered};
use crate::output::Output;

/// Why the workload is to end before it ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// The agent, or whoever sent SIGTERM, asked.
    Stopped,
    /// Its time by the clock is up.
    Wall,
    /// Its CPU time is used up.
    Cpu,
}

/// Shared by the workload's thread, the socket's and the supervisor.
pub(crate) struct Shared {
    started: OnceLock<Instant>,
    interrupt: AtomicU8,
    /// Whether the agent has asked for the end (whoever asks next must not be told that it runs), and how long that may
    /// take.
    grace: Grace,
    /// CPU time that was used before the workload's own began.
    cpu_base: OnceLock<Duration>,
    ending: AtomicBool,
    /// Held while the state file is written, so that nobody is told that it runs before the file says so, or that it
    /// does not yet after.
    beginning: Mutex<()>,
    /// Bytes of all linear memories.
    pub(crate) memory_bytes: AtomicU64,
    /// Wakes the workload's thread when an interrupt comes while the workload sleeps.
    pub(crate) wake: Notify,
    /// Where the workload's output goes.
    pub(crate) output: Mutex<Output>,
    /// Where a workload that answers for itself is asked.
    pub(crate) desk: Desk,
    /// The process that computes for wasi-nn; 0 if there is none.
    pub(crate) nn_pid: AtomicU32,
}

impl Shared {
    pub(crate) fn new(output: Output, grace_ms: u64) -> Arc<Shared> {
        Arc::new(Shared {
            started: OnceLock::new(),
            interrupt: AtomicU8::new(0),
            grace: Grace::new(grace_ms),
            cpu_base: OnceLock::new(),
            ending: AtomicBool::new(false),
            beginning: Mutex::new(()),
            memory_bytes: AtomicU64::new(0),
            wake: Notify::new(),
            output: Mutex::new(output),
            desk: Desk::default(),
            nn_pid: AtomicU32::new(0),
        })
    }

    /// Writes the state file by `write`, and marks the workload as running from then on.
    pub(crate) fn start<E>(&self, write: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let _beginning = self.beginning.lock().unwrap_or_else(PoisonError::into_inner);
        write()?;
        let _ = self.started.set(Instant::now());
        Ok(())
    }

    /// The reason to end, once there is one; the first stays.
    pub(crate) fn interrupted(&self) -> Option<Interrupt> {
        match self.interrupt.load(Ordering::Acquire) {
            0 => None,
            1 => Some(Interrupt::Stopped),
            2 => Some(Interrupt::Wall),
            _ => Some(Interrupt::Cpu),
        }
    }

    /// Tells the workload's thread to end the workload. The supervisor also moves the epoch for one that computes.
    pub(crate) fn interrupt(&self, why: Interrupt) {
        let word = match why {
            Interrupt::Stopped => 1,
            Interrupt::Wall => 2,
            Interrupt::Cpu => 3,
        };
        let _ = self
            .interrupt
            .compare_exchange(0, word, Ordering::AcqRel, Ordering::Acquire);
        self.wake.notify_one();
    }

    /// How long the workload may take to end.
    pub(crate) fn grace(&self) -> Duration {
        self.grace.get()
    }

    /// True for the first caller only: that one writes the exit file.
    pub(crate) fn begin_end(&self) -> bool {
        !self.ending.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn with_output<T>(&self, act: impl FnOnce(&mut Output) -> T) -> T {
        // A panic while the log was held leaves it usable: at worst a line is missing.
        act(&mut self.output.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the workload's CPU time is counted from: when this is first asked.
    pub(crate) fn cpu_base(&self) -> Duration {
        *self.cpu_base.get_or_init(|| self.cpu_time())
    }

    /// CPU time of this process and of those that work for it.
    pub(crate) fn cpu_time(&self) -> Duration {
        cpu_time() + children_cpu_time() + process_cpu_time(self.nn_pid.load(Ordering::Acquire))
    }

    fn uptime_ms(&self) -> u64 {
        let uptime = self.started.get().map_or(Duration::ZERO, Instant::elapsed);
        u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX)
    }

    fn phase(&self) -> Phase {
        drop(self.beginning.lock().unwrap_or_else(PoisonError::into_inner));
        match (self.started.get(), self.interrupted()) {
            (_, Some(_)) => Phase::Stopping,
            _ if self.desk.stop_asked() || self.grace.is_told() => Phase::Stopping,
            (None, None) => Phase::Starting,
            (Some(_), None) => Phase::Running,
        }
    }
}

impl Control for Shared {
    /// Asks the workload, if it is one that can be asked; otherwise it is well while it runs.
    fn health(&self) -> Health {
        let phase = self.phase();
        let complaint = match phase {
            Phase::Running => match self.desk.ask_health() {
                Ok(Ok(())) | Err(Unanswered::Nobody) => None,
                Ok(Err(text)) => Some(text),
                Err(unanswered) => Some(unanswered.to_string()),
            },
            _ => None,
        };
        Health {
            healthy: phase == Phase::Running && complaint.is_none(),
            phase,
            uptime_ms: self.uptime_ms(),
            detail: complaint,
        }
    }

    fn metrics(&self) -> Metrics {
        if self.phase() == Phase::Running
            && let Ok(counters) = self.desk.ask_metrics()
        {
            self.with_output(|output| counters.iter().for_each(|(name, value)| output.count(name, *value)));
        }
        let (counters, log) = self.with_output(|output| (output.counters().clone(), output.log_stats()));
        Metrics {
            cpu_ms: u64::try_from(self.cpu_time().as_millis()).unwrap_or(u64::MAX),
            memory_bytes: self.memory_bytes.load(Ordering::Relaxed),
            uptime_ms: self.uptime_ms(),
            counters,
            log_bytes: log.bytes,
            log_writes: log.writes,
            log_dropped_lines: log.dropped_lines,
        }
    }

    /// Sends this process SIGTERM, so that there is one way to stop and one thread that does it.
    fn stop(&self, grace: Option<Duration>) {
        self.grace.tell(grace);
        // The only process this can fail for is one that no longer exists.
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::TERM);
    }
}

/// What this whole process has used of the CPU.
fn cpu_time() -> Duration {
    let used = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(used).unwrap_or_default()
}

/// What processes that this one started, and that have ended, had used of the CPU.
fn children_cpu_time() -> Duration {
    // SAFETY: an all-zero rusage is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is live and writable for the call.
    if unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) } != 0 {
        return Duration::ZERO;
    }
    let time = |time: libc::timeval| {
        Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0))
            + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// What a living process has used of the CPU; nothing for 0 and for one that is gone.
fn process_cpu_time(pid: u32) -> Duration {
    let (Ok(pid), mut clock) = (libc::pid_t::try_from(pid), 0) else {
        return Duration::ZERO;
    };
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both pointers are to live values that the calls may write.
    let read = pid > 0
        && unsafe {
            libc::clock_getcpuclockid(pid, &raw mut clock) == 0 && libc::clock_gettime(clock, &raw mut time) == 0
        };
    match (read, u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec)) {
        (true, Ok(seconds), Ok(nanoseconds)) => Duration::new(seconds, nanoseconds),
        _ => Duration::ZERO,
    }
}
