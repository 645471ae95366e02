//! What is known about makers, ids and drivers.

use super::{AcceleratorClass, PciId};

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Model {
    pub(super) class: AcceleratorClass,
    pub(super) kind: &'static str,
    pub(super) detail: &'static str,
    /// The driver it needs, for a message, and the node that this makes.
    pub(super) driver: &'static str,
    pub(super) node: &'static str,
}

const HAILO_8: Model = Model {
    class: AcceleratorClass::Npu,
    kind: "hailo-8",
    detail: "Hailo-8 or Hailo-8L: both have this id, the HailoRT firmware tells which",
    driver: "hailo_pci (package hailort-pcie-driver)",
    node: "/dev/hailo*",
};
const HAILO_10H: Model = Model {
    kind: "hailo-10h",
    detail: "Hailo-10H",
    driver: "hailo1x_pci (package hailort-pcie-driver)",
    ..HAILO_8
};
const HAILO_15: Model = Model {
    kind: "hailo-15",
    detail: "Hailo-15L or its like, on PCI",
    ..HAILO_10H
};
const INTEL_NPU: Model = Model {
    class: AcceleratorClass::Npu,
    kind: "intel-npu",
    detail: "Intel NPU",
    driver: "intel_vpu and its firmware",
    node: "/dev/accel/accel*",
};
const AMD_NPU: Model = Model {
    kind: "amd-npu",
    detail: "AMD XDNA (Ryzen AI)",
    driver: "amdxdna and its firmware",
    ..INTEL_NPU
};
/// The Edge TPU on PCI.
pub(super) const CORAL_PCI: Model = Model {
    class: AcceleratorClass::Tpu,
    kind: "google-coral",
    detail: "Google Coral Edge TPU",
    driver: "gasket and apex (package gasket-dkms)",
    node: "/dev/apex_*",
};
/// The Edge TPU on USB, which needs no driver of the kernel.
pub(super) const CORAL_USB: Model = Model {
    detail: "Google Coral Edge TPU on USB",
    driver: "usb",
    node: "/dev/bus/usb/*/*",
    ..CORAL_PCI
};
/// The NPU in Rockchip's chips.
pub(super) const ROCKCHIP_NPU: Model = Model {
    class: AcceleratorClass::Npu,
    kind: "rockchip-npu",
    detail: "Rockchip NPU",
    driver: "RKNPU or rocket",
    node: "/dev/dri/renderD*",
};
const QUALCOMM: Model = Model {
    kind: "qualcomm-aic100",
    detail: "Qualcomm Cloud AI 100",
    driver: "qaic",
    ..INTEL_NPU
};

/// By the id of a PCI device; `class` is the PCI class with subclass and interface.
pub(super) fn by_pci(id: PciId, class: u32) -> Option<Model> {
    /// Processing accelerator, without the programming interface.
    const ACCELERATOR: u32 = 0x1200;
    let model = match (id.vendor, id.device) {
        (0x1e60, 0x2864) => HAILO_8,
        (0x1e60, 0x45c4) => HAILO_10H,
        (0x1e60, 0x43a2) => HAILO_15,
        (0x1ac1, 0x089a) => CORAL_PCI,
        (0x1022, 0x1502 | 0x17f0) => AMD_NPU,
        (0x17cb, 0xa080 | 0xa100) => QUALCOMM,
        (0x8086, _) if class >> 8 == ACCELERATOR => INTEL_NPU,
        _ => return None,
    };
    Some(model)
}

/// By the id of a USB device: before and after the Edge TPU was given its firmware.
pub(super) fn by_usb(vendor: u16, product: u16) -> Option<Model> {
    matches!((vendor, product), (0x18d1, 0x9302) | (0x1a6e, 0x089a)).then_some(CORAL_USB)
}

/// By the driver of something in `/sys/class/accel`, or the name of its device where it has no driver.
pub(super) fn by_accel_driver(name: &str) -> Option<Model> {
    let model = match name {
        "intel_vpu" => INTEL_NPU,
        "amdxdna" => AMD_NPU,
        "qaic" => QUALCOMM,
        // The device of mainline's driver for Rockchip is a made-up one without a driver.
        "rocket" | "rknn" => ROCKCHIP_NPU,
        _ => return None,
    };
    Some(model)
}

/// What a driver of a render node drives.
pub(super) fn gpu_kind(driver: &str) -> String {
    let kind = match driver {
        "i915" | "xe" => "intel-gpu",
        "amdgpu" | "radeon" => "amd-gpu",
        "nvidia" | "nouveau" => "nvidia-gpu",
        "panfrost" | "panthor" | "lima" | "mali" => "mali-gpu",
        "v3d" | "vc4-drm" => "broadcom-gpu",
        "msm" | "msm_dpu" | "adreno" => "adreno-gpu",
        "virtio_gpu" | "virtio-pci" => "virtio-gpu",
        other => return format!("{other}-gpu"),
    };
    kind.to_owned()
}

/// Drivers of GPUs that always make a render node when they work.
pub(super) const GPU_DRIVERS: [&str; 6] = ["i915", "xe", "amdgpu", "radeon", "nvidia", "nouveau"];
