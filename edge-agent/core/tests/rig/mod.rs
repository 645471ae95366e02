//! An agent with a store that survives it, and a clock: events in, actions out as text.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

#[path = "../../../../shared/tests/support/mod.rs"]
pub mod support;

use std::collections::{BTreeMap, BTreeSet};

use cnova_agent_core::ledger::{Op, Phase, Stored};
use cnova_agent_core::{Action, Agent, Config, Event, Message, Observed, RuntimeEvent, Stage, SystemAction};
use cnova_shared::envelope::seal;
use cnova_shared::ids::{Digest, SitePath};
use cnova_shared::report::StreamOp;
use cnova_shared::time::Now;
use cnova_shared::topics::Kind;
use cnova_shared::trust::TrustOp;
use cnova_shared::wire::v1::{self, Body, WorkloadState};
use support::{EPOCH_S, HUB, claims, hub_key, node, workload, workload_id};

pub const ME: &str = "plc-1";

/// An agent with a store that survives it, and a clock.
pub struct Rig {
    pub agent: Agent,
    pub stored: Stored,
    pub now: Now,
    /// Codes of the alarms in the last hello.
    pub hello_alarms: Vec<String>,
    /// The key for secrets in it.
    pub hello_box_key: Option<Vec<u8>>,
    /// What was started.
    pub launches: Vec<cnova_agent_core::Launch>,
}

pub fn config() -> Config {
    let wasm = v1::RuntimeCapability {
        name: "wasm".into(),
        version: "1".into(),
        engine: "e".into(),
        targets: vec!["t".into()],
    };
    Config {
        node: node(ME),
        site: SitePath::new("plant-7/plc-1").unwrap(),
        parent: node(HUB),
        labels: BTreeMap::new(),
        capabilities: v1::Capabilities {
            runtimes: vec![wasm],
            memory_bytes: 1 << 30,
            cpu_millis: 1000,
            ..Default::default()
        },
        software: "test".into(),
        boot: "boot-1".into(),
        trust: support::trust(),
        power: (v1::PowerLevel::Mains, String::new()),
        root: cnova_agent_core::standing::Root::default(),
        alarms: Vec::new(),
        key: cnova_shared::keys::Signer::public_key(&cnova_shared::keys::SoftKey::ed25519_from_seed(&[9; 32])).clone(),
        renew_s: None,
        box_key: Err("this rig has none".into()),
        slots: Err("this rig has no slots".into()),
    }
}

/// What a parent says to a hello that it knows.
#[must_use]
pub fn first_ack() -> v1::Ack {
    v1::Ack {
        v: 1,
        stream: v1::Stream::Report,
        incarnation: 0,
        seq: 0,
        hello: Some("boot-1".into()),
        away_s: 0,
    }
}

impl Rig {
    pub fn boot(stored: Stored, artifacts: &[&str], found: Vec<Observed>) -> (Self, Vec<String>) {
        Self::boot_as(config(), stored, artifacts, found)
    }

    pub fn boot_as(config: Config, stored: Stored, artifacts: &[&str], found: Vec<Observed>) -> (Self, Vec<String>) {
        let now = Now {
            mono_ms: 1000,
            wall_ms: EPOCH_S * 1000,
        };
        let artifacts: BTreeSet<Digest> = artifacts.iter().map(|a| Digest::of(a.as_bytes())).collect();
        let agent = Agent::boot(config, stored.clone(), artifacts, BTreeMap::new(), found, now);
        let mut rig = Self {
            agent,
            stored,
            now,
            hello_alarms: Vec::new(),
            hello_box_key: None,
            launches: Vec::new(),
        };
        let actions = rig.perform();
        (rig, actions)
    }

    /// An agent that is connected, welcomed, and has these artifacts.
    pub fn welcomed(artifacts: &[&str]) -> Self {
        let (mut rig, _) = Self::boot(Stored::default(), artifacts, Vec::new());
        assert_eq!(rig.take(Event::Connected), ["send hello 0.0"]);
        let ack = first_ack();
        assert_eq!(rig.message(Kind::Ack, &ack), ["welcomed"]);
        rig
    }

    pub fn take(&mut self, event: Event) -> Vec<String> {
        self.agent.handle(event, self.now);
        self.perform()
    }

    pub fn message<T: serde::Serialize>(&mut self, kind: Kind, value: &T) -> Vec<String> {
        let bytes = seal(kind, &claims(HUB, ME), value, &[], &hub_key()).unwrap();
        self.take(Event::Message { kind, bytes })
    }

    pub fn twin(&mut self, generation: u64, workloads: &[v1::Workload]) -> Vec<String> {
        self.message(Kind::Twin, &support::twin(ME, generation, workloads.to_vec()))
    }

