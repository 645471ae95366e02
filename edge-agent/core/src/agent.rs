//! The agent: intake, ledger, schedule, workloads and report, put together.

mod attest;
mod messages;
mod own_boot;
mod plan;
mod proof;
mod system;
mod trust;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cnova_shared::hop::Position;
use cnova_shared::ids::{Digest, NodeId, WorkloadId};
use cnova_shared::limits;
use cnova_shared::parent::{Parent, ParentError};
use cnova_shared::renewal::Renewal;
use cnova_shared::report::{Reporter, StreamOp};
use cnova_shared::time::Now;
use cnova_shared::topics::Kind;
use cnova_shared::transfer::{ChunkEffect, Fetches};
use cnova_shared::trust::TrustState;
use cnova_shared::twin::{VerifiedTwin, Version};
use cnova_shared::wire::v1::{self, Body, PowerLevel};

use crate::api::{Action, Config, Event, Launch, Message, Observed, ObservedState, RuntimeEvent, Stage};
use crate::commands::Seen;
use crate::intake::{self, Held, Verdict};
use crate::ledger::{Op, Stored};
use crate::schedule::{self, Candidate, Decision, Scheduler};
use crate::standing::Standing;
use crate::workload::{Desired, Machine, Step, spec_digest};
use proof::Proofs;

pub use proof::PROVENANCE_AGAIN_MS;

/// When the twin in force was on disk, until it has been reported.
#[derive(Debug)]
struct Committed {
    at_ms: u64,
    say_by: u64,
}

/// The longest that the time of a commit waits for something else to be written with.
const COMMITTED_SAID_WITHIN_MS: u64 = 500;

/// One agent.
#[derive(Debug)]
pub struct Agent {
    pub(crate) config: Config,
    pub(crate) trust: TrustState,
    twin: Option<VerifiedTwin>,
    pub(crate) machines: BTreeMap<WorkloadId, Machine>,
    artifacts: BTreeSet<Digest>,
    fetches: Fetches,
    partial: BTreeMap<Digest, u64>,
    proofs: Proofs,
    reporter: Reporter,
    pub(crate) parent: Parent,
    renewal: Renewal,
    commands: Seen,
    floor_s: u64,
    ops: Vec<Op>,
    stream_ops: Vec<StreamOp>,
    committed: Option<Committed>,
    scheduler: Scheduler,
    pub(crate) power: (PowerLevel, String),
    pub(crate) standing: Standing,
    own_boot: own_boot::Asked,
    systems: system::Systems,
    floor: Version,
    /// The ledger's count, and whether the TPM was asked to follow.
    counter: u64,
    counting: bool,
    salt: u64,
    effects: VecDeque<Action>,
    actions: VecDeque<Action>,
}

impl Agent {
    /// Starts from what the store holds and what was found on the machine: artifacts whose digest matches, partial
    /// files with their length, and workload instances.
    #[must_use]
    pub fn boot(
        config: Config,
        stored: Stored,
        artifacts: BTreeSet<Digest>,
        partial: BTreeMap<Digest, u64>,
        found: Vec<Observed>,
        now: Now,
    ) -> Self {
        let salt = salt_of(&config.node);
        let machines = stored
            .instances
            .into_iter()
            .map(|r| (r.id.clone(), Machine::from_row(r, salt, now.mono_ms)))
            .collect();
        let (trust, faults) = TrustState::restore(config.trust.clone(), stored.trust);
        let issued_at = trust.bundle().contents().issued_at;
        let mut agent = Self {
            trust,
            twin: None,
            machines,
            artifacts,
            fetches: Fetches::default(),
            partial,
            proofs: Proofs::default(),
            reporter: Reporter::new(stored.stream),
            parent: Parent::new(config.parent.clone()),
            renewal: Renewal::new(config.key.clone(), config.renew_s, first_ticket(&config.boot)),
            commands: Seen::default(),
            floor_s: stored.time_floor.max(issued_at),
            ops: Vec::new(),
            stream_ops: Vec::new(),
            committed: None,
            scheduler: Scheduler::default(),
            power: config.power.clone(),
            standing: Standing {
                root: config.root.clone(),
                ..Standing::default()
            },
            own_boot: own_boot::Asked::default(),
            systems: system::Systems::of(stored.system, stored.system_unread),
            floor: Version {
                epoch: stored.floor.0,
                generation: stored.floor.1,
            },
            counter: stored.counter,
            counting: false,
            salt,
            effects: VecDeque::new(),
            actions: VecDeque::new(),
            config,
        };
        agent.reopen_twin(stored.twin, now);
        agent.reopen_results(
            [stored.ear, stored.delegated_ear],
            [stored.parent_ear, stored.delegated_parent_ear],
        );
        agent.judge_disk(now);
        agent.judge_boot(now);
        agent.judge_system();
        let found = agent.take_live(found, now);
        agent.desire(now);
        for (id, ok, detail) in found {
            agent.on_exit(&id, ok, &detail, now);
        }
        for alarm in agent.config.alarms.clone() {
            agent.say(&format!("alarm/{}", alarm.code), now, Body::Alarm(alarm));
        }
        agent.raise_power_alarm(now);
        agent.begin_trust(&faults, now);
        agent.end_alarms(!faults.is_empty(), now);
        agent.mourn(now);
        agent.settle(now);
        agent
    }

