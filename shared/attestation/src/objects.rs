//! What crosses the line between a node's root of trust and its verifier, as bytes of the TPM 2.0 specification, part 2
//! ("Structures"). A node makes them, a verifier takes them apart.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// What a TPM shows to be admitted: the five gates of enrolment are checked against it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TpmEnrolment {
    /// Certificates of the endorsement key, DER; the key's own first, then what the TPM holds of its chain.
    #[serde(rename = "ekc")]
    pub ek_certificates: Vec<ByteBuf>,
    /// The endorsement key, `TPMT_PUBLIC`.
    #[serde(rename = "ek")]
    pub ek_public: ByteBuf,
    /// The attestation key, `TPMT_PUBLIC`.
    #[serde(rename = "ak")]
    pub ak_public: ByteBuf,
    /// The device key, `TPMT_PUBLIC`.
    #[serde(rename = "dev")]
    pub device_public: ByteBuf,
    /// What the attestation key says of the device key (TPM2_Certify), `TPMS_ATTEST`.
    #[serde(rename = "cer")]
    pub certify: ByteBuf,
    /// Its signature, `TPMT_SIGNATURE`.
    #[serde(rename = "sig")]
    pub certify_signature: ByteBuf,
}

/// A secret that only the TPM with one endorsement key and one attestation key can open (TPM2_MakeCredential).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// `TPM2B_ID_OBJECT`.
    #[serde(rename = "b")]
    pub blob: ByteBuf,
    /// `TPM2B_ENCRYPTED_SECRET`.
    #[serde(rename = "s")]
    pub secret: ByteBuf,
}

/// What a TPM says of its registers (TPM2_Quote), all in the SHA-256 bank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quote {
    /// `TPMS_ATTEST`.
    #[serde(rename = "a")]
    pub attest: ByteBuf,
    /// `TPMT_SIGNATURE` of the attestation key.
    #[serde(rename = "s")]
    pub signature: ByteBuf,
    /// The registers' values when they were quoted.
    #[serde(rename = "p")]
    pub pcrs: BTreeMap<u8, crate::Pcr>,
}
