//! The one variable that chooses what scenarios run on.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::board::Virtual;
use super::lab::Lab;
use super::labgrid::{Labgrid, Purpose};
use super::simulator::Simulator;
use super::{Done, Options, Target, Trouble};
use crate::board::machine::Machine;

/// What scenarios run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetName {
    /// The simulator, with this seed.
    Simulator(u64),
    /// A virtual board of `firmware-images/boards`.
    Virtual(String),
    /// A real board, or whatever else this labgrid environment file describes.
    Labgrid(PathBuf),
}

impl FromStr for TargetName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            format!(
                "`{text}` is no target: write `sim`, `sim:SEED`, `labgrid:FILE` (an environment file such as \
                 hil-tests/labgrid/pi5.yaml) or a virtual board of firmware-images/boards, such as `qemu-x86_64`"
            )
        };
        match text.split_once(':') {
            Some(("sim", seed)) => seed.parse().map(Self::Simulator).map_err(|_| wrong()),
            Some(("labgrid", file)) if !file.is_empty() => Ok(Self::Labgrid(file.into())),
            Some(_) => Err(wrong()),
            None if text == "sim" => Ok(Self::Simulator(0)),
            None if is_board(text) => Ok(Self::Virtual(text.to_owned())),
            None => Err(wrong()),
        }
    }
}

/// Whether a virtual machine is described under this name.
fn is_board(name: &str) -> bool {
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    is_name && Machine::named(name).is_ok_and(|machine| machine.emulated.is_some())
}

impl fmt::Display for TargetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Simulator(seed) => write!(f, "sim:{seed}"),
            Self::Virtual(board) => f.write_str(board),
            Self::Labgrid(file) => write!(f, "labgrid:{}", file.display()),
        }
    }
}

impl TargetName {
    /// Makes it ready. `work` is an empty folder that it may fill.
    ///
    /// # Errors
    /// [`super::Trouble::Unsupported`] where something is not installed that it needs.
    pub fn open(&self, work: &Path, options: &Options) -> Done<Box<dyn Target>> {
        let folder = work.join("plant");
        Ok(match self {
            Self::Simulator(seed) => Box::new(Simulator::new(*seed)),
            Self::Virtual(board) => Box::new(Lab::new(Virtual::new(board, &work.join("board"))?, folder, options)),
            Self::Labgrid(file) => {
                let labgrid = Labgrid::open(file, &work.join("board"), Purpose::Use)?;
                let kept = labgrid.plant_folder();
                Box::new(Lab::new(labgrid, kept.unwrap_or(folder), options))
            }
        })
    }
}

impl TargetName {
    /// For a board whose image is made elsewhere, before there is one: the trust bundle and the bootstrap that it is to have.
    ///
    /// # Errors
    /// Any other target makes its images itself.
    pub fn prepare(&self, options: &Options) -> Done<[String; 2]> {
        let Self::Labgrid(file) = self else {
            return Err(Trouble::Failed(format!(
                "{self} needs no preparation: its image is made when it is run"
            )));
        };
        let work = tempfile::tempdir().map_err(Trouble::failed)?;
        Labgrid::open(file, work.path(), Purpose::Prepare)?.prepare(options)
    }
}

/// The repository that this was built from.
#[must_use]
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_what_is_written() {
        for text in ["sim:7", "qemu-arm64", "plc-x86", "labgrid:hil-tests/labgrid/pi5.yaml"] {
            assert_eq!(text.parse::<TargetName>().unwrap().to_string(), text);
        }
        assert_eq!("sim".parse::<TargetName>().unwrap(), TargetName::Simulator(0));
        for text in ["", "pi5", "sim:x", "labgrid:", "ssh:pi"] {
            assert!(text.parse::<TargetName>().unwrap_err().contains("no target"));
        }
    }
}
