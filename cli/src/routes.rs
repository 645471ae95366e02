//! The hub's HTTP paths, in one place. Names are of checked types, so nothing in them needs escaping.

use cnova_shared::ids::{Digest, Name, NodeId, WorkloadId};

pub(crate) const APPLICATIONS: &str = "/v1/applications";
pub(crate) const ARTIFACTS: &str = "/v1/artifacts";
pub(crate) const COLLECT: &str = "/v1/artifacts/collect";
pub(crate) const NODES: &str = "/v1/nodes";
pub(crate) const REFERENCES: &str = "/v1/references";
pub(crate) const AUDIT: &str = "/v1/audit";
pub(crate) const WORKLOADS: &str = "/v1/workloads";

pub(crate) const ENROLMENT: &str = "/v1/enrolment";
pub(crate) const ENROLMENT_TOKENS: &str = "/v1/enrolment/tokens";
pub(crate) const ENROLMENT_EKS: &str = "/v1/enrolment/eks";

/// A token's id is what a person typed: only what an id consists of goes into the path.
pub(crate) fn enrolment_token(id: &str) -> String {
    let id: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{ENROLMENT_TOKENS}/{id}")
}

pub(crate) fn enrolment_ek(fingerprint: &Digest) -> String {
    format!("{ENROLMENT_EKS}/{fingerprint}")
}

pub(crate) fn enrolment_node(node: &NodeId) -> String {
    format!("{ENROLMENT}/nodes/{node}")
}

pub(crate) const SECRETS: &str = "/v1/secrets";

pub(crate) fn secret(name: &Name) -> String {
    format!("{SECRETS}/{name}")
}

pub(crate) fn secret_grants(name: &Name) -> String {
    format!("{SECRETS}/{name}/grants")
}

/// `allow` was checked to consist of names.
pub(crate) fn set_secret(name: &Name, allow: &[String]) -> String {
    match allow {
        [] => secret(name),
        allow => format!("{SECRETS}/{name}?allow={}", allow.join(",")),
    }
}

pub(crate) const SYSTEMS: &str = "/v1/systems";

pub(crate) fn system(name: &Name) -> String {
    format!("{SYSTEMS}/{name}")
}

pub(crate) const TRUST_BUNDLE: &str = "/v1/trust/bundle";

pub(crate) fn revoke(node: &NodeId) -> String {
    format!("{NODES}/{node}/revoke")
}

pub(crate) fn readmit(node: &NodeId) -> String {
    format!("{NODES}/{node}/readmit")
}

pub(crate) fn application(name: &Name) -> String {
    format!("{APPLICATIONS}/{name}")
}

pub(crate) fn timeline(name: &Name, generation: u64) -> String {
    format!("{APPLICATIONS}/{name}/timeline?generation={generation}")
}

pub(crate) fn artifact(digest: &Digest) -> String {
    format!("{ARTIFACTS}/{digest}")
}

pub(crate) fn provenance(digest: &Digest) -> String {
    format!("{ARTIFACTS}/{digest}/provenance")
}

pub(crate) fn explanation(id: &WorkloadId, node: Option<&NodeId>) -> String {
    let path = format!("{APPLICATIONS}/{}/workloads/{}/explanation", id.application, id.name);
    match node {
        Some(node) => format!("{path}?node={node}"),
        None => path,
    }
}

pub(crate) fn node(node: &NodeId) -> String {
    format!("{NODES}/{node}")
}

pub(crate) fn attestation(node: &NodeId) -> String {
    format!("{NODES}/{node}/attestation")
}

pub(crate) fn release(node: &NodeId) -> String {
    format!("{NODES}/{node}/release")
}

pub(crate) fn reference(name: &Name) -> String {
    format!("{REFERENCES}/{name}")
}

pub(crate) fn twin(node: &NodeId) -> String {
    format!("{NODES}/{node}/twin")
}

pub(crate) fn history(node: &NodeId, limit: u32) -> String {
    format!("{NODES}/{node}/history?limit={limit}")
}

pub(crate) fn audit(limit: u32) -> String {
    format!("{AUDIT}?limit={limit}")
}

pub(crate) fn logs(id: &WorkloadId, node: &NodeId, lines: u32) -> String {
    format!("{NODES}/{node}/workloads/{id}/logs?lines={lines}")
}

pub(crate) fn metrics(id: &WorkloadId, node: &NodeId) -> String {
    format!("{NODES}/{node}/workloads/{id}/metrics")
}
