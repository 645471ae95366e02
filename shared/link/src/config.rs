//! Pieces of configuration that daemons share, and reading it: one file, then the drop-ins beside it.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use cnova_attestation::parent::ParentTrust;
use cnova_root_of_trust::{RootError, RootOfTrust, Soft, late};
use cnova_shared::ids::NodeId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use crate::address::Address;
use crate::certified;
use crate::identity::{Identity, IdentityError, NodeKey, read_trust};

/// Longest configuration file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Most drop-ins.
const DROP_INS_MAX: usize = 64;

/// `[identity]`: where the node's certificate, key and trust are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "IdentityFile")]
pub struct IdentityConfig {
    /// Certificates, PEM, the node's own first.
    pub certificate: PathBuf,
    /// Its key, PEM, PKCS #8; empty with a TPM.
    pub key: PathBuf,
    /// The signed trust bundle.
    pub trust_bundle: PathBuf,
    /// What holds the key.
    pub root: RootKind,
    /// How a TPM is reached, as libtss2 names it; `device:/dev/tpmrm0` unless it is said.
    pub tcti: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityFile {
    certificate: PathBuf,
    #[serde(default)]
    key: PathBuf,
    trust_bundle: PathBuf,
    #[serde(default)]
    root: RootKind,
    tcti: Option<String>,
}

impl TryFrom<IdentityFile> for IdentityConfig {
    type Error = String;

    fn try_from(file: IdentityFile) -> Result<Self, String> {
        if file.root == RootKind::Soft && file.key.as_os_str().is_empty() {
            return Err(IdentityError::NoKeyFile.to_string());
        }
        Ok(Self {
            certificate: file.certificate,
            key: file.key,
            trust_bundle: file.trust_bundle,
            root: file.root,
            tcti: file.tcti,
        })
    }
}

/// `[attestation]` of a gateway with a TPM: how it attests itself, and how it appraises its children while the hub is away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AttestationConfig {
    /// The registers of the boot that are quoted; 0 to 7 and 11 unless it is said.
    pub pcrs: Vec<u8>,
    /// For so long the hub must have been out of reach before the gateway appraises in its place, where it has a delegation;
    /// seconds, five minutes unless it is said.
    pub hub_away_seconds: u64,
    /// The register of its children's launch logs, as in the hub's configuration; 14 unless it is said.
    pub launch_pcr: u8,
    /// Whether anything is taken only from a parent that is attested itself; the hub is no such parent.
    pub parent: ParentTrust,
}

impl Default for AttestationConfig {
    fn default() -> Self {
        Self {
            pcrs: cnova_attestation::DEFAULT_BOOT_PCRS.to_vec(),
            hub_away_seconds: 300,
            launch_pcr: cnova_attestation::DEFAULT_LAUNCH_PCR,
            parent: ParentTrust::default(),
        }
    }
}

/// What holds a node's key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootKind {
    /// A file.
    #[default]
    Soft,
    /// A TPM 2.0.
    Tpm,
}

/// `[enrolment]` of an agent or a gateway: how it gets its certificate, and where a gateway lets others do so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EnrolmentConfig {
    /// Where it asks: the enrolment doors of its parent. None: it was certified by hand.
    pub endpoints: Vec<Address>,
    /// The node whose certificate it expects there; its parent unless it is said.
    pub server: Option<NodeId>,
    /// Where its token lies, if it has one.
    pub token_file: Option<PathBuf>,
    /// Where a gateway's own door for newcomers is.
    pub listen: Option<SocketAddr>,
}

/// How long a TPM may take for an answer (but for keys, which it makes once): handshakes wait for it, and with them
/// everything else.
#[cfg(feature = "tpm")]
const TPM_ANSWER_MAX: Duration = Duration::from_secs(5);

/// How long the start of a node that has its certificate waits for its TPM to be opened.
const TPM_FIRST_ANSWER_MAX: Duration = Duration::from_secs(5);

/// The kernel's resource manager for the first TPM.
#[cfg(feature = "tpm")]
const TCTI: &str = "device:/dev/tpmrm0";

impl IdentityConfig {
    /// Reads the three files.
    ///
    /// # Errors
    /// [`IdentityError`] with the file and what to do.
    pub fn load(&self) -> Result<Identity, IdentityError> {
        match self.root {
            RootKind::Soft => Identity::load(&self.certificate, self.key_file()?, &self.trust_bundle),
            RootKind::Tpm => self.load_with(&self.open_certified(false)?),
        }
    }

