//! Placement: which nodes run which workload, and for every other node why not.

mod accelerators;
mod labels_and_resources;
mod reason;

use std::collections::{BTreeMap, BTreeSet};

use cnova_shared::wire::v1::{Accelerator, TrustRequirement};
use serde::{Deserialize, Serialize};

use crate::cndl::WorkloadDef;
use crate::policy::AdmittedManifest;

pub use labels_and_resources::LabelsAndResources;
pub use reason::{Constraint, Reason};

/// What a placer knows of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Its id, unique. Of two with the same id the first counts.
    pub id: String,
    /// Its site path.
    pub site: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The runtimes it has reported.
    pub runtimes: Vec<RuntimeView>,
    /// The accelerators that it has reported.
    pub accelerators: Vec<Accelerator>,
    /// What other applications were promised of them: classes or kinds, each for one workload.
    pub promised: Vec<String>,
    /// The devices that it offers.
    pub devices: Vec<String>,
    /// What it has to give. `None` where it has not said; then its own admission decides.
    pub capacity: Option<NodeResources>,
    /// What other applications were promised of it; not the application that is being placed.
    pub used: NodeResources,
    /// Whether it has ever reported.
    pub seen: bool,
    /// Whether its certificate was withdrawn.
    pub revoked: bool,
    /// How far it is trusted.
    pub trust: NodeTrust,
    /// What it is.
    pub role: NodeRole,
}

/// How far a node is trusted, and why not further.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeTrust {
    /// What it meets, for what is new.
    pub meets: TrustRequirement,
    /// What it meets, for what runs there already.
    pub keeps: TrustRequirement,
    /// Why no more, for a person.
    pub why: String,
}

/// A runtime on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeView {
    /// `wasm`, `container` or `ebpf`.
    pub name: String,
    /// What it can load, for example target triples.
    pub targets: Vec<String>,
}

/// The accelerators that a workload cannot do without: classes or kinds.
pub fn required_accelerators(workload: &WorkloadDef) -> impl Iterator<Item = &str> {
    let required = workload.accelerators.iter().filter(|c| !c.optional);
    required.map(|c| c.kind.as_str())
}

/// Amounts of what workloads share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeResources {
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// CPU in thousandths of a core.
    pub cpu_millis: u32,
}

/// What a node is. Only agents run workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeRole {
    /// A leaf.
    Agent,
    /// A node with children.
    Gateway,
}

/// Where the workloads of an application are now, by workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurrentPlacement {
    /// Node ids by workload name.
    pub workloads: BTreeMap<String, BTreeSet<String>>,
}

/// Chooses nodes. Deterministic: the same arguments give the same answer, in whatever order the nodes come.
pub trait Placer {
    /// Places all workloads of one application.
    fn place(&self, application: &AdmittedManifest, nodes: &[NodeView], current: &CurrentPlacement) -> Placement;
}

/// Where an application goes. Only a [`Placer`] of this module makes one.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    manifest: AdmittedManifest,
    workloads: BTreeMap<String, WorkloadPlacement>,
}

impl Placement {
    /// What was placed.
    #[must_use]
    pub const fn manifest(&self) -> &AdmittedManifest {
        &self.manifest
    }

    /// By workload name; every workload of the application is there.
    #[must_use]
    pub const fn workloads(&self) -> &BTreeMap<String, WorkloadPlacement> {
        &self.workloads
    }

    /// Node id -> names of the workloads it runs; only nodes that run any.
    #[must_use]
    pub fn by_node(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut nodes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, workload) in &self.workloads {
            for node in &workload.nodes {
                nodes.entry(node).or_default().push(name);
            }
        }
        nodes
    }

    /// Whether every replica has a node.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.workloads.values().all(|w| w.unplaced == 0)
    }

    /// To start from the next time.
    #[must_use]
    pub fn to_current(&self) -> CurrentPlacement {
        CurrentPlacement {
            workloads: self
                .workloads
                .iter()
                .map(|(n, w)| (n.clone(), w.nodes.clone()))
                .collect(),
        }
    }
}

/// Where one workload goes. Every node is either in `nodes` or in `rejected`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadPlacement {
    /// The chosen nodes.
    pub nodes: BTreeSet<String>,
    /// Why not, for every other node.
    pub rejected: BTreeMap<String, Reason>,
    /// Replicas without a node. For `replicas: each`, nodes that the rule selects but that cannot take it.
    pub unplaced: u32,
    /// Why `unplaced` is more than 0, or why there is no node at all.
    pub summary: Option<String>,
}
