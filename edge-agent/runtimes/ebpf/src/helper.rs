//! The helper processes, from the outside. They are started before the runtime gives its rights away, and wait for
//! their question; see [`crate::worker`].

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::signals::Signals;
use crate::wire::{self, Answer};

/// The hidden verb of the executable that inspects.
pub const INSPECT: &str = "helper-inspect";
/// The hidden verb of the executable that loads.
pub const LOAD: &str = "helper-load";

/// How long a helper may take to read its question; it does nothing else at that time.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// A helper that waits for its one question.
#[derive(Debug)]
pub struct Helper {
    child: Child,
    stream: UnixStream,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// The helper could not be started or spoken to.
    #[error("cannot {action} a helper process: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The helper says no.
    #[error("{0}")]
    Refused(String),
    /// The helper died: the object made it use too much, or do what it may not.
    #[error("the object is damaged: the process that {verb} it died ({how})")]
    Died {
        /// What the helper did.
        verb: &'static str,
        /// Signal or status.
        how: String,
    },
    /// Somebody asked to stop meanwhile.
    #[error("stopped while it was starting")]
    Stopped,
}

/// Starts this executable again with a hidden verb.
///
/// # Errors
/// What the kernel answers.
pub fn start(verb: &str) -> Result<Helper, HelperError> {
    let start = || -> io::Result<Helper> {
        let (stream, theirs) = UnixStream::pair()?;
        let child = Command::new("/proc/self/exe")
            .arg(verb)
            .env_clear()
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Helper { child, stream })
    };
    start().map_err(|source| HelperError::System {
        action: "start",
        source,
    })
}

impl Helper {
    /// Asks the one question and waits for the answer, or for a request to stop.
    ///
    /// # Errors
    /// Why there is no answer.
    pub fn ask<T: DeserializeOwned>(
        mut self,
        text: &impl Serialize,
        object: &[u8],
        signals: &Signals,
    ) -> Result<(T, Vec<OwnedFd>), HelperError> {
        let system = |action| move |source| HelperError::System { action, source };
        self.stream
            .set_write_timeout(Some(ASK_TIMEOUT))
            .map_err(system("speak to"))?;
        // One that cannot be asked has died, and how comes out below.
        let asked = wire::ask(&mut self.stream, text, object);
        self.wait(signals)?;
        match wire::receive(&mut self.stream) {
            Ok((Answer::Done(done), fds)) => {
                self.child.wait().map_err(system("wait for"))?;
                Ok((done, fds))
            }
            Ok((Answer::Refused(why), _)) => {
                self.child.wait().map_err(system("wait for"))?;
                Err(HelperError::Refused(why))
            }
            Err(error) if is_end(&error) => {
                let status = self.child.wait().map_err(system("wait for"))?;
                let how = match status.signal() {
                    Some(signal) => format!("signal {signal}"),
                    None => format!("{status}"),
                };
                let verb = if asked.is_ok() { "reads" } else { "was to read" };
                Err(HelperError::Died { verb, how })
            }
            Err(source) => Err(system("understand")(source)),
        }
    }

    fn wait(&self, signals: &Signals) -> Result<(), HelperError> {
        loop {
            let mut fds = [
                PollFd::from_borrowed_fd(self.stream.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
            ];
            match rustix::event::poll(&mut fds, None) {
                Ok(_) if !fds[1].revents().is_empty() => return Err(HelperError::Stopped),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    return Err(HelperError::System {
                        action: "wait for",
                        source: errno.into(),
                    });
                }
            }
        }
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}
