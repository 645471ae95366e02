//! Secrets as the hub's core knows them: names, versions, grants, and values only as bytes that it cannot read. The
//! daemon locks them before it tells of them, and opens them to encrypt them to a node.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use cnova_shared::ids::{InvalidName, Name, NodeId};
use cnova_shared::wire::v1::SealedSecret;
use serde::{Deserialize, Serialize};

/// Whom a secret is granted to: all workloads of an application, or one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Grantee {
    /// The application.
    pub application: Name,
    /// Its workload; `None` for all of them.
    pub workload: Option<Name>,
}

impl Grantee {
    /// Whether a workload is meant.
    #[must_use]
    pub fn covers(&self, application: &str, workload: &str) -> bool {
        self.application.as_str() == application && self.workload.as_ref().is_none_or(|w| w.as_str() == workload)
    }
}

impl fmt::Display for Grantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.workload {
            Some(workload) => write!(f, "{}/{workload}", self.application),
            None => write!(f, "{}", self.application),
        }
    }
}

impl FromStr for Grantee {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (application, workload) = match text.split_once('/') {
            Some((application, workload)) => (application, Some(Name::new(workload)?)),
            None => (text, None),
        };
        Ok(Self {
            application: Name::new(application)?,
            workload,
        })
    }
}

impl TryFrom<String> for Grantee {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Grantee> for String {
    fn from(grantee: Grantee) -> Self {
        grantee.to_string()
    }
}

/// A secret as the store holds it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSecret {
    /// Goes up with every other value.
    pub version: u64,
    /// The value, encrypted under the hub's own key.
    pub locked: Vec<u8>,
    /// A keyed digest of the value: the same for the same value, and nothing without the key.
    pub tag: Vec<u8>,
    /// Whether the value can be a variable: UTF-8 without NUL.
    pub is_text: bool,
    /// Who may use it.
    pub allow: BTreeSet<Grantee>,
    /// Who set it last.
    pub by: String,
    /// When that was, milliseconds since 1970.
    pub set_ms: u64,
}

impl fmt::Debug for StoredSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredSecret(version {}, {} bytes)", self.version, self.locked.len())
    }
}

/// What an admin wants of a secret.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretChange {
    /// It has this value from now on.
    Set {
        /// Which.
        name: Name,
        /// The value, encrypted under the hub's own key.
        locked: Vec<u8>,
        /// The keyed digest of the value.
        tag: Vec<u8>,
        /// Whether it can be a variable.
        is_text: bool,
        /// Who may use it; as before, where nothing is said.
        allow: Option<BTreeSet<Grantee>>,
        /// Who asks.
        by: String,
    },
    /// These may use it from now on, and nobody else.
    Allow {
        /// Which.
        name: Name,
        /// Who.
        allow: BTreeSet<Grantee>,
    },
    /// It is no more.
    Remove(Name),
}

impl fmt::Debug for SecretChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set { name, .. } => write!(f, "Set({name})"),
            Self::Allow { name, allow } => write!(f, "Allow({name}, {allow:?})"),
            Self::Remove(name) => write!(f, "Remove({name})"),
        }
    }
}

/// One secret for one node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SealKey {
    /// The node.
    pub node: NodeId,
    /// The secret.
    pub name: Name,
    /// Which value of it.
    pub version: u64,
}

/// A secret that is to be encrypted to a node.
#[derive(Clone, PartialEq, Eq)]
pub struct SealOrder {
    /// What, for whom.
    pub key: SealKey,
    /// The node's box key, as its hello says it.
    pub box_key: Vec<u8>,
    /// The value, encrypted under the hub's own key.
    pub locked: Vec<u8>,
}

impl fmt::Debug for SealOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealOrder({:?})", self.key)
    }
}

/// What came of it.
pub type Sealed = Result<SealedSecret, String>;

/// A secret for people; never its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretInfo {
    /// Its name.
    pub name: Name,
    /// Goes up with every other value.
    pub version: u64,
    /// Who may use it.
    pub allow: BTreeSet<Grantee>,
    /// Workloads that use it, `application/workload`.
    pub used_by: BTreeSet<String>,
    /// Nodes whose twins carry it, with the version that each has.
    pub nodes: std::collections::BTreeMap<NodeId, u64>,
    /// Who set it last.
    pub by: String,
    /// When that was, milliseconds since 1970.
    pub set_ms: u64,
}
