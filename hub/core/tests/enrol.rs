//! Who becomes a node: every rule, and every gate for a TPM, in the core alone.

#![allow(clippy::unwrap_used)]

use cnova_hub_core::enrol::{
    EnrolChange, EnrolRules, KnownTpm, Pinned, RANDOM_BYTES, SESSION_MS, SESSIONS_PER_DOOR, StoredEnrolment,
    StoredToken, token_id,
};
use cnova_hub_core::{Action, Config, Event, Hub, Outcome, Stored};
use cnova_shared::bundle::{self, Bundle, Role, SigningKey, TrustBundle};
use cnova_shared::certificate::Tier;
use cnova_shared::ids::{Digest, NodeId, SitePath};
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::time::Now;
use cnova_shared::wire::v1::{EnrolAnswer, EnrolBegin, EnrolFinish, EnrolIssued, EnrolRefused, EnrolStep};

const HUB: &str = "hub-1";
const NOW_S: u64 = 1_790_000_000;
const DAY_S: u64 = 86_400;
const TOKEN: &str = "cnova-enrol-abc";

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn key(seed: u8) -> SoftKey {
    SoftKey::ed25519_from_seed(&[seed; 32])
}

fn trust() -> TrustBundle {
    let root = key(1);
    let contents = Bundle {
        v: 1,
        version: 1,
        issued_at: NOW_S - DAY_S,
        roots: vec![root.public_key().clone()],
        threshold: 1,
        keys: vec![SigningKey {
            key: key(2).public_key().clone(),
            roles: vec![Role::Twin],
            not_after: NOW_S + 365 * DAY_S,
        }],
        authorities: vec![vec![1].into()],
        builders: Vec::new(),
        attestation: None,
    };
    TrustBundle::flashed(&bundle::sign(&contents, &[&root]).unwrap()).unwrap()
}

fn rules() -> EnrolRules {
    EnrolRules {
        allow_soft: true,
        lifetime_s: 90 * DAY_S,
        issuer_ends_s: NOW_S + 1000 * DAY_S,
        tpm_roots: Vec::new(),
        tpm_intermediates: Vec::new(),
    }
}

/// A hub whose daemon is this test.
struct Desk {
    hub: Hub,
    now: Now,
    stored: Stored,
    ticket: u64,
    audits: Vec<(String, String)>,
}

impl Desk {
    fn new(rules: Option<EnrolRules>) -> Self {
        let mut desk = Self::boot(rules, Stored::default());
        desk.drain();
        desk
    }

    fn boot(rules: Option<EnrolRules>, stored: Stored) -> Self {
        let now = Now {
            mono_ms: 1_000,
            wall_ms: NOW_S * 1000,
        };
        let config = Config {
            node: node(HUB),
            trust: trust(),
            enrolment: rules,
            appraisal: cnova_hub_core::Appraisal::new([7; 32]),
            delegation: cnova_hub_core::api::DelegationRules::default(),
        };
        let hub = Hub::boot(config, stored.clone(), now);
        Self {
            hub,
            now,
            stored,
            ticket: 0,
            audits: Vec::new(),
        }
    }

    /// A hub that was started again, with what was committed.
    fn again(self) -> Self {
        Self::boot(Some(rules()), self.stored)
    }

    /// Performs what is to be done; what was answered at the hub's own door, or to an admin.
    fn drain(&mut self) -> (Option<EnrolAnswer>, Option<Outcome>) {
        let (mut answer, mut outcome, mut committed) = (None, None, true);
        while let Some(action) = self.hub.poll_action() {
            match action {
                Action::Persist(ops) => {
                    committed = true;
                    self.stored.apply(&ops);
                }
                Action::Certify(certify) => {
                    committed = false;
                    let result = Ok(vec![certify.node.as_str().into(), b"issuer".to_vec()]);
                    self.hub.handle(Event::Certified { certify, result }, self.now);
                }
                Action::Enrolled { enrolled, child, .. } => {
                    assert!(committed, "the answer comes after the commit");
                    assert_eq!(child, None);
                    assert_eq!(enrolled.ticket, self.ticket);
                    answer = Some(enrolled.answer);
                }
                Action::Audit { action, outcome, .. } => self.audits.push((action.into(), outcome.into())),
                Action::Answer { outcome: o, .. } => outcome = Some(o),
                _ => {}
            }
        }
        (answer, outcome)
    }

    fn ask(&mut self, step: EnrolStep) -> EnrolAnswer {
        self.ticket += 1;
        self.ask_with(self.ticket, step)
    }

