//! What an instance is given, how it is watched, and that nothing of it is left.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cnova_shared::wire::v1::{Operation, Volume};
use serde_json::Value;
use support::{Rig, State, is_alive, kill};

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

#[tokio::test]
async fn the_spec_has_parts_volumes_and_a_cache() {
    let mut rig = Rig::new().await;
    let mut workload = rig.workload("app/w", &["run"]);
    let part = rig.artifact(b"a layer".to_vec());
    workload.parts = vec![part.clone()];
    workload.volumes = vec![Volume {
        name: "data".parse().unwrap(),
        path: "/var/data".into(),
    }];
    rig.desire(1, vec![workload.clone()]);
    rig.start_agent();
    rig.running("app/w").await;
    let spec = read_json(&rig.folder("app.w.1").join("spec.json"));
    assert_eq!(spec["parts"][0]["digest"], part.digest.to_string());
    let stored = PathBuf::from(spec["parts"][0]["path"].as_str().unwrap());
    assert_eq!(fs::read(stored).unwrap(), b"a layer");
    let volume = rig.state_dir.join("volumes/app.w/data");
    let mount = &spec["mounts"][0];
    assert_eq!(
        (
            mount["guest"].as_str(),
            mount["host"].as_str(),
            mount["writable"].as_bool()
        ),
        (Some("/var/data"), volume.to_str(), Some(true))
    );
    let cache = rig.state_dir.join("cache/fake");
    assert_eq!(spec["cache"].as_str(), cache.to_str());
    assert_eq!(
        (mode(&volume), mode(&cache), mode(&rig.state_dir.join("volumes"))),
        (0o700, 0o700, 0o700)
    );
    let record = read_json(&rig.folder("app.w.1").join("instance.json"));
    assert_eq!(record["health_interval_ms"], 10_000);

    // Kept over a new version, and when the workload is taken off the node.
    fs::write(volume.join("kept"), "words").unwrap();
    workload.args.push("two".into());
    workload.app_generation = 2;
    rig.desire(2, vec![workload]);
    rig.until("the new version", |rig| {
        rig.report("app/w")
            .filter(|r| r.attempt == 2 && r.state == State::Running)
            .map(|_| ())
    })
    .await;
    assert_eq!(fs::read_to_string(volume.join("kept")).unwrap(), "words");
    rig.desire(3, Vec::new());
    let run = rig.state_dir.join("run");
    rig.until("the end", |_| (fs::read_dir(&run).unwrap().count() == 0).then_some(()))
        .await;
    assert_eq!(fs::read_to_string(volume.join("kept")).unwrap(), "words");
}

#[tokio::test]
async fn an_unhealthy_workload_is_ended_and_its_words_are_told() {
    let mut rig = Rig::new().await;
    let mut workload = rig.workload("app/w", &["run"]);
    workload.health.interval_ms = 500;
    workload.health.failures = 2;
    rig.desire(1, vec![workload]);
    rig.start_agent();
    let first = rig.running("app/w").await;
    // Adopted ones are asked as well.
    rig.kill_agent();
    rig.start_agent();
    rig.until("adoption", |rig| rig.report("app/w").filter(|r| r.adopted).map(|_| ()))
        .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    fs::write(rig.folder("app.w.1").join("fake-health"), "the pump is dry").unwrap();
    rig.until("another attempt", |rig| {
        rig.report("app/w")
            .filter(|r| r.attempt == 2 && r.state == State::Running)
            .map(|_| ())
    })
    .await;
    assert!(!is_alive(first.pid));
    let log = rig.log();
    assert!(log.contains("unhealthy 2 times in a row: the pump is dry"), "{log}");
}

