//! Artifacts on disk: `sha256/<hex>` for those that are whole, `partial/<hex>` for those being fetched.
//!
//! A whole artifact is written once, read-only, under the name of what it holds. Every call blocks on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use cnova_shared::ids::Digest;
use ring::digest::{Context, SHA256};
use thiserror::Error;

const WHOLE: &str = "sha256";
const PARTIAL: &str = "partial";
const BUFFER_BYTES: usize = 64 * 1024;

/// Why a call did not succeed.
#[derive(Debug, Error)]
pub enum ArtifactError {
    /// The file system said no.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// It does not fit.
    #[error("no room for {asked} bytes: artifacts use {used} of {max} bytes in {path}")]
    NoRoom {
        /// The folder.
        path: PathBuf,
        /// What was to be written.
        asked: u64,
        /// What is there.
        used: u64,
        /// The bound.
        max: u64,
    },
}

/// Why bytes were not appended.
#[derive(Debug, Error)]
pub enum AppendError {
    /// They do not go on where the partial file ends.
    #[error("bytes at {offset} do not continue a partial file of {length} bytes")]
    NotNext {
        /// Where they should go.
        offset: u64,
        /// What is there.
        length: u64,
    },
    /// They could not be written.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

/// Why a partial file did not become an artifact.
#[derive(Debug, Error)]
pub enum FinishError {
    /// It holds something else than its name says; it was removed.
    #[error("the bytes that came have the digest {found}, not {expected}: they are thrown away")]
    Mismatch {
        /// The name.
        expected: Digest,
        /// What it holds.
        found: Digest,
    },
    /// It could not be read, forced to the disk or renamed.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

/// The folder of artifacts.
#[derive(Debug)]
pub struct Artifacts {
    folder: PathBuf,
    max_bytes: u64,
    used: AtomicU64,
    written: AtomicU64,
}

fn fail(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ArtifactError {
    let path = path.to_owned();
    move |source| ArtifactError::Io { action, path, source }
}

impl Artifacts {
    /// Opens the folder, making it when it is not there.
    ///
    /// # Errors
    /// [`ArtifactError`] when it cannot be made or read.
    pub fn open(folder: &Path, max_bytes: u64) -> Result<Self, ArtifactError> {
        for part in [WHOLE, PARTIAL] {
            let path = folder.join(part);
            fs::create_dir_all(&path).map_err(fail("create", &path))?;
        }
        let this = Self {
            folder: folder.to_owned(),
            max_bytes,
            used: AtomicU64::new(0),
            written: AtomicU64::new(0),
        };
        let (_, used) = this.list(WHOLE)?;
        let (_, partial) = this.list(PARTIAL)?;
        this.used.store(used + partial, Ordering::Relaxed);
        Ok(this)
    }

    /// Where an artifact is, or would be.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(WHOLE).join(digest.hex())
    }

    fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(PARTIAL).join(digest.hex())
    }

    /// Whether an artifact is here, whole.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Bytes of all artifacts and partial files.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes written since [`Artifacts::open`].
    #[must_use]
    pub fn bytes_written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// What is here: whole artifacts, and partial files with their length. Names are believed, contents are not read:
    /// whoever loads an artifact checks it, and [`Artifacts::verify`] does.
    ///
    /// # Errors
    /// [`ArtifactError`] when the folder cannot be read.
    pub fn scan(&self) -> Result<(BTreeSet<Digest>, BTreeMap<Digest, u64>), ArtifactError> {
        let (whole, whole_bytes) = self.list(WHOLE)?;
        let (partial, partial_bytes) = self.list(PARTIAL)?;
        self.used.store(whole_bytes + partial_bytes, Ordering::Relaxed);
        // An empty whole file is what a power cut left of one whose rename survived and whose bytes did not.
        let whole = whole.into_iter().filter(|(_, len)| *len > 0).map(|(d, _)| d).collect();
        Ok((whole, partial))
    }

    fn list(&self, part: &str) -> Result<(BTreeMap<Digest, u64>, u64), ArtifactError> {
        let folder = self.folder.join(part);
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&folder).map_err(fail("read", &folder))? {
            let entry = entry.map_err(fail("read", &folder))?;
            let digest = entry.file_name().to_str().and_then(|n| n.parse::<Digest>().ok());
            let meta = entry.metadata().map_err(fail("look at", &entry.path()))?;
            match digest {
                Some(digest) if meta.is_file() => {
                    found.insert(digest, meta.len());
                }
                _ => tracing::warn!(path = %entry.path().display(), "not an artifact; ignored"),
            }
        }
        let bytes = found.values().sum();
        Ok((found, bytes))
    }

