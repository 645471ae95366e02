//! Configured devices.

use std::path::PathBuf;

use cnova_devices::{ConfiguredDevices, DEVICE_NODES_MAX, DEVICE_PATTERNS_MAX, DEVICES_MAX, DeviceConfig, DeviceError};

use crate::fixture::{Node, may_make_nodes};

fn device(name: &str, nodes: &[&str]) -> DeviceConfig {
    DeviceConfig {
        name: name.into(),
        nodes: nodes.iter().map(ToString::to_string).collect(),
        allow_block: false,
        allow: Vec::new(),
    }
}

fn fault(node: &Node, device: DeviceConfig) -> String {
    let errors = ConfiguredDevices::check(node.root(), vec![device]).unwrap_err();
    assert_eq!(errors.0.len(), 1, "{errors}");
    errors.to_string()
}

fn resolved(node: &Node, device: DeviceConfig) -> Vec<PathBuf> {
    let name = device.name.clone();
    ConfiguredDevices::check(node.root(), vec![device])
        .unwrap()
        .resolve(&name)
        .unwrap()
}

#[test]
fn links_and_patterns_lead_to_nodes() {
    if !may_make_nodes() {
        return;
    }
    let node = Node::new();
    for name in ["ttyUSB0", "ttyUSB1", "ttyUSB9", "ttyACM0", "input/event0"] {
        assert!(node.char_device(&format!("/dev/{name}"), 1, 3));
    }
    node.link("/dev/serial/by-id/usb-FTDI_A1-if00-port0", "../../ttyUSB1");
    node.file("/dev/input/by-path/note", "in a folder that a pattern passes over");
    let nodes = |patterns: &[&str]| {
        let found = resolved(&node, device("d", patterns));
        found.iter().map(|n| n.display().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(nodes(&["/dev/ttyUSB0"]), ["/dev/ttyUSB0"]);
    assert_eq!(nodes(&["/dev/serial/by-id/usb-FTDI*"]), ["/dev/ttyUSB1"]);
    assert_eq!(
        nodes(&["/dev/ttyUSB[0-5]", "/dev/serial/by-id/*", "/dev/ttyACM0"]),
        ["/dev/ttyACM0", "/dev/ttyUSB0", "/dev/ttyUSB1"]
    );
    assert_eq!(nodes(&["/dev/inp*/*"]), ["/dev/input/event0"]);
}

#[test]
fn what_is_absent_is_no_fault_and_comes_later() {
    if !may_make_nodes() {
        return;
    }
    let node = Node::new();
    let config = vec![device("serial", &["/dev/ttyUSB*"]), device("null", &["/dev/null"])];
    node.char_device("/dev/null", 1, 3);
    let devices = ConfiguredDevices::check(node.root(), config).unwrap();
    assert_eq!(devices.available(), ["null"]);
    let error = devices.resolve("serial").unwrap_err();
    assert!(error.is_absence());
    assert!(
        error
            .to_string()
            .starts_with("device serial: /dev/ttyUSB* is not there: plug it in"),
        "{error}"
    );
    node.char_device("/dev/ttyUSB3", 1, 5);
    assert_eq!(devices.resolve("serial").unwrap(), [PathBuf::from("/dev/ttyUSB3")]);
    assert_eq!(devices.available(), ["serial", "null"]);
    assert!(matches!(devices.resolve("other"), Err(DeviceError::Unknown { name }) if name == "other"));
}

#[test]
fn what_a_link_became_since_the_check_is_looked_at_again() {
    if !may_make_nodes() {
        return;
    }
    let node = Node::new();
    node.char_device("/dev/ttyUSB0", 1, 3);
    node.link("/dev/plc", "ttyUSB0");
    let devices = ConfiguredDevices::check(node.root(), vec![device("plc", &["/dev/plc"])]).unwrap();
    node.char_device("/dev/mem", 1, 1);
    node.remove("/dev/plc").link("/dev/plc", "mem");
    assert!(matches!(devices.resolve("plc"), Err(DeviceError::Forbidden { .. })));
}

#[test]
fn the_machine_itself_is_never_given_out() {
    if !may_make_nodes() {
        return;
    }
    let node = Node::new();
    for (path, minor, what) in [
        ("/dev/mem", 1, "memory"),
        ("/dev/kmem", 2, "memory"),
        ("/dev/port", 4, "I/O ports"),
        ("/dev/innocent", 1, "memory"),
    ] {
        assert!(node.char_device(path, 1, minor));
        let mut device = device("d", &[path]);
        device.allow = vec![path.into()];
        let fault = fault(&node, device);
        assert!(
            fault.contains(what) && fault.contains("never given to workloads"),
            "{fault}"
        );
    }
}

#[test]
fn guarded_devices_need_a_word() {
    if !may_make_nodes() {
        return;
    }
    let node = Node::new();
    node.link("/sys/dev/char/1:9/subsystem", "../../../class/tpmrm");
    let numbers = [
        ("/dev/watchdog1", 3),
        ("/dev/tpm0", 3),
        ("/dev/tpmrm7", 3),
        ("/dev/renamed", 9),
    ];
    for (path, minor) in numbers {
        assert!(node.char_device(path, 1, minor));
        let mut device = device("d", &[path]);
        let message = fault(&node, device.clone());
        assert!(message.contains(&format!("add {path:?} to allow")), "{message}");
        device.allow = vec![path.into()];
        assert_eq!(resolved(&node, device), [PathBuf::from(path)]);
    }
}

#[test]
fn disks_files_and_folders_are_refused() {
    if !may_make_nodes() {
        return;
    }
    let node = Node::new();
    assert!(node.block_device("/dev/sda"));
    node.file("/dev/file", "").file("/dev/folder/x", "").file("/secret", "");
    node.link("/dev/out", "../secret")
        .link("/dev/far", "/secret")
        .link("/dev/itself", "itself");
    let mut disk = device("d", &["/dev/sda"]);
    assert!(fault(&node, disk.clone()).contains("allow_block = true"));
    disk.allow_block = true;
    assert_eq!(resolved(&node, disk), [PathBuf::from("/dev/sda")]);
    for (path, expected) in [
        ("/dev/file", "not a device node"),
        ("/dev/fil*", "not a device node"),
        ("/dev/folder", "not a device node"),
        ("/dev/out", "leads to /secret, outside of /dev"),
        ("/dev/far", "leads to /secret, outside of /dev"),
        ("/dev/itself", "cannot be looked at"),
    ] {
        let message = fault(&node, device("d", &[path]));
        assert!(message.contains(expected), "{path}: {message}");
    }
}

#[test]
fn all_faults_of_the_text_are_reported_together() {
    let node = Node::new();
    let long = format!("/dev/{}", "x".repeat(300));
    let config = vec![
        device("Serial", &["/dev/a"]),
        device("twice", &["/etc/passwd", "/dev", "/dev/../etc/shadow", "dev/x", &long]),
        device("twice", &[]),
        device("-", &["/dev/a"]),
    ];
    let errors = ConfiguredDevices::check(node.root(), config).unwrap_err().to_string();
    let lines: Vec<&str> = errors.lines().collect();
    let expected = [
        "\"Serial\" is not valid",
        "\"/etc/passwd\" is not",
        "\"/dev\" is not",
        "\"/dev/../etc/shadow\"",
        "\"dev/x\"",
        "/dev/xxx",
        "\"twice\" is used twice",
        "device twice: nodes is empty",
        "\"-\" is not valid",
    ];
    assert_eq!(lines.len(), expected.len(), "{errors}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.contains(expected), "{line} / {expected}");
    }
}

#[test]
fn numbers_are_limited() {
    let node = Node::new();
    let many: Vec<DeviceConfig> = (0..=DEVICES_MAX)
        .map(|n| device(&format!("d{n}"), &["/dev/x"]))
        .collect();
    let errors = ConfiguredDevices::check(node.root(), many).unwrap_err();
    assert!(matches!(errors.0[0], DeviceError::TooMany { limit: DEVICES_MAX, .. }));
    let paths = vec!["/dev/x"; DEVICE_PATTERNS_MAX + 1];
    assert!(fault(&node, device("d", &paths)).contains("more than 32"));
    if may_make_nodes() {
        for number in 0..=DEVICE_NODES_MAX {
            node.char_device(&format!("/dev/tty{number}"), 1, 3);
        }
        assert!(fault(&node, device("d", &["/dev/tty*"])).contains("more than 64"));
    }
}

#[test]
fn the_configuration_is_read_strictly() {
    let parse = |text: &str| serde_json::from_str::<DeviceConfig>(text);
    let plain = parse(r#"{"name": "serial-1", "nodes": ["/dev/ttyUSB0"]}"#).unwrap();
    assert_eq!(plain, device("serial-1", &["/dev/ttyUSB0"]));
    assert!(parse(r#"{"name": "s", "nodes": [], "node": "/dev/x"}"#).is_err());
}
