//! Admission of a node by its TPM. Five gates, in this order; each closes what the ones before leave open:
//!
//! 1. the endorsement key's certificate leads to a maker of TPMs: there is such a TPM;
//! 2. it is about the endorsement key that the node shows;
//! 3. the node opens a credential made for that key and its attestation key: it has that TPM, and the TPM has that key;
//! 4. the attestation key signs nothing but what the TPM itself says, and cannot leave it;
//! 5. the attestation key says that the device key is in the same TPM and cannot leave it.
//!
//! [`begin`] passes the first two and makes the credential; [`Pending::finish`] passes the rest.

use cnova_shared::ids::Digest;
use cnova_shared::keys::{Algorithm, PublicKey};
use ring::hmac;
use thiserror::Error;

pub use crate::ek_chain::{ChainError, Makers};

use crate::credential::{CredentialError, Random, SECRET_BYTES};
use crate::tpm::{Attest, Attested, Attributes, Curve, Hash, Key, Public, Scheme, Signature, TpmError};
use crate::{Credential, TpmEnrolment, credential, ek_chain, limits};

const COMPARE: &[u8] = b"cnova-enrol-v1";

/// Which structure of an enrolment is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The endorsement key.
    EndorsementKey,
    /// The attestation key.
    AttestationKey,
    /// The device key.
    DeviceKey,
    /// What the attestation key says of the device key.
    Certification,
    /// The signature under it.
    Signature,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Part::EndorsementKey => "the endorsement key",
            Part::AttestationKey => "the attestation key",
            Part::DeviceKey => "the device key",
            Part::Certification => "the certification of the device key",
            Part::Signature => "the signature on the certification of the device key",
        })
    }
}

/// Why a node is not admitted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EnrolError {
    /// A structure cannot be read.
    #[error("{part} cannot be read: {reason}")]
    Malformed {
        /// Which.
        part: Part,
        /// What is wrong with it.
        reason: TpmError,
    },
    /// Gate 1.
    #[error("gate 1 of 5, the TPM's maker: {0}")]
    Chain(#[from] ChainError),
    /// Gate 2: the certificate is about another key.
    #[error(
        "gate 2 of 5, the endorsement key: the certificate is about another key than the one shown: it is of another TPM"
    )]
    OtherEndorsementKey,
    /// Gate 2: the key is not what an endorsement key is.
    #[error("gate 2 of 5, the endorsement key: {0}")]
    EndorsementKey(String),
    /// No credential can be made.
    #[error("gate 3 of 5, credential activation: {0}")]
    Credential(#[from] CredentialError),
    /// Gate 3: the secret that came back is another.
    #[error(
        "gate 3 of 5, credential activation: the secret is not the one that was sent: the node does not have the TPM of \
         this endorsement key, or its attestation key is in another"
    )]
    NotActivated,
    /// Gate 4.
    #[error("gate 4 of 5, the attestation key: {0}")]
    AttestationKey(String),
    /// Gate 5: the device key is not what it must be.
    #[error("gate 5 of 5, the device key: {0}")]
    DeviceKey(String),
    /// Gate 5: the certification is not one of this device key.
    #[error("gate 5 of 5, the device key: the attestation key certified another key than the one shown")]
    OtherDeviceKey,
    /// Gate 5: the certification was not made for this admission.
    #[error("gate 5 of 5, the device key: the certification was made for another request: it was replayed, ask again")]
    Replayed,
    /// Gate 5: something else than a certification was signed.
    #[error("gate 5 of 5, the device key: the attestation key signed a quote, not a certification")]
    NotCertification,
    /// Gate 5: the signature does not hold.
    #[error("gate 5 of 5, the device key: the signature of the attestation key does not hold")]
    BadSignature,
}

/// An admission between its two steps. It is kept in memory; after a restart the node begins again.
#[derive(Clone)]
pub struct Pending {
    request: TpmEnrolment,
    ek: Public,
    ak: Public,
    credential: Credential,
    secret: [u8; SECRET_BYTES],
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pending({})", Digest::of(self.ek.bytes()))
    }
}

/// A node that passed all gates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolled {
    /// The key to certify.
    pub device_key: PublicKey,
    /// The attestation key, `TPMT_PUBLIC`: to be pinned, every quote of this node must be its.
    pub ak_public: Vec<u8>,
    /// Its name.
    pub ak_name: Vec<u8>,
    /// Which TPM it is: [`ek_fingerprint`] of its endorsement key.
    pub ek_fingerprint: Digest,
    /// How often the TPM was reset when it was admitted.
    pub reset_count: u32,
}

/// What a TPM is known by: SHA-256 of its endorsement key's `TPMT_PUBLIC`.
#[must_use]
pub fn ek_fingerprint(ek_public: &[u8]) -> Digest {
    Digest::of(ek_public)
}

fn read(part: Part, bytes: &[u8]) -> Result<Public, EnrolError> {
    if bytes.len() > limits::TPM_STRUCTURE_BYTES {
        let reason = TpmError::Long {
            what: "it",
            len: bytes.len(),
            max: limits::TPM_STRUCTURE_BYTES,
        };
        return Err(EnrolError::Malformed { part, reason });
    }
    Public::read(bytes).map_err(|reason| EnrolError::Malformed { part, reason })
}

