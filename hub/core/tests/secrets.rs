//! Secrets at the hub: granted or refused with their places, encrypted once for each node, rotated, never lost.

#![allow(clippy::unwrap_used)]

#[path = "../../../shared/tests/support/rotation.rs"]
mod rotation;
#[path = "../../../shared/tests/support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};

use cnova_hub_core::cndl;
use cnova_hub_core::policy::{AdmissionContext, PolicySet, PolicySource};
use cnova_hub_core::secrets::{Grantee, SecretChange, SecretInfo};
use cnova_hub_core::{Action, Appraisal, Config, DelegationRules, Event, Hub, Outcome, Stored};
use cnova_shared::ids::{Digest, Name, SitePath};
use cnova_shared::keys::Signer;
use cnova_shared::limits;
use cnova_shared::secret::{self, Address, BoxKey, BoxPublicKey};
use cnova_shared::time::Now;
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1;
use rotation::{flashed, twin_by};
use serde_bytes::ByteBuf;
use support::{EPOCH_S, HUB, hub_key, identity, node};

const NOW: Now = Now {
    mono_ms: 1000,
    wall_ms: EPOCH_S * 1000,
};
const NODE: &str = "plc-1";

fn box_key(n: u8) -> BoxKey {
    BoxKey::from_bytes(&[n; 32]).unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

struct Rig {
    hub: Hub,
    stored: Stored,
    requests: u64,
    /// Each secret that is encrypted takes other random numbers.
    drawn: u8,
    sealed: Vec<String>,
    twins: Vec<v1::Twin>,
    outcomes: Vec<Outcome>,
    /// The daemon's key file is gone.
    broken: bool,
}

impl Rig {
    fn boot(stored: Stored) -> Self {
        let config = Config {
            node: node(HUB),
            trust: flashed(),
            appraisal: Appraisal::new([7; 32]),
            enrolment: None,
            delegation: DelegationRules::default(),
        };
        let mut rig = Self {
            hub: Hub::boot(config, stored.clone(), NOW),
            stored,
            requests: 0,
            drawn: 10,
            sealed: Vec::new(),
            twins: Vec::new(),
            outcomes: Vec::new(),
            broken: false,
        };
        rig.perform();
        rig.tell(Event::Signer(hub_key().public_key().id()));
        rig
    }

    /// A hub with one node, which shows this key.
    fn with_node(key: Option<u8>) -> Self {
        let mut rig = Self::boot(Stored::default());
        rig.tell(Event::ChildConnected(node(NODE)));
        rig.hello("b1", key);
        rig
    }

    fn tell(&mut self, event: Event) {
        self.hub.handle(event, NOW);
        self.perform();
    }

    /// As the daemon does: encrypts, inspects and signs at once.
    fn perform(&mut self) {
        while let Some(action) = self.hub.poll_action() {
            match action {
                Action::Persist(ops) => self.stored.apply(&ops),
                Action::SignTwin(twin) => {
                    cnova_shared::twin::check(&twin, &twin.node).unwrap();
                    let bytes = twin_by(&hub_key(), &twin);
                    self.twins.push(*twin);
                    self.hub.handle(Event::TwinSigned(bytes), NOW);
                }
                Action::Inspect(key) => self.hub.handle(
                    Event::Inspected {
                        key,
                        result: Ok(Vec::new()),
                    },
                    NOW,
                ),
                Action::SealSecret(order) => {
                    let (node, name, version) = (&order.key.node, &order.key.name, order.key.version);
                    self.sealed.push(format!("{name}.{version}@{node}"));
                    let to = BoxPublicKey::from_bytes(&order.box_key).unwrap();
                    self.drawn += 1;
                    let value = order.locked.strip_prefix(b"locked:").unwrap();
                    let address = Address { node, name, version };
                    let blob = secret::seal(value, &to, address, &box_key(self.drawn), [self.drawn; 12]).unwrap();
                    let sealed = v1::SealedSecret {
                        name: name.clone(),
                        version,
                        key: to.id(),
                        blob: ByteBuf::from(blob),
                    };
                    let result = if self.broken {
                        Err("the key file is gone".into())
                    } else {
                        Ok(sealed)
                    };
                    let key = order.key.clone();
                    self.hub.handle(Event::SecretSealed { key, result }, NOW);
                }
                Action::Answer { outcome, .. } => self.outcomes.push(outcome),
                _ => {}
            }
        }
    }

    fn hello(&mut self, boot: &str, key: Option<u8>) {
        let runtime = v1::RuntimeCapability {
            name: "container".into(),
            version: "1".into(),
            engine: String::new(),
            targets: vec!["x86_64-unknown-linux-gnu".into()],
        };
        let hello = v1::Hello {
            v: 1,
            boot: boot.into(),
            epoch: 0,
            generation: 0,
            digest: None,
            incarnation: 1,
            role: v1::NodeRole::Agent,
            site: SitePath::new(format!("plant-7/{NODE}")).unwrap(),
            labels: BTreeMap::new(),
            capabilities: v1::Capabilities {
                runtimes: vec![runtime],
                memory_bytes: 1 << 30,
                cpu_millis: 4000,
                ..v1::Capabilities::default()
            },
            software: "test".into(),
            trust_version: 1,
            documents: BTreeMap::new(),
            renew: false,
            box_key: key.map(|n| ByteBuf::from(box_key(n).public().to_bytes())),
            alarms: Vec::new(),
        };
        let bytes = identity(NODE, 10).seal(Kind::Hello, &hello, true);
        let (child, kind) = (node(NODE), Kind::Hello);
        self.tell(Event::FromChild { child, kind, bytes });
    }

    fn change(&mut self, change: SecretChange) -> Outcome {
        self.requests += 1;
        let request = self.requests;
        self.tell(Event::Secret { request, change });
        self.outcomes.pop().unwrap()
    }

    fn set(&mut self, secret: &str, value: &str, allow: Option<&[&str]>) -> Outcome {
        self.change(SecretChange::Set {
            name: name(secret),
            locked: format!("locked:{value}").into_bytes(),
            tag: Digest::of(value.as_bytes()).0.to_vec(),
            is_text: !value.contains('\0'),
            allow: allow.map(grantees),
            by: "ann".into(),
        })
    }

    fn apply(&mut self, app: &str, secrets: &str) -> Outcome {
        let digest = Digest::of(b"image");
        self.tell(Event::Uploaded { digest, size: 5 });
        let text = format!(
            "apiVersion: cnova/v1\nkind: Application\nmetadata: {{name: {app}}}\nworkloads:\n  - name: w\n    \
             runtime: container\n    artifact: {{digest: \"{digest}\"}}\n    resources: {{memory: 1MiB}}\n    \
             secrets: {secrets}\n"
        );
        let manifest = cndl::parse(&text, "m.yaml").unwrap_or_else(|e| panic!("{e}"));
        let open = [PolicySource {
            name: "open.rego".into(),
            text: "package cnova.admission\ndeny contains \"never\" if false\n".into(),
        }];
        let context = AdmissionContext {
            user: "ann".into(),
            now_unix_s: EPOCH_S,
        };
        let manifest = Box::new(PolicySet::new(&open).unwrap().admit(manifest, &context).unwrap());
        self.requests += 1;
        let request = self.requests;
        self.tell(Event::Apply { request, manifest });
        self.outcomes.pop().unwrap()
    }

    fn twin(&self) -> &v1::Twin {
        self.twins.last().unwrap()
    }

    /// What the node reads in its newest twin.
    fn opened(&self, key: u8) -> BTreeMap<String, (u64, String)> {
        let twin = self.twin();
        let open = |s: &v1::SealedSecret| {
            let address = Address {
                node: &twin.node,
                name: &s.name,
                version: s.version,
            };
            let value = secret::open(&s.blob, &box_key(key), address).unwrap();
            (
                s.name.to_string(),
                (s.version, String::from_utf8(value.to_vec()).unwrap()),
            )
        };
        twin.secrets.iter().map(open).collect()
    }

    fn info(&self, name: &str) -> SecretInfo {
        self.hub
            .secrets()
            .into_iter()
            .find(|s| s.name.as_str() == name)
            .unwrap()
    }
}

fn grantees(list: &[&str]) -> BTreeSet<Grantee> {
    list.iter().map(|g| g.parse().unwrap()).collect()
}

fn was_set(outcome: &Outcome) -> (u64, bool) {
    match outcome {
        Outcome::Secret { version, changed, .. } => (*version, *changed),
        other => panic!("{other:?}"),
    }
}

fn refused(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Refused { reasons } => reasons.join("; "),
        Outcome::Mistakes(errors) => errors.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_gets_the_secrets_that_its_workloads_name_and_no_others() {
    let mut rig = Rig::with_node(Some(1));
    rig.set("db", "hunter2", Some(&["app"]));
    rig.set("other", "unused", Some(&["app"]));
    assert!(rig.twins.is_empty(), "nobody uses them");
    rig.apply("app", "[{name: db, env: DB}, {name: db, path: /run/secrets/db}]");
    assert_eq!(rig.opened(1), BTreeMap::from([("db".into(), (1, "hunter2".into()))]));
    let uses = &rig.twin().workloads[0].secrets;
    let targets: Vec<_> = uses.iter().map(|u| (u.version, u.target.clone())).collect();
    assert_eq!(
        targets,
        [
            (1, v1::SecretTarget::Env("DB".into())),
            (1, v1::SecretTarget::File("/run/secrets/db".into()))
        ]
    );
    let info = rig.info("db");
    assert_eq!(info.used_by, BTreeSet::from(["app/w".to_owned()]));
    assert_eq!(info.nodes, BTreeMap::from([(node(NODE), 1)]));
    assert_eq!(rig.info("other").nodes, BTreeMap::new());
}

#[test]
fn what_is_composed_anew_has_the_same_bytes_also_after_a_restart() {
    let mut rig = Rig::with_node(Some(1));
    rig.set("db", "hunter2", Some(&["app"]));
    rig.apply("app", "[{name: db, env: DB}]");
    let before = rig.twin().clone();
    rig.apply("app", "[{name: db, env: DB}]");
    rig.hello("b2", Some(1));
    assert_eq!(
        rig.set("db", "hunter2", None),
        Outcome::Secret {
            name: name("db"),
            version: 1,
            changed: false
        }
    );
    let mut again = Rig::boot(rig.stored.clone());
    again.hello("b3", Some(1));
    again.apply("app", "[{name: db, env: DB}]");
    assert_eq!((rig.twins.len(), again.twins.len()), (1, 0), "no new twin");
    assert_eq!(again.hub.twin(&node(NODE)).unwrap(), before);
    assert_eq!((rig.sealed.len(), again.sealed.len()), (1, 0), "encrypted once");
    // A twin that changes for another reason carries the same bytes.
    again.set("more", "m", Some(&["two"]));
    again.apply("two", "[{name: more, env: M}]");
    assert_eq!(again.twin().secrets[0], before.secrets[0]);
    assert_eq!(again.sealed, ["more.1@plc-1"]);
}

#[test]
fn another_value_is_another_version_of_the_workload() {
    let mut rig = Rig::with_node(Some(1));
    assert_eq!(was_set(&rig.set("db", "old", Some(&["app/w"]))), (1, true));
    rig.apply("app", "[{name: db, env: DB}]");
    let before = rig.twin().clone();
    assert_eq!(was_set(&rig.set("db", "new", None)), (2, true));
    assert_eq!(rig.opened(1), BTreeMap::from([("db".into(), (2, "new".into()))]));
    assert!(rig.twin().generation > before.generation);
    assert_ne!(rig.twin().workloads, before.workloads, "so that it is started anew");
    assert_eq!(
        rig.twin().workloads[0].app_generation,
        1,
        "and the application is the same"
    );
}

#[test]
fn another_key_of_the_node_changes_the_twin_and_no_workload() {
    let mut rig = Rig::with_node(Some(1));
    rig.set("db", "hunter2", Some(&["app"]));
    rig.apply("app", "[{name: db, env: DB}]");
    let before = rig.twin().clone();
    rig.hello("b2", Some(2));
    assert_eq!(rig.opened(2), BTreeMap::from([("db".into(), (1, "hunter2".into()))]));
    assert_eq!(rig.twin().workloads, before.workloads);
    assert_eq!(rig.twin().generation, before.generation + 1);
    // A node that shows no key now, for its boot is not approved, keeps what it has.
    rig.hello("b3", None);
    assert_eq!(rig.twins.len(), 2);
}

#[test]
fn a_node_without_a_key_gets_the_rest_and_says_why() {
    let mut rig = Rig::with_node(None);
    rig.set("db", "hunter2", Some(&["app"]));
    rig.apply("app", "[{name: db, env: DB}]");
    rig.apply("plain", "[]");
    let ids = |twin: &v1::Twin| twin.workloads.iter().map(|w| w.id.to_string()).collect::<Vec<_>>();
    assert_eq!(ids(rig.twin()), ["plain/w"]);
    let problems = rig.hub.application(&name("app")).unwrap();
    let text = serde_json::to_string(&problems).unwrap();
    assert!(text.contains("shows no key for secrets"), "{text}");
    rig.hello("b2", Some(1));
    assert_eq!(ids(rig.twin()), ["app/w", "plain/w"]);
    assert_eq!(rig.opened(1).len(), 1);
}

#[test]
fn what_a_manifest_may_not_have_is_refused_at_its_place() {
    let mut rig = Rig::with_node(Some(1));
    rig.set("db-password", "x", Some(&["other", "app/another"]));
    rig.set("tls-key", "\0binary", Some(&["app"]));
    let said = refused(&rig.apply(
        "app",
        "[{name: db-pasword, env: A}, {name: db-password, env: B}, {name: tls-key, env: C}]",
    ));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    assert!(
        lines[0].starts_with("m.yaml:9:22 /workloads/0/secrets/0/name: there is no secret \"db-pasword\""),
        "{said}"
    );
    assert!(lines[0].contains("did you mean \"db-password\"?"), "{said}");
    assert!(
        lines[1].contains("is not granted to app/w")
            && lines[1].contains("cnova secret allow db-password app/another other app/w"),
        "{said}"
    );
    assert!(lines[2].contains("cannot be a variable"), "{said}");
    assert!(rig.twins.is_empty() && rig.hub.application(&name("app")).is_none());
    let said = refused(&rig.apply("app", "[{name: quite-another, env: A}]"));
    assert!(said.contains("cnova secret set quite-another --allow app/w"), "{said}");
}

#[test]
fn what_is_used_is_neither_removed_nor_taken_away() {
    let mut rig = Rig::with_node(Some(1));
    rig.set("db", "x", Some(&["app"]));
    rig.apply("app", "[{name: db, env: DB}]");
    let remove = || SecretChange::Remove(name("db"));
    assert_eq!(refused(&rig.change(remove())), "secret db is used by app/w");
    let allow = |list: &[&str]| SecretChange::Allow {
        name: name("db"),
        allow: grantees(list),
    };
    assert!(refused(&rig.change(allow(&["other"]))).contains("app/w uses secret db"));
    assert!(refused(&rig.set("db", "\0", None)).contains("as a variable"));
    assert_eq!(was_set(&rig.change(allow(&["app/w", "other"]))), (1, true));
    rig.requests += 1;
    let request = rig.requests;
    rig.tell(Event::Delete {
        request,
        name: name("app"),
    });
    rig.outcomes.clear();
    assert_eq!(rig.change(remove()), Outcome::Done);
    assert_eq!(
        rig.change(remove()),
        Outcome::NotFound {
            what: "secret db".into()
        }
    );
    assert!(rig.twin().secrets.is_empty() && rig.hub.secrets().is_empty());
    // A later one of the name goes on counting, or a node could take the old value for the new one.
    let mut rig = Rig::boot(rig.stored.clone());
    assert_eq!(was_set(&rig.set("db", "x", None)), (2, true));
}

#[test]
fn what_cannot_be_encrypted_leaves_what_runs() {
    let mut rig = Rig::with_node(Some(1));
    rig.set("db", "old", Some(&["app"]));
    rig.apply("app", "[{name: db, env: DB}]");
    rig.broken = true;
    rig.set("db", "new", None);
    assert_eq!(rig.twins.len(), 1, "the node keeps the old value");
    let text = serde_json::to_string(&rig.hub.application(&name("app")).unwrap()).unwrap();
    assert!(text.contains("the key file is gone"), "{text}");
    let tries = rig.sealed.len();
    rig.hello("b2", Some(1));
    assert_eq!(rig.sealed.len(), tries, "it is not tried for ever");
    // Another twin for another reason still carries what the workload had.
    rig.apply("plain", "[]");
    assert_eq!(rig.opened(1), BTreeMap::from([("db".into(), (1, "old".into()))]));
    rig.broken = false;
    rig.set("db", "newer", None);
    assert_eq!(rig.opened(1)["db"].1, "newer");
}

#[test]
fn there_is_a_most_of_everything() {
    let mut rig = Rig::with_node(Some(1));
    let large = "x".repeat(limits::SECRET_BYTES);
    for n in 0..4 {
        rig.set(&format!("s{n}"), &format!("{large}{n}")[1..], Some(&["app"]));
    }
    let list: Vec<String> = (0..4).map(|n| format!("{{name: s{n}, env: S{n}}}")).collect();
    rig.apply("app", &format!("[{}]", list.join(", ")));
    assert!(rig.twins.is_empty());
    let text = serde_json::to_string(&rig.hub.application(&name("app")).unwrap()).unwrap();
    assert!(text.contains("take at most 256 KiB"), "{text}");
    for n in 4..limits::SECRETS {
        rig.set(&format!("s{n}"), "x", None);
    }
    assert!(refused(&rig.set("one-more", "x", None)).contains("which is the most"));
    assert_eq!(
        was_set(&rig.set("s9", "y", None)),
        (2, true),
        "those that are there can be changed"
    );
}
