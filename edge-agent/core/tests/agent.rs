//! Events in, exact actions out.

#![allow(clippy::unwrap_used)]

#[path = "../../../shared/tests/support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};

use cnova_agent_core::ledger::{Op, Phase, Stored};
use cnova_agent_core::workload::spec_digest;
use cnova_agent_core::{Action, Agent, Config, Event, Message, Observed, ObservedState, RuntimeEvent, Stage};
use cnova_shared::envelope::seal;
use cnova_shared::ids::{Digest, SitePath};
use cnova_shared::report::StreamOp;
use cnova_shared::time::Now;
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1::{self, Body, WorkloadState};
use support::{EPOCH_S, HUB, claims, hub_key, node, workload, workload_id};

const ME: &str = "plc-1";

/// An agent with a store that survives it, and a clock.
struct Rig {
    agent: Agent,
    stored: Stored,
    now: Now,
}

fn config() -> Config {
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
        alarms: Vec::new(),
    }
}

impl Rig {
    fn boot(stored: Stored, artifacts: &[&str], found: Vec<Observed>) -> (Self, Vec<String>) {
        let now = Now {
            mono_ms: 1000,
            wall_ms: EPOCH_S * 1000,
        };
        let artifacts: BTreeSet<Digest> = artifacts.iter().map(|a| Digest::of(a.as_bytes())).collect();
        let agent = Agent::boot(config(), stored.clone(), artifacts, BTreeMap::new(), found, now);
        let mut rig = Self { agent, stored, now };
        let actions = rig.perform();
        (rig, actions)
    }

    /// An agent that is connected, welcomed, and has these artifacts.
    fn welcomed(artifacts: &[&str]) -> Self {
        let (mut rig, _) = Self::boot(Stored::default(), artifacts, Vec::new());
        assert_eq!(rig.take(Event::Connected), ["send hello 0.0"]);
        let ack = v1::Ack {
            v: 1,
            stream: v1::Stream::Report,
            incarnation: 0,
            seq: 0,
            hello: Some("boot-1".into()),
        };
        assert_eq!(rig.message(Kind::Ack, &ack), ["welcomed"]);
        rig
    }

    fn take(&mut self, event: Event) -> Vec<String> {
        self.agent.handle(event, self.now);
        self.perform()
    }

    fn message<T: serde::Serialize>(&mut self, kind: Kind, value: &T) -> Vec<String> {
        let bytes = seal(kind, &claims(HUB, ME), value, &[], &hub_key()).unwrap();
        self.take(Event::Message { kind, bytes })
    }

    fn twin(&mut self, generation: u64, workloads: &[v1::Workload]) -> Vec<String> {
        self.message(Kind::Twin, &support::twin(ME, generation, workloads.to_vec()))
    }

    fn runtime(&mut self, attempt: u32, event: RuntimeEvent) -> Vec<String> {
        self.take(Event::Runtime {
            id: workload_id("app/a"),
            attempt,
            event,
        })
    }

    fn started(&mut self, attempt: u32) -> Vec<String> {
        self.runtime(attempt, RuntimeEvent::Started { pid: 40 + attempt })
    }

    fn exited(&mut self, attempt: u32, ok: bool, detail: &str) -> Vec<String> {
        self.runtime(
            attempt,
            RuntimeEvent::Exited {
                ok,
                detail: detail.into(),
            },
        )
    }

    fn wait(&mut self, ms: u64) -> Vec<String> {
        self.now.mono_ms += ms;
        self.now.wall_ms += ms;
        self.take(Event::Tick)
    }

