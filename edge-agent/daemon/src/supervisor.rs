//! One task per instance: starts it or adopts it, watches it end by its pidfd, stops it when told.

mod explain;
mod process;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cnova_agent_core::{Launch, RuntimeEvent};
use cnova_ral::cgroup::Usage;
use cnova_ral::{Handle, State};
use cnova_shared::ids::{Digest, WorkloadId};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, sleep, timeout};

use crate::config::RuntimeConfig;
use crate::health::{self, Patient, QUESTIONS_MAX};
use crate::instance::{self, InstanceId, KEPT_PER_WORKLOAD};
use crate::launch::{Ground, LaunchError, Launched, launch};
use crate::observe::Alive;
use explain::{End, explain};
use process::{Target, asked_to_stop, end_child, took_too_long, wait_for_state, watch_handle, watch_to_end, watchable};

/// A killed process is gone after this time, or hangs in the kernel.
const KILL_MAX: Duration = Duration::from_secs(10);

/// How long a start may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// Until the runtime says that its workload runs, or that it prepares it.
    pub(crate) start: Duration,
    /// Until a runtime that prepares says that its workload runs.
    pub(crate) prepare: Duration,
}

impl Times {
    pub(crate) fn of(config: &RuntimeConfig) -> Self {
        Self {
            start: Duration::from_secs(config.start_seconds),
            prepare: Duration::from_secs(config.prepare_seconds),
        }
    }
}

