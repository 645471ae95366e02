//! The node's operating system, as the twin asks for it.

use std::collections::BTreeMap;

use cnova_shared::certificate::Tier;
use cnova_shared::system_bundle::Header;
use cnova_shared::wire::v1::{System, SystemReport, SystemState, WorkloadState};

use super::*;
use crate::api::{SystemAction, SystemEvent};
use crate::schedule::{Opening, Reason, opening};
use crate::standing::OwnBoot;
use crate::system::{
    AGAIN_MS, ATTEMPTS, Gate, Judgement, LOOK_MS, Phase, Running, SystemRow, refusal, unapproved, verified_header,
};

/// The report's key.
const KEY: &str = "system";
/// Progress is said in steps of so many hundredths.
const PERCENT_STEP: u64 = 10;

/// What is being done about the system, beyond what is on disk.
#[derive(Debug, Default)]
pub(super) struct Systems {
    row: Option<Box<SystemRow>>,
    work: Work,
    gate: Gate,
    /// Why it does not go on, for a person.
    hold: String,
    /// When it is looked at again, monotonic milliseconds.
    again_at: Option<u64>,
    /// What was said last of the gate: good, or over.
    verdict: Option<bool>,
    /// Before this start of the agent it was judged what runs.
    is_restarting: bool,
}

/// What is under way with the bundle of the row; forgotten by a restart, and begun again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Work {
    /// Nothing.
    #[default]
    None,
    /// Its first bytes are fetched; nothing is written.
    Header,
    /// The slot is being taken for it.
    Opening,
    /// It is fetched and written.
    Writing,
    /// It is read back.
    Verifying,
    /// The machine is being started anew.
    Starting,
}

impl Systems {
    pub(super) fn of(row: Option<Box<SystemRow>>) -> Self {
        Self { row, ..Self::default() }
    }

    /// The bundle that is being fetched, which is no artifact of the store.
    pub(super) fn fetched(&self) -> Option<Digest> {
        let is_fetched = matches!(self.work, Work::Header | Work::Writing | Work::Verifying);
        let row = self.row.as_ref().filter(|_| is_fetched)?;
        Some(row.wanted.bundle.digest)
    }

    pub(super) fn timeout(&self) -> Option<u64> {
        let trial = self
            .row
            .as_ref()
            .filter(|r| r.phase == Phase::Trial && self.verdict.is_none());
        let gate = trial.map(|r| self.gate.timeout(&r.wanted.health));
        gate.into_iter().chain(self.again_at).min()
    }
}

impl Agent {
    fn running(&self) -> Option<&Running> {
        self.config.slots.as_ref().ok()
    }

    /// What follows from what runs, at the agent's start.
    pub(super) fn judge_system(&mut self) {
        let Ok(running) = self.config.slots.clone() else { return };
        let Some(row) = self.systems.row.clone() else { return };
        if let Some((phase, why)) = row.at_start(&running) {
            if !why.is_empty() {
                self.stage(Stage::Note(format!("system: {why}")));
            }
            let why = if phase == Phase::Trial { String::new() } else { why };
            let machine_boot = running.machine_boot;
            self.put_system(SystemRow {
                phase,
                why,
                machine_boot,
                ..*row
            });
            match phase {
                // Whatever is left there is never started again.
                Phase::RolledBack => self.system_action(SystemAction::Discard),
                Phase::Staged => self.systems.hold = "the power was cut before it was started".into(),
                _ => {}
            }
        } else if row.phase == Phase::Confirmed {
            // The power may have been cut between the two.
            self.system_action(SystemAction::Confirm);
        }
    }

    fn put_system(&mut self, row: SystemRow) {
        if self.systems.row.as_deref() != Some(&row) {
            self.ops.push(Op::PutSystem(Box::new(row.clone())));
        }
        self.systems.row = Some(Box::new(row));
    }

    fn drop_system(&mut self) {
        if self.systems.row.take().is_some() {
            self.ops.push(Op::DropSystem);
        }
        self.systems.work = Work::None;
    }

