//! Signals and time, on a thread of their own, because the workload's thread may compute for ever.
//!
//! - SIGTERM (or SIGINT, or `stop` on the socket, which sends one) ends the workload; after the grace time, by force.
//! - SIGPROF comes from a timer that counts the CPU time of this process. It moves the epoch, so that a workload with
//!   a share of the CPU is looked at every few milliseconds of computing, and one that sleeps is never woken.
//! - The wall limit ends the workload with reason `budget`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cnova_ral::{Exit, ExitReason, Limits, write_exit};
use wasmtime::Engine;

use crate::control::{Interrupt, Shared};

/// CPU time between two looks at a workload that has a share of the CPU.
const CPU_SLICE: Duration = Duration::from_millis(5);
/// How often the epoch is moved while a workload is being interrupted: once is not enough if it just renewed its
/// deadline.
const INTERRUPT_TICK: Duration = Duration::from_millis(2);
/// Longest sleep without a reason to wake.
const IDLE: Duration = Duration::from_secs(3600);
/// The thread needs little; the rest of a default stack would only be address space.
const STACK_BYTES: usize = 128 << 10;
/// Exit status of the process after an end by force.
const FORCED_STATUS: i32 = 137;

/// The signals that are for the supervisor alone.
pub(crate) struct Signals {
    set: libc::sigset_t,
}

impl Signals {
    /// Blocks them for this thread and all that it starts from now on; call it before starting any.
    pub(crate) fn block() -> io::Result<Signals> {
        // SAFETY: an all-zero sigset_t is valid storage, and sigemptyset makes it a valid set before any other use.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` outlives the calls, and the numbers are valid signals.
        let status = unsafe {
            libc::sigemptyset(&raw mut set);
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGPROF] {
                libc::sigaddset(&raw mut set, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())
        };
        match status {
            0 => Ok(Signals { set }),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Waits for one of them, or nothing for `timeout`.
    fn wait(&self, timeout: Duration) -> Option<libc::c_int> {
        let timeout = libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
        };
        // SAFETY: both pointers are to live values of the right type; no information about the signal is asked for.
        let signal = unsafe { libc::sigtimedwait(&raw const self.set, std::ptr::null_mut(), &raw const timeout) };
        (signal > 0).then_some(signal)
    }
}

/// Starts the thread. It lives as long as the process.
pub(crate) fn start(
    signals: Signals,
    engine: Engine,
    shared: Arc<Shared>,
    limits: &Limits,
    dir: &Path,
) -> io::Result<()> {
    if (1..1000).contains(&limits.cpu_millis) {
        tick_by_cpu_time(CPU_SLICE)?;
    }
    let wall_end = limits
        .wall_seconds
        .and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
    let supervisor = Supervisor {
        signals,
        engine,
        shared,
        dir: dir.to_owned(),
        wall_end,
        force_at: None,
    };
    thread::Builder::new()
        .name("supervisor".into())
        .stack_size(STACK_BYTES)
        .spawn(move || supervisor.run())?;
    Ok(())
}

struct Supervisor {
    signals: Signals,
    engine: Engine,
    shared: Arc<Shared>,
    dir: PathBuf,
    wall_end: Option<Instant>,
    force_at: Option<Instant>,
}

impl Supervisor {
    fn run(mut self) {
        loop {
            match self.signals.wait(self.timeout(Instant::now())) {
                Some(libc::SIGTERM | libc::SIGINT) => self.interrupt(Interrupt::Stopped),
                _ => self.engine.increment_epoch(),
            }
            let now = Instant::now();
            if self.force_at.is_none() && self.wall_end.is_some_and(|end| now >= end) {
                self.interrupt(Interrupt::Budget);
            }
            if self.force_at.is_some_and(|at| now >= at) {
                self.force();
            }
        }
    }

    fn timeout(&self, now: Instant) -> Duration {
        match (self.force_at, self.wall_end) {
            (Some(_), _) => INTERRUPT_TICK,
            (None, Some(end)) => end.saturating_duration_since(now).min(IDLE),
            (None, None) => IDLE,
        }
    }

    /// A repeated stop may shorten the grace time but never lengthen it.
    fn interrupt(&mut self, why: Interrupt) {
        self.shared.interrupt(why);
        self.engine.increment_epoch();
        let force_at = Instant::now() + self.shared.grace().min(IDLE);
        self.force_at = Some(self.force_at.map_or(force_at, |before| before.min(force_at)));
    }

    /// The workload hangs in a host call, such as reading a file that never comes: the process ends without it.
    fn force(&mut self) {
        if !self.shared.begin_end() {
            // The workload's thread is writing the exit file: let it.
            self.force_at = Some(Instant::now() + IDLE);
            return;
        }
        let reason = match self.shared.interrupted() {
            Some(Interrupt::Budget) => ExitReason::Budget,
            _ => ExitReason::Stopped,
        };
        let detail = format!("ended by force: it did not end within {:?}", self.shared.grace());
        let exit = Exit {
            signal: Some(libc::SIGKILL),
            ..Exit::new(reason).with_detail(detail)
        };
        if let Err(error) = write_exit(&self.dir, &exit) {
            eprintln!("{error}");
        }
        // SAFETY: ends the process at once; nothing of it is used afterwards.
        unsafe { libc::_exit(FORCED_STATUS) }
    }
}

/// Has the kernel send SIGPROF each time this process has used so much CPU time.
fn tick_by_cpu_time(slice: Duration) -> io::Result<()> {
    let slice = libc::timeval {
        tv_sec: 0,
        tv_usec: libc::suseconds_t::from(slice.subsec_micros()),
    };
    let timer = libc::itimerval {
        it_interval: slice,
        it_value: slice,
    };
    // SAFETY: `timer` is a live, fully written value; the old one is not asked for.
    match unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
