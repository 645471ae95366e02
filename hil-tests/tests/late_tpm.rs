//! A TPM that is dead, hangs or is another machine's when the node's programs start, with the real programs and swtpm.

#![allow(clippy::unwrap_used)]

mod enrolment_support;

use std::fs;

use cnova_root_of_trust::testing::{Maker, Swtpm};
use cnova_root_of_trust::tpm::EkKind;
use enrolment_support::{AGENT, GATEWAY, HUB, Plant, Root, apply_plain_and_gated};
use serde_json::Value;

const SITE: &str = "plant-7/line-2";

fn plant(maker: &Maker) -> Plant {
    let plant = Plant::new("", &[maker]);
    plant.let_it_compile();
    let path = plant.at("hub-1.toml");
    let text = fs::read_to_string(&path).unwrap();
    let key = plant.at("trust/boot-policy.key");
    let text = text.replace("[signing]\n", &format!("[signing]\nboot_policy = [\"{key}\"]\n"));
    fs::write(&path, text).unwrap();
    plant
}

fn status(plant: &Plant) -> Value {
    plant.agent_status(AGENT).unwrap_or_default()
}

fn local(plant: &Plant, id: &str) -> Value {
    let workloads = status(plant)["workloads"].clone();
    let found = workloads
        .as_array()
        .and_then(|all| all.iter().find(|w| w["id"] == id).cloned());
    found.unwrap_or_default()
}

fn runs(plant: &Plant, id: &str) -> bool {
    local(plant, id)["state"] == "running"
}

fn reason(plant: &Plant, id: &str) -> String {
    local(plant, id)["reason"].as_str().unwrap_or_default().to_owned()
}

fn alarms(plant: &Plant) -> String {
    status(plant)["alarms"].to_string()
}

/// As the machine does when it loses its power: nothing runs, the registers are gone and with them the log of that boot.
fn lose_power(plant: &mut Plant, chip: &mut Swtpm) {
    plant.kill(AGENT);
    plant.end_workloads();
    chip.kill();
    fs::remove_file(plant.at(&format!("state/{AGENT}/launch.log"))).unwrap();
}

fn waiting_bytes(plant: &Plant) -> u64 {
    let path = plant.at(&format!("state/{AGENT}/launch.waiting"));
    fs::metadata(path).map_or(0, |m| m.len())
}

#[test]
fn an_agent_starts_without_its_tpm_and_goes_on_when_it_answers() {
    let maker = Maker::new();
    let chips = (
        Swtpm::start_by(&maker, Some(EkKind::P384)),
        Swtpm::start_by(&maker, Some(EkKind::P384)),
    );
    let (Some(mut chip), Some(other)) = chips else {
        return;
    };
    let mut plant = plant(&maker);
    plant.start(HUB);
    plant.issue(GATEWAY, SITE);
    plant.configure_certified(GATEWAY, HUB);
    plant.start(GATEWAY);
    let token = plant.token(&["--site", &format!("{SITE}/plc-1")]);
    plant.configure(AGENT, GATEWAY, &Root::Tpm(chip.tcti()), Some(&token));
    plant.start(AGENT);
    plant.wait("the agent is appraised", |p| {
        p.trust_of(AGENT).as_deref() == Some("warning")
    });
    plant.cnova(&["reference", "add", "plc-1-image", "--from-node", AGENT]);
    plant.wait("it is attested", |p| p.trust_of(AGENT).as_deref() == Some("affirming"));
    apply_plain_and_gated(&plant);
    plant.wait("both run", |p| runs(p, "app/plain") && runs(p, "app/gated"));

    // The machine is started, and its TPM is dead.
    lose_power(&mut plant, &mut chip);
    plant.start(AGENT);
    plant.wait("what asks for nothing is started", |p| runs(p, "app/plain"));
    plant.wait("the rest says why it waits", |p| {
        local(p, "app/gated")["state"] == "waiting" && reason(p, "app/gated").contains("the TPM did not answer")
    });
    assert_eq!(status(&plant)["own_boot"], "unknown");
    let said = alarms(&plant);
    assert!(said.contains("tpm: the TPM does not answer"), "{said}");
    plant.wait("the link says why it is not there", |p| {
        p.log(AGENT).contains("not connected") && p.log(AGENT).contains("did not sign: the TPM did not answer")
    });
    assert_eq!(status(&plant)["connected"], false);
    // The launch was written down first; a crash loses nothing of it.
    let waiting = waiting_bytes(&plant);
    assert!(waiting > 0);
    plant.kill(AGENT);
    plant.start(AGENT);
    plant.wait("it runs on", |p| runs(p, "app/plain"));
    assert!(waiting_bytes(&plant) >= waiting);

    // The TPM answers. Nobody starts anything anew.
    chip.restart();
    plant.wait("its boot is approved", |p| status(p)["own_boot"] == "approved");
    plant.wait("what asks for trust runs", |p| runs(p, "app/gated"));
    plant.wait("the alarms are over", |p| alarms(p) == "[]");
    // And it proves what it launched meanwhile.
    plant.wait("the hub has seen the log of this boot", |p| {
        p.cnova(&["attest", "now", AGENT]);
        let shown = p.cnova(&["attest", "show", AGENT]);
        shown.contains("app/plain") && shown.contains("app/gated") && shown.contains("affirming")
    });
    assert_eq!(waiting_bytes(&plant), 0);

    // The disk is in another machine, whose TPM takes its time.
    lose_power(&mut plant, &mut chip);
    let path = plant.at(&format!("{AGENT}.toml"));
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(&chip.tcti(), &other.tcti())).unwrap();
    other.stop_answering();
    plant.start(AGENT);
    plant.wait("what asks for nothing is started", |p| runs(p, "app/plain"));
    other.resume();
    plant.wait("it is refused", |p| {
        alarms(p).contains("the TPM that answers is not this node's")
    });
    assert!(!runs(&plant, "app/gated") && status(&plant)["connected"] == false);
    // One that answers at once is refused at once.
    plant.kill(AGENT);
    plant.start(AGENT);
    plant.wait("it does not start", |p| {
        p.log(AGENT).contains("the device key in the TPM is not the key of")
    });
}

#[test]
fn a_gateway_starts_without_its_tpm_and_goes_on_when_it_answers() {
    let maker = Maker::new();
    let Some(mut chip) = Swtpm::start_by(&maker, Some(EkKind::P384)) else {
        return;
    };
    let mut plant = Plant::new("", &[&maker]);
    plant.start(HUB);
    let token = plant.token(&["--site", &format!("plant-7/{GATEWAY}")]);
    plant.configure(GATEWAY, HUB, &Root::Tpm(chip.tcti()), Some(&token));
    // Not enrolled, and its TPM is dead: it waits and says so.
    chip.kill();
    plant.start(GATEWAY);
    plant.wait("it says why it waits", |p| {
        p.log(GATEWAY).contains("cannot enrol before its TPM answers")
    });
    chip.restart();
    plant.wait("it enrols", |p| p.certificate(GATEWAY).is_some());
    plant.wait("the hub hears it", |p| p.heard_ms(GATEWAY).is_some());

    plant.kill(GATEWAY);
    chip.kill();
    plant.start(GATEWAY);
    plant.wait("it says why it has no parent", |p| {
        p.log(GATEWAY).contains("not connected") && p.log(GATEWAY).contains("the TPM did not answer")
    });
    let before = plant.now_ms();
    chip.restart();
    plant.wait("the hub hears it again", |p| {
        p.heard_ms(GATEWAY).is_some_and(|ms| ms > before)
    });
}