    /// A twin whose artifacts come at once.
    pub fn twin_with(&mut self, generation: u64, workloads: &[v1::Workload]) -> Vec<String> {
        let mut actions = self.twin(generation, workloads);
        for w in workloads {
            actions.extend(self.take(Event::ArtifactStored(w.artifact.digest)));
        }
        actions
    }

    pub fn runtime(&mut self, attempt: u32, event: RuntimeEvent) -> Vec<String> {
        self.take(Event::Runtime {
            id: workload_id("app/a"),
            attempt,
            event,
        })
    }

    pub fn started(&mut self, attempt: u32) -> Vec<String> {
        self.runtime(attempt, RuntimeEvent::Started { pid: 40 + attempt })
    }

    pub fn exited(&mut self, attempt: u32, ok: bool, detail: &str) -> Vec<String> {
        self.runtime(
            attempt,
            RuntimeEvent::Exited {
                ok,
                detail: detail.into(),
            },
        )
    }

    /// Whether the store holds this entry, and it is not over.
    pub fn says(&self, key: &str) -> bool {
        self.stored
            .stream
            .entries
            .iter()
            .any(|e| e.key == key && e.body != Body::Over)
    }

    pub fn wait(&mut self, ms: u64) -> Vec<String> {
        self.now.mono_ms += ms;
        self.now.wall_ms += ms;
        self.take(Event::Tick)
    }

    /// Performs all actions: what is sent or started must be on disk by then, whatever the test is about.
    pub fn perform(&mut self) -> Vec<String> {
        let mut done = Vec::new();
        while let Some(action) = self.agent.poll_action() {
            match &action {
                Action::Persist(ops) => self.stored.apply(ops),
                Action::Send(Message::Hello(h)) => {
                    self.hello_alarms = h.alarms.iter().map(|a| a.code.clone()).collect();
                    self.hello_box_key = h.box_key.as_ref().map(|k| k.to_vec());
                }
                Action::Start(launch) => {
                    let row = self
                        .stored
                        .instances
                        .iter()
                        .find(|r| r.id == launch.workload.id)
                        .unwrap();
                    assert_eq!(
                        (row.attempt, row.spec, row.phase),
                        (launch.attempt, launch.spec, Phase::Active)
                    );
                    assert!(self.stored.twin.is_some());
                    self.launches.push((**launch).clone());
                }
                Action::Send(Message::Report(report)) => {
                    for entry in &report.entries {
                        assert!(self.stored.stream.entries.contains(entry), "{entry:?} is not on disk");
                    }
                }
                Action::Send(Message::ChunkRequest(_)) => assert!(self.stored.twin.is_some()),
                Action::System(SystemAction::Start { .. }) => {
                    let row = self.stored.system.as_deref().unwrap();
                    assert_eq!(
                        row.phase,
                        cnova_agent_core::system::Phase::Rebooting,
                        "started before it was on disk"
                    );
                }
                Action::System(SystemAction::Open { .. } | SystemAction::Write { .. }) => {
                    assert!(
                        self.stored.system.as_deref().unwrap().header.is_some(),
                        "written before it was on disk"
                    );
                }
                _ => {}
            }
            // What the agent was flashed with is said at every start.
            if !matches!(&action, Action::TrustChanged(view) if view.version == 1) {
                done.push(brief(&action));
            }
        }
        done
    }

    pub fn report_of(&self, id: &str) -> v1::WorkloadReport {
        self.agent
            .workloads()
            .into_iter()
            .find(|w| w.id.to_string() == id)
            .unwrap()
    }

    pub fn refusal(&self) -> (String, u64) {
        let refused = |e: &v1::Entry| match &e.body {
            Body::Refused { code, generation, .. } => Some((e.seq, code.clone(), *generation)),
            _ => None,
        };
        let newest = self.stored.stream.entries.iter().filter_map(refused).max().unwrap();
        (newest.1, newest.2)
    }
}

pub fn name_of(digest: &Digest) -> String {
    let names = ["one", "two", "three", "artifact"];
    names
        .iter()
        .find(|n| Digest::of(n.as_bytes()) == *digest)
        .map_or_else(|| digest.short(), |n| (*n).to_owned())
}