    /// A workload that was reported and of which nothing is left, neither a row nor a process, is gone.
    fn mourn(&mut self, now: Now) {
        for (key, id) in self.reporter.workloads() {
            if !self.machines.contains_key(&id) {
                self.say(&key, now, Body::Gone { id });
            }
        }
    }

    /// An alarm of an earlier start that this start did not raise is over.
    fn end_alarms(&mut self, is_trust_damaged: bool, now: Now) {
        let stands = |key: &String| {
            self.config.alarms.iter().any(|a| *key == format!("alarm/{}", a.code))
                || (key == "alarm/stored-twin" && self.twin.is_none())
                || (key == "alarm/power" && self.power.0 != PowerLevel::Mains)
                || (key == "alarm/quarantine" && self.standing.quarantine.is_some())
                || (key == own_boot::ALARM && self.own_boot_is_doubtful())
                || (key == trust::STORED_ALARM && is_trust_damaged)
                || trust::is_watched(key)
        };
        let over: Vec<String> = self.reporter.alarms().into_iter().filter(|k| !stands(k)).collect();
        for key in over {
            self.say(&key, now, Body::Over);
        }
    }

    fn reopen_twin(&mut self, bytes: Option<Vec<u8>>, now: Now) {
        let Some(bytes) = bytes else { return };
        match self.trust.reopen_twin(&bytes) {
            Ok(twin) if twin.twin().node == self.config.node => self.twin = Some(twin),
            Ok(twin) => {
                let detail = format!(
                    "the stored twin is for {}; it is set aside and asked for again",
                    twin.twin().node
                );
                self.alarm("stored-twin", detail, now);
            }
            Err(e) => {
                let detail = format!("the stored twin does not verify ({e}); it is set aside and asked for again");
                self.alarm("stored-twin", detail, now);
            }
        }
    }

    /// Live instances become running ones; ended ones are returned, to be judged once it is known what is desired.
    fn take_live(&mut self, found: Vec<Observed>, now: Now) -> Vec<(WorkloadId, bool, String)> {
        let mut ended = Vec::new();
        let (salt, now_s) = (self.salt, self.now_s(now));
        for o in found {
            let machine = self
                .machines
                .entry(o.id.clone())
                .or_insert_with(|| Machine::new(o.id.clone(), salt, now_s));
            match o.state {
                ObservedState::Alive { pid } if o.attempt >= machine.row().attempt => {
                    machine.found(o.attempt, o.spec, pid, now.mono_ms);
                    self.ops.push(Op::PutInstance(machine.row().clone()));
                }
                ObservedState::Alive { .. } => {
                    // An older instance than the newest known: it was being replaced when the agent died.
                    self.effects.push_back(Action::Stop {
                        id: o.id,
                        attempt: o.attempt,
                        grace_ms: 0,
                    });
                }
                ObservedState::Exited { ok, detail } if o.attempt == machine.row().attempt => {
                    if machine.row().phase == crate::ledger::Phase::Active {
                        ended.push((o.id, ok, detail));
                    }
                }
                ObservedState::Exited { .. } | ObservedState::MachineRestarted => {}
            }
        }
        ended
    }