    fn ask_with(&mut self, ticket: u64, step: EnrolStep) -> EnrolAnswer {
        self.ask_as(HUB, ticket, step)
    }

    fn ask_as(&mut self, author: &str, ticket: u64, step: EnrolStep) -> EnrolAnswer {
        let mut random = Box::new([0; RANDOM_BYTES]);
        random[..8].copy_from_slice(&ticket.to_be_bytes());
        random[16..24].copy_from_slice(&ticket.to_be_bytes());
        let event = Event::Enrol {
            author: node(author),
            ticket,
            step,
            random,
        };
        self.hub.handle(event, self.now);
        self.drain().0.expect("an answer")
    }

    fn change(&mut self, change: EnrolChange) -> Outcome {
        self.hub.handle(Event::EnrolChange { request: 1, change }, self.now);
        self.drain().1.expect("an outcome")
    }

    fn token(&mut self, text: &str, site: &str, name: Option<&str>, uses: u32) {
        let token = StoredToken {
            site: site.parse().unwrap(),
            name: name.map(|n| n.parse().unwrap()),
            expires_s: NOW_S + 3600,
            uses_left: uses,
            by: "boss".into(),
            made_s: NOW_S,
        };
        let hash = Digest::of(text.as_bytes());
        assert_eq!(self.change(EnrolChange::AddToken { hash, token }), Outcome::Done);
    }

    /// Both steps of a node with a key in a file.
    fn enrol(&mut self, begin: EnrolBegin, key: &SoftKey) -> Result<EnrolIssued, EnrolRefused> {
        let challenge = match self.ask(EnrolStep::Begin(begin.clone())) {
            EnrolAnswer::Challenge(challenge) => challenge,
            EnrolAnswer::Refused(refused) => return Err(refused),
            other => panic!("{other:?}"),
        };
        let proof = key.sign(&begin.to_be_signed(&challenge.nonce)).unwrap();
        let session = challenge.session;
        match self.ask(EnrolStep::Finish(EnrolFinish { session, proof })) {
            EnrolAnswer::Issued(issued) => Ok(issued),
            EnrolAnswer::Refused(refused) => Err(refused),
            other => panic!("{other:?}"),
        }
    }

    fn uses_left(&self, text: &str) -> Option<u32> {
        let token = self.stored.enrolment.tokens.get(&Digest::of(text.as_bytes()));
        token.map(|t| t.uses_left)
    }
}

fn soft(key: &SoftKey, token: Option<&str>, name: Option<&str>) -> EnrolBegin {
    EnrolBegin {
        token: token.map(str::to_owned),
        name: name.map(node),
        key: key.public_key().clone(),
        tier: Tier::Soft,
        tpm: None,
    }
}

fn gate<T: std::fmt::Debug>(result: Result<T, EnrolRefused>) -> String {
    let refused = result.unwrap_err();
    assert!(!refused.message.is_empty() && !refused.advice.is_empty(), "{refused:?}");
    refused.gate
}

#[test]
fn a_token_admits_once_and_its_holder_may_ask_again_for_a_lost_answer() {
    let mut desk = Desk::new(Some(rules()));
    desk.token(TOKEN, "plant-7/plc-1", None, 1);
    let issued = desk.enrol(soft(&key(5), Some(TOKEN), None), &key(5)).unwrap();
    assert_eq!((issued.node.as_str(), issued.site.as_str()), ("plc-1", "plant-7/plc-1"));
    assert_eq!(issued.chain.len(), 2, "its own and the issuer's");
    let half = NOW_S + 45 * DAY_S;
    assert!(
        (half - 9 * DAY_S..=half).contains(&issued.renew_s),
        "at half of its life, or a little earlier"
    );
    assert_eq!(desk.uses_left(TOKEN), Some(0));

    let other = desk.enrol(soft(&key(6), Some(TOKEN), None), &key(6));
    assert_eq!(gate(other), "token");
    let mut desk = desk.again();
    desk.ticket = 100;
    let again = desk.enrol(soft(&key(5), Some(TOKEN), None), &key(5)).unwrap();
    assert_eq!(again.node, issued.node);
    assert_eq!(desk.audits, [("enrol".to_owned(), "done".to_owned())]);
}

