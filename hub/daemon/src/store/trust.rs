//! Documents about trust, byte for byte.

use cnova_shared::trust::{StoredTrust, TrustOp};
use cnova_shared::wire::v1::TrustItemKind;
use rusqlite::{Connection, params};

use super::rows::{RowError, bad, each, node, run, unsigned};

const BUNDLE: &str = "bundle";
const REVOCATIONS: &str = "revocations";
const DELEGATION: &str = "delegation";

pub(super) fn apply(db: &Connection, op: &TrustOp) -> Result<(), rusqlite::Error> {
    let (kind, name, version, bytes) = match op {
        TrustOp::PutBundle { version, bytes } => (BUNDLE, "", *version, bytes),
        TrustOp::PutRevocations(bytes) => (REVOCATIONS, "", 0, bytes),
        TrustOp::PutDelegation { gateway, bytes } => (DELEGATION, gateway.as_str(), 0, bytes),
        TrustOp::PutDocument { kind, bytes } => (kind.as_str(), "", 0, bytes),
    };
    run(
        db,
        "INSERT OR REPLACE INTO trust (kind, name, version, bytes) VALUES (?1, ?2, ?3, ?4)",
        params![kind, name, version.cast_signed(), bytes],
    )
}

pub(super) fn load(db: &Connection, trust: &mut StoredTrust) -> Result<(), RowError> {
    each(db, "SELECT kind, name, version, bytes FROM trust", |row| {
        let bytes = row.get(3)?;
        match row.get::<_, String>(0)?.as_str() {
            BUNDLE => drop(trust.bundles.insert(unsigned(row, 2)?, bytes)),
            REVOCATIONS => trust.revocations = Some(bytes),
            DELEGATION => drop(trust.delegations.insert(node(row, 1, "trust")?, bytes)),
            other => {
                let kind = TrustItemKind::named(other).ok_or_else(|| bad("trust", format!("kind {other:?}")))?;
                trust.documents.insert(kind, bytes);
            }
        }
        Ok(())
    })
}
