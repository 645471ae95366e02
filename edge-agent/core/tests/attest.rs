//! What a node that cannot prove itself starts and does not start, and what it makes of a disk that was rolled back.

#![allow(clippy::unwrap_used)]

mod rig;

use cnova_agent_core::ledger::Stored;
use cnova_agent_core::standing::{Counter, CounterState, OwnBoot, Root};
use cnova_agent_core::{Config, Event, RuntimeEvent};
use cnova_attestation::ear::{Ear, Finding, Status, TrustVector, VerifierId};
use cnova_attestation::parent::ParentTrust;
use cnova_shared::bundle::{self, Role, TrustBundle};
use cnova_shared::certificate::Tier;
use cnova_shared::envelope::seal;
use cnova_shared::keys::Signer;
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1::{self, Body, TrustRequirement, WorkloadState};
use rig::support::{self, EPOCH_S, HUB, claims, hub_key, node, root_key};
use rig::{ME, Rig, a, stopped_or_started};

/// A node with a TPM whose counter is at `count`.
fn with_tpm(count: u64) -> Config {
    let mut contents = support::contents(support::ca_der());
    contents.keys[0].roles.push(Role::Attestation);
    let trust = TrustBundle::flashed(&bundle::sign(&contents, &[&root_key()]).unwrap()).unwrap();
    Config {
        trust,
        root: Root {
            tier: Tier::Tpm,
            own_boot: OwnBoot::Approved,
            boots: cnova_shared::boot_policy::OwnBoots::default(),
            counter: CounterState::Value(Counter {
                value: count,
                is_new: false,
            }),
            parent: ParentTrust::Certified,
        },
        ..rig::config()
    }
}

fn boot(config: Config, stored: Stored) -> Rig {
    let (mut rig, _) = Rig::boot_as(config, stored, &["one", "two"], Vec::new());
    rig.take(Event::Connected);
    rig
}

fn ear(about: &str, status: Status, exp: u64) -> Ear {
    let finding = Finding {
        code: "pcr-mismatch".into(),
        detail: "PCR 7 is not what plc-image-1.2 has".into(),
        ..Finding::default()
    };
    Ear {
        subject: node(about),
        key: support::soft(10).public_key().clone(),
        nonce: vec![1; 32],
        iat: EPOCH_S,
        exp,
        verifier: VerifierId {
            developer: "cnova".into(),
            build: "test".into(),
        },
        status,
        vector: TrustVector::default(),
        policy: "references 1".into(),
        tier: Tier::Tpm,
        boot_measured: true,
        findings: if status == Status::Affirming {
            Vec::new()
        } else {
            vec![finding]
        },
    }
}

fn trusted(artifact: &str) -> v1::Workload {
    v1::Workload {
        trust: TrustRequirement::Attested,
        ..a(artifact)
    }
}

fn why(rig: &mut Rig) -> String {
    let report = rig.report_of("app/a");
    assert_eq!(report.state, WorkloadState::Waiting, "{}", report.reason);
    report.reason
}

const LATER_S: u64 = EPOCH_S + 3600;

#[test]
fn what_asks_for_attestation_waits_for_it_and_runs_on_when_it_is_stale() {
    let mut rig = boot(with_tpm(0), Stored::default());
    let actions = rig.twin(1, &[trusted("one")]);
    assert!(stopped_or_started(&actions).is_empty(), "{actions:?}");
    assert_eq!(why(&mut rig), "trust: this node has not been attested yet");

    let actions = rig.message(Kind::Ear, &ear(ME, Status::Affirming, LATER_S));
    assert_eq!(stopped_or_started(&actions), ["start app/a#1 of 1.1"]);
    rig.started(1);
    let well = RuntimeEvent::Health {
        healthy: true,
        detail: String::new(),
    };
    rig.runtime(1, well);

    // The hub is away for long: what runs runs on, also after an end; a new version waits, and the old one stays.
    rig.wait(2 * 3600 * 1000);
    assert_eq!(rig.report_of("app/a").state, WorkloadState::Running);
    let actions = rig.twin_with(2, &[trusted("two")]);
    assert!(stopped_or_started(&actions).is_empty(), "{actions:?}");
    assert_eq!(rig.report_of("app/a").state, WorkloadState::Running);

    let again = Ear {
        iat: EPOCH_S + 7200,
        ..ear(ME, Status::Affirming, EPOCH_S + 9000)
    };
    let actions = rig.message(Kind::Ear, &again);
    assert_eq!(stopped_or_started(&actions), ["stop app/a#1 2000"]);
}

