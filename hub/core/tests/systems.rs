//! Operating systems at the hub: manifests with their mistakes, which node gets which one, and when.

#![allow(clippy::unwrap_used)]

#[path = "../../../shared/tests/support/rotation.rs"]
mod rotation;
#[path = "../../../shared/tests/support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};

use cnova_hub_core::cndl;
use cnova_hub_core::policy::{AdmissionContext, PolicySet, PolicySource};
use cnova_hub_core::systems::{BundleFacts, NodeSystem};
use cnova_hub_core::{Action, Appraisal, Config, DelegationRules, Draft, Event, Hub, Outcome, Stored};
use cnova_shared::ids::{Digest, Name, SitePath};
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::system_bundle::{Header, Part, PartKind, VERSION};
use cnova_shared::time::Now;
use cnova_shared::topics::Kind;
use cnova_shared::trust_documents::Document;
use cnova_shared::wire::v1::{self, SystemReport, SystemState};
use rotation::{flashed, second_key, twin_by};
use support::{EPOCH_S, HUB, hub_key, identity, node};

const NOW: Now = Now {
    mono_ms: 1000,
    wall_ms: EPOCH_S * 1000,
};

fn facts(version: &str) -> BundleFacts {
    let part = |kind, offset: u64, size: u64| Part {
        kind,
        offset,
        size,
        digest: Digest::of(b"part"),
    };
    BundleFacts {
        header: Header {
            v: VERSION,
            compatible: "board-1".into(),
            version: version.into(),
            root_hash: Digest::of(version.as_bytes()),
            parts: vec![part(PartKind::Root, 4096, 8192), part(PartKind::Boot, 12288, 100)],
            measured: BTreeMap::new(),
            loads: Vec::new(),
        },
        header_digest: Digest::of(b"header"),
        size: 12388,
    }
}

fn bundle(version: &str) -> Digest {
    Digest::of(format!("bundle {version}").as_bytes())
}

fn manifest(name: &str, version: &str, more: &str) -> String {
    let digest = bundle(version);
    format!("apiVersion: cnova/v1\nkind: System\nmetadata: {{name: {name}}}\nbundle: {{digest: \"{digest}\"}}\n{more}")
}

