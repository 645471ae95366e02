//! What people see of trust.

use std::collections::BTreeMap;

use cnova_shared::bundle::Role;
use cnova_shared::certificate::Tier;
use cnova_shared::ids::NodeId;
use cnova_shared::trust::BOOT_POLICY_SAID;
use cnova_shared::trust_documents::Right;
use serde::{Deserialize, Serialize};

use crate::hub::Hub;

/// What the fleet trusts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustInfo {
    /// The version of the bundle in force.
    pub version: u64,
    /// When it was made, seconds since 1970.
    pub issued_at: u64,
    /// When the last key for twins runs out, seconds since 1970.
    pub ends_at: u64,
    /// When the hub took it, milliseconds since 1970.
    pub since_ms: u64,
    /// The key that the hub signs with.
    pub signing_key: Option<String>,
    /// The keys that the bundle names.
    pub keys: Vec<KeyInfo>,
    /// The version of the list of revocations, 0 when there is none.
    pub revocations_version: u64,
    /// Nodes that are not trusted any more.
    pub revoked: Vec<RevokedInfo>,
    /// What gateways may decide.
    pub delegations: Vec<DelegationInfo>,
    /// The version of the document of approved boots, 0 when there is none.
    #[serde(default)]
    pub boot_policy_version: u64,
    /// Boots under which nodes' own secrets open.
    #[serde(default)]
    pub boots: Vec<BootInfo>,
    /// Nodes with a TPM that do not hold that document yet, and which version they hold, 0 for none.
    #[serde(default)]
    pub boots_behind: BTreeMap<NodeId, u64>,
    /// Nodes that hold an older bundle, and which.
    pub behind: BTreeMap<NodeId, u64>,
}

/// A key of the bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// Its id.
    pub id: String,
    /// What it may sign.
    pub roles: Vec<Role>,
    /// When it runs out, seconds since 1970.
    pub not_after: u64,
}

/// A node that is not trusted any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedInfo {
    /// Its name.
    pub node: NodeId,
    /// Whether nobody of that name is let in.
    pub whole_name: bool,
    /// Keys that are refused.
    pub keys: Vec<String>,
    /// Why.
    pub reason: String,
    /// When, seconds since 1970.
    pub at: u64,
}

/// What a gateway may decide.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelegationInfo {
    /// The gateway.
    pub gateway: NodeId,
    /// For nodes at this path and below.
    pub site: String,
    /// What.
    pub rights: Vec<Right>,
    /// Until when, seconds since 1970.
    pub not_after: u64,
}

/// A boot under which nodes' own secrets open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootInfo {
    /// The reference values that it is one of.
    pub name: String,
    /// What the registers hold, by index.
    pub pcrs: BTreeMap<u8, String>,
    /// The keys that approved it.
    pub keys: Vec<String>,
}

impl Hub {
    /// What the fleet trusts.
    #[must_use]
    pub fn trust_info(&self) -> TrustInfo {
        let bundle = self.trust.bundle();
        let content = bundle.contents();
        let key = |k: &cnova_shared::bundle::SigningKey| KeyInfo {
            id: k.key.id().to_string(),
            roles: k.roles.clone(),
            not_after: k.not_after,
        };
        let list = self.trust.revocations().map(|l| l.value());
        let revoked = list.iter().flat_map(|l| &l.nodes).map(|r| RevokedInfo {
            node: r.node.clone(),
            whole_name: r.is_whole,
            keys: r.keys.iter().map(ToString::to_string).collect(),
            reason: r.reason.clone(),
            at: r.at_s,
        });
        let delegations = self.trust.delegations().map(|d| d.value()).map(|d| DelegationInfo {
            gateway: d.gateway.clone(),
            site: d.site.to_string(),
            rights: d.rights.clone(),
            not_after: d.not_after,
        });
        let policy = self.trust.boot_policy().map(|p| p.value());
        let boots = policy.iter().flat_map(|p| &p.boots).map(|b| BootInfo {
            name: b.name.clone(),
            pcrs: b.values.iter().map(|(pcr, value)| (*pcr, value.to_string())).collect(),
            keys: b.signatures.iter().map(|s| s.kid.to_string()).collect(),
        });
        let newest = policy.map_or(0, |p| p.version);
        let said = |(n, r): (&NodeId, &crate::inventory::NodeRecord)| {
            let has_tpm = self.tree.certificate(n).is_some_and(|c| c.tier == Tier::Tpm);
            let held = r.hello.as_ref()?.documents.get(BOOT_POLICY_SAID).copied().unwrap_or(0);
            (has_tpm && held < newest).then(|| (n.clone(), held))
        };
        let held =
            |(n, r): (&NodeId, &crate::inventory::NodeRecord)| Some((n.clone(), r.hello.as_ref()?.trust_version));
        let behind = self.inventory.nodes().iter().filter_map(held);
        TrustInfo {
            version: content.version,
            issued_at: content.issued_at,
            ends_at: bundle.ends_s(),
            since_ms: self.trust_since_ms,
            signing_key: self.signer.map(|k| k.to_string()),
            keys: content.keys.iter().map(key).collect(),
            revocations_version: list.map_or(0, |l| l.version),
            revoked: revoked.collect(),
            delegations: delegations.collect(),
            boot_policy_version: newest,
            boots_behind: self.inventory.nodes().iter().filter_map(said).collect(),
            boots: boots.collect(),
            behind: behind.filter(|(_, v)| *v < content.version).collect(),
        }
    }
}
