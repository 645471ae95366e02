//! Goes through sysfs: first the classes, which know the device nodes, then the buses for what has no node.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::known::{self, Model};
use super::place::{self, is_pci, is_usb};
use super::{ACCELERATORS_MAX, AcceleratorClass, FoundAccelerator, PciId, Unusable};
use crate::tree::{Kind, Tree};

const PCI: &str = "/sys/bus/pci/devices";
const HAILO_VENDOR: u16 = 0x1e60;
/// PCI base class of displays.
const DISPLAY: u32 = 0x03;
/// Devices of drivers that only compute on the CPU.
const SOFTWARE: [&str; 3] = ["vgem", "vkms", "vkms-default"];

/// Everything, in no order.
pub(super) fn all(tree: &Tree) -> Vec<FoundAccelerator> {
    let mut scan = Scan {
        tree,
        found: Vec::new(),
        devices: BTreeSet::new(),
    };
    scan.accel();
    scan.hailo();
    scan.apex();
    scan.render_nodes();
    scan.rockchip();
    scan.usb();
    scan.pci();
    scan.found
}

struct Scan<'a> {
    tree: &'a Tree,
    found: Vec<FoundAccelerator>,
    /// Devices in sysfs that were found by their class already.
    devices: BTreeSet<PathBuf>,
}

/// What a class says of one of its members.
struct Member {
    /// The device behind it, without links.
    device: PathBuf,
    driver: String,
    node: PathBuf,
    /// What is wrong with the node.
    unusable: Option<Unusable>,
}

