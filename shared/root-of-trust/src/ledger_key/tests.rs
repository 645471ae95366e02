//! Power cuts while the file is replaced; what a TPM makes of it is in `tests/ledger_key.rs`.

use std::fs;

use cnova_shared::boot_policy::BootApproval;
use cnova_shared::keys::{Signer, SoftKey};

use super::file::Step;
use super::*;
use crate::Soft;

const STEPS: [Step; 6] = [
    Step::Create,
    Step::Write,
    Step::Sync,
    Step::Overwrite,
    Step::Rename,
    Step::SyncFolder,
];

struct Node {
    folder: tempfile::TempDir,
    soft: Soft,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let soft = Soft::open_or_create(&folder.path().join("node.pem")).unwrap();
        Self { folder, soft }
    }

    fn sealed(&self, cut: Option<Step>) -> SealedKey {
        let mut sealed = SealedKey::in_folder(self.folder.path());
        sealed.place.cut = cut;
        sealed
    }

    fn here(&self) -> [u8; 32] {
        let opening = self.sealed(None).open(&self.soft, &OwnBoots::default(), None).unwrap();
        assert_eq!((opening.boot, opening.lost), (BootVerdict::Unsealed, None));
        *opening.key.unwrap().expose()
    }

    /// Seals it for an approver, as with a TPM; a key in a file looks at no registers.
    fn reseal(&self, approver: &SoftKey, cut: Option<Step>) -> Result<[u8; 32], LedgerKeyError> {
        let sealed = self.sealed(cut);
        let (key, lost) = sealed.open_approved(
            &self.soft,
            &OwnBoots::default(),
            &sealed.found()?,
            &ApprovedBoot {
                name: "image".into(),
                approver: approver.public_key().clone(),
                approval: BootApproval::none(),
            },
            None,
        )?;
        assert_eq!(lost, None, "{cut:?}");
        Ok(*key.expose())
    }

    fn read(&self) -> KeyFile {
        KeyFile::read(self.sealed(None).path()).unwrap().unwrap()
    }
}

fn es256() -> SoftKey {
    let rng = ring::rand::SystemRandom::new();
    let pair = ring::signature::EcdsaKeyPair::generate_pkcs8(&ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING, &rng);
    SoftKey::from_pkcs8(pair.unwrap().as_ref()).unwrap()
}

#[test]
fn a_power_cut_at_any_step_of_sealing_anew_loses_nothing_and_leaves_nothing_behind() {
    for step in STEPS {
        let (node, approver) = (Node::new(), es256());
        let key = node.here();
        let old = node.read();
        assert!(node.reseal(&approver, Some(step)).is_err(), "{step:?}");
        assert_eq!(node.reseal(&approver, None).unwrap(), key, "{step:?}");
        assert_eq!(node.read().lock.approver(), Some(approver.public_key()));
        // The second time nothing is written.
        let before = fs::read(node.sealed(None).path()).unwrap();
        assert_eq!(node.reseal(&approver, Some(Step::Create)).unwrap(), key);
        assert_eq!(fs::read(node.sealed(None).path()).unwrap(), before);
        for file in fs::read_dir(node.folder.path()).unwrap() {
            let bytes = fs::read(file.unwrap().path()).unwrap();
            assert!(
                !bytes.windows(16).any(|w| w == &old.sealed[..16]),
                "the old one is gone"
            );
        }
    }
}

#[test]
fn two_cuts_in_a_row_lose_nothing_either() {
    for first in STEPS {
        for second in STEPS {
            let (node, approver) = (Node::new(), es256());
            let key = node.here();
            assert!(node.reseal(&approver, Some(first)).is_err());
            let _ = node.reseal(&approver, Some(second));
            assert_eq!(node.reseal(&approver, None).unwrap(), key, "{first:?} {second:?}");
        }
    }
}

#[test]
fn an_old_file_that_was_overwritten_in_part_is_not_taken_for_the_key() {
    let (node, approver) = (Node::new(), es256());
    let key = node.here();
    assert!(node.reseal(&approver, Some(Step::Overwrite)).is_err());
    // Its form is whole, and what is sealed in it is not.
    let path = node.sealed(None).path().clone();
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 20..].fill(0);
    fs::write(&path, bytes).unwrap();
    assert_eq!(node.reseal(&approver, None).unwrap(), key);
    // Nor is it made anew when the approval is not at hand.
    let opening = node.sealed(None).open(&node.soft, &OwnBoots::default(), None).unwrap();
    assert!(matches!(opening.boot, BootVerdict::Refused(_)), "{opening:?}");
    assert_eq!(node.reseal(&approver, None).unwrap(), key);
}

#[test]
fn a_key_that_is_lost_is_kept_aside_and_made_anew_and_said() {
    let node = Node::new();
    let key = node.here();
    let path = node.sealed(None).path().clone();
    let whole = fs::read(&path).unwrap();
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let opening = node.sealed(None).open(&node.soft, &OwnBoots::default(), None).unwrap();
        assert!(opening.lost.unwrap().contains("ledger.key"), "{length}");
        assert_ne!(opening.key.unwrap().expose(), &key);
        let aside = fs::read(node.folder.path().join("ledger.key.unusable")).unwrap();
        assert_eq!(aside, &whole[..length]);
    }
    let now = node.here();
    let other = Soft::open_or_create(&node.folder.path().join("other.pem")).unwrap();
    let opening = node.sealed(None).open(&other, &OwnBoots::default(), None).unwrap();
    assert!(opening.lost.is_some(), "sealed by another");
    assert_ne!(opening.key.unwrap().expose(), &now);
}
