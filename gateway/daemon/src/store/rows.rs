//! Between the core's changes and rows.

use std::collections::BTreeSet;

use cnova_gateway_core::spool::{Item, SpoolOp};
use cnova_gateway_core::{Op, Stored};
use cnova_shared::hop::Position;
use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::report::StreamOp;
use cnova_shared::tree::{StoredTree, TreeOp};
use cnova_shared::trust::{StoredTrust, TrustOp};
use cnova_shared::wire::{self, v1};
use rusqlite::{Connection, Error, Row, params};

const SPOOL: &str = "spool";
const STREAM: &str = "stream";
const TIME_FLOOR: &str = "time-floor";
const RESULT: &str = "result";
/// What a result is about: this gateway itself, by the hub or by the gateway above; the parent, likewise; a child, whose name follows, by the hub
/// or by this gateway; the verdict behind the last one.
const OWN: &str = "self";
const OWN_DELEGATED: &str = "self/gateway";
const PARENT: [&str; 2] = ["parent", "parent/gateway"];
const BY_HUB: &str = "child/hub/";
const BY_SELF: &str = "child/self/";
const VERDICT: &str = "verdict/";

/// A value that this program does not write, or cannot read.
#[derive(Debug, thiserror::Error)]
#[error("table {table}: {detail}")]
pub(crate) struct BadValue {
    table: &'static str,
    detail: String,
}

fn bad(table: &'static str, detail: impl std::fmt::Display) -> Error {
    let value = BadValue {
        table,
        detail: detail.to_string(),
    };
    Error::FromSqlConversionFailure(0, rusqlite::types::Type::Blob, Box::new(value))
}

/// Whether the file was read and what stands in it makes no sense.
#[must_use]
pub(crate) fn is_bad_value(error: &Error) -> bool {
    matches!(
        error,
        Error::FromSqlConversionFailure(..) | Error::InvalidColumnType(..) | Error::IntegralValueOutOfRange(..)
    )
}

/// Makes one change. The caller holds the transaction.
///
/// # Errors
/// [`rusqlite::Error`]; the transaction must then be rolled back.
pub(crate) fn apply(db: &Connection, op: &Op) -> Result<(), Error> {
    match op {
        Op::Tree(op) => apply_tree(db, op)?,
        Op::Spool(op) => apply_spool(db, op)?,
        Op::Stream(op) => apply_stream(db, op)?,
        Op::Trust(op) => apply_trust(db, op)?,
        Op::PutEar(bytes) => put_result(db, OWN, bytes)?,
        Op::PutDelegatedEar(bytes) => put_result(db, OWN_DELEGATED, bytes)?,
        Op::PutParentEar { is_delegated, bytes } => put_result(db, PARENT[usize::from(*is_delegated)], bytes)?,
        Op::PutResult { child, is_own, bytes } => {
            let by = if *is_own { BY_SELF } else { BY_HUB };
            put_result(db, &format!("{by}{child}"), bytes)?;
        }
        Op::PutVerdict { child, verdict } => {
            let bytes = wire::encode(verdict).map_err(|e| bad(RESULT, e))?;
            put_result(db, &format!("{VERDICT}{child}"), &bytes)?;
        }
        Op::TimeFloor(t) => run(
            db,
            "INSERT INTO number (name, value) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = excluded.value",
            params![TIME_FLOOR, t.cast_signed()],
        )?,
    }
    Ok(())
}

fn run(db: &Connection, sql: &str, params: impl rusqlite::Params) -> Result<(), Error> {
    db.prepare_cached(sql)?.execute(params).map(|_| ())
}

