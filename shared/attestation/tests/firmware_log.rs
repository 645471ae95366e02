//! Logs of firmware, built as the TCG PC Client Platform Firmware Profile says, section 10.4.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cnova_attestation::appraise::{Subject, appraise};
use cnova_attestation::event_log::{Slice, ZERO, extended};
use cnova_attestation::firmware_log::{FirmwareLog, FirmwareLogError};
use cnova_attestation::limits;
use cnova_attestation::quote::{verify, verify_evidence};
use cnova_attestation::reference::{PcrReference, ReferenceSet, References, Selector};
use cnova_shared::certificate::Tier;
use cnova_shared::ids::{Digest, SitePath};
use proptest::prelude::{ProptestConfig, any, prop_assert, proptest};
use support::{Shown, SoftTpm, digest, node};

const SHA1: u16 = 0x0004;
const SHA256: u16 = 0x000b;
const SHA384: u16 = 0x000c;
const EV_NO_ACTION: u32 = 3;
const EV_SEPARATOR: u32 = 4;
const EV_EFI_BOOT_SERVICES_APPLICATION: u32 = 0x8000_0003;

fn size_of(algorithm: u16) -> u16 {
    match algorithm {
        SHA1 => 20,
        SHA256 => 32,
        _ => 48,
    }
}

fn header(banks: &[u16]) -> Vec<u8> {
    let mut data = b"Spec ID Event03\0".to_vec();
    // Platform class 0, version 2.0 errata 0, 64-bit integers.
    data.extend([0, 0, 0, 0, 0, 2, 0, 2]);
    data.extend(u32::try_from(banks.len()).unwrap().to_le_bytes());
    for bank in banks {
        data.extend(bank.to_le_bytes());
        data.extend(size_of(*bank).to_le_bytes());
    }
    data.push(0);
    let len = u32::try_from(data.len()).unwrap().to_le_bytes();
    [
        &0_u32.to_le_bytes()[..],
        &EV_NO_ACTION.to_le_bytes(),
        &[0; 20],
        &len,
        &data,
    ]
    .concat()
}

fn event(banks: &[u16], pcr: u32, kind: u32, digest: &Digest, data: &[u8]) -> Vec<u8> {
    let mut out = [&pcr.to_le_bytes()[..], &kind.to_le_bytes()].concat();
    out.extend(u32::try_from(banks.len()).unwrap().to_le_bytes());
    for bank in banks {
        out.extend(bank.to_le_bytes());
        let other = vec![0xee; size_of(*bank).into()];
        out.extend(if *bank == SHA256 { &digest.0[..] } else { &other });
    }
    out.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
    out.extend(data);
    out
}

const BANKS: [u16; 3] = [SHA1, SHA256, SHA384];

/// A boot: firmware and separator into PCR 0, a boot loader and this kernel into PCR 4.
fn boot_log(kernel: &str) -> Vec<u8> {
    let locality = [b"StartupLocality\0".as_slice(), &[3]].concat();
    [
        header(&BANKS),
        event(&BANKS, 0, EV_NO_ACTION, &ZERO, &locality),
        event(&BANKS, 0, 8, &digest("firmware"), b"1.0"),
        event(&BANKS, 4, EV_EFI_BOOT_SERVICES_APPLICATION, &digest("loader"), b"path"),
        event(&BANKS, 0, EV_SEPARATOR, &digest("separator"), &[0; 4]),
        event(&BANKS, 4, EV_EFI_BOOT_SERVICES_APPLICATION, &digest(kernel), &[7; 300]),
    ]
    .concat()
}

fn replayed(start: Digest, events: &[&str]) -> Digest {
    events.iter().fold(start, |pcr, e| extended(&pcr, &digest(e)))
}

#[test]
fn a_log_replays() {
    let log = FirmwareLog::read(&boot_log("kernel")).unwrap();
    let mut locality_3 = ZERO;
    locality_3.0[31] = 3;
    assert_eq!(log.replay(0), replayed(locality_3, &["firmware", "separator"]));
    assert_eq!(log.replay(4), replayed(ZERO, &["loader", "kernel"]));
    assert_eq!(log.replay(7), ZERO);
    let known = BTreeSet::from([digest("loader")]);
    let first = log.first_unknown(4, &known).unwrap();
    assert_eq!(
        (first.index, first.kind_name()),
        (5, "EV_EFI_BOOT_SERVICES_APPLICATION")
    );
    assert_eq!(log.digests(4), BTreeSet::from([digest("loader"), digest("kernel")]));
}

