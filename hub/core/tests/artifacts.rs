//! The hub's core and artifacts: what is looked into before an application is taken, what is said when it is not what
//! it should be, what is kept, and what is explained.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use cnova_hub_core::cndl::{self, RuntimeKind};
use cnova_hub_core::policy::{AdmissionContext, PolicySet, PolicySource};
use cnova_hub_core::{
    Action, Appraisal, CompileKey, Config, DelegationRules, Event, Hub, InspectKey, Op, Outcome, Stored,
};
use cnova_shared::bundle::{self, Bundle, Role, SigningKey, TrustBundle};
use cnova_shared::ids::{Digest, Name, NodeId, WorkloadId};
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::time::Now;
use cnova_shared::wire::v1;

const NOW: Now = Now {
    wall_ms: 1_800_000_000_000,
    mono_ms: 1_000,
};

fn config() -> Config {
    let root = SoftKey::ed25519_from_seed(&[1; 32]);
    let key = SoftKey::ed25519_from_seed(&[2; 32]);
    let contents = Bundle {
        v: 1,
        version: 1,
        issued_at: 1_700_000_000,
        roots: vec![root.public_key().clone()],
        threshold: 1,
        keys: vec![SigningKey {
            key: key.public_key().clone(),
            roles: vec![Role::Twin],
            not_after: 1_900_000_000,
        }],
        // No child ever connects here.
        authorities: vec![vec![0x30, 0].into()],
        builders: Vec::new(),
        attestation: None,
    };
    Config {
        node: NodeId::new("hub").unwrap(),
        trust: TrustBundle::flashed(&bundle::sign(&contents, &[&root]).unwrap()).unwrap(),
        enrolment: None,
        appraisal: Appraisal::new([7; 32]),
        delegation: DelegationRules::default(),
    }
}

struct Bench {
    hub: Hub,
    stored: Stored,
    requests: u64,
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self {
            hub: Hub::boot(config(), Stored::default(), NOW),
            stored: Stored::default(),
            requests: 0,
        };
        bench.actions();
        bench
    }

    /// What the core wants done; what it wants kept is kept.
    fn actions(&mut self) -> Vec<Action> {
        let mut all = Vec::new();
        while let Some(action) = self.hub.poll_action() {
            match action {
                Action::Persist(ops) => self.stored.apply(&ops),
                Action::Note(_) | Action::TrustChanged(_) => {}
                other => all.push(other),
            }
        }
        all
    }

    fn tell(&mut self, event: Event) -> Vec<Action> {
        self.hub.handle(event, NOW);
        self.actions()
    }

    fn upload(&mut self, content: &str) -> Digest {
        let (digest, size) = (Digest::of(content.as_bytes()), content.len() as u64);
        self.tell(Event::Uploaded { digest, size });
        digest
    }

    fn apply(&mut self, app: &str, workloads: &str) -> Vec<Action> {
        let text =
            format!("apiVersion: cnova/v1\nkind: Application\nmetadata: {{name: {app}}}\nworkloads:\n{workloads}");
        let manifest = cndl::parse(&text, "m.yaml").unwrap_or_else(|e| panic!("{e}"));
        let open = [PolicySource {
            name: "open.rego".into(),
            text: "package cnova.admission\ndeny contains \"never\" if false\n".into(),
        }];
        let context = AdmissionContext {
            user: "ann".into(),
            now_unix_s: 1_800_000_000,
        };
        let manifest = PolicySet::new(&open).unwrap().admit(manifest, &context).unwrap();
        self.requests += 1;
        self.tell(Event::Apply {
            request: self.requests,
            manifest: Box::new(manifest),
        })
    }

    fn inspected(
        &mut self,
        digest: Digest,
        runtime: RuntimeKind,
        result: Result<Vec<v1::Artifact>, String>,
    ) -> Vec<Action> {
        let key = InspectKey { digest, runtime };
        self.tell(Event::Inspected { key, result })
    }

    fn explain(&self, id: &str) -> cnova_hub_core::explain::Explanation {
        let id: WorkloadId = id.parse().unwrap();
        self.hub.explain(&id).unwrap()
    }
}

fn container(name: &str, digest: Digest, more: &str) -> String {
    format!("- {{name: {name}, runtime: container, artifact: {{digest: \"{digest}\"}}, {more}}}\n")
}

fn part(content: &str) -> v1::Artifact {
    v1::Artifact {
        digest: Digest::of(content.as_bytes()),
        size: content.len() as u64,
    }
}

fn applied(actions: &[Action]) -> bool {
    let done = |a: &Action| {
        matches!(
            a,
            Action::Answer {
                outcome: Outcome::Applied { .. },
                ..
            }
        )
    };
    actions.iter().any(done)
}

