//! The ledger on disk: every change of one `Persist` in one transaction, and the image that the core starts from.

use std::path::{Path, PathBuf};

use cnova_agent_core::ledger::{Good, InstanceRow, Op, Phase, Stored};
use cnova_shared::hop::Position;
use cnova_shared::ids::{Digest, Name, WorkloadId};
use cnova_shared::report::{StoredStream, StreamOp};
use cnova_shared::trust::{StoredTrust, TrustOp};
use cnova_shared::wire;
use cnova_shared::wire::v1::Entry;
use cnova_store::{CallError, OnCorrupt, OpenError, Opened, Owner, Schema, SetAside};
use rusqlite::types::Type;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The largest that the database may grow: the largest twin and a full report stream, several times over.
pub const LEDGER_BYTES: u64 = 32 << 20;
/// Memory for pages of the database; it is written often and read once.
const CACHE_KIB: u32 = 256;

const SCHEMA: Schema = Schema {
    application_id: 0x636e_7661,
    migrations: &[
        "
        CREATE TABLE twin (id INTEGER PRIMARY KEY CHECK (id = 1), bytes BLOB NOT NULL) STRICT;
        CREATE TABLE number (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
        CREATE TABLE instance (
            application TEXT NOT NULL, name TEXT NOT NULL, attempt INTEGER NOT NULL, spec BLOB NOT NULL,
            failures INTEGER NOT NULL, phase TEXT NOT NULL, PRIMARY KEY (application, name)
        ) STRICT, WITHOUT ROWID;
        CREATE TABLE entry (key TEXT PRIMARY KEY, seq INTEGER NOT NULL, cbor BLOB NOT NULL) STRICT;
    ",
        "ALTER TABLE instance ADD COLUMN more BLOB;",
        "CREATE TABLE result (about TEXT PRIMARY KEY, bytes BLOB NOT NULL) STRICT;",
        "
        CREATE TABLE trust (
            kind TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, bytes BLOB NOT NULL,
            PRIMARY KEY (kind, name, version)
        ) STRICT;
    ",
    ],
};

const TIME_FLOOR: &str = "time-floor";
const INCARNATION: &str = "report-incarnation";
const ACKED: &str = "report-acked";
const COUNTER: &str = "tpm-counter";
const FLOOR_EPOCH: &str = "floor-epoch";
const FLOOR_GENERATION: &str = "floor-generation";
const OWN_EAR: &str = "self";
const PARENT_EAR: &str = "parent";
const DELEGATED_EAR: &str = "self/gateway";
const DELEGATED_PARENT_EAR: &str = "parent/gateway";
const PROBE: &str = "probe";
const BOX_KEY: &str = "box-key";
/// In the table of results: it must be readable by the system before as well, so its form is not another migration.
const SYSTEM: &str = "system";

/// Why the ledger was not opened.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// The database.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What is in it could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The database.
        path: PathBuf,
        /// What SQLite answered.
        source: rusqlite::Error,
    },
    /// No thread for it.
    #[error("no thread for the store: {0}")]
    Thread(#[source] std::io::Error),
}

/// The ledger, open.
#[derive(Clone, Debug)]
pub struct Ledger {
    owner: Owner,
}

