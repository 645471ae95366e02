//! What an apply would come to, without doing it.

use std::collections::{BTreeMap, BTreeSet};

use cnova_hub_core::cndl;
use cnova_hub_core::placement::{
    CurrentPlacement, LabelsAndResources, NodeResources, NodeRole, NodeView, Placer, RuntimeView, required_accelerators,
};
use cnova_hub_core::policy::AdmittedManifest;
use cnova_hub_core::views::{ApplicationInfo, NodeInfo};
use serde_json::{Value, json};

/// What the core knows, copied.
pub(super) struct Fleet {
    /// All nodes.
    pub(super) nodes: Vec<NodeInfo>,
    /// All applications.
    pub(super) applications: Vec<ApplicationInfo>,
}

/// Places an admitted manifest on a copy of the fleet.
#[must_use]
pub(super) fn plan(manifest: &AdmittedManifest, fleet: &Fleet, uploads: &BTreeSet<String>) -> Value {
    let name = &manifest.application().name;
    let current = fleet.applications.iter().find(|a| a.name.as_str() == name);
    let used = used_by_others(fleet, name);
    let views: Vec<NodeView> = fleet.nodes.iter().map(|n| view(n, &used)).collect();
    let was = current.map(current_placement).unwrap_or_default();
    let placement = LabelsAndResources.place(manifest, &views, &was);
    let changed = current.is_none_or(|a| a.manifest != manifest.manifest().to_value());
    let unplaced: BTreeMap<_, _> = placement
        .workloads()
        .iter()
        .filter_map(|(n, w)| Some((n, w.summary.as_ref()?)))
        .collect();
    json!({
        "result": "dry-run",
        "name": name,
        "generation": current.map_or(0, |a| a.generation) + u64::from(changed),
        "changed": changed,
        "placed": placement.to_current().workloads,
        "unplaced": unplaced,
        "uploads": uploads,
    })
}

fn current_placement(application: &ApplicationInfo) -> CurrentPlacement {
    let nodes = |(name, w): (&String, &cnova_hub_core::views::PlacementInfo)| {
        (name.clone(), w.nodes.iter().cloned().collect::<BTreeSet<_>>())
    };
    CurrentPlacement {
        workloads: application.workloads.iter().map(nodes).collect(),
    }
}

fn used_by_others<'a>(fleet: &'a Fleet, name: &str) -> BTreeMap<&'a str, (NodeResources, Vec<String>)> {
    let mut used: BTreeMap<&str, (NodeResources, Vec<String>)> = BTreeMap::new();
    for other in fleet.applications.iter().filter(|a| a.name.as_str() != name) {
        // It comes from the hub's own store in canonical form.
        let Ok(manifest) = cndl::restore(&other.manifest.to_string(), other.name.as_str()) else {
            continue;
        };
        for def in &manifest.application().workloads {
            for node in other.workloads.get(&def.name).iter().flat_map(|w| &w.nodes) {
                let (u, promised) = used.entry(node).or_default();
                u.memory_bytes += def.resources.memory_bytes.unwrap_or(0);
                u.cpu_millis += def.resources.cpu_millis;
                promised.extend(required_accelerators(def).map(str::to_owned));
            }
        }
    }
    used
}

fn view(node: &NodeInfo, used: &BTreeMap<&str, (NodeResources, Vec<String>)>) -> NodeView {
    let caps = &node.capabilities;
    let (used, promised) = used.get(node.node.as_str()).cloned().unwrap_or_default();
    let runtime = |r: &cnova_shared::wire::v1::RuntimeCapability| RuntimeView {
        name: r.name.clone(),
        targets: r.targets.clone(),
    };
    NodeView {
        id: node.node.to_string(),
        site: node.site.clone(),
        labels: node.labels.clone(),
        runtimes: caps.runtimes.iter().map(runtime).collect(),
        capacity: Some(NodeResources {
            memory_bytes: caps.memory_bytes,
            cpu_millis: u32::try_from(caps.cpu_millis).unwrap_or(u32::MAX),
        }),
        used,
        accelerators: caps.accelerators.clone(),
        promised,
        devices: caps.devices.clone(),
        seen: true,
        revoked: false,
        trust: node.standing.clone(),
        role: if node.role == "gateway" {
            NodeRole::Gateway
        } else {
            NodeRole::Agent
        },
    }
}
