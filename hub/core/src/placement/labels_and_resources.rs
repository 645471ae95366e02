//! The first placer: hard constraints, then the node with the most free memory.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::accelerators::{all_met, is_meant};
use super::{
    Constraint, CurrentPlacement, NodeResources, NodeRole, NodeView, Placement, Placer, Reason, WorkloadPlacement,
    required_accelerators,
};
use crate::cndl::{Replicas, WorkloadDef};
use crate::policy::AdmittedManifest;

/// Site, labels, runtime, accelerators, devices, memory and CPU are hard; among the nodes that remain the one with the most free memory
/// wins, then the smaller id.
///
/// A node that runs a workload keeps it while it still fits: all workloads keep what they have before any of them
/// gets something new. Among workloads the higher priority goes first, then the smaller name.
#[derive(Clone, Copy, Debug, Default)]
pub struct LabelsAndResources;

impl Placer for LabelsAndResources {
    fn place(&self, application: &AdmittedManifest, nodes: &[NodeView], current: &CurrentPlacement) -> Placement {
        let mut workloads: Vec<&WorkloadDef> = application.application().workloads.iter().collect();
        workloads.sort_by_key(|w| (Reverse(w.priority), w.name.as_str()));
        let mut board = Board::new(nodes);
        let kept: Vec<BTreeSet<usize>> = workloads.iter().map(|w| board.keep(w, current)).collect();
        let placed = workloads
            .iter()
            .zip(kept)
            .map(|(w, kept)| (w.name.clone(), board.complete(w, kept)))
            .collect();
        Placement {
            manifest: application.clone(),
            workloads: placed,
        }
    }
}

/// The nodes, by id, and what this application has taken of each so far.
struct Board<'a> {
    nodes: Vec<&'a NodeView>,
    taken: Vec<NodeResources>,
    /// Accelerators that workloads of this application were given here, by class or kind.
    claimed: BTreeMap<usize, Vec<String>>,
}

impl<'a> Board<'a> {
    fn new(nodes: &'a [NodeView]) -> Self {
        let mut nodes: Vec<&NodeView> = nodes.iter().collect();
        // Stable: of two with the same id the first stays.
        nodes.sort_by(|a, b| a.id.cmp(&b.id));
        nodes.dedup_by(|later, first| later.id == first.id);
        let taken = vec![NodeResources::default(); nodes.len()];
        Self {
            nodes,
            taken,
            claimed: BTreeMap::new(),
        }
    }

    /// Reserves the nodes that run the workload now and still can.
    fn keep(&mut self, workload: &WorkloadDef, current: &CurrentPlacement) -> BTreeSet<usize> {
        let ids = current.workloads.get(&workload.name).into_iter().flatten();
        let known = ids.filter_map(|id| self.nodes.binary_search_by(|n| n.id.cmp(id)).ok());
        let valid = known.filter(|i| self.verdict(workload, *i, true).is_none()).collect();
        self.take_best(workload, valid, wanted(workload))
    }

    /// Adds nodes until there are enough, and says of every other one why not.
    fn complete(&mut self, workload: &WorkloadDef, mut chosen: BTreeSet<usize>) -> WorkloadPlacement {
        let mut verdicts: Vec<(usize, Option<Reason>)> = (0..self.nodes.len())
            .filter(|i| !chosen.contains(i))
            .map(|i| (i, self.verdict(workload, i, false)))
            .collect();
        let candidates = verdicts
            .iter()
            .filter(|(_, reason)| reason.is_none())
            .map(|(i, _)| *i)
            .collect();
        let missing = wanted(workload).saturating_sub(chosen.len());
        chosen.extend(self.take_best(workload, candidates, missing));
        verdicts.retain(|(i, _)| !chosen.contains(i));
        // In the order of ids, from which a map is built without searching.
        let replicas = count(wanted(workload));
        let rejected: BTreeMap<String, Reason> = verdicts
            .into_iter()
            .map(|(i, reason)| {
                (
                    self.nodes[i].id.clone(),
                    reason.unwrap_or(Reason::NotNeeded { replicas }),
                )
            })
            .collect();
        let unplaced = match workload.placement.replicas {
            Replicas::Count(replicas) => replicas.saturating_sub(count(chosen.len())),
            Replicas::Each => self.selected_but_unable(workload, &rejected),
        };
        let summary = (unplaced > 0 || chosen.is_empty()).then(|| summarize(workload, unplaced, &rejected));
        let nodes = chosen.into_iter().map(|i| self.nodes[i].id.clone()).collect();
        WorkloadPlacement {
            nodes,
            rejected,
            unplaced,
            summary,
        }
    }

