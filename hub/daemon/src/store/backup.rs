//! Copies of the database, made while it is in use.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

/// Copies that are kept.
pub const BACKUPS_KEPT: usize = 3;
const PREFIX: &str = "hub-";
const SUFFIX: &str = ".db";

/// Why no copy was made.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The folder or a file in it.
    #[error("cannot write a backup to {path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// SQLite.
    #[error("cannot copy {path}: {source}")]
    Sql {
        /// The database.
        path: PathBuf,
        /// What SQLite answered.
        source: rusqlite::Error,
    },
}

/// Copies the database as it is now and removes the oldest copies. Blocks; readers and the writer go on meanwhile.
///
/// # Errors
/// [`BackupError`]; earlier copies are still there.
pub fn back_up(database: &Path, folder: &Path, wall_ms: u64) -> Result<PathBuf, BackupError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| BackupError::Io { path, source }
    };
    fs::create_dir_all(folder).map_err(io(folder))?;
    let copy = folder.join(format!("{PREFIX}{wall_ms:015}{SUFFIX}"));
    let draft = folder.join("draft");
    if draft.exists() {
        fs::remove_file(&draft).map_err(io(&draft))?;
    }
    vacuum_into(database, &draft).map_err(|source| BackupError::Sql {
        path: database.to_owned(),
        source,
    })?;
    // SQLite does not force the copy to the disk.
    fs::File::open(&draft).and_then(|f| f.sync_all()).map_err(io(&draft))?;
    fs::rename(&draft, &copy).map_err(io(&copy))?;
    for old in list(folder).into_iter().skip(BACKUPS_KEPT) {
        fs::remove_file(&old).map_err(io(&old))?;
    }
    Ok(copy)
}

fn vacuum_into(database: &Path, copy: &Path) -> Result<(), rusqlite::Error> {
    let db = Connection::open_with_flags(
        database,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    db.execute("VACUUM INTO ?1", [copy.to_string_lossy()])?;
    Ok(())
}

/// The copies, newest first.
#[must_use]
pub fn list(folder: &Path) -> Vec<PathBuf> {
    let is_copy = |name: &str| name.starts_with(PREFIX) && name.ends_with(SUFFIX);
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let mut copies: Vec<PathBuf> = entries
        .filter(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(is_copy))
        .collect();
    copies.sort();
    copies.reverse();
    copies
}
