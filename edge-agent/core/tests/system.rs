//! The operating system by twin: from the header to the confirmed slot, and every way back.

#![allow(clippy::unwrap_used)]

mod rig;

use std::collections::{BTreeMap, BTreeSet};

use cnova_agent_core::ledger::Stored;
use cnova_agent_core::system::{AGAIN_MS, LOOK_MS, OtherSlot, Phase, Running, SETTLE_MS, SETTLING_MS, STEADY_MS};
use cnova_agent_core::workload::GOOD_AFTER_MS;
use cnova_agent_core::{Config, Event, RuntimeEvent, SystemEvent};
use cnova_shared::ids::{Digest, Name};
use cnova_shared::system_bundle::{self, Header, Part, PartKind};
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1::{self, System, SystemHealth, SystemState};
use rig::support::EPOCH_S;
use rig::{ME, Rig, a};

const CHUNK: usize = 256 * 1024;
const SIZE: usize = 600_000;

fn header(version: &str) -> Header {
    let part = |kind, offset: u64, size: u64| Part {
        kind,
        offset,
        size,
        digest: Digest::of(b"part"),
    };
    Header {
        v: system_bundle::VERSION,
        compatible: "board-1".into(),
        version: version.into(),
        root_hash: Digest::of(version.as_bytes()),
        parts: vec![
            part(PartKind::Root, 4096, 409_600),
            part(PartKind::Boot, 413_696, SIZE as u64 - 413_696),
        ],
        measured: BTreeMap::from([(11, BTreeSet::from([Digest::of(b"eleven")]))]),
        loads: Vec::new(),
    }
}

fn bytes_of(header: &Header) -> Vec<u8> {
    let mut bytes = header.to_bytes().unwrap();
    bytes.resize(SIZE, 7);
    bytes
}

fn wanted(header: &Header) -> System {
    System {
        name: Name::new("os").unwrap(),
        generation: 1,
        bundle: v1::Artifact {
            digest: Digest::of(&bytes_of(header)),
            size: SIZE as u64,
        },
        header: Digest::of(&header.to_bytes().unwrap()),
        version: header.version.clone(),
        attempt: 1,
        tries: 3,
        downgrade: false,
        window: None,
        health: SystemHealth {
            within_s: 300,
            workloads: Vec::new(),
            parent: false,
        },
    }
}

fn running(version: &str, boot: &str, other: OtherSlot) -> Running {
    Running {
        compatible: "board-1".into(),
        version: version.into(),
        slot: if version == "1.0" { "a" } else { "b" }.into(),
        root_hash: Digest::of(version.as_bytes()),
        machine_boot: boot.into(),
        other,
        is_counted: false,
    }
}

fn config(running: Running) -> Config {
    Config {
        slots: Ok(running),
        ..rig::config()
    }
}

fn booted(stored: Stored, running: Running) -> (Rig, Vec<String>) {
    Rig::boot_as(config(running), stored, &["one"], Vec::new())
}

/// Connected to its parent, and known to it.
fn welcome(rig: &mut Rig) {
    rig.take(Event::Connected);
    let ack = rig::first_ack();
    rig.message(Kind::Ack, &ack);
}

fn ask(rig: &mut Rig, generation: u64, system: Option<System>) -> Vec<String> {
    asks_for(rig, generation, a("one"), system)
}

fn asks_for(rig: &mut Rig, generation: u64, workload: v1::Workload, system: Option<System>) -> Vec<String> {
    let mut twin = rig::support::twin(ME, generation, vec![workload]);
    twin.system = system.map(Box::new);
    rig.message(Kind::Twin, &twin)
}

fn chunk(rig: &mut Rig, bundle: &[u8], offset: usize) -> Vec<String> {
    let end = (offset + CHUNK).min(bundle.len());
    let chunk = v1::Chunk {
        v: 1,
        digest: Digest::of(bundle),
        offset: offset as u64,
        total: bundle.len() as u64,
        data: bundle[offset..end].to_vec(),
        missing: None,
    };
    rig.message(Kind::Chunk, &chunk)
}

fn open(rig: &mut Rig, bundle: &[u8], have: u64) -> Vec<String> {
    let bundle = Digest::of(bundle);
    rig.take(Event::System(SystemEvent::Opened { bundle, have }))
}

fn verified(rig: &mut Rig, bundle: &[u8], result: Result<(), String>) -> Vec<String> {
    let bundle = Digest::of(bundle);
    rig.take(Event::System(SystemEvent::Verified { bundle, result }))
}

fn phase(rig: &Rig) -> Option<Phase> {
    rig.stored.system.as_ref().map(|r| r.phase)
}

fn about_slots(actions: &[String]) -> Vec<&str> {
    let is_one = |a: &&String| a.starts_with("slot") || *a == "restart";
    actions.iter().filter(is_one).map(String::as_str).collect()
}

/// Version 1.0 runs with one workload; nothing else was asked for.
fn at_work() -> Rig {
    let (mut rig, _) = booted(Stored::default(), running("1.0", "m1", OtherSlot::None));
    welcome(&mut rig);
    ask(&mut rig, 1, None);
    rig.started(1);
    healthy(&mut rig, 1);
    rig
}

