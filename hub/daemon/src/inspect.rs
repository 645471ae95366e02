//! Looking into an uploaded artifact: whether its runtime could do anything with it, and which parts belong to it.

use cnova_hub_core::cndl::RuntimeKind;
use cnova_hub_core::systems::BundleFacts;
use cnova_hub_core::{InspectKey, Inspection};
use cnova_shared::ids::Digest;
use cnova_shared::limits;
use cnova_shared::system_bundle::{Header, PREFIX_BYTES};
use cnova_shared::wire::v1;

use crate::library::Library;

/// Bytes of an ELF header that are looked at.
const ELF_HEADER_BYTES: usize = 20;
/// `e_machine` of eBPF.
const EM_BPF: u16 = 247;
/// `e_type` of an object that is not linked, as clang writes it.
const ET_REL: u16 = 1;

/// Looks into one artifact. Blocks on the disk.
pub fn inspect(library: &Library, key: &InspectKey) -> Inspection {
    if !library.artifacts().has(&key.digest) {
        return Err("its file is not on the hub's disk: upload it again".to_owned());
    }
    let read = |most: u64| {
        let read = library.artifacts().read(&key.digest, 0, most);
        read.map_err(|e| format!("it cannot be read: {e}"))
    };
    match key.runtime {
        RuntimeKind::Ebpf => check_object(&read(ELF_HEADER_BYTES as u64)?.0).map(|()| Vec::new()),
        RuntimeKind::Container => {
            let (bytes, size) = read(cnova_oci::MANIFEST_BYTES_MAX + 1)?;
            image(library, &bytes, size)
        }
        // The compiler looks into Wasm.
        RuntimeKind::Wasm => Ok(Vec::new()),
    }
}

/// Bytes of a bundle that are read at once.
const PIECE_BYTES: u64 = 1 << 20;

/// Looks into a system bundle: its header, and whether its parts are what that says. Blocks on the disk.
///
/// # Errors
/// What is wrong with it, for a person.
pub fn inspect_bundle(library: &Library, bundle: &Digest) -> Result<BundleFacts, String> {
    let read = |offset, most| {
        let read = library.artifacts().read(bundle, offset, most);
        read.map_err(|e| format!("it cannot be read: {e}"))
    };
    if !library.artifacts().has(bundle) {
        return Err("its file is not on the hub's disk: upload it again".to_owned());
    }
    let (begin, size) = read(0, (PREFIX_BYTES + limits::SYSTEM_HEADER_BYTES) as u64)?;
    let header = Header::read(&begin, size).map_err(|e| e.to_string())?;
    let length = Header::length(&begin).map_err(|e| e.to_string())?;
    for part in &header.parts {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        let mut at = part.offset;
        while at < part.end() {
            let (piece, _) = read(at, PIECE_BYTES.min(part.end() - at))?;
            if piece.is_empty() {
                return Err(format!("it ends at {at}, in the middle of its part {:?}", part.kind));
            }
            context.update(&piece);
            at += piece.len() as u64;
        }
        let found = context.finish();
        if found.as_ref() != part.digest.0 {
            let mut digest = [0; 32];
            digest.copy_from_slice(found.as_ref());
            return Err(format!(
                "its part {:?} has the digest {}, and its header says {}: the file was damaged after it was built",
                part.kind,
                Digest(digest),
                part.digest
            ));
        }
    }
    Ok(BundleFacts {
        header_digest: Digest::of(begin.get(..length).unwrap_or_default()),
        header,
        size,
    })
}

/// That the bytes begin as an eBPF object does.
fn check_object(head: &[u8]) -> Result<(), String> {
    let hint = "build one with: clang -O2 -g -target bpf -c program.c -o program.o";
    if head.len() < ELF_HEADER_BYTES || !head.starts_with(b"\x7fELF") {
        return Err(format!(
            "it is not an eBPF object: it does not begin as an ELF file does; {hint}"
        ));
    }
    let half = |at: usize| {
        let bytes = [head[at], head[at + 1]];
        // EI_DATA: 1 is little, 2 is big.
        if head[5] == 2 {
            u16::from_be_bytes(bytes)
        } else {
            u16::from_le_bytes(bytes)
        }
    };
    match (half(16), half(18)) {
        (ET_REL, EM_BPF) if head[4] == 2 => Ok(()),
        (_, EM_BPF) => Err(format!(
            "it is an ELF file for eBPF, but not a 64-bit object that can be loaded; {hint}"
        )),
        (_, machine) => Err(format!(
            "it is an ELF file for another machine ({machine}; eBPF is {EM_BPF}); {hint}"
        )),
    }
}

fn image(library: &Library, bytes: &[u8], size: u64) -> Inspection {
    let hint = "import an image and name the digest that it prints: cnova artifact import IMAGE";
    if size > cnova_oci::MANIFEST_BYTES_MAX {
        let what = "it is not the manifest of a container image";
        return Err(format!("{what}: it has {size} bytes; {hint}"));
    }
    let not_one = |e: cnova_oci::ManifestError| format!("it is not the manifest of a container image: {e}; {hint}");
    let parts = cnova_oci::parts_of(bytes).map_err(not_one)?;
    let config = parts.first().map(|(digest, _)| Digest(*digest.bytes()));
    // One that is not there yet is told by the core, with the image's other missing parts.
    if let Some(config) = config.filter(|c| library.artifacts().has(c)) {
        let (config, _) = library
            .artifacts()
            .read(&config, 0, cnova_oci::CONFIG_BYTES_MAX + 1)
            .map_err(|e| format!("its configuration cannot be read: {e}"))?;
        cnova_oci::check_image(bytes, &config).map_err(|e| e.to_string())?;
    }
    let part = |(digest, size): (cnova_oci::Digest, u64)| v1::Artifact {
        digest: Digest(*digest.bytes()),
        size,
    };
    Ok(parts.into_iter().map(part).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(class: u8, data: u8, kind: u16, machine: u16) -> Vec<u8> {
        let half = |n: u16| if data == 2 { n.to_be_bytes() } else { n.to_le_bytes() };
        let mut bytes = b"\x7fELF".to_vec();
        bytes.extend([class, data, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(half(kind));
        bytes.extend(half(machine));
        bytes
    }

    #[test]
    fn only_ebpf_objects_pass_of_either_byte_order() {
        for data in [1, 2] {
            assert_eq!(check_object(&head(2, data, ET_REL, EM_BPF)), Ok(()));
        }
        for (bytes, word) in [
            (head(2, 1, ET_REL, 62), "another machine (62"),
            (head(2, 1, 3, EM_BPF), "not a 64-bit object"),
            (head(1, 1, ET_REL, EM_BPF), "not a 64-bit object"),
            (b"\0asm\x01\0\0\0".to_vec(), "does not begin as an ELF"),
            (b"\x7fELF".to_vec(), "does not begin as an ELF"),
        ] {
            let said = check_object(&bytes).unwrap_err();
            assert!(said.contains(word) && said.contains("clang"), "{said}");
        }
    }
}
