//! Attestation results that the agent's gateway signed in the hub's place: which are believed, and what they are worth.

#![allow(clippy::unwrap_used)]

mod rig;
#[path = "../../../shared/tests/support/rotation.rs"]
mod rotation;

use cnova_agent_core::ledger::Stored;
use cnova_agent_core::standing::{OwnBoot, Root};
use cnova_agent_core::{Config, Event, RuntimeEvent};
use cnova_attestation::ear::{Ear, Finding, Status, TrustVector, VerifierId};
use cnova_shared::bundle::TrustBundle;
use cnova_shared::certificate::Tier;
use cnova_shared::envelope::{Claims, seal};
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::limits::DELEGATED_RESULT_S;
use cnova_shared::topics::Kind;
use cnova_shared::trust_documents::{Delegation, Right};
use cnova_shared::wire::v1::{self, TrustItem, TrustRequirement, WorkloadState};
use rig::support::{self, EPOCH_S, HUB, claims, hub_key, node, soft};
use rig::{ME, Rig, a, stopped_or_started};
use rotation::*;

const GATEWAY: &str = "line-gw";
const MY_SITE: &str = "plant-7/plc-1";

fn gateway_key() -> SoftKey {
    soft(20)
}

/// An agent with a TPM below a gateway.
fn config() -> Config {
    Config {
        trust: TrustBundle::flashed(&bundle(2)).unwrap(),
        parent: node(GATEWAY),
        site: MY_SITE.parse().unwrap(),
        root: Root {
            tier: Tier::Tpm,
            own_boot: OwnBoot::Unsealed,
            ..Root::default()
        },
        ..rig::config()
    }
}

fn allowed() -> Delegation {
    Delegation {
        key: gateway_key().public_key().clone(),
        ..delegation(1, &node(GATEWAY), "plant-7", EPOCH_S + 96 * 3600)
    }
}

struct Below {
    rig: Rig,
}

impl Below {
    /// It holds a workload that asks for attestation, and this delegation.
    fn with(delegation: &Delegation) -> Self {
        let (mut rig, _) = Rig::boot_as(config(), Stored::default(), &["one", "two"], Vec::new());
        rig.take(Event::Connected);
        let mut below = Self { rig };
        below.introduce();
        below.trust(vec![delegation_item(delegation, &hub_key())]);
        below.twin(1, "one");
        below
    }

    /// The gateway introduces itself, as with its first acknowledgement.
    fn introduce(&mut self) {
        let gateway = support::identity(GATEWAY, 20);
        let ack = rig::first_ack();
        let bytes = seal(Kind::Ack, &claims(GATEWAY, ME), &ack, &gateway.chain, &gateway.key).unwrap();
        self.rig.take(Event::Message { kind: Kind::Ack, bytes });
    }

    fn trust(&mut self, items: Vec<TrustItem>) {
        let message = trust_message(items);
        let bytes = seal(Kind::Trust, &claims(GATEWAY, ME), &message, &[], &gateway_key()).unwrap();
        self.rig.take(Event::Message {
            kind: Kind::Trust,
            bytes,
        });
    }

    fn twin(&mut self, generation: u64, artifact: &str) -> Vec<String> {
        let trusted = v1::Workload {
            trust: TrustRequirement::Attested,
            ..a(artifact)
        };
        let bytes = twin_by(&hub_key(), &support::twin(ME, generation, vec![trusted]));
        self.rig.take(Event::Message {
            kind: Kind::Twin,
            bytes,
        })
    }

    fn hears(&mut self, bytes: Vec<u8>) -> Vec<String> {
        self.rig.take(Event::Message { kind: Kind::Ear, bytes })
    }

    fn hears_gateway(&mut self, ear: &Ear) -> Vec<String> {
        self.hears(sign(ear, GATEWAY, &gateway_key()))
    }

    fn hears_hub(&mut self, ear: &Ear) -> Vec<String> {
        self.hears(sign(ear, HUB, &hub_key()))
    }

    fn why(&self) -> String {
        self.rig.report_of("app/a").reason
    }

    fn is_held(&self) -> bool {
        let report = self.rig.report_of("app/a");
        report.state == WorkloadState::Waiting
    }

    fn restart(&self) -> Self {
        let (mut rig, _) = Rig::boot_as(config(), self.rig.stored.clone(), &["one", "two"], Vec::new());
        rig.now = self.rig.now;
        rig.take(Event::Tick);
        Self { rig }
    }
}

fn sign(ear: &Ear, iss: &str, key: &SoftKey) -> Vec<u8> {
    let claims = Claims {
        iss: node(iss),
        aud: ear.subject.clone(),
        iat: ear.iat,
        exp: Some(ear.exp),
    };
    seal(Kind::Ear, &claims, ear, &[], key).unwrap()
}

