//! Loads an inspected and judged object, in the helper process that has the rights for it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::Map;
use aya::programs::{CgroupSkbAttachType, Program, ProgramError};
use aya::{Ebpf as Loaded, EbpfError, EbpfLoader};
use cnova_ral::settings::{Ebpf, Program as Wanted, ProgramKind};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::attach::{self, Place};
use crate::{confine, policy, sys};

/// What is kept of the verifier's log: its end, which says what is wrong.
pub const VERIFIER_LOG_BYTES_MAX: usize = 6 << 10;

/// What has been loaded. The descriptors come beside it: for each program itself and its attachment, then the maps.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// The maps in the order of their descriptors.
    pub maps: Vec<String>,
}

/// Opens the places, gives the rights away, loads, fills the maps and attaches.
///
/// # Errors
/// What is not possible, with the end of the verifier's log.
pub fn load(settings: &Ebpf, object: &[u8]) -> Result<(Report, Vec<OwnedFd>), String> {
    let mut places: Vec<(&Wanted, Place)> = Vec::new();
    for wanted in &settings.programs {
        let place = attach::open(wanted).map_err(|e| format!("program `{}`: {e}", wanted.name))?;
        places.push((wanted, place));
    }
    // Kernels before 5.11 count maps against this limit; the policy has counted them already.
    let _ = setrlimit(Resource::Memlock, UNLIMITED);
    let mut loader = loader_without_kernel_types().map_err(|e| format!("cannot set up the loader: {e}"))?;
    // What the kernel can do is tried out once with small programs of all kinds, which takes more rights than ours.
    let _ = aya::features();
    let kinds: Vec<ProgramKind> = settings.programs.iter().map(|p| p.kind).collect();
    let needed = confine::capabilities_for(&kinds);
    confine::become_nobody(needed).map_err(|e| format!("the loader cannot give its rights away: {e}"))?;
    confine::die_with_parent().map_err(|e| format!("the loader cannot follow the runtime: {e}"))?;

    let mut loaded = loader.load(object).map_err(|e| explain_load(&e))?;
    fill(&loaded, &settings.init)?;
    for wanted in &settings.programs {
        load_program(&mut loaded, wanted)?;
    }
    let mut fds = Vec::new();
    for (wanted, place) in places {
        let (program, link) = attach_program(&loaded, wanted, place)?;
        fds.extend([program, link]);
    }
    let mut report = Report { maps: Vec::new() };
    for (name, map) in loaded.maps() {
        fds.push(map_fd(map).ok_or_else(|| format!("map `{name}` is of a type that cannot be handed over"))?);
        report.maps.push(name.to_owned());
    }
    Ok((report, fds))
}

const UNLIMITED: Rlimit = Rlimit {
    current: None,
    maximum: None,
};

/// Making a loader reads the types of the whole kernel, which takes 20 to 40 MB and as many milliseconds, and nothing
/// here needs them. There is no constructor that does not; but a file that cannot be opened is not read.
fn loader_without_kernel_types() -> std::io::Result<EbpfLoader<'static>> {
    let before = getrlimit(Resource::Nofile);
    let nothing = Rlimit {
        current: Some(0),
        ..before
    };
    setrlimit(Resource::Nofile, nothing)?;
    let mut loader = EbpfLoader::new();
    setrlimit(Resource::Nofile, before)?;
    loader.btf(None);
    Ok(loader)
}

fn load_program(loaded: &mut Loaded, wanted: &Wanted) -> Result<(), String> {
    let program = loaded.program_mut(&wanted.name);
    let program = program.ok_or_else(|| format!("program `{}` is not in the object", wanted.name))?;
    let result = match (wanted.kind, program) {
        (ProgramKind::SocketFilter, Program::SocketFilter(program)) => program.load(),
        (ProgramKind::TcIngress, Program::SchedClassifier(program)) => program.load(),
        (ProgramKind::Xdp, Program::Xdp(program)) => program.load(),
        (ProgramKind::Tracepoint, Program::TracePoint(program)) => program.load(),
        (ProgramKind::CgroupSkb, Program::CgroupSkb(program)) => program.load(),
        _ => {
            return Err(format!(
                "program `{}` is of another kind than the settings say",
                wanted.name
            ));
        }
    };
    result.map_err(|error| explain_program(&wanted.name, &error))
}