fn healthy(rig: &mut Rig, attempt: u32) {
    let detail = String::new();
    rig.runtime(attempt, RuntimeEvent::Health { healthy: true, detail });
}

/// What was started last is up.
fn started(rig: &mut Rig) -> Vec<String> {
    let attempt = rig.stored.instances[0].attempt;
    rig.started(attempt)
}

fn power(rig: &mut Rig, level: v1::PowerLevel) -> Vec<String> {
    let why = "3 %".into();
    rig.take(Event::Power { level, why })
}

fn no_slots(stored: Stored) -> Rig {
    Rig::boot_as(rig::config(), stored, &["one"], Vec::new()).0
}

/// The bundle is whole in the other slot; what was asked for last.
fn staged(rig: &mut Rig, system: &System, header: &Header) -> Vec<String> {
    ask(rig, 2, Some(system.clone()));
    written(rig, header)
}

/// The bundle that was asked for comes, and is found whole.
fn written(rig: &mut Rig, header: &Header) -> Vec<String> {
    let bundle = bytes_of(header);
    chunk(rig, &bundle, 0);
    open(rig, &bundle, 0);
    for offset in [0, CHUNK, 2 * CHUNK] {
        chunk(rig, &bundle, offset);
    }
    verified(rig, &bundle, Ok(()))
}

fn write_to_the_end(system: &System, header: &Header) -> (Rig, Vec<String>) {
    let mut rig = at_work();
    let actions = staged(&mut rig, system, header);
    (rig, actions)
}

#[test]
fn a_bundle_is_judged_by_its_header_written_read_back_and_started() {
    let header = header("2.0");
    let bundle = bytes_of(&header);
    let mut rig = at_work();
    let actions = ask(&mut rig, 2, Some(wanted(&header)));
    let want = format!("send want {} 0+{CHUNK}", Digest::of(&bundle).short());
    assert!(actions.contains(&want), "{actions:?}");
    assert!(
        about_slots(&actions).is_empty(),
        "nothing is touched before its header was read"
    );
    let actions = chunk(&mut rig, &bundle, 0);
    assert_eq!(about_slots(&actions), ["slot open"]);
    let persisted = actions.iter().position(|a| a.contains("system Writing")).unwrap();
    assert!(persisted < actions.iter().position(|a| a == "slot open").unwrap());
    open(&mut rig, &bundle, 0);
    assert_eq!(
        about_slots(&chunk(&mut rig, &bundle, 0)),
        [format!("slot write 0+{CHUNK}")]
    );
    assert_eq!(rig.agent.system().state, SystemState::Writing);
    assert_eq!(rig.agent.system().percent, 40);
    chunk(&mut rig, &bundle, CHUNK);
    let last = SIZE - 2 * CHUNK;
    let expected = [format!("slot write {}+{last}", 2 * CHUNK), "slot verify".into()];
    assert_eq!(about_slots(&chunk(&mut rig, &bundle, 2 * CHUNK)), expected);
    assert_eq!(rig.agent.system().state, SystemState::Verifying);
    let actions = verified(&mut rig, &bundle, Ok(()));
    assert_eq!(about_slots(&actions), ["slot start 3 older false"]);
    assert_eq!(phase(&rig), Some(Phase::Rebooting));
    let row = rig.stored.system.clone().unwrap();
    assert_eq!((row.machine_boot.as_str(), row.ran.len()), ("m1", 1));
    // What runs, runs on until then.
    assert_eq!(rig.report_of("app/a").state, v1::WorkloadState::Running);
}

#[test]
fn it_is_good_when_what_ran_before_runs_again_for_a_while() {
    let header = header("2.0");
    let (rig, _) = write_to_the_end(&wanted(&header), &header);
    let (mut rig, _) = booted(rig.stored, running("2.0", "m2", OtherSlot::Tried));
    assert_eq!(phase(&rig), Some(Phase::Trial));
    assert_eq!(rig.agent.system_verdict(), None);
    assert!(
        rig.agent.system().reason.contains("app/a"),
        "{}",
        rig.agent.system().reason
    );
    let attempt = rig.stored.instances[0].attempt;
    rig.started(attempt);
    assert_eq!(about_slots(&rig.wait(STEADY_MS - 1)), [""; 0]);
    let actions = rig.wait(1);
    assert_eq!(about_slots(&actions), ["slot confirm"]);
    assert_eq!(phase(&rig), Some(Phase::Confirmed));
    assert_eq!(rig.agent.system_verdict(), Some(true));
    // It is asked for, and runs: nothing more is done, at any later start either.
    let (rig, actions) = booted(rig.stored, running("2.0", "m3", OtherSlot::Tried));
    assert_eq!(
        about_slots(&actions),
        ["slot confirm"],
        "the power may have been cut before"
    );
    assert_eq!(rig.agent.system().state, SystemState::Confirmed);
}

