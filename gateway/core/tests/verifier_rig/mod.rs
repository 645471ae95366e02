//! A gateway with a TPM and a delegation, its children with TPMs in software, and a hub that can be away.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

#[path = "../../../../shared/tests/support/rotation.rs"]
pub mod rotation;
#[path = "../../../../shared/tests/support/mod.rs"]
pub mod support;

use std::collections::{BTreeMap, BTreeSet};

use cnova_attestation::ear::{Ear, Finding, Status, TrustVector, VerifierId};
use cnova_attestation::event_log::{Boot, Event as Logged, slice};
use cnova_attestation::evidence::Evidence;
use cnova_attestation::parent::ParentTrust;
use cnova_attestation::reference::{self, PcrReference, ReferenceSet, References, Selector};
use cnova_attestation::testing::SoftTpm;
use cnova_gateway_core::{Action, Appraisal, Config, Event, Gateway, Op, Stored, UpMessage};
use cnova_shared::bundle::TrustBundle;
use cnova_shared::certificate::Tier;
use cnova_shared::envelope::{Claims, Endorsement, Introduction, Untrusted, seal, seal_payload};
use cnova_shared::ids::Digest;
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::time::Now;
use cnova_shared::topics::Kind;
use cnova_shared::trust_documents::{Delegation, Right};
use cnova_shared::wire::v1::{self, Body, Challenge, TrustItem, TrustItemKind};
use rotation::{bundle, delegation_item, trust_message};
use support::{EPOCH_S, HUB, Identity, certified, claims, hub_key, node, soft};

pub const ME: &str = "line-gw";
pub const CHILD: &str = "plc-1";
pub const MY_KEY: u8 = 20;
pub const AFTER_MS: u64 = 60_000;
pub const ENDS_S: u64 = EPOCH_S + 96 * 3600;

/// A child: its identity, its TPM, and the session key of its present start.
pub struct Machine {
    pub identity: Identity,
    pub tpm: SoftTpm,
    pub session: SoftKey,
    pub role: v1::NodeRole,
    pub site: String,
}

impl Machine {
    pub fn new(name: &str, n: u8, site: &str) -> Self {
        let tpm = SoftTpm::new();
        let ak = tpm.ak_public();
        let mut machine = Self {
            identity: certified(name, n, site, Some(&ak)),
            tpm,
            session: soft(n + 100),
            role: v1::NodeRole::Agent,
            site: site.to_owned(),
        };
        machine.boot();
        machine
    }

    fn boot(&mut self) {
        self.tpm.log_and_extend(Logged::Boot(Boot {
            agent: Digest::of(b"agent"),
            version: "test".into(),
            boot: "b".into(),
            before: None,
        }));
    }

    /// The machine and its agent are started anew.
    pub fn reboot(&mut self, session: u8) {
        self.tpm.reboot();
        self.session = soft(session);
        self.boot();
    }

    pub fn name(&self) -> &str {
        self.identity.node.as_str()
    }

    pub fn hello(&self) -> Vec<u8> {
        let hello = v1::Hello {
            v: 1,
            boot: format!("boot of {}", self.session.public_key().id()),
            epoch: 0,
            generation: 0,
            digest: None,
            incarnation: 1,
            role: self.role,
            site: self.site.parse().unwrap(),
            labels: BTreeMap::new(),
            capabilities: v1::Capabilities::default(),
            software: "test".into(),
            trust_version: 2,
            documents: BTreeMap::new(),
            renew: false,
            box_key: None,
            alarms: Vec::new(),
        };
        let key = self.session.public_key().clone();
        let endorsement = Endorsement::make(&self.identity.node, key, &self.identity.key).unwrap();
        let introduction = Introduction {
            chain: &self.identity.chain,
            endorsement: Some(&endorsement),
        };
        let payload = cnova_shared::wire::encode(&hello).unwrap();
        let claims = claims(self.name(), "hub");
        seal_payload(Kind::Hello, &claims, payload, introduction, &self.session).unwrap()
    }

    pub fn evidence(&self, nonce: &[u8]) -> Evidence {
        let log = slice(&self.tpm.file, None);
        let session = self.session.public_key();
        self.tpm.evidence_of(&self.identity.node, nonce, session, log, EPOCH_S)
    }

    pub fn seal(&self, evidence: &Evidence, verifier: &str) -> Vec<u8> {
        let payload = evidence.encode().unwrap();
        let claims = claims(self.name(), verifier);
        seal_payload(Kind::Evidence, &claims, payload, Introduction::default(), &self.session).unwrap()
    }
}

/// Reference values that this machine fits as it is now.
pub fn references(version: u64, tpm: &SoftTpm) -> References {
    let boot = tpm.pcrs.iter().filter(|(pcr, _)| **pcr != 14);
    let one = |value: &Digest| PcrReference {
        values: BTreeSet::from([*value]),
        events: BTreeSet::new(),
    };
    let set = ReferenceSet {
        name: "image".into(),
        nodes: Selector {
            all: true,
            ..Selector::default()
        },
        pcrs: boot.map(|(pcr, value)| (*pcr, one(value))).collect(),
        ..ReferenceSet::default()
    };
    let sets = vec![set];
    References { v: 1, version, sets }
}

