//! Appraisal: launch logs that were tampered with in every way, registers that differ, tiers, and what an EAR then says.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use cnova_attestation::appraise::{Appraisal, Issue, LogState, Subject, appraise};
use cnova_attestation::ear::{EarError, Finding, Status, VerifierId, check_ear};
use cnova_attestation::event_log::{Boot, Entry, Event, Launch, Slice, slice};
use cnova_attestation::evidence::Evidence;
use cnova_attestation::quote::verify_evidence;
use cnova_attestation::reference::{PcrReference, ReferenceSet, References, Selector};
use cnova_shared::certificate::Tier;
use cnova_shared::ids::SitePath;
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::wire::{decode, encode};
use serde_bytes::ByteBuf;
use support::{NOW_S, Shown, SoftTpm, digest, node};

const NONCE: [u8; 32] = [3; 32];

fn boot() -> Event {
    Event::Boot(Boot {
        agent: digest("agent"),
        version: "0.1.0".into(),
        boot: "b-1".into(),
        before: None,
    })
}

fn launch(name: &str) -> Launch {
    Launch {
        workload: format!("app/{name}"),
        artifact: digest(name),
        spec: digest("spec"),
        runtime: digest("runtime"),
    }
}

/// A machine that booted and launched three workloads.
fn machine() -> SoftTpm {
    let mut tpm = SoftTpm::new();
    tpm.log_and_extend(boot());
    for name in ["one", "two", "three"] {
        tpm.log_and_extend(Event::Launch(launch(name)));
    }
    tpm
}

fn set(tpm: &SoftTpm) -> ReferenceSet {
    let boot = tpm.pcrs.iter().filter(|(pcr, _)| **pcr != 14);
    let reference = |value: &_| PcrReference {
        values: BTreeSet::from([*value]),
        events: BTreeSet::new(),
    };
    ReferenceSet {
        name: "image-1".into(),
        nodes: Selector {
            site: Some(SitePath::new("plant").unwrap()),
            ..Selector::default()
        },
        pcrs: boot.map(|(pcr, value)| (*pcr, reference(value))).collect(),
        ..ReferenceSet::default()
    }
}

fn references(sets: Vec<ReferenceSet>) -> References {
    References { v: 1, version: 7, sets }
}

fn judge_as(
    tier: Tier,
    tpm: &SoftTpm,
    evidence: &Evidence,
    references: &References,
    state: Option<&LogState>,
) -> Appraisal {
    let (me, site, labels) = (node("plc-1"), SitePath::new("plant/plc-1").unwrap(), BTreeMap::new());
    let verified = verify_evidence(evidence, &me, &NONCE, Some(&tpm.ak_public())).unwrap();
    let subject = Subject {
        node: &me,
        site: &site,
        labels: &labels,
        tier,
        launch_pcr: Some(14),
    };
    appraise(&subject, &verified, references, state)
}

fn judge(tpm: &SoftTpm, log: Slice) -> Appraisal {
    let evidence = tpm.evidence("plc-1", &NONCE, log);
    judge_as(Tier::Tpm, tpm, &evidence, &references(vec![set(tpm)]), None)
}

fn whole(tpm: &SoftTpm) -> Slice {
    slice(&tpm.file, None)
}

fn only(appraisal: &Appraisal) -> &Finding {
    assert_eq!(appraisal.findings.len(), 1, "{:?}", appraisal.findings);
    &appraisal.findings[0]
}

/// The log is refuted, nothing of it is kept, and this event is named.
fn refuted(tpm: &SoftTpm, log: Slice, event: &str) {
    let appraisal = judge(tpm, log);
    assert_eq!(appraisal.status, Status::Contraindicated);
    assert_eq!(appraisal.log, None);
    assert_eq!(appraisal.vector.executables, 96);
    let finding = only(&appraisal);
    assert_eq!((finding.code.as_str(), finding.pcr), ("launch-log", Some(14)));
    assert_eq!(finding.event.as_deref(), Some(event), "{}", finding.detail);
}

