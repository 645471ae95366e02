//! The sealed ledger key, with a TPM and without.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use cnova_root_of_trust::ledger_key::{BootVerdict, LedgerKeyError, Opening, SealedKey};
use cnova_root_of_trust::testing::{Cut, Interposer, Swtpm};
use cnova_root_of_trust::tpm::EkKind;
use cnova_root_of_trust::{BootApproval, RootError, RootOfTrust, Soft, Tpm, TpmConfig};
use cnova_shared::boot_policy::{ApprovedBoot, OwnBoots};
use cnova_shared::ids::Digest;
use cnova_shared::keys::{Signer, SoftKey};
use support::{es256, start};

const REGISTERS: [u8; 3] = [0, 7, 11];

/// Bytes of the key on the disk, in any file of the folder.
fn lies_in_clear(folder: &Path, key: &[u8; 32]) -> bool {
    let files: Vec<Vec<u8>> = fs::read_dir(folder)
        .unwrap()
        .map(|f| fs::read(f.unwrap().path()).unwrap())
        .collect();
    files
        .iter()
        .any(|bytes| bytes.windows(8).any(|w| key.windows(8).any(|k| k == w)))
}

fn nobody() -> OwnBoots {
    OwnBoots::default()
}

fn approve(values: &BTreeMap<u8, Digest>, by: &[&SoftKey]) -> OwnBoots {
    let approved = by.iter().map(|key| ApprovedBoot {
        name: "plc-image-1".into(),
        approver: key.public_key().clone(),
        approval: BootApproval::sign(values, *key).unwrap(),
    });
    OwnBoots {
        approved: approved.collect(),
    }
}

fn and(mut boots: OwnBoots, more: OwnBoots) -> OwnBoots {
    boots.approved.extend(more.approved);
    boots
}

fn key_of(opening: Opening) -> [u8; 32] {
    assert_eq!(opening.lost, None);
    *opening.key.unwrap().expose()
}

/// A node with a TPM and a state folder.
struct Node {
    folder: tempfile::TempDir,
    swtpm: Swtpm,
    tpm: Tpm,
}

