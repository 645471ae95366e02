//! Starts that cannot be, and stores that fail.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cnova_shared::wire::v1::Body;
use support::{AGENT, Rig, State, is_alive, processes_below};

fn agent(verb: &str, config: &Path) -> Output {
    Command::new(AGENT)
        .args([verb, "--config"])
        .arg(config)
        .output()
        .unwrap()
}

fn refuses_to_run(rig: &Rig) -> String {
    let output = agent("run", &rig.config);
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

fn edit(rig: &Rig, from: &str, to: &str) -> String {
    let text = fs::read_to_string(&rig.config).unwrap();
    fs::write(&rig.config, text.replace(from, to)).unwrap();
    text
}

#[tokio::test]
async fn bad_starts_say_why() {
    let rig = Rig::new().await;
    let good = edit(&rig, "[labels]", "[lables]");
    let text = refuses_to_run(&rig);
    assert!(text.contains("agent.toml:11") && text.contains("lables"), "{text}");
    fs::write(&rig.config, format!("node = \"plc-2\"\n{good}")).unwrap();
    let text = refuses_to_run(&rig);
    assert!(text.contains("plc-2") && text.contains("plc-1"), "{text}");
    fs::write(&rig.config, format!("site = \"plant-8\"\n{good}")).unwrap();
    let text = refuses_to_run(&rig);
    assert!(text.contains("plant-8") && text.contains("plant-7/plc-1"), "{text}");
    let file = rig.dir().join("file");
    fs::write(&file, "").unwrap();
    fs::write(
        &rig.config,
        good.replace(rig.state_dir.to_str().unwrap(), file.join("x").to_str().unwrap()),
    )
    .unwrap();
    let text = refuses_to_run(&rig);
    assert!(
        text.contains("state_dir must be a folder that this user may write"),
        "{text}"
    );
    fs::write(&rig.config, good.replace("plc-1.key", "gw-1.key")).unwrap();
    let text = refuses_to_run(&rig);
    assert!(text.contains("is not the key of"), "{text}");
}

#[tokio::test]
async fn a_node_that_waits_to_be_enrolled_is_told_from_an_agent_that_is_down() {
    let rig = Rig::new().await;
    let asked = || agent("system-good", &rig.config).status.code();
    assert_eq!(asked(), Some(2), "it has a certificate, and nobody answers");
    let good = fs::read_to_string(&rig.config).unwrap();
    let new = good.replace("plc-1.pem", "not-yet.pem");
    assert_ne!(new, good);
    fs::write(&rig.config, &new).unwrap();
    assert_eq!(asked(), Some(2), "nobody would give it one");
    fs::write(
        &rig.config,
        format!("{new}\n[enrolment]\nendpoints = [\"127.0.0.1:1\"]\n"),
    )
    .unwrap();
    assert_eq!(asked(), Some(4));
    fs::write(&rig.config, "node = 1").unwrap();
    assert_eq!(asked(), Some(2));
}

#[tokio::test]
async fn two_agents_do_not_share_a_state_folder() {
    let mut rig = Rig::new().await;
    rig.start_agent();
    rig.until("a hello", |rig| (!rig.hellos.is_empty()).then_some(())).await;
    let text = refuses_to_run(&rig);
    let pid = rig.agent.as_ref().unwrap().id();
    assert!(
        text.contains("another agent uses") && text.contains(&pid.to_string()),
        "{text}"
    );
}

#[tokio::test]
async fn check_finds_what_run_would() {
    let rig = Rig::new().await;
    let runtimes = rig.dir().join("runtimes");
    let broken = runtimes.join("cnova-runtime-broken");
    fs::write(&broken, "#!/bin/sh\nexit 3\n").unwrap();
    fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = agent("check", &rig.config);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    for wanted in [
        "node plc-1 at plant-7/plc-1",
        "runtime fake 1.0",
        "cnova-runtime-broken is not used",
        "64 MiB",
        "power mains",
    ] {
        assert!(text.contains(wanted), "{wanted}\n{text}");
    }
    edit(&rig, "plc-1.pem", "gone.pem");
    let output = agent("check", &rig.config);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("error    cannot read the certificate")
    );
    let version = Command::new(AGENT).arg("--version").output().unwrap();
    assert!(version.status.success() && version.stdout.starts_with(b"cnova-agent "));
}

