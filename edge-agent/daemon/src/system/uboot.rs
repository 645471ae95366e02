//! U-Boot with a redundant environment, and the variables that RAUC and SWUpdate use as well: `BOOT_ORDER="b a"` and
//! `BOOT_b_LEFT=3`, which the board's boot script counts down and saves (docs/OS-UPDATES.md has that script).
//!
//! The environment is there twice, with a count: only the older copy is ever written, and the newer of those whose sum is
//! right is taken. So a power cut leaves the one of before, or the one of after.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use cnova_shared::ids::Digest;
use serde::Deserialize;

use super::boot_control::{BootControl, EntryState, check, digest_of, sync_folder};
use super::machine::SLOTS;
use super::{SlotError, fail};

/// Sum and count before the variables (`env_t` with `CONFIG_SYS_REDUNDAND_ENVIRONMENT`).
const HEAD_BYTES: usize = 5;
/// Largest environment that is read.
const ENVIRONMENT_BYTES: u32 = 1 << 20;
const ORDER: &str = "BOOT_ORDER";
/// Of a slot that is good and has no number of its own.
const TRIES: &str = "3";

/// Where U-Boot keeps its environment.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// The device or file.
    pub path: PathBuf,
    /// Where in it the two copies begin.
    pub offsets: [u64; 2],
    /// Bytes of each copy (`CONFIG_ENV_SIZE`).
    pub size: u32,
}

/// U-Boot.
#[derive(Debug)]
pub struct UBoot {
    folder: PathBuf,
    environment: Environment,
}

type Variables = BTreeMap<String, String>;

impl UBoot {
    /// With the folder of its boot files, and its environment.
    #[must_use]
    pub fn new(folder: PathBuf, environment: Environment) -> Self {
        Self { folder, environment }
    }

    fn boot_file(&self, slot: &str) -> PathBuf {
        self.folder.join(format!("cnova-{slot}.fit"))
    }

    fn left(slot: &str) -> String {
        format!("BOOT_{slot}_LEFT")
    }

    /// The copy in force: its place, its count and its variables.
    fn read(&self) -> Result<(usize, u8, Variables), SlotError> {
        let e = &self.environment;
        if e.size as usize <= HEAD_BYTES || e.size > ENVIRONMENT_BYTES {
            return Err(SlotError::Loader(format!(
                "[system.environment] size {} is none",
                e.size
            )));
        }
        let file = File::open(&e.path).map_err(fail("read", &e.path))?;
        let mut good = Vec::new();
        for (place, offset) in e.offsets.into_iter().enumerate() {
            let mut bytes = vec![0; e.size as usize];
            file.read_exact_at(&mut bytes, offset).map_err(fail("read", &e.path))?;
            let (head, data) = bytes.split_at(HEAD_BYTES);
            if head[..4] == crc32(data).to_le_bytes() {
                good.push((place, head[4], parse(data)));
            }
        }
        // The count goes round: the newer one is one ahead.
        let newest = match good.as_slice() {
            [(_, a, _), (_, b, _)] if b.wrapping_sub(*a) < 128 && a != b => good.pop(),
            _ => good.into_iter().next(),
        };
        let path = e.path.display();
        newest.ok_or_else(|| SlotError::Loader(format!("neither copy of U-Boot's environment in {path} is whole")))
    }

    fn change(&self, change: impl FnOnce(&mut Variables)) -> Result<(), SlotError> {
        let (place, count, before) = self.read()?;
        let mut variables = before.clone();
        change(&mut variables);
        if variables == before {
            return Ok(());
        }
        let e = &self.environment;
        let mut data: Vec<u8> = variables
            .iter()
            .flat_map(|(k, v)| format!("{k}={v}\0").into_bytes())
            .collect();
        data.push(0);
        let room = e.size as usize - HEAD_BYTES;
        if data.len() > room {
            let (asked, room, path) = (data.len() as u64, room as u64, e.path.clone());
            let what = "the environment";
            return Err(SlotError::NoRoom {
                what,
                asked,
                room,
                path,
            });
        }
        data.resize(room, 0);
        let bytes = [&crc32(&data).to_le_bytes()[..], &[count.wrapping_add(1)], &data].concat();
        let file = OpenOptions::new()
            .write(true)
            .open(&e.path)
            .map_err(fail("write", &e.path))?;
        file.write_all_at(&bytes, e.offsets[1 - place])
            .map_err(fail("write", &e.path))?;
        file.sync_all().map_err(fail("write", &e.path))
    }
}