fn mistakes(actions: &[Action]) -> String {
    let found = actions.iter().find_map(|a| match a {
        Action::Answer {
            outcome: Outcome::Mistakes(errors),
            ..
        } => Some(errors.to_string()),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("{actions:?}"))
}

#[test]
fn an_image_is_looked_into_and_must_be_whole() {
    let mut bench = Bench::new();
    let image = bench.upload("manifest");
    let inspect = Action::Inspect(InspectKey {
        digest: image,
        runtime: RuntimeKind::Container,
    });
    assert_eq!(
        bench.apply("app", &container("web", image, "")),
        std::slice::from_ref(&inspect)
    );
    let parts = vec![part("config"), part("layer")];
    bench.upload("config");
    let said = mistakes(&bench.inspected(image, RuntimeKind::Container, Ok(parts.clone())));
    assert_eq!(
        said,
        format!(
            "m.yaml:5:45 /workloads/0/artifact: layer 1 of 1 ({}) of image {image} was never uploaded: cnova artifact import IMAGE",
            Digest::of(b"layer")
        )
    );
    bench.upload("layer");
    // What was found out once is not asked again.
    assert!(applied(&bench.apply("app", &container("web", image, ""))));
    let explained = bench.explain("app/web");
    let artifacts: Vec<(&str, &str)> = explained
        .artifacts
        .iter()
        .map(|a| (a.what.as_str(), a.state.as_str()))
        .collect();
    assert_eq!(
        artifacts,
        [("program", "there"), ("configuration", "there"), ("layer 1", "there")]
    );
    assert!(explained.verdict.starts_with("runs nowhere: "), "{}", explained.verdict);
    assert!(
        explained.next[0].contains("no other node is known"),
        "{:?}",
        explained.next
    );
    assert!(bench.hub.explain(&"app/other".parse().unwrap()).is_none());
}

#[test]
fn what_is_of_no_use_is_told_at_its_line_and_tried_again() {
    let mut bench = Bench::new();
    let (object, wasm) = (bench.upload("object"), bench.upload("text"));
    let workloads = format!(
        "- {{name: a, runtime: wasm, artifact: {{digest: \"{wasm}\"}}}}\n- name: b\n  runtime: ebpf\n  artifact: {{digest: \"{object}\"}}\n  settings: {{programs: [{{name: p, kind: socket-filter, attach: eth0}}]}}\n"
    );
    let asked = bench.apply("app", &workloads);
    let Some(Action::Compile(key)) = asked.first().cloned() else {
        panic!("{asked:?}")
    };
    assert_eq!(
        bench.inspected(object, RuntimeKind::Ebpf, Err("it is not an eBPF object".into())),
        []
    );
    let failed = bench.tell(Event::Compiled {
        key,
        result: Err("not Wasm".into()),
    });
    let said = mistakes(&failed);
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines[0].starts_with("m.yaml:5:38 /workloads/0/artifact: artifact ") && lines[0].ends_with("not Wasm"),
        "{said}"
    );
    assert_eq!(lines[1], "m.yaml:8:13 /workloads/1/artifact: it is not an eBPF object");
    let again = bench.apply("app", &workloads);
    assert_eq!(again.len(), 2, "both are tried again: {again:?}");
}

#[test]
fn pulley_is_a_target_of_its_own() {
    let mut bench = Bench::new();
    let wasm = bench.upload("wasm");
    let settings = "settings: {pulley: true}";
    let text = format!("- {{name: a, runtime: wasm, artifact: {{digest: \"{wasm}\"}}, {settings}}}\n");
    let asked = bench.apply("app", &text);
    assert!(
        matches!(&asked[..], [Action::Compile(CompileKey { target, .. })] if target == "pulley64"),
        "{asked:?}"
    );
}

#[test]
fn a_circle_through_another_application_is_refused_with_its_path() {
    let mut bench = Bench::new();
    let image = bench.upload("manifest");
    bench.apply("one", &container("a", image, "needs: [two/b]"));
    bench.inspected(image, RuntimeKind::Container, Ok(Vec::new()));
    let refused = bench.apply(
        "two",
        &container("b", image, "needs: [c]").replace('\n', &format!("\n{}", container("c", image, "needs: [one/a]"))),
    );
    let said = format!("{refused:?}");
    assert!(said.contains("two/b -> two/c -> one/a -> two/b"), "{said}");
    assert!(applied(&bench.apply("two", &container("b", image, ""))));
}

#[test]
fn only_what_nothing_uses_is_collected() {
    let mut bench = Bench::new();
    let image = bench.upload("manifest");
    let (config, stray) = (bench.upload("config"), bench.upload("stray"));
    bench.apply("app", &container("web", image, ""));
    assert!(
        bench.hub.unused_artifacts().is_empty(),
        "what an image refers to is not known yet"
    );
    bench.inspected(image, RuntimeKind::Container, Ok(vec![part("config")]));
    assert_eq!(bench.hub.unused_artifacts(), BTreeSet::from([stray]));
    // Only what is unused when it comes to it.
    let gone = bench.tell(Event::Collect(BTreeSet::from([image, config, stray])));
    assert_eq!(gone, [Action::RemoveArtifacts(BTreeSet::from([stray]))]);
    assert_eq!(
        bench.stored.artifacts.keys().copied().collect::<BTreeSet<_>>(),
        BTreeSet::from([image, config])
    );
    assert_eq!(bench.tell(Event::Collect(BTreeSet::from([stray]))), []);
    bench.tell(Event::Delete {
        request: 99,
        name: Name::new("app").unwrap(),
    });
    assert_eq!(bench.hub.unused_artifacts(), BTreeSet::from([image, config]));
    let mut copy = bench.stored.clone();
    copy.apply(&[Op::DropArtifact { digest: image }]);
    assert!(!copy.artifacts.contains_key(&image));
}

#[test]
fn after_a_start_images_are_looked_into_again() {
    let mut bench = Bench::new();
    let image = bench.upload("manifest");
    bench.apply("app", &container("web", image, ""));
    bench.inspected(image, RuntimeKind::Container, Ok(Vec::new()));
    let stray = bench.upload("stray");
    bench.hub = Hub::boot(config(), bench.stored.clone(), NOW);
    let key = InspectKey {
        digest: image,
        runtime: RuntimeKind::Container,
    };
    assert_eq!(bench.actions(), [Action::Inspect(key)]);
    // Until that is known nothing is thrown away.
    assert!(bench.hub.unused_artifacts().is_empty());
    bench.inspected(image, RuntimeKind::Container, Ok(Vec::new()));
    assert_eq!(bench.hub.unused_artifacts(), BTreeSet::from([stray]));
}