impl Node {
    fn new() -> Option<Self> {
        let swtpm = start(EkKind::P384)?;
        let tpm = Tpm::open(swtpm.config()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        Some(Self { folder, swtpm, tpm })
    }

    fn sealed(&self) -> SealedKey {
        SealedKey::in_folder(self.folder.path())
    }

    fn open(&self, boots: &OwnBoots) -> Opening {
        self.sealed().open(&self.tpm, boots, None).unwrap()
    }

    fn approved(&self, boots: &OwnBoots) -> [u8; 32] {
        let opening = self.open(boots);
        assert_eq!(opening.boot, BootVerdict::Approved("plc-image-1".into()), "{opening:?}");
        let key = key_of(opening);
        assert!(!lies_in_clear(self.folder.path(), &key));
        key
    }

    fn refused(&self, boots: &OwnBoots) -> String {
        let opening = self.open(boots);
        assert!(opening.key.is_none());
        match opening.boot {
            BootVerdict::Refused(why) => why,
            other => panic!("{other:?}"),
        }
    }

    fn now(&self) -> BTreeMap<u8, Digest> {
        self.tpm.read_pcrs(&REGISTERS).unwrap()
    }

    fn extend(&self, pcr: u8) {
        self.tpm.extend(pcr, &Digest::of(b"another boot")).unwrap();
    }
}

fn opens_here_alone(root: &dyn RootOfTrust, folder: &Path) {
    let sealed = SealedKey::in_folder(folder);
    let open = || sealed.open(root, &nobody(), None).unwrap();
    let made = open();
    assert_eq!(made.boot, BootVerdict::Unsealed);
    assert_eq!(format!("{:?}", made.key.as_ref().unwrap()), "LedgerKey(..)");
    let made = key_of(made);
    assert_ne!(made, [0; 32]);
    assert_eq!(key_of(open()), made);
    assert!(!lies_in_clear(folder, &made));
    let mode = fs::metadata(sealed.path()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
}

#[test]
fn without_a_tpm_it_opens_with_the_nodes_key() {
    let folder = tempfile::tempdir().unwrap();
    let soft = Soft::open_or_create(&folder.path().join("node.pem")).unwrap();
    opens_here_alone(&soft, folder.path());
    let gone = SealedKey::in_folder(Path::new("/no/such/folder"));
    let error = gone.open(&soft, &nobody(), None).unwrap_err().to_string();
    assert!(error.contains("/no/such/folder/ledger.key"), "{error}");
}

#[test]
fn where_nobody_approved_a_boot_it_opens_in_this_tpm_whatever_was_booted() {
    let (Some(mut node), Some(other)) = (Node::new(), Node::new()) else {
        return;
    };
    opens_here_alone(&node.tpm, node.folder.path());
    let key = key_of(node.open(&nobody()));
    node.extend(7);
    assert_eq!(key_of(node.open(&nobody())), key);
    node.swtpm.reboot();
    assert_eq!(key_of(node.open(&nobody())), key);
    // A stolen disk: another TPM opens nothing, and begins anew.
    let opening = node.sealed().open(&other.tpm, &nobody(), None).unwrap();
    assert!(opening.lost.unwrap().contains("another TPM"));
    assert_ne!(opening.key.unwrap().expose(), &key);
    // What only an approved boot opens, the TPM itself does not open otherwise.
    let under_policy = node.tpm.seal(b"secret", es256().public_key()).unwrap();
    assert!(node.tpm.unseal_here(&under_policy).is_err());
}

#[test]
fn once_a_boot_is_approved_only_approved_boots_open_it() {
    let Some(mut node) = Node::new() else { return };
    let (approver, stranger) = (es256(), es256());
    let key = key_of(node.open(&nobody()));
    let unlocked = fs::read(node.sealed().path()).unwrap();
    let first = approve(&node.now(), &[&approver]);
    assert_eq!(node.approved(&first), key, "the same key, sealed anew");
    let locked = fs::read(node.sealed().path()).unwrap();
    assert_ne!(locked, unlocked);
    assert_eq!(node.approved(&first), key);
    assert_eq!(
        fs::read(node.sealed().path()).unwrap(),
        locked,
        "nothing is written again"
    );
    assert_eq!(
        fs::read_dir(node.folder.path()).unwrap().count(),
        1,
        "nothing is left beside it"
    );

    // One event more: it does not open, and the register is named.
    node.extend(11);
    let why = node.refused(&first);
    let now = node.now();
    assert!(
        why.starts_with(&format!("PCR 11 holds {}, approved is sha256:", now[&11])),
        "{why}"
    );
    assert!(!why.contains("PCR 7") && why.ends_with("(plc-image-1)"), "{why}");
    // Nor where nothing is approved any more, and by the word of a stranger.
    assert!(node.refused(&nobody()).contains("none is approved"));
    let foreign = ApprovedBoot {
        approver: approver.public_key().clone(),
        ..approve(&now, &[&stranger]).approved.remove(0)
    };
    let why = node.refused(&OwnBoots {
        approved: vec![foreign],
    });
    assert!(why.contains("not signed by a key that may"), "{why}");
    assert_eq!(
        fs::read(node.sealed().path()).unwrap(),
        locked,
        "a refusal writes nothing"
    );

    // An update whose approval came before it: the same object opens, the old boot and the new one.
    let second = and(first.clone(), approve(&now, &[&approver]));
    assert_eq!(node.approved(&second), key);
    node.swtpm.reboot();
    assert_eq!(node.approved(&second), key);
    node.extend(7);
    assert!(node.refused(&second).contains("PCR 7 holds"));
}

#[test]
fn another_boot_policy_key_takes_over_from_the_one_before() {
    let Some(mut node) = Node::new() else { return };
    let (old, new, third) = (es256(), es256(), es256());
    let boot = node.now();
    let key = node.approved(&approve(&boot, &[&old]));
    // Both are known: it is sealed for the new one, listed first, and no longer needs the old one.
    assert_eq!(node.approved(&approve(&boot, &[&new, &old])), key);
    assert_eq!(node.approved(&approve(&boot, &[&new])), key);
    // The node was off during the overlap: what the old one approved when it opened last is beside it.
    assert_eq!(node.approved(&approve(&boot, &[&third])), key);
    // The old one is gone, and so is the boot that it approved: whoever still holds the key in memory keeps it.
    node.extend(7);
    let next = approve(&node.now(), &[&old]);
    let held = node.sealed().open(&node.tpm, &nobody(), None).unwrap();
    assert!(held.key.is_none());
    node.swtpm.reboot();
    let held = node.open(&approve(&boot, &[&third])).key.unwrap();
    node.extend(7);
    let opening = node.sealed().open(&node.tpm, &next, Some(&held)).unwrap();
    assert_eq!(key_of(opening), key);
    // Without it the key is lost, which is said; the node goes on with a new one.
    node.extend(11);
    let later = approve(&node.now(), &[&new]);
    let opening = node.open(&later);
    assert!(opening.lost.unwrap().contains("approves this boot no longer"));
    assert_ne!(opening.key.unwrap().expose(), &key);
}

#[test]
fn a_tpm_that_does_not_answer_refuses_nothing() {
    let Some(swtpm) = start(EkKind::P384) else { return };
    let config = TpmConfig {
        answer_limit: Duration::from_millis(1500),
        ..swtpm.config()
    };
    let tpm = Tpm::open(config).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let sealed = SealedKey::in_folder(folder.path());
    let boots = approve(&tpm.read_pcrs(&REGISTERS).unwrap(), &[&es256()]);
    let key = key_of(sealed.open(&tpm, &boots, None).unwrap());
    let before = fs::read(sealed.path()).unwrap();
    swtpm.stop_answering();
    for boots in [&boots, &nobody()] {
        let silent = sealed.open(&tpm, boots, None);
        let is_silent = matches!(silent, Err(LedgerKeyError::Root(RootError::NoAnswer { .. })));
        // Without an approval it is not even asked.
        assert!(is_silent || boots.approved.is_empty(), "{silent:?}");
        assert_eq!(fs::read(sealed.path()).unwrap(), before);
    }
    swtpm.resume();
    let opening = (0..20).find_map(|_| sealed.open(&tpm, &boots, None).ok()).unwrap();
    assert_eq!(key_of(opening), key);
}

/// A TPM that loses its power, or is only slow, in the middle of sealing anew.
#[test]
fn a_tpm_that_dies_while_it_seals_anew_leaves_a_key_that_opens() {
    let Some(mut node) = Node::new() else { return };
    let approver = es256();
    let key: [u8; 32] = key_of(node.open(&nobody()));
    let boots = approve(&node.now(), &[&approver]);
    let sealed = node.sealed();
    let whole = fs::read(sealed.path()).unwrap();
    node.swtpm.kill();
    assert!(sealed.open(&node.tpm, &boots, None).is_err());
    assert_eq!(fs::read(sealed.path()).unwrap(), whole);
    node.swtpm.restart();
    assert_eq!(node.approved(&boots), key);
}

/// The power is cut at each command of sealing anew: for the first approver, and for the next one.
#[test]
fn a_tpm_that_dies_at_any_command_of_sealing_anew_leaves_a_key_that_opens() {
    /// More than sealing anew takes.
    const COMMANDS_MAX: u32 = 200;
    let Some(mut swtpm) = start(EkKind::P384) else { return };
    let interposer = Interposer::before(&swtpm);
    let tpm = Tpm::open(TpmConfig::new(interposer.tcti())).unwrap();
    let values = tpm.read_pcrs(&REGISTERS).unwrap();
    let (first, second) = (approve(&values, &[&es256()]), approve(&values, &[&es256()]));
    for (before, after) in [(&nobody(), &first), (&first, &second)] {
        for cut in [Cut::Before, Cut::After] {
            let mut cuts = 0;
            for nth in 0..COMMANDS_MAX {
                let folder = tempfile::tempdir().unwrap();
                let sealed = SealedKey::in_folder(folder.path());
                let open = |boots| sealed.open(&tpm, boots, None);
                let key = key_of(open(before).unwrap());
                interposer.cut_at(&swtpm, nth, cut);
                let opening = open(after);
                if !interposer.was_cut() {
                    assert_eq!(key_of(opening.unwrap()), key);
                    break;
                }
                cuts += 1;
                // The last commands may be flushes, whose answers matter to nobody.
                if let Ok(opening) = opening {
                    assert_eq!(key_of(opening), key, "{nth} {cut:?}");
                }
                swtpm.restart();
                // Whatever is on the disk, the key is that of before, and nothing of the attempt is left.
                assert_eq!(key_of(open(after).unwrap()), key, "{nth} {cut:?}");
                assert!(!lies_in_clear(folder.path(), &key));
                assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "{nth} {cut:?}");
            }
            assert!((8..COMMANDS_MAX).contains(&cuts), "{cuts} commands were cut");
        }
    }
}
