//! What people see of attestation, and how they write reference values. Digests are text here.

use std::collections::{BTreeMap, BTreeSet};

use cnova_attestation::Pcr;
use cnova_attestation::reference::{PcrReference, ReferenceSet, References, Selector};
use cnova_shared::certificate::Tier;
use cnova_shared::ids::{Digest, InvalidName, NodeId, SitePath};
use serde::{Deserialize, Serialize};

use crate::hub::Hub;

/// What is known of a node's attestation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttestationInfo {
    /// The node.
    pub node: NodeId,
    /// `tpm` or `soft`.
    pub tier: Tier,
    /// `affirming`, `stale`, `warning`, `CONTRAINDICATED`, `pending` or `UNATTESTED`.
    pub standing: String,
    /// Why it is not more; empty when it is affirming.
    pub why: String,
    /// The reference values that it was judged by.
    pub policy: String,
    /// When it was judged last, seconds since 1970; 0 for never.
    pub judged_s: u64,
    /// Until when that may be relied on, seconds since 1970.
    pub expires_s: u64,
    /// Whether its firmware measured the boot. Without, what was launched is only as true as the agent.
    pub boot_measured: bool,
    /// What was found, the weightiest first.
    pub findings: Vec<String>,
    /// The registers as it quoted them, by index.
    pub pcrs: BTreeMap<u8, String>,
    /// SHA-256 of the agents that wrote the launch log since boot.
    pub agents: Vec<String>,
    /// What was launched since the machine started, in order.
    pub launched: Vec<LaunchInfo>,
    /// What a gateway found in the hub's place while the hub was away, the newest. The hub judges for itself since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_gateway: Option<DelegatedInfo>,
}

/// An appraisal by a gateway under its delegation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelegatedInfo {
    /// The gateway.
    pub gateway: String,
    /// `affirming`, `warning`, `contraindicated` or `UNATTESTED`.
    pub status: String,
    /// When, seconds since 1970 by the gateway's clock.
    pub judged_s: u64,
    /// Until when that may be relied on, seconds since 1970.
    pub expires_s: u64,
    /// When the gateway reported it, milliseconds since 1970.
    pub told_ms: u64,
    /// The reference values that it judged by.
    pub policy: String,
    /// What it found, the weightiest first.
    pub findings: Vec<String>,
}

/// One launch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchInfo {
    /// Its place in the launch log.
    pub seq: u64,
    /// Application and workload.
    pub workload: String,
    /// The artifact.
    pub artifact: String,
    /// What the runtime was told.
    pub spec: String,
    /// The runtime's executable.
    pub runtime: String,
    /// Whether a quote has proven it.
    pub proven: bool,
}

/// A set of reference values as people and image builds write it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceInfo {
    /// Its name.
    pub name: String,
    /// Every node of the tree.
    #[serde(default)]
    pub all: bool,
    /// These nodes.
    #[serde(default)]
    pub nodes: BTreeSet<NodeId>,
    /// Nodes at this place and below.
    #[serde(default)]
    pub site: Option<SitePath>,
    /// Nodes with these labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What the registers may hold, by index: `sha256:...`.
    pub pcrs: BTreeMap<u8, Vec<String>>,
    /// Digests of the firmware's events of a register, to name the one that differs.
    #[serde(default)]
    pub events: BTreeMap<u8, Vec<String>>,
    /// Agents that may write the launch log; any when empty.
    #[serde(default)]
    pub agents: Vec<String>,
    /// Runtimes that may be launched; any when empty.
    #[serde(default)]
    pub runtimes: Vec<String>,
    /// Artifacts that may be launched; any when empty.
    #[serde(default)]
    pub artifacts: Vec<String>,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferencesInfo {
    /// Goes up with every change.
    pub version: u64,
    /// The sets.
    pub references: Vec<ReferenceInfo>,
    /// Gateways that appraise while the hub is away and have not said yet that they hold this version: an update that needs
    /// it waits until nobody stands here.
    #[serde(default)]
    pub awaited: Vec<NodeId>,
}

fn texts(digests: &BTreeSet<Digest>) -> Vec<String> {
    digests.iter().map(ToString::to_string).collect()
}