#[test]
fn what_booted_and_launched_as_it_should_is_affirmed() {
    let tpm = machine();
    let appraisal = judge(&tpm, whole(&tpm));
    assert_eq!(
        (appraisal.status, &appraisal.findings),
        (Status::Affirming, &Vec::new())
    );
    assert!(appraisal.boot_measured && !appraisal.incomplete);
    assert_eq!(appraisal.policy, "image-1 (references 7)");
    let log = appraisal.log.unwrap();
    let names: Vec<_> = log
        .launched
        .iter()
        .map(|l| (l.seq, l.launch.workload.as_str()))
        .collect();
    assert_eq!(names, [(1, "app/one"), (2, "app/two"), (3, "app/three")]);
    assert_eq!((log.proven, log.count, log.pcr), (4, 4, tpm.log.pcr()));
    let v = appraisal.vector;
    assert_eq!(
        (v.instance_identity, v.configuration, v.executables, v.hardware),
        (2, 2, 3, 2)
    );
}

#[test]
fn one_pending_entry_is_allowed_and_two_are_not() {
    let mut tpm = machine();
    let fourth = tpm.log_only(Event::Launch(launch("four")));
    let appraisal = judge(&tpm, whole(&tpm));
    assert_eq!(appraisal.status, Status::Affirming);
    assert_eq!(appraisal.pending, Some(Event::Launch(launch("four"))));
    assert_eq!(
        appraisal.log.as_ref().unwrap().proven,
        4,
        "what is pending is not proven"
    );
    tpm.log_only(Event::Launch(launch("five")));
    refuted(&tpm, whole(&tpm), "entry 4");
    tpm.extend(&fourth);
    assert_eq!(judge(&tpm, whole(&tpm)).status, Status::Affirming);
}

#[test]
fn a_boot_that_is_only_logged_is_pending() {
    let mut tpm = SoftTpm::new();
    tpm.log_only(boot());
    let appraisal = judge(&tpm, whole(&tpm));
    assert_eq!((appraisal.status, appraisal.log), (Status::Affirming, None));
    assert_eq!(appraisal.pending, Some(boot()));
}

#[test]
fn a_truncated_log_is_refuted() {
    let tpm = machine();
    let mut log = whole(&tpm);
    log.entries.pop();
    log.total -= 1;
    refuted(&tpm, log.clone(), "one of entries 0 to 2");
    log.entries.clear();
    log.total = 0;
    let appraisal = judge(&tpm, log);
    assert_eq!(appraisal.status, Status::Contraindicated);
    assert!(only(&appraisal).detail.contains("no launch log was shown"));
}

#[test]
fn a_log_without_its_beginning_is_refuted() {
    let tpm = machine();
    let mut log = whole(&tpm);
    log.entries.remove(0);
    log.from = 1;
    let appraisal = judge(&tpm, log);
    assert_eq!(
        (appraisal.status, appraisal.log.clone()),
        (Status::Contraindicated, None)
    );
    let mut log = whole(&tpm);
    log.entries.remove(1);
    log.total -= 1;
    refuted(&tpm, log, "entry 1");
}

#[test]
fn a_reordered_log_is_refuted() {
    let tpm = machine();
    let mut log = whole(&tpm);
    log.entries.swap(1, 2);
    refuted(&tpm, log, "entry 1");
    // Numbered anew, so that only the register knows.
    let mut log = whole(&tpm);
    log.entries.swap(1, 2);
    for (seq, bytes) in (0..).zip(&mut log.entries) {
        let entry: Entry = decode(bytes).unwrap();
        *bytes = ByteBuf::from(encode(&Entry { seq, ..entry }).unwrap());
    }
    refuted(&tpm, log, "one of entries 0 to 3");
}

#[test]
fn one_changed_entry_is_refuted_and_named_where_it_can_be() {
    let tpm = machine();
    let replaced = |seq: u64| {
        let mut log = whole(&tpm);
        let event = Event::Launch(launch("harmless"));
        let at = usize::try_from(seq).unwrap();
        log.entries[at] = ByteBuf::from(encode(&Entry { seq, event }).unwrap());
        log
    };
    refuted(&tpm, replaced(1), "one of entries 0 to 3");
    refuted(&tpm, replaced(2), "one of entries 0 to 3");
    // What is called the last entry and is another: the register stands one entry further.
    refuted(&tpm, replaced(3), "one of entries 0 to 3");
    let mut garbage = whole(&tpm);
    garbage.entries[2] = ByteBuf::from(vec![0xff; 10]);
    refuted(&tpm, garbage, "entry 2");
    // With the beginning known, what differs is narrowed down to what is new.
    let state = judge(&tpm, whole(&tpm)).log.unwrap();
    let mut tpm = tpm;
    tpm.log_and_extend(Event::Launch(launch("four")));
    let mut rest = slice(&tpm.file, Some(&state.prefix()));
    let event = Event::Launch(launch("harmless"));
    rest.entries[0] = ByteBuf::from(encode(&Entry { seq: 4, event }).unwrap());
    let evidence = tpm.evidence("plc-1", &NONCE, rest);
    let appraisal = judge_as(Tier::Tpm, &tpm, &evidence, &references(vec![set(&tpm)]), Some(&state));
    assert_eq!(only(&appraisal).event.as_deref(), Some("entry 4"));
}