#[test]
fn one_that_does_not_become_healthy_is_given_up_and_never_tried_again() {
    let header = header("2.0");
    let system = wanted(&header);
    let (rig, _) = write_to_the_end(&system, &header);
    let (mut rig, _) = booted(rig.stored, running("2.0", "m2", OtherSlot::Tried));
    let attempt = rig.stored.instances[0].attempt;
    rig.runtime(
        attempt,
        RuntimeEvent::Exited {
            ok: false,
            detail: "no such runtime".into(),
        },
    );
    let actions = rig.wait(300_000);
    assert_eq!(about_slots(&actions), ["restart"]);
    assert_eq!(rig.agent.system_verdict(), Some(false));
    assert!(about_slots(&rig.wait(1000)).is_empty(), "once is enough");
    // The loader has counted, and the version before runs: it knows why.
    let (mut rig, actions) = booted(rig.stored, running("1.0", "m5", OtherSlot::Tried));
    assert_eq!(about_slots(&actions), ["slot discard"]);
    let said = rig.agent.system();
    assert_eq!(said.state, SystemState::RolledBack);
    assert!(
        said.reason.contains("app/a") && said.reason.contains("went back to version 1.0 in slot a"),
        "{}",
        said.reason
    );
    // The same bundle is not begun again, by whichever twin, until another attempt is asked for.
    welcome(&mut rig);
    assert!(
        about_slots(&ask(
            &mut rig,
            3,
            Some(System {
                generation: 2,
                ..system.clone()
            })
        ))
        .is_empty()
    );
    ask(&mut rig, 4, Some(System { attempt: 2, ..system }));
    assert_eq!(phase(&rig), Some(Phase::Writing));
}

/// A hub takes a workload away from a node that says that it has no runtime for it any more.
#[test]
fn what_the_twin_lost_since_the_new_system_runs_is_missed() {
    let header = header("2.0");
    let (rig, _) = write_to_the_end(&wanted(&header), &header);
    let (mut rig, _) = booted(rig.stored, running("2.0", "m2", OtherSlot::Tried));
    welcome(&mut rig);
    let mut twin = rig::support::twin(ME, 3, Vec::new());
    twin.system = Some(Box::new(wanted(&header)));
    let actions = rig.message(Kind::Twin, &twin);
    assert!(about_slots(&actions).is_empty(), "{actions:?}");
    assert_eq!(about_slots(&rig.wait(STEADY_MS)), [""; 0]);
    assert_eq!(phase(&rig), Some(Phase::Trial));
    assert_eq!(about_slots(&rig.wait(300_000)), ["restart"]);
    assert!(
        rig.agent.system().reason.contains("app/a is not in the twin"),
        "{}",
        rig.agent.system().reason
    );
}

#[test]
fn one_that_never_reaches_its_agent_is_told_by_the_one_before() {
    let header = header("2.0");
    let (rig, _) = write_to_the_end(&wanted(&header), &header);
    let (rig, _) = booted(rig.stored, running("1.0", "m5", OtherSlot::Tried));
    let said = rig.agent.system();
    assert_eq!(said.state, SystemState::RolledBack);
    assert!(
        said.reason.contains("did not come as far as its agent in 3 tries"),
        "{}",
        said.reason
    );
}

#[test]
fn a_power_cut_before_the_loader_was_told_changes_nothing() {
    let header = header("2.0");
    let (rig, _) = write_to_the_end(&wanted(&header), &header);
    assert_eq!(phase(&rig), Some(Phase::Rebooting));
    let (mut rig, actions) = booted(rig.stored, running("1.0", "m2", OtherSlot::None));
    // It is still in the slot, and started once everything runs again.
    assert!(about_slots(&actions).is_empty(), "{actions:?}");
    started(&mut rig);
    assert_eq!(about_slots(&rig.wait(SETTLING_MS)), ["slot start 3 older false"]);
    // The agent alone was started anew: it goes on with what it was at.
    let (_, actions) = booted(rig.stored, running("1.0", "m2", OtherSlot::None));
    assert_eq!(about_slots(&actions), ["slot start 3 older false"]);
}

#[test]
fn a_power_cut_while_it_is_written_goes_on_where_it_was() {
    let header = header("2.0");
    let bundle = bytes_of(&header);
    let mut rig = at_work();
    ask(&mut rig, 2, Some(wanted(&header)));
    chunk(&mut rig, &bundle, 0);
    open(&mut rig, &bundle, 0);
    chunk(&mut rig, &bundle, 0);
    let (mut rig, actions) = booted(rig.stored, running("1.0", "m2", OtherSlot::None));
    assert_eq!(
        about_slots(&actions),
        ["slot open"],
        "without its header being fetched again"
    );
    rig.take(Event::Connected);
    let actions = open(&mut rig, &bundle, 4096);
    let want = format!("send want {} 4096+{CHUNK}", Digest::of(&bundle).short());
    assert!(actions.contains(&want), "{actions:?}");
}

