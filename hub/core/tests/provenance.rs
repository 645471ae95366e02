//! What manifests ask of the provenance of artifacts, and what the hub admits.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use cnova_hub_core::cndl::{self, Manifest, RuntimeKind};
use cnova_hub_core::policy::{AdmissionContext, PolicySet, PolicySource};
use cnova_hub_core::{Action, CompileKey, Config, Event, Hub, InspectKey, Op, Outcome, Stored};
use cnova_provenance::{AOT_BUILD_TYPE, AOT_BUILDER, Dependency, Made, Subject, make, sign};
use cnova_shared::bundle::{self, Bundle, Role, SigningKey, TrustBundle, TrustedBuilder};
use cnova_shared::ids::{Digest, NodeId};
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::limits;
use cnova_shared::time::Now;
use cnova_shared::wire::v1::{self, AttestationPolicy};

const HEAD: &str = "apiVersion: cnova/v1\nkind: Application\nmetadata: {name: line}\n";
const NOW_S: u64 = 1_800_000_000;
const NOW: Now = Now {
    wall_ms: NOW_S * 1000,
    mono_ms: 1_000,
};
const CI: &str = "https://ci.example/line-2";

fn key(seed: u8) -> SoftKey {
    SoftKey::ed25519_from_seed(&[seed; 32])
}

fn trusted(key: &SoftKey, builder: &str, level: u8, not_after: u64) -> TrustedBuilder {
    TrustedBuilder {
        key: key.public_key().clone(),
        builder: builder.to_owned(),
        level,
        not_after,
    }
}

/// Key 2 is the hub's, 3 a builder's of level 2, 4 another's of level 1, 5 one's whose time is over.
fn config(attestation: Option<AttestationPolicy>) -> Config {
    let root = key(1);
    let contents = Bundle {
        v: 1,
        version: 1,
        issued_at: 1_700_000_000,
        roots: vec![root.public_key().clone()],
        threshold: 1,
        keys: vec![SigningKey {
            key: key(2).public_key().clone(),
            roles: vec![Role::Twin],
            not_after: NOW_S + 1000,
        }],
        authorities: vec![vec![0x30, 0].into()],
        builders: vec![
            trusted(&key(2), AOT_BUILDER, 3, NOW_S + 1000),
            trusted(&key(3), CI, 2, NOW_S + 1000),
            trusted(&key(4), "https://lab.example", 1, NOW_S + 1000),
            trusted(&key(5), "https://old.example", 3, NOW_S),
        ],
        attestation,
    };
    Config {
        node: NodeId::new("hub").unwrap(),
        trust: TrustBundle::flashed(&bundle::sign(&contents, &[&root]).unwrap()).unwrap(),
        appraisal: cnova_hub_core::Appraisal::new([7; 32]),
        enrolment: None,
        delegation: cnova_hub_core::DelegationRules::default(),
    }
}

fn envelope(signer: u8, builder: &str, subject: Digest, materials: &[Digest]) -> Vec<u8> {
    let materials: Vec<Dependency> = materials
        .iter()
        .map(|m| Dependency::of_file("file:x".into(), m))
        .collect();
    let build_type = if builder == AOT_BUILDER {
        AOT_BUILD_TYPE
    } else {
        "urn:x"
    };
    let statement = make(&Made {
        subjects: &[Subject {
            name: "app".into(),
            digest: subject,
        }],
        build_type,
        parameters: serde_json::Value::Null,
        dependencies: &materials,
        builder,
        builder_version: BTreeMap::new(),
        started_s: NOW_S,
        finished_s: NOW_S,
    });
    sign(&statement, &[&key(signer)]).unwrap()
}

struct Bench {
    hub: Hub,
    stored: Stored,
    requests: u64,
}

impl Bench {
    fn new() -> Self {
        Self::with(config(None), Stored::default())
    }

    fn with(config: Config, stored: Stored) -> Self {
        let mut bench = Self {
            hub: Hub::boot(config, stored.clone(), NOW),
            stored,
            requests: 0,
        };
        bench.actions();
        bench
    }

