//! The launch log: what the agent started, in order, each entry extended into the launch register of the TPM.
//!
//! A node appends an entry to its file, syncs the file, extends the register with the entry's digest, and only then
//! launches. The register therefore proves the log: no entry can be taken out, changed or moved afterwards. Between the
//! sync and the extension there may be one entry that is logged and not extended; a verifier allows exactly one.
//!
//! The file is a sequence of records: length (4 bytes, big endian), the first 4 bytes of the entry's digest, the entry. A
//! power cut leaves a last record that is short or whose digest does not fit: it is recognised and cut off. It was never
//! synced, so it was never extended either.

use std::collections::BTreeSet;

use cnova_shared::ids::Digest;
use cnova_shared::wire;
use cnova_shared::wire::v1::LogPrefix;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use thiserror::Error;

use crate::{Pcr, limits};

/// What a register holds after a reset of the TPM.
pub const ZERO: Pcr = Digest([0; 32]);

const LENGTH_BYTES: usize = 4;
const CHECK_BYTES: usize = 4;
const HEADER_BYTES: usize = LENGTH_BYTES + CHECK_BYTES;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its place in the log, from 0.
    #[serde(rename = "s")]
    pub seq: u64,
    /// What happened.
    #[serde(rename = "e")]
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "kebab-case")]
pub enum Event {
    /// The agent took up its work, for the first time in this boot. Every log begins with it.
    Boot(Boot),
    /// The agent took up its work again in the same boot: it was restarted or updated.
    Agent {
        /// SHA-256 of its executable.
        #[serde(rename = "a")]
        agent: Digest,
        /// Its version.
        #[serde(rename = "v")]
        version: String,
    },
    /// A workload is about to be started.
    Launch(Launch),
    /// Something of a later version. It still replays, because the bytes are kept.
    #[serde(other)]
    Unknown,
}

/// The first entry of a log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Boot {
    /// SHA-256 of the agent's executable.
    #[serde(rename = "a")]
    pub agent: Digest,
    /// The agent's version.
    #[serde(rename = "v")]
    pub version: String,
    /// The kernel's id of this boot.
    #[serde(rename = "b")]
    pub boot: String,
    /// What the register held before this entry; nothing for zeros. A boot loader may have used the register before
    /// (shim uses PCR 14); a verifier takes only zeros or a value that its references name.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Pcr>,
}

/// A workload with all that decides what it does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Launch {
    /// Application and workload, such as `vibration-watch/detector`.
    #[serde(rename = "w")]
    pub workload: String,
    /// The artifact.
    #[serde(rename = "a")]
    pub artifact: Digest,
    /// What its runtime was told: SHA-256 of the specification.
    #[serde(rename = "s")]
    pub spec: Digest,
    /// SHA-256 of the runtime's executable.
    #[serde(rename = "r")]
    pub runtime: Digest,
}

/// Why an entry cannot be logged; then nothing may be launched.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LogError {
    /// Too many different launches since the machine started.
    #[error("the launch log has {max} entries since the machine started: restart the machine to begin a new one")]
    Full {
        /// The limit.
        max: u64,
    },
    /// The log must begin with [`Event::Boot`], and only begin with it.
    #[error("a launch log begins with the boot, and has it nowhere else")]
    BootFirst,
    /// Another entry was appended since this one was prepared.
    #[error("entry {seq} was prepared, and the log goes on with {next}: prepare it again")]
    OutOfTurn {
        /// What was prepared.
        seq: u64,
        /// What comes next.
        next: u64,
    },
    /// The entry is larger than one may be.
    #[error("an entry of {len} bytes, at most {max} are logged")]
    TooLarge {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// It could not be encoded.
    #[error("an entry was not encoded: {0}")]
    Encode(String),
}

/// `register` after it was extended with `digest` (TPM 2.0 part 1, section 17.4).
#[must_use]
pub fn extended(register: &Pcr, digest: &Digest) -> Pcr {
    let mut both = [0; 64];
    both[..32].copy_from_slice(&register.0);
    both[32..].copy_from_slice(&digest.0);
    Digest::of(&both)
}

/// What a register that held `before` holds after these entries.
#[must_use]
pub fn replay<T: AsRef<[u8]>>(before: &Pcr, entries: impl IntoIterator<Item = T>) -> Pcr {
    entries
        .into_iter()
        .fold(*before, |pcr, entry| extended(&pcr, &Digest::of(entry.as_ref())))
}

/// A part of a log, as evidence carries it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// How many entries come before it: those that the verifier has.
    pub from: u64,
    /// How many entries the whole log has. When it is more than `from` and the entries here, the verifier asks again.
    pub total: u64,
    /// The entries, byte for byte as they were digested.
    pub entries: Vec<ByteBuf>,
}

