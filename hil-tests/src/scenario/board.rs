//! Virtual boards: QEMU with swtpm, each new board with a new TPM.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cnova_root_of_trust::testing::{Maker, Swtpm};
use cnova_root_of_trust::tpm::EkKind;

use super::lab::{Hardware, Known, flip};
use super::plant::Place;
use super::{Clock, Done, Trouble};
use crate::board::machine::Machine;
use crate::board::{Board, BoardError, PROMPT, Parts};

/// Where a guest sees the loopback of this machine (QEMU's user network).
const HOST: &str = "10.0.2.2";
/// The NV index of a P-384 endorsement key's certificate (TCG EK Credential Profile, section 2.2.1.4).
const EK_CERTIFICATE: &str = "0x01c00016";
/// How often it may start again by itself, in all scenarios together: what happens more often is no accident.
const RESTARTS_MAX: u32 = 3;
/// What anything may take, emulated on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);

impl From<BoardError> for Trouble {
    fn from(error: BoardError) -> Self {
        match error {
            BoardError::Missing(why) => Self::Unsupported(why),
            other => Self::failed(other),
        }
    }
}

/// A machine in QEMU.
pub(super) struct Virtual {
    machine: Machine,
    folder: PathBuf,
    maker: Maker,
    chip: Option<Swtpm>,
    parts: Option<Parts>,
    board: Option<Board>,
    /// What it was switched on with.
    clock: Clock,
    /// How often it started again by itself.
    restarts: u32,
}

impl Virtual {
    /// A board of this description, with its disk in the folder.
    pub(super) fn new(name: &str, folder: &Path) -> Done<Self> {
        let machine = Machine::named(name)?;
        machine.emulated()?;
        std::fs::create_dir_all(folder).map_err(Trouble::failed)?;
        Ok(Self {
            machine,
            folder: folder.to_owned(),
            maker: Maker::new(),
            chip: None,
            parts: None,
            board: None,
            clock: Clock::Right,
            restarts: 0,
        })
    }

    fn board(&mut self) -> Done<&mut Board> {
        self.board.as_mut().ok_or_else(|| Trouble::failed("the board is off"))
    }
}

/// The certificate of a software TPM's endorsement key, DER.
pub(super) fn certificate_of(chip: &Swtpm) -> Done<Vec<u8>> {
    let read = chip.tool("tpm2_nvread").arg(EK_CERTIFICATE).output();
    let read = read.map_err(|e| Trouble::Unsupported(format!("tpm2_nvread (Debian: tpm2-tools): {e}")))?;
    match read.status.success() {
        true => Ok(read.stdout),
        false => Err(Trouble::failed(String::from_utf8_lossy(&read.stderr))),
    }
}

/// A new software TPM by this maker.
pub(super) fn new_chip(maker: &Maker) -> Done<Swtpm> {
    Swtpm::start_by(maker, Some(EkKind::P384))
        .ok_or_else(|| Trouble::unsupported("swtpm is not installed: `scripts/setup test` installs it"))
}

impl Hardware for Virtual {
    fn about(&mut self) -> Vec<(String, String)> {
        let emulated = self.machine.emulated.as_ref();
        let text = emulated.map(|e| format!("{} -M {} -cpu {}, emulated (TCG), swtpm", e.qemu, e.machine, e.cpu));
        let restarts = match self.restarts {
            0 => "never".to_owned(),
            n => format!("{n} times"),
        };
        vec![
            ("machine".into(), text.unwrap_or_default()),
            ("started again by itself while it booted".into(), restarts),
        ]
    }

    fn machine(&self) -> &Machine {
        &self.machine
    }

    fn place(&mut self) -> Done<Place> {
        Ok(Place {
            listen: "127.0.0.1".into(),
            seen: HOST.into(),
            ports: None,
            makers: vec![self.maker.certificate().to_vec()],
        })
    }

    fn ready_image(&self) -> Option<PathBuf> {
        None
    }

    fn next(&mut self) -> Done<Known> {
        self.board = None;
        let chip = new_chip(&self.maker)?;
        let certificate = certificate_of(&chip)?;
        self.chip = Some(chip);
        Ok(Known::ByCertificate(certificate))
    }

    fn flash(&mut self, image: &Path) -> Done {
        self.parts = Some(Parts::flash(&self.machine, image, &self.folder)?);
        Ok(())
    }

    fn switch_on(&mut self, clock: Clock) -> Done {
        let (Some(parts), Some(chip)) = (&mut self.parts, &mut self.chip) else {
            return Err(Trouble::failed("the board was never flashed"));
        };
        self.board = None;
        self.clock = clock;
        parts.clock = match clock {
            Clock::Right => None,
            Clock::Lost => Some("1970-01-01T00:00:00".into()),
        };
        let socket = chip.serve_machine();
        self.board = Some(parts.power_on(&socket)?);
        Ok(())
    }

    fn cut_power(&mut self) -> Done {
        self.board = None;
        Ok(())
    }

    fn wait_shell(&mut self) -> Done {
        loop {
            let board = self.board()?;
            match board.wait_booted() {
                Ok(()) => return Ok(()),
                // A real machine starts again by itself; this QEMU ends there.
                Err(_) if !board.is_on() && self.restarts < RESTARTS_MAX => {
                    self.restarts += 1;
                    self.switch_on(self.clock)?;
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn run(&mut self, command: &str) -> Done<String> {
        Ok(self.board()?.run(command)?)
    }

    fn restart(&mut self) -> Done {
        let board = self.board()?;
        board.send("systemctl reboot")?;
        // This QEMU ends where a machine resets itself.
        board.wait_off(PATIENCE)?;
        self.switch_on(Clock::Right)
    }

    fn follow(&mut self) -> Done<bool> {
        let board = self.board()?;
        if board.is_on() {
            return Ok(board.said().contains(PROMPT));
        }
        // This QEMU ends where a machine resets itself.
        self.switch_on(self.clock)?;
        Ok(false)
    }

    fn wait_for(&mut self, text: &str) -> Done {
        Ok(self.board()?.wait_for(text, 0, PATIENCE)?)
    }

    fn said(&mut self) -> String {
        self.board.as_ref().map(Board::said).unwrap_or_default()
    }

    fn damage(&mut self, offset: u64) -> Done {
        self.board = None;
        self.mend(offset)
    }

    fn mend(&mut self, offset: u64) -> Done {
        let Some(parts) = &self.parts else {
            return Err(Trouble::failed("the board was never flashed"));
        };
        flip(&parts.disk, self.machine.root_a() + offset)
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }
}
