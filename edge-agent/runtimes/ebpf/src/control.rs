//! What the agent may ask of a running workload.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cnova_ral::{Control, Health, LogWriter, Metrics, Phase};
use rustix::process::Signal;
use rustix::time::ClockId;

use crate::attached::Attached;
use crate::counters;

/// Shared by the thread that waits for records and the one that answers the agent.
#[derive(Debug)]
pub struct Shared {
    running: OnceLock<(Instant, Attached)>,
    /// Held while the state file is written, so that nobody is told that it runs before the file says so, or that it
    /// does not yet after.
    beginning: Mutex<()>,
    stopping: AtomicBool,
    dropped_records: AtomicU64,
    log: Mutex<LogWriter>,
}

impl Shared {
    /// For a workload that is not attached yet.
    #[must_use]
    pub fn new(log: LogWriter) -> Arc<Shared> {
        Arc::new(Shared {
            running: OnceLock::new(),
            beginning: Mutex::new(()),
            stopping: AtomicBool::new(false),
            dropped_records: AtomicU64::new(0),
            log: Mutex::new(log),
        })
    }

    /// Writes the state file by `write`, and marks the workload as running from then on.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn start<E>(&self, attached: Attached, write: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let _beginning = self.beginning.lock().unwrap_or_else(PoisonError::into_inner);
        write()?;
        let _ = self.running.set((Instant::now(), attached));
        Ok(())
    }

    /// What is attached, once it is.
    pub fn attached(&self) -> Option<&Attached> {
        self.running.get().map(|(_, attached)| attached)
    }

    /// Marks the workload as ending.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Remembers how many records did not become lines.
    pub fn dropped_records(&self, count: u64) {
        self.dropped_records.store(count, Ordering::Release);
    }

    /// Uses the log.
    pub fn with_log<T>(&self, act: impl FnOnce(&mut LogWriter) -> T) -> T {
        // A panic while the log was held leaves it usable: at worst a line is missing.
        act(&mut self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn uptime_ms(&self) -> u64 {
        let uptime = self.running.get().map_or(Duration::ZERO, |(since, _)| since.elapsed());
        u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Control for Shared {
    fn health(&self) -> Health {
        drop(self.beginning.lock().unwrap_or_else(PoisonError::into_inner));
        let phase = match (self.running.get(), self.stopping.load(Ordering::Acquire)) {
            (_, true) => Phase::Stopping,
            (None, false) => Phase::Starting,
            (Some(_), false) => Phase::Running,
        };
        let detail = self.attached().and_then(Attached::trouble);
        Health {
            healthy: phase == Phase::Running && detail.is_none(),
            phase,
            uptime_ms: self.uptime_ms(),
            detail,
        }
    }

    /// CPU time is this process's and, if the kernel measures it, the programs'; memory is what the kernel accounts
    /// to maps and programs, and this process's own.
    fn metrics(&self) -> Metrics {
        let log = self.with_log(|log| log.stats());
        let (mut counters, run_ns) = self.attached().map(Attached::counters).unwrap_or_default();
        let dropped = self.dropped_records.load(Ordering::Acquire);
        if dropped > 0 {
            counters::add(&mut counters, "log.dropped_records", dropped);
        }
        let cpu = cpu_time() + Duration::from_nanos(run_ns);
        Metrics {
            cpu_ms: u64::try_from(cpu.as_millis()).unwrap_or(u64::MAX),
            memory_bytes: private_bytes() + self.attached().map_or(0, Attached::kernel_bytes),
            uptime_ms: self.uptime_ms(),
            counters,
            log_bytes: log.bytes,
            log_writes: log.writes,
            log_dropped_lines: log.dropped_lines.saturating_add(dropped),
        }
    }

    /// Sends this process SIGTERM, so that there is one way to stop. Detaching takes no time, so that no grace is
    /// needed.
    fn stop(&self, _grace: Option<Duration>) {
        // Before the answer goes out: whoever asks next must not be told that it runs.
        self.stopping();
        // The only process this can fail for is one that no longer exists.
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::TERM);
    }
}

fn cpu_time() -> Duration {
    let used = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(used).unwrap_or_default()
}

/// Memory of this process that no file stands behind.
fn private_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kilobytes.unwrap_or(0) << 10
}
