//! Secrets that open only under an approved boot.

use std::collections::BTreeMap;

use cnova_shared::ids::Digest;
use cnova_shared::keys::{Algorithm, PublicKey};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use tss_esapi::Context;
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::constants::SessionType;
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    Digest as TpmDigest, EccParameter, EccPoint, EccScheme, EccSignature, HashScheme, KeyDerivationFunctionScheme,
    KeyedHashScheme, Name, Nonce, Private, Public, PublicBuilder, PublicEccParametersBuilder,
    PublicKeyedHashParameters, SensitiveData, Signature, VerifiedTicket,
};
use tss_esapi::traits::{Marshall, UnMarshall};
use tss_esapi::tss2_esys::TPMT_TK_VERIFIED;
use zeroize::Zeroizing;

use super::fault::{At, Fault, refused};
use super::objects;
use super::provision::Keys;
use super::registers;
use crate::boot_policy::{self, BootApproval};
use crate::{RootError, SEALED_BYTES_MAX};

/// How often a policy is satisfied anew when somebody extends any register between looking at ours and opening. IMA does
/// so all the time.
const UNSEAL_TRIES: usize = 20;
/// TPM_RC_PCR_CHANGED.
const PCR_CHANGED: u32 = 0x128;
/// What of a response code of format one says which error it is, without the parameter (TPM 2.0 Library, part 2, 6.6.2).
const FORMAT_ONE: u32 = 0x0BF;
/// TPM_RC_INTEGRITY: the private part is not one that the parent encrypted.
const INTEGRITY: u32 = 0x09F;
/// TPM_RC_BINDING: the private part is of another public one.
const BINDING: u32 = 0x0A5;

/// What lies on disk: an object that only this TPM's storage key can load.
#[derive(Serialize, Deserialize)]
struct Sealed {
    /// TPMT_PUBLIC.
    #[serde(rename = "u")]
    public: ByteBuf,
    /// The inside of TPM2B_PRIVATE.
    #[serde(rename = "r")]
    private: ByteBuf,
}

/// A P-256 point in halves.
pub(super) struct Approver {
    x: Vec<u8>,
    y: Vec<u8>,
}

pub(super) fn checked_approver(key: &PublicKey) -> Result<Approver, RootError> {
    match (key.algorithm, key.bytes.as_slice()) {
        (Algorithm::Es256, [4, point @ ..]) if point.len() == 64 => Ok(Approver {
            x: point[..32].to_vec(),
            y: point[32..].to_vec(),
        }),
        _ => Err(RootError::Refused {
            command: "TPM2_LoadExternal",
            reason: format!("boots are approved with an ES256 key; {key:?} is none"),
        }),
    }
}

/// A sealed object, as it lies on disk.
pub(super) struct Object {
    public: Public,
    private: Private,
}

impl Object {
    /// Reads it as far as that is possible without the TPM.
    pub(super) fn read(sealed: &[u8]) -> Result<Self, RootError> {
        let bad = |reason: String| RootError::NotOurs {
            reason: format!("it cannot be read ({reason}); it was cut off or changed on disk"),
        };
        if sealed.len() > SEALED_BYTES_MAX {
            return Err(bad(format!("{} bytes, at most {SEALED_BYTES_MAX}", sealed.len())));
        }
        let object: Sealed = serde_cbor::from_slice(sealed).map_err(|e| bad(e.to_string()))?;
        Ok(Self {
            public: Public::unmarshall(&object.public).map_err(|e| bad(e.to_string()))?,
            private: Private::try_from(object.private.into_vec()).map_err(|e| bad(e.to_string()))?,
        })
    }

    fn load(&self, context: &mut Context, keys: &Keys) -> Result<KeyHandle, Fault> {
        let (private, public) = (self.private.clone(), self.public.clone());
        let loaded = context
            .execute_with_session(objects::PASSWORD, |ctx| ctx.load(keys.srk, private, public))
            .at("TPM2_Load");
        loaded.map_err(|fault| match fault.tpm_code().map(|code| code & FORMAT_ONE) {
            Some(INTEGRITY | BINDING) => Fault::Root(RootError::NotOurs {
                reason: "another TPM sealed it, this one was cleared since, or it was changed on disk".into(),
            }),
            _ => fault,
        })
    }
}

