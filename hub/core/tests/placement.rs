//! Placement: who gets a workload, what is said to the others, and what holds whatever the fleet looks like.

use std::collections::{BTreeMap, BTreeSet};

use cnova_hub_core::cndl;
use cnova_hub_core::placement::{
    Constraint, CurrentPlacement, LabelsAndResources, NodeResources, NodeRole, NodeTrust, NodeView, Placement, Placer,
    RuntimeView,
};
use cnova_hub_core::policy::{AdmissionContext, AdmittedManifest, PolicySet};
use cnova_shared::wire::v1::TrustRequirement;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn admitted(workloads: &[String]) -> AdmittedManifest {
    let digest = "0123456789abcdef".repeat(4);
    let list: String = workloads
        .iter()
        .map(|w| format!("  - {{runtime: wasm, artifact: {{digest: \"sha256:{digest}\"}}, {w}}}\n"))
        .collect();
    let text = format!("apiVersion: cnova/v1\nkind: Application\nmetadata: {{name: app}}\nworkloads:\n{list}");
    let manifest = cndl::parse(&text, "m.yaml").unwrap_or_else(|e| panic!("{e}\n{text}"));
    let context = AdmissionContext {
        user: "ann".into(),
        now_unix_s: 0,
    };
    let admitted = PolicySet::builtin().map(|policies| policies.admit(manifest, &context));
    admitted
        .expect("the built-in policy compiles")
        .unwrap_or_else(|e| panic!("{e}"))
}

fn one(rule: &str, memory_mib: u64) -> AdmittedManifest {
    admitted(&[format!(
        "name: w, resources: {{memory: {memory_mib}MiB}}, placement: {{{rule}}}"
    )])
}

fn node(id: &str, memory_mib: u64) -> NodeView {
    NodeView {
        id: id.into(),
        site: format!("plant-7/line-2/{id}"),
        labels: BTreeMap::from([("role".into(), "plc".into())]),
        runtimes: vec![RuntimeView {
            name: "wasm".into(),
            targets: vec!["aarch64-unknown-linux-gnu".into()],
        }],
        capacity: Some(NodeResources {
            memory_bytes: memory_mib * MIB,
            cpu_millis: 1_000,
        }),
        used: NodeResources::default(),
        accelerators: Vec::new(),
        promised: Vec::new(),
        devices: Vec::new(),
        seen: true,
        revoked: false,
        trust: NodeTrust::default(),
        role: NodeRole::Agent,
    }
}

fn place(app: &AdmittedManifest, nodes: &[NodeView]) -> Placement {
    LabelsAndResources.place(app, nodes, &CurrentPlacement::default())
}

fn chosen(placement: &Placement, workload: &str) -> Vec<String> {
    placement.workloads()[workload].nodes.iter().cloned().collect()
}

fn running(nodes: &[&str]) -> CurrentPlacement {
    let nodes = nodes.iter().map(|n| (*n).to_owned()).collect();
    CurrentPlacement {
        workloads: BTreeMap::from([("w".to_owned(), nodes)]),
    }
}

#[test]
fn every_rejected_node_has_its_reason() {
    let mut nodes = vec![node("ok", 128)];
    let mut bad = |id: &str, change: fn(&mut NodeView)| {
        let mut n = node(id, 128);
        change(&mut n);
        nodes.push(n);
    };
    bad("full", |n| n.used.memory_bytes = 116 * MIB);
    bad("busy", |n| n.used.cpu_millis = 950);
    bad("label", |n| drop(n.labels.insert("role".into(), "gateway".into())));
    bad("nolabel", |n| n.labels.clear());
    bad("elsewhere", |n| n.site = "plant-7/line-1/plc-9".into());
    bad("noruntime", |n| n.runtimes[0].name = "ebpf".into());
    bad("silent", |n| n.seen = false);
    bad("gone", |n| n.revoked = true);
    bad("parent", |n| n.role = NodeRole::Gateway);
    let placement = place(
        &one("site: plant-7/line-2/**, labels: {role: plc}, replicas: 2", 64),
        &nodes,
    );
    let w = &placement.workloads()["w"];
    let reasons: BTreeMap<&str, String> = w.rejected.iter().map(|(n, r)| (n.as_str(), r.to_string())).collect();
    let expected = BTreeMap::from([
        ("busy", "cpu: asks 100m, 50m free of 1000m"),
        (
            "elsewhere",
            "site plant-7/line-1/plc-9 does not match plant-7/line-2/**",
        ),
        ("full", "memory: asks 64 MiB, 12 MiB free of 128 MiB"),
        ("gone", "certificate revoked"),
        ("label", "label role=plc missing (has role=gateway)"),
        ("nolabel", "label role=plc missing (has no role)"),
        ("noruntime", "runtime wasm not installed"),
        ("parent", "is a gateway; workloads run on agents"),
        ("silent", "node has never reported"),
    ]);
    assert_eq!(reasons, expected.into_iter().map(|(k, v)| (k, v.to_owned())).collect());
    assert_eq!(chosen(&placement, "w"), ["ok"]);
    assert_eq!(w.unplaced, 1);
    assert_eq!(
        w.summary.as_deref(),
        Some(
            "1 of 2 replicas without a node: 9 other nodes ruled out, 2 by label, 1 by revoked, 1 by role, 1 by site, 1 by never reported, 1 by runtime, 1 by memory, 1 by cpu"
        )
    );
    assert!(!placement.is_complete());
}

