//! `build`, `artifact sign`, `trust builder`, and provenance on its way to a hub of scripted answers.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cnova_oci::testing::{ImageBuilder, LayerBuilder, write_tar};
use cnova_provenance::{AOT_BUILDER, VerifiedProvenance, verify};
use cnova_shared::bundle::{Role, TrustBundle};
use cnova_shared::ids::Digest;
use serde_json::{Value, json};
use support::{FakeHub, Place, Reply, Request, Run};

const CI: &str = "https://ci.example/line-2";

/// Runs it with the machine's programs within reach, and a variable that nobody asked for.
fn run(place: &Place, args: &[&str]) -> Run {
    let mut command = place.command(args);
    command.env("PATH", std::env::var_os("PATH").unwrap());
    command.env("SECRET", "planted").env("CI_JOB", "job-7");
    support::done(command.output().unwrap())
}

/// A tree whose bundle knows a builder.
fn trusting(place: &Place, level: &str) {
    run(place, &["trust", "init", "t"]).assert_ok();
    run(place, &["trust", "builder", "key", "ci.key"]).assert_ok();
    let add = [
        "trust",
        "builder",
        "add",
        "t",
        "--builder",
        CI,
        "--key",
        "ci.key.pub",
        "--level",
        level,
    ];
    run(place, &add).assert_ok();
}

fn bundle(place: &Place) -> TrustBundle {
    TrustBundle::flashed(&fs::read(place.dir.path().join("t/trust-bundle.cose")).unwrap()).unwrap()
}

fn proved(place: &Place, envelope: &[u8], subject: &[u8]) -> VerifiedProvenance {
    verify(
        envelope,
        &[],
        &bundle(place).contents().builders,
        None,
        &Digest::of(subject),
    )
    .unwrap()
}

fn statement(envelope: &[u8]) -> Value {
    let text: Value = serde_json::from_slice(envelope).unwrap();
    serde_json::from_slice(&STANDARD.decode(text["payload"].as_str().unwrap()).unwrap()).unwrap()
}

fn read(place: &Place, name: &str) -> Vec<u8> {
    fs::read(place.dir.path().join(name)).unwrap()
}

fn git(folder: &Path, arguments: &[&str]) {
    let git = Command::new("git")
        .arg("-C")
        .arg(folder)
        .args([
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@t",
            "-c",
            "commit.gpgsign=false",
        ])
        .args(arguments)
        .output()
        .unwrap();
    assert!(git.status.success(), "{git:?}");
}

fn build<'a>(output: &'a str, script: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["build", "--key", "ci.key", "--builder", CI, "--out", output];
    all.extend(more);
    all.extend(["--", "sh", "-c", script]);
    all
}

#[test]
fn a_build_is_signed_with_its_command_its_commit_and_what_differs_from_it() {
    let place = Place::new();
    trusting(&place, "2");
    let repository = place.dir.path();
    git(repository, &["init", "-q", "-b", "main"]);
    git(
        repository,
        &["remote", "add", "origin", "https://ann:hidden@git.example/line.git"],
    );
    place.write("app.c", "int main;");
    place.write("models/a.onnx", "weights");
    place.write(".gitignore", "t/\nci.*\nout*\n");
    git(repository, &["add", "."]);
    git(repository, &["commit", "-q", "-m", "first"]);
    // Something old lies where the build puts its output.
    place.write("out.wasm", "stale");
    let script = "cat app.c > out.wasm; echo \"$CI_JOB,$SECRET,$TZ\" >> out.wasm; echo seen";
    let more = ["--input", "models", "--env", "CI_JOB"];
    let done = run(&place, &build("out.wasm", script, &more)).assert_ok();
    assert!(
        done.out.contains("out.wasm.intoto.jsonl: by https://ci.example/line-2"),
        "{}",
        done.out
    );
    assert!(
        done.err.contains("seen") && !done.out.contains("seen"),
        "the build's words go to standard error"
    );

    let made = read(&place, "out.wasm");
    assert_eq!(
        made, b"int main;job-7,,UTC\n",
        "only variables that were named reach the build"
    );
    let envelope = read(&place, "out.wasm.intoto.jsonl");
    let verified = proved(&place, &envelope, &made);
    assert_eq!((verified.builder(), verified.level()), (CI, 2));
    assert!(verified.materials().contains(&Digest::of(b"weights")));
    let said = statement(&envelope);
    let definition = &said["predicate"]["buildDefinition"];
    assert_eq!(definition["externalParameters"]["command"], json!(["sh", "-c", script]));
    let head = Command::new("git")
        .arg("-C")
        .arg(repository)
        .args(["rev-parse", "HEAD"])
        .output()
        .unwrap();
    let commit = &definition["resolvedDependencies"][0];
    assert_eq!(
        commit["digest"]["gitCommit"],
        json!(String::from_utf8(head.stdout).unwrap().trim())
    );
    assert_eq!(commit["uri"], json!("git+https://git.example/line.git"));
    assert_eq!(commit["annotations"]["dirty"], json!(false));
    let text = said.to_string();
    assert!(
        !text.contains("hidden") && !text.contains("planted") && !text.contains("job-7"),
        "{text}"
    );

    place.write("app.c", "int changed;");
    run(&place, &build("out.wasm", "cp app.c out.wasm", &[])).assert_ok();
    let said = statement(&read(&place, "out.wasm.intoto.jsonl"));
    let dependencies = &said["predicate"]["buildDefinition"]["resolvedDependencies"];
    assert_eq!(dependencies[0]["annotations"]["dirty"], json!(true));
    assert_eq!(dependencies[1]["uri"], json!("file:app.c"));
    assert_eq!(
        dependencies[1]["digest"]["sha256"],
        json!(Digest::of(b"int changed;").hex())
    );
}

