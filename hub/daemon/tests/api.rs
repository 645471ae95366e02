//! The API of the real program.

// Helpers are not recognised as tests.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;

use cnova_hub::api::openapi;
use cnova_hub::api::operations::{Access, operations};
use cnova_shared::ids::Digest;
use serde_json::{Value, json};
use support::{ADMIN, OPERATOR, PATIENCE, Site, VIEWER, by_digest, manifest};

/// A minimal Wasm module: the header and nothing in it.
const WASM: &[u8] = b"\0asm\x01\0\0\0";

fn error(body: &Value) -> (&str, &str) {
    let text = |key: &str| body["error"][key].as_str().unwrap_or_else(|| panic!("{body}"));
    assert!(body["error"]["details"].is_array(), "{body}");
    (text("code"), text("message"))
}

#[test]
fn who_may_do_what() {
    let site = Site::new();
    let hub = site.start();
    let api = hub.client();
    for path in ["/healthz", "/openapi.json"] {
        assert_eq!(api.get(path, "").0, 200, "{path}");
    }
    for (token, word) in [("", "a token is needed"), ("wrong-token-0123456789", "not known")] {
        let (status, body) = api.get("/v1/nodes", token);
        assert_eq!((status, error(&body).0), (401, "unauthorized"));
        assert!(error(&body).1.contains(word), "{body}");
    }
    assert_eq!(api.get("/v1/nodes", VIEWER).0, 200);
    let (status, body) = api.apply(VIEWER, "x", json!({}));
    assert_eq!((status, error(&body).0), (403, "forbidden"));
    assert!(
        error(&body).1.contains("viewer is viewer; this needs operator"),
        "{body}"
    );
    let large = vec![0; 8 << 20];
    assert_eq!(
        api.post("/v1/artifacts", VIEWER, &[], &large).0,
        403,
        "said, not a broken connection"
    );
    assert_eq!(api.delete("/v1/applications/x", VIEWER).0, 403);
    for token in [OPERATOR, ADMIN] {
        let (status, body) = api.delete("/v1/applications/x", token);
        assert_eq!((status, error(&body).0), (404, "not-found"));
    }
    let (status, body) = api.get("/nowhere", VIEWER);
    assert_eq!((status, error(&body).0), (404, "not-found"));
    let (status, body) = api.delete("/v1/nodes", ADMIN);
    assert_eq!((status, error(&body).0), (405, "method"));
}

#[test]
fn all_mistakes_in_a_manifest_at_once() {
    let site = Site::new();
    let hub = site.start();
    let text = manifest("shaker", "file: build/x.wasm")
        .replace("memory", "memry")
        .replace("kind: Application", "kind: App");
    let (status, body) = hub.client().apply(OPERATOR, &text, json!({}));
    assert_eq!((status, error(&body).0), (422, "manifest"));
    let details = body["error"]["details"].as_array().unwrap();
    let at = |i: usize| {
        (
            details[i]["line"].as_u64().unwrap(),
            details[i]["pointer"].as_str().unwrap(),
        )
    };
    assert_eq!(at(0), (2, "/kind"), "{body}");
    assert_eq!(at(1), (8, "/workloads/0/resources/memry"), "{body}");
    assert!(details[1]["hint"].as_str().unwrap().contains("memory"), "{body}");
    let (status, body) = hub
        .client()
        .apply(OPERATOR, &manifest("shaker", "file: build/x.wasm"), json!({}));
    assert_eq!(
        (status, error(&body).0),
        (422, "manifest"),
        "a file that was not uploaded"
    );
    let (status, body) = hub.client().apply(OPERATOR, "{}", json!({"dryrun": true}));
    assert_eq!(
        (status, error(&body).0),
        (400, "json"),
        "a misspelt dry_run must not apply"
    );
}

#[test]
fn what_is_too_large_is_refused_with_its_limit() {
    let site = Site::new();
    let hub = site.start();
    for size in [10_000_000, (1 << 20) + 1] {
        let (status, body) = hub.client().apply(OPERATOR, &"a".repeat(size), json!({}));
        assert_eq!((status, error(&body).0), (413, "too-large"));
        assert!(error(&body).1.contains("1048576 bytes (1 MiB)"), "{body}");
    }
    let head = format!(
        "POST /v1/artifacts HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {OPERATOR}\r\ncontent-length: 536870913\r\n\r\n"
    );
    let answer = speak(&site, head.as_bytes());
    assert!(
        answer.starts_with("HTTP/1.1 413 ") && answer.contains("536870912"),
        "{answer}"
    );
}

