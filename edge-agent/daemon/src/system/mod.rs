//! The two slots of this machine's operating system: what runs, and how another one gets into the other slot.
//!
//! The root partition that runs is never opened for writing, and its slot's boot file is never touched; before the first
//! byte goes into the other one, the loader forgets that there was anything to start there. Every call blocks on the disk.

mod boot_control;
mod machine;
mod systemd_boot;
mod uboot;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use cnova_agent_core::system::{OtherSlot, Running};
use cnova_agent_core::{SystemAction, SystemEvent};
use cnova_shared::ids::Digest;
use cnova_shared::system_bundle::{Header, PartKind};
use serde::Deserialize;
use thiserror::Error;

pub use boot_control::{BootControl, EntryState};
pub use machine::{Machine, Unfit};
pub use systemd_boot::SystemdBoot;
pub use uboot::{Environment, UBoot};
pub use writer::SlotWriter;

/// `[system]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SystemConfig {
    /// Who starts the slots.
    pub loader: Loader,
    /// Where the boot files of the slots are: the EFI system partition, or U-Boot's.
    pub boot_dir: PathBuf,
    /// What starts the machine anew.
    pub reboot: Vec<String>,
    /// U-Boot's environment.
    pub environment: Option<Environment>,
}

/// Who starts the slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loader {
    /// systemd-boot, on a machine that was started with a root hash.
    #[default]
    SystemdBoot,
    /// U-Boot, with its environment.
    UBoot,
    /// Nobody: the system is never changed.
    None,
}

impl Default for SystemConfig {
    fn default() -> Self {
        Self {
            loader: Loader::default(),
            boot_dir: "/efi".into(),
            reboot: ["systemctl", "reboot"].map(str::to_owned).to_vec(),
            environment: None,
        }
    }
}

/// Why something could not be done with the slots.
#[derive(Debug, Error)]
pub enum SlotError {
    /// The disk said no.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// It does not fit.
    #[error("{what} takes {asked} bytes, and {} has room for {room}", path.display())]
    NoRoom {
        /// The root or the boot file.
        what: &'static str,
        /// What is to be written.
        asked: u64,
        /// What there is.
        room: u64,
        /// Where.
        path: PathBuf,
    },
    /// The slot holds something else than it should.
    #[error("{what} in slot {slot} has the digest {found} and not {expected}, which its header says")]
    Damaged {
        /// The root or the boot file.
        what: &'static str,
        /// The slot.
        slot: String,
        /// What it holds.
        found: Digest,
        /// What it should hold.
        expected: Digest,
    },
    /// The file system of the boot files is not there.
    #[error("{} is not mounted, and the boot files of the slots are on a file system of their own ([system] boot_dir)", .0.display())]
    NotMounted(PathBuf),
    /// Something that the loader needs is not as it is expected.
    #[error("{0}")]
    Loader(String),
    /// The bundle was not opened before.
    #[error("bytes at {offset} of the bundle do not continue what is written ({have})")]
    NotNext {
        /// Where they stand.
        offset: u64,
        /// What is there.
        have: u64,
    },
}

