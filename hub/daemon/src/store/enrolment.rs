//! Tokens, known TPMs and enrolled nodes.

use cnova_hub_core::enrol::{EnrolOp, KnownTpm, Pinned, StoredEnrolment, StoredToken};
use cnova_shared::certificate::Tier;
use cnova_shared::ids::{Digest, NodeId, SitePath};
use cnova_shared::wire;
use rusqlite::{Connection, Row, params};

use super::rows::{RowError, bad, digest, each, node, run, unsigned};

pub(super) fn apply(db: &Connection, op: &EnrolOp) -> Result<(), RowError> {
    match op {
        EnrolOp::PutToken { hash, token: t } => run(
            db,
            "INSERT OR REPLACE INTO enrolment_token (hash, site, name, expires_s, uses_left, made_by, made_s)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                hash.to_string(),
                t.site.to_string(),
                t.name.as_ref().map(ToString::to_string),
                t.expires_s.cast_signed(),
                t.uses_left,
                t.by,
                t.made_s.cast_signed()
            ],
        )?,
        EnrolOp::DropToken(hash) => run(
            db,
            "DELETE FROM enrolment_token WHERE hash = ?1",
            params![hash.to_string()],
        )?,
        EnrolOp::PutKnown { fingerprint, known: k } => run(
            db,
            "INSERT OR REPLACE INTO known_tpm (fingerprint, node, site, made_by, made_s) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                fingerprint.to_string(),
                k.node.as_str(),
                k.site.as_str(),
                k.by,
                k.made_s.cast_signed()
            ],
        )?,
        EnrolOp::DropKnown(fingerprint) => run(
            db,
            "DELETE FROM known_tpm WHERE fingerprint = ?1",
            params![fingerprint.to_string()],
        )?,
        EnrolOp::PutPinned { node, pinned } => put_pinned(db, node, pinned)?,
        EnrolOp::DropPinned(node) => run(db, "DELETE FROM enrolled_node WHERE node = ?1", params![node.as_str()])?,
    }
    Ok(())
}

fn put_pinned(db: &Connection, node: &NodeId, p: &Pinned) -> Result<(), RowError> {
    let key = wire::encode(&p.key).map_err(|e| bad("enrolled_node", e))?;
    run(
        db,
        "INSERT OR REPLACE INTO enrolled_node (node, site, tier, ek, ak, key, token, first_s, last_s, not_after_s)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        params![
            node.as_str(),
            p.site.as_str(),
            tier_name(p.tier),
            p.ek.map(|d| d.to_string()),
            p.ak,
            key,
            p.token.map(|d| d.to_string()),
            p.first_s.cast_signed(),
            p.last_s.cast_signed(),
            p.not_after_s.cast_signed()
        ],
    )?;
    Ok(())
}

pub(super) fn load(db: &Connection) -> Result<StoredEnrolment, RowError> {
    let mut stored = StoredEnrolment::default();
    let table = "enrolment_token";
    let all = "SELECT hash, site, name, expires_s, uses_left, made_by, made_s FROM enrolment_token";
    each(db, all, |row| {
        let (site, name): (String, Option<String>) = (row.get(1)?, row.get(2)?);
        let token = StoredToken {
            site: site.parse().map_err(|e| bad(table, e))?,
            name: name.map(|n| n.parse().map_err(|e| bad(table, e))).transpose()?,
            expires_s: unsigned(row, 3)?,
            uses_left: row.get(4)?,
            by: row.get(5)?,
            made_s: unsigned(row, 6)?,
        };
        stored.tokens.insert(digest(row, 0, table)?, token);
        Ok(())
    })?;
    let table = "known_tpm";
    let all = "SELECT fingerprint, node, site, made_by, made_s FROM known_tpm";
    each(db, all, |row| {
        let known = KnownTpm {
            node: node(row, 1, table)?,
            site: site(row, 2, table)?,
            by: row.get(3)?,
            made_s: unsigned(row, 4)?,
        };
        stored.known.insert(digest(row, 0, table)?, known);
        Ok(())
    })?;
    let table = "enrolled_node";
    let all = "SELECT node, site, tier, ek, ak, key, token, first_s, last_s, not_after_s FROM enrolled_node";
    each(db, all, |row| {
        let (tier, key): (String, Vec<u8>) = (row.get(2)?, row.get(5)?);
        let pinned = Pinned {
            site: site(row, 1, table)?,
            tier: tier_of(&tier).ok_or_else(|| bad(table, format!("tier {tier:?}")))?,
            ek: maybe_digest(row, 3, table)?,
            ak: row.get(4)?,
            key: wire::decode(&key).map_err(|e| bad(table, e))?,
            token: maybe_digest(row, 6, table)?,
            first_s: unsigned(row, 7)?,
            last_s: unsigned(row, 8)?,
            not_after_s: unsigned(row, 9)?,
        };
        stored.pinned.insert(node(row, 0, table)?, pinned);
        Ok(())
    })?;
    Ok(stored)
}

fn site(row: &Row<'_>, column: usize, table: &'static str) -> Result<SitePath, RowError> {
    SitePath::new(row.get::<_, String>(column)?).map_err(|e| bad(table, e))
}

fn maybe_digest(row: &Row<'_>, column: usize, table: &'static str) -> Result<Option<Digest>, RowError> {
    let text: Option<String> = row.get(column)?;
    text.map(|t| t.parse().map_err(|e| bad(table, e))).transpose()
}

fn tier_name(tier: Tier) -> &'static str {
    match tier {
        Tier::Soft => "soft",
        Tier::Tpm => "tpm",
    }
}

fn tier_of(name: &str) -> Option<Tier> {
    [Tier::Soft, Tier::Tpm].into_iter().find(|t| tier_name(*t) == name)
}
