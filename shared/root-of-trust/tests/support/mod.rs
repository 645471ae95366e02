//! What several of these tests need.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use cnova_root_of_trust::testing::{Maker, Swtpm};
use cnova_root_of_trust::tpm::EkKind;
use cnova_shared::ids::Digest;
use cnova_shared::keys::{Algorithm, PublicKey, SoftKey};

/// Whether the tools of others are there that these tests compare with.
pub(crate) fn has_tools() -> bool {
    let missing = |tool: &&&str| Command::new(tool).arg("--version").output().is_err();
    match ["tpm2_checkquote", "tpm2_makecredential", "openssl"]
        .iter()
        .find(missing)
    {
        None => true,
        Some(tool) => {
            eprintln!("SKIPPED: {tool} is not installed (Debian: apt install tpm2-tools openssl); nothing was tested");
            false
        }
    }
}

/// A TPM for a test that uses those tools.
pub(crate) fn start(kind: EkKind) -> Option<Swtpm> {
    has_tools().then(|| Swtpm::start(kind)).flatten()
}

/// The same, by this maker.
pub(crate) fn start_by(maker: &Maker, kind: Option<EkKind>) -> Option<Swtpm> {
    has_tools().then(|| Swtpm::start_by(maker, kind)).flatten()
}

/// A new key in memory.
pub(crate) fn es256() -> SoftKey {
    let key = rcgen::KeyPair::generate().unwrap();
    SoftKey::from_pkcs8(&key.serialize_der()).unwrap()
}

/// A structure with its two bytes of length in front (TPM2B).
pub(crate) fn sized(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap();
    [&length.to_be_bytes()[..], bytes].concat()
}

/// The name of an object with SHA-256 (TPM 2.0 Library, part 1, section 16).
pub(crate) fn name(public: &[u8]) -> Vec<u8> {
    [&[0, 0x0B][..], &Digest::of(public).0].concat()
}

/// The point at the end of a TPMT_PUBLIC over P-256: x and y, each with two bytes of length in front.
pub(crate) fn p256_of(public: &[u8]) -> PublicKey {
    let point = public.last_chunk::<68>().unwrap();
    assert_eq!((&point[..2], &point[34..36]), (&[0, 32][..], &[0, 32][..]));
    PublicKey {
        algorithm: Algorithm::Es256,
        bytes: [&[4][..], &point[2..34], &point[36..]].concat(),
    }
}

/// r || s of a TPMT_SIGNATURE with ECDSA.
pub(crate) fn fixed_of(signature: &[u8]) -> Vec<u8> {
    assert_eq!(signature[..4], [0, 0x18, 0, 0x0B], "ECDSA with SHA-256");
    let mut rest = &signature[4..];
    let mut out = Vec::new();
    for _ in 0..2 {
        let length = usize::from(u16::from_be_bytes([rest[0], rest[1]]));
        out.extend(std::iter::repeat_n(0, 32 - length));
        out.extend_from_slice(&rest[2..2 + length]);
        rest = &rest[2 + length..];
    }
    assert!(rest.is_empty());
    out
}

/// Runs a tool and says whether it succeeded, with what it wrote.
pub(crate) fn try_tool(command: &mut Command) -> Result<String, String> {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!("{command:?}: {text}"))
    }
}

/// Runs a tool that must succeed.
pub(crate) fn tool(command: &mut Command) -> String {
    try_tool(command).unwrap()
}

/// Makes a credential with tpm2-tools, in software: another implementation than any of ours.
pub(crate) fn make_credential(
    folder: &Path,
    ek_public: &[u8],
    name: &[u8],
    secret: &[u8],
) -> cnova_attestation::Credential {
    let path = |f: &str| folder.join(f);
    std::fs::write(path("ek"), sized(ek_public)).unwrap();
    std::fs::write(path("secret"), secret).unwrap();
    let hex: String = name.iter().map(|b| format!("{b:02x}")).collect();
    let mut make = Command::new("tpm2_makecredential");
    make.args(["-T", "none", "-n", &hex]).arg("-u").arg(path("ek"));
    make.arg("-s").arg(path("secret")).arg("-o").arg(path("credential"));
    tool(&mut make);
    // Magic and version, then TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET.
    let bytes = std::fs::read(path("credential")).unwrap();
    let blob_length = 2 + usize::from(u16::from_be_bytes([bytes[8], bytes[9]]));
    let (blob, secret) = bytes[8..].split_at(blob_length);
    cnova_attestation::Credential {
        blob: blob.to_vec().into(),
        secret: secret.to_vec().into(),
    }
}
