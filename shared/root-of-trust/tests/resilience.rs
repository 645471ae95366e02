//! What a TPM does to a node: it is killed, hangs, is full, is cleared, holds what is not ours.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use cnova_root_of_trust::testing::{Cut, Interposer, Swtpm};
use cnova_root_of_trust::tpm::EkKind;
use cnova_root_of_trust::{BootApproval, RootError, RootOfTrust, Tpm, TpmConfig};
use cnova_shared::ids::Digest;
use cnova_shared::keys::Signer;
use tss_esapi::Context;
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{EccScheme, HashScheme};
use tss_esapi::utils::create_unrestricted_signing_ecc_public;
use zeroize::Zeroizing;

mod support;
use support::{es256, make_credential, name, start, tool};

/// More commands than any one operation sends.
const COMMANDS_MAX: u32 = 60;

fn persistent(swtpm: &Swtpm) -> Vec<String> {
    let text = tool(swtpm.tool("tpm2_getcap").arg("handles-persistent"));
    let ours = |l: &&str| l.contains("0x81000");
    text.lines()
        .filter(ours)
        .map(|l| l.trim_start_matches("- ").to_owned())
        .collect()
}

const OURS: [&str; 3] = ["0x81000001", "0x81000011", "0x81000012"];

#[test]
fn opening_again_finds_the_same_keys() {
    let Some(mut swtpm) = start(EkKind::P384) else {
        return;
    };
    let first = Tpm::open(swtpm.config()).unwrap();
    let keys = |tpm: &Tpm| (tpm.device_key().public_key().clone(), tpm.attestation_key().unwrap());
    let before = keys(&first);
    assert_eq!(keys(&Tpm::open(swtpm.config()).unwrap()), before);
    drop(first);
    swtpm.reboot();
    assert_eq!(keys(&Tpm::open(swtpm.config()).unwrap()), before);
    assert_eq!(persistent(&swtpm), OURS);
}

#[test]
fn provisioning_that_is_cut_at_any_command_is_finished_by_the_next_open() {
    let Some(mut swtpm) = start(EkKind::P384) else {
        return;
    };
    let interposer = Interposer::before(&swtpm);
    let config = TpmConfig::new(interposer.tcti());
    for cut in [Cut::Before, Cut::After] {
        let mut cuts = 0;
        for nth in 0..COMMANDS_MAX {
            tool(swtpm.tool("tpm2_clear").args(["-c", "p"]));
            interposer.cut_at(&swtpm, nth, cut);
            let opened = Tpm::open(config.clone());
            if !interposer.was_cut() {
                opened.unwrap();
                break;
            }
            cuts += 1;
            assert!(
                matches!(opened, Err(RootError::NoAnswer { .. })),
                "{nth} {cut:?}: {opened:?}"
            );
            swtpm.restart();
            let left = persistent(&swtpm);
            let tpm = Tpm::open(config.clone()).unwrap();
            assert_eq!(persistent(&swtpm), OURS, "{nth} {cut:?}: before {left:?}");
            let key = tpm.device_key();
            assert!(key.public_key().verifies(b"m", &key.sign(b"m").unwrap()));
        }
        assert!((10..COMMANDS_MAX).contains(&cuts), "{cuts} commands were cut");
    }
}

/// Has `operation` cut at each of its commands: it must fail with no answer, and do what it should when swtpm is back.
fn survives(operation: impl Fn(&Tpm) -> Result<(), RootError>) {
    let Some(mut swtpm) = start(EkKind::P384) else {
        return;
    };
    let interposer = Interposer::before(&swtpm);
    let tpm = Tpm::open(TpmConfig::new(interposer.tcti())).unwrap();
    let key = tpm.device_key().public_key().clone();
    for cut in [Cut::Before, Cut::After] {
        let mut cuts = 0;
        for nth in 0..COMMANDS_MAX {
            interposer.cut_at(&swtpm, nth, cut);
            let result = operation(&tpm);
            if !interposer.was_cut() {
                result.unwrap();
                break;
            }
            cuts += 1;
            // The last command may be a flush whose answer matters to nobody but us.
            assert!(
                matches!(result, Err(RootError::NoAnswer { .. })),
                "{nth} {cut:?}: {result:?}"
            );
            // Still dead: an error again, and no hang.
            assert!(
                matches!(operation(&tpm), Err(RootError::NoAnswer { .. })),
                "{nth} {cut:?}"
            );
            swtpm.restart();
            operation(&tpm).unwrap_or_else(|e| panic!("{nth} {cut:?}: {e}"));
        }
        assert!((1..COMMANDS_MAX).contains(&cuts), "{cuts} commands were cut");
    }
    assert_eq!(*Tpm::open(swtpm.config()).unwrap().device_key().public_key(), key);
    assert_eq!(persistent(&swtpm), OURS);
}

