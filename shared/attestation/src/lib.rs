//! Evidence, event log, appraisal and attestation results (RFC 9334), in pure Rust. docs/ATTESTATION.md shows the flow.
//!
//! A node needs [`evidence`], [`event_log`] and [`ear`]. A verifier (hub or gateway) needs the feature `verifier` beside:
//! [`enrol`] admits a TPM, [`quote`] verifies what it says, [`mod@reference`] is what it should say, [`appraise`] compares.
//! Nothing here performs I/O, reads a clock or draws randomness.

mod cose_key;
pub mod ear;
pub mod event_log;
pub mod evidence;
mod labels;
pub mod limits;
mod objects;
pub mod parent;
pub mod result;

#[cfg(feature = "verifier")]
pub mod appraise;
#[cfg(feature = "verifier")]
pub mod appraiser;
#[cfg(feature = "verifier")]
pub mod credential;
#[cfg(feature = "verifier")]
mod ek_chain;
#[cfg(feature = "verifier")]
pub mod enrol;
#[cfg(feature = "verifier")]
pub mod firmware_log;
#[cfg(feature = "verifier")]
mod launch_log;
#[cfg(feature = "verifier")]
pub mod quote;
#[cfg(feature = "verifier")]
pub mod reference;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "verifier")]
pub mod tpm;

pub use cose_key::encode as encode_cose_key;
pub use objects::{Credential, Quote, TpmEnrolment};

/// The value of a platform configuration register in the SHA-256 bank.
pub type Pcr = cnova_shared::ids::Digest;

/// The register of the launch log unless configured. PCR 16 and 23 can be reset by any local root and never serve.
pub const DEFAULT_LAUNCH_PCR: u8 = 14;

/// The registers of the boot that are quoted unless configured.
pub const DEFAULT_BOOT_PCRS: [u8; 9] = [0, 1, 2, 3, 4, 5, 6, 7, 11];
