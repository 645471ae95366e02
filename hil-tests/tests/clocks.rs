//! Nodes with a TPM whose clock is wrong: 1970, as without a battery, and 2099, as after a slip of the finger.
//!
//! Needs swtpm and libfaketime; says so and does nothing where they are missing.

#![allow(clippy::unwrap_used)]

mod enrolment_support;

use std::path::PathBuf;

use cnova_root_of_trust::testing::{Maker, Swtpm};
use cnova_root_of_trust::tpm::EkKind;
use enrolment_support::{AGENT, HUB, Plant, Root};
use serde_json::Value;

/// `(module (func (export "_start") (loop (br 0))))`: it runs until it is ended.
const WASM: &[u8] =
    b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x07\x0a\x01\x06_start\0\0\x0a\x09\x01\x07\0\x03\x40\x0c\0\x0b\x0b";

/// What makes a program see another time, in Debian's package libfaketime.
fn library() -> Option<PathBuf> {
    let machine = format!(
        "/usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1",
        std::env::consts::ARCH
    );
    let path = PathBuf::from(machine);
    if !path.is_file() {
        eprintln!("skipped: {} is not there (Debian: faketime)", path.display());
        return None;
    }
    Some(path)
}

fn set_clock(plant: &mut Plant, node: &str, time: &str) {
    let environment = [
        ("LD_PRELOAD", library().unwrap().display().to_string()),
        ("FAKETIME", format!("@{time}")),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
    ];
    plant.set_environment(node, environment.map(|(name, value)| (name.to_owned(), value)));
}

fn apply(plant: &Plant) {
    plant.write("app/w.wasm", WASM);
    let text = "apiVersion: cnova/v1\nkind: Application\nmetadata: {name: app}\nworkloads:\n".to_owned();
    let workload = |name: &str, trust: &str| {
        format!(
            "- {{name: {name}, runtime: wasm, artifact: {{file: w.wasm}}, resources: {{memory: 16MiB}},\n   \
             placement: {{trust: {trust}}}}}\n"
        )
    };
    let manifest = plant.write(
        "app/app.yaml",
        (text + &workload("gated", "attested") + &workload("plain", "none")).as_bytes(),
    );
    plant.cnova(&["apply", &manifest]);
}

fn pid_of(plant: &Plant, name: &str) -> Option<u64> {
    let all: Value = serde_json::from_str(&plant.cnova(&["get", "workloads", "-o", "json"])).unwrap();
    let found = all.as_array()?.iter().find(|w| w["workload"] == name)?;
    (found["state"] == "running").then(|| found["pid"].as_u64())?
}

fn is_alive(pid: u64) -> bool {
    PathBuf::from(format!("/proc/{pid}")).is_dir()
}

#[test]
fn a_node_of_1970_enrols_and_is_attested_and_one_of_2099_loses_nothing() {
    let maker = Maker::new();
    let (Some(_), Some(chip)) = (library(), Swtpm::start_by(&maker, Some(EkKind::P384))) else {
        return;
    };
    let mut plant = Plant::new("", &[&maker]);
    plant.let_it_compile();
    plant.start(HUB);
    let token = plant.token(&["--site", "plant-7/line-2/plc-1"]);
    plant.configure(AGENT, HUB, &Root::Tpm(chip.tcti()), Some(&token));

    // It has never known the time: what its image says is later than its clock.
    set_clock(&mut plant, AGENT, "1970-01-01 00:00:30");
    plant.start(AGENT);
    plant.wait("it is enrolled and appraised", |p| {
        p.trust_of(AGENT).as_deref() == Some("warning")
    });
    plant.cnova(&["reference", "add", "image", "--from-node", AGENT]);
    plant.wait("it is attested", |p| p.trust_of(AGENT).as_deref() == Some("affirming"));
    apply(&plant);
    plant.wait("both run", |p| {
        pid_of(p, "gated").is_some() && pid_of(p, "plain").is_some()
    });
    let pids = ["gated", "plain"].map(|name| pid_of(&plant, name).unwrap());

    // Nothing that it was given is in its time any more, so nobody is believed and nobody hears of it; but it runs on.
    plant.kill(AGENT);
    set_clock(&mut plant, AGENT, "2099-01-01 00:00:00");
    plant.start(AGENT);
    plant.wait("it says what is wrong", |p| {
        let log = p.log(AGENT);
        log.contains("expired") || log.contains("has run out")
    });
    assert!(
        is_alive(pids[1]),
        "what asks for no trust was ended{}",
        plant.log(AGENT)
    );

    // The right time again: it is as it was, and no later time was kept.
    plant.kill(AGENT);
    plant.set_environment(AGENT, []);
    let before = plant.now_ms();
    plant.start(AGENT);
    plant.wait("it is heard again", |p| p.heard_ms(AGENT).is_some_and(|at| at > before));
    plant.wait("it is attested again", |p| {
        p.trust_of(AGENT).as_deref() == Some("affirming")
    });
    plant.wait("both run again", |p| {
        pid_of(p, "gated").is_some() && pid_of(p, "plain").is_some()
    });
    assert_eq!(pid_of(&plant, "plain"), Some(pids[1]), "it was started anew");
}
