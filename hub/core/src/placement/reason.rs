//! Why a node was not chosen, in words and numbers.

use std::fmt;

use cnova_shared::wire::v1::TrustRequirement;

use super::NodeRole;

/// Why a node was not chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// Its certificate was withdrawn.
    Revoked,
    /// It does not run workloads.
    Role {
        /// What it is.
        role: NodeRole,
    },
    /// It hangs elsewhere.
    Site {
        /// Where.
        site: String,
        /// What was asked for.
        pattern: String,
    },
    /// Nothing is known of it yet.
    NeverReported,
    /// A label is missing or has another value.
    Label {
        /// The key.
        key: String,
        /// The value asked for.
        wanted: String,
        /// The value it has.
        found: Option<String>,
    },
    /// It is not trusted as far as was asked for.
    Trust {
        /// How far it must be.
        wanted: TrustRequirement,
        /// Why it is not.
        why: String,
    },
    /// The runtime is not there.
    Runtime {
        /// Which.
        name: &'static str,
    },
    /// An accelerator that it does not have.
    Accelerator {
        /// The class or kind asked for.
        wanted: String,
        /// What it has, for a person.
        has: Vec<String>,
    },
    /// It has such an accelerator, but not for this workload.
    AcceleratorPromised {
        /// The classes or kinds asked for.
        wanted: Vec<String>,
        /// What it has, for a person.
        has: Vec<String>,
    },
    /// A device that it does not offer.
    Device {
        /// Its name.
        name: String,
        /// What it offers.
        has: Vec<String>,
    },
    /// Too little memory.
    Memory {
        /// Bytes asked for.
        asked: u64,
        /// Bytes free.
        free: u64,
        /// Bytes it has.
        capacity: u64,
    },
    /// Too little CPU.
    Cpu {
        /// Thousandths of a core asked for.
        asked: u32,
        /// Free.
        free: u32,
        /// What it has.
        capacity: u32,
    },
    /// It would have done, but others came first.
    NotNeeded {
        /// Replicas asked for.
        replicas: u32,
    },
}

/// What a reason is about; for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Constraint {
    /// [`Reason::Revoked`].
    Revoked,
    /// [`Reason::Role`].
    Role,
    /// [`Reason::Site`].
    Site,
    /// [`Reason::NeverReported`].
    NeverReported,
    /// [`Reason::Label`].
    Label,
    /// [`Reason::Trust`].
    Trust,
    /// [`Reason::Runtime`].
    Runtime,
    /// [`Reason::Accelerator`] and [`Reason::AcceleratorPromised`].
    Accelerator,
    /// [`Reason::Device`].
    Device,
    /// [`Reason::Memory`].
    Memory,
    /// [`Reason::Cpu`].
    Cpu,
    /// [`Reason::NotNeeded`].
    NotNeeded,
}

impl Reason {
    /// What it is about.
    #[must_use]
    pub const fn constraint(&self) -> Constraint {
        match self {
            Self::Revoked => Constraint::Revoked,
            Self::Role { .. } => Constraint::Role,
            Self::Site { .. } => Constraint::Site,
            Self::NeverReported => Constraint::NeverReported,
            Self::Label { .. } => Constraint::Label,
            Self::Trust { .. } => Constraint::Trust,
            Self::Runtime { .. } => Constraint::Runtime,
            Self::Accelerator { .. } | Self::AcceleratorPromised { .. } => Constraint::Accelerator,
            Self::Device { .. } => Constraint::Device,
            Self::Memory { .. } => Constraint::Memory,
            Self::Cpu { .. } => Constraint::Cpu,
            Self::NotNeeded { .. } => Constraint::NotNeeded,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Revoked => f.write_str("certificate revoked"),
            Self::Role {
                role: NodeRole::Gateway,
            } => f.write_str("is a gateway; workloads run on agents"),
            Self::Role { role: NodeRole::Agent } => f.write_str("is an agent"),
            Self::Site { site, pattern } => write!(f, "site {site} does not match {pattern}"),
            Self::NeverReported => f.write_str("node has never reported"),
            Self::Label {
                key,
                wanted,
                found: Some(found),
            } => {
                write!(f, "label {key}={wanted} missing (has {key}={found})")
            }
            Self::Label {
                key,
                wanted,
                found: None,
            } => write!(f, "label {key}={wanted} missing (has no {key})"),
            Self::Trust {
                wanted: TrustRequirement::Attested,
                why,
            } => write!(f, "trust: it must be attested, and {why}"),
            Self::Trust { why, .. } => write!(f, "trust: its key must lie in a TPM, and {why}"),
            Self::Runtime { name } => write!(f, "runtime {name} not installed"),
            Self::Accelerator { wanted, has } => write!(f, "no accelerator {wanted} (has {})", list(has)),
            Self::AcceleratorPromised { wanted, has } => {
                let wanted = wanted.join(" and ");
                write!(
                    f,
                    "accelerator {wanted} is promised to other workloads (has {})",
                    list(has)
                )
            }
            Self::Device { name, has } => {
                write!(
                    f,
                    "device {name} is not offered (offers {}); add it to the agent's configuration",
                    list(has)
                )
            }
            Self::Memory { asked, free, capacity } => {
                let [asked, free, capacity] = comparable([*asked, *free, *capacity]);
                write!(f, "memory: asks {asked}, {free} free of {capacity}")
            }
            Self::Cpu { asked, free, capacity } => write!(f, "cpu: asks {asked}m, {free}m free of {capacity}m"),
            Self::NotNeeded { replicas: 1 } => f.write_str("not needed: the one replica has a node"),
            Self::NotNeeded { replicas } => write!(f, "not needed: all {replicas} replicas have a node"),
        }
    }
}

impl serde::Serialize for Reason {
    /// As the text that people read.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Revoked => "revoked",
            Self::Role => "role",
            Self::Site => "site",
            Self::NeverReported => "never reported",
            Self::Label => "label",
            Self::Trust => "trust",
            Self::Runtime => "runtime",
            Self::Accelerator => "accelerator",
            Self::Device => "device",
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::NotNeeded => "not needed",
        })
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// Amounts as people read them, unless rounding would hide the difference that matters.
fn comparable([asked, free, capacity]: [u64; 3]) -> [String; 3] {
    if rounded(asked) == rounded(free) {
        return [asked, free, capacity].map(|n| format!("{n} bytes"));
    }
    [asked, free, capacity].map(rounded)
}

fn rounded(bytes: u64) -> String {
    for (unit, name) in [(1_u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes < unit {
            continue;
        }
        let tenths = u128::from(bytes) * 10 / u128::from(unit);
        return match (tenths / 10, tenths % 10) {
            (whole, 0) => format!("{whole} {name}"),
            (whole, tenth) => format!("{whole}.{tenth} {name}"),
        };
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_reads_well_and_never_contradicts_itself() {
        let text = |asked, free, capacity| Reason::Memory { asked, free, capacity }.to_string();
        assert_eq!(
            text(64 << 20, 12 << 20, 128 << 20),
            "memory: asks 64 MiB, 12 MiB free of 128 MiB"
        );
        assert_eq!(
            text(1536 << 20, 0, 1 << 30),
            "memory: asks 1.5 GiB, 0 bytes free of 1 GiB"
        );
        assert_eq!(
            text((64 << 20) + 1, 64 << 20, 64 << 20),
            "memory: asks 67108865 bytes, 67108864 bytes free of 67108864 bytes"
        );
    }
}
