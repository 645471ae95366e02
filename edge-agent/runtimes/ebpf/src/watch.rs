//! What the runtime does while the programs run in the kernel: it waits.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cnova_ral::{Exit, ExitReason};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::attached::Attached;
use crate::control::Shared;
use crate::records::{Ring, Writer};
use crate::signals::Signals;

/// How often attachments are looked at that do not say by themselves when they end.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How soon the log says that records were dropped.
const OWED_AFTER: Duration = Duration::from_secs(1);
/// Waiting for a poll that fails, so that it does not spin.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Waits for records, requests to stop, the end of attachments and the end of time.
pub struct Watch<'a> {
    shared: &'a Arc<Shared>,
    signals: &'a Signals,
    ring: Option<Ring>,
    writer: Writer,
    wall_end: Option<Instant>,
    look_at: Instant,
}

enum Woken {
    Stop,
    Other { records: bool, sockets: bool },
}

impl<'a> Watch<'a> {
    /// For what is attached; `ring` is the log, if there is one.
    #[must_use]
    pub fn new(
        shared: &'a Arc<Shared>,
        signals: &'a Signals,
        ring: Option<Ring>,
        writer: Writer,
        wall_seconds: Option<u64>,
    ) -> Watch<'a> {
        let now = Instant::now();
        Watch {
            shared,
            signals,
            ring,
            writer,
            wall_end: wall_seconds.and_then(|seconds| now.checked_add(Duration::from_secs(seconds))),
            look_at: now + LOOK_EVERY,
        }
    }

    /// Waits until the workload ends, and says how. The last records are in the log then.
    #[must_use]
    pub fn until_the_end(mut self) -> Exit {
        let exit = loop {
            if let Some(exit) = self.turn() {
                break exit;
            }
        };
        self.take_records();
        exit
    }

    fn turn(&mut self) -> Option<Exit> {
        let (records, sockets) = match self.wait() {
            Ok(Woken::Stop) => return Some(Exit::new(ExitReason::Stopped)),
            Ok(Woken::Other { records, sockets }) => (records, sockets),
            Err(_) => {
                std::thread::sleep(RETRY_AFTER);
                (false, false)
            }
        };
        let now = Instant::now();
        if records || self.writer.owes() {
            self.take_records();
        }
        if self.wall_end.is_some_and(|end| now >= end) {
            return Some(Exit::new(ExitReason::Budget));
        }
        if sockets || now >= self.look_at {
            self.look_at = now + LOOK_EVERY;
            let attached = self.shared.attached()?;
            attached.sockets().for_each(forget_error);
            return attached
                .lost()
                .map(|what| Exit::new(ExitReason::Killed).with_detail(what));
        }
        None
    }

    fn wait(&self) -> Result<Woken, rustix::io::Errno> {
        let mut fds = vec![PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN)];
        if let Some(ring) = &self.ring {
            fds.push(PollFd::from_borrowed_fd(ring.as_fd(), PollFlags::IN));
        }
        let first_socket = fds.len();
        let sockets = self.shared.attached().into_iter().flat_map(Attached::sockets);
        fds.extend(sockets.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::empty())));
        let timeout = Timespec::try_from(self.timeout(Instant::now())).ok();
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        if ready(&fds[0]) {
            return Ok(Woken::Stop);
        }
        Ok(Woken::Other {
            records: fds[1..first_socket].iter().any(ready),
            sockets: fds[first_socket..].iter().any(ready),
        })
    }

    fn timeout(&self, now: Instant) -> Duration {
        let until = |end: Instant| end.saturating_duration_since(now);
        let mut timeout = until(self.look_at);
        if let Some(end) = self.wall_end {
            timeout = timeout.min(until(end));
        }
        if self.writer.owes() {
            timeout = timeout.min(OWED_AFTER);
        }
        timeout
    }

    fn take_records(&mut self) {
        let Watch {
            shared, ring, writer, ..
        } = self;
        let now = Instant::now();
        shared.with_log(|log| {
            if let Some(ring) = ring {
                ring.drain(|record| writer.write(record, now, log));
            }
            writer.turn(now, log);
            log.flush();
        });
        shared.dropped_records(writer.dropped());
    }
}

/// An error that is not read would wake the next wait at once.
fn forget_error(socket: BorrowedFd<'_>) {
    let _ = rustix::net::sockopt::socket_error(socket);
}
