//! What people see: nodes, workloads, applications, twins. Plain data, ready for JSON.

use std::collections::BTreeMap;

use cnova_shared::ids::{Name, NodeId};
use cnova_shared::twin::VerifiedTwin;
use cnova_shared::wire::v1::{self, Body};
use serde::{Deserialize, Serialize};

use crate::hub::Hub;
use crate::timeline::StageRecord;

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its name.
    pub node: NodeId,
    /// `agent` or `gateway`.
    pub role: String,
    /// Its site path.
    pub site: String,
    /// `connected`, `disconnected` or `unknown`, as its parent last said.
    pub link: String,
    /// How the node proved itself. Software keys are never shown as more than they are.
    pub trust: String,
    /// The direct child of the hub behind which it hangs.
    pub via: String,
    /// The twin that it should have, `epoch.generation`.
    pub desired: String,
    /// The twin that it said it has.
    pub reported: String,
    /// Whether both are the same.
    pub in_sync: bool,
    /// When it was last heard, milliseconds since 1970.
    pub heard_ms: u64,
    /// Its program's version.
    pub software: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What it has.
    pub capabilities: v1::Capabilities,
    /// Conditions of the node itself.
    pub alarms: Vec<v1::Alarm>,
    /// Twins that it refused, newest last.
    pub refusals: Vec<Refusal>,
}

/// A twin that a node refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// When, milliseconds since 1970 by the node's clock.
    pub at_ms: u64,
    /// A stable word.
    pub code: String,
    /// Why.
    pub detail: String,
}

/// One workload on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadInfo {
    /// The application.
    pub application: Name,
    /// The workload.
    pub workload: Name,
    /// The node.
    pub node: NodeId,
    /// The application generation that should run.
    pub desired: u64,
    /// The application generation that the node reported.
    pub generation: u64,
    /// Its state.
    pub state: v1::WorkloadState,
    /// Why it is in that state.
    pub reason: String,
    /// How often it was started.
    pub attempt: u32,
    /// Its process on the node.
    pub pid: u32,
    /// Whether it was found running after a restart of the agent.
    pub adopted: bool,
    /// When it entered that state, milliseconds since 1970 by the node's clock.
    pub since_ms: u64,
}

/// One application.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApplicationInfo {
    /// Its name.
    pub name: Name,
    /// Its generation.
    pub generation: u64,
    /// Who applied it.
    pub user: String,
    /// The manifest in canonical form.
    pub manifest: serde_json::Value,
    /// Per workload: where it goes and, for every other node, why not.
    pub workloads: BTreeMap<String, PlacementInfo>,
    /// Workloads that cannot be composed for a node, and why.
    pub problems: BTreeMap<String, String>,
    /// The stages of this generation.
    pub timeline: Vec<StageRecord>,
}

/// Where a workload goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementInfo {
    /// Its nodes.
    pub nodes: Vec<String>,
    /// Why not, for every other node.
    pub not: BTreeMap<String, String>,
    /// Why it has fewer nodes than it asks for.
    pub summary: Option<String>,
}

impl Hub {
    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeInfo> {
        self.inventory.nodes().keys().filter_map(|n| self.node(n)).collect()
    }

    /// One node.
    #[must_use]
    pub fn node(&self, node: &NodeId) -> Option<NodeInfo> {
        let record = self.inventory.nodes().get(node)?;
        let hello = record.hello.as_ref()?;
        let version = |v: Option<cnova_shared::twin::Version>| v.filter(|v| v.epoch > 0).map_or_else(|| "-".to_owned(), |v| v.to_string());
        let (desired, reported) = (self.tree.desired(node), self.reported_version(node));
        let mut refusals: Vec<Refusal> = record.entries.values().filter_map(|e| refusal(&e.entry)).collect();
        refusals.sort_by_key(|r| r.at_ms);
        let mut alarms = hello.alarms.clone();
        for e in record.entries.values() {
            if let Body::Alarm(a) = &e.entry.body
                && !alarms.contains(a)
            {
                alarms.push(a.clone());
            }
        }
        Some(NodeInfo {
            node: node.clone(),
            role: match hello.role {
                v1::NodeRole::Agent => "agent".into(),
                v1::NodeRole::Gateway => "gateway".into(),
            },
            site: hello.site.to_string(),
            link: self.link(node),
            trust: "UNATTESTED".into(),
            via: self.tree.via(node).map(ToString::to_string).unwrap_or_default(),
            in_sync: desired.is_none() || desired == reported,
            desired: version(desired),
            reported: version(reported),
            heard_ms: record.heard_ms,
            software: hello.software.clone(),
            labels: hello.labels.clone(),
            capabilities: hello.capabilities.clone(),
            alarms,
            refusals,
        })
    }

    /// The twin that a node said it has, from its report stream or its hello, whichever is newer.
    fn reported_version(&self, node: &NodeId) -> Option<cnova_shared::twin::Version> {
        let record = self.inventory.nodes().get(node)?;
        let entry = record.entries.get("twin").and_then(|e| match &e.entry.body {
            Body::Twin { epoch, generation, .. } => {
                Some(cnova_shared::twin::Version { epoch: *epoch, generation: *generation })
            }
            _ => None,
        });
        entry.max(self.tree.reported(node))
    }