#[test]
fn a_node_that_is_contraindicated_ends_only_what_asks_for_trust() {
    let mut rig = boot(with_tpm(0), Stored::default());
    rig.message(Kind::Ear, &ear(ME, Status::Affirming, LATER_S));
    let other = support::workload("app/b", "two");
    let actions = rig.twin(1, &[trusted("one"), other]);
    assert_eq!(stopped_or_started(&actions).len(), 2, "{actions:?}");
    rig.started(1);

    let actions = rig.message(Kind::Ear, &ear(ME, Status::Contraindicated, LATER_S));
    assert_eq!(stopped_or_started(&actions), ["stop app/a#1 2000"]);
    rig.exited(1, true, "");
    assert_eq!(
        why(&mut rig),
        "trust: this node was found not to be what it should be: PCR 7 is not what plc-image-1.2 has"
    );
    // It stays so after a restart, whatever is older.
    let stored = rig.stored.clone();
    let mut rig = boot(with_tpm(stored.counter), stored);
    let older = Ear {
        iat: EPOCH_S - 1,
        ..ear(ME, Status::Affirming, LATER_S)
    };
    rig.message(Kind::Ear, &older);
    assert!(why(&mut rig).contains("not to be what it should be"));
}

#[test]
fn a_result_counts_only_when_a_key_for_it_signed_it_about_this_node() {
    let mut rig = boot(with_tpm(0), Stored::default());
    rig.twin(1, &[trusted("one")]);
    let affirming = ear(ME, Status::Affirming, LATER_S);
    // By a key that nobody named; by this node itself; about another node.
    for key in [support::soft(99), support::soft(10)] {
        let bytes = seal(Kind::Ear, &claims(HUB, ME), &affirming, &[], &key).unwrap();
        rig.take(Event::Message { kind: Kind::Ear, bytes });
        assert_eq!(why(&mut rig), "trust: this node has not been attested yet");
    }
    rig.message(Kind::Ear, &ear("plc-2", Status::Affirming, LATER_S));
    assert_eq!(why(&mut rig), "trust: this node has not been attested yet");
    // By the hub's key, where the bundle lets it sign twins only.
    let config = Config {
        trust: support::trust(),
        ..with_tpm(0)
    };
    let mut rig = boot(config, Stored::default());
    rig.twin(1, &[trusted("one")]);
    rig.message(Kind::Ear, &affirming);
    assert_eq!(why(&mut rig), "trust: this node has not been attested yet");
}

#[test]
fn without_a_tpm_or_with_another_boot_what_asks_for_trust_says_why_it_waits() {
    let mut rig = boot(rig::config(), Stored::default());
    rig.twin(1, &[trusted("one")]);
    assert_eq!(
        why(&mut rig),
        "trust: it asks for a TPM, and this node's key lies in a file"
    );

    let mut config = with_tpm(0);
    config.root.own_boot = OwnBoot::Refused("PCR 7 differs".into());
    let mut rig = boot(config, Stored::default());
    rig.message(Kind::Ear, &ear(ME, Status::Affirming, LATER_S));
    rig.twin(1, &[trusted("one"), support::workload("app/b", "two")]);
    assert_eq!(
        why(&mut rig),
        "trust: this node booted something that is not approved: PCR 7 differs"
    );
    assert!(rig.says("alarm/own-boot"));
    assert_eq!(
        rig.report_of("app/b").state,
        WorkloadState::Starting,
        "the rest is not touched"
    );

    let mut rig = boot(with_tpm(0), Stored::default());
    rig.message(Kind::Ear, &ear(ME, Status::Affirming, LATER_S));
    rig.take(Event::Unmeasured(Some("the TPM did not answer".into())));
    rig.twin(1, &[trusted("one")]);
    assert_eq!(
        why(&mut rig),
        "trust: its launch cannot be measured: the TPM did not answer"
    );
    let actions = rig.take(Event::Unmeasured(None));
    assert_eq!(stopped_or_started(&actions), ["start app/a#1 of 1.1"]);
}

