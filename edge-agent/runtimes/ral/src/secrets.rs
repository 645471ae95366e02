//! Secrets of a workload: named in the spec, handed over on the runtime's standard input, and on no disk.
//!
//! The input is a pipe that is full before the runtime exists: for each of [`Spec::secrets`], in its order, four bytes of
//! length (big-endian) and the value; then its end. What was read is nowhere any more but in the runtime's memory.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::pipe::PipeFlags;
use rustix::process::DumpableBehavior;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::Spec;

/// Most secrets of one workload.
pub const SECRETS_MAX: usize = 32;
/// Largest value of a secret, in bytes.
pub const SECRET_BYTES_MAX: usize = 64 << 10;
/// Most bytes of all values of one workload; a pipe of this size is what an agent without root may make.
pub const SECRETS_BYTES_MAX: usize = 768 << 10;
/// What a runtime says among its features if it takes secrets.
pub const SECRETS_FEATURE: &str = "secrets";
const LENGTH_BYTES: usize = 4;

/// Where a secret goes in the workload.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretSlot {
    /// This variable of its environment. The value is UTF-8 without NUL.
    Env(String),
    /// This file, absolute: in memory, read-only, mode 0400, the workload's user's.
    File(PathBuf),
}

impl fmt::Display for SecretSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "variable {name}"),
            Self::File(path) => write!(f, "file {}", path.display()),
        }
    }
}

/// Why secrets did not arrive. None of these hold a value.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// The system said no.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the system answered.
        source: io::Error,
    },
    /// The input ends before the last of them, or goes on after it.
    #[error("the secrets on the standard input are not those of the spec: {0}")]
    Mismatch(&'static str),
    /// Larger than a secret may be, or all of them together.
    #[error("{what} of {len} bytes; at most {max} are taken")]
    TooLarge {
        /// What.
        what: &'static str,
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// It cannot be a variable.
    #[error("the secret for {0} is not text without NUL: give it as a file")]
    NotText(SecretSlot),
}

fn io_error(action: &'static str) -> impl FnOnce(io::Error) -> SecretsError {
    move |source| SecretsError::Io { action, source }
}

/// The secrets of one workload, in memory. Wiped when they are dropped, and never printed.
#[derive(Clone, Default)]
pub struct Secrets(Vec<(SecretSlot, Zeroizing<Vec<u8>>)>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.iter().map(|(slot, _)| slot)).finish()
    }
}

impl Secrets {
    /// Checks values for their slots.
    ///
    /// # Errors
    /// [`SecretsError`] for the first that does not fit.
    pub fn new(values: Vec<(SecretSlot, Zeroizing<Vec<u8>>)>) -> Result<Self, SecretsError> {
        let mut total = 0;
        for (slot, value) in &values {
            total += LENGTH_BYTES + value.len();
            if value.len() > SECRET_BYTES_MAX {
                let (what, len, max) = ("a secret", value.len(), SECRET_BYTES_MAX);
                return Err(SecretsError::TooLarge { what, len, max });
            }
            let is_text = std::str::from_utf8(value).is_ok_and(|text| !text.contains('\0'));
            if matches!(slot, SecretSlot::Env(_)) && !is_text {
                return Err(SecretsError::NotText(slot.clone()));
            }
        }
        if total > SECRETS_BYTES_MAX {
            let (what, len, max) = ("all secrets of the workload", total, SECRETS_BYTES_MAX);
            return Err(SecretsError::TooLarge { what, len, max });
        }
        Ok(Self(values))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their slots, for the spec.
    pub fn slots(&self) -> Vec<SecretSlot> {
        self.0.iter().map(|(slot, _)| slot.clone()).collect()
    }

    /// Those that are variables.
    pub fn env(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|(slot, value)| match slot {
            SecretSlot::Env(name) => Some((name.as_str(), std::str::from_utf8(value).ok()?)),
            SecretSlot::File(_) => None,
        })
    }

