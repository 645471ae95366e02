//! What two Cloudnova programs must agree on: names, twins, reports, the wire, the envelope, trust and limits.
//!
//! Nothing here performs I/O, reads a clock or draws randomness (the one exception, [`keys::SoftKey`], signs and is
//! only constructed by daemons). Every stage of a document's life is a type: bytes become an
//! [`envelope::Untrusted`], then an [`envelope::Verified`] value; nothing decodes a payload whose signature did not
//! hold.

pub mod boot_policy;
pub mod bundle;
pub mod certificate;
pub mod envelope;
pub mod hop;
pub mod ids;
pub mod keys;
pub mod limits;
pub mod parent;
pub mod renewal;
pub mod report;
pub mod secret;
pub mod selector;
pub mod system_bundle;
pub mod time;
pub mod topics;
pub mod transfer;
pub mod tree;
pub mod trust;
pub mod trust_documents;
pub mod twin;
pub mod wire;
