//! What goes into the core and what comes out of it.

use std::collections::{BTreeMap, BTreeSet};

use cnova_attestation::appraiser::Rhythm;
use cnova_attestation::ear::Ear;
use cnova_attestation::reference::{ReferenceSet, References, Selector};
use cnova_shared::bundle::TrustBundle;
use cnova_shared::ids::{Digest, Name, NodeId};
use cnova_shared::keys::KeyId;
use cnova_shared::topics::Kind;
use cnova_shared::trust::TrustView;
use cnova_shared::trust_documents::{BootPolicy, Delegation, Revocations, Right};
use cnova_shared::wire::v1;
use serde::{Deserialize, Serialize};

use crate::cndl::{ManifestErrors, RuntimeKind, SitePattern};
use crate::enrol::{Certify, EnrolChange, EnrolRules, RANDOM_BYTES};
use crate::policy::{AdmittedManifest, AdmittedSystem};
use crate::secrets::{SealKey, SealOrder, Sealed, SecretChange};
use crate::stored::Op;
use crate::systems::{BundleFacts, Measured};

/// What a hub is told about itself before it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its node id, the `iss` of everything that it signs.
    pub node: NodeId,
    /// The trust bundle of its configuration; older and newer ones are in its store.
    pub trust: TrustBundle,
    /// How it appraises nodes.
    pub appraisal: Appraisal,
    /// By which rules it enrols nodes; none where it enrols nobody.
    pub enrolment: Option<EnrolRules>,
    /// Which gateways may decide for their sites while the hub is away.
    pub delegation: DelegationRules,
}

/// How the hub appraises nodes.
#[derive(Clone, Debug)]
pub struct Appraisal {
    /// How often.
    pub rhythm: Rhythm,
    /// The register of the launch log.
    pub launch_pcr: u8,
    /// The registers by which nodes' own secrets are bound to approved boots; where it is empty, all that a reference set
    /// names but the launch register.
    pub boot_pcrs: BTreeSet<u8>,
    /// Random, new at every start: nonces are made of it.
    pub seed: [u8; 32],
    /// Whether a node whose disk was rolled back is let out of quarantine as soon as it was told what is newest; else an
    /// operator does it.
    pub releases: bool,
}

impl Appraisal {
    /// As it is where nothing is said.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            rhythm: Rhythm::default(),
            launch_pcr: cnova_attestation::DEFAULT_LAUNCH_PCR,
            boot_pcrs: BTreeSet::new(),
            seed,
            releases: true,
        }
    }
}

/// Which gateways may decide for their sites while the hub is away, what, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DelegationRules {
    /// These gateways,
    pub gateways: BTreeSet<NodeId>,
    /// and those whose site fits one of these.
    pub sites: Vec<SitePattern>,
    /// What they may do.
    pub rights: Vec<Right>,
    /// For so long after the hub was last reached, at least half of it.
    pub hours: u64,
}

impl Default for DelegationRules {
    fn default() -> Self {
        Self {
            gateways: BTreeSet::new(),
            sites: Vec::new(),
            rights: vec![Right::Appraise, Right::MoveFloating],
            hours: DELEGATION_HOURS,
        }
    }
}

/// What somebody wants of attestation.
#[derive(Clone, Debug, PartialEq)]
pub enum AttestChange {
    /// A node is challenged now.
    Demand(NodeId),
    /// A node is let out of quarantine.
    Release(NodeId),
    /// A set of reference values is added, or takes the place of the one with its name.
    PutSet(Box<ReferenceSet>),
    /// What a node last showed becomes a set of reference values.
    SetFromNode {
        /// Its name.
        name: String,
        /// The node.
        node: NodeId,
        /// Whom it is for.
        nodes: Selector,
        /// What of it an image decides that it is to boot; nothing, where it is to boot what it did.
        image: Measured,
    },
    /// A set is taken away.
    DropSet(String),
}