#[test]
fn what_is_not_for_this_machine_is_refused_before_anything_is_touched() {
    let other_board = Header {
        compatible: "board-2".into(),
        ..header("2.0")
    };
    for (header, downgrade, word) in [
        (other_board, false, "for the board board-2, and this one is a board-1"),
        (header("0.9"), false, "version 0.9 is older than 1.0"),
    ] {
        let mut rig = at_work();
        let system = System {
            downgrade,
            ..wanted(&header)
        };
        ask(&mut rig, 2, Some(system));
        let actions = chunk(&mut rig, &bytes_of(&header), 0);
        assert!(about_slots(&actions).is_empty(), "{actions:?}");
        let said = rig.agent.system();
        assert_eq!(said.state, SystemState::Failed);
        assert!(said.reason.contains(word), "{}", said.reason);
    }
    let header = header("0.9");
    let system = System {
        downgrade: true,
        ..wanted(&header)
    };
    let (_, actions) = write_to_the_end(&system, &header);
    assert_eq!(about_slots(&actions), ["slot start 3 older true"]);
}

#[test]
fn a_header_that_the_twin_does_not_name_is_not_read() {
    let header = header("2.0");
    let system = System {
        header: Digest::of(b"another"),
        ..wanted(&header)
    };
    let mut rig = at_work();
    ask(&mut rig, 2, Some(system));
    for _ in 0..3 {
        let actions = chunk(&mut rig, &bytes_of(&header), 0);
        assert!(
            about_slots(&actions).iter().all(|a| *a == "slot discard"),
            "{actions:?}"
        );
    }
    let said = rig.agent.system();
    assert_eq!(said.state, SystemState::Failed);
    assert!(
        said.reason.contains("the twin says") && said.reason.contains("3 times"),
        "{}",
        said.reason
    );
}

#[test]
fn a_flipped_byte_is_fetched_anew_and_then_refused_with_words() {
    let header = header("2.0");
    let bundle = bytes_of(&header);
    let mut rig = at_work();
    ask(&mut rig, 2, Some(wanted(&header)));
    chunk(&mut rig, &bundle, 0);
    for round in 1..=3 {
        open(&mut rig, &bundle, 0);
        for offset in [0, CHUNK, 2 * CHUNK] {
            chunk(&mut rig, &bundle, offset);
        }
        let actions = verified(
            &mut rig,
            &bundle,
            Err("the root in slot b has the digest x and not y".into()),
        );
        assert!(about_slots(&actions).contains(&"slot discard"), "{actions:?}");
        if round < 3 {
            assert_eq!(rig.agent.system().state, SystemState::Waiting);
            assert_eq!(about_slots(&rig.wait(60_000)), ["slot open"]);
        }
    }
    let said = rig.agent.system();
    assert_eq!(said.state, SystemState::Failed);
    assert!(
        said.reason.contains("the root in slot b") && said.reason.contains("3 times"),
        "{}",
        said.reason
    );
    assert_eq!(rig.report_of("app/a").state, v1::WorkloadState::Running);
}

#[test]
fn it_waits_for_its_window_and_for_power() {
    let header = header("2.0");
    let window = v1::Schedule {
        // The rig's clock stands at some minute of an hour; the window opens an hour later.
        cron: "0 * * * *".into(),
        zone: "UTC".into(),
        window_seconds: Some(60),
        late_seconds: 0,
    };
    let system = System {
        window: Some(window),
        ..wanted(&header)
    };
    let (mut rig, actions) = write_to_the_end(&system, &header);
    if EPOCH_S % 3600 >= 60 {
        assert!(about_slots(&actions).is_empty(), "{actions:?}");
        assert!(
            rig.agent.system().reason.contains("window: it opens"),
            "{}",
            rig.agent.system().reason
        );
    }
    rig.take(Event::Power {
        level: v1::PowerLevel::Low,
        why: "3 %".into(),
    });
    let to_next_hour = (3600 - EPOCH_S % 3600) * 1000;
    assert!(about_slots(&rig.wait(to_next_hour)).is_empty());
    assert!(
        rig.agent.system().reason.contains("power level low"),
        "{}",
        rig.agent.system().reason
    );
    assert_eq!(rig.agent.system().state, SystemState::Staged);
    rig.take(Event::Power {
        level: v1::PowerLevel::Mains,
        why: String::new(),
    });
    assert_eq!(about_slots(&rig.wait(30_000)), ["slot start 3 older false"]);
}

#[test]
fn what_is_not_asked_for_any_more_is_discarded_and_a_newer_one_takes_its_place() {
    let (first, second) = (header("2.0"), header("3.0"));
    let window = v1::Schedule {
        cron: "0 0 29 2 *".into(),
        zone: "UTC".into(),
        window_seconds: Some(60),
        late_seconds: 0,
    };
    let system = System {
        window: Some(window),
        ..wanted(&first)
    };
    let (mut rig, _) = write_to_the_end(&system, &first);
    assert_eq!(phase(&rig), Some(Phase::Staged));
    let actions = ask(&mut rig, 3, Some(wanted(&second)));
    assert_eq!(about_slots(&actions), ["slot discard"]);
    assert_eq!(rig.agent.system().wanted, "3.0");
    assert_eq!(about_slots(&ask(&mut rig, 4, None)), ["slot discard"]);
    assert_eq!(phase(&rig), None);
    // On trial, nothing else is begun.
    let (rig, _) = write_to_the_end(&wanted(&first), &first);
    let (mut rig, _) = booted(rig.stored, running("2.0", "m2", OtherSlot::Tried));
    welcome(&mut rig);
    ask(&mut rig, 3, Some(wanted(&second)));
    assert_eq!(phase(&rig), Some(Phase::Trial));
}

