//! Documents about trust, byte for byte.

use cnova_shared::trust::{StoredTrust, TrustOp};
use rusqlite::{Connection, params};

use super::rows::{RowError, bad, each, run, unsigned};

pub(super) fn apply(db: &Connection, op: &TrustOp) -> Result<(), rusqlite::Error> {
    let (kind, name, version, bytes) = op.row();
    run(
        db,
        "INSERT OR REPLACE INTO trust (kind, name, version, bytes) VALUES (?1, ?2, ?3, ?4)",
        params![kind, name, version.cast_signed(), bytes],
    )
}

pub(super) fn load(db: &Connection, trust: &mut StoredTrust) -> Result<(), RowError> {
    each(db, "SELECT kind, name, version, bytes FROM trust", |row| {
        let (kind, name): (String, String) = (row.get(0)?, row.get(1)?);
        let put = trust.put_row(&kind, &name, unsigned(row, 2)?, row.get(3)?);
        put.map_err(|e| bad("trust", e))
    })
}
