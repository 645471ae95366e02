//! Manifests: what is accepted, what is refused, and what is said about it.

use std::collections::{BTreeMap, BTreeSet};

use cnova_hub_core::cndl::{
    self, ArtifactRef, MAX_MANIFEST_BYTES, MAX_REPORTED_ERRORS, Manifest, ManifestErrors, Replicas, RestartPolicy,
    RuntimeKind,
};

const FULL: &str = r#"apiVersion: cnova/v1
kind: Application
metadata: {name: vibration-watch, labels: {team: reliability}}
workloads:
  - name: detector
    runtime: wasm
    artifact: {file: build/vibration_watch.wasm}
    files:
      - {path: /data/signal.gse2, artifact: {file: build/signal.gse2}}
    args: ["--rate", "100"]
    env: {STA_LTA_ON: "3.5"}
    resources: {memory: 16MiB, cpu: 100m}
    limits: {log: 256KiB, wallTime: 10m}
    grants: {clocks: true, random: false, network: []}
    restart: {policy: on-failure, backoffMin: 1s, backoffMax: 60s, crashLoopAfter: 5}
    stopGrace: 5s
    settings: {coreDump: true, cpuBudgetMs: 1500}
    priority: 100
    placement:
      site: "plant-7/line-2/**"
      labels: {role: plc}
      replicas: each
      spread: true
"#;

const FULL_JSON: &str = r#"{
	"apiVersion": "cnova/v1", "kind": "Application",
	"metadata": {"name": "vibration-watch", "labels": {"team": "reliability"}},
	"workloads": [{
		"name": "detector", "runtime": "wasm",
		"artifact": {"file": "build\/vibration_watch.wasm"},
		"files": [{"path": "/data/signal.gse2", "artifact": {"file": "build/signal.gse2"}}],
		"args": ["--rate", "100"], "env": {"STA_LTA_ON": "3.5"},
		"resources": {"memory": 16777216, "cpu": 0.1},
		"limits": {"log": "256KiB", "wallTime": 600},
		"grants": {"clocks": true, "random": false, "network": []},
		"restart": {"policy": "on-failure", "backoffMin": "1000ms", "backoffMax": "1m", "crashLoopAfter": 5},
		"stopGrace": 5, "priority": 100,
		"settings": {"cpuBudgetMs": 1500, "coreDump": true, "pulley": false},
		"placement": {"site": "plant-7/line-2/**", "labels": {"role": "plc"}, "replicas": "each", "spread": true}
	}]
}"#;

const SMALL: &str = "apiVersion: cnova/v1
kind: Application
metadata: {name: app}
workloads:
  - name: one
    runtime: wasm
    artifact: {digest: \"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"}
";

fn parse(text: &str) -> Manifest {
    cndl::parse(text, "m.yaml").unwrap_or_else(|e| panic!("{e}"))
}

fn refused(text: &str) -> ManifestErrors {
    // Not `expect_err`: it would print the manifest, which some tests make a megabyte long.
    cndl::parse(text, "m.yaml").map(|_| ()).expect_err("must be refused")
}

fn said(text: &str) -> String {
    refused(text).to_string()
}

#[test]
fn every_field_arrives_in_base_units() {
    let manifest = parse(FULL);
    let app = manifest.application();
    assert_eq!(
        (app.name.as_str(), app.labels["team"].as_str()),
        ("vibration-watch", "reliability")
    );
    let w = app.workload("detector").unwrap();
    assert_eq!(w.runtime, RuntimeKind::Wasm);
    assert_eq!(
        w.artifact,
        ArtifactRef::File {
            path: "build/vibration_watch.wasm".into(),
            size: None
        }
    );
    assert_eq!(w.files[0].path, "/data/signal.gse2");
    assert_eq!(w.args, ["--rate", "100"]);
    assert_eq!(w.env["STA_LTA_ON"], "3.5");
    assert_eq!(
        (w.resources.memory_bytes, w.resources.cpu_millis),
        (Some(16 << 20), 100)
    );
    assert_eq!((w.limits.log_bytes, w.limits.wall_time_ms), (256 << 10, Some(600_000)));
    assert!(w.grants.clocks && !w.grants.random && w.grants.network.is_empty());
    assert_eq!(w.restart.policy, RestartPolicy::OnFailure);
    assert_eq!(
        (w.restart.backoff_min_ms, w.restart.backoff_max_ms, w.stop_grace_ms),
        (1_000, 60_000, 5_000)
    );
    assert_eq!((w.restart.crash_loop_after, w.priority), (5, 100));
    assert_eq!(
        serde_json::json!(w.settings),
        serde_json::json!({"coreDump": true, "cpuBudgetMs": 1500})
    );
    assert_eq!(w.placement.site.as_str(), "plant-7/line-2/**");
    assert_eq!(w.placement.replicas, Replicas::Each);
}

