//! Starting, stopping, and what can stand in the way.

// Helpers are not recognised as tests.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use cnova_shared::bundle::Role;
use serde_json::json;
use support::{OPERATOR, Site, VIEWER, by_digest, now_s};

const WASM: &[u8] = b"\0asm\x01\0\0\0";

#[test]
fn a_restart_keeps_everything() {
    let site = Site::new();
    let before = {
        let hub = site.start();
        let digest = hub.client().upload(WASM);
        assert_eq!(
            hub.client().apply(OPERATOR, &by_digest("kept", &digest), json!({})).0,
            200
        );
        assert_eq!(
            hub.client().apply(OPERATOR, &by_digest("gone", &digest), json!({})).0,
            200
        );
        assert_eq!(hub.client().delete("/v1/applications/gone", OPERATOR).0, 200);
        let before = hub.client().get("/v1/applications", VIEWER);
        assert!(hub.stop().success());
        before
    };
    let hub = site.start();
    assert_eq!(hub.client().get("/v1/applications", VIEWER), before);
    // Killed, not stopped: whatever was answered is on the disk.
    let digest = hub.client().upload(b"\0asm\x01\0\0\0more");
    let (_, applied) = hub.client().apply(OPERATOR, &by_digest("gone", &digest), json!({}));
    assert_eq!(applied["generation"], 2, "it goes on counting: {applied}");
    drop(hub);
    let hub = site.start();
    assert_eq!(hub.client().head(&format!("/v1/artifacts/{digest}")), 200);
    assert_eq!(hub.client().get("/v1/applications/gone", VIEWER).1["generation"], 2);
    let (_, audit) = hub.client().get("/v1/audit", VIEWER);
    assert_eq!(
        (&audit["chain"]["holds"], audit["entries"].as_array().unwrap().len()),
        (&json!(true), 6),
        "{audit}"
    );
}

#[test]
fn a_changed_audit_log_is_shown() {
    let site = Site::new();
    let hub = site.start();
    hub.client().upload(b"one");
    hub.client().upload(b"two");
    assert!(hub.stop().success());
    let db = rusqlite::Connection::open(site.state().join("hub.db")).unwrap();
    db.execute_batch("DROP TRIGGER audit_is_never_changed; UPDATE audit SET user = 'nobody' WHERE seq = 1")
        .unwrap();
    drop(db);
    let hub = site.start();
    assert!(site.log().contains("the audit log was changed"), "{}", site.log());
    let (_, audit) = hub.client().get("/v1/audit", VIEWER);
    assert_eq!(audit["chain"], json!({"holds": false, "broken_at": 1}));
}