#[test]
fn the_most_free_memory_wins_and_then_the_smaller_id() {
    let nodes = [node("a", 100), node("c", 200), node("b", 200)];
    let placement = place(&one("", 10), &nodes);
    assert_eq!(chosen(&placement, "w"), ["b"]);
    assert_eq!(
        placement.workloads()["w"].rejected["c"].to_string(),
        "not needed: the one replica has a node"
    );
    assert!(placement.is_complete() && placement.workloads()["w"].summary.is_none());
    assert_eq!(chosen(&place(&one("replicas: 2", 10), &nodes), "w"), ["b", "c"]);
}

#[test]
fn a_node_that_did_not_say_what_it_has_comes_last() {
    let mut quiet = node("a", 0);
    quiet.capacity = None;
    assert_eq!(
        chosen(&place(&one("", 10), &[quiet.clone(), node("b", 64)]), "w"),
        ["b"]
    );
    assert_eq!(chosen(&place(&one("", 10), &[quiet]), "w"), ["a"]);
}

#[test]
fn what_runs_stays_where_it_is() {
    let nodes = [node("a", 64), node("b", 512)];
    let app = one("", 10);
    assert_eq!(
        chosen(&LabelsAndResources.place(&app, &nodes, &running(&["a"])), "w"),
        ["a"]
    );
    // Unless it no longer fits.
    let tight = one("", 65);
    assert_eq!(
        chosen(&LabelsAndResources.place(&tight, &nodes, &running(&["a"])), "w"),
        ["b"]
    );
    // One more replica moves none; one less keeps the better; a node that is gone is replaced.
    let two = one("replicas: 2", 10);
    assert_eq!(
        chosen(&LabelsAndResources.place(&two, &nodes, &running(&["a"])), "w"),
        ["a", "b"]
    );
    assert_eq!(
        chosen(&LabelsAndResources.place(&app, &nodes, &running(&["a", "b"])), "w"),
        ["b"]
    );
    assert_eq!(
        chosen(&LabelsAndResources.place(&app, &nodes, &running(&["lost"])), "w"),
        ["b"]
    );
}

#[test]
fn each_goes_everywhere_and_counts_only_what_it_selects() {
    let mut nodes = vec![node("a", 64), node("b", 64), node("c", 4), node("d", 64)];
    nodes[3].site = "plant-8/line-1/d".into();
    let placement = place(&one("site: \"plant-7/**\", replicas: each", 10), &nodes);
    let w = &placement.workloads()["w"];
    assert_eq!(chosen(&placement, "w"), ["a", "b"]);
    assert_eq!(w.unplaced, 1);
    let summary = "1 selected nodes cannot take it: 2 other nodes ruled out, 1 by site, 1 by memory";
    assert_eq!(w.summary.as_deref(), Some(summary));

    let nowhere = place(&one("site: plant-9, replicas: each", 10), &nodes);
    let w = &nowhere.workloads()["w"];
    assert_eq!((w.nodes.len(), w.unplaced), (0, 0));
    assert_eq!(
        w.summary.as_deref(),
        Some("no node is selected: 4 other nodes ruled out, 4 by site")
    );
}

