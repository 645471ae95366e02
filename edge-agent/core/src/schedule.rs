//! Which workloads of a twin run on what the node really has, now. The same inputs give the same decisions, and every
//! workload that does not run has a reason.
//!
//! A decision is made in this order, and the first reason that is found is the one that is told: what the node lacks
//! (runtime, device), what the node cannot prove of itself, the clock (cron, windows), power, what must come first (dependencies), pressure, and at last room:
//! memory, CPU and accelerators are given out from the highest priority down.

mod admit;
mod needs;
mod pressure;
mod reason;
mod times;

use std::collections::{BTreeMap, BTreeSet};

use cnova_shared::ids::WorkloadId;
use cnova_shared::wire::v1::{Capabilities, PowerLevel, Workload};

pub use admit::matches_claim;
pub use pressure::{Pressure, Shedder};
pub use reason::Reason;
pub(crate) use reason::word as power_word;
pub use times::{Gate, LATE_MIN_S, Opening, RECHECK_MS, opening};

use times::Times;

use crate::standing::Bar;

/// Whether a workload runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It runs, or is started.
    Run {
        /// The accelerators that it holds.
        leases: Vec<String>,
        /// The firing of its schedule that it runs for, seconds since 1970; 0 without a schedule.
        occurrence: u64,
    },
    /// It is not started now. If it runs, it runs on.
    Hold(Reason),
    /// It must not run.
    Wait(Reason),
}

impl Decision {
    /// Runs, with no accelerator and no schedule.
    #[must_use]
    pub const fn run() -> Self {
        Self::Run {
            leases: Vec::new(),
            occurrence: 0,
        }
    }

    /// Why it does not run, if it does not.
    #[must_use]
    pub const fn reason(&self) -> Option<&Reason> {
        match self {
            Self::Run { .. } => None,
            Self::Hold(reason) | Self::Wait(reason) => Some(reason),
        }
    }
}

/// How far a workload has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// No process, nothing in the way.
    Idle,
    /// No process; it failed and is started again after a pause.
    Backoff,
    /// A process comes up.
    Starting,
    /// It runs.
    Running {
        /// Whether it says that it is well.
        healthy: bool,
    },
    /// It was told to stop.
    Stopping,
    /// It ended by itself.
    Finished {
        /// As it should.
        ok: bool,
    },
    /// It failed too often.
    CrashLoop,
}

impl Progress {
    /// Whether a process may exist.
    #[must_use]
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Starting | Self::Running { .. } | Self::Stopping)
    }

    /// Whether it keeps its place before others of the same priority.
    const fn holds(self) -> bool {
        self.is_live() || matches!(self, Self::Backoff)
    }

    /// Whether it ended and stays so, unless its schedule fires again.
    const fn is_over(self) -> bool {
        matches!(self, Self::Finished { .. } | Self::CrashLoop)
    }
}

/// One workload as the scheduler sees it.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// What is to run.
    pub workload: &'a Workload,
    /// How far it has come.
    pub progress: Progress,
    /// The accelerators that its process holds.
    pub leases: &'a [String],
    /// The newest firing of its schedule that is dealt with, seconds since 1970.
    pub fired_s: u64,
    /// Whether it was started for that firing and has not come to its end: it is started again whatever the clock says.
    pub pending: bool,
    /// What the node cannot prove of itself and the workload asks for.
    pub bar: Option<Bar>,
    /// Whether it is another version than the one that was started last.
    pub is_update: bool,
}

/// The node as the scheduler sees it.
#[derive(Clone, Debug)]
pub struct Node<'a> {
    /// What it has for workloads.
    pub capabilities: &'a Capabilities,
    /// Its supply with power and cooling.
    pub power: PowerLevel,
    /// Why it is so, for a person.
    pub power_why: &'a str,
    /// Seconds since 1970, if the clock can be trusted.
    pub clock_s: Option<u64>,
    /// Monotonic milliseconds.
    pub mono_ms: u64,
}

/// What is remembered from one decision to the next.
#[derive(Clone, Debug, Default)]
pub struct Scheduler {
    times: Times,
    shedder: Shedder,
}

/// A candidate with what was found out about it.
struct Entry<'a> {
    candidate: &'a Candidate<'a>,
    /// Its own priority, or that of the most important workload that needs it.
    priority: u32,
    gate: Gate,
}

impl Entry<'_> {
    fn id(&self) -> &WorkloadId {
        &self.candidate.workload.id
    }
}

impl Scheduler {
    /// Takes a reading of the node's pressure.
    pub fn sample(&mut self, pressure: Pressure, mono_ms: u64) {
        self.shedder.sample(pressure, mono_ms);
    }

