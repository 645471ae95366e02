//! A real agent that is given twins by hand, past every hub: what has to prove where it is from and cannot does not
//! start, and says why.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cnova_provenance::{AOT_BUILD_TYPE, AOT_BUILDER, Dependency, Made, Subject, make, sign};
use cnova_shared::bundle::TrustedBuilder;
use cnova_shared::ids::Digest;
use cnova_shared::keys::{Signer, SoftKey};
use cnova_shared::wire::v1::{Artifact, AttestationPolicy, Workload};
use support::{Rig, State, kill, now_s, processes_below};

const CI: &str = "https://ci.example/line-2";
const OTHER: &str = "https://other.example";

fn key(seed: u8) -> SoftKey {
    SoftKey::ed25519_from_seed(&[seed; 32])
}

fn ci() -> SoftKey {
    key(11)
}

/// Trusted, and not asked for.
fn other() -> SoftKey {
    key(12)
}

fn trusted(key: &SoftKey, builder: &str, level: u8, not_after: u64) -> TrustedBuilder {
    TrustedBuilder {
        key: key.public_key().clone(),
        builder: builder.to_owned(),
        level,
        not_after,
    }
}

/// Gives the node a bundle with builders, whose keys end then.
fn trust(rig: &Rig, version: u64, not_after: u64) {
    let hub = trusted(&rig.pki.hub_key, AOT_BUILDER, 3, u64::MAX);
    let builders = vec![
        trusted(&ci(), CI, 2, not_after),
        trusted(&other(), OTHER, 3, not_after),
        hub,
    ];
    fs::write(rig.dir().join("trust.cose"), rig.pki.bundle_with(version, builders)).unwrap();
}

fn signed(key: &SoftKey, builder: &str, build_type: &str, subject: Digest, materials: &[Digest]) -> Vec<u8> {
    let materials: Vec<Dependency> = materials
        .iter()
        .map(|m| Dependency::of_file("file:x".into(), m))
        .collect();
    let statement = make(&Made {
        subjects: &[Subject {
            name: "app".into(),
            digest: subject,
        }],
        build_type,
        parameters: serde_json::Value::Null,
        dependencies: &materials,
        builder,
        builder_version: BTreeMap::new(),
        started_s: now_s(),
        finished_s: now_s(),
    });
    sign(&statement, &[key]).unwrap()
}

fn by_ci(subject: Digest) -> Vec<u8> {
    signed(&ci(), CI, "urn:x", subject, &[])
}

fn asking(min_level: u8) -> AttestationPolicy {
    AttestationPolicy {
        required: true,
        min_level,
        builders: vec!["https://ci.example/*".into()],
        files: false,
    }
}

/// A workload that has to prove something, with these envelopes.
fn workload(rig: &mut Rig, id: &str, envelopes: Vec<Vec<u8>>) -> Workload {
    let mut w = rig.workload(id, &["run"]);
    w.attestation = Some(asking(2));
    w.provenance = envelopes.into_iter().map(|e| rig.artifact(e)).collect();
    w
}

