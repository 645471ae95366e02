//! Keys that are replaced while a node is off, and nodes that are revoked, with real processes driven through `cnova`.

#![allow(clippy::unwrap_used, dead_code)]

mod support;

use serde_json::Value;
use support::{AGENT, GATEWAY, HUB, Line, Shape};

/// The ids of the hub's keys in the newest bundle, oldest first.
fn keys(line: &Line) -> Vec<String> {
    let file = line.path("trust/trust-bundle.cose").display().to_string();
    let shown: Value = serde_json::from_str(&line.cnova(&["trust", "show", &file, "-o", "json"])).unwrap();
    let keys = shown["keys"].as_array().unwrap().iter();
    keys.map(|k| k["id"].as_str().unwrap().to_owned()).collect()
}

fn push(line: &Line) {
    let file = line.path("trust/trust-bundle.cose").display().to_string();
    line.cnova(&["trust", "push", &file]);
}

fn trusts(line: &Line, node: &str, version: u64) -> bool {
    line.node(node)["trust_version"] == version
}

#[test]
fn an_agent_that_missed_two_rotations_comes_back_without_the_hub() {
    let mut line = Line::new(Shape::Embedded);
    line.start_all();
    line.apply(1);
    let first = line.pid();
    let trust = line.path("trust").display().to_string();

    // The agent is off; the key is rotated, and then the old one is stolen.
    line.kill(AGENT);
    let stolen = keys(&line)[0].clone();
    line.cnova(&["trust", "rotate", &trust]);
    push(&line);
    line.cnova(&["trust", "revoke", &trust, "--key", &stolen]);
    push(&line);
    assert!(!keys(&line).contains(&stolen));
    line.wait("the gateway holds the newest bundle", |l| trusts(l, GATEWAY, 3));
    let second = line.version(2);
    line.cnova(&["apply", &second]);
    line.wait("the gateway holds the twin", |l| {
        l.log(GATEWAY).contains("trust bundle version 3")
    });
    // A hub that starts again begins with the newest bundle and its key.
    line.kill(HUB);
    line.start(HUB);
    line.wait("the hub is back", |l| l.nodes().len() == 2);
    line.wait("the gateway is back", |l| l.node(GATEWAY)["link"] == "connected");

    // Nobody above the gateway: it alone brings both bundles, and what the new key signed.
    line.kill(HUB);
    assert_eq!(line.workload_pids(), [first], "the workload needs no agent");
    line.start(AGENT);
    line.wait("the agent trusts the newest bundle", |l| {
        l.log(AGENT).contains("trust bundle version 3 is in force")
    });
    // Its artifact is still at the hub; the twin itself is taken.
    line.wait("the twin by the new key is taken", |l| {
        l.log(AGENT).matches("stage=\"accepted\"").count() == 2
    });
    line.start(HUB);
    line.wait_for_version(2);
    line.wait("the hub knows what the agent trusts", |l| trusts(l, AGENT, 3));

    // Its ledger is enough: nobody tells it anything at its next start.
    let pid = line.pid();
    line.kill(GATEWAY);
    line.kill(AGENT);
    line.start(AGENT);
    line.wait("the workload is adopted", |l| l.log(AGENT).contains("adopted"));
    assert_eq!(line.workload_pids(), [pid]);
    line.start(GATEWAY);
    line.apply(3);
    line.delete();
}

#[test]
fn a_revoked_node_is_shut_out_by_its_gateway_also_while_the_hub_is_away() {
    let mut line = Line::new(Shape::Embedded);
    line.start_all();
    line.apply(1);
    line.cnova(&["node", "revoke", AGENT, "--reason", "opened by a stranger"]);
    line.wait("the agent is told why", |l| {
        l.log(AGENT).contains("does not take this node")
    });
    assert_eq!(line.node(AGENT)["trust"], "REVOKED");

    // From the gateway's store alone.
    line.kill(HUB);
    line.kill(GATEWAY);
    line.start(GATEWAY);
    let told = |l: &Line| l.log(AGENT).matches("does not take this node").count();
    let before = told(&line);
    line.kill(AGENT);
    line.start(AGENT);
    line.wait("the agent is refused again", |l| told(l) > before);

    line.start(HUB);
    line.wait("the hub is back", |l| l.node(GATEWAY)["link"] == "connected");
    line.cnova(&["node", "readmit", AGENT]);
    line.wait("the agent is in again", |l| l.node(AGENT)["link"] == "connected");
    line.wait_for_version(1);
    line.delete();
}
