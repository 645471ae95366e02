//! Manifests for the simulated hub: real CNDL text, through the real parser and the real policy.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use cnova_hub_core::cndl;
use cnova_hub_core::policy::{AdmissionContext, AdmittedManifest, PolicySet};
use cnova_shared::ids::Digest;

/// Artifacts that the simulated hub has: digest and size.
#[must_use]
pub fn artifacts() -> BTreeMap<Digest, u64> {
    (0..4u8)
        .map(|n| (Digest::of(&[n]), 100_000 * (u64::from(n) + 1)))
        .collect()
}

/// Artifacts that the builder has signed; the last one he has not.
pub fn attested() -> impl Iterator<Item = Digest> {
    (0..3u8).map(|n| Digest::of(&[n]))
}

/// Draws an application.
pub fn draw(rng: &mut fastrand::Rng, now_s: u64, weather: bool, sickness: bool) -> AdmittedManifest {
    static POLICY: OnceLock<PolicySet> = OnceLock::new();
    let policy = POLICY.get_or_init(|| PolicySet::builtin().expect("the built-in policy compiles"));
    let app = ["alpha", "beta", "gamma"][rng.usize(0..3)];
    let mut text = format!("apiVersion: cnova/v1\nkind: Application\nmetadata: {{name: {app}}}\nworkloads:\n");
    for i in 0..rng.usize(1..=3) {
        let digest = Digest::of(&[rng.u8(0..4)]);
        let replicas = ["each", "1", "2"][rng.usize(0..3)];
        let memory = [8, 16, 64][rng.usize(0..3)];
        let tag = if sickness && rng.u32(0..4) == 0 {
            "sick".to_owned()
        } else {
            rng.u32(0..3).to_string()
        };
        let conditions = if weather { conditions(rng, i) } else { String::new() };
        text.push_str(&format!(
            "  - name: w{i}\n    runtime: wasm\n    artifact: {{digest: \"{digest}\"}}\n    \
             resources: {{memory: {memory}MiB, cpu: 100m}}\n    env: {{TAG: \"{tag}\"}}\n    \
             priority: {}\n    health: {{within: 3s}}\n    placement: {{site: \"plant-7/**\", replicas: {replicas}}}\n{conditions}",
            rng.u32(0..1000),
        ));
        // One that nobody signed is refused by the hub.
        if rng.u32(0..3) == 0 {
            text.push_str(&format!(
                "    attestationPolicy: {{provenance: required, minLevel: {}}}\n",
                rng.u32(0..3)
            ));
        }
    }
    let manifest = cndl::parse(&text, "sim.yaml").unwrap_or_else(|e| panic!("the simulator's manifest: {e}\n{text}"));
    let context = AdmissionContext {
        user: "sim".into(),
        now_unix_s: now_s,
    };
    policy
        .admit(manifest, &context)
        .unwrap_or_else(|e| panic!("the built-in policy refused the simulator: {e}"))
}

/// When a workload runs, and after which.
fn conditions(rng: &mut fastrand::Rng, index: usize) -> String {
    let mut text = String::new();
    if index > 0 && rng.bool() {
        let condition = ["started", "healthy"][rng.usize(0..2)];
        text.push_str(&format!(
            "    needs: [{{workload: w{}, condition: {condition}}}]\n",
            index - 1
        ));
    }
    if rng.u32(0..3) == 0 {
        text.push_str(&format!(
            "    power: {}\n",
            ["low", "battery", "mains"][rng.usize(0..3)]
        ));
    }
    match rng.u32(0..8) {
        0 => text.push_str("    schedule: {cron: \"*/2 * * * *\", zone: Europe/Berlin, for: 60s}\n"),
        1 => text.push_str("    schedule: {cron: \"*/3 * * * *\", zone: UTC}\n"),
        _ => {}
    }
    if rng.u32(0..4) == 0 {
        text.push_str("    onBadUpdate: stay\n");
    }
    text
}
