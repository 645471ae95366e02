//! What goes into the core and what comes out of it.

use std::collections::BTreeMap;

use cnova_shared::boot_policy::OwnBoots;
use cnova_shared::bundle::TrustBundle;
use cnova_shared::ids::{Digest, NodeId, SitePath, WorkloadId};
use cnova_shared::keys::PublicKey;
use cnova_shared::secret::BoxPublicKey;
use cnova_shared::system_bundle::Header;
use cnova_shared::topics::Kind;
use cnova_shared::trust::TrustView;
use cnova_shared::twin::Version;
use cnova_shared::wire::v1;

use crate::ledger::Op;
use crate::schedule::Pressure;
use crate::standing::{Counter, OwnBoot, Root};
use crate::system::{OtherSlot, Running};

/// What an agent is told about itself before it starts.
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
    /// What it has.
    pub capabilities: v1::Capabilities,
    /// The program's version.
    pub software: String,
    /// Differs on every start.
    pub boot: String,
    /// The trust bundle that it was flashed with; newer ones are in its ledger.
    pub trust: TrustBundle,
    /// How well it is supplied with power and cooling at the start, and what that was concluded from.
    pub power: (v1::PowerLevel, String),
    /// What its root of trust said.
    pub root: Root,
    /// Conditions that the daemon met before the core existed, such as a store that was set aside.
    pub alarms: Vec<v1::Alarm>,
    /// The key that its certificate is about.
    pub key: PublicKey,
    /// The key that its secrets are encrypted to, or why it can open none.
    pub box_key: Result<BoxPublicKey, String>,
    /// When it is to ask for its next certificate, seconds since 1970; never, where it was certified by hand.
    pub renew_s: Option<u64>,
    /// The system that runs and the slot it runs from, or why this machine's system cannot be changed.
    pub slots: Result<Running, String>,
}

/// Something happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The parent's endpoint is connected and subscribed to.
    Connected,
    /// It is not any more.
    Disconnected,
    /// The parent said something.
    Message {
        /// The topic's kind.
        kind: Kind,
        /// The bytes, unverified.
        bytes: Vec<u8>,
    },
    /// A fetched artifact's digest matched and it is in the store.
    ArtifactStored(Digest),
    /// A fetched artifact's digest did not match, or it could not be written.
    ArtifactFailed {
        /// Which.
        digest: Digest,
        /// Why.
        detail: String,
    },
    /// A runtime said something about an instance.
    Runtime {
        /// The workload.
        id: WorkloadId,
        /// The instance; an event of another attempt is stale and ignored.
        attempt: u32,
        /// What it said.
        event: RuntimeEvent,
    },
    /// The twin that was taken last is on disk; told right after the commit.
    TwinCommitted,
    /// How busy the node is.
    Pressure(Pressure),
    /// How well the node is supplied with power and cooling; told when it changes.
    Power {
        /// The level.
        level: v1::PowerLevel,
        /// What it was concluded from, for a person.
        why: String,
    },
    /// The accelerators and devices that there are now.
    Inventory {
        /// Those that can be leased.
        accelerators: Vec<v1::Accelerator>,
        /// Names of those that the configuration offers.
        devices: Vec<String>,
    },
    /// The TPM's counter was increased; its new value, or why not.
    Counted(Result<u64, String>),
    /// The TPM's counter, which could not be read when the agent started: its value, or why it still cannot be.
    Counter(Result<Counter, String>),
    /// The node tried to open its own sealed key, as [`Action::OpenLedgerKey`] asked.
    OwnBoot {
        /// The approved boots with which it tried.
        boots: OwnBoots,
        /// What came of it.
        own_boot: OwnBoot,
        /// Why the key of before is lost, and with it what was encrypted with it: then a new one was made.
        lost: Option<String>,
    },
    /// The key that the node's secrets are encrypted to is open now; its public half.
    BoxKey(BoxPublicKey),
    /// Whether launches can be measured: why not, or that they can again.
    Unmeasured(Option<String>),
    /// The certificate of [`Action::Install`] is on disk and in use.
    Installed {
        /// When to ask for the next one, seconds since 1970.
        renew_s: u64,
    },
    /// The provenance of a version was checked, as [`Action::CheckProvenance`] asked.
    ProvenanceChecked {
        /// The version's specification.
        spec: Digest,
        /// Whether it holds.
        result: Result<(), Unproved>,
    },
    /// What became of a [`SystemAction`].
    System(SystemEvent),
    /// Time went by.
    Tick,
}

