//! Secrets: the bytes of one, and everything that must not open.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use cnova_shared::ids::{Name, NodeId};
use cnova_shared::limits;
use cnova_shared::secret::{self, Address, BoxKey, BoxPublicKey, OpenError, SealError};
use proptest::prelude::*;

const VALUE: &[u8] = b"correct horse battery staple";

fn key(n: u8) -> BoxKey {
    BoxKey::from_bytes(&[n; 32]).unwrap()
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn address<'a>(node: &'a NodeId, name: &'a Name, version: u64) -> Address<'a> {
    Address { node, name, version }
}

fn sealed(value: &[u8]) -> Vec<u8> {
    let (node, name) = (node("plc-1"), name("db-password"));
    secret::seal(value, &key(1).public(), address(&node, &name, 3), &key(2), [7; 12]).unwrap()
}

fn open(bytes: &[u8], with: &BoxKey) -> Result<Vec<u8>, OpenError> {
    let (node, name) = (node("plc-1"), name("db-password"));
    secret::open(bytes, with, address(&node, &name, 3)).map(|v| v.to_vec())
}

#[test]
fn a_secret_keeps_its_bytes() {
    let made = sealed(VALUE);
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/secret.cose");
    if std::env::var("CNOVA_WRITE_GOLDEN").is_ok_and(|v| v == "1") {
        fs::write(&path, &made).unwrap();
    }
    let golden = fs::read(&path).unwrap();
    assert_eq!(made, golden, "nodes in the field would not open this");
    assert_eq!(open(&golden, &key(1)).unwrap(), VALUE);
}

#[test]
fn it_opens_for_this_node_name_and_version_alone() {
    let made = sealed(VALUE);
    let (here, there) = (node("plc-1"), node("plc-2"));
    let (one, other) = (name("db-password"), name("db-passwore"));
    for wrong in [
        address(&there, &one, 3),
        address(&here, &other, 3),
        address(&here, &one, 2),
        address(&here, &one, 4),
    ] {
        assert_eq!(
            secret::open(&made, &key(1), wrong).unwrap_err(),
            OpenError::NotGenuine,
            "{wrong:?}"
        );
    }
    let (found, own) = (key(1).public().id(), key(5).public().id());
    assert_eq!(open(&made, &key(5)).unwrap_err(), OpenError::OtherKey { found, own });
}

#[test]
fn no_byte_can_be_changed_left_out_or_added() {
    let made = sealed(VALUE);
    for at in 0..made.len() {
        assert!(open(&made[..at], &key(1)).is_err(), "cut at {at}");
        for bit in 0..8 {
            let mut changed = made.clone();
            changed[at] ^= 1 << bit;
            assert!(open(&changed, &key(1)).is_err(), "byte {at}, bit {bit}");
        }
    }
    assert!(open(&[made.as_slice(), &[0]].concat(), &key(1)).is_err());
}

#[test]
fn neither_the_value_nor_the_key_is_in_what_is_printed_or_sent() {
    let made = sealed(VALUE);
    assert!(!made.windows(6).any(|w| VALUE.windows(6).any(|v| v == w)));
    let shown = format!("{:?} {:?}", key(1), key(1).public());
    assert!(!shown.contains("0101"), "{shown}");
}

#[test]
fn sizes_are_bounded() {
    let largest = vec![9; limits::SECRET_BYTES];
    let made = sealed(&largest);
    assert!(made.len() <= limits::SECRET_BYTES + limits::SEALED_SECRET_EXTRA);
    assert_eq!(open(&made, &key(1)).unwrap(), largest);
    let (node, name) = (node("plc-1"), name("x"));
    let larger = [largest, vec![0]].concat();
    let refused = secret::seal(&larger, &key(1).public(), address(&node, &name, 1), &key(2), [0; 12]);
    assert_eq!(refused.unwrap_err(), SealError::TooLarge { len: larger.len() });
    assert_eq!(open(&sealed(b""), &key(1)).unwrap(), b"");
}

#[test]
fn a_public_key_is_a_point_in_its_one_form() {
    let public = key(1).public();
    let bytes = public.to_bytes();
    assert_eq!(bytes.len(), 65);
    assert_eq!(BoxPublicKey::from_bytes(&bytes).unwrap(), public);
    let mut compressed = vec![2 | (bytes[64] & 1)];
    compressed.extend_from_slice(&bytes[1..33]);
    let mut off_curve = bytes.clone();
    off_curve[64] ^= 1;
    for wrong in [compressed, off_curve, bytes[..64].to_vec(), vec![0], Vec::new()] {
        assert!(BoxPublicKey::from_bytes(&wrong).is_err(), "{wrong:?}");
    }
    assert!(BoxKey::from_bytes(&[0; 32]).is_err());
    assert!(BoxKey::from_bytes(&[0xff; 32]).is_err());
    assert_eq!(BoxKey::from_bytes(&[1; 32]).unwrap().expose().as_slice(), [1; 32]);
}

#[test]
fn what_lies_on_a_disk_opens_with_its_key_and_for_its_purpose_alone() {
    let locked = secret::lock(VALUE, &[1; 32], b"box-key plc-1", [2; 12]).unwrap();
    assert_eq!(
        secret::unlock(&locked, &[1; 32], b"box-key plc-1").unwrap().as_slice(),
        VALUE
    );
    assert!(secret::unlock(&locked, &[3; 32], b"box-key plc-1").is_err());
    assert!(secret::unlock(&locked, &[1; 32], b"box-key plc-2").is_err());
    for at in 0..locked.len() {
        assert!(secret::unlock(&locked[..at], &[1; 32], b"box-key plc-1").is_err());
        let mut changed = locked.clone();
        changed[at] ^= 1;
        assert!(secret::unlock(&changed, &[1; 32], b"box-key plc-1").is_err());
    }
}

/// What a library of another language finds in a secret, as its JSON; nothing where that is not installed.
fn ask_python(made: &[u8], version: u64) -> Option<String> {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let has = Command::new("python3").args(["-c", "import cryptography"]).output();
    if !has.is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: python3 with cryptography is not here (apt install python3-cryptography)");
        return None;
    }
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../scripts/interop/secret.py");
    let mut python = Command::new("python3")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let question = format!(
        r#"{{"cose": "{}", "private": "{}", "node": "plc-1", "name": "db-password", "version": {version}}}"#,
        hex(made),
        hex(&[1; 32])
    );
    python.stdin.take().unwrap().write_all(question.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn another_library_opens_it_by_the_rfcs_alone() {
    let large = vec![b'x'; 60_000];
    for value in [VALUE, &large] {
        let Some(said) = ask_python(&sealed(value), 3) else {
            return;
        };
        let hex: String = value.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(said, format!(r#"{{"value": "{hex}"}}"#));
    }
    assert_eq!(ask_python(&sealed(VALUE), 4).unwrap(), r#"{"value": null}"#);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(open(&bytes, &key(1)).is_err());
        prop_assert!(open(&[&[0xd8, 0x60, 0x84][..], &bytes].concat(), &key(1)).is_err());
    }
}
