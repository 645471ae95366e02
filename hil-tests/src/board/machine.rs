//! What a virtual board is: its description in `firmware-images/boards`, and QEMU's command line that follows from it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use super::BoardError;

/// The part of a board's description (`firmware-images/boards/NAME.toml`) that a test needs.
#[derive(Clone, Debug, Deserialize)]
pub struct Machine {
    /// The board's name, which is that of its file.
    #[serde(skip)]
    pub name: String,
    /// Debian's name of its architecture: `amd64`, `arm64`.
    pub architecture: String,
    /// What there is of memory.
    pub memory: Memory,
    /// How the disk is divided.
    pub partitions: Partitions,
    /// How QEMU is told to be it. Nothing where there is only the real one.
    #[serde(rename = "virtual")]
    pub emulated: Option<Emulated>,
}

/// Memory of a board, MiB.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Memory {
    /// Of the whole machine.
    pub machine: u32,
    /// What the agent with all that it starts may take.
    pub agent: u64,
}

/// Sizes of partitions, MiB.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Partitions {
    /// What the firmware reads.
    pub esp: u64,
    /// Each of the two slots.
    pub root: u64,
    /// What is kept.
    pub state: u64,
}

/// What QEMU emulates, in its own names.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Emulated {
    /// The program.
    pub qemu: String,
    /// `-M`.
    pub machine: String,
    /// `-cpu`.
    pub cpu: String,
    /// The firmware's code, and the variables that a board begins with.
    pub firmware: [PathBuf; 2],
    /// The TPM's device.
    pub tpm: String,
    /// The disk's device.
    pub disk: String,
    /// The network's device.
    pub network: String,
}

impl Machine {
    /// The board of this name.
    ///
    /// # Errors
    /// [`BoardError::Description`] where there is none, or it cannot be understood.
    pub fn named(name: &str) -> Result<Self, BoardError> {
        let path = boards().join(name).with_extension("toml");
        let wrong = |why: String| BoardError::Description {
            path: path.clone(),
            why,
        };
        let text = fs::read_to_string(&path).map_err(|e| wrong(e.to_string()))?;
        let machine: Self = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        Ok(Self {
            name: name.to_owned(),
            ..machine
        })
    }

    /// Where the first slot's root begins on the disk, bytes: behind the table of partitions and the first of them.
    #[must_use]
    pub const fn root_a(&self) -> u64 {
        (1 + self.partitions.esp) << 20
    }

    /// What QEMU is to be.
    ///
    /// # Errors
    /// [`BoardError::Missing`] where the board is not virtual, or QEMU or its firmware is not installed.
    pub fn emulated(&self) -> Result<&Emulated, BoardError> {
        let missing = |what: String| Err(BoardError::Missing(what));
        let Some(emulated) = &self.emulated else {
            return missing(format!(
                "{} has no [virtual] in its description: QEMU cannot be it",
                self.name
            ));
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let setup = if self.architecture == "arm64" { "arm64" } else { "image" };
        if !std::env::split_paths(&path).any(|folder| folder.join(&emulated.qemu).is_file()) {
            return missing(format!(
                "{} is not installed: `scripts/setup {setup}` installs it",
                emulated.qemu
            ));
        }
        match emulated.firmware.iter().find(|file| !file.is_file()) {
            Some(file) => missing(format!(
                "{} is not installed: `scripts/setup {setup}` installs it",
                file.display()
            )),
            None => Ok(emulated),
        }
    }
}

/// What a machine is plugged into.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plugs<'a> {
    /// The disk's file.
    pub(super) disk: &'a Path,
    /// The firmware's variables.
    pub(super) variables: &'a Path,
    /// The socket of the TPM.
    pub(super) tpm: &'a Path,
    /// The socket of the serial line, which QEMU makes; it begins when somebody has connected.
    pub(super) serial: &'a Path,
    /// MiB.
    pub(super) memory: u32,
}

impl Emulated {
    /// QEMU's command line. It ends when the machine resets itself.
    pub(super) fn command(&self, plugs: Plugs<'_>) -> Command {
        let pflash = |file: &Path, more: &str| format!("if=pflash,format=raw,{more}file={}", file.display());
        let mut command = Command::new(&self.qemu);
        command
            .args(["-M", &self.machine, "-cpu", &self.cpu, "-smp", "2"])
            .args(["-accel", "tcg,thread=multi", "-m", &plugs.memory.to_string()])
            .args(["-display", "none", "-monitor", "none", "-no-reboot"])
            .args(["-drive", &pflash(&self.firmware[0], "readonly=on,")])
            .args(["-drive", &pflash(plugs.variables, "")])
            .args([
                "-drive",
                &format!(
                    "if=none,id=disk,format=raw,cache=writeback,file={}",
                    plugs.disk.display()
                ),
            ])
            .args(["-device", &format!("{},drive=disk,bootindex=0", self.disk)])
            .args(["-chardev", &format!("socket,id=tpm,path={}", plugs.tpm.display())])
            .args(["-tpmdev", "emulator,id=tpm0,chardev=tpm"])
            .args(["-device", &format!("{},tpmdev=tpm0", self.tpm)])
            .args(["-nic", &format!("user,model={}", self.network)])
            .args(["-device", "virtio-rng-pci", "-serial", "chardev:serial"])
            .args([
                "-chardev",
                &format!("socket,id=serial,server=on,wait=on,path={}", plugs.serial.display()),
            ]);
        command
    }
}

fn boards() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../firmware-images/boards")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_description_is_understood_and_the_virtual_boards_can_be_emulated() {
        let mut found = 0;
        for file in fs::read_dir(boards()).unwrap() {
            let file = file.unwrap().path();
            let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
            let machine = Machine::named(&name).unwrap();
            assert_eq!(machine.name, name);
            assert!(machine.memory.agent < u64::from(machine.memory.machine), "{name}");
            assert!(!name.starts_with("qemu-") || machine.emulated.is_some(), "{name}");
            found += 1;
        }
        assert!(found >= 4);
    }

    #[test]
    fn a_board_that_nobody_described_is_an_error_that_names_the_file() {
        let error = Machine::named("toaster").unwrap_err().to_string();
        assert!(error.contains("boards/toaster.toml"), "{error}");
    }

    #[test]
    fn the_command_line_follows_from_the_description() {
        let machine = Machine::named("qemu-arm64").unwrap();
        let file = Path::new("/nowhere");
        let plugs = Plugs {
            disk: file,
            variables: file,
            tpm: file,
            serial: file,
            memory: machine.memory.machine,
        };
        let command = machine.emulated.unwrap().command(plugs);
        assert_eq!(command.get_program(), "qemu-system-aarch64");
        let line: Vec<&str> = command.get_args().map(|word| word.to_str().unwrap()).collect();
        let line = line.join(" ");
        for part in [
            "-M virt ",
            "-cpu cortex-a76",
            "-m 512",
            "tpm-tis-device,tpmdev=tpm0",
            "AAVMF_CODE.fd",
        ] {
            assert!(line.contains(part), "{line}");
        }
    }
}
