//! What is said of the system: to the hub, and to the boot loader's check.

use cnova_shared::wire::v1::{System, SystemReport, SystemState};

use super::super::*;
use super::{KEY, PERCENT_STEP, Work};
use crate::system::{Phase, SystemRow};

impl Agent {
    /// How the system stands.
    #[must_use]
    pub fn system(&self) -> SystemReport {
        let mut report = SystemReport::default();
        if let Ok(running) = &self.config.slots {
            report.version.clone_from(&running.version);
            report.slot.clone_from(&running.slot);
            report.compatible.clone_from(&running.compatible);
        }
        let wanted = self.twin.as_ref().and_then(|t| t.twin().system.as_deref());
        if self.systems.is_unread {
            if let Some(wanted) = wanted {
                report.about(wanted);
            }
            report.state = SystemState::Failed;
            report.reason =
                "another version of the agent was changing this node's system, and this one cannot read how far it \
                             came: it does not count as good, and nothing is written"
                    .into();
            return report;
        }
        let Some(row) = self.systems.row.as_deref() else {
            if let (Some(wanted), Err(why)) = (wanted, &self.config.slots) {
                report.about(wanted);
                report.state = SystemState::Failed;
                report.reason.clone_from(why);
            }
            return report;
        };
        report.about(&row.wanted);
        let (state, why) = self.system_state(row);
        (report.state, report.reason) = (state, limits::clip(&why));
        if row.phase == Phase::Writing {
            let held = self.fetches.held(&row.wanted.bundle.digest).unwrap_or(0);
            let percent = held.saturating_mul(100) / row.wanted.bundle.size.max(1) / PERCENT_STEP * PERCENT_STEP;
            report.percent = u8::try_from(percent).unwrap_or(100);
        }
        report
    }

    fn system_state(&self, row: &SystemRow) -> (SystemState, String) {
        use SystemState as S;
        let hold = || self.systems.hold.clone();
        match row.phase {
            Phase::Writing if self.systems.work == Work::Verifying => (S::Verifying, String::new()),
            Phase::Writing if self.systems.again_at.is_some() => (S::Waiting, hold()),
            Phase::Writing => {
                let problem = self.fetches.problem(&row.wanted.bundle.digest);
                (S::Writing, problem.unwrap_or_default().to_owned())
            }
            Phase::Staged => (S::Staged, hold()),
            Phase::Rebooting => (S::Rebooting, hold()),
            Phase::Trial => (S::Trial, hold()),
            Phase::Confirmed => (S::Confirmed, String::new()),
            Phase::RolledBack => (S::RolledBack, row.why.clone()),
            Phase::Failed => (S::Failed, row.why.clone()),
        }
    }

    /// Whether the system that runs has proved itself: `None` while that is open. What cannot be judged is not good: the
    /// loader asks this before it ceases to count.
    #[must_use]
    pub fn system_verdict(&self) -> Option<bool> {
        let phase = self.systems.row.as_deref().map(|r| r.phase);
        let is_judged = self.config.slots.is_ok();
        match phase {
            _ if self.systems.is_unread => Some(false),
            Some(Phase::Rebooting | Phase::Trial) if !is_judged => Some(false),
            Some(Phase::Rebooting) => None,
            Some(Phase::Trial) => self.systems.verdict,
            _ => Some(true),
        }
    }

    pub(super) fn say_system(&mut self, now: Now) {
        let report = self.system();
        // A machine without slots of which nothing is asked says nothing.
        if report != SystemReport::default() || self.reporter.entry(KEY).is_some() {
            self.say(KEY, now, Body::System(report));
        }
    }
}

trait About {
    fn about(&mut self, wanted: &System);
}

impl About for SystemReport {
    fn about(&mut self, wanted: &System) {
        self.bundle = Some(wanted.bundle.digest);
        self.attempt = wanted.attempt;
        self.wanted.clone_from(&wanted.version);
    }
}
