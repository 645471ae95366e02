//! One task per instance: starts it or adopts it, watches it end by its pidfd, stops it when told.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cnova_agent_core::{Launch, RuntimeEvent};
use cnova_ral::{ExitReason, Handle, State};
use cnova_shared::ids::{Digest, WorkloadId};
use cnova_store::Artifacts;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::catalog::Catalog;
use crate::instance::{self, InstanceId, KEPT_PER_WORKLOAD};
use crate::launch::{LaunchError, Launched, launch};
use crate::observe::{Alive, describe_exit};

/// A runtime must have its workload running after this time.
const START_MAX: Duration = Duration::from_secs(30);
/// The state file is looked for this often even when the kernel tells of no new file.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// What a runtime gets to write its exit file when the grace has passed.
const GRACE_SLACK: Duration = Duration::from_millis(500);
/// A killed process is gone after this time, or hangs in the kernel.
const KILL_MAX: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
const ERR_TAIL_BYTES: u64 = 1024;

/// What the supervisor tells the event loop.
#[derive(Debug)]
pub(crate) enum Said {
    /// For the core.
    Event { id: InstanceId, event: RuntimeEvent },
    /// Artifacts of an instance that was refused, or could not be started, to be looked at.
    Suspect { digests: Vec<Digest> },
}

/// All instances that this process watches.
#[derive(Clone, Debug)]
pub(crate) struct Supervisor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    run_dir: PathBuf,
    catalog: Catalog,
    artifacts: Arc<Artifacts>,
    said: mpsc::Sender<Said>,
    watched: Mutex<BTreeMap<InstanceId, Watched>>,
}

#[derive(Debug)]
struct Watched {
    /// Milliseconds of grace, once it shall stop.
    stop: watch::Sender<Option<u64>>,
    is_running: bool,
}

/// How the wait for an instance's end went.
struct End {
    status: Option<ExitStatus>,
    /// What the agent itself did to it.
    ours: Option<&'static str>,
}

impl Supervisor {
    pub(crate) fn new(run_dir: PathBuf, catalog: Catalog, artifacts: Arc<Artifacts>, said: mpsc::Sender<Said>) -> Self {
        let watched = Mutex::default();
        Self {
            inner: Arc::new(Inner {
                run_dir,
                catalog,
                artifacts,
                said,
                watched,
            }),
        }
    }

    /// Starts an instance; the events say how it goes.
    pub(crate) fn start(&self, launch: Box<Launch>) {
        let id = InstanceId {
            workload: launch.workload.id.clone(),
            attempt: launch.attempt,
        };
        if let Some(stop) = self.inner.track(&id, false) {
            tokio::spawn(self.inner.clone().run(id, launch, stop));
        }
    }

    /// Watches an instance that was found running.
    pub(crate) fn adopt(&self, alive: Alive) {
        if let Some(stop) = self.inner.track(&alive.id, true) {
            tracing::info!(instance = %alive.id, pid = alive.state.pid, "adopted");
            tokio::spawn(self.inner.clone().run_adopted(alive, stop));
        }
    }

    /// Stops an instance; its end is told in any case.
    pub(crate) fn stop(&self, id: InstanceId, grace_ms: u64) {
        let is_told = match self.inner.lock().get(&id) {
            Some(watched) => watched.stop.send(Some(grace_ms)).is_ok(),
            None => false,
        };
        if !is_told {
            let event = RuntimeEvent::Exited {
                ok: true,
                detail: "it had ended already".into(),
            };
            let inner = self.inner.clone();
            // In a task: whoever calls this is also the one who makes room in the queue.
            tokio::spawn(async move { inner.say(Said::Event { id, event }).await });
        }
    }

    /// The folder of an instance.
    pub(crate) fn folder(&self, id: &InstanceId) -> PathBuf {
        instance::folder(&self.inner.run_dir, id)
    }

