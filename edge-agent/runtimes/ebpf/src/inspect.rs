//! Reads an object file and says what is in it. Runs in a process of its own without rights (see [`crate::helper`]),
//! because the parser panics on some damaged objects.

use aya_obj::generated::bpf_insn;
use aya_obj::maps::PinningType;
use aya_obj::programs::{CgroupSkbAttachType, XdpAttachType};
use aya_obj::{EbpfSectionKind, Features, Object, ProgramSection};
use cnova_ral::settings::ProgramKind;
use serde::{Deserialize, Serialize};

use crate::elf;

/// Most bytes of an object.
pub const OBJECT_BYTES_MAX: u64 = 4 << 20;
/// Most programs that an object may hold, whether they are used or not.
pub const OBJECT_PROGRAMS_MAX: usize = 64;
/// Most maps that an object may hold, its data sections included.
pub const OBJECT_MAPS_MAX: usize = 64;

const CALL: u8 = 0x85;
const LOAD_64: u8 = 0x18;
const CALL_HELPER: u8 = 0;
const CALL_KERNEL: u8 = 2;

/// What an object holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Its programs, by name.
    pub programs: Vec<ProgramFacts>,
    /// Its maps, by name; data sections are maps too.
    pub maps: Vec<MapFacts>,
    /// Names that it uses and does not have: kernel functions and variables.
    pub undefined: Vec<String>,
    /// Whether it must be fitted to the kernel's own types (CO-RE).
    pub relocates_types: bool,
}

/// One program with all functions that it calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramFacts {
    /// Its name: that of the function.
    pub name: String,
    /// What its section makes it, as text for people.
    pub section: String,
    /// What it is, if it is of a kind that can be granted.
    pub kind: Option<ProgramKind>,
    /// Its instructions and those of the functions that it calls.
    pub instructions: usize,
    /// Numbers of the helpers that it calls, ascending.
    pub helpers: Vec<i32>,
    /// Whether it calls kernel functions by number.
    pub calls_kernel: bool,
    /// Whether it holds addresses that it should have left to the loader, such as that of a kernel variable.
    pub holds_addresses: bool,
}

/// One map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapFacts {
    /// Its name.
    pub name: String,
    /// Number of its type.
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Its entries; for a ring buffer, its bytes.
    pub max_entries: u32,
    /// Its flags.
    pub flags: u32,
    /// Whether it wants to be pinned in a file system.
    pub pinned: bool,
}

/// Reads an object.
///
/// # Errors
/// Why it cannot be used, for a person.
///
/// # Panics
/// On some damaged objects, in the parser: call it in a process that may die.
pub fn inspect(bytes: &[u8]) -> Result<Verdict, String> {
    let look = elf::look(bytes).map_err(|e| e.to_string())?;
    let mut object = Object::parse(bytes).map_err(|e| format!("the object does not parse: {e}"))?;
    if object.programs.len() > OBJECT_PROGRAMS_MAX {
        let count = object.programs.len();
        return Err(format!(
            "the object has {count} programs, at most {OBJECT_PROGRAMS_MAX} are possible"
        ));
    }
    if object.maps.len() > OBJECT_MAPS_MAX {
        let count = object.maps.len();
        return Err(format!(
            "the object has {count} maps, at most {OBJECT_MAPS_MAX} are possible"
        ));
    }
    let mut verdict = Verdict {
        undefined: look.undefined,
        relocates_types: object.has_btf_relocations(),
        maps: map_facts(&object)?,
        ..Verdict::default()
    };
    let suspects: Vec<(usize, u64)> = object
        .functions
        .iter()
        .filter(|(_, function)| holds_addresses(&function.instructions))
        .map(|(key, _)| *key)
        .collect();
    if verdict.undefined.is_empty() {
        link(&mut object)?;
    }
    verdict.programs = program_facts(&object, !suspects.is_empty());
    Ok(verdict)
}