#[test]
fn workloads_of_one_application_share_a_node() {
    let app = admitted(&[
        "name: small, priority: 1, resources: {memory: 40MiB}".into(),
        "name: large, priority: 900, resources: {memory: 40MiB}".into(),
    ]);
    let placement = place(&app, &[node("a", 64)]);
    assert_eq!(placement.by_node(), BTreeMap::from([("a", vec!["large"])]));
    let reason = &placement.workloads()["small"].rejected["a"];
    assert_eq!(reason.constraint(), Constraint::Memory);
    assert_eq!(reason.to_string(), "memory: asks 40 MiB, 24 MiB free of 64 MiB");
    assert_eq!(placement.workloads()["small"].unplaced, 1);
}

#[test]
fn no_nodes_at_all() {
    let placement = place(&one("replicas: 3", 10), &[]);
    let w = &placement.workloads()["w"];
    assert_eq!(w.unplaced, 3);
    assert_eq!(
        w.summary.as_deref(),
        Some("3 of 3 replicas without a node: there are no other nodes")
    );
}

fn any_node(id: usize) -> impl Strategy<Value = NodeView> {
    let capacity = proptest::option::weighted(0.9, (0_u64..512, 0_u32..4_000));
    let used = (0_u64..256, 0_u32..2_000);
    let flags = (
        prop::bool::weighted(0.9),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
    );
    (0..3_u8, 0..3_u8, any::<bool>(), capacity, used, flags).prop_map(
        move |(line, role, wasm, capacity, used, (seen, revoked, gateway))| NodeView {
            id: format!("n{id}"),
            site: format!("plant/line-{line}/n{id}"),
            labels: BTreeMap::from([("role".into(), format!("r{role}"))]),
            runtimes: vec![RuntimeView {
                name: if wasm { "wasm" } else { "ebpf" }.into(),
                targets: Vec::new(),
            }],
            capacity: capacity.map(|(m, c)| NodeResources {
                memory_bytes: m * MIB,
                cpu_millis: c,
            }),
            used: NodeResources {
                memory_bytes: used.0 * MIB,
                cpu_millis: used.1,
            },
            accelerators: Vec::new(),
            promised: Vec::new(),
            devices: Vec::new(),
            seen,
            revoked,
            trust: NodeTrust::default(),
            role: if gateway { NodeRole::Gateway } else { NodeRole::Agent },
        },
    )
}

fn any_fleet() -> impl Strategy<Value = Vec<NodeView>> {
    (0_usize..12).prop_flat_map(|n| (0..n).map(any_node).collect::<Vec<_>>())
}

fn any_workload() -> impl Strategy<Value = String> {
    let site = prop::sample::select(vec!["**", "plant/line-1/**", "plant/*/n3", "elsewhere"]);
    let role = prop::sample::select(vec!["{}", "{role: r1}"]);
    let replicas = prop::sample::select(vec!["1", "2", "5", "each"]);
    (1_u64..200, 1_u32..1_500, 0_u16..5, site, role, replicas).prop_map(
        |(memory, cpu, priority, site, labels, replicas)| {
            format!(
                "resources: {{memory: {memory}MiB, cpu: {cpu}m}}, priority: {priority}, placement: {{site: \"{site}\", labels: {labels}, replicas: {replicas}}}"
            )
        },
    )
}

fn any_application() -> impl Strategy<Value = AdmittedManifest> {
    prop::collection::vec(any_workload(), 1..5).prop_map(|workloads| {
        let named: Vec<String> = workloads
            .iter()
            .enumerate()
            .map(|(i, w)| format!("name: w{i}, {w}"))
            .collect();
        admitted(&named)
    })
}

