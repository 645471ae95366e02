//! What a type cannot say of settings: values in range, names that exist, fields that must fit each other.

use std::collections::BTreeSet;

use cnova_ral::settings as ral;
use serde_json::Value;

use super::errors::{join, nearest, quoted};
use super::settings::{Mistake, Settings};

/// Linux's capabilities, without the prefix `CAP_`.
const CAPABILITIES: &[&str] = &[
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// What the rest of the workload says, as far as settings refer to it.
pub(super) struct Around<'a> {
    /// Paths of its input files.
    pub(super) files: BTreeSet<&'a str>,
    /// Whether it was granted neural networks.
    pub(super) nn: bool,
    /// The settings as they are written.
    pub(super) written: &'a Value,
}

impl Around<'_> {
    /// Where a name stands in a list that is read as a set.
    fn place_of(&self, list: &str, name: &str) -> String {
        let items = self.written.pointer(list).and_then(Value::as_array);
        let index = items.and_then(|items| items.iter().position(|i| i.as_str() == Some(name)));
        index.map_or_else(|| list.to_owned(), |i| format!("{list}/{i}"))
    }
}

/// Everything that is wrong with settings of the right types.
pub(super) fn check(settings: &Settings, around: &Around<'_>) -> Vec<Mistake> {
    let mut found = Vec::new();
    match settings {
        Settings::Container(s) => container(s, around, &mut found),
        Settings::Ebpf(s) => ebpf(s, &mut found),
        Settings::Wasm(s) => wasm(s, around, &mut found),
    }
    found
}

fn absolute(path: &str) -> bool {
    path.starts_with('/') && path.len() > 1 && !path.contains('\0') && !path.split('/').any(|s| s == "." || s == "..")
}

