//! One state machine per workload: what is desired against what is observed, and the one step to take next.

use cnova_shared::ids::{Digest, WorkloadId};
use cnova_shared::twin::Version;
use cnova_shared::wire::v1::{Restart, RestartPolicy, Workload, WorkloadReport, WorkloadState};

use crate::ledger::{InstanceRow, Phase};
use crate::schedule::Decision;

/// A run at least this long, in milliseconds, or as long as the longest pause, forgives the failures before it.
pub const FORGIVEN_AFTER_MS: u64 = 10_000;

/// What is desired of a workload.
#[derive(Clone, Debug)]
pub struct Desired {
    /// The workload, from a verified twin.
    pub workload: Workload,
    /// Its digest, see [`spec_digest`].
    pub spec: Digest,
    /// The twin that last changed it.
    pub asked_by: Version,
    /// Whether it may run here.
    pub decision: Decision,
}

/// What is observed of it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Observed {
    /// No process.
    Idle { why: String },
    /// Told to start.
    Starting,
    /// A process runs.
    Running {
        pid: u32,
        adopted: bool,
        since_ms: Option<u64>,
    },
    /// Told to stop.
    Stopping { why: String },
    /// Ended; started again at this monotonic time.
    Backoff { until: u64, why: String },
    /// Ended as it may.
    Finished { why: String },
    /// Failed too often.
    CrashLoop { why: String },
}

/// The step that a machine asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing to do.
    None,
    /// Start this attempt.
    Start,
    /// Stop this attempt.
    Stop {
        /// Which.
        attempt: u32,
        /// Milliseconds between asking and ending.
        grace_ms: u64,
    },
    /// Nothing desired, nothing left: the machine can be dropped.
    Remove,
}

/// One workload.
#[derive(Clone, Debug)]
pub struct Machine {
    row: InstanceRow,
    desired: Option<Desired>,
    observed: Observed,
    live: Option<Live>,
}

/// What the live process costs and how it wants to be stopped.
#[derive(Clone, Copy, Debug)]
struct Live {
    memory_bytes: u64,
    cpu_millis: u64,
    grace_ms: u64,
}

/// Grace for an instance whose specification is not known any more.
const ORPHAN_GRACE_MS: u64 = 5_000;

/// The digest that decides whether a running instance is what is desired. The application's generation is left out: a
/// new version of an application does not touch those of its workloads that did not change.
#[must_use]
pub fn spec_digest(workload: &Workload) -> Digest {
    let mut w = workload.clone();
    w.app_generation = 0;
    // Encoding a structure that was just decoded cannot fail; an empty encoding would only cause a restart.
    Digest::of(&cnova_shared::wire::encode(&w).unwrap_or_default())
}

impl Machine {
    /// A workload that has never run here.
    #[must_use]
    pub fn new(id: WorkloadId) -> Self {
        let row = InstanceRow {
            id,
            attempt: 0,
            spec: Digest([0; 32]),
            failures: 0,
            phase: Phase::Finished,
        };
        Self {
            row,
            desired: None,
            observed: Observed::Idle { why: String::new() },
            live: None,
        }
    }

    /// A workload as the ledger remembers it, with no process until [`Machine::found`] says otherwise.
    #[must_use]
    pub fn from_row(row: InstanceRow, mono_ms: u64) -> Self {
        let observed = match row.phase {
            Phase::Active => Observed::Idle {
                why: "the node was restarted".into(),
            },
            Phase::Backoff => Observed::Backoff {
                until: mono_ms,
                why: "it failed before the agent restarted".into(),
            },
            Phase::Finished => Observed::Finished {
                why: "it ended before the agent restarted".into(),
            },
            Phase::CrashLoop => Observed::CrashLoop {
                why: "it failed too often before the agent restarted".into(),
            },
        };
        Self {
            row,
            desired: None,
            observed,
            live: None,
        }
    }

    /// A live process of this workload was found at boot.
    pub fn found(&mut self, attempt: u32, spec: Digest, pid: u32) {
        self.row.attempt = self.row.attempt.max(attempt);
        self.row.spec = spec;
        self.row.phase = Phase::Active;
        self.observed = Observed::Running {
            pid,
            adopted: true,
            since_ms: None,
        };
        self.live = Some(Live {
            memory_bytes: 0,
            cpu_millis: 0,
            grace_ms: ORPHAN_GRACE_MS,
        });
    }

