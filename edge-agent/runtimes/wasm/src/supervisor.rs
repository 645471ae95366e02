//! Signals and time, on a thread of their own, because the workload's thread may compute for ever.
//!
//! - SIGTERM (or SIGINT, or `stop` on the socket, which sends one) ends the workload; after the grace time, by force.
//!   A workload that answers for itself is asked first and interrupted when the grace time is over.
//! - SIGPROF comes from a timer that counts the CPU time of this process. It moves the epoch, so that a workload with
//!   a share of the CPU is looked at every few milliseconds of computing, and one that sleeps is never woken.
//! - The wall limit and the CPU budget end the workload with reason `budget`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use cnova_ral::settings::Wasm;
use cnova_ral::{Exit, ExitReason, Limits, write_exit};
use wasmtime::Engine;

use crate::control::{Interrupt, Shared};

/// CPU time between two looks at a workload that has a share or a budget of the CPU.
const CPU_SLICE: Duration = Duration::from_millis(5);
/// How long before the end of a CPU budget the looks begin. Before that a workload with only a budget is left alone.
const BUDGET_MARGIN: Duration = Duration::from_millis(50);
/// Shortest time between two looks at a budget that is nearly used up.
const BUDGET_LOOK_MIN: Duration = Duration::from_micros(200);
/// How long a workload that was asked to stop, and did not, may take to leave once it is interrupted.
const LEAVE: Duration = Duration::from_secs(2);
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
    settings: &Wasm,
    dir: &Path,
) -> io::Result<()> {
    let budget = settings.cpu_budget_ms.map(|budget| Budget {
        end: shared.cpu_base().saturating_add(Duration::from_millis(budget)),
        seen: Duration::ZERO,
        look_at: None,
    });
    let throttled = (1..1000).contains(&limits.cpu_millis);
    let untouched = settings.cpu_budget_ms.map(|budget| {
        Duration::from_millis(budget)
            .saturating_sub(BUDGET_MARGIN)
            .max(CPU_SLICE)
    });
    match untouched {
        _ if throttled => tick_by_cpu_time(CPU_SLICE)?,
        Some(untouched) => tick_by_cpu_time(untouched)?,
        None => {}
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
        budget,
        hard_at: None,
        force_at: None,
    };
    thread::Builder::new()
        .name("supervisor".into())
        .stack_size(STACK_BYTES)
        .spawn(move || supervisor.run())?;
    Ok(())
}

/// A bound on the CPU time that the process may have used.
///
/// The kernel looks at CPU timers only at its ticks, which may be 10 ms apart. So a timer says that the end is near
/// and that the workload computes; from then on the clock is used, by which one thread cannot compute faster.
struct Budget {
    /// The CPU time of the process at which it is used up.
    end: Duration,
    seen: Duration,
    look_at: Option<Instant>,
}

impl Budget {
    /// True if it is used up; else notes when to look again.
    fn is_over(&mut self, used: Duration, now: Instant) -> bool {
        let left = self.end.saturating_sub(used);
        let computes = used > self.seen;
        self.seen = used;
        // A workload that rests is not woken: the timer says when it computes again.
        let near = computes && left <= 2 * BUDGET_MARGIN;
        self.look_at = near.then(|| now + left.max(BUDGET_LOOK_MIN));
        left.is_zero()
    }
}

struct Supervisor {
    signals: Signals,
    engine: Engine,
    shared: Arc<Shared>,
    dir: PathBuf,
    wall_end: Option<Instant>,
    budget: Option<Budget>,
    /// When a workload that was asked to stop is interrupted.
    hard_at: Option<Instant>,
    force_at: Option<Instant>,
}

impl Supervisor {
    fn run(mut self) {
        loop {
            match self.signals.wait(self.timeout(Instant::now())) {
                Some(libc::SIGTERM | libc::SIGINT) => self.stop(),
                _ => self.engine.increment_epoch(),
            }
            let now = Instant::now();
            if self.force_at.is_none() {
                self.look_at_limits(now);
            }
            if self.force_at.is_some_and(|at| now >= at) {
                self.force();
            }
        }
    }

    fn look_at_limits(&mut self, now: Instant) {
        let used = self.shared.cpu_time();
        if self.wall_end.is_some_and(|end| now >= end) {
            self.interrupt(Interrupt::Wall, self.shared.grace());
        } else if self.budget.as_mut().is_some_and(|budget| budget.is_over(used, now)) {
            self.interrupt(Interrupt::Cpu, self.shared.grace());
        } else if self.hard_at.is_some_and(|at| now >= at) {
            self.interrupt(Interrupt::Stopped, LEAVE);
        }
    }

    fn timeout(&self, now: Instant) -> Duration {
        if self.force_at.is_some() {
            return INTERRUPT_TICK;
        }
        let budget_look = self.budget.as_ref().and_then(|budget| budget.look_at);
        let next = [self.wall_end, budget_look, self.hard_at].into_iter().flatten().min();
        next.map_or(IDLE, |next| next.saturating_duration_since(now).min(IDLE))
    }

    /// A workload that answers for itself may end by itself; any other is interrupted. A repeated stop may shorten
    /// the grace time but never lengthen it.
    fn stop(&mut self) {
        let grace = self.shared.grace();
        if self.force_at.is_some() || !self.shared.desk.is_open() {
            return self.interrupt(Interrupt::Stopped, grace);
        }
        self.shared.desk.ask_stop();
        let hard_at = Instant::now() + grace.min(IDLE);
        self.hard_at = Some(self.hard_at.map_or(hard_at, |before| before.min(hard_at)));
    }

    fn interrupt(&mut self, why: Interrupt, grace: Duration) {
        self.shared.interrupt(why);
        self.engine.increment_epoch();
        let force_at = Instant::now() + grace.min(IDLE);
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
            Some(Interrupt::Wall | Interrupt::Cpu) => ExitReason::Budget,
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

/// Has the kernel send SIGPROF when this process has used so much CPU time, and then for each slice more.
fn tick_by_cpu_time(first: Duration) -> io::Result<()> {
    let spec = |duration: Duration| libc::timespec {
        tv_sec: libc::time_t::try_from(duration.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(duration.subsec_nanos()),
    };
    let times = libc::itimerspec {
        it_interval: spec(CPU_SLICE),
        it_value: spec(first),
    };
    // SAFETY: an all-zero sigevent is a valid value; its relevant fields are set before it is used.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = libc::SIGPROF;
    let mut timer: libc::timer_t = std::ptr::null_mut();
    // Unlike setitimer's, this clock counts in nanoseconds and cannot be fooled by sleeping over the kernel's ticks.
    // SAFETY: all pointers are to live values; the timer lives as long as the process.
    let status = unsafe {
        match libc::timer_create(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut event, &raw mut timer) {
            0 => libc::timer_settime(timer, 0, &raw const times, std::ptr::null_mut()),
            failed => failed,
        }
    };
    match status {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_looked_at_only_near_its_end_and_only_while_it_is_used() {
        let ms = Duration::from_millis;
        let now = Instant::now();
        let mut budget = Budget {
            end: ms(1_000),
            seen: Duration::ZERO,
            look_at: None,
        };
        assert!(!budget.is_over(ms(100), now));
        assert_eq!(budget.look_at, None);
        assert!(!budget.is_over(ms(960), now));
        assert_eq!(budget.look_at, Some(now + ms(40)));
        assert!(!budget.is_over(ms(960), now));
        assert_eq!(budget.look_at, None, "it rests");
        assert!(budget.is_over(ms(1_000), now));
    }
}
