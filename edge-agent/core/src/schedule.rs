//! Which workloads of a twin may run on what the node really has. The same inputs give the same decisions, and every
//! workload that may not run has a reason.

use std::collections::BTreeMap;

use cnova_shared::ids::WorkloadId;
use cnova_shared::wire::v1::{Capabilities, Workload};

/// Whether a workload may run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may.
    Run,
    /// It may not, and why.
    Wait(String),
}

const MIB: u64 = 1024 * 1024;

/// Decides for all workloads of a twin: higher priority first, then by name.
#[must_use]
pub fn schedule(workloads: &[Workload], node: &Capabilities) -> BTreeMap<WorkloadId, Decision> {
    let mut order: Vec<&Workload> = workloads.iter().collect();
    order.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.id.cmp(&b.id)));
    let (mut memory, mut cpu) = (node.memory_bytes, node.cpu_millis);
    let mut decisions = BTreeMap::new();
    for w in order {
        let decision = decide(w, node, memory, cpu);
        if decision == Decision::Run {
            memory -= w.memory_bytes;
            cpu -= w.cpu_millis;
        }
        decisions.insert(w.id.clone(), decision);
    }
    decisions
}

fn decide(w: &Workload, node: &Capabilities, memory: u64, cpu: u64) -> Decision {
    if !node.runtimes.iter().any(|r| r.name == w.runtime) {
        let have: Vec<&str> = node.runtimes.iter().map(|r| r.name.as_str()).collect();
        return Decision::Wait(format!(
            "runtime {} is not installed here (installed: {})",
            w.runtime,
            have.join(", ")
        ));
    }
    if w.memory_bytes > memory {
        return Decision::Wait(format!(
            "memory: asks {} MiB, {} MiB of {} MiB are left by workloads of higher priority",
            w.memory_bytes.div_ceil(MIB),
            memory / MIB,
            node.memory_bytes / MIB
        ));
    }
    if w.cpu_millis > cpu {
        return Decision::Wait(format!(
            "cpu: asks {} m, {} m of {} m are left by workloads of higher priority",
            w.cpu_millis, cpu, node.cpu_millis
        ));
    }
    Decision::Run
}
