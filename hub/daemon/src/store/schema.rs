//! The tables. What the hub looks for or a person would ask for is a column; what others signed is a BLOB, byte for
//! byte. Unsigned 64-bit numbers are stored as the signed number with the same bits.

use cnova_store::Schema;

/// `cnhu`, so that another program's database is not taken for a hub's.
const APPLICATION_ID: i32 = 0x636e_6875;

/// The schema and how it came to be.
pub const SCHEMA: Schema = Schema {
    application_id: APPLICATION_ID,
    migrations: &[V1, V2, V3, V4, V5, V6],
};

const V1: &str = "
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
    digest TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE received (
    child TEXT NOT NULL,
    stream TEXT NOT NULL,
    incarnation INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (child, stream)
) STRICT, WITHOUT ROWID;
CREATE TABLE number (
    name TEXT NOT NULL PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE application (
    name TEXT NOT NULL PRIMARY KEY,
    generation INTEGER NOT NULL,
    manifest TEXT NOT NULL,
    user TEXT NOT NULL,
    admitted_s INTEGER NOT NULL,
    placement TEXT NOT NULL
) STRICT;
CREATE TABLE deleted_application (
    name TEXT NOT NULL PRIMARY KEY,
    generation INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE artifact (
    digest TEXT NOT NULL PRIMARY KEY,
    size INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE compiled (
    source TEXT NOT NULL,
    target TEXT NOT NULL,
    engine TEXT NOT NULL,
    digest TEXT NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (source, target, engine)
) STRICT, WITHOUT ROWID;
CREATE TABLE entry (
    node TEXT NOT NULL,
    key TEXT NOT NULL,
    incarnation INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    received_ms INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (node, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE retired_stream (
    node TEXT NOT NULL,
    incarnation INTEGER NOT NULL,
    PRIMARY KEY (node, incarnation)
) STRICT, WITHOUT ROWID;
CREATE TABLE history (
    id INTEGER PRIMARY KEY,
    node TEXT NOT NULL,
    incarnation INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    key TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    received_ms INTEGER NOT NULL,
    body TEXT NOT NULL,
    UNIQUE (node, incarnation, seq)
) STRICT;
CREATE INDEX history_of_node ON history (node, id);
CREATE TRIGGER history_is_append_only BEFORE UPDATE ON history
    BEGIN SELECT RAISE(ABORT, 'history is only appended to'); END;
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    user TEXT NOT NULL,
    action TEXT NOT NULL,
    object TEXT NOT NULL,
    outcome TEXT NOT NULL,
    detail TEXT NOT NULL,
    hash BLOB NOT NULL
) STRICT;
CREATE TRIGGER audit_is_never_changed BEFORE UPDATE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit log is only appended to'); END;
CREATE TRIGGER audit_is_never_deleted BEFORE DELETE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit log is only appended to'); END;
";

const V2: &str = "
CREATE TABLE enrolment_token (
    hash TEXT NOT NULL PRIMARY KEY,
    site TEXT NOT NULL,
    name TEXT,
    expires_s INTEGER NOT NULL,
    uses_left INTEGER NOT NULL,
    made_by TEXT NOT NULL,
    made_s INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE known_tpm (
    fingerprint TEXT NOT NULL PRIMARY KEY,
    node TEXT NOT NULL,
    site TEXT NOT NULL,
    made_by TEXT NOT NULL,
    made_s INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE enrolled_node (
    node TEXT NOT NULL PRIMARY KEY,
    site TEXT NOT NULL,
    tier TEXT NOT NULL,
    ek TEXT,
    ak BLOB NOT NULL,
    key BLOB NOT NULL,
    token TEXT,
    first_s INTEGER NOT NULL,
    last_s INTEGER NOT NULL,
    not_after_s INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE verdict (
    node TEXT NOT NULL PRIMARY KEY,
    status TEXT NOT NULL,
    at_s INTEGER NOT NULL,
    cbor BLOB NOT NULL
) STRICT;
CREATE TABLE ear (
    node TEXT NOT NULL PRIMARY KEY,
    bytes BLOB NOT NULL
) STRICT;
CREATE TABLE document (
    name TEXT NOT NULL PRIMARY KEY,
    cbor BLOB NOT NULL
) STRICT;
";

/// Where artifacts are from. `id` keeps the order in which envelopes came.
const V3: &str = "
CREATE TABLE provenance (
    id INTEGER PRIMARY KEY,
    subject TEXT NOT NULL,
    digest TEXT NOT NULL,
    envelope BLOB NOT NULL,
    UNIQUE (subject, digest)
) STRICT;
";

/// Documents about trust, as they were signed. `kind` is `bundle` (by version), `revocations` or `delegation` (by gateway).
const V4: &str = "
CREATE TABLE trust (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    bytes BLOB NOT NULL,
    PRIMARY KEY (kind, name, version)
) STRICT;
";

/// Secrets. `locked` is encrypted under the hub's key for secrets, `tag` is a keyed digest of the value, `allow` is JSON.
const V5: &str = "
CREATE TABLE secret (
    name TEXT NOT NULL PRIMARY KEY,
    version INTEGER NOT NULL,
    locked BLOB NOT NULL,
    tag BLOB NOT NULL,
    is_text INTEGER NOT NULL,
    allow TEXT NOT NULL,
    set_by TEXT NOT NULL,
    set_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE removed_secret (
    name TEXT NOT NULL PRIMARY KEY,
    version INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// Operating systems for nodes. `facts` is what was found in the bundle.
const V6: &str = "
CREATE TABLE system (
    name TEXT NOT NULL PRIMARY KEY,
    generation INTEGER NOT NULL,
    manifest TEXT NOT NULL,
    user TEXT NOT NULL,
    admitted_s INTEGER NOT NULL,
    facts BLOB NOT NULL
) STRICT;
";