    fn actions(&mut self) -> Vec<Action> {
        let mut all = Vec::new();
        while let Some(action) = self.hub.poll_action() {
            match action {
                Action::Persist(ops) => self.stored.apply(&ops),
                Action::Note(_) => {}
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

    fn attach(&mut self, subject: Digest, envelope: Vec<u8>) -> Vec<Action> {
        let artifact = v1::Artifact {
            digest: Digest::of(&envelope),
            size: envelope.len() as u64,
        };
        self.tell(Event::ProvenanceAdded {
            subject,
            artifact,
            envelope,
        })
    }

    fn apply(&mut self, text: &str) -> Vec<Action> {
        let admitted = PolicySet::new(&[open()])
            .unwrap()
            .admit(parse(text), &context())
            .unwrap();
        self.requests += 1;
        self.tell(Event::Apply {
            request: self.requests,
            manifest: Box::new(admitted),
        })
    }

    /// Applies one workload that asks for provenance, and answers what the core asks on the way.
    fn judged(&mut self, runtime: &str, digest: Digest, policy: &str) -> Result<(), String> {
        let text = workload(runtime, digest, policy);
        let mut actions = self.apply(&text);
        for action in actions.clone() {
            match action {
                Action::Compile(key) => actions.extend(self.compiled(key, true)),
                Action::Inspect(key) => actions.extend(self.tell(Event::Inspected {
                    key,
                    result: Ok(Vec::new()),
                })),
                _ => {}
            }
        }
        answer(&actions).unwrap_or_else(|| panic!("{actions:?}"))
    }

    fn compiled(&mut self, key: CompileKey, signed: bool) -> Vec<Action> {
        let compiled = Digest::of(format!("compiled {}", key.source).as_bytes());
        if signed {
            self.attach(compiled, envelope(2, AOT_BUILDER, compiled, &[key.source]));
        }
        self.tell(Event::Compiled {
            key,
            result: Ok(v1::Artifact {
                digest: compiled,
                size: 100,
            }),
        })
    }
}

fn answer(actions: &[Action]) -> Option<Result<(), String>> {
    actions.iter().find_map(|a| match a {
        Action::Answer { outcome, .. } => Some(match outcome {
            Outcome::Applied { .. } => Ok(()),
            Outcome::Mistakes(errors) => Err(errors.to_string()),
            other => Err(format!("{other:?}")),
        }),
        _ => None,
    })
}

fn open() -> PolicySource {
    PolicySource {
        name: "open.rego".into(),
        text: "package cnova.admission\ndeny contains \"never\" if false\n".into(),
    }
}

fn context() -> AdmissionContext {
    AdmissionContext {
        user: "ann".into(),
        now_unix_s: NOW_S,
    }
}

fn workload(runtime: &str, digest: Digest, policy: &str) -> String {
    format!(
        "{HEAD}workloads:\n  - name: a\n    runtime: {runtime}\n    artifact: {{digest: \"{digest}\"}}\n    \
         attestationPolicy: {policy}\n{}",
        settings(runtime)
    )
}

/// An eBPF workload names its programs.
fn settings(runtime: &str) -> &'static str {
    match runtime {
        "ebpf" => "    settings: {programs: [{name: watch, kind: socket-filter, attach: eth0}]}\n",
        _ => "",
    }
}

fn parse(text: &str) -> Manifest {
    cndl::parse(text, "m.yaml").unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn said(text: &str) -> String {
    cndl::parse(text, "m.yaml")
        .map(|_| ())
        .expect_err("must be refused")
        .to_string()
}

#[test]
fn a_workload_s_word_goes_before_the_application_s() {
    let digest = Digest::of(b"x");
    let one = |name: &str, more: &str| {
        format!("  - name: {name}\n    runtime: container\n    artifact: {{digest: \"{digest}\"}}\n{more}")
    };
    let text = format!(
        "{HEAD}attestationPolicy: {{provenance: required, minLevel: 1, builders: [\"https://ci.example/*\"]}}\nworkloads:\n{}{}{}",
        one("as-all", ""),
        one("more", "    attestationPolicy: {minLevel: 3, files: true}\n"),
        one("none", "    attestationPolicy: {provenance: optional}\n"),
    );
    let manifest = parse(&text);
    let of = |name: &str| manifest.application().workload(name).unwrap().attestation.clone();
    let builders = vec!["https://ci.example/*".to_owned()];
    let policy = |min_level, files| AttestationPolicy {
        required: true,
        min_level,
        builders: builders.clone(),
        files,
    };
    assert_eq!(of("as-all"), Some(policy(1, false)));
    assert_eq!(of("more"), Some(policy(3, true)));
    assert_eq!(of("none"), None);
    // What is stored says it at each workload, and means the same.
    let canonical = cndl::canonical_json(&manifest);
    assert_eq!(cndl::restore(&canonical, "stored").unwrap(), manifest);
    assert!(
        canonical.contains(r#""attestationPolicy":{"provenance":"required","minLevel":3"#),
        "{canonical}"
    );
    let plain = parse(&format!("{HEAD}workloads:\n{}", one("a", "")));
    assert!(!cndl::canonical_json(&plain).contains("attestationPolicy"));
}

#[test]
fn mistakes_in_a_policy_are_told_with_their_line() {
    let digest = Digest::of(b"x");
    let of = |policy: &str| said(&workload("wasm", digest, policy));
    assert_eq!(
        of("{minLevel: 2}"),
        "m.yaml:8:35 /workloads/0/attestationPolicy/minLevel: minLevel has no effect where provenance is not required \
         (write \"provenance: required\" beside it)"
    );
    for (policy, wanted) in [
        ("{provenance: require}", "/provenance: "),
        (
            "{provenance: required, minLevel: 4}",
            "a SLSA build level: 0, 1, 2 or 3",
        ),
        ("{provenance: required, minLevel: 1.0}", "expected a whole number"),
        ("{provenance: required, builders: [\"a b\"]}", "a builder's URI"),
        ("{provenance: required, minlevel: 2}", "minLevel"),
        ("{builders: [\"https://x\"]}", "builders has no effect"),
        ("{provenance: optional, files: true}", "files has no effect"),
    ] {
        let text = of(policy);
        assert!(
            text.starts_with("m.yaml:8:") && text.contains(wanted),
            "{policy}: {text}"
        );
    }
    let of_all = format!(
        "{HEAD}attestationPolicy: {{minLevel: 1}}\nworkloads:\n  - {{name: a, runtime: container, artifact: {{digest: \"{digest}\"}}}}\n"
    );
    assert!(
        said(&of_all).starts_with("m.yaml:4:31 /attestationPolicy/minLevel: "),
        "{}",
        said(&of_all)
    );
}

#[test]
fn all_three_runtimes_are_admitted_with_provenance_and_refused_without() {
    for runtime in ["container", "ebpf", "wasm"] {
        let mut bench = Bench::new();
        let artifact = bench.upload("program");
        let policy = "{provenance: required, minLevel: 2}";
        assert_eq!(
            bench.judged(runtime, artifact, policy),
            Err(format!(
                "m.yaml:7:15 /workloads/0/artifact: artifact {artifact} has no provenance (sign it with: cnova artifact \
                 sign FILE --key KEY --builder URI (docs/PROVENANCE.md))"
            )),
            "{runtime}"
        );
        bench.attach(artifact, envelope(3, CI, artifact, &[]));
        assert_eq!(bench.judged(runtime, artifact, policy), Ok(()), "{runtime}");
    }
}

#[test]
fn the_reason_says_what_is_wrong_with_what_is_there() {
    let mut changed = envelope(3, CI, Digest::of(b"program"), &[]);
    let at = changed.len() / 2;
    changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
    let program = Digest::of(b"program");
    for (attached, policy, wanted) in [
        (envelope(3, CI, Digest::of(b"else"), &[]), "", "it is about"),
        (
            envelope(9, CI, program, &[]),
            "",
            "no builder of the trust bundle signed it",
        ),
        (
            envelope(4, CI, program, &[]),
            "",
            "knows as https://lab.example and not as",
        ),
        (
            envelope(4, "https://lab.example", program, &[]),
            ", minLevel: 2",
            "up to SLSA build level 1",
        ),
        (
            envelope(3, CI, program, &[]),
            ", builders: [\"https://lab*\"]",
            "only https://lab* may",
        ),
        (envelope(5, "https://old.example", program, &[]), "", "ran out at"),
        (
            envelope(2, AOT_BUILDER, program, &[program]),
            "",
            "only says that the hub compiled it",
        ),
        (changed, "", "has no provenance that holds"),
    ] {
        let mut bench = Bench::new();
        let artifact = bench.upload("program");
        bench.attach(artifact, attached);
        let why = bench
            .judged("ebpf", artifact, &format!("{{provenance: required{policy}}}"))
            .unwrap_err();
        assert!(why.contains(wanted), "{wanted}: {why}");
    }
}

#[test]
fn what_is_compiled_needs_the_hub_s_own_word() {
    let mut bench = Bench::new();
    let artifact = bench.upload("program");
    bench.attach(artifact, envelope(3, CI, artifact, &[]));
    let text = workload("wasm", artifact, "{provenance: required}");
    let compile = |actions: &[Action]| {
        actions.iter().find_map(|a| match a {
            Action::Compile(key) => Some(key.clone()),
            _ => None,
        })
    };
    let key = compile(&bench.apply(&text)).unwrap();
    // As a hub of an earlier version compiled, unsigned; and then again, by this one.
    let why = answer(&bench.compiled(key.clone(), false)).unwrap().unwrap_err();
    assert!(
        why.contains("its compiled form") && why.contains("cnova trust builder add"),
        "{why}"
    );
    let again = compile(&bench.apply(&text)).expect("it is compiled again");
    assert_eq!(again, key);
    assert_eq!(answer(&bench.compiled(again, true)), Some(Ok(())));
    assert_eq!(compile(&bench.apply(&text)), None);
}

#[test]
fn the_bundle_may_ask_for_what_no_manifest_asks() {
    let asks = AttestationPolicy {
        required: true,
        min_level: 2,
        ..AttestationPolicy::default()
    };
    let mut bench = Bench::with(config(Some(asks)), Stored::default());
    let artifact = bench.upload("program");
    let why = bench.judged("ebpf", artifact, "{provenance: optional}").unwrap_err();
    assert!(why.contains("has no provenance"), "{why}");
    bench.attach(artifact, envelope(3, CI, artifact, &[]));
    assert_eq!(bench.judged("ebpf", artifact, "{provenance: optional}"), Ok(()));
}

#[test]
fn input_files_count_where_they_are_meant() {
    let mut bench = Bench::new();
    let (artifact, file) = (bench.upload("program"), bench.upload("model"));
    bench.attach(artifact, envelope(3, CI, artifact, &[]));
    let text = |files: bool| {
        format!(
            "{}    files: [{{path: /data/m, artifact: {{digest: \"{file}\"}}}}]\n",
            workload("ebpf", artifact, &format!("{{provenance: required, files: {files}}}"))
        )
    };
    let inspected = Event::Inspected {
        key: InspectKey {
            digest: artifact,
            runtime: RuntimeKind::Ebpf,
        },
        result: Ok(Vec::new()),
    };
    bench.apply(&text(false));
    assert_eq!(answer(&bench.tell(inspected)), Some(Ok(())));
    let why = answer(&bench.apply(&text(true))).unwrap().unwrap_err();
    assert!(why.contains(&format!("file /data/m {file} has no provenance")), "{why}");
    bench.attach(file, envelope(3, CI, file, &[]));
    assert_eq!(answer(&bench.apply(&text(true))), Some(Ok(())));
}

#[test]
fn provenance_outlives_a_restart_is_bounded_and_goes_with_its_artifact() {
    let mut bench = Bench::new();
    let artifact = bench.upload("program");
    for seed in 20..20 + u8::try_from(limits::PROVENANCE_PER_ARTIFACT).unwrap() {
        bench.attach(artifact, envelope(seed, CI, artifact, &[]));
    }
    let good = envelope(3, CI, artifact, &[]);
    bench.attach(artifact, good.clone());
    let held = &bench.stored.provenance[&artifact];
    assert_eq!(held.len(), limits::PROVENANCE_PER_ARTIFACT);
    assert_eq!(held.last().unwrap().envelope, good, "the newest stay");
    assert!(bench.attach(artifact, good.clone()).is_empty(), "twice is once");
    assert_eq!(
        bench.stored.provenance[&artifact].len(),
        limits::PROVENANCE_PER_ARTIFACT
    );

    let mut bench = Bench::with(config(None), bench.stored);
    assert_eq!(bench.judged("ebpf", artifact, "{provenance: required}"), Ok(()));
    // All that is said of an artifact in use is in use, and nothing else.
    let unused = bench.hub.unused_artifacts();
    assert!(!unused.contains(&Digest::of(&good)), "{unused:?}");
    assert_eq!(unused, BTreeSet::from([Digest::of(&envelope(20, CI, artifact, &[]))]));

    let mut bench = Bench::new();
    let artifact = bench.upload("program");
    bench.attach(artifact, good.clone());
    let all = BTreeSet::from([artifact, Digest::of(&good)]);
    assert_eq!(bench.hub.unused_artifacts(), all);
    let gone = bench.tell(Event::Collect(all.clone()));
    assert_eq!(gone, [Action::RemoveArtifacts(all)]);
    assert!(
        bench.stored.provenance.values().all(Vec::is_empty),
        "{:?}",
        bench.stored.provenance
    );
    let again = bench.upload("program");
    assert!(bench.judged("ebpf", again, "{provenance: required}").is_err());
}

#[test]
fn a_site_s_policy_sees_verified_provenance_only() {
    let mut bench = Bench::new();
    let (artifact, file) = (bench.upload("program"), bench.upload("model"));
    bench.attach(artifact, envelope(9, CI, artifact, &[]));
    bench.attach(artifact, envelope(3, CI, artifact, &[]));
    bench.attach(file, envelope(4, CI, file, &[]));
    let facts = bench.hub.provenance_facts(&BTreeSet::from([artifact, file]), NOW_S);
    let rego = PolicySource {
        name: "site.rego".into(),
        text: "package cnova.admission\n\
               proved(w) if { some p in input.provenance[w].artifact; p.level >= 2; startswith(p.builder, \"https://ci.\") }\n\
               deny contains sprintf(\"%s: built nowhere we know\", [w.name]) if { some w in input.manifest.workloads; not proved(w.name) }\n\
               deny contains sprintf(\"%s: %d\", [w.name, count(input.provenance[w.name].files[\"/data/m\"])]) if { some w in input.manifest.workloads; w.name == \"b\" }\n"
            .into(),
    };
    let policies = PolicySet::new(&[rego]).unwrap();
    let text = |name: &str, digest: Digest| {
        format!(
            "{HEAD}workloads:\n  - name: {name}\n    runtime: container\n    artifact: {{digest: \"{digest}\"}}\n    \
             files: [{{path: /data/m, artifact: {{digest: \"{file}\"}}}}]\n"
        )
    };
    let judge = |name: &str, digest: Digest| {
        let denied = policies
            .admit_proved(parse(&text(name, digest)), &context(), &facts)
            .err();
        denied.map(|d| d.reasons.into_iter().map(|(_, why)| why).collect::<Vec<_>>())
    };
    assert_eq!(judge("a", artifact), None);
    assert_eq!(judge("a", file), Some(vec!["a: built nowhere we know".to_owned()]));
    assert_eq!(
        judge("b", artifact),
        Some(vec!["b: 0".to_owned()]),
        "what does not verify is no fact"
    );
}

/// The relation is a row of the store, before anybody is answered.
#[test]
fn it_is_kept_before_it_is_used() {
    let mut bench = Bench::new();
    let artifact = bench.upload("program");
    let good = envelope(3, CI, artifact, &[]);
    bench.hub.handle(
        Event::ProvenanceAdded {
            subject: artifact,
            artifact: v1::Artifact {
                digest: Digest::of(&good),
                size: good.len() as u64,
            },
            envelope: good.clone(),
        },
        NOW,
    );
    let Some(Action::Persist(ops)) = bench.hub.poll_action() else {
        panic!("nothing is kept");
    };
    assert!(
        matches!(&ops[..], [Op::PutArtifact { .. }, Op::PutProvenance { subject, stored }]
        if *subject == artifact && stored.envelope == good),
        "{ops:?}"
    );
}