/// The first step: gates 1 and 2, and a credential for the node to open.
///
/// # Errors
/// [`EnrolError`] with the gate at which the node failed.
pub fn begin(request: &TpmEnrolment, makers: &Makers, now_s: u64, random: Random<'_>) -> Result<Pending, EnrolError> {
    let certified = ek_chain::verify(&request.ek_certificates, makers, now_s)?;
    let ek = read(Part::EndorsementKey, &request.ek_public)?;
    if ek.key != certified {
        return Err(EnrolError::OtherEndorsementKey);
    }
    let faults = ek.attributes.faults(
        &[
            Attributes::FIXED_TPM,
            Attributes::FIXED_PARENT,
            Attributes::SENSITIVE_DATA_ORIGIN,
            Attributes::RESTRICTED,
            Attributes::DECRYPT,
        ],
        &[Attributes::SIGN],
    );
    if !faults.is_empty() {
        return Err(EnrolError::EndorsementKey(faults));
    }
    let ak = read(Part::AttestationKey, &request.ak_public)?;
    let mut secret = [0; SECRET_BYTES];
    random(&mut secret);
    let credential = credential::make(&ek, &ak.name(), &secret, random)?;
    Ok(Pending {
        request: request.clone(),
        ek,
        ak,
        credential,
        secret,
    })
}

impl Pending {
    /// What the node must open.
    #[must_use]
    pub fn credential(&self) -> &Credential {
        &self.credential
    }

    /// Which TPM it is about.
    #[must_use]
    pub fn ek_fingerprint(&self) -> Digest {
        ek_fingerprint(self.ek.bytes())
    }

    /// The second step: gates 3 to 5. `answer` is what the node found in the credential, `qualifying` what it was told to
    /// have the device key certified with.
    ///
    /// # Errors
    /// [`EnrolError`] with the gate at which the node failed.
    pub fn finish(self, answer: &[u8], qualifying: &[u8]) -> Result<Enrolled, EnrolError> {
        if !same_secret(answer, &self.secret) {
            return Err(EnrolError::NotActivated);
        }
        check_attestation_key(&self.ak)?;
        let device = read(Part::DeviceKey, &self.request.device_public)?;
        let device_key = check_device_key(&device)?;
        let reset_count = check_certification(&self.request, &self.ak, &device, qualifying)?;
        Ok(Enrolled {
            device_key,
            ak_name: self.ak.name(),
            ak_public: self.request.ak_public.into_vec(),
            ek_fingerprint: ek_fingerprint(&self.request.ek_public),
            reset_count,
        })
    }
}

/// Compares in a time that does not depend on where they differ: by their HMACs, in ring's constant time.
fn same_secret(answer: &[u8], secret: &[u8]) -> bool {
    let key = |bytes| hmac::Key::new(hmac::HMAC_SHA256, bytes);
    let answered = hmac::sign(&key(answer), COMPARE);
    // HMAC pads short keys with zeros, so the length is compared too; it is no secret.
    answer.len() == secret.len() && hmac::verify(&key(secret), COMPARE, answered.as_ref()).is_ok()
}

const FIXED: [Attributes; 4] = [
    Attributes::FIXED_TPM,
    Attributes::FIXED_PARENT,
    Attributes::SENSITIVE_DATA_ORIGIN,
    Attributes::USER_WITH_AUTH,
];

fn check_attestation_key(ak: &Public) -> Result<(), EnrolError> {
    let bad = |s: &str| Err(EnrolError::AttestationKey(s.to_owned()));
    let wanted = [FIXED.as_slice(), &[Attributes::RESTRICTED, Attributes::SIGN]].concat();
    let faults = ak.attributes.faults(&wanted, &[Attributes::DECRYPT]);
    if !faults.is_empty() {
        return bad(&faults);
    }
    if !matches!(ak.key, Key::Ecc { curve: Curve::P256, .. }) {
        return bad("it is not of P-256");
    }
    if ak.scheme != Scheme::Ecdsa(Hash::Sha256) {
        return bad("it does not sign by ECDSA with SHA-256");
    }
    Ok(())
}

fn check_device_key(device: &Public) -> Result<PublicKey, EnrolError> {
    let bad = |s: &str| Err(EnrolError::DeviceKey(s.to_owned()));
    let wanted = [FIXED.as_slice(), &[Attributes::SIGN]].concat();
    // Restricted, it could not sign a TLS handshake; decrypting, it would be two keys in one.
    let faults = device
        .attributes
        .faults(&wanted, &[Attributes::RESTRICTED, Attributes::DECRYPT]);
    if !faults.is_empty() {
        return bad(&faults);
    }
    if !matches!(device.scheme, Scheme::None | Scheme::Ecdsa(Hash::Sha256)) {
        return bad("it does not sign by ECDSA with SHA-256");
    }
    match (&device.key, device.key.point()) {
        (Key::Ecc { curve: Curve::P256, .. }, Some(bytes)) => Ok(PublicKey {
            algorithm: Algorithm::Es256,
            bytes,
        }),
        _ => bad("it is not of P-256"),
    }
}

fn check_certification(
    request: &TpmEnrolment,
    ak: &Public,
    device: &Public,
    qualifying: &[u8],
) -> Result<u32, EnrolError> {
    let malformed = |part| move |reason| EnrolError::Malformed { part, reason };
    let signature = Signature::read(&request.certify_signature).map_err(malformed(Part::Signature))?;
    if !signature.holds(ak, &request.certify) {
        return Err(EnrolError::BadSignature);
    }
    let attest = Attest::read(&request.certify).map_err(malformed(Part::Certification))?;
    let Attested::Certify { name } = attest.attested else {
        return Err(EnrolError::NotCertification);
    };
    if attest.extra_data != qualifying {
        return Err(EnrolError::Replayed);
    }
    if name != device.name() {
        return Err(EnrolError::OtherDeviceKey);
    }
    Ok(attest.clock.reset_count)
}
