//! What may be loaded: the object's contents against the settings that the hub's policy has let through.

use cnova_ral::settings::{Ebpf, LogEncoding, MapMetric, ProgramKind};

use crate::format::Template;
use crate::helpers;
use crate::inspect::{MapFacts, ProgramFacts, Verdict, kind_name};

/// Most programs of one workload.
pub const PROGRAMS_MAX: usize = 16;
/// Most maps of one workload, data sections included.
pub const MAPS_MAX: usize = 32;
/// Most instructions of one program with the functions that it calls.
pub const INSTRUCTIONS_MAX: usize = 65_536;
/// Bytes of all maps together if the settings say nothing.
pub const MAP_BYTES_DEFAULT: u64 = 4 << 20;
/// Most entries that are put into maps before the start.
pub const INIT_ENTRIES_MAX: usize = 4096;
/// Most formats for log lines: a record's first byte chooses one.
pub const LOG_FORMATS_MAX: usize = 256;

/// What the node's kernel costs per entry of a hash table, in bytes.
const HASH_ENTRY_BYTES: u64 = 48;
/// And per bucket.
const HASH_BUCKET_BYTES: u64 = 16;
/// And per node of a prefix tree.
const TREE_NODE_BYTES: u64 = 40;
/// Pages of a ring buffer beside its data.
const RING_PAGES: u64 = 3;
const PAGE_BYTES: u64 = 4096;
/// What every map costs beside its entries, in bytes.
const MAP_FIXED_BYTES: u64 = 2048;

/// No preallocation, LRU per CPU, read-only and write-only for either side, zero seed.
const FLAGS_ALLOWED: u32 = 0x1 | 0x2 | 0x8 | 0x10 | 0x40 | 0x80 | 0x100;

/// Types of maps that may be used: name, and what their memory is counted as. Others hold programs, sockets, other
/// maps or kernel objects, and reach further than the workload's own data.
const MAP_TYPES: &[(u32, &str, Shape)] = &[
    (1, "hash", Shape::Hash),
    (2, "array", Shape::Array),
    (5, "percpu-hash", Shape::PerCpuHash),
    (6, "percpu-array", Shape::PerCpuArray),
    (9, "lru-hash", Shape::Hash),
    (10, "lru-percpu-hash", Shape::PerCpuHash),
    (11, "lpm-trie", Shape::Tree),
    (22, "queue", Shape::Array),
    (23, "stack", Shape::Array),
    (27, "ring-buffer", Shape::Ring),
];

/// Number of the ring buffer's type.
pub const RING_BUFFER: u32 = 27;
/// Types whose values are one per possible CPU.
pub const PER_CPU: [u32; 3] = [5, 6, 10];
/// Types that metrics can be read from.
const READABLE: [u32; 6] = [1, 2, 5, 6, 9, 10];
/// Types that can be filled before the start.
const FILLABLE: [u32; 4] = [1, 2, 9, 11];

#[derive(Clone, Copy)]
enum Shape {
    Array,
    PerCpuArray,
    Hash,
    PerCpuHash,
    Tree,
    Ring,
}

