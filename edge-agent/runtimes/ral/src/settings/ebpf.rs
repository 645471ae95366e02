use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Settings of an eBPF workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Ebpf {
    /// What to load from the object and where to attach it. A program of the object that is not named is not loaded.
    pub programs: Vec<Program>,
    /// Kernel helpers beyond those that are allowed to every program of its kind, by name (`bpf_probe_read_kernel`).
    pub helpers: Vec<String>,
    /// Most bytes of all maps together; 4 MiB if absent.
    pub map_bytes: Option<u64>,
    /// Maps whose values become metrics, by name.
    pub metrics: BTreeMap<String, MapMetric>,
    /// The ring buffer map whose records become log lines.
    pub log: Option<String>,
    /// How its records are written.
    pub log_encoding: LogEncoding,
    /// For the encoding `format`: what each kind of record looks like. The first byte of a record is the place of its
    /// format in this list; see [`LogEncoding::Format`].
    pub log_formats: Vec<String>,
    /// Values to put into hash and array maps before the programs are attached: map name to key and value, in hex.
    pub init: BTreeMap<String, BTreeMap<String, String>>,
}

/// One program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Program {
    /// Its name in the object (the function).
    pub name: String,
    /// What it is.
    pub kind: ProgramKind,
    /// Where it is attached: an interface (socket filter, tc, XDP), `category/name` (tracepoint), an absolute cgroup
    /// path (cgroup_skb).
    pub attach: String,
    /// For a socket filter: also frames that are not for this node, as on the mirror port of a switch.
    #[serde(default)]
    pub promiscuous: bool,
}

/// What kinds of programs can be granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProgramKind {
    /// Sees copies of packets; changes nothing. The only kind that needs no policy.
    SocketFilter,
    /// Sees and may change or drop packets that come in.
    TcIngress,
    /// Sees and may change or drop packets before the network stack does.
    Xdp,
    /// Sees an event of the kernel.
    Tracepoint,
    /// Sees and may drop the packets of a control group.
    CgroupSkb,
}

/// How a map becomes metrics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MapMetric {
    /// Each key is one metric `name{key in hex}` with the value as an unsigned number, little or big as the node is;
    /// per-CPU values are added.
    ByKey,
    /// The sum of all values.
    Sum,
    /// The names of an array's elements, from index 0.
    Elements(Vec<String>),
    /// As by key, with the name made from the key: a text with fields as in [`LogEncoding::Format`], such as
    /// `{0:ipv4}.function.{8:u8}` after the map's name and a dot.
    Format(String),
}

/// How a ring buffer's record is written as a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogEncoding {
    /// As text, up to the first zero byte; what is not UTF-8 is replaced.
    #[default]
    Text,
    /// As hexadecimal digits.
    Hex,
    /// As a text of `log_formats` with fields `{OFFSET:TYPE}`, where OFFSET is a byte of the record and TYPE one of
    /// `u8`, `u16`, `u32`, `u64` (as the node stores numbers), `be16`, `be32`, `be64` (as networks do), `x8`, `x16`,
    /// `x32` (the first three in hex), `ipv4`, `mac`. `{{` and `}}` are braces.
    Format,
}