fn any_current() -> impl Strategy<Value = CurrentPlacement> {
    let nodes = prop::collection::btree_set((0..14_u8).prop_map(|n| format!("n{n}")), 0..6);
    prop::collection::btree_map((0..5_u8).prop_map(|w| format!("w{w}")), nodes, 0..5)
        .prop_map(|workloads| CurrentPlacement { workloads })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn capacity_is_never_exceeded(app in any_application(), fleet in any_fleet(), current in any_current()) {
        let placement = LabelsAndResources.place(&app, &fleet, &current);
        for (id, workloads) in placement.by_node() {
            let node = fleet.iter().find(|n| n.id == id).unwrap();
            prop_assert!(node.seen && !node.revoked && node.role == NodeRole::Agent);
            let asked = workloads.iter().map(|w| app.application().workload(w).unwrap().resources);
            let (memory, cpu) = asked.fold((0, 0), |(m, c), r| (m + r.memory_bytes.unwrap(), c + r.cpu_millis));
            if let Some(capacity) = node.capacity {
                prop_assert!(node.used.memory_bytes + memory <= capacity.memory_bytes);
                prop_assert!(node.used.cpu_millis + cpu <= capacity.cpu_millis);
            }
        }
    }

    #[test]
    fn every_node_is_chosen_or_has_a_reason(app in any_application(), fleet in any_fleet(), current in any_current()) {
        let placement = LabelsAndResources.place(&app, &fleet, &current);
        let all: BTreeSet<String> = fleet.iter().map(|n| n.id.clone()).collect();
        prop_assert_eq!(placement.workloads().len(), app.application().workloads.len());
        for (name, w) in placement.workloads() {
            let rejected: BTreeSet<String> = w.rejected.keys().cloned().collect();
            prop_assert!(w.nodes.is_disjoint(&rejected));
            prop_assert_eq!(&w.nodes | &rejected, all.clone());
            prop_assert_eq!(w.summary.is_some(), w.unplaced > 0 || w.nodes.is_empty());
            if let cndl::Replicas::Count(n) = app.application().workload(name).unwrap().placement.replicas {
                prop_assert_eq!(w.nodes.len() + w.unplaced as usize, n as usize);
                let spare = w.rejected.values().any(|r| r.constraint() == Constraint::NotNeeded);
                prop_assert!(!(spare && w.unplaced > 0), "a node was left over while a replica had none");
            }
        }
    }

    #[test]
    fn the_order_of_the_nodes_does_not_matter(
        app in any_application(), fleet in any_fleet(), current in any_current(), seed in any::<usize>(),
    ) {
        let placement = LabelsAndResources.place(&app, &fleet, &current);
        let mut shuffled = fleet.clone();
        shuffled.rotate_left(seed.checked_rem(fleet.len()).unwrap_or(0));
        shuffled.reverse();
        prop_assert_eq!(&LabelsAndResources.place(&app, &shuffled, &current), &placement);
        prop_assert_eq!(&LabelsAndResources.place(&app, &fleet, &current), &placement);
    }

    #[test]
    fn placing_again_moves_nothing(app in any_application(), fleet in any_fleet(), current in any_current()) {
        let first = LabelsAndResources.place(&app, &fleet, &current);
        let again = LabelsAndResources.place(&app, &fleet, &first.to_current());
        prop_assert_eq!(again.to_current(), first.to_current());
    }

    #[test]
    fn new_nodes_move_nothing(app in any_application(), fleet in any_fleet(), extra in any_node(99)) {
        let first = place(&app, &fleet);
        let mut larger = fleet.clone();
        larger.push(extra);
        let again = LabelsAndResources.place(&app, &larger, &first.to_current());
        for (name, w) in first.workloads() {
            prop_assert!(w.nodes.is_subset(&again.workloads()[name].nodes));
        }
    }
}