struct Rig {
    hub: Hub,
    stored: Stored,
    twins: BTreeMap<String, v1::Twin>,
    outcomes: Vec<Outcome>,
    damaged: bool,
    seq: u64,
    key: fn() -> SoftKey,
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
            twins: BTreeMap::new(),
            outcomes: Vec::new(),
            damaged: false,
            seq: 0,
            key: hub_key,
        };
        rig.perform();
        rig.tell(Event::Signer(hub_key().public_key().id()));
        rig
    }

    /// Three nodes, whose systems have slots and run 1.0.
    fn with_nodes() -> Self {
        let mut rig = Self::boot(Stored::default());
        for name in ["plc-1", "plc-2", "plc-3"] {
            rig.hello(name);
            rig.says(name, &runs("1.0"));
        }
        rig
    }

    fn tell(&mut self, event: Event) {
        self.hub.handle(event, NOW);
        self.perform();
    }

    fn perform(&mut self) {
        while let Some(action) = self.hub.poll_action() {
            match action {
                Action::Persist(ops) => self.stored.apply(&ops),
                Action::SignTwin(twin) => {
                    cnova_shared::twin::check(&twin, &twin.node).unwrap();
                    let bytes = twin_by(&(self.key)(), &twin);
                    self.twins.insert(twin.node.to_string(), *twin);
                    self.hub.handle(Event::TwinSigned(bytes), NOW);
                }
                Action::InspectBundle(digest) => {
                    let of = ["1.0", "0.9", "2.0", "3.0"].into_iter().find(|v| bundle(v) == digest);
                    let result = match self.damaged {
                        true => Err("its part Root has the digest x, and its header says y".to_owned()),
                        false => Ok(Box::new(facts(of.unwrap()))),
                    };
                    self.hub.handle(Event::BundleInspected { bundle: digest, result }, NOW);
                }
                Action::SignDocument(draft) => {
                    let Draft::Revocations(list) = &*draft else { continue };
                    let signed = list.seal(&node(HUB), EPOCH_S, &(self.key)());
                    let signed = signed.map_err(|e| e.to_string());
                    self.hub.handle(Event::DocumentSigned(draft, signed), NOW);
                }
                Action::Answer { outcome, .. } => self.outcomes.push(outcome),
                _ => {}
            }
        }
    }

    /// The next trust bundle, whose key may sign revocations.
    fn rotate(&mut self) {
        let bytes = rotation::bundle(2);
        self.tell(Event::PushBundle { request: 2, bytes });
        self.key = second_key;
        self.tell(Event::Signer(second_key().public_key().id()));
    }

    fn hello(&mut self, name: &str) {
        self.tell(Event::ChildConnected(node(name)));
        let hello = v1::Hello {
            v: 1,
            boot: "b1".into(),
            epoch: 0,
            generation: 0,
            digest: None,
            incarnation: 1,
            role: v1::NodeRole::Agent,
            site: SitePath::new(format!("plant-7/{name}")).unwrap(),
            labels: BTreeMap::new(),
            capabilities: v1::Capabilities::default(),
            software: "test".into(),
            trust_version: 1,
            documents: BTreeMap::new(),
            renew: false,
            box_key: None,
            alarms: Vec::new(),
        };
        let bytes = identity(name, 10).seal(Kind::Hello, &hello, true);
        let (child, kind) = (node(name), Kind::Hello);
        self.tell(Event::FromChild { child, kind, bytes });
    }

    fn says(&mut self, name: &str, report: &SystemReport) {
        let from = self.seq;
        self.seq += 1;
        let entry = v1::Entry {
            seq: self.seq,
            key: "system".into(),
            at_ms: NOW.wall_ms,
            body: v1::Body::System(report.clone()),
        };
        // A stream of its own each time: what matters here is what it says last.
        let report = v1::Report {
            v: 1,
            incarnation: 1 + from,
            from: 0,
            to: self.seq,
            entries: vec![entry],
            all_keys: Some(vec!["system".into()]),
        };
        let bytes = identity(name, 10).seal(Kind::Report, &report, false);
        let (child, kind) = (node(name), Kind::Report);
        self.tell(Event::FromChild { child, kind, bytes });
    }

    fn apply(&mut self, text: &str) -> Outcome {
        let manifest = cndl::parse_system(text, "system.yaml").unwrap_or_else(|e| panic!("{e}"));
        let digest: Digest = manifest.system().bundle.digest().unwrap().parse().unwrap();
        self.tell(Event::Uploaded { digest, size: 12388 });
        let context = AdmissionContext {
            user: "ann".into(),
            now_unix_s: EPOCH_S,
        };
        let policy = PolicySet::builtin().unwrap();
        let manifest = Box::new(policy.admit_system(manifest, &context, &BTreeMap::new()).unwrap());
        self.tell(Event::ApplySystem { request: 7, manifest });
        self.outcomes.pop().unwrap()
    }

    /// Which nodes are asked for this version.
    fn asked(&self, version: &str) -> Vec<&str> {
        let is_asked = |t: &v1::Twin| t.system.as_ref().is_some_and(|s| s.bundle.digest == bundle(version));
        self.twins
            .iter()
            .filter(|(_, t)| is_asked(t))
            .map(|(n, _)| n.as_str())
            .collect()
    }

    fn node(&self, system: &str, name: &str) -> NodeSystem {
        let all = self.hub.systems();
        let found = all.iter().find(|s| s.name.as_str() == system).unwrap();
        found.nodes[&node(name)].clone()
    }
}

fn runs(version: &str) -> SystemReport {
    SystemReport {
        version: version.into(),
        slot: "a".into(),
        compatible: "board-1".into(),
        ..SystemReport::default()
    }
}