/// A request to open something, checked as far as that is possible without the TPM.
pub(super) struct Unseal {
    approver: Approver,
    approval: BootApproval,
    pcrs: Vec<u8>,
    object: Object,
}

impl Unseal {
    pub(super) fn new(sealed: &[u8], approver: &PublicKey, approval: &BootApproval) -> Result<Self, RootError> {
        let halves = checked_approver(approver)?;
        if !approval.is_signed_by(approver) {
            return Err(RootError::Refused {
                command: "TPM2_PolicyAuthorize",
                reason: format!("the approval of this boot is not signed by the pinned key {approver:?}"),
            });
        }
        Ok(Self {
            approver: halves,
            approval: approval.clone(),
            object: Object::read(sealed)?,
            pcrs: registers::checked("TPM2_PolicyPCR", &approval.pcrs)?,
        })
    }
}

pub(super) fn seal(context: &mut Context, keys: &Keys, secret: &[u8], approver: &Approver) -> Result<Vec<u8>, Fault> {
    let name = with_approver(context, approver, |_, _, name| Ok(name.clone()))?;
    let policy = boot_policy::authorized_policy(name.value());
    // No userWithAuth: only the policy opens it.
    create(context, keys, secret, false, &policy.0)
}

/// The empty password opens it; only this TPM can load it.
pub(super) fn seal_here(context: &mut Context, keys: &Keys, secret: &[u8]) -> Result<Vec<u8>, Fault> {
    create(context, keys, secret, true, &[])
}

fn create(
    context: &mut Context,
    keys: &Keys,
    secret: &[u8],
    by_password: bool,
    policy: &[u8],
) -> Result<Vec<u8>, Fault> {
    let command = "TPM2_Create";
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_no_da(true)
        .with_user_with_auth(by_password)
        .build()
        .at(command)?;
    let public = PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::KeyedHash)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_auth_policy(TpmDigest::try_from(policy).at(command)?)
        .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
        .with_keyed_hash_unique_identifier(TpmDigest::default())
        .build()
        .at(command)?;
    let secret = SensitiveData::try_from(secret).at(command)?;
    // A session of its own encrypts the secret on its way to the chip.
    let made = objects::with_session(
        context,
        SessionType::Hmac,
        HashingAlgorithm::Sha256,
        Some(keys.srk),
        |ctx, session| {
            ctx.execute_with_session(Some(session), |ctx| {
                ctx.create(keys.srk, public, None, Some(secret), None, None)
            })
            .at(command)
        },
    )?;
    let sealed = Sealed {
        public: ByteBuf::from(made.out_public.marshall().at(command)?),
        private: ByteBuf::from(made.out_private.to_vec()),
    };
    serde_cbor::to_vec(&sealed).map_err(|e| refused(command, e.to_string()))
}

pub(super) fn unseal(context: &mut Context, keys: &Keys, request: &Unseal) -> Result<Zeroizing<Vec<u8>>, Fault> {
    // The approver's key leaves before anything else is loaded: a TPM may have three places.
    let (name, ticket) = with_approver(context, &request.approver, |ctx, key, name| {
        Ok((name.clone(), verified(ctx, key, &request.approval)?))
    })?;
    let object = request.object.load(context, keys)?;
    let (kind, hash) = (SessionType::Policy, HashingAlgorithm::Sha256);
    objects::with_object(context, object, |ctx| {
        objects::with_session(ctx, kind, hash, Some(keys.srk), |ctx, session| {
            for _ in 0..UNSEAL_TRIES {
                satisfy(ctx, session, request, &name, &ticket)?;
                let opened = ctx
                    .execute_with_session(Some(session), |ctx| ctx.unseal(object.into()))
                    .at("TPM2_Unseal");
                match opened {
                    Err(fault) if fault.tpm_code() == Some(PCR_CHANGED) => {}
                    opened => return Ok(Zeroizing::new(opened?.to_vec())),
                }
            }
            let reason = format!("some register was extended during each of {UNSEAL_TRIES} attempts; try again");
            Err(refused("TPM2_Unseal", reason))
        })
    })
}

pub(super) fn unseal_here(context: &mut Context, keys: &Keys, object: &Object) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let loaded = object.load(context, keys)?;
    let (kind, hash) = (SessionType::Hmac, HashingAlgorithm::Sha256);
    objects::with_object(context, loaded, |ctx| {
        objects::with_session(ctx, kind, hash, Some(keys.srk), |ctx, session| {
            let opened = ctx.execute_with_session(Some(session), |ctx| ctx.unseal(loaded.into()));
            Ok(Zeroizing::new(opened.at("TPM2_Unseal")?.to_vec()))
        })
    })
}