#[test]
fn what_runs_already_is_not_written_again() {
    let header = header("1.0");
    let mut rig = at_work();
    ask(&mut rig, 2, Some(wanted(&header)));
    let actions = chunk(&mut rig, &bytes_of(&header), 0);
    assert!(about_slots(&actions).is_empty(), "{actions:?}");
    assert_eq!(rig.agent.system().state, SystemState::Confirmed);
}

#[test]
fn a_machine_without_slots_says_why_and_only_when_asked() {
    let (mut rig, _) = Rig::boot(Stored::default(), &["one"], Vec::new());
    welcome(&mut rig);
    ask(&mut rig, 1, None);
    assert!(!rig.says("system"));
    ask(&mut rig, 2, Some(wanted(&header("2.0"))));
    assert!(rig.says("system"));
    let said = rig.agent.system();
    assert_eq!(
        (said.state, said.reason.as_str()),
        (SystemState::Failed, "this rig has no slots")
    );
}

#[test]
fn a_slot_that_cannot_be_written_is_tried_again_and_so_is_a_loader_that_says_no() {
    let header = header("2.0");
    let bundle = bytes_of(&header);
    let mut rig = at_work();
    ask(&mut rig, 2, Some(wanted(&header)));
    chunk(&mut rig, &bundle, 0);
    let not = |why: &str| SystemEvent::NotWritten {
        bundle: Digest::of(&bundle),
        why: why.into(),
    };
    rig.take(Event::System(not("cannot write /dev/vda3: input/output error")));
    assert_eq!(rig.agent.system().state, SystemState::Waiting);
    assert_eq!(about_slots(&rig.wait(60_000)), ["slot open"]);
    let (mut rig, _) = write_to_the_end(&wanted(&header), &header);
    let why = "cannot rename".to_owned();
    let bundle = Digest::of(&bundle);
    rig.take(Event::System(SystemEvent::NotStarted { bundle, why }));
    assert_eq!(phase(&rig), Some(Phase::Staged));
    assert_eq!(about_slots(&rig.wait(60_000)), ["slot start 3 older false"]);
}

#[test]
fn a_boot_part_that_is_damaged_before_its_start_is_fetched_anew() {
    let header = header("2.0");
    let bundle = bytes_of(&header);
    let (mut rig, actions) = write_to_the_end(&wanted(&header), &header);
    assert_eq!(about_slots(&actions), ["slot start 3 older false"]);
    let why = "the boot part in slot b has the digest x".to_owned();
    assert_eq!(about_slots(&verified(&mut rig, &bundle, Err(why))), ["slot discard"]);
    assert_eq!(phase(&rig), Some(Phase::Writing));
    assert_eq!(rig.agent.system().state, SystemState::Waiting);
    assert_eq!(about_slots(&rig.wait(AGAIN_MS)), ["slot open"]);
}

#[test]
fn what_cannot_be_judged_is_not_good() {
    let header = header("2.0");
    let (rig, _) = write_to_the_end(&wanted(&header), &header);
    assert_eq!(rig.agent.system_verdict(), None, "it is on its way");
    // The new system does not say which board it is for, or has no boot files.
    assert_eq!(no_slots(rig.stored.clone()).agent.system_verdict(), Some(false));
    let (rig, _) = booted(rig.stored, running("2.0", "m2", OtherSlot::Tried));
    assert_eq!(phase(&rig), Some(Phase::Trial));
    let mut rig = no_slots(rig.stored);
    started(&mut rig);
    rig.wait(STEADY_MS);
    assert_eq!(rig.agent.system_verdict(), Some(false));
    assert_eq!(phase(&rig), Some(Phase::Trial));
}

#[test]
fn what_another_version_wrote_and_this_one_cannot_read_is_not_good_and_not_written_over() {
    let header = header("2.0");
    let stored = Stored {
        system_unread: true,
        ..at_work().stored
    };
    let on_trial = Running {
        is_counted: true,
        ..running("1.0", "m2", OtherSlot::Tried)
    };
    let (mut rig, _) = booted(stored.clone(), on_trial);
    welcome(&mut rig);
    ask(&mut rig, 2, Some(wanted(&header)));
    assert_eq!(rig.agent.system_verdict(), Some(false));
    assert_eq!(phase(&rig), None);
    let said = rig.agent.system();
    assert!(
        said.state == SystemState::Failed && said.reason.contains("cannot read"),
        "{said:?}"
    );
    // Where the loader has found good what runs, it is begun anew.
    let (mut rig, _) = booted(stored, running("1.0", "m2", OtherSlot::Tried));
    welcome(&mut rig);
    ask(&mut rig, 2, Some(wanted(&header)));
    assert_eq!(rig.agent.system_verdict(), Some(true));
    assert_eq!(phase(&rig), Some(Phase::Writing));
}