#[test]
fn what_is_no_such_log_is_refused() {
    let good = boot_log("kernel");
    let read = (0..good.len()).filter(|len| match FirmwareLog::read(&good[..*len]) {
        Ok(_) => true,
        Err(e) => {
            assert!(matches!(e, FirmwareLogError::Short(_)), "{len}: {e}");
            false
        }
    });
    // Between two events a log may end; anywhere else it may not. There are five events; the last end is the whole.
    assert_eq!(read.count(), 5);
    assert_eq!(FirmwareLog::read(&header(&[SHA1])), Err(FirmwareLogError::NoSha256));
    assert_eq!(
        FirmwareLog::read(&header(&[SHA256, SHA256])),
        Err(FirmwareLogError::Banks(0))
    );
    assert_eq!(
        FirmwareLog::read(&header(&[SHA256; 9])),
        Err(FirmwareLogError::Banks(0))
    );
    let old = [&0_u32.to_le_bytes()[..], &8_u32.to_le_bytes(), &[0; 24]].concat();
    assert_eq!(FirmwareLog::read(&old), Err(FirmwareLogError::OtherFormat));
    let unnamed = [header(&[SHA256]), event(&[SHA384], 0, 8, &ZERO, &[])].concat();
    assert_eq!(FirmwareLog::read(&unnamed), Err(FirmwareLogError::Banks(1)));
    let without = [header(&[SHA1, SHA256]), event(&[SHA1], 0, 8, &ZERO, &[])].concat();
    assert_eq!(FirmwareLog::read(&without), Err(FirmwareLogError::NoSha256));
    let large = vec![0; limits::FIRMWARE_LOG_BYTES + 1];
    assert_eq!(FirmwareLog::read(&large), Err(FirmwareLogError::TooLarge(large.len())));
    let endless = [header(&[SHA256]), event(&[], 0, 8, &ZERO, &[])].concat();
    assert_eq!(FirmwareLog::read(&endless), Err(FirmwareLogError::NoSha256));
}

fn mismatch(log: Option<Vec<u8>>, quoted: &[&str], known: &[&str]) -> (String, Option<String>) {
    let mut tpm = SoftTpm::new();
    tpm.pcrs.insert(4, replayed(ZERO, quoted));
    let mut evidence = tpm.evidence("plc-1", &[1; 32], Slice::default());
    evidence.tpm.as_mut().unwrap().firmware_log = log;
    let reference = PcrReference {
        values: BTreeSet::from([replayed(ZERO, &["loader", "kernel"])]),
        events: known.iter().map(|e| digest(e)).collect(),
    };
    let references = References {
        v: 1,
        version: 1,
        sets: vec![ReferenceSet {
            name: "image".into(),
            nodes: Selector {
                all: true,
                ..Selector::default()
            },
            pcrs: BTreeMap::from([(4, reference)]),
            ..ReferenceSet::default()
        }],
    };
    let (me, site) = (node("plc-1"), SitePath::new("plant").unwrap());
    let verified = verify_evidence(&evidence, &me, &[1; 32], Some(&tpm.ak_public())).unwrap();
    let subject = Subject {
        node: &me,
        site: &site,
        labels: &BTreeMap::new(),
        tier: Tier::Tpm,
        launch_pcr: Some(14),
    };
    let appraisal = appraise(&subject, &verified, &references, None);
    let finding = &appraisal.findings[0];
    assert_eq!((finding.code.as_str(), finding.pcr), ("pcr-mismatch", Some(4)));
    (finding.detail.clone(), finding.event.clone())
}

#[test]
fn the_event_that_differs_is_named() {
    let known = ["loader", "kernel"];
    let (detail, event) = mismatch(Some(boot_log("evil")), &["loader", "evil"], &known);
    let wanted = format!("event 5 (EV_EFI_BOOT_SERVICES_APPLICATION, {})", digest("evil").short());
    assert_eq!(event, Some(wanted), "{detail}");
    let (detail, event) = mismatch(None, &["loader", "evil"], &known);
    assert!(event.is_none() && detail.contains("no firmware log"), "{detail}");
    let (detail, event) = mismatch(Some(boot_log("kernel")), &["loader", "evil"], &known);
    assert!(event.is_none() && detail.contains("does not replay"), "{detail}");
    let (detail, event) = mismatch(Some(boot_log("evil")), &["loader", "evil"], &[]);
    assert!(event.is_none() && detail.contains("list no events"), "{detail}");
    let (detail, event) = mismatch(Some(boot_log("loader")), &["loader", "loader"], &known);
    assert!(event.is_none() && detail.contains("order or number"), "{detail}");
    let (detail, event) = mismatch(Some(vec![1, 2, 3]), &["loader", "evil"], &known);
    assert!(event.is_none() && detail.contains("cannot be read"), "{detail}");
}