#[test]
fn a_hidden_launch_is_seen() {
    let mut tpm = machine();
    let log = whole(&tpm);
    tpm.log_and_extend(Event::Launch(launch("hidden")));
    refuted(&tpm, log, "one of entries 0 to 3");
}

#[test]
fn claims_about_the_length_are_bounded() {
    let tpm = machine();
    for (total, keep) in [(70_000, 4), (3, 4), (u64::MAX, 4), (9, 0)] {
        let mut log = whole(&tpm);
        log.total = total;
        log.entries.truncate(keep);
        let appraisal = judge(&tpm, log);
        assert_eq!(
            (appraisal.status, appraisal.log.is_none()),
            (Status::Contraindicated, true),
            "{total}"
        );
    }
}

#[test]
fn only_what_is_new_travels() {
    let mut tpm = machine();
    let all = references(vec![set(&tpm)]);
    let first = judge(&tpm, whole(&tpm)).log.unwrap();
    tpm.log_and_extend(Event::Agent {
        agent: digest("agent 2"),
        version: "0.2.0".into(),
    });
    tpm.log_and_extend(Event::Launch(launch("four")));
    let rest = slice(&tpm.file, Some(&first.prefix()));
    assert_eq!((rest.from, rest.entries.len()), (4, 2));
    let evidence = tpm.evidence("plc-1", &NONCE, rest.clone());
    let second = judge_as(Tier::Tpm, &tpm, &evidence, &all, Some(&first));
    assert_eq!((second.status, &second.findings), (Status::Affirming, &Vec::new()));
    let log = second.log.unwrap();
    assert_eq!((log.proven, log.launched.len(), log.agents.len()), (6, 4, 2));
    // Nothing new.
    let none = slice(&tpm.file, Some(&log.prefix()));
    assert!(none.entries.is_empty());
    let evidence = tpm.evidence("plc-1", &NONCE, none);
    let third = judge_as(Tier::Tpm, &tpm, &evidence, &all, Some(&log));
    assert_eq!((third.status, third.log.as_ref()), (Status::Affirming, Some(&log)));
    assert_eq!(
        decode::<LogState>(&encode(&log).unwrap()).unwrap(),
        log,
        "a verifier keeps it in its store"
    );
    // A verifier that lost what it had must not take the rest for the whole; nor one of an earlier boot.
    let evidence = tpm.evidence("plc-1", &NONCE, rest);
    let earlier = LogState {
        reset_count: 2,
        ..first.clone()
    };
    let shorter = LogState { count: 3, ..first };
    for state in [None, Some(&earlier), Some(&shorter)] {
        let refused = judge_as(Tier::Tpm, &tpm, &evidence, &all, state);
        assert_eq!(refused.status, Status::Contraindicated);
    }
}

#[test]
fn a_long_log_is_proven_in_parts() {
    let mut tpm = SoftTpm::new();
    tpm.log_and_extend(boot());
    for n in 0..1200 {
        tpm.log_and_extend(Event::Launch(launch(&format!("w{n}"))));
    }
    let all = references(vec![set(&tpm)]);
    let mut state: Option<LogState> = None;
    for round in 0..10 {
        let part = slice(&tpm.file, state.as_ref().map(LogState::prefix).as_ref());
        let evidence = tpm.evidence("plc-1", &NONCE, part);
        let appraisal = judge_as(Tier::Tpm, &tpm, &evidence, &all, state.as_ref());
        if !appraisal.incomplete {
            assert_eq!((appraisal.status, round > 0), (Status::Affirming, true));
            let log = appraisal.log.unwrap();
            assert_eq!((log.proven, log.launched.len()), (1201, 1200));
            return;
        }
        assert_eq!(
            (appraisal.status, only(&appraisal).code.as_str()),
            (Status::Warning, "log-incomplete")
        );
        let log = appraisal.log.unwrap();
        assert_eq!(log.proven, 0, "nothing is proven before the end");
        state = Some(log);
    }
    panic!("never complete");
}