#[test]
fn a_machine_that_does_not_start_anew_is_told_again_and_what_runs_then_is_on_trial() {
    let header = header("2.0");
    let (mut rig, _) = write_to_the_end(&wanted(&header), &header);
    let why = "systemctl ended with exit status: 1".to_owned();
    rig.take(Event::System(SystemEvent::NotRestarted { why }));
    assert_eq!(phase(&rig), Some(Phase::Rebooting), "the loader was told");
    assert!(rig.agent.system().reason.contains("systemctl ended with"));
    assert_eq!(about_slots(&rig.wait(AGAIN_MS)), ["slot start 3 older false"]);
    // However it came that it runs: it is not good because of that.
    for before in [Phase::Writing, Phase::Staged, Phase::Rebooting] {
        let mut stored = rig.stored.clone();
        stored.system.as_mut().unwrap().phase = before;
        let (rig, _) = booted(stored, running("2.0", "m2", OtherSlot::Tried));
        assert_eq!(phase(&rig), Some(Phase::Trial), "{before:?}");
        assert_eq!(rig.agent.system_verdict(), None);
        assert_eq!(rig.stored.system.unwrap().ran.len(), 1, "{before:?}");
    }
}

#[test]
fn the_end_of_a_trial_is_told_to_the_machine_until_it_starts_anew() {
    let header = header("2.0");
    let (rig, _) = write_to_the_end(&wanted(&header), &header);
    let (mut rig, _) = booted(rig.stored, running("2.0", "m2", OtherSlot::Tried));
    assert_eq!(about_slots(&rig.wait(300_000)), ["restart"]);
    let why = "no such file".to_owned();
    assert!(about_slots(&rig.take(Event::System(SystemEvent::NotRestarted { why }))).is_empty());
    assert!(about_slots(&rig.wait(AGAIN_MS - 1)).is_empty());
    assert_eq!(about_slots(&rig.wait(1)), ["restart"]);
}

#[test]
fn nothing_is_decided_while_it_is_not_known_what_the_loader_knows() {
    let header = header("2.0");
    let (rig, _) = write_to_the_end(&wanted(&header), &header);
    for (found, expected) in [(OtherSlot::Tried, Phase::RolledBack), (OtherSlot::None, Phase::Staged)] {
        let (mut rig, actions) = booted(rig.stored.clone(), running("1.0", "m5", OtherSlot::Unknown));
        assert_eq!(about_slots(&actions), ["slot look"]);
        let look = |rig: &mut Rig, found| rig.take(Event::System(SystemEvent::OtherSlot(found)));
        assert!(about_slots(&look(&mut rig, OtherSlot::Unknown)).is_empty());
        assert_eq!(phase(&rig), Some(Phase::Rebooting));
        assert!(rig.agent.system().reason.contains("cannot be read now"));
        started(&mut rig);
        assert_eq!(about_slots(&rig.wait(LOOK_MS)), ["slot look"]);
        look(&mut rig, found);
        let then = if expected == Phase::Staged {
            Phase::Rebooting
        } else {
            expected
        };
        assert_eq!(phase(&rig), Some(then), "{found:?}: staged is started at once");
    }
}

#[test]
fn an_older_version_that_the_loader_does_not_try_is_named_again_a_few_times() {
    let header = header("0.9");
    let system = System {
        downgrade: true,
        ..wanted(&header)
    };
    let (mut rig, _) = write_to_the_end(&system, &header);
    for boot in ["m2", "m3"] {
        (rig, _) = booted(rig.stored, running("1.0", boot, OtherSlot::Untried));
        assert_eq!(phase(&rig), Some(Phase::Staged));
        assert!(
            rig.agent.system().reason.contains("coming up"),
            "{:?}",
            rig.agent.system()
        );
        started(&mut rig);
        assert_eq!(about_slots(&rig.wait(SETTLING_MS)), ["slot start 3 older true"]);
    }
    let (rig, _) = booted(rig.stored, running("1.0", "m4", OtherSlot::Untried));
    let said = rig.agent.system();
    assert_eq!(said.state, SystemState::RolledBack);
    assert!(
        said.reason.contains("the loader did not start version 0.9"),
        "{}",
        said.reason
    );
}