fn container(s: &ral::Container, around: &Around<'_>, found: &mut Vec<Mistake>) {
    if s.entrypoint
        .as_ref()
        .is_some_and(|e| e.first().is_none_or(String::is_empty))
    {
        found.push(Mistake::new(
            "/entrypoint",
            "names no program",
            Some("remove it to use the image's own"),
        ));
    }
    if let Some(path) = s.workdir.as_deref().filter(|p| *p != "/" && !absolute(p)) {
        found.push(Mistake::new(
            "/workdir",
            format!("{} is not an absolute path", quoted(path)),
            None,
        ));
    }
    if let Some(user) = s.user.as_deref().filter(|u| !is_user(u)) {
        let message = format!("{} is not a user", quoted(user));
        found.push(Mistake::new(
            "/user",
            message,
            Some("write UID, UID:GID or names that the image knows"),
        ));
    }
    for name in &s.capabilities {
        if !CAPABILITIES.contains(&name.as_str()) {
            let bare = name.to_uppercase();
            let hint = nearest(bare.strip_prefix("CAP_").unwrap_or(&bare), CAPABILITIES.iter().copied());
            found.push(Mistake {
                hint: hint.or_else(|| Some("capabilities are written as NET_BIND_SERVICE".to_owned())),
                ..Mistake::new(
                    around.place_of("/capabilities", name),
                    format!("there is no capability {}", quoted(name)),
                    None,
                )
            });
        }
    }
    let is_call = |c: &String| {
        !c.is_empty()
            && c.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    if let Some(name) = s.seccomp.allow.iter().find(|c| !is_call(c)) {
        let message = format!("{} is not the name of a system call", quoted(name));
        found.push(Mistake::new(
            around.place_of("/seccomp/allow", name),
            message,
            Some("they are written as io_uring_setup"),
        ));
    }
    tmpfs_folders(s, found);
    if s.pids == Some(0) {
        found.push(Mistake::new(
            "/pids",
            "must be more than 0: the workload itself is a process",
            None,
        ));
    }
    if let ral::Network::Own(own) = &s.network {
        own_network(own, found);
    }
    if let Some(probe) = &s.probe {
        self::probe(probe, found);
    }
}

fn tmpfs_folders(s: &ral::Container, found: &mut Vec<Mistake>) {
    let mut paths = BTreeSet::new();
    for (i, tmpfs) in s.tmpfs.iter().enumerate() {
        let at = format!("/tmpfs/{i}/path");
        if !absolute(&tmpfs.path) {
            found.push(Mistake::new(
                at,
                format!("{} is not an absolute path", quoted(&tmpfs.path)),
                None,
            ));
        } else if !paths.insert(&tmpfs.path) {
            found.push(Mistake::new(
                at,
                format!("{} is given twice", quoted(&tmpfs.path)),
                None,
            ));
        }
        if tmpfs.bytes == Some(0) {
            found.push(Mistake::new(format!("/tmpfs/{i}/bytes"), "must be more than 0", None));
        }
    }
}

fn is_user(text: &str) -> bool {
    let is_name = |n: &str| {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        !n.is_empty() && n.len() <= 64 && !n.starts_with('-') && n.bytes().all(fits)
    };
    match text.split_once(':') {
        Some((user, group)) => is_name(user) && is_name(group),
        None => is_name(text),
    }
}

fn own_network(own: &ral::OwnNetwork, found: &mut Vec<Mistake>) {
    if !(8..=30).contains(&own.prefix) {
        let message = format!("{} is not from 8 to 30", own.prefix);
        return found.push(Mistake::new("/network/own/prefix", message, None));
    }
    let network = |a: std::net::Ipv4Addr| a.to_bits() >> (32 - u32::from(own.prefix));
    if own.address == own.gateway {
        let message = "is the container's own address; the gateway is the node's end".to_owned();
        found.push(Mistake::new("/network/own/gateway", message, None));
    } else if network(own.address) != network(own.gateway) {
        let message = format!(
            "{} is not in the network of {}/{}",
            own.gateway, own.address, own.prefix
        );
        found.push(Mistake::new("/network/own/gateway", message, None));
    }
}

fn probe(probe: &ral::Probe, found: &mut Vec<Mistake>) {
    let no_port = "0 is not a port";
    match probe {
        ral::Probe::Tcp(0) => found.push(Mistake::new("/probe/tcp", no_port, None)),
        ral::Probe::Tcp(_) => {}
        ral::Probe::Http(http) => {
            if http.port == 0 {
                found.push(Mistake::new("/probe/http/port", no_port, None));
            }
            if !http.path.starts_with('/') || http.path.contains(char::is_whitespace) {
                let message = format!("{} is not a path from \"/\"", quoted(&http.path));
                found.push(Mistake::new("/probe/http/path", message, None));
            }
        }
        ral::Probe::Exec(command) => {
            if command.first().is_none_or(String::is_empty) {
                found.push(Mistake::new("/probe/exec", "names no program", None));
            }
        }
    }
}

fn ebpf(s: &ral::Ebpf, found: &mut Vec<Mistake>) {
    if s.programs.is_empty() {
        let hint = "programs: [{name: FUNCTION, kind: socket-filter, attach: INTERFACE}]";
        let message = "names no programs: nothing of the object would be loaded";
        found.push(Mistake::new("/programs", message, Some(hint)));
    }
    let mut names = BTreeSet::new();
    for (i, program) in s.programs.iter().enumerate() {
        let at = |field: &str| format!("/programs/{i}/{field}");
        if program.name.is_empty() {
            found.push(Mistake::new(
                at("name"),
                "is empty",
                Some("it is the name of the function in the object"),
            ));
        } else if !names.insert((&program.name, &program.attach)) {
            found.push(Mistake::new(
                at("name"),
                format!("{} is given twice", quoted(&program.name)),
                None,
            ));
        }
        let (fits, wanted) = match program.kind {
            ral::ProgramKind::Tracepoint => {
                let parts = program.attach.split_once('/');
                (
                    parts.is_some_and(|(c, n)| !c.is_empty() && !n.is_empty()),
                    "category/name such as sched/sched_switch",
                )
            }
            ral::ProgramKind::CgroupSkb => (absolute(&program.attach), "an absolute path of a control group"),
            _ => (is_interface(&program.attach), "the name of an interface such as eth0"),
        };
        if !fits {
            let message = format!("expected {wanted}, found {}", quoted(&program.attach));
            found.push(Mistake::new(at("attach"), message, None));
        }
    }
    for (i, helper) in s.helpers.iter().enumerate() {
        let rest = helper.strip_prefix("bpf_").unwrap_or_default();
        if rest.is_empty()
            || !rest
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        {
            let message = format!("{} is not the name of a helper", quoted(helper));
            found.push(Mistake::new(
                format!("/helpers/{i}"),
                message,
                Some("they are written as bpf_get_prandom_u32"),
            ));
        }
    }
    if s.map_bytes == Some(0) {
        found.push(Mistake::new("/mapBytes", "must be more than 0", None));
    }
    for (map, entries) in &s.init {
        for (key, value) in entries {
            if !is_hex(key) || !is_hex(value) {
                let at = join(&join("/init", map), key);
                let hint = "keys and values are bytes in hexadecimal digits, two for each";
                found.push(Mistake::new(at, "is not in hexadecimal digits", Some(hint)));
            }
        }
    }
}

fn is_interface(name: &str) -> bool {
    !name.is_empty() && name.len() < 16 && !name.contains('/') && !name.contains(char::is_whitespace)
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.len().is_multiple_of(2) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn wasm(s: &ral::Wasm, around: &Around<'_>, found: &mut Vec<Mistake>) {
    if s.cpu_budget_ms == Some(0) {
        found.push(Mistake::new("/cpuBudgetMs", "must be more than 0", None));
    }
    if s.instances == Some(0) {
        found.push(Mistake::new("/instances", "must be more than 0", None));
    }
    let mut names = BTreeSet::new();
    for (i, model) in s.models.iter().enumerate() {
        let at = |field: &str| format!("/models/{i}/{field}");
        if model.name.is_empty() {
            found.push(Mistake::new(at("name"), "is empty", None));
        } else if !names.insert(&model.name) {
            found.push(Mistake::new(
                at("name"),
                format!("{} is given twice", quoted(&model.name)),
                None,
            ));
        }
        if !around.files.contains(model.file.as_str()) {
            let message = format!("{} is not the path of one of the workload's files", quoted(&model.file));
            found.push(Mistake {
                hint: nearest(&model.file, around.files.iter().copied()),
                ..Mistake::new(at("file"), message, None)
            });
        }
    }
    if !s.models.is_empty() && !around.nn {
        let message = "models are of no use without the grant of neural networks";
        found.push(Mistake::new("/models", message, Some("add grants: {nn: true}")));
    }
}
