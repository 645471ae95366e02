//! How far each node is trusted: challenges, appraisals, results.

use cnova_shared::certificate::Tier;
use cnova_shared::ids::NodeId;
use cnova_shared::wire::v1::TrustRequirement;

use super::Hub;
use crate::placement::NodeTrust;

impl Hub {
    /// How far placement may trust a node, and why not further.
    pub(crate) fn standing(&self, node: &NodeId) -> NodeTrust {
        match self.tree.certificate(node).map(|c| c.tier) {
            Some(Tier::Tpm) => NodeTrust {
                meets: TrustRequirement::Tpm,
                why: "it has not been appraised yet".into(),
            },
            _ => NodeTrust {
                meets: TrustRequirement::None,
                why: "its key lies in a file".into(),
            },
        }
    }

    /// How a node proved itself, in one word.
    pub(crate) fn trust_word(&self, node: &NodeId) -> String {
        match self.standing(node).meets {
            TrustRequirement::None => "UNATTESTED".into(),
            TrustRequirement::Tpm => "pending".into(),
            TrustRequirement::Attested => "affirming".into(),
        }
    }
}
