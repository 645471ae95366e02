//! Manifests that say when and with what a workload runs: what is accepted, and what is said of what is not.

use cnova_hub_core::cndl::{self, Manifest};
use cnova_shared::wire::v1::{AcceleratorClaim, DependencyCondition, Health, OnBadUpdate, PowerLevel};
use serde_json::json;

const HEAD: &str = "apiVersion: cnova/v1\nkind: Application\nmetadata: {name: line}\nworkloads:\n";
const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// One workload per text; its first lines are three.
fn text(workloads: &[(&str, &str, &str)]) -> String {
    let one = |(name, runtime, more): &(&str, &str, &str)| {
        let more: String = more.lines().map(|l| format!("    {l}\n")).collect();
        format!("  - name: {name}\n    runtime: {runtime}\n    artifact: {{digest: \"{DIGEST}\"}}\n{more}")
    };
    format!("{HEAD}{}", workloads.iter().map(one).collect::<String>())
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
fn every_condition_arrives_and_is_written_out() {
    let full = text(&[
        ("store", "container", ""),
        (
            "vision",
            "container",
            "\
volumes: [{name: models, path: /var/models}]
needs: [store, {workload: line/store, condition: started}, {workload: other/bus, condition: finished}]
accelerators: [npu, {kind: hailo-8, optional: true}]
devices: [serial-1]
schedule: {cron: \"0 6  * * MON-FRI\", zone: Europe/Berlin, for: 8h, late: 10m}
power: battery
health: {interval: 2s, within: 5m, failures: 0}
onBadUpdate: stay
settings: {network: {host: null}, pids: 20}",
        ),
    ]);
    // The same workload is needed twice there: under its name and with its application.
    assert_eq!(
        said(&full),
        "m.yaml:12:31 /workloads/1/needs/1/workload: \"line/store\" is needed already"
    );
    let manifest = parse(&full.replace("{workload: line/store, condition: started}, ", ""));
    let w = manifest.application().workload("vision").unwrap();
    assert_eq!(
        (w.volumes[0].name.as_str(), w.volumes[0].path.as_str()),
        ("models", "/var/models")
    );
    let needs: Vec<_> = w.needs.iter().map(|n| (n.to_text(), n.condition)).collect();
    assert_eq!(
        needs,
        [
            ("store".to_owned(), DependencyCondition::Healthy),
            ("other/bus".to_owned(), DependencyCondition::Finished)
        ]
    );
    let claim = |kind: &str, optional| AcceleratorClaim {
        kind: kind.into(),
        optional,
    };
    assert_eq!(w.accelerators, [claim("npu", false), claim("hailo-8", true)]);
    assert_eq!(w.devices, ["serial-1"]);
    let schedule = w.schedule.as_ref().unwrap();
    assert_eq!(
        (schedule.cron.as_str(), schedule.zone.as_str()),
        ("0 6 * * MON-FRI", "Europe/Berlin")
    );
    assert_eq!((schedule.window_ms, schedule.late_ms), (Some(28_800_000), 600_000));
    assert_eq!((w.power, w.on_bad_update), (PowerLevel::Battery, OnBadUpdate::Stay));
    assert_eq!(
        w.health,
        Health {
            interval_ms: 2_000,
            within_ms: 300_000,
            failures: 0
        }
    );
    // The one form, whatever it was written in, and without the runtime's defaults.
    assert_eq!(json!(w.settings), json!({"network": "host", "pids": 20}));
    let again = parse(&cndl::canonical_json(&manifest));
    assert_eq!(again, manifest);
    let value = manifest.to_value();
    let at = |pointer: &str| {
        value
            .pointer(&format!("/workloads/1/{pointer}"))
            .cloned()
            .unwrap_or_default()
    };
    assert_eq!(
        at("needs"),
        json!([{"workload": "store", "condition": "healthy"}, {"workload": "other/bus", "condition": "finished"}])
    );
    assert_eq!(at("accelerators/0"), json!({"kind": "npu", "optional": false}));
    assert_eq!(
        at("schedule"),
        json!({"cron": "0 6 * * MON-FRI", "zone": "Europe/Berlin", "for": 28_800, "late": 600})
    );
    assert_eq!(value.pointer("/workloads/0/power"), Some(&json!("critical")));
    assert_eq!(value.pointer("/workloads/0/schedule"), None);
}

#[test]
fn wrong_conditions_are_told_with_their_places() {
    let wrong = text(&[(
        "a",
        "container",
        "\
volumes: [{name: v, path: var}, {name: w, path: /w}, {name: w, path: /w}]
needs: [b, {workload: c, conditon: started}, {workload: A/b}, 3]
accelerators: [NPU, {kind: npu, optinal: true}]
devices: [serial-1, serial-1]
schedule: {cron: \"0 25 * * *\", zone: Europe/Berlni, for: 0s, late: soon}
power: battry
health: {interval: 1ms, failures: -1}
onBadUpdate: rollback
grants: {threads: true}",
    )]);
    let expected = "\
m.yaml:8:31 /workloads/0/volumes/0/path: expected an absolute path such as /data/signal.gse2, found the text \"var\"
m.yaml:8:65 /workloads/0/volumes/2/name: the volume name \"w\" is already used in line 8
m.yaml:8:74 /workloads/0/volumes/2/path: the path \"/w\" is already used in line 8
m.yaml:9:13 /workloads/0/needs/0: this application has no workload \"b\" (did you mean \"a\"?)
m.yaml:9:27 /workloads/0/needs/1/workload: this application has no workload \"c\" (did you mean \"a\"?)
m.yaml:9:30 /workloads/0/needs/1/conditon: unknown field \"conditon\" (did you mean \"condition\"?)
m.yaml:9:61 /workloads/0/needs/2/workload: expected a workload's name, or \"application/workload\", found the text \"A/b\"
m.yaml:9:67 /workloads/0/needs/3: expected a workload's name, or a map with \"workload\" and \"condition\", found the number 3
m.yaml:10:20 /workloads/0/accelerators/0: expected a class (npu, gpu, tpu), a kind such as hailo-8, or a map with \"kind\" and \"optional\", found the text \"NPU\"
m.yaml:10:37 /workloads/0/accelerators/1/optinal: unknown field \"optinal\" (did you mean \"optional\"?)
m.yaml:11:25 /workloads/0/devices/1: the device \"serial-1\" is already used in line 11
m.yaml:12:22 /workloads/0/schedule/cron: the hour \"25\" of \"0 25 * * *\" is not understood (0 to 23, lists (1,2), ranges (1-5), steps (*/15), or *)
m.yaml:12:42 /workloads/0/schedule/zone: there is no time zone \"Europe/Berlni\" (an IANA time zone such as Europe/Berlin, or UTC)
m.yaml:12:62 /workloads/0/schedule/for: 0s must be more than 0
m.yaml:12:72 /workloads/0/schedule/late: expected a duration such as 500ms, 5s, 10m or a number of seconds, found the text \"soon\"
m.yaml:13:12 /workloads/0/power: expected one of \"mains\", \"battery\", \"low\", \"critical\", found the text \"battry\" (did you mean \"battery\"?)
m.yaml:14:24 /workloads/0/health/interval: 1 ms is too often: at least 100 ms lie between two questions
m.yaml:14:39 /workloads/0/health/failures: expected a whole number from 0 to 1000, found the number -1
m.yaml:15:18 /workloads/0/onBadUpdate: expected one of \"return\", \"stay\", found the text \"rollback\"
m.yaml:16:23 /workloads/0/grants/threads: only a Wasm workload can be granted this (remove the line)";
    let found = said(&wrong);
    assert_eq!(found, expected, "\n{found}");
}

#[test]
fn circles_of_needs_are_refused_with_their_path() {
    let circle = text(&[
        ("a", "container", "needs: [b]"),
        ("b", "container", "needs: [{workload: c, condition: started}]"),
        ("c", "container", "needs: [line/a]"),
        ("d", "container", "needs: [a]"),
    ]);
    assert_eq!(
        said(&circle),
        "m.yaml:16:13 /workloads/2/needs/0: the needs go in a circle, so that none would ever start: a -> b -> c -> a"
    );
    assert!(said(&text(&[("a", "wasm", "needs: [a]")])).contains("a -> a"));
    // Nothing is known here of other applications.
    parse(&text(&[("a", "wasm", "needs: [other/a]")]));
}

#[test]
fn what_never_finishes_cannot_be_waited_for() {
    let needs = "needs: [{workload: job, condition: finished}]";
    let found = said(&text(&[("job", "wasm", ""), ("after", "wasm", needs)]));
    assert!(
        found.starts_with("m.yaml:11:40 /workloads/1/needs/0/condition: \"job\" never finishes"),
        "{found}"
    );
    for job in ["restart: {policy: never}", "schedule: {cron: \"0 0 * * *\"}"] {
        parse(&text(&[("job", "wasm", job), ("after", "wasm", needs)]));
    }
}

#[test]
fn settings_are_judged_by_what_the_runtime_understands() {
    let container = text(&[(
        "a",
        "container",
        "\
settings:
  capabilities: [cap_chown, NET_BIND_SERVICE]
  netwrok: host
  user: \"me:\"
  probe: {http: {port: eighty}}",
    )]);
    assert_eq!(
        said(&container),
        "\
m.yaml:10:7 /workloads/0/settings/netwrok: unknown field \"netwrok\" (did you mean \"network\"?)
m.yaml:12:28 /workloads/0/settings/probe/http/port: expected a whole number from 0 to 65535, found the text \"eighty\""
    );
    // What only can be seen when the types are right.
    let container = container.replace("      netwrok: host\n", "").replace("eighty", "0");
    assert_eq!(
        said(&container),
        "\
m.yaml:9:22 /workloads/0/settings/capabilities/0: there is no capability \"cap_chown\" (did you mean \"CHOWN\"?)
m.yaml:10:13 /workloads/0/settings/user: \"me:\" is not a user (write UID, UID:GID or names that the image knows)
m.yaml:11:28 /workloads/0/settings/probe/http/port: 0 is not a port"
    );
    let ebpf = said(&text(&[("a", "ebpf", "")]));
    assert!(
        ebpf.starts_with(
            "m.yaml:5:5 /workloads/0/settings/programs: names no programs: nothing of the object would be loaded"
        ),
        "{ebpf}"
    );
    let wasm = text(&[(
        "a",
        "wasm",
        "files: [{path: /m/net.onnx, artifact: {file: net.onnx}}]\nsettings: {models: [{name: net, file: /m/net.onx}]}",
    )]);
    let found = said(&wasm);
    assert!(
        found.contains("/workloads/0/settings/models/0/file: \"/m/net.onx\" is not the path of one of the workload's files (did you mean \"/m/net.onnx\"?)"),
        "{found}"
    );
    assert!(
        found.contains("/workloads/0/settings/models: models are of no use"),
        "{found}"
    );
    parse(
        &wasm
            .replace("net.onx", "net.onnx")
            .replace("    settings", "    grants: {nn: true}\n    settings"),
    );
}

#[test]
fn what_was_accepted_once_is_read_again_whatever_a_runtime_has_learned_since() {
    let old = text(&[("a", "wasm", "settings: {threshold: 3.5}")]);
    assert!(said(&old).contains("unknown field \"threshold\""));
    let restored = cndl::restore(&old, "line").unwrap();
    assert_eq!(
        json!(restored.application().workloads[0].settings),
        json!({"threshold": 3.5})
    );
}