#[test]
fn each_twin_counts_once_and_the_tpm_follows_the_commit() {
    let config = Config {
        root: Root {
            counter: CounterState::Value(Counter { value: 7, is_new: true }),
            ..with_tpm(0).root
        },
        ..with_tpm(0)
    };
    let mut rig = boot(config, Stored::default());
    assert_eq!(
        rig.stored.counter, 7,
        "the ledger begins with what the counter began with"
    );
    let actions = rig.twin(1, &[a("one")]);
    let commit = actions
        .iter()
        .position(|a| a.contains("twin") && a.contains("counter 8"))
        .unwrap();
    let count = actions.iter().position(|a| a == "count up").unwrap();
    assert!(commit < count, "{actions:?}");
    assert!(
        !rig.twin(1, &[a("one")]).contains(&"count up".to_owned()),
        "the same one again"
    );

    // The TPM has not answered yet: a second twin must not bring the ledger two steps ahead.
    let actions = rig.twin(2, &[a("two")]);
    assert!(!actions.contains(&"count up".to_owned()), "{actions:?}");
    assert_eq!(rig.stored.counter, 8);
    rig.take(Event::Counted(Ok(8)));
    assert!(rig.twin(3, &[a("one")]).contains(&"count up".to_owned()));
    assert_eq!(rig.stored.counter, 9);
}

#[test]
fn a_count_that_a_power_cut_left_open_is_made_up_for() {
    let mut rig = boot(
        with_tpm(3),
        Stored {
            counter: 3,
            ..Stored::default()
        },
    );
    rig.twin(1, &[a("one")]);
    // Cut between the commit and the TPM: the ledger is at 4, the TPM at 3.
    let (rig, actions) = Rig::boot_as(with_tpm(3), rig.stored.clone(), &["one"], Vec::new());
    assert!(actions.contains(&"count up".to_owned()), "{actions:?}");
    assert!(!rig.says("alarm/quarantine"));
}

#[test]
fn a_rolled_back_disk_takes_no_twin_until_the_hub_has_said_what_is_newest() {
    let mut rig = boot(
        with_tpm(1),
        Stored {
            counter: 1,
            ..Stored::default()
        },
    );
    rig.message(Kind::Ear, &ear(ME, Status::Affirming, LATER_S));
    rig.twin(1, &[a("one")]);
    rig.take(Event::Counted(Ok(2)));
    let old_disk = rig.stored.clone();
    rig.twin(2, &[a("two")]);
    rig.take(Event::Counted(Ok(3)));

    // Somebody puts the old disk back. The TPM is at 3.
    let mut twin = old_disk.clone();
    twin.ear.clone_from(&rig.stored.ear);
    let mut rig = boot(with_tpm(3), old_disk);
    assert!(rig.says("alarm/quarantine"));
    assert_eq!(rig.hello_alarms, ["quarantine"], "the hub hears of it with the hello");
    assert_eq!(
        rig.report_of("app/a").state,
        WorkloadState::Starting,
        "what asks for nothing runs on"
    );
    // An old twin that the gateway kept is not taken, though it is newer than the disk.
    let actions = rig.twin(2, &[trusted("two")]);
    assert!(actions.contains(&"refused quarantine".to_owned()), "{actions:?}");

    let release = |boot: &str| v1::Command {
        v: 1,
        id: 9,
        op: v1::Operation::Release {
            boot: boot.into(),
            epoch: 1,
            generation: 3,
        },
    };
    rig.message(Kind::Command, &release("another-start"));
    assert!(rig.says("alarm/quarantine"), "a release of another start is void");
    let again = v1::Command {
        id: 10,
        ..release("boot-1")
    };
    let actions = rig.message(Kind::Command, &again);
    assert!(
        actions
            .iter()
            .any(|a| a.contains("floor 1.3") && a.contains("counter 3")),
        "{actions:?}"
    );
    assert!(!rig.says("alarm/quarantine"));
    rig.wait(20_000);
    assert!(rig.hello_alarms.is_empty(), "and that it is over");
    let actions = rig.twin(2, &[a("two")]);
    assert!(actions.contains(&"refused rolled-back".to_owned()), "{actions:?}");
    let actions = rig.twin(3, &[a("two")]);
    assert!(actions.contains(&"accepted 1.3".to_owned()), "{actions:?}");
    // The floor outlives a restart.
    rig.take(Event::Counted(Ok(4)));
    let (rig, _) = Rig::boot_as(with_tpm(4), rig.stored.clone(), &["one", "two"], Vec::new());
    assert_eq!((rig.stored.floor, rig.says("alarm/quarantine")), ((1, 3), false));
}

#[test]
fn a_tpm_that_was_cleared_or_taken_out_is_found_out() {
    for (config, stored) in [(with_tpm(2), 9), (rig::config(), 9)] {
        let (rig, _) = Rig::boot_as(
            config,
            Stored {
                counter: stored,
                ..Stored::default()
            },
            &[],
            Vec::new(),
        );
        assert!(rig.says("alarm/quarantine"));
    }
}

