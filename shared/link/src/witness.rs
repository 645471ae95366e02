//! The node's side of attestation: a challenge in, signed evidence out.

use std::fs;
use std::io::Read;
use std::path::Path;

use cnova_attestation::event_log::Slice;
use cnova_attestation::evidence::{EncodeError, Evidence, TpmEvidence, qualifying};
use cnova_attestation::limits::FIRMWARE_LOG_BYTES;
use cnova_root_of_trust::measurer::{MeasureError, Measurer};
use cnova_root_of_trust::{RootError, RootOfTrust};
use cnova_shared::envelope::{Claims, Introduction, SealError, seal_payload};
use cnova_shared::ids::NodeId;
use cnova_shared::topics::Kind;
use cnova_shared::wire::v1::Challenge;
use thiserror::Error;

use crate::identity::Identity;

/// Where the kernel shows the firmware's log.
const FIRMWARE_LOG: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";

/// Why a challenge was not answered.
#[derive(Debug, Error)]
pub enum AttestError {
    /// The launch log.
    #[error(transparent)]
    Measure(#[from] MeasureError),
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] RootError),
    /// The evidence breaks a limit.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// It could not be signed.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// What is quoted, and how.
#[derive(Debug)]
pub struct Witness {
    /// The launch log, of a program that launches workloads.
    pub measurer: Option<Measurer>,
    /// The registers of the boot and, with a launch log, the launch register.
    pub pcrs: Vec<u8>,
}

impl Witness {
    /// Answers a challenge of `verifier`. Blocks for as long as the TPM takes.
    ///
    /// # Errors
    /// [`AttestError`]; the verifier asks again.
    pub fn answer(
        &self,
        identity: &Identity,
        verifier: &NodeId,
        challenge: &Challenge,
        now_s: u64,
    ) -> Result<Vec<u8>, AttestError> {
        let session = identity.speaker();
        let digest = qualifying(&challenge.nonce, session.public_key());
        // Nothing is launched between the log and the quote that proves it.
        let ask = |root: &dyn RootOfTrust| Ok((root.quote(&digest, &self.pcrs)?, root.attestation_key()?));
        let (log, (quote, ak_public)) = match (&self.measurer, identity.tpm()) {
            (Some(measurer), _) => measurer.with_slice(challenge.log.as_ref(), ask)?,
            (None, Some(tpm)) => (Slice::default(), ask(&**tpm)?),
            (None, None) => {
                return Err(RootError::NoTpm {
                    what: "an answer to a challenge",
                }
                .into());
            }
        };
        let evidence = Evidence {
            node: identity.node().clone(),
            nonce: challenge.nonce.clone(),
            iat: now_s,
            session_key: session.public_key().clone(),
            tpm: Some(TpmEvidence {
                quote,
                ak_public,
                log,
                firmware_log: firmware_log(Path::new(FIRMWARE_LOG)),
            }),
        };
        let claims = Claims {
            iss: identity.node().clone(),
            aud: verifier.clone(),
            iat: now_s,
            exp: None,
        };
        let payload = evidence.encode()?;
        Ok(seal_payload(
            Kind::Evidence,
            &claims,
            payload,
            Introduction::default(),
            &*session,
        )?)
    }
}

/// The firmware's log, where there is one that is not too long to be sent. It names events; it proves nothing by itself.
fn firmware_log(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).ok()?;
    file.take(FIRMWARE_LOG_BYTES as u64 + 1).read_to_end(&mut bytes).ok()?;
    (!bytes.is_empty() && bytes.len() <= FIRMWARE_LOG_BYTES).then_some(bytes)
}