fn apply_tree(db: &Connection, op: &TreeOp) -> Result<(), Error> {
    match op {
        TreeOp::PutDescendant { node, via, hello } => run(
            db,
            "INSERT INTO descendant (node, via, hello) VALUES (?1, ?2, ?3)
             ON CONFLICT DO UPDATE SET via = excluded.via, hello = excluded.hello",
            params![node.as_str(), via.as_str(), hello],
        )?,
        TreeOp::PutTwin { node, bytes } => run(
            db,
            "INSERT INTO twin (node, bytes) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET bytes = excluded.bytes",
            params![node.as_str(), bytes],
        )?,
        TreeOp::Reported {
            node,
            epoch,
            generation,
            digest,
        } => run(
            db,
            "INSERT INTO reported (node, epoch, generation, digest) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO UPDATE SET epoch = excluded.epoch, generation = excluded.generation,
             digest = excluded.digest",
            params![
                node.as_str(),
                epoch.cast_signed(),
                generation.cast_signed(),
                digest.map(|d| d.0)
            ],
        )?,
        TreeOp::Received {
            child,
            stream,
            position,
        } => run(
            db,
            "INSERT INTO received (child, stream, incarnation, seq) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO UPDATE SET incarnation = excluded.incarnation, seq = excluded.seq",
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

fn apply_spool(db: &Connection, op: &SpoolOp) -> Result<(), Error> {
    match op {
        SpoolOp::Put { seq, item } => {
            let keys = serde_json::to_string(&item.keys).map_err(|e| bad(SPOOL, e))?;
            run(
                db,
                "INSERT INTO spool (seq, node, kind, keys, bytes) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO UPDATE SET node = excluded.node, kind = excluded.kind, keys = excluded.keys,
                 bytes = excluded.bytes",
                params![seq.cast_signed(), item.node.as_str(), item.kind, keys, item.bytes],
            )?;
        }
        SpoolOp::Delete(seq) => run(db, "DELETE FROM spool WHERE seq = ?1", params![seq.cast_signed()])?,
        SpoolOp::Acked(position) => put_position(db, SPOOL, *position)?,
    }
    Ok(())
}

fn apply_stream(db: &Connection, op: &StreamOp) -> Result<(), Error> {
    match op {
        // Replaced, not updated: the row's place then is behind all others, as in memory.
        StreamOp::Put(entry) => {
            let bytes = wire::encode(entry).map_err(|e| bad(STREAM, e))?;
            run(
                db,
                "INSERT OR REPLACE INTO stream (key, seq, entry) VALUES (?1, ?2, ?3)",
                params![entry.key, entry.seq.cast_signed(), bytes],
            )?;
        }
        StreamOp::Delete(key) => run(db, "DELETE FROM stream WHERE key = ?1", params![key])?,
        StreamOp::Acked(position) => put_position(db, STREAM, *position)?,
    }
    Ok(())
}

fn apply_trust(db: &Connection, op: &TrustOp) -> Result<(), Error> {
    let (kind, name, version, bytes) = op.row();
    run(
        db,
        "INSERT OR REPLACE INTO trust (kind, name, version, bytes) VALUES (?1, ?2, ?3, ?4)",
        params![kind, name, version.cast_signed(), bytes],
    )
}

fn load_trust(db: &Connection, trust: &mut StoredTrust) -> Result<(), Error> {
    each(db, "SELECT kind, name, version, bytes FROM trust", |row| {
        let (kind, name): (String, String) = (row.get(0)?, row.get(1)?);
        let put = trust.put_row(&kind, &name, unsigned(row, 2)?, row.get(3)?);
        put.map_err(|e| bad("trust", e))
    })
}

fn put_result(db: &Connection, about: &str, bytes: &[u8]) -> Result<(), Error> {
    let sql = "INSERT OR REPLACE INTO result (about, bytes) VALUES (?1, ?2)";
    run(db, sql, params![about, bytes])
}

fn load_results(db: &Connection, stored: &mut Stored) -> Result<(), Error> {
    each(db, "SELECT about, bytes FROM result", |row| {
        let (about, bytes): (String, Vec<u8>) = (row.get(0)?, row.get(1)?);
        let name = |name: &str| NodeId::new(name).map_err(|e| bad(RESULT, e));
        match about.as_str() {
            OWN => stored.ear = Some(bytes),
            OWN_DELEGATED => stored.delegated_ear = Some(bytes),
            other => {
                if let Some(which) = PARENT.iter().position(|p| *p == other) {
                    stored.parent_ears[which] = Some(bytes);
                } else if let Some(child) = other.strip_prefix(VERDICT) {
                    let verdict = wire::decode(&bytes).map_err(|e| bad(RESULT, e))?;
                    stored.verdicts.insert(name(child)?, verdict);
                } else if let Some(child) = other.strip_prefix(BY_HUB) {
                    stored.results.insert((name(child)?, false), bytes);
                } else if let Some(child) = other.strip_prefix(BY_SELF) {
                    stored.results.insert((name(child)?, true), bytes);
                } else {
                    return Err(bad(RESULT, format!("about {about:?}")));
                }
            }
        }
        Ok(())
    })
}

fn put_position(db: &Connection, name: &str, position: Position) -> Result<(), Error> {
    run(
        db,
        "INSERT INTO position (name, incarnation, seq) VALUES (?1, ?2, ?3)
         ON CONFLICT DO UPDATE SET incarnation = excluded.incarnation, seq = excluded.seq",
        params![name, position.incarnation.cast_signed(), position.seq.cast_signed()],
    )
}

/// Gives a store that has none its incarnations: what began anew must not be taken for what was before.
///
/// # Errors
/// [`rusqlite::Error`] when they cannot be written.
pub(crate) fn begin(db: &Connection, wall_ms: u64) -> Result<(), Error> {
    for name in [SPOOL, STREAM] {
        run(
            db,
            "INSERT INTO position (name, incarnation, seq) VALUES (?1, ?2, 0) ON CONFLICT DO NOTHING",
            params![name, wall_ms.max(1).cast_signed()],
        )?;
    }
    Ok(())
}

/// Reads everything.
///
/// # Errors
/// [`rusqlite::Error`] when a row is not what this program writes: the file was damaged or changed.
pub(crate) fn load(db: &Connection) -> Result<Stored, Error> {
    let mut stored = Stored::default();
    load_tree(db, &mut stored.tree)?;
    load_trust(db, &mut stored.trust)?;
    load_results(db, &mut stored)?;
    each(db, "SELECT seq, node, kind, keys, bytes FROM spool", |row| {
        let keys: String = row.get(3)?;
        let keys: BTreeSet<String> = serde_json::from_str(&keys).map_err(|e| bad(SPOOL, e))?;
        let item = Item {
            node: node(row, 1, SPOOL)?,
            kind: row.get(2)?,
            keys,
            bytes: row.get(4)?,
        };
        stored.spool.items.insert(unsigned(row, 0)?, item);
        Ok(())
    })?;
    each(db, "SELECT entry FROM stream ORDER BY place", |row| {
        let bytes: Vec<u8> = row.get(0)?;
        stored
            .stream
            .entries
            .push(wire::decode(&bytes).map_err(|e| bad(STREAM, e))?);
        Ok(())
    })?;
    each(db, "SELECT name, incarnation, seq FROM position", |row| {
        match row.get::<_, String>(0)?.as_str() {
            SPOOL => stored.spool.acked = position(row, 1)?,
            STREAM => stored.stream.acked = position(row, 1)?,
            other => return Err(bad("position", format!("name {other:?}"))),
        }
        Ok(())
    })?;
    each(db, "SELECT value FROM number WHERE name = 'time-floor'", |row| {
        stored.time_floor = unsigned(row, 0)?;
        Ok(())
    })?;
    Ok(stored)
}

fn load_tree(db: &Connection, tree: &mut StoredTree) -> Result<(), Error> {
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
        let digest = row.get::<_, Option<[u8; 32]>>(3)?.map(Digest);
        tree.reported.insert(
            node(row, 0, "reported")?,
            (unsigned(row, 1)?, unsigned(row, 2)?, digest),
        );
        Ok(())
    })?;
    each(db, "SELECT child, stream, incarnation, seq FROM received", |row| {
        let name: String = row.get(1)?;
        let stream = stream_of(&name).ok_or_else(|| bad("received", format!("stream {name:?}")))?;
        tree.received
            .insert((node(row, 0, "received")?, stream), position(row, 2)?);
        Ok(())
    })
}

fn each(db: &Connection, sql: &str, mut take: impl FnMut(&Row<'_>) -> Result<(), Error>) -> Result<(), Error> {
    let mut statement = db.prepare(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        take(row)?;
    }
    Ok(())
}

fn node(row: &Row<'_>, column: usize, table: &'static str) -> Result<NodeId, Error> {
    NodeId::new(row.get::<_, String>(column)?).map_err(|e| bad(table, e))
}

fn unsigned(row: &Row<'_>, column: usize) -> Result<u64, Error> {
    row.get::<_, i64>(column).map(i64::cast_unsigned)
}

fn position(row: &Row<'_>, column: usize) -> Result<Position, Error> {
    Ok(Position {
        incarnation: unsigned(row, column)?,
        seq: unsigned(row, column + 1)?,
    })
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
