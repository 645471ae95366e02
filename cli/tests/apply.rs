//! `cnova apply` against a hub of scripted answers.

#![allow(clippy::unwrap_used)]

mod support;

use cnova_shared::ids::Digest;
use serde_json::{Value, json};
use support::{FakeHub, Place, Reply, error};

const MANIFEST: &str = "\
apiVersion: cnova/v1
kind: Application
metadata: {name: vibration-watch}
workloads:
- name: detector
  artifact: {file: build/detector.wasm}
  files:
  - path: /data/signal
    artifact: {file: signal.gse2}
";

fn place() -> Place {
    let place = Place::new();
    place.write("app/app.yaml", MANIFEST);
    place.write("app/build/detector.wasm", b"\0asm");
    place.write("app/signal.gse2", b"signal");
    place
}

fn applied(changed: bool) -> Reply {
    support::json(
        200,
        json!({"result": "applied", "name": "vibration-watch", "generation": 3, "changed": changed,
            "placed": {"detector": ["plc-1", "plc-2"]}, "unplaced": {"logger": "no node has the runtime ebpf"}}),
    )
}

fn stage(stage: &str, at_ms: u64, node: Option<&str>, detail: &str) -> Value {
    json!({"stage": stage, "at_ms": at_ms, "by": node.unwrap_or("hub"), "node": node, "detail": detail})
}

/// Has the signal, does not have the module; reports the second node only when asked again.
fn script(r: &support::Request, before: usize) -> Reply {
    let signal = format!("HEAD /v1/artifacts/{}", Digest::of(b"signal"));
    if r.line == signal {
        return (200, Vec::new());
    }
    if r.line.starts_with("HEAD ") {
        return (404, Vec::new());
    }
    match r.line.as_str() {
        "POST /v1/artifacts" => support::json(201, json!({"digest": r.header("x-cnova-digest")})),
        "POST /v1/applications" if r.json().get("dry_run").is_some() => support::json(
            200,
            json!({"result": "dry-run", "name": "vibration-watch", "generation": 3, "changed": true}),
        ),
        "POST /v1/applications" => applied(true),
        "GET /v1/applications/vibration-watch/timeline?generation=3" => {
            let mut stages = vec![
                stage("admitted", 1000, None, "by alice"),
                stage("running", 1009, Some("plc-1"), "vibration-watch/detector"),
                stage("reported", 1012, Some("plc-1"), "vibration-watch/detector"),
            ];
            if before >= 5 {
                stages.push(stage("reported", 1500, Some("plc-2"), "vibration-watch/detector"));
            }
            support::json(
                200,
                json!({"name": "vibration-watch", "generation": 3, "stages": stages}),
            )
        }
        "GET /v1/workloads" => support::json(
            200,
            json!({"workloads": [{"application": "vibration-watch", "workload": "detector", "node": "plc-2", "desired": 3,
                "generation": 3, "state": "crash-loop", "reason": "trap: unreachable", "attempt": 5, "since_ms": 1}]}),
        ),
        other => panic!("{other}"),
    }
}

#[test]
fn missing_artifacts_are_uploaded_and_the_manifest_names_their_digests() {
    let (place, hub) = (place(), FakeHub::start(script));
    let run = place.ask(&hub, &["apply", "app", "--token", "secret"]).assert_ok();
    assert_eq!(
        run.out,
        format!(
            "uploaded build/detector.wasm (4 bytes, {})\n\
             vibration-watch applied, generation 3\n\
             \x20 placed     detector -> plc-1, plc-2\n\
             \x20 unplaced   logger: no node has the runtime ebpf\n",
            Digest::of(b"\0asm").short()
        )
    );
    let requests = hub.requests();
    assert_eq!(requests.len(), 4, "{:?}", hub.lines());
    let upload = &requests[2];
    assert_eq!(upload.line, "POST /v1/artifacts");
    assert_eq!(upload.body, b"\0asm");
    assert_eq!(
        upload.header("x-cnova-digest"),
        Some(Digest::of(b"\0asm").to_string().as_str())
    );
    assert!(
        requests
            .iter()
            .all(|r| r.header("authorization") == Some("Bearer secret"))
    );
    let body = requests[3].json();
    assert_eq!(body["manifest"], MANIFEST);
    assert_eq!(body["source"], "app/app.yaml");
    assert_eq!(
        body["artifacts"]["build/detector.wasm"],
        Digest::of(b"\0asm").to_string()
    );
    assert_eq!(body["artifacts"]["signal.gse2"], Digest::of(b"signal").to_string());
}

