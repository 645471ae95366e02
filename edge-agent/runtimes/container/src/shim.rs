//! The shim's loop: the keeper's reports, the container's output, signals, stops and time.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cnova_ral::{Exit, ExitReason, Lines, LogWriter, Spec, State, Stream, write_state};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::control::Shared;
use crate::messages::{Channel, Order, Received, Report};
use crate::sys::{self, Ended};

/// How long the keeper may take to end all processes before it is ended itself, and they with it.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// How long output that is still in the pipes may take to arrive when all processes are gone.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);
/// Longest sleep without a reason to wake.
const IDLE: Duration = Duration::from_secs(3600);
/// Bytes taken from a pipe at once.
const READ_BYTES: usize = 16 << 10;

/// Why the container is to end before it ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interrupt {
    Stopped,
    Budget,
}

/// The keeper's last word.
enum Outcome {
    Refused(String),
    Failed(String),
    Ended {
        code: Option<i32>,
        signal: Option<i32>,
    },
    /// It said none.
    Gone,
}

struct Output {
    pipe: Option<OwnedFd>,
    lines: Lines,
    stream: Stream,
}

pub(crate) struct Shim<'a> {
    dir: PathBuf,
    spec: &'a Spec,
    keeper: libc::pid_t,
    channel: Channel,
    signals: OwnedFd,
    outputs: [Output; 2],
    log: LogWriter,
    shared: Arc<Shared>,
    running: bool,
    interrupt: Option<Interrupt>,
    wall_end: Option<Instant>,
    /// When all processes are killed.
    force_at: Option<Instant>,
    /// When the keeper is killed, because it did not manage.
    give_up_at: Option<Instant>,
    forced: bool,
}

