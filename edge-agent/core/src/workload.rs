//! One state machine per workload: what is desired against what is observed, and the one step to take next.

mod proof;
mod report;
mod trial;

use cnova_shared::ids::{Digest, WorkloadId};
use cnova_shared::twin::Version;
use cnova_shared::wire::v1::{Restart, RestartPolicy, SealedSecret, Workload};

use crate::ledger::{InstanceRow, Phase};
use crate::schedule::{Decision, Progress};

pub use report::Lack;
pub use trial::GOOD_AFTER_MS;

/// A run at least this long, in milliseconds, or as long as the longest pause, forgives the failures before it.
pub const FORGIVEN_AFTER_MS: u64 = 10_000;

/// What is desired of a workload.
#[derive(Clone, Debug)]
pub struct Desired {
    /// The workload, from a verified twin.
    pub workload: Workload,
    /// Its digest, see [`spec_digest`].
    pub spec: Digest,
    /// The secrets that it uses, encrypted to this node.
    pub secrets: Vec<SealedSecret>,
    /// The twin that last changed it.
    pub asked_by: Version,
}

/// What is observed of it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Observed {
    /// No process.
    Idle { why: String },
    /// Told to start.
    Starting,
    /// A process runs.
    Running(Running),
    /// Told to stop. `failed` if that was because it failed.
    Stopping { why: String, failed: bool },
    /// Ended; started again at this monotonic time.
    Backoff { until: u64, why: String },
    /// Ended as it may.
    Finished { why: String },
    /// Failed too often.
    CrashLoop { why: String },
}

/// A process that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Running {
    pid: u32,
    adopted: bool,
    /// Since when it is known to run, monotonic milliseconds.
    since_ms: u64,
    /// Since when it has said without interruption that it is well.
    healthy_since: Option<u64>,
    /// Bad answers in a row after a good one.
    bad_answers: u32,
    /// What the last bad answer said.
    unwell: String,
    /// Why it has to be ended as failed.
    failing: Option<String>,
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
    decision: Decision,
    observed: Observed,
    live: Option<Live>,
    /// Since when the desired version is tried, monotonic milliseconds; nothing once it has proved good.
    trial_since: Option<u64>,
    /// Why the version before runs again.
    returned_why: String,
    /// Why the desired version's provenance does not hold.
    unproven: Option<String>,
    /// Makes pauses differ between nodes that fail at the same moment.
    salt: u64,
    is_changed: bool,
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

