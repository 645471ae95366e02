//! What the node can prove of itself, and what that keeps it from starting.
//!
//! Workloads that ask for nothing ([`TrustRequirement::None`]) are never touched by any of this: a node that cannot prove
//! itself goes on working. The others wait until it can.

use std::collections::BTreeMap;

use cnova_attestation::ear::{Ear, Status};
use cnova_attestation::parent::ParentTrust;
use cnova_attestation::result::{Opened, Results};
use cnova_shared::boot_policy::OwnBoots;
use cnova_shared::certificate::Tier;
use cnova_shared::ids::{NodeId, SitePath};
use cnova_shared::trust::TrustState;
use cnova_shared::trust_documents::Signed;
use cnova_shared::wire::v1::TrustRequirement;

/// What the node's root of trust said when the agent started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// What the node holds its key in.
    pub tier: Tier,
    /// Whether its own sealed key opened.
    pub own_boot: OwnBoot,
    /// The approved boots with which that was tried.
    pub boots: OwnBoots,
    /// Its monotonic counter.
    pub counter: CounterState,
    /// What it asks of its parent.
    pub parent: ParentTrust,
}

/// What became of the node's attempt to open its own sealed key at this boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OwnBoot {
    /// Nothing is sealed (no TPM, or nothing is approved yet): the hub's appraisal alone decides.
    #[default]
    Unsealed,
    /// It opened: this boot is one that the hub approved.
    Approved,
    /// It did not open; why, with the registers that differ.
    Refused(String),
    /// It could not be tried, because the TPM did not answer: nothing is concluded from that, and it is tried again.
    Unknown(String),
}

/// The boots that are approved for a node, by what it trusts.
#[must_use]
pub fn own_boots(trust: &TrustState, node: &NodeId, site: &SitePath, labels: &BTreeMap<String, String>) -> OwnBoots {
    let policy = trust.boot_policy().map(Signed::value);
    policy
        .map(|p| p.for_node(node, site, labels, trust.bundle()))
        .unwrap_or_default()
}

/// What is known of the TPM's monotonic counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CounterState {
    /// There is no TPM.
    #[default]
    NoTpm,
    /// The TPM did not answer: nothing is concluded from that, and it is asked again.
    Unknown,
    /// It has one.
    Value(Counter),
}

/// What a TPM that has not answered since the agent started means, for a person.
#[must_use]
pub fn silent_tpm(why: &str) -> String {
    format!(
        "the TPM does not answer: {why}. Until it does, what asks for trust is not started, a rolled-back disk is not \
         noticed, and this node cannot speak to its parent; the rest runs"
    )
}

/// The TPM's monotonic counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Its value.
    pub value: u64,
    /// Whether it was only made at this start.
    pub is_new: bool,
}

/// How the ledger and the TPM's counter stand to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rollback {
    /// As they should.
    None,
    /// The ledger begins with this value.
    Begin(u64),
    /// A twin was committed, and the counter was not increased any more: that is made up for.
    Finish,
    /// The ledger is not the one that the TPM last counted for; why, for a person.
    Found(String),
}

impl Rollback {
    /// Compares the ledger's value, 0 for none, with the TPM's.
    #[must_use]
    pub fn judge(ledger: u64, tpm: CounterState) -> Self {
        let tpm = match tpm {
            CounterState::Value(tpm) => tpm,
            CounterState::NoTpm if ledger > 0 => {
                return Self::Found(format!(
                    "the ledger was written with a TPM (count {ledger}), and this node now has none"
                ));
            }
            CounterState::NoTpm | CounterState::Unknown => return Self::None,
        };
        match (ledger, tpm.value) {
            (0, count) if tpm.is_new => Self::Begin(count),
            (ledger, count) if ledger == count => Self::None,
            (ledger, count) if ledger == count + 1 => Self::Finish,
            (ledger, count) if ledger < count => Self::Found(format!(
                "the ledger is of count {ledger} and the TPM is at {count}: an older disk was put back, or the ledger was lost"
            )),
            (ledger, count) => Self::Found(format!(
                "the ledger is of count {ledger} and the TPM is only at {count}: the TPM was cleared or is another one"
            )),
        }
    }
}

/// Why a workload that asks for trust does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bar {
    /// It is not started now; what runs of it runs on.
    Hold(String),
    /// It must not run.
    Wait(String),
}

/// What the node can prove of itself.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    pub(crate) root: Root,
    /// Why the node does not trust its own disk.
    pub(crate) quarantine: Option<String>,
    /// The newest results about this node.
    pub(crate) own: Results,
    /// The newest results about its parent.
    pub(crate) parent: Results,
    /// Why the last launch could not be measured.
    pub(crate) unmeasured: Option<String>,
}

impl Standing {
    /// Why a workload with `requirement` does not run now, or is not started. `is_update`: it is another version than the
    /// one that ran last.
    #[must_use]
    pub fn bar(&self, requirement: TrustRequirement, is_update: bool, now_s: u64) -> Option<Bar> {
        if requirement == TrustRequirement::None {
            return None;
        }
        if self.root.tier != Tier::Tpm {
            return Some(Bar::Wait(
                "it asks for a TPM, and this node's key lies in a file".into(),
            ));
        }
        if requirement == TrustRequirement::Tpm {
            return None;
        }
        self.disproved(now_s)
            .map(Bar::Wait)
            .or_else(|| self.doubt(is_update, now_s).map(Bar::Hold))
    }

    fn disproved(&self, now_s: u64) -> Option<String> {
        if let Some(why) = &self.quarantine {
            return Some(format!("this node is in quarantine: {why}"));
        }
        if let OwnBoot::Refused(why) = &self.root.own_boot {
            return Some(format!("this node booted something that is not approved: {why}"));
        }
        let result = self.own.in_force(now_s)?;
        let is_disproved = result.ear().status == Status::Contraindicated;
        is_disproved.then(|| {
            format!(
                "this node was found not to be what it should be{}: {}",
                by(result),
                found(result.ear())
            )
        })
    }

    fn doubt(&self, is_update: bool, now_s: u64) -> Option<String> {
        if let OwnBoot::Unknown(why) = &self.root.own_boot {
            return Some(format!("whether this node's boot is approved is not known yet: {why}"));
        }
        if self.root.counter == CounterState::Unknown {
            return Some("whether this node's disk was rolled back is not known yet: the TPM does not answer".into());
        }
        let Some(result) = self.own.in_force(now_s) else {
            return Some("this node has not been attested yet".into());
        };
        let ear = result.ear();
        if ear.status != Status::Affirming {
            let text = format!("this node's attestation{} is not affirming: {}", by(result), found(ear));
            return Some(text);
        }
        if is_update && ear.exp <= now_s {
            let text = format!(
                "this node's attestation{} is stale: what it knows runs on, what is new waits for the hub",
                by(result)
            );
            return Some(text);
        }
        let why = self.unmeasured.as_ref()?;
        Some(format!("its launch cannot be measured: {why}"))
    }
}

/// Who said so, where it was not the hub.
fn by(result: &Opened) -> String {
    match result.is_delegated() {
        true => format!(" by {}", result.by()),
        false => String::new(),
    }
}

/// The first thing that was found, for a person.
fn found(ear: &Ear) -> String {
    match ear.findings.first() {
        Some(finding) => finding.detail.clone(),
        None => ear.status.to_string(),
    }
}
