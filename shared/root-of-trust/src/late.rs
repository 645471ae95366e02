//! A TPM that does not answer when its program starts.
//!
//! A node that has its certificate knows its device key's public half from there. So it need not wait for its TPM to begin
//! its work: everything that needs the TPM is told [`RootError::NoAnswer`] until it answers, and works from then on. The TPM
//! that answers is the node's own or is refused ([`RootError::AnotherTpm`]): the certificate says which.

use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use cnova_attestation::{Credential, Pcr, Quote, TpmEnrolment};
use cnova_shared::certificate::Tier;
use cnova_shared::ids::Digest;
use cnova_shared::keys::{PublicKey, SignError, Signer};
use zeroize::Zeroizing;

use crate::{BootApproval, RootError, RootOfTrust};

/// Pause before a TPM that could not be opened is opened again; doubles up to [`AGAIN_MAX`].
pub const AGAIN: Duration = Duration::from_secs(5);
/// Longest such pause.
pub const AGAIN_MAX: Duration = Duration::from_secs(30);

/// What opens a TPM. It may block for as long as it likes: only a thread of its own waits for it.
pub type Opener = Box<dyn Fn() -> Result<Arc<dyn RootOfTrust>, RootError> + Send>;

/// Opens the TPM of a node whose certificate is about `certified`. One that does not answer within `first` is opened in the
/// background, again and again, and what is returned stands for it meanwhile.
///
/// # Errors
/// [`RootError`] when it answered at once that it cannot be used. A TPM that answers at once is returned whosever it is: its
/// key is compared with the certificate by whoever loads that.
pub fn open(opener: Opener, certified: PublicKey, first: Duration) -> Result<Arc<dyn RootOfTrust>, RootError> {
    let slot = Arc::new(Slot {
        certified,
        opened: OnceLock::new(),
        silence: Mutex::new(RootError::NoAnswer {
            command: "open",
            reason: format!("nothing within {} ms", first.as_millis()),
        }),
    });
    let (outcome, first_outcome) = sync_channel(1);
    let waiting = Arc::downgrade(&slot);
    let spawned = thread::Builder::new()
        .name("tpm-late".into())
        .spawn(move || keep_opening(&opener, &waiting, &outcome));
    spawned.map_err(|e| RootError::NoAnswer {
        command: "open",
        reason: format!("no thread could be started for it: {e}"),
    })?;
    match first_outcome.recv_timeout(first) {
        Ok(Ok(root)) => Ok(root),
        Ok(Err(error)) if !is_passing(&error) => Err(error),
        Ok(Err(_)) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ok(Arc::new(LateTpm(slot))),
    }
}

/// Whether it may answer later.
fn is_passing(error: &RootError) -> bool {
    matches!(error, RootError::NoAnswer { .. } | RootError::NoRoom { .. })
}

type Outcome = Result<Arc<dyn RootOfTrust>, RootError>;

/// Ends when it is open, or when nobody waits any more.
fn keep_opening(opener: &Opener, waiting: &Weak<Slot>, first: &SyncSender<Outcome>) {
    let mut pause = AGAIN;
    while waiting.strong_count() > 0 {
        let outcome = opener();
        let Some(slot) = waiting.upgrade() else { return };
        slot.take(&outcome);
        // Whoever began this waits for the first only, and perhaps no longer.
        let _ = first.try_send(outcome);
        if slot.opened.get().is_some() {
            return;
        }
        drop(slot);
        thread::sleep(pause);
        pause = (pause * 2).min(AGAIN_MAX);
    }
}

/// Where the TPM is put once it is open.
#[derive(Debug)]
struct Slot {
    certified: PublicKey,
    opened: OnceLock<Arc<dyn RootOfTrust>>,
    /// Why there is none yet.
    silence: Mutex<RootError>,
}

impl Slot {
    fn take(&self, outcome: &Outcome) {
        let error = match outcome {
            Ok(root) => {
                let found = root.device_key().public_key().clone();
                if found == self.certified {
                    tracing::debug!("the TPM answers");
                    // Only this thread sets it.
                    let _ = self.opened.set(root.clone());
                    return;
                }
                RootError::AnotherTpm {
                    found: format!("{found:?}"),
                    certified: format!("{:?}", self.certified),
                }
            }
            Err(error) => error.clone(),
        };
        let mut silence = self.silence.lock().unwrap_or_else(PoisonError::into_inner);
        if *silence != error {
            tracing::warn!(%error, "the TPM cannot be used yet");
            *silence = error;
        }
    }

    fn root(&self) -> Result<&dyn RootOfTrust, RootError> {
        match self.opened.get() {
            Some(root) => Ok(&**root),
            None => Err(self.silence.lock().unwrap_or_else(PoisonError::into_inner).clone()),
        }
    }
}

/// Stands for a TPM that may not have answered yet.
#[derive(Debug)]
struct LateTpm(Arc<Slot>);

impl RootOfTrust for LateTpm {
    fn tier(&self) -> Tier {
        Tier::Tpm
    }

    fn silence(&self) -> Option<RootError> {
        self.0.root().err()
    }

    fn device_key(&self) -> Arc<dyn Signer> {
        Arc::new(LateKey(self.0.clone()))
    }

    fn enrolment(&self, qualifying: &[u8]) -> Result<TpmEnrolment, RootError> {
        self.0.root()?.enrolment(qualifying)
    }

    fn activate(&self, credential: &Credential) -> Result<Zeroizing<Vec<u8>>, RootError> {
        self.0.root()?.activate(credential)
    }

