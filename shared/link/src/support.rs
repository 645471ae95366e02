//! A support bundle: one file that a person can hand to whoever helps, made on the node itself, also while nothing of ours
//! runs. What is in it was chosen; what was not chosen is left out, and its manifest says so.
//!
//! It reads the node's state and never writes it. A value is never judged by how it looks: settings are in by the names
//! of their keys alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use thiserror::Error;

mod machine;
mod plain;
mod settings;
mod snapshot;

pub use machine::{add_folder, add_machine};
pub use plain::{Place, Program, Rows, make as make_plain};
pub use settings::add_settings;
pub use snapshot::Snapshot;

/// Most of one file that goes in, in bytes: its end.
pub const FILE_BYTES_MAX: u64 = 1 << 20;
/// Most that goes in altogether, in bytes before they are compressed.
pub const BUNDLE_BYTES_MAX: u64 = 32 << 20;
/// Most files in it.
const FILES_MAX: usize = 1024;
/// The folder that everything in it is in.
const FOLDER: &str = "cnova-support";
const MODE: u32 = 0o600;

/// Why there is no bundle.
#[derive(Debug, Error)]
pub enum SupportError {
    /// The file cannot be written.
    #[error("cannot {action} {path}: {source}; name another file with --out")]
    Write {
        /// What was tried.
        action: &'static str,
        /// The bundle.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}

/// Something that is in it.
#[derive(Debug, Serialize)]
struct Included {
    name: String,
    /// Where it is from.
    from: String,
    bytes: u64,
    /// Whether it is only the end.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cut: bool,
}

/// Something that is not.
#[derive(Debug, Serialize)]
struct LeftOut {
    what: String,
    why: String,
}

#[derive(Serialize)]
struct Manifest<'a> {
    program: &'a str,
    version: &'a str,
    /// Seconds since 1970, by the node's clock.
    made_s: u64,
    included: &'a [Included],
    left_out: &'a [LeftOut],
}

/// A bundle that is being written.
pub struct Bundle {
    path: PathBuf,
    program: &'static str,
    version: &'static str,
    made_s: u64,
    tar: tar::Builder<GzEncoder<File>>,
    included: Vec<Included>,
    left_out: Vec<LeftOut>,
    bytes: u64,
}

impl std::fmt::Debug for Bundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bundle({})", self.path.display())
    }
}