#[test]
fn defaults() {
    let manifest = parse(SMALL);
    let w = &manifest.application().workloads[0];
    assert_eq!((w.resources.memory_bytes, w.resources.cpu_millis), (None, 100));
    assert_eq!((w.limits.log_bytes, w.limits.wall_time_ms), (256 << 10, None));
    assert!(w.grants.clocks && w.grants.random && w.grants.network.is_empty());
    assert_eq!(w.restart.policy, RestartPolicy::Always);
    assert_eq!(
        (
            w.restart.backoff_min_ms,
            w.restart.backoff_max_ms,
            w.restart.crash_loop_after
        ),
        (1_000, 60_000, 5)
    );
    assert_eq!((w.stop_grace_ms, w.priority), (5_000, 100));
    assert_eq!(
        (w.placement.site.as_str(), w.placement.replicas),
        ("**", Replicas::Count(1))
    );
}

#[test]
fn json_and_yaml_say_the_same() {
    assert_eq!(parse(FULL), parse(FULL_JSON));
    assert_eq!(
        cndl::canonical_json(&parse(FULL)),
        cndl::canonical_json(&parse(FULL_JSON))
    );
}

#[test]
fn canonical_form_parses_to_the_same_manifest_and_the_same_text() {
    for text in [FULL, FULL_JSON, SMALL] {
        let manifest = parse(text);
        let canonical = cndl::canonical_json(&manifest);
        let again = parse(&canonical);
        assert_eq!(again, manifest);
        assert_eq!(cndl::canonical_json(&again), canonical);
    }
}

#[test]
fn canonical_form_survives_awkward_text() {
    let text = format!(
        "{SMALL}    args: [\"tab\\t nul-free \\u0001 \\\"quoted\\\" \\U0001F600\", \"# no: comment\", \"\"]\n    env: {{A: \"a: b\\n\", B: \"0x10\", C: \"~\", D: \"\"}}\n"
    );
    let manifest = parse(&text);
    assert_eq!(parse(&cndl::canonical_json(&manifest)), manifest);
}

