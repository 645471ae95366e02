//! What nodes said, one row per entry of their streams, bounded per node.

use cnova_hub_core::StoredEntry;
use cnova_shared::ids::NodeId;
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use super::rows::{RowError, run, unsigned};

/// Entries kept for one node; the oldest are dropped.
pub const HISTORY_PER_NODE: u64 = 10_000;
/// A node is only looked at again after this many more, because counting costs more than writing.
pub const HISTORY_SLACK: u64 = 500;

/// One entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The life of the node's stream.
    pub incarnation: u64,
    /// Its place in the stream.
    pub seq: u64,
    /// The subject.
    pub key: String,
    /// When it happened, milliseconds since 1970 by the node's clock.
    pub at_ms: u64,
    /// When it came, milliseconds since 1970 by the hub's clock.
    pub received_ms: u64,
    /// What happened.
    pub body: serde_json::Value,
}

/// Adds an entry, once.
pub(super) fn append(db: &Connection, node: &NodeId, stored: &StoredEntry) -> Result<(), RowError> {
    let entry = &stored.entry;
    let body = serde_json::to_string(&entry.body).map_err(|e| RowError::Value {
        table: "history",
        detail: e.to_string(),
    })?;
    run(
        db,
        "INSERT INTO history (node, incarnation, seq, key, at_ms, received_ms, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT DO NOTHING",
        params![
            node.as_str(),
            stored.incarnation.cast_signed(),
            entry.seq.cast_signed(),
            entry.key,
            entry.at_ms.cast_signed(),
            stored.received_ms.cast_signed(),
            body
        ],
    )?;
    Ok(())
}

/// Drops what is too old of one node.
pub(super) fn trim(db: &Connection, node: &NodeId) -> Result<(), rusqlite::Error> {
    run(
        db,
        "DELETE FROM history WHERE node = ?1 AND id <=
         (SELECT id FROM history WHERE node = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        params![node.as_str(), HISTORY_PER_NODE.cast_signed()],
    )
}

/// The newest entries of a node, newest first.
pub(super) fn read(db: &Connection, node: &NodeId, limit: u32) -> Result<Vec<HistoryEntry>, rusqlite::Error> {
    let mut statement = db.prepare_cached(
        "SELECT incarnation, seq, key, at_ms, received_ms, body FROM history WHERE node = ?1 ORDER BY id DESC LIMIT ?2",
    )?;
    let rows = statement.query_map(params![node.as_str(), limit], |row| {
        let body: String = row.get(5)?;
        Ok(HistoryEntry {
            incarnation: unsigned(row, 0)?,
            seq: unsigned(row, 1)?,
            key: row.get(2)?,
            at_ms: unsigned(row, 3)?,
            received_ms: unsigned(row, 4)?,
            body: serde_json::from_str(&body).unwrap_or(serde_json::Value::String(body)),
        })
    })?;
    rows.collect()
}
