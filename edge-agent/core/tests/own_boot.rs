//! The node's own sealed key: when it is tried, and what follows from what came of it.

#![allow(clippy::unwrap_used)]

mod rig;
#[path = "../../../shared/tests/support/rotation.rs"]
mod rotation;

use cnova_agent_core::ledger::Stored;
use cnova_agent_core::standing::{OwnBoot, Root, own_boots};
use cnova_agent_core::{Config, Event};
use cnova_attestation::ear::{Ear, Status, TrustVector, VerifierId};
use cnova_shared::boot_policy::OwnBoots;
use cnova_shared::certificate::Tier;
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::topics::Kind;
use cnova_shared::trust_documents::PolicyBoot;
use cnova_shared::wire::v1::{self, Body, TrustItem, TrustRequirement, WorkloadState};
use rig::support::{self, EPOCH_S, hub_key, node};
use rig::{ME, Rig, a, stopped_or_started};
use rotation::{approved_boot, boot_policy, bundle_with_boot_keys, new_boot_key, trust_message};

fn with_tpm(own_boot: OwnBoot) -> Config {
    Config {
        root: Root {
            tier: Tier::Tpm,
            own_boot,
            ..Root::default()
        },
        ..rig::config()
    }
}

fn affirming() -> Ear {
    Ear {
        subject: node(ME),
        key: support::soft(10).public_key().clone(),
        nonce: vec![1; 32],
        iat: EPOCH_S,
        exp: EPOCH_S + 7200,
        verifier: VerifierId {
            developer: "cnova".into(),
            build: "test".into(),
        },
        status: Status::Affirming,
        vector: TrustVector::default(),
        policy: "references 1".into(),
        tier: Tier::Tpm,
        boot_measured: true,
        findings: Vec::new(),
    }
}

fn trusted() -> v1::Workload {
    v1::Workload {
        trust: TrustRequirement::Attested,
        ..a("one")
    }
}

fn trust(rig: &mut Rig, items: Vec<TrustItem>) -> Vec<String> {
    rig.message(Kind::Trust, &trust_message(items))
}

fn image(name: &str, key: &SoftKey) -> PolicyBoot {
    approved_boot(name, &[ME], ("a", name), &[key])
}

/// The hub's word on its boots: `key` approved `images`. A signature is kept from one document to the next.
fn told(rig: &mut Rig, version: u64, images: &[&str], key: &SoftKey) -> Vec<String> {
    let held = rig
        .agent
        .trust()
        .boot_policy()
        .map(|p| p.value().boots.clone())
        .unwrap_or_default();
    let kid = key.public_key().id();
    let kept = |name: &str| held.iter().find(|b| b.name == name && b.is_signed_by(kid)).cloned();
    let boots = images
        .iter()
        .map(|name| kept(name).unwrap_or_else(|| image(name, key)))
        .collect();
    trust(rig, vec![boot_policy(version, boots, &hub_key())])
}

fn boot(own_boot: OwnBoot, stored: Stored) -> (Rig, Vec<String>) {
    let (mut rig, mut actions) = Rig::boot_as(with_tpm(own_boot), stored, &["one", "two"], Vec::new());
    actions.extend(rig.take(Event::Connected));
    (rig, actions)
}

/// One that has the bundle with this key.
fn begun(key: &SoftKey) -> Rig {
    let (mut rig, _) = boot(OwnBoot::Unsealed, Stored::default());
    trust(&mut rig, vec![bundle_with_boot_keys(2, &[key])]);
    rig
}

fn boots(rig: &Rig) -> OwnBoots {
    let config = rig::config();
    own_boots(rig.agent.trust(), &config.node, &config.site, &config.labels)
}

fn answer(rig: &mut Rig, own_boot: OwnBoot) -> Vec<String> {
    let boots = boots(rig);
    rig.take(Event::OwnBoot {
        boots,
        own_boot,
        lost: None,
    })
}

fn tries(actions: &[String]) -> Vec<&String> {
    actions
        .iter()
        .filter(|a| a.starts_with("open the ledger key"))
        .collect()
}