#[test]
fn a_register_that_was_used_before_needs_a_reference() {
    let mut tpm = SoftTpm::new();
    let shim = digest("shim");
    tpm.pcrs.insert(14, shim);
    let Event::Boot(mut first) = boot() else { panic!() };
    first.before = Some(shim);
    tpm.log_and_extend(Event::Boot(first));
    refuted(&tpm, whole(&tpm), "entry 0");
    let mut set = set(&tpm);
    set.pcrs.insert(
        14,
        PcrReference {
            values: BTreeSet::from([shim]),
            ..PcrReference::default()
        },
    );
    let evidence = tpm.evidence("plc-1", &NONCE, whole(&tpm));
    let appraisal = judge_as(Tier::Tpm, &tpm, &evidence, &references(vec![set]), None);
    assert_eq!(appraisal.status, Status::Affirming);
}

#[test]
fn a_node_that_logs_nothing_is_a_warning() {
    let tpm = SoftTpm::new();
    let appraisal = judge(&tpm, Slice::default());
    assert_eq!(
        (appraisal.status, only(&appraisal).code.as_str()),
        (Status::Warning, "no-launch-log")
    );
}

#[test]
fn a_register_that_differs_is_named() {
    let mut tpm = machine();
    let good = set(&tpm);
    tpm.pcrs.insert(4, digest("another kernel"));
    let all = references(vec![good.clone()]);
    let evidence = tpm.evidence("plc-1", &NONCE, whole(&tpm));
    let appraisal = judge_as(Tier::Tpm, &tpm, &evidence, &all, None);
    let finding = only(&appraisal);
    assert_eq!((appraisal.status, finding.pcr), (Status::Contraindicated, Some(4)));
    assert_eq!(finding.got, Some(digest("another kernel")));
    assert_eq!(finding.expected, ["image-1"]);
    assert_eq!(appraisal.vector.configuration, 96);
    assert_eq!(appraisal.log.unwrap().proven, 4, "the log is judged all the same");

    // An update that was approved beforehand: another set for the same nodes.
    let mut next = set(&tpm);
    next.name = "image-2".into();
    let both = references(vec![good.clone(), next]);
    let appraisal = judge_as(Tier::Tpm, &tpm, &evidence, &both, None);
    assert_eq!(
        (appraisal.status, appraisal.policy.as_str()),
        (Status::Affirming, "image-2 (references 7)")
    );

    // Values of two sets are not mixed.
    tpm.pcrs.insert(7, digest("another key"));
    let mut other = set(&tpm);
    other.name = "image-3".into();
    other.pcrs.get_mut(&4).unwrap().values = BTreeSet::from([digest("third kernel")]);
    let evidence = tpm.evidence("plc-1", &NONCE, whole(&tpm));
    let appraisal = judge_as(Tier::Tpm, &tpm, &evidence, &references(vec![good.clone(), other]), None);
    assert_eq!(appraisal.status, Status::Contraindicated);
    assert_eq!(only(&appraisal).expected, ["image-1", "image-3"]);

    // A register that the references name and the node does not quote.
    let mut more = good;
    more.pcrs.insert(8, PcrReference::default());
    let tpm = machine();
    let evidence = tpm.evidence("plc-1", &NONCE, whole(&tpm));
    let appraisal = judge_as(Tier::Tpm, &tpm, &evidence, &references(vec![more]), None);
    assert!(only(&appraisal).detail.contains("PCR 8 was not quoted"));
}

#[test]
fn without_references_there_is_a_warning() {
    let tpm = machine();
    let mut elsewhere = set(&tpm);
    elsewhere.nodes.site = Some(SitePath::new("plan").unwrap());
    let evidence = tpm.evidence("plc-1", &NONCE, whole(&tpm));
    for sets in [vec![], vec![elsewhere]] {
        let appraisal = judge_as(Tier::Tpm, &tpm, &evidence, &references(sets), None);
        assert_eq!(
            (appraisal.status, only(&appraisal).code.as_str()),
            (Status::Warning, "no-references")
        );
        assert_eq!(appraisal.log.unwrap().proven, 4);
    }
}

#[test]
fn an_unmeasured_boot_is_said() {
    let mut tpm = machine();
    for pcr in 0..8 {
        tpm.pcrs.insert(pcr, cnova_attestation::event_log::ZERO);
    }
    let appraisal = judge(&tpm, whole(&tpm));
    assert!(!appraisal.boot_measured);
    assert_eq!(appraisal.vector.executables, 0, "nothing is claimed of what runs");
}