    fn quote(&self, qualifying: &Digest, pcrs: &[u8]) -> Result<Quote, RootError> {
        self.0.root()?.quote(qualifying, pcrs)
    }

    fn attestation_key(&self) -> Result<Vec<u8>, RootError> {
        self.0.root()?.attestation_key()
    }

    fn read_pcrs(&self, pcrs: &[u8]) -> Result<BTreeMap<u8, Pcr>, RootError> {
        self.0.root()?.read_pcrs(pcrs)
    }

    fn extend(&self, pcr: u8, digest: &Digest) -> Result<(), RootError> {
        self.0.root()?.extend(pcr, digest)
    }

    fn seal(&self, secret: &[u8], approver: &PublicKey) -> Result<Vec<u8>, RootError> {
        self.0.root()?.seal(secret, approver)
    }

    fn unseal(
        &self,
        sealed: &[u8],
        approver: &PublicKey,
        approval: &BootApproval,
    ) -> Result<Zeroizing<Vec<u8>>, RootError> {
        self.0.root()?.unseal(sealed, approver, approval)
    }

    fn seal_here(&self, secret: &[u8]) -> Result<Vec<u8>, RootError> {
        self.0.root()?.seal_here(secret)
    }

    fn unseal_here(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, RootError> {
        self.0.root()?.unseal_here(sealed)
    }

    fn counter(&self) -> Result<Option<u64>, RootError> {
        self.0.root()?.counter()
    }

    fn count_up(&self) -> Result<u64, RootError> {
        self.0.root()?.count_up()
    }
}

/// The device key: its public half is known from the certificate.
struct LateKey(Arc<Slot>);

impl Signer for LateKey {
    fn public_key(&self) -> &PublicKey {
        &self.0.certified
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let root = self.0.root().map_err(|e| SignError {
            key: self.0.certified.id(),
            reason: e.to_string(),
        })?;
        root.device_key().sign(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Soft;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    fn soft(name: &str) -> (Arc<dyn RootOfTrust>, PublicKey, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let root: Arc<dyn RootOfTrust> = Arc::new(Soft::open_or_create(&dir.path().join(name)).unwrap());
        let key = root.device_key().public_key().clone();
        (root, key, dir)
    }

    fn silent() -> RootError {
        RootError::NoAnswer {
            command: "open",
            reason: "its device is gone".into(),
        }
    }

    fn until(what: &str, is_so: impl Fn() -> bool) {
        let end = Instant::now() + 6 * AGAIN;
        while !is_so() {
            assert!(Instant::now() < end, "{what}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn what_answers_at_once_is_returned_itself_and_what_refuses_at_once_refuses() {
        let (root, key, _dir) = soft("a");
        let shared = root.clone();
        let opened = open(Box::new(move || Ok(shared.clone())), key.clone(), AGAIN).unwrap();
        assert!(Arc::ptr_eq(&opened, &root));
        let refused = open(Box::new(|| Err(RootError::Config("no such handle".into()))), key, AGAIN);
        assert_eq!(refused.unwrap_err(), RootError::Config("no such handle".into()));
    }

    #[test]
    fn a_silent_one_is_told_of_and_used_as_soon_as_it_answers() {
        let (root, key, _dir) = soft("a");
        let tries = Arc::new(AtomicUsize::new(0));
        let opener: Opener = Box::new(move || match tries.fetch_add(1, Ordering::SeqCst) {
            0 => Err(silent()),
            _ => Ok(root.clone()),
        });
        let late = open(opener, key.clone(), 2 * AGAIN).unwrap();
        assert_eq!((late.tier(), late.silence()), (Tier::Tpm, Some(silent())));
        assert_eq!(late.counter().unwrap_err(), silent());
        let signer = late.device_key();
        assert_eq!(*signer.public_key(), key, "known from the certificate");
        assert!(signer.sign(b"m").unwrap_err().reason.contains("its device is gone"));
        until("it is opened again", || late.silence().is_none());
        // Whoever took the key before can use it, too.
        assert!(key.verifies(b"m", &signer.sign(b"m").unwrap()));
    }

    #[test]
    fn one_that_hangs_is_waited_for_no_longer_than_said() {
        let (root, key, _dir) = soft("a");
        let (open_it, opens) = sync_channel::<()>(1);
        let opens = Mutex::new(opens);
        let opener: Opener = Box::new(move || {
            opens.lock().unwrap().recv().unwrap();
            Ok(root.clone())
        });
        let late = open(opener, key, Duration::from_millis(50)).unwrap();
        assert!(matches!(late.silence(), Some(RootError::NoAnswer { .. })));
        open_it.send(()).unwrap();
        until("it is used", || late.silence().is_none());
    }

    #[test]
    fn the_tpm_of_another_node_is_refused() {
        let (_, mine, _dir) = soft("mine");
        let (other, found, _dir) = soft("other");
        let tries = AtomicUsize::new(0);
        let opener: Opener = Box::new(move || match tries.fetch_add(1, Ordering::SeqCst) {
            0 => Err(silent()),
            _ => Ok(other.clone()),
        });
        let late = open(opener, mine.clone(), 2 * AGAIN).unwrap();
        until("it is refused", || {
            matches!(late.silence(), Some(RootError::AnotherTpm { .. }))
        });
        let said = late.read_pcrs(&[7]).unwrap_err().to_string();
        for part in [format!("{found:?}"), format!("{mine:?}"), "not this node's".into()] {
            assert!(said.contains(&part), "{said}");
        }
        assert!(late.device_key().sign(b"m").is_err());
    }
}
