//! What goes into the core and what comes out of it.

use std::collections::BTreeMap;

use cnova_attestation::appraiser::{Rhythm, Verdict};
use cnova_attestation::ear::Ear;
use cnova_attestation::parent::ParentTrust;
use cnova_shared::bundle::TrustBundle;
use cnova_shared::ids::{Digest, NodeId, SitePath};
use cnova_shared::keys::PublicKey;
use cnova_shared::report::{StoredStream, StreamOp};
use cnova_shared::topics::Kind;
use cnova_shared::tree::{StoredTree, TreeOp};
use cnova_shared::trust::{StoredTrust, TrustOp, TrustView};
use cnova_shared::wire::v1;
use serde::{Deserialize, Serialize};

use crate::enrol::DoorId;
use crate::spool::{SpoolOp, StoredSpool};

/// What a gateway is told about itself before it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name.
    pub node: NodeId,
    /// Its place in the tree.
    pub site: SitePath,
    /// The node above it.
    pub parent: NodeId,
    /// Labels from its configuration.
    pub labels: BTreeMap<String, String>,
    /// The program's version.
    pub software: String,
    /// Differs on every start.
    pub boot: String,
    /// The trust bundle that it was flashed with; newer ones are in its store.
    pub trust: TrustBundle,
    /// Conditions that the daemon met before the core existed.
    pub alarms: Vec<v1::Alarm>,
    /// The key that its certificate is about.
    pub key: PublicKey,
    /// When it is to ask for its next certificate, seconds since 1970; never, where it was certified by hand.
    pub renew_s: Option<u64>,
    /// What it asks of its parent.
    pub parent_trust: ParentTrust,
    /// How it appraises its children where the hub has delegated that.
    pub appraisal: Appraisal,
}

/// How a gateway appraises its children while the hub is away.
#[derive(Clone, Copy, Debug)]
pub struct Appraisal {
    /// For so long the hub must have been out of reach, milliseconds.
    pub after_ms: u64,
    /// How often, and for how long a result holds; never longer than [`cnova_shared::limits::DELEGATED_RESULT_S`].
    pub rhythm: Rhythm,
    /// The register of the launch log.
    pub launch_pcr: u8,
    /// Random, new at every start: nonces are made of it.
    pub seed: [u8; 32],
}

impl Appraisal {
    /// For so long the hub must have been out of reach where nothing is said, milliseconds: it was started anew, or a line
    /// broke for a moment, and comes back.
    pub const AFTER_MS: u64 = 5 * 60_000;

    /// As it is where nothing is said.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            after_ms: Self::AFTER_MS,
            rhythm: Rhythm {
                valid_s: cnova_shared::limits::DELEGATED_RESULT_S,
                ..Rhythm::default()
            },
            launch_pcr: cnova_attestation::DEFAULT_LAUNCH_PCR,
            seed,
        }
    }
}

/// Something happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The parent's endpoint is connected and subscribed to.
    ParentConnected,
    /// It is not any more.
    ParentDisconnected,
    /// The parent said something.
    FromParent {
        /// The topic's kind.
        kind: Kind,
        /// The bytes, unverified.
        bytes: Vec<u8>,
    },
    /// A child's transport is up; its certificate names it.
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
    /// A fetched artifact's digest matched and it is in the cache.
    ArtifactStored {
        /// Which.
        digest: Digest,
        /// Its size.
        size: u64,
    },
    /// A fetched artifact's digest did not match, or it could not be written.
    ArtifactFailed {
        /// Which.
        digest: Digest,
        /// Why.
        detail: String,
    },
    /// A newcomer at the enrolment door asks something; answered with [`Action::AnswerNewcomer`].
    Newcomer {
        /// Whom to answer.
        door: DoorId,
        /// What it asks.
        step: v1::EnrolStep,
    },
    /// A newcomer has gone before it was answered.
    NewcomerGone(DoorId),
    /// The certificate of [`Action::Install`] is on disk and in use.
    Installed {
        /// When to ask for the next one, seconds since 1970.
        renew_s: u64,
    },
    /// The result of [`Action::SignEar`].
    EarSigned {
        /// About whom.
        node: NodeId,
        /// The signed bytes.
        bytes: Vec<u8>,
    },
    /// Somebody wants all children to be appraised now, as far as this gateway may.
    Demand,
    /// A condition at the door that a person should know; it stands until the gateway is started anew.
    Trouble(v1::Alarm),
    /// Time went by.
    Tick,
}

/// A change that must be on disk before what follows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Op {
    /// Descendants, twins, streams.
    Tree(TreeOp),
    /// What waits for the parent.
    Spool(SpoolOp),
    /// The gateway's own report stream.
    Stream(StreamOp),
    /// The newest time that was verified, seconds since 1970.
    TimeFloor(u64),
    /// Newer trust bundles, revocations, delegations.
    Trust(TrustOp),
    /// The newest attestation result about this gateway, as it came.
    PutEar(Vec<u8>),
    /// As [`Op::PutEar`], by the gateway above under its delegation.
    PutDelegatedEar(Vec<u8>),
    /// The newest result about the parent, as it came.
    PutParentEar {
        /// Whether a gateway judged, and not the hub.
        is_delegated: bool,
        /// The signed bytes.
        bytes: Vec<u8>,
    },
    /// The newest result about a child, as it came.
    PutResult {
        /// Which.
        child: NodeId,
        /// Whether this gateway judged, and not the hub.
        is_own: bool,
        /// The signed bytes.
        bytes: Vec<u8>,
    },
    /// What this gateway's last appraisal of a child came to.
    PutVerdict {
        /// Which.
        child: NodeId,
        /// It.
        verdict: Box<Verdict>,
    },
}

