//! What is asked of a boot loader.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use cnova_shared::ids::Digest;
use ring::digest::{Context, SHA256};

use super::{SlotError, fail};

const BUFFER_BYTES: usize = 128 * 1024;

/// What the loader knows of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryState {
    /// It would not start it.
    None,
    /// It has so many tries left, and used some.
    Counted {
        /// Left.
        left: u32,
        /// Used.
        used: u32,
    },
    /// It is good.
    Good,
}

/// A boot loader with two slots that it counts the tries of. Every call may be made again after a power cut in the middle of
/// it, and what it did is on the disk when it returns.
pub trait BootControl: std::fmt::Debug + Send + Sync {
    /// Where the boot part of a slot is written before the loader is to see it.
    fn staging(&self, slot: &str) -> PathBuf;

    /// What the loader would do with a slot.
    ///
    /// # Errors
    /// [`SlotError`]: it is not known.
    fn state(&self, slot: &str) -> Result<EntryState, SlotError>;

    /// The loader does not start the slot any more.
    ///
    /// # Errors
    /// [`SlotError`]; it may still start it, so nothing may be written into the slot.
    fn disarm(&self, slot: &str) -> Result<(), SlotError>;

    /// The loader tries the slot so often from the next start on, with the boot part that was staged, or that it would start
    /// there already, which must be `boot`. `is_older`: it is no newer than what runs.
    ///
    /// # Errors
    /// [`SlotError::Damaged`] where what was staged is something else, or not there; nothing changed for the loader.
    fn arm(&self, slot: &str, tries: u8, boot: &Digest, is_older: bool) -> Result<(), SlotError>;

    /// The slot is good: its tries are not counted any more.
    ///
    /// # Errors
    /// [`SlotError`]; the loader goes on counting.
    fn confirm(&self, slot: &str) -> Result<(), SlotError>;
}

/// The digest of a file, or of a file's first `length` bytes.
pub(super) fn digest_of(path: &Path, length: Option<u64>) -> Result<Digest, SlotError> {
    let mut file = File::open(path).map_err(fail("read", path))?;
    let mut left = length.unwrap_or(u64::MAX);
    let (mut context, mut buffer) = (Context::new(&SHA256), vec![0; BUFFER_BYTES]);
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
        let read = match file.read(&mut buffer[..most]) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(fail("read", path)(error)),
        };
        context.update(&buffer[..read]);
        left -= read as u64;
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    Ok(Digest(digest))
}

/// Forces everything of the file system that `folder` is in to the disk: FAT has no journal, and a name is not there before
/// its folder is written.
pub(super) fn sync_folder(folder: &Path) -> Result<(), SlotError> {
    let file = File::open(folder).map_err(fail("open", folder))?;
    file.sync_all().map_err(fail("write", folder))?;
    rustix::fs::syncfs(&file).map_err(|e| fail("write", folder)(e.into()))
}

/// That the staged boot part is what it should be, and there.
pub(super) fn check(path: &Path, slot: &str, expected: &Digest) -> Result<(), SlotError> {
    let (what, found) = match digest_of(path, None) {
        Ok(found) if found == *expected => return Ok(()),
        Ok(found) => ("the boot part", found),
        Err(SlotError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            ("the boot part, which is not there,", Digest::of(&[]))
        }
        Err(error) => return Err(error),
    };
    Err(SlotError::Damaged {
        what,
        slot: slot.to_owned(),
        found,
        expected: *expected,
    })
}