    /// Why the node cannot run the workload, or go on running it; `None` if it can.
    fn verdict(&self, workload: &WorkloadDef, index: usize, runs_there: bool) -> Option<Reason> {
        let node = self.nodes[index];
        let rule = &workload.placement;
        if node.revoked {
            return Some(Reason::Revoked);
        }
        if node.role != NodeRole::Agent {
            return Some(Reason::Role { role: node.role });
        }
        if !rule.site.matches(&node.site) {
            return Some(Reason::Site {
                site: node.site.clone(),
                pattern: rule.site.as_str().to_owned(),
            });
        }
        // Before labels and runtimes: of a node that never reported these may not be known yet.
        if !node.seen {
            return Some(Reason::NeverReported);
        }
        if let Some((key, wanted)) = rule.labels.iter().find(|(k, v)| node.labels.get(*k) != Some(v)) {
            let found = node.labels.get(key).cloned();
            return Some(Reason::Label {
                key: key.clone(),
                wanted: wanted.clone(),
                found,
            });
        }
        let meets = if runs_there { node.trust.keeps } else { node.trust.meets };
        if meets < rule.trust {
            return Some(Reason::Trust {
                wanted: rule.trust,
                why: node.trust.why.clone(),
            });
        }
        let runtime = workload.runtime.as_str();
        if !node.runtimes.iter().any(|r| r.name == runtime) {
            return Some(Reason::Runtime { name: runtime });
        }
        self.lacks(workload, index).or_else(|| self.shortage(workload, index))
    }

    /// An accelerator or a device that the node cannot give.
    fn lacks(&self, workload: &WorkloadDef, index: usize) -> Option<Reason> {
        let node = self.nodes[index];
        if let Some(name) = workload.devices.iter().find(|d| !node.devices.contains(d)) {
            return Some(Reason::Device {
                name: name.clone(),
                has: node.devices.clone(),
            });
        }
        let asked: Vec<&str> = required_accelerators(workload).collect();
        if asked.is_empty() {
            return None;
        }
        let has = || {
            node.accelerators
                .iter()
                .map(|a| format!("{} ({})", a.kind, a.class))
                .collect()
        };
        let nowhere = |claim: &&&str| !node.accelerators.iter().any(|a| is_meant(a, claim));
        if let Some(claim) = asked.iter().find(nowhere) {
            return Some(Reason::Accelerator {
                wanted: (*claim).to_owned(),
                has: has(),
            });
        }
        let claimed = self.claimed.get(&index).into_iter().flatten();
        let others = node.promised.iter().chain(claimed).map(String::as_str);
        // What was promised of accelerators that are gone is nobody's loss here.
        let others = others.filter(|o| node.accelerators.iter().any(|a| is_meant(a, o)));
        let all: Vec<&str> = others.chain(asked.iter().copied()).collect();
        (!all_met(&node.accelerators, &all)).then(|| Reason::AcceleratorPromised {
            wanted: asked.iter().map(ToString::to_string).collect(),
            has: has(),
        })
    }

    fn shortage(&self, workload: &WorkloadDef, index: usize) -> Option<Reason> {
        let capacity = self.nodes[index].capacity?;
        let free = self.free(index);
        let asked = ask(workload);
        if asked.memory_bytes > free.memory_bytes {
            let (asked, free, capacity) = (asked.memory_bytes, free.memory_bytes, capacity.memory_bytes);
            return Some(Reason::Memory { asked, free, capacity });
        }
        if asked.cpu_millis > free.cpu_millis {
            let (asked, free, capacity) = (asked.cpu_millis, free.cpu_millis, capacity.cpu_millis);
            return Some(Reason::Cpu { asked, free, capacity });
        }
        None
    }