/// Why an object is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The settings themselves cannot be right.
    #[error("settings.{field}: {what}")]
    Settings {
        /// Which field.
        field: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// A program may not be loaded.
    #[error("program `{name}`: {what}")]
    Program {
        /// Which program.
        name: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// A map may not be created.
    #[error("map `{name}`: {what}")]
    Map {
        /// Which map.
        name: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// The object as a whole.
    #[error("the object {what}")]
    Object {
        /// What is wrong and what to do.
        what: String,
    },
}

/// Bounds that come from the node and the spec.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// CPUs that the node may ever have; per-CPU maps have a value for each.
    pub possible_cpus: usize,
    /// Memory of the workload.
    pub memory_bytes: u64,
}

/// Judges an object. The bytes that its maps will take come back.
///
/// # Errors
/// The first thing that is not allowed.
pub fn judge(verdict: &Verdict, settings: &Ebpf, bounds: Bounds) -> Result<u64, Refusal> {
    check_counts(verdict, settings)?;
    check_object(verdict)?;
    for helper in &settings.helpers {
        if !helpers::exists(helper) {
            return Err(setting(
                "helpers",
                format!("`{helper}` is no helper: write it as `bpf_probe_read_kernel`"),
            ));
        }
    }
    for wanted in &settings.programs {
        let found = verdict.programs.iter().find(|p| p.name == wanted.name);
        let facts = found.ok_or_else(|| Refusal::Program {
            name: wanted.name.clone(),
            what: format!(
                "is not in the object, which has {}",
                list(verdict.programs.iter().map(|p| &p.name))
            ),
        })?;
        check_program(facts, wanted.kind, &settings.helpers)?;
    }
    let bytes = check_maps(verdict, settings, bounds)?;
    check_references(verdict, settings)?;
    Ok(bytes)
}

fn check_counts(verdict: &Verdict, settings: &Ebpf) -> Result<(), Refusal> {
    let count = settings.programs.len();
    if count == 0 || count > PROGRAMS_MAX {
        return Err(setting(
            "programs",
            format!("{count} programs are named, 1 to {PROGRAMS_MAX} are possible"),
        ));
    }
    for (at, program) in settings.programs.iter().enumerate() {
        if settings.programs[..at].iter().any(|p| p.name == program.name) {
            return Err(setting("programs", format!("`{}` is named twice", program.name)));
        }
        if program.promiscuous && program.kind != ProgramKind::SocketFilter {
            return Err(setting(
                "programs",
                format!("`{}`: only a socket filter can be promiscuous", program.name),
            ));
        }
    }
    let maps = verdict.maps.len();
    if maps > MAPS_MAX {
        return Err(Refusal::Object {
            what: format!("has {maps} maps, at most {MAPS_MAX} are possible"),
        });
    }
    let entries: usize = settings.init.values().map(std::collections::BTreeMap::len).sum();
    if entries > INIT_ENTRIES_MAX {
        return Err(setting(
            "init",
            format!("{entries} entries, at most {INIT_ENTRIES_MAX} are possible"),
        ));
    }
    Ok(())
}

fn check_object(verdict: &Verdict) -> Result<(), Refusal> {
    if !verdict.undefined.is_empty() {
        let what = format!(
            "uses {} of the kernel: kernel functions (kfuncs) and variables are not allowed",
            list(&verdict.undefined)
        );
        return Err(Refusal::Object { what });
    }
    if verdict.relocates_types {
        let what =
            "must be fitted to the kernel's types (CO-RE), which this runtime does not do: read kernel structures \
                    without preserve_access_index"
                .to_owned();
        return Err(Refusal::Object { what });
    }
    Ok(())
}

fn check_program(facts: &ProgramFacts, kind: ProgramKind, granted: &[String]) -> Result<(), Refusal> {
    let refuse = |what: String| {
        Err(Refusal::Program {
            name: facts.name.clone(),
            what,
        })
    };
    if facts.kind != Some(kind) {
        return refuse(format!(
            "settings say {}, its section makes it {}",
            kind_name(kind),
            facts.section
        ));
    }
    if facts.instructions > INSTRUCTIONS_MAX {
        let count = facts.instructions;
        return refuse(format!(
            "has {count} instructions, at most {INSTRUCTIONS_MAX} are possible"
        ));
    }
    if facts.calls_kernel {
        return refuse("calls kernel functions (kfuncs), which is not allowed".to_owned());
    }
    if facts.holds_addresses {
        return refuse("holds descriptors or kernel addresses that only the loader may fill in".to_owned());
    }
    for number in &facts.helpers {
        let name = helpers::name(*number);
        let bare = name.strip_prefix("bpf_").unwrap_or_default();
        if !helpers::is_allowed(kind, bare) && !granted.contains(&name) {
            return refuse(format!(
                "calls {name}, which a {} may not: add it to settings.helpers if policy grants it",
                kind_name(kind)
            ));
        }
    }
    Ok(())
}

fn check_maps(verdict: &Verdict, settings: &Ebpf, bounds: Bounds) -> Result<u64, Refusal> {
    let mut total = 0u64;
    for map in &verdict.maps {
        let refuse = |what: String| Refusal::Map {
            name: map.name.clone(),
            what,
        };
        if map.pinned {
            return Err(refuse(
                "wants to be pinned, which would outlive the workload: remove `pinning`".to_owned(),
            ));
        }
        let known = MAP_TYPES.iter().find(|(number, ..)| *number == map.map_type);
        let (_, _, shape) = known.ok_or_else(|| {
            let names = list(MAP_TYPES.iter().map(|(_, name, _)| name));
            refuse(format!(
                "is of type {}, which is not allowed; allowed are {names}",
                map.map_type
            ))
        })?;
        if map.flags & !FLAGS_ALLOWED != 0 {
            return Err(refuse(format!(
                "has flags {:#x}, of which {FLAGS_ALLOWED:#x} are allowed",
                map.flags
            )));
        }
        total = total.saturating_add(MAP_FIXED_BYTES + map_bytes(map, *shape, bounds.possible_cpus));
    }
    let limit = settings.map_bytes.unwrap_or(MAP_BYTES_DEFAULT);
    if total > limit {
        let what = format!("has maps of {total} bytes, settings.mapBytes allows {limit}");
        return Err(Refusal::Object { what });
    }
    if total > bounds.memory_bytes {
        let what = format!(
            "has maps of {total} bytes, the workload's memory is {}",
            bounds.memory_bytes
        );
        return Err(Refusal::Object { what });
    }
    Ok(total)
}

/// What the kernel will take for a map, as of Linux 6; from above rather than below.
fn map_bytes(map: &MapFacts, shape: Shape, possible_cpus: usize) -> u64 {
    let cpus = possible_cpus as u64;
    let entries = u64::from(map.max_entries);
    let key = u64::from(map.key_size).next_multiple_of(8);
    let value = u64::from(map.value_size).next_multiple_of(8);
    let buckets = entries.next_power_of_two().saturating_mul(HASH_BUCKET_BYTES);
    match shape {
        Shape::Array => entries.saturating_mul(value),
        Shape::PerCpuArray => entries.saturating_mul(8 + value.saturating_mul(cpus)),
        Shape::Hash => entries
            .saturating_mul(HASH_ENTRY_BYTES + key + value)
            .saturating_add(buckets),
        Shape::PerCpuHash => entries
            .saturating_mul(HASH_ENTRY_BYTES + 8 + key + value.saturating_mul(cpus))
            .saturating_add(buckets),
        Shape::Tree => entries.saturating_mul(TREE_NODE_BYTES + key + value),
        Shape::Ring => entries.max(PAGE_BYTES).next_power_of_two() + RING_PAGES * PAGE_BYTES,
    }
}

/// That metrics, log and init speak of maps that are there and of a fitting type.
fn check_references(verdict: &Verdict, settings: &Ebpf) -> Result<(), Refusal> {
    let find = |field: &str, name: &str, types: &[u32]| -> Result<MapFacts, Refusal> {
        let found = verdict.maps.iter().find(|m| m.name == name);
        let map = found.ok_or_else(|| {
            let names = list(verdict.maps.iter().map(|m| &m.name));
            setting(
                field,
                format!("there is no map `{name}` in the object, which has {names}"),
            )
        })?;
        if !types.contains(&map.map_type) {
            return Err(setting(
                field,
                format!("map `{name}` is {}, which does not fit", type_name(map.map_type)),
            ));
        }
        Ok(map.clone())
    };
    for (name, metric) in &settings.metrics {
        let map = find("metrics", name, &READABLE)?;
        if !matches!(map.value_size, 1 | 2 | 4 | 8) {
            let what = format!(
                "values of map `{name}` have {} bytes, a number has 1, 2, 4 or 8",
                map.value_size
            );
            return Err(setting("metrics", what));
        }
        if let MapMetric::Format(text) = metric {
            Template::parse(text, map.key_size as usize)
                .map_err(|e| setting("metrics", format!("map `{name}`: {e}")))?;
        }
        if matches!(metric, MapMetric::Elements(_)) && !matches!(map.map_type, 2 | 6) {
            return Err(setting("metrics", format!("map `{name}`: only arrays have elements")));
        }
    }
    if let Some(name) = &settings.log {
        find("log", name, &[RING_BUFFER])?;
    }
    check_formats(settings)?;
    for (name, entries) in &settings.init {
        let map = find("init", name, &FILLABLE)?;
        for (key, value) in entries {
            check_hex(name, "key", key, map.key_size)?;
            check_hex(name, "value", value, map.value_size)?;
        }
    }
    Ok(())
}

fn check_formats(settings: &Ebpf) -> Result<(), Refusal> {
    let count = settings.log_formats.len();
    let wanted = settings.log_encoding == LogEncoding::Format;
    if wanted != (count > 0) || count > LOG_FORMATS_MAX {
        let what = format!("{count} formats; the encoding `format` needs 1 to {LOG_FORMATS_MAX}, others none");
        return Err(setting("logFormats", what));
    }
    for text in &settings.log_formats {
        Template::parse(text, usize::from(u16::MAX)).map_err(|e| setting("logFormats", format!("`{text}`: {e}")))?;
    }
    Ok(())
}

fn check_hex(map: &str, part: &str, text: &str, size: u32) -> Result<(), Refusal> {
    match from_hex(text) {
        Some(bytes) if bytes.len() == size as usize => Ok(()),
        _ => Err(setting(
            "init",
            format!("map `{map}`: {part} `{text}` is not {size} bytes in hexadecimal digits"),
        )),
    }
}

/// Bytes of hexadecimal digits.
#[must_use]
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let pair = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).ok();
    (0..text.len()).step_by(2).map(pair).collect()
}

fn type_name(number: u32) -> String {
    let known = MAP_TYPES.iter().find(|(other, ..)| *other == number);
    known.map_or_else(|| format!("of type {number}"), |(_, name, _)| format!("of type {name}"))
}

fn setting(field: &str, what: String) -> Refusal {
    Refusal::Settings {
        field: field.to_owned(),
        what,
    }
}

fn list<T: std::fmt::Display>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    }
}

#[cfg(test)]
mod tests;