fn digests(texts: &[String]) -> Result<BTreeSet<Pcr>, InvalidName> {
    texts.iter().map(|t| t.parse()).collect()
}

impl From<&ReferenceSet> for ReferenceInfo {
    fn from(set: &ReferenceSet) -> Self {
        let events = set.pcrs.iter().filter(|(_, r)| !r.events.is_empty());
        Self {
            name: set.name.clone(),
            all: set.nodes.all,
            nodes: set.nodes.nodes.clone(),
            site: set.nodes.site.clone(),
            labels: set.nodes.labels.clone(),
            pcrs: set.pcrs.iter().map(|(pcr, r)| (*pcr, texts(&r.values))).collect(),
            events: events.map(|(pcr, r)| (*pcr, texts(&r.events))).collect(),
            agents: texts(&set.agents),
            runtimes: texts(&set.runtimes),
            artifacts: texts(&set.artifacts),
        }
    }
}

impl TryFrom<ReferenceInfo> for ReferenceSet {
    type Error = InvalidName;

    fn try_from(info: ReferenceInfo) -> Result<Self, InvalidName> {
        let mut pcrs = BTreeMap::new();
        for (pcr, values) in &info.pcrs {
            let events = info.events.get(pcr).map(Vec::as_slice).unwrap_or_default();
            let (values, events) = (digests(values)?, digests(events)?);
            pcrs.insert(*pcr, PcrReference { values, events });
        }
        Ok(Self {
            name: info.name,
            nodes: Selector {
                all: info.all,
                nodes: info.nodes,
                site: info.site,
                labels: info.labels,
            },
            pcrs,
            agents: digests(&info.agents)?,
            runtimes: digests(&info.runtimes)?,
            artifacts: digests(&info.artifacts)?,
        })
    }
}

impl Hub {
    /// All reference values, and who does not hold them yet.
    #[must_use]
    pub fn references_info(&self) -> ReferencesInfo {
        let references: &References = self.references();
        ReferencesInfo {
            version: references.version,
            references: references.sets.iter().map(ReferenceInfo::from).collect(),
            awaited: self.without_references(),
        }
    }

    /// What is known of a node's attestation; nothing for a node that never said hello.
    #[must_use]
    pub fn attestation(&self, node: &NodeId) -> Option<AttestationInfo> {
        let certificate = self.tree.certificate(node)?;
        let standing = self.appraiser.standing(node, self.now_s());
        let mut info = AttestationInfo {
            node: node.clone(),
            tier: certificate.tier,
            standing: standing.word().to_owned(),
            why: standing.why(),
            policy: String::new(),
            judged_s: 0,
            expires_s: 0,
            boot_measured: false,
            findings: Vec::new(),
            pcrs: BTreeMap::new(),
            agents: Vec::new(),
            launched: Vec::new(),
            by_gateway: self.delegated_result(node).map(|(result, told_ms)| {
                let ear = result.ear();
                DelegatedInfo {
                    gateway: result.by().to_string(),
                    status: ear.status.to_string(),
                    judged_s: ear.iat,
                    expires_s: ear.exp,
                    told_ms,
                    policy: ear.policy.clone(),
                    findings: ear.findings.iter().map(|f| f.detail.clone()).collect(),
                }
            }),
        };
        let Some(verdict) = self.verdict(node) else {
            return Some(info);
        };
        info.policy.clone_from(&verdict.policy);
        (info.judged_s, info.expires_s) = (verdict.at_s, verdict.exp_s);
        info.boot_measured = verdict.boot_measured;
        info.findings.clone_from(&verdict.findings);
        info.pcrs = verdict.pcrs.iter().map(|(pcr, v)| (*pcr, v.to_string())).collect();
        if let Some(log) = &verdict.log {
            info.agents = texts(&log.agents);
            let launch = |l: &cnova_attestation::appraise::Launched| LaunchInfo {
                seq: l.seq,
                workload: l.launch.workload.clone(),
                artifact: l.launch.artifact.to_string(),
                spec: l.launch.spec.to_string(),
                runtime: l.launch.runtime.to_string(),
                proven: l.seq < log.proven,
            };
            info.launched = log.launched.iter().map(launch).collect();
        }
        Some(info)
    }
}
