//! Wire form <-> domain form of what `wire_conditions.rs` describes.

use cnova_shared::wire::v1::{AcceleratorClaim, Health, OnBadUpdate, PowerLevel};

use super::model::{Need, ScheduleDef, VolumeDef};
use super::wire_conditions as wire;
use super::wire_values::{AbsolutePath, Duration, Name};

impl From<wire::Volume> for VolumeDef {
    fn from(volume: wire::Volume) -> Self {
        Self {
            name: volume.name.0,
            path: volume.path.0,
        }
    }
}

impl From<&VolumeDef> for wire::Volume {
    fn from(volume: &VolumeDef) -> Self {
        Self {
            name: Name(volume.name.clone()),
            path: AbsolutePath(volume.path.clone()),
        }
    }
}

impl From<wire::Need> for Need {
    fn from(need: wire::Need) -> Self {
        let (application, workload) = match need.workload.split_once('/') {
            Some((application, workload)) => (Some(application.to_owned()), workload.to_owned()),
            None => (None, need.workload),
        };
        Self {
            application,
            workload,
            condition: need.condition.into(),
        }
    }
}

impl From<&Need> for wire::Need {
    fn from(need: &Need) -> Self {
        Self {
            workload: need.to_text(),
            condition: need.condition.into(),
        }
    }
}

impl From<wire::Accelerator> for AcceleratorClaim {
    fn from(claim: wire::Accelerator) -> Self {
        Self {
            kind: claim.kind,
            optional: claim.optional,
        }
    }
}

impl From<&AcceleratorClaim> for wire::Accelerator {
    fn from(claim: &AcceleratorClaim) -> Self {
        Self {
            kind: claim.kind.clone(),
            optional: claim.optional,
        }
    }
}

impl From<wire::Schedule> for ScheduleDef {
    fn from(schedule: wire::Schedule) -> Self {
        Self {
            // One space between fields, so that the same schedule has the same text.
            cron: schedule.cron.split_whitespace().collect::<Vec<_>>().join(" "),
            zone: schedule.zone,
            window_ms: schedule.window.map(|w| w.0),
            late_ms: schedule.late.0,
        }
    }
}

impl From<&ScheduleDef> for wire::Schedule {
    fn from(schedule: &ScheduleDef) -> Self {
        Self {
            cron: schedule.cron.clone(),
            zone: schedule.zone.clone(),
            window: schedule.window_ms.map(Duration),
            late: Duration(schedule.late_ms),
        }
    }
}

impl From<wire::Power> for PowerLevel {
    fn from(power: wire::Power) -> Self {
        match power {
            wire::Power::Mains => Self::Mains,
            wire::Power::Battery => Self::Battery,
            wire::Power::Low => Self::Low,
            wire::Power::Critical => Self::Critical,
        }
    }
}

impl From<PowerLevel> for wire::Power {
    fn from(power: PowerLevel) -> Self {
        match power {
            PowerLevel::Mains => Self::Mains,
            PowerLevel::Battery => Self::Battery,
            PowerLevel::Low => Self::Low,
            PowerLevel::Critical => Self::Critical,
        }
    }
}

impl From<wire::Health> for Health {
    fn from(health: wire::Health) -> Self {
        Self {
            interval_ms: health.interval.0,
            within_ms: health.within.0,
            failures: health.failures,
        }
    }
}

impl From<&Health> for wire::Health {
    fn from(health: &Health) -> Self {
        Self {
            interval: Duration(health.interval_ms),
            within: Duration(health.within_ms),
            failures: health.failures,
        }
    }
}

impl From<wire::OnBadUpdate> for OnBadUpdate {
    fn from(what: wire::OnBadUpdate) -> Self {
        match what {
            wire::OnBadUpdate::Return => Self::Return,
            wire::OnBadUpdate::Stay => Self::Stay,
        }
    }
}

impl From<OnBadUpdate> for wire::OnBadUpdate {
    fn from(what: OnBadUpdate) -> Self {
        match what {
            OnBadUpdate::Return => Self::Return,
            OnBadUpdate::Stay => Self::Stay,
        }
    }
}