pub(crate) fn fail(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SlotError {
    let path = path.to_owned();
    move |source| SlotError::Io { action, path, source }
}

/// The slots of this machine.
#[derive(Debug)]
pub struct Slots {
    machine: Machine,
    control: Box<dyn BootControl>,
    writer: Mutex<SlotWriter>,
    reboot: Vec<String>,
    root: PathBuf,
    /// As the machine calls it.
    boot_dir: PathBuf,
}

impl Slots {
    /// Looks at the machine whose files are below `root`; progress is kept in `state_dir`.
    ///
    /// # Errors
    /// [`Unfit`]: why its system cannot be changed.
    pub fn find(root: &Path, config: &SystemConfig, state_dir: &Path) -> Result<Self, Unfit> {
        if config.loader == Loader::None {
            return Err(Unfit::Configured);
        }
        let machine = Machine::look(root)?;
        let boot_dir = root.join(config.boot_dir.strip_prefix("/").unwrap_or(&config.boot_dir));
        let control: Box<dyn BootControl> = match (config.loader, &config.environment) {
            (Loader::UBoot, Some(environment)) => Box::new(UBoot::new(boot_dir.clone(), environment.clone())),
            (Loader::UBoot, None) => return Err(Unfit::NoEnvironment),
            _ => Box::new(SystemdBoot::new(
                boot_dir.clone(),
                root.join("sys/firmware/efi/efivars"),
            )),
        };
        if !boot_dir.is_dir() {
            return Err(Unfit::NoBootFolder(boot_dir));
        }
        let other = machine.other();
        let staging = control.staging(&other.slot);
        let writer = SlotWriter::new(
            other.slot.clone(),
            other.device.clone(),
            staging,
            state_dir.join("system"),
        );
        Ok(Self {
            machine,
            control,
            writer: Mutex::new(writer),
            reboot: config.reboot.clone(),
            root: root.to_owned(),
            boot_dir: config.boot_dir.clone(),
        })
    }

    /// What runs.
    #[must_use]
    pub fn running(&self) -> Running {
        // What is not known to be good is taken for counted.
        let own = self.state(&self.machine.slot);
        let is_counted = !matches!(own, Ok(EntryState::Good | EntryState::None));
        self.machine.running(self.other_slot(), is_counted)
    }

    fn other_slot(&self) -> OtherSlot {
        match self.state(&self.machine.other().slot) {
            Ok(state) => state.into(),
            Err(error) => {
                tracing::warn!(%error, "it is not known what is in the other slot");
                OtherSlot::Unknown
            }
        }
    }

    fn state(&self, slot: &str) -> Result<EntryState, SlotError> {
        self.reach()?;
        self.control.state(slot)
    }

    /// An empty folder is not a loader that knows of nothing: the file system of the boot files may come later, or never.
    fn reach(&self) -> Result<(), SlotError> {
        if machine::is_mounted(&self.root, &self.boot_dir)? {
            return Ok(());
        }
        Err(SlotError::NotMounted(self.boot_dir.clone()))
    }

    /// Does what the core asks; what it is to be told.
    #[must_use]
    pub fn perform(&self, action: SystemAction) -> Option<SystemEvent> {
        match action {
            SystemAction::Open { bundle, header } => Some(match self.open(bundle, &header) {
                Ok(have) => SystemEvent::Opened { bundle, have },
                Err(error) => not_written(bundle, &error),
            }),
            SystemAction::Write { bundle, offset, data } => {
                let written = self.writer().write(&bundle, offset, &data);
                written.err().map(|error| not_written(bundle, &error))
            }
            SystemAction::Verify { bundle, header } => {
                let result = self.writer().verify(&bundle, &header).map_err(|e| e.to_string());
                Some(SystemEvent::Verified { bundle, result })
            }
            SystemAction::Start {
                bundle,
                header,
                tries,
                is_older,
            } => self.start(bundle, &header, tries, is_older),
            SystemAction::Confirm => {
                let done = self.reach().and_then(|()| self.control.confirm(&self.machine.slot));
                self.log(done, "the slot that runs is still counted");
                None
            }
            SystemAction::Discard => {
                let done = self.reach();
                let done = done.and_then(|()| self.control.disarm(&self.machine.other().slot));
                self.log(
                    done.and_then(|()| self.writer().discard()),
                    "what is left in the other slot stays",
                );
                None
            }
            SystemAction::Restart => self.restart_or_say(),
            SystemAction::Look => Some(SystemEvent::OtherSlot(self.other_slot())),
        }
    }

    fn writer(&self) -> std::sync::MutexGuard<'_, SlotWriter> {
        self.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn open(&self, bundle: Digest, header: &Header) -> Result<u64, SlotError> {
        self.reach()?;
        let mut writer = self.writer();
        if let Some(have) = writer.resume(&bundle, header)? {
            // Whatever was armed since is not what is half written.
            self.control.disarm(&self.machine.other().slot)?;
            return Ok(have);
        }
        self.control.disarm(&self.machine.other().slot)?;
        writer.begin(bundle, header)
    }

    fn start(&self, bundle: Digest, header: &Header, tries: u8, is_older: bool) -> Option<SystemEvent> {
        let slot = &self.machine.other().slot;
        let Some(boot) = header.part(PartKind::Boot) else {
            let why = "its header names no boot part".to_owned();
            return Some(SystemEvent::NotStarted { bundle, why });
        };
        let armed = self.reach();
        let armed = armed.and_then(|()| self.control.arm(slot, tries, &boot.digest, is_older));
        if let Err(error) = armed {
            let why = error.to_string();
            return Some(match error {
                SlotError::Damaged { .. } => SystemEvent::Verified {
                    bundle,
                    result: Err(why),
                },
                SlotError::NoRoom { .. } => SystemEvent::NoRoom { bundle, why },
                _ => SystemEvent::NotStarted { bundle, why },
            });
        }
        tracing::warn!(
            slot,
            version = header.version,
            "the machine is started anew, with another system"
        );
        self.restart_or_say()
    }

    fn restart_or_say(&self) -> Option<SystemEvent> {
        let error = self.restart().err()?;
        tracing::error!(%error, slot = self.machine.slot, "the machine does not start anew");
        let why = error.to_string();
        Some(SystemEvent::NotRestarted { why })
    }

    fn restart(&self) -> Result<(), SlotError> {
        let Some((program, arguments)) = self.reboot.split_first() else {
            return Err(SlotError::Loader("[system] reboot names no program".into()));
        };
        let done = Command::new(program).args(arguments).output();
        let done = done.map_err(fail("run", Path::new(program)))?;
        if done.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
        Err(SlotError::Loader(format!(
            "{program} ended with {}: {said}",
            done.status
        )))
    }

    fn log(&self, done: Result<(), SlotError>, otherwise: &str) {
        if let Err(error) = done {
            tracing::error!(%error, slot = self.machine.slot, "{otherwise}");
        }
    }
}

fn not_written(bundle: Digest, error: &SlotError) -> SystemEvent {
    let why = error.to_string();
    match error {
        SlotError::NoRoom { .. } => SystemEvent::NoRoom { bundle, why },
        _ => SystemEvent::NotWritten { bundle, why },
    }
}
