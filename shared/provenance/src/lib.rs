//! Where an artifact comes from: DSSE envelopes around in-toto statements of SLSA provenance, made and checked offline.
//!
//! An envelope is verified in this order: the DSSE frame is read, a signature of a builder of the trust bundle is
//! looked for, and only then is the statement in it parsed. What a statement says of itself has no weight but two
//! things: which bytes it is about, and which builder claims to have made them. How far that builder is believed, its
//! SLSA build level, stands in the trust bundle beside its key.
//!
//! Nothing here performs I/O or reads a clock.

mod dsse;
mod prove;
mod statement;
mod verify;

pub use dsse::{Frame, FrameError, PAYLOAD_TYPE, SIGNATURES_MAX, pae, sign};
pub use prove::{Envelopes, Proof, Unproven, check_workload, prove, prove_compiled};
pub use statement::{
    Dependency, MATERIALS_MAX, Made, PREDICATE_TYPE, STATEMENT_TYPE, SUBJECTS_MAX, StatementError, Subject, make,
    rfc3339,
};
pub use verify::{ProvenanceError, VerifiedProvenance, matches, verify};

/// The builder that the hub is when it compiles Wasm for a node.
pub const AOT_BUILDER: &str = "urn:cnova:builder:hub-aot";
/// What it does then.
pub const AOT_BUILD_TYPE: &str = "urn:cnova:build:wasm-aot:v1";
/// What a file of envelopes is called beside its artifact: the artifact's name and this. One envelope a line.
pub const FILE_SUFFIX: &str = ".intoto.jsonl";
