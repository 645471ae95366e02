//! Operating systems: what the hub keeps of each, and what it shows.

use std::collections::BTreeMap;

use cnova_shared::ids::{Digest, Name, NodeId};
use cnova_shared::system_bundle::Header;
use cnova_shared::wire::v1::{self, SystemState};
use serde::{Deserialize, Serialize};

/// What was found in a bundle: its header, and that its parts are what that says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleFacts {
    /// Its header.
    pub header: Header,
    /// The header's digest, magic and length with it.
    pub header_digest: Digest,
    /// Bytes of the whole bundle.
    pub size: u64,
}

/// A system as the store holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSystem {
    /// Its generation.
    pub generation: u64,
    /// Its manifest in canonical form.
    pub manifest: String,
    /// Who applied it.
    pub user: String,
    /// When it was admitted, seconds since 1970.
    pub admitted_s: u64,
    /// What is in its bundle.
    pub facts: BundleFacts,
}

/// What only the image decides of the registers, for predicting how a node will boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// Registers that hold one value whatever the machine.
    pub measured: BTreeMap<u8, Vec<Digest>>,
    /// What register 4 ends with.
    #[serde(default)]
    pub loads: Vec<Digest>,
}

impl From<&Header> for Measured {
    fn from(header: &Header) -> Self {
        let values =
            |(pcr, values): (&u8, &std::collections::BTreeSet<Digest>)| (*pcr, values.iter().copied().collect());
        Self {
            measured: header.measured.iter().map(values).collect(),
            loads: header.loads.clone(),
        }
    }
}

/// A system, for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SystemInfo {
    /// Its name.
    pub name: Name,
    /// Its generation.
    pub generation: u64,
    /// Who applied it.
    pub user: String,
    /// Its version.
    pub version: String,
    /// The board that it is for.
    pub compatible: String,
    /// Its bundle.
    pub bundle: Digest,
    /// Which attempt at it.
    pub attempt: u32,
    /// The manifest in canonical form.
    pub manifest: serde_json::Value,
    /// The nodes that it is for.
    pub nodes: BTreeMap<NodeId, NodeSystem>,
}

/// One node of a system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSystem {
    /// Whether its twin asks for it.
    pub asked: bool,
    /// Why not, or why it does not go on.
    pub reason: String,
    /// How far it is; `waiting` where its twin does not ask for it yet.
    pub state: SystemState,
    /// How much of it is written, hundredths.
    pub percent: u8,
    /// What runs now.
    pub version: String,
    /// The slot that runs.
    pub slot: String,
}

impl NodeSystem {
    pub(crate) fn of(report: Option<&v1::SystemReport>, is_about: bool, asked: bool, held: Option<String>) -> Self {
        let report = report.cloned().unwrap_or_default();
        let (state, reason, percent) = match (is_about, held) {
            (true, _) => (report.state, report.reason, report.percent),
            (false, Some(why)) => (SystemState::Waiting, why, 0),
            (false, None) => (SystemState::Waiting, "it is on its way to the node".to_owned(), 0),
        };
        Self {
            asked,
            reason,
            state,
            percent,
            version: report.version,
            slot: report.slot,
        }
    }
}