    /// Performs all actions: what is sent or started must be on disk by then, whatever the test is about.
    fn perform(&mut self) -> Vec<String> {
        let mut done = Vec::new();
        while let Some(action) = self.agent.poll_action() {
            match &action {
                Action::Persist(ops) => self.stored.apply(ops),
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
                }
                Action::Send(Message::Report(report)) => {
                    for entry in &report.entries {
                        assert!(self.stored.stream.entries.contains(entry), "{entry:?} is not on disk");
                    }
                }
                Action::Send(Message::ChunkRequest(_)) => assert!(self.stored.twin.is_some()),
                _ => {}
            }
            done.push(brief(&action));
        }
        done
    }

    fn report_of(&self, id: &str) -> v1::WorkloadReport {
        self.agent
            .workloads()
            .into_iter()
            .find(|w| w.id.to_string() == id)
            .unwrap()
    }

    fn refusal(&self) -> (String, u64) {
        let refused = |e: &v1::Entry| match &e.body {
            Body::Refused { code, generation, .. } => Some((e.seq, code.clone(), *generation)),
            _ => None,
        };
        let newest = self.stored.stream.entries.iter().filter_map(refused).max().unwrap();
        (newest.1, newest.2)
    }
}

fn name_of(digest: &Digest) -> String {
    let names = ["one", "two", "three", "artifact"];
    names
        .iter()
        .find(|n| Digest::of(n.as_bytes()) == *digest)
        .map_or_else(|| digest.short(), |n| (*n).to_owned())
}

fn brief_op(op: &Op) -> String {
    match op {
        Op::PutTwin(_) => "twin".into(),
        Op::TimeFloor(_) => "time".into(),
        Op::PutInstance(r) => format!("{}#{} {:?}", r.id, r.attempt, r.phase),
        Op::DeleteInstance(id) => format!("no {id}"),
        Op::Stream(StreamOp::Put(e)) => format!("say {}", e.key),
        Op::Stream(StreamOp::Delete(key)) => format!("unsay {key}"),
        Op::Stream(StreamOp::Acked(p)) => format!("acked {}", p.seq),
    }
}

fn brief(action: &Action) -> String {
    match action {
        Action::Persist(ops) => format!("persist [{}]", ops.iter().map(brief_op).collect::<Vec<_>>().join(", ")),
        Action::Send(Message::Hello(h)) => format!("send hello {}.{}", h.epoch, h.generation),
        Action::Send(Message::Report(r)) => format!("send report {}..{}", r.from, r.to),
        Action::Send(Message::ChunkRequest(r)) => format!("send want {} {}+{}", name_of(&r.digest), r.offset, r.length),
        Action::Send(Message::Reply(r)) => format!("send reply {}", r.id),
        Action::AppendChunk {
            digest,
            offset,
            data,
            complete,
        } => {
            format!("append {} {offset}+{} complete {complete}", name_of(digest), data.len())
        }
        Action::Start(l) => format!("start {}#{} of {}", l.workload.id, l.attempt, l.version),
        Action::Stop { id, attempt, grace_ms } => format!("stop {id}#{attempt} {grace_ms}"),
        Action::Answer { id, attempt, .. } => format!("answer {id} {attempt:?}"),
        Action::KeepArtifacts(keep) => format!("keep [{}]", keep.iter().map(name_of).collect::<Vec<_>>().join(", ")),
        Action::Stage(Stage::Accepted(v)) => format!("accepted {v}"),
        Action::Stage(Stage::Refused(why)) => format!("refused {}", why.split(':').next().unwrap()),
        Action::Stage(Stage::Workload(id, state, _)) => format!("{id} is {state:?}"),
        Action::Stage(Stage::Welcomed) => "welcomed".into(),
        Action::Stage(Stage::Note(_)) => "note".into(),
    }
}

fn stopped_or_started(actions: &[String]) -> Vec<&String> {
    actions
        .iter()
        .filter(|a| a.starts_with("start") || a.starts_with("stop"))
        .collect()
}

fn a(artifact: &str) -> v1::Workload {
    workload("app/a", artifact)
}