#[test]
fn a_build_that_fails_or_makes_nothing_signs_nothing() {
    let place = Place::new();
    run(&place, &["trust", "builder", "key", "ci.key"]).assert_ok();
    place.write("out", "stale");
    let failed = run(&place, &build("out", "exit 3", &[]));
    assert!(
        failed.code == 1 && failed.err.contains("\"sh\" failed (exit status: 3): nothing is signed"),
        "{failed:?}"
    );
    place.write("out", "stale");
    let nothing = run(&place, &build("out", "true", &[]));
    assert!(
        nothing.code == 1 && nothing.err.contains("did not make out: correct --out"),
        "{nothing:?}"
    );
    fs::create_dir(place.dir.path().join("folder")).unwrap();
    let folder = run(&place, &build("folder", "true", &[]));
    assert!(
        folder.code == 1 && folder.err.contains("is a folder that is no OCI image layout"),
        "{folder:?}"
    );
    assert!(!place.dir.path().join("out.intoto.jsonl").exists());
    let unnamed = run(
        &place,
        &[
            "build",
            "--key",
            "ci.key",
            "--builder",
            "me",
            "--out",
            "out",
            "--",
            "true",
        ],
    );
    assert!(
        unnamed.code == 2 && unnamed.err.contains("--builder \"me\" is not a URI"),
        "{unnamed:?}"
    );
    let keyless = run(
        &place,
        &["artifact", "sign", "x", "--key", "no", "--builder", CI, "--no-upload"],
    );
    assert!(
        keyless.code == 1 && keyless.err.contains("--key: cannot read no"),
        "{keyless:?}"
    );
}

/// Takes everything; says what it was told to of provenance.
fn script(status: u16, answer: Value) -> impl Fn(&Request, usize) -> Reply {
    move |r, _| match r.line.as_str() {
        l if l.starts_with("HEAD ") => (404, Vec::new()),
        l if l.ends_with("/provenance") => support::json(status, answer.clone()),
        "POST /v1/artifacts" => support::json(201, json!({"digest": r.header("x-cnova-digest"), "size": r.body.len()})),
        "POST /v1/applications" => support::json(
            200,
            json!({"result": "applied", "name": "web", "generation": 1, "changed": true}),
        ),
        other => panic!("{other}"),
    }
}

fn attached(hub: &FakeHub) -> Vec<Request> {
    hub.requests()
        .into_iter()
        .filter(|r| r.line.ends_with("/provenance"))
        .collect()
}

