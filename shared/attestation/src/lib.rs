//! Evidence, event log, appraisal and attestation results (RFC 9334), in pure Rust.

mod objects;

pub use objects::{Credential, Quote, TpmEnrolment};

/// The value of a platform configuration register in the SHA-256 bank.
pub type Pcr = cnova_shared::ids::Digest;