/// What tpm2_eventlog (tpm2-tools) computes for the SHA-256 bank; nothing when it finds none.
fn by_tpm2_eventlog(path: &Path) -> BTreeMap<u8, String> {
    let out = Command::new("tpm2_eventlog").arg(path).output().unwrap();
    assert!(
        out.status.success(),
        "{}: {}",
        path.display(),
        String::from_utf8_lossy(&out.stderr)
    );
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let pcrs = text.split_once("\npcrs:\n").map_or("", |(_, pcrs)| pcrs);
    let bank = pcrs.lines().skip_while(|l| *l != "  sha256:").skip(1);
    bank.take_while(|l| l.starts_with("    "))
        .map(|l| {
            let (pcr, value) = l.split_once(':').unwrap();
            let value = value.trim().strip_prefix("0x").unwrap();
            (pcr.trim().parse().unwrap(), value.to_owned())
        })
        .collect()
}

/// `CNOVA_FIRMWARE_LOGS` may name a folder of logs of real machines; this machine's own is looked at where it is readable.
#[test]
fn tpm2_eventlog_agrees() {
    if let Err(e) = Command::new("tpm2_eventlog").arg("--version").output() {
        eprintln!("skipped: tpm2_eventlog cannot be run: {e}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own.bin");
    fs::write(&own, boot_log_for_tools()).unwrap();
    let mut paths = vec![own];
    if let Ok(folder) = std::env::var("CNOVA_FIRMWARE_LOGS") {
        paths.extend(fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()));
    }
    let here = PathBuf::from("/sys/kernel/security/tpm0/binary_bios_measurements");
    if fs::read(&here).is_ok() {
        paths.push(here);
    }
    let mut compared = 0;
    for path in paths {
        let theirs = by_tpm2_eventlog(&path);
        match FirmwareLog::read(&fs::read(&path).unwrap()) {
            Ok(log) => {
                for (pcr, value) in &theirs {
                    assert_eq!(log.replay(*pcr).hex(), *value, "{}: PCR {pcr}", path.display());
                    compared += 1;
                }
                assert!(!theirs.is_empty(), "{}", path.display());
            }
            Err(e) => assert!(theirs.is_empty(), "{}: {e}", path.display()),
        }
    }
    eprintln!("{compared} registers compared");
    assert!(compared >= 2);
}

/// tpm2_eventlog reads the data of some events, so here it is what their types say; and
/// 5.4 does not know of the locality that PCR 0 may begin with.
fn boot_log_for_tools() -> Vec<u8> {
    let separator = Digest::of(&[0; 4]);
    [
        header(&BANKS),
        event(&BANKS, 0, 8, &digest("firmware"), &[1, 0, 0, 0]),
        event(&BANKS, 4, 0x8000_0007, &digest("Calling EFI"), b"Calling EFI"),
        event(&BANKS, 0, EV_SEPARATOR, &separator, &[0; 4]),
        event(&BANKS, 4, EV_SEPARATOR, &separator, &[0; 4]),
    ]
    .concat()
}

#[test]
fn what_is_observed_becomes_a_reference_that_names_events() {
    let mut tpm = SoftTpm::new();
    tpm.pcrs.insert(4, replayed(ZERO, &["loader", "kernel"]));
    let mut evidence = tpm.evidence("plc-1", &[1; 32], Slice::default());
    evidence.tpm.as_mut().unwrap().firmware_log = Some(boot_log("kernel"));
    let quote = verify(&evidence, &node("plc-1"), &[1; 32], &tpm.ak_public()).unwrap();
    let set = ReferenceSet::observed("image", Selector::default(), &quote, 14);
    assert!(!set.pcrs.contains_key(&14));
    assert_eq!(set.pcrs[&4].values, BTreeSet::from([tpm.pcrs[&4]]));
    assert_eq!(
        set.pcrs[&4].events,
        BTreeSet::from([digest("loader"), digest("kernel")])
    );
    assert!(
        set.pcrs[&0].events.is_empty(),
        "the log does not replay to what PCR 0 holds"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn mutated_logs_never_panic(at in any::<proptest::sample::Index>(), value: u8, cut in any::<proptest::sample::Index>()) {
        let mut log = boot_log("kernel");
        let len = log.len();
        log[at.index(len)] = value;
        log.truncate(cut.index(len) + 1);
        if let Ok(read) = FirmwareLog::read(&log) {
            prop_assert!(read.digests(4).len() <= 3);
        }
    }
}
