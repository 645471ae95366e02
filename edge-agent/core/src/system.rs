//! The node's operating system: from a bundle that a twin names to the slot that runs.
//!
//! ```text
//!            header judged          all written     read back       window, approval, power
//! (nothing) ---------------> Writing ---------> Verifying ---> Staged ----------------------> Rebooting
//!                                                                                            /         \
//!                                  RolledBack <--- another one runs at the next start -----+            + it runs
//!                                       ^                                                                |
//!                                       +------- not healthy in its time, loader goes back ---------- Trial ---> Confirmed
//! ```
//!
//! Each phase is on disk before what it stands for is done, and everything that is done may be done again: after a power
//! cut at any point the next start knows where to go on. What runs decides, never what was written down.

use std::collections::{BTreeMap, BTreeSet};

use cnova_shared::ids::{Digest, WorkloadId};
use cnova_shared::system_bundle::{Header, compare_versions};
use cnova_shared::wire::v1::{System, SystemHealth};
use serde::{Deserialize, Serialize};

/// The health gate must hold for so long at a stretch, milliseconds.
pub const STEADY_MS: u64 = 5_000;
/// A bundle whose parts are not what its header says is fetched so often in all.
pub const ATTEMPTS: u32 = 3;
/// Pause before something that failed on this machine is tried again, milliseconds.
pub const AGAIN_MS: u64 = 60_000;
/// What stands between a system that is staged and its start is looked at so often, milliseconds.
pub const LOOK_MS: u64 = 30_000;
/// So long after the agent's start at most, what runs may still be coming up: what the next system must have running is not
/// known before. Milliseconds.
pub const SETTLE_MS: u64 = 60_000;
/// Meanwhile it is looked at so often, milliseconds.
pub const SETTLING_MS: u64 = 1_000;

/// The system that runs, as the machine itself tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// What the board calls itself.
    pub compatible: String,
    /// The system's version.
    pub version: String,
    /// The slot that it was started from.
    pub slot: String,
    /// The root hash that the kernel was told.
    pub root_hash: Digest,
    /// Differs on every start of the machine.
    pub machine_boot: String,
    /// What is in the other slot.
    pub other: OtherSlot,
    /// Whether the loader still counts the starts of what runs: it is not known to be good.
    pub is_counted: bool,
}

/// What is in the slot that does not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OtherSlot {
    /// Nothing that the loader would start, or nothing that is known.
    #[default]
    None,
    /// Something that the loader would start, and has not tried yet.
    Untried,
    /// Something that it has tried, or that is good.
    Tried,
    /// What the loader knows cannot be read now.
    Unknown,
}

/// What follows from what runs, at a start of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AtStart {
    /// Nothing: it goes on as it was.
    AsItWas,
    /// It cannot be told before it is known what is in the other slot.
    Undecided,
    /// It is in this phase, for this reason.
    Becomes(Phase, String),
    /// The loader did not even try it: it is told again.
    NotTried,
}

/// How far a bundle is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Its header was judged; it is fetched and written.
    Writing,
    /// It is whole in the other slot.
    Staged,
    /// The loader is told to try it, and the machine to start anew.
    Rebooting,
    /// It was started.
    Trial,
    /// It is good.
    Confirmed,
    /// It was not.
    RolledBack,
    /// It was refused, or is damaged.
    Failed,
}

impl Phase {
    /// Whether nothing more is done about it.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Confirmed | Self::RolledBack | Self::Failed)
    }

    /// Whether it is under way to its first start, or in it: nothing else is begun then.
    #[must_use]
    pub const fn is_in_start(self) -> bool {
        matches!(self, Self::Rebooting | Self::Trial)
    }
}

/// A bundle as the ledger knows it; there is one at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemRow {
    /// What the twin asked for.
    pub wanted: System,
    /// How far it is.
    pub phase: Phase,
    /// Its header as it was verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<Header>,
    /// Why it is there, for a person.
    #[serde(default)]
    pub why: String,
    /// How often its parts were not what the header says.
    #[serde(default)]
    pub damaged: u32,
    /// The start of the machine in which it was told to start anew.
    #[serde(default)]
    pub machine_boot: String,
    /// The workloads that ran then.
    #[serde(default)]
    pub ran: Vec<WorkloadId>,
    /// The version that ran then.
    #[serde(default)]
    pub before: String,
    /// How often the machine was started anew for it without the loader trying it.
    #[serde(default)]
    pub untried: u32,
}

impl SystemRow {
    /// Whether it is about what this asks for.
    #[must_use]
    pub fn is_for(&self, wanted: &System) -> bool {
        self.wanted.bundle.digest == wanted.bundle.digest && self.wanted.attempt == wanted.attempt
    }

    /// Whether the system that runs is this one.
    #[must_use]
    pub fn runs(&self, running: &Running) -> bool {
        self.header.as_ref().is_some_and(|h| h.root_hash == running.root_hash)
    }

    /// Whether it is no newer than what runs, so that the loader would not choose it by itself.
    #[must_use]
    pub fn is_older(&self, running: &Running) -> bool {
        let older = |h: &Header| !compare_versions(&h.version, &running.version).is_gt();
        self.header.as_ref().is_some_and(older)
    }

