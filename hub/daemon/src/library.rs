//! The artifacts: what was uploaded and what was compiled from it, and drafts of both.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cnova_hub_core::Stored;
use cnova_shared::ids::Digest;
use cnova_store::{ArtifactError, Artifacts};

/// The folder of artifacts and the folder of drafts. Every call blocks on the disk.
#[derive(Debug)]
pub struct Library {
    artifacts: Artifacts,
    drafts: PathBuf,
    next: AtomicU64,
    importing: Mutex<()>,
    known: Mutex<BTreeSet<Digest>>,
    asked_for: Mutex<BTreeSet<Digest>>,
}

/// Why there is no library.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// The artifacts.
    #[error(transparent)]
    Artifacts(#[from] ArtifactError),
    /// The drafts.
    #[error("cannot use the folder of drafts {path}: {source}; give it to the user that the hub runs as")]
    Drafts {
        /// Which.
        path: PathBuf,
        /// What the system answered.
        source: std::io::Error,
    },
}

/// A draft's place; the file is removed with this.
#[derive(Debug)]
pub struct Draft(PathBuf);

impl Draft {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // It may never have been written.
        let _ = fs::remove_file(&self.0);
    }
}

impl Library {
    /// Opens both folders and throws the drafts of an earlier life away.
    ///
    /// # Errors
    /// [`LibraryError`].
    pub fn open(state_dir: &Path, max_bytes: u64) -> Result<Self, LibraryError> {
        let drafts = state_dir.join("drafts");
        let fail = |source| LibraryError::Drafts {
            path: drafts.clone(),
            source,
        };
        if drafts.exists() {
            fs::remove_dir_all(&drafts).map_err(fail)?;
        }
        fs::create_dir_all(&drafts).map_err(fail)?;
        let artifacts = Artifacts::open(&state_dir.join("artifacts"), max_bytes)?;
        Ok(Self {
            artifacts,
            drafts,
            next: AtomicU64::new(0),
            importing: Mutex::default(),
            known: Mutex::default(),
            asked_for: Mutex::default(),
        })
    }

    /// The artifacts.
    #[must_use]
    pub fn artifacts(&self) -> &Artifacts {
        &self.artifacts
    }

    /// A place for a new draft.
    #[must_use]
    pub fn draft(&self) -> Draft {
        Draft(self.drafts.join(self.next.fetch_add(1, Ordering::Relaxed).to_string()))
    }

    /// Keeps a copy of a draft as an artifact.
    ///
    /// # Errors
    /// [`ArtifactError`].
    pub fn import(&self, draft: &Draft) -> Result<(Digest, u64), ArtifactError> {
        // Two imports of the same bytes would write the same partial file.
        let _one_at_a_time = self.importing.lock().unwrap_or_else(PoisonError::into_inner);
        self.artifacts.import_file(draft.path())
    }

    /// Keeps bytes as an artifact.
    ///
    /// # Errors
    /// [`ArtifactError`]; what the system answered when the draft could not be written is in it.
    pub fn keep(&self, bytes: &[u8]) -> Result<(Digest, u64), ArtifactError> {
        let draft = self.draft();
        let written = fs::File::create_new(draft.path()).and_then(|mut f| f.write_all(bytes));
        written.map_err(|source| ArtifactError::Io {
            action: "write",
            path: draft.path().to_owned(),
            source,
        })?;
        self.import(&draft)
    }

    /// Whether an artifact was uploaded and both the disk and the database have it. After an outage or a restored
    /// backup a file may be there that the core was never told of; it must be uploaded again then.
    #[must_use]
    pub fn knows(&self, digest: &Digest) -> bool {
        self.known().contains(digest) && self.artifacts.has(digest)
    }

    /// The database now names this artifact.
    pub fn learn(&self, digest: Digest) {
        self.known().insert(digest);
    }

    /// Somebody was told that this artifact is there, and may name it in a manifest next.
    pub fn promise(&self, digest: Digest) {
        self.asked_for
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(digest);
    }

    /// What was promised since the last call.
    #[must_use]
    pub fn take_promised(&self) -> BTreeSet<Digest> {
        std::mem::take(&mut self.asked_for.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Removes artifacts that the database no longer names. After a crash in between, their files stay until the same
    /// bytes are uploaded again.
    pub fn remove(&self, digests: &BTreeSet<Digest>) {
        for digest in digests.iter().filter(|d| self.artifacts.has(d)) {
            self.known().remove(digest);
            if let Err(error) = self.artifacts.remove(digest) {
                tracing::warn!(%digest, %error, "an artifact that nothing uses is not removed");
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeSet<Digest>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out of what the database says everything whose file is not there, as after a restored backup; it is
    /// uploaded or compiled again.
    ///
    /// # Errors
    /// [`ArtifactError`] when the folder cannot be read.
    pub fn leave_out_missing(&self, stored: &mut Stored) -> Result<(), ArtifactError> {
        let (whole, _) = self.artifacts.scan()?;
        let named = stored.artifacts.len() + stored.compiled.len();
        stored.artifacts.retain(|digest, _| whole.contains(digest));
        stored.compiled.retain(|_, artifact| whole.contains(&artifact.digest));
        for held in stored.provenance.values_mut() {
            held.retain(|p| whole.contains(&p.artifact.digest));
        }
        stored.provenance.retain(|_, held| !held.is_empty());
        *self.known() = stored.artifacts.keys().copied().collect();
        let missing = named - stored.artifacts.len() - stored.compiled.len();
        if missing > 0 {
            tracing::warn!(
                missing,
                "artifacts that the database names are not on the disk: upload them again"
            );
        }
        Ok(())
    }
}