    /// Reads certificates and trust for the key that `root` holds.
    ///
    /// # Errors
    /// [`IdentityError`] with the file and what to do.
    pub fn load_with(&self, root: &Arc<dyn RootOfTrust>) -> Result<Identity, IdentityError> {
        let trust = read_trust(&self.trust_bundle)?;
        let key_name = match self.root {
            RootKind::Soft => self.key.as_path(),
            RootKind::Tpm => Path::new("the device key in the TPM"),
        };
        Identity::with_key(&self.certificate, NodeKey::of(root), key_name, trust)
    }

    /// As [`IdentityConfig::open_root`], for a node that has its certificate. A TPM that does not answer now is opened as soon
    /// as it does: what is returned stands for it meanwhile ([`cnova_root_of_trust::late`]).
    ///
    /// # Errors
    /// [`IdentityError`] with what to do.
    pub fn open_certified(&self, make_key: bool) -> Result<Arc<dyn RootOfTrust>, IdentityError> {
        if self.root == RootKind::Soft {
            return self.open_root(make_key);
        }
        if cfg!(not(feature = "tpm")) {
            return Err(IdentityError::NoTpmSupport);
        }
        let certified = certified::key(&self.certificate)?;
        let this = self.clone();
        let opener = move || match this.open_tpm() {
            Ok(root) => Ok(root),
            Err(IdentityError::Root(error)) => Err(error),
            Err(other) => Err(RootError::Config(other.to_string())),
        };
        Ok(late::open(Box::new(opener), certified, TPM_FIRST_ANSWER_MAX)?)
    }

    /// Opens what holds the key; a TPM makes its keys where they are missing, a file is made where `make_key` says so.
    /// Blocks for as long as a TPM takes. Nothing ever falls back from one to the other.
    ///
    /// # Errors
    /// [`IdentityError`] with what to do.
    pub fn open_root(&self, make_key: bool) -> Result<Arc<dyn RootOfTrust>, IdentityError> {
        match self.root {
            RootKind::Soft => {
                let path = self.key_file()?;
                let soft = if make_key {
                    Soft::open_or_create(path)
                } else {
                    Soft::open(path)
                };
                Ok(Arc::new(soft?))
            }
            RootKind::Tpm => self.open_tpm(),
        }
    }

    #[cfg(feature = "tpm")]
    fn open_tpm(&self) -> Result<Arc<dyn RootOfTrust>, IdentityError> {
        let tcti = self.tcti.as_deref().unwrap_or(TCTI);
        let mut config = cnova_root_of_trust::TpmConfig::new(tcti);
        config.answer_limit = TPM_ANSWER_MAX;
        Ok(Arc::new(cnova_root_of_trust::Tpm::open(config)?))
    }

    #[cfg(not(feature = "tpm"))]
    fn open_tpm(&self) -> Result<Arc<dyn RootOfTrust>, IdentityError> {
        Err(IdentityError::NoTpmSupport)
    }

    fn key_file(&self) -> Result<&Path, IdentityError> {
        if self.key.as_os_str().is_empty() {
            return Err(IdentityError::NoKeyFile);
        }
        Ok(&self.key)
    }
}

/// `[parent]`: the node above.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParentConfig {
    /// Its node id, which its certificate must carry.
    pub node: NodeId,
    /// Where it listens.
    pub address: Address,
}

/// Why a configuration was not taken.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A file or folder cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// A file says something that is not understood.
    #[error("{path}:{line}: {reason}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// Something that must be said is said in no file.
    #[error("{path}: {reason}")]
    Incomplete {
        /// The main file.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
}

struct Source {
    path: PathBuf,
    text: String,
    /// Where its text begins in the space of all texts, so that a span names its file.
    base: usize,
}

