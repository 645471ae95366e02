//! The agent: intake, ledger, schedule, workloads and report, put together.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cnova_shared::hop::Position;
use cnova_shared::ids::{Digest, NodeId, WorkloadId};
use cnova_shared::limits;
use cnova_shared::parent::{Parent, ParentError};
use cnova_shared::report::{Reporter, StreamOp};
use cnova_shared::time::Now;
use cnova_shared::topics::Kind;
use cnova_shared::transfer::{ChunkEffect, Fetches};
use cnova_shared::twin::{VerifiedTwin, Version};
use cnova_shared::wire::v1::{self, Body};

use crate::api::{Action, Config, Event, Launch, Message, Observed, ObservedState, RuntimeEvent, Stage};
use crate::commands::Seen;
use crate::intake::{self, Held, Verdict};
use crate::ledger::{Op, Stored};
use crate::schedule::{self, Decision};
use crate::workload::{Desired, Machine, Step, spec_digest};

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
    config: Config,
    twin: Option<VerifiedTwin>,
    machines: BTreeMap<WorkloadId, Machine>,
    artifacts: BTreeSet<Digest>,
    fetches: Fetches,
    partial: BTreeMap<Digest, u64>,
    reporter: Reporter,
    parent: Parent,
    commands: Seen,
    floor_s: u64,
    ops: Vec<Op>,
    stream_ops: Vec<StreamOp>,
    committed: Option<Committed>,
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
        let machines = stored
            .instances
            .into_iter()
            .map(|r| (r.id.clone(), Machine::from_row(r, now.mono_ms)))
            .collect();
        let mut agent = Self {
            twin: None,
            machines,
            artifacts,
            fetches: Fetches::default(),
            partial,
            reporter: Reporter::new(stored.stream),
            parent: Parent::new(config.parent.clone()),
            commands: Seen::default(),
            floor_s: stored.time_floor.max(config.trust.contents().issued_at),
            ops: Vec::new(),
            stream_ops: Vec::new(),
            committed: None,
            effects: VecDeque::new(),
            actions: VecDeque::new(),
            config,
        };
        agent.reopen_twin(stored.twin, now);
        let found = agent.take_live(found);
        agent.desire(now);
        for (id, ok, detail) in found {
            agent.on_exit(&id, ok, &detail, now);
        }
        for alarm in agent.config.alarms.clone() {
            agent.say(&format!("alarm/{}", alarm.code), now, Body::Alarm(alarm));
        }
        agent.end_alarms(now);
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
    fn end_alarms(&mut self, now: Now) {
        let stands = |key: &String| {
            self.config.alarms.iter().any(|a| *key == format!("alarm/{}", a.code))
                || (key == "alarm/stored-twin" && self.twin.is_none())
        };
        let over: Vec<String> = self.reporter.alarms().into_iter().filter(|k| !stands(k)).collect();
        for key in over {
            self.say(&key, now, Body::Over);
        }
    }

    fn reopen_twin(&mut self, bytes: Option<Vec<u8>>, now: Now) {
        let Some(bytes) = bytes else { return };
        match VerifiedTwin::reopen(&bytes, &self.config.trust) {
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
    fn take_live(&mut self, found: Vec<Observed>) -> Vec<(WorkloadId, bool, String)> {
        let mut ended = Vec::new();
        for o in found {
            let machine = self
                .machines
                .entry(o.id.clone())
                .or_insert_with(|| Machine::new(o.id.clone()));
            match o.state {
                ObservedState::Alive { pid } if o.attempt >= machine.row().attempt => {
                    machine.found(o.attempt, o.spec, pid);
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
            .filter_map(|m| m.report(self.missing(m), self.fits(m)))
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
            .chain(report)
            .chain(committed)
            .min()
    }

    fn on_message(&mut self, kind: Kind, bytes: &[u8], now: Now) {
        match kind {
            Kind::Twin => self.on_twin(bytes, now),
            Kind::Ack => self.on_ack(bytes, now),
            Kind::Chunk => self.on_chunk(bytes, now),
            Kind::Command => self.on_command(bytes, now),
            other => self.stage(Stage::Note(format!(
                "a {} came, which this version does not know",
                other.as_str()
            ))),
        }
    }

    fn on_twin(&mut self, bytes: &[u8], now: Now) {
        let held = self.twin.as_ref().map(|t| Held {
            version: t.version(),
            digest: t.digest(),
        });
        match intake::judge(bytes, &self.config.node, &self.config.trust, held, self.now_s(now)) {
            Verdict::Held => {
                // Whoever repeats it does not know that it is here.
                self.parent.greet_again(now.mono_ms);
                self.stage(Stage::Note("the twin in force came again".into()));
            }
            Verdict::Refuse(r) => {
                let (epoch, generation) = (r.version.epoch, r.version.generation);
                let body = Body::Refused {
                    code: r.code.into(),
                    detail: limits::clip(&r.detail),
                    epoch,
                    generation,
                };
                self.reporter.refuse(now.wall_ms, body, &mut self.stream_ops);
                self.stage(Stage::Refused(format!("{}: {}", r.code, r.detail)));
            }
            Verdict::Take(twin) => {
                self.raise_floor(twin.iat());
                self.ops.push(Op::PutTwin(twin.bytes().to_vec()));
                let Version { epoch, generation } = twin.version();
                let (digest, verified_ms) = (twin.digest(), now.wall_ms);
                let body = Body::Twin {
                    epoch,
                    generation,
                    digest,
                    verified_ms,
                    committed_ms: 0,
                };
                self.say("twin", now, body);
                self.stage(Stage::Accepted(twin.version()));
                self.twin = Some(*twin);
                self.desire(now);
            }
        }
    }

    fn on_ack(&mut self, bytes: &[u8], now: Now) {
        let Some(ack) = self.open_from_parent::<v1::Ack>(Kind::Ack, bytes, now) else {
            return;
        };
        if ack.stream != v1::Stream::Report {
            return;
        }
        let position = Position {
            incarnation: ack.incarnation,
            seq: ack.seq,
        };
        let welcome = ack.hello.as_ref() == Some(&self.config.boot);
        self.reporter
            .on_ack(position, welcome, now.mono_ms, &mut self.stream_ops);
        if welcome && self.parent.welcomed() {
            self.reporter.set_connected(true);
            self.stage(Stage::Welcomed);
        }
    }

    fn on_chunk(&mut self, bytes: &[u8], now: Now) {
        let Some(c) = self.open_from_parent::<v1::Chunk>(Kind::Chunk, bytes, now) else {
            return;
        };
        match self
            .fetches
            .on_chunk(&c.digest, c.offset, c.total, c.data.len(), c.missing.as_deref())
        {
            ChunkEffect::Ignore => {}
            ChunkEffect::Missing(why) => {
                self.stage(Stage::Note(format!(
                    "artifact {} cannot be had yet: {why}",
                    c.digest.short()
                )));
            }
            ChunkEffect::Append { offset, complete } => {
                let digest = c.digest;
                self.effects.push_back(Action::AppendChunk {
                    digest,
                    offset,
                    data: c.data,
                    complete,
                });
            }
        }
    }

    fn on_command(&mut self, bytes: &[u8], now: Now) {
        let opened = Parent::open_hub(
            Kind::Command,
            bytes,
            &self.config.node,
            &self.config.trust,
            self.now_s(now),
        );
        let command = match opened.and_then(|v| Ok(v.decode::<v1::Command>()?)) {
            Ok(command) => command,
            Err(e) => return self.stage(Stage::Note(format!("a command was not taken: {e}"))),
        };
        self.raise_floor(command.claims().iat);
        let command = command.into_value();
        if !self.commands.is_new(command.id) {
            return;
        }
        let about = match &command.op {
            v1::Operation::Logs { workload, .. } | v1::Operation::Metrics { workload } => Some(workload),
            v1::Operation::Unknown => None,
        };
        let attempt = about.and_then(|id| self.machines.get(id)).map(|m| m.row().attempt);
        self.effects.push_back(Action::Answer {
            id: command.id,
            op: command.op,
            attempt,
        });
    }

    fn open_from_parent<T: serde::de::DeserializeOwned + v1::Versioned>(
        &mut self,
        kind: Kind,
        bytes: &[u8],
        now: Now,
    ) -> Option<T> {
        let now_s = self.now_s(now);
        let opened = self
            .parent
            .open(kind, bytes, &self.config.node, &self.config.trust, now_s);
        let decoded = opened.and_then(|v| v.decode::<T>().map_err(ParentError::from));
        match decoded {
            // A gateway's clock may be decades off: only what the hub signed moves the time floor.
            Ok(v) => Some(v.into_value()),
            Err(e) => {
                self.stage(Stage::Note(format!("a {} was not taken: {e}", kind.as_str())));
                None
            }
        }
    }

    /// The time floor follows what was verified, on disk at most once an hour: it only has to keep the century.
    fn raise_floor(&mut self, iat: u64) {
        const WRITE_EVERY_S: u64 = 3600;
        if iat > self.floor_s {
            if iat - self.floor_s >= WRITE_EVERY_S {
                self.ops.push(Op::TimeFloor(iat));
            }
            self.floor_s = iat;
        }
    }

    fn on_runtime(&mut self, id: &WorkloadId, attempt: u32, event: RuntimeEvent, now: Now) {
        let current = self
            .machines
            .get_mut(id)
            .filter(|m| m.row().attempt == attempt && m.is_live());
        let Some(machine) = current else { return };
        match event {
            RuntimeEvent::Started { pid } => machine.started(pid, now.mono_ms),
            RuntimeEvent::Exited { ok, detail } => self.on_exit(id, ok, &limits::clip(&detail), now),
        }
    }

    fn on_exit(&mut self, id: &WorkloadId, ok: bool, detail: &str, now: Now) {
        if let Some(machine) = self.machines.get_mut(id) {
            machine.exited(ok, detail, now.mono_ms);
            self.ops.push(Op::PutInstance(machine.row().clone()));
        }
    }

    /// Sets what the twin in force desires of every workload.
    fn desire(&mut self, now: Now) {
        // Without a twin nothing is known, so nothing that runs is touched; the parent is asked for the twin.
        let Some(twin) = &self.twin else { return };
        let version = twin.version();
        let decisions = schedule::schedule(&twin.twin().workloads, &self.config.capabilities);
        let mut gone: BTreeSet<WorkloadId> = self.machines.keys().cloned().collect();
        for w in &twin.twin().workloads {
            gone.remove(&w.id);
            let machine = self
                .machines
                .entry(w.id.clone())
                .or_insert_with(|| Machine::new(w.id.clone()));
            let spec = spec_digest(w);
            let same = |d: &&Desired| d.spec == spec && d.workload.app_generation == w.app_generation;
            let told = self.reporter.entry(&entry_key(&w.id)).and_then(|e| match &e.body {
                Body::Workload(r) if r.app_generation == w.app_generation && spec == machine.row().spec => {
                    Some(Version {
                        epoch: r.epoch,
                        generation: r.generation,
                    })
                }
                _ => None,
            });
            let asked_by = machine
                .desired()
                .filter(same)
                .map(|d| d.asked_by)
                .or(told)
                .unwrap_or(version);
            let decision = decisions.get(&w.id).cloned().unwrap_or(Decision::Run);
            machine.set_desired(Some(Desired {
                workload: w.clone(),
                spec,
                asked_by,
                decision,
            }));
        }
        for id in gone {
            if let Some(machine) = self.machines.get_mut(&id) {
                machine.set_desired(None);
            }
        }
        self.want_artifacts(now);
    }

    fn want_artifacts(&mut self, _now: Now) {
        let Some(twin) = &self.twin else { return };
        let needed: BTreeMap<Digest, u64> = twin
            .twin()
            .workloads
            .iter()
            .flat_map(artifacts_of)
            .map(|a| (a.digest, a.size))
            .collect();
        self.fetches.retain(|d| needed.contains_key(d));
        for (digest, size) in &needed {
            if !self.artifacts.contains(digest) {
                let have = self
                    .partial
                    .get(digest)
                    .copied()
                    .filter(|have| have <= size)
                    .unwrap_or(0);
                self.fetches.want(*digest, Some(*size), have);
            }
        }
    }

    fn missing(&self, machine: &Machine) -> Option<String> {
        let w = &machine.desired()?.workload;
        let a = artifacts_of(w).find(|a| !self.artifacts.contains(&a.digest))?;
        Some(match self.fetches.problem(&a.digest) {
            Some(why) => format!("artifact {}: {why}", a.digest.short()),
            None => format!("artifact {} of {} bytes is being fetched", a.digest.short(), a.size),
        })
    }

    /// Whether a workload fits beside everything that may still be running.
    fn fits(&self, machine: &Machine) -> bool {
        let Some(d) = machine.desired() else { return true };
        let (memory, cpu) = self
            .machines
            .values()
            .map(Machine::live_cost)
            .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        let have = &self.config.capabilities;
        memory + d.workload.memory_bytes <= have.memory_bytes && cpu + d.workload.cpu_millis <= have.cpu_millis
    }

    /// Takes every step that is open, says what changed, and puts what is to be kept before what is to be done.
    fn settle(&mut self, now: Now) {
        let ids: Vec<WorkloadId> = self.machines.keys().cloned().collect();
        self.machines.values_mut().for_each(|m| m.end_pause(now.mono_ms));
        // Removals before additions: what stops makes room for what starts.
        for starts in [false, true] {
            for id in &ids {
                self.step(id, starts, now);
            }
        }
        let mut said = Vec::new();
        for (id, m) in &self.machines {
            if let Some(r) = m.report(self.missing(m), self.fits(m)) {
                said.push((entry_key(id), r));
            }
        }
        for (key, report) in said {
            self.say_workload(&key, report, now);
        }
        self.say_committed(now);
        self.speak(now);
        self.ops.extend(self.stream_ops.drain(..).map(Op::Stream));
        if !self.ops.is_empty() {
            self.actions.push_back(Action::Persist(std::mem::take(&mut self.ops)));
        }
        self.actions.append(&mut self.effects);
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

    fn step(&mut self, id: &WorkloadId, starts: bool, now: Now) {
        // Without a twin nothing is known to be unwanted: what was found running runs on until the parent has answered.
        if self.twin.is_none() {
            return;
        }
        let Some(machine) = self.machines.get(id) else { return };
        let here = self.missing(machine).is_none();
        let fits = self.fits(machine);
        let step = machine.step(here, fits);
        if starts != (step == Step::Start) {
            return;
        }
        match step {
            Step::None => {}
            Step::Remove => {
                self.machines.remove(id);
                self.ops.push(Op::DeleteInstance(id.clone()));
                self.say(&entry_key(id), now, Body::Gone { id: id.clone() });
                self.collect_garbage();
            }
            Step::Stop { attempt, grace_ms } => {
                if let Some(m) = self.machines.get_mut(id) {
                    m.stopping();
                }
                self.effects.push_back(Action::Stop {
                    id: id.clone(),
                    attempt,
                    grace_ms,
                });
            }
            Step::Start => self.start(id),
        }
    }

    fn start(&mut self, id: &WorkloadId) {
        let Some(machine) = self.machines.get_mut(id) else {
            return;
        };
        machine.starting();
        let (row, Some(desired)) = (machine.row().clone(), machine.desired()) else {
            return;
        };
        let launch = Launch {
            workload: desired.workload.clone(),
            version: desired.asked_by,
            attempt: row.attempt,
            spec: row.spec,
        };
        self.ops.push(Op::PutInstance(row));
        self.effects.push_back(Action::Start(Box::new(launch)));
        self.collect_garbage();
    }

    /// Artifacts of the twin in force stay; what no workload needs any more goes.
    fn collect_garbage(&mut self) {
        let Some(twin) = &self.twin else { return };
        let keep: BTreeSet<Digest> = twin
            .twin()
            .workloads
            .iter()
            .flat_map(artifacts_of)
            .map(|a| a.digest)
            .collect();
        let settled = self
            .machines
            .values()
            .all(|m| !m.is_live() || m.desired().is_some_and(|d| d.spec == m.row().spec));
        if settled && self.artifacts.iter().any(|d| !keep.contains(d)) {
            self.artifacts.retain(|d| keep.contains(d));
            self.effects
                .push_back(Action::KeepArtifacts(keep.into_iter().collect()));
        }
    }

    /// Puts what is due for the parent behind everything else.
    fn speak(&mut self, now: Now) {
        if !self.parent.is_connected() {
            return;
        }
        if self.parent.poll_hello(now.mono_ms) {
            let hello = self.hello();
            self.effects.push_back(Action::Send(Message::Hello(hello)));
        }
        while let Some(want) = self.fetches.poll(now.mono_ms) {
            let request = v1::ChunkRequest {
                v: v1::VERSION,
                digest: want.digest,
                offset: want.offset,
                length: want.length,
                base: None,
            };
            self.effects.push_back(Action::Send(Message::ChunkRequest(request)));
        }
        self.reporter.on_timeout(now.mono_ms);
        while let Some(report) = self.reporter.poll(now.mono_ms) {
            self.effects.push_back(Action::Send(Message::Report(report)));
        }
    }

    fn hello(&self) -> v1::Hello {
        let Version { epoch, generation } = self.version();
        v1::Hello {
            v: v1::VERSION,
            boot: self.config.boot.clone(),
            epoch,
            generation,
            digest: self.twin.as_ref().map(VerifiedTwin::digest),
            incarnation: self.reporter.incarnation(),
            role: v1::NodeRole::Agent,
            site: self.config.site.clone(),
            labels: self.config.labels.clone(),
            capabilities: self.config.capabilities.clone(),
            software: self.config.software.clone(),
            trust_version: self.config.trust.contents().version,
            alarms: self.config.alarms.clone(),
        }
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

fn entry_key(id: &WorkloadId) -> String {
    format!("w/{id}")
}

fn artifacts_of(w: &v1::Workload) -> impl Iterator<Item = &v1::Artifact> {
    std::iter::once(&w.artifact).chain(w.files.iter().map(|f| &f.artifact))
}