/// What became of a [`SystemAction`]. It is about the bundle that it names, or void.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SystemEvent {
    /// The other slot takes the bundle; so many of its first bytes are in it already and on disk.
    Opened {
        /// Which.
        bundle: Digest,
        /// Bytes.
        have: u64,
    },
    /// It could not be opened, or written to.
    NotWritten {
        /// Which.
        bundle: Digest,
        /// Why.
        why: String,
    },
    /// It was read back: whether its parts are what the header says.
    Verified {
        /// Which.
        bundle: Digest,
        /// Why not.
        result: Result<(), String>,
    },
    /// There is not room enough for it here, however often it is tried.
    NoRoom {
        /// Which.
        bundle: Digest,
        /// For what, and how much there is.
        why: String,
    },
    /// The loader was not told to try it.
    NotStarted {
        /// Which.
        bundle: Digest,
        /// Why.
        why: String,
    },
    /// The machine does not start anew. Where a bundle was to be started, the loader was told to try it.
    NotRestarted {
        /// Why.
        why: String,
    },
    /// What is in the slot that does not run.
    OtherSlot(OtherSlot),
}

/// What is done with the slots. Each may be done again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SystemAction {
    /// Take the other slot for this bundle: unless it is the one that is being written there already, what was in it is never
    /// started again. Answered with [`SystemEvent::Opened`] or [`SystemEvent::NotWritten`].
    Open {
        /// Which.
        bundle: Digest,
        /// What is in it.
        header: Box<Header>,
    },
    /// Write bytes of it; answered only when that failed.
    Write {
        /// Which.
        bundle: Digest,
        /// Where in the bundle they stand.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
    },
    /// Force it to the disk, and read it back; answered with [`SystemEvent::Verified`].
    Verify {
        /// Which.
        bundle: Digest,
        /// What is to be in it.
        header: Box<Header>,
    },
    /// Have the loader try the other slot so often, and start the machine anew; answered only when that failed: with
    /// [`SystemEvent::Verified`] where what was staged is damaged, else with [`SystemEvent::NotStarted`] or
    /// [`SystemEvent::NotRestarted`].
    Start {
        /// Which.
        bundle: Digest,
        /// What is to be in it.
        header: Box<Header>,
        /// How often.
        tries: u8,
        /// Whether it is no newer than what runs, so that the loader would not choose it by itself.
        is_older: bool,
    },
    /// The slot that runs is good: it is not counted any more.
    Confirm,
    /// The other slot is not started any more, and what is left of a bundle there is no use.
    Discard,
    /// Start the machine anew: what runs is not good. Answered with [`SystemEvent::NotRestarted`] when that failed.
    Restart,
    /// Look at what is in the other slot; answered with [`SystemEvent::OtherSlot`].
    Look,
}

/// Why a version's provenance does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unproved {
    /// For a person: which artifact, and what is wrong.
    pub why: String,
}

/// A version of a workload whose provenance is to be checked against its own policy and the trust bundle's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenanceCheck {
    /// The version. All its artifacts, and the envelopes that it names, are in the store.
    pub workload: v1::Workload,
    /// Its specification, which the answer repeats.
    pub spec: Digest,
    /// Whether it was accepted before; keys of builders that ran out since then still count.
    pub was_accepted: bool,
}

/// What a runtime says of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// It runs.
    Started {
        /// Its process.
        pid: u32,
    },
    /// How it is; told when it changes, and for every bad answer.
    Health {
        /// Whether it is well.
        healthy: bool,
        /// What is wrong, for a person.
        detail: String,
    },
    /// It ended, or never began.
    Exited {
        /// Whether it ended as it should.
        ok: bool,
        /// How it ended, for a person.
        detail: String,
    },
}