/// What the supervisor tells the event loop.
#[derive(Debug)]
pub(crate) enum Said {
    /// For the core.
    Event { id: InstanceId, event: RuntimeEvent },
    /// Whether launches can be measured: why not, or that they can.
    Measured(Option<String>),
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
    ground: Ground,
    times: Times,
    said: mpsc::Sender<Said>,
    watched: Mutex<BTreeMap<InstanceId, Watched>>,
    /// Told whenever one is watched no more.
    ended: Notify,
    /// Questions for health at the same time.
    questions: Arc<Semaphore>,
    /// What the core was told of the TPM last.
    unmeasured: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Watched {
    /// Milliseconds of grace, once it shall stop.
    stop: watch::Sender<Option<u64>>,
    is_running: bool,
}

impl Supervisor {
    /// `unmeasured`: why launches cannot be measured at the start, if they cannot.
    pub(crate) fn new(ground: Ground, times: Times, unmeasured: Option<String>, said: mpsc::Sender<Said>) -> Self {
        Self {
            inner: Arc::new(Inner {
                ground,
                times,
                said,
                watched: Mutex::default(),
                ended: Notify::new(),
                questions: Arc::new(Semaphore::new(QUESTIONS_MAX)),
                unmeasured: Mutex::new(unmeasured),
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

    /// Whether launches can be measured was found out otherwise than by a launch.
    pub(crate) async fn measured(&self, why: Option<String>) {
        self.inner.tell_measured(why).await;
    }

    /// Why launches cannot be measured, as far as it is known.
    pub(crate) fn unmeasured(&self) -> Option<String> {
        let told = self.inner.unmeasured.lock().unwrap_or_else(PoisonError::into_inner);
        told.clone()
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
        instance::folder(&self.inner.ground.run_dir, id)
    }

    /// What an instance uses, by its control group. Blocks.
    pub(crate) fn usage(&self, id: &InstanceId) -> Option<Usage> {
        self.inner.ground.groups.usage(id)
    }

    /// Ends what is left of instances that nobody watches. Blocks.
    pub(crate) fn sweep(&self) {
        let watched: BTreeSet<InstanceId> = self.inner.lock().keys().cloned().collect();
        self.inner.ground.groups.sweep(&watched);
    }

    /// Removes the folders of a workload that is gone for good. Blocks on the disk.
    pub(crate) fn forget(&self, workload: &WorkloadId) {
        instance::prune(&self.inner.ground.run_dir, workload, 0, |id| {
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

    /// Waits until no older attempt of the same workload lives: each was told to stop. False if this one was, too, even
    /// before it began.
    async fn outlive_older(&self, id: &InstanceId, stop: &mut watch::Receiver<Option<u64>>) -> bool {
        let is_older = |other: &InstanceId| other.workload == id.workload && other.attempt < id.attempt;
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            // Before the look, so that no end is missed between the look and the wait.
            ended.as_mut().enable();
            if stop.borrow().is_some() {
                return false;
            }
            if !self.lock().keys().any(is_older) {
                return true;
            }
            tokio::select! {
                () = ended => {}
                _ = asked_to_stop(stop) => return false,
            }
        }
    }

    async fn run(self: Arc<Self>, id: InstanceId, wanted: Box<Launch>, mut stop: watch::Receiver<Option<u64>>) {
        if !self.outlive_older(&id, &mut stop).await {
            let detail = "it was stopped before it was started".to_owned();
            return self.over(id, true, detail, None).await;
        }
        let digests = digests_of(&wanted);
        let interval = Duration::from_millis(wanted.workload.health.interval_ms);
        let inner = self.clone();
        let started = spawn_blocking(move || launch(&inner.ground, &wanted)).await;
        self.say_measured(&started).await;
        let launched = match started {
            Ok(Ok(launched)) => launched,
            Ok(Err(error)) => {
                let suspect = matches!(error, LaunchError::ArtifactMissing(_));
                self.end_group(&id).await;
                return self
                    .over(id, false, error.to_string(), suspect.then_some(digests))
                    .await;
            }
            Err(error) => return self.over(id, false, error.to_string(), None).await,
        };
        let dir = instance::folder(&self.ground.run_dir, &id);
        let Launched {
            mut child,
            folder_events,
            pidfd,
            unmeasured: _,
        } = launched;
        let files = (folder_events, pidfd);
        let followed = self.follow(&id, &dir, interval, &mut child, files, &mut stop).await;
        let end = match followed {
            Ok(end) => end,
            Err(error) => {
                tracing::error!(instance = %id, %error, "cannot watch a process; it is ended");
                let _ = child.kill();
                let _ = spawn_blocking(move || child.wait()).await;
                End {
                    status: None,
                    ours: Some("it could not be watched and was ended".to_owned()),
                }
            }
        };
        self.end_group(&id).await;
        let (ok, detail, refused) = explain(&dir, &end);
        self.over(id, ok, detail, refused.then_some(digests)).await;
    }

    /// Tells the core when what it knows of the TPM changes.
    async fn say_measured(&self, started: &Result<Result<Launched, LaunchError>, JoinError>) {
        let why = match started {
            _ if self.ground.witness.is_none() => return,
            Ok(Ok(launched)) => launched.unmeasured.clone(),
            Ok(Err(LaunchError::Unmeasured(why))) => Some(why.to_string()),
            _ => return,
        };
        self.tell_measured(why).await;
    }

    async fn tell_measured(&self, why: Option<String>) {
        let changed = {
            let mut told = self.unmeasured.lock().unwrap_or_else(PoisonError::into_inner);
            let changed = told.is_some() != why.is_some();
            told.clone_from(&why);
            changed
        };
        if changed {
            self.say(Said::Measured(why)).await;
        }
    }

    /// From the start of the process to its end.
    async fn follow(
        &self,
        id: &InstanceId,
        dir: &Path,
        interval: Duration,
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
                ours = Some("it was stopped while it started".to_owned());
                end_child(child, &process, grace).await?;
                None
            }
            why = took_too_long(dir, self.times, &self.questions) => {
                ours = Some(why);
                end_child(child, &process, 0).await?;
                None
            }
        };
        if let Some(state) = began {
            self.running(id, &state).await;
            let _watch = self.watch_health(id, dir, interval);
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

    fn watch_health(&self, id: &InstanceId, dir: &Path, interval: Duration) -> health::Watch {
        health::watch(Patient {
            id: id.clone(),
            dir: dir.to_owned(),
            interval,
            questions: self.questions.clone(),
            said: self.said.clone(),
        })
    }

    /// Nothing of an instance outlives it, whatever it started.
    async fn end_group(&self, id: &InstanceId) {
        let (groups, id) = (self.ground.groups.clone(), id.clone());
        let dir = instance::folder(&self.ground.run_dir, &id);
        let _ = spawn_blocking(move || {
            groups.end(&id);
            cnova_ral::forget_secrets(&dir);
        })
        .await;
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
        let (run_dir, workload, newest) = (self.ground.run_dir.clone(), id.workload.clone(), id.clone());
        let watched: Vec<InstanceId> = self.lock().keys().cloned().collect();
        spawn_blocking(move || {
            let may_go = |old: &InstanceId| old.attempt < newest.attempt && !watched.contains(old);
            instance::prune(&run_dir, &workload, KEPT_PER_WORKLOAD, may_go);
        });
    }

    async fn run_adopted(self: Arc<Self>, alive: Alive, mut stop: watch::Receiver<Option<u64>>) {
        let Alive {
            id,
            dir,
            state,
            health_interval_ms,
        } = alive;
        let mut ours = None;
        if let Ok(handle) = Handle::open(&state) {
            let _watch = self.watch_health(&id, &dir, Duration::from_millis(health_interval_ms));
            if let Err(error) = watch_handle(&dir, handle, &mut stop).await {
                tracing::error!(instance = %id, %error, "cannot watch an adopted process; it is ended");
                ours = Some("it could not be watched and was ended".to_owned());
                if let Ok(handle) = Handle::open(&state) {
                    let _ = handle.kill();
                }
            }
        }
        self.end_group(&id).await;
        let (ok, detail, _) = explain(&dir, &End { status: None, ours });
        self.over(id, ok, detail, None).await;
    }

    async fn over(&self, id: InstanceId, ok: bool, detail: String, suspect: Option<Vec<Digest>>) {
        self.lock().remove(&id);
        self.ended.notify_waiters();
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
    launch.workload.artifacts().map(|a| a.digest).collect()
}
