//! Accelerators in trees as their drivers make them.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use cnova_devices::{AcceleratorClass, FoundAccelerator, Unusable, discover};

use crate::fixture::{Node, may_make_nodes};

fn paths(nodes: &[&str]) -> Vec<PathBuf> {
    nodes.iter().map(PathBuf::from).collect()
}

fn ids(found: &[FoundAccelerator]) -> Vec<&str> {
    found.iter().map(|a| a.id.as_str()).collect()
}

/// The kernel's tree of a Hailo: its class member has no parent.
fn hailo(node: &Node, number: u32, address: &str) {
    let folder = format!("/sys/devices/virtual/hailo_chardev/hailo{number}");
    let dev = format!("1:{}", 3 + number);
    node.files(
        &folder,
        &[
            ("board_location", address),
            ("dev", &dev),
            ("uevent", &format!("DEVNAME=hailo{number}")),
        ],
    );
    let target = format!("../../devices/virtual/hailo_chardev/hailo{number}");
    node.link(&format!("/sys/class/hailo_chardev/hailo{number}"), &target);
    node.char_device(&format!("/dev/hailo{number}"), 1, 3 + number);
}

fn edge_tpu(node: &Node, vendor: &str, product: &str, devnum: u32) {
    let folder = "/sys/devices/pci0000:00/0000:00:14.0/usb2/2-1/2-1.4";
    let devnum = devnum.to_string();
    node.files(
        folder,
        &[
            ("idVendor", vendor),
            ("idProduct", product),
            ("busnum", "2"),
            ("devnum", &devnum),
        ],
    );
    node.link(&format!("{folder}/driver"), "../../../../../../bus/usb/drivers/usb");
}

#[test]
fn an_empty_machine_has_none() {
    assert_eq!(discover(Node::new().root()), []);
}

/// One of each kind.
fn full_machine() -> Node {
    let node = Node::new();
    let intel = node.pci("0000:00:0b.0", "0x8086", "0x7d1d", "0x120000", "intel_vpu");
    node.class(&intel, "accel", "accel0", "accel/accel0", 3);
    let amd = node.pci("0000:c5:00.1", "0x1022", "0x17f0", "0x118000", "amdxdna");
    node.class(&amd, "accel", "accel1", "accel/accel1", 5);
    let gpu = node.pci("0000:00:02.0", "0x8086", "0x7d55", "0x030000", "xe");
    node.class(&gpu, "drm", "renderD128", "dri/renderD128", 7);
    let coral = node.pci("0000:04:00.0", "0x1ac1", "0x089a", "0x0880ff", "apex");
    node.class(&coral, "apex", "apex_0", "apex_0", 8);
    node.pci("0000:03:00.0", "0x1e60", "0x2864", "0x120000", "hailo");
    node.pci("0000:02:00.0", "0x1e60", "0x45c4", "0x120000", "hailo1x");
    hailo(&node, 0, "0000:03:00.0");
    hailo(&node, 1, "0000:02:00.0");
    edge_tpu(&node, "18d1", "9302", 9);
    node.link(
        "/sys/bus/usb/devices/2-1.4",
        "../../../devices/pci0000:00/0000:00:14.0/usb2/2-1/2-1.4",
    );
    node.link(
        "/sys/bus/usb/devices/usb2",
        "../../../devices/pci0000:00/0000:00:14.0/usb2",
    );
    assert!(node.char_device("/dev/bus/usb/002/009", 1, 9));
    node
}