/// An entry that is ready to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// What to append to the file, before anything else.
    pub record: Vec<u8>,
    /// What to extend the register with, once the file is synced.
    pub digest: Digest,
    entry: Entry,
}

/// Where the log and the register stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The register holds what the log says.
    Same,
    /// The last entry was logged and not extended: extend the register with this digest, then go on.
    Pending(Digest),
    /// The register holds something else: the log is of another boot, or one of the two was changed.
    Differs {
        /// What the log says.
        log: Pcr,
    },
}

/// What is wrong with the end of a log's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// How many bytes of the file are good; cut it to this length.
    pub good: usize,
    /// How many bytes follow.
    pub cut: usize,
    /// What was wrong with the first record that is not good.
    pub reason: &'static str,
}

/// A node's own log, without its entries: where it ends and what was launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    next: u64,
    pcr: Pcr,
    before_last: Pcr,
    last: Option<Digest>,
    boot: Option<Boot>,
    launched: BTreeSet<Digest>,
}

impl Default for Log {
    fn default() -> Self {
        Self::new()
    }
}

impl Log {
    /// An empty log. Its first entry must be [`Event::Boot`].
    #[must_use]
    pub fn new() -> Self {
        Self {
            next: 0,
            pcr: ZERO,
            before_last: ZERO,
            last: None,
            boot: None,
            launched: BTreeSet::new(),
        }
    }

    /// Reads a file that this node wrote. What is torn at its end is not in the log; cut it off before appending.
    #[must_use]
    pub fn read(file: &[u8]) -> (Self, Option<Torn>) {
        let mut log = Self::new();
        let mut records = Records { file, at: 0 };
        let torn = loop {
            let good = records.at;
            let reason = match records.next() {
                None => break None,
                Some(Ok(bytes)) => match log.take_read(bytes) {
                    Ok(()) => continue,
                    Err(reason) => reason,
                },
                Some(Err(reason)) => reason,
            };
            break Some(Torn {
                good,
                cut: file.len() - good,
                reason,
            });
        };
        (log, torn)
    }

    fn take_read(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let entry: Entry = wire::decode(bytes).map_err(|_| "it is not an entry")?;
        if entry.seq != self.next {
            return Err("it is out of sequence");
        }
        if self.check(&entry.event).is_err() {
            return Err("it stands where it cannot stand");
        }
        self.take(&entry, Digest::of(bytes));
        Ok(())
    }

    fn take(&mut self, entry: &Entry, digest: Digest) {
        match &entry.event {
            Event::Boot(boot) => {
                self.pcr = boot.before.unwrap_or(ZERO);
                self.boot = Some(boot.clone());
            }
            Event::Launch(launch) => {
                self.launched.insert(identity(launch));
            }
            Event::Agent { .. } | Event::Unknown => {}
        }
        self.before_last = self.pcr;
        self.pcr = extended(&self.pcr, &digest);
        self.last = Some(digest);
        self.next += 1;
    }

    fn check(&self, event: &Event) -> Result<(), LogError> {
        if matches!(event, Event::Boot(_)) != (self.next == 0) {
            return Err(LogError::BootFirst);
        }
        if self.next >= limits::LOG_ENTRIES {
            return Err(LogError::Full {
                max: limits::LOG_ENTRIES,
            });
        }
        Ok(())
    }

    /// Whether this very launch is in the log of this boot: then it need not be logged again, nor the TPM be troubled.
    #[must_use]
    pub fn has(&self, launch: &Launch) -> bool {
        self.launched.contains(&identity(launch))
    }

    /// Encodes the next entry. Append its record to the file, sync, [`Log::append`] it, extend the register, launch.
    ///
    /// # Errors
    /// [`LogError`]; then the launch must not happen.
    pub fn prepare(&self, event: Event) -> Result<Prepared, LogError> {
        self.check(&event)?;
        let entry = Entry { seq: self.next, event };
        let bytes = wire::encode(&entry).map_err(|e| LogError::Encode(e.to_string()))?;
        if bytes.len() > limits::ENTRY_BYTES || texts(&entry.event).any(|t| t.len() > limits::ENTRY_TEXT_BYTES) {
            return Err(LogError::TooLarge {
                len: bytes.len(),
                max: limits::ENTRY_BYTES,
            });
        }
        let digest = Digest::of(&bytes);
        let length = u32::try_from(bytes.len()).map_err(|e| LogError::Encode(e.to_string()))?;
        let record = [&length.to_be_bytes(), &digest.0[..CHECK_BYTES], &bytes].concat();
        Ok(Prepared { record, digest, entry })
    }

