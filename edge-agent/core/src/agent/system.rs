//! The node's operating system, as the twin asks for it.

mod say;
mod start;

use super::*;
use crate::api::{SystemAction, SystemEvent};
use crate::system::{
    AGAIN_MS, ATTEMPTS, AtStart, Gate, LOOK_MS, OtherSlot, Phase, Running, SystemRow, refusal, verified_header,
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
    /// What runs is not good, and the machine was told to start anew.
    is_restarting: bool,
    /// What is in the other slot is not known, and what became of the row depends on it.
    is_undecided: bool,
    /// The ledger holds a row that this version of the agent cannot read.
    is_unread: bool,
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
    /// It is looked at what is in the other slot.
    Looking,
}

impl Systems {
    pub(super) fn of(row: Option<Box<SystemRow>>, is_unread: bool) -> Self {
        Self {
            row,
            is_unread,
            ..Self::default()
        }
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
        let gate = trial.and_then(|r| self.gate.timeout(&r.wanted.health));
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
        if self.systems.is_unread && !running.is_counted {
            // The loader has found good what runs: nothing is lost by beginning anew.
            self.systems.is_unread = false;
        }
        let Some(row) = self.systems.row.clone() else { return };
        match row.at_start(&running) {
            AtStart::AsItWas if row.phase == Phase::Confirmed => {
                // The power may have been cut between the two.
                self.system_action(SystemAction::Confirm);
            }
            AtStart::AsItWas => {}
            AtStart::Undecided => {
                self.systems.is_undecided = true;
                self.systems.hold = "what the boot loader knows of the other slot cannot be read now".into();
            }
            AtStart::NotTried => {
                let untried = row.untried + 1;
                let why = format!("the loader did not try it ({untried} of {ATTEMPTS} times); it is told again");
                self.becomes(SystemRow { untried, ..*row }, Phase::Staged, why, &running);
            }
            AtStart::Becomes(phase, why) => self.becomes(*row, phase, why, &running),
        }
    }

    fn becomes(&mut self, row: SystemRow, phase: Phase, why: String, running: &Running) {
        if !why.is_empty() {
            self.stage(Stage::Note(format!("system: {why}")));
        }
        self.systems.hold.clear();
        if phase == Phase::Staged {
            self.systems.hold.clone_from(&why);
        }
        let why = if phase == Phase::RolledBack { why } else { String::new() };
        let machine_boot = running.machine_boot.clone();
        self.put_system(SystemRow {
            phase,
            why,
            machine_boot,
            ..row
        });
        if phase == Phase::RolledBack {
            // Whatever is left there is never started again.
            self.system_action(SystemAction::Discard);
        }
    }

    /// Nothing is decided, and nothing written, before it is known what is in the other slot.
    fn look_at_other_slot(&mut self) {
        if self.systems.work == Work::None {
            self.systems.work = Work::Looking;
            self.system_action(SystemAction::Look);
        }
    }

    fn on_other_slot(&mut self, other: OtherSlot, now: Now) {
        self.systems.work = Work::None;
        self.systems.is_undecided = false;
        if let Ok(running) = &mut self.config.slots {
            running.other = other;
        }
        self.judge_system();
        if self.systems.is_undecided {
            self.systems.again_at = Some(now.mono_ms + LOOK_MS);
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
            // What another version was at, is not written over by this one.
            _ if self.systems.is_unread => {}
            _ if self.systems.again_at.is_some() && phase != Some(Phase::Trial) => {}
            None => self.begin_system(),
            Some(Phase::Writing) => self.go_on_writing(),
            Some(Phase::Staged) => self.start_when_due(now),
            Some(Phase::Rebooting) if self.systems.is_undecided => self.look_at_other_slot(),
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
        if let Some(row) = &self.systems.row {
            // Fetched on, its chunks would be taken for an artifact's; fetched again, for those that are asked for anew.
            self.fetches.finished(&row.wanted.bundle.digest);
        }
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
            untried: 0,
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
            SystemEvent::Verified { bundle, result: Ok(()) }
                if bundle == mine && self.systems.work == Work::Verifying =>
            {
                self.fetches.finished(&bundle);
                self.systems.hold.clear();
                let ran = self.must_run(&row);
                self.end_system(SystemRow { ran, ..row }, Phase::Staged, String::new());
            }
            // Its boot part is read once more before it is started.
            SystemEvent::Verified {
                bundle,
                result: Err(why),
            } if bundle == mine && matches!(self.systems.work, Work::Verifying | Work::Starting) => {
                self.system_action(SystemAction::Discard);
                let phase = Phase::Writing;
                self.damaged_system(SystemRow { phase, ..row }, &why, Some(now.mono_ms));
            }
            SystemEvent::NoRoom { bundle, why } if bundle == mine && self.systems.work != Work::None => {
                self.fetches.finished(&bundle);
                self.system_action(SystemAction::Discard);
                self.end_system(row, Phase::Failed, why);
            }
            SystemEvent::NotStarted { bundle, why } if bundle == mine && row.phase == Phase::Rebooting => {
                self.systems.work = Work::None;
                self.put_system(SystemRow {
                    phase: Phase::Staged,
                    ..row
                });
                self.hold_system(format!("it could not be started: {why}"), now);
            }
            // The loader was told: it stays so, and the machine is told again.
            SystemEvent::NotRestarted { why } if row.phase.is_in_start() => {
                self.systems.work = Work::None;
                self.systems.is_restarting = false;
                self.hold_system(format!("the machine does not start anew: {why}"), now);
            }
            SystemEvent::OtherSlot(other) if self.systems.is_undecided => self.on_other_slot(other, now),
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
}
