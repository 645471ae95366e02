//! What must come first.

use std::collections::{BTreeMap, BTreeSet};

use cnova_shared::ids::WorkloadId;
use cnova_shared::wire::v1::{DependencyCondition, Workload};

use super::{Candidate, Progress, Reason};

/// Each workload's own priority, or that of the most important one that needs it, directly or by others. Otherwise
/// something unimportant could keep something important from starting.
pub(super) fn effective_priorities(candidates: &[Candidate<'_>]) -> BTreeMap<WorkloadId, u32> {
    let by_id: BTreeMap<&WorkloadId, &Candidate<'_>> = candidates.iter().map(|c| (&c.workload.id, c)).collect();
    let mut effective: BTreeMap<WorkloadId, u32> = candidates
        .iter()
        .map(|c| (c.workload.id.clone(), c.workload.priority))
        .collect();
    for candidate in candidates {
        // What has ended needs nothing any more.
        if candidate.progress.is_over() {
            continue;
        }
        let priority = candidate.workload.priority;
        let mut seen = BTreeSet::new();
        let mut open: Vec<&WorkloadId> = candidate.workload.needs.iter().map(|d| &d.id).collect();
        while let Some(id) = open.pop() {
            let (true, Some(needed)) = (seen.insert(id), by_id.get(id)) else {
                continue;
            };
            if let Some(e) = effective.get_mut(id) {
                *e = (*e).max(priority);
            }
            // Nor does it pass on what others need of it.
            if !needed.progress.is_over() {
                open.extend(needed.workload.needs.iter().map(|d| &d.id));
            }
        }
    }
    effective
}

/// The first dependency that has not come far enough.
pub(super) fn unmet(workload: &Workload, candidates: &[Candidate<'_>]) -> Option<Reason> {
    let unmet = workload.needs.iter().find_map(|dependency| {
        let found = candidates.iter().find(|c| c.workload.id == dependency.id);
        let progress = found.map(|c| c.progress);
        (!is_met(dependency.condition, progress)).then(|| Reason::Needs {
            id: dependency.id.clone(),
            condition: dependency.condition,
            found: describe(progress).to_owned(),
        })
    })?;
    Some(cycle(workload, candidates).map_or(unmet, Reason::Cycle))
}

fn is_met(condition: DependencyCondition, progress: Option<Progress>) -> bool {
    match (condition, progress) {
        (DependencyCondition::Started, Some(Progress::Running { .. })) => true,
        (DependencyCondition::Healthy, Some(Progress::Running { healthy })) => healthy,
        // What was to run once, and did, is no longer in the way of what only wanted it to have begun.
        (_, Some(Progress::Finished { ok })) => ok,
        _ => false,
    }
}

const fn describe(progress: Option<Progress>) -> &'static str {
    match progress {
        None => "is not on this node",
        Some(Progress::Idle) => "does not run yet",
        Some(Progress::Backoff) => "failed and is started again after a pause",
        Some(Progress::Starting) => "is starting",
        Some(Progress::Running { healthy: true }) => "runs",
        Some(Progress::Running { healthy: false }) => "runs and is not healthy yet",
        Some(Progress::Stopping) => "is being stopped",
        Some(Progress::Finished { ok: true }) => "has finished",
        Some(Progress::Finished { ok: false }) => "ended with an error",
        Some(Progress::CrashLoop) => "failed too often",
    }
}

/// The way from a workload back to itself, if there is one.
fn cycle(workload: &Workload, candidates: &[Candidate<'_>]) -> Option<Vec<WorkloadId>> {
    let mut came_from: BTreeMap<&WorkloadId, &WorkloadId> = BTreeMap::new();
    let mut open = vec![&workload.id];
    while let Some(id) = open.pop() {
        let needs = candidates
            .iter()
            .find(|c| c.workload.id == *id)
            .map(|c| &c.workload.needs);
        for dependency in needs.into_iter().flatten() {
            if dependency.id == workload.id {
                let mut way = vec![workload.id.clone(), id.clone()];
                let mut at = id;
                while let Some(before) = came_from.get(at).filter(|_| *at != workload.id) {
                    way.push((*before).clone());
                    at = before;
                }
                way.reverse();
                // Needed by itself directly: once is enough.
                way.dedup();
                if way.len() == 1 {
                    way.push(workload.id.clone());
                }
                return Some(way);
            }
            if !came_from.contains_key(&dependency.id) {
                came_from.insert(&dependency.id, id);
                open.push(&dependency.id);
            }
        }
    }
    None
}