pub fn references_item(references: &References, key: &SoftKey) -> TrustItem {
    TrustItem {
        kind: TrustItemKind::References,
        body: reference::seal(references, &claims(HUB, "fleet"), key).unwrap().into(),
    }
}

pub fn my_key() -> SoftKey {
    soft(MY_KEY)
}

pub fn delegation(version: u64, not_after: u64) -> Delegation {
    Delegation {
        key: my_key().public_key().clone(),
        rights: vec![Right::Appraise],
        ..rotation::delegation(version, &node(ME), "plant-7/line-2", not_after)
    }
}

/// What the hub says of a node whose certified key is made from `n`.
pub fn hub_ear(about: &str, n: u8, status: Status, iat: u64, exp: u64) -> Ear {
    let found = Finding {
        code: "pcr-mismatch".into(),
        detail: "PCR 7 holds something else".into(),
        ..Finding::default()
    };
    let findings = (status == Status::Contraindicated).then_some(found);
    Ear {
        subject: node(about),
        key: soft(n).public_key().clone(),
        nonce: vec![1; 32],
        iat,
        exp,
        verifier: VerifierId {
            developer: "Cloudnova".into(),
            build: "hub".into(),
        },
        status,
        vector: TrustVector::default(),
        policy: "image (references 1)".into(),
        tier: Tier::Tpm,
        boot_measured: true,
        findings: findings.into_iter().collect(),
    }
}

pub struct Rig {
    pub config: Config,
    pub gateway: Gateway,
    pub stored: Stored,
    pub now: Now,
}

impl Rig {
    /// A gateway below `parent`.
    pub fn config(parent: &str, parent_trust: ParentTrust) -> Config {
        Config {
            node: node(ME),
            site: "plant-7/line-2".parse().unwrap(),
            parent: node(parent),
            labels: BTreeMap::new(),
            software: "test".into(),
            boot: "boot-1".into(),
            trust: TrustBundle::flashed(&bundle(2)).unwrap(),
            alarms: Vec::new(),
            key: my_key().public_key().clone(),
            renew_s: None,
            parent_trust,
            appraisal: Appraisal {
                after_ms: AFTER_MS,
                ..Appraisal::new([5; 32])
            },
        }
    }

    pub fn boot(config: Config, stored: Stored, now: Now) -> Self {
        let gateway = Gateway::boot(config.clone(), stored.clone(), BTreeMap::new(), BTreeMap::new(), now);
        let mut rig = Self {
            config,
            gateway,
            stored,
            now,
        };
        rig.perform();
        rig
    }

    pub fn new() -> Self {
        let now = Now {
            mono_ms: 1000,
            wall_ms: EPOCH_S * 1000,
        };
        Self::boot(Self::config(HUB, ParentTrust::Certified), Stored::default(), now)
    }

    /// A gateway that may appraise as soon as the hub is away: delegation, references, its own result. The hub is here.
    pub fn ready(child: &Machine) -> Self {
        let mut rig = Self::new();
        rig.take(Event::ParentConnected);
        rig.hub_answers(0);
        rig.trust(vec![
            delegation_item(&delegation(1, ENDS_S), &hub_key()),
            references_item(&references(1, &child.tpm), &hub_key()),
        ]);
        rig.hub_says(&hub_ear(ME, MY_KEY, Status::Affirming, EPOCH_S, EPOCH_S + 86_400));
        rig.hello(child);
        rig
    }

    /// As [`Rig::ready`], and the hub is away for long enough.
    pub fn acting(child: &Machine) -> (Self, Vec<Action>) {
        let mut rig = Self::ready(child);
        rig.take(Event::ParentDisconnected);
        let actions = rig.wait(AFTER_MS);
        (rig, actions)
    }

    pub fn take(&mut self, event: Event) -> Vec<Action> {
        self.gateway.handle(event, self.now);
        self.perform()
    }

    /// What a child is told, and what is reported, must be on disk by then. Results are signed at once.
    pub fn perform(&mut self) -> Vec<Action> {
        let mut done = Vec::new();
        while let Some(action) = self.gateway.poll_action() {
            match &action {
                Action::Persist(ops) => self.stored.apply(ops),
                Action::SignEar(ear) => {
                    let bytes = sign_ear(ear, ME, &my_key());
                    let node = ear.subject.clone();
                    self.gateway.handle(Event::EarSigned { node, bytes }, self.now);
                }
                Action::Forward {
                    kind: Kind::Ear, bytes, ..
                } if issuer(bytes) == ME => {
                    assert!(self.stored.results.values().any(|b| b == bytes), "told, not kept");
                }
                _ => {}
            }
            done.push(action);
        }
        done
    }

