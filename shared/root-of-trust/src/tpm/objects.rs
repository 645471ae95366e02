//! Handles, sessions and signatures: what the other parts need of libtss2.

use cnova_shared::ids::Digest;
use tss_esapi::Context;
use tss_esapi::attributes::SessionAttributesBuilder;
use tss_esapi::constants::response_code::Tss2ResponseCode;
use tss_esapi::constants::{CapabilityType, SessionType};
use tss_esapi::handles::{KeyHandle, ObjectHandle, SessionHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Auth, CapabilityData, Digest as TpmDigest, HashScheme, HashcheckTicket, Signature, SignatureScheme,
    SymmetricDefinition,
};
use tss_esapi::tss2_esys::TPMT_TK_HASHCHECK;

use super::config::TpmConfig;
use super::fault::{At, Fault, refused};
use super::provision::Keys;

/// Most handles of one kind that are looked at; a TPM has some tens.
const HANDLES_MAX: u32 = 254;
const TRANSIENT_FIRST: u32 = 0x8000_0000;
const SESSION_FIRST: u32 = 0x0200_0000;
/// Bytes of r and of s in an ES256 signature.
const SCALAR_BYTES: usize = 32;

/// The authorization of what has an empty password or one that the context knows.
pub(super) const PASSWORD: Option<AuthSession> = Some(AuthSession::Password);

pub(super) fn set_passwords(context: &mut Context, config: &TpmConfig) -> Result<(), Fault> {
    let passwords = [
        (ObjectHandle::Owner, &config.owner_auth),
        (ObjectHandle::Endorsement, &config.endorsement_auth),
    ];
    for (hierarchy, password) in passwords {
        let auth = Auth::try_from(password.as_slice()).at("open")?;
        context.tr_set_auth(hierarchy, auth).at("open")?;
    }
    Ok(())
}

/// Handles in the TPM from `first` on, of the same kind as `first`.
pub(super) fn handles(context: &mut Context, first: u32, count: u32) -> Result<Vec<u32>, Fault> {
    let command = "TPM2_GetCapability";
    let (data, _) = context
        .execute_without_session(|ctx| ctx.get_capability(CapabilityType::Handles, first, count))
        .at(command)?;
    match data {
        CapabilityData::Handles(list) => Ok(list.into_inner().into_iter().map(u32::from).collect()),
        _ => Err(refused(command, "it answered something else than handles")),
    }
}

/// Whether there is anything under this persistent handle or NV index.
pub(super) fn exists(context: &mut Context, handle: u32) -> Result<bool, Fault> {
    Ok(handles(context, handle, 1)?.first() == Some(&handle))
}

/// Flushes objects and sessions that nobody can use any more. Only where nobody else can have made them.
pub(super) fn flush_leftovers(context: &mut Context) -> Result<(), Fault> {
    let mut found = handles(context, TRANSIENT_FIRST, HANDLES_MAX)?;
    found.extend(handles(context, SESSION_FIRST, HANDLES_MAX)?);
    if !found.is_empty() {
        tracing::info!(count = found.len(), "flushing what an earlier process left in the TPM");
    }
    for handle in found {
        let handle = TpmHandle::try_from(handle).at("TPM2_FlushContext")?;
        let object = context
            .execute_without_session(|ctx| ctx.tr_from_tpm_public(handle))
            .at("TPM2_ReadPublic")?;
        match context.flush_context(object) {
            // tss-esapi flushes a policy session and then says that it should not have been.
            Ok(()) | Err(tss_esapi::Error::WrapperError(_)) => {}
            Err(e) => return Err(e).at("TPM2_FlushContext"),
        }
    }
    Ok(())
}

/// Does `job` and then flushes `object`, whatever came of it.
pub(super) fn with_object<T>(
    context: &mut Context,
    object: impl Into<ObjectHandle>,
    job: impl FnOnce(&mut Context) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let result = job(context);
    let flushed = context.flush_context(object.into()).at("TPM2_FlushContext");
    let value = result?;
    flushed?;
    Ok(value)
}

