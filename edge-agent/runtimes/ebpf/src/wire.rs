//! What the runtime and its helper processes say to each other: one question, one answer, over a socket that is the
//! helper's standard input. The answer may carry descriptors.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::inspect::OBJECT_BYTES_MAX;
use crate::policy::{MAPS_MAX, PROGRAMS_MAX};

/// Longest JSON in either direction, in bytes: settings are part of a spec, which has at most 1 MiB.
pub const TEXT_BYTES_MAX: u64 = 1 << 20;
/// Most descriptors of an answer: two for each program and one for each map.
pub const DESCRIPTORS_MAX: usize = 2 * PROGRAMS_MAX + MAPS_MAX;

/// What a helper answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer<T> {
    /// What was asked for.
    Done(T),
    /// Why not, for a person.
    Refused(String),
}

/// Sends a question: settings or the like, and an object.
///
/// # Errors
/// What the kernel answers.
pub fn ask(stream: &mut UnixStream, text: &impl Serialize, object: &[u8]) -> io::Result<()> {
    write_block(stream, &serde_json::to_vec(text)?)?;
    write_block(stream, object)
}

/// Receives a question.
///
/// # Errors
/// What the kernel answers, or what is wrong with the question.
pub fn hear<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<(T, Vec<u8>)> {
    let text = read_block(stream, TEXT_BYTES_MAX)?;
    let object = read_block(stream, OBJECT_BYTES_MAX)?;
    Ok((serde_json::from_slice(&text)?, object))
}

/// Sends an answer; the descriptors go with its first byte.
///
/// # Errors
/// What the kernel answers.
pub fn answer<T: Serialize>(mut stream: &UnixStream, answer: &Answer<T>, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let text = serde_json::to_vec(answer)?;
    let length = u64::try_from(text.len()).unwrap_or(u64::MAX).to_ne_bytes();
    if fds.is_empty() {
        stream.write_all(&length)?;
    } else {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::other("more descriptors than an answer may carry"));
        }
        let sent = rustix::net::sendmsg(
            stream.as_fd(),
            &[IoSlice::new(&length)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        stream.write_all(&length[sent..])?;
    }
    stream.write_all(&text)
}

/// Receives an answer with its descriptors.
///
/// # Errors
/// What the kernel answers, or what is wrong with the answer.
pub fn receive<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<(Answer<T>, Vec<OwnedFd>)> {
    let mut length = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(
        stream.as_fd(),
        &mut [IoSliceMut::new(&mut length)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if got.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    stream.read_exact(&mut length[got.bytes..])?;
    let text = read_body(stream, u64::from_ne_bytes(length), TEXT_BYTES_MAX)?;
    Ok((serde_json::from_slice(&text)?, fds))
}

fn write_block(stream: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_ne_bytes())?;
    stream.write_all(bytes)
}

fn read_block(stream: &mut UnixStream, most: u64) -> io::Result<Vec<u8>> {
    let mut length = [0; 8];
    stream.read_exact(&mut length)?;
    read_body(stream, u64::from_ne_bytes(length), most)
}

fn read_body(stream: &mut UnixStream, length: u64, most: u64) -> io::Result<Vec<u8>> {
    if length > most {
        return Err(io::Error::other(format!("{length} bytes, at most {most} are possible")));
    }
    let mut bytes = Vec::new();
    stream.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}
