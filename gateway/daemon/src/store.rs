//! The gateway's store: the core's `Stored`, in SQLite. One transaction per `Persist`.

mod rows;
mod schema;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cnova_gateway_core::{Op, Stored};
use cnova_shared::wire::v1::Alarm;
use cnova_store::{CallError, OnCorrupt, OpenError, Opened, Owner, SetAside, open};
use rusqlite::Connection;

/// The database's name in the state folder.
pub const FILE: &str = "gateway.db";
/// Where a database goes that can be opened and makes no sense; there is one of it at most.
const UNREADABLE: &str = "gateway.db.unreadable";

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It was opened and cannot be read or written.
    #[error("the store {path} cannot be read: {source}; check the disk and the folder's owner")]
    Read {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// What stands in it makes no sense, and it could not be renamed.
    #[error("the store {path} makes no sense ({reason}) and could not be set aside: {source}")]
    SetAside {
        /// The database.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What the system said.
        source: io::Error,
    },
    /// The system gave no thread for it.
    #[error("no thread for the store: {0}; free some memory and start again")]
    Thread(#[source] io::Error),
}

/// The store, open.
#[derive(Clone, Debug)]
pub struct Store {
    owner: Owner,
}

/// A store as it was found.
#[derive(Debug)]
pub struct Found {
    /// The store.
    pub store: Store,
    /// What it holds.
    pub stored: Stored,
    /// What a person should know of it.
    pub alarm: Option<Alarm>,
}

impl Store {
    /// Opens the store in `folder`. One that is damaged is set aside: children, parent and hub say everything again.
    ///
    /// # Errors
    /// [`StoreError`], which says what to do.
    pub fn open(folder: &Path, max_bytes: u64, wall_ms: u64) -> Result<Found, StoreError> {
        let path = folder.join(FILE);
        let (mut connection, mut aside) = open_at(&path, max_bytes)?;
        let stored = match read(&mut connection, wall_ms) {
            Ok(stored) => stored,
            Err(error) if rows::is_bad_value(&error) => {
                drop(connection);
                aside = Some(set_aside(folder, &path, error.to_string())?);
                connection = open_at(&path, max_bytes)?.0;
                read(&mut connection, wall_ms).map_err(|source| StoreError::Read { path, source })?
            }
            Err(source) => return Err(StoreError::Read { path, source }),
        };
        let alarm = aside.map(|SetAside { path, reason }| Alarm {
            code: "store-set-aside".into(),
            detail: format!(
                "the gateway's store was damaged ({reason}) and began anew; the old one is {}. Check the disk",
                path.display()
            ),
        });
        let owner = Owner::spawn(connection).map_err(StoreError::Thread)?;
        Ok(Found {
            store: Self { owner },
            stored,
            alarm,
        })
    }

    /// Makes changes, all or none; they are on the disk when this returns.
    ///
    /// # Errors
    /// [`CallError`]; nothing was changed.
    pub async fn persist(&self, ops: Vec<Op>) -> Result<(), CallError> {
        self.owner
            .write(move |transaction| ops.iter().try_for_each(|op| rows::apply(transaction, op)))
            .await
    }

    /// Reads everything.
    ///
    /// # Errors
    /// [`CallError`] when it cannot be read.
    pub async fn load(&self) -> Result<Stored, CallError> {
        self.owner.call(|connection| rows::load(connection)).await
    }

    /// How many commits were made and how many bytes they wrote, since the start.
    #[must_use]
    pub fn written(&self) -> (u64, u64) {
        (self.owner.counters().commits(), self.owner.counters().bytes())
    }
}

fn open_at(path: &Path, max_bytes: u64) -> Result<(Connection, Option<SetAside>), OpenError> {
    let Opened {
        connection, set_aside, ..
    } = open(path, &schema::SCHEMA, OnCorrupt::SetAside, max_bytes)?;
    Ok((connection, set_aside))
}

fn read(connection: &mut Connection, wall_ms: u64) -> Result<Stored, rusqlite::Error> {
    let transaction = connection.transaction()?;
    rows::begin(&transaction, wall_ms)?;
    let stored = rows::load(&transaction)?;
    transaction.commit()?;
    Ok(stored)
}

fn set_aside(folder: &Path, path: &Path, reason: String) -> Result<SetAside, StoreError> {
    let aside = folder.join(UNREADABLE);
    let rename = |suffix: &str| {
        let with = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
        match fs::rename(with(path), with(&aside)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    };
    // The log first: a database without its log is older, a log without its database is nothing.
    for suffix in ["-wal", "-shm", ""] {
        let fail = |source| StoreError::SetAside {
            path: path.to_owned(),
            reason: reason.clone(),
            source,
        };
        rename(suffix).map_err(fail)?;
    }
    tracing::error!(database = %path.display(), set_aside = %aside.display(), reason, "begins anew");
    Ok(SetAside { path: aside, reason })
}