    /// Whether an artifact holds what its name says.
    ///
    /// # Errors
    /// [`ArtifactError`] when it cannot be read.
    pub fn verify(&self, digest: &Digest) -> Result<bool, ArtifactError> {
        let path = self.path(digest);
        let mut file = File::open(&path).map_err(fail("open", &path))?;
        Ok(hash(&mut file, &path)?.0 == *digest)
    }

    /// Removes an artifact, because it turned out to be damaged.
    ///
    /// # Errors
    /// [`ArtifactError`] when it cannot be removed.
    pub fn remove(&self, digest: &Digest) -> Result<(), ArtifactError> {
        self.remove_file(&self.path(digest))
    }

    /// Writes a piece into the partial file. It goes on where the file ends, or is its last byte again.
    ///
    /// # Errors
    /// [`AppendError`]; the file then ends where it ended, or is cut there at the next start.
    pub fn append(&self, digest: &Digest, offset: u64, data: &[u8]) -> Result<(), AppendError> {
        let path = self.partial_path(digest);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(fail("open", &path))?;
        let length = file.metadata().map_err(fail("look at", &path))?.len();
        let end = offset + data.len() as u64;
        // A fetch begun anew overwrites what the last one left.
        let begins_anew = offset == 0 && length > 0;
        let is_last_byte_again = offset + 1 == length && end == length;
        if offset != length && !is_last_byte_again && !begins_anew {
            return Err(AppendError::NotNext { offset, length });
        }
        if begins_anew {
            file.set_len(0).map_err(fail("empty", &path))?;
            self.shrink(length);
        }
        let grows = end.saturating_sub(if begins_anew { 0 } else { length });
        self.make_sure_of_room(grows)?;
        file.seek(SeekFrom::Start(offset)).map_err(fail("write", &path))?;
        if let Err(source) = file.write_all(data) {
            // Half a piece would make the next one look like a gap.
            let _ = file.set_len(offset);
            return Err(fail("write", &path)(source).into());
        }
        self.used.fetch_add(grows, Ordering::Relaxed);
        self.written.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// The partial file is complete: checks its digest, forces it to the disk and gives it its name.
    ///
    /// # Errors
    /// [`FinishError`]; the partial file is gone when its digest is another.
    pub fn finish(&self, digest: &Digest) -> Result<(), FinishError> {
        let (partial, whole) = (self.partial_path(digest), self.path(digest));
        let mut file = match File::open(&partial) {
            Ok(file) => file,
            // Finished twice: the piece that completed it came twice.
            Err(e) if e.kind() == io::ErrorKind::NotFound && whole.is_file() => return Ok(()),
            Err(source) => return Err(fail("open", &partial)(source).into()),
        };
        let (found, _) = hash(&mut file, &partial)?;
        if found != *digest {
            self.remove_file(&partial)?;
            return Err(FinishError::Mismatch {
                expected: *digest,
                found,
            });
        }
        self.publish(&file, &partial, &whole)?;
        Ok(())
    }

    fn publish(&self, file: &File, partial: &Path, whole: &Path) -> Result<(), ArtifactError> {
        file.set_permissions(fs::Permissions::from_mode(0o444))
            .map_err(fail("protect", partial))?;
        file.sync_all().map_err(fail("sync", partial))?;
        let replaced = fs::metadata(whole).map_or(0, |m| m.len());
        fs::rename(partial, whole).map_err(fail("rename", partial))?;
        self.shrink(replaced);
        let folder = self.folder.join(WHOLE);
        File::open(&folder)
            .and_then(|f| f.sync_all())
            .map_err(fail("sync", &folder))
    }

    /// Keeps bytes as an artifact.
    ///
    /// # Errors
    /// [`ArtifactError`] when they cannot be written.
    pub fn import(&self, bytes: &[u8]) -> Result<(Digest, u64), ArtifactError> {
        let digest = Digest::of(bytes);
        let size = bytes.len() as u64;
        if !self.has(&digest) {
            let draft = self.partial_path(&digest);
            self.write_draft(&draft, &mut &*bytes)?;
            self.publish_draft(&draft, &self.path(&digest))?;
        }
        Ok((digest, size))
    }

    /// Keeps a copy of a file as an artifact.
    ///
    /// # Errors
    /// [`ArtifactError`] when it cannot be read or written.
    pub fn import_file(&self, path: &Path) -> Result<(Digest, u64), ArtifactError> {
        let mut file = File::open(path).map_err(fail("open", path))?;
        let (digest, size) = hash(&mut file, path)?;
        if self.has(&digest) {
            return Ok((digest, size));
        }
        file.rewind().map_err(fail("read", path))?;
        let draft = self.partial_path(&digest);
        self.write_draft(&draft, &mut file)?;
        let mut copy = File::open(&draft).map_err(fail("open", &draft))?;
        if hash(&mut copy, &draft)?.0 != digest {
            self.remove_file(&draft)?;
            let source = io::Error::other("it was changed while it was being read");
            return Err(fail("import", path)(source));
        }
        self.publish_draft(&draft, &self.path(&digest))?;
        Ok((digest, size))
    }

    fn write_draft(&self, draft: &Path, from: &mut dyn Read) -> Result<(), ArtifactError> {
        self.remove_file(draft)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(draft)
            .map_err(fail("create", draft))?;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let n = from.read(&mut buffer).map_err(fail("read for", draft))?;
            if n == 0 {
                return Ok(());
            }
            let written = self
                .make_sure_of_room(n as u64)
                .and_then(|()| file.write_all(&buffer[..n]).map_err(fail("write", draft)));
            if let Err(error) = written {
                drop(file);
                let _ = self.remove_file(draft);
                return Err(error);
            }
            self.used.fetch_add(n as u64, Ordering::Relaxed);
            self.written.fetch_add(n as u64, Ordering::Relaxed);
        }
    }

