//! What people see: nodes, workloads, applications, twins. Plain data, ready for JSON.

use std::collections::BTreeMap;

use cnova_shared::ids::{Name, NodeId};
use cnova_shared::wire::v1::{self, Body};
use serde::{Deserialize, Serialize};

use crate::hub::Hub;
use crate::placement::NodeTrust;
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
    /// How far placement may trust it, and why not further.
    #[serde(default)]
    pub standing: NodeTrust,
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
    /// Conditions of the node itself, and what the hub finds wrong with it.
    pub alarms: Vec<v1::Alarm>,
    /// The version of the trust bundle that it holds.
    #[serde(default)]
    pub trust_version: u64,
    /// Why it is not trusted any more, if so.
    #[serde(default)]
    pub revoked: Option<String>,
    /// Its operating system, where it has two slots for one or was asked for another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<v1::SystemReport>,
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
    /// Whether a new version did not become healthy, and the one before runs again.
    #[serde(default)]
    pub returned: bool,
    /// When it entered that state, milliseconds since 1970 by the node's clock.
    pub since_ms: u64,
}

/// One artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactInfo {
    /// Its digest.
    pub digest: cnova_shared::ids::Digest,
    /// Its size.
    pub size: u64,
    /// Workloads and twins that refer to it.
    pub used_by: Vec<String>,
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
        let links = self.links();
        self.inventory
            .nodes()
            .keys()
            .filter_map(|n| self.node_with(n, &links))
            .collect()
    }

    /// One node.
    #[must_use]
    pub fn node(&self, node: &NodeId) -> Option<NodeInfo> {
        self.node_with(node, &self.links())
    }

    fn node_with(&self, node: &NodeId, links: &BTreeMap<NodeId, (u64, NodeId, bool)>) -> Option<NodeInfo> {
        let record = self.inventory.nodes().get(node)?;
        let hello = record.hello.as_ref()?;
        let version = |v: Option<cnova_shared::twin::Version>| {
            v.filter(|v| v.epoch > 0)
                .map_or_else(|| "-".to_owned(), |v| v.to_string())
        };
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
        let revoked = self.why_revoked(node);
        alarms.extend(self.behind_alarm(hello.trust_version));
        Some(NodeInfo {
            node: node.clone(),
            role: match hello.role {
                v1::NodeRole::Agent => "agent".into(),
                v1::NodeRole::Gateway => "gateway".into(),
            },
            site: hello.site.to_string(),
            link: self.link(node, links).to_owned(),
            trust: match &revoked {
                Some(_) => "REVOKED".into(),
                None => self.trust_word(node),
            },
            standing: self.standing(node),
            trust_version: hello.trust_version,
            revoked,
            via: self.tree.via(node).map(ToString::to_string).unwrap_or_default(),
            in_sync: desired.is_none() || desired == reported,
            desired: version(desired),
            reported: version(reported),
            heard_ms: record.heard_ms,
            software: hello.software.clone(),
            labels: hello.labels.clone(),
            capabilities: hello.capabilities.clone(),
            alarms,
            system: self.system_report(node).cloned(),
            refusals,
        })
    }

    /// The twin that a node said it has, from its report stream or its hello, whichever is newer.
    pub(crate) fn reported_version(&self, node: &NodeId) -> Option<cnova_shared::twin::Version> {
        let record = self.inventory.nodes().get(node)?;
        let entry = record.entries.get("twin").and_then(|e| match &e.entry.body {
            Body::Twin { epoch, generation, .. } => Some(cnova_shared::twin::Version {
                epoch: *epoch,
                generation: *generation,
            }),
            _ => None,
        });
        entry.max(self.tree.reported(node))
    }

    /// What parents last said of their children's links: when it came, the parent, whether it stands.
    pub(crate) fn links(&self) -> BTreeMap<NodeId, (u64, NodeId, bool)> {
        let mut links: BTreeMap<NodeId, (u64, NodeId, bool)> = BTreeMap::new();
        for (parent, record) in self.inventory.nodes() {
            let from = "link/".to_owned();
            for (_, stored) in record.entries.range(from..).take_while(|(k, _)| k.starts_with("link/")) {
                if let Body::Link { child, up, .. } = &stored.entry.body {
                    let newer = links.get(child).is_none_or(|(at, _, _)| *at < stored.received_ms);
                    if newer && child != parent {
                        links.insert(child.clone(), (stored.received_ms, parent.clone(), *up));
                    }
                }
            }
        }
        links
    }

    /// A link is as good as the weakest hop on its way. Nodes may claim anything of each other, circles too, so the way
    /// up is followed no further than a site path can be deep.
    pub(crate) fn link(&self, node: &NodeId, links: &BTreeMap<NodeId, (u64, NodeId, bool)>) -> &'static str {
        let mut at = node;
        for _ in 0..cnova_shared::limits::SITE_PATH_SEGMENTS {
            if self.tree.is_connected(at) {
                return "connected";
            }
            match links.get(at) {
                Some((_, parent, true)) => at = parent,
                Some((_, _, false)) if at == node => return "disconnected",
                None if at == node && self.tree.via(at) == Some(at) => return "disconnected",
                _ => return "unknown",
            }
        }
        "unknown"
    }

    /// All workloads: those that nodes reported and those that are desired and not reported yet.
    #[must_use]
    pub fn workloads(&self) -> Vec<WorkloadInfo> {
        let mut all = BTreeMap::new();
        let links = self.links();
        for (name, app) in &self.apps {
            for (workload, placed) in app.placement.workloads() {
                for node in &placed.nodes {
                    let (Ok(node), Ok(workload)) = (NodeId::new(node), Name::new(workload)) else {
                        continue;
                    };
                    let info = pending(name, &workload, &node, app.generation, self.link(&node, &links));
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
                        returned: w.returned,
                        since_ms: stored.entry.at_ms,
                    };
                    all.insert(key, info);
                }
            }
        }
        all.into_values().collect()
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
            workloads: app
                .placement
                .workloads()
                .iter()
                .map(|(n, w)| (n.clone(), place(w)))
                .collect(),
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
        self.trust.reopen_twin(bytes).ok().map(|t| t.twin().clone())
    }

    /// The signed bytes of the twin that a node should have.
    #[must_use]
    pub fn twin_bytes(&self, node: &NodeId) -> Option<&[u8]> {
        self.tree.twin_bytes(node)
    }
}

fn refusal(entry: &v1::Entry) -> Option<Refusal> {
    match &entry.body {
        Body::Refused { code, detail, .. } => Some(Refusal {
            at_ms: entry.at_ms,
            code: code.clone(),
            detail: detail.clone(),
        }),
        _ => None,
    }
}

fn pending(name: &Name, workload: &Name, node: &NodeId, generation: u64, link: &str) -> WorkloadInfo {
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
        returned: false,
        since_ms: 0,
    }
}
