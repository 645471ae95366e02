//! A virtual board: a machine in QEMU that boots an image of `firmware-images/build` with its own firmware and TPM.
//!
//! By emulation, so that it runs wherever the tests do. Its power is cut by killing QEMU: what the disk then has is what the
//! guest had flushed, as with a board.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use thiserror::Error;

pub mod machine;

use machine::{Machine, Plugs};

/// The shell on the serial line, of images that were built with `--console`.
pub(crate) const PROMPT: &str = "root@cnova:~# ";
/// From power on to the prompt, emulated on a busy machine.
const BOOT_PATIENCE: Duration = Duration::from_secs(600);
const COMMAND_PATIENCE: Duration = Duration::from_secs(240);
const PAUSE: Duration = Duration::from_millis(50);
/// Until what a machine said that is off has been read.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why a board does not do what it is told.
#[derive(Debug, Error)]
pub enum BoardError {
    /// Something that is installed separately is not; a test skips then.
    #[error("{0}")]
    Missing(String),
    /// Its description cannot be used.
    #[error("the description of the board, {}, cannot be used: {why}", path.display())]
    Description {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A file or a process of it could not be used.
    #[error("board: cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// What the system answered.
        source: io::Error,
    },
    /// It did not come to what was waited for.
    #[error("the board did not come to {what} within {patience:?}; the end of its serial line:\n{said}")]
    Waited {
        /// What.
        what: String,
        /// How long was waited.
        patience: Duration,
        /// The last it said.
        said: String,
    },
}

fn failed(action: impl Into<String>) -> impl FnOnce(io::Error) -> BoardError {
    let action = action.into();
    move |source| BoardError::Io { action, source }
}

/// What a board is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// What it is.
    pub machine: Machine,
    /// Its disk; it is written to.
    pub disk: PathBuf,
    /// Where its firmware keeps its variables, and the sockets are.
    pub folder: PathBuf,
    /// Its memory, MiB.
    pub memory_mib: u32,
    /// What its clock says when it is switched on, as QEMU's `-rtc base=` takes it; the time, unless it is said.
    pub clock: Option<String>,
}

impl Parts {
    /// A new board: its disk is a copy of the image, its firmware knows nothing yet.
    ///
    /// # Errors
    /// [`BoardError::Missing`] where QEMU or its firmware is not installed.
    pub fn flash(machine: &Machine, image: &Path, folder: &Path) -> Result<Self, BoardError> {
        let emulated = machine.emulated()?;
        let disk = folder.join("disk.img");
        fs::copy(image, &disk).map_err(failed(format!("copy {}", image.display())))?;
        fs::copy(&emulated.firmware[1], folder.join("firmware")).map_err(failed("copy the firmware's variables"))?;
        Ok(Self {
            machine: machine.clone(),
            disk,
            folder: folder.to_owned(),
            memory_mib: machine.memory.machine,
            clock: None,
        })
    }

    /// Switches it on, with the TPM behind this socket.
    ///
    /// # Errors
    /// [`BoardError`].
    pub fn power_on(&self, tpm: &Path) -> Result<Board, BoardError> {
        let socket = self.folder.join("serial");
        let _ = fs::remove_file(&socket);
        let emulated = self.machine.emulated()?;
        let child = emulated
            .command(Plugs {
                disk: &self.disk,
                variables: &self.folder.join("firmware"),
                tpm,
                serial: &socket,
                memory: self.memory_mib,
            })
            .args(
                self.clock
                    .iter()
                    .flat_map(|base| ["-rtc".to_owned(), format!("base={base}")]),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(failed(format!("start {}", emulated.qemu)))?;
        let mut board = Board {
            child,
            serial: None,
            said: Arc::default(),
        };
        let until = Instant::now() + COMMAND_PATIENCE;
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(e) if Instant::now() > until => return Err(failed("reach its serial line")(e)),
                Err(_) => sleep(PAUSE),
            }
        };
        let mut reader = stream.try_clone().map_err(failed("read its serial line"))?;
        board.serial = Some(stream);
        let said = board.said.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut chunk) {
                let text = String::from_utf8_lossy(&chunk[..count]).replace('\r', "");
                said.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
            }
        });
        Ok(board)
    }
}

