//! What the socket's thread and the shim share, and what the agent may ask.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cnova_ral::{Control, Grace, Health, LogStats, Metrics, Phase};
use rustix::event::EventfdFlags;
use rustix::time::ClockId;

use crate::cgroup::WorkloadGroup;

/// An answer of the probe is not asked for again within this time, so that a question is not a process each.
const ANSWER_FRESH: Duration = Duration::from_millis(200);
/// An answer older than this says nothing any more.
const ANSWER_STALE: Duration = Duration::from_secs(60);

/// Shared by the shim's loop and the socket's thread.
pub(crate) struct Shared {
    wake: OwnedFd,
    started: OnceLock<Instant>,
    stopping: AtomicBool,
    stop_wanted: AtomicBool,
    grace: Grace,
    probe_wanted: AtomicBool,
    has_probe: bool,
    answer: Mutex<Option<(Instant, Option<String>)>>,
    log: Mutex<LogStats>,
    group: WorkloadGroup,
}

impl Shared {
    pub(crate) fn new(grace_ms: u64, has_probe: bool, group: WorkloadGroup) -> std::io::Result<Arc<Shared>> {
        Ok(Arc::new(Shared {
            wake: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            started: OnceLock::new(),
            stopping: AtomicBool::new(false),
            stop_wanted: AtomicBool::new(false),
            grace: Grace::new(grace_ms),
            probe_wanted: AtomicBool::new(false),
            has_probe,
            answer: Mutex::new(None),
            log: Mutex::new(LogStats::default()),
            group,
        }))
    }

    pub(crate) fn started(&self) {
        let _ = self.started.set(Instant::now());
    }

    pub(crate) fn stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Whether a stop was asked for since the last call.
    pub(crate) fn take_stop(&self) -> bool {
        self.stop_wanted.swap(false, Ordering::AcqRel)
    }

    /// Whether the health was asked for since the last call.
    pub(crate) fn take_probe(&self) -> bool {
        self.probe_wanted.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn has_probe(&self) -> bool {
        self.has_probe
    }

    pub(crate) fn grace(&self) -> Duration {
        self.grace.get()
    }

    /// Takes the probe's answer: nothing, or what is wrong.
    pub(crate) fn answered(&self, answer: Option<String>) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), answer));
    }

    pub(crate) fn logged(&self, stats: LogStats) {
        *self.log.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    pub(crate) fn group(&self) -> &WorkloadGroup {
        &self.group
    }

    /// Takes the wake-up away.
    pub(crate) fn woken(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.wake, &mut count);
    }

    fn wake_up(&self) {
        // A counter that is full wakes as well.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn uptime_ms(&self) -> u64 {
        let uptime = self.started.get().map_or(Duration::ZERO, Instant::elapsed);
        u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX)
    }

    /// What is wrong, by the last answer of the probe; a new one is asked for.
    fn complaint(&self) -> Option<String> {
        if !self.has_probe {
            return None;
        }
        let answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let age = answer.as_ref().map(|(at, _)| at.elapsed());
        if age.is_none_or(|age| age > ANSWER_FRESH) {
            self.probe_wanted.store(true, Ordering::Release);
            self.wake_up();
        }
        match answer {
            Some((at, complaint)) if at.elapsed() < ANSWER_STALE => complaint,
            _ => Some("the probe has not answered yet".into()),
        }
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl Control for Shared {
    fn health(&self) -> Health {
        let phase = match (self.stopping.load(Ordering::Acquire), self.started.get()) {
            (true, _) => Phase::Stopping,
            (false, None) => Phase::Starting,
            (false, Some(_)) => Phase::Running,
        };
        let detail = match phase {
            Phase::Running => self.complaint(),
            _ => None,
        };
        Health {
            healthy: phase == Phase::Running && detail.is_none(),
            phase,
            uptime_ms: self.uptime_ms(),
            detail,
        }
    }

    fn metrics(&self) -> Metrics {
        let usage = self.group.usage();
        let log = *self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let counters = [
            ("processes", usage.processes),
            ("oom_kills", usage.oom_kills),
            ("throttled_periods", usage.throttled_periods),
        ];
        let own = Duration::try_from(rustix::time::clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default();
        Metrics {
            cpu_ms: usage.cpu_ms + u64::try_from(own.as_millis()).unwrap_or(0),
            memory_bytes: usage.memory_bytes,
            uptime_ms: self.uptime_ms(),
            #[expect(clippy::cast_precision_loss, reason = "counters are numbers of JSON")]
            counters: BTreeMap::from(counters.map(|(name, value)| (name.to_owned(), value as f64))),
            log_bytes: log.bytes,
            log_writes: log.writes,
            log_dropped_lines: log.dropped_lines,
        }
    }

    fn stop(&self, grace: Option<Duration>) {
        // Whoever asks next already sees it.
        self.stopping();
        self.grace.tell(grace);
        self.stop_wanted.store(true, Ordering::Release);
        self.wake_up();
    }
}