#[test]
fn all_errors_at_once_with_their_places() {
    let text = r#"apiVersion: cnova/v2
kind: Application
metadata: {name: Vibration_Watch, labels: {line: 2}}
workloads:
  - name: detector
    runtime: wsam
    artifact: {file: a.wasm, digest: "sha256:12"}
    memry: 16MiB
    resources: {memory: 16 MiB, cpu: 0m}
    limits: {log: 99999999999GiB}
    grants: {netwrok: [], clocks: yes}
    restart: {backoffMin: 2m, policy: allways}
  - name: detector
    runtime: ebpf
    files:
      - {path: data/x, artifact: {}}
    args: "--rate 100"
    env: {STA_LTA_ON: 3.5, "BAD NAME": x}
    priority: 5000
    placement: {site: "plant-7/**/plc", replicas: all, spread: false}
extra: 1
"#;
    let expected = r#"m.yaml:1:13 /apiVersion: expected "cnova/v1", found the text "cnova/v2" (did you mean "cnova/v1"?)
m.yaml:3:18 /metadata/name: expected a name of up to 63 lowercase letters, digits and inner hyphens, found the text "Vibration_Watch"
m.yaml:3:50 /metadata/labels/line: expected text, found the number 2 (write "2" with its quotes)
m.yaml:6:14 /workloads/0/runtime: expected one of "wasm", "container", "ebpf", found the text "wsam" (did you mean "wasm"?)
m.yaml:7:15 /workloads/0/artifact: expected exactly one of "file" (a path relative to the manifest) and "digest" (sha256:<64 hex digits>)
m.yaml:7:38 /workloads/0/artifact/digest: expected "sha256:" and 64 lowercase hex digits, found the text "sha256:12"
m.yaml:8:5 /workloads/0/memry: unknown field "memry" (did you mean "resources.memory"?)
m.yaml:9:25 /workloads/0/resources/memory: expected a size such as 16MiB, 512K or a number of bytes, found the text "16 MiB"
m.yaml:9:38 /workloads/0/resources/cpu: 0m must be more than 0
m.yaml:10:19 /workloads/0/limits/log: 99999999999GiB is larger than anything this field can hold
m.yaml:11:14 /workloads/0/grants/netwrok: unknown field "netwrok" (did you mean "network"?)
m.yaml:11:35 /workloads/0/grants/clocks: expected true or false, found the text "yes" (did you mean true?)
m.yaml:12:14 /workloads/0/restart: backoffMin (120000 ms) is longer than backoffMax (60000 ms)
m.yaml:12:39 /workloads/0/restart/policy: expected one of "always", "on-failure", "never", found the text "allways" (did you mean "always"?)
m.yaml:13:5 /workloads/1: the field "artifact" is missing
m.yaml:13:5 /workloads/1/settings/programs: names no programs: nothing of the object would be loaded (programs: [{name: FUNCTION, kind: socket-filter, attach: INTERFACE}])
m.yaml:13:11 /workloads/1/name: the workload name "detector" is already used in line 5
m.yaml:16:16 /workloads/1/files/0/path: expected an absolute path such as /data/signal.gse2, found the text "data/x"
m.yaml:16:34 /workloads/1/files/0/artifact: expected exactly one of "file" (a path relative to the manifest) and "digest" (sha256:<64 hex digits>)
m.yaml:17:11 /workloads/1/args: expected a list, found the text "--rate 100"
m.yaml:18:23 /workloads/1/env/STA_LTA_ON: expected text, found the number 3.5 (write "3.5" with its quotes)
m.yaml:18:28 /workloads/1/env/BAD NAME: expected a variable name of letters, digits and _.-, found "BAD NAME"
m.yaml:19:15 /workloads/1/priority: expected a whole number from 0 to 1000, found the number 5000
m.yaml:20:23 /workloads/1/placement/site: the site pattern "plant-7/**/plc": "**" stands for any tail and must be the last segment (segments joined by "/", for example plant-7/line-2/**)
m.yaml:20:51 /workloads/1/placement/replicas: expected a number of nodes from 1 to 100000, or "each", found the text "all"
m.yaml:20:64 /workloads/1/placement/spread: false is not possible: a node runs a workload at most once (remove the line)
m.yaml:21:1 /extra: unknown field "extra" (known fields: apiVersion, attestationPolicy, kind, metadata, workloads)
"#;
    assert_eq!(said(text), expected.trim_end());
}

#[test]
fn errors_are_data_as_well() {
    let errors = refused(&SMALL.replace("    runtime: wasm", "    runtime: wasm\n    priorty: 5"));
    assert_eq!(errors.source_name, "m.yaml");
    let [error] = errors.errors.as_slice() else {
        panic!("{errors}")
    };
    assert_eq!(
        (error.line, error.column, error.pointer.as_str()),
        (7, 5, "/workloads/0/priorty")
    );
    assert_eq!(error.message, "unknown field \"priorty\"");
    assert_eq!(error.hint.as_deref(), Some("did you mean \"priority\"?"));
}

#[test]
fn neither_yaml_nor_json() {
    for (text, place) in [
        ("\u{7f}ELF\u{1}\u{2}", "m.yaml:1:1: not valid YAML"),
        (
            "apiVersion: cnova/v1\nworkloads: [one,\n  two",
            "m.yaml:2:12: not valid YAML",
        ),
        ("{\"apiVersion\": \"cnova/v1\"", "m.yaml:1:1: not valid JSON"),
        ("a: b: c", "m.yaml:1:5: not valid YAML"),
        ("a: *nothing", "m.yaml:1:4: not valid YAML"),
        ("a: !custom b", "m.yaml:1:12: not valid YAML"),
        ("hello", "m.yaml:1:1: expected a map, found the text \"hello\""),
        ("[1, 2]", "m.yaml:1:1: expected a map, found a list of 2"),
        ("", "m.yaml:1:1: the manifest is empty"),
        ("# nothing\n", "m.yaml:1:1: the manifest is empty"),
    ] {
        let said = said(text);
        assert!(said.starts_with(place), "{text:?}: {said}");
    }
}

#[test]
fn duplicate_keys() {
    assert_eq!(
        said("kind: Application\nkind: Application\n"),
        "m.yaml:2:1: the key \"kind\" is given twice"
    );
    assert_eq!(
        said("{\"a\": {\"b\": 1, \"b\": 2}}"),
        "m.yaml:1:16: the key \"b\" is given twice"
    );
}

#[test]
fn several_documents() {
    let said = said(&format!("{SMALL}---\n{SMALL}"));
    assert!(
        said.starts_with("m.yaml:8:1: a second document begins here (one manifest per file)"),
        "{said}"
    );
}

#[test]
fn ten_megabytes_are_refused_before_parsing() {
    // Not even valid: whoever parses it says something else.
    let text = "[".repeat(10 << 20);
    let expected = format!("m.yaml:1:1: the manifest has 10485760 bytes; at most {MAX_MANIFEST_BYTES} are accepted");
    assert!(said(&text).starts_with(&expected));
}

#[test]
fn billion_laughs() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..10 {
        let before = format!("*a{}", i - 1);
        text += &format!("a{i}: &a{i} [{}]\n", [before.as_str(); 10].join(", "));
    }
    let said = said(&text);
    assert!(said.contains("aliases"), "{said}");
    assert!(said.starts_with("m.yaml:"), "{said}");
}

#[test]
fn aliases_that_stay_small_are_fine() {
    let text = SMALL.replace(
        "    runtime: wasm",
        "    env: &e {A: x}\n    placement: {labels: *e}\n    runtime: wasm",
    );
    let manifest = parse(&text);
    assert_eq!(manifest.application().workloads[0].placement.labels["A"], "x");
    // An error stands where the alias is used, not where it was defined.
    let said = said(&text.replace("placement: {labels: *e}", "resources: *e"));
    assert!(
        said.starts_with("m.yaml:7:16 /workloads/0/resources/A: unknown field \"A\""),
        "{said}"
    );
}

#[test]
fn self_reference_and_merge_keys() {
    assert!(said("a: &x [1, *x]").contains("aliases"));
    assert_eq!(
        said("a: {<<: {b: 1}}"),
        "m.yaml:1:5: merge keys (\"<<\") are not supported"
    );
}

#[test]
fn a_hundred_thousand_levels() {
    let block: String = (0..900).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
    for text in [
        "[".repeat(100_000),
        "{\"a\":".repeat(100_000),
        "- ".repeat(100_000),
        block,
    ] {
        let said = said(&text);
        assert!(said.contains("nested deeper than 32 levels"), "{said}");
    }
}

#[test]
fn numbers_that_do_not_fit() {
    let with = |line: &str| SMALL.replace("    runtime: wasm", &format!("    {line}\n    runtime: wasm"));
    for (line, message) in [
        ("priority: 100.0", "expected a whole number, found 100.0"),
        (
            "priority: -1",
            "expected a whole number from 0 to 1000, found the number -1",
        ),
        ("resources: {memory: 0}", "0 must be more than 0"),
        ("resources: {memory: -5}", "expected a size such as 16MiB"),
        ("resources: {memory: .inf}", "a number must be finite"),
        (
            "resources: {memory: }",
            "expected a size such as 16MiB, 512K or a number of bytes, found nothing",
        ),
        ("resources: {cpu: 0.00001}", "is finer than 1m"),
        ("resources: {cpu: 5000}", "larger than anything"),
        ("limits: {wallTime: 0s}", "0s must be more than 0"),
        ("stopGrace: soon", "expected a duration such as 500ms"),
        (
            "placement: {replicas: 0}",
            "expected a number of nodes from 1 to 100000, or \"each\", found the number 0",
        ),
        (
            "grants: {network: [\"example.org:70000\"]}",
            "the port \"70000\" is not between 1 and 65535",
        ),
        ("grants: {network: [everything]}", "expected \"host:port\""),
        (
            "files: [{path: /a/../b, artifact: {file: x}}]",
            "must not contain \".\" or \"..\"",
        ),
    ] {
        let said = said(&with(line));
        assert!(said.contains(message), "{line}: {said}");
        assert!(said.starts_with("m.yaml:6:"), "{line}: {said}");
    }
}

#[test]
fn too_many_workloads() {
    let one = SMALL.split_once("workloads:\n").unwrap().1;
    let many = |n: usize| {
        let all: String = (0..n)
            .map(|i| one.replace("name: one", &format!("name: w{i}")))
            .collect();
        SMALL.replace(one, &all)
    };
    assert_eq!(parse(&many(256)).application().workloads.len(), 256);
    assert!(said(&many(257)).contains("/workloads: expected 1 to 256 workloads, found a list of 257"));
}

#[test]
fn a_flood_of_errors_is_cut() {
    let text: String = (0..40_000).map(|i| format!("field{i}: 1\n")).collect();
    let errors = refused(&text);
    assert_eq!(errors.errors.len(), MAX_REPORTED_ERRORS);
    assert!(errors.truncated);
    assert!(errors.to_string().ends_with("and more; only 1000 errors are shown"));
}

#[test]
fn what_grows_too_large_when_written_out() {
    // Small as text, larger than the limit in the canonical form.
    let list = vec!["*t"; 300].join(", ");
    let text = format!(
        "{SMALL}    env: {{T: &t \"{}\"}}\n    args: [{list}]\n",
        "x".repeat(4_000)
    );
    let expected = "m.yaml:9:1056: with its aliases written out the manifest has more than 1048576 bytes";
    assert_eq!(said(&text), expected);
    let (list, text) = (vec!["*t"; 900].join(", "), "x".repeat(900_000));
    let said = said(&format!("{SMALL}    env:\n      T: &t {text}\n    args: [{list}]\n"));
    assert!(said.contains("with its aliases written out"), "{said}");
}

#[test]
fn defaults_count_towards_the_written_size() {
    let quoted = vec![format!("\"{}\"", "\\e".repeat(15_000)); 20].join(", ");
    let raw = format!("{SMALL}    args: [{quoted}]\n");
    let said = said(&raw);
    assert!(
        said.contains("cannot be stored with its defaults and aliases written out: it has"),
        "{said}"
    );
}

#[test]
fn messages_are_safe_for_a_terminal() {
    let said = said("\"\\u001b[2J\\n\": 1\n");
    assert!(!said.contains('\u{1b}'), "{said}");
    assert_eq!(said.lines().count(), 5, "{said}");
}

#[test]
fn files_are_resolved_by_digest() {
    let manifest = parse(FULL);
    assert_eq!(
        manifest.unresolved_files(),
        BTreeSet::from(["build/signal.gse2", "build/vibration_watch.wasm"])
    );
    assert!(manifest.digests().is_empty());
    let good = format!("sha256:{}", "ab".repeat(32));

    let wrong = BTreeMap::from([("build/signal.gse2".to_owned(), "sha256:xyz".to_owned())]);
    let said = manifest.clone().resolve_files(&wrong).unwrap_err().to_string();
    assert_eq!(
        said,
        "m.yaml:7:15 /workloads/0/artifact: the file \"build/vibration_watch.wasm\" has not been uploaded (upload it first; `cnova apply` does)
m.yaml:9:45 /workloads/0/files/0/artifact: the file \"build/signal.gse2\" was given the digest \"sha256:xyz\" (a digest is \"sha256:\" and 64 lowercase hex digits)"
    );

    let right = manifest
        .unresolved_files()
        .into_iter()
        .map(|f| (f.to_owned(), good.clone()))
        .collect();
    let resolved = manifest.resolve_files(&right).unwrap();
    assert!(resolved.unresolved_files().is_empty());
    assert_eq!(resolved.digests(), BTreeSet::from([good.as_str()]));
    assert_eq!(parse(&cndl::canonical_json(&resolved)), resolved);
}

#[test]
fn defaults_count_towards_the_number_of_values() {
    let one = SMALL.split_once("workloads:\n").unwrap().1;
    let many: String = (0..200)
        .map(|i| one.replace("name: one", &format!("name: w{i}")))
        .collect();
    let list = vec!["a"; 95_000].join(",");
    let many = SMALL.replace(one, &many).replace("runtime: wasm", "runtime: container");
    let said = said(&format!("{many}    settings: {{entrypoint: [{list}]}}\n"));
    assert!(said.contains("cannot be stored"), "{said}");
}

proptest::proptest! {
    #[test]
    fn any_text_survives_the_round_trip(
        args in proptest::collection::vec("\\PC*|.*", 0..4),
        budget in 1_u64..=u64::MAX,
        window in proptest::option::of(1..=cndl::MAX_DURATION_MS),
        claims in proptest::collection::vec(("[a-z][a-z0-9]{0,10}", proptest::bool::ANY), 0..8),
        memory in 1_u64..=1 << 53,
        cpu in 1_u32..=cndl::MAX_CPU_MILLIS,
        grace in 0..=cndl::MAX_DURATION_MS,
    ) {
        let args: Vec<String> = args.into_iter().map(|a| a.replace('\0', "")).collect();
        let mut value = serde_json::to_value(parse(SMALL)).unwrap();
        let workload = &mut value["workloads"][0];
        workload["args"] = serde_json::json!(args);
        workload["settings"] = serde_json::json!({"cpuBudgetMs": budget});
        workload["accelerators"] = claims
            .iter()
            .map(|(kind, optional)| match optional {
                true => serde_json::json!({"kind": kind, "optional": true}),
                false => serde_json::json!(kind),
            })
            .collect();
        workload["schedule"] = serde_json::json!({"cron": "*/5  6-18 * * MON-FRI", "zone": "Europe/Berlin"});
        if let Some(ms) = window {
            workload["schedule"]["for"] = serde_json::json!(format!("{ms}ms"));
        }
        workload["resources"] = serde_json::json!({"memory": memory, "cpu": format!("{cpu}m")});
        workload["stopGrace"] = serde_json::json!(format!("{grace}ms"));
        let manifest = parse(&ascii_json(&value));
        let parsed = &manifest.application().workloads[0];
        proptest::prop_assert_eq!(&parsed.args, &args);
        proptest::prop_assert_eq!(serde_json::json!(parsed.settings), serde_json::json!({"cpuBudgetMs": budget}));
        let schedule = parsed.schedule.as_ref().unwrap();
        proptest::prop_assert_eq!((schedule.cron.as_str(), schedule.window_ms), ("*/5 6-18 * * MON-FRI", window));
        let parsed_claims: Vec<_> = parsed.accelerators.iter().map(|c| (c.kind.clone(), c.optional)).collect();
        proptest::prop_assert_eq!(parsed_claims, claims);
        proptest::prop_assert_eq!(parsed.resources.memory_bytes, Some(memory));
        proptest::prop_assert_eq!(parsed.resources.cpu_millis, cpu);
        proptest::prop_assert_eq!(parsed.stop_grace_ms, grace);
        proptest::prop_assert_eq!(parse(&cndl::canonical_json(&manifest)), manifest);
    }

    #[test]
    fn no_text_panics(text in "\\PC*|.*|[\\[\\]{}:,&*a!|>'\"\n -]*") {
        if let Err(errors) = cndl::parse(&text, "x") {
            proptest::prop_assert!(!errors.errors.is_empty());
        }
    }
}

