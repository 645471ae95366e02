//! `get`, `describe`, `logs`, `delete`: what people see of what the hub says.

#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::{FakeHub, Place, Reply, error};

fn node(name: &str, synced: bool) -> Value {
    json!({
        "node": name, "role": "agent", "site": format!("plant-7/{name}"), "link": "connected", "trust": "UNATTESTED",
        "via": "gw-1", "desired": "1.4", "reported": if synced { "1.4" } else { "1.3" }, "in_sync": synced,
        "heard_ms": 0, "software": "0.1.0", "labels": {"line": "2"},
        "capabilities": {"r": [{"n": "wasm", "v": "1", "e": "wasmtime-48.0.8", "t": ["x86_64-unknown-linux-gnu"]}],
            "m": 134_217_728, "c": 2000, "acc": [{"id": "hailo0", "c": "npu", "k": "hailo-8"}], "dev": ["serial-1"]},
        "alarms": [{"c": "store-set-aside", "d": "the store was corrupt"}],
        "refusals": [{"at_ms": 1000, "code": "bad-signature", "detail": "by key 00"}],
        "field_of_a_newer_hub": 1,
    })
}

fn workload(node: &str, state: &str, adopted: bool, reason: &str) -> Value {
    json!({"application": "watch", "workload": "detector", "node": node, "desired": 3,
        "generation": if state == "waiting" { 0 } else { 3 }, "state": state, "reason": reason, "attempt": 1, "pid": 77,
        "adopted": adopted, "since_ms": 0})
}

fn application() -> Value {
    json!({
        "name": "watch", "generation": 3, "user": "alice", "manifest": {},
        "workloads": {"detector": {"nodes": ["plc-1", "plc-2"], "not": {"plc-3": "latency 23.4 ms > 18.0 ms"}, "summary": null}},
        "problems": {"detector@plc-2": "not compiled for riscv64"},
        "timeline": [
            {"stage": "placed", "at_ms": 1001, "by": "hub", "node": null, "detail": ""},
            {"stage": "admitted", "at_ms": 1000, "by": "hub", "node": null, "detail": "by alice"},
        ],
    })
}

fn explanation() -> Value {
    json!({
        "application": "watch", "workload": "detector", "generation": 3, "runtime": "container", "as_of_ms": 13_000,
        "verdict": "runs on 0 of 1 node(s) that are to run it; plc-1: waiting: needs watch/store",
        "artifacts": [{"what": "program", "digest": "sha256:00", "size": 9, "state": "there"},
            {"what": "layer 1", "digest": null, "size": null, "state": "missing"}],
        "nodes": [{"node": "plc-1", "placed": true, "because": "waiting: needs watch/store", "link": "connected",
            "heard_ms": 1_000, "twin_asked": "1.4", "twin_held": "1.4",
            "reported": {"state": "waiting", "reason": "needs watch/store", "generation": 3, "attempt": 2,
                "since_ms": 900, "received_ms": 1_000},
            "needs": ["watch/store must be healthy: NOT PLACED on this node"], "next": [],
            "timeline": [{"stage": "signed", "at_ms": 800, "by": "hub", "node": "plc-1", "detail": "twin 1.4"}]}],
        "not": {"plc-3": "no accelerator npu (has none)"},
        "next": ["place both on the same node"],
        "timeline": [{"stage": "admitted", "at_ms": 700, "by": "hub", "node": null, "detail": "by alice"}],
        "history": {"plc-1": [{"seq": 7, "key": "w", "received_ms": 1_000, "body": {"t": "gone", "id": {"a": "watch", "n": "detector"}}}]},
    })
}

