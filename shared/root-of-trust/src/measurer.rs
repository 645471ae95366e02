//! Measured launch: log, sync, extend, and only then launch.
//!
//! The log is a file of its own beside the ledger, one for each boot of the machine: the register that proves it begins
//! anew with the machine, and neither knows of the other's transactions.
//!
//! What asks for attestation is not launched while the TPM does not answer. Everything else is: it is remembered and
//! logged as soon as the TPM answers again, before anything that is launched later and before any evidence.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cnova_attestation::event_log::{self, Boot, Event, Launch, Log, LogError, Slice, Standing};

use cnova_shared::ids::Digest;
use cnova_shared::wire::v1::LogPrefix;
use ring::digest::{Context, SHA256};
use thiserror::Error;

use crate::{RootError, RootOfTrust};

/// Longest log file that is read. [`cnova_attestation::limits::LOG_ENTRIES`] entries of the longest kind are shorter.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// After the TPM did not answer it is not asked again for so long: each question may cost seconds.
const TPM_PAUSE: Duration = Duration::from_secs(10);
/// Most launches that wait for the TPM; the newest are left out then, and a verifier will miss them.
const WAITING_MAX: usize = 1024;

/// Why a launch was not measured.
#[derive(Debug, Error)]
pub enum MeasureError {
    /// A file.
    #[error("cannot {action} the launch log {path}: {source}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The log takes no more.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] RootError),
    /// It is too early to ask the TPM again.
    #[error("the TPM did not answer a moment ago, and is asked again soon")]
    Pausing,
    /// Something else was extended into the register, or the log was changed.
    #[error("the launch log and PCR {pcr} do not agree: one of them was changed since the machine started; restart it")]
    Differs {
        /// The launch register.
        pcr: u8,
    },
}

/// Keeps the launch log and the TPM's launch register in step.
#[derive(Debug)]
pub struct Measurer {
    root: Arc<dyn RootOfTrust>,
    pcr: u8,
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Until the agent itself is in the log.
    agent: Option<Program>,
    file: File,
    log: Log,
    /// Logged and not extended.
    pending: Option<Digest>,
    /// Launched and not logged.
    waiting: VecDeque<Launch>,
    differs: bool,
    ask_again: Option<Instant>,
    executables: BTreeMap<PathBuf, (Version, Digest)>,
}

impl Program {
    /// The program that is running, in this boot of the machine. `version` is its own.
    ///
    /// # Errors
    /// [`MeasureError::File`].
    pub fn this(version: &str) -> Result<Self, MeasureError> {
        let fail = |action, path: &str| {
            let path = path.into();
            move |source| MeasureError::File { action, path, source }
        };
        let (exe, boot_id) = ("/proc/self/exe", "/proc/sys/kernel/random/boot_id");
        let boot = fs::read_to_string(boot_id).map_err(fail("read the boot's id for", boot_id))?;
        Ok(Self {
            digest: digest_of_file(Path::new(exe)).map_err(fail("read this very program for", exe))?,
            version: version.to_owned(),
            boot: boot.trim().to_owned(),
        })
    }
}

/// What tells one version of a file from the next.
type Version = (u64, i64, i64, u64);

/// What a program says of itself in the log.
#[derive(Clone, Debug)]
pub struct Program {
    /// SHA-256 of its executable.
    pub digest: Digest,
    /// Its version.
    pub version: String,
    /// The kernel's id of this boot.
    pub boot: String,
}

