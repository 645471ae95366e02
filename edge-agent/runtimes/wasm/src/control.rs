//! What the three threads of the process share, and what the agent may ask of it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cnova_ral::{Control, Health, Metrics, Phase};
use rustix::process::Signal;
use rustix::time::ClockId;
use tokio::sync::Notify;

use crate::output::Output;

/// Why the workload is to end before it ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// The agent, or whoever sent SIGTERM, asked.
    Stopped,
    /// Its time is up.
    Budget,
}

/// Shared by the workload's thread, the socket's and the supervisor.
pub(crate) struct Shared {
    started: OnceLock<Instant>,
    interrupt: AtomicU8,
    grace_ms: AtomicU64,
    ending: AtomicBool,
    /// Bytes of all linear memories.
    pub(crate) memory_bytes: AtomicU64,
    /// Wakes the workload's thread when an interrupt comes while the workload sleeps.
    pub(crate) wake: Notify,
    /// Where the workload's output goes.
    pub(crate) output: Mutex<Output>,
}

impl Shared {
    pub(crate) fn new(output: Output, grace_ms: u64) -> Arc<Shared> {
        Arc::new(Shared {
            started: OnceLock::new(),
            interrupt: AtomicU8::new(0),
            grace_ms: AtomicU64::new(grace_ms),
            ending: AtomicBool::new(false),
            memory_bytes: AtomicU64::new(0),
            wake: Notify::new(),
            output: Mutex::new(output),
        })
    }

    /// Marks the workload as running from now on.
    pub(crate) fn started(&self) {
        let _ = self.started.set(Instant::now());
    }

    /// The reason to end, once there is one; the first stays.
    pub(crate) fn interrupted(&self) -> Option<Interrupt> {
        match self.interrupt.load(Ordering::Acquire) {
            0 => None,
            1 => Some(Interrupt::Stopped),
            _ => Some(Interrupt::Budget),
        }
    }

    /// Tells the workload's thread to end the workload. The supervisor also moves the epoch for one that computes.
    pub(crate) fn interrupt(&self, why: Interrupt) {
        let word = match why {
            Interrupt::Stopped => 1,
            Interrupt::Budget => 2,
        };
        let _ = self
            .interrupt
            .compare_exchange(0, word, Ordering::AcqRel, Ordering::Acquire);
        self.wake.notify_one();
    }

    /// How long the workload may take to end.
    pub(crate) fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms.load(Ordering::Acquire))
    }

    /// True for the first caller only: that one writes the exit file.
    pub(crate) fn begin_end(&self) -> bool {
        !self.ending.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn with_output<T>(&self, act: impl FnOnce(&mut Output) -> T) -> T {
        // A panic while the log was held leaves it usable: at worst a line is missing.
        act(&mut self.output.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn uptime_ms(&self) -> u64 {
        let uptime = self.started.get().map_or(Duration::ZERO, Instant::elapsed);
        u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Control for Shared {
    fn health(&self) -> Health {
        let phase = match (self.started.get(), self.interrupted()) {
            (_, Some(_)) => Phase::Stopping,
            (None, None) => Phase::Starting,
            (Some(_), None) => Phase::Running,
        };
        Health {
            healthy: phase == Phase::Running,
            phase,
            uptime_ms: self.uptime_ms(),
            detail: None,
        }
    }

    fn metrics(&self) -> Metrics {
        let (counters, log) = self.with_output(|output| (output.counters().clone(), output.log_stats()));
        Metrics {
            cpu_ms: u64::try_from(cpu_time().as_millis()).unwrap_or(u64::MAX),
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
        if let Some(grace) = grace {
            let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
            self.grace_ms.store(grace_ms, Ordering::Release);
        }
        // The only process this can fail for is one that no longer exists.
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::TERM);
    }
}

/// What this whole process has used of the CPU.
pub(crate) fn cpu_time() -> Duration {
    let used = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(used).unwrap_or_default()
}