#[test]
fn a_damaged_store_is_refused_until_somebody_decides() {
    let site = Site::new();
    let hub = site.start();
    let digest = hub.client().upload(WASM);
    assert_eq!(
        hub.client().apply(OPERATOR, &by_digest("shaker", &digest), json!({})).0,
        200
    );
    assert!(hub.stop().success());
    let database = site.state().join("hub.db");
    fs::write(&database, vec![0x5a; 40_000]).unwrap();
    let _ = fs::remove_file(site.state().join("hub.db-wal"));
    let (output, said) = site.fails(&["run"]);
    assert_eq!(output.status.code(), Some(74), "{said}");
    for word in [
        database.to_str().unwrap(),
        "--set-aside-corrupt-store",
        "/backup/hub-",
        "new epoch",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let hub = site.start_with(&["run", "--set-aside-corrupt-store"]);
    assert_eq!(
        hub.client().get("/v1/applications", VIEWER).1,
        json!({"applications": []})
    );
    assert!(site.state().join("hub.db.corrupt-1").is_file());
    assert_eq!(
        hub.client().head(&format!("/v1/artifacts/{digest}")),
        404,
        "the new store does not know it"
    );
    assert_eq!(hub.client().upload(WASM), digest);
    assert_eq!(
        hub.client().apply(OPERATOR, &by_digest("shaker", &digest), json!({})).0,
        200
    );
}

#[test]
fn what_cannot_be_used_is_named_with_what_to_do() {
    let site = Site::new();
    for (address, setting) in [(site.api, "[api] listen"), (site.mqtt, "another address")] {
        let _taken = TcpListener::bind(address).unwrap();
        let (_, said) = site.fails(&["run"]);
        assert!(
            said.contains(&address.to_string()) && said.contains(setting) && said.contains("ss -ltnp"),
            "{said}"
        );
    }
    let hub = site.start();
    let (_, said) = site.fails(&["run"]);
    assert!(said.contains(&format!("process {}", hub.pid())), "{said}");
    drop(hub);
    fs::remove_dir_all(site.state()).unwrap();
    fs::write(site.state(), "a file").unwrap();
    let (_, said) = site.fails(&["run"]);
    assert!(
        said.contains("state_dir") && said.contains(site.state().to_str().unwrap()),
        "{said}"
    );
}

#[test]
fn the_signing_key_must_be_one_that_nodes_believe() {
    let site = Site::new();
    let later = now_s() + 86_400;
    for (bundle, word) in [
        (
            site.plant.bundle(vec![Role::Attestation], later),
            "does not let the signing key",
        ),
        (site.plant.bundle(vec![Role::Twin], now_s() - 1), "ran out"),
        (
            support::Plant::new().bundle(vec![Role::Twin], later),
            "does not name the signing key",
        ),
    ] {
        fs::write(site.path("trust.cose"), bundle).unwrap();
        for command in ["check", "run"] {
            let (output, said) = site.fails(&[command]);
            assert!(said.contains(word) && said.contains("signing.key"), "{said}");
            assert_eq!(output.status.code(), Some(78), "{said}");
        }
    }
    fs::write(site.path("trust.cose"), site.plant.bundle(vec![Role::Twin], later)).unwrap();
    let output = site.command(&["check"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(!site.state().exists(), "a check changes nothing");
    fs::write(site.path("signing.key"), "no key").unwrap();
    assert!(site.fails(&["check"]).1.contains("PKCS #8"));
}

#[test]
fn policies_of_ones_own_and_a_missing_compiler() {
    let site = Site::new();
    fs::create_dir(site.path("policy")).unwrap();
    let rego =
        "package cnova.admission\ndeny contains \"not on a Friday\" if input.manifest.metadata.name == \"friday\"\n";
    fs::write(site.path("policy/own.rego"), rego).unwrap();
    site.configure(&site.path("worker"), "policy_dir = \"policy\"");
    let hub = site.start();
    let digest = hub.client().upload(WASM);
    let (status, body) = hub.client().apply(OPERATOR, &by_digest("friday", &digest), json!({}));
    assert_eq!(
        (status, &body["error"]["details"]),
        (403, &json!(["own.rego: not on a Friday"])),
        "{body}"
    );
    assert_eq!(
        hub.client().apply(OPERATOR, &by_digest("monday", &digest), json!({})).0,
        200
    );
    drop(hub);
    fs::write(site.path("policy/own.rego"), "package cnova.admission\ndeny contains").unwrap();
    assert!(site.fails(&["check"]).1.contains("own.rego"));
    site.configure(&site.path("nowhere"), "");
    assert!(site.fails(&["check"]).1.contains("cnova-aot"));
}

#[test]
fn a_store_that_cannot_be_written_loses_nothing() {
    let site = Site::new();
    // The smallest store that is allowed; its bound stands for a full disk.
    site.configure(&site.path("worker"), "[limits]\nmax_store_bytes = 16777216\n");
    let hub = site.start();
    let api = hub.client();
    let digest = api.upload(WASM);
    assert_eq!(api.apply(OPERATOR, &by_digest("first", &digest), json!({})).0, 200);
    let database = site.state().join("hub.db");
    let blocker = rusqlite::Connection::open(&database).unwrap();
    // Fills it to its bound from outside.
    blocker.execute_batch("CREATE TABLE ballast (b BLOB)").unwrap();
    blocker
        .execute("INSERT INTO ballast VALUES (zeroblob(16600000))", [])
        .unwrap();
    let values: Vec<String> = (0..28).map(|n| format!("A{n}: \"{}\"", "x".repeat(32_000))).collect();
    let big = format!("{}    env: {{{}}}\n", by_digest("second", &digest), values.join(", "));
    let (status, body) = api.apply(OPERATOR, &big, json!({}));
    assert_eq!((status, body["error"]["code"].as_str()), (507, Some("store")), "{body}");
    assert!(
        body["error"]["message"].as_str().unwrap().contains("nothing is lost"),
        "{body}"
    );
    assert_eq!(
        api.get("/v1/applications/first", VIEWER).0,
        200,
        "what is on the disk can be seen"
    );
    assert_eq!(api.get("/v1/applications/second", VIEWER).0, 404);
    blocker.execute_batch("DROP TABLE ballast; VACUUM").unwrap();
    drop(blocker);
    let deadline = std::time::Instant::now() + support::PATIENCE;
    while api.get("/healthz", "").0 != 200 {
        assert!(std::time::Instant::now() < deadline, "{}", site.log());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let (status, body) = api.apply(OPERATOR, &big, json!({}));
    assert_eq!((status, &body["generation"]), (200, &json!(1)), "{body}");
}

#[test]
fn a_broker_that_is_not_there_is_waited_for() {
    let site = Site::new();
    let text = fs::read_to_string(site.path("hub.toml")).unwrap();
    let broker = format!("[external_broker]\nhost = \"127.0.0.1\"\nport = {}\n", site.mqtt.port());
    let text = text.replace(&format!("[mqtt]\nlisten = \"{}\"\n", site.mqtt), &broker);
    fs::write(site.path("hub.toml"), text).unwrap();
    let hub = site.start();
    let deadline = std::time::Instant::now() + support::PATIENCE;
    while !site.log().contains("the external broker is not reached") {
        assert!(std::time::Instant::now() < deadline, "{}", site.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(hub.stop().success());
}

#[test]
fn the_program_says_what_it_is() {
    let site = Site::new();
    let hub = env!("CARGO_BIN_EXE_cnova-hub");
    let run = |arguments: &[&str]| std::process::Command::new(hub).args(arguments).output().unwrap();
    let said = |output: std::process::Output| String::from_utf8(output.stdout).unwrap();
    assert!(said(run(&["--version"])).starts_with("cnova-hub 0."));
    let document: serde_json::Value = serde_json::from_str(&said(run(&["openapi"]))).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let acl = said(site.command(&["print-mosquitto-config", "--acl"]).output().unwrap());
    assert!(acl.contains("user hub\n"), "{acl}");
    let conf = said(site.command(&["print-mosquitto-config"]).output().unwrap());
    assert!(
        conf.contains("require_certificate true") && conf.contains("/etc/mosquitto/cnova/acl"),
        "{conf}"
    );
    fs::set_permissions(site.path("hub.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let output = site.command(&["check"]).output().unwrap();
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("chmod o-rwx"),
        "{output:?}"
    );
}