fn about(version: &str, state: SystemState, runs_now: &str) -> SystemReport {
    SystemReport {
        state,
        bundle: Some(bundle(version)),
        attempt: 1,
        wanted: version.into(),
        ..runs(runs_now)
    }
}

#[test]
fn one_node_after_the_other_and_no_further_one_after_a_failure() {
    let mut rig = Rig::with_nodes();
    let outcome = rig.apply(&manifest("os", "2.0", "rollout: {atOnce: 1}\n"));
    let Outcome::Applied {
        placed,
        unplaced,
        changed: true,
        ..
    } = outcome
    else {
        panic!("{outcome:?}")
    };
    assert_eq!(placed["system"], BTreeSet::from(["plc-1".to_owned()]));
    assert!(
        unplaced["plc-2"].contains("its turn comes: 1 node(s) are under way"),
        "{unplaced:?}"
    );
    assert_eq!(rig.asked("2.0"), ["plc-1"]);
    let twin = rig.twins["plc-1"].system.clone().unwrap();
    assert_eq!(
        (twin.version.as_str(), twin.tries, twin.attempt, twin.health.within_s),
        ("2.0", 3, 1, 600)
    );
    rig.says("plc-1", &about("2.0", SystemState::Writing, "1.0"));
    rig.says("plc-1", &about("2.0", SystemState::Trial, "2.0"));
    assert_eq!(rig.asked("2.0"), ["plc-1"]);
    rig.says("plc-1", &about("2.0", SystemState::Confirmed, "2.0"));
    assert_eq!(rig.asked("2.0"), ["plc-1", "plc-2"]);
    rig.says("plc-2", &about("2.0", SystemState::RolledBack, "1.0"));
    assert_eq!(rig.asked("2.0"), ["plc-1", "plc-2"]);
    let stopped = rig.node("os", "plc-3");
    assert!(
        stopped.reason.contains("the rollout has stopped: 1 node(s) failed"),
        "{stopped:?}"
    );
    assert_eq!(rig.node("os", "plc-2").state, SystemState::RolledBack);
    // All of it survives the hub.
    let rig = Rig::boot(rig.stored);
    assert_eq!(rig.node("os", "plc-1").state, SystemState::Confirmed);
    assert!(rig.node("os", "plc-3").reason.contains("has stopped"));
}

#[test]
fn all_at_once_where_that_is_said_and_another_attempt_begins_again() {
    let mut rig = Rig::with_nodes();
    rig.apply(&manifest("os", "2.0", "rollout: {atOnce: 10, maxFailures: 3}\n"));
    assert_eq!(rig.asked("2.0"), ["plc-1", "plc-2", "plc-3"]);
    rig.says("plc-1", &about("2.0", SystemState::RolledBack, "1.0"));
    let same = rig.apply(&manifest("os", "2.0", "rollout: {atOnce: 10, maxFailures: 3}\n"));
    assert!(
        matches!(
            same,
            Outcome::Applied {
                changed: false,
                generation: 1,
                ..
            }
        ),
        "{same:?}"
    );
    rig.apply(&manifest(
        "os",
        "2.0",
        "attempt: 2\nrollout: {atOnce: 10, maxFailures: 3}\n",
    ));
    assert_eq!(rig.twins["plc-1"].system.as_ref().unwrap().attempt, 2);
}

