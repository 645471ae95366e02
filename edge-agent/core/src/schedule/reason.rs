//! Why a workload does not run, for a person.

use std::fmt;

use cnova_shared::ids::WorkloadId;
use cnova_shared::wire::v1::{DependencyCondition, PowerLevel};

const MIB: u64 = 1024 * 1024;

/// Why a workload does not run. Its text begins with a stable word and a colon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its runtime is not installed.
    Runtime {
        /// Which.
        runtime: String,
        /// Those that are.
        installed: Vec<String>,
    },
    /// A device is not offered by the node.
    Device {
        /// Which.
        device: String,
        /// Those that are.
        offered: Vec<String>,
    },
    /// No accelerator of the kind is there.
    NoAccelerator {
        /// What it asks for.
        kind: String,
        /// What there is.
        present: Vec<String>,
    },
    /// All accelerators of the kind are leased.
    AcceleratorLeased {
        /// What it asks for.
        kind: String,
        /// To whom.
        by: Vec<Holder>,
    },
    /// Too little memory is left.
    Memory {
        /// Bytes that it asks for.
        asks: u64,
        /// Bytes that are left.
        left: u64,
        /// Bytes that workloads may use here.
        of: u64,
        /// Who has the rest.
        by: Vec<Holder>,
    },
    /// Too little CPU is left.
    Cpu {
        /// Thousandths of a core that it asks for.
        asks: u64,
        /// What is left.
        left: u64,
        /// What workloads may use here.
        of: u64,
        /// Who has the rest.
        by: Vec<Holder>,
    },
    /// Its window is closed.
    WindowClosed {
        /// When it opens, in its zone.
        next: Option<String>,
    },
    /// It runs at certain times and this is none.
    NotDue {
        /// The next one, in its zone.
        next: Option<String>,
    },
    /// It runs by the clock and the clock is wrong.
    Clock,
    /// Its schedule cannot be read.
    Schedule(String),
    /// The supply with power or cooling is too bad.
    Power {
        /// What it is.
        have: PowerLevel,
        /// What the workload needs.
        needs: PowerLevel,
        /// Why it is so.
        why: String,
    },
    /// It asks for a trustworthiness that the node cannot prove.
    Trust(String),
    /// Another workload comes first and has not come so far.
    Needs {
        /// Which.
        id: WorkloadId,
        /// How far it must come.
        condition: DependencyCondition,
        /// How far it has come.
        found: String,
    },
    /// Its dependencies lead back to itself.
    Cycle(Vec<WorkloadId>),
    /// It was ended because the node is under pressure.
    Shed(String),
    /// Nothing is started because the node is under pressure.
    Pressure(String),
    /// It ended, as it may or for good. How, the workload's state tells.
    Over,
}

/// Somebody who has what is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Who.
    pub id: WorkloadId,
    /// With what priority.
    pub priority: u32,
}

impl Reason {
    /// Whether the version is to blame: with less of a need it would run here.
    #[must_use]
    pub const fn is_of_version(&self) -> bool {
        matches!(
            self,
            Self::Runtime { .. }
                | Self::Device { .. }
                | Self::NoAccelerator { .. }
                | Self::AcceleratorLeased { .. }
                | Self::Memory { .. }
                | Self::Cpu { .. }
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Runtime { runtime, installed } => {
                write!(
                    f,
                    "runtime: {runtime} is not installed here (installed: {})",
                    list(installed)
                )
            }
            Self::Device { device, offered } => write!(
                f,
                "device: {device} is not offered by this node's configuration (offered: {})",
                list(offered)
            ),
            Self::NoAccelerator { kind, present } => {
                write!(f, "accelerator: this node has no {kind} (it has: {})", list(present))
            }
            Self::AcceleratorLeased { kind, by } => {
                write!(f, "accelerator: every {kind} of this node is leased to {}", holders(by))
            }
            Self::Memory { asks, left, of, by } => write!(
                f,
                "memory: asks {} MiB, {} MiB of {} MiB are left by {}",
                asks.div_ceil(MIB),
                left / MIB,
                of / MIB,
                holders(by)
            ),
            Self::Cpu { asks, left, of, by } => {
                write!(f, "cpu: asks {asks} m, {left} m of {of} m are left by {}", holders(by))
            }
            Self::WindowClosed { next } => write!(f, "schedule: its window is closed; {}", upcoming("opens", next)),
            Self::NotDue { next } => write!(f, "schedule: {}", upcoming("it runs next", next)),
            Self::Clock => f.write_str("clock: it runs by the clock, and this node's clock is not set"),
            Self::Schedule(why) => write!(f, "schedule: {why}"),
            Self::Power { have, needs, why } => {
                write!(
                    f,
                    "power: it runs on {} or better, the node is at {}",
                    word(*needs),
                    word(*have)
                )?;
                if why.is_empty() { Ok(()) } else { write!(f, " ({why})") }
            }
            Self::Trust(why) => write!(f, "trust: {why}"),
            Self::Needs { id, condition, found } => {
                let far = match condition {
                    DependencyCondition::Started => "to run",
                    DependencyCondition::Healthy => "to be healthy",
                    DependencyCondition::Finished => "to have finished",
                };
                write!(f, "needs: {id} has {far} first; it {found}")
            }
            Self::Cycle(way) => {
                let way: Vec<String> = way.iter().map(ToString::to_string).collect();
                write!(f, "needs: it comes before itself ({})", way.join(" -> "))
            }
            Self::Shed(why) => write!(f, "pressure: it was ended to relieve the node ({why})"),
            Self::Pressure(why) => write!(f, "pressure: nothing of its priority is started now ({why})"),
            Self::Over => f.write_str("it has ended"),
        }
    }
}

fn upcoming(verb: &str, next: &Option<String>) -> String {
    match next {
        Some(at) => format!("{verb} at {at}"),
        None => "its schedule names no time to come".to_owned(),
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// At most this many are named.
const HOLDERS_NAMED: usize = 3;

fn holders(by: &[Holder]) -> String {
    let named: Vec<String> = by
        .iter()
        .take(HOLDERS_NAMED)
        .map(|h| format!("{} (priority {})", h.id, h.priority))
        .collect();
    match by.len().saturating_sub(HOLDERS_NAMED) {
        _ if named.is_empty() => "the node".to_owned(),
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// A power level as manifests write it.
pub(crate) const fn word(level: PowerLevel) -> &'static str {
    match level {
        PowerLevel::Critical => "critical",
        PowerLevel::Low => "low",
        PowerLevel::Battery => "battery",
        PowerLevel::Mains => "mains",
    }
}