#[test]
fn tokens_say_who_and_where_and_until_when() {
    let mut desk = Desk::new(Some(rules()));
    desk.token(TOKEN, "plant-7/line-2/*", Some("plc-*"), 3);
    let unnamed = desk.enrol(soft(&key(5), Some(TOKEN), None), &key(5));
    assert_eq!(gate(unnamed), "name", "the token leaves the name open");
    let wrong = desk.enrol(soft(&key(5), Some(TOKEN), Some("gw-1")), &key(5));
    assert_eq!(gate(wrong), "name");
    let issued = desk.enrol(soft(&key(5), Some(TOKEN), Some("plc-3")), &key(5)).unwrap();
    assert_eq!(issued.site.as_str(), "plant-7/line-2/plc-3");
    assert_eq!(
        gate(desk.enrol(soft(&key(6), Some("another"), Some("plc-4")), &key(6))),
        "token"
    );
    assert_eq!(gate(desk.enrol(soft(&key(6), None, Some("plc-4")), &key(6))), "unknown");
    let long = "x".repeat(500);
    assert_eq!(
        gate(desk.enrol(soft(&key(6), Some(&long), Some("plc-4")), &key(6))),
        "token"
    );
    desk.now.wall_ms += 3_600_000;
    let late = desk
        .enrol(soft(&key(6), Some(TOKEN), Some("plc-4")), &key(6))
        .unwrap_err();
    assert_eq!(
        (late.gate.as_str(), late.message.as_str()),
        ("token", "the token has expired")
    );
}

#[test]
fn a_token_that_is_taken_back_between_the_steps_admits_nobody() {
    let mut desk = Desk::new(Some(rules()));
    desk.token(TOKEN, "plant-7/plc-1", None, 1);
    let begin = soft(&key(5), Some(TOKEN), None);
    let EnrolAnswer::Challenge(challenge) = desk.ask(EnrolStep::Begin(begin.clone())) else {
        panic!("a challenge")
    };
    let id = token_id(&Digest::of(TOKEN.as_bytes()));
    assert_eq!(desk.change(EnrolChange::RevokeToken(id.clone())), Outcome::Done);
    assert!(matches!(
        desk.change(EnrolChange::RevokeToken(id)),
        Outcome::NotFound { .. }
    ));
    let proof = key(5).sign(&begin.to_be_signed(&challenge.nonce)).unwrap();
    let session = challenge.session;
    match desk.ask(EnrolStep::Finish(EnrolFinish { session, proof })) {
        EnrolAnswer::Refused(refused) => assert_eq!(refused.gate, "token"),
        other => panic!("{other:?}"),
    }
    assert!(desk.stored.enrolment.pinned.is_empty());
}

#[test]
fn a_proof_is_tried_once_for_what_was_begun_and_not_for_long() {
    let mut desk = Desk::new(Some(rules()));
    desk.token(TOKEN, "plant-7/plc-1", None, 1);
    let begin = soft(&key(5), Some(TOKEN), None);
    let refused = |answer: EnrolAnswer| match answer {
        EnrolAnswer::Refused(refused) => refused.gate,
        other => panic!("{other:?}"),
    };
    let challenge = |desk: &mut Desk| match desk.ask(EnrolStep::Begin(begin.clone())) {
        EnrolAnswer::Challenge(challenge) => challenge,
        other => panic!("{other:?}"),
    };
    let finish = |session: &[u8], proof: Vec<u8>| {
        let session = session.to_vec();
        EnrolStep::Finish(EnrolFinish { session, proof })
    };
    let c = challenge(&mut desk);
    let good = key(5).sign(&begin.to_be_signed(&c.nonce)).unwrap();
    let mut other = begin.clone();
    other.name = Some(node("plc-9"));
    let for_another = key(5).sign(&other.to_be_signed(&c.nonce)).unwrap();
    assert_eq!(refused(desk.ask(finish(&c.session, for_another))), "possession");
    assert_eq!(refused(desk.ask(finish(&c.session, good))), "session", "one attempt");

    let c = challenge(&mut desk);
    let good = key(5).sign(&begin.to_be_signed(&c.nonce)).unwrap();
    let stolen = key(6).sign(&begin.to_be_signed(&c.nonce)).unwrap();
    let at_another_door = {
        desk.ticket += 1;
        let (ticket, step) = (desk.ticket, finish(&c.session, good.clone()));
        // The gateway is not known to the tree: no answer can go there, and none was prepared.
        let mut random = Box::new([0; RANDOM_BYTES]);
        random[0] = 1;
        let author = node("gw-1");
        desk.hub.handle(
            Event::Enrol {
                author,
                ticket,
                step,
                random,
            },
            desk.now,
        );
        desk.drain().0
    };
    assert_eq!((at_another_door, desk.stored.enrolment.pinned.len()), (None, 0));
    assert_eq!(refused(desk.ask(finish(&c.session, stolen))), "possession");

    let c = challenge(&mut desk);
    let good = key(5).sign(&begin.to_be_signed(&c.nonce)).unwrap();
    desk.now.mono_ms += SESSION_MS;
    assert_eq!(refused(desk.ask(finish(&c.session, good))), "session", "too late");
    assert_eq!(refused(desk.ask(finish(&[], Vec::new()))), "session");
    assert_eq!(refused(desk.ask(EnrolStep::Unknown)), "malformed");
}

