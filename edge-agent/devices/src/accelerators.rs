//! Accelerators: what computes beside the CPU, found in sysfs, with the device nodes that a workload needs.
//!
//! A device is found by its class (`/sys/class/accel`, `drm`, `apex`, `hailo_chardev`), by its driver or by its bus id.
//! What is known and cannot be used is reported too, with the reason. The order and the ids depend on where a device is
//! plugged in and not on the order in which drivers were loaded.

mod known;
mod place;
mod scan;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::tree::Tree;

/// Accelerators of one node; more are not reported.
pub const ACCELERATORS_MAX: usize = 64;

/// What an accelerator is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AcceleratorClass {
    /// Neural networks.
    Npu,
    /// Neural networks of one maker's format: Google's Edge TPU.
    Tpu,
    /// Graphics, and computing in general.
    Gpu,
}

impl AcceleratorClass {
    /// `npu`, `tpu` or `gpu`, as manifests write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            AcceleratorClass::Npu => "npu",
            AcceleratorClass::Tpu => "tpu",
            AcceleratorClass::Gpu => "gpu",
        }
    }
}

/// Who made a PCI device and which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciId {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
}

impl fmt::Display for PciId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)
    }
}

/// Why an accelerator cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// No driver has taken the device.
    #[error("no driver is bound to it: load or install {driver}")]
    NoDriver {
        /// The driver that it needs.
        driver: &'static str,
    },
    /// The driver has made no device node.
    #[error("its driver {driver} made no {node}: read the kernel's log for why it failed (often missing firmware)")]
    NoNode {
        /// The driver.
        driver: String,
        /// The node that should be there.
        node: String,
    },
    /// The kernel has a device whose node is missing in `/dev`.
    #[error("{node} is missing: mount devtmpfs or run udev; in a container, pass the node in", node = node.display())]
    NodeMissing {
        /// The node.
        node: PathBuf,
    },
    /// The node is no character device.
    #[error("{node} is not a character device: remove it and let the kernel make it", node = node.display())]
    NotADevice {
        /// The node.
        node: PathBuf,
    },
    /// The node is that of another device.
    #[error("{node} is device {found}, but its driver has {expected}: remove it and let the kernel make it",
        node = node.display())]
    OtherDevice {
        /// The node.
        node: PathBuf,
        /// Major and minor number in sysfs.
        expected: String,
        /// Major and minor number of the node.
        found: String,
    },
    /// The agent may not read and write the node.
    #[error("{node} may not be read and written by the agent ({error}): add it to the group of the node",
        node = node.display())]
    NoAccess {
        /// The node.
        node: PathBuf,
        /// What the system said.
        error: String,
    },
}

/// An accelerator of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundAccelerator {
    /// Names it on its node, by where it is plugged in: `npu-pci-0000-00-0b.0`, `tpu-usb-0000-00-14.0-2.1`,
    /// `gpu-fde60000.gpu`. Lower-case letters, digits, `-` and `.` only.
    pub id: String,
    /// What it is good for.
    pub class: AcceleratorClass,
    /// What it is: `intel-npu`, `amd-npu`, `hailo-8`, `hailo-10h`, `google-coral`, `rockchip-npu`, `intel-gpu`, ...
    pub kind: String,
    /// The device nodes that a workload needs to use it, absolute, those of this device first. Empty if it has none.
    pub nodes: Vec<PathBuf>,
    /// The kernel's driver; empty if none is bound.
    pub driver: String,
    /// For PCI devices, who made it.
    pub pci: Option<PciId>,
    /// What a person may want to know about it.
    pub detail: String,
    /// Why it cannot be used, if so. Such a one must not be offered or leased.
    pub unusable: Option<Unusable>,
}

/// All accelerators, usable or not: by class, then by where they are plugged in.
#[must_use]
pub fn discover(root: &Path) -> Vec<FoundAccelerator> {
    let tree = Tree::new(root);
    let mut found = scan::all(&tree);
    found.sort_by(|a, b| (a.class, &a.id, &a.nodes).cmp(&(b.class, &b.id, &b.nodes)));
    found.truncate(ACCELERATORS_MAX);
    // Several of one class at one place, such as two cards of a device without an address of its own.
    let mut seen = std::collections::BTreeMap::<String, u32>::new();
    for accelerator in &mut found {
        let count = seen.entry(accelerator.id.clone()).or_default();
        *count += 1;
        if *count > 1 {
            accelerator.id = format!("{}-{count}", accelerator.id);
        }
    }
    found
}
