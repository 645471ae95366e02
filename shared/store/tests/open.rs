//! Opening databases: good ones, damaged ones, foreign ones, full disks, folders that cannot be written.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use cnova_store::{CallError, OnCorrupt, OpenError, Owner, SET_ASIDE_KEPT, Schema, open};
use rusqlite::Connection;

const FIRST: &str = "CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB) STRICT";
const SECOND: &str = "CREATE TABLE u (k); INSERT INTO u VALUES (7)";
const SCHEMA: Schema = Schema {
    application_id: 0x1234,
    migrations: &[FIRST],
};
const MAX: u64 = 8 << 20;

fn db(dir: &Path) -> PathBuf {
    dir.join("x.db")
}

fn fill(path: &Path, rows: i64) {
    let c = open(path, &SCHEMA, OnCorrupt::Refuse, MAX).unwrap().connection;
    for k in 0..rows {
        c.execute("INSERT INTO t VALUES (?1, randomblob(900))", [k]).unwrap();
    }
}

fn count(c: &Connection) -> i64 {
    c.query_row("SELECT count(*) FROM t", [], |r| r.get(0)).unwrap()
}

#[test]
fn what_was_written_is_there_again_with_the_right_settings() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(&db(dir.path()), &SCHEMA, OnCorrupt::Refuse, MAX).unwrap();
    assert!(first.is_new && first.set_aside.is_none());
    drop(first);
    fill(&db(dir.path()), 20);
    let again = open(&db(dir.path()), &SCHEMA, OnCorrupt::Refuse, MAX).unwrap();
    assert!(!again.is_new);
    assert_eq!(count(&again.connection), 20);
    for (pragma, wanted) in [
        ("journal_mode", "wal"),
        ("synchronous", "2"),
        ("foreign_keys", "1"),
        ("user_version", "1"),
    ] {
        let found: rusqlite::types::Value = again.connection.pragma_query_value(None, pragma, |r| r.get(0)).unwrap();
        let found = match found {
            rusqlite::types::Value::Integer(i) => i.to_string(),
            rusqlite::types::Value::Text(t) => t,
            other => panic!("{other:?}"),
        };
        assert_eq!(found, wanted, "{pragma}");
    }
}

/// A way of damaging a database.
type Damage = (&'static str, fn(&Path));

fn damages() -> Vec<Damage> {
    vec![
        ("not a database", |p| fs::write(p, vec![0xab; 20_000]).unwrap()),
        ("text", |p| fs::write(p, "hello").unwrap()),
        ("cut", |p| {
            fs::File::options().write(true).open(p).unwrap().set_len(9_000).unwrap()
        }),
        ("a page of noise", |p| {
            let mut bytes = fs::read(p).unwrap();
            bytes[8192..12_288].fill(0x5a);
            fs::write(p, bytes).unwrap();
        }),
        ("another program's", |p| {
            fs::remove_file(p).unwrap();
            Connection::open(p)
                .unwrap()
                .execute_batch("CREATE TABLE other (x)")
                .unwrap();
        }),
    ]
}

#[test]
fn a_cache_that_is_damaged_is_set_aside() {
    for (what, damage) in damages() {
        let dir = tempfile::tempdir().unwrap();
        let path = db(dir.path());
        fill(&path, 100);
        damage(&path);
        let opened = open(&path, &SCHEMA, OnCorrupt::SetAside, MAX).unwrap();
        let aside = opened.set_aside.unwrap_or_else(|| panic!("{what}: not noticed"));
        assert_eq!(aside.path, dir.path().join("x.db.corrupt-1"), "{what}");
        assert!(aside.path.exists() && !aside.reason.is_empty(), "{what}");
        assert_eq!(count(&opened.connection), 0, "{what}");
    }
}

#[test]
fn what_must_not_be_lost_is_refused_and_left_alone() {
    for (what, damage) in damages() {
        let dir = tempfile::tempdir().unwrap();
        let path = db(dir.path());
        fill(&path, 100);
        damage(&path);
        let before = fs::read(&path).unwrap();
        let error = open(&path, &SCHEMA, OnCorrupt::Refuse, MAX).unwrap_err();
        assert!(matches!(error, OpenError::Corrupt { .. }), "{what}: {error}");
        let text = error.to_string();
        assert!(text.contains("x.db") && text.contains("backup"), "{text}");
        assert_eq!(fs::read(&path).unwrap(), before, "{what}");
    }
}

#[test]
fn few_of_those_set_aside_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = db(dir.path());
    for _ in 0..SET_ASIDE_KEPT + 2 {
        fs::write(&path, vec![1; 9000]).unwrap();
        open(&path, &SCHEMA, OnCorrupt::SetAside, MAX).unwrap();
    }
    let mut kept: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.contains("corrupt"))
        .collect();
    kept.sort();
    assert_eq!(kept, ["x.db.corrupt-3", "x.db.corrupt-4", "x.db.corrupt-5"]);
}

#[test]
fn a_newer_schema_is_refused_even_by_a_cache() {
    let dir = tempfile::tempdir().unwrap();
    let newer = Schema {
        migrations: &["CREATE TABLE t (k)", "CREATE TABLE u (k)"],
        ..SCHEMA
    };
    open(&db(dir.path()), &newer, OnCorrupt::SetAside, MAX).unwrap();
    let error = open(&db(dir.path()), &SCHEMA, OnCorrupt::SetAside, MAX).unwrap_err();
    assert!(
        matches!(error, OpenError::NewerSchema { found: 2, known: 1, .. }),
        "{error}"
    );
}