/// Sends bytes, closes its half and reads the answer.
fn speak(site: &Site, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(site.api).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn uploads_are_whole_and_what_they_say() {
    let site = Site::new();
    let hub = site.start();
    let api = hub.client();
    let bytes = vec![7_u8; 3 << 20];
    let digest = Digest::of(&bytes).to_string();
    let path = format!("/v1/artifacts/{digest}");
    assert_eq!(api.head(&path), 404);
    let other = Digest::of(b"other").to_string();
    let (status, body) = api.post("/v1/artifacts", OPERATOR, &[("x-cnova-digest", &other)], &bytes);
    assert_eq!((status, error(&body).0), (422, "digest-mismatch"));
    let (status, body) = api.post("/v1/artifacts", OPERATOR, &[("x-cnova-digest", "sha256:zz")], &bytes);
    assert_eq!((status, error(&body).0), (400, "digest"));
    let (status, body) = api.post("/v1/artifacts", OPERATOR, &[], b"");
    assert_eq!((status, error(&body).0), (422, "empty"));
    let head = format!(
        "POST /v1/artifacts HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {OPERATOR}\r\ncontent-length: {}\r\n\r\n",
        bytes.len()
    );
    speak(&site, &[head.as_bytes(), &bytes[..1 << 20]].concat());
    assert_eq!(api.head(&path), 404, "half an upload is none");
    let (status, body) = api.post("/v1/artifacts", OPERATOR, &[("x-cnova-digest", &digest)], &bytes);
    assert_eq!((status, body), (201, json!({"digest": digest, "size": bytes.len()})));
    assert_eq!(api.head(&path), 200);
    assert_eq!(
        api.post("/v1/artifacts", OPERATOR, &[], &bytes).0,
        200,
        "it is there already"
    );
    let drafts = std::fs::read_dir(site.state().join("drafts")).unwrap().count();
    assert_eq!(drafts, 0, "nothing is left behind");
}

#[test]
fn an_apply_needs_its_artifacts_and_policys_consent() {
    let site = Site::new();
    let hub = site.start();
    let api = hub.client();
    let unknown = Digest::of(b"unknown").to_string();
    for more in [json!({}), json!({"dry_run": true})] {
        let (status, body) = api.apply(OPERATOR, &by_digest("shaker", &unknown), more);
        assert_eq!((status, error(&body).0), (422, "refused"));
        assert!(
            body["error"]["details"][0].as_str().unwrap().contains("never uploaded"),
            "{body}"
        );
    }
    let digest = api.upload(WASM);
    let greedy = by_digest("greedy", &digest).replace("16MiB", "2GiB");
    let (status, body) = api.apply(OPERATOR, &greedy, json!({}));
    assert_eq!((status, error(&body).0), (403, "policy"));
    assert!(
        body["error"]["details"][0].as_str().unwrap().contains("512 MiB"),
        "{body}"
    );
    let named = manifest("shaker", "file: build/x.wasm");
    let files = json!({"artifacts": {"build/x.wasm": digest}, "dry_run": true});
    let (status, body) = api.apply(OPERATOR, &named, files);
    assert_eq!(
        (status, &body["result"], &body["generation"]),
        (200, &json!("dry-run"), &json!(1)),
        "{body}"
    );
    assert_eq!(
        api.get("/v1/applications", VIEWER).1,
        json!({"applications": []}),
        "a dry run changes nothing"
    );
    let (status, body) = api.apply(OPERATOR, &named, json!({"artifacts": {"build/x.wasm": digest}}));
    assert_eq!(
        (status, &body["result"], &body["changed"]),
        (200, &json!("applied"), &json!(true)),
        "{body}"
    );
    let (status, body) = api.get("/v1/applications/shaker", VIEWER);
    assert_eq!((status, &body["user"]), (200, &json!("operator")), "{body}");
    let (status, body) = api.get("/v1/applications/shaker/timeline?generation=1", VIEWER);
    assert_eq!(
        (status, &body["stages"][0]["stage"]),
        (200, &json!("admitted")),
        "{body}"
    );
    assert_eq!(api.delete("/v1/applications/shaker", OPERATOR).0, 200);
    assert_eq!(api.get("/v1/applications/shaker", VIEWER).0, 404);
    let (status, body) = api.get("/v1/audit?limit=4", VIEWER);
    let words: Vec<_> = body["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (&e["action"], &e["outcome"]))
        .collect();
    let [delete, apply, denied, upload] = [
        ("delete", "done"),
        ("apply", "done"),
        ("apply", "denied"),
        ("upload", "done"),
    ]
    .map(|(action, outcome)| (json!(action), json!(outcome)));
    let expected = [&delete, &apply, &denied, &upload].map(|(a, o)| (a, o));
    assert_eq!((status, words), (200, expected.to_vec()), "{body}");
    assert_eq!(body["chain"], json!({"holds": true, "broken_at": null}));
    assert_eq!(api.get("/v1/audit?limit=0", VIEWER).0, 400);
}

/// The real worker, where it was built.
fn worker() -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_cnova-hub")).with_file_name("cnova-aot");
    path.is_file().then_some(path)
}

#[test]
fn what_is_not_wasm_is_refused_in_the_compilers_words() {
    let Some(worker) = worker() else {
        eprintln!("SKIPPED: there is no cnova-aot beside cnova-hub; build it with: cargo build -p cnova-aot");
        return;
    };
    let site = Site::new();
    site.configure(&worker, "");
    let hub = site.start();
    let digest = hub.client().upload(b"#!/bin/sh\necho not wasm\n");
    let (status, body) = hub.client().apply(OPERATOR, &by_digest("shaker", &digest), json!({}));
    assert_eq!((status, error(&body).0), (422, "manifest"));
    let mistake = &body["error"]["details"][0];
    assert_eq!(
        (&mistake["line"], &mistake["column"]),
        (&json!(7), &json!(15)),
        "{body}"
    );
    let said = mistake["message"].as_str().unwrap();
    assert!(said.contains("[not_wasm]") && said.contains(&digest), "{said}");
    assert!(
        !said.contains(site.state().to_str().unwrap()),
        "no path of the hub: {said}"
    );
}

#[test]
fn every_listed_operation_answers_and_is_documented() {
    let site = Site::new();
    let hub = site.start();
    let api = hub.client();
    let (status, served) = api.get("/openapi.json", "");
    assert_eq!((status, &served), (200, &openapi::document()));
    let digest = Digest::of(b"x").to_string();
    for op in operations() {
        assert!(
            served["paths"][op.path][op.method]["responses"].is_object(),
            "{} {}",
            op.method,
            op.path
        );
        let path = op.path.replace("{digest}", &digest).replace(['{', '}'], "");
        let (status, body) = match op.method {
            "get" => api.get(&path, ADMIN),
            "head" => (api.head(&path), Value::Null),
            "delete" => api.delete(&path, ADMIN),
            "put" => api.put(&path, ADMIN, b""),
            _ => api.post(&path, ADMIN, &[], b""),
        };
        let declared = &served["paths"][op.path][op.method]["responses"][status.to_string()];
        assert!(
            declared.is_object(),
            "{} {}: {status} is not declared: {body}",
            op.method,
            op.path
        );
        assert!(
            status < 500 && status != 405 && status != 401,
            "{} {}: {status} {body}",
            op.method,
            op.path
        );
        // A path that the router does not know says so in these words.
        assert!(
            !body.to_string().contains("no such path"),
            "{} {}: {body}",
            op.method,
            op.path
        );
        if op.method == "get" && op.access != Access::Public {
            assert_eq!(api.get(&path, "").0, 401, "{}", op.path);
        }
    }
    references_stand_for_something(&served, &served["components"]["schemas"]);
    let metrics = String::from_utf8(api.get_bytes("/metrics", "text/plain").1).unwrap();
    for line in [
        "cnova_hub_nodes{link=\"connected\"} 0",
        "cnova_hub_applications 0",
        "cnova_hub_store_writable 1",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} in\n{metrics}");
    }
    for path in ["/", "/docs"] {
        let page = String::from_utf8(api.get_bytes(path, "text/html").1).unwrap();
        assert!(
            page.starts_with("<!doctype html>") && !page.contains("://"),
            "{path} loads nothing from elsewhere"
        );
    }
}

