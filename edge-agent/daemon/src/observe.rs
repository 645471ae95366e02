//! What is found on the machine when the core is made: instances that run, instances that ended unwatched, and remains.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cnova_agent_core::ledger::InstanceRow;
use cnova_agent_core::{Observed, ObservedState};
use cnova_ral::{Exit, ExitReason, State};
use cnova_shared::ids::WorkloadId;
use rustix::process::Signal;

use crate::instance::{self, InstanceId, Record};

/// A runtime that was being started when the agent died gets this long to end.
const ORPHAN_GRACE: Duration = Duration::from_millis(500);

/// A process that runs.
#[derive(Clone, Debug)]
pub(crate) struct Alive {
    pub(crate) id: InstanceId,
    pub(crate) dir: PathBuf,
    pub(crate) state: State,
    pub(crate) health_interval_ms: u64,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) observed: Vec<Observed>,
    pub(crate) alive: Vec<Alive>,
}

/// How an instance stands, by its files.
enum Standing {
    Alive(State),
    Ended {
        ok: bool,
        detail: String,
    },
    /// Nothing is held against it: the machine was restarted, or it was told to stop.
    Gone,
}

/// Looks at every instance's folder. Blocks; remains of starts that were cut short are ended here.
pub(crate) fn scan(run_dir: &Path, rows: &[InstanceRow]) -> std::io::Result<Found> {
    let boot_id = cnova_ral::boot_id()?;
    let newest: BTreeMap<&WorkloadId, u32> = rows.iter().map(|r| (&r.id, r.attempt)).collect();
    let mut found = Found::default();
    for (id, dir) in instance::list(run_dir)? {
        let Some(record) = instance::read_record(&dir).filter(|r| r.workload == id.workload && r.attempt == id.attempt)
        else {
            // A power cut came before it was written, so nothing of it can run.
            end_remains(&dir);
            instance::remove(&dir);
            continue;
        };
        let standing = stand(&dir, record.boot_id == boot_id);
        let known = newest.get(&id.workload).is_some_and(|attempt| id.attempt <= *attempt);
        if !known && !matches!(standing, Standing::Alive(_)) {
            // Of a workload that is gone, or of a ledger that was lost: its number would stand in the way of a new one.
            instance::remove(&dir);
            continue;
        }
        found.take(id, dir, &record, standing);
    }
    Ok(found)
}

impl Found {
    fn take(&mut self, id: InstanceId, dir: PathBuf, record: &Record, standing: Standing) {
        let state = match standing {
            Standing::Alive(state) => {
                let pid = state.pid;
                self.alive.push(Alive {
                    id: id.clone(),
                    dir,
                    state,
                    health_interval_ms: record.health_interval_ms,
                });
                ObservedState::Alive { pid }
            }
            Standing::Ended { ok, detail } => ObservedState::Exited { ok, detail },
            Standing::Gone => ObservedState::MachineRestarted,
        };
        self.observed.push(Observed {
            id: id.workload,
            attempt: id.attempt,
            spec: record.spec,
            state,
        });
    }
}

fn stand(dir: &Path, same_boot: bool) -> Standing {
    let state = cnova_ral::read_state(dir).unwrap_or_else(|error| {
        tracing::warn!(%error, "a state file that cannot be read");
        None
    });
    if let Some(state) = state.as_ref().filter(|s| cnova_ral::is_alive(s)) {
        return Standing::Alive(state.clone());
    }
    match (cnova_ral::read_exit(dir), state) {
        (Ok(Some(exit)), _) => ended(&exit, same_boot),
        (_, Some(_)) if same_boot => {
            let detail = "killed while the agent was not running: it left no exit file".to_owned();
            Standing::Ended { ok: false, detail }
        }
        (_, Some(_)) => Standing::Gone,
        (_, None) => {
            if same_boot {
                end_remains(dir);
            }
            Standing::Gone
        }
    }
}

fn ended(exit: &Exit, same_boot: bool) -> Standing {
    // A stop that nobody recorded was the old agent's, or the machine's on its way down.
    let shut_down = !same_boot && exit.reason == ExitReason::Killed;
    if exit.reason == ExitReason::Stopped || shut_down {
        return Standing::Gone;
    }
    let (ok, detail) = describe_exit(exit);
    Standing::Ended { ok, detail }
}

/// Whether it ended as it should, and how, for a person.
pub(crate) fn describe_exit(exit: &Exit) -> (bool, String) {
    let ok = exit.reason == ExitReason::Finished && exit.code.unwrap_or(0) == 0 && exit.signal.is_none();
    let mut detail = exit.reason.to_string();
    if let Some(code) = exit.code {
        detail.push_str(&format!(" with exit code {code}"));
    }
    if let Some(signal) = exit.signal {
        detail.push_str(&format!(" by signal {signal}"));
    }
    if exit.oom {
        detail.push_str(", out of memory");
    }
    if let Some(text) = &exit.detail {
        detail.push_str(": ");
        detail.push_str(text);
    }
    (ok, detail)
}