/// How long a delegation holds where nothing is said: a long weekend.
pub const DELEGATION_HOURS: u64 = 96;

/// A document that the core wants signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Draft {
    /// Who is no longer trusted.
    Revocations(Revocations),
    /// What a gateway may decide.
    Delegation(Delegation),
    /// Which boots are approved: each is to be approved by every key that the hub has for it, and one by none is left out.
    BootPolicy(BootPolicy),
    /// What nodes shall have booted, for gateways that appraise.
    References(References),
}

/// Names what a waiting caller asked; the daemon chooses it.
pub type RequestId = u64;

/// What a Wasm module is precompiled for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CompileKey {
    /// The uploaded module or component.
    pub source: Digest,
    /// The node's target.
    pub target: String,
    /// The node's engine.
    pub engine: String,
}

/// An artifact that is looked into before a workload that names it is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InspectKey {
    /// The artifact.
    pub digest: Digest,
    /// What it is given to.
    pub runtime: RuntimeKind,
}

/// What an artifact turned out to be: the parts that its runtime needs beside it (an image's configuration and layers),
/// as it names them; or why the runtime could do nothing with it.
pub type Inspection = Result<Vec<v1::Artifact>, String>;

/// Something happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Somebody applies a manifest that policy let through.
    Apply {
        /// Whom to answer.
        request: RequestId,
        /// The manifest.
        manifest: Box<AdmittedManifest>,
    },
    /// Somebody deletes an application.
    Delete {
        /// Whom to answer.
        request: RequestId,
        /// Which.
        name: Name,
    },
    /// Somebody applies a manifest of a system that policy let through.
    ApplySystem {
        /// Whom to answer.
        request: RequestId,
        /// The manifest.
        manifest: Box<AdmittedSystem>,
    },
    /// Somebody takes a system away: nodes keep what they run.
    DeleteSystem {
        /// Whom to answer.
        request: RequestId,
        /// Which.
        name: Name,
    },
    /// A bundle was looked into.
    BundleInspected {
        /// Which.
        bundle: Digest,
        /// What is in it, or what is wrong with it.
        result: Result<Box<BundleFacts>, String>,
    },
    /// Somebody asks a node something.
    Ask {
        /// Whom to answer.
        request: RequestId,
        /// Which node.
        node: NodeId,
        /// What.
        op: v1::Operation,
    },
    /// Somebody wants something of attestation.
    Attest {
        /// Whom to answer.
        request: RequestId,
        /// What.
        change: AttestChange,
    },
    /// An attestation result that the core asked for is signed.
    EarSigned {
        /// About whom.
        node: NodeId,
        /// The signed bytes.
        bytes: Vec<u8>,
    },
    /// An admin sets, grants or removes a secret.
    Secret {
        /// Whom to answer.
        request: RequestId,
        /// What.
        change: SecretChange,
    },
    /// A secret that the core wanted encrypted to a node is, or why not.
    SecretSealed {
        /// Which, for whom.
        key: SealKey,
        /// What came of it.
        result: Sealed,
    },
    /// An admin changes who may enrol.
    EnrolChange {
        /// Whom to answer.
        request: RequestId,
        /// What.
        change: EnrolChange,
    },
    /// A step of an enrolment: what [`Action::Enrol`] handed out comes back with randomness, or a newcomer at the hub's own
    /// door asks.
    Enrol {
        /// Who asks: the hub itself for its own door.
        author: NodeId,
        /// Its ticket.
        ticket: u64,
        /// What it asks.
        step: v1::EnrolStep,
        /// Fresh from the system's generator.
        random: Box<[u8; RANDOM_BYTES]>,
    },
    /// A certificate that the core asked for was made, or why not.
    Certified {
        /// What was asked for.
        certify: Box<Certify>,
        /// The chain, DER, the node's own first.
        result: Result<Vec<Vec<u8>>, String>,
    },
    /// An artifact was uploaded and its digest checked.
    Uploaded {
        /// Which.
        digest: Digest,
        /// Its size.
        size: u64,
    },
    /// Provenance of an artifact was uploaded, or made by the compile worker. It is in the store as an artifact, and
    /// nothing of it was believed yet.
    ProvenanceAdded {
        /// The artifact that it is said to be about.
        subject: Digest,
        /// The envelope as an artifact.
        artifact: v1::Artifact,
        /// Its bytes.
        envelope: Vec<u8>,
    },
    /// The compile worker is done. Before a result, its provenance was told with [`Event::ProvenanceAdded`].
    Compiled {
        /// What for.
        key: CompileKey,
        /// The result, in the store; or why there is none.
        result: Result<v1::Artifact, String>,
    },
    /// An artifact was looked into.
    Inspected {
        /// Which, and for what.
        key: InspectKey,
        /// What it is.
        result: Inspection,
    },
    /// Artifacts that nothing has used for long enough may be removed; those that something uses again stay.
    Collect(BTreeSet<Digest>),
    /// A twin that the core asked for is signed.
    TwinSigned(Vec<u8>),
    /// The hub signs with this key from now on: whatever is in force by another is signed anew.
    Signer(KeyId),
    /// The hub approves boots with these keys from now on; the newest bundle names all of them for it.
    Approvers(BTreeSet<KeyId>),
    /// A document that the core asked for is signed, or why it is not.
    DocumentSigned(Box<Draft>, Result<Vec<u8>, String>),
    /// Somebody brings a newer trust bundle.
    PushBundle {
        /// Whom to answer.
        request: RequestId,
        /// The signed bytes.
        bytes: Vec<u8>,
    },
    /// Somebody revokes a node.
    Revoke {
        /// Whom to answer.
        request: RequestId,
        /// Which.
        node: NodeId,
        /// Whether only the keys that the hub knows of it are refused, so that another device can take the name.
        keys_only: bool,
        /// Why.
        reason: String,
    },
    /// Somebody lets a revoked node in again.
    Readmit {
        /// Whom to answer.
        request: RequestId,
        /// Which.
        node: NodeId,
        /// Whether the keys that it had stay refused: another device takes the name.
        new_key: bool,
    },
    /// A child's transport is up.
    ChildConnected(NodeId),
    /// A child's transport is down.
    ChildDisconnected {
        /// Which.
        child: NodeId,
        /// Why.
        reason: String,
    },
    /// A child said something.
    FromChild {
        /// Which.
        child: NodeId,
        /// The topic's kind.
        kind: Kind,
        /// The bytes, unverified.
        bytes: Vec<u8>,
    },
    /// Time went by.
    Tick,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Outcome {
    /// The application is stored and its twins are on their way.
    Applied {
        /// Its name.
        name: Name,
        /// Its new generation, or the one it had when nothing changed.
        generation: u64,
        /// Whether anything changed.
        changed: bool,
        /// Nodes by workload.
        placed: BTreeMap<String, BTreeSet<String>>,
        /// Workloads without all their nodes, and why.
        unplaced: BTreeMap<String, String>,
    },
    /// The application is deleted.
    Deleted {
        /// Its name.
        name: Name,
    },
    /// A secret is set or granted, and on its way to the nodes that use it.
    Secret {
        /// Its name.
        name: Name,
        /// Its version.
        version: u64,
        /// Whether anything changed.
        changed: bool,
    },
    /// It is as it was asked for.
    Done,
    /// What the fleet trusts has changed, and is on its way.
    Trusted {
        /// The version of the bundle, or of the list of revocations.
        version: u64,
        /// Whether anything changed.
        changed: bool,
        /// What, for a person.
        text: String,
    },
    /// Nothing was changed, and why.
    Refused {
        /// Reasons, each complete in itself.
        reasons: Vec<String>,
    },
    /// Nothing was changed: what the manifest names is not what it should be.
    Mistakes(ManifestErrors),
    /// There is no such thing.
    NotFound {
        /// What there is not.
        what: String,
    },
    /// It was done.
    Attested {
        /// What, for a person.
        text: String,
    },
    /// A node's answer.
    Replied {
        /// Whether it could do it.
        ok: bool,
        /// What it said.
        text: String,
    },
}

