//! Starting a system that is whole in the other slot, and judging the one that was started.

use std::collections::BTreeMap;

use cnova_shared::certificate::Tier;
use cnova_shared::system_bundle::Header;
use cnova_shared::wire::v1::WorkloadState;

use super::super::*;
use super::Work;
use crate::api::SystemAction;
use crate::schedule::{Opening, Reason, opening};
use crate::standing::OwnBoot;
use crate::system::{Health, Judgement, LOOK_MS, Phase, SETTLE_MS, SETTLING_MS, SystemRow, unapproved};

impl Agent {
    pub(super) fn start_when_due(&mut self, now: Now) {
        let Some(row) = self.systems.row.as_deref().cloned() else {
            return;
        };
        if let Some(why) = self.settling(now) {
            self.systems.hold = why;
            self.systems.again_at = Some(now.mono_ms + SETTLING_MS);
            return;
        }
        if let Some(why) = self.not_now(&row, now) {
            self.systems.hold = why;
            self.systems.again_at = Some(now.mono_ms + LOOK_MS);
            return;
        }
        let ran = self.must_run(&row);
        let Some(running) = self.running() else { return };
        let (machine_boot, before) = (running.machine_boot.clone(), running.version.clone());
        self.put_system(SystemRow {
            phase: Phase::Rebooting,
            why: String::new(),
            machine_boot,
            ran,
            before,
            ..row
        });
        self.start_system();
    }

    /// What still comes up after the agent's start: until then it is not known what the next system must have running.
    fn settling(&self, now: Now) -> Option<String> {
        if now.mono_ms >= SETTLE_MS {
            return None;
        }
        if self.twin.is_none() {
            return Some("it has no twin yet".into());
        }
        let is_coming = |m: &&Machine| {
            let report = m.report(self.lack(m), self.fits(m));
            report.is_some_and(|r| match r.state {
                WorkloadState::Running | WorkloadState::Finished | WorkloadState::CrashLoop => false,
                // What must not run now is not waited for.
                _ => m.decision().reason().is_none(),
            })
        };
        let coming = self.machines.values().find(is_coming)?;
        Some(format!("workload {} is coming up", coming.row().id))
    }

    /// What the next system must have running: what runs well now, and of what ran before what did not fail meanwhile. A
    /// power cut may have been a moment ago.
    pub(super) fn must_run(&self, row: &SystemRow) -> Vec<WorkloadId> {
        let must = |(id, m): (&WorkloadId, &Machine)| {
            let report = m.report(self.lack(m), self.fits(m))?;
            let is_kept = match report.state {
                WorkloadState::Running => self.is_well(m),
                WorkloadState::CrashLoop => false,
                _ => row.ran.contains(id),
            };
            is_kept.then(|| id.clone())
        };
        self.machines.iter().filter_map(must).collect()
    }

    /// Whether it runs as well as it can: an earlier version, where the asked one did not become healthy, is not the
    /// system's doing.
    fn is_well(&self, machine: &Machine) -> bool {
        let report = machine.report(self.lack(machine), self.fits(machine));
        report.is_some_and(|r| {
            r.state == WorkloadState::Running && (r.reason.is_empty() || (r.returned && machine.is_well()))
        })
    }

    /// Why the machine is not started anew now.
    fn not_now(&self, row: &SystemRow, now: Now) -> Option<String> {
        if let Some(why) = &self.standing.quarantine {
            return Some(format!("this node is in quarantine: {why}"));
        }
        if let Some(why) = row.header.as_ref().and_then(|h| self.boot_is_unapproved(h)) {
            return Some(why);
        }
        if self.power.0 <= PowerLevel::Low {
            return Some(format!(
                "power: the node is at power level {}",
                schedule::power_word(self.power.0)
            ));
        }
        let window = row.wanted.window.as_ref()?;
        let wall_s = now.wall_ms / 1000;
        if wall_s < self.floor_s {
            return Some("window: the clock of this node is not set".into());
        }
        match opening(window, wall_s) {
            Opening::Open => None,
            Opening::Closed(next) => Some(match next {
                Some(next) => format!("window: it opens {next}"),
                None => "window: it never opens".into(),
            }),
            Opening::Broken(why) => Some(format!("window: {why}")),
        }
    }