#[test]
fn all_kinds_are_found_with_their_nodes() {
    if !may_make_nodes() {
        return;
    }
    let node = full_machine();
    let found = discover(node.root());
    let expected = [
        (
            "npu-pci-0000-00-0b.0",
            "intel-npu",
            "/dev/accel/accel0",
            "intel_vpu",
            Some("8086:7d1d"),
        ),
        (
            "npu-pci-0000-02-00.0",
            "hailo-10h",
            "/dev/hailo1",
            "hailo1x",
            Some("1e60:45c4"),
        ),
        (
            "npu-pci-0000-03-00.0",
            "hailo-8",
            "/dev/hailo0",
            "hailo",
            Some("1e60:2864"),
        ),
        (
            "npu-pci-0000-c5-00.1",
            "amd-npu",
            "/dev/accel/accel1",
            "amdxdna",
            Some("1022:17f0"),
        ),
        (
            "tpu-pci-0000-04-00.0",
            "google-coral",
            "/dev/apex_0",
            "apex",
            Some("1ac1:089a"),
        ),
        (
            "tpu-usb-0000-00-14.0-1.4",
            "google-coral",
            "/dev/bus/usb/002/009",
            "usb",
            None,
        ),
        (
            "gpu-pci-0000-00-02.0",
            "intel-gpu",
            "/dev/dri/renderD128",
            "xe",
            Some("8086:7d55"),
        ),
    ];
    assert_eq!(ids(&found), expected.map(|e| e.0));
    for (accelerator, (id, kind, path, driver, pci)) in found.iter().zip(expected) {
        assert_eq!(accelerator.unusable, None, "{id}");
        assert_eq!(
            (accelerator.kind.as_str(), accelerator.driver.as_str()),
            (kind, driver),
            "{id}"
        );
        assert_eq!(accelerator.nodes, paths(&[path]), "{id}");
        assert_eq!(accelerator.pci.map(|p| p.to_string()).as_deref(), pci, "{id}");
        assert!(
            id.starts_with(accelerator.class.as_str()) && !accelerator.detail.is_empty(),
            "{id}"
        );
    }
    assert!(found[2].detail.contains("Hailo-8L"), "{}", found[2].detail);
}

#[test]
fn ids_stay_when_drivers_start_in_another_order() {
    let build = |first: u32, second: u32| {
        let node = Node::new();
        node.pci("0000:02:00.0", "0x1e60", "0x2864", "0x120000", "hailo");
        node.pci("0000:03:00.0", "0x1e60", "0x2864", "0x120000", "hailo");
        hailo(&node, first, "0000:02:00.0");
        hailo(&node, second, "0000:03:00.0");
        discover(node.root())
    };
    let (one, other) = (build(0, 1), build(1, 0));
    assert_eq!(ids(&one), ["npu-pci-0000-02-00.0", "npu-pci-0000-03-00.0"]);
    assert_eq!(ids(&one), ids(&other));
    if may_make_nodes() {
        assert_eq!(
            (&one[0].nodes, &other[0].nodes),
            (&paths(&["/dev/hailo0"]), &paths(&["/dev/hailo1"]))
        );
    }
}

#[test]
fn a_hailo_whose_driver_does_not_say_its_place_is_still_one_device() {
    let node = Node::new();
    node.pci("0000:02:00.0", "0x1e60", "0x2864", "0x120000", "hailo");
    hailo(&node, 0, "");
    let found = discover(node.root());
    assert_eq!(ids(&found), ["npu-pci-0000-02-00.0"]);
    assert_eq!(found[0].kind, "hailo-8");
}

#[test]
fn rockchip_gives_the_card_that_its_library_opens() {
    if !may_make_nodes() {
        return;
    }
    let node = Node::new();
    let npu = "/sys/devices/platform/fdab0000.npu";
    node.link(&format!("{npu}/driver"), "../../../bus/platform/drivers/RKNPU");
    node.link(
        "/sys/bus/platform/drivers/RKNPU/fdab0000.npu",
        "../../../../devices/platform/fdab0000.npu",
    );
    node.file("/sys/bus/platform/drivers/RKNPU/uevent", "");
    node.class(npu, "drm", "renderD129", "dri/renderD129", 3);
    node.class(npu, "drm", "card1", "dri/card1", 5);
    let gpu = "/sys/devices/platform/fb000000.gpu";
    node.link(&format!("{gpu}/driver"), "../../../bus/platform/drivers/panthor");
    node.class(gpu, "drm", "renderD128", "dri/renderD128", 7);
    let found = discover(node.root());
    assert_eq!(ids(&found), ["npu-fdab0000.npu", "gpu-fb000000.gpu"]);
    assert_eq!(found[0].kind, "rockchip-npu");
    assert_eq!(found[0].nodes, paths(&["/dev/dri/renderD129", "/dev/dri/card1"]));
    assert_eq!(
        (found[1].kind.as_str(), &found[1].nodes),
        ("mali-gpu", &paths(&["/dev/dri/renderD128"]))
    );
}

