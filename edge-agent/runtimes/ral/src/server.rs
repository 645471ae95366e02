//! A runtime's end of the socket: one thread that sleeps until somebody asks.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use serde::Serialize;

use crate::folder::remove_if_there;
use crate::{CONNECTIONS_MAX, FolderError, Health, Metrics, REQUEST_BYTES_MAX, Reply, Request, file};

/// A connection that asks nothing for this long is closed.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The server's thread needs little; the rest of a default stack would only be address space.
const STACK_BYTES: usize = 128 << 10;

/// What a runtime answers with. Calls come from the server's thread and must not block.
pub trait Control: Send + Sync + 'static {
    /// How the workload is.
    fn health(&self) -> Health;
    /// What it uses.
    fn metrics(&self) -> Metrics;
    /// Begins to end it; `grace` is absent if the caller leaves it to the spec.
    fn stop(&self, grace: Option<Duration>);
}

/// Why the socket could not be offered.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A socket of an earlier attempt is in the way.
    #[error(transparent)]
    Stale(#[from] FolderError),
    /// The socket could not be made.
    #[error("cannot listen on {path}: {source}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// No thread could be started.
    #[error("cannot start the thread for {path}: {source}")]
    Thread {
        /// The socket.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}

/// The running server; it ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// Offers `ral.sock` in `dir` (mode 0600) and answers on it from a thread of its own.
pub fn serve(dir: &Path, control: Arc<dyn Control>) -> Result<Server, ServeError> {
    let path = dir.join(file::SOCKET);
    remove_if_there(&path)?;
    let open = || -> io::Result<(UnixListener, OwnedFd)> {
        let listener = listen_in(dir)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok((listener, wake))
    };
    let (listener, wake) = open().map_err(|source| ServeError::Listen {
        path: path.clone(),
        source,
    })?;
    let wake = Arc::new(wake);
    let mut desk = Desk {
        listener,
        wake: wake.clone(),
        control,
        connections: Vec::new(),
    };
    let thread = std::thread::Builder::new()
        .name("ral".into())
        .stack_size(STACK_BYTES)
        .spawn(move || while desk.turn() {})
        .map_err(|source| ServeError::Thread {
            path: path.clone(),
            source,
        })?;
    Ok(Server {
        path,
        wake,
        thread: Some(thread),
    })
}

impl Drop for Server {
    fn drop(&mut self) {
        // If the wake-up fails the thread stays asleep and goes with the process, so it is not waited for.
        let woken = rustix::io::write(&*self.wake, &1u64.to_ne_bytes()).is_ok();
        if let Some(thread) = self.thread.take()
            && woken
        {
            let _ = thread.join();
        }
        let _ = remove_if_there(&self.path);
    }
}

struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
    last_used: Instant,
}

struct Desk {
    listener: UnixListener,
    wake: Arc<OwnedFd>,
    control: Arc<dyn Control>,
    connections: Vec<Connection>,
}

impl Desk {
    /// Sleeps until something happens and deals with it; false when the server is to end.
    fn turn(&mut self) -> bool {
        let Ok(ready) = self.wait() else {
            // Nothing but a lack of memory makes poll fail here: wait for better times without spinning.
            std::thread::sleep(Duration::from_millis(100));
            return true;
        };
        if ready[0] {
            return false;
        }
        let control = &self.control;
        let now = Instant::now();
        let mut asked = ready[2..].iter();
        self.connections.retain_mut(|connection| match asked.next() {
            Some(true) => connection.answer(control.as_ref(), now),
            _ => now.duration_since(connection.last_used) < IDLE_TIMEOUT,
        });
        if ready[1] {
            self.accept(now);
        }
        true
    }

    /// Which of the wake-up, the listener and the connections, in this order, have something.
    fn wait(&self) -> io::Result<Vec<bool>> {
        let idle_end = self
            .connections
            .iter()
            .map(|connection| connection.last_used + IDLE_TIMEOUT)
            .min();
        let timeout = match idle_end {
            Some(end) => Some(
                Timespec::try_from(end.saturating_duration_since(Instant::now()))
                    .map_err(|_| io::ErrorKind::InvalidInput)?,
            ),
            None => None,
        };
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN),
        ];
        fds.extend(
            self.connections
                .iter()
                .map(|connection| PollFd::from_borrowed_fd(connection.stream.as_fd(), PollFlags::IN)),
        );
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(fds.iter().map(|fd| !fd.revents().is_empty()).collect()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// A peer that keeps connections without using them must not keep the agent out, so the idlest one goes.
    fn accept(&mut self, now: Instant) {
        let Ok((stream, _)) = self.listener.accept() else {
            return;
        };
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        if self.connections.len() >= CONNECTIONS_MAX
            && let Some(idlest) = (0..self.connections.len()).min_by_key(|at| self.connections[*at].last_used)
        {
            self.connections.remove(idlest);
        }
        self.connections.push(Connection {
            stream,
            received: Vec::new(),
            last_used: now,
        });
    }
}

impl Connection {
    /// Reads what is there and answers every whole line; false when the connection is to be closed.
    fn answer(&mut self, control: &dyn Control, now: Instant) -> bool {
        let mut chunk = [0; REQUEST_BYTES_MAX];
        let count = match self.stream.read(&mut chunk) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => return matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        };
        self.last_used = now;
        self.received.extend_from_slice(&chunk[..count]);
        while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
            let (reply, keep) = reply_to(&line[..end], control);
            if !self.send(&reply) || !keep {
                return false;
            }
        }
        if self.received.len() >= REQUEST_BYTES_MAX {
            let message = format!("request is longer than {REQUEST_BYTES_MAX} bytes");
            self.send(&refusal(&message));
            return false;
        }
        true
    }

    /// A peer that does not read its answers loses the connection.
    fn send(&mut self, reply: &[u8]) -> bool {
        self.stream.write_all(reply).is_ok()
    }
}

fn reply_to(line: &[u8], control: &dyn Control) -> (Vec<u8>, bool) {
    if line.len() >= REQUEST_BYTES_MAX {
        return (
            refusal(&format!("request is longer than {REQUEST_BYTES_MAX} bytes")),
            false,
        );
    }
    match serde_json::from_slice(line) {
        Ok(Request::Health) => (render(&control.health()), true),
        Ok(Request::Metrics) => (render(&control.metrics()), true),
        Ok(Request::Stop { grace_ms }) => {
            control.stop(grace_ms.map(Duration::from_millis));
            (render(&serde_json::Map::new()), true)
        }
        Err(error) => (refusal(&format!("not a request: {error}")), false),
    }
}

fn render(body: &impl Serialize) -> Vec<u8> {
    let reply = Reply { ok: true, body };
    match serde_json::to_vec(&reply) {
        Ok(mut line) => {
            line.push(b'\n');
            line
        }
        Err(error) => refusal(&format!("the answer cannot be written: {error}")),
    }
}

fn refusal(message: &str) -> Vec<u8> {
    let mut line = serde_json::json!({ "ok": false, "error": message })
        .to_string()
        .into_bytes();
    line.push(b'\n');
    line
}

/// Binds by way of `/proc/self/fd`: the address of a socket may have 108 bytes at most, the folder's path more.
fn listen_in(dir: &Path) -> io::Result<UnixListener> {
    let folder = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{}", folder.as_raw_fd(), file::SOCKET))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests;
