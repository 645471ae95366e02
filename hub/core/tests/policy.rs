//! Admission: what the built-in policy allows, what other policies may be, and that doubt denies.

use cnova_hub_core::cndl::{self, Manifest};
use cnova_hub_core::policy::{
    AdmissionContext, MAX_POLICIES, MAX_POLICY_BYTES, PolicyDenied, PolicyError, PolicySet, PolicySource,
};

fn manifest(workloads: &[&str]) -> Manifest {
    let digest = "0123456789abcdef".repeat(4);
    let list: String = workloads
        .iter()
        .map(|w| format!("  - {{runtime: wasm, artifact: {{digest: \"sha256:{digest}\"}}, {w}}}\n"))
        .collect();
    let text = format!("apiVersion: cnova/v1\nkind: Application\nmetadata: {{name: app}}\nworkloads:\n{list}");
    cndl::parse(&text, "m.yaml").unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn context() -> AdmissionContext {
    AdmissionContext {
        user: "ann".to_owned(),
        now_unix_s: 1_800_000_000,
    }
}

fn policies(texts: &[(&str, &str)]) -> Result<PolicySet, PolicyError> {
    let sources: Vec<PolicySource> = texts
        .iter()
        .map(|(name, text)| PolicySource {
            name: (*name).into(),
            text: (*text).into(),
        })
        .collect();
    PolicySet::new(&sources)
}

fn reasons(policies: &PolicySet, manifest: Manifest) -> Vec<(String, String)> {
    match policies.admit(manifest, &context()) {
        Ok(_) => Vec::new(),
        Err(PolicyDenied { reasons }) => reasons,
    }
}

#[test]
fn the_builtin_policy_admits_an_ordinary_manifest() {
    let asked = manifest(&["name: a, resources: {memory: 512MiB, cpu: 8}, grants: {network: [\"example.org:443\"]}"]);
    let admitted = PolicySet::builtin().unwrap().admit(asked.clone(), &context()).unwrap();
    assert_eq!(admitted.manifest(), &asked);
    assert_eq!(admitted.application().workloads[0].name, "a");
    assert_eq!(admitted.context(), &context());
}

#[test]
fn the_builtin_policy_gives_every_reason() {
    let asked = manifest(&[
        "name: a",
        "name: b, resources: {memory: 513MiB, cpu: 8500m}, limits: {log: 17MiB}",
        "name: c, resources: {memory: 1MiB}, grants: {network: [\"*\", \"tcp:*:80\", \"example.org:443\"]}",
    ]);
    let denied = PolicySet::builtin().unwrap().admit(asked, &context()).unwrap_err();
    assert_eq!(
        denied.to_string(),
        "denied by default.rego: workload a: resources.memory must be given
denied by default.rego: workload b: asks for 537919488 bytes of memory; at most 512 MiB are allowed
denied by default.rego: workload b: asks for 8.5 cores; at most 8 are allowed
denied by default.rego: workload b: keeps 17825792 bytes of log; at most 16 MiB are allowed
denied by default.rego: workload c: the network grant \"*\" is open to anyone; name the host and the port
denied by default.rego: workload c: the network grant \"tcp:*:80\" is open to anyone; name the host and the port"
    );
}

#[test]
fn the_builtin_policy_limits_the_number_of_workloads() {
    let many = |n: usize| -> Vec<String> {
        (0..n)
            .map(|i| format!("name: w{i}, resources: {{memory: 1MiB}}"))
            .collect()
    };
    let of = |n: usize| manifest(&many(n).iter().map(String::as_str).collect::<Vec<_>>());
    let builtin = PolicySet::builtin().unwrap();
    assert!(reasons(&builtin, of(64)).is_empty());
    let expected = [(
        "default.rego".to_owned(),
        "256 workloads; at most 64 are allowed".to_owned(),
    )];
    // The largest manifest there is also stays within the instruction limit.
    assert_eq!(reasons(&builtin, of(256)), expected);
}

#[test]
fn several_policies_libraries_and_the_user() {
    let set = policies(&[
        ("b.rego", "package cnova.admission\nimport data.lib.names\ndeny contains msg if { some w in input.manifest.workloads; names.bad(w.name); msg := \"bad name\" }"),
        ("a.rego", "package cnova.admission\ndeny contains msg if { input.user == \"ann\"; input.now > 1; msg := \"not you, not now\" }"),
        ("lib.rego", "package lib.names\nbad(n) if { startswith(n, \"x\") }"),
    ])
    .unwrap();
    assert_eq!(set.names(), ["a.rego", "b.rego"]);
    let said = reasons(&set, manifest(&["name: x1"]));
    assert_eq!(
        said,
        [
            ("a.rego".to_owned(), "not you, not now".to_owned()),
            ("b.rego".to_owned(), "bad name".to_owned())
        ]
    );
}

#[test]
fn version_0_text_runs_as_version_0() {
    let set = policies(&[(
        "old.rego",
        "package cnova.admission\ndeny[msg] { input.manifest.workloads[_].name == \"a\"; msg := \"no a\" }\n",
    )])
    .unwrap();
    assert_eq!(
        reasons(&set, manifest(&["name: a"])),
        [("old.rego".to_owned(), "no a".to_owned())]
    );
    assert!(reasons(&set, manifest(&["name: b"])).is_empty());
    // Both versions in one set.
    let both = policies(&[
        (
            "old.rego",
            "package cnova.admission\nimport data.lib\ndeny[\"old\"] { lib.yes }\n",
        ),
        (
            "new.rego",
            "package cnova.admission\ndeny contains \"new\" if { true }\n",
        ),
        ("lib.rego", "package lib\nyes if { true }"),
    ])
    .unwrap();
    let said = reasons(&both, manifest(&["name: a"]));
    assert_eq!(
        said,
        [
            ("new.rego".to_owned(), "new".to_owned()),
            ("old.rego".to_owned(), "old".to_owned())
        ]
    );
}

#[test]
fn texts_that_would_silently_mean_something_else() {
    let broken_v1 = "package cnova.admission\ndeny contains msg if { msg := \"x\" }\ndeny[x] { x := 1 }\n";
    assert!(matches!(
        policies(&[("p", broken_v1)]),
        Err(PolicyError::KeywordWithoutImport { line: 2, .. } | PolicyError::Syntax { .. })
    ));
    let no_deny = "package cnova.admission\nallow if { true }";
    assert_eq!(
        policies(&[("p", no_deny)]).unwrap_err(),
        PolicyError::NoDenyRule { name: "p".into() }
    );
    let other_package = "package cnova.admision\ndeny contains \"x\" if { true }";
    assert_eq!(
        policies(&[("p", other_package)]).unwrap_err(),
        PolicyError::NoAdmissionPolicy
    );
    assert_eq!(policies(&[]).unwrap_err(), PolicyError::NoAdmissionPolicy);
}

#[test]
fn texts_that_are_refused() {
    let fine = "package cnova.admission\ndeny contains \"x\" if { false }";
    assert!(matches!(policies(&[("p", "package")]), Err(PolicyError::Syntax { .. })));
    assert!(matches!(policies(&[("p", "")]), Err(PolicyError::Syntax { .. })));
    assert!(matches!(
        policies(&[("p", fine), ("p", fine)]),
        Err(PolicyError::DuplicateName { .. })
    ));
    let large = format!("{fine}\n#{}", " ".repeat(MAX_POLICY_BYTES));
    assert!(matches!(policies(&[("p", &large)]), Err(PolicyError::TooLarge { .. })));
    let many = vec![("p", fine); MAX_POLICIES + 1];
    assert!(matches!(policies(&many), Err(PolicyError::TooMany { .. })));
    let unknown = "package cnova.admission\ndeny contains \"x\" if { no_such_function(1) }";
    assert!(matches!(policies(&[("p", unknown)]), Err(PolicyError::Compile { .. })));
}

#[test]
fn what_cannot_be_evaluated_denies() {
    for (what, text, why) in [
        (
            "not a set",
            "package cnova.admission\ndeny := true",
            "deny is not a set of messages but true",
        ),
        (
            "not messages",
            "package cnova.admission\ndeny contains 7 if { true }",
            "deny holds 7 where a message belongs",
        ),
        (
            "failing builtin",
            "package cnova.admission\ndeny contains \"x\" if { to_number(input.user) > 1 }",
            "could not parse string as number",
        ),
        (
            "endless",
            "package cnova.admission\ndeny contains \"x\" if { some a in numbers.range(1, 3000); some b in numbers.range(1, 3000); a * b == 0 }",
            "exceeded maximum instruction limit",
        ),
    ] {
        let set = policies(&[("p", text)]).unwrap_or_else(|e| panic!("{what}: {e}"));
        let said = reasons(&set, manifest(&["name: a"]));
        assert_eq!(said.len(), 1, "{what}: {said:?}");
        assert!(
            said[0].1.starts_with("could not be evaluated, and so denies: "),
            "{what}: {said:?}"
        );
        assert!(said[0].1.contains(why), "{what}: {said:?}");
    }
}

#[test]
fn the_same_question_gets_the_same_answer() {
    let builtin = PolicySet::builtin().unwrap();
    let asked = manifest(&["name: a", "name: b", "name: c"]);
    let first = reasons(&builtin, asked.clone());
    assert_eq!(first.len(), 3);
    for _ in 0..20 {
        assert_eq!(reasons(&builtin, asked.clone()), first);
    }
}

#[test]
fn a_policy_set_is_shared_between_threads() {
    fn shared<T: Send + Sync + Clone>(_: &T) {}
    shared(&PolicySet::builtin().unwrap());
}

/// A manifest with one workload of a runtime and its settings.
fn workload(runtime: &str, settings: &str) -> Manifest {
    let digest = "0123456789abcdef".repeat(4);
    let text = format!(
        "apiVersion: cnova/v1\nkind: Application\nmetadata: {{name: app}}\nworkloads:\n\
         - {{name: w, runtime: {runtime}, artifact: {{digest: \"sha256:{digest}\"}}, resources: {{memory: 1MiB}}, settings: {settings}}}\n"
    );
    cndl::parse(&text, "m.yaml").unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// Settings that need a grant, with the word of the grant.
const NEEDS_GRANT: &[(&str, &str, &str)] = &[
    ("ebpf", "{programs: [{name: p, kind: xdp, attach: eth0}]}", "ebpf:xdp"),
    (
        "ebpf",
        "{programs: [{name: p, kind: tc-ingress, attach: eth0}]}",
        "ebpf:tc-ingress",
    ),
    (
        "ebpf",
        "{programs: [{name: p, kind: tracepoint, attach: sched/sched_switch}]}",
        "ebpf:tracepoint",
    ),
    (
        "ebpf",
        "{programs: [{name: p, kind: cgroup-skb, attach: /sys/fs/cgroup}]}",
        "ebpf:cgroup-skb",
    ),
    (
        "ebpf",
        "{programs: [{name: p, kind: socket-filter, attach: eth0}], helpers: [bpf_probe_read_kernel]}",
        "ebpf-helper:bpf_probe_read_kernel",
    ),
    ("container", "{network: host}", "network:host"),
    // serde takes this for the same thing.
    ("container", "{network: {host: null}}", "network:host"),
    (
        "container",
        "{capabilities: [CHOWN, SYS_ADMIN]}",
        "capability:SYS_ADMIN",
    ),
    ("container", "{seccomp: {allow: [getpid, bpf]}}", "seccomp:bpf"),
    ("container", "{seccomp: [[mount]]}", "seccomp:mount"),
];

#[test]
fn what_reaches_further_is_denied_unless_the_site_grants_it() {
    let builtin = PolicySet::builtin().unwrap();
    for (runtime, settings, word) in NEEDS_GRANT {
        let said = reasons(&builtin, workload(runtime, settings));
        assert_eq!(said.len(), 1, "{settings}: {said:?}");
        let how = format!("package cnova.grants, allow contains \"{word}\" if input.manifest.metadata.name == \"app\"");
        assert!(said[0].1.contains(&how), "{said:?}");
        for (grant, enough) in [
            (word.to_string(), true),
            (format!("w/{word}"), true),
            (format!("other/{word}"), false),
            ("ebpf".to_owned(), false),
        ] {
            let text = format!(
                "package cnova.grants\nallow contains \"{grant}\" if input.manifest.metadata.name == \"app\"\n"
            );
            let site = [PolicySource {
                name: "grants.rego".into(),
                text,
            }];
            let set = PolicySet::of_site(&site).unwrap();
            assert_eq!(
                reasons(&set, workload(runtime, settings)).is_empty(),
                enough,
                "{grant} {settings}"
            );
        }
    }
}

#[test]
fn what_stays_inside_needs_no_grant() {
    let builtin = PolicySet::builtin().unwrap();
    for (runtime, settings) in [
        ("ebpf", "{programs: [{name: p, kind: socket-filter, attach: eth0}]}"),
        ("container", "{}"),
        (
            "container",
            "{network: {own: {address: 10.9.0.2, prefix: 24, gateway: 10.9.0.1}}}",
        ),
        (
            "container",
            "{capabilities: [CHOWN, NET_BIND_SERVICE], seccomp: {allow: [getpid]}, isolation: vm}",
        ),
        ("wasm", "{pulley: true}"),
    ] {
        assert_eq!(reasons(&builtin, workload(runtime, settings)), [], "{settings}");
    }
}

#[test]
fn a_grant_is_the_sites_and_not_the_applications() {
    // Labels are the manifest's own words.
    let text = "package cnova.grants\nallow contains \"network:host\" if input.user == \"root\"\n";
    let site = [PolicySource {
        name: "grants.rego".into(),
        text: text.into(),
    }];
    let set = PolicySet::of_site(&site).unwrap();
    assert_eq!(reasons(&set, workload("container", "{network: host}")).len(), 1);
    // A site that decides on admission itself decides alone.
    let own = [PolicySource {
        name: "mine.rego".into(),
        text: "package cnova.admission\ndeny contains \"no\" if input.user == \"nobody\"\n".into(),
    }];
    let set = PolicySet::of_site(&own).unwrap();
    assert_eq!(
        (set.names(), reasons(&set, workload("container", "{network: host}"))),
        (vec!["mine.rego"], vec![])
    );
}