#[test]
fn a_question_that_is_asked_again_gets_the_same_answer_and_nothing_is_spent_twice() {
    let mut desk = Desk::new(Some(rules()));
    desk.token(TOKEN, "plant-7/*", None, 2);
    let begin = soft(&key(5), Some(TOKEN), Some("plc-1"));
    let first = desk.ask(EnrolStep::Begin(begin.clone()));
    assert_eq!(desk.ask_with(desk.ticket, EnrolStep::Begin(begin.clone())), first);
    let EnrolAnswer::Challenge(challenge) = first else {
        panic!("a challenge")
    };
    let proof = key(5).sign(&begin.to_be_signed(&challenge.nonce)).unwrap();
    let finish = EnrolStep::Finish(EnrolFinish {
        session: challenge.session,
        proof,
    });
    let issued = desk.ask(finish.clone());
    assert!(matches!(issued, EnrolAnswer::Issued(_)));
    assert_eq!(desk.ask_with(desk.ticket, finish), issued);
    assert_eq!(desk.uses_left(TOKEN), Some(1));
}

#[test]
fn names_and_keys_stay_together() {
    let mut desk = Desk::new(Some(rules()));
    desk.token(TOKEN, "plant-7/*", None, 9);
    desk.enrol(soft(&key(5), Some(TOKEN), Some("plc-1")), &key(5)).unwrap();
    let taken = desk.enrol(soft(&key(6), Some(TOKEN), Some("plc-1")), &key(6));
    assert_eq!(gate(taken), "bound");
    let twice = desk.enrol(soft(&key(5), Some(TOKEN), Some("plc-2")), &key(5));
    assert_eq!(gate(twice), "bound");
    assert_eq!(desk.uses_left(TOKEN), Some(8));
    assert_eq!(desk.change(EnrolChange::Forget(node("plc-1"))), Outcome::Done);
    assert!(matches!(
        desk.change(EnrolChange::Forget(node("plc-1"))),
        Outcome::NotFound { .. }
    ));
    desk.enrol(soft(&key(6), Some(TOKEN), Some("plc-1")), &key(6)).unwrap();
    let refused = desk.audits.iter().filter(|(_, outcome)| outcome == "refused").count();
    assert_eq!(
        refused, 2,
        "who held a token and wanted another's name stands in the audit log"
    );
}

fn pinned(tier: Tier, ek: Option<Digest>, key: &SoftKey) -> Pinned {
    Pinned {
        site: SitePath::new("plant-7/plc-1").unwrap(),
        tier,
        ek,
        ak: Vec::new(),
        key: key.public_key().clone(),
        token: None,
        first_s: NOW_S - DAY_S,
        last_s: NOW_S - DAY_S,
        not_after_s: NOW_S,
    }
}

fn with_tpm_node() -> Stored {
    let mut enrolment = StoredEnrolment::default();
    let of_tpm = pinned(Tier::Tpm, Some(Digest([7; 32])), &key(5));
    enrolment.pinned.insert(node("plc-1"), of_tpm);
    Stored {
        enrolment,
        ..Stored::default()
    }
}

#[test]
fn a_node_with_a_tpm_never_comes_back_with_a_file() {
    let mut desk = Desk::boot(Some(rules()), with_tpm_node());
    desk.drain();
    desk.token(TOKEN, "plant-7/plc-1", None, 1);
    // Not even with the very key that is in the TPM.
    for seed in [5, 6] {
        let refused = desk.enrol(soft(&key(seed), Some(TOKEN), None), &key(seed));
        assert_eq!(gate(refused), "downgrade");
    }
    assert_eq!(desk.uses_left(TOKEN), Some(1));
}