#[test]
fn waiting_prints_each_stage_once_and_ends_when_all_is_reported() {
    let (place, hub) = (place(), FakeHub::start(script));
    let run = place.ask(&hub, &["apply", "app/app.yaml", "--wait=20"]).assert_ok();
    let stages: Vec<&str> = run.out.lines().filter(|l| l.contains(" ms ")).collect();
    assert_eq!(stages.len(), 4, "{}", run.out);
    assert_eq!(
        stages[0],
        "      +0 ms  admitted   -                by hub          by alice"
    );
    assert_eq!(
        stages[3],
        "    +500 ms  reported   plc-2            by plc-2        vibration-watch/detector"
    );
}

#[test]
fn waiting_in_vain_fails_and_says_for_what() {
    let place = place();
    let silent = |r: &support::Request, n: usize| {
        if r.line.contains("timeline") {
            script(r, 0)
        } else {
            script(r, n)
        }
    };
    let hub = FakeHub::start(silent);
    let run = place.ask(&hub, &["apply", "app", "--wait=1"]);
    assert_eq!(run.code, 1);
    assert!(
        run.err
            .contains("not everything runs:\n  - vibration-watch/detector on plc-2"),
        "{}",
        run.err
    );
    assert!(run.err.contains("crash-loop: trap: unreachable"), "{}", run.err);
    assert!(!run.err.contains("plc-1"), "{}", run.err);
}

#[test]
fn an_unchanged_application_is_not_waited_for_in_vain_after_the_hub_forgot_its_timeline() {
    let place = place();
    let hub = FakeHub::start(|r, n| {
        let runs = |node: &str| {
            json!({"application": "vibration-watch", "workload": "detector", "node": node, "desired": 3, "generation": 3,
                "state": "running"})
        };
        match r.line.as_str() {
            "POST /v1/applications" => applied(false),
            "GET /v1/workloads" => support::json(200, json!({"workloads": [runs("plc-1"), runs("plc-2")]})),
            line if line.contains("timeline") => support::json(200, json!({"stages": []})),
            _ => script(r, n),
        }
    });
    let run = place.ask(&hub, &["apply", "app", "--wait=20"]).assert_ok();
    assert!(
        run.out.contains("vibration-watch unchanged, generation 3"),
        "{}",
        run.out
    );
}

#[test]
fn a_dry_run_uploads_nothing_and_asks_for_a_plan() {
    let (place, hub) = (place(), FakeHub::start(script));
    let run = place.ask(&hub, &["apply", "app", "--dry-run"]).assert_ok();
    assert!(run.out.contains("would upload build/detector.wasm"), "{}", run.out);
    assert!(
        run.out.contains("vibration-watch would be applied as generation 3"),
        "{}",
        run.out
    );
    assert_eq!(
        hub.lines().iter().filter(|l| l.starts_with("POST")).collect::<Vec<_>>(),
        ["POST /v1/applications"]
    );

    let careless = FakeHub::start(|r, n| {
        if r.line.starts_with("POST") {
            applied(true)
        } else {
            script(r, n)
        }
    });
    let run = place.ask(&careless, &["apply", "app", "--dry-run"]);
    assert!(
        run.code == 1 && run.err.contains("does not know dry runs, and applied vibration-watch"),
        "{}",
        run.err
    );
}

#[test]
fn a_dry_run_uploads_nothing_even_when_the_hub_refuses() {
    let place = place();
    let hub = FakeHub::start(|r, n| {
        if r.line == "POST /v1/applications" {
            return error(
                422,
                "refused",
                "nothing was changed: artifact x was never uploaded",
                json!([]),
            );
        }
        script(r, n)
    });
    let run = place.ask(&hub, &["apply", "app", "--dry-run"]);
    assert!(run.code == 1 && run.err.contains("never uploaded"), "{run:?}");
    assert!(
        !hub.lines().contains(&"POST /v1/artifacts".to_owned()),
        "{:?}",
        hub.lines()
    );
}