/// Does `job` with a session, salted with `salt` where given; its parameters are then encrypted both ways.
pub(super) fn with_session<T>(
    context: &mut Context,
    kind: SessionType,
    hash: HashingAlgorithm,
    salt: Option<KeyHandle>,
    job: impl FnOnce(&mut Context, AuthSession) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let command = "TPM2_StartAuthSession";
    let cipher = SymmetricDefinition::AES_128_CFB;
    let session = context
        .execute_without_session(|ctx| ctx.start_auth_session(salt, None, None, kind, cipher, hash))
        .at(command)?
        .ok_or_else(|| refused(command, "it gave no session"))?;
    with_object(context, SessionHandle::from(session), |ctx| {
        let encrypted = salt.is_some();
        let (attributes, mask) = SessionAttributesBuilder::new()
            .with_decrypt(encrypted)
            .with_encrypt(encrypted)
            .build();
        ctx.tr_sess_set_attributes(session, attributes, mask).at(command)?;
        job(ctx, session)
    })
}

/// Signs a digest with the device key; r || s, each of 32 bytes.
pub(super) fn sign(context: &mut Context, keys: &Keys, digest: &Digest) -> Result<Vec<u8>, Fault> {
    let command = "TPM2_Sign";
    let digest = TpmDigest::try_from(digest.0.as_slice()).at(command)?;
    let scheme = SignatureScheme::EcDsa {
        hash_scheme: HashScheme::new(HashingAlgorithm::Sha256),
    };
    // The null ticket: the key is not restricted, so it signs digests that the TPM did not make.
    let ticket = HashcheckTicket::try_from(TPMT_TK_HASHCHECK {
        tag: tss_esapi::constants::tss::TPM2_ST_HASHCHECK,
        hierarchy: u32::from(TpmHandle::from(Hierarchy::Null)),
        digest: Default::default(),
    })
    .at(command)?;
    let signature = context
        .execute_with_session(PASSWORD, |ctx| ctx.sign(keys.device, digest, scheme, ticket))
        .at(command)?;
    fixed_signature(&signature).ok_or_else(|| refused(command, "it answered with something else than ECDSA over P-256"))
}

/// r || s. A TPM leaves out leading zeros, the signature on the wire has them (RFC 9053 section 2.1).
pub(super) fn fixed_signature(signature: &Signature) -> Option<Vec<u8>> {
    let Signature::EcDsa(ecdsa) = signature else {
        return None;
    };
    let mut out = padded(ecdsa.signature_r().value())?.to_vec();
    out.extend_from_slice(&padded(ecdsa.signature_s().value())?);
    Some(out)
}

/// A scalar or coordinate of P-256 with its leading zeros.
pub(super) fn padded(scalar: &[u8]) -> Option<[u8; SCALAR_BYTES]> {
    // Some TPMs add zeros instead of leaving them out.
    let first = scalar.iter().position(|b| *b != 0).unwrap_or(scalar.len());
    let digits = &scalar[first..];
    let mut out = [0; SCALAR_BYTES];
    let gap = SCALAR_BYTES.checked_sub(digits.len())?;
    out[gap..].copy_from_slice(digits);
    Some(out)
}

/// Whether a response code is "the value is not what it must be" of some parameter, handle or session.
pub(super) fn is_value_error(error: &tss_esapi::Error) -> bool {
    use tss_esapi::constants::response_code::Tss2ResponseCodeKind::{PolicyFail, Value};
    let kind = match error {
        tss_esapi::Error::Tss2Error(code @ Tss2ResponseCode::FormatOne(_)) => code.kind(),
        _ => None,
    };
    matches!(kind, Some(Value | PolicyFail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tss_esapi::structures::{EccParameter, EccSignature};

    #[test]
    fn short_scalars_are_padded_and_long_ones_cut() {
        let ecdsa = |r: Vec<u8>, s: Vec<u8>| {
            let (r, s) = (EccParameter::try_from(r).unwrap(), EccParameter::try_from(s).unwrap());
            Signature::EcDsa(EccSignature::create(HashingAlgorithm::Sha256, r, s).unwrap())
        };
        let mut expected = [0_u8; 64];
        expected[30..32].copy_from_slice(&[1, 2]);
        expected[63] = 3;
        assert_eq!(fixed_signature(&ecdsa(vec![1, 2], vec![3])).unwrap(), expected);
        let mut long = vec![0; 33];
        long.push(3);
        assert_eq!(fixed_signature(&ecdsa(vec![1, 2], long)).unwrap(), expected);
        assert_eq!(fixed_signature(&ecdsa(vec![1; 33], vec![3])), None);
        assert_eq!(fixed_signature(&Signature::Null), None);
    }
}
