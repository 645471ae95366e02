//! A first look at an object file, before the real parser sees it.
//!
//! aya-obj trusts some of what it reads: a byte of a `maps` section becomes an enum unchecked, and a symbol's bounds
//! become a slice. What is checked here, it may trust.

/// Most sections of an object.
pub const SECTIONS_MAX: usize = 256;
/// Most symbols of an object.
pub const SYMBOLS_MAX: usize = 4096;

const HEADER_BYTES: usize = 64;
const SECTION_BYTES: usize = 64;
const SYMBOL_BYTES: usize = 24;
const MACHINE_BPF: u16 = 247;
const TYPE_RELOCATABLE: u16 = 1;
const SECTION_SYMBOLS: u32 = 2;
const SECTION_NO_BITS: u32 = 8;
/// Section numbers from here on mean something else than a section.
const SECTION_RESERVED: u16 = 0xff00;

/// Why bytes are not an object that is worth parsing.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// Not a relocatable 64-bit object for BPF with this node's order of bytes.
    #[error("not an eBPF object ({what}): make it with `clang -O2 -g -target bpf -c`")]
    Foreign {
        /// What is different.
        what: &'static str,
    },
    /// A table or a section lies outside the file, or is too long.
    #[error("the object is damaged: {what}")]
    Damaged {
        /// What lies outside.
        what: String,
    },
    /// Maps in the form of before 2020.
    #[error("section `{name}` holds maps in the legacy form: declare them with BTF in section `.maps`")]
    LegacyMaps {
        /// The section.
        name: String,
    },
}

/// What the real parser does not say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Names that the object uses and does not have: kernel functions (kfuncs) and kernel variables.
    pub undefined: Vec<String>,
}

struct Section {
    name: usize,
    kind: u32,
    offset: usize,
    size: usize,
    link: usize,
}

/// Checks the tables of an object and reads the names it lacks.
///
/// # Errors
/// What is wrong with it.
pub fn look(bytes: &[u8]) -> Result<Look, ElfError> {
    check_header(bytes)?;
    let sections = read_sections(bytes)?;
    let names_at = usize::from(u16_at(bytes, 62).unwrap_or(0));
    let names = sections.get(names_at).ok_or_else(|| damaged("no section names"))?;
    for section in &sections {
        let name = text_at(bytes, names, section.name)?;
        if name.starts_with("maps") {
            return Err(ElfError::LegacyMaps { name });
        }
    }
    let mut look = Look::default();
    for table in sections.iter().filter(|s| s.kind == SECTION_SYMBOLS) {
        read_symbols(bytes, &sections, table, &mut look)?;
    }
    Ok(look)
}

fn check_header(bytes: &[u8]) -> Result<(), ElfError> {
    let foreign = |what| Err(ElfError::Foreign { what });
    let order = if cfg!(target_endian = "little") { 1 } else { 2 };
    match bytes {
        [0x7f, b'E', b'L', b'F', 2, data, ..] if *data == order && bytes.len() >= HEADER_BYTES => {}
        [0x7f, b'E', b'L', b'F', ..] => return foreign("an ELF file of another word size or order of bytes"),
        _ => return foreign("no ELF header"),
    }
    if u16_at(bytes, 16) != Some(TYPE_RELOCATABLE) {
        return foreign("not relocatable");
    }
    if u16_at(bytes, 18) != Some(MACHINE_BPF) {
        return foreign("for another machine");
    }
    Ok(())
}