fn alarm(rig: &Rig) -> Option<String> {
    let entries = &rig.stored.stream.entries;
    entries
        .iter()
        .find(|e| e.key == "alarm/own-boot")
        .and_then(|e| match &e.body {
            Body::Alarm(alarm) => Some(alarm.detail.clone()),
            _ => None,
        })
}

#[test]
fn the_key_is_tried_when_other_boots_are_approved_after_they_are_on_disk() {
    let key = new_boot_key();
    let mut rig = begun(&key);
    let actions = told(&mut rig, 1, &["image-1"], &key);
    let put = actions.iter().position(|a| a.contains("boot-policy")).unwrap();
    let tried = actions
        .iter()
        .position(|a| a == "open the ledger key under 1 boots")
        .unwrap();
    assert!(put < tried, "{actions:?}");
    assert!(
        tries(&told(&mut rig, 2, &["image-1"], &key)).is_empty(),
        "the same boots, and it is under way"
    );
    answer(&mut rig, OwnBoot::Approved);
    assert_eq!(rig.agent.status().own_boot, "approved");
    assert!(tries(&told(&mut rig, 3, &["image-1"], &key)).is_empty());
    let actions = told(&mut rig, 4, &["image-1", "image-2"], &key);
    assert_eq!(tries(&actions), ["open the ledger key under 2 boots"]);

    // Of another node's boots nothing follows.
    answer(&mut rig, OwnBoot::Approved);
    let other = approved_boot("other", &["plc-2"], ("x", "x"), &[&key]);
    let mut all = rig.agent.trust().boot_policy().unwrap().value().boots.clone();
    all.push(other);
    assert!(tries(&trust(&mut rig, vec![boot_policy(5, all, &hub_key())])).is_empty());
    // A node without a TPM has nothing to try.
    let (mut soft, _) = Rig::boot_as(rig::config(), Stored::default(), &[], Vec::new());
    soft.take(Event::Connected);
    trust(&mut soft, vec![bundle_with_boot_keys(2, &[&key])]);
    assert!(tries(&told(&mut soft, 1, &["image-1"], &key)).is_empty());
}

#[test]
fn a_boot_that_is_not_approved_ends_what_asks_for_trust_until_it_is_approved() {
    let key = new_boot_key();
    let mut rig = begun(&key);
    rig.message(Kind::Ear, &affirming());
    told(&mut rig, 1, &["image-1"], &key);
    answer(&mut rig, OwnBoot::Approved);
    let actions = rig.twin(1, &[trusted(), support::workload("app/b", "two")]);
    assert_eq!(stopped_or_started(&actions).len(), 2, "{actions:?}");
    rig.started(1);

    told(&mut rig, 2, &["image-2"], &key);
    let actions = answer(&mut rig, OwnBoot::Refused("PCR 7 holds x".into()));
    assert_eq!(stopped_or_started(&actions), ["stop app/a#1 2000"], "and nothing else");
    rig.exited(1, true, "");
    let report = rig.report_of("app/a");
    assert_eq!(report.state, WorkloadState::Waiting);
    assert!(report.reason.contains("PCR 7 holds x"), "{}", report.reason);
    assert!(alarm(&rig).unwrap().contains("PCR 7 holds x"));
    assert!(
        rig.agent
            .status()
            .alarms
            .iter()
            .any(|a| a.starts_with("own-boot: ") && a.contains("PCR 7"))
    );

    // Approved after all, without a restart.
    let actions = told(&mut rig, 3, &["image-2", "image-3"], &key);
    assert_eq!(tries(&actions).len(), 1);
    let actions = answer(&mut rig, OwnBoot::Approved);
    assert_eq!(stopped_or_started(&actions), ["start app/a#2 of 1.1"]);
    assert_eq!(alarm(&rig), None);
}

