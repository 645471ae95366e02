//! The container as the OCI runtime specification says it: what libcontainer, or an installed runtime, is told to make.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use cnova_oci::{IDS_PER_CONTAINER, ProcessDefaults};
use cnova_ral::settings::{Container, Network};
use cnova_ral::{Secrets, Spec};
use libcontainer::oci_spec::OciSpecError;
use libcontainer::oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType,
    LinuxIdMappingBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxSeccomp, Mount, MountBuilder,
    ProcessBuilder, RootBuilder, Spec as OciSpec, SpecBuilder, UserBuilder,
};
use rustix::fs::FileType;

use crate::rootfs::Node;
use crate::user::User;

/// Where programs are looked for if the image does not say.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Size of a folder in memory if the manifest does not say.
const TMPFS_BYTES: u64 = 16 << 20;
/// Size of `/dev/shm`.
const SHM_BYTES: u64 = 16 << 20;
/// What of `/proc` and `/sys` a container must not see.
const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/cgroup",
];
/// What of `/proc` a container must not change.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Why the settings cannot be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OciError {
    #[error("settings.capabilities: `{0}` is no capability that containers can have")]
    Capability(String),
    #[error("settings.{field}: `{path}` is not an absolute path without `..`")]
    Path { field: &'static str, path: String },
    #[error("neither the image nor the manifest name a program: set settings.entrypoint")]
    NoProgram,
    #[error("settings.seccomp.allow: `{0}` is no name of a system call")]
    SystemCall(String),
    #[error("cannot put the container's description together: {0}")]
    Build(#[from] OciSpecError),
}

/// All that the description is made of.
pub(crate) struct Plan<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) settings: &'a Container,
    pub(crate) defaults: &'a ProcessDefaults,
    pub(crate) user: &'a User,
    pub(crate) nodes: &'a [Node],
    /// Where the spec's mounts are ready to be bound, in order.
    pub(crate) mounts: &'a [PathBuf],
    pub(crate) secrets: &'a Secrets,
    /// Where the secrets that are files are ready to be bound, in order.
    pub(crate) secret_files: &'a [PathBuf],
    /// The folder of the tree, `/` once the keeper has moved into it.
    pub(crate) tree: &'a Path,
    pub(crate) hostname: &'a str,
    pub(crate) id_base: u32,
    /// Given only where the other side applies it; our own executor does it itself.
    pub(crate) filter: Option<LinuxSeccomp>,
}

/// Checks of the settings that need nothing but them, made before anything is unpacked.
pub(crate) fn check(settings: &Container) -> Result<(), OciError> {
    capabilities(&settings.capabilities)?;
    if let Some(wrong) = settings
        .seccomp
        .allow
        .iter()
        .find(|name| !crate::seccomp::is_system_call(name))
    {
        return Err(OciError::SystemCall(wrong.clone()));
    }
    for volume in &settings.tmpfs {
        absolute("tmpfs.path", &volume.path)?;
    }
    settings
        .workdir
        .as_deref()
        .map_or(Ok(()), |path| absolute("workdir", path))
}

/// Puts the description together.
pub(crate) fn describe(plan: &Plan<'_>) -> Result<OciSpec, OciError> {
    let process = ProcessBuilder::default()
        .terminal(false)
        .args(program(plan)?)
        .env(environment(plan))
        .cwd(workdir(plan)?)
        .user(
            UserBuilder::default()
                .uid(plan.user.uid)
                .gid(plan.user.gid)
                .additional_gids(plan.user.groups.clone())
                .build()?,
        )
        .capabilities(capability_sets(plan)?)
        .rlimits(Vec::new())
        .no_new_privileges(true)
        .build()?;
    let ids = || {
        LinuxIdMappingBuilder::default()
            .container_id(0u32)
            .host_id(plan.id_base)
            .size(IDS_PER_CONTAINER)
            .build()
    };
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces(plan)?)
        .uid_mappings(vec![ids()?])
        .gid_mappings(vec![ids()?])
        .devices(devices(plan.nodes)?)
        .masked_paths(MASKED.map(str::to_owned).to_vec())
        .readonly_paths(READ_ONLY.map(str::to_owned).to_vec())
        .rootfs_propagation("private");
    if let Some(filter) = &plan.filter {
        linux = linux.seccomp(filter.clone());
    }
    let mut linux = linux.build()?;
    // The control group is ours: it is made, limited and entered outside.
    linux.set_resources(None);
    linux.set_cgroups_path(plan.filter.as_ref().map(|_| PathBuf::from("/oci")));
    Ok(SpecBuilder::default()
        .version("1.0.2")
        .root(
            RootBuilder::default()
                .path(plan.tree.join("rootfs"))
                .readonly(true)
                .build()?,
        )
        .hostname(plan.hostname)
        .mounts(mounts(plan)?)
        .process(process)
        .linux(linux)
        .build()?)
}

fn program(plan: &Plan<'_>) -> Result<Vec<String>, OciError> {
    let mut words = match &plan.settings.entrypoint {
        Some(entrypoint) => entrypoint.clone(),
        None => plan.defaults.entrypoint.clone(),
    };
    // Who replaces the entry point does not want the arguments that the image has for its own.
    let own_arguments = plan.settings.entrypoint.is_none() && plan.spec.args.is_empty();
    words.extend(if own_arguments {
        plan.defaults.cmd.clone()
    } else {
        plan.spec.args.clone()
    });
    if words.is_empty() {
        return Err(OciError::NoProgram);
    }
    Ok(words)
}