#[test]
fn accelerators_and_devices_bind_placement() {
    let accelerator = |class: &str, kind: &str| cnova_shared::wire::v1::Accelerator {
        id: format!("{kind}-0"),
        class: class.into(),
        kind: kind.into(),
    };
    let mut with = node("with", 64);
    with.accelerators = vec![accelerator("npu", "hailo-8")];
    with.devices = vec!["serial-1".into()];
    let mut other = node("other", 64);
    other.accelerators = vec![accelerator("gpu", "mali")];
    let nodes = [with.clone(), other.clone(), node("bare", 64)];
    let of = |more: &str| admitted(&[format!("{more}, resources: {{memory: 1MiB}}")]);
    let claim = of("name: w, accelerators: [npu, {kind: gpu, optional: true}], devices: [serial-1]");
    let placed = LabelsAndResources.place(&claim, &nodes, &CurrentPlacement::default());
    let w = &placed.workloads()["w"];
    assert_eq!(w.nodes, BTreeSet::from(["with".to_owned()]));
    assert_eq!(
        w.rejected["bare"].to_string(),
        "device serial-1 is not offered (offers none); add it to the agent's configuration"
    );
    let by_kind = of("name: w, accelerators: [hailo-8]");
    let rejected = |nodes: &[NodeView], app: &AdmittedManifest| {
        let placed = LabelsAndResources.place(app, nodes, &CurrentPlacement::default());
        placed.workloads()["w"]
            .rejected
            .iter()
            .map(|(n, r)| format!("{n}: {r}"))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        rejected(&nodes, &by_kind),
        [
            "bare: no accelerator hailo-8 (has none)",
            "other: no accelerator hailo-8 (has mali (gpu))"
        ]
    );
    // It serves one workload, be it of another application or of the same.
    with.promised = vec!["npu".into()];
    assert_eq!(
        rejected(&[with.clone()], &by_kind),
        ["with: accelerator hailo-8 is promised to other workloads (has hailo-8 (npu))"]
    );
    with.promised = Vec::new();
    let claims = ["v", "w"].map(|n| format!("name: {n}, accelerators: [npu], resources: {{memory: 1MiB}}"));
    let two = admitted(&claims);
    let placed = LabelsAndResources.place(&two, &[with], &CurrentPlacement::default());
    assert_eq!(placed.workloads()["v"].nodes.len(), 1);
    assert_eq!(placed.workloads()["w"].unplaced, 1);
}

#[test]
fn a_workload_that_asks_for_trust_goes_only_where_it_is_met_and_leaves_when_it_is_not() {
    let trusted = |id: &str, meets: TrustRequirement, why: &str| NodeView {
        trust: NodeTrust {
            meets,
            keeps: meets,
            why: why.into(),
        },
        ..node(id, 512)
    };
    let soft = trusted("a-soft", TrustRequirement::None, "its key lies in a file");
    let pending = trusted("b-pending", TrustRequirement::Tpm, "it has not been appraised yet");
    let attested = trusted("c-attested", TrustRequirement::Attested, "");
    let fleet = [soft.clone(), pending.clone(), attested];

    let placement = place(&one("replicas: each, trust: attested", 16), &fleet);
    let of = |p: &Placement, node: &str| p.workloads()["w"].rejected[node].to_string();
    assert_eq!(chosen(&placement, "w"), ["c-attested"]);
    assert_eq!(
        of(&placement, "a-soft"),
        "trust: it must be attested, and its key lies in a file"
    );
    assert_eq!(
        of(&placement, "b-pending"),
        "trust: it must be attested, and it has not been appraised yet"
    );
    let placement = place(&one("replicas: each, trust: tpm", 16), &fleet);
    assert_eq!(chosen(&placement, "w"), ["b-pending", "c-attested"]);
    assert_eq!(
        of(&placement, "a-soft"),
        "trust: its key must lie in a TPM, and its key lies in a file"
    );
    let placement = place(&one("replicas: each", 16), &fleet);
    assert_eq!(chosen(&placement, "w").len(), 3, "who asks for nothing goes everywhere");

    let was = place(&one("replicas: each, trust: attested", 16), &fleet).to_current();
    let lost = trusted("c-attested", TrustRequirement::Tpm, "PCR 7 differs");
    let after = LabelsAndResources.place(
        &one("replicas: each, trust: attested", 16),
        &[soft, pending, lost],
        &was,
    );
    assert!(after.workloads()["w"].nodes.is_empty(), "evicted");
    let stale = NodeView {
        trust: NodeTrust {
            meets: TrustRequirement::Tpm,
            keeps: TrustRequirement::Attested,
            why: "it has not attested for long".into(),
        },
        ..node("c-attested", 512)
    };
    let app = one("replicas: each, trust: attested", 16);
    let kept = LabelsAndResources.place(&app, std::slice::from_ref(&stale), &was);
    assert_eq!(chosen(&kept, "w"), ["c-attested"], "what runs on a stale node runs on");
    assert!(
        place(&app, &[stale]).workloads()["w"].nodes.is_empty(),
        "nothing new goes there"
    );
    assert_eq!(
        of(&after, "c-attested"),
        "trust: it must be attested, and PCR 7 differs"
    );
}