/// Reads `path` (`/etc/cnova/agent.toml`) and then, in the order of their names, the drop-ins in the folder of the same
/// name without `.toml` and with `.d` (`/etc/cnova/agent.d/*.toml`). Tables are merged, anything else is replaced.
///
/// # Errors
/// [`ConfigError`] with file, line and reason. An unknown key is an error where `T` says `deny_unknown_fields`.
pub fn load_toml<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let mut sources = Vec::new();
    let mut base = 0;
    for path in std::iter::once(path.to_owned()).chain(drop_ins(path)?) {
        let source = read(path, base)?;
        base += source.text.len() + 1;
        sources.push(source);
    }
    let mut merged = DeTable::new();
    for source in &sources {
        let table = DeTable::parse(&source.text).map_err(|e| source.invalid(e.span(), e.message()))?;
        merge(&mut merged, shift_table(table.into_inner(), source.base));
    }
    let root = Spanned::new(0..0, merged);
    T::deserialize(toml::Deserializer::from(root)).map_err(|e| {
        // A span of nothing is the whole document: something is missing.
        match e.span().filter(|s| !s.is_empty()) {
            Some(span) => located(&sources, span, e.message()),
            None => ConfigError::Incomplete {
                path: path.to_owned(),
                reason: e.message().to_owned(),
            },
        }
    })
}

/// The texts of a file and its drop-ins, as they are.
pub(crate) fn texts(path: &Path) -> Result<Vec<(PathBuf, String)>, ConfigError> {
    let paths = std::iter::once(path.to_owned()).chain(drop_ins(path)?);
    paths.map(|path| read(path, 0).map(|s| (s.path, s.text))).collect()
}

fn located(sources: &[Source], span: Range<usize>, reason: &str) -> ConfigError {
    let mut holding = sources.iter().rev();
    match holding.find(|s| s.base <= span.start).or(sources.first()) {
        Some(source) => source.invalid(Some(span.start - source.base..span.end - source.base), reason),
        None => ConfigError::Incomplete {
            path: PathBuf::new(),
            reason: reason.to_owned(),
        },
    }
}

impl Source {
    fn invalid(&self, span: Option<Range<usize>>, reason: &str) -> ConfigError {
        let start = span.map_or(0, |s| s.start).min(self.text.len());
        let line = self.text.as_bytes()[..start].iter().filter(|b| **b == b'\n').count() + 1;
        ConfigError::Invalid {
            path: self.path.clone(),
            line,
            reason: reason.replace('\n', " "),
        }
    }
}

fn read(path: PathBuf, base: usize) -> Result<Source, ConfigError> {
    let text = fs::metadata(&path).and_then(|meta| {
        if meta.len() > FILE_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("longer than {FILE_BYTES_MAX} bytes"),
            ));
        }
        fs::read_to_string(&path)
    });
    match text {
        Ok(text) => Ok(Source { path, text, base }),
        Err(source) => Err(ConfigError::Read { path, source }),
    }
}

/// The drop-ins of a file, by name; none when there is no folder.
fn drop_ins(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let folder = path.with_extension("d");
    let fail = |source| ConfigError::Read {
        path: folder.clone(),
        source,
    };
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(e) => return Err(fail(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|e| e == "toml") {
            found.push(path);
        }
    }
    found.sort();
    if found.len() > DROP_INS_MAX {
        let source = io::Error::other(format!("{} files in it, at most {DROP_INS_MAX} are read", found.len()));
        return Err(fail(source));
    }
    Ok(found)
}

fn merge<'i>(into: &mut DeTable<'i>, from: DeTable<'i>) {
    for (key, value) in from {
        let (span, value) = (value.span(), value.into_inner());
        match (into.get_mut(&key).map(Spanned::get_mut), value) {
            (Some(DeValue::Table(old)), DeValue::Table(new)) => merge(old, new),
            (_, value) => {
                // Taken out first: a map keeps the old key, and its place in the old file, otherwise.
                into.remove(&key);
                into.insert(key, Spanned::new(span, value));
            }
        }
    }
}

fn shift(span: Range<usize>, base: usize) -> Range<usize> {
    span.start + base..span.end + base
}

fn shift_table(table: DeTable<'_>, base: usize) -> DeTable<'_> {
    let mut shifted = DeTable::new();
    for (key, value) in table {
        let key = Spanned::new(shift(key.span(), base), key.into_inner());
        shifted.insert(key, shift_value(value, base));
    }
    shifted
}

fn shift_value(value: Spanned<DeValue<'_>>, base: usize) -> Spanned<DeValue<'_>> {
    let span = shift(value.span(), base);
    let inner = match value.into_inner() {
        DeValue::Table(t) => DeValue::Table(shift_table(t, base)),
        DeValue::Array(a) => {
            let mut shifted = DeArray::new();
            for item in a {
                shifted.push(shift_value(item, base));
            }
            DeValue::Array(shifted)
        }
        plain => plain,
    };
    Spanned::new(span, inner)
}