#[test]
fn rockchip_without_render_node_has_its_own_or_none() {
    let node = Node::new();
    node.link(
        "/sys/devices/platform/fde40000.npu/driver",
        "../../../bus/platform/drivers/RKNPU",
    );
    node.link(
        "/sys/bus/platform/drivers/RKNPU/fde40000.npu",
        "../../../../devices/platform/fde40000.npu",
    );
    let found = discover(node.root());
    assert!(matches!(found[0].unusable, Some(Unusable::NoNode { .. })), "{found:?}");
    assert_eq!((found[0].id.as_str(), found[0].nodes.len()), ("npu-fde40000.npu", 0));
    if may_make_nodes() {
        node.char_device("/dev/rknpu", 1, 3);
        let found = discover(node.root());
        assert_eq!((&found[0].unusable, &found[0].nodes), (&None, &paths(&["/dev/rknpu"])));
    }
}

#[test]
fn mainline_rockchip_is_known_by_its_made_up_device() {
    let node = Node::new();
    node.class("/sys/devices/platform/rknn", "accel", "accel0", "accel/accel0", 3);
    let found = discover(node.root());
    assert_eq!(
        (found[0].kind.as_str(), found[0].id.as_str()),
        ("rockchip-npu", "npu-rknn")
    );
}

#[test]
fn nvidia_gives_what_cuda_opens_with_and_without_a_render_node() {
    if !may_make_nodes() {
        return;
    }
    let node = Node::new();
    let gpu = node.pci("0000:01:00.0", "0x10de", "0x2684", "0x030000", "nvidia");
    node.file(
        "/proc/driver/nvidia/gpus/0000:01:00.0/information",
        "Model: \t x\nDevice Minor: \t 0",
    );
    for (number, name) in [(5, "nvidia0"), (7, "nvidiactl"), (8, "nvidia-uvm"), (9, "nvidia1")] {
        assert!(node.char_device(&format!("/dev/{name}"), 1, number));
    }
    let cuda = ["/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm"];
    let found = discover(node.root());
    assert_eq!(
        (found.len(), &found[0].unusable, &found[0].nodes),
        (1, &None, &paths(&cuda))
    );
    node.class(&gpu, "drm", "renderD128", "dri/renderD128", 3);
    let found = discover(node.root());
    assert_eq!((found.len(), found[0].kind.as_str()), (1, "nvidia-gpu"));
    assert_eq!(
        found[0].nodes,
        paths(&["/dev/dri/renderD128", cuda[0], cuda[1], cuda[2]])
    );
}

#[test]
fn what_cannot_be_used_says_why() {
    let node = Node::new();
    node.pci("0000:00:0b.0", "0x8086", "0x7d1d", "0x120000", "intel_vpu");
    node.pci("0000:03:00.0", "0x1e60", "0x2864", "0x120000", "");
    node.pci("0000:01:00.0", "0x1002", "0x744c", "0x030000", "amdgpu");
    // Neither an accelerator nor a GPU that computes.
    node.pci("0000:05:00.0", "0x1a03", "0x2000", "0x030000", "ast");
    node.pci("0000:06:00.0", "0x8086", "0x15f3", "0x020000", "igc");
    let reasons: Vec<String> = discover(node.root())
        .into_iter()
        .map(|a| a.unusable.unwrap().to_string())
        .collect();
    let expected = [
        "its driver intel_vpu made no /dev/accel/accel*: read the kernel's log for why it failed (often missing \
         firmware)",
        "no driver is bound to it: load or install hailo_pci (package hailort-pcie-driver)",
        "its driver amdgpu made no /dev/dri/renderD*: read the kernel's log for why it failed (often missing firmware)",
    ];
    assert_eq!(reasons, expected);
}