    /// Removes the folders of a workload that is gone for good. Blocks on the disk.
    pub(crate) fn forget(&self, workload: &WorkloadId) {
        instance::prune(&self.inner.run_dir, workload, 0, |id| {
            !self.inner.lock().contains_key(id)
        });
    }

    /// Ends what has not said yet that it runs, and waits for it: a core that is made anew cannot know of it.
    pub(crate) async fn settle(&self) {
        let starting = || self.inner.lock().values().filter(|w| !w.is_running).count();
        for watched in self.inner.lock().values().filter(|w| !w.is_running) {
            let _ = watched.stop.send(Some(0));
        }
        let deadline = Instant::now() + KILL_MAX;
        while starting() > 0 && Instant::now() < deadline {
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing when it is watched already.
    fn track(&self, id: &InstanceId, is_running: bool) -> Option<watch::Receiver<Option<u64>>> {
        let mut watched = self.lock();
        if watched.contains_key(id) {
            return None;
        }
        let (stop, stopped) = watch::channel(None);
        watched.insert(id.clone(), Watched { stop, is_running });
        Some(stopped)
    }

    async fn say(&self, said: Said) {
        // The event loop ends before this does only when the program ends.
        let _ = self.said.send(said).await;
    }

    async fn run(self: Arc<Self>, id: InstanceId, wanted: Box<Launch>, mut stop: watch::Receiver<Option<u64>>) {
        let digests = digests_of(&wanted);
        let inner = self.clone();
        let started = spawn_blocking(move || launch(&inner.run_dir, &inner.catalog, &inner.artifacts, &wanted)).await;
        let launched = match started {
            Ok(Ok(launched)) => launched,
            Ok(Err(error)) => {
                let suspect = matches!(error, LaunchError::ArtifactMissing(_));
                return self
                    .over(id, false, error.to_string(), suspect.then_some(digests))
                    .await;
            }
            Err(error) => return self.over(id, false, error.to_string(), None).await,
        };
        let dir = instance::folder(&self.run_dir, &id);
        let Launched {
            mut child,
            folder_events,
            pidfd,
        } = launched;
        let followed = self
            .follow(&id, &dir, &mut child, (folder_events, pidfd), &mut stop)
            .await;
        let end = match followed {
            Ok(end) => end,
            Err(error) => {
                tracing::error!(instance = %id, %error, "cannot watch a process; it is ended");
                let _ = child.kill();
                let _ = spawn_blocking(move || child.wait()).await;
                End {
                    status: None,
                    ours: Some("it could not be watched and was ended"),
                }
            }
        };
        let (ok, detail, refused) = explain(&dir, &end);
        self.over(id, ok, detail, refused.then_some(digests)).await;
    }

    /// From the start of the process to its end.
    async fn follow(
        &self,
        id: &InstanceId,
        dir: &Path,
        child: &mut Child,
        (folder_events, pidfd): (OwnedFd, OwnedFd),
        stop: &mut watch::Receiver<Option<u64>>,
    ) -> io::Result<End> {
        let process = watchable(pidfd)?;
        let mut ours = None;
        let began = tokio::select! {
            state = wait_for_state(dir, folder_events) => Some(state?),
            ended = process.readable() => ended.map(|_| None)?,
            grace = asked_to_stop(stop) => {
                ours = Some("it was stopped while it started");
                end_child(child, &process, grace).await?;
                None
            }
            () = sleep(START_MAX) => {
                ours = Some("it did not say within 30 s that it runs, and was ended");
                end_child(child, &process, 0).await?;
                None
            }
        };
        if let Some(state) = began {
            self.running(id, &state).await;
            // The process that answers for the workload may be another than the one that was started.
            if state.pid == child.id() {
                watch_to_end(dir, &process, Target::Child(child), stop).await?;
            } else if let Ok(handle) = Handle::open(&state) {
                watch_handle(dir, handle, stop).await?;
            }
        }
        let mut status = child.try_wait()?;
        if status.is_none() {
            // It started the workload and has not ended with it yet.
            let _ = timeout(KILL_MAX, process.readable()).await;
            status = child.try_wait()?;
        }
        Ok(End { status, ours })
    }

    async fn running(&self, id: &InstanceId, state: &State) {
        if let Some(watched) = self.lock().get_mut(id) {
            watched.is_running = true;
        }
        self.say(Said::Event {
            id: id.clone(),
            event: RuntimeEvent::Started { pid: state.pid },
        })
        .await;
        let (run_dir, workload, newest) = (self.run_dir.clone(), id.workload.clone(), id.clone());
        let watched: Vec<InstanceId> = self.lock().keys().cloned().collect();
        spawn_blocking(move || {
            let may_go = |old: &InstanceId| old.attempt < newest.attempt && !watched.contains(old);
            instance::prune(&run_dir, &workload, KEPT_PER_WORKLOAD, may_go);
        });
    }

    async fn run_adopted(self: Arc<Self>, alive: Alive, mut stop: watch::Receiver<Option<u64>>) {
        let Alive { id, dir, state } = alive;
        let mut ours = None;
        if let Ok(handle) = Handle::open(&state)
            && let Err(error) = watch_handle(&dir, handle, &mut stop).await
        {
            tracing::error!(instance = %id, %error, "cannot watch an adopted process; it is ended");
            ours = Some("it could not be watched and was ended");
            if let Ok(handle) = Handle::open(&state) {
                let _ = handle.kill();
            }
        }
        let (ok, detail, _) = explain(&dir, &End { status: None, ours });
        self.over(id, ok, detail, None).await;
    }

    async fn over(&self, id: InstanceId, ok: bool, detail: String, suspect: Option<Vec<Digest>>) {
        self.lock().remove(&id);
        self.say(Said::Event {
            id,
            event: RuntimeEvent::Exited { ok, detail },
        })
        .await;
        if let Some(digests) = suspect {
            self.say(Said::Suspect { digests }).await;
        }
    }
}

fn digests_of(launch: &Launch) -> Vec<Digest> {
    let w = &launch.workload;
    std::iter::once(w.artifact.digest)
        .chain(w.files.iter().map(|f| f.artifact.digest))
        .collect()
}

/// Hands a descriptor to the event loop.
fn watchable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: `fd` is owned, so it is open and stays the same file until the `AsyncFd` is dropped; nobody takes it out
    // or closes it before.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// How signals reach the process.
enum Target<'a> {
    /// It has not been reaped, so its pid is its own.
    Child(&'a mut Child),
    /// By its descriptor.
    Handle(Handle),
}

impl Target<'_> {
    fn terminate(&self) -> io::Result<()> {
        match self {
            Self::Child(child) => terminate(child),
            Self::Handle(handle) => handle.terminate(),
        }
    }

    fn kill(&mut self) -> io::Result<()> {
        match self {
            Self::Child(child) => child.kill(),
            Self::Handle(handle) => handle.kill(),
        }
    }
}

async fn wait_for_state(dir: &Path, folder_events: OwnedFd) -> io::Result<State> {
    let events = watchable(folder_events)?;
    loop {
        if let Some(state) = cnova_ral::read_state(dir).map_err(io::Error::other)? {
            return Ok(state);
        }
        // Whatever happened in the folder, the file is looked for again; a lost event costs half a second.
        if let Ok(ready) = timeout(LOOK_AGAIN, events.readable()).await {
            let mut ready = ready?;
            let mut buffer = [0; 1024];
            while rustix::io::read(events.get_ref(), &mut buffer).is_ok_and(|n| n > 0) {}
            ready.clear_ready();
        }
    }
}

/// The grace, once the instance shall stop; for ever if it never shall.
async fn asked_to_stop(stop: &mut watch::Receiver<Option<u64>>) -> u64 {
    let grace = stop.wait_for(Option::is_some).await.ok().and_then(|grace| *grace);
    match grace {
        Some(grace) => grace,
        None => std::future::pending().await,
    }
}

fn terminate(child: &Child) -> io::Result<()> {
    let pid = rustix::process::Pid::from_child(child);
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::TERM)?)
}