impl Ledger {
    /// Opens the ledger; a corrupt one is set aside, because the parent has what it needs to begin anew. A new one begins
    /// its report stream with an incarnation made of `wall_ms`, which is above that of the one that was lost.
    ///
    /// # Errors
    /// [`LedgerError`] when it cannot be written at all.
    pub fn open(path: &Path, wall_ms: u64) -> Result<(Self, Option<SetAside>), LedgerError> {
        let opened = cnova_store::open(path, &SCHEMA, OnCorrupt::SetAside, LEDGER_BYTES)?;
        let (opened, unreadable) = match prepare(&opened, wall_ms).and_then(|()| load(&opened.connection)) {
            Ok(_) => (opened, None),
            Err(reason) if is_damage(&reason) => {
                // The pages are sound, but what they hold is not ours.
                drop(opened);
                let aside = cnova_store::set_aside(path, &reason.to_string())?;
                let opened = cnova_store::open(path, &SCHEMA, OnCorrupt::Refuse, LEDGER_BYTES)?;
                prepare(&opened, wall_ms).map_err(|source| LedgerError::Read {
                    path: path.to_owned(),
                    source,
                })?;
                (opened, Some(aside))
            }
            Err(source) => {
                return Err(LedgerError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let set_aside = unreadable.or(opened.set_aside);
        let owner = Owner::spawn(opened.connection).map_err(LedgerError::Thread)?;
        Ok((Self { owner }, set_aside))
    }

    /// Commits all of `ops`, or none.
    ///
    /// # Errors
    /// [`CallError`]; nothing was changed.
    pub async fn persist(&self, ops: Vec<Op>) -> Result<(), CallError> {
        self.owner
            .write(move |t| ops.iter().try_for_each(|op| apply(t, op)))
            .await
    }

    /// Everything in it.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn load(&self) -> Result<Stored, CallError> {
        self.owner.call(|c| load(c)).await
    }

    /// The node's key for secrets as it was put, encrypted.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn box_key(&self) -> Result<Option<Vec<u8>>, CallError> {
        self.owner.call(|c| result(c, BOX_KEY)).await
    }

    /// Keeps the node's key for secrets, encrypted by the caller.
    ///
    /// # Errors
    /// [`CallError`]; nothing was changed.
    pub async fn put_box_key(&self, locked: Vec<u8>) -> Result<(), CallError> {
        self.owner.write(move |t| put_result(t, BOX_KEY, &locked)).await
    }

    /// Whether it can be written again.
    ///
    /// # Errors
    /// [`CallError`] with the reason why not.
    pub async fn probe(&self) -> Result<(), CallError> {
        self.owner.write(|t| bump(t, PROBE)).await
    }

    /// Commits and bytes written since it was opened.
    #[must_use]
    pub fn counters(&self) -> &cnova_store::Counters {
        self.owner.counters()
    }
}

/// Reads a copy of a ledger that no agent uses.
///
/// # Errors
/// [`LedgerError::Read`].
pub fn read_copy(path: &Path) -> Result<Stored, LedgerError> {
    // A copy may have its log beside it, which is worked in when it is opened: that takes the right to write.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let stored = Connection::open_with_flags(path, flags).and_then(|c| load(&c));
    stored.map_err(|source| LedgerError::Read {
        path: path.to_owned(),
        source,
    })
}

fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::Error as E;
    matches!(
        error,
        E::FromSqlConversionFailure(..) | E::InvalidColumnType(..) | E::IntegralValueOutOfRange(..)
    )
}

fn prepare(opened: &Opened, wall_ms: u64) -> Result<(), rusqlite::Error> {
    opened
        .connection
        .pragma_update(None, "cache_size", -i64::from(CACHE_KIB))?;
    opened.connection.execute(
        "INSERT OR IGNORE INTO number (name, value) VALUES (?1, ?2)",
        params![INCARNATION, to_sql(wall_ms.max(1))],
    )?;
    Ok(())
}

// SQLite has no unsigned integers; all 64 bits survive the way there and back.
fn to_sql(value: u64) -> i64 {
    value.cast_signed()
}

fn from_sql(value: i64) -> u64 {
    value.cast_unsigned()
}

fn apply(t: &Transaction<'_>, op: &Op) -> Result<(), rusqlite::Error> {
    match op {
        Op::PutTwin(bytes) => {
            t.prepare_cached("INSERT OR REPLACE INTO twin (id, bytes) VALUES (1, ?1)")?
                .execute([bytes])?;
        }
        Op::TimeFloor(seconds) => put_number(t, TIME_FLOOR, *seconds)?,
        Op::PutInstance(row) => put_instance(t, row)?,
        Op::DeleteInstance(id) => {
            t.prepare_cached("DELETE FROM instance WHERE application = ?1 AND name = ?2")?
                .execute([id.application.as_str(), id.name.as_str()])?;
        }
        Op::Counter(value) => put_number(t, COUNTER, *value)?,
        Op::PutEar(bytes) => put_result(t, OWN_EAR, bytes)?,
        Op::PutParentEar(bytes) => put_result(t, PARENT_EAR, bytes)?,
        Op::PutDelegatedEar { of_parent: true, bytes } => put_result(t, DELEGATED_PARENT_EAR, bytes)?,
        Op::PutDelegatedEar { bytes, .. } => put_result(t, DELEGATED_EAR, bytes)?,
        Op::Floor { epoch, generation } => {
            put_number(t, FLOOR_EPOCH, *epoch)?;
            put_number(t, FLOOR_GENERATION, *generation)?;
        }
        Op::Stream(op) => apply_stream(t, op)?,
        Op::Trust(op) => apply_trust(t, op)?,
        Op::PutSystem(row) => {
            let cbor = wire::encode(row).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
            put_result(t, SYSTEM, &cbor)?;
        }
        Op::DropSystem => {
            t.prepare_cached("DELETE FROM result WHERE about = ?1")?
                .execute([SYSTEM])?;
        }
    }
    Ok(())
}