#[tokio::test]
async fn only_what_proves_where_it_is_from_is_started() {
    let mut rig = Rig::new().await;
    trust(&rig, 2, u64::MAX);
    let artifact = rig.workload("app/x", &[]).artifact.digest;
    let stranger = key(13);
    let mut tampered = by_ci(artifact);
    let at = tampered.len() / 2;
    tampered[at] = if tampered[at] == b'A' { b'B' } else { b'A' };
    let refused: Vec<(&str, Vec<Vec<u8>>, &str)> = vec![
        ("app/none", vec![], "has no provenance"),
        ("app/subject", vec![by_ci(Digest::of(b"else"))], "it is about sha256:"),
        (
            "app/unknown",
            vec![signed(&stranger, CI, "urn:x", artifact, &[])],
            "no builder of the trust bundle signed it",
        ),
        (
            "app/unlisted",
            vec![signed(&other(), OTHER, "urn:x", artifact, &[])],
            "https://other.example built it, and only",
        ),
        (
            "app/posing",
            vec![signed(&other(), CI, "urn:x", artifact, &[])],
            "and not as https://ci.example/line-2",
        ),
        ("app/tampered", vec![tampered], "no provenance that holds"),
    ];
    let mut workloads = Vec::new();
    for (id, envelopes, _) in &refused {
        workloads.push(workload(&mut rig, id, envelopes.clone()));
    }
    let mut low = workload(&mut rig, "app/low", vec![by_ci(artifact)]);
    low.attestation = Some(asking(3));
    // As a container or an eBPF object: the artifact itself. As Wasm: what the hub compiled, and its source.
    let whole = workload(&mut rig, "app/whole", vec![by_ci(artifact)]);
    let source = Digest::of(b"source");
    let compiled = rig.artifact(vec![b'c'; 1000]);
    let hub_key = SoftKey::ed25519_from_seed(&[2; 32]);
    let link = signed(&hub_key, AOT_BUILDER, AOT_BUILD_TYPE, compiled.digest, &[source]);
    let made_of = |rig: &mut Rig, id: &str, artifact: &Artifact, envelopes| {
        let mut w = workload(rig, id, envelopes);
        (w.artifact, w.source) = (artifact.clone(), source);
        w
    };
    let wasm = made_of(&mut rig, "app/wasm", &compiled, vec![link.clone(), by_ci(source)]);
    let mut changed = made_of(&mut rig, "app/changed", &compiled, vec![by_ci(source)]);
    changed.artifact = rig.artifact(vec![b'd'; 1000]);
    changed.provenance.push(rig.artifact(link));
    let free = rig.workload("app/free", &["run"]);
    workloads.extend([low, whole, wasm, changed, free]);
    rig.desire(1, workloads);
    rig.start_agent();

    for id in ["app/whole", "app/wasm", "app/free"] {
        rig.running(id).await;
    }
    let mut expected: Vec<(&str, &str)> = refused.iter().map(|(id, _, why)| (*id, *why)).collect();
    expected.push(("app/low", "up to SLSA build level 2, and level 3 is asked for"));
    expected.push(("app/changed", "its compiled form"));
    for (id, why) in expected {
        let report = rig
            .until(&format!("{id} is refused"), |rig| {
                let judged = |r: &&_| {
                    let r: &&cnova_shared::wire::v1::WorkloadReport = r;
                    r.state == State::Waiting && !r.reason.contains("being checked")
                };
                rig.report(id).filter(judged).cloned()
            })
            .await;
        assert!(
            report.reason.starts_with("provenance: ") && report.reason.contains(why),
            "{id}: {}",
            report.reason
        );
        assert_eq!((report.attempt, report.pid), (0, 0), "{id} was never tried");
        assert!(!rig.folder(&format!("{}@1", id.replace('/', "."))).exists());
    }
    assert_eq!(processes_below(&rig.state_dir).len(), 3);
}

fn lies_at(folder: &Path, name: &str) -> Option<PathBuf> {
    fs::read_dir(folder).ok()?.filter_map(Result::ok).find_map(|entry| {
        let path = entry.path();
        let here = entry.file_name().to_string_lossy().contains(name);
        if here && path.is_file() {
            Some(path)
        } else {
            lies_at(&path, name)
        }
    })
}

/// Ends the agent and its workload, as a power cut does for what counts here.
fn cut(rig: &mut Rig) {
    rig.kill_agent();
    for pid in processes_below(&rig.state_dir) {
        kill(pid, "KILL").unwrap();
    }
}

#[tokio::test]
async fn a_node_that_is_cut_off_starts_again_what_it_accepted_even_when_the_builder_s_time_is_over() {
    let mut rig = Rig::new().await;
    trust(&rig, 2, u64::MAX);
    let artifact = rig.workload("app/w", &[]).artifact.digest;
    let w = workload(&mut rig, "app/w", vec![by_ci(artifact)]);
    let envelope = w.provenance[0].digest;
    rig.desire(1, vec![w.clone()]);
    rig.start_agent();
    rig.running("app/w").await;
    cut(&mut rig);

    // Nobody is above it, and its bundle says that the builder's key ran out.
    trust(&rig, 3, now_s() - 100);
    let online = fs::read_to_string(&rig.config).unwrap();
    let address = rig.endpoint.local_addr().to_string();
    fs::write(&rig.config, online.replace(&address, "127.0.0.1:1")).unwrap();
    rig.start_agent();
    let pids = |rig: &Rig| Some(processes_below(&rig.state_dir)).filter(|p| !p.is_empty());
    rig.until("it runs without a parent", pids).await;
    cut(&mut rig);

    // Something new of the same builder is not accepted any more.
    fs::write(&rig.config, online).unwrap();
    let mut new = w.clone();
    new.id = "app/new".parse().unwrap();
    rig.said.clear();
    rig.desire(2, vec![w, new]);
    // What the flash did not keep is fetched again.
    let file = lies_at(&rig.state_dir, &envelope.hex()).expect("the envelope is in the store");
    fs::remove_file(&file).unwrap();
    fs::write(&file, b"what the flash made of it").unwrap();
    rig.start_agent();
    let late = rig
        .until("the new one is refused", |rig| {
            rig.report("app/new").filter(|r| r.reason.contains("ran out")).cloned()
        })
        .await;
    assert_eq!(late.state, State::Waiting, "{late:?}");
    rig.running("app/w").await;
    assert_eq!(fs::read(&file).unwrap(), by_ci_bytes(&rig, &envelope));
}

fn by_ci_bytes(rig: &Rig, digest: &Digest) -> Vec<u8> {
    rig.artifacts[digest].clone()
}