pub fn brief_op(op: &Op) -> String {
    match op {
        Op::PutTwin(_) => "twin".into(),
        Op::TimeFloor(_) => "time".into(),
        Op::PutInstance(r) => format!("{}#{} {:?}", r.id, r.attempt, r.phase),
        Op::DeleteInstance(id) => format!("no {id}"),
        Op::Counter(value) => format!("counter {value}"),
        Op::PutEar(_) => "ear".into(),
        Op::PutParentEar(_) => "parent ear".into(),
        Op::PutDelegatedEar { of_parent, .. } => format!("delegated ear{}", if *of_parent { " of parent" } else { "" }),
        Op::Floor { epoch, generation } => format!("floor {epoch}.{generation}"),
        Op::Trust(op) => match op {
            TrustOp::PutBundle { version, .. } => format!("bundle {version}"),
            TrustOp::PutRevocations(_) => "revocations".into(),
            TrustOp::PutDelegation { gateway, .. } => format!("delegation {gateway}"),
            TrustOp::PutDocument { kind, .. } => kind.as_str().into(),
        },
        Op::PutSystem(row) => format!("system {:?}", row.phase),
        Op::DropSystem => "no system".into(),
        Op::Stream(StreamOp::Put(e)) => format!("say {}", e.key),
        Op::Stream(StreamOp::Delete(key)) => format!("unsay {key}"),
        Op::Stream(StreamOp::Acked(p)) => format!("acked {}", p.seq),
    }
}

pub fn brief(action: &Action) -> String {
    match action {
        Action::Persist(ops) => format!("persist [{}]", ops.iter().map(brief_op).collect::<Vec<_>>().join(", ")),
        Action::Send(Message::Hello(h)) => format!("send hello {}.{}", h.epoch, h.generation),
        Action::Send(Message::Report(r)) => format!("send report {}..{}", r.from, r.to),
        Action::Send(Message::ChunkRequest(r)) => format!("send want {} {}+{}", name_of(&r.digest), r.offset, r.length),
        Action::Send(Message::Reply(r)) => format!("send reply {}", r.id),
        Action::Send(Message::Enrol(_)) => "send enrol".to_owned(),
        Action::Install(issued) => format!("install {}", issued.renew_s),
        Action::AppendChunk {
            digest,
            offset,
            data,
            complete,
        } => {
            format!("append {} {offset}+{} complete {complete}", name_of(digest), data.len())
        }
        Action::CheckProvenance(c) => format!("check {} accepted {}", c.workload.id, c.was_accepted),
        Action::Start(l) => format!("start {}#{} of {}", l.workload.id, l.attempt, l.version),
        Action::Stop { id, attempt, grace_ms } => format!("stop {id}#{attempt} {grace_ms}"),
        Action::Answer { id, attempt, .. } => format!("answer {id} {attempt:?}"),
        Action::CountUp => "count up".into(),
        Action::OpenLedgerKey(boots) => format!("open the ledger key under {} boots", boots.approved.len()),
        Action::Attest { verifier, .. } => format!("attest to {verifier}"),
        Action::TrustChanged(view) => format!("trust {}", view.version),
        Action::System(action) => match action {
            SystemAction::Open { .. } => "slot open".into(),
            SystemAction::Write { offset, data, .. } => format!("slot write {offset}+{}", data.len()),
            SystemAction::Verify { .. } => "slot verify".into(),
            SystemAction::Start { tries, is_older, .. } => format!("slot start {tries} older {is_older}"),
            SystemAction::Confirm => "slot confirm".into(),
            SystemAction::Discard => "slot discard".into(),
            SystemAction::Restart => "restart".into(),
            SystemAction::Look => "slot look".into(),
        },
        Action::KeepArtifacts(keep) => format!("keep [{}]", keep.iter().map(name_of).collect::<Vec<_>>().join(", ")),
        Action::Stage(Stage::Accepted(v)) => format!("accepted {v}"),
        Action::Stage(Stage::Refused(why)) => format!("refused {}", why.split(':').next().unwrap()),
        Action::Stage(Stage::Workload(id, state, _)) => format!("{id} is {state:?}"),
        Action::Stage(Stage::Welcomed) => "welcomed".into(),
        Action::Stage(Stage::Note(_)) => "note".into(),
    }
}

pub fn stopped_or_started(actions: &[String]) -> Vec<&String> {
    actions
        .iter()
        .filter(|a| a.starts_with("start") || a.starts_with("stop"))
        .collect()
}

pub fn a(artifact: &str) -> v1::Workload {
    workload("app/a", artifact)
}

pub fn chunk(artifact: &str) -> v1::Chunk {
    let digest = Digest::of(artifact.as_bytes());
    v1::Chunk {
        v: 1,
        digest,
        offset: 0,
        total: 1000,
        data: vec![0; 1000],
        missing: None,
    }
}

/// A rig in which attempt 1 of `app/a` runs, made from artifact `one`.
pub fn running() -> Rig {
    let mut rig = Rig::welcomed(&["one"]);
    rig.twin(1, &[a("one")]);
    rig.started(1);
    assert_eq!(rig.report_of("app/a").state, WorkloadState::Running);
    rig
}
