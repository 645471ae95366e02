//! The hub's HTTP paths, in one place. Names are of checked types, so nothing in them needs escaping.

use cnova_shared::ids::{Digest, Name, NodeId, WorkloadId};

pub(crate) const APPLICATIONS: &str = "/v1/applications";
pub(crate) const ARTIFACTS: &str = "/v1/artifacts";
pub(crate) const NODES: &str = "/v1/nodes";
/// A path of its own, not a flag of `POST /v1/applications`: a hub that does not know it says 404 and changes nothing.
pub(crate) const PLAN: &str = "/v1/plan";
pub(crate) const WORKLOADS: &str = "/v1/workloads";

pub(crate) fn application(name: &Name) -> String {
    format!("{APPLICATIONS}/{name}")
}

pub(crate) fn timeline(name: &Name, generation: u64) -> String {
    format!("{APPLICATIONS}/{name}/timeline?generation={generation}")
}

pub(crate) fn artifact(digest: &Digest) -> String {
    format!("{ARTIFACTS}/{digest}")
}

pub(crate) fn node(node: &NodeId) -> String {
    format!("{NODES}/{node}")
}

pub(crate) fn twin(node: &NodeId) -> String {
    format!("{NODES}/{node}/twin")
}

pub(crate) fn twin_bytes(node: &NodeId) -> String {
    format!("{NODES}/{node}/twin?raw=true")
}

pub(crate) fn history(node: &NodeId) -> String {
    format!("{NODES}/{node}/history")
}

pub(crate) fn logs(id: &WorkloadId, node: &NodeId, lines: u32) -> String {
    format!("{WORKLOADS}/{id}/logs?node={node}&lines={lines}")
}

pub(crate) fn metrics(id: &WorkloadId, node: &NodeId) -> String {
    format!("{WORKLOADS}/{id}/metrics?node={node}")
}