#[test]
fn signing_survives_a_dead_tpm() {
    survives(|tpm| {
        let key = tpm.device_key();
        let signature = key.sign(b"m").map_err(|e| RootError::NoAnswer {
            command: "TPM2_Sign",
            reason: e.reason,
        })?;
        assert!(key.public_key().verifies(b"m", &signature));
        Ok(())
    });
}

#[test]
fn quoting_survives_a_dead_tpm() {
    survives(|tpm| {
        tpm.quote(&Digest::of(b"n"), &[0, 1, 2, 3, 4, 5, 6, 7, 11, 14])
            .map(|_| ())
    });
}

#[test]
fn extending_survives_a_dead_tpm() {
    survives(|tpm| tpm.extend(14, &Digest::of(b"e")));
}

#[test]
fn enrolment_survives_a_dead_tpm() {
    survives(|tpm| tpm.enrolment(b"q").map(|_| ()));
}

#[test]
fn activation_survives_a_dead_tpm() {
    let folder = tempfile::tempdir().unwrap();
    let made = std::sync::OnceLock::new();
    survives(|tpm| {
        let credential = match made.get() {
            Some(credential) => credential,
            None => {
                let e = tpm.enrolment(b"q")?;
                let credential = make_credential(folder.path(), &e.ek_public, &name(&e.ak_public), b"secret");
                made.get_or_init(|| credential)
            }
        };
        assert_eq!(tpm.activate(credential)?.as_slice(), b"secret");
        Ok(())
    });
}

#[test]
fn sealing_survives_a_dead_tpm() {
    let approver = es256();
    survives(move |tpm| {
        let approval = BootApproval::sign(&tpm.read_pcrs(&[0, 7])?, &approver).unwrap();
        let sealed = tpm.seal(b"secret", approver.public_key())?;
        let opened = tpm.unseal(&sealed, approver.public_key(), &approval)?;
        assert_eq!(opened.as_slice(), b"secret");
        Ok(())
    });
}

#[test]
fn counting_survives_a_dead_tpm_and_never_goes_back() {
    let newest = std::sync::atomic::AtomicU64::new(0);
    survives(move |tpm| {
        let value = tpm.count_up()?;
        assert!(value > newest.swap(value, std::sync::atomic::Ordering::Relaxed));
        assert_eq!(tpm.counter()?, Some(value));
        Ok(())
    });
}

fn fill(context: &mut Context, count: usize) -> Vec<KeyHandle> {
    let scheme = EccScheme::EcDsa(HashScheme::new(
        tss_esapi::interface_types::algorithm::HashingAlgorithm::Sha256,
    ));
    context.set_sessions((Some(AuthSession::Password), None, None));
    let handles = (0..count).map(|_| {
        let public = create_unrestricted_signing_ecc_public(scheme, EccCurve::NistP256).unwrap();
        let made = context.create_primary(Hierarchy::Owner, public, None, None, None, None);
        made.unwrap().key_handle
    });
    handles.collect()
}

#[test]
fn a_full_tpm_is_reported_and_used_again_when_there_is_room() {
    let Some(swtpm) = start(EkKind::P384) else {
        return;
    };
    let tpm = Tpm::open(swtpm.config()).unwrap();
    let approver = es256();
    let mut other = swtpm.context();
    let held = fill(&mut other, 3);
    let quote = || tpm.quote(&Digest::of(b"n"), &[14]).map(|_| ());
    let no_room = |result: Result<(), RootError>| {
        let error = result.unwrap_err();
        assert!(matches!(error, RootError::NoRoom { .. }), "{error:?}");
        assert!(error.to_string().contains("0x902"), "{error}");
    };
    no_room(quote());
    no_room(tpm.seal(b"s", approver.public_key()).map(|_| ()));
    no_room(tpm.enrolment(b"q").map(|_| ()));
    assert!(tpm.device_key().sign(b"m").unwrap_err().reason.contains("no room"));
    // What needs no place goes on.
    tpm.extend(14, &Digest::of(b"e")).unwrap();
    for handle in held {
        other.flush_context(handle.into()).unwrap();
    }
    quote().unwrap();
    tpm.seal(b"s", approver.public_key()).unwrap();
    tpm.device_key().sign(b"m").unwrap();
}