fn ear(status: Status, at_s: u64) -> Ear {
    let found = Finding {
        code: "pcr-mismatch".into(),
        detail: "PCR 7 is not what plc-image-1.2 has".into(),
        ..Finding::default()
    };
    Ear {
        subject: node(ME),
        key: soft(10).public_key().clone(),
        nonce: vec![1; 32],
        iat: EPOCH_S + at_s,
        exp: EPOCH_S + at_s + 3600,
        verifier: VerifierId {
            developer: "Cloudnova".into(),
            build: "cnova at line-gw".into(),
        },
        status,
        vector: TrustVector::default(),
        policy: "image (references 1)".into(),
        tier: Tier::Tpm,
        boot_measured: true,
        findings: (status != Status::Affirming).then_some(found).into_iter().collect(),
    }
}

#[test]
fn a_result_of_the_gateway_under_its_delegation_starts_what_waits() {
    let mut below = Below::with(&allowed());
    assert_eq!(below.why(), "trust: this node has not been attested yet");
    let actions = below.hears_gateway(&ear(Status::Affirming, 0));
    assert_eq!(stopped_or_started(&actions), ["start app/a#1 of 1.1"]);
    assert!(actions.iter().any(|a| a.contains("delegated ear")), "{actions:?}");
    // What it found against the node ends it, says who found it, and outlives a restart.
    let actions = below.hears_gateway(&ear(Status::Contraindicated, 10));
    assert_eq!(stopped_or_started(&actions), ["stop app/a#1 2000"]);
    below.rig.exited(1, true, "");
    let why = "trust: this node was found not to be what it should be by line-gw: PCR 7 is not what plc-image-1.2 has";
    assert_eq!(below.why(), why);
    assert_eq!(below.restart().why(), why);
}

#[test]
fn a_forged_result_is_never_believed() {
    let good = ear(Status::Affirming, 0);
    let expired = Delegation {
        not_after: EPOCH_S + 7200,
        ..allowed()
    };
    let foreign = Delegation {
        site: "plant-8".parse().unwrap(),
        ..allowed()
    };
    let no_right = Delegation {
        rights: vec![Right::MoveFloating],
        ..allowed()
    };
    let other_key = Delegation {
        key: soft(77).public_key().clone(),
        ..allowed()
    };
    let altered = {
        let mut bytes = sign(&ear(Status::Contraindicated, 0), GATEWAY, &gateway_key());
        let at = bytes.windows(2).position(|w| w == [0x18, 96]).expect("the status") + 1;
        bytes[at] = 32;
        bytes
    };
    let too_long = Ear {
        exp: good.iat + DELEGATED_RESULT_S + 1,
        ..good.clone()
    };
    let beyond = Ear {
        exp: EPOCH_S + 7201,
        iat: EPOCH_S + 3600,
        ..good.clone()
    };
    let of_other = Ear {
        subject: node("plc-2"),
        ..good.clone()
    };
    let by_gateway = |ear: &Ear| sign(ear, GATEWAY, &gateway_key());
    let cases = [
        ("no right", no_right, by_gateway(&good)),
        ("foreign site", foreign, by_gateway(&good)),
        ("another key in the delegation", other_key, by_gateway(&good)),
        ("another key", allowed(), sign(&good, GATEWAY, &soft(99))),
        ("the node's own key", allowed(), sign(&good, ME, &soft(10))),
        (
            "the gateway's key in the hub's name",
            allowed(),
            sign(&good, HUB, &gateway_key()),
        ),
        ("an altered status", allowed(), altered),
        ("longer than a gateway may say", allowed(), by_gateway(&too_long)),
        ("longer than the delegation", expired.clone(), by_gateway(&beyond)),
        ("about another node", allowed(), by_gateway(&of_other)),
    ];
    for (what, delegation, bytes) in cases {
        let mut below = Below::with(&delegation);
        below.hears(bytes);
        assert_eq!(below.why(), "trust: this node has not been attested yet", "{what}");
        assert!(below.rig.stored.delegated_ear.is_none(), "{what}");
    }
    // Without any delegation; when it is over; when its gateway is revoked.
    let (mut rig, _) = Rig::boot_as(config(), Stored::default(), &["one"], Vec::new());
    rig.take(Event::Connected);
    let mut below = Below { rig };
    below.introduce();
    below.twin(1, "one");
    below.hears_gateway(&good);
    assert!(below.is_held());
    let mut below = Below::with(&expired);
    below.rig.wait(7_200_000);
    below.hears_gateway(&good);
    assert!(below.is_held());
    let mut below = Below::with(&allowed());
    below.trust(vec![revocations(1, &[(GATEWAY, None)], &hub_key())]);
    below.hears_gateway(&good);
    assert!(below.is_held());
}

