//! What appraisals came to, the results, and the reference values.

use cnova_attestation::appraiser::Verdict;
use cnova_attestation::reference::References;
use cnova_hub_core::Stored;
use cnova_shared::ids::NodeId;
use cnova_shared::wire;
use rusqlite::{Connection, params};

use super::rows::{RowError, bad, each, node, run};

const REFERENCES: &str = "references";

pub(super) fn put_verdict(db: &Connection, about: &NodeId, verdict: &Verdict) -> Result<(), RowError> {
    let cbor = wire::encode(verdict).map_err(|e| bad("verdict", e))?;
    // The word is for whoever looks with SQL.
    let status = serde_json::to_value(verdict.status).map_err(|e| bad("verdict", e))?;
    run(
        db,
        "INSERT OR REPLACE INTO verdict (node, status, at_s, cbor) VALUES (?1, ?2, ?3, ?4)",
        params![
            about.as_str(),
            status.as_str().unwrap_or_default(),
            verdict.at_s.cast_signed(),
            cbor
        ],
    )?;
    Ok(())
}

pub(super) fn put_ear(db: &Connection, about: &NodeId, bytes: &[u8]) -> Result<(), RowError> {
    run(
        db,
        "INSERT OR REPLACE INTO ear (node, bytes) VALUES (?1, ?2)",
        params![about.as_str(), bytes],
    )?;
    Ok(())
}

pub(super) fn put_references(db: &Connection, references: &References) -> Result<(), RowError> {
    let cbor = wire::encode(references).map_err(|e| bad("document", e))?;
    run(
        db,
        "INSERT OR REPLACE INTO document (name, cbor) VALUES (?1, ?2)",
        params![REFERENCES, cbor],
    )?;
    Ok(())
}

pub(super) fn load(db: &Connection, stored: &mut Stored) -> Result<(), RowError> {
    each(db, "SELECT node, cbor FROM verdict", |row| {
        let cbor: Vec<u8> = row.get(1)?;
        let verdict = wire::decode(&cbor).map_err(|e| bad("verdict", e))?;
        stored.verdicts.insert(node(row, 0, "verdict")?, verdict);
        Ok(())
    })?;
    each(db, "SELECT node, bytes FROM ear", |row| {
        stored.ears.insert(node(row, 0, "ear")?, row.get(1)?);
        Ok(())
    })?;
    each(db, "SELECT cbor FROM document WHERE name = 'references'", |row| {
        let cbor: Vec<u8> = row.get(0)?;
        stored.references = wire::decode(&cbor).map_err(|e| bad("document", e))?;
        Ok(())
    })
}