#[tokio::test]
async fn a_broken_runtime_is_an_alarm() {
    let mut rig = Rig::new().await;
    let broken = rig.dir().join("runtimes/cnova-runtime-broken");
    fs::write(
        &broken,
        "#!/bin/sh\necho '{\"ral\":1,\"runtime\":\"wasm\",\"version\":\"1\",\"targets\":[]}'\n",
    )
    .unwrap();
    fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    rig.start_agent();
    rig.until("a hello", |rig| (!rig.hellos.is_empty()).then_some(())).await;
    let alarms = &rig.hellos[0].alarms;
    assert!(
        alarms
            .iter()
            .any(|a| a.code == "runtime-broken" && a.detail.contains("it says that it is")),
        "{alarms:?}"
    );
    assert_eq!(rig.hellos[0].capabilities.runtimes.len(), 1);
}

#[tokio::test]
async fn a_damaged_ledger_is_set_aside_and_the_twin_asked_for_again() {
    let mut rig = Rig::new().await;
    let workload = rig.workload("app/w", &["run"]);
    rig.desire(1, vec![workload]);
    rig.start_agent();
    rig.running("app/w").await;
    rig.kill_agent();
    let db = rig.state_dir.join("agent.db");
    let _ = fs::remove_file(rig.state_dir.join("agent.db-wal"));
    fs::write(&db, vec![0x5a; 50_000]).unwrap();
    let hellos = rig.hellos.len();
    rig.said.clear();
    rig.start_agent();
    rig.until("a hello", |rig| (rig.hellos.len() > hellos).then_some(()))
        .await;
    let hello = &rig.hellos[hellos];
    assert!(
        hello.alarms.iter().any(|a| a.code == "store-set-aside"),
        "{:?}",
        hello.alarms
    );
    assert_eq!(hello.generation, 0);
    assert!(hello.incarnation > rig.hellos[0].incarnation);
    rig.running("app/w").await;
    assert!(rig.state_dir.join("agent.db.corrupt-1").exists());
    assert_eq!(processes_below(&rig.state_dir).len(), 1);
}

#[tokio::test]
async fn workloads_run_on_when_the_ledger_is_lost() {
    let mut rig = Rig::new().await;
    let workload = rig.workload("app/w", &["run"]);
    rig.desire(1, vec![workload]);
    rig.start_agent();
    let first = rig.running("app/w").await;
    rig.kill_agent();
    for name in ["agent.db", "agent.db-wal", "agent.db-shm"] {
        let _ = fs::remove_file(rig.state_dir.join(name));
    }
    rig.start_agent();
    let again = rig
        .until("adoption", |rig| rig.report("app/w").filter(|r| r.adopted).cloned())
        .await;
    assert_eq!((again.pid, again.state), (first.pid, State::Running));
    assert!(is_alive(first.pid));
}

