//! Pressure: what is ended when the node has too little memory or CPU for what it does, and when it comes back.
//!
//! The least important goes first, one at a time, so that each has time to help; the most important comes back first,
//! one at a time, after a long calm. What has to go again soon after it came back stays away twice as long.

use std::collections::{BTreeMap, BTreeSet};

use cnova_shared::ids::WorkloadId;

use super::Reason;

/// Pressure stall information of the kernel, averages over 10 seconds, in thousandths of the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Pressure {
    /// Something waited for memory.
    pub memory_some: u16,
    /// Everything waited for memory.
    pub memory_full: u16,
    /// Something waited for a CPU.
    pub cpu_some: u16,
}

/// Above any of these the node is under pressure.
const HIGH: Pressure = Pressure {
    memory_some: 200,
    memory_full: 50,
    cpu_some: 800,
};
/// Below all of these it is calm.
const LOW: Pressure = Pressure {
    memory_some: 50,
    memory_full: 10,
    cpu_some: 400,
};
/// Pressure lasts this long before something is ended.
const SHED_AFTER_MS: u64 = 10_000;
/// After something was ended, the averages get this long to fall.
const SETTLE_MS: u64 = 15_000;
/// Calm lasts this long before something comes back.
const RETURN_AFTER_MS: u64 = 60_000;
/// The longest that something stays away in calm.
const RETURN_MAX_MS: u64 = 3_600_000;
/// What is ended within this time after it came back stays away twice as long as before.
const AGAIN_MS: u64 = 600_000;
/// A reading counts for this long.
const STALE_MS: u64 = 60_000;
/// What has this priority is never ended for pressure.
const NEVER_SHED: u32 = 1000;

/// Something that was ended for pressure.
#[derive(Clone, Debug)]
struct Away {
    priority: u32,
    hold_ms: u64,
    why: String,
}

/// Something that came back.
#[derive(Clone, Copy, Debug)]
struct Back {
    at_ms: u64,
    hold_ms: u64,
}

/// Decides what is ended for pressure.
#[derive(Clone, Debug, Default)]
pub struct Shedder {
    latest: Option<(Pressure, u64)>,
    high_since: Option<u64>,
    calm_since: Option<u64>,
    changed_ms: u64,
    away: BTreeMap<WorkloadId, Away>,
    back: BTreeMap<WorkloadId, Back>,
    /// How the pressure was when it began; a reason that changed with every reading would be reported with every one.
    why: String,
    timeout: Option<u64>,
}

impl Shedder {
    /// Takes a reading.
    pub fn sample(&mut self, p: Pressure, mono_ms: u64) {
        let above = |limit: Pressure| {
            p.memory_some >= limit.memory_some || p.memory_full >= limit.memory_full || p.cpu_some >= limit.cpu_some
        };
        if above(HIGH) && self.high_since.is_none() {
            self.why = describe(p);
        }
        self.high_since = above(HIGH).then(|| self.high_since.unwrap_or(mono_ms));
        self.calm_since = (!above(LOW)).then(|| self.calm_since.unwrap_or(mono_ms));
        self.latest = Some((p, mono_ms));
    }

    /// What is away.
    pub fn shed(&self) -> impl Iterator<Item = &WorkloadId> {
        self.away.keys()
    }

    /// Why a workload is away, if it is.
    pub(super) fn reason(&self, id: &WorkloadId) -> Option<Reason> {
        self.away.get(id).map(|a| Reason::Shed(a.why.clone()))
    }

    /// Why nothing of this priority is started now, if so: room that was made must not be filled by something else.
    pub(super) fn hold(&self, priority: u32) -> Option<Reason> {
        let most_important = self.away.values().max_by_key(|a| a.priority)?;
        (priority <= most_important.priority).then(|| Reason::Pressure(most_important.why.clone()))
    }

    /// When something may change by time alone.
    pub(super) const fn timeout(&self) -> Option<u64> {
        self.timeout
    }

    /// Ends or brings back at most one of `running`, which is sorted from the most important down; true if it did.
    pub(super) fn update(
        &mut self,
        running: &[(WorkloadId, u32)],
        known: &BTreeSet<&WorkloadId>,
        mono_ms: u64,
    ) -> bool {
        self.away.retain(|id, _| known.contains(id));
        self.back
            .retain(|id, b| known.contains(id) && b.at_ms + AGAIN_MS + RETURN_MAX_MS > mono_ms);
        if self.latest.is_some_and(|(_, at)| at + STALE_MS <= mono_ms) {
            // Nobody measures any more: that is no reason to keep anything away.
            self.latest = None;
            self.high_since = None;
            self.calm_since = Some(mono_ms);
        }
        let changed = self.shed_one(running, mono_ms) || self.return_one(mono_ms);
        if changed {
            self.changed_ms = mono_ms;
        }
        self.timeout = self.next_change(running);
        changed
    }

    fn shed_due(&self) -> Option<u64> {
        let settled = if self.changed_ms == 0 {
            0
        } else {
            self.changed_ms + SETTLE_MS
        };
        self.high_since.map(|since| (since + SHED_AFTER_MS).max(settled))
    }

    /// The most important one that is away; it is the next to come back, so that no lesser one runs in its stead.
    fn next_back(&self) -> Option<(&WorkloadId, &Away)> {
        self.away
            .iter()
            .max_by(|a, b| a.1.priority.cmp(&b.1.priority).then_with(|| b.0.cmp(a.0)))
    }

    fn return_due(&self) -> Option<u64> {
        let (_, away) = self.next_back()?;
        self.calm_since.map(|since| since.max(self.changed_ms) + away.hold_ms)
    }

    fn next_change(&self, running: &[(WorkloadId, u32)]) -> Option<u64> {
        let shed = self.shed_due().filter(|_| running.iter().any(|(_, p)| *p < NEVER_SHED));
        let stale = self
            .latest
            .filter(|_| !self.away.is_empty() || self.high_since.is_some());
        [shed, self.return_due(), stale.map(|(_, at)| at + STALE_MS)]
            .into_iter()
            .flatten()
            .min()
    }

    fn shed_one(&mut self, running: &[(WorkloadId, u32)], mono_ms: u64) -> bool {
        if self.shed_due().is_none_or(|due| due > mono_ms) {
            return false;
        }
        let Some((id, priority)) = running.iter().rev().find(|(_, p)| *p < NEVER_SHED) else {
            return false;
        };
        let hold_ms = match self.back.get(id) {
            Some(b) if mono_ms < b.at_ms + AGAIN_MS => (b.hold_ms * 2).min(RETURN_MAX_MS),
            _ => RETURN_AFTER_MS,
        };
        let away = Away {
            priority: *priority,
            hold_ms,
            why: self.why.clone(),
        };
        self.away.insert(id.clone(), away);
        true
    }

    fn return_one(&mut self, mono_ms: u64) -> bool {
        if self.return_due().is_none_or(|due| due > mono_ms) {
            return false;
        }
        let Some(id) = self.next_back().map(|(id, _)| id.clone()) else {
            return false;
        };
        if let Some(away) = self.away.remove(&id) {
            self.back.insert(
                id,
                Back {
                    at_ms: mono_ms,
                    hold_ms: away.hold_ms,
                },
            );
        }
        true
    }
}

fn describe(p: Pressure) -> String {
    format!(
        "in 10 s something waited {} % of the time for memory, everything {} %, something {} % for a CPU",
        p.memory_some / 10,
        p.memory_full / 10,
        p.cpu_some / 10
    )
}
