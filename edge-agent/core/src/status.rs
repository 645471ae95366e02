//! How a node stands, for a person in front of it who has no network.

use cnova_shared::wire::v1::{PowerLevel, SystemReport, WorkloadState};
use serde::{Deserialize, Serialize};

use crate::schedule::power_word;
use crate::standing::OwnBoot;
use crate::{Agent, workload::Machine};

/// The whole node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub node: String,
    /// Its place in the tree.
    pub site: String,
    /// The program's version.
    pub software: String,
    /// The node above.
    pub parent: String,
    /// Whether that one is connected.
    pub connected: bool,
    /// Epoch of the twin in force, 0 for none.
    pub epoch: u64,
    /// Generation of the twin in force, 0 for none.
    pub generation: u64,
    /// Memory for workloads, bytes.
    pub memory_bytes: u64,
    /// Of which live workloads may use this much.
    pub memory_used_bytes: u64,
    /// CPU for workloads, thousandths of a core.
    pub cpu_millis: u64,
    /// Of which live workloads may use this much.
    pub cpu_used_millis: u64,
    /// Supply with power and cooling: `mains`, `battery`, `low` or `critical`.
    pub power: String,
    /// What that was concluded from.
    pub power_why: String,
    /// What its own sealed key says of this boot: `approved`, `refused`, `unknown`, or `unsealed` where it says nothing.
    #[serde(default)]
    pub own_boot: String,
    /// Its operating system.
    #[serde(default)]
    pub system: SystemReport,
    /// Whether the system that runs has proved itself; nothing while that is open.
    #[serde(default)]
    pub system_good: Option<bool>,
    /// Accelerators, each with who holds it.
    pub accelerators: Vec<AcceleratorStatus>,
    /// Conditions that a person should know.
    pub alarms: Vec<String>,
    /// All workloads of the twin.
    pub workloads: Vec<WorkloadStatus>,
}

/// One accelerator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceleratorStatus {
    /// Its name on the node.
    pub id: String,
    /// What it is.
    pub kind: String,
    /// The workload that holds it; empty if none does.
    pub leased_to: String,
}

/// One workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadStatus {
    /// `application/name`.
    pub id: String,
    /// What runs it.
    pub runtime: String,
    /// Where it stands.
    pub state: WorkloadState,
    /// Why, unless it runs.
    pub reason: String,
    /// Its priority.
    pub priority: u32,
    /// How often it was started.
    pub attempt: u32,
    /// Failures in a row.
    pub failures: u32,
    /// The process, if it runs.
    pub pid: u32,
    /// Whether it was found running after a restart of the agent.
    pub adopted: bool,
    /// Whether the last good version runs instead of the desired one.
    pub returned: bool,
    /// Memory that it may use, bytes.
    pub memory_bytes: u64,
}

const fn own_boot_word(own_boot: &OwnBoot) -> &'static str {
    match own_boot {
        OwnBoot::Unsealed => "unsealed",
        OwnBoot::Approved => "approved",
        OwnBoot::Refused(_) => "refused",
        OwnBoot::Unknown(_) => "unknown",
    }
}

impl Agent {
    /// How the node stands.
    #[must_use]
    pub fn status(&self) -> Status {
        let (config, have) = (&self.config, &self.config.capabilities);
        let used = self.machines.values().map(Machine::live_cost);
        let (memory_used_bytes, cpu_used_millis) = used.fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        let holder = |lease: &String| self.machines.values().find(|m| m.live_leases().contains(lease));
        let accelerators = have.accelerators.iter().map(|a| AcceleratorStatus {
            id: a.id.clone(),
            kind: a.kind.clone(),
            leased_to: holder(&a.id).map(|m| m.row().id.to_string()).unwrap_or_default(),
        });
        let mut alarms: Vec<String> = config
            .alarms
            .iter()
            .map(|a| format!("{}: {}", a.code, a.detail))
            .collect();
        if self.power.0 != PowerLevel::Mains {
            alarms.push(format!("power: {} ({})", power_word(self.power.0), self.power.1));
        }
        alarms.extend(self.trust_alarms());
        Status {
            node: config.node.to_string(),
            site: config.site.to_string(),
            software: config.software.clone(),
            parent: config.parent.to_string(),
            connected: self.parent.is_connected(),
            epoch: self.version().epoch,
            generation: self.version().generation,
            memory_bytes: have.memory_bytes,
            memory_used_bytes,
            cpu_millis: have.cpu_millis,
            cpu_used_millis,
            power: power_word(self.power.0).to_owned(),
            power_why: self.power.1.clone(),
            own_boot: own_boot_word(&self.standing.root.own_boot).to_owned(),
            system: self.system(),
            system_good: self.system_verdict(),
            accelerators: accelerators.collect(),
            alarms,
            workloads: self.machines.values().filter_map(|m| self.workload_status(m)).collect(),
        }
    }

    fn workload_status(&self, m: &Machine) -> Option<WorkloadStatus> {
        let (report, target) = (m.report(self.lack(m), self.fits(m))?, m.target()?);
        Some(WorkloadStatus {
            id: report.id.to_string(),
            runtime: target.runtime.clone(),
            state: report.state,
            reason: report.reason,
            priority: target.priority,
            attempt: report.attempt,
            failures: m.row().failures,
            pid: report.pid,
            adopted: report.adopted,
            returned: report.returned,
            memory_bytes: target.memory_bytes,
        })
    }
}