/// Not a test of anything: `CNOVA_AGENT=<build> cargo nextest run -p cnova-agent --run-ignored all -E 'test(memory)'`.
#[tokio::test]
async fn memory() {
    let mut rig = Rig::new().await;
    let workloads: Vec<_> = (0..10).map(|i| rig.workload(&format!("app/w{i}"), &["run"])).collect();
    rig.desire(1, workloads);
    rig.start_agent();
    for i in 0..10 {
        rig.running(&format!("app/w{i}")).await;
    }
    let pid = rig.agent.as_ref().unwrap().id();
    let peak = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let wanted = ["Rss:", "Pss:", "Pss_Anon:", "Private_Dirty:", "VmHWM:", "Threads:"];
    for line in rollup
        .lines()
        .chain(peak.lines())
        .filter(|l| wanted.iter().any(|w| l.starts_with(w)))
    {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
    let _ = writeln!(std::io::stderr(), "{}", rig.log());
}

/// A small file system of its own.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(path: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let options = format!("size={size}");
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(path)
            .status();
        if !done.is_ok_and(|s| s.success()) {
            let _ = std::io::stderr().write_all(b"SKIPPED: needs root and mount for a small file system\n");
            return None;
        }
        Some(Self(path.to_owned()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_told_above_and_passes() {
    let mut rig = Rig::new().await;
    let Some(disk) = Tmpfs::mount(&rig.state_dir, "6m") else {
        return;
    };
    let workload = rig.workload("app/w", &["run"]);
    rig.desire(1, vec![workload.clone()]);
    rig.start_agent();
    let first = rig.running("app/w").await;
    rig.until("the commit", |rig| match rig.said.get("twin") {
        Some(Body::Twin { committed_ms, .. }) if *committed_ms > 0 => Some(()),
        _ => None,
    })
    .await;
    let mut ballast = fs::File::create(disk.0.join("ballast")).unwrap();
    while ballast.write_all(&[0; 4096]).is_ok() {}
    // A large twin, so that it does not fit into what the log had already.
    let mut large = workload.clone();
    large.settings = format!("\"{}\"", "x".repeat(900_000));
    large.id = "app/large".parse().unwrap();
    let hellos = rig.hellos.len();
    rig.desire(2, vec![workload, large]);
    let alarm = rig
        .until("an alarm", |rig| {
            let alarms = rig.hellos.get(hellos..)?.iter().flat_map(|h| h.alarms.iter());
            alarms.filter(|a| a.code == "store").map(|a| a.detail.clone()).next()
        })
        .await;
    assert!(alarm.contains("full") && alarm.contains("agent.db"), "{alarm}");
    assert!(is_alive(first.pid));
    assert_eq!(
        rig.hellos.last().unwrap().generation,
        1,
        "nothing is claimed that is not on disk"
    );
    // Who stands in front of the node sees it too, and what runs.
    let asked = Command::new(support::AGENT)
        .args(["status", "--json", "--config"])
        .arg(&rig.config)
        .output()
        .unwrap();
    let status: serde_json::Value = serde_json::from_slice(&asked.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&asked.stderr)));
    assert!(status["alarms"].to_string().contains("full"), "{status}");
    let shown = &status["workloads"][0];
    assert_eq!(
        (shown["id"].as_str(), shown["pid"].as_u64()),
        (Some("app/w"), Some(first.pid.into())),
        "{status}"
    );
    drop(ballast);
    fs::remove_file(disk.0.join("ballast")).unwrap();
    rig.running("app/large").await;
    let kept = rig.running("app/w").await;
    assert_eq!(kept.pid, first.pid);
    assert!(rig.log().contains("it works again"), "{}", rig.log());
    rig.kill_agent();
    for pid in processes_below(&rig.state_dir) {
        support::kill(pid, "KILL").unwrap();
    }
}

/// Whether the system is good is in the store: one that cannot be read must not have a slot on trial kept.
#[tokio::test]
async fn a_store_that_cannot_be_read_does_not_find_the_system_good() {
    let mut rig = Rig::new().await;
    let workload = rig.workload("app/w", &["run"]);
    rig.desire(1, vec![workload.clone()]);
    rig.start_agent();
    rig.running("app/w").await;
    assert_eq!(agent("system-good", &rig.config).status.code(), Some(0));
    let break_it = "ALTER TABLE twin RENAME TO elsewhere";
    let ledger = rusqlite::Connection::open(rig.state_dir.join("agent.db")).unwrap();
    ledger.execute_batch(break_it).unwrap();
    let mut other = workload;
    other.id = "app/other".parse().unwrap();
    rig.desire(2, vec![other]);
    rig.until("an alarm", |rig| {
        let mut alarms = rig.hellos.iter().flat_map(|h| h.alarms.iter());
        alarms.find(|a| a.code == "store").map(|_| ())
    })
    .await;
    let asked = agent("system-good", &rig.config);
    assert_eq!(asked.status.code(), Some(3), "{asked:?}");
    rig.kill_agent();
    for pid in processes_below(&rig.state_dir) {
        support::kill(pid, "KILL").unwrap();
    }
}
