//! Secrets, their values locked, and the last versions of those that are no more.

use std::collections::BTreeSet;

use cnova_hub_core::Stored;
use cnova_hub_core::secrets::StoredSecret;
use cnova_shared::ids::Name;
use rusqlite::{Connection, params};

use super::rows::{RowError, bad, each, name, run, unsigned};

pub(super) fn put(db: &Connection, called: &Name, secret: &StoredSecret) -> Result<(), RowError> {
    let allow = serde_json::to_string(&secret.allow).map_err(|e| bad("secret", e))?;
    run(
        db,
        "DELETE FROM removed_secret WHERE name = ?1",
        params![called.as_str()],
    )?;
    run(
        db,
        "INSERT OR REPLACE INTO secret (name, version, locked, tag, is_text, allow, set_by, set_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            called.as_str(),
            secret.version.cast_signed(),
            secret.locked,
            secret.tag,
            secret.is_text,
            allow,
            secret.by,
            secret.set_ms.cast_signed()
        ],
    )?;
    Ok(())
}

pub(super) fn drop_one(db: &Connection, called: &Name, version: u64) -> Result<(), RowError> {
    run(db, "DELETE FROM secret WHERE name = ?1", params![called.as_str()])?;
    run(
        db,
        "INSERT OR REPLACE INTO removed_secret (name, version) VALUES (?1, ?2)",
        params![called.as_str(), version.cast_signed()],
    )?;
    Ok(())
}

pub(super) fn load(db: &Connection, stored: &mut Stored) -> Result<(), RowError> {
    let sql = "SELECT name, version, locked, tag, is_text, allow, set_by, set_ms FROM secret";
    each(db, sql, |row| {
        let allow: String = row.get(5)?;
        let allow: BTreeSet<_> = serde_json::from_str(&allow).map_err(|e| bad("secret", e))?;
        let secret = StoredSecret {
            version: unsigned(row, 1)?,
            locked: row.get(2)?,
            tag: row.get(3)?,
            is_text: row.get(4)?,
            allow,
            by: row.get(6)?,
            set_ms: unsigned(row, 7)?,
        };
        stored.secrets.insert(name(row, 0, "secret")?, secret);
        Ok(())
    })?;
    each(db, "SELECT name, version FROM removed_secret", |row| {
        let version = unsigned(row, 1)?;
        stored.removed_secrets.insert(name(row, 0, "removed_secret")?, version);
        Ok(())
    })
}
