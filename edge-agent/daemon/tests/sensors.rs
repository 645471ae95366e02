//! A node whose hardware is a folder: what is plugged in, its power, its pressure.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use cnova_shared::wire::v1::{AcceleratorClaim, Body, PowerLevel};
use support::{AGENT, Rig, State, is_alive};

/// The root of sysfs, procfs and `/dev`.
struct Machine(PathBuf);

impl Machine {
    /// Makes it and has the agent read it, twice a second at most.
    fn of(rig: &Rig, configuration: &str) -> Self {
        let root = rig.dir().join("machine");
        fs::create_dir_all(root.join("dev")).unwrap();
        rig.configure(&format!(
            "[sensors]\nroot = \"{}\"\nseconds = 1\n{configuration}",
            root.display()
        ));
        Self(root)
    }

    fn at(&self, path: &str) -> PathBuf {
        let at = self.0.join(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        at
    }

    fn set(&self, path: &str, text: &str) {
        // As a whole: the agent may be reading it.
        let draft = self.0.join("draft");
        fs::write(&draft, format!("{text}\n")).unwrap();
        fs::rename(draft, self.at(path)).unwrap();
    }

    /// False, and said, where this process may not make device nodes.
    fn device(&self, path: &str, minor: u32) -> bool {
        let done = Command::new("mknod")
            .arg(self.at(path))
            .args(["c", "1", &minor.to_string()])
            .status();
        let is_made = done.is_ok_and(|s| s.success());
        if !is_made {
            let _ = writeln!(
                std::io::stderr(),
                "skipped: this process may not make device nodes (needs CAP_MKNOD)"
            );
        }
        is_made
    }

    /// A Hailo as its driver shows it.
    fn plug_hailo(&self) -> bool {
        if !self.device("dev/hailo0", 3) {
            return false;
        }
        let pci = "sys/devices/pci0000:00/0000:01:00.0";
        self.set(&format!("{pci}/vendor"), "0x1e60");
        self.set(&format!("{pci}/device"), "0x2864");
        self.set(&format!("{pci}/class"), "0x120000");
        let bus = self.at("sys/bus/pci/devices/0000:01:00.0");
        symlink("../../../devices/pci0000:00/0000:01:00.0", bus).unwrap();
        fs::create_dir_all(self.at("sys/bus/pci/drivers/hailo/x").parent().unwrap()).unwrap();
        symlink("../../../bus/pci/drivers/hailo", self.at(&format!("{pci}/driver"))).unwrap();
        let member = "sys/devices/virtual/hailo_chardev/hailo0";
        self.set(&format!("{member}/board_location"), "0000:01:00.0");
        self.set(&format!("{member}/dev"), "1:3");
        self.set(&format!("{member}/uevent"), "DEVNAME=hailo0");
        symlink(
            "../../devices/virtual/hailo_chardev/hailo0",
            self.at("sys/class/hailo_chardev/hailo0"),
        )
        .unwrap();
        true
    }

    fn unplug_hailo(&self) {
        for path in [
            "sys/class/hailo_chardev/hailo0",
            "sys/bus/pci/devices/0000:01:00.0",
            "dev/hailo0",
        ] {
            fs::remove_file(self.0.join(path)).unwrap();
        }
        fs::remove_dir_all(self.0.join("sys/devices")).unwrap();
    }

    fn battery(&self, percent: u32) {
        self.set("sys/class/power_supply/BAT0/type", "Battery");
        self.set("sys/class/power_supply/BAT0/capacity", &percent.to_string());
        self.set("sys/class/power_supply/BAT0/status", "Discharging");
    }
}

fn accelerators(rig: &Rig) -> Vec<String> {
    let newest = rig.hellos.last().unwrap();
    let found = newest.capabilities.accelerators.iter();
    found.map(|a| format!("{} {} {}", a.id, a.class, a.kind)).collect()
}

#[tokio::test]
async fn an_accelerator_comes_is_leased_and_goes() {
    let mut rig = Rig::new().await;
    let machine = Machine::of(&rig, "");
    let mut workload = rig.workload("app/w", &["run"]);
    workload.accelerators = vec![AcceleratorClaim {
        kind: "hailo-8".into(),
        optional: false,
    }];
    rig.desire(1, vec![workload]);
    rig.start_agent();
    let waiting = rig.in_state("app/w", State::Waiting).await;
    assert!(waiting.reason.contains("hailo-8"), "{}", waiting.reason);
    assert!(accelerators(&rig).is_empty());
    if !machine.plug_hailo() {
        return;
    }
    let running = rig.running("app/w").await;
    let id = "npu-pci-0000-01-00.0";
    rig.until("a hello with it", |rig| {
        (accelerators(rig) == [format!("{id} npu hailo-8")]).then_some(())
    })
    .await;
    let spec = fs::read_to_string(rig.folder("app.w.1").join("spec.json")).unwrap();
    let spec: serde_json::Value = serde_json::from_str(&spec).unwrap();
    let wanted = serde_json::json!([{"name": id, "kind": "hailo-8", "nodes": ["/dev/hailo0"]}]);
    assert_eq!(spec["devices"], wanted);

    machine.unplug_hailo();
    let waiting = rig.in_state("app/w", State::Waiting).await;
    assert!(waiting.reason.contains("hailo-8"), "{}", waiting.reason);
    assert!(!is_alive(running.pid));
    rig.until("a hello without it", |rig| accelerators(rig).is_empty().then_some(()))
        .await;
}

#[tokio::test]
async fn a_configured_device_is_given_while_it_is_there() {
    let mut rig = Rig::new().await;
    let machine = Machine::of(
        &rig,
        "[[devices]]\nname = \"press\"\nnodes = [\"/dev/ttyPRESS\"]\n\
         [[devices]]\nname = \"memory\"\nnodes = [\"/dev/mem\"]",
    );
    if !machine.device("dev/mem", 1) {
        return;
    }
    let mut workload = rig.workload("app/w", &["run"]);
    workload.devices = vec!["press".into()];
    rig.desire(1, vec![workload]);
    rig.start_agent();
    let waiting = rig.in_state("app/w", State::Waiting).await;
    assert!(waiting.reason.contains("press"), "{}", waiting.reason);
    // One that is configured wrongly is reported, and the other works.
    let alarms = &rig.hellos[0].alarms;
    assert!(
        alarms
            .iter()
            .any(|a| a.code == "devices" && a.detail.contains("/dev/mem")),
        "{alarms:?}"
    );
    assert!(machine.device("dev/ttyUSB7", 3));
    symlink("ttyUSB7", machine.at("dev/ttyPRESS")).unwrap();
    rig.running("app/w").await;
    let spec = fs::read_to_string(rig.folder("app.w.1").join("spec.json")).unwrap();
    let spec: serde_json::Value = serde_json::from_str(&spec).unwrap();
    assert_eq!(
        spec["devices"],
        serde_json::json!([{"name": "press", "kind": "", "nodes": ["/dev/ttyUSB7"]}])
    );
    rig.until("a hello with it", |rig| {
        (rig.hellos.last().unwrap().capabilities.devices == ["press"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_needs_more_power_waits_until_it_is_back() {
    let mut rig = Rig::new().await;
    let machine = Machine::of(&rig, "[power]\nlow_percent = 50\nlow_return_percent = 60");
    machine.battery(40);
    let mut hungry = rig.workload("app/hungry", &["run"]);
    hungry.power = PowerLevel::Battery;
    let modest = rig.workload("app/modest", &["run"]);
    rig.desire(1, vec![hungry, modest]);
    rig.start_agent();
    let modest = rig.running("app/modest").await;
    let waiting = rig.in_state("app/hungry", State::Waiting).await;
    assert!(waiting.reason.contains("battery at 40 %"), "{}", waiting.reason);
    assert!(matches!(rig.said.get("alarm/power"), Some(Body::Alarm(a)) if a.detail.contains("low")));
    // Not enough to return, by its threshold; a change of charge alone is told nobody.
    machine.battery(55);
    machine.battery(70);
    let hungry = rig.running("app/hungry").await;
    machine.battery(5);
    let waiting = rig.in_state("app/hungry", State::Waiting).await;
    assert!(waiting.reason.contains("battery at 5 %"), "{}", waiting.reason);
    assert!(!is_alive(hungry.pid) && is_alive(modest.pid));
}

fn check(config: &Path) -> (bool, String) {
    let output = Command::new(AGENT)
        .args(["check", "--config"])
        .arg(config)
        .output()
        .unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test]
async fn check_says_what_the_node_has() {
    let rig = Rig::new().await;
    let machine = Machine::of(
        &rig,
        "[[devices]]\nname = \"press\"\nnodes = [\"/dev/ttyPRESS\"]\n[power]\nlow_percent = 50\nlow_return_percent = 60",
    );
    machine.battery(40);
    let pci = "sys/devices/pci0000:00/0000:01:00.0";
    for (file, text) in [("vendor", "0x1e60"), ("device", "0x2864"), ("class", "0x120000")] {
        machine.set(&format!("{pci}/{file}"), text);
    }
    symlink(
        "../../../devices/pci0000:00/0000:01:00.0",
        machine.at("sys/bus/pci/devices/0000:01:00.0"),
    )
    .unwrap();
    let (ok, text) = check(&rig.config);
    assert!(ok, "{text}");
    for wanted in [
        "warning  accelerator npu-pci-0000-01-00.0 (hailo-8, npu) is not used: no driver is bound",
        "warning  device press: /dev/ttyPRESS is not there",
        "ok       power low: battery at 40 %",
        "/proc/pressure/memory is not there",
    ] {
        assert!(text.contains(wanted), "{wanted}\n{text}");
    }
    let config = fs::read_to_string(&rig.config).unwrap();
    fs::write(&rig.config, config.replace("low_percent = 50", "low_percent = 70")).unwrap();
    let (ok, text) = check(&rig.config);
    assert!(!ok && text.contains("[power] low_percent = 70 must be less"), "{text}");
}