#[test]
fn silence_of_the_tpm_is_no_refusal_and_is_asked_again() {
    let key = new_boot_key();
    let mut rig = begun(&key);
    rig.message(Kind::Ear, &affirming());
    told(&mut rig, 1, &["image-1"], &key);
    answer(&mut rig, OwnBoot::Approved);
    rig.twin(1, &[trusted()]);
    rig.started(1);
    let stored = rig.stored.clone();
    // While it is silent what was found out stands.
    told(&mut rig, 2, &["image-1", "image-2"], &key);
    answer(&mut rig, OwnBoot::Unknown("it did not answer".into()));
    assert_eq!(rig.report_of("app/a").state, WorkloadState::Running);
    assert_eq!(rig.agent.status().own_boot, "approved");
    assert!(tries(&rig.wait(4_999)).is_empty());
    assert_eq!(tries(&rig.wait(1)).len(), 1);
    answer(&mut rig, OwnBoot::Unknown("it did not answer".into()));
    assert!(tries(&rig.wait(9_999)).is_empty(), "less and less often");
    assert_eq!(tries(&rig.wait(1)).len(), 1);

    // Silent from the start: nothing that asks for trust is started, the rest is, and it is asked again.
    let silent = OwnBoot::Unknown("the TPM did not answer".into());
    let (mut rig, _) = boot(
        silent.clone(),
        Stored {
            instances: Vec::new(),
            ..stored
        },
    );
    let report = rig.report_of("app/a");
    assert_eq!(report.state, WorkloadState::Waiting);
    assert!(
        report.reason.contains("is not known yet: the TPM did not answer"),
        "{}",
        report.reason
    );
    assert!(alarm(&rig).unwrap().contains("not known"));
    let actions = rig.twin(2, &[trusted(), support::workload("app/b", "two")]);
    assert_eq!(stopped_or_started(&actions), ["start app/b#1 of 1.2"]);
    answer(&mut rig, silent);
    let actions = rig.wait(20_000);
    assert_eq!(tries(&actions).len(), 1, "{actions:?}");
    let actions = answer(&mut rig, OwnBoot::Approved);
    assert_eq!(
        stopped_or_started(&actions),
        ["start app/a#1 of 1.1"],
        "it did not change since"
    );
    assert_eq!(alarm(&rig), None);
}

#[test]
fn at_boot_it_is_tried_again_only_with_what_the_daemon_did_not_know() {
    let key = new_boot_key();
    let mut rig = begun(&key);
    told(&mut rig, 1, &["image-1"], &key);
    let known = boots(&rig);
    let config = |boots: &OwnBoots| {
        let mut config = with_tpm(OwnBoot::Approved);
        config.root.boots = boots.clone();
        config
    };
    let (_, actions) = Rig::boot_as(config(&known), rig.stored.clone(), &[], Vec::new());
    assert!(tries(&actions).is_empty(), "{actions:?}");
    let (mut rig, actions) = Rig::boot_as(config(&OwnBoots::default()), rig.stored.clone(), &[], Vec::new());
    assert_eq!(tries(&actions).len(), 1, "{actions:?}");
    // An answer to something else changes nothing.
    rig.take(Event::OwnBoot {
        boots: OwnBoots::default(),
        own_boot: OwnBoot::Refused("of before".into()),
        lost: None,
    });
    assert_eq!(rig.agent.status().own_boot, "approved");
    let boots = boots(&rig);
    rig.take(Event::OwnBoot {
        boots,
        own_boot: OwnBoot::Approved,
        lost: Some("another TPM sealed it".into()),
    });
    assert!(rig.says("alarm/ledger-key"));
}

#[test]
fn a_key_that_is_taken_away_ends_nothing_before_the_next_one_has_spoken() {
    let (stolen, next) = (new_boot_key(), new_boot_key());
    let mut rig = begun(&stolen);
    told(&mut rig, 1, &["image-1"], &stolen);
    answer(&mut rig, OwnBoot::Approved);
    let actions = trust(&mut rig, vec![bundle_with_boot_keys(3, &[&next])]);
    assert!(tries(&actions).is_empty(), "{actions:?}");
    assert_eq!(rig.agent.status().own_boot, "approved");
    let actions = told(&mut rig, 2, &["image-1"], &next);
    assert_eq!(tries(&actions), ["open the ledger key under 1 boots"]);
    // Rolled back: refused, and said.
    let actions = told(&mut rig, 1, &["image-1"], &stolen);
    assert!(tries(&actions).is_empty());
    assert!(rig.says("alarm/trust-refused"));
}
