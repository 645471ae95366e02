//! A folder that looks like the root of a node.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, makedev, mknodat};

pub(crate) struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("dev")).unwrap();
        Self { dir }
    }

    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    fn at(&self, path: &str) -> PathBuf {
        let at = self.root().join(path.trim_start_matches('/'));
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        at
    }

    pub(crate) fn file(&self, path: &str, text: &str) -> &Self {
        std::fs::write(self.at(path), format!("{text}\n")).unwrap();
        self
    }

    /// Several files of one folder.
    pub(crate) fn files(&self, folder: &str, files: &[(&str, &str)]) -> &Self {
        for (name, text) in files {
            self.file(&format!("{folder}/{name}"), text);
        }
        self
    }

    pub(crate) fn link(&self, path: &str, target: &str) -> &Self {
        symlink(target, self.at(path)).unwrap();
        self
    }

    pub(crate) fn remove(&self, path: &str) -> &Self {
        std::fs::remove_file(self.at(path)).unwrap();
        self
    }

    /// A PCI device at its place, linked from its bus as the kernel does it.
    pub(crate) fn pci(&self, address: &str, vendor: &str, device: &str, class: &str, driver: &str) -> String {
        let folder = format!("/sys/devices/pci0000:00/{address}");
        self.files(&folder, &[("vendor", vendor), ("device", device), ("class", class)]);
        self.link(
            &format!("/sys/bus/pci/devices/{address}"),
            &format!("../../../devices/pci0000:00/{address}"),
        );
        self.link(&format!("{folder}/subsystem"), "../../../bus/pci");
        if !driver.is_empty() {
            std::fs::create_dir_all(self.at(&format!("/sys/bus/pci/drivers/{driver}/x")).parent().unwrap()).unwrap();
            self.link(
                &format!("{folder}/driver"),
                &format!("../../../bus/pci/drivers/{driver}"),
            );
        }
        folder
    }

    /// A member of a class below its device, with its number and the name of its node; the node too where this process
    /// may make one.
    pub(crate) fn class(&self, device: &str, class: &str, name: &str, devname: &str, minor: u32) -> &Self {
        let folder = format!("{device}/{class}/{name}");
        self.file(&format!("{folder}/dev"), &format!("1:{minor}"));
        self.file(
            &format!("{folder}/uevent"),
            &format!("MAJOR=1\nMINOR={minor}\nDEVNAME={devname}"),
        );
        self.link(&format!("{folder}/device"), "../..");
        let target = format!("../../{}", folder.trim_start_matches("/sys/"));
        self.link(&format!("/sys/class/{class}/{name}"), &target);
        self.char_device(&format!("/dev/{devname}"), 1, minor);
        self
    }

    /// Makes a character device; whether this process may. Numbers of memory devices (1:3 and on) because containers
    /// may make those as well.
    pub(crate) fn char_device(&self, path: &str, major: u32, minor: u32) -> bool {
        self.node(path, FileType::CharacterDevice, major, minor)
    }

    pub(crate) fn block_device(&self, path: &str) -> bool {
        self.node(path, FileType::BlockDevice, 7, 0)
    }

    fn node(&self, path: &str, kind: FileType, major: u32, minor: u32) -> bool {
        mknodat(
            rustix::fs::CWD,
            self.at(path),
            kind,
            0o600.into(),
            makedev(major, minor),
        )
        .is_ok()
    }
}

/// Whether device nodes can be made here; says so if not.
pub(crate) fn may_make_nodes() -> bool {
    let node = Node::new();
    let may = node.char_device("/dev/null", 1, 3) && node.block_device("/dev/loop");
    if !may {
        eprintln!("skipped: this process may not make device nodes (needs CAP_MKNOD)");
    }
    may
}
