//! A copy of a database, to be read at leisure.
//!
//! Opening a database of SQLite that has a log beside it writes to its folder, even for reading. So it is copied to a
//! folder in memory where there is one, and the copy is opened.

use std::fs::{self, DirBuilder};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How often a database that is being written is copied anew.
const TRIES: usize = 5;
/// Largest database that is copied, in bytes, its log included.
const BYTES_MAX: u64 = 256 << 20;
const IN_MEMORY: &str = "/dev/shm";

/// A copy of a database; removed when this is dropped.
#[derive(Debug)]
pub struct Snapshot {
    folder: PathBuf,
    path: PathBuf,
}

impl Snapshot {
    /// Copies a database with its log, as it is at one moment.
    ///
    /// # Errors
    /// What the system answered; or that it is written too busily, or is too large.
    pub fn of(database: &Path) -> io::Result<Self> {
        let base = Some(PathBuf::from(IN_MEMORY)).filter(|p| p.is_dir());
        let base = base.unwrap_or_else(std::env::temp_dir);
        let folder = base.join(format!("cnova-support-{:016x}", RandomState::new().hash_one(0)));
        DirBuilder::new().mode(0o700).create(&folder)?;
        let copy = Self {
            path: folder.join("copy.db"),
            folder,
        };
        let log = with(database, "-wal");
        for _ in 0..TRIES {
            let before = (version(database)?, version(&log).ok());
            if before.0.0 + before.1.map_or(0, |v| v.0) > BYTES_MAX {
                return Err(io::Error::other(format!("more than {BYTES_MAX} bytes")));
            }
            fs::copy(database, &copy.path)?;
            let logged = before.1.is_some().then(|| fs::copy(&log, with(&copy.path, "-wal")));
            let after = (version(database)?, version(&log).ok());
            // A log that went away meanwhile is another version, too.
            if before == after && logged.is_none_or(|l| l.is_ok()) {
                return Ok(copy);
            }
            let _ = fs::remove_file(with(&copy.path, "-wal"));
        }
        Err(io::Error::other("it was written while it was copied, again and again"))
    }

    /// The copy.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn with(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// What differs after a change: length, time, and the place of the file.
fn version(path: &Path) -> io::Result<(u64, i64, i64, u64)> {
    let meta = fs::metadata(path)?;
    Ok((meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ino()))
}
