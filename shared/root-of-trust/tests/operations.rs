//! Every operation of the root of trust against swtpm.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cnova_root_of_trust::testing::Swtpm;
use cnova_root_of_trust::tpm::EkKind;
use cnova_root_of_trust::{BootApproval, RootError, RootOfTrust, Tpm};
use cnova_shared::certificate::Tier;
use cnova_shared::ids::Digest;
use cnova_shared::keys::{Algorithm, Signer};

use tss_esapi::handles::PcrHandle;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{Digest as TpmDigest, DigestValues};

mod support;
use support::{es256, start};

fn opened() -> Option<(Swtpm, Tpm)> {
    let swtpm = start(EkKind::P384)?;
    let tpm = Tpm::open(swtpm.config()).unwrap();
    Some((swtpm, tpm))
}

#[test]
fn the_device_key_signs_es256_with_every_byte_in_its_place() {
    let Some((_swtpm, tpm)) = opened() else { return };
    assert_eq!(tpm.tier(), Tier::Tpm);
    let key = tpm.device_key();
    assert_eq!(key.public_key().algorithm, Algorithm::Es256);
    // One signature in 128 has a short r or s.
    for i in 0..300_u32 {
        let message = i.to_be_bytes();
        let signature = key.sign(&message).unwrap();
        assert_eq!(signature.len(), 64);
        assert!(key.public_key().verifies(&message, &signature), "{i}");
        assert!(!key.public_key().verifies(b"another", &signature));
    }
}

#[test]
fn registers_are_read_and_extended() {
    let Some((_swtpm, tpm)) = opened() else { return };
    let all: Vec<u8> = (0..24).collect();
    let before = tpm.read_pcrs(&all).unwrap();
    assert_eq!(before.len(), 24);
    assert_eq!(before[&14], Digest([0; 32]));
    let event = Digest::of(b"event");
    tpm.extend(14, &event).unwrap();
    let after = tpm.read_pcrs(&[14, 14, 0]).unwrap();
    assert_eq!(after[&14], Digest::of(&[[0; 32], event.0].concat()));
    assert_eq!(after.len(), 2);
    for bad in [&[][..], &[24], &[0, 255]] {
        assert!(matches!(tpm.read_pcrs(bad), Err(RootError::Refused { .. })), "{bad:?}");
    }
    assert!(matches!(tpm.extend(24, &event), Err(RootError::Refused { .. })));
}

#[test]
fn a_secret_opens_only_under_an_approved_boot() {
    let Some((mut swtpm, tpm)) = opened() else { return };
    let (approver, stranger) = (es256(), es256());
    let pcrs = [0, 7, 11, 14];
    let values = tpm.read_pcrs(&pcrs).unwrap();
    let sealed = tpm.seal(b"the ledger's key", approver.public_key()).unwrap();
    assert!(!sealed.windows(6).any(|w| w == b"ledger"));
    let approval = BootApproval::sign(&values, &approver).unwrap();
    let open = |approval: &BootApproval| tpm.unseal(&sealed, approver.public_key(), approval);
    assert_eq!(open(&approval).unwrap().as_slice(), b"the ledger's key");

    // The boot changes: the old approval no longer opens it, and the reason names the register.
    tpm.extend(11, &Digest::of(b"update")).unwrap();
    assert_eq!(open(&approval), Err(RootError::BootNotApproved { pcrs: vec![11] }));
    let untold = BootApproval {
        values: BTreeMap::new(),
        ..approval.clone()
    };
    let all = RootError::BootNotApproved { pcrs: pcrs.to_vec() };
    assert_eq!(open(&untold), Err(all));

    // The new boot is approved: the same bytes open again.
    let now = tpm.read_pcrs(&pcrs).unwrap();
    let renewed = BootApproval::sign(&now, &approver).unwrap();
    assert_eq!(open(&renewed).unwrap().as_slice(), b"the ledger's key");
    assert_eq!(open(&approval), Err(RootError::BootNotApproved { pcrs: vec![11] }));

    // Somebody else's word on the same boot counts for nothing, under either name.
    let forged = BootApproval::sign(&now, &stranger).unwrap();
    assert!(matches!(open(&forged), Err(RootError::Refused { .. })));
    let other = tpm.unseal(&sealed, stranger.public_key(), &forged);
    assert!(matches!(other, Err(RootError::Refused { .. })), "{other:?}");
    let mut bent = renewed.clone();
    bent.policy = approval.policy;
    assert!(matches!(open(&bent), Err(RootError::Refused { .. })));
    let mut bent = renewed.clone();
    bent.pcrs = vec![0, 7, 11, 200];
    let text = open(&bent).unwrap_err().to_string();
    assert!(text.contains("200"), "{text}");
    assert!(matches!(open(&BootApproval::none()), Err(RootError::Refused { .. })));

    // After a reboot the registers begin anew, and the first approval is the right one again.
    swtpm.reboot();
    assert_eq!(open(&approval).unwrap().as_slice(), b"the ledger's key");
    assert_eq!(open(&renewed), Err(RootError::BootNotApproved { pcrs: vec![11] }));
}

