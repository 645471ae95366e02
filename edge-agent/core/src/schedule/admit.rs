//! Room: memory, CPU and accelerators, given out from the highest priority down.

use std::collections::BTreeMap;

use cnova_shared::ids::WorkloadId;
use cnova_shared::wire::v1::{Accelerator, AcceleratorClaim, Capabilities, Workload};

use super::reason::Holder;
use super::{Entry, Reason};

/// What the node lacks whoever else runs.
pub(super) fn lacks(workload: &Workload, node: &Capabilities) -> Option<Reason> {
    if !node.runtimes.iter().any(|r| r.name == workload.runtime) {
        return Some(Reason::Runtime {
            runtime: workload.runtime.clone(),
            installed: node.runtimes.iter().map(|r| r.name.clone()).collect(),
        });
    }
    if let Some(device) = workload.devices.iter().find(|d| !node.devices.contains(d)) {
        return Some(Reason::Device {
            device: device.clone(),
            offered: node.devices.clone(),
        });
    }
    let claim = workload
        .accelerators
        .iter()
        .find(|c| !c.optional && !node.accelerators.iter().any(|a| matches_claim(a, c)))?;
    Some(Reason::NoAccelerator {
        kind: claim.kind.clone(),
        present: node
            .accelerators
            .iter()
            .map(|a| format!("{} ({})", a.id, a.kind))
            .collect(),
    })
}

/// Whether an accelerator is what a claim asks for: by class (`npu`) or by kind (`hailo-8`).
#[must_use]
pub fn matches_claim(accelerator: &Accelerator, claim: &AcceleratorClaim) -> bool {
    accelerator.class == claim.kind || accelerator.kind == claim.kind
}

/// What is left.
pub(super) struct Room<'a> {
    node: &'a Capabilities,
    memory: u64,
    cpu: u64,
    /// Accelerator to who has it by this decision.
    leased: BTreeMap<&'a str, Holder>,
    /// Accelerator to who holds it with a live process.
    held: BTreeMap<&'a str, &'a WorkloadId>,
    taken: Vec<(Holder, u64, u64)>,
}

impl<'a> Room<'a> {
    pub(super) fn new(node: &'a Capabilities, entries: &'a [Entry<'a>]) -> Self {
        let held = entries
            .iter()
            .filter(|e| e.candidate.progress.is_live())
            .flat_map(|e| e.candidate.leases.iter().map(|l| (l.as_str(), e.id())))
            .collect();
        Self {
            node,
            memory: node.memory_bytes,
            cpu: node.cpu_millis,
            leased: BTreeMap::new(),
            held,
            taken: Vec::new(),
        }
    }

    /// Takes what a workload asks for, or nothing; the accelerators that it gets.
    pub(super) fn take(&mut self, entry: &Entry<'_>) -> Result<Vec<String>, Reason> {
        let w = entry.candidate.workload;
        if w.memory_bytes > self.memory {
            return Err(Reason::Memory {
                asks: w.memory_bytes,
                left: self.memory,
                of: self.node.memory_bytes,
                by: self.largest(|t| t.1),
            });
        }
        if w.cpu_millis > self.cpu {
            return Err(Reason::Cpu {
                asks: w.cpu_millis,
                left: self.cpu,
                of: self.node.cpu_millis,
                by: self.largest(|t| t.2),
            });
        }
        let leases = self.lease(entry)?;
        let holder = Holder {
            id: w.id.clone(),
            priority: entry.priority,
        };
        for id in &leases {
            if let Some(a) = self.node.accelerators.iter().find(|a| a.id == *id) {
                self.leased.insert(&a.id, holder.clone());
            }
        }
        self.memory -= w.memory_bytes;
        self.cpu -= w.cpu_millis;
        self.taken.push((holder, w.memory_bytes, w.cpu_millis));
        Ok(leases)
    }

    /// Those who have most of something, most first.
    fn largest(&self, of: impl Fn(&(Holder, u64, u64)) -> u64) -> Vec<Holder> {
        let mut taken: Vec<_> = self.taken.iter().filter(|t| of(t) > 0).collect();
        taken.sort_by_key(|t| std::cmp::Reverse(of(t)));
        taken.into_iter().map(|t| t.0.clone()).collect()
    }

    fn lease(&self, entry: &Entry<'_>) -> Result<Vec<String>, Reason> {
        let candidate = entry.candidate;
        let (claims, live) = (&candidate.workload.accelerators, candidate.progress.is_live());
        if live {
            // A process keeps exactly what it was started with, or has to be started anew.
            return self.keep(entry);
        }
        let mut leases: Vec<String> = Vec::new();
        for claim in claims {
            let free = |a: &&Accelerator| {
                matches_claim(a, claim) && !self.leased.contains_key(a.id.as_str()) && !leases.contains(&a.id)
            };
            let mut fitting: Vec<&Accelerator> = self.node.accelerators.iter().filter(free).collect();
            // One that no process holds comes first: nobody has to be stopped for it.
            fitting.sort_by_key(|a| self.held.contains_key(a.id.as_str()));
            match fitting.first() {
                // An optional claim stops nobody.
                Some(a) if !claim.optional || !self.held.contains_key(a.id.as_str()) => leases.push(a.id.clone()),
                _ if claim.optional => {}
                _ => return Err(self.all_leased(claim)),
            }
        }
        Ok(leases)
    }

    fn keep(&self, entry: &Entry<'_>) -> Result<Vec<String>, Reason> {
        let candidate = entry.candidate;
        for id in candidate.leases {
            let claim = |a: &Accelerator| {
                candidate
                    .workload
                    .accelerators
                    .iter()
                    .find(|c| matches_claim(a, c))
                    .cloned()
            };
            let accelerator = self.node.accelerators.iter().find(|a| a.id == *id);
            let taken = accelerator.is_some_and(|a| self.leased.contains_key(a.id.as_str()));
            match accelerator {
                None => {
                    return Err(Reason::NoAccelerator {
                        kind: id.clone(),
                        present: self
                            .node
                            .accelerators
                            .iter()
                            .map(|a| format!("{} ({})", a.id, a.kind))
                            .collect(),
                    });
                }
                Some(a) if taken => {
                    return Err(claim(a).map_or_else(|| self.leased_to(a), |c| self.all_leased(&c)));
                }
                Some(_) => {}
            }
        }
        Ok(candidate.leases.to_vec())
    }

    fn leased_to(&self, accelerator: &Accelerator) -> Reason {
        Reason::AcceleratorLeased {
            kind: accelerator.kind.clone(),
            by: self.leased.get(accelerator.id.as_str()).cloned().into_iter().collect(),
        }
    }

    fn all_leased(&self, claim: &AcceleratorClaim) -> Reason {
        let matching = self.node.accelerators.iter().filter(|a| matches_claim(a, claim));
        Reason::AcceleratorLeased {
            kind: claim.kind.clone(),
            by: matching
                .filter_map(|a| self.leased.get(a.id.as_str()).cloned())
                .collect(),
        }
    }
}