#[tokio::test]
async fn a_workload_that_hangs_is_ended_and_costs_the_others_nothing() {
    let mut rig = Rig::new().await;
    // More than there are threads for questions.
    let hanging: Vec<String> = (0..6).map(|i| format!("app/h{i}")).collect();
    let mut workloads = Vec::new();
    for id in &hanging {
        let mut workload = rig.workload(id, &["run"]);
        workload.health.interval_ms = 500;
        workload.health.failures = 2;
        workload.stop_grace_ms = 100;
        workloads.push(workload);
    }
    rig.desire(1, workloads.clone());
    rig.start_agent();
    for id in &hanging {
        rig.running(id).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    for i in 0..6 {
        fs::write(rig.folder(&format!("app.h{i}.1")).join("fake-health"), "hang").unwrap();
    }
    let other = rig.workload("app/other", &["run"]);
    workloads.push(other);
    rig.desire(2, workloads);
    rig.running("app/other").await;
    for id in &hanging {
        rig.until("another attempt", |rig| {
            rig.report(id).filter(|r| r.attempt >= 2).map(|_| ())
        })
        .await;
    }
    let log = rig.log();
    assert!(
        log.contains("it does not answer") && log.contains("did not answer within 2s"),
        "{log}"
    );
}

#[tokio::test]
async fn a_runtime_that_prepares_is_waited_for_and_one_that_is_silent_is_not() {
    let mut rig = Rig::new().await;
    rig.configure("[runtime]\nstart_seconds = 1\nprepare_seconds = 60");
    let prepares = rig.workload("app/prepares", &["prepare"]);
    let mut silent = rig.workload("app/silent", &["slow"]);
    silent.restart.crash_loop_after = 2;
    rig.desire(1, vec![prepares, silent]);
    rig.start_agent();
    let report = rig.in_state("app/silent", State::CrashLoop).await;
    assert!(
        report.reason.contains("did not say within 1 s that it runs"),
        "{}",
        report.reason
    );
    // Two whole starts of the other took longer than one may take without a word.
    let waiting = rig.report("app/prepares").unwrap();
    assert_eq!((waiting.state, waiting.attempt), (State::Starting, 1));
    fs::write(rig.folder("app.prepares.1").join("go"), "").unwrap();
    assert_eq!(rig.running("app/prepares").await.attempt, 1);
}

#[tokio::test]
async fn a_runtime_that_prepares_for_ever_is_ended() {
    let mut rig = Rig::new().await;
    rig.configure("[runtime]\nstart_seconds = 1\nprepare_seconds = 2");
    let mut workload = rig.workload("app/w", &["prepare"]);
    workload.restart.crash_loop_after = 1;
    rig.desire(1, vec![workload]);
    rig.start_agent();
    let report = rig.in_state("app/w", State::CrashLoop).await;
    assert!(
        report.reason.contains("still preparing its workload after 2 s"),
        "{}",
        report.reason
    );
}

fn groups_of(pid: u32) -> BTreeSet<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines()
        .filter_map(|l| Some(l.splitn(3, ':').nth(2)?.to_owned()))
        .collect()
}

/// The group of an instance, by its process; nothing where the agent may make none.
fn group_of(rig: &Rig, pid: u32) -> Option<String> {
    if rig.hellos[0]
        .alarms
        .iter()
        .any(|a| a.detail.contains("cannot make control groups") || a.detail.contains("no control group"))
    {
        skip("this process may not make control groups (needs root and a writable /sys/fs/cgroup)");
        return None;
    }
    let mine = groups_of(pid).into_iter().find(|g| g.contains("/app.w."));
    Some(mine.unwrap_or_else(|| panic!("{:?}", groups_of(pid))))
}

fn group_folders(group: &str) -> Vec<PathBuf> {
    let mut hierarchies = vec![PathBuf::from("/sys/fs/cgroup")];
    hierarchies.extend(
        fs::read_dir("/sys/fs/cgroup")
            .unwrap()
            .filter_map(|e| Some(e.ok()?.path())),
    );
    let folders = hierarchies.into_iter().map(|h| h.join(group.trim_start_matches('/')));
    folders.filter(|f| f.is_dir()).collect()
}

