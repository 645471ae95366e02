//! Container images on their way to a hub of scripted answers.

#![allow(clippy::unwrap_used)]

mod support;

use cnova_oci::testing::{BuiltImage, ImageBuilder, LayerBuilder, write_tar};
use cnova_shared::ids::Digest;
use serde_json::json;
use support::{FakeHub, Place, Reply, Request};

fn image(content: &[u8]) -> BuiltImage {
    let layer = LayerBuilder::new().file("data", 0o644, content);
    ImageBuilder::new().layer(layer).build()
}

/// Has one blob already.
fn script(there: String) -> impl Fn(&Request, usize) -> Reply {
    move |r, _| match r.line.as_str() {
        l if l.starts_with("HEAD ") => (if l.ends_with(&there) { 200 } else { 404 }, Vec::new()),
        "POST /v1/artifacts" => {
            let digest = r.header("x-cnova-digest").unwrap().to_owned();
            assert_eq!(
                digest,
                Digest::of(&r.body).to_string(),
                "what is sent is what is announced"
            );
            support::json(201, json!({"digest": digest, "size": r.body.len()}))
        }
        "POST /v1/applications" => support::json(
            200,
            json!({"result": "applied", "name": "web", "generation": 1, "changed": true}),
        ),
        "GET /v1/artifacts" => support::json(
            200,
            json!({"artifacts": [{"digest": "sha256:aa", "size": 7, "used_by": ["web/one", "the twin of plc-1"]},
                {"digest": "sha256:bb", "size": 8, "used_by": []}]}),
        ),
        "POST /v1/artifacts/collect" => support::json(200, json!({"removed": ["sha256:bb"], "bytes": 8})),
        other => panic!("{other}"),
    }
}

fn uploads(hub: &FakeHub) -> Vec<String> {
    let posts = hub.requests().into_iter().filter(|r| r.line == "POST /v1/artifacts");
    posts.map(|r| Digest::of(&r.body).to_string()).collect()
}

#[test]
fn an_image_is_imported_blob_by_blob_and_its_manifest_last() {
    let (place, image) = (Place::new(), image(b"one"));
    write_tar(&place.dir.path().join("image.tar"), std::slice::from_ref(&image)).unwrap();
    let (config, layer) = (image.parts[0].to_string(), image.parts[1].to_string());
    let hub = FakeHub::start(script(layer.clone()));
    let run = place.ask(&hub, &["artifact", "import", "image.tar"]).assert_ok();
    let lines: Vec<&str> = run.out.lines().collect();
    assert!(lines[0].starts_with("there already layer 1 of 1 ("), "{}", run.out);
    assert!(lines[1].starts_with("uploaded      configuration ("), "{}", run.out);
    assert!(lines[2].starts_with("uploaded      manifest ("), "{}", run.out);
    assert_eq!(lines[4], format!("  artifact: {{digest: \"{}\"}}", image.digest));
    assert_eq!(uploads(&hub), [config, image.digest.to_string()]);
    let run = place
        .ask(&hub, &["artifact", "import", "image.tar", "-o", "json"])
        .assert_ok();
    assert_eq!(run.json()["digest"], image.digest.to_string());
    assert_eq!(
        run.json()["parts"][0],
        json!({"what": "layer 1 of 1", "digest": layer, "size": run.json()["parts"][0]["size"], "uploaded": false})
    );
}

#[test]
fn what_is_no_image_is_told_and_nothing_sent() {
    let place = Place::new();
    place.write("notes.txt", "no image");
    let hub = FakeHub::start(script(String::from("-")));
    for (args, said) in [
        (vec!["artifact", "import", "notes.txt"], "notes.txt"),
        (vec!["artifact", "import", "nowhere.tar"], "nowhere.tar"),
        (
            vec!["artifact", "import", "notes.txt", "--platform", "amiga"],
            "is not a platform",
        ),
    ] {
        let run = place.ask(&hub, &args);
        assert!(run.code > 0 && run.err.contains(said), "{run:?}");
    }
    assert_eq!(hub.lines(), [] as [&str; 0]);
}

#[test]
fn apply_brings_the_image_that_a_manifest_names() {
    let (place, image) = (Place::new(), image(b"two"));
    write_tar(&place.dir.path().join("image.tar"), std::slice::from_ref(&image)).unwrap();
    place.write(
        "app.yaml",
        "apiVersion: cnova/v1\nkind: Application\nmetadata: {name: web}\nworkloads:\n\
         - {name: one, runtime: container, artifact: {file: image.tar}}\n",
    );
    // The hub has the manifest, but lost a part of the image.
    let hub = FakeHub::start(script(image.digest.to_string()));
    place.ask(&hub, &["apply", "app.yaml"]).assert_ok();
    assert_eq!(uploads(&hub).len(), 2, "{:?}", hub.lines());
    let apply = hub
        .requests()
        .into_iter()
        .find(|r| r.line == "POST /v1/applications")
        .unwrap();
    assert_eq!(
        apply.json()["artifacts"],
        json!({"image.tar": image.digest.to_string()})
    );
    place.write("image.tar", "broken");
    let run = place.ask(&hub, &["apply", "app.yaml"]);
    assert!(
        run.code == 1
            && run
                .err
                .contains("app.yaml: /workloads/0/artifact/file does not name one container image"),
        "{run:?}"
    );
}

#[test]
fn artifacts_are_listed_and_cleared() {
    let (place, hub) = (Place::new(), FakeHub::start(script(String::from("-"))));
    let run = place.ask(&hub, &["artifact", "list"]).assert_ok();
    assert_eq!(
        run.out,
        "DIGEST      BYTES   USED BY\nsha256:aa   7       web/one and 1 more\nsha256:bb   8       nothing\n"
    );
    let run = place.ask(&hub, &["artifact", "gc"]).assert_ok();
    assert_eq!(run.out, "1 artifact(s) that nothing used removed, 8 bytes\n");
}
