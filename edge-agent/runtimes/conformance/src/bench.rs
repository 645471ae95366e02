//! One workload under test: a state folder, the process that runs it, and its control group where there may be one.

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

use cnova_ral::cgroup::{Group, Parent};
use cnova_ral::{
    Client, Exit, Handle, LogLine, Spec, State, file, is_held, read_exit, read_state, run_command, spawn_in, tail_log,
    write_spec,
};
use tempfile::TempDir;

use crate::verdict::ensure;
use crate::{Behaviour, Case, Fixture, Stop, Verdict};

/// Longest wait for anything, unless told otherwise. Long enough that only a hang reaches it.
pub const PATIENCE: Duration = Duration::from_secs(60);
static PATIENCE_SET: OnceLock<Duration> = OnceLock::new();
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(3);
/// Below which group those of the suite are made.
const GROUP_PARENT: &str = "cnova-conformance";

/// A state folder with a spec, and the process that runs it. Dropping it ends the workload, whatever state it is in.
pub struct Bench {
    _home: TempDir,
    dir: PathBuf,
    exe: PathBuf,
    /// What the next start runs.
    pub spec: Spec,
    stimulus: Option<Arc<dyn Fn() + Send + Sync>>,
    child: Option<Child>,
    /// When it was last started.
    pub started: Instant,
    group: Option<Group>,
    no_group: Option<String>,
}

impl Bench {
    /// For the fixture's case of a behaviour; its case as well.
    pub(crate) fn of(fixture: &Fixture, behaviour: Behaviour) -> Verdict<(Bench, Case)> {
        let case = fixture.get(behaviour)?;
        Ok((Bench::new(fixture, &case)?, case))
    }

    /// In a temporary folder.
    pub(crate) fn new(fixture: &Fixture, case: &Case) -> Verdict<Bench> {
        let home = tempfile::tempdir()?;
        let dir = home.path().join("state");
        Bench::in_folder(fixture, case, home, dir)
    }

    /// With this state folder.
    pub(crate) fn in_folder(fixture: &Fixture, case: &Case, home: TempDir, dir: PathBuf) -> Verdict<Bench> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let made = Parent::find(Some(GROUP_PARENT)).and_then(|parent| Group::create(&parent, &name));
        let (group, no_group) = match made {
            Ok(group) => (Some(group), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let mut spec = case.spec.clone();
        spec.workload = "suite".to_owned();
        (spec.epoch, spec.generation, spec.attempt) = (3, 7, 1);
        Ok(Bench {
            _home: home,
            dir,
            exe: fixture.exe.clone(),
            spec,
            stimulus: case.stimulus.clone(),
            child: None,
            started: Instant::now(),
            group,
            no_group,
        })
    }

    /// The state folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its control group; a check that needs one is skipped where there can be none.
    pub(crate) fn group(&self) -> Verdict<&Group> {
        match (&self.group, &self.no_group) {
            (Some(group), _) => Ok(group),
            (None, reason) => Err(Stop::Skipped(reason.clone().unwrap_or_default())),
        }
    }

    /// The group as an agent finds it that did not make it.
    pub(crate) fn group_found_again(&self) -> Verdict<Group> {
        let name = self.group()?.name().to_owned();
        let found = Parent::find(Some(GROUP_PARENT))?.open(&name)?;
        found.ok_or_else(|| Stop::Failed(format!("control group {name} is not found again")))
    }

    /// Writes the spec and starts the runtime.
    pub(crate) fn start(&mut self) -> Verdict {
        write_spec(&self.dir, &self.spec)?;
        self.start_as_it_is()
    }

    /// Starts the runtime in the folder as it is.
    pub(crate) fn start_as_it_is(&mut self) -> Verdict {
        self.started = Instant::now();
        self.child = Some(spawn_in(&self.exe, &self.dir, self.group.as_ref())?);
        Ok(())
    }

    /// Starts it and waits until it runs.
    pub(crate) fn start_and_wait(&mut self) -> Verdict<State> {
        self.start()?;
        self.state()
    }

    /// Starts the runtime as the child of a process that stands for the agent and can be killed without harm.
    pub(crate) fn start_below_agent(&mut self) -> Verdict<Child> {
        write_spec(&self.dir, &self.spec)?;
        self.started = Instant::now();
        let mut command = run_command(&self.exe, &self.dir)?;
        // SAFETY: between fork and exec only system calls are made, all of them async-signal-safe. The process in the
        // middle never returns: it closes what it inherited, so that the spawn is not kept waiting, and sleeps.
        unsafe {
            command.pre_exec(|| match libc::fork() {
                -1 => Err(std::io::Error::last_os_error()),
                0 => {
                    libc::setsid();
                    Ok(())
                }
                _ => {
                    libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0);
                    loop {
                        libc::pause();
                    }
                }
            });
        }
        // After the fork: the process in the middle is no part of the instance, and on v2 it would be in the runtime's way.
        if let Some(group) = &self.group {
            group.enter_command(&mut command)?;
        }
        Ok(command.spawn()?)
    }

