//! What carries trust down the tree: documents that others signed, and nonces to attest to.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::conditions::is_default;
use crate::ids::Digest;

/// Down: documents about trust. The envelope is the parent's; each document is judged by its own signatures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// [`super::VERSION`].
    pub v: u32,
    /// The documents, oldest first.
    #[serde(rename = "i")]
    pub items: Vec<TrustItem>,
}

/// One signed document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustItem {
    /// What it is.
    #[serde(rename = "k")]
    pub kind: TrustItemKind,
    /// Its bytes, as they were signed.
    #[serde(rename = "b")]
    pub body: ByteBuf,
}

/// What a document about trust is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrustItemKind {
    /// A trust bundle, signed by the roots ([`crate::bundle`]).
    Bundle,
    /// Nodes that are no longer trusted, signed by the hub.
    Revocations,
    /// What a gateway may decide for its site while the hub is away, signed by the hub.
    Delegation,
    /// What nodes shall have booted, signed by the hub.
    References,
    /// Boots under which nodes' sealed keys may be opened, signed by the hub.
    BootPolicy,
    /// Something of a later version.
    #[serde(other)]
    Unknown,
}

/// What a workload asks of the node's trustworthiness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrustRequirement {
    /// Nothing: any enrolled node.
    #[default]
    None,
    /// A node whose key lies in a TPM.
    Tpm,
    /// A node whose TPM has shown that it booted what it should have booted, and launched nothing unknown. While that is
    /// in doubt the workload is not started; when it is disproved, it is ended.
    Attested,
}

impl TrustItemKind {
    /// The name in the signature's `external_aad`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            TrustItemKind::Bundle => "bundle",
            TrustItemKind::Revocations => "revocations",
            TrustItemKind::Delegation => "delegation",
            TrustItemKind::References => "references",
            TrustItemKind::BootPolicy => "boot-policy",
            TrustItemKind::Unknown => "unknown",
        }
    }

    /// The kind of this name; nothing for one of a later version.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        use TrustItemKind::{BootPolicy, Bundle, Delegation, References, Revocations};
        let all = [Bundle, Revocations, Delegation, References, BootPolicy];
        all.into_iter().find(|k| k.as_str() == name)
    }
}

/// Down: attest to this nonce now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// [`super::VERSION`].
    pub v: u32,
    /// Fresh and random, [`crate::limits::NONCE_BYTES`] long.
    #[serde(with = "serde_bytes")]
    pub nonce: Vec<u8>,
    /// What the verifier has already replayed of the node's launch log: the answer may leave it out.
    #[serde(rename = "log", default, skip_serializing_if = "is_default")]
    pub log: Option<LogPrefix>,
}

/// The beginning of a launch log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogPrefix {
    /// How many entries.
    #[serde(rename = "n")]
    pub count: u64,
    /// The register's value after them.
    #[serde(rename = "p")]
    pub pcr: Digest,
}