async fn is_gone(rig: &mut Rig, group: &str, pid: u32) {
    rig.until("the group's end", |_| {
        (group_folders(group).is_empty() && !is_alive(pid)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_instance_has_its_own_control_group_and_nothing_outlives_it() {
    let mut rig = Rig::new().await;
    let workload = rig.workload("app/w", &["litter"]);
    rig.desire(1, vec![workload.clone()]);
    rig.start_agent();
    let first = rig.running("app/w").await;
    let Some(group) = group_of(&rig, first.pid) else { return };
    let agent = rig.agent.as_ref().unwrap().id();
    assert!(!groups_of(agent).contains(&group));
    assert!(!group_folders(&group).is_empty());
    let litter = |rig: &Rig, folder: &str| -> u32 {
        fs::read_to_string(rig.folder(folder).join("litter"))
            .unwrap()
            .parse()
            .unwrap()
    };
    let left = litter(&rig, "app.w.1");
    assert!(groups_of(left).contains(&group));

    // Accounted by the group: the runtime itself says that it has one millisecond and two bytes.
    let w = || "app/w".parse().unwrap();
    rig.command(1, Operation::Metrics { workload: w() });
    let reply = rig.until("metrics", |rig| rig.replies.first().cloned()).await;
    let metrics: Value = serde_json::from_str(&reply.text).unwrap();
    assert_eq!(metrics["runtime"]["memory_bytes"], 2);
    assert!(
        metrics["processes"].as_u64() >= Some(2) && metrics["restarts"] == 0,
        "{metrics}"
    );
    if let Some(bytes) = metrics["memory_peak_bytes"].as_u64() {
        assert!(bytes > 4096 && metrics["memory_bytes"].as_u64() > Some(2), "{metrics}");
    }

    // The runtime is killed: what it started goes with it.
    kill(first.pid, "KILL").unwrap();
    let second = rig
        .until("another attempt", |rig| {
            rig.report("app/w")
                .filter(|r| r.attempt == 2 && r.state == State::Running)
                .cloned()
        })
        .await;
    is_gone(&mut rig, &group, left).await;

    // Adopted, and stopped by a new version.
    let (group, left) = (group_of(&rig, second.pid).unwrap(), litter(&rig, "app.w.2"));
    rig.kill_agent();
    rig.start_agent();
    rig.until("adoption", |rig| rig.report("app/w").filter(|r| r.adopted).map(|_| ()))
        .await;
    let mut next = workload;
    next.args.push("again".into());
    next.app_generation = 2;
    rig.desire(2, vec![next]);
    let third = rig
        .until("the new version", |rig| {
            rig.report("app/w")
                .filter(|r| r.attempt == 3 && r.state == State::Running)
                .cloned()
        })
        .await;
    is_gone(&mut rig, &group, left).await;

    // It dies while nobody watches.
    let (group, left) = (group_of(&rig, third.pid).unwrap(), litter(&rig, "app.w.3"));
    rig.kill_agent();
    kill(third.pid, "KILL").unwrap();
    assert!(is_alive(left));
    rig.start_agent();
    is_gone(&mut rig, &group, left).await;
    let fourth = rig
        .until("another attempt", |rig| {
            rig.report("app/w")
                .filter(|r| r.attempt == 4 && r.state == State::Running)
                .cloned()
        })
        .await;
    let (group, left) = (group_of(&rig, fourth.pid).unwrap(), litter(&rig, "app.w.4"));
    rig.desire(3, Vec::new());
    is_gone(&mut rig, &group, left).await;
}

#[tokio::test]
async fn without_control_groups_the_agent_runs_and_says_so() {
    let mut rig = Rig::new().await;
    rig.configure("[runtime]\ncgroup_parent = \"../outside\"");
    let workload = rig.workload("app/w", &["run"]);
    rig.desire(1, vec![workload]);
    rig.start_agent();
    let first = rig.running("app/w").await;
    let alarms = &rig.hellos[0].alarms;
    assert!(
        alarms
            .iter()
            .any(|a| a.code == "control-groups" && a.detail.contains("../outside")),
        "{alarms:?}"
    );
    assert!(groups_of(first.pid).iter().all(|g| !g.contains("/app.w.")));
}