/// The image's variables, then the spec's.
fn environment(plan: &Plan<'_>) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut entries = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", plan.hostname)];
    let given = plan.spec.env.iter().map(|(name, value)| format!("{name}={value}"));
    let secret = plan.secrets.env().map(|(name, value)| format!("{name}={value}"));
    let given = given.chain(secret);
    for entry in plan.defaults.env.iter().cloned().chain(given) {
        entries.retain(|before| name(before) != name(&entry));
        entries.push(entry);
    }
    if !entries.iter().any(|entry| entry.starts_with("HOME=")) {
        entries.push(if plan.user.uid == 0 {
            "HOME=/root".into()
        } else {
            "HOME=/".into()
        });
    }
    entries
}

fn workdir(plan: &Plan<'_>) -> Result<PathBuf, OciError> {
    let path = match (&plan.settings.workdir, plan.defaults.working_dir.as_str()) {
        (Some(path), _) => path.as_str(),
        (None, "") => "/",
        (None, path) => path,
    };
    absolute("workdir", path)?;
    Ok(PathBuf::from(path))
}

fn absolute(field: &'static str, text: &str) -> Result<(), OciError> {
    let path = Path::new(text);
    let climbs = path.components().any(|part| part == std::path::Component::ParentDir);
    if path.is_absolute() && !climbs && !text.contains(['\0', ',']) {
        return Ok(());
    }
    let path = text.to_owned();
    Err(OciError::Path { field, path })
}

fn capabilities(names: &BTreeSet<String>) -> Result<HashSet<Capability>, OciError> {
    let read = |name: &String| {
        let bare = name.strip_prefix("CAP_").unwrap_or(name);
        Capability::from_str(bare).map_err(|_| OciError::Capability(name.clone()))
    };
    names.iter().map(read).collect()
}

/// The same in every set, so that a user who is not root has them too.
fn capability_sets(plan: &Plan<'_>) -> Result<libcontainer::oci_spec::runtime::LinuxCapabilities, OciError> {
    let set = capabilities(&plan.settings.capabilities)?;
    Ok(LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .effective(set.clone())
        .permitted(set.clone())
        .inheritable(set.clone())
        .ambient(set)
        .build()?)
}

fn namespaces(plan: &Plan<'_>) -> Result<Vec<libcontainer::oci_spec::runtime::LinuxNamespace>, OciSpecError> {
    let mut kinds = vec![
        LinuxNamespaceType::User,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Cgroup,
    ];
    if plan.settings.network != Network::Host {
        kinds.push(LinuxNamespaceType::Network);
    }
    kinds
        .into_iter()
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
        .collect()
}

fn devices(nodes: &[Node]) -> Result<Vec<LinuxDevice>, OciSpecError> {
    let device = |node: &Node| {
        let kind = match node.kind {
            FileType::BlockDevice => LinuxDeviceType::B,
            _ => LinuxDeviceType::C,
        };
        LinuxDeviceBuilder::default()
            .path(node.path.clone())
            .typ(kind)
            .major(node.major)
            .minor(node.minor)
            .file_mode(0o600u32)
            .uid(0u32)
            .gid(0u32)
            .build()
    };
    nodes.iter().map(device).collect()
}

fn mounts(plan: &Plan<'_>) -> Result<Vec<Mount>, OciSpecError> {
    let tmpfs = |size: u64, mode: u32| {
        ["nosuid", "nodev", "noexec"]
            .map(str::to_owned)
            .into_iter()
            .chain([format!("mode={mode:o}"), format!("size={size}")])
            .collect::<Vec<_>>()
    };
    let plain = |options: &[&str]| options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>();
    let mut mounts = vec![
        mount("/proc", "proc", "proc", plain(&["nosuid", "nodev", "noexec"]))?,
        mount("/dev", "tmpfs", "tmpfs", plain(&["nosuid", "mode=755", "size=64k"]))?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            plain(&["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
        )?,
        mount("/dev/shm", "tmpfs", "tmpfs", tmpfs(SHM_BYTES, 0o1777))?,
        mount("/dev/mqueue", "mqueue", "mqueue", plain(&["nosuid", "nodev", "noexec"]))?,
    ];
    // The namespace of the network decides who may mount sysfs; with the node's network it stays away.
    if plan.settings.network != Network::Host {
        mounts.push(mount(
            "/sys",
            "sysfs",
            "sysfs",
            plain(&["nosuid", "nodev", "noexec", "ro"]),
        )?);
    }
    let bound = plain(&["bind", "ro", "nosuid", "nodev", "noexec"]);
    for name in ["hosts", "hostname", "resolv.conf"] {
        let source = plan.tree.join("files").join(name);
        mounts.push(mount(
            &format!("/etc/{name}"),
            "bind",
            &source.to_string_lossy(),
            bound.clone(),
        )?);
    }
    for volume in &plan.settings.tmpfs {
        let mut options = tmpfs(volume.bytes.unwrap_or(TMPFS_BYTES), 0o755);
        options.push(format!("uid={}", plan.user.uid));
        options.push(format!("gid={}", plan.user.gid));
        mounts.push(mount(&volume.path, "tmpfs", "tmpfs", options)?);
    }
    for (wanted, ready) in plan.spec.mounts.iter().zip(plan.mounts) {
        let mut options = plain(&["rbind", "nosuid", "nodev"]);
        options.push(if wanted.writable { "rw".into() } else { "ro".into() });
        mounts.push(mount(
            &wanted.guest.to_string_lossy(),
            "bind",
            &ready.to_string_lossy(),
            options,
        )?);
    }
    for ((wanted, _), ready) in plan.secrets.files().zip(plan.secret_files) {
        mounts.push(mount(
            &wanted.to_string_lossy(),
            "bind",
            &ready.to_string_lossy(),
            bound.clone(),
        )?);
    }
    Ok(mounts)
}

fn mount(target: &str, kind: &str, source: &str, options: Vec<String>) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(target)
        .typ(kind)
        .source(source)
        .options(options)
        .build()
}