/// A clock may be set back by this much, seconds, without a firing of a schedule coming twice.
const CLOCK_STEP_S: u64 = 3600;

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
    /// A workload that has never run here. Its schedule counts from `now_s`, seconds since 1970.
    #[must_use]
    pub fn new(id: WorkloadId, salt: u64, now_s: u64) -> Self {
        let row = InstanceRow {
            fired_s: now_s,
            ..InstanceRow::new(id)
        };
        Self::with(row, Observed::Idle { why: String::new() }, salt)
    }

    /// A workload as the ledger remembers it, with no process until [`Machine::found`] says otherwise.
    #[must_use]
    pub fn from_row(row: InstanceRow, salt: u64, mono_ms: u64) -> Self {
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
        Self::with(row, observed, salt)
    }

    fn with(row: InstanceRow, observed: Observed, salt: u64) -> Self {
        Self {
            row,
            desired: None,
            decision: Decision::run(),
            observed,
            live: None,
            trial_since: None,
            returned_why: String::new(),
            unproven: None,
            salt,
            is_changed: false,
        }
    }

    /// A live process of this workload was found at boot.
    pub fn found(&mut self, attempt: u32, spec: Digest, pid: u32, mono_ms: u64) {
        self.row.attempt = self.row.attempt.max(attempt);
        self.row.spec = spec;
        self.row.phase = Phase::Active;
        self.observed = Observed::Running(Running {
            pid,
            adopted: true,
            since_ms: mono_ms,
            ..Running::default()
        });
        self.live = Some(Live {
            memory_bytes: self.row.memory_bytes,
            cpu_millis: self.row.cpu_millis,
            grace_ms: ORPHAN_GRACE_MS,
        });
    }

    /// The ledger's row.
    #[must_use]
    pub fn row(&self) -> &InstanceRow {
        &self.row
    }

    /// Whether the row changed by itself since this was asked last.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.is_changed)
    }

    /// A firing that lies well in the future was noted by a wrong clock and would keep its schedule from firing again.
    pub fn forget_future(&mut self, now_s: u64) {
        if self.row.fired_s > now_s + CLOCK_STEP_S {
            self.row.fired_s = now_s;
            self.is_changed = true;
        }
    }

    /// What is desired of it.
    #[must_use]
    pub fn desired(&self) -> Option<&Desired> {
        self.desired.as_ref()
    }

    /// The twin that asked for what is to run.
    #[must_use]
    pub fn target_version(&self) -> Version {
        match (&self.row.good, &self.desired) {
            (Some(good), _) if self.has_returned() => good.version(),
            (_, Some(desired)) => desired.asked_by,
            _ => Version::default(),
        }
    }

    /// What is to run: the desired version, or the last good one where that one proved bad.
    #[must_use]
    pub fn target(&self) -> Option<&Workload> {
        let desired = self.desired.as_ref()?;
        match &self.row.good {
            Some(good) if self.has_returned() => Some(&good.workload),
            _ => Some(&desired.workload),
        }
    }

    /// The secrets of what is to run.
    #[must_use]
    pub fn target_secrets(&self) -> &[SealedSecret] {
        match (&self.row.good, &self.desired) {
            (Some(good), _) if self.has_returned() => &good.secrets,
            (_, Some(desired)) => &desired.secrets,
            _ => &[],
        }
    }

    pub(crate) fn target_spec(&self) -> Option<Digest> {
        let desired = self.desired.as_ref()?;
        match &self.row.good {
            Some(good) if self.has_returned() => Some(spec_digest(&good.workload)),
            _ => Some(desired.spec),
        }
    }

    /// How far it has come, for the scheduler.
    #[must_use]
    pub fn progress(&self) -> Progress {
        match &self.observed {
            Observed::Idle { .. } => Progress::Idle,
            Observed::Starting => Progress::Starting,
            Observed::Running(r) => Progress::Running {
                healthy: r.healthy_since.is_some(),
            },
            Observed::Stopping { .. } => Progress::Stopping,
            Observed::Backoff { .. } => Progress::Backoff,
            Observed::Finished { .. } => Progress::Finished { ok: self.row.ok },
            Observed::CrashLoop { .. } => Progress::CrashLoop,
        }
    }

    /// Whether it was started and neither ended by itself nor runs: a power cut, a failure or the scheduler came between.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        !self.is_live() && matches!(self.row.phase, Phase::Active | Phase::Backoff)
    }

    /// Whether a process may exist.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.progress().is_live()
    }

    /// Whether it runs, and its last answer was not a bad one.
    #[must_use]
    pub const fn is_well(&self) -> bool {
        matches!(&self.observed, Observed::Running(r) if r.unwell.is_empty())
    }

    /// Memory and CPU that a process of it may be using.
    #[must_use]
    pub fn live_cost(&self) -> (u64, u64) {
        match (self.is_live(), self.live) {
            (true, Some(l)) => (l.memory_bytes, l.cpu_millis),
            _ => (0, 0),
        }
    }

    /// The accelerators that a process of it may hold.
    #[must_use]
    pub fn live_leases(&self) -> &[String] {
        if self.is_live() { &self.row.leases } else { &[] }
    }

    /// The scheduler's decision.
    #[must_use]
    pub fn decision(&self) -> &Decision {
        &self.decision
    }

    /// Sets what is desired.
    pub fn set_desired(&mut self, desired: Option<Desired>, mono_ms: u64) {
        let changed = match (&self.desired, &desired) {
            (Some(a), Some(b)) => a.spec != b.spec,
            _ => true,
        };
        let was_known = self.desired.is_some();
        if let (false, Observed::Running(r)) = (was_known, &mut self.observed) {
            // Nobody could tell until now in which time it has to become healthy.
            r.since_ms = mono_ms;
        }
        self.desired = desired;
        let Some(d) = &self.desired else { return };
        let spec = d.spec;
        // The same version, encrypted to another key of this node.
        if let Some(good) = &mut self.row.good
            && good.secrets != d.secrets
            && spec_digest(&good.workload) == spec
        {
            good.secrets.clone_from(&d.secrets);
            self.is_changed = true;
        }
        // Another version is another chance.
        if self.row.bad.is_some_and(|bad| bad != spec) {
            self.row.bad = None;
            self.is_changed = true;
        }
        if changed {
            self.trial_since = None;
            self.unproven = None;
        }
        if self.is_live() && self.target_spec() == Some(self.row.spec) {
            self.live = self.target().map(live_of);
        }
        // Another specification is another chance; the same one after a restart of the agent is not.
        if changed && !self.is_live() && (was_known || self.target_spec() != Some(self.row.spec)) {
            self.row.failures = 0;
            self.observed = Observed::Idle { why: String::new() };
        }
    }

    /// Takes the scheduler's decision. A firing of its schedule wakes what has ended.
    pub fn decide(&mut self, decision: Decision, mono_ms: u64) {
        if let Decision::Run { occurrence, .. } = &decision
            && *occurrence > self.row.fired_s
        {
            if self.progress().is_live() {
                // It runs already; two at once are never meant. A window that it runs in is dealt with.
                self.row.fired_s = *occurrence;
                self.is_changed = true;
            } else if matches!(self.observed, Observed::Finished { .. } | Observed::CrashLoop { .. }) {
                self.row.failures = 0;
                self.observed = Observed::Idle { why: String::new() };
            }
        }
        self.decision = decision;
        // A new version that has no room when it is to replace the one before is on trial as well.
        if self.lacks_room() && self.may_return() {
            self.trial_since.get_or_insert(mono_ms);
        }
    }

    /// The step to take, given whether all artifacts of the target are here and proved, and whether it fits beside what is live.
    /// The caller performs it and calls [`Machine::starting`] or [`Machine::stopping`].
    #[must_use]
    pub fn step(&self, artifacts_here: bool, fits_now: bool) -> Step {
        let Some(target) = self.target_spec() else {
            return match &self.observed {
                Observed::Starting | Observed::Running(_) => self.stop(),
                Observed::Stopping { .. } => Step::None,
                _ => Step::Remove,
            };
        };
        let runs = matches!(self.decision, Decision::Run { .. });
        match &self.observed {
            Observed::Starting | Observed::Running(_) => {
                let replaced = target != self.row.spec && artifacts_here && runs;
                let failing = matches!(&self.observed, Observed::Running(r) if r.failing.is_some());
                if failing || replaced || matches!(self.decision, Decision::Wait(_)) {
                    self.stop()
                } else {
                    Step::None
                }
            }
            Observed::Idle { .. } if runs && artifacts_here && fits_now => Step::Start,
            _ => Step::None,
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
    pub fn starting(&mut self, mono_ms: u64) {
        let (Some(target), Some(workload)) = (self.target_spec(), self.target()) else {
            return;
        };
        let live = live_of(workload);
        self.live = Some(live);
        self.row.memory_bytes = live.memory_bytes;
        self.row.cpu_millis = live.cpu_millis;
        self.row.attempt += 1;
        if self.row.spec != target {
            self.row.failures = 0;
        }
        self.row.spec = target;
        self.row.phase = Phase::Active;
        if let Decision::Run { leases, occurrence } = &self.decision {
            self.row.leases.clone_from(leases);
            self.row.fired_s = self.row.fired_s.max(*occurrence);
        }
        self.observed = Observed::Starting;
        self.begin_trial(mono_ms);
    }

    /// The instance was told to stop.
    pub fn stopping(&mut self) {
        let failing = match &self.observed {
            Observed::Running(r) => r.failing.clone(),
            _ => None,
        };
        let why = match (&self.desired, &self.decision) {
            _ if failing.is_some() => failing.clone().unwrap_or_default(),
            (None, _) => "it is not in the twin any more".to_owned(),
            (Some(_), Decision::Wait(reason)) => reason.to_string(),
            (Some(_), _) => "a new version replaces it".to_owned(),
        };
        let failed = failing.is_some();
        self.observed = Observed::Stopping { why, failed };
    }

    /// The runtime says that it runs.
    pub fn started(&mut self, pid: u32, mono_ms: u64) {
        if self.observed == Observed::Starting {
            self.observed = Observed::Running(Running {
                pid,
                since_ms: mono_ms,
                ..Running::default()
            });
        }
    }

    /// The runtime says that it ended.
    pub fn exited(&mut self, ok: bool, detail: &str, mono_ms: u64) {
        let (ok, detail, ran_ms) = match &self.observed {
            Observed::Running(r) => (ok, detail.to_owned(), mono_ms.saturating_sub(r.since_ms)),
            Observed::Stopping { why, failed: true } => (false, why.clone(), 0),
            Observed::Stopping { why, .. } => {
                self.observed = Observed::Idle { why: why.clone() };
                self.live = None;
                return;
            }
            _ => (ok, detail.to_owned(), 0),
        };
        self.live = None;
        let Some(target) = self.target() else {
            self.observed = Observed::Idle { why: detail };
            return;
        };
        let mut restart = target.restart.clone();
        // What its schedule starts ends by itself and waits for the next time.
        let is_job = target.schedule.as_ref().is_some_and(|s| s.window_seconds.is_none());
        if is_job && restart.policy == RestartPolicy::Always {
            restart.policy = RestartPolicy::OnFailure;
        }
        self.ended(ok, &detail, ran_ms, &restart, mono_ms);
    }

    fn ended(&mut self, ok: bool, detail: &str, ran_ms: u64, restart: &Restart, mono_ms: u64) {
        let why = detail.to_owned();
        let again = match restart.policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => !ok,
            RestartPolicy::Never => false,
        };
        self.row.ok = ok;
        if ok {
            self.prove_good();
        }
        if !again {
            self.row.phase = Phase::Finished;
            self.observed = Observed::Finished { why: why.clone() };
            if !ok {
                self.give_up_trial(&why);
            }
            return;
        }
        if ok || ran_ms >= restart.backoff_max_ms.max(FORGIVEN_AFTER_MS) {
            self.row.failures = 0;
        }
        self.row.failures += u32::from(!ok);
        if self.row.failures >= restart.crash_loop_after.max(1) {
            self.row.phase = Phase::CrashLoop;
            let told = format!(
                "{} failures in a row, the last: {why}; it is started again when its twin changes",
                self.row.failures
            );
            self.observed = Observed::CrashLoop { why: told };
            self.give_up_trial(&why);
            return;
        }
        self.row.phase = Phase::Backoff;
        let until = mono_ms + self.pause_ms(restart);
        self.observed = Observed::Backoff {
            until,
            why: why.clone(),
        };
        if !ok && self.is_trial_over(mono_ms) {
            self.give_up_trial(&why);
        }
    }

    /// The pause before the next attempt: it doubles, and a part of up to a quarter is left off so that nodes that fail
    /// together do not come back together. The same node, workload and attempt have the same pause.
    fn pause_ms(&self, restart: &Restart) -> u64 {
        let doublings = self.row.failures.saturating_sub(1).min(20);
        let pause = restart
            .backoff_min_ms
            .saturating_mul(1 << doublings)
            .min(restart.backoff_max_ms);
        let seed = format!("{}/{}#{}", self.salt, self.row.id, self.row.attempt);
        let digest = Digest::of(seed.as_bytes()).0;
        let random = u64::from(u16::from_le_bytes([digest[0], digest[1]]));
        pause - pause / 4 * random / u64::from(u16::MAX)
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
        let pause = match &self.observed {
            Observed::Backoff { until, .. } if self.desired.is_some() => Some(*until),
            _ => None,
        };
        [pause, self.trial_timeout()].into_iter().flatten().min()
    }
}

fn live_of(w: &Workload) -> Live {
    Live {
        memory_bytes: w.memory_bytes,
        cpu_millis: w.cpu_millis,
        grace_ms: w.stop_grace_ms,
    }
}
