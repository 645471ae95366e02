//! The hub's truth: one SQLite database, written by one thread, copied every day.

mod attestation;
pub mod audit;
mod backup;
mod enrolment;
pub mod history;
pub mod rows;
pub mod schema;
mod secrets;
mod systems;
mod trust;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cnova_hub_core::{Op, Stored};
use cnova_shared::ids::NodeId;
use cnova_store::{CallError, OnCorrupt, OpenError, Owner};
use rusqlite::{Connection, OpenFlags};

use self::audit::{AuditEntry, Draft};
use self::history::{HISTORY_SLACK, HistoryEntry};

pub use self::backup::{BACKUPS_KEPT, BackupError, back_up, list as list_backups};

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It is damaged, and holds what exists nowhere else.
    #[error(
        "{path} is damaged: {reason}. Nothing was changed. Either restore a backup ({}) by copying it to {path} and \
         removing {path}-wal and {path}-shm, or start with --set-aside-corrupt-store, which renames the damaged file \
         and begins a new epoch without applications", list(.backups)
    )]
    Corrupt {
        /// The database.
        path: String,
        /// What is wrong with it.
        reason: String,
        /// Copies, newest first.
        backups: Vec<PathBuf>,
    },
    /// It cannot be opened for another reason.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Its thread was not given.
    #[error("the store's thread did not start: {0}")]
    Thread(std::io::Error),
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] CallError),
}

fn list(backups: &[PathBuf]) -> String {
    match backups.first() {
        Some(newest) => format!("the newest of {} is {}", backups.len(), newest.display()),
        None => "there is none yet".to_owned(),
    }
}

/// The open store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    owner: Owner,
    path: PathBuf,
    backups: PathBuf,
    /// Entries written per node since its history was last cut to its bound.
    untrimmed: Arc<Mutex<HashMap<NodeId, u64>>>,
}

impl Store {
    /// Opens, checks and migrates the database.
    ///
    /// # Errors
    /// [`StoreError`], which says what to do.
    pub fn open(path: &Path, backups: &Path, on_corrupt: OnCorrupt, max_bytes: u64) -> Result<Self, StoreError> {
        let opened = cnova_store::open(path, &schema::SCHEMA, on_corrupt, max_bytes).map_err(|error| match error {
            OpenError::Corrupt { path, reason } => corrupt(&path, reason, backups),
            other => other.into(),
        })?;
        if let Some(aside) = opened.set_aside {
            tracing::warn!(
                path = %aside.path.display(), reason = aside.reason,
                "the damaged store was set aside; this hub begins a new epoch"
            );
        }
        let owner = Owner::spawn(opened.connection).map_err(StoreError::Thread)?;
        let (path, backups) = (path.to_owned(), backups.to_owned());
        Ok(Self {
            owner,
            path,
            backups,
            untrimmed: Arc::default(),
        })
    }

    /// Reads everything that the core keeps.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when a row is not what this program writes.
    pub async fn load(&self) -> Result<Stored, StoreError> {
        let loaded = self.owner.call(|db| Ok(rows::load(db))).await?;
        loaded.map_err(|e| corrupt(&self.path, e.to_string(), &self.backups))
    }

    /// Commits changes and audit entries in one transaction.
    ///
    /// # Errors
    /// [`CallError`]; nothing of it is on disk then.
    pub async fn commit(&self, ops: Vec<Op>, drafts: Vec<Draft>) -> Result<(), CallError> {
        let untrimmed = self.untrimmed.clone();
        let audited = self
            .owner
            .write(move |db| {
                for op in &ops {
                    rows::apply(db, op)?;
                }
                for node in due_for_trimming(&untrimmed, &ops) {
                    history::trim(db, &node)?;
                }
                drafts
                    .iter()
                    .map(|d| audit::append(db, d).map(|head| (head, d.clone())))
                    .collect::<Result<Vec<_>, _>>()
            })
            .await?;
        for ((seq, hash), d) in audited {
            tracing::info!(target: "audit", seq, user = d.user, action = d.action, object = d.object,
                outcome = d.outcome, hash, "{}", d.detail);
        }
        Ok(())
    }

    /// Writes a byte, to see whether that is possible again.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn probe(&self) -> Result<(), CallError> {
        let write = "INSERT INTO number (name, value) VALUES ('probe', 1) ON CONFLICT DO UPDATE SET value = value + 1";
        self.owner.write(move |db| rows::run(db, write, [])).await
    }

    /// The newest entries of a node's history, newest first.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn history(&self, node: NodeId, limit: u32) -> Result<Vec<HistoryEntry>, CallError> {
        self.owner.call(move |db| history::read(db, &node, limit)).await
    }

    /// The newest entries of the audit log, newest first.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn audit(&self, limit: u32) -> Result<Vec<AuditEntry>, CallError> {
        self.owner.call(move |db| audit::read(db, limit)).await
    }

    /// Walks the audit chain; the first entry that does not fit. Reads beside the writer, which goes on meanwhile.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn verify_audit(&self) -> Result<Option<u64>, CallError> {
        let path = self.path.clone();
        let walk = move || {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            audit::verify(&Connection::open_with_flags(path, flags)?)
        };
        tokio::task::spawn_blocking(walk)
            .await
            .map_err(|_| CallError::Gone)?
            .map_err(CallError::from)
    }

    /// Transactions and bytes written since the start.
    #[must_use]
    pub fn written(&self) -> (u64, u64) {
        (self.owner.counters().commits(), self.owner.counters().bytes())
    }

    /// Where the database and its copies are.
    #[must_use]
    pub fn paths(&self) -> (&Path, &Path) {
        (&self.path, &self.backups)
    }
}

fn corrupt(path: &Path, reason: String, backups: &Path) -> StoreError {
    StoreError::Corrupt {
        path: path.display().to_string(),
        reason,
        backups: backup::list(backups),
    }
}

/// The nodes whose history may have grown past its bound.
fn due_for_trimming(untrimmed: &Mutex<HashMap<NodeId, u64>>, ops: &[Op]) -> Vec<NodeId> {
    let mut counts = untrimmed.lock().unwrap_or_else(PoisonError::into_inner);
    let mut due = Vec::new();
    for op in ops {
        let Op::PutEntry { node, .. } = op else { continue };
        // Nothing is known of a node's history before this process.
        let count = counts.entry(node.clone()).or_insert(HISTORY_SLACK);
        *count += 1;
        if *count > HISTORY_SLACK {
            *count = 0;
            due.push(node.clone());
        }
    }
    due
}
