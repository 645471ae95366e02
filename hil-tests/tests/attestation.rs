//! Attestation with the real programs and software TPMs: what is proven, what is found out, and what follows from it.

#![allow(clippy::unwrap_used)]

mod enrolment_support;

use std::fs;
use std::path::Path;
use std::process::Command;

use cnova_root_of_trust::testing::{Maker, Swtpm};
use cnova_root_of_trust::tpm::EkKind;
use enrolment_support::{AGENT, GATEWAY, HUB, Plant, Root};
use serde_json::Value;

/// `(module (func (export "_start")))`: it ends at once, as it should.
const WASM: &[u8] =
    b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x07\x0a\x01\x06_start\0\0\x0a\x04\x01\x02\0\x0b";

fn tpm(maker: &Maker) -> Option<Swtpm> {
    Swtpm::start_by(maker, Some(EkKind::P384))
}

/// A hub that compiles.
fn plant(maker: &Maker) -> Plant {
    let plant = Plant::new("", &[maker]);
    plant.let_it_compile();
    plant
}

fn standing(plant: &Plant, node: &str) -> Value {
    serde_json::from_str(&plant.cnova(&["attest", "show", node, "-o", "json"])).unwrap()
}

fn is(plant: &Plant, node: &str, word: &str) -> bool {
    plant.trust_of(node).as_deref() == Some(word)
}

fn apply(plant: &Plant, args: &str, trust: &str) {
    plant.write("app/w.wasm", WASM);
    let manifest = plant.write(
        "app/app.yaml",
        format!(
            "apiVersion: cnova/v1\nkind: Application\nmetadata: {{name: app}}\nworkloads:\n\
             - {{name: w, runtime: wasm, artifact: {{file: w.wasm}}, args: [{args}], resources: {{memory: 16MiB}},\n   \
             restart: {{policy: never}}, placement: {{trust: {trust}}}}}\n"
        )
        .as_bytes(),
    );
    plant.cnova(&["apply", &manifest]);
}

fn workload(plant: &Plant) -> Option<Value> {
    let all: Value = serde_json::from_str(&plant.cnova(&["get", "workloads", "-o", "json"])).unwrap();
    all.as_array()?.first().cloned()
}

fn has_finished(plant: &Plant, generation: u64) -> bool {
    workload(plant).is_some_and(|w| w["state"] == "finished" && w["generation"] == generation)
}

fn extend(chip: &Swtpm, pcr: u8) {
    let event = format!("{pcr}:sha256={}", "ab".repeat(32));
    let done = chip.tool("tpm2_pcrextend").arg(event).status().unwrap();
    assert!(done.success());
}

#[test]
fn what_a_node_proves_decides_what_runs_on_it() {
    let maker = Maker::new();
    let (Some(gateway_chip), Some(mut chip)) = (tpm(&maker), tpm(&maker)) else {
        return;
    };
    let mut plant = plant(&maker);
    plant.start(HUB);
    let token = plant.token(&["--site", "plant-7/line-2", "--name", GATEWAY]);
    plant.configure(GATEWAY, HUB, &Root::Tpm(gateway_chip.tcti()), Some(&token));
    plant.start(GATEWAY);
    // Without reference values nothing speaks for a node, and nothing against it.
    plant.wait("the gateway is appraised", |p| is(p, GATEWAY, "warning"));
    let token = plant.token(&["--site", "plant-7/line-2/plc-1"]);
    plant.configure(AGENT, GATEWAY, &Root::Tpm(chip.tcti()), Some(&token));
    let path = plant.at(&format!("{AGENT}.toml"));
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text + "[attestation]\nparent = \"attested\"\n").unwrap();
    plant.start(AGENT);
    plant.wait("the agent is appraised", |p| is(p, AGENT, "warning"));

    apply(&plant, "first", "attested");
    assert!(workload(&plant).is_none(), "no node is attested yet");
    let why = plant.cnova(&["explain", "workload", "app/w"]);
    assert!(why.contains("no reference values"), "{why}");

    plant.cnova(&["reference", "add", "gateway-1", "--from-node", GATEWAY]);
    plant.cnova(&["reference", "add", "plc-1-image", "--from-node", AGENT]);
    plant.wait("the gateway is attested", |p| is(p, GATEWAY, "affirming"));
    plant.wait("the agent is attested", |p| is(p, AGENT, "affirming"));
    plant.wait("the workload ran", |p| has_finished(p, 1));
    plant.cnova(&["attest", "now", AGENT]);
    plant.wait("its launch is proven", |p| {
        let launched = standing(p, AGENT)["launched"].clone();
        let mut launched = launched.as_array().unwrap().iter();
        launched.any(|l| l["workload"] == "app/w" && l["proven"] == true)
    });

    // One event more in one register.
    extend(&chip, 7);
    plant.cnova(&["attest", "now", AGENT]);
    plant.wait("it is found out", |p| is(p, AGENT, "CONTRAINDICATED"));
    let shown = standing(&plant, AGENT);
    assert!(shown["why"].as_str().unwrap().starts_with("PCR 7 holds"), "{shown}");
    plant.wait("what asked for trust is gone", |p| workload(p).is_none());

    // A boot as it should be.
    plant.kill(AGENT);
    chip.reboot();
    fs::remove_file(plant.at(&format!("state/{AGENT}/launch.log"))).unwrap();
    plant.start(AGENT);
    plant.wait("it is attested again", |p| is(p, AGENT, "affirming"));
    plant.wait("the workload is back", |p| {
        workload(p).is_some_and(|w| w["state"] == "finished")
    });

    // A launch that the log does not show.
    extend(&chip, 14);
    plant.cnova(&["attest", "now", AGENT]);
    plant.wait("the log does not replay", |p| is(p, AGENT, "CONTRAINDICATED"));
    let shown = standing(&plant, AGENT);
    assert!(shown["why"].as_str().unwrap().starts_with("PCR 14"), "{shown}");
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(done.success());
}

#[test]
fn a_disk_that_was_rolled_back_is_noticed_and_brought_up_to_date() {
    let maker = Maker::new();
    let Some(chip) = tpm(&maker) else { return };
    let mut plant = plant(&maker);
    plant.start(HUB);
    let token = plant.token(&["--site", "plant-7/plc-1"]);
    plant.configure(AGENT, HUB, &Root::Tpm(chip.tcti()), Some(&token));
    plant.start(AGENT);
    plant.wait("the agent is appraised", |p| is(p, AGENT, "warning"));
    apply(&plant, "first", "none");
    plant.wait("the first ran", |p| has_finished(p, 1));
    plant.stop(AGENT);
    let state = plant.at(&format!("state/{AGENT}"));
    let (state, old) = (
        Path::new(&state).to_owned(),
        Path::new(&plant.at("old-disk")).to_owned(),
    );
    copy(&state, &old);
    plant.start(AGENT);
    apply(&plant, "second", "none");
    plant.wait("the second ran", |p| has_finished(p, 2));
    plant.stop(AGENT);

    fs::remove_dir_all(&state).unwrap();
    copy(&old, &state);
    plant.start(AGENT);
    plant.wait("it says so", |p| p.log(AGENT).contains("an older disk was put back"));
    plant.wait("the hub lets it out", |p| {
        p.log(HUB).contains("is let out of quarantine")
    });
    plant.wait("it is up to date", |p| has_finished(p, 2));
    // The next hello says so.
    let nodes = |p: &Plant| p.cnova(&["get", "nodes", "-o", "json"]);
    plant.wait("the alarm is over", |p| !nodes(p).contains("\"quarantine\""));
}