#[test]
fn what_a_dead_process_left_is_flushed_at_the_start() {
    let Some(swtpm) = start(EkKind::P384) else {
        return;
    };
    let mut dead = swtpm.context();
    fill(&mut dead, 3);
    for kind in [
        tss_esapi::constants::SessionType::Hmac,
        tss_esapi::constants::SessionType::Policy,
        tss_esapi::constants::SessionType::Trial,
    ] {
        let cipher = tss_esapi::structures::SymmetricDefinition::AES_128_CFB;
        let hash = tss_esapi::interface_types::algorithm::HashingAlgorithm::Sha256;
        dead.execute_without_session(|ctx| ctx.start_auth_session(None, None, None, kind, cipher, hash))
            .unwrap();
    }
    std::mem::forget(dead);
    let tpm = Tpm::open(swtpm.config()).unwrap();
    tpm.enrolment(b"q").unwrap();
    tpm.seal(b"s", es256().public_key()).unwrap();
    for kind in ["handles-transient", "handles-loaded-session"] {
        assert_eq!(tool(swtpm.tool("tpm2_getcap").arg(kind)).trim(), "", "{kind}");
    }
}

#[test]
fn nothing_of_ours_stays_in_the_tpm() {
    let Some(swtpm) = start(EkKind::Rsa2048) else {
        return;
    };
    let tpm = Tpm::open(swtpm.config()).unwrap();
    let approver = es256();
    let sealed = tpm.seal(b"s", approver.public_key()).unwrap();
    let good = BootApproval::sign(&tpm.read_pcrs(&[0]).unwrap(), &approver).unwrap();
    let bad = BootApproval::sign(&[(0, Digest::of(b"x"))].into(), &approver).unwrap();
    for _ in 0..10 {
        tpm.unseal(&sealed, approver.public_key(), &good).unwrap();
        tpm.unseal(&sealed, approver.public_key(), &bad).unwrap_err();
        tpm.unseal(&sealed[..9], approver.public_key(), &good).unwrap_err();
        tpm.enrolment(b"q").unwrap();
        for kind in ["handles-transient", "handles-loaded-session", "handles-saved-session"] {
            assert_eq!(tool(swtpm.tool("tpm2_getcap").arg(kind)).trim(), "", "{kind}");
        }
    }
}

#[test]
fn a_tpm_that_hangs_stops_nobody_and_is_used_again() {
    let Some(swtpm) = start(EkKind::P384) else {
        return;
    };
    let config = TpmConfig {
        answer_limit: Duration::from_millis(1500),
        ..swtpm.config()
    };
    let tpm = Arc::new(Tpm::open(config).unwrap());
    let before = tpm.read_pcrs(&[14]).unwrap()[&14];
    swtpm.stop_answering();
    let begun = tpm.read_pcrs(&[14]).unwrap_err().to_string();
    assert!(
        begun.contains("1500 ms") && begun.contains("may still take effect"),
        "{begun}"
    );
    // Behind it, others wait no longer either, and what they asked for is taken back.
    let waiting: Vec<_> = (0..8)
        .map(|_| {
            let tpm = Arc::clone(&tpm);
            std::thread::spawn(move || tpm.extend(14, &Digest::of(b"taken back")))
        })
        .collect();
    for thread in waiting {
        let error = thread.join().unwrap().unwrap_err();
        assert!(matches!(error, RootError::NoAnswer { .. }), "{error:?}");
        assert!(error.to_string().contains("was not begun"), "{error}");
    }
    assert!(tpm.device_key().sign(b"m").unwrap_err().reason.contains("1500 ms"));
    swtpm.resume();
    assert_eq!(tpm.read_pcrs(&[14]).unwrap()[&14], before);
    tpm.device_key().sign(b"m").unwrap();
}

#[test]
fn a_tpm_that_hangs_and_is_then_replaced_is_used_again() {
    let Some(mut swtpm) = start(EkKind::P384) else {
        return;
    };
    let config = TpmConfig {
        answer_limit: Duration::from_millis(1500),
        ..swtpm.config()
    };
    let tpm = Tpm::open(config).unwrap();
    swtpm.stop_answering();
    assert!(matches!(tpm.count_up(), Err(RootError::NoAnswer { .. })));
    swtpm.restart();
    tpm.count_up().unwrap();
}

#[test]
fn opening_what_is_not_there_says_so() {
    let Some(mut swtpm) = start(EkKind::P384) else {
        return;
    };
    swtpm.kill();
    assert!(matches!(Tpm::open(swtpm.config()), Err(RootError::NoAnswer { .. })));
    swtpm.restart();
    swtpm.stop_answering();
    let config = TpmConfig {
        key_limit: Duration::from_millis(500),
        ..swtpm.config()
    };
    assert!(matches!(Tpm::open(config), Err(RootError::NoAnswer { .. })));
    let missing = Tpm::open(TpmConfig::new("device:/dev/no-such-tpm"));
    let text = missing.unwrap_err().to_string();
    assert!(text.contains("did not answer open"), "{text}");
}

