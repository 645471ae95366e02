//! Between the core's changes and rows.

use cnova_hub_core::{CompileKey, Op, Stored, StoredApp, StoredEntry, StoredProvenance};
use cnova_shared::hop::Position;
use cnova_shared::ids::{Digest, Name, NodeId};
use cnova_shared::tree::TreeOp;
use cnova_shared::wire::{self, v1};
use rusqlite::{Connection, Row, params};

use super::{attestation, enrolment, history, secrets, systems, trust};

const EPOCH: &str = "epoch";
const TRUST_SINCE: &str = "trust-since";

/// A row that this program cannot have written, or cannot write.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// SQLite said no.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// A value that does not have its form.
    #[error("table {table}: {detail}")]
    Value {
        /// Which table.
        table: &'static str,
        /// What is wrong with the value.
        detail: String,
    },
}

impl From<RowError> for rusqlite::Error {
    fn from(error: RowError) -> Self {
        match error {
            RowError::Sqlite(error) => error,
            value => rusqlite::Error::ToSqlConversionFailure(Box::new(value)),
        }
    }
}

pub(super) fn bad(table: &'static str, detail: impl std::fmt::Display) -> RowError {
    RowError::Value {
        table,
        detail: detail.to_string(),
    }
}

/// Makes one change. The caller holds the transaction.
///
/// # Errors
/// [`RowError`]; the transaction must then be rolled back.
#[allow(clippy::too_many_lines, reason = "one change after the other")]
pub fn apply(db: &Connection, op: &Op) -> Result<(), RowError> {
    match op {
        Op::Tree(op) => apply_tree(db, op)?,
        Op::Epoch(epoch) => put_number(db, EPOCH, *epoch)?,
        Op::Trust(op) => trust::apply(db, op)?,
        Op::TrustSince(at_ms) => put_number(db, TRUST_SINCE, *at_ms)?,
        Op::PutApp { name, app } => put_app(db, name, app)?,
        Op::DeleteApp { name, generation } => {
            run(db, "DELETE FROM application WHERE name = ?1", params![name.as_str()])?;
            run(
                db,
                "INSERT OR REPLACE INTO deleted_application (name, generation) VALUES (?1, ?2)",
                params![name.as_str(), generation.cast_signed()],
            )?;
        }
        Op::PutArtifact { digest, size } => run(
            db,
            "INSERT OR REPLACE INTO artifact (digest, size) VALUES (?1, ?2)",
            params![digest.to_string(), size.cast_signed()],
        )?,
        Op::PutCompiled { key, artifact } => run(
            db,
            "INSERT OR REPLACE INTO compiled (source, target, engine, digest, size) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                key.source.to_string(),
                key.target,
                key.engine,
                artifact.digest.to_string(),
                artifact.size.cast_signed()
            ],
        )?,
        Op::DropArtifact { digest } => {
            let digest = digest.to_string();
            run(db, "DELETE FROM artifact WHERE digest = ?1", params![digest])?;
            run(db, "DELETE FROM compiled WHERE digest = ?1", params![digest])?;
            run(
                db,
                "DELETE FROM provenance WHERE digest = ?1 OR subject = ?1",
                params![digest],
            )?;
        }
        Op::Enrol(op) => enrolment::apply(db, op)?,
        Op::PutSecret { name, secret } => secrets::put(db, name, secret)?,
        Op::DropSecret { name, version } => secrets::drop_one(db, name, *version)?,
        Op::PutSystem { name, system } => systems::put(db, name, system)?,
        Op::DropSystem(name) => systems::drop_one(db, name)?,
        Op::PutVerdict { node, verdict } => attestation::put_verdict(db, node, verdict)?,
        Op::PutEar { node, bytes } => attestation::put_ear(db, node, bytes)?,
        Op::PutReferences(references) => attestation::put_references(db, references)?,
        Op::PutProvenance { subject, stored } => run(
            db,
            "INSERT OR IGNORE INTO provenance (subject, digest, envelope) VALUES (?1, ?2, ?3)",
            params![subject.to_string(), stored.artifact.digest.to_string(), stored.envelope],
        )?,
        Op::DropProvenance { subject, envelope } => run(
            db,
            "DELETE FROM provenance WHERE subject = ?1 AND digest = ?2",
            params![subject.to_string(), envelope.to_string()],
        )?,
        Op::PutEntry { node, stored } => {
            put_entry(db, node, stored)?;
            history::append(db, node, stored)?;
        }
        Op::ClearEntries { node, retired } => {
            run(db, "DELETE FROM entry WHERE node = ?1", params![node.as_str()])?;
            run(
                db,
                "INSERT OR IGNORE INTO retired_stream (node, incarnation) VALUES (?1, ?2)",
                params![node.as_str(), retired.cast_signed()],
            )?;
        }
        Op::VoidEntry { node, key } => {
            let nothing = wire::encode(&v1::Body::Unknown).map_err(|e| bad("entry", e))?;
            run(
                db,
                "UPDATE entry SET body = ?3 WHERE node = ?1 AND key = ?2",
                params![node.as_str(), key, nothing],
            )?;
        }
    }
    Ok(())
}