#[test]
fn a_file_and_an_image_are_signed_and_brought_to_the_hub() {
    let place = Place::new();
    trusting(&place, "1");
    place.write("app.wasm", "wasm");
    place.write("source.c", "source");
    let hub = FakeHub::start(script(201, json!({"builder": CI, "level": 1})));
    let sign = [
        "artifact",
        "sign",
        "app.wasm",
        "--key",
        "ci.key",
        "--builder",
        CI,
        "--material",
        "source.c",
    ];
    let done = place.ask(&hub, &sign).assert_ok();
    assert!(
        done.out
            .contains("provenance app.wasm.intoto.jsonl: https://ci.example/line-2, level 1"),
        "{}",
        done.out
    );
    let lines = hub.lines();
    let digest = Digest::of(b"wasm");
    let expected = [
        format!("HEAD /v1/artifacts/{digest}"),
        "POST /v1/artifacts".into(),
        format!("POST /v1/artifacts/{digest}/provenance"),
    ];
    assert_eq!(lines, expected, "the artifact goes first");
    let envelope = attached(&hub).remove(0).body;
    assert_eq!([&envelope[..], b"\n"].concat(), read(&place, "app.wasm.intoto.jsonl"));
    assert_eq!(proved(&place, &envelope, b"wasm").materials(), [Digest::of(b"source")]);

    // A second signature beside the first; neither needs a hub.
    run(&place, &["trust", "builder", "key", "lab.key"]).assert_ok();
    let more = [
        "artifact",
        "sign",
        "app.wasm",
        "--key",
        "lab.key",
        "--builder",
        "https://lab.example",
        "--append",
        "--no-upload",
    ];
    place.run(&more).assert_ok();
    assert_eq!(
        read(&place, "app.wasm.intoto.jsonl")
            .iter()
            .filter(|b| **b == b'\n')
            .count(),
        2
    );

    let layer = LayerBuilder::new().file("data", 0o644, b"x");
    let image = ImageBuilder::new().layer(layer).build();
    write_tar(&place.dir.path().join("image.tar"), std::slice::from_ref(&image)).unwrap();
    let sign = [
        "artifact",
        "sign",
        "image.tar",
        "--image",
        "--key",
        "ci.key",
        "--builder",
        CI,
        "--no-upload",
        "--out",
        "image.json",
    ];
    place.run(&sign).assert_ok();
    let said = statement(&read(&place, "image.json"));
    let manifest: Digest = image.digest.to_string().parse().unwrap();
    assert_eq!(said["subject"][0]["digest"]["sha256"], json!(manifest.hex()));
    assert_eq!(mode(&place, "ci.key"), 0o600);
}

fn mode(place: &Place, name: &str) -> u32 {
    fs::metadata(place.dir.path().join(name)).unwrap().permissions().mode() & 0o777
}

#[test]
fn apply_brings_what_lies_beside_a_file_and_warns_of_what_the_hub_does_not_want() {
    let place = Place::new();
    run(&place, &["trust", "builder", "key", "ci.key"]).assert_ok();
    place.write("app.wasm", "wasm");
    place
        .run(&[
            "artifact",
            "sign",
            "app.wasm",
            "--key",
            "ci.key",
            "--builder",
            CI,
            "--no-upload",
        ])
        .assert_ok();
    let manifest = "apiVersion: cnova/v1\nkind: Application\nmetadata: {name: web}\nworkloads:\n  - name: a\n    runtime: wasm\n    artifact: {file: app.wasm}\n";
    place.write("app.yaml", manifest);
    let cases = [
        (201, json!({"builder": CI, "level": 2}), ""),
        (
            201,
            json!({"problem": "no builder of the trust bundle signed it"}),
            "is kept and proves nothing yet: no builder",
        ),
        (
            422,
            json!({"error": {"code": "provenance", "message": "it is about other bytes"}}),
            "it is about other bytes; sign the artifact again",
        ),
        (
            404,
            json!({"error": {"code": "not-found", "message": "there is no such path"}}),
            "this hub does not know provenance",
        ),
    ];
    for (status, answer, warning) in cases {
        let hub = FakeHub::start(script(status, answer));
        let done = place.ask(&hub, &["apply", "app.yaml"]).assert_ok();
        assert!(
            done.err.contains(warning) && done.err.is_empty() == warning.is_empty(),
            "{done:?}"
        );
        let order: Vec<String> = hub
            .lines()
            .iter()
            .map(|l| l.split(' ').next_back().unwrap_or_default().to_owned())
            .collect();
        assert!(
            order[2].ends_with("/provenance") && order[3] == "/v1/applications",
            "{order:?}"
        );
        // A dry run changes nothing, at the hub either.
        let dry = FakeHub::start(|r, _| match r.line.as_str() {
            "POST /v1/applications" => support::json(
                200,
                json!({"result": "dry-run", "name": "web", "unproven": {"a": "artifact sha256:00 has no provenance"}}),
            ),
            _ => (404, Vec::new()),
        });
        let done = place.ask(&dry, &["apply", "app.yaml", "--dry-run"]).assert_ok();
        assert!(
            attached(&dry).is_empty() && done.out.contains("unproven   a: artifact sha256:00"),
            "{done:?}"
        );
    }
}

