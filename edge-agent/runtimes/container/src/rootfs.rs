//! The keeper's own view of the file system: a small tree in memory that holds the container's root and what is mounted
//! into it, and nothing else of the node once the keeper has moved into it.
//!
//! ```text
//! /rootfs    overlay of the image's layers, with a layer in memory on top for mount points; read-only later
//! /mounts/N  the spec's mounts, the ids mapped
//! /files     hosts, hostname, resolv.conf
//! /secrets/N secrets that are files
//! /dev       the few nodes that the container gets
//! /bundle    config.json
//! /state     of libcontainer
//! ```

use std::ffi::CString;
use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use cnova_ral::{Device, Mount, Secrets, Spec};
use rustix::fs::{FileType, Gid, Mode, Uid};
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};

use crate::image::LoadedImage;
use crate::sys;
use crate::user::User;

/// Where the tree is mounted, in the keeper's mount namespace only; for everybody else it is an empty folder.
pub(crate) const TREE: &str = "/run/cnova-container";
/// Room beside secrets: a page for each of them, generously.
const SECRETS_ROOM_BYTES: usize = 1 << 20;
/// Most bytes of the tree in memory: mount points, and the files made here.
const TREE_OPTIONS: &str = "mode=755,size=8m,nr_inodes=8k";
/// Device nodes that every container has.
pub(crate) const NODES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Why the tree could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootfsError {
    #[error("cannot {action} {path}: {source}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("mount {guest}: {host} is neither a folder nor a regular file")]
    MountKind { guest: PathBuf, host: PathBuf },
    #[error("mount {guest}: {source} ({host})")]
    Mount {
        guest: PathBuf,
        host: PathBuf,
        source: io::Error,
    },
    #[error("device `{name}`: {node} is no device node below /dev, or is not there")]
    Device { name: String, node: PathBuf },
}

/// A device node of the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) path: PathBuf,
    pub(crate) kind: FileType,
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

impl Node {
    /// As the device control group names it.
    pub(crate) fn rule(&self) -> String {
        let kind = if self.kind == FileType::BlockDevice { 'b' } else { 'c' };
        format!("{kind} {}:{} rwm", self.major, self.minor)
    }
}

/// The nodes of the spec's devices.
pub(crate) fn nodes(devices: &[Device]) -> Result<Vec<Node>, RootfsError> {
    let mut nodes = Vec::new();
    for device in devices {
        for path in &device.nodes {
            let refused = || RootfsError::Device {
                name: device.name.clone(),
                node: path.clone(),
            };
            let found = rustix::fs::stat(path).map_err(|_| refused())?;
            let kind = FileType::from_raw_mode(found.st_mode);
            let is_node = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
            if !is_node || !path.starts_with("/dev") {
                return Err(refused());
            }
            nodes.push(Node {
                path: path.clone(),
                kind,
                major: rustix::fs::major(found.st_rdev),
                minor: rustix::fs::minor(found.st_rdev),
            });
        }
    }
    Ok(nodes)
}

/// A private mount namespace with an empty tree in it.
pub(crate) fn begin() -> Result<(), RootfsError> {
    let tree = Path::new(TREE);
    make(tree, 0o755)?;
    sys::unshare(libc::CLONE_NEWNS).map_err(at("make a mount namespace for", tree))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(|e| at("make private", "/")(e.into()))?;
    mount("tmpfs", tree, "tmpfs", MountFlags::empty(), TREE_OPTIONS)?;
    for (name, mode) in [
        ("rootfs", 0o755),
        ("mounts", 0o755),
        ("files", 0o755),
        ("dev", 0o755),
        ("bundle", 0o755),
        ("state", 0o755),
        ("layers", 0o700),
        ("upper", 0o755),
        ("work", 0o755),
        ("proc", 0o555),
        ("sys", 0o555),
    ] {
        make(&tree.join(name), mode)?;
    }
    Ok(())
}