/// Something to do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Commit these before going on to the next action.
    Persist(Vec<Op>),
    /// Answer a waiting caller.
    Answer {
        /// Whom.
        request: RequestId,
        /// What.
        outcome: Outcome,
    },
    /// Precompile in a worker; answered with [`Event::Compiled`].
    Compile(CompileKey),
    /// Look into an artifact; answered with [`Event::Inspected`].
    Inspect(InspectKey),
    /// Look into a bundle; answered with [`Event::BundleInspected`].
    InspectBundle(Digest),
    /// Remove the files of artifacts that the store no longer names.
    RemoveArtifacts(BTreeSet<Digest>),
    /// Encrypt a secret to a node; answered with [`Event::SecretSealed`].
    SealSecret(Box<SealOrder>),
    /// Draw randomness for a step of an enrolment; answered with [`Event::Enrol`].
    Enrol {
        /// Who asks.
        author: NodeId,
        /// Its ticket.
        ticket: u64,
        /// What it asks.
        step: v1::EnrolStep,
    },
    /// Make a certificate; answered with [`Event::Certified`].
    Certify(Box<Certify>),
    /// Answer a step of an enrolment: signed for `author` and sent to a child, or at the hub's own door.
    Enrolled {
        /// The child behind which the author hangs; nobody for the hub's own door.
        child: Option<NodeId>,
        /// Who asked.
        author: NodeId,
        /// The answer.
        enrolled: v1::Enrolled,
    },
    /// An entry for the audit log that nobody's request asked for.
    Audit {
        /// What was done.
        action: &'static str,
        /// To what.
        object: String,
        /// `done` or `refused`.
        outcome: &'static str,
        /// More, for a person.
        detail: String,
    },
    /// Sign with the hub's key; answered with [`Event::TwinSigned`].
    SignTwin(Box<v1::Twin>),
    /// Sign with the hub's key; answered with [`Event::DocumentSigned`].
    SignDocument(Box<Draft>),
    /// Sign with the key of the hub's certificate, introduced by it, and send to a child.
    Trust {
        /// The child.
        child: NodeId,
        /// Documents about trust.
        trust: v1::Trust,
    },
    /// TLS and the door go by this from now on: connections that stand stay, unless their node was revoked.
    TrustChanged(TrustView),
    /// Sign a command for a node and send it to a child.
    Command {
        /// The child.
        child: NodeId,
        /// The node.
        node: NodeId,
        /// The command.
        command: v1::Command,
    },
    /// Sign a challenge for a node and send it to a child.
    Challenge {
        /// The child.
        child: NodeId,
        /// The node.
        node: NodeId,
        /// The challenge.
        challenge: v1::Challenge,
    },
    /// Sign an attestation result; answered with [`Event::EarSigned`].
    SignEar(Box<Ear>),
    /// Sign and send to a child.
    Ack {
        /// The child.
        child: NodeId,
        /// The acknowledgement.
        ack: v1::Ack,
    },
    /// Send signed bytes to a child unchanged.
    Forward {
        /// The child.
        child: NodeId,
        /// The kind.
        kind: Kind,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Read a piece of an artifact, sign it and send it to a child.
    ServeChunk {
        /// The child.
        child: NodeId,
        /// The artifact.
        digest: Digest,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Sign and send a chunk that says why there is none.
    RefuseChunk {
        /// The child.
        child: NodeId,
        /// The chunk.
        chunk: v1::Chunk,
    },
    /// A stage was reached, or something odd happened; for the log and for those who watch.
    Note(String),
}