#[test]
fn lists_of_what_may_run_are_kept_since_boot() {
    let tpm = machine();
    let evidence = tpm.evidence("plc-1", &NONCE, whole(&tpm));
    let mut set = set(&tpm);
    set.agents = BTreeSet::from([digest("agent")]);
    set.runtimes = BTreeSet::from([digest("runtime")]);
    set.artifacts = ["one", "two", "three"].map(digest).into();
    let appraisal = judge_as(Tier::Tpm, &tpm, &evidence, &references(vec![set.clone()]), None);
    assert_eq!((appraisal.status, appraisal.vector.executables), (Status::Affirming, 2));
    let state = appraisal.log.unwrap();
    // A shorter list judges what was launched before, even when nothing of it travels again.
    set.artifacts.remove(&digest("two"));
    let nothing_new = tpm.evidence("plc-1", &NONCE, slice(&tpm.file, Some(&state.prefix())));
    let appraisal = judge_as(
        Tier::Tpm,
        &tpm,
        &nothing_new,
        &references(vec![set.clone()]),
        Some(&state),
    );
    let finding = only(&appraisal);
    assert_eq!(
        (appraisal.status, finding.code.as_str()),
        (Status::Contraindicated, "artifact-refused")
    );
    assert!(
        finding
            .event
            .as_deref()
            .unwrap()
            .starts_with("entry 2 (launch of app/two)")
    );
    set.agents = BTreeSet::from([digest("another agent")]);
    set.runtimes = BTreeSet::from([digest("another runtime")]);
    let appraisal = judge_as(Tier::Tpm, &tpm, &evidence, &references(vec![set]), None);
    let codes: Vec<_> = appraisal.findings.iter().map(|f| f.code.as_str()).collect();
    assert_eq!(
        codes,
        ["agent-refused", "runtime-refused", "runtime-refused", "runtime-refused"]
    );
}

#[test]
fn soft_evidence_is_unattested_or_a_downgrade() {
    let tpm = machine();
    let soft = Evidence {
        tpm: None,
        ..tpm.evidence("plc-1", &NONCE, Slice::default())
    };
    let all = references(vec![set(&tpm)]);
    let unattested = judge_as(Tier::Soft, &tpm, &soft, &all, None);
    assert_eq!((unattested.status, unattested.findings.len()), (Status::None, 0));
    assert_eq!(unattested.status.to_string(), "UNATTESTED");
    let downgrade = judge_as(Tier::Tpm, &tpm, &soft, &all, None);
    assert_eq!(downgrade.status, Status::Contraindicated);
    assert_eq!(only(&downgrade).code, "downgrade");
}

#[test]
fn the_result_speaks_for_one_node_one_key_and_a_time() {
    let tpm = machine();
    let key = SoftKey::ed25519_from_seed(&[1; 32]).public_key().clone();
    let issue = || Issue {
        key: key.clone(),
        verifier: VerifierId {
            developer: "Cloudnova".into(),
            build: "cnova-hub 0.1.0".into(),
        },
        iat: NOW_S,
        exp: NOW_S + 600,
    };
    let good = judge(&tpm, whole(&tpm)).ear(issue());
    let me = node("plc-1");
    assert_eq!(check_ear(&good, &me, &key, NOW_S), Ok(Status::Affirming));
    assert_eq!(check_ear(&good, &me, &key, NOW_S + 599), Ok(Status::Affirming));
    assert!(matches!(
        check_ear(&good, &me, &key, NOW_S + 600),
        Err(EarError::Expired {
            was: Status::Affirming,
            ..
        })
    ));
    let other = SoftKey::ed25519_from_seed(&[2; 32]).public_key().clone();
    assert!(matches!(
        check_ear(&good, &me, &other, NOW_S),
        Err(EarError::OtherKey { .. })
    ));
    assert!(matches!(
        check_ear(&good, &node("plc-2"), &key, NOW_S),
        Err(EarError::OtherSubject { .. })
    ));
    let mut log = whole(&tpm);
    log.entries.pop();
    log.total -= 1;
    let bad = judge(&tpm, log).ear(issue());
    for now in [NOW_S, NOW_S + 10_000] {
        let Err(EarError::Contraindicated { reason, .. }) = check_ear(&bad, &me, &key, now) else {
            panic!("taken")
        };
        assert!(reason.contains("PCR 14"), "{reason}");
    }
}
