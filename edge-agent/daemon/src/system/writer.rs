//! Writes a bundle's parts into the other slot as they come: the flash is written once, and a power cut costs no more than
//! what was not yet forced to the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cnova_shared::ids::Digest;
use cnova_shared::system_bundle::{Header, PartKind};
use cnova_shared::wire;
use serde::{Deserialize, Serialize};

use super::boot_control::{digest_of, sync_folder};
use super::{SlotError, fail};

/// After so many bytes they are forced to the disk, and it is written down that they are there.
const SYNC_BYTES: u64 = 4 << 20;
const PROGRESS: &str = "progress";

/// What is on the disk for certain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Progress {
    bundle: Digest,
    slot: String,
    have: u64,
}

/// A bundle that is being written.
#[derive(Debug)]
struct Open {
    bundle: Digest,
    header: Header,
    root: File,
    boot: File,
    have: u64,
    synced: u64,
}

/// The slot that does not run.
#[derive(Debug)]
pub struct SlotWriter {
    slot: String,
    device: PathBuf,
    staging: PathBuf,
    folder: PathBuf,
    open: Option<Open>,
}

impl SlotWriter {
    /// The root goes to `device`, the boot part to the file `staging`; how far it is, is kept in `folder`.
    #[must_use]
    pub fn new(slot: String, device: PathBuf, staging: PathBuf, folder: PathBuf) -> Self {
        Self {
            slot,
            device,
            staging,
            folder,
            open: None,
        }
    }

    fn progress(&self) -> PathBuf {
        self.folder.join(PROGRESS)
    }

    /// Goes on with this bundle where it was left; `None` where it was not begun here.
    ///
    /// # Errors
    /// [`SlotError`].
    pub fn resume(&mut self, bundle: &Digest, header: &Header) -> Result<Option<u64>, SlotError> {
        let kept = fs::read(self.progress())
            .ok()
            .and_then(|b| wire::decode::<Progress>(&b).ok());
        let Some(kept) = kept.filter(|p| p.bundle == *bundle && p.slot == self.slot) else {
            return Ok(None);
        };
        if !self.staging.exists() {
            // Its directory entry did not survive, or it was armed: nothing is known of what there was.
            return Ok(None);
        }
        self.take(*bundle, header, kept.have)?;
        Ok(Some(kept.have))
    }