impl Bundle {
    /// Begins one. A file that is there is never written over; nobody but its owner can read the new one.
    ///
    /// # Errors
    /// [`SupportError::Write`].
    pub fn create(
        path: &Path,
        program: &'static str,
        version: &'static str,
        made_s: u64,
    ) -> Result<Self, SupportError> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(MODE).open(path);
        let file = file.map_err(|source| SupportError::Write {
            action: "create",
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            program,
            version,
            made_s,
            tar: tar::Builder::new(GzEncoder::new(file, Compression::default())),
            included: Vec::new(),
            left_out: Vec::new(),
            bytes: 0,
        })
    }

    /// Says that something is not in it.
    pub fn leave_out(&mut self, what: impl Into<String>, why: impl Into<String>) {
        let (what, why) = (what.into(), why.into());
        self.left_out.push(LeftOut { what, why });
    }

    /// Puts a text in that was made of `from`.
    ///
    /// # Errors
    /// [`SupportError::Write`]. What would make the bundle too large is left out.
    pub fn add(&mut self, name: &str, from: &str, content: &[u8]) -> Result<(), SupportError> {
        self.put(name, from, content, false)
    }

    /// Puts a value in as JSON.
    ///
    /// # Errors
    /// [`SupportError::Write`].
    pub fn add_json(&mut self, name: &str, from: &str, value: &impl Serialize) -> Result<(), SupportError> {
        match serde_json::to_vec_pretty(value) {
            Ok(text) => self.add(name, from, &text),
            Err(e) => {
                self.leave_out(name, e.to_string());
                Ok(())
            }
        }
    }

    /// Puts a file in as it is, or its end. What is not there is left out.
    ///
    /// # Errors
    /// [`SupportError::Write`].
    pub fn add_file(&mut self, name: &str, path: &Path) -> Result<(), SupportError> {
        match end_of(path) {
            Ok((bytes, cut)) => self.put(name, &path.display().to_string(), &bytes, cut),
            Err(e) => {
                self.leave_out(path.display().to_string(), e.to_string());
                Ok(())
            }
        }
    }

    fn put(&mut self, name: &str, from: &str, content: &[u8], cut: bool) -> Result<(), SupportError> {
        let bytes = content.len() as u64;
        if self.included.len() >= FILES_MAX || self.bytes + bytes > BUNDLE_BYTES_MAX {
            self.leave_out(
                from,
                format!("the bundle is full ({BUNDLE_BYTES_MAX} bytes, {FILES_MAX} files)"),
            );
            return Ok(());
        }
        self.write(name, content)?;
        self.bytes += bytes;
        self.included.push(Included {
            name: name.to_owned(),
            from: from.to_owned(),
            bytes,
            cut,
        });
        Ok(())
    }

    fn write(&mut self, name: &str, content: &[u8]) -> Result<(), SupportError> {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(MODE);
        header.set_mtime(self.made_s);
        let written = self.tar.append_data(&mut header, format!("{FOLDER}/{name}"), content);
        written.map_err(|source| SupportError::Write {
            action: "write",
            path: self.path.clone(),
            source,
        })
    }

    /// Writes the manifest and ends the file, which is on the disk then; what is said about it, for a person.
    ///
    /// # Errors
    /// [`SupportError::Write`].
    pub fn finish(mut self) -> Result<String, SupportError> {
        let manifest = Manifest {
            program: self.program,
            version: self.version,
            made_s: self.made_s,
            included: &self.included,
            left_out: &self.left_out,
        };
        let text = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
        self.write("MANIFEST.json", &text)?;
        let Self {
            path,
            tar,
            included,
            left_out,
            ..
        } = self;
        let ended = tar.into_inner().and_then(GzEncoder::finish);
        let synced = ended.and_then(|mut file| file.flush().and_then(|()| file.sync_all()));
        match synced {
            Ok(()) => Ok(format!(
                "{}: {} files; {} things were left out, and MANIFEST.json in it says which and why\n",
                path.display(),
                included.len(),
                left_out.len()
            )),
            Err(source) => Err(SupportError::Write {
                action: "finish",
                path,
                source,
            }),
        }
    }
}

/// The end of a file, and whether there was more. Files of the kernel have no length and are read from their beginning.
fn end_of(path: &Path) -> io::Result<(Vec<u8>, bool)> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut file = File::open(path)?;
    let skip = meta.len().saturating_sub(FILE_BYTES_MAX);
    file.seek(SeekFrom::Start(skip))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok((bytes, skip > 0))
}

/// What a node's certificate says. Its key is not read.
#[derive(Debug, Serialize)]
pub struct CertificateFacts {
    /// Who it is about.
    pub node: String,
    /// Where that node hangs.
    pub site: Option<String>,
    /// Identifies the key that it is about.
    pub key: String,
    /// When it ends, seconds since 1970.
    pub not_after_s: u64,
    /// When the next one is to be asked for, seconds since 1970.
    pub renew_s: Option<u64>,
    /// How many certificates are in the file.
    pub chain: usize,
}

impl CertificateFacts {
    /// Reads the file.
    ///
    /// # Errors
    /// What is wrong with it, for a person.
    pub fn read(path: &Path) -> Result<Self, String> {
        let (chain, renew_s) = crate::certified::read(path).map_err(|e| e.to_string())?;
        let leaf = chain.first().map(Vec::as_slice).unwrap_or_default();
        let named = cnova_shared::certificate::read(leaf).map_err(|e| e.to_string())?;
        let (_, not_after_s) = crate::certified::validity(leaf).map_err(|e| e.to_string())?;
        Ok(Self {
            node: named.node.to_string(),
            site: named.site.map(|s| s.to_string()),
            key: format!("{:?}", named.key),
            not_after_s,
            renew_s,
            chain: chain.len(),
        })
    }
}

#[cfg(test)]
mod tests;