    /// A node whose secrets are bound to approved boots starts nothing under which they would stay closed.
    fn boot_is_unapproved(&self, header: &Header) -> Option<String> {
        let is_bound = self.trust.boot_policy().is_some() || !matches!(self.standing.root.own_boot, OwnBoot::Unsealed);
        if self.standing.root.tier != Tier::Tpm || !is_bound {
            return None;
        }
        let boots = self.own_boots();
        let approved: Vec<BTreeMap<u8, Digest>> = boots.approved.iter().map(|a| a.approval.values.clone()).collect();
        let pcrs = unapproved(header, &approved)?;
        let list: Vec<String> = pcrs.iter().map(ToString::to_string).collect();
        Some(format!(
            "approval: no boot is approved for this node that ends as this system does (PCR {}); \
             cnova reference add NAME --from-node {} --from-bundle FILE",
            list.join(", "),
            self.config.node
        ))
    }

    pub(super) fn start_system(&mut self) {
        if self.systems.work == Work::Starting {
            return;
        }
        let (Some(row), Some(running)) = (self.systems.row.as_deref(), self.running()) else {
            return;
        };
        let Some(header) = row.header.clone().map(Box::new) else {
            return;
        };
        let is_older = row.is_older(running);
        let (bundle, tries) = (row.wanted.bundle.digest, row.wanted.tries);
        self.systems.work = Work::Starting;
        self.systems.hold.clear();
        self.system_action(SystemAction::Start {
            bundle,
            header,
            tries,
            is_older,
        });
    }

    pub(super) fn judge_trial(&mut self, now: Now) {
        let Some(row) = self.systems.row.as_deref().cloned() else {
            return;
        };
        if self.config.slots.is_err() {
            // What runs is not known: it is not good, and not judged.
            return;
        }
        let health = self.health_of(&row);
        match self.systems.gate.judge(health, &row.wanted.health, now.mono_ms) {
            Judgement::Good => {
                self.systems.verdict = Some(true);
                self.systems.hold.clear();
                self.end_system(row, Phase::Confirmed, String::new());
                self.system_action(SystemAction::Confirm);
            }
            Judgement::NotYet(what) => self.systems.hold = what,
            Judgement::Bad(what) => {
                self.systems.verdict = Some(false);
                if !self.systems.is_restarting && self.systems.again_at.is_none() {
                    self.systems.hold.clone_from(&what);
                    self.systems.is_restarting = true;
                    let why = format!("after {} s {what}", row.wanted.health.within_s);
                    self.stage(Stage::Note(format!(
                        "system: version {} is not healthy: {why}",
                        row.wanted.version
                    )));
                    // On disk first: the system before tells it.
                    self.put_system(SystemRow { why, ..row });
                    self.system_action(SystemAction::Restart);
                }
            }
        }
    }

    /// Whether all is as a healthy system has it.
    fn health_of(&self, row: &SystemRow) -> Health {
        let health = &row.wanted.health;
        let Some(twin) = &self.twin else {
            return Health::Missing("it has no twin".into());
        };
        let is_asked = |id: &WorkloadId| twin.twin().workloads.iter().any(|w| w.id == *id);
        // What ran before counts also where the twin asks for it no more: a hub takes away what this system lacks a runtime
        // for.
        let named = &health.workloads;
        let wanted = if named.is_empty() { &row.ran } else { named };
        let mut missing = None;
        for id in wanted {
            let machine = self.machines.get(id).filter(|_| is_asked(id));
            match machine.map_or_else(|| not_in_twin(id), |m| self.health_of_workload(id, m)) {
                Health::Well => {}
                Health::Paused(what) => return Health::Paused(what),
                Health::Missing(what) => missing = missing.or(Some(what)),
            }
        }
        if missing.is_none() && health.parent && !self.parent.is_welcome() {
            missing = Some(format!("{} was not reached", self.config.parent));
        }
        missing.map_or(Health::Well, Health::Missing)
    }

    fn health_of_workload(&self, id: &WorkloadId, machine: &Machine) -> Health {
        let Some(report) = machine.report(self.lack(machine), self.fits(machine)) else {
            return not_in_twin(id);
        };
        let reason = machine.decision().reason();
        let is_paused = matches!(reason, Some(Reason::WindowClosed { .. } | Reason::NotDue { .. }));
        let is_well = match report.state {
            WorkloadState::Running => self.is_well(machine),
            WorkloadState::Finished => true,
            _ => is_paused,
        };
        if is_well {
            return Health::Well;
        }
        let state = format!("{:?}", report.state).to_lowercase();
        let why = match report.reason.as_str() {
            "" => String::new(),
            why => format!(" ({why})"),
        };
        let what = format!("workload {id} is {state}{why}");
        match reason {
            Some(Reason::Power { .. }) => Health::Paused(what),
            _ => Health::Missing(what),
        }
    }
}

fn not_in_twin(id: &WorkloadId) -> Health {
    Health::Missing(format!("workload {id} is not in the twin"))
}