fn references_stand_for_something(value: &Value, schemas: &Value) {
    match value {
        Value::Object(map) => {
            if let Some(name) = map
                .get("$ref")
                .and_then(Value::as_str)
                .and_then(|r| r.strip_prefix("#/components/schemas/"))
            {
                assert!(schemas[name].is_object(), "{name}");
            }
            map.values().for_each(|v| references_stand_for_something(v, schemas));
        }
        Value::Array(list) => list.iter().for_each(|v| references_stand_for_something(v, schemas)),
        _ => {}
    }
}

#[test]
fn a_silent_client_is_let_go() {
    let site = Site::new();
    let hub = site.start();
    let mut stream = TcpStream::connect(site.api).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost:").unwrap();
    let mut answer = Vec::new();
    // Without a bound on the time for a head this read would time out, which is an error.
    stream.read_to_end(&mut answer).unwrap();
    drop(hub);
}

/// One workload of another runtime; its artifact stands in line 7.
fn of_runtime(runtime: &str, digest: &str, settings: &str) -> String {
    by_digest("shaker", digest).replace("runtime: wasm", &format!("runtime: {runtime}"))
        + &format!("    settings: {settings}\n")
}

#[test]
fn artifacts_are_looked_into_at_apply_and_the_line_is_told() {
    const FILTER: &str = "{programs: [{name: p, kind: socket-filter, attach: eth0}]}";
    let site = Site::new();
    let hub = site.start();
    let api = hub.client();
    let junk = api.upload(b"neither this nor that");
    for (runtime, settings, said) in [
        ("ebpf", FILTER, "it is not an eBPF object"),
        ("container", "{}", "it is not the manifest of a container image"),
    ] {
        let (status, body) = api.apply(OPERATOR, &of_runtime(runtime, &junk, settings), json!({}));
        assert_eq!((status, error(&body).0), (422, "manifest"), "{body}");
        let mistake = &body["error"]["details"][0];
        assert_eq!(
            (&mistake["line"], &mistake["pointer"]),
            (&json!(7), &json!("/workloads/0/artifact"))
        );
        assert!(mistake["message"].as_str().unwrap().starts_with(said), "{mistake}");
    }
    let mut object = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x01\0".to_vec();
    object.extend(247_u16.to_le_bytes());
    let object = api.upload(&object);
    let (status, body) = api.apply(OPERATOR, &of_runtime("ebpf", &object, FILTER), json!({}));
    assert_eq!((status, &body["result"]), (200, &json!("applied")), "{body}");
    let xdp = FILTER.replace("socket-filter", "xdp");
    let (status, body) = api.apply(OPERATOR, &of_runtime("ebpf", &object, &xdp), json!({}));
    assert_eq!((status, error(&body).0), (403, "policy"));
    assert!(
        error(&body)
            .1
            .contains("package cnova.grants, allow contains \"ebpf:xdp\""),
        "{body}"
    );
}

