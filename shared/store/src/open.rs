//! Opening a database: its settings, its check, its version.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};
use thiserror::Error;

/// Databases that were set aside and are kept for a person to look at.
pub const SET_ASIDE_KEPT: u32 = 3;
const PAGE_BYTES: u64 = 4096;
/// The write-ahead log is folded into the database at this size.
const WAL_PAGES: u64 = 256;
/// Less free space than this is a full disk.
const FREE_BYTES_MIN: u64 = 64 * 1024;

/// What a database is for and how its tables came to be.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    /// Which program's it is; another program's database is refused.
    pub application_id: i32,
    /// SQL that takes the database from version `i` to `i + 1`, each in one transaction. The first makes the tables.
    pub migrations: &'static [&'static str],
}

/// How many rows each table of a copy has. A copy may have its log beside it, which is worked in when it is opened.
///
/// # Errors
/// What SQLite answered.
pub fn count_rows(copy: &Path) -> Result<Vec<(String, u64)>, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(copy, flags)?;
    let mut names = connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")?;
    let names = names
        .query_map([], |row| row.get(0))?
        .collect::<Result<Vec<String>, _>>()?;
    let count = |name: String| {
        // From the database's own list; quoted all the same.
        let sql = format!("SELECT count(*) FROM \"{}\"", name.replace('"', "\"\""));
        let rows: i64 = connection.query_row(&sql, [], |row| row.get(0))?;
        Ok((name, rows.unsigned_abs()))
    };
    names.into_iter().map(count).collect()
}

/// What becomes of a database that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCorrupt {
    /// It is a cache: it is renamed and an empty one is made.
    SetAside,
    /// It holds what exists nowhere else: a person decides.
    Refuse,
}

/// A database, ready.
#[derive(Debug)]
pub struct Opened {
    /// The one connection.
    pub connection: Connection,
    /// Where the corrupt one went, if there was one.
    pub set_aside: Option<SetAside>,
    /// Whether it holds nothing yet.
    pub is_new: bool,
}

/// A database that was renamed because it could not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Its new name.
    pub path: PathBuf,
    /// What was wrong with it.
    pub reason: String,
}

/// Why a database was not opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The folder or the file cannot be written.
    #[error("cannot write {path}: {reason}; give the folder to the user that this program runs as")]
    NotWritable {
        /// The database.
        path: PathBuf,
        /// What the system answered.
        reason: String,
    },
    /// No space is left.
    #[error("no space is left for {path}: {reason}; free some and start again")]
    DiskFull {
        /// The database.
        path: PathBuf,
        /// What the system answered.
        reason: String,
    },
    /// It is damaged, or not ours, and must not be set aside by itself.
    #[error(
        "{path} cannot be used: {reason}. Nothing was changed. Either restore it from a backup, or move it away (with \
         its -wal and -shm files) to begin anew"
    )]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A newer version of the program wrote it.
    #[error(
        "{path} was written by a newer version of this program (schema {found}, this one knows {known}): update it"
    )]
    NewerSchema {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version that is known here.
        known: i64,
    },
    /// Another process uses it.
    #[error("{path} is in use by another process: stop that one first")]
    Busy {
        /// The database.
        path: PathBuf,
    },
    /// It could not be renamed.
    #[error("{path} is corrupt ({reason}) and could not be set aside: {source}")]
    SetAside {
        /// The database.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What the system answered.
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot open {path}: {source}")]
    Sql {
        /// The database.
        path: PathBuf,
        /// What SQLite answered.
        source: rusqlite::Error,
    },
}

/// What one attempt at opening met.
enum Trouble {
    Corrupt(String),
    Newer(i64),
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Trouble::Corrupt(error.to_string()),
            _ => Trouble::Sql(error),
        }
    }
}

/// Opens a database of at most `max_bytes`: WAL, every commit forced to the disk, checked, brought to the newest version.
///
/// # Errors
/// [`OpenError`], which says what to do.
pub fn open(path: &Path, schema: &Schema, on_corrupt: OnCorrupt, max_bytes: u64) -> Result<Opened, OpenError> {
    match try_open(path, schema, max_bytes) {
        Ok((connection, is_new)) => Ok(Opened {
            connection,
            set_aside: None,
            is_new,
        }),
        Err(Trouble::Corrupt(reason)) if on_corrupt == OnCorrupt::SetAside => {
            let aside = set_aside(path, &reason)?;
            let (connection, is_new) =
                try_open(path, schema, max_bytes).map_err(|trouble| explain(path, schema, trouble))?;
            Ok(Opened {
                connection,
                set_aside: Some(aside),
                is_new,
            })
        }
        Err(trouble) => Err(explain(path, schema, trouble)),
    }
}

fn try_open(path: &Path, schema: &Schema, max_bytes: u64) -> Result<(Connection, bool), Trouble> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    let is_new = check_is_ours(&connection, schema.application_id)?;
    configure(&connection, max_bytes)?;
    if !is_new {
        check_integrity(&connection)?;
    }
    migrate(&mut connection, schema)?;
    Ok((connection, is_new))
}

