//! Measured launch: log, sync, extend, and only then launch.
//!
//! The log is a file of its own beside the ledger, one for each boot of the machine: the register that proves it begins
//! anew with the machine, and neither knows of the other's transactions.
//!
//! What asks for attestation is not launched while the TPM does not answer. Everything else is: it is written down first, in
//! a second file beside the log, and logged as soon as the TPM answers again, before anything that is launched later and
//! before any evidence. A crash in between loses nothing of it. What cannot even be written down is not launched.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cnova_attestation::event_log::{self, Boot, Event, Launch, Log, LogError, Slice, Standing};
use cnova_shared::ids::Digest;
use cnova_shared::wire::v1::LogPrefix;
use ring::digest::{Context, SHA256};
use thiserror::Error;

use crate::{RootError, RootOfTrust};

mod waiting;

use waiting::WaitingFile;

/// Longest log file that is read. [`cnova_attestation::limits::LOG_ENTRIES`] entries of the longest kind are shorter.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// After the TPM did not answer it is not asked again for so long: each question may cost seconds.
const TPM_PAUSE: Duration = Duration::from_secs(10);
/// Most different launches that wait for the TPM; one more is refused.
pub const WAITING_MAX: usize = 1024;

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
    /// It could be neither measured nor written down for later.
    #[error("it can be neither measured ({why}) nor written down to be measured later ({problem})")]
    Unrecorded {
        /// Why it was not measured.
        why: Box<MeasureError>,
        /// Why it was not written down.
        problem: Box<MeasureError>,
    },
    /// Too many wait.
    #[error("{WAITING_MAX} launches wait for the TPM already: see why it does not answer")]
    TooMany,
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
    /// Whether anything waits for the TPM; known without waiting for who talks to it.
    behind: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    agent: Program,
    /// Whether log and register have been compared.
    begun: bool,
    file: File,
    log: Log,
    /// Logged and not extended.
    pending: Option<Digest>,
    /// What happened and is not logged, in its order.
    waiting: VecDeque<Event>,
    /// The same on disk, as far as it has been written down.
    waiting_file: WaitingFile,
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
        let (waiting_file, waiting) = WaitingFile::open(path, &agent.boot)?;
        let measurer = Self {
            root,
            pcr,
            path: path.to_owned(),
            behind: AtomicBool::new(true),
            inner: Mutex::new(Inner {
                begun: false,
                file,
                log,
                pending: None,
                waiting: waiting.into(),
                waiting_file,
                differs: false,
                ask_again: None,
                executables: BTreeMap::new(),
                agent,
            }),
        };
        let problem = measurer.arrive().err();
        Ok((measurer, problem))
    }

    /// The agent is here: it is in the log before anything that it launches.
    fn arrive(&self) -> Result<(), MeasureError> {
        let inner = &mut *self.lock();
        let Program { digest, version, .. } = inner.agent.clone();
        let event = Event::Agent { agent: digest, version };
        // Once is enough for a program that is started again and again while the TPM is silent.
        if !inner.waiting.contains(&event) {
            inner.waiting.push_back(event);
        }
        let flushed = self.flush(inner);
        if flushed.is_err()
            && !inner.differs
            && let Err(error) = inner.write_down()
        {
            // It starts all the same, and launches nothing before this can be written.
            tracing::error!(%error, "the agent's start is not written down yet");
        }
        flushed
    }

    /// Compares log and register, and begins a log that is empty.
    fn begin(&self, inner: &mut Inner) -> Result<(), MeasureError> {
        let register = self.register()?;
        if inner.log.count() == 0 {
            let before = (register != event_log::ZERO).then_some(register);
            // Which program was here first: one may have waited for the TPM in vain before this one.
            let first = match inner.waiting.front() {
                Some(Event::Agent { agent, version }) => Some((*agent, version.clone())),
                _ => None,
            };
            let is_first = first.is_some();
            let (agent, version) = first.unwrap_or_else(|| (inner.agent.digest, inner.agent.version.clone()));
            let boot = inner.agent.boot.clone();
            self.write(
                inner,
                Event::Boot(Boot {
                    agent,
                    version,
                    boot,
                    before,
                }),
            )?;
            if is_first {
                inner.waiting.pop_front();
            }
            return self.extend_fresh(inner);
        }
        match inner.log.against(&register) {
            Standing::Same => Ok(()),
            Standing::Pending(digest) => {
                inner.pending = Some(digest);
                Ok(())
            }
            Standing::Differs { .. } => {
                inner.differs = true;
                Err(MeasureError::Differs { pcr: self.pcr })
            }
        }
    }

    fn register(&self) -> Result<Digest, RootError> {
        let read = self.root.read_pcrs(&[self.pcr])?;
        Ok(read.get(&self.pcr).copied().unwrap_or(event_log::ZERO))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Measures a launch that is about to happen, and what waits. A launch that was measured since the machine started
    /// costs nothing. When this fails the launch is written down: whoever launches it anyway has it logged later.
    ///
    /// # Errors
    /// [`MeasureError`]; nothing that asks for attestation may be launched then, and after [`MeasureError::Unrecorded`]
    /// nothing at all.
    pub fn measure(&self, launch: Launch) -> Result<(), MeasureError> {
        let inner = &mut *self.lock();
        let event = Event::Launch(launch);
        if inner.knows(&event) || inner.waiting.contains(&event) {
            return self.flush(inner);
        }
        self.take(inner, event)
    }

    /// Logs and extends what waits, if anything does. Blocks for as long as the TPM takes.
    ///
    /// # Errors
    /// [`MeasureError`]; it goes on waiting.
    pub fn catch_up(&self) -> Result<(), MeasureError> {
        self.flush(&mut self.lock())
    }

    /// Whether anything waits for the TPM.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.behind.load(Ordering::Relaxed)
    }

    /// Measures something new, or writes it down.
    fn take(&self, inner: &mut Inner, event: Event) -> Result<(), MeasureError> {
        if inner.differs {
            // What is added to a log that proves nothing proves nothing.
            return Err(MeasureError::Differs { pcr: self.pcr });
        }
        inner.waiting.push_back(event);
        let Err(why) = self.flush(inner) else { return Ok(()) };
        let written = match inner.waiting.len() > WAITING_MAX {
            _ if inner.differs => return Err(why),
            true => Err(MeasureError::TooMany),
            false => inner.write_down(),
        };
        let Err(problem) = written else { return Err(why) };
        // It does not happen.
        inner.waiting.pop_back();
        Err(MeasureError::Unrecorded {
            why: Box::new(why),
            problem: Box::new(problem),
        })
    }

    /// Logs and extends everything that waits.
    fn flush(&self, inner: &mut Inner) -> Result<(), MeasureError> {
        if inner.differs {
            return Err(MeasureError::Differs { pcr: self.pcr });
        }
        if inner.is_whole() {
            return Ok(());
        }
        self.behind.store(true, Ordering::Relaxed);
        if inner.ask_again.is_some_and(|at| Instant::now() < at) {
            return Err(MeasureError::Pausing);
        }
        let result = self.flush_now(inner);
        let is_tpm = matches!(result, Err(MeasureError::Tpm(_)));
        inner.ask_again = is_tpm.then(|| Instant::now() + TPM_PAUSE);
        self.behind
            .store(!inner.is_whole() && !inner.differs, Ordering::Relaxed);
        result
    }

    fn flush_now(&self, inner: &mut Inner) -> Result<(), MeasureError> {
        if !inner.begun {
            self.begin(inner)?;
            inner.begun = true;
        }
        self.extend_pending(inner)?;
        while let Some(event) = inner.waiting.front().cloned() {
            if !inner.knows(&event) {
                self.write(inner, event)?;
            }
            // It is in the log, extended or not.
            inner.waiting.pop_front();
            self.extend_fresh(inner)?;
        }
        // What it says is in the log by now: if it stays, it is only read once more.
        if let Err(error) = inner.waiting_file.clear() {
            tracing::warn!(%error, "launches that were measured are measured once more after a restart");
        }
        Ok(())
    }

    /// Extends what was logged and not extended. Never is a second entry logged before that.
    fn extend_pending(&self, inner: &mut Inner) -> Result<(), MeasureError> {
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

    /// Extends what was logged just now.
    fn extend_fresh(&self, inner: &mut Inner) -> Result<(), MeasureError> {
        if let Some(digest) = inner.pending {
            self.root.extend(self.pcr, &digest)?;
            inner.pending = None;
        }
        Ok(())
    }

    /// Appends to the log and syncs it; the register follows.
    fn write(&self, inner: &mut Inner, event: Event) -> Result<(), MeasureError> {
        let fail = |action| {
            let path = self.path.clone();
            move |source| MeasureError::File { action, path, source }
        };
        let prepared = inner.log.prepare(event)?;
        append(&mut inner.file, &prepared.record).map_err(fail("append to"))?;
        inner.log.append(&prepared)?;
        inner.pending = Some(prepared.digest);
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

impl Inner {
    /// Whether it is logged already, and need not be again.
    fn knows(&self, event: &Event) -> bool {
        matches!(event, Event::Launch(launch) if self.log.has(launch))
    }

    fn is_whole(&self) -> bool {
        self.begun && self.pending.is_none() && self.waiting.is_empty()
    }

    /// What waits is on disk when this returns.
    fn write_down(&mut self) -> Result<(), MeasureError> {
        let Self {
            waiting_file,
            waiting,
            agent,
            ..
        } = self;
        waiting.iter().try_for_each(|event| waiting_file.put(event, agent))
    }
}

/// Appends and syncs; a part that was written when that failed is cut off again.
fn append(file: &mut File, record: &[u8]) -> io::Result<()> {
    let len = file.metadata()?.len();
    let written = file.write_all(record).and_then(|()| file.sync_data());
    if written.is_err() {
        let _ = file.set_len(len);
    }
    written
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