fn script(r: &support::Request, _: usize) -> Reply {
    let value = match r.line.as_str() {
        "GET /v1/nodes" => json!({"nodes": [node("plc-1", true), node("plc-22", false)]}),
        "GET /v1/nodes/plc-1" => node("plc-1", true),
        "GET /v1/workloads" => json!({"workloads": [
            workload("plc-1", "running", true, ""),
            workload("plc-2", "waiting", false, "no\nmemory \u{1b}[2J")
        ]}),
        "GET /v1/applications" => json!({"applications": [application()]}),
        "GET /v1/applications/watch" => application(),
        "GET /v1/nodes/plc-1/twin" if r.header("accept") == Some("application/cose") => {
            return (200, vec![0xd2, 0x84, 0, 255]);
        }
        "GET /v1/nodes/plc-1/twin" => {
            json!({"node": "plc-1", "epoch": 1, "generation": 4, "digest": "sha256:00", "size": 9,
            "twin": {"v": 1, "node": "plc-1", "epoch": 1, "gen": 4, "w": []}})
        }
        "GET /v1/nodes/plc-1/history?limit=100" => json!({"node": "plc-1", "entries": [{"incarnation": 1,
            "received_ms": 1000, "seq": 7, "key": "twin", "at_ms": 900,
            "body": {"t": "refused", "code": "old-generation", "detail": "1.2", "epoch": 1, "gen": 2}}]}),
        "GET /v1/audit?limit=100" => json!({"entries": [{"seq": 1, "at_ms": 1000, "user": "alice", "action": "apply",
            "object": "watch", "outcome": "done", "detail": "generation 3", "hash": "00"}],
            "chain": {"holds": false, "broken_at": 1}}),
        "GET /v1/nodes/plc-1/workloads/watch/detector/metrics" => {
            json!({"result": "replied", "ok": true, "text": "{\"memory_bytes\":4096}"})
        }
        "GET /v1/nodes/plc-1/workloads/watch/detector/logs?lines=2" => {
            json!({"result": "replied", "ok": true, "text": "one\ntwo\n"})
        }
        "GET /v1/applications/watch/workloads/detector/explanation" => explanation(),
        "DELETE /v1/applications/watch" => json!({"result": "deleted", "name": "watch"}),
        l if l.contains("plc-2") => return error(504, "no-answer", "plc-2 did not answer within 5 s", Value::Null),
        _ => return error(404, "not-found", "there is no such thing", Value::Null),
    };
    support::json(200, value)
}

fn shows(args: &[&str], expected: &str) {
    let run = Place::new().ask(&FakeHub::start(script), args).assert_ok();
    assert_eq!(run.out, expected, "\n{}", run.out);
}