/// True when it is empty; trouble when another program made it.
fn check_is_ours(connection: &Connection, application_id: i32) -> Result<bool, Trouble> {
    let found: i32 = connection.pragma_query_value(None, "application_id", |r| r.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
    match (found == application_id, tables) {
        (_, 0) => Ok(true),
        (true, _) => Ok(false),
        (false, _) => Err(Trouble::Corrupt(format!(
            "it is another program's database (application id {found})"
        ))),
    }
}

fn configure(connection: &Connection, max_bytes: u64) -> Result<(), rusqlite::Error> {
    let max_pages = (max_bytes / PAGE_BYTES).max(64);
    // A log that once grew large, because of a long reader, is cut back to this.
    let journal_bytes = 2 * WAL_PAGES * PAGE_BYTES;
    connection.execute_batch(&format!(
        "PRAGMA page_size = {PAGE_BYTES};
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA foreign_keys = ON;
         PRAGMA trusted_schema = OFF;
         PRAGMA temp_store = MEMORY;
         PRAGMA wal_autocheckpoint = {WAL_PAGES};
         PRAGMA journal_size_limit = {journal_bytes};
         PRAGMA max_page_count = {max_pages};"
    ))
}

/// `quick_check` reads every page; on the sizes that `max_bytes` allows here it is as cheap as reading the file.
fn check_integrity(connection: &Connection) -> Result<(), Trouble> {
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))?;
    if verdict == "ok" {
        Ok(())
    } else {
        Err(Trouble::Corrupt(verdict))
    }
}

fn migrate(connection: &mut Connection, schema: &Schema) -> Result<(), Trouble> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |r| r.get(0))?;
    let Some(steps) = usize::try_from(found).ok().and_then(|v| schema.migrations.get(v..)) else {
        return Err(Trouble::Newer(found));
    };
    for (version, sql) in (found + 1..).zip(steps) {
        let step = connection.transaction()?;
        step.execute_batch(sql)?;
        step.pragma_update(None, "application_id", schema.application_id)?;
        step.pragma_update(None, "user_version", version)?;
        step.commit()?;
    }
    Ok(())
}

fn explain(path: &Path, schema: &Schema, trouble: Trouble) -> OpenError {
    let path = path.to_owned();
    let error = match trouble {
        Trouble::Corrupt(reason) => return OpenError::Corrupt { path, reason },
        Trouble::Newer(found) => {
            let known = i64::try_from(schema.migrations.len()).unwrap_or(i64::MAX);
            return OpenError::NewerSchema { path, found, known };
        }
        Trouble::Sql(error) => error,
    };
    let reason = error.to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::Busy { path },
        Some(ErrorCode::DiskFull) => OpenError::DiskFull { path, reason },
        // A disk without space shows itself as any kind of I/O error, or as a file that cannot be created.
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) if is_full(&path) => {
            OpenError::DiskFull { path, reason }
        }
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            OpenError::NotWritable { path, reason }
        }
        _ => OpenError::Sql { path, source: error },
    }
}

fn is_full(path: &Path) -> bool {
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    rustix::fs::statvfs(folder).is_ok_and(|s| s.f_bavail.saturating_mul(s.f_frsize) < FREE_BYTES_MIN || s.f_favail == 0)
}

/// Renames a database that nobody holds open, and its companions, to `<name>.corrupt-<n>`, the newest number being the
/// highest. [`open`] does it by itself; this is for contents that only the program can see to be wrong.
///
/// # Errors
/// [`OpenError::SetAside`] when it could not be renamed.
pub fn set_aside(path: &Path, reason: &str) -> Result<SetAside, OpenError> {
    let aside = rename_aside(path).map_err(|source| {
        let (path, reason) = (path.to_owned(), reason.to_owned());
        OpenError::SetAside { path, reason, source }
    })?;
    tracing::error!(database = %path.display(), set_aside = %aside.display(), reason, "begins anew");
    Ok(SetAside {
        path: aside,
        reason: reason.to_owned(),
    })
}

fn rename_aside(path: &Path) -> Result<PathBuf, io::Error> {
    let mut kept: Vec<u32> = numbers_of_set_aside(path)?;
    kept.sort_unstable();
    let next = kept.last().map_or(1, |n| n + 1);
    // A file that fails again and again must not fill the disk with its remains.
    let too_many = (kept.len() + 1).saturating_sub(SET_ASIDE_KEPT as usize);
    for old in kept.into_iter().take(too_many) {
        for companion in ["", "-wal", "-shm"] {
            remove_if_there(&aside_name(path, old, companion))?;
        }
    }
    for companion in ["-wal", "-shm", ""] {
        let from = with_suffix(path, companion);
        if from.exists() {
            fs::rename(from, aside_name(path, next, companion))?;
        }
    }
    Ok(aside_name(path, next, ""))
}

fn numbers_of_set_aside(path: &Path) -> Result<Vec<u32>, io::Error> {
    let Some(name) = path.file_name().and_then(|n| n.to_str()) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{name}.corrupt-");
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name
            .to_str()
            .and_then(|n| n.strip_prefix(&prefix))
            .and_then(|n| n.parse::<u32>().ok());
        numbers.extend(number);
    }
    Ok(numbers)
}

fn aside_name(path: &Path, number: u32, companion: &str) -> PathBuf {
    with_suffix(path, &format!(".corrupt-{number}{companion}"))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path.as_os_str());
    name.push(suffix);
    name.into()
}

fn remove_if_there(path: &Path) -> Result<(), io::Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