    /// Those that are files.
    pub fn files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.0.iter().filter_map(|(slot, value)| match slot {
            SecretSlot::File(path) => Some((path.as_path(), value.as_slice())),
            SecretSlot::Env(_) => None,
        })
    }

    /// For the agent: a pipe that holds all of them, to be the runtime's standard input; nothing if there are none.
    ///
    /// # Errors
    /// [`SecretsError`] when the system gives no pipe of that size.
    pub fn into_input(self) -> Result<Option<OwnedFd>, SecretsError> {
        if self.is_empty() {
            return Ok(None);
        }
        let mut all = Zeroizing::new(Vec::with_capacity(
            self.0.iter().map(|(_, value)| LENGTH_BYTES + value.len()).sum(),
        ));
        for (_, value) in &self.0 {
            // Bounded above, far below four bytes.
            let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
            all.extend_from_slice(&length.to_be_bytes());
            all.extend_from_slice(value);
        }
        let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        let (input, output) =
            rustix::pipe::pipe_with(flags).map_err(|e| io_error("make a pipe for secrets")(e.into()))?;
        // A pipe packs what is written at once into whole pages.
        if rustix::pipe::fcntl_getpipe_size(&output).is_ok_and(|size| size < all.len()) {
            rustix::pipe::fcntl_setpipe_size(&output, all.len())
                .map_err(|e| io_error("make a pipe that is large enough for its secrets")(e.into()))?;
        }
        let written = rustix::io::write(&output, &all).map_err(|e| io_error("hand over secrets")(e.into()))?;
        if written != all.len() {
            return Err(SecretsError::Mismatch("they do not fit into the pipe"));
        }
        // The runtime reads it as it would any other input.
        rustix::io::ioctl_fionbio(&input, false).map_err(|e| io_error("hand over secrets")(e.into()))?;
        Ok(Some(input))
    }
}

/// For a runtime, before its first thread: takes the secrets that the spec names from the standard input, which is
/// `/dev/null` from then on. If there are any, a crash of this process leaves no core file, and no other process of its
/// user may look into it.
///
/// # Errors
/// [`SecretsError`]; the workload must not be started.
pub fn take_secrets(spec: &Spec) -> Result<Secrets, SecretsError> {
    if spec.secrets.is_empty() {
        return Ok(Secrets::default());
    }
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| io_error("keep secrets out of core files")(e.into()))?;
    let input = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(io_error("read secrets"))?;
    let null = File::open("/dev/null").map_err(io_error("open /dev/null"))?;
    // SAFETY: duplicates a live descriptor onto the standard input, whose own one lives on as `input`.
    if unsafe { libc::dup2(null.as_raw_fd(), libc::STDIN_FILENO) } < 0 {
        return Err(io_error("give the input back")(io::Error::last_os_error()));
    }
    read_secrets(File::from(input), &spec.secrets)
}

fn read_secrets(mut input: impl Read, slots: &[SecretSlot]) -> Result<Secrets, SecretsError> {
    let mut values = Vec::with_capacity(slots.len());
    for slot in slots {
        let mut length = [0; LENGTH_BYTES];
        read_whole(&mut input, &mut length)?;
        let len = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if len > SECRET_BYTES_MAX {
            let (what, max) = ("a secret", SECRET_BYTES_MAX);
            return Err(SecretsError::TooLarge { what, len, max });
        }
        let mut value = Zeroizing::new(vec![0; len]);
        read_whole(&mut input, &mut value)?;
        values.push((slot.clone(), value));
    }
    match input.read(&mut [0]) {
        Ok(0) => Secrets::new(values),
        Ok(_) => Err(SecretsError::Mismatch("there are more than it names")),
        Err(error) => Err(io_error("read secrets")(error)),
    }
}

fn read_whole(input: &mut impl Read, buffer: &mut [u8]) -> Result<(), SecretsError> {
    input.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => SecretsError::Mismatch("there are fewer than it names"),
        _ => io_error("read secrets")(error),
    })
}

/// The folder, in a state folder, where a runtime that may mount nothing puts secrets that are files.
pub const SECRETS_FOLDER: &str = "secrets";