pub(super) fn run(db: &Connection, sql: &str, params: impl rusqlite::Params) -> Result<(), rusqlite::Error> {
    db.prepare_cached(sql)?.execute(params).map(|_| ())
}

fn put_number(db: &Connection, name: &str, value: u64) -> Result<(), rusqlite::Error> {
    run(
        db,
        "INSERT INTO number (name, value) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = excluded.value",
        params![name, value.cast_signed()],
    )
}

fn apply_tree(db: &Connection, op: &TreeOp) -> Result<(), RowError> {
    match op {
        TreeOp::PutDescendant { node, via, hello } => run(
            db,
            "INSERT OR REPLACE INTO descendant (node, via, hello) VALUES (?1, ?2, ?3)",
            params![node.as_str(), via.as_str(), hello],
        )?,
        TreeOp::PutTwin { node, bytes } => run(
            db,
            "INSERT OR REPLACE INTO twin (node, bytes) VALUES (?1, ?2)",
            params![node.as_str(), bytes],
        )?,
        TreeOp::Reported {
            node,
            epoch,
            generation,
            digest,
        } => run(
            db,
            "INSERT OR REPLACE INTO reported (node, epoch, generation, digest) VALUES (?1, ?2, ?3, ?4)",
            params![
                node.as_str(),
                epoch.cast_signed(),
                generation.cast_signed(),
                digest.as_ref().map(ToString::to_string)
            ],
        )?,
        TreeOp::Received {
            child,
            stream,
            position,
        } => run(
            db,
            "INSERT OR REPLACE INTO received (child, stream, incarnation, seq) VALUES (?1, ?2, ?3, ?4)",
            params![
                child.as_str(),
                stream_name(*stream),
                position.incarnation.cast_signed(),
                position.seq.cast_signed()
            ],
        )?,
    }
    Ok(())
}

fn put_app(db: &Connection, name: &Name, app: &StoredApp) -> Result<(), RowError> {
    let placement = serde_json::to_string(&app.placement).map_err(|e| bad("application", e))?;
    run(
        db,
        "DELETE FROM deleted_application WHERE name = ?1",
        params![name.as_str()],
    )?;
    run(
        db,
        "INSERT OR REPLACE INTO application (name, generation, manifest, user, admitted_s, placement)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            name.as_str(),
            app.generation.cast_signed(),
            app.manifest,
            app.user,
            app.admitted_s.cast_signed(),
            placement
        ],
    )?;
    Ok(())
}

fn put_entry(db: &Connection, node: &NodeId, stored: &StoredEntry) -> Result<(), RowError> {
    let entry = &stored.entry;
    let body = wire::encode(&entry.body).map_err(|e| bad("entry", e))?;
    run(
        db,
        "INSERT OR REPLACE INTO entry (node, key, incarnation, seq, at_ms, received_ms, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            node.as_str(),
            entry.key,
            stored.incarnation.cast_signed(),
            entry.seq.cast_signed(),
            entry.at_ms.cast_signed(),
            stored.received_ms.cast_signed(),
            body
        ],
    )?;
    Ok(())
}

/// Reads everything.
///
/// # Errors
/// [`RowError`] when a row is not what this program writes: the file was damaged or changed.
pub fn load(db: &Connection) -> Result<Stored, RowError> {
    let mut stored = Stored::default();
    load_tree(db, &mut stored)?;
    load_artifacts(db, &mut stored)?;
    stored.enrolment = enrolment::load(db)?;
    attestation::load(db, &mut stored)?;
    secrets::load(db, &mut stored)?;
    systems::load(db, &mut stored)?;
    trust::load(db, &mut stored.trust)?;
    each(db, "SELECT name, value FROM number", |row| {
        match row.get::<_, String>(0)?.as_str() {
            EPOCH => stored.epoch = unsigned(row, 1)?,
            TRUST_SINCE => stored.trust_since_ms = unsigned(row, 1)?,
            _ => {}
        }
        Ok(())
    })?;
    each(
        db,
        "SELECT name, generation, manifest, user, admitted_s, placement FROM application",
        |row| {
            let placement: String = row.get(5)?;
            let app = StoredApp {
                generation: unsigned(row, 1)?,
                manifest: row.get(2)?,
                user: row.get(3)?,
                admitted_s: unsigned(row, 4)?,
                placement: serde_json::from_str(&placement).map_err(|e| bad("application", e))?,
            };
            stored.apps.insert(name(row, 0, "application")?, app);
            Ok(())
        },
    )?;
    each(db, "SELECT name, generation FROM deleted_application", |row| {
        stored
            .deleted
            .insert(name(row, 0, "deleted_application")?, unsigned(row, 1)?);
        Ok(())
    })?;
    each(
        db,
        "SELECT node, key, incarnation, seq, at_ms, received_ms, body FROM entry",
        |row| {
            let body: Vec<u8> = row.get(6)?;
            let entry = v1::Entry {
                seq: unsigned(row, 3)?,
                key: row.get(1)?,
                at_ms: unsigned(row, 4)?,
                body: wire::decode(&body).map_err(|e| bad("entry", e))?,
            };
            let held = StoredEntry {
                incarnation: unsigned(row, 2)?,
                received_ms: unsigned(row, 5)?,
                entry,
            };
            let of_node = stored.entries.entry(node(row, 0, "entry")?).or_default();
            of_node.insert(held.entry.key.clone(), held);
            Ok(())
        },
    )?;
    each(db, "SELECT node, incarnation FROM retired_stream", |row| {
        let of_node = stored.retired.entry(node(row, 0, "retired stream")?).or_default();
        of_node.insert(unsigned(row, 1)?);
        Ok(())
    })?;
    Ok(stored)
}