    /// What is left; nothing where the node has not said what it has, so that it comes last.
    fn free(&self, index: usize) -> NodeResources {
        let node = self.nodes[index];
        let Some(capacity) = node.capacity else {
            return NodeResources::default();
        };
        let taken = self.taken[index];
        NodeResources {
            memory_bytes: capacity
                .memory_bytes
                .saturating_sub(node.used.memory_bytes)
                .saturating_sub(taken.memory_bytes),
            cpu_millis: capacity
                .cpu_millis
                .saturating_sub(node.used.cpu_millis)
                .saturating_sub(taken.cpu_millis),
        }
    }

    fn take_best(&mut self, workload: &WorkloadDef, mut candidates: Vec<usize>, most: usize) -> BTreeSet<usize> {
        // Nodes are sorted by id, so that the index decides between equals.
        candidates.sort_by_key(|i| (Reverse(self.free(*i).memory_bytes), *i));
        candidates.truncate(most);
        let asked = ask(workload);
        for index in &candidates {
            let taken = &mut self.taken[*index];
            taken.memory_bytes = taken.memory_bytes.saturating_add(asked.memory_bytes);
            taken.cpu_millis = taken.cpu_millis.saturating_add(asked.cpu_millis);
            let claims: Vec<String> = required_accelerators(workload).map(str::to_owned).collect();
            if !claims.is_empty() {
                self.claimed.entry(*index).or_default().extend(claims);
            }
        }
        candidates.into_iter().collect()
    }

    /// Nodes that `each` means, and that cannot take the workload.
    fn selected_but_unable(&self, workload: &WorkloadDef, rejected: &BTreeMap<String, Reason>) -> u32 {
        let labels = &workload.placement.labels;
        let unable = self.nodes.iter().filter(|node| {
            rejected.get(&node.id).is_some_and(|reason| match reason.constraint() {
                Constraint::Runtime
                | Constraint::Accelerator
                | Constraint::Device
                | Constraint::Memory
                | Constraint::Cpu => true,
                Constraint::NeverReported => labels.iter().all(|(k, v)| node.labels.get(k) == Some(v)),
                _ => false,
            })
        });
        count(unable.count())
    }
}

fn ask(workload: &WorkloadDef) -> NodeResources {
    let resources = workload.resources;
    NodeResources {
        memory_bytes: resources.memory_bytes.unwrap_or(0),
        cpu_millis: resources.cpu_millis,
    }
}

fn wanted(workload: &WorkloadDef) -> usize {
    match workload.placement.replicas {
        Replicas::Count(n) => usize::try_from(n).unwrap_or(usize::MAX),
        Replicas::Each => usize::MAX,
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// `1 of 2 replicas without a node: 9 other nodes ruled out, 5 by site, 4 by memory`.
fn summarize(workload: &WorkloadDef, unplaced: u32, rejected: &BTreeMap<String, Reason>) -> String {
    let mut by_constraint: BTreeMap<Constraint, usize> = BTreeMap::new();
    for reason in rejected.values() {
        *by_constraint.entry(reason.constraint()).or_default() += 1;
    }
    let mut counts: Vec<(usize, Constraint)> = by_constraint.into_iter().map(|(c, n)| (n, c)).collect();
    counts.sort_by_key(|(n, c)| (Reverse(*n), *c));
    let what = match workload.placement.replicas {
        Replicas::Count(replicas) => format!("{unplaced} of {replicas} replicas without a node"),
        Replicas::Each if unplaced == 0 => "no node is selected".to_owned(),
        Replicas::Each => format!("{unplaced} selected nodes cannot take it"),
    };
    if counts.is_empty() {
        return format!("{what}: there are no other nodes");
    }
    let list: Vec<String> = counts.iter().map(|(n, c)| format!("{n} by {c}")).collect();
    format!("{what}: {} other nodes ruled out, {}", rejected.len(), list.join(", "))
}