fn parse(data: &[u8]) -> Variables {
    let lines = data.split(|b| *b == 0).take_while(|line| !line.is_empty());
    lines
        .filter_map(|line| {
            let text = String::from_utf8_lossy(line);
            let (name, value) = text.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        })
        .collect()
}

fn order(variables: &Variables) -> Vec<String> {
    let order = variables.get(ORDER).map_or("", String::as_str);
    order.split_whitespace().map(str::to_owned).collect()
}

/// The order without a slot that does not run. The one that does is in it, and has tries left, whatever was there before: an
/// environment that nobody has saved yet names no slot, and a board that is left without one starts nothing.
fn keep_startable(variables: &mut Variables, slot: &str) -> Vec<String> {
    let mut others: Vec<String> = order(variables).into_iter().filter(|s| s != slot).collect();
    for running in SLOTS.into_iter().filter(|s| *s != slot) {
        if !others.iter().any(|s| s == running) {
            others.push(running.to_owned());
        }
        let left = variables.entry(UBoot::left(running)).or_default();
        if left.is_empty() || left == "0" {
            TRIES.clone_into(left);
        }
    }
    others
}

impl BootControl for UBoot {
    fn staging(&self, slot: &str) -> PathBuf {
        self.folder.join(format!("cnova-{slot}.new"))
    }

    fn state(&self, slot: &str) -> Result<EntryState, SlotError> {
        let (_, _, variables) = self.read()?;
        if !order(&variables).iter().any(|s| s == slot) {
            return Ok(EntryState::None);
        }
        let number = |name: String| variables.get(&name).and_then(|v| v.parse::<u32>().ok());
        Ok(match (number(Self::left(slot)), number(format!("BOOT_{slot}_TRIES"))) {
            (Some(left), Some(tries)) => EntryState::Counted {
                left,
                used: tries.saturating_sub(left),
            },
            _ => EntryState::Good,
        })
    }

    fn disarm(&self, slot: &str) -> Result<(), SlotError> {
        self.change(|v| {
            let others = keep_startable(v, slot);
            v.insert(ORDER.into(), others.join(" "));
            v.insert(Self::left(slot), "0".into());
        })
    }

    fn arm(&self, slot: &str, tries: u8, boot: &Digest, _is_older: bool) -> Result<(), SlotError> {
        let (staging, file) = (self.staging(slot), self.boot_file(slot));
        let is_there = !staging.exists() && file.exists() && digest_of(&file, None)? == *boot;
        if !is_there {
            check(&staging, slot, boot)?;
            self.disarm(slot)?;
            fs::rename(&staging, &file).map_err(fail("rename", &staging))?;
            sync_folder(&self.folder)?;
        }
        self.change(|v| {
            let others = keep_startable(v, slot);
            let all: Vec<String> = std::iter::once(slot.to_owned()).chain(others).collect();
            v.insert(ORDER.into(), all.join(" "));
            v.insert(Self::left(slot), tries.to_string());
            v.insert(format!("BOOT_{slot}_TRIES"), tries.to_string());
        })
    }

    fn confirm(&self, slot: &str) -> Result<(), SlotError> {
        self.change(|v| {
            let others = order(v).into_iter().filter(|s| s != slot);
            let all: Vec<String> = std::iter::once(slot.to_owned()).chain(others).collect();
            v.insert(ORDER.into(), all.join(" "));
            // A script that counts every slot finds it full at each start.
            let tries = v.remove(&format!("BOOT_{slot}_TRIES")).unwrap_or_else(|| TRIES.into());
            v.insert(Self::left(slot), tries);
        })
    }
}

/// CRC-32 (IEEE 802.3) as U-Boot sums its environment up.
fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| {
            (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_the_standard_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