    pub fn wait(&mut self, ms: u64) -> Vec<Action> {
        self.now.mono_ms += ms;
        self.now.wall_ms += ms;
        self.take(Event::Tick)
    }

    /// The hub acknowledges; with a parent that is a gateway, for so long it has not reached the hub.
    pub fn hub_answers(&mut self, away_s: u64) -> Vec<Action> {
        let ack = v1::Ack {
            v: 1,
            stream: v1::Stream::Report,
            incarnation: 0,
            seq: 0,
            hello: None,
            away_s,
        };
        self.hub_sends(Kind::Ack, &ack)
    }

    pub fn hub_sends<T: serde::Serialize>(&mut self, kind: Kind, value: &T) -> Vec<Action> {
        let bytes = seal(kind, &claims(HUB, ME), value, &[], &hub_key()).unwrap();
        self.take(Event::FromParent { kind, bytes })
    }

    pub fn hub_says(&mut self, ear: &Ear) -> Vec<Action> {
        self.hub_says_by(ear, &hub_key())
    }

    pub fn hub_says_by(&mut self, ear: &Ear, key: &SoftKey) -> Vec<Action> {
        let bytes = sign_ear(ear, HUB, key);
        self.take(Event::FromParent { kind: Kind::Ear, bytes })
    }

    pub fn trust(&mut self, items: Vec<TrustItem>) -> Vec<Action> {
        self.hub_sends(Kind::Trust, &trust_message(items))
    }

    pub fn hello(&mut self, child: &Machine) -> Vec<Action> {
        self.take(Event::ChildConnected(node(child.name())));
        self.child_sends(child, Kind::Hello, child.hello())
    }

    pub fn child_sends(&mut self, child: &Machine, kind: Kind, bytes: Vec<u8>) -> Vec<Action> {
        let child = node(child.name());
        self.take(Event::FromChild { child, kind, bytes })
    }

    /// The child answers this gateway.
    pub fn answers(&mut self, child: &Machine, challenge: &Challenge) -> Vec<Action> {
        let bytes = child.seal(&child.evidence(&challenge.nonce), ME);
        self.child_sends(child, Kind::Evidence, bytes)
    }

    pub fn says(&self, key: &str) -> Option<&Body> {
        let mut entries = self.stored.stream.entries.iter();
        entries.find(|e| e.key == key).map(|e| &e.body)
    }

    pub fn alarm(&self) -> bool {
        let key = format!("alarm/child-contraindicated/{CHILD}");
        matches!(self.says(&key), Some(Body::Alarm(a)) if a.code == "child-contraindicated")
    }

    pub fn restart(&self) -> Self {
        Self::boot(self.config.clone(), self.stored.clone(), self.now)
    }
}

pub fn sign_ear(ear: &Ear, iss: &str, key: &SoftKey) -> Vec<u8> {
    let claims = Claims {
        iss: node(iss),
        aud: ear.subject.clone(),
        iat: ear.iat,
        exp: Some(ear.exp),
    };
    seal(Kind::Ear, &claims, ear, &[], key).unwrap()
}

pub fn issuer(bytes: &[u8]) -> String {
    Untrusted::read(bytes).unwrap().claims.iss.to_string()
}

pub fn challenged(actions: &[Action]) -> Vec<Challenge> {
    let challenge = |a: &Action| match a {
        Action::Challenge { challenge, .. } => Some(challenge.clone()),
        _ => None,
    };
    actions.iter().filter_map(challenge).collect()
}

/// Results of this gateway that its children were told.
pub fn told(actions: &[Action]) -> Vec<Ear> {
    let ear = |a: &Action| match a {
        Action::Forward {
            kind: Kind::Ear, bytes, ..
        } if issuer(bytes) == ME => {
            let untrusted = Untrusted::read(bytes).unwrap();
            let verified = untrusted.verify(Kind::Ear, my_key().public_key()).unwrap();
            Some(verified.decode::<Ear>().unwrap().into_value())
        }
        _ => None,
    };
    actions.iter().filter_map(ear).collect()
}

pub fn noted(actions: &[Action], text: &str) -> bool {
    let said = |a: &Action| matches!(a, Action::Note(n) if n.contains(text));
    actions.iter().any(said)
}

/// Whether this evidence went up, for the hub.
pub fn relayed(actions: &[Action], bytes: &[u8]) -> bool {
    let kept = |op: &Op| match op {
        Op::Spool(cnova_gateway_core::spool::SpoolOp::Put { item, .. }) => item.bytes == bytes,
        _ => false,
    };
    let carried = |a: &Action| match a {
        Action::Persist(ops) => ops.iter().any(kept),
        Action::SendUp(UpMessage::Relay(r)) => r.items.iter().any(|i| *i.body == *bytes),
        _ => false,
    };
    actions.iter().any(carried)
}
