//! What the agent keeps: the operations that change it and the image that it starts from.

use cnova_shared::ids::{Digest, WorkloadId};
use cnova_shared::report::{StoredStream, StreamOp};
use cnova_shared::trust::{StoredTrust, TrustOp};
use cnova_shared::twin::Version;
use cnova_shared::wire::v1::{SealedSecret, Workload};
use serde::{Deserialize, Serialize};

use crate::system::SystemRow;

/// An instance as the ledger knows it; written before the runtime is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRow {
    /// The workload.
    pub id: WorkloadId,
    /// The newest instance's number; it only goes up.
    pub attempt: u32,
    /// The digest of the specification of that instance.
    pub spec: Digest,
    /// Failures in a row.
    pub failures: u32,
    /// What is meant to become of it.
    pub phase: Phase,
    /// Whether it ended as it should, where the phase is [`Phase::Finished`].
    #[serde(default)]
    pub ok: bool,
    /// The accelerators that the newest instance was given.
    #[serde(default)]
    pub leases: Vec<String>,
    /// The newest firing of its schedule that it was started for, seconds since 1970.
    #[serde(default)]
    pub fired_s: u64,
    /// Memory that the newest instance may use, bytes.
    #[serde(default)]
    pub memory_bytes: u64,
    /// CPU that the newest instance may use, thousandths of a core.
    #[serde(default)]
    pub cpu_millis: u64,
    /// The last version that proved good, to return to.
    #[serde(default)]
    pub good: Option<Box<Good>>,
    /// The digest of the version that did not.
    #[serde(default)]
    pub bad: Option<Digest>,
    /// The digest of the version whose provenance was accepted last.
    #[serde(default)]
    pub proved: Option<Digest>,
}

/// A version that proved good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Good {
    /// What ran.
    pub workload: Workload,
    /// Epoch of the twin that asked for it.
    pub epoch: u64,
    /// Generation of the twin that asked for it.
    pub generation: u64,
    /// The secrets that it uses, encrypted to this node: a newer twin may hold others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SealedSecret>,
}

impl Good {
    /// The twin that asked for it.
    #[must_use]
    pub const fn version(&self) -> Version {
        Version {
            epoch: self.epoch,
            generation: self.generation,
        }
    }
}

impl InstanceRow {
    /// A workload that was never started.
    #[must_use]
    pub fn new(id: WorkloadId) -> Self {
        Self {
            id,
            attempt: 0,
            spec: Digest([0; 32]),
            failures: 0,
            phase: Phase::Finished,
            ok: false,
            leases: Vec::new(),
            fired_s: 0,
            memory_bytes: 0,
            cpu_millis: 0,
            good: None,
            bad: None,
            proved: None,
        }
    }
}

/// What is meant to become of an instance after a restart of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It was started, or is about to be.
    Active,
    /// It ended and is started again after a pause.
    Backoff,
    /// It ended as it may and stays so.
    Finished,
    /// It failed too often.
    CrashLoop,
}

/// One change. All changes of one [`crate::Action::Persist`] are committed together or not at all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Op {
    /// The twin in force, as it came.
    PutTwin(Vec<u8>),
    /// The newest time that was verified, seconds since 1970.
    TimeFloor(u64),
    /// An instance.
    PutInstance(InstanceRow),
    /// A workload that is gone.
    DeleteInstance(WorkloadId),
    /// The value of the TPM's counter that this ledger belongs to; written with the twin that it counts.
    Counter(u64),
    /// The hub's result about this node, as it came.
    PutEar(Vec<u8>),
    /// The hub's result about the parent, as it came.
    PutParentEar(Vec<u8>),
    /// A gateway's result under its delegation, as it came.
    PutDelegatedEar {
        /// Whether it is about the parent, and not about this node.
        of_parent: bool,
        /// The signed bytes.
        bytes: Vec<u8>,
    },
    /// No twin below this one is taken any more, by the word of the hub.
    Floor {
        /// Its epoch.
        epoch: u64,
        /// Its generation.
        generation: u64,
    },
    /// A change to the report stream.
    Stream(StreamOp),
    /// Newer trust bundles, revocations, delegations.
    Trust(TrustOp),
    /// The operating system that is being changed, or was.
    PutSystem(Box<SystemRow>),
    /// Nothing is known of one any more.
    DropSystem,
}

/// The whole ledger, as read at boot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    /// The twin in force, as it came.
    pub twin: Option<Vec<u8>>,
    /// The newest time that was verified.
    pub time_floor: u64,
    /// All instances.
    pub instances: Vec<InstanceRow>,
    /// The value of the TPM's counter that it belongs to, 0 for none.
    pub counter: u64,
    /// The hub's newest result about this node.
    pub ear: Option<Vec<u8>>,
    /// The hub's newest result about the parent.
    pub parent_ear: Option<Vec<u8>>,
    /// The newest result of a gateway about this node.
    #[serde(default)]
    pub delegated_ear: Option<Vec<u8>>,
    /// The newest result of a gateway about the parent.
    #[serde(default)]
    pub delegated_parent_ear: Option<Vec<u8>>,
    /// The oldest twin that is taken, epoch and generation.
    pub floor: (u64, u64),
    /// The report stream.
    pub stream: StoredStream,
    /// Newer trust bundles, revocations, delegations.
    #[serde(default)]
    pub trust: StoredTrust,
    /// The operating system that is being changed, or was.
    #[serde(default)]
    pub system: Option<Box<SystemRow>>,
    /// Whether there is something about it that this version cannot read.
    #[serde(default)]
    pub system_unread: bool,
}

impl Stored {
    /// Applies operations to an image in memory, as a store does on disk. The simulator's store is made of this.
    pub fn apply(&mut self, ops: &[Op]) {
        for op in ops {
            match op.clone() {
                Op::PutTwin(bytes) => self.twin = Some(bytes),
                Op::TimeFloor(t) => self.time_floor = t,
                Op::PutInstance(row) => {
                    self.instances.retain(|r| r.id != row.id);
                    self.instances.push(row);
                }
                Op::DeleteInstance(id) => self.instances.retain(|r| r.id != id),
                Op::Counter(value) => self.counter = value,
                Op::PutEar(bytes) => self.ear = Some(bytes),
                Op::PutParentEar(bytes) => self.parent_ear = Some(bytes),
                Op::PutDelegatedEar { of_parent, bytes } if of_parent => self.delegated_parent_ear = Some(bytes),
                Op::PutDelegatedEar { bytes, .. } => self.delegated_ear = Some(bytes),
                Op::Floor { epoch, generation } => self.floor = (epoch, generation),
                Op::Stream(op) => self.stream.apply(&op),
                Op::Trust(op) => self.trust.apply(&op),
                Op::PutSystem(row) => (self.system, self.system_unread) = (Some(row), false),
                Op::DropSystem => (self.system, self.system_unread) = (None, false),
            }
        }
    }
}