    fn system_action(&mut self, action: SystemAction) {
        self.effects.push_back(Action::System(action));
    }

    /// Takes every step that is open.
    pub(super) fn drive_system(&mut self, now: Now) {
        if self.systems.again_at.is_some_and(|at| at <= now.mono_ms) {
            self.systems.again_at = None;
        }
        self.follow_twin();
        let phase = self.systems.row.as_ref().map(|r| r.phase);
        match phase {
            _ if self.systems.again_at.is_some() && phase != Some(Phase::Trial) => {}
            None => self.begin_system(),
            Some(Phase::Writing) => self.go_on_writing(),
            Some(Phase::Staged) => self.start_when_due(now),
            Some(Phase::Rebooting) => self.start_system(),
            Some(Phase::Trial) => self.judge_trial(now),
            Some(Phase::Confirmed | Phase::RolledBack | Phase::Failed) => {}
        }
        self.say_system(now);
    }

    /// What the twin asks for now takes the place of what it asked for before, unless that is about to start, or has.
    fn follow_twin(&mut self) {
        let Some(twin) = &self.twin else { return };
        let wanted = twin.twin().system.as_deref();
        let Some(row) = self.systems.row.as_deref() else { return };
        if row.phase.is_in_start() {
            return;
        }
        match wanted {
            Some(wanted) if row.is_for(wanted) => {
                if row.wanted != *wanted {
                    let row = row.clone();
                    self.put_system(SystemRow {
                        wanted: wanted.clone(),
                        ..row
                    });
                }
            }
            Some(_) => self.leave_system(),
            // What is good, or was not, stays known for as long as nothing else is asked for.
            None if row.phase.is_over() => {}
            None => self.leave_system(),
        }
    }

    /// A bundle that is asked for no more.
    fn leave_system(&mut self) {
        let phase = self.systems.row.as_ref().map(|r| r.phase);
        if matches!(phase, Some(Phase::Writing | Phase::Staged)) {
            self.system_action(SystemAction::Discard);
        }
        self.systems.again_at = None;
        self.systems.hold.clear();
        self.drop_system();
    }

    /// A new bundle: its header first, so that nothing is touched for one that is not for this machine.
    fn begin_system(&mut self) {
        let wanted = self.twin.as_ref().and_then(|t| t.twin().system.clone());
        let Some(wanted) = wanted else {
            self.systems.work = Work::None;
            return;
        };
        if self.config.slots.is_err() {
            // The reason is said with the report.
            return;
        }
        self.systems.hold.clear();
        self.put_system(SystemRow {
            wanted: *wanted,
            phase: Phase::Writing,
            header: None,
            why: String::new(),
            damaged: 0,
            machine_boot: String::new(),
            ran: Vec::new(),
            before: self.running().map(|r| r.version.clone()).unwrap_or_default(),
        });
        self.go_on_writing();
    }

    fn go_on_writing(&mut self) {
        if self.systems.work != Work::None {
            return;
        }
        let Some(row) = self.systems.row.as_deref() else { return };
        let (bundle, size) = (row.wanted.bundle.digest, row.wanted.bundle.size);
        match &row.header {
            None => {
                self.systems.work = Work::Header;
                self.fetches.want(bundle, Some(size), 0);
            }
            Some(header) => {
                let header = Box::new(header.clone());
                self.systems.work = Work::Opening;
                self.system_action(SystemAction::Open { bundle, header });
            }
        }
    }

    /// A chunk of the bundle came.
    pub(super) fn on_system_chunk(&mut self, offset: u64, data: Vec<u8>, complete: bool) {
        let Some(row) = self.systems.row.as_deref().cloned() else {
            return;
        };
        let bundle = row.wanted.bundle.digest;
        match self.systems.work {
            Work::Header if offset == 0 => {
                // Fetched again from where the slot needs it.
                self.fetches.finished(&bundle);
                self.systems.work = Work::None;
                self.judge_header(row, &data);
            }
            Work::Writing => {
                self.system_action(SystemAction::Write { bundle, offset, data });
                if complete && let Some(header) = row.header {
                    self.systems.work = Work::Verifying;
                    let header = Box::new(header);
                    self.system_action(SystemAction::Verify { bundle, header });
                }
            }
            _ => {}
        }
    }