#[test]
fn builders_are_put_into_bundles_that_the_roots_sign() {
    let place = Place::new();
    trusting(&place, "2");
    let before = bundle(&place);
    let builders = &before.contents().builders;
    assert_eq!((before.contents().version, builders.len()), (2, 2));
    // The hub's key is the compiler from the beginning.
    assert_eq!((builders[0].builder.as_str(), builders[0].level), (AOT_BUILDER, 3));
    assert_eq!(builders[0].key, before.contents().keys[0].key);
    let list = run(&place, &["trust", "builder", "list", "t/trust-bundle.cose"]).assert_ok();
    assert!(
        list.out.contains(CI) && list.out.contains("urn:cnova:builder:hub-aot"),
        "{}",
        list.out
    );
    let show = run(&place, &["trust", "show", "t/trust-bundle.cose", "-o", "json"])
        .assert_ok()
        .json();
    assert_eq!(
        (&show["builders"][1]["level"], &show["provenance_required"]),
        (&json!(2), &Value::Null)
    );

    // The same builder again, from the private key: it is replaced.
    let again = [
        "trust",
        "builder",
        "add",
        "t",
        "--builder",
        CI,
        "--key",
        "ci.key",
        "--level",
        "1",
    ];
    run(&place, &again).assert_ok();
    let next = before.succeed(&read(&place, "t/trust-bundle.cose")).unwrap();
    let builders = &next.contents().builders;
    assert_eq!(
        (builders.len(), builders[1].level, &builders[1].key),
        (2, 1, &before.contents().builders[1].key)
    );
    assert!(place.dir.path().join("t/trust-bundle.v2.cose").exists());
}

#[test]
fn a_rotation_keeps_builders_and_builders_can_be_asked_for_and_removed() {
    let place = Place::new();
    trusting(&place, "1");
    // A new hub key compiles as far believed as the old one.
    run(&place, &["trust", "rotate", "t", "--overlap-days", "5"]).assert_ok();
    let rotated = bundle(&place);
    let hub: Vec<_> = rotated
        .contents()
        .builders
        .iter()
        .filter(|b| b.builder == AOT_BUILDER)
        .collect();
    assert_eq!((hub.len(), hub[1].level), (2, 3));
    let newest = rotated.contents().keys.iter().rfind(|k| k.roles.contains(&Role::Twin));
    assert!(hub[0].not_after < hub[1].not_after && hub[1].key == newest.unwrap().key);

    run(
        &place,
        &[
            "trust",
            "builder",
            "require",
            "t",
            "--min-level",
            "2",
            "--builder",
            "https://ci.*",
        ],
    )
    .assert_ok();
    let policy = bundle(&place).contents().attestation.clone().unwrap();
    assert!(policy.required && policy.min_level == 2 && policy.builders == ["https://ci.*"]);
    let off = run(&place, &["trust", "builder", "require", "t", "--off"]).assert_ok();
    assert!(
        bundle(&place).contents().attestation.is_none() && !off.out.contains("every workload"),
        "{}",
        off.out
    );

    let id = rotated.contents().builders[1].key.id().to_string();
    run(&place, &["trust", "builder", "remove", "t", &id]).assert_ok();
    assert!(bundle(&place).contents().builders.iter().all(|b| b.builder != CI));
    let unknown = run(&place, &["trust", "builder", "remove", "t", &id]);
    assert!(
        unknown.code == 1 && unknown.err.contains("no builder of this trust bundle has the key"),
        "{unknown:?}"
    );
    let no_key = [
        "trust",
        "builder",
        "add",
        "t",
        "--builder",
        CI,
        "--key",
        "t/ca.pem",
        "--level",
        "1",
    ];
    let no_key = run(&place, &no_key);
    assert!(no_key.err.contains("neither a public nor a private key"), "{no_key:?}");
}

/// Keys that other tools make are read: `openssl genpkey`, `cosign generate-key-pair`.
#[test]
fn public_keys_of_other_tools_are_read() {
    let place = Place::new();
    run(&place, &["trust", "init", "t"]).assert_ok();
    let p256 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    place.write("p256.pub", p256.public_key_pem());
    let add = [
        "trust",
        "builder",
        "add",
        "t",
        "--builder",
        CI,
        "--key",
        "p256.pub",
        "--level",
        "0",
    ];
    run(&place, &add).assert_ok();
    let key = bundle(&place).contents().builders[1].key.clone();
    assert_eq!(key.bytes, p256.public_key_raw());
    place.write("p256.key", p256.serialize_pem());
    place.write("f", "x");
    place
        .run(&[
            "artifact",
            "sign",
            "f",
            "--key",
            "p256.key",
            "--builder",
            CI,
            "--no-upload",
        ])
        .assert_ok();
    assert_eq!(proved(&place, &read(&place, "f.intoto.jsonl"), b"x").level(), 0);
}