/// JSON with everything outside ASCII escaped, as many programs write it.
fn ascii_json(value: &serde_json::Value) -> String {
    let mut out = String::new();
    for c in value.to_string().chars() {
        if c == '\u{7f}' || !c.is_ascii() {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out += &format!("\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// The schema that editors use is the one that the hub applies. After a change of the wire types run
/// `CNOVA_WRITE_SCHEMA=1 cargo test -p cnova-hub-core --test cndl` and commit the file.
#[test]
fn the_published_schema_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/schema/cndl-v1.schema.json");
    let current = format!("{}\n", serde_json::to_string_pretty(&cndl::json_schema()).unwrap());
    if std::env::var_os("CNOVA_WRITE_SCHEMA").is_some() {
        std::fs::write(path, &current).unwrap();
    }
    let published = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        published == current,
        "{path} is out of date: run CNOVA_WRITE_SCHEMA=1 cargo test -p cnova-hub-core --test cndl"
    );
}

fn with_secrets(runtime: &str, more: &str) -> String {
    format!(
        "{}{more}\n",
        SMALL.replace("runtime: wasm", &format!("runtime: {runtime}"))
    )
}

#[test]
fn secrets_are_given_as_variables_and_files() {
    let text = with_secrets(
        "container",
        "    secrets: [{name: db, env: DB}, {name: tls, path: /run/secrets/tls}]",
    );
    let manifest = parse(&text);
    let given: Vec<String> = manifest
        .secrets()
        .map(|(at, w, s)| format!("{at} {} {} {:?}", w.name, s.name, s.target))
        .collect();
    assert_eq!(
        given,
        [
            "/workloads/0/secrets/0/name one db Env(\"DB\")",
            "/workloads/0/secrets/1/name one tls File(\"/run/secrets/tls\")"
        ]
    );
    assert_eq!(
        cndl::restore(&cndl::canonical_json(&manifest), "stored").unwrap(),
        manifest
    );
    assert!(
        !cndl::canonical_json(&parse(SMALL)).contains("secrets"),
        "those without stay as they were"
    );
}

#[test]
fn secrets_that_cannot_be_given_are_refused_at_their_place() {
    for (runtime, more, expected) in [
        (
            "ebpf",
            "    secrets: [{name: a, env: A}]",
            "8:5 /workloads/0/secrets: an eBPF program has no environment",
        ),
        ("wasm", "    secrets: [{name: a}]", "expected exactly one of \"path\""),
        (
            "wasm",
            "    secrets: [{name: a, env: A, path: /x}]",
            "expected exactly one of \"path\"",
        ),
        (
            "wasm",
            "    secrets: [{name: A, env: A}]",
            "expected a name of up to 63 lowercase letters",
        ),
        (
            "wasm",
            "    secrets: [{name: a, env: \"A=\"}]",
            "expected a variable name",
        ),
        (
            "wasm",
            "    secrets: [{name: a, env: A}, {name: b, env: A}]",
            "8:49 /workloads/0/secrets/1/env: the variable \"A\" is already used in line 8",
        ),
        (
            "wasm",
            "    env: {A: x}\n    secrets: [{name: a, env: A}]",
            "9:30 /workloads/0/secrets/0/env: the variable \"A\" already has a value",
        ),
        ("wasm", "    secrets: [{name: a, path: /s/../b}]", "must not contain"),
        (
            "wasm",
            "    secrets: [{name: a, path: rel}]",
            "expected an absolute path",
        ),
        (
            "container",
            "    volumes: [{name: v, path: /s/a}]\n    secrets: [{name: a, path: /s/a}]",
            "the path \"/s/a\" is already used in line 8",
        ),
        (
            "container",
            "    secrets: [{name: a, path: /s}, {name: b, path: /s}]",
            "the path \"/s\" is already used",
        ),
        (
            "wasm",
            "    volumes: [{name: v, path: /s/data}]\n    secrets: [{name: a, path: /s/a}]",
            "the secret in \"/s\" would hide \"/s/data\"",
        ),
        (
            "wasm",
            "    volumes: [{name: v, path: /data}]\n    secrets: [{name: a, path: /a}]",
            "the secret in \"/\" would hide",
        ),
        (
            "wasm",
            "    settings: {coreDump: true}\n    secrets: [{name: a, env: A}]",
            "8:26 /workloads/0/settings/coreDump: a core dump would",
        ),
        ("wasm", "    secrets: [{name: a, pth: /a}]", "did you mean \"path\"?"),
    ] {
        let said = said(&with_secrets(runtime, more));
        assert!(said.contains(expected), "{more}: {said}");
    }
    // What lies beside it, or around it, is seen.
    parse(&with_secrets(
        "wasm",
        "    volumes: [{name: v, path: /data}]\n    secrets: [{name: a, path: /data/keys/a}]",
    ));
    parse(&with_secrets(
        "container",
        "    volumes: [{name: v, path: /s/data}]\n    secrets: [{name: a, path: /s/a}]",
    ));
}