    /// This node's name.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.config.node
    }

    /// The version of the twin in force.
    #[must_use]
    pub fn version(&self) -> Version {
        self.twin.as_ref().map(VerifiedTwin::version).unwrap_or_default()
    }

    /// The twin in force.
    #[must_use]
    pub fn twin(&self) -> Option<&VerifiedTwin> {
        self.twin.as_ref()
    }

    /// The state of every workload, for people on the node.
    #[must_use]
    pub fn workloads(&self) -> Vec<v1::WorkloadReport> {
        self.machines
            .values()
            .filter_map(|m| m.report(self.lack(m), self.fits(m)))
            .collect()
    }

    /// Wall time in seconds, at least the newest time that was verified.
    #[must_use]
    pub fn now_s(&self, now: Now) -> u64 {
        now.wall_s_at_least(self.floor_s)
    }

    /// Takes one event.
    pub fn handle(&mut self, event: Event, now: Now) {
        match event {
            Event::Connected => {
                self.parent.connected(now.mono_ms);
                self.renewal.connected(now.mono_ms);
                self.fetches.reconnected();
            }
            Event::Disconnected => {
                self.parent.disconnected();
                self.reporter.set_connected(false);
            }
            Event::Message { kind, bytes } => self.on_message(kind, &bytes, now),
            Event::ArtifactStored(digest) => {
                self.fetches.finished(&digest);
                self.partial.remove(&digest);
                self.artifacts.insert(digest);
            }
            Event::ArtifactFailed { digest, detail } => {
                self.partial.remove(&digest);
                self.fetches.failed(&digest, &detail, now.mono_ms);
                self.stage(Stage::Note(format!("artifact {}: {detail}", digest.short())));
            }
            Event::Runtime { id, attempt, event } => self.on_runtime(&id, attempt, event, now),
            Event::TwinCommitted => {
                self.committed = Some(Committed {
                    at_ms: now.wall_ms,
                    say_by: now.mono_ms + COMMITTED_SAID_WITHIN_MS,
                });
            }
            Event::Pressure(pressure) => self.scheduler.sample(pressure, now.mono_ms),
            Event::Power { level, why } => self.on_power(level, why, now),
            Event::ProvenanceChecked { spec, result } => self.on_proved(spec, result, now),
            Event::Inventory { accelerators, devices } => self.on_inventory(accelerators, devices, now),
            Event::Counted(result) => self.on_counted(result, now),
            Event::Counter(found) => self.on_counter(found, now),
            Event::Unmeasured(why) => self.on_unmeasured(why, now),
            Event::OwnBoot { boots, own_boot, lost } => self.on_own_boot(&boots, own_boot, lost, now),
            Event::BoxKey(key) => {
                self.config.box_key = Ok(key);
                // The hello carries it, and what was closed is looked at again.
                self.parent.changed(now.mono_ms);
            }
            Event::Installed { renew_s } => {
                self.renewal.installed(Some(renew_s), now.mono_ms);
                // The hello carries the certificate.
                self.parent.changed(now.mono_ms);
            }
            Event::System(event) => self.on_system(event, now),
            Event::Tick => {}
        }
        self.settle(now);
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Event::Tick`] is due, monotonic milliseconds.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<u64> {
        let link = self.parent.is_connected();
        let fetch = self.fetches.timeout().filter(|_| link);
        let report = self.reporter.timeout().filter(|_| link);
        let machines = self.machines.values().filter_map(Machine::timeout);
        let committed = self.committed.as_ref().map(|c| c.say_by);
        machines
            .chain(self.parent.timeout())
            .chain(fetch)
            .chain(self.renewal.timeout().filter(|_| link))
            .chain(report)
            .chain(committed)
            .chain(self.proofs.timeout())
            .chain(self.own_boot.timeout())
            .chain(self.systems.timeout())
            .chain(self.scheduler.timeout().filter(|_| self.twin.is_some()))
            .min()
    }

    fn on_runtime(&mut self, id: &WorkloadId, attempt: u32, event: RuntimeEvent, now: Now) {
        let current = self
            .machines
            .get_mut(id)
            .filter(|m| m.row().attempt == attempt && m.is_live());
        let Some(machine) = current else { return };
        match event {
            RuntimeEvent::Started { pid } => machine.started(pid, now.mono_ms),
            RuntimeEvent::Health { healthy, detail } => machine.health(healthy, &limits::clip(&detail), now.mono_ms),
            RuntimeEvent::Exited { ok, detail } => self.on_exit(id, ok, &limits::clip(&detail), now),
        }
    }

    fn on_exit(&mut self, id: &WorkloadId, ok: bool, detail: &str, now: Now) {
        if let Some(machine) = self.machines.get_mut(id) {
            machine.exited(ok, detail, now.mono_ms);
            self.ops.push(Op::PutInstance(machine.row().clone()));
        }
    }

    /// Takes every step that is open, says what changed, and puts what is to be kept before what is to be done.
    fn settle(&mut self, now: Now) {
        for m in self.machines.values_mut() {
            m.on_time(now.mono_ms);
            m.end_pause(now.mono_ms);
        }
        self.watch_trust(now);
        self.ask_again_for_own_boot(now);
        self.count_again(now);
        self.schedule(now);
        self.keep_changed();
        self.ask_for_proofs(now);
        // The most important first: room that is made is theirs.
        let mut ids: Vec<WorkloadId> = self.machines.keys().cloned().collect();
        ids.sort_by_key(|id| std::cmp::Reverse(self.machines.get(id).and_then(Machine::target).map(|w| w.priority)));
        // Removals before additions: what stops makes room for what starts.
        for starts in [false, true] {
            for id in &ids {
                self.step(id, starts, now);
            }
        }
        let mut said = Vec::new();
        for (id, m) in &self.machines {
            if let Some(r) = m.report(self.lack(m), self.fits(m)) {
                said.push((entry_key(id), r));
            }
        }
        for (key, report) in said {
            self.say_workload(&key, report, now);
        }
        self.drive_system(now);
        self.say_committed(now);
        self.speak(now);
        self.ops.extend(self.stream_ops.drain(..).map(Op::Stream));
        if !self.ops.is_empty() {
            self.actions.push_back(Action::Persist(std::mem::take(&mut self.ops)));
        }
        self.actions.append(&mut self.effects);
    }

    /// Rows that changed by themselves are written; a version that is to run again may need its artifacts.
    fn keep_changed(&mut self) {
        let mut any = false;
        for m in self.machines.values_mut() {
            if m.take_changed() {
                self.ops.push(Op::PutInstance(m.row().clone()));
                any = true;
            }
        }
        if any {
            self.want_artifacts();
        }
    }

    fn on_power(&mut self, level: PowerLevel, why: String, now: Now) {
        let is_over = level == PowerLevel::Mains && self.power.0 != level;
        if is_over && self.reporter.entry("alarm/power").is_some() {
            self.say("alarm/power", now, Body::Over);
        }
        let changed = self.power.0 != level;
        self.power = (level, why);
        if changed {
            self.raise_power_alarm(now);
        }
    }

    fn raise_power_alarm(&mut self, now: Now) {
        let (level, why) = &self.power;
        if *level != PowerLevel::Mains {
            let detail = format!("the node is at power level {}: {why}", schedule::power_word(*level));
            self.alarm("power", detail, now);
        }
    }

    /// Accelerators and devices come and go while the node runs.
    fn on_inventory(&mut self, accelerators: Vec<v1::Accelerator>, devices: Vec<String>, now: Now) {
        let have = &mut self.config.capabilities;
        if have.accelerators == accelerators && have.devices == devices {
            return;
        }
        have.accelerators = accelerators;
        have.devices = devices;
        self.parent.changed(now.mono_ms);
    }

    /// When the twin was on disk is said with the next thing that is written anyway, so that it costs no commit.
    fn say_committed(&mut self, now: Now) {
        let due = |c: &Committed| !self.ops.is_empty() || !self.stream_ops.is_empty() || c.say_by <= now.mono_ms;
        if !self.committed.as_ref().is_some_and(due) {
            return;
        }
        let (Some(c), Some(entry)) = (self.committed.take(), self.reporter.entry("twin")) else {
            return;
        };
        if let Body::Twin {
            epoch,
            generation,
            digest,
            verified_ms,
            committed_ms: 0,
        } = entry.body
        {
            let body = Body::Twin {
                epoch,
                generation,
                digest,
                verified_ms,
                committed_ms: c.at_ms,
            };
            self.say("twin", now, body);
        }
    }

    fn say_workload(&mut self, key: &str, report: v1::WorkloadReport, now: Now) {
        let news = match self.reporter.entry(key).map(|e| &e.body) {
            Some(Body::Workload(old)) => old.state != report.state || old.attempt != report.attempt,
            _ => true,
        };
        if news {
            self.stage(Stage::Workload(report.id.clone(), report.state, report.reason.clone()));
        }
        self.say(key, now, Body::Workload(report));
    }

    fn say(&mut self, key: &str, now: Now, body: Body) {
        self.reporter.say(key, now.wall_ms, body, &mut self.stream_ops);
    }

    fn alarm(&mut self, code: &str, detail: String, now: Now) {
        self.stage(Stage::Note(format!("{code}: {detail}")));
        self.say(
            &format!("alarm/{code}"),
            now,
            Body::Alarm(v1::Alarm {
                code: code.into(),
                detail,
            }),
        );
    }

    fn stage(&mut self, stage: Stage) {
        self.effects.push_back(Action::Stage(stage));
    }
}

/// Differs between nodes, and stays the same for one.
fn salt_of(node: &NodeId) -> u64 {
    let d = Digest::of(node.as_str().as_bytes()).0;
    u64::from_le_bytes([d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]])
}

/// Tickets of one life of the agent are not those of another.
fn first_ticket(boot: &str) -> u64 {
    let d = Digest::of(boot.as_bytes()).0;
    u64::from_le_bytes([d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]])
}

fn entry_key(id: &WorkloadId) -> String {
    format!("w/{id}")
}