/// Mounts the layers on `rootfs`. Their paths go through short links, because all of them must fit into a page.
pub(crate) fn overlay(image: &LoadedImage) -> Result<PathBuf, RootfsError> {
    let tree = Path::new(TREE);
    let mut lower = Vec::new();
    for (number, layer) in image.layers.iter().enumerate().rev() {
        let link = tree.join("layers").join(number.to_string());
        symlink(&layer.path, &link).map_err(at("link", &link))?;
        lower.push(format!("layers/{number}"));
    }
    // The root folder of an overlay is that of its topmost layer, which is ours: it gets the image's attributes.
    if let Some(top) = image.layers.last() {
        let meta = fs::metadata(&top.path).map_err(at("look at", &top.path))?;
        let upper = tree.join("upper");
        std::os::unix::fs::chown(&upper, Some(meta.uid()), Some(meta.gid())).map_err(at("own", &upper))?;
        fs::set_permissions(&upper, meta.permissions()).map_err(at("set the mode of", &upper))?;
    }
    rustix::process::chdir(tree).map_err(|e| at("enter", tree)(e.into()))?;
    let options = format!("lowerdir={},upperdir=upper,workdir=work", lower.join(":"));
    mount("overlay", Path::new("rootfs"), "overlay", MountFlags::NODEV, &options)?;
    Ok(tree.join("rootfs"))
}

/// The spec's mounts, each ready under `mounts/N` for the container to bind. Where the file system can, ids are mapped
/// so that what belongs to root on the host belongs to root in the container.
pub(crate) fn mounts(spec: &Spec, user: &User, idmap: &OwnedFd, base: u32) -> Result<Vec<PathBuf>, RootfsError> {
    let bind = |(number, mount): (usize, &Mount)| {
        let target = Path::new(TREE).join("mounts").join(number.to_string());
        bind(mount, &target, user, idmap, base).map(|()| Path::new("/mounts").join(number.to_string()))
    };
    spec.mounts.iter().enumerate().map(bind).collect()
}

fn bind(mount: &Mount, target: &Path, user: &User, idmap: &OwnedFd, base: u32) -> Result<(), RootfsError> {
    let refused = |source| RootfsError::Mount {
        guest: mount.guest.clone(),
        host: mount.host.clone(),
        source,
    };
    let meta = fs::metadata(&mount.host).map_err(refused)?;
    if meta.is_dir() {
        make(target, 0o755)?;
    } else if meta.is_file() {
        fs::write(target, "").map_err(at("create", target))?;
    } else {
        let (guest, host) = (mount.guest.clone(), mount.host.clone());
        return Err(RootfsError::MountKind { guest, host });
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, &mount.host, flags).map_err(|e| refused(e.into()))?;
    let mut attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    if !mount.writable {
        attributes |= libc::MOUNT_ATTR_RDONLY;
    }
    // Some file systems cannot map ids: then the owners are the host's, and readable is what everybody may read.
    let mapped = sys::set_mount_attributes(tree.as_fd(), attributes, Some(idmap.as_fd())).is_ok();
    if !mapped {
        sys::set_mount_attributes(tree.as_fd(), attributes, None).map_err(refused)?;
    }
    if mount.writable && meta.is_dir() {
        hand_over(&mount.host, &meta, user, if mapped { 0 } else { base }).map_err(refused)?;
    }
    let moved = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", rustix::fs::CWD, target, moved).map_err(|e| refused(e.into()))
}

/// A volume that nobody has written to yet belongs to the container's user from now on.
fn hand_over(host: &Path, meta: &fs::Metadata, user: &User, shift: u32) -> io::Result<()> {
    let (uid, gid) = (user.uid + shift, user.gid + shift);
    if (meta.uid(), meta.gid()) == (uid, gid) || fs::read_dir(host)?.next().is_some() {
        return Ok(());
    }
    std::os::unix::fs::chown(host, Some(uid), Some(gid))
}

/// The container's device nodes, made here so that they can belong to its user; it binds them.
pub(crate) fn devices(nodes: &[Node], user: &User, base: u32) -> Result<(), RootfsError> {
    let dev = Path::new(TREE).join("dev");
    for (name, major, minor) in NODES {
        let kind = FileType::CharacterDevice;
        make_node(&dev.join(name), kind, 0o666, (major, minor), (base, base))?;
    }
    for node in nodes {
        let path = Path::new(TREE).join(node.path.strip_prefix("/").unwrap_or(&node.path));
        if let Some(parent) = path.parent() {
            make(parent, 0o755)?;
        }
        if !path.exists() {
            make_node(
                &path,
                node.kind,
                0o600,
                (node.major, node.minor),
                (user.uid + base, user.gid + base),
            )?;
        }
    }
    Ok(())
}