    fn judge_header(&mut self, row: SystemRow, begin: &[u8]) {
        let Ok(running) = self.config.slots.clone() else { return };
        let header = match verified_header(begin, &row.wanted) {
            Ok(header) => header,
            Err(why) => return self.damaged_system(row, &why, None),
        };
        if let Some(why) = refusal(&header, &row.wanted, &running) {
            return self.end_system(row, Phase::Failed, why);
        }
        let row = SystemRow {
            header: Some(header),
            ..row
        };
        if row.runs(&running) {
            return self.end_system(row, Phase::Confirmed, String::new());
        }
        self.put_system(row);
        self.go_on_writing();
    }

    fn end_system(&mut self, row: SystemRow, phase: Phase, why: String) {
        let version = &row.wanted.version;
        self.stage(Stage::Note(match why.as_str() {
            "" => format!("system: version {version} is {phase:?}"),
            why => format!("system: version {version} is {phase:?}: {why}"),
        }));
        self.systems.work = Work::None;
        self.put_system(SystemRow { phase, why, ..row });
    }

    /// What came, or what the slot kept, is not what was signed: it is fetched anew, a few times.
    fn damaged_system(&mut self, row: SystemRow, why: &str, mono_ms: Option<u64>) {
        let (bundle, damaged) = (row.wanted.bundle.digest, row.damaged + 1);
        self.fetches.finished(&bundle);
        if damaged >= ATTEMPTS {
            let why = format!("{why}; it was fetched {damaged} times, and is not fetched again");
            self.system_action(SystemAction::Discard);
            return self.end_system(SystemRow { damaged, ..row }, Phase::Failed, why);
        }
        self.stage(Stage::Note(format!("system: {why}; it is fetched anew")));
        self.systems.work = Work::None;
        self.systems.hold = why.to_owned();
        self.systems.again_at = mono_ms.map(|ms| ms + AGAIN_MS);
        self.put_system(SystemRow { damaged, ..row });
    }

    /// What became of an action.
    pub(super) fn on_system(&mut self, event: SystemEvent, now: Now) {
        let Some(row) = self.systems.row.as_deref().cloned() else {
            return;
        };
        let mine = row.wanted.bundle.digest;
        match event {
            SystemEvent::Opened { bundle, have } if bundle == mine && self.systems.work == Work::Opening => {
                self.systems.work = Work::Writing;
                self.systems.hold.clear();
                let size = row.wanted.bundle.size;
                self.fetches.want(bundle, Some(size), have.min(size));
            }
            SystemEvent::NotWritten { bundle, why } if bundle == mine => {
                self.fetches.finished(&bundle);
                self.systems.work = Work::None;
                self.hold_system(why, now);
            }
            SystemEvent::Verified { bundle, result } if bundle == mine && self.systems.work == Work::Verifying => {
                match result {
                    Ok(()) => {
                        self.fetches.finished(&bundle);
                        self.systems.hold.clear();
                        self.end_system(row, Phase::Staged, String::new());
                    }
                    Err(why) => {
                        self.system_action(SystemAction::Discard);
                        self.damaged_system(row, &why, Some(now.mono_ms));
                    }
                }
            }
            SystemEvent::NotStarted { bundle, why } if bundle == mine && row.phase == Phase::Rebooting => {
                self.systems.work = Work::None;
                self.put_system(SystemRow {
                    phase: Phase::Staged,
                    ..row
                });
                self.hold_system(format!("it could not be started: {why}"), now);
            }
            _ => {}
        }
    }