impl Scan<'_> {
    /// The kernel's own class of compute accelerators.
    fn accel(&mut self) {
        for name in self.members("accel", "accel") {
            let member = self.member("accel", &name, &format!("accel/{name}"));
            let by_id = self
                .pci_id(&member.device)
                .and_then(|(id, class)| known::by_pci(id, class));
            let device_name = file_name(&member.device);
            let known = by_id.or_else(|| known::by_accel_driver(&member.driver));
            match known.or_else(|| known::by_accel_driver(device_name)) {
                Some(model) => self.add_model(&model, member),
                None => {
                    let kind = if member.driver.is_empty() {
                        "accel"
                    } else {
                        &member.driver
                    };
                    let (kind, detail) = (kind.to_owned(), format!("accelerator {device_name}"));
                    self.add(AcceleratorClass::Npu, kind, detail, member);
                }
            }
        }
    }

    /// Hailo's class. Its devices have no parent in sysfs; an attribute names their PCI address.
    fn hailo(&mut self) {
        for name in self.members("hailo_chardev", "hailo") {
            let folder = Path::new("/sys/class/hailo_chardev").join(&name);
            let mut member = self.member("hailo_chardev", &name, &name);
            let location = self.tree.attribute(&folder, "board_location").filter(|l| is_pci(l));
            let behind = location.and_then(|l| self.tree.resolve(&Path::new(PCI).join(l)).ok());
            if let Some(device) = behind.or_else(|| self.next_hailo()) {
                member.driver = self.driver(&device);
                member.device = device;
            }
            match self
                .pci_id(&member.device)
                .and_then(|(id, class)| known::by_pci(id, class))
            {
                Some(model) => self.add_model(&model, member),
                None => self.add(
                    AcceleratorClass::Npu,
                    "hailo".into(),
                    "Hailo of unknown model".into(),
                    member,
                ),
            }
        }
    }

    /// The first Hailo that no class member stands for yet: for drivers that do not say the address.
    fn next_hailo(&self) -> Option<PathBuf> {
        let mut devices = self.tree.names(Path::new(PCI)).into_iter();
        devices.find_map(|name| {
            let device = self.tree.resolve(&Path::new(PCI).join(name)).ok()?;
            let (id, _) = self.pci_id(&device)?;
            (id.vendor == HAILO_VENDOR && !self.devices.contains(&device)).then_some(device)
        })
    }

    /// Google's Edge TPU on PCI.
    fn apex(&mut self) {
        for name in self.members("apex", "apex_") {
            let member = self.member("apex", &name, &name);
            self.add_model(&known::CORAL_PCI, member);
        }
    }

    /// GPUs, and the NPU of Rockchip's kernel, which is a DRM device there.
    fn render_nodes(&mut self) {
        for name in self.members("drm", "renderD") {
            let member = self.member("drm", &name, &format!("dri/{name}"));
            if SOFTWARE.contains(&file_name(&member.device)) || SOFTWARE.contains(&member.driver.as_str()) {
                continue;
            }
            let companions = self.companions(&member);
            if member.driver.eq_ignore_ascii_case("rknpu") {
                self.add_model(&known::ROCKCHIP_NPU, member);
            } else {
                let driver = if member.driver.is_empty() {
                    "unknown"
                } else {
                    &member.driver
                };
                let (kind, detail) = (known::gpu_kind(driver), format!("GPU {}", file_name(&member.device)));
                self.add(AcceleratorClass::Gpu, kind, detail, member);
            }
            if let Some(last) = self.found.last_mut() {
                last.nodes.extend(companions);
            }
        }
    }

    /// Nodes beside the render node without which the makers' libraries do not work.
    fn companions(&self, member: &Member) -> Vec<PathBuf> {
        let mut nodes = match member.driver.as_str() {
            "amdgpu" => vec![PathBuf::from("/dev/kfd")],
            "nvidia" => self.nvidia_nodes(&member.device),
            // Its library opens the card, not the render node.
            driver if driver.eq_ignore_ascii_case("rknpu") => {
                let cards = self
                    .tree
                    .names(&member.device.join("drm"))
                    .into_iter()
                    .filter(|n| n.starts_with("card"));
                cards.map(|card| Path::new("/dev/dri").join(card)).collect()
            }
            _ => Vec::new(),
        };
        nodes.retain(|node| check_node(self.tree, node, None).is_none());
        nodes
    }

    /// What CUDA opens: the GPU's own node and two that all GPUs share.
    fn nvidia_nodes(&self, device: &Path) -> Vec<PathBuf> {
        let folder = Path::new("/proc/driver/nvidia/gpus").join(file_name(device));
        let information = self.tree.attribute(&folder, "information").unwrap_or_default();
        let mut lines = information.lines();
        let minor = lines.find_map(|l| l.strip_prefix("Device Minor:")?.trim().parse::<u32>().ok());
        let own = minor.map(|minor| format!("/dev/nvidia{minor}"));
        let shared = ["/dev/nvidiactl", "/dev/nvidia-uvm"].map(str::to_owned);
        // Without its own node the shared ones are of no use.
        own.map_or_else(Vec::new, |own| {
            std::iter::once(own).chain(shared).map(PathBuf::from).collect()
        })
    }

    /// Rockchip's NPU where its driver makes a node of its own, or none.
    fn rockchip(&mut self) {
        let folder = Path::new("/sys/bus/platform/drivers/RKNPU");
        for name in self.tree.names(folder) {
            let Ok(device) = self.tree.resolve(&folder.join(&name)) else {
                continue;
            };
            if self.devices.contains(&device) || self.driver(&device) != "RKNPU" {
                continue;
            }
            let node = PathBuf::from("/dev/rknpu");
            let unusable = check_node(self.tree, &node, None).map(|why| match why {
                Unusable::NodeMissing { .. } => no_node("RKNPU", known::ROCKCHIP_NPU.node),
                other => other,
            });
            let driver = "RKNPU".to_owned();
            self.add_model(
                &known::ROCKCHIP_NPU,
                Member {
                    device,
                    driver,
                    node,
                    unusable,
                },
            );
        }
    }

    /// Google's Edge TPU on USB.
    fn usb(&mut self) {
        let folder = Path::new("/sys/bus/usb/devices");
        for name in self.tree.names(folder).into_iter().filter(|n| is_usb(n)) {
            let Ok(device) = self.tree.resolve(&folder.join(&name)) else {
                continue;
            };
            let (Some(vendor), Some(product)) = (self.hex(&device, "idVendor"), self.hex(&device, "idProduct")) else {
                continue;
            };
            let (Ok(vendor), Ok(product)) = (u16::try_from(vendor), u16::try_from(product)) else {
                continue;
            };
            let Some(mut model) = known::by_usb(vendor, product) else {
                continue;
            };
            if vendor == 0x1a6e {
                model.detail =
                    "Google Coral Edge TPU on USB, still without firmware: its node changes at its first use";
            }
            let number = |file: &str| self.tree.number::<u16>(&device, file).unwrap_or_default();
            let node = PathBuf::from(format!("/dev/bus/usb/{:03}/{:03}", number("busnum"), number("devnum")));
            let unusable = check_node(self.tree, &node, self.tree.attribute(&device, "dev").as_deref());
            let driver = self.driver(&device);
            self.add_model(
                &model,
                Member {
                    device,
                    driver,
                    node,
                    unusable,
                },
            );
        }
    }

    /// Known PCI devices that no class has.
    fn pci(&mut self) {
        for name in self.tree.names(Path::new(PCI)).into_iter().filter(|n| is_pci(n)) {
            let Ok(device) = self.tree.resolve(&Path::new(PCI).join(&name)) else {
                continue;
            };
            let Some((id, class)) = self.pci_id(&device).filter(|_| !self.devices.contains(&device)) else {
                continue;
            };
            let driver = self.driver(&device);
            if let Some(model) = known::by_pci(id, class) {
                let why = match driver.as_str() {
                    "" => Unusable::NoDriver { driver: model.driver },
                    driver => no_node(driver, model.node),
                };
                let node = PathBuf::new();
                self.add_model(
                    &model,
                    Member {
                        device,
                        driver,
                        node,
                        unusable: Some(why),
                    },
                );
            } else if class >> 16 == DISPLAY && known::GPU_DRIVERS.contains(&driver.as_str()) {
                self.gpu_without_render_node(device, driver);
            }
        }
    }

    fn gpu_without_render_node(&mut self, device: PathBuf, driver: String) {
        let mut nodes = if driver == "nvidia" {
            self.nvidia_nodes(&device)
        } else {
            Vec::new()
        };
        nodes.retain(|node| check_node(self.tree, node, None).is_none());
        let unusable = nodes.is_empty().then(|| no_node(&driver, "/dev/dri/renderD*"));
        let (kind, detail) = (
            known::gpu_kind(&driver),
            format!("GPU {}, no render node", file_name(&device)),
        );
        let node = PathBuf::new();
        self.add(
            AcceleratorClass::Gpu,
            kind,
            detail,
            Member {
                device,
                driver,
                node,
                unusable,
            },
        );
        if let Some(last) = self.found.last_mut() {
            last.nodes = nodes;
        }
    }

    fn members(&self, class: &str, prefix: &str) -> Vec<String> {
        let mut names = self.tree.names(&Path::new("/sys/class").join(class));
        names.retain(|name| {
            let number = name.strip_prefix(prefix);
            number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        });
        names.truncate(ACCELERATORS_MAX);
        names
    }

    /// One member of a class; `node` is the path below `/dev` that its node usually has.
    fn member(&self, class: &str, name: &str, node: &str) -> Member {
        let folder = Path::new("/sys/class").join(class).join(name);
        let own = || self.tree.resolve(&folder).unwrap_or_else(|_| folder.clone());
        let device = self.tree.resolve(&folder.join("device")).unwrap_or_else(|_| own());
        let event = self.tree.attribute(&folder, "uevent").unwrap_or_default();
        let said = event.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        let plain = said.filter(|said| {
            Path::new(said)
                .components()
                .all(|c| matches!(c, std::path::Component::Normal(_)))
        });
        let node = Path::new("/dev").join(plain.filter(|s| !s.is_empty()).unwrap_or(node));
        let unusable = check_node(self.tree, &node, self.tree.attribute(&folder, "dev").as_deref());
        Member {
            driver: self.driver(&device),
            device,
            node,
            unusable,
        }
    }

    fn driver(&self, device: &Path) -> String {
        self.tree.link_name(device, "driver").unwrap_or_default()
    }

    fn pci_id(&self, device: &Path) -> Option<(PciId, u32)> {
        if !is_pci(file_name(device)) {
            return None;
        }
        let half = |name: &str| u16::try_from(self.hex(device, name)?).ok();
        let id = PciId {
            vendor: half("vendor")?,
            device: half("device")?,
        };
        Some((id, self.hex(device, "class").unwrap_or_default()))
    }

    fn hex(&self, device: &Path, name: &str) -> Option<u32> {
        let text = self.tree.attribute(device, name)?;
        u32::from_str_radix(text.strip_prefix("0x").unwrap_or(&text), 16).ok()
    }

    fn add_model(&mut self, model: &Model, member: Member) {
        self.add(model.class, model.kind.to_owned(), model.detail.to_owned(), member);
    }

    fn add(&mut self, class: AcceleratorClass, kind: String, detail: String, member: Member) {
        let absent = matches!(
            member.unusable,
            Some(Unusable::NodeMissing { .. } | Unusable::NoNode { .. })
        );
        let no_node = absent || member.node.as_os_str().is_empty();
        self.found.push(FoundAccelerator {
            id: format!("{}-{}", class.as_str(), place::name(&member.device)),
            class,
            kind,
            nodes: if no_node { Vec::new() } else { vec![member.node] },
            driver: member.driver,
            pci: self.pci_id(&member.device).map(|(id, _)| id),
            detail,
            unusable: member.unusable,
        });
        self.devices.insert(member.device);
    }
}

fn no_node(driver: &str, node: &str) -> Unusable {
    Unusable::NoNode {
        driver: driver.to_owned(),
        node: node.to_owned(),
    }
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// What is wrong with a device node; `expected` is the `major:minor` of sysfs.
fn check_node(tree: &Tree, node: &Path, expected: Option<&str>) -> Option<Unusable> {
    let at = || node.to_owned();
    let Ok(resolved) = tree.resolve(node) else {
        return Some(Unusable::NodeMissing { node: at() });
    };
    let Ok(Kind::Char(major, minor)) = tree.kind(&resolved) else {
        return Some(Unusable::NotADevice { node: at() });
    };
    let found = format!("{major}:{minor}");
    if let Some(expected) = expected.filter(|expected| *expected != found) {
        let expected = expected.to_owned();
        return Some(Unusable::OtherDevice {
            node: at(),
            expected,
            found,
        });
    }
    let access = rustix::fs::access(tree.real(&resolved), Access::READ_OK | Access::WRITE_OK);
    let error = access.err()?;
    Some(Unusable::NoAccess {
        node: at(),
        error: std::io::Error::from(error).to_string(),
    })
}