    fn publish_draft(&self, draft: &Path, whole: &Path) -> Result<(), ArtifactError> {
        let file = File::open(draft).map_err(fail("open", draft))?;
        self.publish(&file, draft, whole)
    }

    /// A piece of an artifact and the artifact's whole size. Shorter than asked for at its end.
    ///
    /// # Errors
    /// [`ArtifactError`] when it is not here or cannot be read.
    pub fn read(&self, digest: &Digest, offset: u64, len: u64) -> Result<(Vec<u8>, u64), ArtifactError> {
        let path = self.path(digest);
        let mut file = File::open(&path).map_err(fail("open", &path))?;
        let total = file.metadata().map_err(fail("look at", &path))?.len();
        let len = len.min(total.saturating_sub(offset));
        file.seek(SeekFrom::Start(offset)).map_err(fail("read", &path))?;
        let mut data = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
        file.take(len).read_to_end(&mut data).map_err(fail("read", &path))?;
        Ok((data, total))
    }

    /// Removes every artifact and partial file that is not in the list.
    ///
    /// # Errors
    /// [`ArtifactError`] for the first that could not be removed; the others are removed all the same.
    pub fn keep(&self, wanted: &[Digest]) -> Result<(), ArtifactError> {
        let wanted: BTreeSet<&Digest> = wanted.iter().collect();
        let mut first_error = None;
        for part in [WHOLE, PARTIAL] {
            let folder = self.folder.join(part);
            for digest in self.list(part)?.0.keys().filter(|d| !wanted.contains(d)) {
                if let Err(error) = self.remove_file(&folder.join(digest.hex())) {
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    fn remove_file(&self, path: &Path) -> Result<(), ArtifactError> {
        let length = fs::metadata(path).map_or(0, |m| m.len());
        match fs::remove_file(path) {
            Ok(()) => {
                self.shrink(length);
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(fail("remove", path)(source)),
        }
    }

    /// Never below nothing: a scan may have counted the folder anew in between.
    fn shrink(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    fn make_sure_of_room(&self, asked: u64) -> Result<(), ArtifactError> {
        let used = self.used();
        if used.saturating_add(asked) > self.max_bytes {
            return Err(ArtifactError::NoRoom {
                path: self.folder.clone(),
                asked,
                used,
                max: self.max_bytes,
            });
        }
        Ok(())
    }
}

fn hash(file: &mut File, path: &Path) -> Result<(Digest, u64), ArtifactError> {
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut size = 0;
    loop {
        let n = file.read(&mut buffer).map_err(fail("read", path))?;
        if n == 0 {
            break;
        }
        context.update(&buffer[..n]);
        size += n as u64;
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    Ok((Digest(digest), size))
}