#[test]
fn a_policy_folder_with_grants_alone_adds_to_the_built_in_policy() {
    let site = Site::new();
    let folder = site.path("policy");
    std::fs::create_dir(&folder).unwrap();
    let grant = "package cnova.grants\nallow contains \"network:host\" if input.manifest.metadata.name == \"shaker\"\n";
    std::fs::write(folder.join("grants.rego"), grant).unwrap();
    site.configure(&site.path("worker"), "policy_dir = \"policy\"\n");
    let hub = site.start();
    let digest = hub.client().upload(b"image");
    let host = of_runtime("container", &digest, "{network: host}");
    let apply = |text: &str| hub.client().apply(OPERATOR, text, json!({"dry_run": true}));
    assert_eq!(apply(&host).0, 200);
    assert_eq!(apply(&host.replace("name: shaker", "name: mixer")).0, 403);
    assert_eq!(
        apply(&host.replace("16MiB", "2GiB")).0,
        403,
        "the built-in policy is in force"
    );
}

#[test]
fn a_plan_needs_no_file_that_an_apply_would_upload() {
    let site = Site::new();
    let hub = site.start();
    let later = Digest::of(b"later").to_string();
    let more = json!({"artifacts": {"build/x.wasm": later}, "dry_run": true});
    let (status, body) = hub
        .client()
        .apply(OPERATOR, &manifest("shaker", "file: build/x.wasm"), more);
    assert_eq!(
        (status, &body["result"], &body["uploads"]),
        (200, &json!("dry-run"), &json!([later])),
        "{body}"
    );
}

