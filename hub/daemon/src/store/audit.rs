//! The audit log: who changed what, each entry bound to the one before it by a hash.
//!
//! A changed, removed or inserted row breaks the chain. That rows were cut off at its end is only seen by comparing
//! with a hash that was written down elsewhere, which is why each one also goes to the log.

use ring::digest::{Context, SHA256};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::rows::{run, unsigned};

/// What stands before the first entry.
const BEGINNING: [u8; 32] = [0; 32];

/// Something that was done or tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// The name of the token.
    pub user: String,
    /// `apply`, `delete`, `upload`, `trust`, `revoke` or `readmit`.
    pub action: &'static str,
    /// To what.
    pub object: String,
    /// `done`, `refused` or `denied`.
    pub outcome: &'static str,
    /// More, for a person.
    pub detail: String,
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Its number, from 1.
    pub seq: u64,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// The name of the token.
    pub user: String,
    /// `apply`, `delete`, `upload`, `trust`, `revoke` or `readmit`.
    pub action: String,
    /// To what.
    pub object: String,
    /// `done`, `refused` or `denied`.
    pub outcome: String,
    /// More, for a person.
    pub detail: String,
    /// SHA-256 over the hash before it and all of the above, hexadecimal.
    pub hash: String,
}

/// Adds an entry; returns its number and hash.
pub(super) fn append(db: &Connection, draft: &Draft) -> Result<(u64, String), rusqlite::Error> {
    let last = db
        .prepare_cached("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")?
        .query_row([], |row| Ok((unsigned(row, 0)?, row.get::<_, Vec<u8>>(1)?)))
        .optional()?;
    let (before, previous) = last.unwrap_or((0, BEGINNING.to_vec()));
    let entry = AuditEntry {
        seq: before + 1,
        at_ms: draft.at_ms,
        user: draft.user.clone(),
        action: draft.action.to_owned(),
        object: draft.object.clone(),
        outcome: draft.outcome.to_owned(),
        detail: draft.detail.clone(),
        hash: String::new(),
    };
    let hash = hash(&previous, &entry);
    run(
        db,
        "INSERT INTO audit (seq, at_ms, user, action, object, outcome, detail, hash)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            entry.seq.cast_signed(),
            entry.at_ms.cast_signed(),
            entry.user,
            entry.action,
            entry.object,
            entry.outcome,
            entry.detail,
            hash
        ],
    )?;
    Ok((entry.seq, hex(&hash)))
}

/// Every field with its length before it, so that no two entries have the same bytes.
fn hash(previous: &[u8], entry: &AuditEntry) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(previous);
    context.update(&entry.seq.to_be_bytes());
    context.update(&entry.at_ms.to_be_bytes());
    for field in [&entry.user, &entry.action, &entry.object, &entry.outcome, &entry.detail] {
        context.update(&(field.len() as u64).to_be_bytes());
        context.update(field.as_bytes());
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

const COLUMNS: &str = "seq, at_ms, user, action, object, outcome, detail, hash";

fn entry(row: &Row<'_>) -> Result<(AuditEntry, Vec<u8>), rusqlite::Error> {
    let stored: Vec<u8> = row.get(7)?;
    let entry = AuditEntry {
        seq: unsigned(row, 0)?,
        at_ms: unsigned(row, 1)?,
        user: row.get(2)?,
        action: row.get(3)?,
        object: row.get(4)?,
        outcome: row.get(5)?,
        detail: row.get(6)?,
        hash: hex(&stored),
    };
    Ok((entry, stored))
}

/// The newest entries, newest first.
pub(super) fn read(db: &Connection, limit: u32) -> Result<Vec<AuditEntry>, rusqlite::Error> {
    let mut statement = db.prepare_cached(&format!("SELECT {COLUMNS} FROM audit ORDER BY seq DESC LIMIT ?1"))?;
    let rows = statement.query_map(params![limit], |row| entry(row).map(|(e, _)| e))?;
    rows.collect()
}

/// Walks the whole chain; the number of the first entry that does not fit, if there is one.
///
/// # Errors
/// When it cannot be read.
pub fn verify(db: &Connection) -> Result<Option<u64>, rusqlite::Error> {
    let mut statement = db.prepare(&format!("SELECT {COLUMNS} FROM audit ORDER BY seq"))?;
    let mut rows = statement.query([])?;
    let (mut expected, mut previous) = (1, BEGINNING.to_vec());
    while let Some(row) = rows.next()? {
        let (entry, stored) = entry(row)?;
        if entry.seq != expected || hash(&previous, &entry)[..] != stored[..] {
            return Ok(Some(expected));
        }
        (expected, previous) = (expected + 1, stored);
    }
    Ok(None)
}
