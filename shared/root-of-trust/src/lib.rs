//! What a node holds its keys in: a TPM, or a file.
//!
//! [`RootOfTrust`] is what agent and gateway see of it. There are two implementations and both are real: `Tpm` talks to a
//! TPM 2.0 through libtss2, `Soft` keeps a key in a file of mode 0600 and never claims to be more. Which one a node uses is
//! said in its configuration and pinned by the hub at enrolment; nothing ever falls back from one to the other.

use std::collections::BTreeMap;
use std::sync::Arc;

use cnova_attestation::{Credential, Pcr, Quote, TpmEnrolment};
use cnova_shared::certificate::Tier;
use cnova_shared::ids::Digest;
use cnova_shared::keys::{PublicKey, Signer};
use zeroize::Zeroizing;

mod error;
pub mod late;
pub mod ledger_key;
pub mod measurer;
mod soft;
#[cfg(feature = "testing")]
pub mod testing;
pub mod tls;
#[cfg(feature = "tpm")]
pub mod tpm;

pub use cnova_shared::boot_policy::{self, ApproveError, BootApproval};
pub use error::RootError;
pub use ledger_key::LedgerKey;
pub use soft::Soft;
pub use tls::tls_signing_key;
#[cfg(feature = "tpm")]
pub use tpm::{Tpm, TpmConfig};

/// Longest secret that can be sealed, in bytes (what every TPM takes into one object).
pub const SECRET_BYTES_MAX: usize = 128;
/// Longest sealed secret that is looked at, in bytes.
pub const SEALED_BYTES_MAX: usize = 4096;

/// What holds a node's keys. Every call may block for as long as the TPM takes: call it from a thread that may wait.
pub trait RootOfTrust: Send + Sync + std::fmt::Debug {
    /// What it is.
    fn tier(&self) -> Tier;

    /// Why it answers nothing yet, where it was not there when its program started ([`late`]).
    fn silence(&self) -> Option<RootError> {
        None
    }

    /// The device key (ES256): the node's certificate is about it; it signs hellos and TLS handshakes.
    fn device_key(&self) -> Arc<dyn Signer>;

    /// What admission by a TPM needs; `qualifying` goes into the certification of the device key.
    ///
    /// # Errors
    /// [`RootError::NoTpm`] for a key in a file.
    fn enrolment(&self, qualifying: &[u8]) -> Result<TpmEnrolment, RootError>;

    /// Opens a credential (TPM2_ActivateCredential).
    ///
    /// # Errors
    /// [`RootError`]; it was made for another TPM, or the TPM did not answer.
    fn activate(&self, credential: &Credential) -> Result<Zeroizing<Vec<u8>>, RootError>;

    /// Quotes registers with `qualifying` as `extraData`.
    ///
    /// # Errors
    /// [`RootError`].
    fn quote(&self, qualifying: &Digest, pcrs: &[u8]) -> Result<Quote, RootError>;

    /// The attestation key, `TPMT_PUBLIC`.
    ///
    /// # Errors
    /// [`RootError`].
    fn attestation_key(&self) -> Result<Vec<u8>, RootError>;

    /// Reads registers of the SHA-256 bank.
    ///
    /// # Errors
    /// [`RootError`].
    fn read_pcrs(&self, pcrs: &[u8]) -> Result<BTreeMap<u8, Pcr>, RootError>;

    /// Extends a register.
    ///
    /// # Errors
    /// [`RootError`].
    fn extend(&self, pcr: u8, digest: &Digest) -> Result<(), RootError>;

    /// Seals a short secret so that it opens only under a boot that `approver` (ES256) approves, now or later. The result
    /// may lie on disk.
    ///
    /// # Errors
    /// [`RootError`].
    fn seal(&self, secret: &[u8], approver: &PublicKey) -> Result<Vec<u8>, RootError>;

    /// Opens what was sealed.
    ///
    /// # Errors
    /// [`RootError::BootNotApproved`] when the registers are not those of the approval; other [`RootError`]s when the
    /// approval or the sealed bytes do not hold.
    fn unseal(
        &self,
        sealed: &[u8],
        approver: &PublicKey,
        approval: &BootApproval,
    ) -> Result<Zeroizing<Vec<u8>>, RootError>;

    /// Seals a short secret so that it opens here and nowhere else, whatever was booted. The result may lie on disk.
    ///
    /// # Errors
    /// [`RootError`].
    fn seal_here(&self, secret: &[u8]) -> Result<Vec<u8>, RootError>;

    /// Opens what [`RootOfTrust::seal_here`] sealed.
    ///
    /// # Errors
    /// [`RootError`]; it was sealed elsewhere, or so that only an approved boot opens it, or was changed.
    fn unseal_here(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, RootError>;

    /// The monotonic counter's value; `None` before its first increment.
    ///
    /// # Errors
    /// [`RootError`].
    fn counter(&self) -> Result<Option<u64>, RootError>;

    /// Counts up by one, making the counter when there is none, and returns the new value.
    ///
    /// # Errors
    /// [`RootError`].
    fn count_up(&self) -> Result<u64, RootError>;
}