fn apply_stream(t: &Transaction<'_>, op: &StreamOp) -> Result<(), rusqlite::Error> {
    match op {
        StreamOp::Put(entry) => {
            let cbor = wire::encode(entry).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
            t.prepare_cached("INSERT OR REPLACE INTO entry (key, seq, cbor) VALUES (?1, ?2, ?3)")?
                .execute(params![entry.key, to_sql(entry.seq), cbor])?;
        }
        StreamOp::Delete(key) => {
            t.prepare_cached("DELETE FROM entry WHERE key = ?1")?.execute([key])?;
        }
        StreamOp::Acked(position) => {
            put_number(t, INCARNATION, position.incarnation)?;
            put_number(t, ACKED, position.seq)?;
        }
    }
    Ok(())
}

/// Documents as they were signed: bundles by version, delegations by gateway.
fn apply_trust(t: &Transaction<'_>, op: &TrustOp) -> Result<(), rusqlite::Error> {
    let (kind, name, version, bytes) = op.row();
    t.prepare_cached("INSERT OR REPLACE INTO trust (kind, name, version, bytes) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![kind, name, to_sql(version), bytes])?;
    Ok(())
}

fn load_trust(c: &Connection) -> Result<StoredTrust, rusqlite::Error> {
    let mut trust = StoredTrust::default();
    let mut statement = c.prepare("SELECT kind, name, version, bytes FROM trust")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (kind, name): (String, String) = (row.get(0)?, row.get(1)?);
        let put = trust.put_row(&kind, &name, from_sql(row.get(2)?), row.get(3)?);
        put.map_err(|e| damaged(0, Type::Text, e))?;
    }
    Ok(trust)
}

fn put_number(t: &Transaction<'_>, name: &str, value: u64) -> Result<(), rusqlite::Error> {
    t.prepare_cached("INSERT OR REPLACE INTO number (name, value) VALUES (?1, ?2)")?
        .execute(params![name, to_sql(value)])?;
    Ok(())
}

fn put_result(t: &Transaction<'_>, about: &str, bytes: &[u8]) -> Result<(), rusqlite::Error> {
    t.prepare_cached("INSERT OR REPLACE INTO result (about, bytes) VALUES (?1, ?2)")?
        .execute(params![about, bytes])?;
    Ok(())
}

fn result(c: &Connection, about: &str) -> Result<Option<Vec<u8>>, rusqlite::Error> {
    c.query_row("SELECT bytes FROM result WHERE about = ?1", [about], |r| r.get(0))
        .optional()
}

fn bump(t: &Transaction<'_>, name: &str) -> Result<(), rusqlite::Error> {
    let sql = "INSERT INTO number (name, value) VALUES (?1, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1";
    t.execute(sql, [name])?;
    Ok(())
}

/// What is known of an instance beyond what a person would look for with SQL.
#[derive(Default, Serialize, Deserialize)]
struct More {
    #[serde(default)]
    ok: bool,
    #[serde(default)]
    leases: Vec<String>,
    #[serde(default)]
    fired_s: u64,
    #[serde(default)]
    memory_bytes: u64,
    #[serde(default)]
    cpu_millis: u64,
    #[serde(default)]
    good: Option<Box<Good>>,
    #[serde(default)]
    bad: Option<Digest>,
    #[serde(default)]
    proved: Option<Digest>,
}

