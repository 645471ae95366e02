//! What the hub keeps: the changes that must be on disk, and the image that it starts from.

use std::collections::{BTreeMap, BTreeSet};

use cnova_attestation::appraiser::Verdict;
use cnova_attestation::reference::References;
use cnova_shared::ids::{Digest, Name, NodeId};
use cnova_shared::tree::{StoredTree, TreeOp};
use cnova_shared::trust::{StoredTrust, TrustOp};
use cnova_shared::wire::v1;
use serde::{Deserialize, Serialize};

use crate::api::CompileKey;
use crate::enrol::{EnrolOp, StoredEnrolment};
use crate::placement::CurrentPlacement;
use crate::secrets::StoredSecret;
use crate::systems::StoredSystem;

/// An application as the store holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredApp {
    /// Its generation.
    pub generation: u64,
    /// Its manifest in canonical form.
    pub manifest: String,
    /// Who applied it.
    pub user: String,
    /// When it was admitted, seconds since 1970.
    pub admitted_s: u64,
    /// Where it is.
    pub placement: CurrentPlacement,
}

/// An entry of a node's report stream as the store holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredEntry {
    /// The life of the stream.
    pub incarnation: u64,
    /// When it came, milliseconds since 1970 by the hub's clock.
    pub received_ms: u64,
    /// The entry.
    pub entry: v1::Entry,
}

/// An envelope of provenance as the store holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredProvenance {
    /// The envelope as an artifact.
    pub artifact: v1::Artifact,
    /// Its bytes.
    pub envelope: Vec<u8>,
}

/// A change that must be on disk before what follows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Op {
    /// Descendants, twins, streams.
    Tree(TreeOp),
    /// The hub's epoch.
    Epoch(u64),
    /// Trust bundles, revocations, delegations.
    Trust(TrustOp),
    /// When the newest trust bundle was taken, milliseconds since 1970.
    TrustSince(u64),
    /// An application.
    PutApp {
        /// Its name.
        name: Name,
        /// It.
        app: StoredApp,
    },
    /// An application that is no more. Its generation is kept, so that a later one of its name goes on counting.
    DeleteApp {
        /// Its name.
        name: Name,
        /// Its last generation.
        generation: u64,
    },
    /// An uploaded artifact.
    PutArtifact {
        /// Which.
        digest: Digest,
        /// Its size.
        size: u64,
    },
    /// A precompiled artifact.
    PutCompiled {
        /// What for.
        key: CompileKey,
        /// The result.
        artifact: v1::Artifact,
    },
    /// Provenance of an artifact.
    PutProvenance {
        /// The artifact.
        subject: Digest,
        /// The envelope.
        stored: StoredProvenance,
    },
    /// Provenance that later provenance of the same artifact took the place of.
    DropProvenance {
        /// The artifact.
        subject: Digest,
        /// The envelope.
        envelope: Digest,
    },
    /// An artifact that was removed, and with it all that says where it was from: whether it was uploaded or compiled.
    DropArtifact {
        /// Which.
        digest: Digest,
    },
    /// What an appraisal came to.
    PutVerdict {
        /// About whom.
        node: NodeId,
        /// It.
        verdict: Box<Verdict>,
    },
    /// The newest attestation result about a node, signed.
    PutEar {
        /// About whom.
        node: NodeId,
        /// The signed bytes.
        bytes: Vec<u8>,
    },
    /// The reference values.
    PutReferences(References),
    /// A secret, its value locked.
    PutSecret {
        /// Its name.
        name: Name,
        /// It.
        secret: StoredSecret,
    },
    /// A secret that is no more. Its version is kept, so that a later one of its name goes on counting.
    DropSecret {
        /// Its name.
        name: Name,
        /// Its last version.
        version: u64,
    },
    /// An operating system for nodes.
    PutSystem {
        /// Its name.
        name: Name,
        /// It.
        system: Box<StoredSystem>,
    },
    /// One that is no more.
    DropSystem(Name),
    /// Tokens, known TPMs, enrolled nodes.
    Enrol(EnrolOp),
    /// The newest word of a node on a subject; also goes into the history.
    PutEntry {
        /// The node.
        node: NodeId,
        /// The entry.
        stored: StoredEntry,
    },
    /// A node's stream began anew: what was said in its life `retired` is void, and what is still on its way of that
    /// life comes too late.
    ClearEntries {
        /// The node.
        node: NodeId,
        /// The incarnation that is over.
        retired: u64,
    },
    /// A subject that is no more: its entry's body becomes [`v1::Body::Unknown`]. Its sequence number stays, so that the
    /// same entry is not taken again.
    VoidEntry {
        /// The node.
        node: NodeId,
        /// The subject.
        key: String,
    },
}

