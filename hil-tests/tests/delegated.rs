//! The hub is away, with the real programs and software TPMs: the gateway finds out what its agent booted, and lets it back.

#![allow(clippy::unwrap_used)]

mod enrolment_support;

use std::fs;

use cnova_root_of_trust::testing::{Maker, Swtpm};
use cnova_root_of_trust::tpm::EkKind;
use enrolment_support::{AGENT, GATEWAY, HUB, Plant, Root, apply_sleeper};
use rustix::process::Signal;
use serde_json::Value;

fn tpm(maker: &Maker) -> Option<Swtpm> {
    Swtpm::start_by(maker, Some(EkKind::P384))
}

/// A hub that compiles and lets the gateway appraise, a gateway that takes two seconds' silence for an absence.
fn plant(maker: &Maker) -> Plant {
    let plant = Plant::new(&format!("[delegation]\ngateways = [\"{GATEWAY}\"]\n"), &[maker]);
    plant.let_it_compile();
    plant
}

fn json(plant: &Plant, arguments: &[&str]) -> Value {
    serde_json::from_str(&plant.cnova(&[arguments, &["-o", "json"]].concat())).unwrap()
}

fn is(plant: &Plant, node: &str, word: &str) -> bool {
    plant.trust_of(node).as_deref() == Some(word)
}

/// A log without the colours of a terminal.
fn plain(log: &str) -> String {
    let mut parts = log.split('\u{1b}');
    let first = parts.next().unwrap_or_default().to_owned();
    let coloured = parts.map(|p| p.split_once('m').map_or("", |(_, text)| text));
    coloured.fold(first, |all, text| all + text)
}

/// What the agent's log says of the workload last, in this start.
fn runs(plant: &Plant) -> bool {
    let log = plain(&plant.log(AGENT));
    let last = log.lines().rfind(|l| l.contains("workload=app/w"));
    last.is_some_and(|l| l.contains("state=\"running\"") || l.contains("state=running"))
}

fn has_said(plant: &Plant, status: &str) -> bool {
    plant
        .log(AGENT)
        .contains(&format!("{GATEWAY} says of this node: {status}"))
}

fn apply(plant: &Plant) {
    apply_sleeper(plant, 1, "placement: {trust: attested}");
}

#[test]
fn while_the_hub_is_away_the_gateway_finds_out_what_its_agent_booted() {
    let maker = Maker::new();
    let (Some(gateway_chip), Some(mut chip)) = (tpm(&maker), tpm(&maker)) else {
        return;
    };
    let mut plant = plant(&maker);
    plant.start(HUB);
    let token = plant.token(&["--site", "plant-7/line-2", "--name", GATEWAY]);
    plant.configure(GATEWAY, HUB, &Root::Tpm(gateway_chip.tcti()), Some(&token));
    let path = plant.at(&format!("{GATEWAY}.toml"));
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text + "[attestation]\nhub_away_seconds = 2\n").unwrap();
    plant.start(GATEWAY);
    plant.wait("the gateway is appraised", |p| is(p, GATEWAY, "warning"));
    let token = plant.token(&["--site", "plant-7/line-2/plc-1"]);
    plant.configure(AGENT, GATEWAY, &Root::Tpm(chip.tcti()), Some(&token));
    plant.start(AGENT);
    plant.wait("the agent is appraised", |p| is(p, AGENT, "warning"));
    plant.cnova(&["reference", "add", "gateway-1", "--from-node", GATEWAY]);
    plant.cnova(&["reference", "add", "plc-1-image", "--from-node", AGENT]);
    plant.wait("both are attested", |p| {
        is(p, GATEWAY, "affirming") && is(p, AGENT, "affirming")
    });
    plant.wait("the gateway knows it", |p| {
        p.log(GATEWAY).contains("the hub says of this gateway: affirming")
    });
    plant.wait("the gateway has the reference values", |p| {
        json(p, &["reference", "list"])["awaited"] == serde_json::json!([])
    });
    plant.wait("the agent knows of the delegation", |p| {
        p.log(AGENT).contains("is in force")
    });
    apply(&plant);
    plant.wait("what asks for attestation runs", runs);

    plant.stop(HUB);
    plant.wait("the gateway takes the hub's place", |p| {
        p.log(GATEWAY).contains("this gateway appraises its children")
    });
    // One event more in one register, and an agent that is started anew.
    let event = format!("7:sha256={}", "ab".repeat(32));
    assert!(chip.tool("tpm2_pcrextend").arg(event).status().unwrap().success());
    plant.stop(AGENT);
    plant.start(AGENT);
    plant.wait("the gateway finds it out", |p| has_said(p, "contraindicated"));
    plant.wait("what asks for attestation has ended", |p| {
        p.log(AGENT).contains("not to be what it should be by line-gw")
    });

    // A boot as it should be.
    plant.kill(AGENT);
    chip.reboot();
    fs::remove_file(plant.at(&format!("state/{AGENT}/launch.log"))).unwrap();
    plant.start(AGENT);
    plant.wait("the gateway lets it back", |p| has_said(p, "affirming"));
    plant.wait("what asks for attestation runs again", runs);

    plant.signal(GATEWAY, Signal::USR1);
    plant.wait("the gateway says how its child stands", |p| {
        let log = plain(&p.log(GATEWAY));
        let mut said = log.lines().filter(|l| l.contains("a child's standing"));
        said.any(|l| l.contains("plc-1") && l.contains("affirming") && l.contains("line-gw"))
    });

    plant.start(HUB);
    plant.wait("the hub shows who judged meanwhile", |p| {
        let shown = json(p, &["attest", "show", AGENT]);
        let by_gateway = &shown["by_gateway"];
        by_gateway["gateway"] == GATEWAY && by_gateway["status"] == "affirming"
    });
    plant.wait("the hub judges itself again", |p| {
        let shown = json(p, &["attest", "show", AGENT]);
        shown["standing"] == "affirming" && shown["judged_s"].as_u64() > shown["by_gateway"]["judged_s"].as_u64()
    });
    let text = plant.cnova(&["attest", "show", AGENT]);
    assert!(text.contains("By gateway: line-gw"), "{text}");
}