fn put_instance(t: &Transaction<'_>, row: &InstanceRow) -> Result<(), rusqlite::Error> {
    let more = More {
        ok: row.ok,
        leases: row.leases.clone(),
        fired_s: row.fired_s,
        memory_bytes: row.memory_bytes,
        cpu_millis: row.cpu_millis,
        good: row.good.clone(),
        bad: row.bad,
        proved: row.proved,
    };
    let more = wire::encode(&more).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
    t.prepare_cached(
        "INSERT OR REPLACE INTO instance (application, name, attempt, spec, failures, phase, more)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![
        row.id.application.as_str(),
        row.id.name.as_str(),
        row.attempt,
        row.spec.0.as_slice(),
        row.failures,
        phase_word(row.phase),
        more,
    ])?;
    Ok(())
}

fn phase_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Active => "active",
        Phase::Backoff => "backoff",
        Phase::Finished => "finished",
        Phase::CrashLoop => "crash-loop",
    }
}

fn phase_of(word: &str) -> Option<Phase> {
    [Phase::Active, Phase::Backoff, Phase::Finished, Phase::CrashLoop]
        .into_iter()
        .find(|p| phase_word(*p) == word)
}

fn load(c: &Connection) -> Result<Stored, rusqlite::Error> {
    let twin = c.query_row("SELECT bytes FROM twin", [], |r| r.get(0)).optional()?;
    let instances = c
        .prepare("SELECT application, name, attempt, spec, failures, phase, more FROM instance")?
        .query_map([], read_instance)?
        .collect::<Result<_, _>>()?;
    let entries = c
        .prepare("SELECT cbor FROM entry ORDER BY seq")?
        .query_map([], read_entry)?
        .collect::<Result<_, _>>()?;
    let acked = Position {
        incarnation: number(c, INCARNATION)?,
        seq: number(c, ACKED)?,
    };
    let system = result(c, SYSTEM)?.map(|cbor| wire::decode(&cbor).ok());
    Ok(Stored {
        twin,
        time_floor: number(c, TIME_FLOOR)?,
        counter: number(c, COUNTER)?,
        ear: result(c, OWN_EAR)?,
        parent_ear: result(c, PARENT_EAR)?,
        delegated_ear: result(c, DELEGATED_EAR)?,
        delegated_parent_ear: result(c, DELEGATED_PARENT_EAR)?,
        floor: (number(c, FLOOR_EPOCH)?, number(c, FLOOR_GENERATION)?),
        instances,
        stream: StoredStream { entries, acked },
        trust: load_trust(c)?,
        // Another version of the agent may have written what this one cannot read.
        system_unread: matches!(system, Some(None)),
        system: system.flatten(),
    })
}

fn number(c: &Connection, name: &str) -> Result<u64, rusqlite::Error> {
    let value = c
        .query_row("SELECT value FROM number WHERE name = ?1", [name], |r| r.get(0))
        .optional()?;
    Ok(from_sql(value.unwrap_or(0)))
}

fn damaged(column: usize, kind: Type, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, kind, error.into())
}

fn read_instance(row: &Row<'_>) -> Result<InstanceRow, rusqlite::Error> {
    let name = |column: usize| Name::new(row.get::<_, String>(column)?).map_err(|e| damaged(column, Type::Text, e));
    let word: String = row.get(5)?;
    let more = match row.get::<_, Option<Vec<u8>>>(6)? {
        Some(cbor) => wire::decode(&cbor).map_err(|e| damaged(6, Type::Blob, e))?,
        None => More::default(),
    };
    Ok(InstanceRow {
        id: WorkloadId {
            application: name(0)?,
            name: name(1)?,
        },
        attempt: row.get(2)?,
        spec: Digest(row.get(3)?),
        failures: row.get(4)?,
        phase: phase_of(&word).ok_or_else(|| damaged(5, Type::Text, format!("{word:?} is not a phase")))?,
        ok: more.ok,
        leases: more.leases,
        fired_s: more.fired_s,
        memory_bytes: more.memory_bytes,
        cpu_millis: more.cpu_millis,
        good: more.good,
        bad: more.bad,
        proved: more.proved,
    })
}

fn read_entry(row: &Row<'_>) -> Result<Entry, rusqlite::Error> {
    let cbor: Vec<u8> = row.get(0)?;
    wire::decode(&cbor).map_err(|e| damaged(0, Type::Blob, e))
}
