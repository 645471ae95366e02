//! Two gateways, one above the other, with the real programs and a software TPM: the lower one listens to the upper one
//! only while that is what it should be.

#![allow(clippy::unwrap_used)]

mod enrolment_support;

use std::fs;

use cnova_root_of_trust::testing::{Maker, Swtpm};
use cnova_root_of_trust::tpm::EkKind;
use enrolment_support::{AGENT, GATEWAY, HUB, PLANT_GATEWAY, Plant, Root, apply_sleeper};

fn is(plant: &Plant, node: &str, word: &str) -> bool {
    plant.trust_of(node).as_deref() == Some(word)
}

fn apply(plant: &Plant, n: u32) {
    apply_sleeper(plant, n, "grants: {clocks: true}");
}

/// The generation in force at the agent and its workload's state, as the agent itself says.
fn runs(plant: &Plant, generation: u64) -> bool {
    let Some(status) = plant.agent_status(AGENT) else {
        return false;
    };
    let workloads = status["workloads"].as_array();
    status["generation"] == generation
        && workloads.is_some_and(|w| w.iter().any(|w| w["id"] == "app/w" && w["state"] == "running"))
}

fn generation(plant: &Plant) -> Option<u64> {
    plant.agent_status(AGENT)?["generation"].as_u64()
}

/// A plant's gateway with a TPM, a line's below it that asks for an attested parent, and an agent.
fn plant(maker: &Maker, chip: &Swtpm) -> Plant {
    let mut plant = Plant::new("allow_soft = true\n", &[maker]);
    plant.let_it_compile();
    plant.start(HUB);
    let token = plant.token(&["--site", "plant-7", "--name", PLANT_GATEWAY]);
    plant.configure(PLANT_GATEWAY, HUB, &Root::Tpm(chip.tcti()), Some(&token));
    plant.start(PLANT_GATEWAY);
    plant.wait("the plant's gateway is appraised", |p| is(p, PLANT_GATEWAY, "warning"));
    let token = plant.token(&["--site", "plant-7/line-2", "--name", GATEWAY]);
    plant.configure(GATEWAY, PLANT_GATEWAY, &Root::Soft, Some(&token));
    let path = plant.at(&format!("{GATEWAY}.toml"));
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text + "[attestation]\nparent = \"attested\"\n").unwrap();
    plant.start(GATEWAY);
    plant
}

#[test]
fn a_gateway_listens_to_its_parent_only_while_that_is_what_it_should_be() {
    let maker = Maker::new();
    let Some(mut chip) = Swtpm::start_by(&maker, Some(EkKind::P384)) else {
        return;
    };
    let mut plant = plant(&maker, &chip);
    plant.wait("nothing vouches for the parent yet", |p| {
        p.log(GATEWAY).contains("only an attested parent is listened to here")
    });
    // What is for the hub and from it comes through all the same: the agent gets its certificate.
    let token = plant.token(&["--site", "plant-7/line-2/plc-1"]);
    plant.configure(AGENT, GATEWAY, &Root::Soft, Some(&token));
    plant.start(AGENT);
    plant.wait("the agent has its certificate", |p| p.certificate(AGENT).is_some());
    plant.cnova(&["reference", "add", "plant-gateway", "--from-node", PLANT_GATEWAY]);
    plant.wait("the line's gateway is shown what its parent is", |p| {
        p.log(GATEWAY).contains("the hub says of the parent: affirming")
    });
    plant.wait("the agent is known", |p| p.trust_of(AGENT).is_some());
    apply(&plant, 1);
    plant.wait("the workload runs", |p| runs(p, 1));

    // One event more in one register.
    let event = format!("7:sha256={}", "ab".repeat(32));
    assert!(chip.tool("tpm2_pcrextend").arg(event).status().unwrap().success());
    plant.cnova(&["attest", "now", PLANT_GATEWAY]);
    plant.wait("the line's gateway hears of it", |p| {
        p.log(GATEWAY).contains("the hub says of the parent: contraindicated")
    });
    apply(&plant, 2);
    plant.wait("it takes nothing from there any more", |p| {
        p.log(GATEWAY).contains("twin from the parent was not taken")
    });
    assert!(runs(&plant, 1), "what ran runs on");

    // A boot as it should be.
    plant.kill(PLANT_GATEWAY);
    chip.reboot();
    plant.start(PLANT_GATEWAY);
    plant.wait("the parent is good again", |p| is(p, PLANT_GATEWAY, "affirming"));
    plant.wait("what waited has come", |p| generation(p) == Some(2));
    plant.wait("and runs", |p| runs(p, 2));
}