#[test]
fn what_nothing_uses_is_listed_and_removed_and_a_workload_without_a_node_explained() {
    let site = Site::new();
    let hub = site.start();
    let api = hub.client();
    let (used, stray) = (api.upload(WASM), api.upload(b"stray"));
    assert_eq!(api.apply(OPERATOR, &by_digest("shaker", &used), json!({})).0, 200);
    let (_, body) = api.get("/v1/artifacts", VIEWER);
    let users = |digest: &str| {
        let all = body["artifacts"].as_array().unwrap();
        all.iter().find(|a| a["digest"] == digest).unwrap()["used_by"].clone()
    };
    assert_eq!(users(&stray), json!([]));
    // The worker compiles by copying: source and result are the same bytes.
    assert_eq!(users(&used)[0], json!("shaker/one"));
    assert_eq!(api.post("/v1/artifacts/collect", VIEWER, &[], b"").0, 403);
    let (status, body) = api.post("/v1/artifacts/collect", OPERATOR, &[], b"");
    assert_eq!(
        (status, &body),
        (200, &json!({"removed": [stray], "bytes": 5})),
        "{body}"
    );
    assert_eq!(
        (
            api.head(&format!("/v1/artifacts/{stray}")),
            api.head(&format!("/v1/artifacts/{used}"))
        ),
        (404, 200)
    );
    assert_eq!(api.upload(b"stray"), stray, "it can come again");
    let path = "/v1/applications/shaker/workloads/one/explanation";
    let (status, body) = api.get(path, VIEWER);
    assert_eq!(
        (status, &body["generation"], &body["runtime"]),
        (200, &json!(1), &json!("wasm")),
        "{body}"
    );
    assert!(
        body["verdict"]
            .as_str()
            .unwrap()
            .starts_with("runs nowhere: no node is selected"),
        "{body}"
    );
    assert_eq!(body["artifacts"][0]["state"], "there");
    assert!(
        body["as_of_ms"].as_u64().unwrap() > 0 && body["next"][0].is_string(),
        "{body}"
    );
    assert_eq!(api.get(&path.replace("one", "two"), VIEWER).0, 404);
    let (_, audit) = api.get("/v1/audit?limit=2", VIEWER);
    assert_eq!(audit["entries"][1]["action"], "collect", "{audit}");
}

#[test]
fn enrolment_is_for_admins_and_a_token_is_shown_once() {
    let site = Site::new();
    let hub = site.start();
    let api = hub.client();
    let body = json!({"site": "plant-7/plc-1", "expires_in_s": 3600}).to_string();
    for token in [VIEWER, OPERATOR] {
        assert_eq!(api.post("/v1/enrolment/tokens", token, &[], body.as_bytes()).0, 403);
        assert_eq!(api.get("/v1/enrolment", token).0, 403);
        assert_eq!(api.delete("/v1/enrolment/nodes/plc-1", token).0, 403);
    }
    let (status, made) = api.post("/v1/enrolment/tokens", ADMIN, &[], body.as_bytes());
    assert_eq!(status, 201, "{made}");
    let (text, id) = (made["token"].as_str().unwrap(), made["id"].as_str().unwrap());
    assert!(text.starts_with("cnova-enrol-") && text.len() > 50, "{text}");
    for (bad, word) in [
        (json!({"site": "a//b", "expires_in_s": 1}), "site"),
        (json!({"site": "a", "expires_in_s": 0}), "expires_in_s"),
        (json!({"site": "a", "expires_in_s": 1, "uses": 0}), "uses"),
        (json!({"site": "a", "expires_in_s": 1, "name": "*"}), "name"),
        (json!({"site": "a", "expires_in_s": 1, "more": 1}), "more"),
    ] {
        let (status, answer) = api.post("/v1/enrolment/tokens", ADMIN, &[], bad.to_string().as_bytes());
        assert_eq!(status, 400, "{answer}");
        assert!(error(&answer).1.contains(word), "{answer}");
    }
    let print = Digest::of(b"a TPM");
    let known = json!({"fingerprint": print, "node": "plc-2", "site": "plant-7/plc-2"}).to_string();
    assert_eq!(api.post("/v1/enrolment/eks", ADMIN, &[], known.as_bytes()).0, 200);
    let everywhere = |api: &support::Client| {
        let (_, info) = api.get("/v1/enrolment", ADMIN);
        let (_, audit) = api.get("/v1/audit?limit=50", ADMIN);
        (info.clone(), format!("{info}{audit}"))
    };
    let (info, said) = everywhere(&api);
    assert_eq!(info["tokens"][0]["id"], id);
    assert_eq!(info["known"][0]["fingerprint"], print.hex());
    assert!(
        !said.contains(text) && !site.log().contains(text),
        "the token is in a list or a log"
    );
    for action in ["enrol-token", "enrol-ek"] {
        assert!(said.contains(action), "{action} is not in the audit log: {said}");
    }
    // They are in the store, not in memory.
    hub.stop();
    let hub = site.start();
    let api = hub.client();
    assert_eq!(everywhere(&api).0, info);
    assert_eq!(api.delete(&format!("/v1/enrolment/tokens/{id}"), ADMIN).0, 200);
    assert_eq!(api.delete(&format!("/v1/enrolment/tokens/{id}"), ADMIN).0, 404);
    assert_eq!(api.delete(&format!("/v1/enrolment/eks/{print}"), ADMIN).0, 200);
    assert_eq!(api.delete("/v1/enrolment/nodes/plc-1", ADMIN).0, 404);
    let (info, _) = everywhere(&api);
    assert_eq!((&info["tokens"], &info["known"]), (&json!([]), &json!([])));
}