    /// What follows from what runs at a start of the agent.
    #[must_use]
    pub fn at_start(&self, running: &Running) -> AtStart {
        let back = || AtStart::Becomes(Phase::RolledBack, self.went_back(running));
        match (self.phase, self.runs(running)) {
            // Also where the ledger did not come as far as the loader: what runs decides.
            (Phase::Writing | Phase::Staged | Phase::Rebooting, true) => AtStart::Becomes(Phase::Trial, String::new()),
            (Phase::Rebooting, false) if self.machine_boot != running.machine_boot => match running.other {
                OtherSlot::Unknown => AtStart::Undecided,
                // The power was cut before the loader was told: it is still staged.
                OtherSlot::None => AtStart::Becomes(
                    Phase::Staged,
                    "the machine was started anew before the loader was told to try it".into(),
                ),
                // The firmware may lose the variable by which the loader takes an older one.
                OtherSlot::Untried if self.is_older(running) && self.untried + 1 < ATTEMPTS => AtStart::NotTried,
                OtherSlot::Untried | OtherSlot::Tried => back(),
            },
            (Phase::Trial | Phase::Confirmed, false) => back(),
            _ => AtStart::AsItWas,
        }
    }

    fn went_back(&self, running: &Running) -> String {
        let (wanted, slot, version) = (&self.wanted.version, &running.slot, &running.version);
        let back = format!("the loader went back to version {version} in slot {slot}");
        if self.phase == Phase::Confirmed {
            return format!("version {wanted} was good and does not start any more: {back}");
        }
        if !self.why.is_empty() {
            return format!(
                "version {wanted} was started and was not healthy ({}): {back}",
                self.why
            );
        }
        match running.other {
            OtherSlot::Untried => {
                format!("the loader did not start version {wanted}: version {version} in slot {slot} runs")
            }
            _ => format!(
                "version {wanted} did not come as far as its agent in {} tries: {back}",
                self.wanted.tries
            ),
        }
    }
}

/// Why a bundle is not for this machine.
#[must_use]
pub fn refusal(header: &Header, wanted: &System, running: &Running) -> Option<String> {
    if header.compatible != running.compatible {
        let (is_for, is) = (&header.compatible, &running.compatible);
        return Some(format!("the bundle is for the board {is_for}, and this one is a {is}"));
    }
    let is_older = compare_versions(&header.version, &running.version).is_lt();
    if is_older && !wanted.downgrade {
        let (new, old) = (&header.version, &running.version);
        return Some(format!(
            "version {new} is older than {old}, which runs; say slots.downgrade: true where that is meant"
        ));
    }
    None
}

/// The first bytes of a bundle as its verified header, and how many they are.
///
/// # Errors
/// What is wrong with it, for a person.
pub fn verified_header(begin: &[u8], wanted: &System) -> Result<Header, String> {
    let length = Header::length(begin).map_err(|e| e.to_string())?;
    let bytes = begin.get(..length).ok_or("its first bytes do not hold its header")?;
    let digest = Digest::of(bytes);
    if digest != wanted.header {
        return Err(format!(
            "what came as its header has the digest {digest}, and the twin says {}",
            wanted.header
        ));
    }
    Header::read(bytes, wanted.bundle.size).map_err(|e| e.to_string())
}

/// How a started system is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Everything is as it should be.
    Well,
    /// What is not.
    Missing(String),
    /// What is not, for want of power: that is not the system's fault, and its time stands still.
    Paused(String),
}

/// What a started system is looked at for.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    /// Since when all of it has held, monotonic milliseconds.
    since_ms: Option<u64>,
    /// Since when its time stands still, monotonic milliseconds.
    paused_since_ms: Option<u64>,
    /// How long its time stood still before, milliseconds.
    paused_ms: u64,
}

/// What the gate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It is good.
    Good,
    /// It has time left; what is missing.
    NotYet(String),
    /// Its time is over; what was missing.
    Bad(String),
}

impl Gate {
    /// Judges. `mono_ms` counts from the agent's start.
    pub fn judge(&mut self, found: Health, health: &SystemHealth, mono_ms: u64) -> Judgement {
        if let Some(since) = self.paused_since_ms.take() {
            self.paused_ms += mono_ms.saturating_sub(since);
        }
        match found {
            Health::Paused(what) => {
                self.since_ms = None;
                self.paused_since_ms = Some(mono_ms);
                Judgement::NotYet(what)
            }
            Health::Missing(what) => {
                self.since_ms = None;
                if mono_ms >= self.over_ms(health) {
                    Judgement::Bad(what)
                } else {
                    Judgement::NotYet(what)
                }
            }
            Health::Well => {
                let since = *self.since_ms.get_or_insert(mono_ms);
                if mono_ms.saturating_sub(since) >= STEADY_MS {
                    Judgement::Good
                } else {
                    Judgement::NotYet("everything runs; it is watched for a moment".into())
                }
            }
        }
    }

    /// When its time is over, monotonic milliseconds.
    const fn over_ms(&self, health: &SystemHealth) -> u64 {
        health.within_s.saturating_mul(1000).saturating_add(self.paused_ms)
    }

    /// When it has something else to say, monotonic milliseconds; by itself never while its time stands still.
    #[must_use]
    pub fn timeout(&self, health: &SystemHealth) -> Option<u64> {
        let by_time = self.since_ms.map_or(self.over_ms(health), |since| since + STEADY_MS);
        self.paused_since_ms.is_none().then_some(by_time)
    }
}

/// A register whose value under the new system is not among those approved, by what the image alone decides.
#[must_use]
pub fn unapproved(header: &Header, approved: &[BTreeMap<u8, Digest>]) -> Option<Vec<u8>> {
    let missing =
        |boot: &BTreeMap<u8, Digest>| header.missing_in(|pcr, value| boot.get(&pcr).is_none_or(|v| v == value));
    let nearest: Option<Vec<u8>> = approved.iter().map(missing).min_by_key(Vec::len);
    match nearest {
        Some(none) if none.is_empty() => None,
        Some(some) => Some(some),
        None => Some(
            header
                .measured
                .keys()
                .copied()
                .collect::<BTreeSet<u8>>()
                .into_iter()
                .collect(),
        ),
    }
}
