//! The tables. What the gateway looks for or a person would ask for is a column; what others signed is a BLOB, byte for
//! byte.

use cnova_store::Schema;

/// A gateway's database; "CNGW" in ASCII.
pub(crate) const SCHEMA: Schema = Schema {
    application_id: 0x434e_4757,
    migrations: &[CREATE, TRUST, RESULT],
};

/// Attestation results.
const RESULT: &str = "CREATE TABLE result (about TEXT NOT NULL PRIMARY KEY, bytes BLOB NOT NULL) STRICT;";

/// Everything, for an empty database.
///
/// Unsigned 64-bit numbers are stored as the signed number with the same bits.
const CREATE: &str = "
CREATE TABLE descendant (
    node TEXT NOT NULL PRIMARY KEY,
    via TEXT NOT NULL,
    hello BLOB NOT NULL
) STRICT;
CREATE TABLE twin (
    node TEXT NOT NULL PRIMARY KEY,
    bytes BLOB NOT NULL
) STRICT;
CREATE TABLE reported (
    node TEXT NOT NULL PRIMARY KEY,
    epoch INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    digest BLOB
) STRICT, WITHOUT ROWID;
CREATE TABLE received (
    child TEXT NOT NULL,
    stream TEXT NOT NULL,
    incarnation INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (child, stream)
) STRICT, WITHOUT ROWID;
CREATE TABLE spool (
    seq INTEGER NOT NULL PRIMARY KEY,
    node TEXT NOT NULL,
    kind TEXT NOT NULL,
    keys TEXT NOT NULL,
    bytes BLOB NOT NULL
) STRICT;
CREATE TABLE stream (
    place INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    seq INTEGER NOT NULL,
    entry BLOB NOT NULL
) STRICT;
CREATE TABLE position (
    name TEXT NOT NULL PRIMARY KEY,
    incarnation INTEGER NOT NULL,
    seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE number (
    name TEXT NOT NULL PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// Documents about trust, as they were signed. `kind` is `bundle` (by version), `revocations` or `delegation` (by gateway).
const TRUST: &str = "
CREATE TABLE trust (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    bytes BLOB NOT NULL,
    PRIMARY KEY (kind, name, version)
) STRICT;
";