fn make_node(
    path: &Path,
    kind: FileType,
    mode: u32,
    (major, minor): (u32, u32),
    (uid, gid): (u32, u32),
) -> Result<(), RootfsError> {
    let made = || -> rustix::io::Result<()> {
        let mode = Mode::from_raw_mode(mode);
        rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, rustix::fs::makedev(major, minor))?;
        rustix::fs::chmod(path, mode)?;
        rustix::fs::chown(path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
    };
    made().map_err(|errno| at("make the device node", path)(errno.into()))
}

/// `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`.
pub(crate) fn files(hostname: &str, own_address: Option<String>, resolv: bool) -> Result<(), RootfsError> {
    let dir = Path::new(TREE).join("files");
    let address = own_address.unwrap_or_else(|| "127.0.1.1".into());
    let hosts = format!("127.0.0.1\tlocalhost\n::1\tlocalhost\n{address}\t{hostname}\n");
    let resolv = if resolv {
        fs::read_to_string("/etc/resolv.conf").unwrap_or_default()
    } else {
        String::new()
    };
    for (name, text) in [
        ("hosts", hosts),
        ("hostname", format!("{hostname}\n")),
        ("resolv.conf", resolv),
    ] {
        let path = dir.join(name);
        fs::write(&path, text).map_err(at("write", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(at("set the mode of", &path))?;
    }
    Ok(())
}

/// Secrets that are files, each ready under `secrets/N` for the container to bind: in memory, its user's alone.
pub(crate) fn secrets(secrets: &Secrets, user: &User, base: u32) -> Result<Vec<PathBuf>, RootfsError> {
    let bytes: usize = secrets.files().map(|(_, value)| value.len()).sum();
    if secrets.files().next().is_none() {
        return Ok(Vec::new());
    }
    let dir = Path::new(TREE).join("secrets");
    make(&dir, 0o755)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = format!("mode=755,size={}", bytes + SECRETS_ROOM_BYTES);
    // Since Linux 6.4 a tmpfs can be kept out of swap.
    mount("tmpfs", &dir, "tmpfs", flags, &format!("{options},noswap"))
        .or_else(|_| mount("tmpfs", &dir, "tmpfs", flags, &options))?;
    let place = |(number, (_, value)): (usize, (&Path, &[u8]))| {
        let path = dir.join(number.to_string());
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o400)
            .open(&path)
            .map_err(at("create", &path))?;
        file.write_all(value).map_err(at("write", &path))?;
        std::os::unix::fs::fchown(&file, Some(user.uid + base), Some(user.gid + base)).map_err(at("own", &path))?;
        Ok(Path::new("/secrets").join(number.to_string()))
    };
    secrets.files().enumerate().map(place).collect()
}

/// Moves the keeper into the tree. It sees its own processes, the kernel's view of the devices, and no control groups:
/// those are the shim's, and libcontainer, which finds none, leaves them alone.
pub(crate) fn enter() -> Result<(), RootfsError> {
    sys::pivot_into(Path::new(TREE)).map_err(at("move into", TREE))?;
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", Path::new("/proc"), "proc", plain, "")?;
    mount("sysfs", Path::new("/sys"), "sysfs", plain, "")?;
    mount("tmpfs", Path::new("/sys/fs/cgroup"), "tmpfs", plain, "mode=555,size=4k")
}

/// `/proc` of the keeper's own PID namespace where the rest of the node stays in sight.
pub(crate) fn own_proc() -> Result<(), RootfsError> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", Path::new("/proc"), "proc", plain, "")
}

pub(crate) fn mount(source: &str, target: &Path, kind: &str, flags: MountFlags, data: &str) -> Result<(), RootfsError> {
    let data = CString::new(data).unwrap_or_default();
    rustix::mount::mount(source, target, kind, flags, Some(data.as_c_str()))
        .map_err(|errno| at("mount on", target)(errno.into()))
}

fn make(path: &Path, mode: u32) -> Result<(), RootfsError> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(at("create", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(at("set the mode of", path))
}

pub(crate) fn at(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> RootfsError {
    let path = path.as_ref().to_owned();
    move |source| RootfsError::Io { action, path, source }
}