#[test]
fn challenges_are_answered_when_the_hub_or_the_parent_asks() {
    let mut rig = boot(with_tpm(0), Stored::default());
    let challenge = v1::Challenge {
        v: 1,
        nonce: vec![7; 32],
        log: None,
    };
    assert!(
        rig.message(Kind::Challenge, &challenge)
            .contains(&"attest to hub".to_owned())
    );
    let stranger = seal(
        Kind::Challenge,
        &claims("gw-9", ME),
        &challenge,
        &[],
        &support::soft(99),
    )
    .unwrap();
    let short = v1::Challenge {
        nonce: vec![7; 8],
        ..challenge.clone()
    };
    let other = seal(Kind::Challenge, &claims(HUB, "plc-2"), &challenge, &[], &hub_key()).unwrap();
    for bytes in [stranger, other] {
        let actions = rig.take(Event::Message {
            kind: Kind::Challenge,
            bytes,
        });
        assert!(!actions.iter().any(|a| a.starts_with("attest")), "{actions:?}");
    }
    assert!(
        !rig.message(Kind::Challenge, &short)
            .iter()
            .any(|a| a.starts_with("attest"))
    );
}

#[test]
fn where_only_an_attested_parent_is_listened_to_another_one_is_not() {
    let gateway = support::identity("gw-1", 20);
    let mut config = with_tpm(0);
    config.parent = node("gw-1");
    config.root.parent = ParentTrust::Attested;
    let mut rig = boot(config, Stored::default());
    let ack = rig::first_ack();
    let say = |rig: &mut Rig, kind: Kind, bytes: Vec<u8>| rig.take(Event::Message { kind, bytes });
    let bytes = seal(Kind::Ack, &claims("gw-1", ME), &ack, &gateway.chain, &gateway.key).unwrap();
    say(&mut rig, Kind::Ack, bytes);
    let twin = |generation| support::twin(ME, generation, vec![a("one")]);
    assert_eq!(
        rig.message(Kind::Twin, &twin(1)),
        ["note"],
        "it has introduced itself, and nothing vouches for it"
    );

    let about_gateway = |status, exp| Ear {
        key: gateway.key.public_key().clone(),
        ..ear("gw-1", status, exp)
    };
    // As the gateway shows it: signed for itself.
    let show = |rig: &mut Rig, ear: &Ear| {
        let bytes = seal(Kind::Ear, &claims(HUB, "gw-1"), ear, &[], &hub_key()).unwrap();
        rig.take(Event::Message { kind: Kind::Ear, bytes })
    };
    show(&mut rig, &ear("gw-1", Status::Affirming, LATER_S));
    assert_eq!(rig.message(Kind::Twin, &twin(1)), ["note"], "about another key");
    show(&mut rig, &about_gateway(Status::Contraindicated, LATER_S));
    assert_eq!(rig.message(Kind::Twin, &twin(1)), ["note"], "contraindicated");
    show(&mut rig, &about_gateway(Status::Affirming, LATER_S));
    assert!(rig.message(Kind::Twin, &twin(1)).contains(&"accepted 1.1".to_owned()));
    // Stale is not untrusted, for a week.
    rig.wait(2 * 86_400_000);
    assert!(rig.message(Kind::Twin, &twin(2)).contains(&"accepted 1.2".to_owned()));
    rig.wait(8 * 86_400_000);
    assert_eq!(rig.message(Kind::Twin, &twin(3)), ["note"]);
}

#[test]
fn alarms_of_trust_end_with_their_cause() {
    let mut config = with_tpm(0);
    config.root.own_boot = OwnBoot::Refused("PCR 7 differs".into());
    let rig = boot(config, Stored::default());
    assert!(rig.says("alarm/own-boot"));
    let rig = boot(with_tpm(0), rig.stored.clone());
    assert!(!rig.says("alarm/own-boot"));
    assert!(
        rig.stored
            .stream
            .entries
            .iter()
            .any(|e| e.key == "alarm/own-boot" && e.body == Body::Over)
    );
}

/// A node whose TPM did not answer when the agent started, with what its ledger knows.
fn silent(stored: Stored) -> Rig {
    let detail = "the TPM does not answer".to_owned();
    let code = "tpm".to_owned();
    let config = Config {
        alarms: vec![v1::Alarm { code, detail }],
        root: Root {
            own_boot: OwnBoot::Unknown("the TPM did not answer open: its device is gone".into()),
            counter: CounterState::Unknown,
            ..with_tpm(0).root
        },
        ..with_tpm(0)
    };
    let mut rig = boot(config, stored);
    rig.message(Kind::Ear, &ear(ME, Status::Affirming, LATER_S));
    rig
}

fn counted(counter: u64) -> Stored {
    Stored {
        counter,
        ..Stored::default()
    }
}