impl<'a> Shim<'a> {
    #[expect(
        clippy::too_many_arguments,
        reason = "made in one place, of what that place has just made"
    )]
    pub(crate) fn new(
        dir: &Path,
        spec: &'a Spec,
        keeper: libc::pid_t,
        channel: Channel,
        signals: OwnedFd,
        pipes: [OwnedFd; 2],
        log: LogWriter,
        shared: Arc<Shared>,
    ) -> Shim<'a> {
        let [stdout, stderr] = pipes;
        let output = |pipe, stream| Output {
            pipe: Some(pipe),
            lines: Lines::default(),
            stream,
        };
        Shim {
            dir: dir.to_owned(),
            spec,
            keeper,
            channel,
            signals,
            outputs: [output(stdout, Stream::Stdout), output(stderr, Stream::Stderr)],
            log,
            shared,
            running: false,
            interrupt: None,
            wall_end: None,
            force_at: None,
            give_up_at: None,
            forced: false,
        }
    }

    /// Runs to the end of the container.
    pub(crate) fn run(mut self) -> Exit {
        let outcome = loop {
            if let Some(outcome) = self.turn() {
                break outcome;
            }
        };
        // Read before anything is removed, and while the group still has its counters.
        let oom_kills = self.shared.group().usage().oom_kills;
        self.clean_up();
        self.exit(outcome, oom_kills)
    }

    /// Ends a keeper that never got to run.
    pub(crate) fn abandon(mut self) {
        self.clean_up();
    }

    fn turn(&mut self) -> Option<Outcome> {
        self.wait();
        self.read_outputs();
        // Before the wishes are read: one that comes in between wakes once more.
        self.shared.woken();
        if sys::next_signal(&self.signals).is_some() || self.shared.take_stop() {
            self.stop(Interrupt::Stopped, self.shared.grace());
        }
        if self.shared.take_probe() && self.running {
            let _ = self.channel.send(&Order::Probe);
        }
        self.check_time();
        match self.channel.receive() {
            Ok(Received::Message(report)) => self.report(report),
            Ok(Received::Nothing) => None,
            Ok(Received::Closed) | Err(_) => Some(Outcome::Gone),
        }
    }

    fn wait(&self) {
        let deadlines = [self.wall_end, self.force_at, self.give_up_at];
        let next = deadlines.into_iter().flatten().min();
        let patience = next.map_or(IDLE, |at| at.saturating_duration_since(Instant::now()).min(IDLE));
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.channel.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd((*self.shared).as_fd(), PollFlags::IN),
        ];
        let pipes = self.outputs.iter().filter_map(|output| output.pipe.as_ref());
        fds.extend(pipes.map(|pipe| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)));
        poll(&mut fds, patience);
    }

    fn report(&mut self, report: Report) -> Option<Outcome> {
        match report {
            Report::Refused(why) => return Some(Outcome::Refused(why)),
            Report::Failed(why) => return Some(Outcome::Failed(why)),
            Report::Ended { code, signal } => return Some(Outcome::Ended { code, signal }),
            Report::Health(complaint) => self.shared.answered(complaint),
            Report::Created => return self.start(),
        }
        None
    }

    /// The state file first: if this process dies in between, the agent knows whom to look for.
    fn start(&mut self) -> Option<Outcome> {
        let written = State::of_this_process(self.spec)
            .map_err(|error| error.to_string())
            .and_then(|state| write_state(&self.dir, &state).map_err(|error| error.to_string()));
        if let Err(error) = written {
            return Some(Outcome::Failed(error));
        }
        self.running = true;
        self.shared.started();
        let wall = self.spec.limits.wall_seconds.map(Duration::from_secs);
        self.wall_end = wall.and_then(|wall| Instant::now().checked_add(wall));
        let _ = self.channel.send(&Order::Start);
        if self.shared.has_probe() {
            let _ = self.channel.send(&Order::Probe);
        }
        None
    }

    fn check_time(&mut self) {
        let now = Instant::now();
        if self.interrupt.is_none() && self.wall_end.is_some_and(|end| now >= end) {
            self.stop(Interrupt::Budget, self.shared.grace());
        }
        if self.force_at.is_some_and(|at| now >= at) {
            self.force_at = None;
            self.forced = true;
            self.give_up_at = Some(now + KILL_PATIENCE);
            let _ = self.channel.send(&Order::Kill);
        }
        if self.give_up_at.is_some_and(|at| now >= at) {
            self.give_up_at = None;
            sys::kill(self.keeper, libc::SIGKILL);
        }
    }

    /// A repeated stop may shorten the grace time but never lengthen it. What is not running yet ends at once.
    fn stop(&mut self, why: Interrupt, grace: Duration) {
        let first = self.interrupt.is_none();
        self.interrupt.get_or_insert(why);
        self.wall_end = None;
        self.shared.stopping();
        if !self.running {
            self.forced = true;
            sys::kill(self.keeper, libc::SIGKILL);
            return;
        }
        if first {
            let _ = self.channel.send(&Order::Terminate);
        }
        if !self.forced {
            let at = Instant::now() + grace.min(IDLE);
            self.force_at = Some(self.force_at.map_or(at, |before| before.min(at)));
        }
    }

    fn read_outputs(&mut self) {
        let mut buffer = [0; READ_BYTES];
        let log = &mut self.log;
        for output in &mut self.outputs {
            let Some(pipe) = &output.pipe else { continue };
            let mut ready = [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)];
            if !poll(&mut ready, Duration::ZERO) {
                continue;
            }
            let stream = output.stream;
            match rustix::io::read(pipe, &mut buffer[..]) {
                Ok(0) | Err(_) => {
                    output.lines.finish(|whole, text| log.line(stream, whole, text));
                    output.pipe = None;
                }
                Ok(count) => output
                    .lines
                    .feed(&buffer[..count], |whole, text| log.line(stream, whole, text)),
            }
        }
        log.flush();
        self.shared.logged(log.stats());
    }

    /// The keeper ends by itself after its last word, and everything in its namespace with it.
    fn clean_up(&mut self) {
        if sys::reap_within(self.keeper, KILL_PATIENCE).is_none() {
            sys::kill(self.keeper, libc::SIGKILL);
            let _: Option<Ended> = sys::reap_within(self.keeper, KILL_PATIENCE);
        }
        let end = Instant::now() + DRAIN_PATIENCE;
        while self.outputs.iter().any(|output| output.pipe.is_some()) && Instant::now() < end {
            let pipes = self.outputs.iter().filter_map(|output| output.pipe.as_ref());
            let mut fds: Vec<PollFd<'_>> = pipes
                .map(|pipe| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN))
                .collect();
            poll(&mut fds, end.saturating_duration_since(Instant::now()));
            self.read_outputs();
        }
        if let Err(error) = self.shared.group().remove() {
            eprintln!("{error}");
        }
    }

    fn exit(&self, outcome: Outcome, oom_kills: u64) -> Exit {
        let (code, signal, failure) = match outcome {
            Outcome::Refused(why) => return Exit::new(ExitReason::Refused).with_detail(why),
            Outcome::Failed(why) => (None, None, Some(why)),
            Outcome::Ended { code, signal } => (code, signal, None),
            Outcome::Gone => (None, Some(libc::SIGKILL), None),
        };
        if self.interrupt.is_none()
            && let Some(why) = failure
        {
            return Exit::new(ExitReason::Refused).with_detail(why);
        }
        let killed = signal == Some(libc::SIGKILL);
        let reason = match self.interrupt {
            Some(Interrupt::Stopped) => ExitReason::Stopped,
            Some(Interrupt::Budget) => ExitReason::Budget,
            None if killed && oom_kills > 0 => ExitReason::Memory,
            None if killed => ExitReason::Killed,
            None if signal.is_some() => ExitReason::Trap,
            None => ExitReason::Finished,
        };
        let exit = Exit {
            code,
            signal,
            ..Exit::new(reason)
        };
        match reason {
            ExitReason::Memory => {
                let most = self.spec.limits.memory_bytes;
                exit.with_detail(format!("it used more than its {most} bytes of memory"))
            }
            ExitReason::Trap => exit.with_detail(format!("ended by signal {}", signal.unwrap_or_default())),
            ExitReason::Stopped | ExitReason::Budget if self.forced && self.running => exit.with_detail(format!(
                "ended by force: it did not end within {:?}",
                self.shared.grace()
            )),
            ExitReason::Finished if oom_kills > 0 => {
                exit.with_detail(format!("{oom_kills} of its processes were killed for lack of memory"))
            }
            _ => exit,
        }
    }
}

/// Whether something is ready. An interruption is none, and nothing but a lack of memory can make it fail.
fn poll(fds: &mut [PollFd<'_>], patience: Duration) -> bool {
    let timeout = Timespec::try_from(patience).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
    matches!(rustix::event::poll(fds, Some(&timeout)), Ok(count) if count > 0)
}
