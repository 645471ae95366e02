//! The five gates of a TPM, as refusals.

use cnova_attestation::TpmEnrolment;
use cnova_attestation::enrol::{self, EnrolError, Makers, Part};
use cnova_shared::ids::Digest;
use cnova_shared::wire;
use cnova_shared::wire::v1::EnrolBegin;

use super::{Gate, Refused};

pub(super) use cnova_attestation::enrol::{Enrolled, Pending};

/// Which TPM a newcomer has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endorsement {
    /// SHA-256 of its endorsement key.
    pub(super) ek: Digest,
    /// SHA-256 of that key's certificate.
    pub(super) ek_certificate: Digest,
}

/// The first two gates; makes the credential for the third.
pub(super) fn begin(
    begin: &EnrolBegin,
    makers: &Makers,
    now_s: u64,
    seed: &[u8],
) -> Result<(Endorsement, Pending), Refused> {
    let malformed = |what: String| Refused::new(Gate::Malformed, what, "update the node's software");
    let shown = begin.tpm.as_ref();
    let shown = shown.ok_or_else(|| malformed("a node with a TPM came without what its TPM shows".into()))?;
    let shown: TpmEnrolment =
        wire::decode(shown).map_err(|e| malformed(format!("what the TPM shows is not understood: {e}")))?;
    let certificate = shown
        .ek_certificates
        .first()
        .map(|c| Digest::of(c))
        .unwrap_or(Digest([0; 32]));
    let mut random = expand(seed);
    let pending = enrol::begin(&shown, makers, now_s, &mut random).map_err(refusal)?;
    let endorsement = Endorsement {
        ek: pending.ek_fingerprint(),
        ek_certificate: certificate,
    };
    Ok((endorsement, pending))
}

/// The last three gates. The certified key must be the one that the newcomer wants the certificate for.
pub(super) fn finish(pending: Pending, begin: &EnrolBegin, proof: &[u8]) -> Result<Enrolled, Refused> {
    let enrolled = pending.finish(proof, &begin.binding().0).map_err(refusal)?;
    if enrolled.device_key != begin.key {
        let message = "gate 5 of 5, the device key: the TPM certified another key than the certificate is asked for";
        return Err(Refused::new(Gate::Certify, message, ADVICE_KEYS));
    }
    Ok(enrolled)
}

const ADVICE_KEYS: &str = "the keys in the TPM are not those that this software makes: clear the TPM's owner hierarchy and \
                           enrol again";

fn refusal(error: EnrolError) -> Refused {
    let (gate, advice) = match &error {
        EnrolError::Chain(_) => (
            Gate::EkChain,
            "add the root and intermediate certificates of the TPM's maker to tpm_roots on the hub",
        ),
        EnrolError::OtherEndorsementKey | EnrolError::EndorsementKey(_) => (
            Gate::EkKey,
            "the certificate in the TPM is not its own: have the TPM looked at",
        ),
        EnrolError::Credential(_) | EnrolError::NotActivated => {
            (Gate::Activation, "enrol again; if it stays, have the TPM looked at")
        }
        EnrolError::AttestationKey(_) => (Gate::AkAttributes, ADVICE_KEYS),
        EnrolError::Replayed => (Gate::Certify, "enrol again"),
        EnrolError::DeviceKey(_)
        | EnrolError::OtherDeviceKey
        | EnrolError::NotCertification
        | EnrolError::BadSignature => (Gate::Certify, ADVICE_KEYS),
        EnrolError::Malformed { part, .. } => {
            let gate = match part {
                Part::EndorsementKey => Gate::EkKey,
                Part::AttestationKey => Gate::AkAttributes,
                Part::DeviceKey | Part::Certification | Part::Signature => Gate::Certify,
            };
            (gate, "update the node's software")
        }
    };
    Refused::new(gate, error.to_string(), advice)
}

/// As many random bytes as are wanted, from a fresh random seed: SHA-256 of the seed and a counter.
fn expand(seed: &[u8]) -> impl FnMut(&mut [u8]) {
    let mut state = [b"cnova-enrol-random".as_slice(), seed, &[0; 8]].concat();
    let mut counter = 0_u64;
    move |out| {
        for chunk in out.chunks_mut(32) {
            counter += 1;
            let at = state.len() - 8;
            state[at..].copy_from_slice(&counter.to_be_bytes());
            chunk.copy_from_slice(&Digest::of(&state).0[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_random_bytes_come_twice() {
        let mut random = expand(&[1; 32]);
        let (mut a, mut b) = ([0; 40], [0; 40]);
        random(&mut a);
        random(&mut b);
        assert!(a[..32] != a[8..] && a != b);
        let mut other = expand(&[2; 32]);
        let mut c = [0; 40];
        other(&mut c);
        assert_ne!(a, c);
    }
}