/// A workload instance found at boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The workload.
    pub id: WorkloadId,
    /// The instance.
    pub attempt: u32,
    /// The digest of the specification it was started with.
    pub spec: Digest,
    /// How it was found.
    pub state: ObservedState,
}

/// How an instance was found at boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObservedState {
    /// Alive: same process id, same start time, same boot of the machine.
    Alive {
        /// Its process.
        pid: u32,
    },
    /// It ended while nobody watched.
    Exited {
        /// Whether it ended as it should.
        ok: bool,
        /// How it ended.
        detail: String,
    },
    /// The machine was started anew since.
    MachineRestarted,
}

/// An instance to start. Everything that the runtime's specification needs is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The verified workload.
    pub workload: v1::Workload,
    /// The secrets that it uses, encrypted to this node.
    pub secrets: Vec<v1::SealedSecret>,
    /// The twin that asked for it.
    pub version: Version,
    /// The instance.
    pub attempt: u32,
    /// The digest of `workload`, which adoption compares.
    pub spec: Digest,
    /// The accelerators that it was given, by id.
    pub accelerators: Vec<String>,
}

/// What the agent says, before it is signed.
#[allow(clippy::large_enum_variant, reason = "one lives at a time and is sent at once")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// To the hub, and read by every gateway on the way; introduces the node with its certificate.
    Hello(v1::Hello),
    /// To the hub.
    Report(v1::Report),
    /// To the parent.
    ChunkRequest(v1::ChunkRequest),
    /// To the hub.
    Reply(v1::Reply),
    /// To the hub: a request for the node's next certificate.
    Enrol(v1::Enrol),
}

/// A stage of a twin or workload was reached; for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A twin was taken.
    Accepted(Version),
    /// A twin was refused.
    Refused(String),
    /// A workload changed its state.
    Workload(WorkloadId, v1::WorkloadState, String),
    /// The parent is connected and knows us.
    Welcomed,
    /// Something odd that changes nothing.
    Note(String),
}

/// Something to do, in order.
#[allow(
    clippy::large_enum_variant,
    reason = "few live at a time, and each is performed at once"
)]
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Commit these before going on to the next action.
    Persist(Vec<Op>),
    /// Sign and send.
    Send(Message),
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
    /// Check the provenance of a version before it is started; answered with [`Event::ProvenanceChecked`].
    CheckProvenance(Box<ProvenanceCheck>),
    /// Start an instance.
    Start(Box<Launch>),
    /// End an instance; answered with [`RuntimeEvent::Exited`].
    Stop {
        /// The workload.
        id: WorkloadId,
        /// The instance.
        attempt: u32,
        /// Milliseconds between asking and ending.
        grace_ms: u64,
    },
    /// Answer a hub command with [`Message::Reply`]: `op` says what.
    Answer {
        /// The command.
        id: u64,
        /// What it asks for.
        op: v1::Operation,
        /// The instance that it is about, when there is one.
        attempt: Option<u32>,
    },
    /// Increase the TPM's counter by one; answered with [`Event::Counted`].
    CountUp,
    /// Open the node's own sealed key under one of these boots, and seal it for them; answered with [`Event::OwnBoot`].
    OpenLedgerKey(OwnBoots),
    /// Answer a challenge with evidence, for this verifier.
    Attest {
        /// Who asks.
        verifier: NodeId,
        /// What it asks.
        challenge: v1::Challenge,
    },
    /// Put the node's next certificate on disk, then use it; answered with [`Event::Installed`]. It was checked.
    Install(Box<v1::EnrolIssued>),
    /// TLS goes by this from now on; a connection that stands stays.
    TrustChanged(TrustView),
    /// Do something with the slots.
    System(SystemAction),
    /// Forget every artifact that is not in the list.
    KeepArtifacts(Vec<Digest>),
    /// For the log.
    Stage(Stage),
}
