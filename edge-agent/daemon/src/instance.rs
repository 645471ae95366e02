//! The folders of instances: `run/<application>.<name>.<attempt>/`. Names hold no dots, so the name can be read back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cnova_shared::ids::{Digest, Name, WorkloadId};
use cnova_shared::wire::v1::HEALTH_INTERVAL_MS;
use serde::{Deserialize, Serialize};

/// Folders kept for each workload, the newest included: its log can be read after it was replaced.
pub const KEPT_PER_WORKLOAD: usize = 2;
const RECORD: &str = "instance.json";
/// Longest record that is read, in bytes.
const RECORD_BYTES_MAX: u64 = 4096;

/// One attempt at running one workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId {
    /// The workload.
    pub workload: WorkloadId,
    /// Which start of it.
    pub attempt: u32,
}

impl std::fmt::Display for InstanceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} attempt {}", self.workload, self.attempt)
    }
}

/// What the agent remembers of an instance beside what the runtime writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The workload.
    pub workload: WorkloadId,
    /// Which start of it.
    pub attempt: u32,
    /// The digest of the specification it was started with.
    pub spec: Digest,
    /// The machine's boot in which it was started.
    pub boot_id: String,
    /// Milliseconds between two questions for its health: whoever adopts it may not know yet what is desired of it.
    #[serde(default = "health_interval")]
    pub health_interval_ms: u64,
}

/// What a record of an older agent means.
fn health_interval() -> u64 {
    HEALTH_INTERVAL_MS
}

/// The folder of an instance.
#[must_use]
pub fn folder(run_dir: &Path, id: &InstanceId) -> PathBuf {
    let WorkloadId { application, name } = &id.workload;
    run_dir.join(format!("{application}.{name}.{}", id.attempt))
}

/// The instance that a folder's name names.
#[must_use]
pub fn parse_folder(name: &str) -> Option<InstanceId> {
    let mut parts = name.split('.');
    let application = Name::new(parts.next()?).ok()?;
    let name = Name::new(parts.next()?).ok()?;
    let attempt = parts.next()?.parse().ok()?;
    parts.next().is_none().then_some(InstanceId {
        workload: WorkloadId { application, name },
        attempt,
    })
}

/// All instance folders, oldest attempt first.
///
/// # Errors
/// When the folder cannot be read.
pub fn list(run_dir: &Path) -> io::Result<Vec<(InstanceId, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(run_dir)? {
        let entry = entry?;
        match entry.file_name().to_str().and_then(parse_folder) {
            Some(id) => found.push((id, entry.path())),
            None => tracing::warn!(path = %entry.path().display(), "not an instance's folder; ignored"),
        }
    }
    found.sort();
    Ok(found)
}

/// Writes the record. It is not forced to the disk: it only says what a process of this boot is, and after a power cut
/// there is none.
///
/// # Errors
/// When it cannot be written.
pub fn write_record(folder: &Path, record: &Record) -> io::Result<()> {
    let draft = folder.join(".instance.json.tmp");
    fs::write(&draft, serde_json::to_vec(record).map_err(io::Error::other)?)?;
    fs::rename(draft, folder.join(RECORD))
}

/// The record, if it is there and whole.
#[must_use]
pub fn read_record(folder: &Path) -> Option<Record> {
    let path = folder.join(RECORD);
    if fs::metadata(&path).ok()?.len() > RECORD_BYTES_MAX {
        return None;
    }
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Removes the folders of `workload` for which `may_go` holds, except the newest ones.
pub fn prune(run_dir: &Path, workload: &WorkloadId, keep: usize, may_go: impl Fn(&InstanceId) -> bool) {
    let mut mine: Vec<_> = match list(run_dir) {
        Ok(all) => all.into_iter().filter(|(id, _)| id.workload == *workload).collect(),
        Err(error) => return tracing::warn!(%error, "cannot look for old instances"),
    };
    mine.truncate(mine.len().saturating_sub(keep));
    for (id, path) in mine {
        if may_go(&id) {
            remove(&path);
        }
    }
}

/// Removes one folder; what cannot be removed is logged and tried again next time.
pub fn remove(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove the folder of an old instance");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str, attempt: u32) -> InstanceId {
        InstanceId {
            workload: text.parse().unwrap(),
            attempt,
        }
    }

    #[test]
    fn folder_names_are_read_back() {
        let path = folder(Path::new("/run"), &id("a-1/b-2", 7));
        assert_eq!(path, Path::new("/run/a-1.b-2.7"));
        assert_eq!(parse_folder("a-1.b-2.7"), Some(id("a-1/b-2", 7)));
        for bad in ["a", "a.b", "a.b.c", "a.b.1.2", "A.b.1", ".a.1", "a.b.-1"] {
            assert_eq!(parse_folder(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_newest_are_kept_by_number_not_by_text() {
        let dir = tempfile::tempdir().unwrap();
        for attempt in [1, 2, 9, 10] {
            fs::create_dir(folder(dir.path(), &id("a/b", attempt))).unwrap();
        }
        fs::create_dir(folder(dir.path(), &id("a/c", 1))).unwrap();
        prune(dir.path(), &id("a/b", 0).workload, 2, |i| i.attempt != 1);
        let left: Vec<_> = list(dir.path()).unwrap().into_iter().map(|(i, _)| i).collect();
        assert_eq!(left, [id("a/b", 1), id("a/b", 9), id("a/b", 10), id("a/c", 1)]);
    }
}