fn read_sections(bytes: &[u8]) -> Result<Vec<Section>, ElfError> {
    let table = usize_at(bytes, 40)?;
    let count = usize::from(u16_at(bytes, 60).unwrap_or(0));
    if count == 0 || count > SECTIONS_MAX {
        return Err(damaged(format!("{count} sections, 1 to {SECTIONS_MAX} are possible")));
    }
    if u16_at(bytes, 58).map(usize::from) != Some(SECTION_BYTES) {
        return Err(damaged("the size of a section header"));
    }
    let mut sections = Vec::with_capacity(count);
    for number in 0..count {
        let at = table.saturating_add(number * SECTION_BYTES);
        let section = Section {
            name: u32_at(bytes, at)? as usize,
            kind: u32_at(bytes, at.saturating_add(4))?,
            offset: usize_at(bytes, at.saturating_add(24))?,
            size: usize_at(bytes, at.saturating_add(32))?,
            link: u32_at(bytes, at.saturating_add(40))? as usize,
        };
        let inside = section
            .offset
            .checked_add(section.size)
            .is_some_and(|end| end <= bytes.len());
        if number > 0 && section.kind != SECTION_NO_BITS && !inside {
            return Err(damaged(format!("section {number} ends after the file")));
        }
        sections.push(section);
    }
    Ok(sections)
}

fn read_symbols(bytes: &[u8], sections: &[Section], table: &Section, look: &mut Look) -> Result<(), ElfError> {
    let count = table.size / SYMBOL_BYTES;
    if count > SYMBOLS_MAX {
        return Err(damaged(format!("{count} symbols, at most {SYMBOLS_MAX} are possible")));
    }
    let names = sections.get(table.link).ok_or_else(|| damaged("no symbol names"))?;
    for number in 1..count {
        let at = table.offset + number * SYMBOL_BYTES;
        let name = text_at(bytes, names, u32_at(bytes, at)? as usize)?;
        let section = u16_at(bytes, at + 6).unwrap_or(0);
        if section == 0 {
            if !name.is_empty() {
                look.undefined.push(name);
            }
            continue;
        }
        if section >= SECTION_RESERVED {
            continue;
        }
        let home = sections.get(usize::from(section));
        let (value, size) = (usize_at(bytes, at + 8)?, usize_at(bytes, at + 16)?);
        let inside = home.is_some_and(|home| value.checked_add(size).is_some_and(|end| end <= home.size));
        if !inside {
            return Err(damaged(format!("symbol `{name}` lies outside its section")));
        }
    }
    Ok(())
}

fn damaged(what: impl Into<String>) -> ElfError {
    ElfError::Damaged { what: what.into() }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, ElfError> {
    array(bytes, at)
        .map(u32::from_ne_bytes)
        .ok_or_else(|| damaged("a table ends after the file"))
}

fn usize_at(bytes: &[u8], at: usize) -> Result<usize, ElfError> {
    array(bytes, at)
        .and_then(|word| usize::try_from(u64::from_ne_bytes(word)).ok())
        .ok_or_else(|| damaged("a table ends after the file"))
}

fn text_at(bytes: &[u8], strings: &Section, at: usize) -> Result<String, ElfError> {
    let end = strings.offset.saturating_add(strings.size).min(bytes.len());
    let text = bytes.get(strings.offset.saturating_add(at)..end);
    let text = text.ok_or_else(|| damaged("a name lies outside its section"))?;
    let length = text.iter().position(|byte| *byte == 0);
    let length = length.ok_or_else(|| damaged("a name without an end"))?;
    Ok(String::from_utf8_lossy(&text[..length]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_object_is_said() {
        for (bytes, expected) in [
            (&b""[..], "no ELF header"),
            (b"\x7fELF\x01\x01", "word size"),
            (b"#!/bin/sh\n", "no ELF header"),
        ] {
            assert!(look(bytes).unwrap_err().to_string().contains(expected));
        }
        let mut header = vec![0; HEADER_BYTES];
        header[..6].copy_from_slice(&[
            0x7f,
            b'E',
            b'L',
            b'F',
            2,
            if cfg!(target_endian = "little") { 1 } else { 2 },
        ]);
        header[16..18].copy_from_slice(&TYPE_RELOCATABLE.to_ne_bytes());
        header[18..20].copy_from_slice(&62u16.to_ne_bytes());
        assert!(look(&header).unwrap_err().to_string().contains("another machine"));
        header[18..20].copy_from_slice(&MACHINE_BPF.to_ne_bytes());
        assert!(look(&header).unwrap_err().to_string().contains("0 sections"));
    }
}
