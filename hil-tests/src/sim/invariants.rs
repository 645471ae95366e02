//! What must hold at every step, whatever goes wrong.

use std::collections::{BTreeMap, BTreeSet};

use cnova_agent_core::ledger::Op as AgentOp;
use cnova_agent_core::workload::spec_digest;
use cnova_agent_core::{Agent, Launch};
use cnova_attestation::ear::Status;
use cnova_hub_core::Op as HubOp;
use cnova_shared::ids::{Digest, NodeId, WorkloadId};
use cnova_shared::twin::Version;
use cnova_shared::wire::v1;

/// What the run knows beyond what any node knows.
#[derive(Debug, Default)]
pub struct Oracle {
    /// Every twin that the hub's signer signed: exact bytes.
    pub twin_bytes: BTreeSet<Vec<u8>>,
    /// Twins that have left the hub: what a forger may have seen.
    pub seen_twins: BTreeSet<Vec<u8>>,
    /// Every twin that the hub's signer signed: contents.
    pub twins: BTreeMap<(NodeId, Version), v1::Twin>,
    /// Everything that nodes signed themselves and that gateways may carry.
    pub spoken: BTreeSet<Digest>,
    /// The newest version that each agent has committed.
    pub committed: BTreeMap<NodeId, Version>,
    /// The newest trust bundle that each node has committed.
    pub trusted: BTreeMap<NodeId, u64>,
    /// Every entry that the hub has committed: node, incarnation, sequence number.
    pub history: BTreeSet<(NodeId, u64, u64)>,
    /// Every attestation result that somebody signed who may, with what it says.
    pub results: BTreeMap<Vec<u8>, Status>,
    /// The last result about itself that each agent has committed.
    pub judged: BTreeMap<NodeId, Status>,
}

/// A broken invariant.
pub type Broken = Option<String>;

impl Oracle {
    /// Nothing unverified or for another node runs.
    #[must_use]
    pub fn on_start(&self, node: &NodeId, launch: &Launch) -> Broken {
        let Some(twin) = self.twins.get(&(node.clone(), launch.version)) else {
            return Some(format!(
                "{node} starts {} for twin {}, which was never signed for it",
                launch.workload.id, launch.version
            ));
        };
        let named = twin
            .workloads
            .iter()
            .any(|w| w.id == launch.workload.id && spec_digest(w) == launch.spec);
        (!named).then(|| {
            format!(
                "{node} starts {} as twin {} does not say",
                launch.workload.id, launch.version
            )
        })
    }

    /// What asks for attestation starts only on a node that was last told that it is what it should be.
    #[must_use]
    pub fn on_trusted_start(&self, node: &NodeId, launch: &Launch) -> Broken {
        let is_fine = self.judged.get(node) == Some(&Status::Affirming);
        let asks = launch.workload.trust == v1::TrustRequirement::Attested;
        (asks && !is_fine).then(|| format!("{node} starts {} and is not attested", launch.workload.id))
    }

    /// Agents believe results only of those who may judge.
    pub fn on_results(&mut self, node: &NodeId, ops: &[AgentOp]) -> Broken {
        for op in ops {
            let (bytes, is_own) = match op {
                AgentOp::PutEar(bytes) => (bytes, true),
                AgentOp::PutParentEar(bytes) => (bytes, false),
                AgentOp::PutDelegatedEar { of_parent, bytes } => (bytes, !of_parent),
                _ => continue,
            };
            match self.results.get(bytes) {
                None => return Some(format!("{node} believes a result that nobody signed who may")),
                Some(status) if is_own => drop(self.judged.insert(node.clone(), *status)),
                Some(_) => {}
            }
        }
        None
    }

    /// The last good twin keeps running: nothing is stopped that the committed twin wants as it is.
    #[must_use]
    pub fn on_stop(&self, node: &NodeId, id: &WorkloadId, running: Option<Digest>, older_instance: bool) -> Broken {
        let committed = self.committed.get(node).copied().unwrap_or_default();
        if older_instance {
            return None;
        }
        let Some(twin) = self.twins.get(&(node.clone(), committed)) else {
            return Some(format!("{node} stops {id} without having a twin"));
        };
        let wanted = twin
            .workloads
            .iter()
            .any(|w| w.id == *id && Some(spec_digest(w)) == running);
        let memory: u64 = twin.workloads.iter().map(|w| w.memory_bytes).sum();
        // A workload of low priority may have to make room.
        let tight = memory > super::agents::MEMORY_BYTES;
        (wanted && !tight).then(|| format!("{node} stops {id}, which its committed twin {committed} wants as it runs"))
    }

    /// The generation never goes back, across crashes too.
    pub fn on_settled(&mut self, agent: &Agent) -> Broken {
        let node = agent.node().clone();
        let held = self.committed.get(&node).copied().unwrap_or_default();
        if agent.version() < held {
            return Some(format!("{node} went back from {held} to {}", agent.version()));
        }
        self.committed.insert(node, agent.version());
        None
    }

    /// A node never returns to an older trust bundle, across crashes too.
    pub fn on_trust(&mut self, node: &NodeId, version: u64) -> Broken {
        let held = self.trusted.insert(node.clone(), version).unwrap_or_default();
        (version < held).then(|| format!("{node} went back from trust bundle {held} to {version}"))
    }

    /// Gateways hand on twins unchanged.
    #[must_use]
    pub fn on_forward_twin(&self, gateway: &NodeId, bytes: &[u8]) -> Broken {
        (!self.twin_bytes.contains(bytes)).then(|| format!("{gateway} hands on a twin that the hub never signed"))
    }

    /// Gateways carry what was said unchanged.
    #[must_use]
    pub fn on_relay(&self, gateway: &NodeId, relay: &v1::Relay) -> Broken {
        let foreign = relay
            .items
            .iter()
            .find(|i| !self.spoken.contains(&Digest::of(&i.body)))?;
        Some(format!("{gateway} carries a {} that nobody said", foreign.kind))
    }

    /// Every reported entry is taken into the hub's history once.
    pub fn on_hub_commit(&mut self, ops: &[HubOp]) -> Broken {
        for op in ops {
            if let HubOp::PutEntry { node, stored } = op
                && !self
                    .history
                    .insert((node.clone(), stored.incarnation, stored.entry.seq))
            {
                let (seq, key, incarnation) = (stored.entry.seq, &stored.entry.key, stored.incarnation);
                return Some(format!(
                    "the hub took entry {seq} ({key}) of {node}'s stream {incarnation} twice"
                ));
            }
        }
        None
    }
}