#[test]
fn renewal_is_for_the_key_that_was_admitted() {
    let mut desk = Desk::boot(Some(rules()), with_tpm_node());
    desk.drain();
    let renew = |seed: u8| EnrolStep::Renew {
        key: key(seed).public_key().clone(),
    };
    // Its author's signature was verified by the tree; the answer goes down the tree, which has no such node here.
    let asks = |desk: &mut Desk, who: &str, step: EnrolStep| {
        desk.ticket += 1;
        let event = Event::Enrol {
            author: node(who),
            ticket: desk.ticket,
            step,
            random: Box::new([0; RANDOM_BYTES]),
        };
        desk.hub.handle(event, desk.now);
        desk.drain();
        desk.stored.enrolment.pinned[&node("plc-1")].clone()
    };
    let before = desk.stored.enrolment.pinned[&node("plc-1")].clone();
    assert_eq!(asks(&mut desk, "plc-1", renew(6)), before, "another key");
    assert_eq!(asks(&mut desk, "plc-2", renew(5)), before, "not a node of this hub");
    let after = asks(&mut desk, "plc-1", renew(5));
    assert_eq!((after.not_after_s, after.last_s), (NOW_S + 90 * DAY_S, NOW_S));
    assert_eq!(
        (after.tier, after.ek, after.first_s),
        (before.tier, before.ek, before.first_s)
    );
}

#[test]
fn nothing_outlasts_the_issuer_and_a_closed_desk_admits_nobody() {
    let short = EnrolRules {
        issuer_ends_s: NOW_S + DAY_S,
        ..rules()
    };
    let mut desk = Desk::new(Some(short));
    desk.token(TOKEN, "plant-7/plc-1", None, 1);
    let issued = desk.enrol(soft(&key(5), Some(TOKEN), None), &key(5)).unwrap();
    assert!(issued.renew_s <= NOW_S + DAY_S / 2);
    assert_eq!(desk.stored.enrolment.pinned[&node("plc-1")].not_after_s, NOW_S + DAY_S);

    let mut desk = Desk::new(None);
    assert_eq!(gate(desk.enrol(soft(&key(5), Some(TOKEN), None), &key(5))), "closed");
    let strict = EnrolRules {
        allow_soft: false,
        ..rules()
    };
    let mut desk = Desk::new(Some(strict));
    desk.token(TOKEN, "plant-7/plc-1", None, 1);
    assert_eq!(gate(desk.enrol(soft(&key(5), Some(TOKEN), None), &key(5))), "soft");
}

#[test]
fn one_door_cannot_take_all_sessions() {
    let mut desk = Desk::new(Some(rules()));
    desk.token(TOKEN, "plant-7/*", None, 9);
    for i in 0..SESSIONS_PER_DOOR {
        let answer = desk.ask(EnrolStep::Begin(soft(&key(5), Some(TOKEN), Some(&format!("plc-{i}")))));
        assert!(matches!(answer, EnrolAnswer::Challenge(_)), "{answer:?}");
    }
    let more = desk
        .enrol(soft(&key(5), Some(TOKEN), Some("plc-x")), &key(5))
        .unwrap_err();
    assert_eq!((more.gate.as_str(), more.passing), ("busy", true));
    desk.now.mono_ms += SESSION_MS;
    desk.enrol(soft(&key(5), Some(TOKEN), Some("plc-x")), &key(5)).unwrap();
}

#[test]
fn what_admins_say_is_kept_and_shown_without_the_token() {
    let mut desk = Desk::new(Some(rules()));
    desk.token(TOKEN, "plant-7/plc-1", None, 1);
    let known = |name: &str| KnownTpm {
        node: node(name),
        site: SitePath::new("plant-7/plc-2").unwrap(),
        by: "boss".into(),
        made_s: NOW_S,
    };
    let add = |byte: u8, name: &str| EnrolChange::AddKnown {
        fingerprint: Digest([byte; 32]),
        known: known(name),
    };
    assert_eq!(desk.change(add(1, "plc-2")), Outcome::Done);
    assert!(
        matches!(desk.change(add(2, "plc-2")), Outcome::Refused { .. }),
        "one TPM a name"
    );
    let desk = desk.again();
    let shown = serde_json::to_string(&desk.hub.enrolment()).unwrap();
    assert!(
        shown.contains("plc-2") && shown.contains("plant-7/plc-1") && !shown.contains(TOKEN),
        "{shown}"
    );
    let mut desk = desk;
    assert_eq!(desk.change(EnrolChange::DropKnown(Digest([1; 32]))), Outcome::Done);
    assert!(matches!(
        desk.change(EnrolChange::DropKnown(Digest([1; 32]))),
        Outcome::NotFound { .. }
    ));
}

#[test]
fn a_tpm_that_shows_nothing_or_nonsense_is_told_so() {
    let mut desk = Desk::new(Some(rules()));
    let mut begin = soft(&key(5), Some(TOKEN), None);
    begin.tier = Tier::Tpm;
    assert_eq!(gate(desk.enrol(begin.clone(), &key(5))), "malformed");
    begin.tpm = Some(vec![0xff; 40].into());
    assert_eq!(gate(desk.enrol(begin, &key(5))), "malformed");
}