#[test]
fn a_manifest_that_is_replaced_on_the_way_asks_no_more_nodes_than_before() {
    let mut rig = Rig::with_nodes();
    rig.apply(&manifest("os", "2.0", "rollout: {atOnce: 1}\n"));
    rig.says("plc-1", &about("2.0", SystemState::Rebooting, "1.0"));
    // The node that is under way takes its own place: it is asked at once.
    rig.apply(&manifest("os", "3.0", "rollout: {atOnce: 1}\n"));
    assert_eq!((rig.asked("2.0"), rig.asked("3.0")), (vec![], vec!["plc-1"]));
    // It ends what it was at first.
    rig.says("plc-1", &about("2.0", SystemState::Confirmed, "2.0"));
    assert_eq!(rig.asked("3.0"), ["plc-1"]);
    // So does one that the new manifest must not ask, and others wait for it.
    let mut rig = Rig::with_nodes();
    rig.apply(&manifest(
        "os",
        "2.0",
        "rollout: {atOnce: 1}\nplacement: {site: plant-7/**}\n",
    ));
    rig.says(
        "plc-1",
        &SystemReport {
            compatible: "board-2".into(),
            ..about("2.0", SystemState::Trial, "2.0")
        },
    );
    rig.apply(&manifest("os", "3.0", "rollout: {atOnce: 1}\n"));
    assert_eq!((rig.asked("2.0"), rig.asked("3.0")), (vec!["plc-1"], vec![]));
    let why = rig.node("os", "plc-2").reason;
    assert!(why.contains("1 node(s) are under way: plc-1"), "{why}");
    rig.says(
        "plc-1",
        &SystemReport {
            compatible: "board-2".into(),
            ..about("2.0", SystemState::Confirmed, "2.0")
        },
    );
    assert_eq!(rig.asked("3.0"), ["plc-2"]);
}

#[test]
fn nobody_waits_for_a_node_that_was_revoked() {
    let mut rig = Rig::with_nodes();
    rig.rotate();
    rig.apply(&manifest("os", "2.0", "rollout: {atOnce: 1}\n"));
    assert_eq!(rig.asked("2.0"), ["plc-1"]);
    rig.tell(Event::Revoke {
        request: 3,
        node: node("plc-1"),
        keys_only: false,
        reason: "stolen".into(),
    });
    assert_eq!(rig.asked("2.0"), ["plc-1", "plc-2"]);
}

#[test]
fn who_cannot_take_it_is_told_why_and_not_asked() {
    let mut rig = Rig::with_nodes();
    rig.hello("plc-4");
    let other = SystemReport {
        compatible: "board-2".into(),
        ..runs("1.0")
    };
    rig.says("plc-2", &other);
    rig.says("plc-3", &runs("2.5"));
    rig.apply(&manifest("os", "2.0", "rollout: {atOnce: 10}\n"));
    assert_eq!(rig.asked("2.0"), ["plc-1"]);
    let why = |name: &str| rig.node("os", name).reason;
    assert!(why("plc-2").contains("it is a board-2, and the bundle is for the board board-1"));
    assert!(why("plc-3").contains("version 2.0 is older than 2.5"));
    assert!(why("plc-4").contains("has not said that its system has two slots"));
    rig.apply(&manifest(
        "os",
        "2.0",
        "rollout: {atOnce: 10}\nslots: {downgrade: true}\n",
    ));
    assert_eq!(rig.asked("2.0"), ["plc-1", "plc-3"]);
}

#[test]
fn two_systems_for_one_node_change_nothing_until_one_is_gone() {
    let mut rig = Rig::with_nodes();
    rig.apply(&manifest("os", "2.0", "placement: {site: plant-7/plc-1}\n"));
    assert_eq!(rig.asked("2.0"), ["plc-1"]);
    rig.apply(&manifest("other", "3.0", "placement: {site: plant-7/plc-1}\n"));
    assert_eq!(rig.asked("2.0"), ["plc-1"]);
    let why = rig.node("other", "plc-1").reason;
    assert!(why.contains("system os is for it as well"), "{why}");
    let name = Name::new("os").unwrap();
    rig.tell(Event::DeleteSystem { request: 8, name });
    assert_eq!(rig.asked("3.0"), ["plc-1"]);
    let name = Name::new("other").unwrap();
    rig.tell(Event::DeleteSystem { request: 9, name });
    assert_eq!(rig.twins["plc-1"].system, None);
    let name = Name::new("other").unwrap();
    rig.tell(Event::DeleteSystem { request: 10, name });
    assert!(matches!(rig.outcomes.last(), Some(Outcome::NotFound { .. })));
}