fn chunk(artifact: &str) -> v1::Chunk {
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
fn running() -> Rig {
    let mut rig = Rig::welcomed(&["one"]);
    rig.twin(1, &[a("one")]);
    rig.started(1);
    assert_eq!(rig.report_of("app/a").state, WorkloadState::Running);
    rig
}

#[test]
fn a_fresh_twin_is_on_disk_before_anything_follows_from_it() {
    let mut rig = Rig::welcomed(&[]);
    assert_eq!(
        rig.twin(1, &[a("one")]),
        [
            "persist [twin, say twin, say w/app/a]",
            "accepted 1.1",
            "app/a is Fetching",
            "send want one 0+1000",
            "send report 0..2",
        ]
    );
    assert_eq!(
        rig.message(Kind::Chunk, &chunk("one")),
        ["append one 0+1000 complete true"]
    );
    let digest = Digest::of(b"one");
    assert_eq!(
        rig.take(Event::ArtifactStored(digest)),
        [
            "persist [app/a#1 Active, say w/app/a]",
            "start app/a#1 of 1.1",
            "app/a is Starting",
            "send report 2..3",
        ]
    );
    assert_eq!(
        rig.started(1),
        ["persist [say w/app/a]", "app/a is Running", "send report 3..4"]
    );
}

#[test]
fn a_twin_that_is_not_taken_changes_nothing_but_the_report() {
    let mut rig = running();
    rig.twin(5, &[a("one")]);
    let held = rig.stored.twin.clone();
    let other = support::twin(ME, 6, vec![]);
    let mut changed = support::sign_twin(&other);
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    let rogue = seal(Kind::Twin, &claims(HUB, ME), &other, &[], &support::soft(99)).unwrap();
    let cases = [
        (support::sign_twin(&support::twin(ME, 4, vec![])), "old-generation", 4),
        (support::sign_twin(&support::twin(ME, 5, vec![])), "same-generation", 5),
        (support::sign_twin(&support::twin("plc-2", 6, vec![])), "wrong-node", 6),
        (changed, "bad-signature", 0),
        (rogue, "unknown-key", 0),
        (b"junk".to_vec(), "malformed", 0),
        (support::sign_twin(&v1::Twin { v: 2, ..other }), "unknown-version", 0),
    ];
    for (i, (bytes, code, generation)) in cases.into_iter().enumerate() {
        let actions = rig.take(Event::Message {
            kind: Kind::Twin,
            bytes: bytes.clone(),
        });
        assert_eq!(
            actions[..2],
            [format!("persist [say refused/{i}]"), format!("refused {code}")],
            "{code}"
        );
        assert!(
            actions[2..].iter().all(|a| a.starts_with("send report")),
            "{code}: {actions:?}"
        );
        assert_eq!(rig.refusal(), (code.to_owned(), generation));
        let again = rig.take(Event::Message {
            kind: Kind::Twin,
            bytes,
        });
        assert_eq!(again, [format!("refused {code}")], "the same refusal is said once");
    }
    assert_eq!(rig.stored.twin, held);
    assert_eq!(rig.agent.version().generation, 5);
    assert_eq!(rig.report_of("app/a").state, WorkloadState::Running);
    assert_eq!(
        rig.twin(5, &[a("one")]),
        ["note"],
        "the one in force is neither taken nor refused"
    );
}

#[test]
fn a_replaced_workload_runs_until_its_successor_is_here() {
    let mut rig = running();
    let actions = rig.twin(2, &[a("two")]);
    assert_eq!(actions[1..3], ["accepted 1.2", "send want two 0+1000"]);
    assert!(stopped_or_started(&actions).is_empty(), "{actions:?}");
    let report = rig.report_of("app/a");
    assert_eq!(
        (report.state, report.attempt, report.app_generation),
        (WorkloadState::Running, 1, 0)
    );
    assert!(
        report.reason.contains("the version before runs on"),
        "{}",
        report.reason
    );

    assert!(stopped_or_started(&rig.message(Kind::Chunk, &chunk("two"))).is_empty());
    let actions = rig.take(Event::ArtifactStored(Digest::of(b"two")));
    assert_eq!(
        stopped_or_started(&actions),
        ["stop app/a#1 2000"],
        "asked, not yet gone"
    );
    let actions = rig.exited(1, true, "stopped");
    assert_eq!(stopped_or_started(&actions), ["start app/a#2 of 1.2"]);
    assert!(actions.contains(&"keep [two]".to_owned()), "{actions:?}");
    let forgets = actions.iter().position(|a| a == "keep [two]");
    assert!(
        forgets > actions.iter().position(|a| a.starts_with("persist")),
        "{actions:?}"
    );
}

#[test]
fn a_removed_workload_is_stopped_and_then_gone() {
    let mut rig = running();
    assert_eq!(stopped_or_started(&rig.twin(2, &[])), ["stop app/a#1 2000"]);
    let actions = rig.exited(1, true, "stopped");
    assert!(
        actions[0].contains("no app/a") && actions[0].contains("say w/app/a"),
        "{actions:?}"
    );
    assert!(rig.stored.instances.is_empty() && rig.agent.workloads().is_empty());
    assert!(rig.stored.stream.entries.iter().any(|e| e.body
        == Body::Gone {
            id: workload_id("app/a")
        }));
}

#[test]
fn failures_pause_longer_and_longer_and_end_in_a_crash_loop() {
    let mut rig = running();
    for (attempt, pause) in [(1, 1000), (2, 2000)] {
        let actions = rig.exited(attempt, false, "exit 3");
        assert!(
            actions[0].starts_with(&format!("persist [app/a#{attempt} Backoff")),
            "{actions:?}"
        );
        assert!(stopped_or_started(&actions).is_empty(), "{actions:?}");
        let report = rig.report_of("app/a");
        assert_eq!(
            (report.state, report.reason.as_str()),
            (WorkloadState::Failed, "exit 3")
        );
        assert!(stopped_or_started(&rig.wait(pause - 1)).is_empty(), "too early");
        let next = attempt + 1;
        assert_eq!(
            stopped_or_started(&rig.wait(1)),
            [&format!("start app/a#{next} of 1.1")]
        );
        rig.started(next);
    }
    let actions = rig.exited(3, false, "exit 3");
    assert!(actions[0].starts_with("persist [app/a#3 CrashLoop"), "{actions:?}");
    let report = rig.report_of("app/a");
    assert_eq!(report.state, WorkloadState::CrashLoop);
    assert!(
        report.reason.contains("3 failures in a row") && report.reason.contains("exit 3"),
        "{}",
        report.reason
    );
    assert!(stopped_or_started(&rig.wait(3_600_000)).is_empty(), "it stays so");
    // It stays so over a restart of the agent as well, and a changed twin is another chance.
    let (mut rig, actions) = Rig::boot(rig.stored, &["one", "two"], Vec::new());
    assert!(stopped_or_started(&actions).is_empty());
    assert_eq!(rig.report_of("app/a").state, WorkloadState::CrashLoop);
    assert_eq!(stopped_or_started(&rig.twin(2, &[a("two")])), ["start app/a#4 of 1.2"]);
}

#[test]
fn a_workload_may_end_when_its_policy_says_so() {
    for (policy, ok, state) in [
        (v1::RestartPolicy::Never, true, WorkloadState::Finished),
        (v1::RestartPolicy::Never, false, WorkloadState::Finished),
        (v1::RestartPolicy::OnFailure, true, WorkloadState::Finished),
        (v1::RestartPolicy::OnFailure, false, WorkloadState::Failed),
        (v1::RestartPolicy::Always, true, WorkloadState::Failed),
    ] {
        let mut rig = Rig::welcomed(&["one"]);
        let mut w = a("one");
        w.restart.policy = policy;
        assert_eq!(stopped_or_started(&rig.twin(1, &[w])), ["start app/a#1 of 1.1"]);
        rig.started(1);
        rig.exited(1, ok, "over");
        assert_eq!(rig.report_of("app/a").state, state, "{policy:?} {ok}");
    }
}

fn alive(attempt: u32, w: &v1::Workload) -> Observed {
    let state = ObservedState::Alive { pid: 77 };
    Observed {
        id: w.id.clone(),
        attempt,
        spec: spec_digest(w),
        state,
    }
}

#[test]
fn what_runs_as_desired_is_adopted_and_what_does_not_is_stopped() {
    let stored = running().stored;
    let (rig, actions) = Rig::boot(stored.clone(), &["one"], vec![alive(1, &a("one"))]);
    assert!(stopped_or_started(&actions).is_empty(), "{actions:?}");
    let report = rig.report_of("app/a");
    assert_eq!(
        (report.state, report.pid, report.adopted, report.attempt),
        (WorkloadState::Running, 77, true, 1)
    );

    let (mut rig, actions) = Rig::boot(stored.clone(), &["one"], vec![alive(1, &a("two"))]);
    assert_eq!(
        stopped_or_started(&actions).len(),
        1,
        "another specification: {actions:?}"
    );
    assert!(actions.iter().any(|a| a.starts_with("stop app/a#1")), "{actions:?}");
    assert_eq!(
        stopped_or_started(&rig.exited(1, true, "stopped")),
        ["start app/a#2 of 1.1"]
    );

    let stranger = workload("app/b", "one");
    let (_, actions) = Rig::boot(stored.clone(), &["one"], vec![alive(1, &a("one")), alive(4, &stranger)]);
    assert_eq!(stopped_or_started(&actions), ["stop app/b#4 5000"], "not in the twin");

    let exited = ObservedState::Exited {
        ok: false,
        detail: "exit 9".into(),
    };
    let found = Observed {
        state: exited,
        ..alive(1, &a("one"))
    };
    let (mut rig, actions) = Rig::boot(stored.clone(), &["one"], vec![found]);
    assert!(stopped_or_started(&actions).is_empty(), "it pauses: {actions:?}");
    assert_eq!(rig.report_of("app/a").reason, "exit 9");
    assert_eq!(stopped_or_started(&rig.wait(1000)), ["start app/a#2 of 1.1"]);

    let found = Observed {
        state: ObservedState::MachineRestarted,
        ..alive(1, &a("one"))
    };
    let (_, actions) = Rig::boot(stored, &["one"], vec![found]);
    assert_eq!(
        stopped_or_started(&actions),
        ["start app/a#2 of 1.1"],
        "no failure of its own"
    );
}

#[test]
fn without_a_twin_nothing_is_stopped() {
    let mut damaged = running().stored;
    damaged.twin.as_mut().unwrap()[50] ^= 1;
    for stored in [Stored::default(), damaged] {
        let found = vec![alive(1, &a("one")), alive(3, &workload("app/b", "one"))];
        let (mut rig, mut actions) = Rig::boot(stored, &["one"], found);
        actions.extend(rig.take(Event::Connected));
        actions.extend(rig.wait(1));
        actions.extend(rig.wait(3_600_000));
        assert!(stopped_or_started(&actions).is_empty(), "{actions:?}");
        assert!(
            actions.contains(&"send hello 0.0".to_owned()),
            "the twin is asked for: {actions:?}"
        );
        let actions = rig.twin(1, &[a("one")]);
        assert_eq!(
            stopped_or_started(&actions),
            ["stop app/b#3 5000"],
            "now it is known what is desired"
        );
        assert!(rig.report_of("app/a").adopted);
    }
}

#[test]
fn events_of_an_older_instance_are_ignored() {
    let mut rig = running();
    rig.exited(1, false, "exit 3");
    rig.wait(1000);
    rig.started(2);
    let before = rig.stored.clone();
    for stale in [
        RuntimeEvent::Started { pid: 1 },
        RuntimeEvent::Exited {
            ok: false,
            detail: "late".into(),
        },
    ] {
        assert_eq!(rig.runtime(1, stale.clone()), [""; 0]);
        assert_eq!(rig.runtime(3, stale), [""; 0], "nor of one that never was");
    }
    assert_eq!(rig.stored, before);
    let report = rig.report_of("app/a");
    assert_eq!(
        (report.state, report.pid, report.attempt),
        (WorkloadState::Running, 42, 2)
    );
    rig.exited(2, false, "exit 3");
    assert_eq!(rig.exited(2, false, "exit 3"), [""; 0], "an end is told once");
}