/// For the agent, when a runtime has ended: one that was killed may have left such a folder in memory.
pub fn forget_secrets(dir: &Path) {
    // It is emptied before it is used again, too.
    let _ = std::fs::remove_dir_all(dir.join(SECRETS_FOLDER));
}

/// Whether what is written below a path stays in memory: its file system is a tmpfs or a ramfs.
///
/// # Errors
/// When the path cannot be looked at.
pub fn is_in_memory(path: &Path) -> io::Result<bool> {
    /// The numbers of `linux/magic.h`.
    const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];
    let found = rustix::fs::statfs(path)?;
    // The type is signed on some machines and 32 bits wide on others.
    let kind = u64::try_from(found.f_type).unwrap_or_default() & u64::from(u32::MAX);
    Ok(IN_MEMORY.contains(&kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str, value: &[u8]) -> (SecretSlot, Zeroizing<Vec<u8>>) {
        (SecretSlot::Env(name.into()), Zeroizing::new(value.to_vec()))
    }

    fn file(path: &str, value: &[u8]) -> (SecretSlot, Zeroizing<Vec<u8>>) {
        (SecretSlot::File(path.into()), Zeroizing::new(value.to_vec()))
    }

    fn pass(secrets: Secrets, slots: &[SecretSlot]) -> Result<Secrets, SecretsError> {
        let input = secrets.into_input()?.expect("there are some");
        read_secrets(File::from(input), slots)
    }

    #[test]
    fn what_is_handed_over_arrives_also_when_it_is_much() {
        let large = vec![7; SECRET_BYTES_MAX];
        let mut values = vec![env("A", b"one"), file("/run/b", b""), file("/run/c", &[0, 255])];
        values.extend((0..8).map(|n| file(&format!("/run/{n}"), &large)));
        let secrets = Secrets::new(values.clone()).unwrap();
        let slots = secrets.slots();
        let arrived = pass(secrets, &slots).unwrap();
        assert_eq!(arrived.env().collect::<Vec<_>>(), [("A", "one")]);
        let files: Vec<_> = arrived.files().collect();
        assert_eq!(files.len(), 10);
        assert_eq!(files[1], (Path::new("/run/c"), [0, 255].as_slice()));
        assert!(files[2..].iter().all(|(_, value)| *value == large));
        assert!(Secrets::default().into_input().unwrap().is_none());
    }

    #[test]
    fn others_than_those_of_the_spec_are_refused() {
        let secrets = || Secrets::new(vec![env("A", b"one"), env("B", b"two")]).unwrap();
        let slots = secrets().slots();
        let said = |slots: &[SecretSlot]| pass(secrets(), slots).unwrap_err().to_string();
        assert!(said(&slots[..1]).contains("more than it names"));
        let three = [slots.clone(), slots[..1].to_vec()].concat();
        assert!(said(&three).contains("fewer than it names"));
        assert!(read_secrets(&[0xff; 8][..], &slots).is_err());
    }

    #[test]
    fn what_does_not_fit_is_refused_without_its_value() {
        for (values, expected) in [
            (vec![env("A", b"hunter2\0")], "variable A is not text"),
            (vec![env("A", &[0xff])], "variable A is not text"),
            (vec![file("/x", &vec![0; SECRET_BYTES_MAX + 1])], "65537 bytes"),
            (
                (0..13)
                    .map(|n| file(&format!("/{n}"), &vec![0; SECRET_BYTES_MAX]))
                    .collect(),
                "all secrets of the workload",
            ),
        ] {
            let said = Secrets::new(values).unwrap_err().to_string();
            assert!(said.contains(expected) && !said.contains("hunter2"), "{said}");
        }
        let shown = format!("{:?}", Secrets::new(vec![env("A", b"hunter2")]).unwrap());
        assert!(shown.contains('A') && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn memory_is_told_from_disks() {
        assert!(is_in_memory(Path::new("/dev/shm")).unwrap_or(true));
        assert!(!is_in_memory(Path::new("/proc")).unwrap());
        assert!(is_in_memory(Path::new("/no/such/path")).is_err());
    }
}