#[test]
fn a_node_that_is_missing_or_another_is_not_offered() {
    let node = Node::new();
    let intel = node.pci("0000:00:0b.0", "0x8086", "0x7d1d", "0x120000", "intel_vpu");
    node.class(&intel, "accel", "accel0", "accel/accel0", 3);
    let reason = || discover(node.root()).remove(0).unusable;
    if may_make_nodes() {
        assert_eq!(reason(), None);
        node.remove("/dev/accel/accel0");
    }
    let path = PathBuf::from("/dev/accel/accel0");
    assert_eq!(reason(), Some(Unusable::NodeMissing { node: path.clone() }));
    node.file("/dev/accel/accel0", "a file");
    assert_eq!(reason(), Some(Unusable::NotADevice { node: path.clone() }));
    if may_make_nodes() {
        node.remove("/dev/accel/accel0").char_device("/dev/accel/accel0", 1, 5);
        let (expected, found) = ("1:3".to_owned(), "1:5".to_owned());
        assert_eq!(
            reason(),
            Some(Unusable::OtherDevice {
                node: path,
                expected,
                found
            })
        );
    }
}

#[test]
fn an_edge_tpu_without_firmware_is_the_same_device_later() {
    let id = |vendor, product, devnum| {
        let node = Node::new();
        edge_tpu(&node, vendor, product, devnum);
        node.link(
            "/sys/bus/usb/devices/2-1.4",
            "../../../devices/pci0000:00/0000:00:14.0/usb2/2-1/2-1.4",
        );
        discover(node.root()).remove(0)
    };
    let (fresh, used) = (id("1a6e", "089a", 4), id("18d1", "9302", 5));
    assert_eq!((&fresh.id, fresh.class), (&used.id, AcceleratorClass::Tpu));
    assert!(fresh.detail.contains("node changes") && !used.detail.contains("node changes"));
}

#[test]
fn odd_trees_are_survived() {
    let node = Node::new();
    for class in ["accel/accel0", "drm/renderD128", "apex/apex_0", "hailo_chardev/hailo0"] {
        node.link(&format!("/sys/class/{class}"), "nowhere");
    }
    node.link("/sys/class/accel/accel1", "accel1");
    node.link("/sys/bus/pci/devices/0000:00:00.0", "../../../..");
    node.pci("0000:00:01.0", "0xfffff", "zz", "", "x");
    node.pci("0000:00:02.0", "0x1e60", "0x2864", "not a number", "hailo");
    node.file("/sys/class/accel/accel2/uevent", "DEVNAME=../../etc/passwd");
    node.file("/sys/class/accel/accel3/uevent", &"DEVNAME=x".repeat(1000));
    node.file("/sys/bus/usb/devices", "a file");
    for accelerator in discover(node.root()) {
        assert!(accelerator.unusable.is_some(), "{accelerator:?}");
        assert!(
            accelerator.nodes.iter().all(|n| n.starts_with("/dev")),
            "{accelerator:?}"
        );
    }
}

#[test]
fn a_node_that_the_agent_may_not_open_is_not_offered() {
    if !may_make_nodes() {
        return;
    }
    let node = Node::new();
    let intel = node.pci("0000:00:0b.0", "0x8086", "0x7d1d", "0x120000", "intel_vpu");
    node.class(&intel, "accel", "accel0", "accel/accel0", 3);
    std::fs::set_permissions(node.root(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let root = node.root().to_owned();
    // The node belongs to this user alone. Another one is tried in a thread, whose ids are its own.
    let found = std::thread::spawn(move || {
        rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)).map(|()| discover(&root))
    });
    let Ok(found) = found.join().unwrap() else {
        eprintln!("skipped: this process may not change its user (needs CAP_SETUID)");
        return;
    };
    let reason = found[0].unusable.as_ref().unwrap().to_string();
    assert!(
        reason.starts_with("/dev/accel/accel0 may not be read and written by the agent (Permission"),
        "{reason}"
    );
}