    /// What was shed for pressure.
    pub fn shed(&self) -> impl Iterator<Item = &WorkloadId> {
        self.shedder.shed()
    }

    /// When a decision may change by time alone, monotonic milliseconds.
    #[must_use]
    pub fn timeout(&self) -> Option<u64> {
        [self.times.timeout(), self.shedder.timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Decides for all workloads of a node.
    pub fn decide(&mut self, candidates: &[Candidate<'_>], node: &Node<'_>) -> BTreeMap<WorkloadId, Decision> {
        let priorities = needs::effective_priorities(candidates);
        self.times.begin(candidates, node);
        let mut entries: Vec<Entry<'_>> = candidates
            .iter()
            .map(|candidate| Entry {
                priority: priorities.get(&candidate.workload.id).copied().unwrap_or_default(),
                gate: self.times.gate(candidate.workload, candidate.fired_s, node),
                candidate,
            })
            .collect();
        // What runs stays before what would like to: two of the same priority never take turns.
        entries.sort_by(|a, b| {
            let key = |e: &Entry<'_>| (std::cmp::Reverse(e.priority), !e.candidate.progress.holds());
            key(a).cmp(&key(b)).then_with(|| a.id().cmp(b.id()))
        });
        let decided = self.round(&entries, candidates, node);
        let order: Vec<(WorkloadId, u32)> = entries
            .iter()
            .filter(|e| e.candidate.progress.is_live() && matches!(decided.get(e.id()), Some(Decision::Run { .. })))
            .map(|e| (e.id().clone(), e.priority))
            .collect();
        let known: BTreeSet<&WorkloadId> = candidates.iter().map(|c| &c.workload.id).collect();
        if self.shedder.update(&order, &known, node.mono_ms) {
            return self.round(&entries, candidates, node);
        }
        decided
    }

    fn round(
        &self,
        entries: &[Entry<'_>],
        candidates: &[Candidate<'_>],
        node: &Node<'_>,
    ) -> BTreeMap<WorkloadId, Decision> {
        let mut room = admit::Room::new(node.capabilities, entries);
        let mut decisions = BTreeMap::new();
        for entry in entries {
            let decision = self.one(entry, candidates, node, &mut room);
            decisions.insert(entry.id().clone(), decision);
        }
        decisions
    }

    fn one(
        &self,
        entry: &Entry<'_>,
        candidates: &[Candidate<'_>],
        node: &Node<'_>,
        room: &mut admit::Room<'_>,
    ) -> Decision {
        let Candidate { workload, progress, .. } = entry.candidate;
        if let Some(reason) = admit::lacks(workload, node.capabilities).or_else(|| must_not(workload, entry, node)) {
            return Decision::Wait(reason);
        }
        if let Some(Bar::Wait(why)) = &entry.candidate.bar {
            return Decision::Wait(Reason::Trust(why.clone()));
        }
        if let Some(reason) = self.shedder.reason(&workload.id) {
            return Decision::Wait(reason);
        }
        let live = progress.is_live();
        if progress.is_over() && !entry.gate.is_fresh() {
            return Decision::Hold(match entry.gate.hold() {
                Some(reason) => reason,
                None => Reason::Over,
            });
        }
        if !live {
            let held = entry
                .gate
                .hold()
                .filter(|_| !entry.candidate.pending)
                .or_else(|| held_for_trust(entry.candidate))
                .or_else(|| needs::unmet(workload, candidates))
                .or_else(|| self.shedder.hold(entry.priority));
            if let Some(reason) = held {
                return Decision::Hold(reason);
            }
        }
        match (room.take(entry), held_for_trust(entry.candidate)) {
            // The version before runs on until the new one may be trusted.
            (Ok(_), Some(reason)) if entry.candidate.is_update => Decision::Hold(reason),
            (Ok(leases), _) => Decision::Run {
                leases,
                occurrence: entry.gate.occurrence(),
            },
            (Err(reason), _) => Decision::Wait(reason),
        }
    }
}

fn held_for_trust(candidate: &Candidate<'_>) -> Option<Reason> {
    match &candidate.bar {
        Some(Bar::Hold(why)) => Some(Reason::Trust(why.clone())),
        _ => None,
    }
}

/// What ends even a running workload: a window that is closed, and too little power.
fn must_not(workload: &Workload, entry: &Entry<'_>, node: &Node<'_>) -> Option<Reason> {
    if let Gate::Closed { next_s } = entry.gate {
        return Some(Reason::WindowClosed {
            next: times::in_zone(workload, next_s),
        });
    }
    (node.power < workload.power).then(|| Reason::Power {
        have: node.power,
        needs: workload.power,
        why: node.power_why.to_owned(),
    })
}