#[test]
fn programs_get_outcome_and_timeline_as_json_and_yaml() {
    let place = place();
    for format in ["json", "yaml"] {
        let hub = FakeHub::start(script);
        let run = place
            .ask(&hub, &["apply", "app", "--wait=20", "-o", format])
            .assert_ok();
        let value: Value = if format == "json" {
            run.json()
        } else {
            serde_saphyr::from_str(&run.out).unwrap()
        };
        assert_eq!(value[0]["outcome"]["generation"], 3);
        assert_eq!(value[0]["timeline"].as_array().unwrap().len(), 4);
        assert_eq!(value[0]["missing"], json!([]));
    }
}

#[test]
fn mistakes_are_shown_where_they_are() {
    let place = place();
    let hub = FakeHub::start(|r, n| match r.line.as_str() {
        "POST /v1/applications" => error(
            422,
            "manifest",
            "the manifest has 2 mistakes",
            json!([
                {"line": 6, "column": 3, "pointer": "/workloads/0/artefact", "message": "unknown field", "hint": "did you mean \"artifact\"?"},
                {"line": 2, "column": 7, "pointer": "", "message": "no", "hint": null},
            ]),
        ),
        _ => script(r, n),
    });
    let run = place.ask(&hub, &["apply", "app"]);
    assert_eq!(run.code, 1);
    assert_eq!(
        run.err,
        "app/app.yaml:6:3 /workloads/0/artefact: unknown field (did you mean \"artifact\"?)\n\
         \x206 |   artifact: {file: build/detector.wasm}\n\
         \x20  |   ^\n\
         app/app.yaml:2:7: no\n\
         \x202 | kind: Application\n\
         \x20  |       ^\n\
         error: 1 of 1 manifests not applied\n"
    );
}

#[test]
fn one_refused_manifest_does_not_stop_the_others() {
    let place = Place::new();
    place.write("site/a.yaml", "apiVersion: cnova/v1\nx: [");
    place.write("site/b.yaml", "apiVersion: cnova/v1\n");
    let hub = FakeHub::start(|r, _| {
        if r.json()["source"] == "site/a.yaml" {
            error(403, "policy", "refused by policy", json!(["no owner label"]))
        } else {
            applied(true)
        }
    });
    let run = place.ask(&hub, &["apply", "site"]);
    assert_eq!(run.code, 1);
    assert!(run.out.contains("vibration-watch applied"), "{run:?}");
    assert!(
        run.err
            .contains("refused by policy\n  - no owner label\n  the hub's policy forbids it"),
        "{run:?}"
    );
    assert!(run.err.contains("1 of 2 manifests not applied"), "{run:?}");
    // The first cannot be parsed here; the hub, which says where it is broken, got it as it is.
    assert_eq!(hub.requests()[0].json()["manifest"], "apiVersion: cnova/v1\nx: [");
}

#[test]
fn nothing_is_sent_when_a_local_file_is_missing() {
    let place = place();
    place.write("app/z.yaml", MANIFEST.replace("signal.gse2", "lost.gse2"));
    let hub = FakeHub::start(script);
    let run = place.ask(&hub, &["apply", "app"]);
    assert_eq!(run.code, 1);
    for part in [
        "app/z.yaml",
        "/workloads/0/files/0/artifact/file",
        "\"lost.gse2\"",
        "app/lost.gse2",
        "No such file",
    ] {
        assert!(run.err.contains(part), "{part} is not in {}", run.err);
    }
    assert!(hub.lines().is_empty(), "{:?}", hub.lines());

    let run = place.ask(&hub, &["apply", "nowhere.yaml"]);
    assert_eq!(run.code, 1);
    assert!(run.err.contains("cannot read nowhere.yaml"), "{}", run.err);
    place.write("latin1.yaml", b"name: \xe9");
    let run = place.ask(&hub, &["apply", "latin1.yaml"]);
    assert!(run.err.contains("latin1.yaml is not UTF-8 text"), "{}", run.err);
    place.write("empty/notes.txt", "");
    let run = place.ask(&hub, &["apply", "empty"]);
    assert!(run.err.contains("empty holds no manifest"), "{}", run.err);
}

#[test]
fn an_absolute_path_is_not_read() {
    let place = Place::new();
    place.write(
        "a.yaml",
        "apiVersion: cnova/v1\nworkloads:\n- artifact: {file: /etc/hostname}\n",
    );
    let hub = FakeHub::start(|_, _| applied(true));
    place.ask(&hub, &["apply", "a.yaml"]).assert_ok();
    assert_eq!(hub.lines(), ["POST /v1/applications"]);
    assert_eq!(hub.requests()[0].json()["artifacts"], json!({}));
}
