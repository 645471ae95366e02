//! The whole agent: a real process, a real endpoint above it, a runtime made of shell below it.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use cnova_shared::wire::v1::{Body, InputFile, Operation};
use support::{Rig, State, is_alive, kill, processes_below};

#[tokio::test]
async fn a_twin_runs_is_adopted_and_outlives_a_tampered_one() {
    let mut rig = Rig::new().await;
    let workload = rig.workload("app/w", &["run"]);
    rig.desire(1, vec![workload]);
    rig.start_agent();
    let first = rig.running("app/w").await;
    assert!(is_alive(first.pid) && !first.adopted && first.attempt == 1, "{first:?}");
    assert_eq!(processes_below(&rig.state_dir), [first.pid]);
    let hello = &rig.hellos[0];
    assert_eq!(
        (hello.site.as_str(), hello.labels["line"].as_str()),
        ("plant-7/plc-1", "2")
    );
    assert_eq!(hello.capabilities.runtimes[0].engine, "fake-1");
    // Where the tests may not make control groups, the agent says so.
    let alarms: Vec<_> = hello.alarms.iter().filter(|a| a.code != "control-groups").collect();
    assert!(alarms.is_empty(), "{alarms:?}");
    rig.until("the time of the commit", |rig| match rig.said.get("twin") {
        Some(Body::Twin {
            generation: 1,
            committed_ms,
            verified_ms,
            ..
        }) if committed_ms >= verified_ms => Some(()),
        _ => None,
    })
    .await;

    // One byte is another: refused with a report, and what runs is not touched.
    let mut tampered = rig.twin.clone();
    let middle = tampered.len() - 100;
    tampered[middle] ^= 1;
    rig.send_raw_twin(tampered);
    let code = rig.until("a refusal", |rig| rig.refusal().map(str::to_owned)).await;
    assert_eq!(code, "bad-signature");
    assert!(is_alive(first.pid));

    // Killed without a word: the workload runs on and is adopted.
    rig.kill_agent();
    assert!(is_alive(first.pid));
    rig.start_agent();
    let adopted = rig
        .until("adoption", |rig| rig.report("app/w").filter(|r| r.adopted).cloned())
        .await;
    assert_eq!(
        (adopted.pid, adopted.attempt, adopted.state),
        (first.pid, 1, State::Running)
    );

    // Told to end: the same.
    let mut agent = rig.agent.take().unwrap();
    kill(agent.id(), "TERM").unwrap();
    assert!(agent.wait().unwrap().success());
    assert!(is_alive(first.pid));
    rig.start_agent();
    let hellos = rig.hellos.len();
    rig.until("a new hello", |rig| (rig.hellos.len() > hellos).then_some(()))
        .await;
    assert_ne!(rig.hellos[0].boot, rig.hellos[hellos].boot);
    assert_eq!(rig.hellos[hellos].generation, 1);

    // No longer desired: it ends, and nothing of it is left.
    rig.desire(2, Vec::new());
    rig.until("the end", |rig| {
        matches!(rig.said.get("w/app/w"), Some(Body::Gone { .. })).then_some(())
    })
    .await;
    assert!(!is_alive(first.pid));
    let left = || fs::read_dir(rig.state_dir.join("run")).unwrap().count();
    let artifacts = || fs::read_dir(rig.state_dir.join("artifacts/sha256")).unwrap().count();
    for _ in 0..100 {
        if left() + artifacts() == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!(
        "{} folders and {} artifacts are left\n{}",
        left(),
        artifacts(),
        rig.log()
    );
}

#[tokio::test]
async fn a_failing_workload_is_explained_and_given_up() {
    let mut rig = Rig::new().await;
    let bad = rig.workload("app/bad", &["exit", "3"]);
    let good = rig.workload("app/good", &["run"]);
    rig.desire(1, vec![bad, good]);
    rig.start_agent();
    let report = rig.in_state("app/bad", State::CrashLoop).await;
    assert!(report.reason.contains("finished with exit code 3"), "{}", report.reason);
    assert_eq!(report.attempt, 3);
    let good = rig.running("app/good").await;
    // Killed from outside: said so, and started again.
    kill(good.pid, "KILL").unwrap();
    let again = rig
        .until("another attempt", |rig| {
            rig.report("app/good")
                .filter(|r| r.attempt == 2 && r.state == State::Running)
                .cloned()
        })
        .await;
    assert_ne!(again.pid, good.pid);
    assert!(
        rig.log()
            .contains("killed: its runtime ended without an exit file (signal: 9"),
        "{}",
        rig.log()
    );
    // The last two attempts are kept.
    let mut folders: Vec<String> = fs::read_dir(rig.state_dir.join("run"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.contains("bad"))
        .collect();
    folders.sort();
    assert_eq!(folders, ["app.bad.2", "app.bad.3"]);
}

#[tokio::test]
async fn what_died_while_nobody_watched_is_noticed() {
    let mut rig = Rig::new().await;
    let workload = rig.workload("app/w", &["run"]);
    rig.desire(1, vec![workload]);
    rig.start_agent();
    let first = rig.running("app/w").await;
    rig.kill_agent();
    kill(first.pid, "KILL").unwrap();
    rig.start_agent();
    let second = rig
        .until("another attempt", |rig| {
            rig.report("app/w")
                .filter(|r| r.attempt == 2 && r.state == State::Running)
                .cloned()
        })
        .await;
    assert_ne!(second.pid, first.pid);
    assert!(
        rig.log().contains("killed while the agent was not running"),
        "{}",
        rig.log()
    );
}

#[tokio::test]
async fn a_start_that_was_cut_short_never_runs_twice() {
    let mut rig = Rig::new().await;
    let workload = rig.workload("app/w", &["slow"]);
    rig.desire(1, vec![workload]);
    rig.start_agent();
    let state = rig.state_dir.clone();
    let first = rig
        .until("a process", |rig| {
            rig.report("app/w").filter(|r| r.state == State::Starting)?;
            processes_below(&state).first().copied()
        })
        .await;
    rig.kill_agent();
    assert!(is_alive(first));
    let hellos = rig.hellos.len();
    rig.start_agent();
    rig.until("a second attempt", |rig| {
        (rig.hellos.len() > hellos).then_some(())?;
        rig.report("app/w").filter(|r| r.attempt == 2).map(|_| ())
    })
    .await;
    assert!(!is_alive(first), "{}", rig.log());
    assert!(!processes_below(&state).contains(&first));
}

#[tokio::test]
async fn a_deaf_workload_is_ended_by_force_and_replaced_by_its_new_version() {
    let mut rig = Rig::new().await;
    let mut workload = rig.workload("app/w", &["deaf"]);
    workload.stop_grace_ms = 200;
    rig.desire(1, vec![workload.clone()]);
    rig.start_agent();
    let first = rig.running("app/w").await;
    workload.args = vec!["run".into(), "two".into()];
    workload.app_generation = 2;
    let config = rig.artifact(b"a = 1".to_vec());
    workload.files = vec![InputFile {
        path: "/etc/app/config".into(),
        artifact: config,
    }];
    rig.desire(2, vec![workload]);
    let second = rig
        .until("the new version", |rig| {
            rig.report("app/w")
                .filter(|r| r.app_generation == 2 && r.state == State::Running)
                .cloned()
        })
        .await;
    assert!(!is_alive(first.pid) && second.attempt == 2);
    let folder = rig.state_dir.join("run/app.w.2");
    assert_eq!(
        fs::read_to_string(folder.join("files/etc/app/config")).unwrap(),
        "a = 1"
    );
    let spec = fs::read_to_string(folder.join("spec.json")).unwrap();
    assert!(spec.contains(r#""guest":"/etc/app""#), "{spec}");

    rig.command(
        1,
        Operation::Logs {
            workload: "app/w".parse().unwrap(),
            lines: 5,
        },
    );
    rig.command(
        2,
        Operation::Metrics {
            workload: "app/w".parse().unwrap(),
        },
    );
    rig.command(
        3,
        Operation::Logs {
            workload: "no/such".parse().unwrap(),
            lines: 5,
        },
    );
    rig.until("three replies", |rig| (rig.replies.len() == 3).then_some(()))
        .await;
    rig.replies.sort_by_key(|r| r.id);
    assert_eq!(
        (rig.replies[0].ok, rig.replies[0].text.as_str()),
        (true, "2026-01-01T00:00:00Z stdout started run two")
    );
    let metrics: serde_json::Value = serde_json::from_str(&rig.replies[1].text).unwrap();
    assert_eq!(
        (&metrics["runtime"]["cpu_ms"], &metrics["restarts"]),
        (&1.into(), &1.into()),
        "{metrics}"
    );
    assert!(
        !rig.replies[2].ok && rig.replies[2].text.contains("no/such is not known"),
        "{}",
        rig.replies[2].text
    );
}

#[tokio::test]
async fn a_damaged_artifact_is_fetched_again() {
    let mut rig = Rig::new().await;
    let workload = rig.workload("app/w", &["run"]);
    let digest = workload.artifact.digest;
    rig.desire(1, vec![workload]);
    rig.start_agent();
    let first = rig.running("app/w").await;
    let path = rig.state_dir.join("artifacts/sha256").join(digest.hex());
    fs::remove_file(&path).unwrap();
    fs::write(&path, "rot").unwrap();
    kill(first.pid, "KILL").unwrap();
    rig.until("running again", |rig| {
        rig.report("app/w")
            .filter(|r| r.attempt > 1 && r.state == State::Running)
            .map(|_| ())
    })
    .await;
    let alarm = rig.said.get("alarm/artifact-damaged");
    assert!(
        matches!(alarm, Some(Body::Alarm(a)) if a.detail.contains(&digest.short())),
        "{alarm:?}"
    );
}