    fn hold_system(&mut self, why: String, now: Now) {
        self.stage(Stage::Note(format!(
            "system: {why}; it is tried again in {} s",
            AGAIN_MS / 1000
        )));
        self.systems.hold = limits::clip(&why);
        self.systems.again_at = Some(now.mono_ms + AGAIN_MS);
    }

    fn start_when_due(&mut self, now: Now) {
        let Some(row) = self.systems.row.as_deref().cloned() else {
            return;
        };
        if let Some(why) = self.not_now(&row, now) {
            self.systems.hold = why;
            self.systems.again_at = Some(now.mono_ms + LOOK_MS);
            return;
        }
        let ran = self
            .machines
            .values()
            .filter_map(|m| m.report(self.lack(m), self.fits(m)));
        let ran = ran.filter(|r| r.state == WorkloadState::Running).map(|r| r.id);
        let ran: Vec<WorkloadId> = ran.collect();
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

    fn start_system(&mut self) {
        if self.systems.work == Work::Starting {
            return;
        }
        let (Some(row), Some(running)) = (self.systems.row.as_deref(), self.running()) else {
            return;
        };
        let Some(header) = row.header.clone().map(Box::new) else {
            return;
        };
        let is_older = !cnova_shared::system_bundle::compare_versions(&header.version, &running.version).is_gt();
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

    fn judge_trial(&mut self, now: Now) {
        let Some(row) = self.systems.row.as_deref().cloned() else {
            return;
        };
        let missing = self.missing_for_health(&row);
        match self.systems.gate.judge(missing, &row.wanted.health, now.mono_ms) {
            Judgement::Good => {
                self.systems.verdict = Some(true);
                self.systems.hold.clear();
                self.end_system(row, Phase::Confirmed, String::new());
                self.system_action(SystemAction::Confirm);
            }
            Judgement::NotYet(what) => self.systems.hold = what,
            Judgement::Bad(what) => {
                self.systems.hold.clone_from(&what);
                self.systems.verdict = Some(false);
                if !self.systems.is_restarting {
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

    /// What is not yet as a healthy system has it.
    fn missing_for_health(&self, row: &SystemRow) -> Option<String> {
        let health = &row.wanted.health;
        let Some(twin) = &self.twin else {
            return Some("it has no twin".into());
        };
        let is_asked = |id: &WorkloadId| twin.twin().workloads.iter().any(|w| w.id == *id);
        let named = &health.workloads;
        let wanted: Vec<&WorkloadId> = match named.is_empty() {
            // Also what the twin asks for no more: a hub takes away what this system lacks a runtime for.
            true => row.ran.iter().collect(),
            false => named.iter().collect(),
        };
        for id in wanted {
            let Some(machine) = self.machines.get(id).filter(|_| is_asked(id)) else {
                return Some(format!("workload {id} is not in the twin"));
            };
            let Some(report) = machine.report(self.lack(machine), self.fits(machine)) else {
                return Some(format!("workload {id} is not in the twin"));
            };
            let reason = machine.decision().reason();
            let is_paused = matches!(reason, Some(Reason::WindowClosed { .. } | Reason::NotDue { .. }));
            let is_well = match report.state {
                WorkloadState::Running => report.reason.is_empty(),
                WorkloadState::Finished => true,
                _ => is_paused,
            };
            if !is_well {
                let state = format!("{:?}", report.state).to_lowercase();
                let reason = if report.reason.is_empty() {
                    String::new()
                } else {
                    format!(" ({})", report.reason)
                };
                return Some(format!("workload {id} is {state}{reason}"));
            }
        }
        let is_apart = health.parent && !self.parent.is_welcome();
        is_apart.then(|| format!("{} was not reached", self.config.parent))
    }

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

    /// Whether the system that runs has proved itself: `None` while that is open.
    #[must_use]
    pub fn system_verdict(&self) -> Option<bool> {
        match self.systems.row.as_deref().map(|r| r.phase) {
            Some(Phase::Trial) => self.systems.verdict,
            _ => Some(true),
        }
    }

    fn say_system(&mut self, now: Now) {
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