    /// The ledger's row.
    #[must_use]
    pub fn row(&self) -> &InstanceRow {
        &self.row
    }

    /// What is desired of it.
    #[must_use]
    pub fn desired(&self) -> Option<&Desired> {
        self.desired.as_ref()
    }

    /// Whether a process may exist.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(
            self.observed,
            Observed::Starting | Observed::Running { .. } | Observed::Stopping { .. }
        )
    }

    /// Memory and CPU that a process of it may be using.
    #[must_use]
    pub fn live_cost(&self) -> (u64, u64) {
        match (self.is_live(), self.live) {
            (true, Some(l)) => (l.memory_bytes, l.cpu_millis),
            _ => (0, 0),
        }
    }

    /// Sets what is desired.
    pub fn set_desired(&mut self, desired: Option<Desired>) {
        let changed = match (&self.desired, &desired) {
            (Some(a), Some(b)) => a.spec != b.spec,
            _ => true,
        };
        let was_known = self.desired.is_some();
        self.desired = desired;
        let Some(d) = &self.desired else { return };
        if self.is_live() && d.spec == self.row.spec {
            self.live = Some(live_of(&d.workload));
        }
        // Another specification is another chance; the same one after a restart of the agent is not.
        if changed && !self.is_live() && (was_known || d.spec != self.row.spec) {
            self.row.failures = 0;
            self.observed = Observed::Idle { why: String::new() };
        }
    }

    /// The step to take, given whether all artifacts of the desired workload are here and whether it fits beside what
    /// is live. The caller performs it and calls [`Machine::starting`] or [`Machine::stopping`].
    #[must_use]
    pub fn step(&self, artifacts_here: bool, fits_now: bool) -> Step {
        let Some(d) = &self.desired else {
            return match &self.observed {
                Observed::Starting | Observed::Running { .. } => self.stop(),
                Observed::Stopping { .. } => Step::None,
                _ => Step::Remove,
            };
        };
        match &self.observed {
            Observed::Stopping { .. } => Step::None,
            Observed::Starting | Observed::Running { .. } => {
                let replaced = d.spec != self.row.spec && artifacts_here;
                if d.decision != Decision::Run || replaced {
                    self.stop()
                } else {
                    Step::None
                }
            }
            Observed::Finished { .. } | Observed::CrashLoop { .. } => Step::None,
            Observed::Backoff { .. } => Step::None,
            Observed::Idle { .. } => {
                let go = d.decision == Decision::Run && artifacts_here && fits_now;
                if go { Step::Start } else { Step::None }
            }
        }
    }

    fn stop(&self) -> Step {
        let grace_ms = self.live.map_or(ORPHAN_GRACE_MS, |l| l.grace_ms);
        Step::Stop {
            attempt: self.row.attempt,
            grace_ms,
        }
    }

    /// The next attempt is about to be started; the row must be on disk before it is.
    pub fn starting(&mut self) {
        let Some(d) = &self.desired else { return };
        self.row.attempt += 1;
        if self.row.spec != d.spec {
            self.row.failures = 0;
        }
        self.row.spec = d.spec;
        self.row.phase = Phase::Active;
        self.live = Some(live_of(&d.workload));
        self.observed = Observed::Starting;
    }

    /// The instance was told to stop.
    pub fn stopping(&mut self) {
        let why = match &self.desired {
            None => "it is not in the twin any more".to_owned(),
            Some(Desired {
                decision: Decision::Wait(why),
                ..
            }) => why.clone(),
            Some(_) => "a new version replaces it".to_owned(),
        };
        self.observed = Observed::Stopping { why };
    }

    /// The runtime says that it runs.
    pub fn started(&mut self, pid: u32, mono_ms: u64) {
        if self.observed == Observed::Starting {
            self.observed = Observed::Running {
                pid,
                adopted: false,
                since_ms: Some(mono_ms),
            };
        }
    }

    /// The runtime says that it ended.
    pub fn exited(&mut self, ok: bool, detail: &str, mono_ms: u64) {
        let ran_ms = match &self.observed {
            Observed::Running {
                since_ms: Some(since), ..
            } => mono_ms.saturating_sub(*since),
            Observed::Stopping { why } => {
                self.observed = Observed::Idle { why: why.clone() };
                self.live = None;
                return;
            }
            _ => 0,
        };
        self.live = None;
        let Some(restart) = self.desired.as_ref().map(|d| d.workload.restart.clone()) else {
            self.observed = Observed::Idle { why: detail.to_owned() };
            return;
        };
        self.ended(ok, detail, ran_ms, &restart, mono_ms);
    }

    fn ended(&mut self, ok: bool, detail: &str, ran_ms: u64, restart: &Restart, mono_ms: u64) {
        let why = detail.to_owned();
        let again = match restart.policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => !ok,
            RestartPolicy::Never => false,
        };
        if !again {
            self.row.phase = Phase::Finished;
            self.observed = Observed::Finished { why };
            return;
        }
        if ok || ran_ms >= restart.backoff_max_ms.max(FORGIVEN_AFTER_MS) {
            self.row.failures = 0;
        }
        self.row.failures += u32::from(!ok);
        if self.row.failures >= restart.crash_loop_after.max(1) {
            self.row.phase = Phase::CrashLoop;
            let why = format!(
                "{} failures in a row, the last: {why}; it is started again when its twin changes",
                self.row.failures
            );
            self.observed = Observed::CrashLoop { why };
            return;
        }
        let doublings = self.row.failures.saturating_sub(1).min(20);
        let pause = restart
            .backoff_min_ms
            .saturating_mul(1 << doublings)
            .min(restart.backoff_max_ms);
        self.row.phase = Phase::Backoff;
        self.observed = Observed::Backoff {
            until: mono_ms + pause,
            why,
        };
    }

    /// A pause that is over makes the workload one that may start, if its artifacts are here and there is room.
    pub fn end_pause(&mut self, mono_ms: u64) {
        if let Observed::Backoff { until, why } = &self.observed
            && *until <= mono_ms
        {
            self.observed = Observed::Idle { why: why.clone() };
        }
    }

    /// When the machine wants to be looked at again.
    #[must_use]
    pub fn timeout(&self) -> Option<u64> {
        match &self.observed {
            Observed::Backoff { until, .. } if self.desired.is_some() => Some(*until),
            _ => None,
        }
    }

    /// Its state for the report. `missing` says which artifact is still to come, if one is.
    #[must_use]
    pub fn report(&self, missing: Option<String>, fits_now: bool) -> Option<WorkloadReport> {
        let d = self.desired.as_ref()?;
        use WorkloadState as W;
        let (state, reason, pid, adopted) = match &self.observed {
            Observed::Starting => (W::Starting, String::new(), 0, false),
            Observed::Running { pid, adopted, .. } => {
                let why = match (&missing, d.spec == self.row.spec) {
                    (Some(m), false) => format!("the version before runs on; {m}"),
                    _ => String::new(),
                };
                (W::Running, why, *pid, *adopted)
            }
            Observed::Stopping { why } => (W::Stopping, why.clone(), 0, false),
            Observed::Backoff { why, .. } => (W::Failed, why.clone(), 0, false),
            Observed::Finished { why } => (W::Finished, why.clone(), 0, false),
            Observed::CrashLoop { why } => (W::CrashLoop, why.clone(), 0, false),
            Observed::Idle { why } => match (&d.decision, missing) {
                (Decision::Wait(reason), _) => (W::Waiting, reason.clone(), 0, false),
                (Decision::Run, Some(m)) => (W::Fetching, m, 0, false),
                (Decision::Run, None) if !fits_now => (
                    W::Waiting,
                    "it waits until a workload that is being stopped has made room".into(),
                    0,
                    false,
                ),
                (Decision::Run, None) => (W::Waiting, why.clone(), 0, false),
            },
        };
        // While the version before still runs, the report must not claim the new one.
        let current = !self.is_live() || d.spec == self.row.spec;
        Some(WorkloadReport {
            id: self.row.id.clone(),
            app_generation: if current { d.workload.app_generation } else { 0 },
            epoch: d.asked_by.epoch,
            generation: d.asked_by.generation,
            state,
            reason: cnova_shared::limits::clip(&reason),
            attempt: self.row.attempt,
            pid,
            adopted,
        })
    }
}

fn live_of(w: &Workload) -> Live {
    Live {
        memory_bytes: w.memory_bytes,
        cpu_millis: w.cpu_millis,
        grace_ms: w.stop_grace_ms,
    }
}
