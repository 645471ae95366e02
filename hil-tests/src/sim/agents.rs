//! A simulated device: its disk, its processes, and the agent's real core.

use std::collections::{BTreeMap, BTreeSet};

use cnova_agent_core::ledger::Stored;
use cnova_agent_core::standing::Root;
use cnova_agent_core::{Agent, Config, Observed, ObservedState};
use cnova_shared::certificate::Tier;
use cnova_shared::ids::{Digest, NodeId, WorkloadId};
use cnova_shared::time::Now;
use cnova_shared::wire::v1;

use super::pki::{LINE, id, pki, site};

/// Memory of a simulated device, for workloads.
pub const MEMORY_BYTES: u64 = 96 * 1024 * 1024;

/// A simulated workload process.
#[derive(Clone, Debug)]
pub struct Process {
    /// What it was started with.
    pub spec: Digest,
    /// How it is.
    pub state: ProcessState,
    /// Memory that it may use, bytes.
    pub memory_bytes: u64,
    /// Whether it ever says that it is well.
    pub is_well: bool,
}

/// How a simulated process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessState {
    /// Coming up.
    Starting,
    /// Alive.
    Alive(u32),
    /// Ended.
    Exited,
}

/// A simulated device.
#[derive(Debug)]
pub struct SimAgent {
    /// Its name.
    pub node: NodeId,
    /// The agent's process, while it lives.
    pub core: Option<Agent>,
    /// How often it was started.
    pub life: u64,
    /// The ledger on disk.
    pub stored: Stored,
    /// Whole artifacts on disk.
    pub artifacts: BTreeSet<Digest>,
    /// Partial files on disk.
    pub partial: BTreeMap<Digest, u64>,
    /// Workload processes; they outlive the agent.
    pub processes: BTreeMap<(WorkloadId, u32), Process>,
    /// How well it is supplied with power.
    pub power: v1::PowerLevel,
    /// Whether its ledger was lost while processes ran: nobody knows then what those may use.
    pub lost_count: bool,
    /// How wrong its wall clock is, seconds.
    pub clock_off_s: i64,
    /// What it holds its key in.
    pub tier: Tier,
    next_pid: u32,
}

impl SimAgent {
    /// A device that has just been flashed.
    #[must_use]
    pub fn new(node: NodeId) -> Self {
        let mut agent = Self {
            node,
            core: None,
            life: 0,
            stored: Stored::default(),
            artifacts: BTreeSet::new(),
            partial: BTreeMap::new(),
            processes: BTreeMap::new(),
            power: v1::PowerLevel::Mains,
            lost_count: false,
            clock_off_s: 0,
            tier: Tier::Soft,
            next_pid: 100,
        };
        agent.stored.stream.acked.incarnation = 1;
        agent
    }

    /// Starts the agent's process on what the disk holds.
    pub fn boot(&mut self, now: Now, alarms: Vec<v1::Alarm>) {
        self.life += 1;
        let runtime = |name: &str| v1::RuntimeCapability {
            name: name.into(),
            version: "1".into(),
            engine: "sim-engine".into(),
            targets: vec!["sim-target".into()],
        };
        let config = Config {
            node: self.node.clone(),
            site: site(self.node.as_str()),
            parent: id(LINE),
            labels: BTreeMap::new(),
            capabilities: v1::Capabilities {
                runtimes: ["wasm", "container", "ebpf"].map(runtime).into(),
                memory_bytes: MEMORY_BYTES,
                cpu_millis: 4000,
                ..Default::default()
            },
            software: "sim".into(),
            boot: format!("{}-{}", self.node, self.life),
            trust: pki().trust.clone(),
            power: (self.power, "as simulated".into()),
            root: Root {
                tier: self.tier,
                ..Root::default()
            },
            alarms,
            // Nobody's certificate ends in the simulated hours.
            key: cnova_shared::keys::Signer::public_key(&pki().nodes[&self.node].key).clone(),
            box_key: Err("there are no secrets here".into()),
            slots: Err("a simulated machine has no slots".into()),
            renew_s: None,
        };
        let found = self.observe();
        let (artifacts, partial) = (self.artifacts.clone(), self.partial.clone());
        self.core = Some(Agent::boot(config, self.stored.clone(), artifacts, partial, found, now));
    }

    fn observe(&mut self) -> Vec<Observed> {
        let mut found = Vec::new();
        for ((id, attempt), p) in &mut self.processes {
            // A runtime that was still starting when the agent died comes up meanwhile.
            if p.state == ProcessState::Starting {
                self.next_pid += 1;
                p.state = ProcessState::Alive(self.next_pid);
            }
            let state = match p.state {
                ProcessState::Alive(pid) => ObservedState::Alive { pid },
                _ => ObservedState::Exited {
                    ok: false,
                    detail: "it died while nobody watched".into(),
                },
            };
            found.push(Observed {
                id: id.clone(),
                attempt: *attempt,
                spec: p.spec,
                state,
            });
        }
        found
    }

    /// A process comes up.
    pub fn comes_up(&mut self, key: &(WorkloadId, u32)) -> Option<u32> {
        let process = self
            .processes
            .get_mut(key)
            .filter(|p| p.state == ProcessState::Starting)?;
        self.next_pid += 1;
        process.state = ProcessState::Alive(self.next_pid);
        Some(self.next_pid)
    }

    /// The machine loses power: every process is gone, and the agent's with them.
    pub fn power_cut(&mut self) {
        self.core = None;
        self.processes.clear();
        self.lost_count = false;
    }

    /// The disk is lost, and with it everything but the running processes.
    pub fn lose_store(&mut self, incarnation: u64) {
        self.stored = Stored::default();
        self.lost_count = !self.processes.is_empty();
        self.stored.stream.acked.incarnation = incarnation;
        self.artifacts.clear();
        self.partial.clear();
    }

    /// Memory that processes may use, bytes.
    #[must_use]
    pub fn memory_in_use(&self) -> u64 {
        let lives = |p: &&Process| p.state != ProcessState::Exited;
        self.processes.values().filter(lives).map(|p| p.memory_bytes).sum()
    }

    /// Writes a chunk; true when the file is then whole.
    pub fn append(&mut self, digest: Digest, offset: u64, len: u64) {
        let have = self.partial.entry(digest).or_insert(0);
        *have = (*have).max(offset + len);
    }
}
