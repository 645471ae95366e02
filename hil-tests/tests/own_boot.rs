//! A node's own boot with the real programs and a software TPM: what is sealed for it opens, or what asks for trust does not
//! run.

#![allow(clippy::unwrap_used)]

mod enrolment_support;

use std::fs;

use cnova_root_of_trust::testing::{Maker, Swtpm};
use cnova_root_of_trust::tpm::EkKind;
use enrolment_support::{AGENT, GATEWAY, HUB, Plant, Root, apply_plain_and_gated};
use serde_json::Value;

/// A hub that compiles, and approves boots.
fn plant(maker: &Maker) -> Plant {
    let plant = Plant::new("", &[maker]);
    let path = plant.at("hub-1.toml");
    let text = fs::read_to_string(&path).unwrap();
    let key = plant.at("trust/boot-policy.key");
    let text = text
        .replace("aot_worker = \"/bin/true\"\n", "")
        .replace("[signing]\n", &format!("[signing]\nboot_policy = [\"{key}\"]\n"));
    fs::write(&path, text).unwrap();
    plant
}

/// What the agent itself says, without any network.
fn status(plant: &Plant) -> Option<Value> {
    plant.agent_status(AGENT)
}

fn own_boot(plant: &Plant) -> String {
    let word = status(plant).and_then(|s| s["own_boot"].as_str().map(str::to_owned));
    word.unwrap_or_default()
}

fn local(plant: &Plant, id: &str) -> Value {
    let workloads = status(plant).map(|s| s["workloads"].clone()).unwrap_or_default();
    let found = workloads
        .as_array()
        .and_then(|all| all.iter().find(|w| w["id"] == id).cloned());
    found.unwrap_or_default()
}

fn runs(plant: &Plant, id: &str) -> bool {
    local(plant, id)["state"] == "running"
}

fn described(plant: &Plant) -> String {
    plant.cnova(&["describe", "node", AGENT])
}

#[test]
fn what_is_sealed_for_a_boot_decides_what_runs_also_without_the_hub() {
    let maker = Maker::new();
    let Some(mut chip) = Swtpm::start_by(&maker, Some(EkKind::P384)) else {
        return;
    };
    let mut plant = plant(&maker);
    plant.start(HUB);
    plant.issue(GATEWAY, "plant-7/line-2");
    plant.configure_certified(GATEWAY, HUB);
    plant.start(GATEWAY);
    let token = plant.token(&["--site", "plant-7/line-2/plc-1"]);
    plant.configure(AGENT, GATEWAY, &Root::Tpm(chip.tcti()), Some(&token));
    plant.start(AGENT);
    plant.wait("the agent is appraised", |p| {
        p.trust_of(AGENT).as_deref() == Some("warning")
    });
    assert_eq!(own_boot(&plant), "unsealed");
    let key = plant.at(&format!("state/{AGENT}/ledger.key"));
    let unsealed = fs::read(&key).unwrap();

    // Its boot is approved: it seals for it while it runs.
    let said = plant.cnova(&["reference", "add", "plc-1-image", "--from-node", AGENT]);
    assert!(said.contains("open their ledger keys"), "{said}");
    plant.wait("it is attested", |p| p.trust_of(AGENT).as_deref() == Some("affirming"));
    plant.wait("its key is sealed for this boot", |p| own_boot(p) == "approved");
    let sealed = fs::read(&key).unwrap();
    assert_ne!(sealed, unsealed);
    apply_plain_and_gated(&plant);
    plant.wait("both run", |p| runs(p, "app/plain") && runs(p, "app/gated"));

    // Started again under the same boot.
    plant.kill(AGENT);
    plant.start(AGENT);
    plant.wait("it opens", |p| own_boot(p) == "approved");
    assert_eq!(fs::read(&key).unwrap(), sealed);
    plant.wait("both run on", |p| runs(p, "app/plain") && runs(p, "app/gated"));

    // Another boot, while the hub is away: its last word was good, and the node knows better.
    plant.stop(HUB);
    plant.kill(AGENT);
    let event = format!("7:sha256={}", "ab".repeat(32));
    assert!(chip.tool("tpm2_pcrextend").arg(event).status().unwrap().success());
    plant.start(AGENT);
    plant.wait("it does not open", |p| own_boot(p) == "refused");
    plant.wait("what asks for trust ends", |p| {
        local(p, "app/gated")["state"] == "waiting"
    });
    let reason = local(&plant, "app/gated")["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("PCR 7 holds"), "{reason}");
    assert!(runs(&plant, "app/plain"), "the rest runs on");
    assert_eq!(fs::read(&key).unwrap(), sealed, "nothing is sealed anew");

    // The hub is back, and shows which register.
    plant.start(HUB);
    plant.wait("the hub shows it", |p| {
        let text = described(p);
        text.contains("own-boot") && text.contains("PCR 7 holds")
    });
    plant.wait("it is found out by quote, too", |p| {
        p.trust_of(AGENT).as_deref() == Some("CONTRAINDICATED")
    });

    // A boot as it should be.
    plant.kill(AGENT);
    chip.reboot();
    fs::remove_file(plant.at(&format!("state/{AGENT}/launch.log"))).unwrap();
    plant.start(AGENT);
    plant.wait("it opens again", |p| own_boot(p) == "approved");
    plant.wait("what asks for trust runs again", |p| runs(p, "app/gated"));
    plant.wait("the alarm is over", |p| !described(p).contains("own-boot"));

    // What sleeps for an hour ends before its test.
    plant.cnova(&["delete", "app", "--yes"]);
    plant.wait("nothing runs", |p| !runs(p, "app/plain") && !runs(p, "app/gated"));
}