/// Ends a runtime that was started but has not said that it runs: its workload is started anew. Without its spec a
/// runtime that is only just being executed refuses to start.
fn end_remains(dir: &Path) {
    let _ = fs::remove_file(dir.join(cnova_ral::file::SPEC));
    for pid in processes_of(dir) {
        let Ok(pidfd) = cnova_ral::pidfd_open(pid) else {
            continue;
        };
        // Looked at again behind the pidfd: the number may be another's by now.
        if !is_run_in(pid, dir) {
            continue;
        }
        tracing::info!(pid, dir = %dir.display(), "ending a start that was cut short");
        for signal in [Signal::TERM, Signal::KILL] {
            let _ = rustix::process::pidfd_send_signal(&pidfd, signal);
            if wait(&pidfd) {
                break;
            }
        }
    }
}

fn wait(pidfd: &std::os::fd::OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec::try_from(ORPHAN_GRACE).ok();
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], timeout.as_ref()).is_ok_and(|n| n > 0)
}

/// Processes whose arguments are those of a runtime in `dir`.
fn processes_of(dir: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| is_run_in(*pid, dir)).collect()
}

fn is_run_in(pid: u32, dir: &Path) -> bool {
    let Ok(arguments) = fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    let wanted = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let arguments: Vec<&[u8]> = arguments.split(|b| *b == 0).collect();
    arguments
        .windows(3)
        .any(|w| w[0] == b"run" && w[1] == b"--state" && w[2] == wanted.as_os_str().as_encoded_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::{folder, write_record};
    use cnova_agent_core::ledger::Phase;
    use cnova_shared::ids::Digest;

    struct Machine {
        dir: tempfile::TempDir,
        rows: Vec<InstanceRow>,
    }

    impl Machine {
        /// An instance of this boot, or of another one.
        fn put(&mut self, workload: &str, attempt: u32, known: bool, same_boot: bool) -> PathBuf {
            let id = InstanceId {
                workload: workload.parse().unwrap(),
                attempt,
            };
            let path = folder(self.dir.path(), &id);
            fs::create_dir(&path).unwrap();
            let boot_id = if same_boot {
                cnova_ral::boot_id().unwrap()
            } else {
                "another".into()
            };
            let spec = Digest::of(workload.as_bytes());
            write_record(
                &path,
                &Record {
                    workload: id.workload.clone(),
                    attempt,
                    spec,
                    boot_id,
                    health_interval_ms: 1000,
                },
            )
            .unwrap();
            if known {
                let phase = Phase::Active;
                self.rows.push(InstanceRow {
                    attempt,
                    spec,
                    phase,
                    ..InstanceRow::new(id.workload)
                });
            }
            path
        }

        fn scan(&self) -> BTreeMap<String, ObservedState> {
            let found = scan(self.dir.path(), &self.rows).unwrap();
            found
                .observed
                .into_iter()
                .map(|o| (o.id.to_string(), o.state))
                .collect()
        }
    }

    fn exit(path: &Path, exit: Exit) {
        cnova_ral::write_exit(path, &exit).unwrap();
    }

    #[test]
    fn each_instance_is_judged_by_its_files() {
        let mut m = Machine {
            dir: tempfile::tempdir().unwrap(),
            rows: Vec::new(),
        };
        exit(
            &m.put("a/done", 1, true, true),
            Exit::new(ExitReason::Finished).with_code(0),
        );
        exit(
            &m.put("a/failed", 1, true, false),
            Exit::new(ExitReason::Trap).with_detail("unreachable"),
        );
        exit(&m.put("a/stopped", 1, true, true), Exit::new(ExitReason::Stopped));
        exit(&m.put("a/shut-down", 1, true, false), Exit::new(ExitReason::Killed));
        m.put("a/unborn", 1, true, true);
        m.put("a/power-cut", 1, true, false);
        let stranger = m.put("a/stranger", 5, false, true);
        let torn = m.put("a/torn", 1, true, true);
        fs::write(torn.join("instance.json"), "{").unwrap();

        let found = m.scan();
        let ended = |ok, detail: &str| ObservedState::Exited {
            ok,
            detail: detail.into(),
        };
        assert_eq!(found["a/done"], ended(true, "finished with exit code 0"));
        assert_eq!(found["a/failed"], ended(false, "trap: unreachable"));
        for neutral in ["a/stopped", "a/shut-down", "a/unborn", "a/power-cut"] {
            assert_eq!(found[neutral], ObservedState::MachineRestarted, "{neutral}");
        }
        assert_eq!(found.len(), 6);
        assert!(!stranger.exists() && !torn.exists());
    }
}