#[test]
fn another_gateways_word_is_not_taken_though_its_delegation_covers_the_node() {
    let mut below = Below::with(&allowed());
    let area = Delegation {
        gateway: node("area-gw"),
        key: soft(30).public_key().clone(),
        ..allowed()
    };
    below.trust(vec![delegation_item(&area, &hub_key())]);
    below.hears(sign(&ear(Status::Affirming, 0), "area-gw", &soft(30)));
    assert!(below.is_held());
    // About its parent it is: nobody else is above that one.
    let about_parent = Ear {
        subject: node(GATEWAY),
        key: gateway_key().public_key().clone(),
        ..ear(Status::Contraindicated, 0)
    };
    below.hears(sign(&about_parent, "area-gw", &soft(30)));
    assert!(below.rig.stored.delegated_parent_ear.is_some());
    // And a gateway that was found not to be what it should be judges nobody.
    below.hears_gateway(&ear(Status::Affirming, 10));
    assert!(below.is_held());
    // It does not vouch for itself either.
    let for_itself = Ear {
        status: Status::Affirming,
        iat: EPOCH_S + 20,
        ..about_parent
    };
    let before = below.rig.stored.delegated_parent_ear.clone();
    below.hears(sign(&for_itself, GATEWAY, &gateway_key()));
    assert_eq!(below.rig.stored.delegated_parent_ear, before);
}

#[test]
fn the_newest_word_counts_but_what_the_hub_found_against_the_node_stands() {
    // The hub's word, then the gateway's newer one, then the hub's old one again, as a gateway may repeat it.
    let mut below = Below::with(&allowed());
    let hubs = ear(Status::Affirming, 0);
    below.hears_hub(&hubs);
    assert!(!below.is_held());
    below.hears_gateway(&ear(Status::Contraindicated, 100));
    below.rig.exited(1, true, "");
    below.hears_hub(&hubs);
    assert!(below.is_held() && below.why().contains("by line-gw"), "{}", below.why());
    // The hub is back and says something newer.
    let actions = below.hears_hub(&ear(Status::Affirming, 200));
    assert_eq!(stopped_or_started(&actions).len(), 1, "{actions:?}");

    let mut below = Below::with(&allowed());
    below.hears_hub(&ear(Status::Contraindicated, 0));
    below.hears_gateway(&ear(Status::Affirming, 100));
    assert!(below.is_held(), "a gateway may judge by older references");
    assert!(below.restart().is_held());
    let actions = below.hears_hub(&ear(Status::Affirming, 200));
    assert_eq!(stopped_or_started(&actions).len(), 1, "{actions:?}");
    // Also where the gateway's clock is ahead of the hub's.
    let mut below = Below::with(&allowed());
    below.hears_gateway(&ear(Status::Affirming, 5000));
    below.hears_hub(&ear(Status::Contraindicated, 100));
    assert!(
        below.why().contains("not to be what it should be: PCR 7"),
        "{}",
        below.why()
    );
}

#[test]
fn the_gateways_result_lets_new_versions_in_while_the_hub_is_away() {
    let mut below = Below::with(&allowed());
    below.hears_hub(&ear(Status::Affirming, 0));
    below.rig.started(1);
    let well = RuntimeEvent::Health {
        healthy: true,
        detail: String::new(),
    };
    below.rig.runtime(1, well);
    below.rig.wait(4_000_000);
    below.twin(2, "two");
    let two = cnova_shared::ids::Digest::of(b"two");
    let actions = below.rig.take(Event::ArtifactStored(two));
    assert!(stopped_or_started(&actions).is_empty(), "the hub's result is over");
    let actions = below.hears_gateway(&ear(Status::Affirming, 4000));
    assert_eq!(stopped_or_started(&actions), ["stop app/a#1 2000"]);
}

#[test]
fn results_are_dropped_with_what_they_rest_on() {
    // The delegation is taken back.
    let mut below = Below::with(&allowed());
    below.hears_gateway(&ear(Status::Contraindicated, 0));
    let taken_back = Delegation {
        version: 2,
        rights: Vec::new(),
        ..allowed()
    };
    below.trust(vec![delegation_item(&taken_back, &hub_key())]);
    assert_eq!(below.why(), "trust: this node has not been attested yet");
    // The hub's own key leaves the bundle: at once, not only at the next start. What runs runs on.
    let mut below = Below::with(&allowed());
    below.hears_hub(&ear(Status::Affirming, 0));
    below.rig.started(1);
    below.trust(vec![bundle_item(3)]);
    assert_eq!(below.rig.report_of("app/a").state, WorkloadState::Running);
    let actions = below.rig.exited(1, false, "it died");
    assert!(stopped_or_started(&actions).is_empty());
    below.rig.wait(60_000);
    assert_eq!(below.why(), "trust: this node has not been attested yet");
    assert_eq!(below.restart().why(), "trust: this node has not been attested yet");
    // Signed anew by the new key it counts.
    let actions = below.hears(sign(&ear(Status::Affirming, 0), HUB, &second_key()));
    assert_eq!(stopped_or_started(&actions), ["start app/a#2 of 1.1"]);
}
