//! Every bound on evidence, logs, results and references, by name. Sizes are bytes unless the name says else.

/// Largest evidence, encoded. It fits into one batch of a gateway's relay ([`cnova_shared::limits::BATCH_BYTES`]).
pub const EVIDENCE_BYTES: usize = 224 * 1024;
/// Largest structure of the TPM that evidence or an enrolment carries (`TPMS_ATTEST`, `TPMT_SIGNATURE`, `TPMT_PUBLIC`).
pub const TPM_STRUCTURE_BYTES: usize = 1024;
/// Registers that a TPM has, in each bank.
pub const PCRS: u8 = 24;
/// Largest entry of a launch log, encoded.
pub const ENTRY_BYTES: usize = 1024;
/// Most entries of a launch log in one boot. A node logs each launch once, so that only new ones count.
pub const LOG_ENTRIES: u64 = 65_536;
/// Most entries of a launch log that one evidence carries; the verifier asks for the rest.
pub const SLICE_ENTRIES: usize = 2048;
/// Most bytes of entries of a launch log that one evidence carries.
pub const SLICE_BYTES: usize = 96 * 1024;
/// Longest text (workload, version, boot id) in an entry of a launch log.
pub const ENTRY_TEXT_BYTES: usize = 160;
/// Largest log of the firmware that evidence carries.
pub const FIRMWARE_LOG_BYTES: usize = 112 * 1024;
/// Most events of a firmware log.
pub const FIRMWARE_EVENTS: usize = 8192;
/// Most banks of digests in a firmware log.
pub const FIRMWARE_ALGORITHMS: usize = 8;
/// Most findings in one attestation result; they are in order of weight.
pub const FINDINGS: usize = 16;
/// Longest text in an attestation result.
pub const RESULT_TEXT_BYTES: usize = 512;
/// Most names of expected references in one finding.
pub const FINDING_NAMES: usize = 4;
/// Certificates of an endorsement key and its chain.
pub const EK_CERTIFICATES: usize = 8;
/// Largest certificate of an endorsement key or of its maker.
pub const EK_CERTIFICATE_BYTES: usize = 8 * 1024;
/// Largest signed document of reference values.
pub use cnova_shared::limits::REFERENCES_BYTES;
/// Most sets in one document of reference values.
pub const REFERENCE_SETS: usize = 256;
/// Most allowed values of one register in one set.
pub const VALUES_PER_PCR: usize = 64;
/// Most digests of firmware events of one register in one set.
pub const EVENTS_PER_PCR: usize = 512;
/// Most nodes, artifacts or runtimes that one set names.
pub const SET_NAMES: usize = 1024;
