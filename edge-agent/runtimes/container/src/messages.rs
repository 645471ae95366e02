//! What shim and keeper say to each other: packets of JSON on a socket pair.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest message, in bytes.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// From the shim to the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// The state file is written: let the workload run.
    Start,
    /// Ask it to end.
    Terminate,
    /// End all its processes.
    Kill,
    /// Ask its health.
    Probe,
}

/// From the keeper to the shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// It cannot be started.
    Refused(String),
    /// It waits for [`Order::Start`].
    Created,
    /// Starting it failed after all, such as a program that is none.
    Failed(String),
    /// How it is; nothing is well.
    Health(Option<String>),
    /// Its first process ended.
    Ended { code: Option<i32>, signal: Option<i32> },
}

/// One end of the pair.
#[derive(Clone, Debug)]
pub(crate) struct Channel {
    socket: Arc<OwnedFd>,
}

/// What came.
pub(crate) enum Received<T> {
    Message(T),
    Nothing,
    /// The other side is gone.
    Closed,
}

impl Channel {
    pub(crate) fn pair() -> io::Result<(Channel, Channel)> {
        let flags = SocketFlags::CLOEXEC;
        let (one, other) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let end = |socket| Channel {
            socket: Arc::new(socket),
        };
        Ok((end(one), end(other)))
    }

    pub(crate) fn send(&self, message: &impl Serialize) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        rustix::net::send(&*self.socket, &bytes, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// What is there already.
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> io::Result<Received<T>> {
        self.receive_with(RecvFlags::DONTWAIT)
    }

    /// The next message, however long it takes.
    pub(crate) fn wait<T: DeserializeOwned>(&self) -> io::Result<Received<T>> {
        self.receive_with(RecvFlags::empty())
    }

    fn receive_with<T: DeserializeOwned>(&self, flags: RecvFlags) -> io::Result<Received<T>> {
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        match rustix::net::recv(&*self.socket, &mut buffer[..], flags) {
            Ok((0, _)) => Ok(Received::Closed),
            Ok((count, _)) => Ok(Received::Message(serde_json::from_slice(&buffer[..count])?)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(Received::Nothing),
            Err(rustix::io::Errno::CONNRESET) => Ok(Received::Closed),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