/// Ends a child that has not said yet that it runs: no socket to ask on.
async fn end_child(child: &mut Child, process: &AsyncFd<OwnedFd>, grace_ms: u64) -> io::Result<()> {
    if grace_ms > 0 {
        terminate(child)?;
        if timeout(Duration::from_millis(grace_ms), process.readable())
            .await
            .is_ok()
        {
            return Ok(());
        }
    }
    child.kill()?;
    let _ = timeout(KILL_MAX, process.readable()).await;
    Ok(())
}

/// Waits for the end of a running workload, and brings it about when told.
async fn watch_to_end(
    dir: &Path,
    process: &AsyncFd<OwnedFd>,
    mut target: Target<'_>,
    stop: &mut watch::Receiver<Option<u64>>,
) -> io::Result<()> {
    let grace = tokio::select! {
        ended = process.readable() => return ended.map(|_| ()),
        grace = asked_to_stop(stop) => grace,
    };
    if !ask_to_stop(dir, grace).await {
        target.terminate()?;
    }
    if !wait_in_grace(process, grace).await {
        target.kill()?;
        let _ = timeout(KILL_MAX, process.readable()).await;
    }
    Ok(())
}

async fn watch_handle(dir: &Path, handle: Handle, stop: &mut watch::Receiver<Option<u64>>) -> io::Result<()> {
    let process = watchable(handle.as_fd().try_clone_to_owned()?)?;
    watch_to_end(dir, &process, Target::Handle(handle), stop).await
}