impl Measurer {
    /// Takes the log of this boot up again, or begins one. What is wrong with the TPM keeps nobody from starting: it is
    /// returned beside the measurer.
    ///
    /// # Errors
    /// [`MeasureError::File`] when the log cannot be written at all.
    pub fn open(
        path: &Path,
        root: Arc<dyn RootOfTrust>,
        pcr: u8,
        agent: Program,
    ) -> Result<(Self, Option<MeasureError>), MeasureError> {
        let fail = |action| {
            let path = path.to_owned();
            move |source| MeasureError::File { action, path, source }
        };
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).mode(0o600).open(path);
        let file = file.map_err(fail("open"))?;
        let len = file.metadata().map_err(fail("look at"))?.len();
        let bytes = if len > FILE_BYTES_MAX {
            Vec::new()
        } else {
            fs::read(path).map_err(fail("read"))?
        };
        let (mut log, torn) = Log::read(&bytes);
        if let Some(torn) = torn {
            tracing::warn!(
                cut = torn.cut,
                reason = torn.reason,
                "the end of the launch log is torn, and cut off"
            );
            file.set_len(torn.good as u64).map_err(fail("cut"))?;
        }
        if log.boot().is_none_or(|b| b.boot != agent.boot) {
            file.set_len(0).map_err(fail("empty"))?;
            log = Log::new();
        }
        let measurer = Self {
            root,
            pcr,
            path: path.to_owned(),
            inner: Mutex::new(Inner {
                agent: Some(agent),
                file,
                log,
                pending: None,
                waiting: VecDeque::new(),
                differs: false,
                ask_again: None,
                executables: BTreeMap::new(),
            }),
        };
        let problem = measurer.flush(&mut measurer.lock()).err();
        Ok((measurer, problem))
    }

    /// Compares log and register, and logs that the agent is here.
    fn begin(&self, inner: &mut Inner, agent: Program) -> Result<(), MeasureError> {
        let register = self.register()?;
        if inner.log.count() == 0 {
            let before = (register != event_log::ZERO).then_some(register);
            return self.log(
                inner,
                Event::Boot(Boot {
                    agent: agent.digest,
                    version: agent.version,
                    boot: agent.boot,
                    before,
                }),
            );
        }
        match inner.log.against(&register) {
            Standing::Same => {}
            Standing::Pending(digest) => {
                self.root.extend(self.pcr, &digest)?;
                inner.pending = None;
            }
            Standing::Differs { .. } => {
                inner.differs = true;
                return Err(MeasureError::Differs { pcr: self.pcr });
            }
        }
        let (agent, version) = (agent.digest, agent.version);
        self.log(inner, Event::Agent { agent, version })
    }

    fn register(&self) -> Result<Digest, RootError> {
        let read = self.root.read_pcrs(&[self.pcr])?;
        Ok(read.get(&self.pcr).copied().unwrap_or(event_log::ZERO))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Measures a launch that is about to happen, and what waits. A launch that was measured since the machine started
    /// costs nothing. When this fails the launch is remembered: whoever launches it anyway has it logged later.
    ///
    /// # Errors
    /// [`MeasureError`]; nothing that asks for attestation may be launched then.
    pub fn measure(&self, launch: Launch) -> Result<(), MeasureError> {
        let inner = &mut *self.lock();
        let is_known = inner.log.has(&launch) || inner.waiting.contains(&launch);
        if !is_known && inner.waiting.len() < WAITING_MAX {
            inner.waiting.push_back(launch);
        }
        self.flush(inner)
    }

    /// Logs and extends everything that waits.
    fn flush(&self, inner: &mut Inner) -> Result<(), MeasureError> {
        if inner.differs {
            return Err(MeasureError::Differs { pcr: self.pcr });
        }
        if inner.agent.is_none() && inner.pending.is_none() && inner.waiting.is_empty() {
            return Ok(());
        }
        if inner.ask_again.is_some_and(|at| Instant::now() < at) {
            return Err(MeasureError::Pausing);
        }
        let result = self.flush_now(inner);
        let is_tpm = matches!(result, Err(MeasureError::Tpm(_)));
        inner.ask_again = is_tpm.then(|| Instant::now() + TPM_PAUSE);
        result
    }

    fn flush_now(&self, inner: &mut Inner) -> Result<(), MeasureError> {
        if let Some(agent) = inner.agent.clone() {
            self.begin(inner, agent)?;
            inner.agent = None;
        }
        self.catch_up(inner)?;
        while let Some(launch) = inner.waiting.front().cloned() {
            // It may have been logged before the TPM fell silent.
            if !inner.log.has(&launch) {
                self.log(inner, Event::Launch(launch))?;
            }
            inner.waiting.pop_front();
        }
        Ok(())
    }

    /// Extends what was logged and not extended. Never is a second entry logged before that.
    fn catch_up(&self, inner: &mut Inner) -> Result<(), MeasureError> {
        if let Some(digest) = inner.pending {
            // An answer may have been lost on its way: the register tells whether the TPM has done it.
            match inner.log.against(&self.register()?) {
                Standing::Same => {}
                Standing::Pending(_) => self.root.extend(self.pcr, &digest)?,
                Standing::Differs { .. } => {
                    inner.differs = true;
                    return Err(MeasureError::Differs { pcr: self.pcr });
                }
            }
            inner.pending = None;
        }
        Ok(())
    }

    fn log(&self, inner: &mut Inner, event: Event) -> Result<(), MeasureError> {
        let fail = |action| {
            let path = self.path.clone();
            move |source| MeasureError::File { action, path, source }
        };
        let prepared = inner.log.prepare(event)?;
        let len = inner.file.metadata().map_err(fail("look at"))?.len();
        let written = inner
            .file
            .write_all(&prepared.record)
            .and_then(|()| inner.file.sync_data());
        if let Err(source) = written {
            // A part of it may be there.
            let _ = inner.file.set_len(len);
            return Err(fail("append to")(source));
        }
        inner.log.append(&prepared)?;
        inner.pending = Some(prepared.digest);
        self.root.extend(self.pcr, &prepared.digest)?;
        inner.pending = None;
        Ok(())
    }

    /// The part of the log that a verifier asks for, and what `quote` makes of the TPM before anything else is launched.
    /// Everything that waits is logged before.
    ///
    /// # Errors
    /// [`MeasureError`].
    pub fn with_slice<T>(
        &self,
        known: Option<&LogPrefix>,
        quote: impl FnOnce(&dyn RootOfTrust) -> Result<T, RootError>,
    ) -> Result<(Slice, T), MeasureError> {
        let inner = &mut *self.lock();
        if !inner.differs {
            self.flush(inner)?;
        }
        let bytes = fs::read(&self.path).map_err(|source| MeasureError::File {
            action: "read",
            path: self.path.clone(),
            source,
        })?;
        let quoted = quote(&*self.root)?;
        Ok((event_log::slice(&bytes, known), quoted))
    }

    /// SHA-256 of an executable; computed again only when the file is another.
    ///
    /// # Errors
    /// [`MeasureError::File`].
    pub fn executable(&self, path: &Path) -> Result<Digest, MeasureError> {
        let fail = |source| MeasureError::File {
            action: "measure an executable for",
            path: path.to_owned(),
            source,
        };
        let meta = fs::metadata(path).map_err(fail)?;
        let version = (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len());
        if let Some((known, digest)) = self.lock().executables.get(path)
            && *known == version
        {
            return Ok(*digest);
        }
        let digest = digest_of_file(path).map_err(fail)?;
        self.lock().executables.insert(path.to_owned(), (version, digest));
        Ok(digest)
    }
}

/// SHA-256 of a file, read piece by piece.
///
/// # Errors
/// What the system answered.
pub fn digest_of_file(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = io::Read::read(&mut file, &mut buffer)?;
        if read == 0 {
            break;
        }
        context.update(&buffer[..read]);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    Ok(Digest(digest))
}