    /// Takes an entry that was prepared on this log and is now on disk.
    ///
    /// # Errors
    /// [`LogError::OutOfTurn`] when something else was appended since it was prepared; nothing is taken then.
    pub fn append(&mut self, prepared: &Prepared) -> Result<(), LogError> {
        if prepared.entry.seq != self.next {
            return Err(LogError::OutOfTurn {
                seq: prepared.entry.seq,
                next: self.next,
            });
        }
        self.take(&prepared.entry, prepared.digest);
        Ok(())
    }

    /// How many entries it has.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.next
    }

    /// What the register holds when all of it was extended.
    #[must_use]
    pub fn pcr(&self) -> Pcr {
        self.pcr
    }

    /// Its first entry.
    #[must_use]
    pub fn boot(&self) -> Option<&Boot> {
        self.boot.as_ref()
    }

    /// Compares it with the register, as after a restart of the agent.
    #[must_use]
    pub fn against(&self, register: &Pcr) -> Standing {
        match self.last {
            _ if self.pcr == *register => Standing::Same,
            Some(last) if self.before_last == *register => Standing::Pending(last),
            _ => Standing::Differs { log: self.pcr },
        }
    }
}

/// What the good records of a file say, in their order.
pub fn events(file: &[u8]) -> impl Iterator<Item = Event> + '_ {
    let decoded = Records { file, at: 0 }.map_while(|bytes| wire::decode::<Entry>(bytes.ok()?).ok());
    decoded.map(|entry| entry.event)
}

/// The part of a log's file that a verifier needs which has already replayed `known`: from there if this log begins with
/// it, from the beginning otherwise; as many entries as evidence carries.
#[must_use]
pub fn slice(file: &[u8], known: Option<&LogPrefix>) -> Slice {
    let entries = || Records { file, at: 0 }.map_while(Result::ok);
    let from = known.filter(|k| begins_with(entries(), k)).map_or(0, |k| k.count);
    let mut out = Slice {
        from,
        ..Slice::default()
    };
    let mut bytes = 0;
    for entry in entries() {
        if out.total >= from && out.entries.len() as u64 == out.total - from {
            bytes += entry.len();
            if out.entries.len() < limits::SLICE_ENTRIES && bytes <= limits::SLICE_BYTES {
                out.entries.push(ByteBuf::from(entry));
            }
        }
        out.total += 1;
    }
    out
}

fn begins_with<'a>(mut entries: impl Iterator<Item = &'a [u8]>, known: &LogPrefix) -> bool {
    let Some(first) = entries.next() else { return false };
    let Some(before) = before_first(first) else {
        return false;
    };
    let mut pcr = extended(&before, &Digest::of(first));
    let mut count = 1;
    while count < known.count {
        let Some(entry) = entries.next() else { return false };
        pcr = extended(&pcr, &Digest::of(entry));
        count += 1;
    }
    count == known.count && pcr == known.pcr
}

/// What the register held before a log that begins with this entry; nothing when no log can.
pub(crate) fn before_first(entry: &[u8]) -> Option<Pcr> {
    match wire::decode::<Entry>(entry).ok()?.event {
        Event::Boot(boot) => Some(boot.before.unwrap_or(ZERO)),
        _ => None,
    }
}

fn identity(launch: &Launch) -> Digest {
    let digests = [launch.artifact.0, launch.spec.0, launch.runtime.0].concat();
    Digest::of(&[digests.as_slice(), launch.workload.as_bytes()].concat())
}

fn texts(event: &Event) -> impl Iterator<Item = &str> {
    let (a, b) = match event {
        Event::Boot(boot) => (boot.version.as_str(), boot.boot.as_str()),
        Event::Agent { version, .. } => (version.as_str(), ""),
        Event::Launch(launch) => (launch.workload.as_str(), ""),
        Event::Unknown => ("", ""),
    };
    [a, b].into_iter()
}

/// The records of a file; ends after the first that is not good.
struct Records<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<&'a [u8], &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.file.get(self.at..).filter(|r| !r.is_empty())?;
        let record = one_record(rest);
        self.at = match record {
            Ok(bytes) => self.at + HEADER_BYTES + bytes.len(),
            Err(_) => self.file.len(),
        };
        Some(record)
    }
}

fn one_record(rest: &[u8]) -> Result<&[u8], &'static str> {
    let (length, rest) = rest
        .split_first_chunk::<LENGTH_BYTES>()
        .ok_or("its length is cut off")?;
    let (check, rest) = rest.split_first_chunk::<CHECK_BYTES>().ok_or("its check is cut off")?;
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if length == 0 || length > limits::ENTRY_BYTES {
        return Err("its length is not one of an entry");
    }
    let bytes = rest.get(..length).ok_or("it is cut off")?;
    if Digest::of(bytes).0[..CHECK_BYTES] != *check {
        return Err("its check does not fit");
    }
    Ok(bytes)
}
