//! Secrets through the real hub's API: who may, what is said, and that no value comes out or lies anywhere.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};
use support::{ADMIN, OPERATOR, Site, VIEWER, by_digest};

const VALUE: &str = "planted-hunter2-value";
const WASM: &[u8] = b"\0asm\x01\0\0\0";

fn details(body: &Value) -> String {
    body["error"].to_string()
}

/// Files below a folder that hold the value.
fn holders(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            found.extend(holders(&path));
        } else if fs::read(&path).is_ok_and(|b| b.windows(VALUE.len()).any(|w| w == VALUE.as_bytes())) {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn what_is_no_secret_is_refused_without_repeating_it() {
    let site = Site::new();
    let hub = site.start();
    let api = hub.client();
    for token in [VIEWER, OPERATOR] {
        assert_eq!(api.put("/v1/secrets/db", token, VALUE.as_bytes()).0, 403);
        assert_eq!(api.get("/v1/secrets", token).0, 403);
        assert_eq!(api.delete("/v1/secrets/db", token).0, 403);
    }
    for (path, value, status, said) in [
        ("/v1/secrets/Not_A_Name", VALUE, 400, "name"),
        ("/v1/secrets/db?allow=a/b/c", VALUE, 400, "allow"),
        ("/v1/secrets/db?alow=a", VALUE, 400, "query"),
        ("/v1/secrets/db", "", 422, "empty"),
        ("/v1/secrets/db", &"x".repeat(65_537), 413, "65536"),
    ] {
        let (got, body) = api.put(path, ADMIN, value.as_bytes());
        assert_eq!(got, status, "{path}: {body}");
        assert!(
            details(&body).contains(said) && !details(&body).contains(VALUE),
            "{path}: {body}"
        );
    }
    assert_eq!(api.get("/v1/secrets", ADMIN).1, json!({"secrets": []}));
}

#[test]
fn a_value_goes_in_and_never_out() {
    let site = Site::new();
    let hub = site.start();
    let api = hub.client();
    let (status, body) = api.put("/v1/secrets/db?allow=shaker,other/one", ADMIN, VALUE.as_bytes());
    assert_eq!(
        (status, body),
        (
            200,
            json!({"result": "secret", "name": "db", "version": 1, "changed": true})
        )
    );
    let (_, body) = api.put("/v1/secrets/db", ADMIN, VALUE.as_bytes());
    assert_eq!((&body["version"], &body["changed"]), (&json!(1), &json!(false)));
    let (_, body) = api.get("/v1/secrets", ADMIN);
    assert_eq!(body["secrets"][0]["allow"], json!(["other/one", "shaker"]), "{body}");
    let mode = fs::metadata(site.state().join("secrets.key"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    // A manifest that may have it, and one that may not; a dry run says the same.
    let digest = api.upload(WASM);
    let with = |app: &str| by_digest(app, &digest) + "    secrets: [{name: db, env: DB}]\n";
    for more in [json!({}), json!({"dry_run": true})] {
        let (status, body) = api.apply(OPERATOR, &with("greedy"), more);
        assert_eq!(status, 422, "{body}");
        assert!(details(&body).contains("not granted to greedy/one"), "{body}");
    }
    let (status, body) = api.apply(OPERATOR, &with("shaker"), json!({"dry_run": true}));
    assert_eq!((status, &body["secrets"]), (200, &json!({"db": 1})), "{body}");
    assert_eq!(api.apply(OPERATOR, &with("shaker"), json!({})).0, 200);
    let (status, body) = api.delete("/v1/secrets/db", ADMIN);
    assert!(
        status == 422 && details(&body).contains("is used by shaker/one"),
        "{body}"
    );
    let grants = json!({"allow": ["other"]}).to_string();
    let (status, body) = api.post("/v1/secrets/db/grants", ADMIN, &[], grants.as_bytes());
    assert!(
        status == 422 && details(&body).contains("shaker/one uses secret db"),
        "{body}"
    );

    // Nothing of it is in what is told or kept, also after the next start.
    let audit = api.get("/v1/audit", VIEWER).1.to_string();
    assert!(audit.contains("secret-set") && audit.contains("version 1"), "{audit}");
    assert!(hub.stop().success());
    let hub = site.start();
    let api = hub.client();
    let (_, body) = api.put("/v1/secrets/db", ADMIN, VALUE.as_bytes());
    assert_eq!(
        (&body["version"], &body["changed"]),
        (&json!(1), &json!(false)),
        "it is known again"
    );
    let (_, body) = api.put("/v1/secrets/db", ADMIN, b"another");
    assert_eq!(body["version"], 2);
    assert_eq!(api.delete("/v1/applications/shaker", OPERATOR).0, 200);
    assert_eq!(api.delete("/v1/secrets/db", ADMIN).0, 200);
    assert_eq!(api.delete("/v1/secrets/db", ADMIN).0, 404);
    let (_, body) = api.put("/v1/secrets/db", ADMIN, VALUE.as_bytes());
    assert_eq!(body["version"], 3, "a number is never used twice");
    let told = [
        api.get("/v1/secrets", ADMIN),
        api.get("/v1/audit", VIEWER),
        api.get("/v1/applications", VIEWER),
    ];
    assert!(told.iter().all(|(_, body)| !body.to_string().contains(VALUE)));
    assert!(!site.log().contains(VALUE));
    assert!(hub.stop().success());
    assert_eq!(holders(&site.state()), Vec::<String>::new());
}