    /// Begins with this bundle. The caller has seen to it that the loader does not start the slot.
    ///
    /// # Errors
    /// [`SlotError`].
    pub fn begin(&mut self, bundle: Digest, header: &Header) -> Result<u64, SlotError> {
        self.open = None;
        self.discard()?;
        let folder = self.staging.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder).map_err(fail("create", folder))?;
        File::create(&self.staging).map_err(fail("create", &self.staging))?;
        sync_folder(folder)?;
        self.take(bundle, header, 0)?;
        self.keep_progress(bundle, 0)?;
        Ok(0)
    }

    fn take(&mut self, bundle: Digest, header: &Header, have: u64) -> Result<(), SlotError> {
        let size = |kind| header.part(kind).map_or(0, |p| p.size);
        let mut root = OpenOptions::new()
            .write(true)
            .open(&self.device)
            .map_err(fail("open", &self.device))?;
        let room = root.seek(SeekFrom::End(0)).map_err(fail("measure", &self.device))?;
        let (what, asked) = ("the root", size(PartKind::Root));
        if asked > room {
            let path = self.device.clone();
            return Err(SlotError::NoRoom {
                what,
                asked,
                room,
                path,
            });
        }
        let boot = OpenOptions::new()
            .write(true)
            .open(&self.staging)
            .map_err(fail("open", &self.staging))?;
        let folder = self.staging.parent().unwrap_or(Path::new("/"));
        let here = boot.metadata().map_err(fail("measure", &self.staging))?.len();
        let stat = rustix::fs::statvfs(folder).map_err(|e| fail("measure", folder)(e.into()))?;
        let room = stat.f_bavail.saturating_mul(stat.f_frsize).saturating_add(here);
        let (what, asked) = ("the boot part", size(PartKind::Boot));
        if asked > room {
            let path = folder.to_owned();
            return Err(SlotError::NoRoom {
                what,
                asked,
                room,
                path,
            });
        }
        self.open = Some(Open {
            bundle,
            header: header.clone(),
            root,
            boot,
            have,
            synced: have,
        });
        Ok(())
    }

    /// Writes bytes of the bundle; those that are there already may come again.
    ///
    /// # Errors
    /// [`SlotError`].
    pub fn write(&mut self, bundle: &Digest, offset: u64, data: &[u8]) -> Result<(), SlotError> {
        let (device, staging) = (self.device.clone(), self.staging.clone());
        let Some(open) = self.open.as_mut().filter(|o| o.bundle == *bundle && offset <= o.have) else {
            let have = self.open.as_ref().map_or(0, |o| o.have);
            return Err(SlotError::NotNext { offset, have });
        };
        let end = offset + data.len() as u64;
        for part in &open.header.parts {
            let (from, to) = (offset.max(part.offset), end.min(part.end()));
            if from >= to {
                continue;
            }
            let range = usize::try_from(from - offset).unwrap_or(0)..usize::try_from(to - offset).unwrap_or(0);
            let (file, path) = match part.kind {
                PartKind::Root => (&open.root, &device),
                PartKind::Boot => (&open.boot, &staging),
            };
            file.write_all_at(data.get(range).unwrap_or_default(), from - part.offset)
                .map_err(fail("write", path))?;
        }
        open.have = open.have.max(end);
        if open.have - open.synced >= SYNC_BYTES {
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), SlotError> {
        let Some(open) = self.open.as_mut() else { return Ok(()) };
        open.root.sync_all().map_err(fail("write", &self.device))?;
        open.boot.sync_all().map_err(fail("write", &self.staging))?;
        for file in [&open.root, &open.boot] {
            // What is on the disk need not be in the agent's memory as well.
            let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
        }
        open.synced = open.have;
        let (bundle, have) = (open.bundle, open.have);
        self.keep_progress(bundle, have)
    }

    fn keep_progress(&self, bundle: Digest, have: u64) -> Result<(), SlotError> {
        fs::create_dir_all(&self.folder).map_err(fail("create", &self.folder))?;
        let progress = Progress {
            bundle,
            slot: self.slot.clone(),
            have,
        };
        let bytes = wire::encode(&progress).map_err(|e| SlotError::Loader(e.to_string()))?;
        let (path, partial) = (self.progress(), self.folder.join("progress.new"));
        fs::write(&partial, bytes).map_err(fail("write", &partial))?;
        File::open(&partial)
            .and_then(|f| f.sync_all())
            .map_err(fail("write", &partial))?;
        fs::rename(&partial, &path).map_err(fail("rename", &partial))?;
        File::open(&self.folder)
            .and_then(|f| f.sync_all())
            .map_err(fail("write", &self.folder))
    }

    /// Forces everything to the disk, reads it back, and compares it with what the header says.
    ///
    /// # Errors
    /// [`SlotError::Damaged`] with the part that differs.
    pub fn verify(&mut self, bundle: &Digest, header: &Header) -> Result<(), SlotError> {
        if self.open.as_ref().is_some_and(|o| o.bundle == *bundle) {
            self.sync()?;
        }
        self.open = None;
        sync_folder(self.staging.parent().unwrap_or(Path::new("/")))?;
        for part in &header.parts {
            let (what, path) = match part.kind {
                PartKind::Root => ("the root", &self.device),
                PartKind::Boot => ("the boot part", &self.staging),
            };
            if let Ok(file) = File::open(path) {
                let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
            }
            let found = digest_of(path, Some(part.size))?;
            if found != part.digest {
                let (slot, expected) = (self.slot.clone(), part.digest);
                return Err(SlotError::Damaged {
                    what,
                    slot,
                    found,
                    expected,
                });
            }
        }
        Ok(())
    }

    /// Nothing of what was written is of use any more. The root's bytes stay, and nobody starts them.
    ///
    /// # Errors
    /// [`SlotError`].
    pub fn discard(&mut self) -> Result<(), SlotError> {
        self.open = None;
        for path in [self.progress(), self.staging.clone()] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(fail("remove", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