#[test]
fn what_must_run_is_not_forgotten_by_a_power_cut() {
    let header = header("2.0");
    let mut rig = at_work();
    power(&mut rig, v1::PowerLevel::Low);
    staged(&mut rig, &wanted(&header), &header);
    assert_eq!(phase(&rig), Some(Phase::Staged));
    // The power is cut while it waits. At the agent's start nothing runs yet.
    let (mut rig, actions) = booted(rig.stored, running("1.0", "m2", OtherSlot::None));
    assert!(about_slots(&actions).is_empty(), "{actions:?}");
    assert!(rig.agent.system().reason.contains("app/a is coming up"));
    let mut late = booted(rig.stored.clone(), running("1.0", "m2", OtherSlot::None)).0;
    started(&mut rig);
    assert_eq!(about_slots(&rig.wait(SETTLING_MS)), ["slot start 3 older false"]);
    // What does not come up is not waited for without end, and must run all the same: it did before.
    assert!(about_slots(&late.wait(SETTLE_MS - 2000)).is_empty());
    assert_eq!(about_slots(&late.wait(SETTLING_MS)), ["slot start 3 older false"]);
    for rig in [rig, late] {
        let ran: Vec<String> = rig.stored.system.unwrap().ran.iter().map(ToString::to_string).collect();
        assert_eq!(ran, ["app/a"]);
    }
}

#[test]
fn another_attempt_while_it_is_written_begins_anew_and_what_is_withdrawn_is_fetched_no_more() {
    let header = header("2.0");
    let bundle = bytes_of(&header);
    let mut rig = at_work();
    ask(&mut rig, 2, Some(wanted(&header)));
    chunk(&mut rig, &bundle, 0);
    open(&mut rig, &bundle, 0);
    chunk(&mut rig, &bundle, 0);
    let again = System {
        attempt: 2,
        ..wanted(&header)
    };
    let actions = ask(&mut rig, 3, Some(again));
    let want = format!("send want {} 0+{CHUNK}", Digest::of(&bundle).short());
    assert!(actions.contains(&want), "{actions:?}");
    assert_eq!(about_slots(&chunk(&mut rig, &bundle, 0)), ["slot open"]);
    open(&mut rig, &bundle, 0);
    assert_eq!(about_slots(&ask(&mut rig, 4, None)), ["slot discard"]);
    let actions = chunk(&mut rig, &bundle, 0);
    assert!(!actions.iter().any(|a| a.starts_with("append")), "{actions:?}");
}

#[test]
fn a_workload_whose_version_before_runs_again_is_as_well_as_it_can_be() {
    let header = header("2.0");
    let (mut rig, _) = Rig::boot_as(
        config(running("1.0", "m1", OtherSlot::None)),
        Stored::default(),
        &["one", "two"],
        Vec::new(),
    );
    welcome(&mut rig);
    ask(&mut rig, 1, None);
    rig.started(1);
    healthy(&mut rig, 1);
    rig.wait(GOOD_AFTER_MS);
    asks_for(&mut rig, 2, a("two"), None);
    rig.take(Event::ArtifactStored(Digest::of(b"two")));
    rig.exited(1, true, "stopped");
    rig.started(2);
    let detail = "port 80 is closed".to_owned();
    rig.runtime(2, RuntimeEvent::Health { healthy: false, detail });
    rig.wait(v1::HEALTHY_WITHIN_MS);
    rig.exited(2, true, "stopped");
    rig.wait(AGAIN_MS);
    started(&mut rig);
    assert!(rig.report_of("app/a").returned, "{:?}", rig.report_of("app/a"));
    asks_for(&mut rig, 3, a("two"), Some(wanted(&header)));
    written(&mut rig, &header);
    assert_eq!(rig.stored.system.as_ref().unwrap().ran.len(), 1);
    let new = config(running("2.0", "m2", OtherSlot::Tried));
    let (mut rig, _) = Rig::boot_as(new, rig.stored, &["one", "two"], Vec::new());
    started(&mut rig);
    assert!(rig.report_of("app/a").returned);
    assert_eq!(about_slots(&rig.wait(STEADY_MS)), ["slot confirm"]);
}

#[test]
fn a_trial_stands_still_while_there_is_no_power_for_what_must_run() {
    let header = header("2.0");
    let mut needy = a("one");
    needy.power = v1::PowerLevel::Mains;
    let (mut rig, _) = booted(Stored::default(), running("1.0", "m1", OtherSlot::None));
    welcome(&mut rig);
    asks_for(&mut rig, 1, needy.clone(), None);
    rig.started(1);
    asks_for(&mut rig, 2, needy, Some(wanted(&header)));
    written(&mut rig, &header);
    let (mut rig, _) = booted(rig.stored, running("2.0", "m2", OtherSlot::Tried));
    power(&mut rig, v1::PowerLevel::Low);
    let attempt = rig.stored.instances[0].attempt;
    rig.exited(attempt, true, "stopped");
    assert!(about_slots(&rig.wait(300_000)).is_empty());
    assert!(rig.agent.system().reason.contains("power"), "{:?}", rig.agent.system());
    assert_eq!(rig.agent.system_verdict(), None);
    power(&mut rig, v1::PowerLevel::Mains);
    started(&mut rig);
    assert_eq!(about_slots(&rig.wait(STEADY_MS)), ["slot confirm"]);
}

