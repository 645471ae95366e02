use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Settings of a container. The defaults are the tightest there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Container {
    /// Replaces the image's entry point; the workload's `args` replace the image's command.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's working directory; absolute.
    pub workdir: Option<String>,
    /// Replaces the image's user: `UID`, `UID:GID`, or names that the image's `/etc/passwd` and `/etc/group` know.
    pub user: Option<String>,
    /// Capabilities in the container's user namespace, such as `NET_BIND_SERVICE`. All others are dropped.
    pub capabilities: BTreeSet<String>,
    /// System calls beyond the default profile.
    pub seccomp: Seccomp,
    /// Writable folders in memory, gone with the instance.
    pub tmpfs: Vec<ContainerVolume>,
    /// Most processes and threads; 64 if absent.
    pub pids: Option<u32>,
    /// The network it sees.
    pub network: Network,
    /// What separates it from the node.
    pub isolation: Isolation,
    /// How its health is asked; a container without a probe is healthy while it runs.
    pub probe: Option<Probe>,
}

/// A folder in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ContainerVolume {
    /// Absolute path in the container.
    pub path: String,
    /// Most bytes; 16 MiB if absent. They count as the container's memory.
    #[serde(default)]
    pub bytes: Option<u64>,
}

/// System calls beyond the default profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Seccomp {
    /// Their names. What would let a container reach the kernel's inside (`bpf`, `kexec_load`, ...) needs a policy.
    pub allow: BTreeSet<String>,
}

/// The network that a container sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// A namespace of its own with nothing but loopback.
    #[default]
    None,
    /// The node's.
    Host,
    /// A namespace of its own, joined to the node by a veth pair.
    Own(OwnNetwork),
}

/// A veth pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct OwnNetwork {
    /// The container's address.
    pub address: Ipv4Addr,
    /// Bits of the network's prefix.
    pub prefix: u8,
    /// The node's address on the other end, and the container's default gateway.
    pub gateway: Ipv4Addr,
}

/// What separates a container from the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// Namespaces, seccomp and cgroups of the node's own kernel.
    #[default]
    Process,
    /// An installed OCI runtime with a kernel of its own in user space: `runsc`; `crun` where it was named in
    /// `CNOVA_OCI_SANDBOX` of the runtime's configuration.
    Sandbox,
    /// An installed OCI runtime with a virtual machine: `kata-runtime`.
    Vm,
}

/// How health is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    /// A TCP connection to this port, inside the container's network, succeeds.
    Tcp(u16),
    /// A GET is answered with 2xx or 3xx.
    Http(HttpProbe),
    /// A command in the container ends with code 0. Costs a process for every question.
    Exec(Vec<String>),
}

/// A GET.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HttpProbe {
    /// Port inside the container's network.
    pub port: u16,
    /// Path, from `/`.
    #[serde(default = "root")]
    pub path: String,
}

fn root() -> String {
    "/".into()
}
