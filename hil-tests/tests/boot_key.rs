//! Another boot-policy key for a whole plant, with the real programs and a software TPM: while it runs, and for a node that
//! was off.

#![allow(clippy::unwrap_used)]

mod enrolment_support;

use std::fs;

use cnova_root_of_trust::testing::{Maker, Swtpm};
use cnova_root_of_trust::tpm::EkKind;
use cnova_shared::keys::{Signer, SoftKey};
use enrolment_support::{AGENT, GATEWAY, HUB, Plant, Root};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;

/// Has the hub approve boots with these keys from its next start on.
fn approve_with(plant: &Plant, keys: &[&str]) {
    let path = plant.at("hub-1.toml");
    let text = fs::read_to_string(&path).unwrap();
    let lines = text.lines().filter(|l| !l.starts_with("boot_policy ="));
    let keys: Vec<String> = keys
        .iter()
        .map(|k| format!("\"{}\"", plant.at(&format!("trust/{k}"))))
        .collect();
    let mut next = String::new();
    for line in lines {
        next.push_str(line);
        next.push('\n');
        if line == "[signing]" {
            next.push_str(&format!("boot_policy = [{}]\n", keys.join(", ")));
        }
    }
    fs::write(&path, next).unwrap();
}

/// The ids of the keys that approve boots, oldest first.
fn boot_keys(plant: &Plant) -> Vec<String> {
    let shown = plant.cnova(&["trust", "show", &plant.at("trust/trust-bundle.cose"), "-o", "json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let keys = shown["keys"].as_array().unwrap().iter();
    let keys = keys.filter(|k| k.to_string().contains("boot-policy"));
    keys.map(|k| k["id"].as_str().unwrap().to_owned()).collect()
}

fn restart_hub_with(plant: &mut Plant, keys: &[&str]) {
    approve_with(plant, keys);
    plant.stop(HUB);
    plant.start(HUB);
    let bundle = plant.at("trust/trust-bundle.cose");
    plant.cnova(&["trust", "push", &bundle]);
}

fn status(plant: &Plant) -> Value {
    plant.agent_status(AGENT).unwrap_or_default()
}

fn sealed(plant: &Plant) -> Vec<u8> {
    fs::read(plant.at(&format!("state/{AGENT}/ledger.key"))).unwrap_or_default()
}

/// Whether the node's ledger key is sealed for the boot-policy key in this file: its approver stands beside it.
fn is_sealed_for(plant: &Plant, key: &str) -> bool {
    let pem = fs::read(plant.at(&format!("trust/{key}"))).unwrap();
    let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).unwrap();
    let key = SoftKey::from_pkcs8(der.secret_pkcs8_der()).unwrap();
    let public = &key.public_key().bytes;
    sealed(plant).windows(public.len()).any(|w| w == public.as_slice())
}

fn is_approved(plant: &Plant) -> bool {
    let status = status(plant);
    status["own_boot"] == "approved" && !status["alarms"].to_string().contains("ledger-key")
}

#[test]
fn another_boot_policy_key_reaches_a_plant_and_a_node_that_was_off() {
    let maker = Maker::new();
    let Some(chip) = Swtpm::start_by(&maker, Some(EkKind::P384)) else {
        return;
    };
    let mut plant = Plant::new("", &[&maker]);
    approve_with(&plant, &["boot-policy.key"]);
    plant.start(HUB);
    plant.issue(GATEWAY, "plant-7/line-2");
    plant.configure_certified(GATEWAY, HUB);
    plant.start(GATEWAY);
    let token = plant.token(&["--site", "plant-7/line-2/plc-1"]);
    plant.configure(AGENT, GATEWAY, &Root::Tpm(chip.tcti()), Some(&token));
    // What it was flashed with stays what it was.
    let (config, trust) = (plant.at(&format!("{AGENT}.toml")), plant.at("trust/trust-bundle.cose"));
    let flashed = plant.write("flashed.cose", &fs::read(&trust).unwrap());
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace(&trust, &flashed)).unwrap();
    plant.start(AGENT);
    plant.wait("the agent is appraised", |p| {
        p.trust_of(AGENT).as_deref() == Some("warning")
    });
    plant.cnova(&["reference", "add", "plc-1-image", "--from-node", AGENT]);
    plant.wait("its key is sealed for this boot", |p| {
        is_approved(p) && is_sealed_for(p, "boot-policy.key")
    });

    // The next key, while all of it runs: the old one approves on.
    let folder = plant.at("trust");
    plant.cnova(&["trust", "boot-policy-key", &folder, "--overlap-days", "90"]);
    assert_eq!(boot_keys(&plant).len(), 2);
    restart_hub_with(&mut plant, &["boot-policy.v2.key", "boot-policy.key"]);
    plant.wait("it seals for the next one while it runs", |p| {
        is_approved(p) && is_sealed_for(p, "boot-policy.key")
    });

    // The first one is stolen, and taken out while the node is off.
    plant.kill(AGENT);
    let stolen = boot_keys(&plant)[0].clone();
    plant.cnova(&["trust", "revoke", &folder, "--key", &stolen]);
    assert!(!boot_keys(&plant).contains(&stolen));
    restart_hub_with(&mut plant, &["boot-policy.key"]);
    plant.wait("the gateway has it", |p| {
        p.log(GATEWAY).contains("trust bundle version 3")
    });
    plant.start(AGENT);
    plant.wait("it seals for the newest key", |p| {
        is_approved(p) && is_sealed_for(p, "boot-policy.key")
    });
    plant.wait("it is attested", |p| p.trust_of(AGENT).as_deref() == Some("affirming"));
    let by_newest = sealed(&plant);

    // Nobody is above: what it has is enough, and nothing was lost on the way.
    plant.stop(HUB);
    plant.kill(GATEWAY);
    plant.kill(AGENT);
    plant.start(AGENT);
    plant.wait("it opens", is_approved);
    assert_eq!(sealed(&plant), by_newest);
    assert!(!plant.log(AGENT).contains("is lost"), "{}", plant.log(AGENT));
}