/// TPM2_PolicyPCR over what the registers hold now, then TPM2_PolicyAuthorize, which fails unless that was approved.
fn satisfy(
    context: &mut Context,
    session: AuthSession,
    request: &Unseal,
    name: &Name,
    ticket: &TPMT_TK_VERIFIED,
) -> Result<(), Fault> {
    let command = "TPM2_PolicyAuthorize";
    let policy = PolicySession::try_from(session).at(command)?;
    let ticket = VerifiedTicket::try_from(*ticket).at(command)?;
    context
        .execute_without_session(|ctx| ctx.policy_restart(policy))
        .at("TPM2_PolicyRestart")?;
    let selection = registers::selection("TPM2_PolicyPCR", &request.pcrs)?;
    context
        .execute_without_session(|ctx| ctx.policy_pcr(policy, TpmDigest::default(), selection))
        .at("TPM2_PolicyPCR")?;
    let approved = TpmDigest::try_from(request.approval.policy.0.as_slice()).at(command)?;
    let reference = Nonce::try_from(boot_policy::POLICY_REF).at(command)?;
    let authorized =
        context.execute_without_session(|ctx| ctx.policy_authorize(policy, approved, reference, name, ticket));
    match authorized {
        Err(e) if objects::is_value_error(&e) => {
            let now = registers::read(context, &request.pcrs)?;
            Err(not_approved(&request.approval, &now).unwrap_or(Fault::Tss { command, error: e }))
        }
        done => done.at(command),
    }
}

/// The reason, unless the registers are the approved ones.
fn not_approved(approval: &BootApproval, now: &BTreeMap<u8, Digest>) -> Option<Fault> {
    let is_approved = boot_policy::pcr_policy(now) == approval.policy;
    let pcrs = approval.differing(now);
    (!is_approved).then_some(Fault::Root(RootError::BootNotApproved { pcrs }))
}

/// The TPM's word that the approver signed.
fn verified(context: &mut Context, key: KeyHandle, approval: &BootApproval) -> Result<TPMT_TK_VERIFIED, Fault> {
    let command = "TPM2_VerifySignature";
    let signed = Digest::of(&[&approval.policy.0[..], boot_policy::POLICY_REF].concat());
    let digest = TpmDigest::try_from(signed.0.as_slice()).at(command)?;
    let (r, s) = approval.signature.split_at(approval.signature.len() / 2);
    let (r, s) = (
        EccParameter::try_from(r).at(command)?,
        EccParameter::try_from(s).at(command)?,
    );
    let signature = Signature::EcDsa(EccSignature::create(HashingAlgorithm::Sha256, r, s).at(command)?);
    let ticket = context
        .execute_without_session(|ctx| ctx.verify_signature(key, digest, signature))
        .at(command)?;
    TPMT_TK_VERIFIED::try_from(ticket).at(command)
}

/// Has the approver's public key loaded for `job`. Its name is part of the sealed object's policy, so its template must
/// never change. In the owner's hierarchy, because tickets of the null hierarchy prove nothing.
fn with_approver<T>(
    context: &mut Context,
    approver: &Approver,
    job: impl FnOnce(&mut Context, KeyHandle, &Name) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let command = "TPM2_LoadExternal";
    let attributes = ObjectAttributesBuilder::new()
        .with_user_with_auth(true)
        .with_sign_encrypt(true)
        .build()
        .at(command)?;
    let parameters = PublicEccParametersBuilder::new()
        .with_ecc_scheme(EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256)))
        .with_curve(EccCurve::NistP256)
        .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
        .with_is_signing_key(true)
        .build()
        .at(command)?;
    let point = EccPoint::new(
        EccParameter::try_from(approver.x.as_slice()).at(command)?,
        EccParameter::try_from(approver.y.as_slice()).at(command)?,
    );
    let public = PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(point)
        .build()
        .at(command)?;
    let key = context
        .execute_without_session(|ctx| ctx.load_external_public(public, Hierarchy::Owner))
        .at(command)?;
    objects::with_object(context, key, |ctx| {
        let name = ctx.tr_get_name(key.into()).at(command)?;
        job(ctx, key, &name)
    })
}