/// A machine that is switched on. It is switched off when this is dropped.
#[derive(Debug)]
pub struct Board {
    child: Child,
    serial: Option<UnixStream>,
    said: Arc<Mutex<String>>,
}

impl Board {
    /// Everything that its serial line said since it was switched on.
    #[must_use]
    pub fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for a text on the serial line after `from` bytes.
    ///
    /// # Errors
    /// [`BoardError::Waited`]; at once when it is off and did not say it.
    pub fn wait_for(&mut self, text: &str, from: usize, patience: Duration) -> Result<(), BoardError> {
        let until = Instant::now() + patience;
        let has_said = |board: &Self| board.said().get(from..).is_some_and(|s| s.contains(text));
        while !has_said(self) {
            if !self.is_on() {
                // Its last words are still on their way.
                sleep(LAST_WORDS);
                return match has_said(self) {
                    true => Ok(()),
                    false => Err(self.waited(&format!("{text}, it is off"), patience)),
                };
            }
            if Instant::now() > until {
                return Err(self.waited(text, patience));
            }
            sleep(PAUSE);
        }
        Ok(())
    }

    fn waited(&self, what: &str, patience: Duration) -> BoardError {
        let said = self.said();
        let lines: Vec<&str> = said.lines().collect();
        BoardError::Waited {
            what: what.to_owned(),
            patience,
            said: lines[lines.len().saturating_sub(40)..].join("\n"),
        }
    }

    /// Waits for the shell.
    ///
    /// # Errors
    /// [`BoardError::Waited`].
    pub fn wait_booted(&mut self) -> Result<(), BoardError> {
        self.wait_for(PROMPT, 0, BOOT_PATIENCE)
    }

    /// Types a command of which no answer is waited for, such as one that ends the system.
    ///
    /// # Errors
    /// [`BoardError::Io`].
    pub fn send(&mut self, command: &str) -> Result<(), BoardError> {
        let serial = self
            .serial
            .as_mut()
            .ok_or_else(|| BoardError::Missing("there is no serial line".into()))?;
        let line = format!("{command}\r");
        serial
            .write_all(line.as_bytes())
            .map_err(failed("write to its serial line"))
    }

    /// Runs a command in the board's shell; what it printed.
    ///
    /// # Errors
    /// [`BoardError`].
    pub fn run(&mut self, command: &str) -> Result<String, BoardError> {
        let from = self.said().len();
        // The shell echoes what it is told, and joins these only when it runs them.
        self.send(&format!(
            "echo b''egin-{from}; {{ {command}; }} 2>&1 | cat; echo d''one-{from}"
        ))?;
        let end = format!("done-{from}");
        self.wait_for(&end, from, COMMAND_PATIENCE)?;
        let said = self.said();
        let answer = said.get(from..).unwrap_or_default();
        let answer = answer.split(&end).next().unwrap_or_default();
        let answer = answer.split_once(&format!("begin-{from}\n"));
        Ok(answer.map_or("", |(_, rest)| rest).to_owned())
    }

    /// Whether it is switched on: a machine that resets itself is off, and `power_on` is its next boot.
    pub fn is_on(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it resets itself or switches itself off.
    ///
    /// # Errors
    /// [`BoardError::Waited`].
    pub fn wait_off(&mut self, patience: Duration) -> Result<(), BoardError> {
        let until = Instant::now() + patience;
        while self.is_on() {
            if Instant::now() > until {
                return Err(self.waited("switch itself off", patience));
            }
            sleep(PAUSE);
        }
        Ok(())
    }

    /// Cuts its power.
    pub fn cut_power(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        self.cut_power();
    }
}
