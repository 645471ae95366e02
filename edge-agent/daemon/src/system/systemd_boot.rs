//! systemd-boot with boot counting (Automatic Boot Assessment): a slot is one unified kernel image on the EFI system
//! partition, and its file's name says how often it is still tried: `cnova-b+3.efi`, `cnova-b+2-1.efi`, `cnova-b.efi`.
//!
//! FAT is not journaled, so the order is everything: what is staged has a name that the loader does not take and is whole on
//! the disk before it is renamed, which is one step; the other slot's file is not touched.

use std::fs;
use std::io;
use std::path::PathBuf;

use cnova_shared::ids::Digest;

use super::boot_control::{BootControl, EntryState, check, digest_of, sync_folder};
use super::{SlotError, fail};

/// Where systemd-boot looks for unified kernel images (UAPI.1 Boot Loader Specification, type 2).
const FOLDER: &str = "EFI/Linux";
/// systemd's vendor GUID; the loader starts the entry that this variable names once (Boot Loader Interface).
const ONE_SHOT: &str = "LoaderEntryOneShot-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
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

    /// The loader takes the newest version by itself; another one has to be named. It is tried once.
    fn name_once(&self, entry: &str) -> Result<(), SlotError> {
        let path = self.variables.join(ONE_SHOT);
        let text = entry.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
        let value: Vec<u8> = ATTRIBUTES.into_iter().chain(text).collect();
        // The firmware takes a variable in one write.
        fs::write(&path, value).map_err(fail("write", &path))
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

    fn state(&self, slot: &str) -> EntryState {
        let entries = self.entries(slot).unwrap_or_default();
        entries.first().map_or(EntryState::None, |(_, state)| *state)
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
        let (staging, name) = (self.staging(slot), format!("cnova-{slot}+{tries}.efi"));
        let armed = self.folder.join(&name);
        let is_armed = !staging.exists() && armed.exists() && digest_of(&armed, None)? == *boot;
        if !is_armed {
            if !staging.exists() {
                let found = Digest::of(&[]);
                return Err(SlotError::Damaged {
                    what: "the boot part, which is not there,",
                    slot: slot.to_owned(),
                    found,
                    expected: *boot,
                });
            }
            check(&staging, slot, boot)?;
            self.disarm(slot)?;
            fs::rename(&staging, &armed).map_err(fail("rename", &staging))?;
        }
        sync_folder(&self.folder)?;
        if is_older { self.name_once(&name) } else { Ok(()) }
    }

    fn confirm(&self, slot: &str) -> Result<(), SlotError> {
        let good = self.folder.join(format!("cnova-{slot}.efi"));
        for (path, state) in self.entries(slot)? {
            if state != EntryState::Good && !good.exists() {
                fs::rename(&path, &good).map_err(fail("rename", &path))?;
            }
        }
        sync_folder(&self.folder)
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