    /// A link is as good as the weakest hop on its way.
    fn link(&self, node: &NodeId) -> String {
        let said = self.inventory.nodes().iter().filter_map(|(parent, r)| {
            let stored = r.entries.get(&format!("link/{node}"))?;
            match &stored.entry.body {
                Body::Link { up, .. } => Some((stored.received_ms, parent, *up)),
                _ => None,
            }
        });
        let word = match said.max_by_key(|(at, _, _)| *at) {
            _ if self.tree.is_connected(node) => "connected",
            Some((_, parent, true)) if self.link(parent) == "connected" => "connected",
            Some((_, _, true)) => "unknown",
            Some((_, _, false)) => "disconnected",
            None if self.tree.via(node) == Some(node) => "disconnected",
            None => "unknown",
        };
        word.to_owned()
    }

    /// All workloads: those that nodes reported and those that are desired and not reported yet.
    #[must_use]
    pub fn workloads(&self) -> Vec<WorkloadInfo> {
        let mut all = BTreeMap::new();
        for (name, app) in &self.apps {
            for (workload, placed) in app.placement.workloads() {
                for node in &placed.nodes {
                    let (Ok(node), Ok(workload)) = (NodeId::new(node), Name::new(workload)) else { continue };
                    let info = self.pending(name, &workload, &node, app.generation);
                    all.insert((name.clone(), workload, node), info);
                }
            }
        }
        for (node, record) in self.inventory.nodes() {
            for stored in record.entries.values() {
                if let Body::Workload(w) = &stored.entry.body {
                    let key = (w.id.application.clone(), w.id.name.clone(), node.clone());
                    let desired = all.get(&key).map_or(0, |i: &WorkloadInfo| i.desired);
                    let info = WorkloadInfo {
                        application: w.id.application.clone(),
                        workload: w.id.name.clone(),
                        node: node.clone(),
                        desired,
                        generation: w.app_generation,
                        state: w.state,
                        reason: w.reason.clone(),
                        attempt: w.attempt,
                        pid: w.pid,
                        adopted: w.adopted,
                        since_ms: stored.entry.at_ms,
                    };
                    all.insert(key, info);
                }
            }
        }
        all.into_values().collect()
    }

    fn pending(&self, name: &Name, workload: &Name, node: &NodeId, generation: u64) -> WorkloadInfo {
        let link = self.link(node);
        WorkloadInfo {
            application: name.clone(),
            workload: workload.clone(),
            node: node.clone(),
            desired: generation,
            generation: 0,
            state: v1::WorkloadState::Waiting,
            reason: format!("the node has not reported it yet (its link: {link})"),
            attempt: 0,
            pid: 0,
            adopted: false,
            since_ms: 0,
        }
    }

    /// The names of all applications.
    #[must_use]
    pub fn applications(&self) -> Vec<Name> {
        self.apps.keys().cloned().collect()
    }

    /// One application.
    #[must_use]
    pub fn application(&self, name: &Name) -> Option<ApplicationInfo> {
        let app = self.apps.get(name)?;
        let manifest = app.placement.manifest();
        let place = |w: &crate::placement::WorkloadPlacement| PlacementInfo {
            nodes: w.nodes.iter().cloned().collect(),
            not: w.rejected.iter().map(|(n, r)| (n.clone(), r.to_string())).collect(),
            summary: w.summary.clone(),
        };
        Some(ApplicationInfo {
            name: name.clone(),
            generation: app.generation,
            user: manifest.context().user.clone(),
            manifest: manifest.manifest().to_value(),
            workloads: app.placement.workloads().iter().map(|(n, w)| (n.clone(), place(w))).collect(),
            problems: app.problems.clone(),
            timeline: self.timeline.of(name, app.generation),
        })
    }

    /// The stages of one generation of an application.
    #[must_use]
    pub fn timeline(&self, name: &Name, generation: u64) -> Vec<StageRecord> {
        self.timeline.of(name, generation)
    }

    /// The twin that a node should have, decoded; `None` when it has none.
    #[must_use]
    pub fn twin(&self, node: &NodeId) -> Option<v1::Twin> {
        let bytes = self.tree.twin_bytes(node)?;
        VerifiedTwin::reopen(bytes, self.trust()).ok().map(|t| t.twin().clone())
    }

    /// The signed bytes of the twin that a node should have.
    #[must_use]
    pub fn twin_bytes(&self, node: &NodeId) -> Option<&[u8]> {
        self.tree.twin_bytes(node)
    }
}

fn refusal(entry: &v1::Entry) -> Option<Refusal> {
    match &entry.body {
        Body::Refused { code, detail, .. } => {
            Some(Refusal { at_ms: entry.at_ms, code: code.clone(), detail: detail.clone() })
        }
        _ => None,
    }
}
