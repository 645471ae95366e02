//! What waits for the TPM, on disk: what happened while it was silent is not forgotten by a crash.
//!
//! The file is a log like the launch log, with the boot that it belongs to as its first record. It is emptied when all of it
//! is in the launch log.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use cnova_attestation::event_log::{self, Boot, Event, Log};

use super::{FILE_BYTES_MAX, MeasureError, Program, append};

/// Ending of its name, beside the launch log.
const EXTENSION: &str = "waiting";

#[derive(Debug)]
pub(super) struct WaitingFile {
    path: PathBuf,
    file: File,
    log: Log,
    /// Those of the agent in it; launches are known to the log.
    agents: Vec<Event>,
}

impl WaitingFile {
    /// Opens the one beside the launch log; what is in it of this boot is returned, in its order. Of another boot nothing
    /// is: its launches ended with it, and the register began anew.
    pub(super) fn open(launch_log: &Path, boot: &str) -> Result<(Self, Vec<Event>), MeasureError> {
        let path = launch_log.with_extension(EXTENSION);
        let fail = |action| {
            let path = path.clone();
            move |source| MeasureError::File { action, path, source }
        };
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).mode(0o600).open(&path);
        let file = file.map_err(fail("open what waits for"))?;
        let len = file.metadata().map_err(fail("look at what waits for"))?.len();
        let bytes = match len {
            1..=FILE_BYTES_MAX => fs::read(&path).map_err(fail("read what waits for"))?,
            _ => Vec::new(),
        };
        let (log, torn) = Log::read(&bytes);
        if log.boot().is_none_or(|b| b.boot != boot) {
            if len > 0 {
                file.set_len(0).map_err(fail("empty what waits for"))?;
            }
            let (log, agents) = (Log::new(), Vec::new());
            let empty = Self {
                path,
                file,
                log,
                agents,
            };
            return Ok((empty, Vec::new()));
        }
        let good = torn.map_or(bytes.len(), |torn| torn.good);
        if good < bytes.len() {
            // Never synced, so never launched.
            file.set_len(good as u64).map_err(fail("cut what waits for"))?;
        }
        let is_waiting = |event: &Event| matches!(event, Event::Agent { .. } | Event::Launch(_));
        let waiting: Vec<Event> = event_log::events(&bytes[..good]).filter(is_waiting).collect();
        let is_agent = |event: &&Event| matches!(event, Event::Agent { .. });
        let agents = waiting.iter().filter(is_agent).cloned().collect();
        let held = Self {
            path,
            file,
            log,
            agents,
        };
        Ok((held, waiting))
    }

    /// Puts something on the disk, unless it is there. `agent` is the program that does so.
    pub(super) fn put(&mut self, event: &Event, agent: &Program) -> Result<(), MeasureError> {
        let is_there = match event {
            Event::Launch(launch) => self.log.has(launch),
            other => self.agents.contains(other),
        };
        if is_there {
            return Ok(());
        }
        if self.log.count() == 0 {
            self.append(Event::Boot(Boot {
                agent: agent.digest,
                version: agent.version.clone(),
                boot: agent.boot.clone(),
                before: None,
            }))?;
        }
        self.append(event.clone())?;
        if matches!(event, Event::Agent { .. }) {
            self.agents.push(event.clone());
        }
        Ok(())
    }

    fn append(&mut self, event: Event) -> Result<(), MeasureError> {
        let prepared = self.log.prepare(event)?;
        append(&mut self.file, &prepared.record).map_err(|source| MeasureError::File {
            action: "write down what waits for",
            path: self.path.clone(),
            source,
        })?;
        Ok(self.log.append(&prepared)?)
    }

    /// All of it is in the launch log.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        if self.log.count() > 0 {
            self.file.set_len(0)?;
            self.log = Log::new();
            self.agents.clear();
        }
        Ok(())
    }
}