#[test]
fn with_a_silent_tpm_the_rest_starts_and_what_asks_for_trust_follows_when_it_answers() {
    let mut rig = silent(counted(3));
    let actions = rig.twin(1, &[trusted("one"), support::workload("app/b", "two")]);
    assert_eq!(stopped_or_started(&actions), ["start app/b#1 of 1.1"]);
    assert_eq!(
        why(&mut rig),
        "trust: whether this node's boot is approved is not known yet: the TPM did not answer open: its device is gone"
    );
    assert!(!actions.contains(&"count up".to_owned()) && rig.stored.counter == 3);
    assert!(rig.says("alarm/tpm") && rig.says("alarm/own-boot"));
    rig.take(Event::Counter(Err("the TPM that answers is not this node's".into())));
    let alarms = rig.agent.status().alarms;
    assert!(alarms.iter().any(|a| a.contains("is not this node's")), "{alarms:?}");

    // It answers. The twin that it has not counted is counted, once.
    let found = Counter {
        value: 3,
        is_new: false,
    };
    let actions = rig.take(Event::Counter(Ok(found)));
    assert_eq!(actions.iter().filter(|a| *a == "count up").count(), 1, "{actions:?}");
    assert_eq!(rig.stored.counter, 4);
    assert!(
        actions.contains(&"open the ledger key under 0 boots".to_owned()),
        "{actions:?}"
    );
    assert!(!rig.says("alarm/tpm") && !rig.says("alarm/quarantine"));
    assert!(stopped_or_started(&actions).is_empty(), "its boot is not known yet");
    let actions = rig.take(Event::OwnBoot {
        boots: cnova_shared::boot_policy::OwnBoots::default(),
        own_boot: OwnBoot::Approved,
        lost: None,
    });
    assert_eq!(stopped_or_started(&actions), ["start app/a#1 of 1.1"]);
    rig.take(Event::Counted(Ok(4)));
    assert!(!rig.says("alarm/own-boot"));
    // What comes later is about nothing that is open.
    assert!(
        rig.take(Event::Counter(Ok(Counter {
            value: 9,
            is_new: false
        })))
        .is_empty()
    );
    assert!(!rig.says("alarm/quarantine"));
}

#[test]
fn a_rolled_back_disk_is_noticed_when_a_silent_tpm_answers() {
    let mut rig = silent(counted(3));
    rig.twin(1, &[trusted("one"), support::workload("app/b", "two")]);
    let found = Counter {
        value: 5,
        is_new: false,
    };
    let actions = rig.take(Event::Counter(Ok(found)));
    assert!(rig.says("alarm/quarantine") && !actions.contains(&"count up".to_owned()));
    rig.take(Event::OwnBoot {
        boots: cnova_shared::boot_policy::OwnBoots::default(),
        own_boot: OwnBoot::Approved,
        lost: None,
    });
    assert!(why(&mut rig).starts_with("trust: this node is in quarantine"));
    assert_eq!(
        rig.report_of("app/b").state,
        WorkloadState::Starting,
        "the rest is not touched"
    );
    rig.wait(20_000);
    assert_eq!(
        rig.hello_alarms,
        ["quarantine"],
        "the hub hears of it with the next hello"
    );
}

#[test]
fn where_only_the_counter_is_unknown_what_asks_for_trust_waits_too() {
    let mut config = with_tpm(0);
    config.root.counter = CounterState::Unknown;
    let mut rig = boot(config, Stored::default());
    rig.message(Kind::Ear, &ear(ME, Status::Affirming, LATER_S));
    rig.twin(1, &[trusted("one")]);
    assert!(why(&mut rig).contains("disk was rolled back is not known yet"));
    let actions = rig.take(Event::Counter(Ok(Counter { value: 0, is_new: true })));
    assert_eq!(stopped_or_started(&actions), ["start app/a#1 of 1.1"]);
}

#[test]
fn what_the_tpm_did_not_count_is_tried_again() {
    let mut rig = boot(with_tpm(3), counted(3));
    assert!(rig.twin(1, &[a("one")]).contains(&"count up".to_owned()));
    rig.take(Event::Counted(Err("the TPM did not answer TPM2_NV_Increment".into())));
    assert!(rig.says("alarm/tpm"));
    let actions = rig.wait(31_000);
    assert!(actions.contains(&"count up".to_owned()), "{actions:?}");
    rig.take(Event::Counted(Ok(4)));
    assert!(!rig.says("alarm/tpm"));
    assert!(!rig.wait(61_000).contains(&"count up".to_owned()));
}