/// The whole store, as read at boot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    /// Descendants, twins, streams.
    pub tree: StoredTree,
    /// What waits for the parent.
    pub spool: StoredSpool,
    /// The gateway's own report stream.
    pub stream: StoredStream,
    /// The newest time that was verified.
    pub time_floor: u64,
    /// Newer trust bundles, revocations, delegations.
    pub trust: StoredTrust,
    /// The hub's newest attestation result about this gateway, as it came.
    pub ear: Option<Vec<u8>>,
    /// The one of the gateway above.
    pub delegated_ear: Option<Vec<u8>>,
    /// The newest results about the parent, as they came: the hub's, and that of a gateway above it.
    pub parent_ears: [Option<Vec<u8>>; 2],
    /// The newest results about children, as they came: the hub's, and this gateway's own.
    pub results: BTreeMap<(NodeId, bool), Vec<u8>>,
    /// What this gateway's own appraisals came to.
    pub verdicts: BTreeMap<NodeId, Verdict>,
}

impl Stored {
    /// Applies changes to an image in memory. The simulator's store is made of this.
    pub fn apply(&mut self, ops: &[Op]) {
        for op in ops {
            match op {
                Op::Tree(op) => self.tree.apply(op),
                Op::Spool(op) => self.spool.apply(op),
                Op::Stream(op) => self.stream.apply(op),
                Op::TimeFloor(t) => self.time_floor = *t,
                Op::Trust(op) => self.trust.apply(op),
                Op::PutEar(bytes) => self.ear = Some(bytes.clone()),
                Op::PutDelegatedEar(bytes) => self.delegated_ear = Some(bytes.clone()),
                Op::PutParentEar { is_delegated, bytes } => {
                    self.parent_ears[usize::from(*is_delegated)] = Some(bytes.clone());
                }
                Op::PutResult { child, is_own, bytes } => {
                    self.results.insert((child.clone(), *is_own), bytes.clone());
                }
                Op::PutVerdict { child, verdict } => {
                    self.verdicts.insert(child.clone(), (**verdict).clone());
                }
            }
        }
    }
}

/// What the gateway itself says to its parent, before it is signed.
#[allow(clippy::large_enum_variant, reason = "few live at a time, and each is sent at once")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpMessage {
    /// To the hub; introduces the gateway with its certificate.
    Hello(v1::Hello),
    /// To the hub.
    Report(v1::Report),
    /// To the parent.
    Relay(v1::Relay),
    /// To the parent.
    ChunkRequest(v1::ChunkRequest),
    /// To the hub, carried unchanged by every gateway on the way: for a newcomer, or for this gateway itself.
    Enrol(v1::Enrol),
}

/// Something to do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Commit these before going on to the next action.
    Persist(Vec<Op>),
    /// Sign and send to the parent.
    SendUp(UpMessage),
    /// Send a descendant's signed bytes to the parent unchanged.
    CarryUp {
        /// The kind.
        kind: Kind,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Answer a newcomer.
    AnswerNewcomer {
        /// Whom.
        door: DoorId,
        /// What.
        answer: v1::EnrolAnswer,
    },
    /// Answer a challenge with evidence, for this verifier.
    Attest {
        /// Who asks.
        verifier: NodeId,
        /// What it asks.
        challenge: v1::Challenge,
    },
    /// Put this gateway's next certificate on disk, then use it; answered with [`Event::Installed`]. It was checked.
    Install(Box<v1::EnrolIssued>),
    /// Sign a challenge and send it to a child.
    Challenge {
        /// The child.
        child: NodeId,
        /// The challenge.
        challenge: v1::Challenge,
    },
    /// Sign an attestation result with the key of this gateway's certificate; answered with [`Event::EarSigned`].
    SignEar(Box<Ear>),
    /// Sign and send to a child.
    Ack {
        /// The child.
        child: NodeId,
        /// The acknowledgement.
        ack: v1::Ack,
        /// Whether it introduces the gateway with its certificate.
        introduce: bool,
    },
    /// Sign and send to a child, introduced by the gateway's certificate.
    Trust {
        /// The child.
        child: NodeId,
        /// Documents about trust.
        trust: v1::Trust,
    },
    /// TLS and the door go by this from now on: connections that stand stay, unless their node was revoked.
    TrustChanged(TrustView),
    /// Send signed bytes to a child unchanged.
    Forward {
        /// The child.
        child: NodeId,
        /// The kind.
        kind: Kind,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Read a piece of a cached artifact, sign it and send it to a child.
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
    /// Write bytes into an artifact's partial file; when `complete`, check its digest and answer with an event.
    AppendChunk {
        /// The artifact.
        digest: Digest,
        /// Where.
        offset: u64,
        /// What.
        data: Vec<u8>,
        /// Whether it was the last.
        complete: bool,
    },
    /// For the log.
    Note(String),
}