#[test]
fn sealed_bytes_that_are_damaged_or_of_another_tpm_do_not_open() {
    let Some((_swtpm, tpm)) = opened() else { return };
    let Some((_other_swtpm, other)) = opened() else { return };
    let approver = es256();
    let values = tpm.read_pcrs(&[0]).unwrap();
    let approval = BootApproval::sign(&values, &approver).unwrap();
    let sealed = tpm.seal(b"secret", approver.public_key()).unwrap();
    let elsewhere = other.unseal(&sealed, approver.public_key(), &approval);
    assert!(matches!(elsewhere, Err(RootError::NotOurs { .. })), "{elsewhere:?}");
    for cut in [0, 1, sealed.len() / 2, sealed.len() - 1] {
        let result = tpm.unseal(&sealed[..cut], approver.public_key(), &approval);
        assert!(matches!(result, Err(RootError::NotOurs { .. })), "{cut}: {result:?}");
    }
    for at in (0..sealed.len()).step_by(7) {
        let mut bent = sealed.clone();
        bent[at] ^= 0x10;
        assert!(tpm.unseal(&bent, approver.public_key(), &approval).is_err(), "{at}");
    }
    assert!(tpm.unseal(&vec![0; 5000], approver.public_key(), &approval).is_err());
    assert!(matches!(
        tpm.seal(&[0; 129], approver.public_key()),
        Err(RootError::Refused { .. })
    ));
    assert_eq!(
        tpm.unseal(&sealed, approver.public_key(), &approval)
            .unwrap()
            .as_slice(),
        b"secret"
    );
}

#[test]
fn the_counter_only_goes_up() {
    let Some((mut swtpm, tpm)) = opened() else { return };
    assert_eq!(tpm.counter(), Ok(None));
    let first = tpm.count_up().unwrap();
    assert_eq!(tpm.counter(), Ok(Some(first)));
    assert_eq!(tpm.count_up(), Ok(first + 1));
    swtpm.reboot();
    assert_eq!(tpm.counter(), Ok(Some(first + 1)));
    // Removed by somebody with the owner's rights: it is gone, and then goes on above what it was.
    let removed = swtpm
        .tool("tpm2_nvundefine")
        .args(["-C", "o", "0x1800200"])
        .output()
        .unwrap();
    assert!(removed.status.success(), "{removed:?}");
    assert_eq!(tpm.counter(), Ok(None));
    assert!(tpm.count_up().unwrap() > first + 1);
}

#[test]
fn an_index_of_somebody_elses_is_not_taken_for_the_counter() {
    let Some((swtpm, tpm)) = opened() else { return };
    let defined = swtpm
        .tool("tpm2_nvdefine")
        .args(["-C", "o", "-s", "8", "0x1800200"])
        .output()
        .unwrap();
    assert!(defined.status.success(), "{defined:?}");
    for result in [tpm.counter().map(|_| 0), tpm.count_up()] {
        let text = result.unwrap_err().to_string();
        assert!(
            text.contains("0x01800200") && text.contains("tpm2_nvundefine"),
            "{text}"
        );
    }
}

#[test]
fn many_threads_use_it_at_once() {
    let Some((_swtpm, tpm)) = opened() else { return };
    let tpm = Arc::new(tpm);
    let first = tpm.count_up().unwrap();
    let threads: Vec<_> = (0..16_u8)
        .map(|i| {
            let tpm = Arc::clone(&tpm);
            std::thread::spawn(move || {
                let key = tpm.device_key();
                for round in 0..5 {
                    let message = [i, round];
                    assert!(key.public_key().verifies(&message, &key.sign(&message).unwrap()));
                    tpm.extend(14, &Digest::of(&message)).unwrap();
                    tpm.quote(&Digest::of(&message), &[14]).unwrap();
                }
                tpm.count_up().unwrap()
            })
        })
        .collect();
    let mut seen: Vec<u64> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    seen.sort_unstable();
    let expected: Vec<u64> = (first + 1..=first + 16).collect();
    assert_eq!(seen, expected, "each count is given out once");
}

#[test]
fn a_secret_opens_while_others_extend_registers_that_it_is_not_about() {
    // IMA extends PCR 10 whenever a file is opened, and a TPM then takes back every policy that looked at registers.
    let Some((swtpm, tpm)) = opened() else { return };
    let approver = es256();
    let sealed = tpm.seal(b"secret", approver.public_key()).unwrap();
    let approval = BootApproval::sign(&tpm.read_pcrs(&[0, 7]).unwrap(), &approver).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let ima = {
        let (mut context, over) = (swtpm.context(), Arc::clone(&over));
        std::thread::spawn(move || {
            context.set_sessions((Some(AuthSession::Password), None, None));
            while !over.load(Ordering::Relaxed) {
                let mut values = DigestValues::new();
                values.set(
                    HashingAlgorithm::Sha256,
                    TpmDigest::try_from([7; 32].as_slice()).unwrap(),
                );
                context.pcr_extend(PcrHandle::Pcr10, values).unwrap();
                // Often enough to come between a policy and its use, and not so often that a busy machine never gets through.
                std::thread::sleep(Duration::from_millis(25));
            }
        })
    };
    let opened: Vec<_> = (0..50)
        .map(|_| tpm.unseal(&sealed, approver.public_key(), &approval))
        .collect();
    over.store(true, Ordering::Relaxed);
    ima.join().unwrap();
    for result in opened {
        assert_eq!(result.unwrap().as_slice(), b"secret");
    }
}