fn load_tree(db: &Connection, stored: &mut Stored) -> Result<(), RowError> {
    let tree = &mut stored.tree;
    each(db, "SELECT node, via, hello FROM descendant", |row| {
        tree.descendants
            .insert(node(row, 0, "descendant")?, (node(row, 1, "descendant")?, row.get(2)?));
        Ok(())
    })?;
    each(db, "SELECT node, bytes FROM twin", |row| {
        tree.twins.insert(node(row, 0, "twin")?, row.get(1)?);
        Ok(())
    })?;
    each(db, "SELECT node, epoch, generation, digest FROM reported", |row| {
        let digest: Option<String> = row.get(3)?;
        let digest = digest.map(|d| d.parse().map_err(|e| bad("reported", e))).transpose()?;
        tree.reported.insert(
            node(row, 0, "reported")?,
            (unsigned(row, 1)?, unsigned(row, 2)?, digest),
        );
        Ok(())
    })?;
    each(db, "SELECT child, stream, incarnation, seq FROM received", |row| {
        let name: String = row.get(1)?;
        let stream = stream_of(&name).ok_or_else(|| bad("received", format!("stream {name:?}")))?;
        let position = Position {
            incarnation: unsigned(row, 2)?,
            seq: unsigned(row, 3)?,
        };
        tree.received.insert((node(row, 0, "received")?, stream), position);
        Ok(())
    })
}

fn load_artifacts(db: &Connection, stored: &mut Stored) -> Result<(), RowError> {
    each(db, "SELECT digest, size FROM artifact", |row| {
        stored.artifacts.insert(digest(row, 0, "artifact")?, unsigned(row, 1)?);
        Ok(())
    })?;
    each(
        db,
        "SELECT subject, digest, envelope FROM provenance ORDER BY id",
        |row| {
            let envelope: Vec<u8> = row.get(2)?;
            let artifact = v1::Artifact {
                digest: digest(row, 1, "provenance")?,
                size: envelope.len() as u64,
            };
            let of_subject = stored.provenance.entry(digest(row, 0, "provenance")?).or_default();
            of_subject.push(StoredProvenance { artifact, envelope });
            Ok(())
        },
    )?;
    each(db, "SELECT source, target, engine, digest, size FROM compiled", |row| {
        let key = CompileKey {
            source: digest(row, 0, "compiled")?,
            target: row.get(1)?,
            engine: row.get(2)?,
        };
        let artifact = v1::Artifact {
            digest: digest(row, 3, "compiled")?,
            size: unsigned(row, 4)?,
        };
        stored.compiled.insert(key, artifact);
        Ok(())
    })
}

pub(super) fn each(
    db: &Connection,
    sql: &str,
    mut take: impl FnMut(&Row<'_>) -> Result<(), RowError>,
) -> Result<(), RowError> {
    let mut statement = db.prepare(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        take(row)?;
    }
    Ok(())
}

pub(super) fn node(row: &Row<'_>, column: usize, table: &'static str) -> Result<NodeId, RowError> {
    NodeId::new(row.get::<_, String>(column)?).map_err(|e| bad(table, e))
}

pub(super) fn name(row: &Row<'_>, column: usize, table: &'static str) -> Result<Name, RowError> {
    Name::new(row.get::<_, String>(column)?).map_err(|e| bad(table, e))
}

pub(super) fn digest(row: &Row<'_>, column: usize, table: &'static str) -> Result<Digest, RowError> {
    row.get::<_, String>(column)?.parse().map_err(|e| bad(table, e))
}

pub(super) fn unsigned(row: &Row<'_>, column: usize) -> Result<u64, rusqlite::Error> {
    row.get::<_, i64>(column).map(i64::cast_unsigned)
}

fn stream_name(stream: v1::Stream) -> &'static str {
    match stream {
        v1::Stream::Report => "report",
        v1::Stream::Relay => "relay",
    }
}

fn stream_of(name: &str) -> Option<v1::Stream> {
    [v1::Stream::Report, v1::Stream::Relay]
        .into_iter()
        .find(|s| stream_name(*s) == name)
}