/// The whole store, as read at boot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    /// Descendants, twins, streams.
    pub tree: StoredTree,
    /// The hub's epoch, 0 in a fresh store.
    pub epoch: u64,
    /// Trust bundles, revocations, delegations.
    pub trust: StoredTrust,
    /// When the newest trust bundle was taken, milliseconds since 1970.
    pub trust_since_ms: u64,
    /// Applications.
    pub apps: BTreeMap<Name, StoredApp>,
    /// Generations of applications that were deleted.
    pub deleted: BTreeMap<Name, u64>,
    /// Uploaded artifacts and their sizes.
    pub artifacts: BTreeMap<Digest, u64>,
    /// Precompiled artifacts.
    pub compiled: BTreeMap<CompileKey, v1::Artifact>,
    /// What appraisals came to.
    pub verdicts: BTreeMap<NodeId, Verdict>,
    /// Signed attestation results.
    pub ears: BTreeMap<NodeId, Vec<u8>>,
    /// The reference values.
    pub references: References,
    /// Provenance by artifact, the oldest first.
    pub provenance: BTreeMap<Digest, Vec<StoredProvenance>>,
    /// Secrets, their values locked.
    pub secrets: BTreeMap<Name, StoredSecret>,
    /// Last versions of secrets that were removed.
    pub removed_secrets: BTreeMap<Name, u64>,
    /// Operating systems for nodes.
    pub systems: BTreeMap<Name, StoredSystem>,
    /// Reported state.
    pub entries: BTreeMap<NodeId, BTreeMap<String, StoredEntry>>,
    /// Lives of report streams that are over.
    pub retired: BTreeMap<NodeId, BTreeSet<u64>>,
    /// Tokens, known TPMs, enrolled nodes.
    pub enrolment: StoredEnrolment,
}

impl Stored {
    /// Applies changes to an image in memory. The simulator's store is made of this.
    pub fn apply(&mut self, ops: &[Op]) {
        for op in ops.iter().cloned() {
            match op {
                Op::Tree(op) => self.tree.apply(&op),
                Op::Epoch(epoch) => self.epoch = epoch,
                Op::Trust(op) => self.trust.apply(&op),
                Op::TrustSince(at_ms) => self.trust_since_ms = at_ms,
                Op::PutApp { name, app } => {
                    self.deleted.remove(&name);
                    self.apps.insert(name, app);
                }
                Op::DeleteApp { name, generation } => {
                    self.apps.remove(&name);
                    self.deleted.insert(name, generation);
                }
                Op::PutArtifact { digest, size } => {
                    self.artifacts.insert(digest, size);
                }
                Op::PutCompiled { key, artifact } => {
                    self.compiled.insert(key, artifact);
                }
                Op::DropArtifact { digest } => {
                    self.artifacts.remove(&digest);
                    self.compiled.retain(|_, a| a.digest != digest);
                    self.provenance.remove(&digest);
                    for held in self.provenance.values_mut() {
                        held.retain(|p| p.artifact.digest != digest);
                    }
                }
                Op::PutProvenance { subject, stored } => self.provenance.entry(subject).or_default().push(stored),
                Op::DropProvenance { subject, envelope } => {
                    if let Some(held) = self.provenance.get_mut(&subject) {
                        held.retain(|p| p.artifact.digest != envelope);
                    }
                }
                Op::PutVerdict { node, verdict } => {
                    self.verdicts.insert(node, *verdict);
                }
                Op::PutEar { node, bytes } => {
                    self.ears.insert(node, bytes);
                }
                Op::PutReferences(references) => self.references = references,
                Op::PutSecret { name, secret } => {
                    self.removed_secrets.remove(&name);
                    self.secrets.insert(name, secret);
                }
                Op::DropSecret { name, version } => {
                    self.secrets.remove(&name);
                    self.removed_secrets.insert(name, version);
                }
                Op::PutSystem { name, system } => {
                    self.systems.insert(name, *system);
                }
                Op::DropSystem(name) => {
                    self.systems.remove(&name);
                }
                Op::Enrol(op) => self.enrolment.apply(&op),
                Op::PutEntry { node, stored } => {
                    self.entries
                        .entry(node)
                        .or_default()
                        .insert(stored.entry.key.clone(), stored);
                }
                Op::ClearEntries { node, retired } => {
                    self.entries.remove(&node);
                    self.retired.entry(node).or_default().insert(retired);
                }
                Op::VoidEntry { node, key } => {
                    if let Some(stored) = self.entries.entry(node).or_default().get_mut(&key) {
                        stored.entry.body = v1::Body::Unknown;
                    }
                }
            }
        }
    }
}