async fn wait_in_grace(process: &AsyncFd<OwnedFd>, grace_ms: u64) -> bool {
    let slack = if grace_ms == 0 { Duration::ZERO } else { GRACE_SLACK };
    let deadline = Instant::now() + Duration::from_millis(grace_ms) + slack;
    tokio::select! {
        _ = process.readable() => true,
        () = sleep_until(deadline) => false,
    }
}

/// Asks the runtime on its socket; false when it cannot be asked and a signal is needed.
async fn ask_to_stop(dir: &Path, grace_ms: u64) -> bool {
    let dir = dir.to_owned();
    let grace = Duration::from_millis(grace_ms);
    let asked = spawn_blocking(move || {
        cnova_ral::Client::connect_with_timeout(&dir, CALL_TIMEOUT).and_then(|mut c| c.stop(Some(grace)))
    });
    matches!(asked.await, Ok(Ok(())))
}

/// Whether it ended as it should, how, and whether its artifacts are to be looked at.
fn explain(dir: &Path, end: &End) -> (bool, String, bool) {
    match cnova_ral::read_exit(dir) {
        Ok(Some(exit)) => {
            let (ok, detail) = describe_exit(&exit);
            let detail = end.ours.map_or(detail.clone(), |ours| format!("{ours}; {detail}"));
            (ok, detail, exit.reason == ExitReason::Refused)
        }
        Ok(None) => (false, without_exit_file(dir, end), false),
        Err(error) => (false, format!("its exit file cannot be read: {error}"), false),
    }
}

fn without_exit_file(dir: &Path, end: &End) -> String {
    if let Some(ours) = end.ours {
        return ours.to_owned();
    }
    let mut detail = match end.status {
        Some(status) => format!("killed: its runtime ended without an exit file ({status})"),
        None => "killed: its runtime ended without an exit file".to_owned(),
    };
    if let Some(words) = last_words(dir) {
        detail.push_str("; it printed: ");
        detail.push_str(&words);
    }
    detail
}

/// The end of what the runtime itself printed.
fn last_words(dir: &Path) -> Option<String> {
    let mut file = File::open(dir.join(cnova_ral::file::RUNTIME_ERR)).ok()?;
    let skip = file.metadata().ok()?.len().saturating_sub(ERR_TAIL_BYTES);
    file.seek(SeekFrom::Start(skip)).ok()?;
    let mut bytes = Vec::new();
    file.take(ERR_TAIL_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    (!text.is_empty()).then_some(text)
}
