//! Operating systems for nodes.

use cnova_hub_core::Stored;
use cnova_hub_core::systems::StoredSystem;
use cnova_shared::ids::Name;
use cnova_shared::wire;
use rusqlite::{Connection, params};

use super::rows::{RowError, bad, each, name, run, unsigned};

pub(super) fn put(db: &Connection, called: &Name, system: &StoredSystem) -> Result<(), RowError> {
    let facts = wire::encode(&system.facts).map_err(|e| bad("system", e))?;
    run(
        db,
        "INSERT OR REPLACE INTO system (name, generation, manifest, user, admitted_s, facts) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            called.as_str(),
            system.generation.cast_signed(),
            system.manifest,
            system.user,
            system.admitted_s.cast_signed(),
            facts
        ],
    )?;
    Ok(())
}

pub(super) fn drop_one(db: &Connection, called: &Name) -> Result<(), RowError> {
    run(db, "DELETE FROM system WHERE name = ?1", params![called.as_str()])?;
    Ok(())
}

pub(super) fn load(db: &Connection, stored: &mut Stored) -> Result<(), RowError> {
    each(
        db,
        "SELECT name, generation, manifest, user, admitted_s, facts FROM system",
        |row| {
            let facts: Vec<u8> = row.get(5)?;
            let system = StoredSystem {
                generation: unsigned(row, 1)?,
                manifest: row.get(2)?,
                user: row.get(3)?,
                admitted_s: unsigned(row, 4)?,
                facts: wire::decode(&facts).map_err(|e| bad("system", e))?,
            };
            stored.systems.insert(name(row, 0, "system")?, system);
            Ok(())
        },
    )
}