#[test]
fn what_has_no_room_fails_and_is_not_tried_without_end() {
    let header = header("2.0");
    let bundle = bytes_of(&header);
    let mut rig = at_work();
    ask(&mut rig, 2, Some(wanted(&header)));
    chunk(&mut rig, &bundle, 0);
    let event = SystemEvent::NoRoom {
        bundle: Digest::of(&bundle),
        why: "the root takes 9 bytes, and /dev/vda3 has room for 8".into(),
    };
    assert_eq!(about_slots(&rig.take(Event::System(event))), ["slot discard"]);
    let said = rig.agent.system();
    assert!(
        said.state == SystemState::Failed && said.reason.contains("room for 8"),
        "{said:?}"
    );
    assert!(about_slots(&rig.wait(AGAIN_MS)).is_empty());
}

/// Everything that is lost when the agent ends in the middle of what it does is done again: after a crash behind each single
/// action the system is confirmed in the end, and never anything else is started than what is whole.
#[test]
fn a_crash_behind_every_action_ends_well() {
    let header = header("2.0");
    let bundle = bytes_of(&header);
    for crash_after in 0..60 {
        let mut machine = Machine::new();
        let mut crashed = false;
        let mut actions = 0;
        for _ in 0..400 {
            if machine.rig.agent.system().state == SystemState::Confirmed {
                break;
            }
            for action in machine.next(&header, &bundle) {
                actions += 1;
                if actions == crash_after && !crashed {
                    crashed = true;
                    machine.crash();
                    break;
                }
                machine.perform(&action, &bundle);
            }
        }
        assert_eq!(
            machine.rig.agent.system().state,
            SystemState::Confirmed,
            "after action {crash_after}"
        );
        assert_eq!(machine.version, "2.0");
    }
}

/// A machine with slots, and the actions of its agent about them.
struct Machine {
    rig: Rig,
    version: &'static str,
    boots: u32,
    written: u64,
    asked: bool,
}

impl Machine {
    fn new() -> Self {
        Self {
            rig: at_work(),
            version: "1.0",
            boots: 1,
            written: 0,
            asked: false,
        }
    }

    fn restart(&mut self) {
        self.boots += 1;
        let other = if self.version == "2.0" {
            OtherSlot::Tried
        } else {
            OtherSlot::None
        };
        let boot = format!("m{}", self.boots);
        let (rig, _) = booted(self.rig.stored.clone(), running(self.version, &boot, other));
        self.rig = rig;
        self.asked = false;
        welcome(&mut self.rig);
    }

    fn crash(&mut self) {
        self.restart();
    }

    /// What the agent does next about its slots: by what comes from its parent, or by time.
    fn next(&mut self, header: &Header, bundle: &[u8]) -> Vec<String> {
        if !self.asked {
            self.asked = true;
            let generation = self.rig.agent.version().generation + 1;
            let actions = ask(&mut self.rig, generation, Some(wanted(header)));
            // A start of the agent may have begun something: it is told by what it persists, and repeated by time.
            let attempt = self.rig.stored.instances[0].attempt;
            self.rig.started(attempt);
            let phase = phase(&self.rig);
            let begun = match phase {
                Some(Phase::Rebooting) => vec!["slot start".to_owned()],
                Some(Phase::Writing) if self.rig.stored.system.as_ref().unwrap().header.is_some() => {
                    vec!["slot open".to_owned()]
                }
                _ => Vec::new(),
            };
            return if begun.is_empty() { only_slots(&actions) } else { begun };
        }
        let offset = usize::try_from(self.written).unwrap();
        let mut actions = Vec::new();
        if phase(&self.rig) == Some(Phase::Writing) {
            let is_known = self.rig.stored.system.as_ref().unwrap().header.is_some();
            actions = chunk(
                &mut self.rig,
                bundle,
                if is_known {
                    offset.min(SIZE - 1) / CHUNK * CHUNK
                } else {
                    0
                },
            );
        }
        actions.extend(self.rig.wait(STEADY_MS));
        only_slots(&actions)
    }

    fn perform(&mut self, action: &str, bundle: &[u8]) {
        let done = match action {
            "slot open" => {
                self.written = self.written / CHUNK as u64 * CHUNK as u64;
                open(&mut self.rig, bundle, self.written)
            }
            "slot verify" => verified(&mut self.rig, bundle, Ok(())),
            a if a.starts_with("slot start") => {
                assert_eq!(self.written, SIZE as u64, "started before it was whole");
                self.version = "2.0";
                self.restart();
                Vec::new()
            }
            a if a.starts_with("slot write") => {
                let (at, length) = a.trim_start_matches("slot write ").split_once('+').unwrap();
                let at: u64 = at.parse().unwrap();
                assert!(at <= self.written, "a gap");
                self.written = self.written.max(at + length.parse::<u64>().unwrap());
                Vec::new()
            }
            _ => Vec::new(),
        };
        for action in only_slots(&done) {
            self.perform(&action, bundle);
        }
    }
}

fn only_slots(actions: &[String]) -> Vec<String> {
    about_slots(actions).into_iter().map(str::to_owned).collect()
}
