//! systemd-boot with boot counting (Automatic Boot Assessment): a slot is one unified kernel image on the EFI system
//! partition, and its file's name says how often it is still tried: `cnova-b+3.efi`, `cnova-b+2-1.efi`, `cnova-b.efi`.
//!
//! FAT is not journaled, so the order is everything: what is staged has a name that the loader does not take and is whole on
//! the disk before it is renamed, which is one step; the other slot's file is not touched.
//!
//! Which entry the loader takes is in this order: the one-shot variable, the default variable, the newest version that has
//! tries left. Both variables may be patterns. So what is good is the default by its name, or the loader would leave an older
//! version that was found good for a newer one in the other slot; and while a slot is on trial, the default is that slot
//! with tries left, which ceases to match by itself when they are used up.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use cnova_shared::ids::Digest;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use super::boot_control::{BootControl, EntryState, check, sync_folder};
use super::{SlotError, fail};

/// Where systemd-boot looks for unified kernel images (UAPI.1 Boot Loader Specification, type 2).
const FOLDER: &str = "EFI/Linux";
/// The loader starts the entry that this variable names once (Boot Loader Interface, with systemd's vendor GUID).
const ONE_SHOT: &str = "LoaderEntryOneShot-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// The entry that it starts otherwise.
const DEFAULT: &str = "LoaderEntryDefault-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// Non-volatile, and seen by the loader and by the system.
const ATTRIBUTES: [u8; 4] = 7_u32.to_le_bytes();

/// systemd-boot.
#[derive(Debug)]
pub struct SystemdBoot {
    folder: PathBuf,
    variables: PathBuf,
}

impl SystemdBoot {
    /// With its EFI system partition mounted at `esp`, and the firmware's variables at `variables`.
    #[must_use]
    pub fn new(esp: PathBuf, variables: PathBuf) -> Self {
        Self {
            folder: esp.join(FOLDER),
            variables,
        }
    }

    /// The files by which the loader would start a slot, and what their names say.
    fn entries(&self, slot: &str) -> Result<Vec<(PathBuf, EntryState)>, SlotError> {
        let list = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            list => list.map_err(fail("list", &self.folder))?,
        };
        let mut found = Vec::new();
        for entry in list {
            let entry = entry.map_err(fail("list", &self.folder))?;
            if let Some(state) = entry.file_name().to_str().and_then(|name| read_name(name, slot)) {
                found.push((entry.path(), state));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    /// Has the loader try a slot: at the next start whatever its version is, and while it has tries left.
    fn choose(&self, slot: &str, is_older: bool) -> Result<(), SlotError> {
        // Newer loaders leave the tries out of an entry's name: then only the one-shot matches, and an older version is tried
        // once.
        let chosen = self.set(DEFAULT, &format!("cnova-{slot}+[1-9]*"));
        match chosen.and_then(|()| self.set(ONE_SHOT, &format!("cnova-{slot}*"))) {
            // Nothing stands against what the loader takes by itself.
            Err(error) if !is_older && !self.variables.join(DEFAULT).exists() => {
                tracing::warn!(%error, slot, "the loader is not told which slot to start: it takes the newest by itself");
                Ok(())
            }
            chosen => chosen,
        }
    }

    /// Gives one of the loader's variables a value.
    fn set(&self, name: &str, entry: &str) -> Result<(), SlotError> {
        let path = self.variables.join(name);
        let text = entry.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
        let value: Vec<u8> = ATTRIBUTES.into_iter().chain(text).collect();
        match fs::read(&path) {
            // The firmware's memory bears only so many writes.
            Ok(held) if held == value => return Ok(()),
            Ok(_) => make_mutable(&path)?,
            Err(_) => {}
        }
        // The firmware takes a variable in one write.
        fs::write(&path, value).map_err(fail("write", &path))
    }
}

/// The kernel guards variables that it does not know against being changed by mistake: they have to be let go first.
fn make_mutable(path: &Path) -> Result<(), SlotError> {
    let file = File::open(path).map_err(fail("open", path))?;
    match ioctl_getflags(&file) {
        Ok(flags) if flags.contains(IFlags::IMMUTABLE) => {
            ioctl_setflags(&file, flags - IFlags::IMMUTABLE).map_err(|e| fail("unlock", path)(e.into()))
        }
        // A file system without flags holds nothing back.
        _ => Ok(()),
    }
}

/// What a file's name says, where it is one of the slot's.
fn read_name(name: &str, slot: &str) -> Option<EntryState> {
    let rest = name.strip_prefix("cnova-")?.strip_prefix(slot)?.strip_suffix(".efi")?;
    if rest.is_empty() {
        return Some(EntryState::Good);
    }
    let (left, used) = rest.strip_prefix('+').map(|r| r.split_once('-').unwrap_or((r, "0")))?;
    let (left, used) = (left.parse().ok()?, used.parse().ok()?);
    Some(EntryState::Counted { left, used })
}

impl BootControl for SystemdBoot {
    fn staging(&self, slot: &str) -> PathBuf {
        self.folder.join(format!("cnova-{slot}.new"))
    }

    fn state(&self, slot: &str) -> Result<EntryState, SlotError> {
        let entries = self.entries(slot)?;
        Ok(entries.first().map_or(EntryState::None, |(_, state)| *state))
    }

    fn disarm(&self, slot: &str) -> Result<(), SlotError> {
        let entries = self.entries(slot)?;
        for (path, _) in &entries {
            fs::remove_file(path).map_err(fail("remove", path))?;
        }
        if entries.is_empty() {
            return Ok(());
        }
        sync_folder(&self.folder)
    }

    fn arm(&self, slot: &str, tries: u8, boot: &Digest, is_older: bool) -> Result<(), SlotError> {
        let (staging, armed) = (
            self.staging(slot),
            self.folder.join(format!("cnova-{slot}+{tries}.efi")),
        );
        if staging.exists() {
            check(&staging, slot, boot)?;
            self.choose(slot, is_older)?;
            self.disarm(slot)?;
            fs::rename(&staging, &armed).map_err(fail("rename", &staging))?;
            return sync_folder(&self.folder);
        }
        // It was armed before: with as many tries, or with others.
        let entries = self.entries(slot)?;
        let entry = entries.first().map_or(&staging, |(path, _)| path);
        check(entry, slot, boot)?;
        self.choose(slot, is_older)?;
        if *entry != armed {
            fs::rename(entry, &armed).map_err(fail("rename", entry))?;
        }
        sync_folder(&self.folder)
    }

    fn confirm(&self, slot: &str) -> Result<(), SlotError> {
        let good = self.folder.join(format!("cnova-{slot}.efi"));
        for (path, state) in self.entries(slot)? {
            if state != EntryState::Good && !good.exists() {
                fs::rename(&path, &good).map_err(fail("rename", &path))?;
            }
        }
        sync_folder(&self.folder)?;
        self.set(DEFAULT, &format!("cnova-{slot}.efi"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_how_often_a_slot_is_tried() {
        let state = |name: &str| read_name(name, "b");
        assert_eq!(state("cnova-b.efi"), Some(EntryState::Good));
        assert_eq!(state("cnova-b+3.efi"), Some(EntryState::Counted { left: 3, used: 0 }));
        assert_eq!(state("cnova-b+0-3.efi"), Some(EntryState::Counted { left: 0, used: 3 }));
        for other in [
            "cnova-a.efi",
            "cnova-b.new",
            "cnova-b+.efi",
            "cnova-b+x.efi",
            "cnova-beta.efi",
            "b.efi",
        ] {
            assert_eq!(state(other), None, "{other}");
        }
    }
}