/// Does what the loader will do, so that the loader only meets what has passed here; afterwards each program holds
/// all functions that it calls.
fn link(object: &mut Object) -> Result<(), String> {
    // The types that go to the kernel are fitted to its age; a kernel that knows everything changes the least.
    let features = aya_obj::btf::BtfFeatures::new(true, true, true, true, true, true, true, true);
    object
        .fixup_and_sanitize_btf(&features)
        .map_err(|e| format!("the types of the object cannot be used: {e}"))?;
    let text_sections = object.functions.keys().map(|(section, _)| *section).collect();
    // Any number will do for a descriptor: nothing is loaded here.
    let maps: Vec<(String, aya_obj::Map)> = object.maps.drain().collect();
    object
        .relocate_maps(maps.iter().map(|(name, map)| (name.as_str(), 3, map)), &text_sections)
        .map_err(|e| format!("the object cannot be linked with its maps: {e}"))?;
    object
        .relocate_calls(&text_sections)
        .map_err(|e| format!("the object cannot be linked with its functions: {e}"))?;
    // As a kernel that knows all helpers would have it: another one gets older names for the same, which are not
    // those that a manifest speaks of.
    object.sanitize_functions(&Features::new(true, true, true, true, true, true, true, None));
    object.maps = maps.into_iter().collect();
    Ok(())
}

fn map_facts(object: &Object) -> Result<Vec<MapFacts>, String> {
    let mut facts = Vec::new();
    for (name, map) in &object.maps {
        let is_data = !matches!(map.section_kind(), EbpfSectionKind::Maps | EbpfSectionKind::BtfMaps);
        // The kernel copies as many bytes as the map says from where the data are.
        if is_data && map.data().len() != map.value_size() as usize {
            return Err(format!(
                "the object is damaged: section `{name}` is not as long as it says"
            ));
        }
        facts.push(MapFacts {
            name: name.clone(),
            map_type: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            max_entries: map.max_entries(),
            flags: map.map_flags(),
            pinned: map.pinning() != PinningType::None,
        });
    }
    facts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(facts)
}

fn program_facts(object: &Object, any_holds_addresses: bool) -> Vec<ProgramFacts> {
    let mut facts: Vec<ProgramFacts> = object
        .programs
        .iter()
        .filter_map(|(name, program)| {
            let function = object.functions.get(&program.function_key())?;
            let calls = |source: u8| {
                let found = function.instructions.iter().filter(move |i| is_call(i, source));
                found.map(|i| i.imm)
            };
            let mut helpers: Vec<i32> = calls(CALL_HELPER).collect();
            helpers.sort_unstable();
            helpers.dedup();
            Some(ProgramFacts {
                name: name.clone(),
                section: section_text(&program.section),
                kind: kind_of(&program.section),
                instructions: function.instructions.len(),
                helpers,
                calls_kernel: calls(CALL_KERNEL).next().is_some(),
                holds_addresses: any_holds_addresses,
            })
        })
        .collect();
    facts.sort_by(|a, b| a.name.cmp(&b.name));
    facts
}

fn is_call(instruction: &bpf_insn, source: u8) -> bool {
    instruction.code == CALL && instruction.src_reg() == source
}

/// A compiler leaves the source of a 64-bit load at zero and says in a relocation what it is. One that is filled in
/// names a descriptor or an object of the kernel that the loader did not choose.
fn holds_addresses(instructions: &[bpf_insn]) -> bool {
    let mut rest = instructions.iter();
    while let Some(instruction) = rest.next() {
        if instruction.code == LOAD_64 {
            if instruction.src_reg() != 0 {
                return true;
            }
            // Its second half is data.
            rest.next();
        }
    }
    false
}

fn section_text(section: &ProgramSection) -> String {
    match kind_of(section) {
        Some(kind) => kind_name(kind).to_owned(),
        None => format!("{section:?}"),
    }
}

fn kind_of(section: &ProgramSection) -> Option<ProgramKind> {
    match section {
        ProgramSection::SocketFilter => Some(ProgramKind::SocketFilter),
        ProgramSection::SchedClassifier => Some(ProgramKind::TcIngress),
        ProgramSection::Xdp {
            attach_type: XdpAttachType::Interface,
            ..
        } => Some(ProgramKind::Xdp),
        ProgramSection::TracePoint => Some(ProgramKind::Tracepoint),
        ProgramSection::CgroupSkb {
            attach_type: Some(CgroupSkbAttachType::Ingress | CgroupSkbAttachType::Egress),
        } => Some(ProgramKind::CgroupSkb),
        _ => None,
    }
}

/// The word for a kind in manifests.
#[must_use]
pub fn kind_name(kind: ProgramKind) -> &'static str {
    match kind {
        ProgramKind::SocketFilter => "socket-filter",
        ProgramKind::TcIngress => "tc-ingress",
        ProgramKind::Xdp => "xdp",
        ProgramKind::Tracepoint => "tracepoint",
        ProgramKind::CgroupSkb => "cgroup-skb",
    }
}
