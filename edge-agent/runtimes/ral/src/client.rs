//! The agent's end of the socket. Every call is bounded in time and in bytes, whatever the runtime does.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::{Health, Metrics, REPLY_BYTES_MAX, Reply, Request, file};

/// How long a call waits for the runtime unless told otherwise.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a call to a runtime failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens: the workload has not started, or has ended.
    #[error("no runtime listens in {dir}: {source}")]
    Connect {
        /// The state folder.
        dir: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// It listens but does not answer in time.
    #[error("the runtime in {dir} did not answer within {timeout:?}: it hangs; kill it if this repeats")]
    Timeout {
        /// The state folder.
        dir: PathBuf,
        /// How long was waited.
        timeout: Duration,
    },
    /// The connection broke.
    #[error("the runtime in {dir} closed the connection: {source}")]
    Broken {
        /// The state folder.
        dir: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// It answered something else than this interface knows.
    #[error("the runtime in {dir} answered nonsense: {reason}")]
    Protocol {
        /// The state folder.
        dir: PathBuf,
        /// What is wrong with the answer.
        reason: String,
    },
    /// It understood and said no.
    #[error("the runtime in {dir} refused: {message}")]
    Refused {
        /// The state folder.
        dir: PathBuf,
        /// Its words.
        message: String,
    },
}

/// A connection to the runtime in one state folder.
#[derive(Debug)]
pub struct Client {
    dir: PathBuf,
    timeout: Duration,
    stream: Option<BufReader<UnixStream>>,
}

#[derive(Deserialize)]
struct Answer {
    ok: bool,
    #[serde(default)]
    error: String,
}

impl Client {
    /// Connects with [`CALL_TIMEOUT`].
    pub fn connect(dir: &Path) -> Result<Client, CallError> {
        Client::connect_with_timeout(dir, CALL_TIMEOUT)
    }

    /// Connects; every call afterwards waits at most `timeout` for each step.
    pub fn connect_with_timeout(dir: &Path, timeout: Duration) -> Result<Client, CallError> {
        let mut client = Client {
            dir: dir.to_owned(),
            timeout,
            stream: None,
        };
        client.stream = Some(client.open()?);
        Ok(client)
    }

    /// How the workload is.
    pub fn health(&mut self) -> Result<Health, CallError> {
        self.call(&Request::Health)
    }

    /// What it uses.
    pub fn metrics(&mut self) -> Result<Metrics, CallError> {
        self.call(&Request::Metrics)
    }

    /// Asks it to end within `grace`; nothing means the time in the spec. Wait for the process or the exit file.
    pub fn stop(&mut self, grace: Option<Duration>) -> Result<(), CallError> {
        let grace_ms = grace.map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
        self.call::<serde_json::Value>(&Request::Stop { grace_ms })?;
        Ok(())
    }

    /// Every request may be repeated without harm, so a connection that the runtime closed for idleness is opened anew.
    fn call<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, CallError> {
        if let Some(stream) = self.stream.take() {
            match exchange(stream, request, &mut self.stream) {
                Ok(line) => return self.parse(&line),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(self.failure(error)),
                Err(_) => {}
            }
        }
        let stream = self.open()?;
        match exchange(stream, request, &mut self.stream) {
            Ok(line) => self.parse(&line),
            Err(source) => Err(self.failure(source)),
        }
    }

    fn failure(&self, source: io::Error) -> CallError {
        let dir = self.dir.clone();
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                let timeout = self.timeout;
                CallError::Timeout { dir, timeout }
            }
            io::ErrorKind::InvalidData => CallError::Protocol {
                dir,
                reason: source.to_string(),
            },
            _ => CallError::Broken { dir, source },
        }
    }

    fn parse<T: DeserializeOwned>(&self, line: &[u8]) -> Result<T, CallError> {
        let nonsense = |error: serde_json::Error| CallError::Protocol {
            dir: self.dir.clone(),
            reason: error.to_string(),
        };
        let answer: Answer = serde_json::from_slice(line).map_err(nonsense)?;
        if !answer.ok {
            return Err(CallError::Refused {
                dir: self.dir.clone(),
                message: answer.error,
            });
        }
        let reply: Reply<T> = serde_json::from_slice(line).map_err(nonsense)?;
        Ok(reply.body)
    }

    fn open(&self) -> Result<BufReader<UnixStream>, CallError> {
        let connect = || -> io::Result<UnixStream> {
            let stream = connect_in(&self.dir)?;
            stream.set_read_timeout(Some(self.timeout))?;
            stream.set_write_timeout(Some(self.timeout))?;
            Ok(stream)
        };
        match connect() {
            Ok(stream) => Ok(BufReader::with_capacity(1024, stream)),
            // The queue of a runtime that accepts nobody is full: the same to us as one that does not answer.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(self.failure(error)),
            Err(source) => Err(CallError::Connect {
                dir: self.dir.clone(),
                source,
            }),
        }
    }
}

/// One request and its answer; the stream is put back only if it can be used again.
fn exchange(
    mut stream: BufReader<UnixStream>,
    request: &Request,
    back: &mut Option<BufReader<UnixStream>>,
) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.get_mut().write_all(&line)?;
    let mut answer = Vec::new();
    let limit = REPLY_BYTES_MAX as u64 + 1;
    stream.by_ref().take(limit).read_until(b'\n', &mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if answer.last() != Some(&b'\n') {
        let reason = format!("{} bytes without an end of line", answer.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    *back = Some(stream);
    Ok(answer)
}

/// Connects without ever blocking: a plain connect waits for ever when the listener's queue is full. The way through
/// `/proc/self/fd` keeps the address short, for it may have 108 bytes at most.
fn connect_in(dir: &Path) -> io::Result<UnixStream> {
    use std::os::fd::AsRawFd;
    let folder = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{}", folder.as_raw_fd(), file::SOCKET))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}