#[test]
fn keys_of_others_are_named_and_left_alone() {
    for (handle, what) in [("0x81000012", "device key"), ("0x81000011", "attestation key")] {
        let Some(swtpm) = start(EkKind::P384) else {
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let context = folder.path().join("key");
        tool(
            swtpm
                .tool("tpm2_createprimary")
                .args(["-C", "o", "-G", "rsa2048", "-c"])
                .arg(&context),
        );
        tool(
            swtpm
                .tool("tpm2_evictcontrol")
                .args(["-C", "o", "-c"])
                .arg(&context)
                .arg(handle),
        );
        let before = tool(swtpm.tool("tpm2_readpublic").args(["-c", handle]));
        let text = Tpm::open(swtpm.config()).unwrap_err().to_string();
        assert!(
            text.contains(handle) && text.contains(what) && text.contains("tpm2_evictcontrol"),
            "{text}"
        );
        assert_eq!(tool(swtpm.tool("tpm2_readpublic").args(["-c", handle])), before);
    }
}

#[test]
fn a_storage_key_that_is_there_is_used() {
    let Some(swtpm) = start(EkKind::P384) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let context = folder.path().join("key");
    tool(
        swtpm
            .tool("tpm2_createprimary")
            .args(["-C", "o", "-G", "rsa2048", "-c"])
            .arg(&context),
    );
    tool(
        swtpm
            .tool("tpm2_evictcontrol")
            .args(["-C", "o", "-c"])
            .arg(&context)
            .arg("0x81000001"),
    );
    let before = tool(swtpm.tool("tpm2_readpublic").args(["-c", "0x81000001"]));
    let tpm = Tpm::open(swtpm.config()).unwrap();
    let approver = es256();
    let sealed = tpm.seal(b"s", approver.public_key()).unwrap();
    let approval = BootApproval::sign(&tpm.read_pcrs(&[0]).unwrap(), &approver).unwrap();
    assert_eq!(
        tpm.unseal(&sealed, approver.public_key(), &approval)
            .unwrap()
            .as_slice(),
        b"s"
    );
    assert_eq!(tool(swtpm.tool("tpm2_readpublic").args(["-c", "0x81000001"])), before);
    // A signing key there is none.
    tool(swtpm.tool("tpm2_evictcontrol").args(["-C", "o", "-c", "0x81000001"]));
    tool(
        swtpm
            .tool("tpm2_createprimary")
            .args(["-C", "o", "-G", "ecc:ecdsa", "-c"])
            .arg(&context)
            .args(["-a", "sign|fixedtpm|fixedparent|sensitivedataorigin|userwithauth"]),
    );
    tool(
        swtpm
            .tool("tpm2_evictcontrol")
            .args(["-C", "o", "-c"])
            .arg(&context)
            .arg("0x81000001"),
    );
    let text = Tpm::open(swtpm.config()).unwrap_err().to_string();
    assert!(text.contains("0x81000001") && text.contains("storage key"), "{text}");
}

#[test]
fn a_cleared_tpm_is_not_silently_a_new_one() {
    let Some(swtpm) = start(EkKind::P384) else {
        return;
    };
    let tpm = Tpm::open(swtpm.config()).unwrap();
    tool(swtpm.tool("tpm2_clear").args(["-c", "p"]));
    tpm.device_key().sign(b"m").unwrap_err();
    let text = tpm.quote(&Digest::of(b"n"), &[0]).unwrap_err().to_string();
    assert!(text.contains("cleared") && text.contains("restart"), "{text}");
    // Another program makes new keys; this one still does not take them for its own.
    let renewed = Tpm::open(swtpm.config()).unwrap();
    assert_ne!(renewed.device_key().public_key(), tpm.device_key().public_key());
    let text = tpm.device_key().sign(b"m").unwrap_err().reason;
    assert!(text.contains("cleared"), "{text}");
}

#[test]
fn an_owner_with_a_password_is_obeyed() {
    let Some(swtpm) = start(EkKind::P384) else {
        return;
    };
    tool(swtpm.tool("tpm2_changeauth").args(["-c", "o", "sesame"]));
    tool(swtpm.tool("tpm2_changeauth").args(["-c", "e", "open"]));
    assert!(matches!(Tpm::open(swtpm.config()), Err(RootError::Refused { .. })));
    let config = TpmConfig {
        owner_auth: Zeroizing::new(b"sesame".to_vec()),
        endorsement_auth: Zeroizing::new(b"open".to_vec()),
        ..swtpm.config()
    };
    let tpm = Tpm::open(config).unwrap();
    tpm.count_up().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let e = tpm.enrolment(b"q").unwrap();
    let credential = make_credential(folder.path(), &e.ek_public, &name(&e.ak_public), b"secret");
    assert_eq!(tpm.activate(&credential).unwrap().as_slice(), b"secret");
}