fn attach_program(loaded: &Loaded, wanted: &Wanted, place: Place) -> Result<(OwnedFd, OwnedFd), String> {
    let failed = |what: &dyn std::fmt::Display| format!("program `{}`: {what}", wanted.name);
    let program = loaded.program(&wanted.name).ok_or_else(|| failed(&"is gone"))?;
    let egress = match program {
        Program::CgroupSkb(group) => matches!(group.expected_attach_type(), Some(CgroupSkbAttachType::Egress)),
        _ => false,
    };
    let fd = program.fd().map_err(|e| failed(&e))?;
    let own = fd.as_fd().try_clone_to_owned().map_err(|e| failed(&e))?;
    let link = place
        .take(own.as_fd(), &wanted.attach, egress)
        .map_err(|e| failed(&e))?;
    Ok((own, link))
}

fn fill(loaded: &Loaded, init: &BTreeMap<String, BTreeMap<String, String>>) -> Result<(), String> {
    for (name, entries) in init {
        let map = loaded.map(name).and_then(map_fd);
        let map = map.ok_or_else(|| format!("settings.init: there is no map `{name}`"))?;
        for (key, value) in entries {
            let bytes = policy::from_hex(key).zip(policy::from_hex(value));
            let (key_bytes, value_bytes) =
                bytes.ok_or_else(|| format!("settings.init: map `{name}`: not hexadecimal"))?;
            sys::update(map.as_fd(), &key_bytes, &value_bytes)
                .map_err(|e| format!("settings.init: map `{name}`: the kernel does not take key {key}: {e}"))?;
        }
    }
    Ok(())
}

fn map_fd(map: &Map) -> Option<OwnedFd> {
    let data = match map {
        Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuHashMap(data)
        | Map::PerCpuLruHashMap(data)
        | Map::LpmTrie(data)
        | Map::Queue(data)
        | Map::Stack(data)
        | Map::RingBuf(data) => data,
        _ => return None,
    };
    data.fd().as_fd().try_clone_to_owned().ok()
}

fn explain_load(error: &EbpfError) -> String {
    let mut text = format!("the object does not load: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text.push_str(&format!(": {inner}"));
        source = inner.source();
    }
    text
}

/// The last line of the verifier that is not about its own effort.
fn verdict(log: &str) -> &str {
    let mut lines = log.lines().rev().map(str::trim);
    let said = |line: &&str| !line.is_empty() && !line.starts_with("processed ");
    lines.find(said).unwrap_or("it does not say why")
}

fn explain_program(name: &str, error: &ProgramError) -> String {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return format!("program `{name}` does not load: {error}");
    };
    let log = verifier_log.to_string();
    let log = log.trim_end();
    let start = log.ceil_char_boundary(log.len().saturating_sub(VERIFIER_LOG_BYTES_MAX));
    match io_error.raw_os_error() {
        Some(libc::EPERM) if log.is_empty() => {
            format!("program `{name}` does not load: {io_error}; the runtime needs CAP_BPF, or root before Linux 5.8")
        }
        // Its verdict first: who shortens the text must not lose it.
        _ => format!(
            "the kernel's verifier rejects program `{name}` ({io_error}): {}; the end of its log:\n{}",
            verdict(log),
            &log[start..]
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::verdict;

    #[test]
    fn the_verdict_is_what_stands_before_the_effort() {
        let log = "174: (6b) *(u16 *)(r10 -46) = r1\nattempt to corrupt spilled pointer on stack\nprocessed 174 insns (limit 1000000)\n";
        assert_eq!(verdict(log), "attempt to corrupt spilled pointer on stack");
        assert_eq!(verdict(""), "it does not say why");
    }
}