#[test]
fn a_damaged_bundle_is_refused_at_its_place_in_the_manifest() {
    let mut rig = Rig::with_nodes();
    rig.damaged = true;
    let Outcome::Mistakes(errors) = rig.apply(&manifest("os", "2.0", "")) else {
        panic!()
    };
    let said = errors.to_string();
    assert!(
        said.starts_with("system.yaml:4:") && said.contains("its part Root has the digest x"),
        "{said}"
    );
    assert!(rig.hub.systems().is_empty());
    // The file was uploaded anew meanwhile.
    rig.damaged = false;
    assert!(matches!(rig.apply(&manifest("os", "2.0", "")), Outcome::Applied { .. }));
    let unused = rig.hub.unused_artifacts();
    assert!(!unused.contains(&bundle("2.0")));
}

#[test]
fn mistakes_in_a_manifest_are_told_with_their_lines() {
    let text = "apiVersion: cnova/v1\nkind: System\nmetadata: {name: os}\nbundle: {file: b.cnova}\nslots: {tries: 0}\n\
                window: {cron: \"0 2 * * *\"}\nhealth: {within: 2h, workloads: [w]}\nrolout: {}\n";
    let said = cndl::parse_system(text, "s.yaml").unwrap_err().to_string();
    for word in [
        "s.yaml:5:16 /slots/tries: expected a whole number from 1 to 10, found the number 0",
        "s.yaml:6:9 /window: the field \"for\" is missing",
        "/health/within: 7200000 ms is too long: at most an hour",
        "/health/workloads/0: \"w\" is not a workload",
        "unknown field \"rolout\" (did you mean \"rollout\"?)",
    ] {
        assert!(said.contains(word), "{word}\nin\n{said}");
    }
    let text = "apiVersion: cnova/v1\nkind: System\nmetadata: {name: os}\nbundle: {file: b.cnova}\n";
    let manifest = cndl::parse_system(text, "s.yaml").unwrap();
    assert_eq!(manifest.unresolved_file(), Some("b.cnova"));
    assert!(cndl::is_system(text) && !cndl::is_system("kind: Application\n"));
    // The canonical form means the same.
    let again = cndl::parse_system(&manifest.to_value().to_string(), "s.yaml").unwrap();
    assert_eq!(again, manifest);
}

#[test]
fn policy_may_say_no() {
    let rego = "package cnova.admission\ndeny contains \"only bob changes systems\" if {\n\tinput.manifest.kind == \"System\"\n\tinput.user != \"bob\"\n}\n";
    let source = PolicySource {
        name: "systems.rego".into(),
        text: rego.into(),
    };
    let policy = PolicySet::new(&[source]).unwrap();
    let parsed = || cndl::parse_system(&manifest("os", "2.0", ""), "s.yaml").unwrap();
    let by = |user: &str| AdmissionContext {
        user: user.into(),
        now_unix_s: EPOCH_S,
    };
    let denied = policy.admit_system(parsed(), &by("ann"), &BTreeMap::new()).unwrap_err();
    assert_eq!(denied.to_string(), "denied by systems.rego: only bob changes systems");
    assert!(policy.admit_system(parsed(), &by("bob"), &BTreeMap::new()).is_ok());
}

/// The schema that editors use is the one that the hub applies. After a change of the wire types run
/// `CNOVA_WRITE_SCHEMA=1 cargo test -p cnova-hub-core --test systems` and commit the file.
#[test]
fn the_published_schema_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/schema/system-v1.schema.json");
    let current = format!(
        "{}\n",
        serde_json::to_string_pretty(&cndl::system_json_schema()).unwrap()
    );
    if std::env::var_os("CNOVA_WRITE_SCHEMA").is_some() {
        std::fs::write(path, &current).unwrap();
    }
    let published = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        published == current,
        "{path} is out of date: run CNOVA_WRITE_SCHEMA=1 cargo test -p cnova-hub-core --test systems"
    );
}