#[test]
fn lists() {
    shows(
        &["get", "nodes"],
        "\
NODE     ROLE    SITE             LINK        TRUST        TWIN   REPORTED   SYNC   HEARD   RUNTIMES   ACCELERATORS
plc-1    agent   plant-7/plc-1    connected   UNATTESTED   1.4    1.4        yes    -       wasm       hailo-8
plc-22   agent   plant-7/plc-22   connected   UNATTESTED   1.4    1.3        no     -       wasm       hailo-8
",
    );
    shows(
        &["get", "workloads"],
        "\
WORKLOAD         NODE    DESIRED   RUNS   STATE               TRY   AGE   REASON
watch/detector   plc-1   3         3      running (adopted)   1     -     -
watch/detector   plc-2   3         -      waiting             1     -     no memory  [2J
",
    );
    shows(
        &["get", "workloads", "--node", "plc-1"],
        "\
WORKLOAD         NODE    DESIRED   RUNS   STATE               TRY   AGE   REASON
watch/detector   plc-1   3         3      running (adopted)   1     -     -
",
    );
    shows(
        &["get", "applications"],
        "\
APPLICATION   GENERATION   USER    WORKLOADS   PLACED   SHORT   PROBLEMS
watch         3            alice   1           2        0       1
",
    );
    shows(
        &["get", "history", "plc-1"],
        "\
RECEIVED                   SEQ   SUBJECT   WHAT
1970-01-01T00:00:01.000Z   7     twin      refused a twin: old-generation: 1.2
",
    );
    shows(
        &["get", "audit"],
        "\
WHEN                       SEQ   USER    ACTION   OBJECT   OUTCOME   DETAIL
1970-01-01T00:00:01.000Z   1     alice   apply    watch    done      generation 3
THE LOG WAS CHANGED: entry 1 does not fit the one before it
",
    );
    shows(
        &["get", "twin", "plc-1"],
        "twin 1.4 of plc-1 (9 bytes, sha256:00)\nWORKLOAD   GENERATION   RUNTIME   ARTIFACT   BYTES   MEMORY   CPU   PRIORITY\n",
    );
}

#[test]
fn programs_get_all_that_the_hub_said() {
    let (place, hub) = (Place::new(), FakeHub::start(script));
    let run = place.ask(&hub, &["get", "nodes", "-o", "json"]).assert_ok();
    assert_eq!(run.json()[0]["field_of_a_newer_hub"], 1);
    let run = place.ask(&hub, &["get", "nodes", "-o", "yaml"]).assert_ok();
    let value: Value = serde_saphyr::from_str(&run.out).unwrap();
    assert_eq!(value, json!([node("plc-1", true), node("plc-22", false)]));
    let run = place
        .ask(&hub, &["describe", "workload", "watch/detector", "-o", "json"])
        .assert_ok();
    assert_eq!(run.json()["metrics"]["plc-1"]["memory_bytes"], 4096);
    assert_eq!(
        run.json()["metrics"]["plc-2"]["unavailable"],
        "plc-2 did not answer within 5 s"
    );
}

#[test]
fn the_signed_twin_is_saved_as_it_is() {
    let (place, hub) = (Place::new(), FakeHub::start(script));
    let run = place
        .ask(&hub, &["get", "twin", "plc-1", "--raw", "t.cose"])
        .assert_ok();
    assert_eq!(run.out, "4 bytes (COSE_Sign1) of the twin of plc-1 saved in t.cose\n");
    assert_eq!(
        std::fs::read(place.dir.path().join("t.cose")).unwrap(),
        [0xd2, 0x84, 0, 255]
    );
}

#[test]
fn a_node_is_described_with_its_alarms_and_refusals() {
    shows(
        &["describe", "node", "plc-1"],
        "\
Node:         plc-1
Role:         agent
Site:         plant-7/plc-1
Link:         connected (via gw-1)
Trust:        UNATTESTED
Twin:         desired 1.4, reported 1.4: in sync
Heard:        never
Software:     0.1.0
Labels:       line=2
Memory:       128 MiB
CPU:          2000m
Runtime:      wasm 1 (engine wasmtime-48.0.8; x86_64-unknown-linux-gnu)
Accelerator:  hailo0 (npu, hailo-8)
Devices:      serial-1

Alarms:
  store-set-aside: the store was corrupt

Refused twins:
  1970-01-01T00:00:01.000Z bad-signature: by key 00

Workloads:
  WORKLOAD         NODE    DESIRED   RUNS   STATE               TRY   AGE   REASON
  watch/detector   plc-1   3         3      running (adopted)   1     -     -
",
    );
}

#[test]
fn an_application_is_described_with_its_reasons_and_timeline() {
    shows(
        &["describe", "application", "watch"],
        "\
Application:  watch
Generation:   3
Applied by:   alice

Workload detector:
  on plc-1, plc-2
  not on plc-3: latency 23.4 ms > 18.0 ms

Problems:
  detector@plc-2: not compiled for riscv64

Timeline:
      +0 ms  admitted   -                by hub          by alice
      +1 ms  placed     -                by hub
",
    );
}

#[test]
fn a_workload_is_described_with_its_metrics_where_they_can_be_had() {
    shows(
        &["describe", "workload", "watch/detector"],
        "\
Workload:     watch/detector
Generation:   3

Placement:
  on plc-1, plc-2
  not on plc-3: latency 23.4 ms > 18.0 ms

On plc-1:
  State:      running (adopted)
  Reason:     -
  Runs:       generation 3 (desired 3)
  Try:        1
  Process:    77
  METRIC         VALUE
  memory_bytes   4096

On plc-2:
  State:      waiting
  Reason:     no memory  [2J
  Runs:       generation 0 (desired 3)
  Try:        1
  Process:    77
  Problem:    not compiled for riscv64
  Metrics:    not available: plc-2 did not answer within 5 s
",
    );
}

#[test]
fn logs_come_from_every_node_that_answers() {
    let (place, hub) = (Place::new(), FakeHub::start(script));
    let run = place
        .ask(&hub, &["logs", "watch/detector", "--node", "plc-1", "--lines", "2"])
        .assert_ok();
    assert_eq!(run.out, "one\ntwo\n");
    let run = place.ask(&hub, &["logs", "watch/detector", "--lines", "2"]);
    assert_eq!(run.code, 1);
    assert_eq!(run.out, "==> watch/detector on plc-1 <==\none\ntwo\n");
    assert!(
        run.err.contains("  - plc-2: plc-2 did not answer within 5 s"),
        "{}",
        run.err
    );
    let run = place.ask(&hub, &["logs", "watch/other"]);
    assert!(run.err.contains("watch/other is on no node"), "{}", run.err);
}

#[test]
fn deleting_asks_first() {
    let (place, hub) = (Place::new(), FakeHub::start(script));
    let run = place.ask(&hub, &["delete", "watch"]);
    assert_eq!(run.code, 2);
    assert!(run.err.contains("say --yes"), "{}", run.err);
    assert!(hub.lines().is_empty());
    let run = place.ask(&hub, &["delete", "watch", "--yes"]).assert_ok();
    assert_eq!(run.out, "watch deleted; its nodes stop it when they hear of it\n");
    assert_eq!(place.ask(&hub, &["delete", "other", "--yes"]).code, 1);
}

#[test]
fn refusals_are_rendered_with_what_to_do() {
    let place = Place::new();
    for (status, code, part) in [
        (401, "unauthorized", "--token-file"),
        (403, "forbidden", "role does not allow"),
        (404, "not-found", "the message"),
        (413, "too-large", "make it smaller"),
        (422, "refused", "- because"),
        (504, "no-answer", "cnova get nodes"),
        (507, "no-room", "has no room"),
    ] {
        let hub = FakeHub::start(move |_, _| error(status, code, "the message", json!(["because"])));
        let run = place.ask(&hub, &["get", "nodes"]);
        assert_eq!(run.code, 1);
        let head = format!("error: the hub refused GET /v1/nodes ({status} {code}): the message\n  - because");
        assert!(run.err.starts_with(&head) && run.err.contains(part), "{}", run.err);
    }
    let hub = FakeHub::start(|_, _| (502, b"<html>Bad Gateway</html>".to_vec()));
    let run = place.ask(&hub, &["get", "nodes"]);
    assert!(run.err.contains("(502): <html>Bad Gateway"), "{}", run.err);
    let hub = FakeHub::start(|_, _| (200, b"<html>Hello</html>".to_vec()));
    let run = place.ask(&hub, &["get", "nodes"]);
    assert!(run.code == 1 && run.err.contains("is it a cnova hub"), "{}", run.err);
}

#[test]
fn a_hub_that_is_not_there_is_exit_code_3() {
    let place = Place::new();
    // Bound and closed again: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let url = format!("http://127.0.0.1:{port}");
    let run = place.run(&["get", "nodes", "--hub", &url]);
    assert_eq!(run.code, 3);
    for part in [
        url.as_str(),
        "Connection refused",
        "start one with: cnova-hub",
        "CNOVA_HUB",
    ] {
        assert!(run.err.contains(part), "{part} is not in {}", run.err);
    }
    let run = place.run(&["get", "nodes", "--hub", "hub:8080"]);
    assert_eq!(run.code, 2);
    assert!(run.err.contains("\"hub:8080\" (--hub) is not a URL"), "{}", run.err);
}

#[test]
fn the_environment_and_the_configuration_name_the_hub() {
    let (place, hub) = (Place::new(), FakeHub::start(script));
    place.write("token", "t0ken\n");
    place.write(
        ".config/cnova/config.toml",
        format!("hub = \"{}\"\ntoken_file = \"~/token\"\n", hub.url()),
    );
    place.run(&["get", "nodes"]).assert_ok();
    assert_eq!(hub.requests()[0].header("authorization"), Some("Bearer t0ken"));
    let output = place
        .command(&["get", "nodes"])
        .env("CNOVA_HUB", "http://127.0.0.1:9")
        .output()
        .unwrap();
    assert!(support::done(output).err.contains("http://127.0.0.1:9"));
    place.write(".config/cnova/config.toml", "hob = 1\n");
    let run = place.run(&["get", "nodes"]);
    assert!(
        run.code == 1 && run.err.contains("config.toml") && run.err.contains("hob"),
        "{}",
        run.err
    );
}

#[test]
fn a_workload_is_explained_with_what_can_be_done() {
    shows(
        &["explain", "workload", "watch/detector"],
        "\
watch/detector (container), generation 3
as of 1970-01-01T00:00:13.000Z by the hub's clock

runs on 0 of 1 node(s) that are to run it; plc-1: waiting: needs watch/store

What you can do:
  - place both on the same node

On plc-1: waiting: needs watch/store
  link      connected, heard 12s before
  twin      asked 1.4, held 1.4
  reported  generation 3 waiting, try 2: needs watch/store
            since 1970-01-01T00:00:00.900Z by its clock, received 1970-01-01T00:00:01.000Z
  needs     watch/store must be healthy: NOT PLACED on this node
  stage       +100 ms  signed     plc-1            by hub          twin 1.4
  history   1970-01-01T00:00:01.000Z watch/detector is gone

Not on:
  plc-3: no accelerator npu (has none)

Artifacts on the hub:
  WHAT      STATE     BYTES   DIGEST
  program   there     9       sha256:00
  layer 1   missing   -       -
",
    );
    let (place, hub) = (Place::new(), FakeHub::start(script));
    let run = place
        .ask(&hub, &["explain", "workload", "watch/detector", "--json"])
        .assert_ok();
    assert_eq!(run.json(), explanation());
    let run = place.ask(&hub, &["explain", "workload", "watch/other", "--node", "plc-1"]);
    assert_eq!(run.code, 1);
    assert!(
        hub.lines()
            .contains(&"GET /v1/applications/watch/workloads/other/explanation?node=plc-1".to_owned()),
        "{:?}",
        hub.lines()
    );
}
