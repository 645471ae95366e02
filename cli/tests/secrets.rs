//! `cnova secret`: what goes to the hub, and what is never shown.

#![allow(clippy::unwrap_used)]

mod support;

use serde_json::json;
use support::{FakeHub, Place, json as answer};

#[test]
fn a_value_is_read_from_a_file_as_it_is_and_not_shown() {
    let hub = FakeHub::start(|_, n| {
        let changed = n == 0;
        answer(
            200,
            json!({"result": "secret", "name": "db", "version": 3, "changed": changed}),
        )
    });
    let place = Place::new();
    let file = place.dir.path().join("value");
    std::fs::write(&file, "hunter2\n").unwrap();
    let path = file.display().to_string();
    let run = place.ask(
        &hub,
        &[
            "secret",
            "set",
            "db",
            "--from-file",
            &path,
            "--allow",
            "a",
            "--allow",
            "b/c",
        ],
    );
    let run = run.assert_ok();
    assert_eq!(run.out, "secret db is set, version 3\n");
    assert!(
        run.err.contains("line break") && !run.err.contains("hunter2"),
        "{}",
        run.err
    );
    let run = place
        .ask(&hub, &["secret", "set", "db", "--from-file", &path])
        .assert_ok();
    assert_eq!(run.out, "secret db is as it was, version 3\n");
    let asked = &hub.requests()[0];
    assert_eq!(
        (asked.line.as_str(), asked.body.as_slice()),
        ("PUT /v1/secrets/db?allow=a,b/c", &b"hunter2\n"[..])
    );
    assert_eq!(hub.lines()[1], "PUT /v1/secrets/db");
}

#[test]
fn what_is_no_secret_is_not_sent() {
    let hub = FakeHub::start(|_, _| answer(200, json!({})));
    let place = Place::new();
    let file = |name: &str, bytes: &[u8]| {
        let path = place.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let (small, empty, large) = (file("s", b"x"), file("e", b""), file("l", &[0; 65_537]));
    for (args, code, said) in [
        (
            &["secret", "set", "db", "--from-file", "/no/such"][..],
            1,
            "cannot read /no/such",
        ),
        (&["secret", "set", "db", "--from-file", &empty], 2, "the value is empty"),
        (
            &["secret", "set", "db", "--from-file", &large],
            1,
            "more than 65536 bytes",
        ),
        (
            &["secret", "set", "db", "--from-file", &small, "--allow", "A?b"],
            2,
            "--allow \"A?b\"",
        ),
        (&["secret", "set", "DB", "--from-file", &small], 2, "DB"),
        (&["secret", "set", "db", "hunter2"], 2, "unexpected argument"),
        (&["secret", "allow", "db"], 2, "WHO"),
        (&["secret", "allow", "db", "a/b/c"], 2, "a/b/c"),
    ] {
        let run = place.ask(&hub, args);
        assert_eq!(run.code, code, "{args:?}: {run:?}");
        assert!(run.err.contains(said), "{args:?}: {}", run.err);
    }
    assert!(hub.lines().is_empty());
}

#[test]
fn the_list_says_who_may_who_does_and_who_is_behind() {
    let hub = FakeHub::start(|r, _| match r.line.as_str() {
        "GET /v1/secrets" => answer(
            200,
            json!({"secrets": [{"name": "db", "version": 2, "allow": ["a", "b/c"], "used_by": ["a/w"],
                "nodes": {"plc-1": 2, "plc-2": 1}, "by": "ann", "set_ms": 0},
                {"name": "idle", "version": 1, "allow": [], "used_by": [], "nodes": {}, "by": "bob", "set_ms": 0}]}),
        ),
        _ => answer(
            200,
            json!({"result": "secret", "name": "db", "version": 2, "changed": true}),
        ),
    });
    let place = Place::new();
    let run = place.ask(&hub, &["secret", "list"]).assert_ok();
    for expected in ["db", "a, b/c", "a/w", "plc-1, plc-2 (version 1)", "ann", "idle"] {
        assert!(run.out.contains(expected), "{}", run.out);
    }
    let run = place.ask(&hub, &["secret", "allow", "db", "a", "b"]).assert_ok();
    assert!(run.out.contains("a, b and nobody else"), "{}", run.out);
    let run = place.ask(&hub, &["secret", "allow", "db", "--nobody"]).assert_ok();
    assert!(run.out.contains("nobody may use"), "{}", run.out);
    place.ask(&hub, &["secret", "remove", "db"]).assert_ok();
    assert_eq!(
        hub.lines()[1..],
        [
            "POST /v1/secrets/db/grants",
            "POST /v1/secrets/db/grants",
            "DELETE /v1/secrets/db"
        ]
    );
    assert_eq!(hub.requests()[2].json(), json!({"allow": []}));
}