#[test]
fn migrations_go_on_where_they_ended() {
    let dir = tempfile::tempdir().unwrap();
    fill(&db(dir.path()), 3);
    let newer = Schema {
        migrations: &[FIRST, SECOND],
        ..SCHEMA
    };
    let c = open(&db(dir.path()), &newer, OnCorrupt::Refuse, MAX)
        .unwrap()
        .connection;
    assert_eq!(count(&c), 3);
    assert_eq!(c.query_row("SELECT k FROM u", [], |r| r.get::<_, i64>(0)).unwrap(), 7);
}

#[test]
fn a_folder_that_is_not_there_or_is_a_file_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let error = open(&dir.path().join("gone/x.db"), &SCHEMA, OnCorrupt::SetAside, MAX).unwrap_err();
    assert!(matches!(error, OpenError::NotWritable { .. }), "{error}");
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn a_folder_that_may_not_be_written_is_said() {
    if is_root() {
        // Root may write anywhere, except where nobody may.
        let Some(mount) = Mount::tmpfs("1m") else { return };
        mount.remount_read_only();
        let error = open(&db(&mount.path), &SCHEMA, OnCorrupt::SetAside, MAX).unwrap_err();
        assert!(matches!(error, OpenError::NotWritable { .. }), "{error}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).unwrap();
    let error = open(&db(dir.path()), &SCHEMA, OnCorrupt::SetAside, MAX).unwrap_err();
    assert!(matches!(error, OpenError::NotWritable { .. }), "{error}");
}

/// A small file system of its own; nothing, loudly, where the system gives none.
struct Mount {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Mount {
    fn tmpfs(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        fs::create_dir(&path).unwrap();
        let options = format!("size={size}");
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&path)
            .status();
        if !is_root() || !done.is_ok_and(|s| s.success()) {
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                b"SKIPPED: needs root and mount for a small file system\n",
            );
            return None;
        }
        Some(Self { _dir: dir, path })
    }

    fn remount_read_only(&self) {
        let done = Command::new("mount")
            .args(["-o", "remount,ro"])
            .arg(&self.path)
            .status()
            .unwrap();
        assert!(done.success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_said_and_passes() {
    let Some(mount) = Mount::tmpfs("2m") else { return };
    let path = db(&mount.path);
    let owner = Owner::spawn(open(&path, &SCHEMA, OnCorrupt::Refuse, MAX).unwrap().connection).unwrap();
    let ballast = mount.path.join("ballast");
    owner
        .write(|t| t.execute("INSERT INTO t VALUES (1, x'00')", []))
        .await
        .unwrap();
    let space = rustix::fs::statvfs(&mount.path).unwrap();
    let free = space.f_bavail * space.f_frsize;
    fs::write(&ballast, vec![0; usize::try_from(free).unwrap() - 100_000]).unwrap();
    let put =
        |k: i64| move |t: &rusqlite::Transaction<'_>| t.execute("INSERT INTO t VALUES (?1, zeroblob(300000))", [k]);
    let error = owner.write(put(2)).await.unwrap_err();
    assert!(matches!(error, CallError::Full(_)), "{error}");
    // Nothing was changed, and reading goes on.
    assert_eq!(owner.call(|c| Ok(count(c))).await.unwrap(), 1);
    // A second program, or this one after a restart, is told the same.
    fs::write(mount.path.join("rest"), vec![0; 200_000]).unwrap_err();
    let other = mount.path.join("other.db");
    let error = open(&other, &SCHEMA, OnCorrupt::SetAside, MAX).unwrap_err();
    assert!(matches!(error, OpenError::DiskFull { .. }), "{error}");
    fs::remove_file(ballast).unwrap();
    owner.write(put(3)).await.unwrap();
    assert_eq!(owner.call(|c| Ok(count(c))).await.unwrap(), 2);
}

#[tokio::test]
async fn the_bound_of_the_database_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(&db(dir.path()), &SCHEMA, OnCorrupt::Refuse, 1 << 20).unwrap();
    let owner = Owner::spawn(opened.connection).unwrap();
    let error = owner
        .write(|t| t.execute("INSERT INTO t VALUES (1, zeroblob(2000000))", []))
        .await
        .unwrap_err();
    assert!(matches!(error, CallError::Full(_)), "{error}");
    owner
        .write(|t| t.execute("INSERT INTO t VALUES (1, zeroblob(1000))", []))
        .await
        .unwrap();
}

#[tokio::test]
async fn writes_are_counted_and_failures_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(&db(dir.path()), &SCHEMA, OnCorrupt::Refuse, MAX).unwrap();
    let owner = Owner::spawn(opened.connection).unwrap();
    for k in 0..5 {
        owner
            .write(move |t| t.execute("INSERT INTO t VALUES (?1, x'00')", [k]))
            .await
            .unwrap();
    }
    assert_eq!(owner.counters().commits(), 5);
    let bytes = owner.counters().bytes();
    assert!((5 * 4096..10 * 4096).contains(&bytes), "{bytes}");
    owner.call(|c| Ok(count(c))).await.unwrap();
    assert_eq!(owner.counters().commits(), 5, "reading writes nothing");
    let half = owner.write(|t| {
        t.execute("INSERT INTO t VALUES (77, x'00')", [])?;
        t.execute("INSERT INTO t VALUES (1, x'00')", [])
    });
    assert!(matches!(half.await, Err(CallError::Sql(_))));
    assert_eq!(owner.call(|c| Ok(count(c))).await.unwrap(), 5);
}