    /// The state file, once it is there.
    pub(crate) fn state(&mut self) -> Verdict<State> {
        let dir = self.dir.clone();
        let mut child = self.child.take();
        let found = wait_for("state.json", || {
            let ended = child
                .as_mut()
                .is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))));
            let state = read_state(&dir)?;
            ensure!(
                state.is_some() || !ended,
                "it ended before it ran: {:?}; it printed: {}",
                read_exit(&dir)?,
                complaints(&dir)
            );
            Ok(state)
        });
        self.child = child;
        found
    }

    /// The started process's id.
    pub(crate) fn pid(&self) -> Verdict<u32> {
        match &self.child {
            Some(child) => Ok(child.id()),
            None => Err(Stop::Failed("nothing was started".into())),
        }
    }

    /// Whether the started process has not ended.
    pub(crate) fn runs(&mut self) -> Verdict<bool> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?.is_none()),
            None => Ok(false),
        }
    }

    /// Waits for the end of the process; the exit file if it left one.
    pub(crate) fn end(&mut self) -> Verdict<(ExitStatus, Option<Exit>)> {
        let Some(mut child) = self.child.take() else {
            return Err(Stop::Failed("nothing was started".into()));
        };
        let ended = wait_for("the end of the runtime's process", || Ok(child.try_wait()?));
        if ended.is_err() {
            self.child = Some(child);
        }
        Ok((ended?, read_exit(&self.dir)?))
    }

    /// Waits for the end, which must be one that the runtime explains.
    pub(crate) fn exit(&mut self) -> Verdict<Exit> {
        let (status, exit) = self.end()?;
        ensure!(
            status.signal().is_none(),
            "the runtime itself died ({status}); it printed: {}",
            complaints(&self.dir)
        );
        let detail_bytes = exit.as_ref().and_then(|e| e.detail.as_ref()).map_or(0, String::len);
        ensure!(
            detail_bytes <= cnova_ral::DETAIL_BYTES_MAX,
            "exit.json: `detail` has {detail_bytes} bytes, allowed are {}",
            cnova_ral::DETAIL_BYTES_MAX
        );
        exit.ok_or_else(|| Stop::Failed(format!("there is no exit.json; it printed: {}", complaints(&self.dir))))
    }

    /// Starts it and waits for its end.
    pub(crate) fn run(&mut self) -> Verdict<Exit> {
        self.start()?;
        self.exit()
    }

    /// A new connection.
    pub(crate) fn client(&self) -> Verdict<Client> {
        Ok(Client::connect_with_timeout(&self.dir, Duration::from_secs(20))?)
    }

    /// It must say that it is well.
    pub(crate) fn ensure_healthy(&self, after: &str) -> Verdict {
        let health = self.client()?.health()?;
        ensure!(
            health.phase == cnova_ral::Phase::Running && health.healthy,
            "after {after} it is not healthy: {health:?}"
        );
        Ok(())
    }

    /// The log's entries.
    pub(crate) fn log(&self) -> Verdict<Vec<LogLine>> {
        Ok(tail_log(&self.dir, 1 << 22)?)
    }

    /// Bytes of both log files.
    pub(crate) fn log_size(&self) -> (u64, u64) {
        let size = |name| fs::metadata(self.dir.join(name)).map_or(0, |meta| meta.len());
        (size(file::LOG), size(file::LOG_OLD))
    }

    /// Makes the workload speak, if it needs it.
    pub(crate) fn stimulate(&self) {
        if let Some(stimulus) = &self.stimulus {
            stimulus();
        }
    }

    /// Ends whatever there is. What goes wrong here is left to the next look at the machine.
    fn clear(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        // One that was started below a process that stands for the agent.
        let end = Instant::now() + Duration::from_secs(10);
        while is_held(&self.dir).unwrap_or(false) && Instant::now() < end {
            if let Ok(Some(state)) = read_state(&self.dir)
                && let Ok(handle) = Handle::open(&state)
            {
                let _ = handle.kill();
            }
            if let Some(group) = &self.group {
                let _ = group.kill();
            }
            sleep(PAUSE);
        }
        if let Some(group) = &self.group {
            let _ = group.kill();
            let _ = group.remove();
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Longest wait for anything in this process.
pub fn patience() -> Duration {
    PATIENCE_SET.get().copied().unwrap_or(PATIENCE)
}

/// Changes [`patience`], once: more for a slow node, less to see failures soon.
pub fn set_patience(patience: Duration) {
    let _ = PATIENCE_SET.set(patience);
}

fn complaints(dir: &Path) -> String {
    fs::read_to_string(dir.join(file::RUNTIME_ERR)).unwrap_or_default()
}

/// Asks until there is an answer.
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Verdict<Option<T>>) -> Verdict<T> {
    let patience = patience();
    let end = Instant::now() + patience;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        ensure!(Instant::now() < end, "waited {patience:?} for {what}");
        sleep(PAUSE);
    }
}
